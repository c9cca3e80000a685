"""What is measured of samples, whatever drew them."""

from .agreement import agreement, cohens_kappa
from .bootstrap import FEW_PROMPTS, interval, ratio, resampled_means, resampled_medians
from .estimates import Estimate
from .variety import THUMBNAIL, Moments, Spread, group_varieties, thumbnails, variety
from .wins import wins

__all__ = [
    "FEW_PROMPTS", "THUMBNAIL", "Estimate", "Moments", "Spread", "agreement", "cohens_kappa", "group_varieties",
    "interval", "ratio", "resampled_means", "resampled_medians", "thumbnails", "variety", "wins",
]  # fmt: skip
