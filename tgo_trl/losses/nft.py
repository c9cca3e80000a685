"""Offline DiffusionNFT: rows pull the policy towards them or away, by how far they are from the threshold."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from .base import Loss, LossInputs, RelativeScore, RowLosses
from .tgo import mirrored_error


@dataclass(frozen=True)
class NFTLoss(Loss):
    """`s (q <(u - d / s)^2> + (1 - q) <(u + d / s)^2>)` of each row (arXiv 2509.16117).

    `u = t - v_ref` is the residual of the reference, which stands for the policy that drew the rows, `d` the step of
    the policy from it, and `q = 1/2 + 1/2 clip(A / k, -1, 1)` the row's optimality, of its advantage `A`. The best step
    is `s (2 q - 1) u`. The paper's `beta` is `1 / s`; its code divides the loss by that, and so does this, so that the
    gradient at the reference does not depend on it. With `q` the label it is what mirrored negatives of
    [`~tgo_trl.losses.TGOLoss`] become where `beta` is small.

    Attributes:
        mirror_strength: `s > 0`, how far the policy may go, in steps that the data ask for.
        advantage_clip: `k > 0`, the distance to the threshold, in standard deviations of the scores, from which on a
            row counts in full.
    """

    method: ClassVar[str] = (
        "offline DiffusionNFT on scored {media}s: the reference is drawn to those above a threshold and to the mirror "
        "images of those below it, each by its distance to the threshold"
    )
    relative_score: ClassVar[RelativeScore | None] = "advantage"
    weighs_rows: ClassVar[bool] = False
    paper: ClassVar[tuple[str, str] | None] = (
        "DiffusionNFT: Online Diffusion Reinforcement with Forward Process", "2509.16117",
    )  # fmt: skip

    mirror_strength: float = 1.0
    advantage_clip: float = 1.0

    @property
    def reads_predictions(self) -> bool:
        """Always."""
        return True

    def __call__(self, inputs: LossInputs) -> RowLosses:
        """The loss of each row, in error units; its reward is the log-ratio itself."""
        predictions, advantage, strength = inputs.errors.predictions, inputs.relative_score, self.mirror_strength
        assert predictions is not None
        assert advantage is not None
        optimality = 0.5 + 0.5 * (advantage / self.advantage_clip).clamp(-1, 1)
        positive = torch.ones_like(inputs.is_positive)
        toward, away = (mirrored_error(predictions, side, strength).mean(0) for side in (positive, ~positive))
        ratio = self.log_ratio(inputs.errors)
        return RowLosses(strength * (optimality * toward + (1 - optimality) * away), ratio, ratio)
