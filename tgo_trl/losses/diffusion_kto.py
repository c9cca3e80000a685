"""Diffusion-KTO: the utility of how much more, or less, likely a row is than rows are on average (arXiv 2404.04465)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from .base import Loss, LossInputs, RowErrors, RowLosses
from .likelihood import implicit_reward, toward_label

UTILITIES = ("sigmoid", "loss_averse", "risk_seeking")


@dataclass(frozen=True)
class DiffusionKTOLoss(Loss):
    """`-U(+-(r - z))` of each row, with the reference point `z = max(0, mean r)` over all rows of the update.

    Where there is no update, in an evaluation, the reference point is 0. Without it, with the utility `loss_averse`,
    this is TGO without confidence weights.

    Attributes:
        beta: `beta > 0`; the paper's, which multiplies errors, is `beta / T`.
        utility: `U`, see [`utility_loss`].
        desirable_weight: times which positive rows count.
        undesirable_weight: times which negative rows count.
    """

    method: ClassVar[str] = (
        "Diffusion-KTO on scored {media}s: the expected utility of making those above a threshold more likely than "
        "under the reference, and those below it less likely"
    )
    has_statistic: ClassVar[bool] = True
    weighs_rows: ClassVar[bool] = False
    paper: ClassVar[tuple[str, str] | None] = ("Aligning Diffusion Models by Optimizing Human Utility", "2404.04465")

    beta: float
    utility: str = "sigmoid"
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def row_statistic(self, errors: RowErrors) -> Tensor:
        """The log-ratio, whose mean is the KL divergence that the reference point estimates."""
        return self.log_ratio(errors)

    def __call__(self, inputs: LossInputs) -> RowLosses:
        """The weighted loss of each row, and its log-ratio."""
        ratio = self.log_ratio(inputs.errors)
        reward = implicit_reward(ratio, self.beta)
        point = 0.0 if inputs.statistic is None else implicit_reward(inputs.statistic.clamp(min=0), self.beta)
        loss = utility_loss(toward_label(reward - point, inputs.is_positive), self.utility)
        weighed = (self.desirable_weight * loss).where(inputs.is_positive, self.undesirable_weight * loss)
        return RowLosses(weighed, ratio, reward)


def utility_loss(gain: Tensor, utility: str) -> Tensor:
    """`-U(v)` up to a constant, in the dtype of `v`.

    - `"sigmoid"`: `1 - sigmoid(v)`, the value function of KTO; flat both where a row is won and where it is lost.
    - `"loss_averse"`: `-log sigmoid(v)`; flat where it is won.
    - `"risk_seeking"`: `log sigmoid(-v)`; flat where it is lost, and without a lower bound.

    Args:
        gain: float `[B]`, `v`, above 0 where a row has moved as its label asks; holds gradient.
        utility: one of `UTILITIES`.
    """
    if utility == "sigmoid":
        return (-gain).sigmoid()
    return -logsigmoid(gain) if utility == "loss_averse" else logsigmoid(-gain)
