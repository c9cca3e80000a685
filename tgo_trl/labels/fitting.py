"""Fits the label rule on a data set, which is checked first."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import check_finite, check_several_images
from .combination import CombinedRule, column_distances, combine, num_disagreeing
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
    column: str | None = None,
    warns: bool = True,
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
        column: of the scores, for messages, where there are several.
        warns: of a split that leaves few rows on one side.

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
    setting = "threshold_value" if column is None else "threshold_values"
    remedy = f"with many equal scores, set `threshold_type='value'` and a `{setting}` between two of them"
    _check_split(rule, raw, "The threshold" if column is None else f"The threshold of {column!r}", remedy, warns)
    return rule


def fit_combined_rule(
    scores: Mapping[str, Sequence[float]],
    prompts: Sequence[str],
    *,
    combination: str = "sum",
    weights: Mapping[str, float] | None = None,
    values: Mapping[str, float] | None = None,
    warns: bool = True,
    **settings: Any,
) -> CombinedRule:
    """Fits the rule of several columns of scores, each with a threshold and a normalisation of its own.

    Args:
        scores: `[N]` of each column by its name, in its score units.
        prompts: `N` prompts.
        combination: `"sum"` or `"vote"`, see [`~tgo_trl.labels.combination.combine`].
        weights: what columns count, by name; 1 where there is none.
        values: `tau` of each column in its score units, for `threshold_type="value"`.
        warns: of splits that leave few rows on one side.
        settings: the others of [`fit_label_rule`], which all columns share.

    Raises:
        ValueError: as [`fit_label_rule`], with the name of the column; or if what they say together is one-sided.
    """
    columns: dict[str, LabelRule] = {}
    for name in sorted(scores):
        value = None if values is None else values[name]
        try:
            columns[name] = fit_label_rule(scores[name], prompts, value=value, column=name, warns=warns, **settings)
        except ValueError as error:
            raise ValueError(f"Of the scores in {name!r}: {error}") from error
    column_weights = {name: (weights or {}).get(name, 1.0) for name in columns}
    distances = column_distances(columns.values(), (scores[name] for name in columns), prompts)
    combined = combine(combination, distances, column_weights.values())
    first = next(iter(columns.values()))
    of_sums = LabelRule.at(
        torch.zeros((), dtype=torch.float64), combined, confidence_coef=first.confidence_coef, beta=first.beta,
        num_prompts=first.num_prompts,
    )  # fmt: skip
    rule = CombinedRule(
        **vars(of_sums),
        combination=combination,
        columns=columns,
        column_weights=column_weights,
        num_disagreeing=num_disagreeing(distances),
    )
    subject = f"The {combination} of {', '.join(map(repr, columns))}, with the threshold"
    _check_split(rule, combined, subject, "set other thresholds, `score_weights` or columns", warns)
    return rule


def _check_split(rule: LabelRule, raw: Tensor, subject: str, remedy: str, warns: bool) -> None:
    num_positive, num_rows, threshold = rule.num_positive, rule.num_rows, rule.threshold
    share = num_positive / num_rows
    if rule.is_one_sided:
        side = "positive" if num_positive else "negative"
        raise ValueError(
            f"{subject} {threshold:.6g} makes all {num_rows} rows {side} (scores run from {raw.min().item():.6g} "
            f"to {raw.max().item():.6g}, and a score equal to the threshold is positive). Training needs both sides: "
            f"{remedy}."
        )
    if warns and not LOPSIDED_SHARE <= share <= 1 - LOPSIDED_SHARE:
        logger.warning(
            "%s %.6g makes %d of %d rows positive (%.1f %%). Such a lopsided split learns mostly from one side; a "
            "threshold nearer to the median (`threshold_type='percentile'`, 50) is usually better.",
            subject,
            threshold,
            num_positive,
            num_rows,
            100 * share,
        )
