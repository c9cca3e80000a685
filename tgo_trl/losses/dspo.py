"""DSPO, Direct Score Preference Optimization (ICLR 2025), in the two forms of its released code.

With `d = v_theta - v_ref` and `t` the target, both of the better image, and the margin of Diffusion-DPO, `u = beta / 2
(g_better - g_worse)`, `g = e_ref - e_theta`, on the same noise and at the same time within the pair:

    sd15:  L = <(v_theta - t - beta (1 - sigmoid(u)) d)^2>                       beta = 0.001
    sdxl:  L = (1 - sigmoid(u))^2 <d^2>  where <d^2> >= 0.1, else (1 - sigmoid(u))^2       beta = 5000

The two share a name and `u`, and are different objectives. At its `beta` the first is the denoising error of the better
images to one part in a thousand: `sigmoid(u)` is 1/2, and `d` is subtracted 0.0005 times. The second has no target of
its own: below 0.1, which predictions rarely get to, it is a bounded loss of the margin; above, it pulls back to the
reference. The released code takes the mean of `<d^2>` over the pairs that share a device batch for this choice; here
each pair has its own, so that no result depends on how batches are laid out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import Loss, LossInputs, Predictions, RowLosses, Rows
from .likelihood import implicit_reward, squared_difference
from .pairs import PAIR_TEMPERATURE, pair_margin, to_rows

DSPO_BETAS = {"sd15": 0.001, "sdxl": 5000.0}
"""The forms by their name, with the `beta` that each was released with."""

FAR = 0.1
"""`<d^2>` from which on the form for SDXL counts the distance to the reference."""


@dataclass(frozen=True)
class DSPOLoss(Loss):
    """Draws the better image of a pair nearer, the more, the less it is preferred to the worse one yet.

    Attributes:
        beta: `beta > 0`, see [`DSPO_BETAS`].
        dspo_form: a key of [`DSPO_BETAS`].
    """

    method: ClassVar[str] = (
        "DSPO (Direct Score Preference Optimization), in the form of its released code for `{dspo_form}`, on pairs of "
        "{media}s of one prompt, of which one is better"
    )
    rows: ClassVar[Rows] = "pairs"
    weighs_rows: ClassVar[bool] = False
    usual_temperature: ClassVar[float | None] = PAIR_TEMPERATURE
    paper: ClassVar[tuple[str, str] | None] = (
        "DSPO: Direct Score Preference Optimization for Diffusion Model Alignment",
        "https://openreview.net/forum?id=DomBynQsqt",
    )

    beta: float
    dspo_form: str = "sd15"

    @classmethod
    def usual_beta(cls, settings: Mapping[str, Any]) -> float:
        """That of the form's released script."""
        return DSPO_BETAS.get(str(settings["dspo_form"]), 1.0)  # another name is refused later

    @property
    def reads_predictions(self) -> bool:
        """Of both forms: the distance to the reference's prediction."""
        return True

    def __call__(self, inputs: LossInputs) -> RowLosses:
        """The loss of each pair, for both of its rows."""
        predictions = inputs.errors.predictions
        assert predictions is not None
        ratio = self.log_ratio(inputs.errors)
        reward = implicit_reward(ratio, self.beta)
        undecided = (-pair_margin(reward)).sigmoid()
        of_form = far_from_reference if self.dspo_form == "sdxl" else toward_shifted_target
        loss = of_form(_of_better(predictions), undecided, self.beta)
        return RowLosses(to_rows(loss.mean(0)), ratio, reward)


def toward_shifted_target(better: Predictions, undecided: Tensor, beta: float) -> Tensor:
    """`<(v - t - beta (1 - sigmoid(u)) (v - v_ref))^2>`, the form for SD 1.5, float32 `[K, P]`.

    Args:
        better: predictions of the better rows, `[K, P, ...]`; the policy's hold gradient.
        undecided: `1 - sigmoid(u)`, `[P]`; holds gradient.
        beta: `beta > 0`.
    """
    assert better.reference is not None
    policy, reference = better.policy.float(), better.reference.float()
    share = undecided.reshape(1, -1, *[1] * (policy.dim() - 2))
    return squared_difference(policy - beta * share * (policy - reference), better.target)


def far_from_reference(better: Predictions, undecided: Tensor, beta: float) -> Tensor:
    """`(1 - sigmoid(u))^2 <d^2>` where `<d^2>` is at least [`FAR`], else `(1 - sigmoid(u))^2`, float32 `[K, P]`.

    The form for SDXL; the arguments are those of [`toward_shifted_target`].
    """
    assert better.reference is not None
    distance = squared_difference(better.policy, better.reference)
    is_far = distance.detach().mean(0) >= FAR
    return undecided.square() * torch.where(is_far, distance, torch.ones_like(distance))


def _of_better(predictions: Predictions) -> Predictions:
    assert predictions.reference is not None
    return Predictions(predictions.policy[:, ::2], predictions.reference[:, ::2], predictions.target[:, ::2])
