"""The exponential moving average of the trained weights, which everything that looks at them sees instead."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from diffusers.training_utils import EMAModel
from torch import nn


class WeightAverage:
    """Keeps an exponential moving average of weights, and puts it into them while somebody looks.

    With `w` the weights after the `n`-th update, counted from 1:

        average = d average + (1 - d) w,    d = min(decay, n / (n + 9)), but 0 for n = 1

    which is [`~diffusers.training_utils.EMAModel`] with its own warm-up: the weights that training began with are
    forgotten at once, and the first updates soon, so that a short run is no average with its own start.

    Where weights are spread over processes, each keeps that of its parts, with which the others need not be asked.

    It has the modes of a schedule-free optimizer, [`train`] and [`eval`]. Both copy, so that nothing is rounded.

    Args:
        weights: that are trained, or parts of them, in their memory; float32. The average begins with what they hold,
            on their device.
        decay: the most that `d` gets to, in (0, 1).
        finish: called before the average is looked at, so that the last update is counted.
        num_updates: that the average has counted already.
        release: called before the weights are written to, so that nobody goes on with what was made of them.
    """

    def __init__(
        self, weights: Iterable[nn.Parameter], decay: float, finish: Callable[[], None], num_updates: int = 0,
        release: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._weights = list(weights)
        self._average = EMAModel(self._weights, decay=decay, foreach=True)
        self._average.optimization_step = num_updates
        self._finish = finish
        self._release = release
        self._is_shown = False

    @property
    def num_updates(self) -> int:
        """How many updates the average has counted."""
        return int(self._average.optimization_step)

    def update(self) -> None:
        """Counts an update that was made."""
        assert not self._is_shown
        self._average.step(self._weights)

    def eval(self) -> None:
        """Puts the average into the weights; the raw ones wait in main memory."""
        if not self._is_shown:
            self._finish()
            self._release()
            self._average.store(self._weights)
            self._average.copy_to(self._weights)
            self._is_shown = True

    def train(self) -> None:
        """Puts the raw weights back, from which the next step is taken."""
        if self._is_shown:
            self._release()
            self._average.restore(self._weights)
            self._is_shown = False

    @contextmanager
    def raw(self) -> Iterator[None]:
        """Within, while the average is looked at, the weights are the raw ones."""
        self.train()
        try:
            yield
        finally:
            self.eval()
