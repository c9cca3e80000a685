"""Steps are taken from other weights than those that are looked at: with schedule-free optimizers, with an average."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import Trainer

from .weight_average import WeightAverage


class OptimizerMode:
    """Puts the weights that a run stands for into the network, for as long as somebody looks at them.

    A schedule-free optimizer (arXiv 2405.15682) evaluates gradients at one point and stands for another, an average;
    `optimizer.train()` and `optimizer.eval()` move the weights between the two. With an average of the run's own, any
    optimizer does. Whatever saves, samples or copies the weights does so within [`averaged`]. `Trainer` itself calls
    the optimizer's `train()` before each step, and its `eval()` before it evaluates. Other optimizers have no modes,
    and nothing happens.

    Args:
        trainer: whose optimizer it is.

    Attributes:
        average: of the weights of the run that is under way; None without one.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.average: WeightAverage | None = None
        self._trainer = trainer
        self._depth = 0

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the weights are those that the run stands for.

        All processes have to enter it, or rounding would drive their weights apart.
        """
        # After an evaluation, `Trainer` leaves network and optimizer in evaluation until the next step.
        model: Any = self._trainer.model
        is_stepping = self._depth == 0 and self._trainer.is_in_train and model.training
        self._depth += 1
        try:
            self.settle()
            yield
        finally:
            self._depth -= 1
            if is_stepping:
                self.unsettle()

    def settle(self) -> None:
        """Puts those weights into the network until the next step, or for good at the end of training."""
        self._call("eval")

    def unsettle(self) -> None:
        """Puts the weights into the network that steps are taken from."""
        self._call("train")

    def _call(self, mode: str) -> None:
        for part in (self._trainer.optimizer, self.average):
            switch = getattr(part, mode, None)
            if callable(switch):
                switch()
