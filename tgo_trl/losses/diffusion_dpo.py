"""Diffusion-DPO: a logistic loss of the difference of two implicit rewards (arXiv 2311.12908).

Of the two images of a pair, both corrupted with the same noise at the same time, `g = e_ref - e_theta`:

    L = -log sigmoid(beta / 2 (g_better - g_worse))

which is `-log sigmoid(r_better - r_worse)` with the implicit reward `r = beta g / T` at `T = 2`. Nothing in it holds
the better image: its error may rise as long as that of the worse one rises faster.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .base import Loss, LossInputs, RowLosses, Rows
from .likelihood import implicit_reward
from .pairs import PAIR_TEMPERATURE, pair_margin, to_rows
from .tgo import smoothed_logistic_loss


@dataclass(frozen=True)
class DiffusionDPOLoss(Loss):
    """Makes the better image of a pair more likely than the worse one, beside what they are under the reference.

    Attributes:
        beta: `beta > 0`; 5000 in paper and released code.
        label_smoothing: `eps`, the share of pairs that may be the wrong way round.
    """

    method: ClassVar[str] = (
        "Diffusion-DPO on pairs of {media}s of one prompt: the better one is made more likely than the worse one, "
        "relative to the reference"
    )
    rows: ClassVar[Rows] = "pairs"
    weighs_rows: ClassVar[bool] = False
    usual_temperature: ClassVar[float | None] = PAIR_TEMPERATURE
    paper: ClassVar[tuple[str, str] | None] = (
        "Diffusion Model Alignment Using Direct Preference Optimization", "2311.12908",
    )  # fmt: skip

    beta: float
    label_smoothing: float = 0.0

    @classmethod
    def usual_beta(cls, settings: Mapping[str, Any]) -> float:
        """5000, of paper and released code."""
        return 5000.0

    def __call__(self, inputs: LossInputs) -> RowLosses:
        """`-log sigmoid(u)` of each pair, for both of its rows."""
        ratio = self.log_ratio(inputs.errors)
        reward = implicit_reward(ratio, self.beta)
        loss = smoothed_logistic_loss(pair_margin(reward), self.label_smoothing)
        return RowLosses(to_rows(loss), ratio, reward)
