"""What every noise process offers: a time, a corruption, and an error that stands in for the log-likelihood."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor


class NoiseProcess(ABC):
    """How clean samples are corrupted, and how far a prediction is from what it should have been.

    A process knows nothing of networks. It is a pure function of its arguments: all randomness comes in as `quantile`
    and `noise`, which [`~tgo_trl.policy.draws.draw_rows`] draws.
    """

    has_target: ClassVar[bool] = True
    """Whether predictions can be subtracted from what they should be; logits of tokens cannot."""

    @abstractmethod
    def time(self, quantile: Tensor) -> Tensor:
        """Time of each row, which grows with the quantile, as does the corruption.

        Args:
            quantile: float32 `[B]`, uniform in [0, 1).

        Returns:
            `[B]`, dtype and unit as the process defines.
        """

    @abstractmethod
    def corrupt(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Corrupted samples, what the network sees.

        Args:
            clean: `[B, ...]`, clean samples: float32, or int64 tokens.
            noise: float32 `[B, ...]`, standard normal, of the same shape.
            time: `[B]`, as [`time`] returns it.
        """

    @abstractmethod
    def error(self, prediction: Tensor, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Mean error of each row, whose negative over `T` is the log-likelihood surrogate.

        Returns:
            float32 `[B]`; holds gradient if `prediction` does.
        """

    def target(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """What the network is trained to predict, float32 `[B, ...]`, if [`has_target`]."""
        raise NotImplementedError

    def conflict(self, other: "NoiseProcess") -> str | None:
        """Why a network that was trained under `other` cannot be asked as this process asks; None if it can."""
        if type(self) is type(other):
            return None
        return f"noise is that of a `{type(other).__name__}`, not of a `{type(self).__name__}`"

    @abstractmethod
    def temperature(self, num_elements: int) -> float:
        """The temperature `T` that `temperature="auto"` stands for, in error units.

        Args:
            num_elements: number of elements of one clean sample.
        """
