"""Optimizers that take their steps from other weights than those that they stand for, such as schedule-free ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import Trainer


class OptimizerMode:
    """Puts the weights that an optimizer stands for into the network, for as long as somebody looks at them.

    A schedule-free optimizer (arXiv 2405.15682) evaluates gradients at one point and stands for another, an average;
    `optimizer.train()` and `optimizer.eval()` move the weights between the two. Whatever saves, samples or copies the
    weights does so within [`averaged`]. `Trainer` itself calls `train()` before each step, and `eval()` before it
    evaluates. Other optimizers have no modes, and nothing happens.

    Args:
        trainer: whose optimizer it is.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._depth = 0

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the weights are those that the optimizer stands for.

        All processes have to enter it, or rounding would drive their weights apart.
        """
        # After an evaluation, `Trainer` leaves network and optimizer in evaluation until the next step.
        model: Any = self._trainer.model
        is_stepping = self._depth == 0 and self._trainer.is_in_train and model.training
        self._depth += 1
        self.settle()
        try:
            yield
        finally:
            self._depth -= 1
            if is_stepping:
                self._call("train")

    def settle(self) -> None:
        """Puts those weights into the network for good, at the end of training."""
        self._call("eval")

    def _call(self, mode: str) -> None:
        optimizer: Any = self._trainer.optimizer
        switch = getattr(optimizer, mode, None)
        if callable(switch):
            switch()
