"""Normalisation of scores, for those whose units make the confidence coefficient act too little or too much."""

from torch import Tensor

from . import NORMALIZATIONS
from .thresholds import percentile_threshold


def center_and_scale(scores: Tensor, normalization: str) -> tuple[float, float]:
    """What scores are normalised by, `z = (s - center) / scale`, in score units.

    Args:
        scores: float `[N]`, in score units.
        normalization: `"none"`; `"zscore"`, mean and standard deviation; or `"robust"`, median and interquartile range,
            which is 0 where half of the scores are equal.

    Raises:
        ValueError: for any other name.
    """
    if normalization == "none":
        return 0.0, 1.0
    if normalization == "zscore":
        return scores.mean().item(), scores.std(correction=0).item()
    if normalization != "robust":
        raise ValueError(f"`normalization` is {normalization!r}; it must be one of {', '.join(NORMALIZATIONS)}.")
    spread = percentile_threshold(scores, 75) - percentile_threshold(scores, 25)
    return percentile_threshold(scores, 50).item(), spread.item()
