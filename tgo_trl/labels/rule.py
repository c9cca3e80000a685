"""From scores to labels and weights: the rule is fitted once on the whole training set, then applied to any rows."""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import NORMALIZATIONS
from .thresholds import mean_threshold, percentile_threshold, prompt_baseline, prompt_mean
from .weights import confidence_weights

logger = logging.getLogger(__name__)

THRESHOLD_TYPES = ("percentile", "mean", "value", "prompt_mean", "prompt_baseline")
PER_PROMPT = ("prompt_mean", "prompt_baseline")
LOPSIDED_SHARE = 0.05
MAX_FLOAT32 = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Labels:
    """What the loss needs to know of `N` scored rows.

    Attributes:
        scores: float64 `[N]`, in the data set's score units.
        is_positive: bool `[N]`, `s >= tau`.
        weights: float32 `[N]`, confidence weights.
    """

    scores: Tensor
    is_positive: Tensor
    weights: Tensor


@dataclass(frozen=True)
class LabelRule:
    """A fitted rule `score -> (label, weight)`; the same on every rank, written to checkpoints and the model card.

    Scores are first normalised, `z = (s - center) / scale` (identity unless asked for); the threshold and the
    confidence coefficient then act on `z`.

    Attributes:
        threshold_type: one of `THRESHOLD_TYPES`.
        threshold: `tau` in the data set's score units; for the per-prompt ones the mean over the rows.
        percentile: `p`, where it was used.
        confidence_coef: `c`, per normalised score unit.
        center, scale: the normalisation.
        beta: `beta` of the per-prompt baseline, in normalised score units.
        prompt_thresholds: `tau` of each prompt in the data set's score units, for the per-prompt ones only.
        num_rows, num_positive, num_prompts: of the rows it was fitted on.
        score_mean, score_std: of the rows it was fitted on, in score units.
    """

    threshold_type: str
    threshold: float
    percentile: float | None
    confidence_coef: float
    center: float
    scale: float
    beta: float
    num_rows: int
    num_positive: int
    num_prompts: int
    score_mean: float
    score_std: float
    prompt_thresholds: dict[str, float] = field(default_factory=dict)

    def apply(self, scores: Sequence[float] | Tensor, prompts: Sequence[str]) -> Labels:
        """Labels of rows, those the rule was fitted on or others.

        With a threshold per prompt, a prompt that the rule has not seen gets that of its own rows here.

        Args:
            scores: `[N]`, in score units, finite.
            prompts: `N` prompts.

        Raises:
            ValueError: if a score or a weight is not finite, or a new prompt has a single image under a threshold per
            prompt.
        """
        raw = check_finite(scores)
        thresholds = self._row_thresholds(raw, prompts)
        z, z_thresholds = ((values - self.center) / self.scale for values in (raw, thresholds))
        weights = confidence_weights(z, z_thresholds, self.confidence_coef).to(torch.float32)
        infinite = (~weights.isfinite()).nonzero().flatten().tolist()
        if infinite:
            raise ValueError(
                f"The weight of {list_rows(infinite)} is not finite in float32: the score "
                f"{raw[infinite[0]].item():.6g} lies too far from the threshold {self.threshold:.6g} for "
                f"`confidence_coef={self.confidence_coef:g}`. Lower it, or set `score_normalization`."
            )
        return Labels(raw, raw >= thresholds, weights)

    def to_dict(self) -> dict[str, Any]:
        """The rule as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LabelRule":
        """The inverse of [`to_dict`]."""
        return cls(**values)

    def equals(self, other: "LabelRule") -> bool:
        """Whether both rules label alike, up to the rounding of sums, which depends on the number of threads."""
        mine, others = self.to_dict(), other.to_dict()
        prompts, other_prompts = mine.pop("prompt_thresholds"), others.pop("prompt_thresholds")
        mine, others = {**mine, **prompts}, {**others, **other_prompts}
        return mine.keys() == others.keys() and all(_same(mine[name], others[name]) for name in mine)

    def describe(self) -> str:
        """One phrase for tables and cards."""
        name = {
            "percentile": f"{_percentile_name(self.percentile)} of the scores",
            "mean": "mean of the scores",
            "value": "given value",
            "prompt_mean": "per-prompt mean, mean over rows",
            "prompt_baseline": "per-prompt baseline, mean over rows",
        }[self.threshold_type]
        return f"{self.threshold:.6g} ({name})"

    def _row_thresholds(self, raw: Tensor, prompts: Sequence[str]) -> Tensor:
        if self.threshold_type not in PER_PROMPT:
            return torch.tensor(self.threshold, dtype=torch.float64)
        known = self.prompt_thresholds
        unseen = [i for i, prompt in enumerate(prompts) if prompt not in known]
        if unseen:
            known = known | _fit_prompts(raw, prompts, unseen, self.threshold_type, self.beta * self.scale)
        return torch.tensor([known[prompt] for prompt in prompts], dtype=torch.float64)


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
    raw = check_finite(scores)
    if raw.min() == raw.max():
        raise ValueError(
            f"All {len(raw)} scores equal {raw[0].item():.6g}, so no threshold can tell better rows from worse ones. "
            "Score the images with a scorer that tells them apart, or check that `score_column` names the right column."
        )
    center, scale = _normalization(raw, normalization)
    per_prompt: dict[str, float] = {}
    if threshold_type in PER_PROMPT:
        per_prompt = _fit_prompts(raw, prompts, list(range(len(raw))), threshold_type, beta * scale)
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
    num_positive = int((raw >= thresholds).sum())
    _check_split(num_positive, len(raw), thresholds.mean().item(), raw)
    return LabelRule(
        threshold_type=threshold_type,
        threshold=thresholds.mean().item(),
        percentile=percentile if threshold_type == "percentile" else None,
        confidence_coef=confidence_coef,
        center=center,
        scale=scale,
        beta=beta,
        num_rows=len(raw),
        num_positive=num_positive,
        num_prompts=len(set(prompts)),
        score_mean=raw.mean().item(),
        score_std=raw.std(correction=0).item(),
        prompt_thresholds=per_prompt,
    )


def check_finite(scores: Sequence[float] | Tensor) -> Tensor:
    """The scores as float64 `[N]`.

    Raises:
        ValueError: if there are none, or if any is NaN or infinite in float32, which the loss is computed in, naming
            how many and which rows.
    """
    tensor = torch.as_tensor(scores, dtype=torch.float64)
    if len(tensor) == 0:
        raise ValueError("There is no scored row, so no threshold can be fitted. Pass a data set with rows.")
    bad = (~tensor.float().isfinite()).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"{len(bad)} of {len(tensor)} scores are NaN or infinite: {list_rows(bad)}. A threshold over them is "
            "meaningless. Drop these rows, score them again, or set `on_bad_row='skip'`."
        )
    return tensor


def list_rows(rows: Sequence[int], most: int = 10) -> str:
    """`"row 4"`, `"rows 4, 7"` or `"rows 4, 7, ... and 90 more"`."""
    shown = ", ".join(map(str, rows[:most]))
    more = f", ... and {len(rows) - most} more" if len(rows) > most else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"


def _normalization(raw: Tensor, kind: str) -> tuple[float, float]:
    if kind == "none":
        return 0.0, 1.0
    if kind == "zscore":
        return raw.mean().item(), raw.std(correction=0).item()
    if kind != "robust":
        raise ValueError(f"`normalization` is {kind!r}; it must be one of {', '.join(NORMALIZATIONS)}.")
    spread = (percentile_threshold(raw, 75) - percentile_threshold(raw, 25)).item()
    if spread == 0:
        raise ValueError(
            "`score_normalization='robust'` divides by the interquartile range, which is 0 here: at least half of the "
            "scores are equal. Use 'zscore' or 'none'."
        )
    return percentile_threshold(raw, 50).item(), spread


def _fit_prompts(
    raw: Tensor, prompts: Sequence[str], rows: list[int], threshold_type: str, beta: float
) -> dict[str, float]:
    counts = Counter(prompts[i] for i in rows)
    single = [i for i in rows if counts[prompts[i]] == 1]
    if single:
        raise ValueError(
            f"`threshold_type='{threshold_type}'` estimates a threshold from several images of one prompt, but "
            f"{len(single)} of {len(counts)} prompts have a single image ({list_rows(single)}); their threshold would "
            "be their own score. Drop them, add images, or use 'percentile'."
        )
    index = {prompt: i for i, prompt in enumerate(counts)}
    groups = torch.tensor([index[prompts[i]] for i in rows])
    is_mean = threshold_type == "prompt_mean"
    thresholds = prompt_mean(raw[rows], groups) if is_mean else prompt_baseline(raw[rows], groups, beta)
    return dict(zip((prompts[i] for i in rows), thresholds.tolist(), strict=True))


def _check_split(num_positive: int, num_rows: int, threshold: float, raw: Tensor) -> None:
    share = num_positive / num_rows
    if num_positive in (0, num_rows):
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


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    return bool(one == other)


def _percentile_name(percentile: float | None) -> str:
    if percentile is None or math.isclose(percentile, 50):
        return "median"
    return f"percentile {percentile:g}"
