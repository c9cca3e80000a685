"""Threshold-Guided Optimization: a weighted logistic loss of the implicit reward (arXiv 2605.04653)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from .base import Loss, LossInputs, RowLosses
from .likelihood import implicit_reward, log_ratio, toward_label


@dataclass(frozen=True)
class TGOLoss(Loss):
    """Makes rows above the threshold more likely than under the reference, and rows below it less likely.

    Attributes:
        beta: `beta > 0`, the strength of the KL term.
    """

    method: ClassVar[str] = (
        "Threshold-Guided Optimization (TGO) on scored {media}s: those above a threshold are made more likely than "
        "under the reference, those below it less likely, each weighted by its distance to the threshold"
    )

    beta: float

    def __call__(self, inputs: LossInputs) -> RowLosses:
        """`w (-log sigmoid(+-r))` of each row, with the errors of its draws averaged first."""
        errors = inputs.errors
        assert errors.reference is not None
        ratio = log_ratio(errors.policy.mean(0), errors.reference.mean(0), self.temperature)
        reward = implicit_reward(ratio, self.beta)
        return RowLosses(tgo_loss(reward, inputs.is_positive, inputs.weight), ratio, reward)


def tgo_loss(reward: Tensor, is_positive: Tensor, weight: Tensor) -> Tensor:
    """Weighted logistic loss of each row, `w (-log sigmoid(+r) if s >= tau else -log sigmoid(-r))`.

    The mean over rows is the paper's loss; it is left to the caller, who knows how many rows an accumulated batch has.
    Finite, with the right gradient, at any `|r|` that float32 can hold.

    Args:
        reward: float32 `[B]`, the implicit reward `r`; holds gradient.
        is_positive: bool `[B]`, the label `l = [s >= tau]`.
        weight: float32 `[B]`, the confidence weight `w >= 1`.

    Returns:
        float32 `[B]`.
    """
    return -weight * logsigmoid(toward_label(reward, is_positive))
