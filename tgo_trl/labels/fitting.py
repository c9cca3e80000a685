"""Fits the label rule on a data set, which is checked first."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_finite, check_several_images
from .normalization import center_and_scale
from .rule import PER_PROMPT, LabelRule, prompt_thresholds
from .thresholds import mean_threshold, percentile_threshold

logger = logging.getLogger(__name__)

THRESHOLD_TYPES = ("percentile", "mean", "value", "prompt_mean", "prompt_baseline")
LOPSIDED_SHARE = 0.05


def fit_label_rule(
    scores: Sequence[float] | Tensor,
    prompts: Sequence[str],
    *,
    threshold_type: str = "percentile",
    percentile: float = 50.0,
    value: float | None = None,
    beta: float = 1.0,
    confidence_coef: float = 5.0,
    normalization: str = "none",
) -> LabelRule:
    """Fits the rule on the whole data set.

    Args:
        scores: `[N]`, in score units.
        prompts: `N` prompts; repeated prompts are several images of one prompt.
        threshold_type: `"percentile"` (the paper's), `"mean"`, `"value"`, `"prompt_mean"` or `"prompt_baseline"`.
        percentile: `p`, 0 to 100, for `"percentile"`.
        value: `tau` in score units, for `"value"`.
        beta: `beta` of the loss, which the per-prompt baseline shares.
        confidence_coef: `c`.
        normalization: `"none"` (the paper's), `"zscore"` (mean, standard deviation) or `"robust"` (median,
            interquartile range), for scores whose units make `c` act too little or too much.

    Raises:
        ValueError: if scores are not finite or all equal, if the split is one-sided, if prompts with a single image
            meet a threshold per prompt, or if a name is unknown or `value` missing.
    """
    # Scores that can be told apart, and the units in which the weights act.
    raw = check_finite(scores)
    if raw.min() == raw.max():
        raise ValueError(
            f"All {len(raw)} scores equal {raw[0].item():.6g}, so no threshold can tell better rows from worse ones. "
            "Score the images with a scorer that tells them apart, or check that `score_column` names the right column."
        )
    center, scale = center_and_scale(raw, normalization)
    if normalization == "robust" and scale == 0:
        raise ValueError(
            "`score_normalization='robust'` divides by the interquartile range, which is 0 here: at least half of the "
            "scores are equal. Use 'zscore' or 'none'."
        )

    # The threshold, in score units: one for all rows, or one per prompt.
    per_prompt: dict[str, float] = {}
    if threshold_type in PER_PROMPT:
        rows = range(len(raw))
        check_several_images(prompts, rows, threshold_type)
        per_prompt = prompt_thresholds(raw, prompts, rows, threshold_type, beta * scale)
        thresholds = torch.tensor([per_prompt[prompt] for prompt in prompts], dtype=torch.float64)
    elif threshold_type == "value":
        if value is None:
            raise ValueError("`threshold_type='value'` needs `threshold_value`, a number in score units.")
        thresholds = torch.tensor(value, dtype=torch.float64)
    elif threshold_type == "mean":
        thresholds = mean_threshold(raw)
    elif threshold_type == "percentile":
        thresholds = percentile_threshold(raw, percentile)
    else:
        raise ValueError(f"`threshold_type` is {threshold_type!r}; it must be one of {', '.join(THRESHOLD_TYPES)}.")

    rule = LabelRule.at(
        thresholds,
        raw,
        threshold_type=threshold_type,
        percentile=percentile if threshold_type == "percentile" else None,
        confidence_coef=confidence_coef,
        center=center,
        scale=scale,
        beta=beta,
        num_prompts=len(set(prompts)),
        prompt_thresholds=per_prompt,
    )
    _check_split(rule, raw)
    return rule


def _check_split(rule: LabelRule, raw: Tensor) -> None:
    num_positive, num_rows, threshold = rule.num_positive, rule.num_rows, rule.threshold
    share = num_positive / num_rows
    if rule.is_one_sided:
        side = "positive" if num_positive else "negative"
        raise ValueError(
            f"The threshold {threshold:.6g} makes all {num_rows} rows {side} (scores run from {raw.min().item():.6g} "
            f"to {raw.max().item():.6g}, and a score equal to the threshold is positive). Training needs both sides: "
            "with many equal scores, set `threshold_type='value'` and a `threshold_value` between two of them."
        )
    if not LOPSIDED_SHARE <= share <= 1 - LOPSIDED_SHARE:
        logger.warning(
            "The threshold %.6g makes %d of %d rows positive (%.1f %%). Such a lopsided split learns mostly from one "
            "side; a threshold nearer to the median (`threshold_type='percentile'`, 50) is usually better.",
            threshold,
            num_positive,
            num_rows,
            100 * share,
        )
