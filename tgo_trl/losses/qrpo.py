"""Quantile Reward Policy Optimization: the implicit reward is fitted to the score's quantile (arXiv 2507.08068)."""

import math
from dataclasses import dataclass
from typing import ClassVar

from .base import Loss, LossInputs, RelativeScore, RowLosses
from .likelihood import implicit_reward


@dataclass(frozen=True)
class QRPOLoss(Loss):
    """`(q - beta log Z - r)^2` of each row, with `r = beta (log pi_theta - log pi_ref)`.

    `q` is the quantile of the row's score among those of the reference. It is uniform there, so that the partition
    function, which thresholds stand in for elsewhere, is known: `Z = beta (e^(1/beta) - 1)`. Takes the rows for samples
    of the reference.

    Attributes:
        beta: `beta > 0`, the strength of the KL term, in units of quantiles.
    """

    method: ClassVar[str] = (
        "Quantile Reward Policy Optimization (QRPO) on scored {media}s: how much more likely each is made than under "
        "the reference is fitted to the quantile of its score"
    )
    relative_score: ClassVar[RelativeScore | None] = "quantile"
    weighs_rows: ClassVar[bool] = False
    paper: ClassVar[tuple[str, str] | None] = (
        "Quantile Reward Policy Optimization: Alignment with Pointwise Regression and Exact Partition Functions",
        "2507.08068",
    )

    beta: float

    def __call__(self, inputs: LossInputs) -> RowLosses:
        """The squared residual of each row."""
        assert inputs.relative_score is not None
        ratio = self.log_ratio(inputs.errors)
        reward = implicit_reward(ratio, self.beta)
        return RowLosses((inputs.relative_score - scaled_log_partition(self.beta) - reward).square(), ratio, reward)


def scaled_log_partition(beta: float) -> float:
    """`beta log Z = beta log(beta (e^(1/beta) - 1))`, with the exponential taken out, which overflows.

    The paper's code leaves out the `-1`, which is nothing for its small `beta`.
    """
    return beta * math.log(beta) + 1 + beta * math.log(-math.expm1(-1 / beta))
