"""Supervised fine-tuning: the plain denoising error of positive rows, without reference and weights."""

from dataclasses import dataclass
from typing import ClassVar

from .base import Loss, LossInputs, RowLosses, Rows
from .likelihood import log_likelihood


@dataclass(frozen=True)
class SFTLoss(Loss):
    """The baseline that every alignment method has to beat."""

    method: ClassVar[str] = "supervised fine-tuning on the {media}s that scored above a threshold"
    rows: ClassVar[Rows] = "positives"
    needs_reference: ClassVar[bool] = False
    weighs_rows: ClassVar[bool] = False

    def __call__(self, inputs: LossInputs) -> RowLosses:
        """The error of each row, in error units."""
        error = inputs.errors.policy.mean(0)
        return RowLosses(error, log_likelihood(error, self.temperature))
