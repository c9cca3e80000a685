"""Masked tokens with the cosine schedule (MaskGIT, arXiv 2202.04200): aMUSEd, Meissonic."""

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import NoiseProcess


class MaskedTokenProcess(NoiseProcess):
    """A share `p = cos(pi t / 2)` of the tokens is masked, with `t` uniform, and the network names what they were.

    The log-likelihood surrogate is `log pi(y|x) ~= mean over masked positions of log p(token | visible tokens, x)`, so
    the error is the mean negative log-likelihood, in nats per token, and `T = 1`.

    Args:
        mask_token_id: the token that stands for "masked".
    """

    has_target: ClassVar[bool] = False

    def __init__(self, mask_token_id: int) -> None:
        self.mask_token_id = mask_token_id

    def time(self, quantile: Tensor) -> Tensor:
        """The share of masked tokens `p = sin(pi q / 2)`, float32 `[B]`: `cos(pi t / 2)` for `t = 1 - q`."""
        return torch.sin(math.pi / 2 * quantile)

    def corrupt(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """The tokens with `max(1, round(p L))` of them masked, int64 `[B, L]`: where `noise` is smallest.

        Args:
            clean: int64 `[B, L]`.
            noise: float32 `[B, L]`; only its order counts.
            time: float32 `[B]`, from [`time`].
        """
        return clean.masked_fill(_is_masked(noise, time), self.mask_token_id)

    def error(self, prediction: Tensor, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Mean negative log-likelihood of the masked tokens, float32 `[B]`, in nats.

        Args:
            prediction: logits `[B, L, V]`; the softmax is taken in float32.
            clean: int64 `[B, L]`, each below `V`.
            noise: float32 `[B, L]`, as in [`corrupt`].
            time: float32 `[B]`, as in [`corrupt`].
        """
        is_masked = _is_masked(noise, time)
        nll = F.cross_entropy(prediction.float().transpose(1, 2), clean, reduction="none")
        return nll.where(is_masked, 0).sum(1) / is_masked.sum(1)

    def conflict(self, other: NoiseProcess) -> str | None:
        """Another token that stands for "masked"."""
        if isinstance(other, MaskedTokenProcess) and other.mask_token_id != self.mask_token_id:
            return f"mask is token {other.mask_token_id}, not {self.mask_token_id}"
        return super().conflict(other)

    def temperature(self, num_elements: int) -> float:
        """1: the error is a negative log-likelihood already."""
        return 1.0


def _is_masked(noise: Tensor, time: Tensor) -> Tensor:
    num_tokens = noise.shape[1]
    num_masked = (time * num_tokens).round().clamp(min=1)
    rank = noise.argsort(1).argsort(1)
    return rank < num_masked[:, None]
