"""Threshold-Guided Optimization: a weighted logistic loss of the implicit reward (arXiv 2605.04653).

With its settings as they are by default, it is the paper's. The others change one term each; their equations are in the
notation of `docs/losses.md`: `u = t - v_ref` is the reference's residual, `d = v_theta - v_ref` the step of the policy,
`<.>` the mean over the numbers of a row.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .base import Loss, LossInputs, Predictions, RowLosses
from .likelihood import implicit_reward, log_ratio, over_draws, relative_log_ratio, squared_difference, toward_label

ERROR_SCALES = ("absolute", "relative")
NEGATIVES = ("repel", "mirror")


@dataclass(frozen=True)
class TGOLoss(Loss):
    """Makes rows above the threshold more likely than under the reference, and rows below it less likely.

    Attributes:
        beta: `beta > 0`, the strength of the KL term.
        error_scale: `"absolute"`: errors over `T`, as in the paper. `"relative"`: over `T e_ref`, a Gaussian likelihood
            whose variance is the reference's own at that row and time.
        negatives: what negative rows ask for: `"repel"`: a lower likelihood, as in the paper. `"mirror"`: a higher one
            of their mirror image at the reference's prediction.
        mirror_strength: `s > 0`, how far mirrored steps may go.
        negative_weight: `alpha >= 0`, times which negative rows count.
        negative_margin: `m > 0`; negative rows give no gradient where `-r > m`.
        label_smoothing: `eps`, the share of labels that may be wrong.
        trust_region: `lambda >= 0` of the penalty `lambda kappa <d^2>`, with `kappa = beta / T`, or `beta / (T e_ref)`
            if errors are relative.
        sft_weight: `gamma >= 0` of the term `gamma kappa w e` of positive rows.
    """

    method: ClassVar[str] = (
        "Threshold-Guided Optimization (TGO) on scored {media}s: those above a threshold are made more likely than "
        "under the reference, those below it less likely, each weighted by its distance to the threshold"
    )

    beta: float
    error_scale: str = "absolute"
    negatives: str = "repel"
    mirror_strength: float = 1.0
    negative_weight: float = 1.0
    negative_margin: float | None = None
    label_smoothing: float = 0.0
    trust_region: float = 0.0
    sft_weight: float = 0.0

    @property
    def reads_predictions(self) -> bool:
        """Of mirrored negatives and of a trust region."""
        return self.negatives == "mirror" or self.trust_region > 0

    @property
    def reads_relative_errors(self) -> bool:
        """Whether an error is taken for the variance of a Gaussian."""
        return self.error_scale == "relative"

    def __call__(self, inputs: LossInputs) -> RowLosses:
        """`w alpha (-log sigmoid(+-r))` of each row, and the terms that are switched on."""
        errors, is_positive = inputs.errors, inputs.is_positive
        assert errors.reference is not None
        ratio = self._log_ratio(errors.policy, errors.reference)
        reward = implicit_reward(ratio, self.beta)
        if self.negatives == "mirror":
            assert errors.predictions is not None
            toward_target = mirrored_error(errors.predictions, is_positive, self.mirror_strength)
            margin = implicit_reward(self._log_ratio(toward_target, errors.reference), self.beta)
        else:
            margin = toward_label(reward, is_positive)
        if self.negative_margin is not None:
            margin = margin.where(is_positive, margin.clamp(max=self.negative_margin))
        weight = inputs.weight
        if self.negative_weight != 1:
            weight = weight.where(is_positive, self.negative_weight * weight)
        loss = weight * smoothed_logistic_loss(margin, self.label_smoothing)
        if self.trust_region > 0:
            assert errors.predictions is not None
            difference = prediction_difference(errors.predictions)
            loss = loss + self.trust_region * self.beta * self._scaled(difference, errors.reference)
        if self.sft_weight > 0:
            anchor = self.sft_weight * self.beta * inputs.weight * self._scaled(errors.policy, errors.reference)
            loss = loss + anchor.where(is_positive, 0)
        return RowLosses(loss, ratio, reward)

    def _log_ratio(self, policy: Tensor, reference: Tensor) -> Tensor:
        """`log pi_theta - log pi_ref` of errors `[K, B]`, averaged over the draws, `[B]`."""
        if self.reads_relative_errors:
            return over_draws(relative_log_ratio(policy, reference, self.temperature))
        return log_ratio(over_draws(policy), over_draws(reference), self.temperature)

    def _scaled(self, values: Tensor, reference: Tensor) -> Tensor:
        """Values in error units `[K, B]` over `T`, or over `T e_ref`, averaged over the draws, `[B]`."""
        if self.reads_relative_errors:
            return over_draws(values / (self.temperature * reference))
        return over_draws(values) / self.temperature


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
    return weight * smoothed_logistic_loss(toward_label(reward, is_positive))


def smoothed_logistic_loss(margin: Tensor, smoothing: float = 0.0) -> Tensor:
    """`-(1 - eps) log sigmoid(m) - eps log sigmoid(-m)`, the logistic loss of labels that are wrong at a rate `eps`.

    As in conservative DPO (https://ericmitchell.ai/cdpo.pdf), and TRL's `label_smoothing`.

    Args:
        margin: float32 `[B]`, `m`, above 0 where the label is met; holds gradient.
        smoothing: `eps`, 0 to below 0.5.
    """
    if smoothing == 0:
        return -logsigmoid(margin)
    return -(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin)


def mirrored_error(predictions: Predictions, is_positive: Tensor, strength: float) -> Tensor:
    """`<(u - a d / s)^2>`, with `a = +1` for positive and `-1` for negative rows, float32 `[K, B]`.

    The error of a step that is `s` times shorter, toward the target of a positive row, and toward the mirror image
    `2 v_ref - t` of a negative one's. The branch of negative rows is DiffusionNFT's (arXiv 2509.16117).

    Args:
        predictions: of policy and reference, `[K, B, ...]`; the policy's hold gradient.
        is_positive: bool `[B]`, the labels.
        strength: `s > 0`.
    """
    assert predictions.reference is not None
    reference = predictions.reference.float()
    step, residual = predictions.policy.float() - reference, predictions.target - reference
    sign = torch.where(is_positive, 1.0, -1.0).reshape(1, -1, *[1] * (step.dim() - 2))
    return squared_difference(residual, sign * step / strength)


def prediction_difference(predictions: Predictions) -> Tensor:
    """`<d^2>`, how far the policy's predictions are from the reference's, float32 `[K, B]`."""
    assert predictions.reference is not None
    return squared_difference(predictions.policy, predictions.reference)
