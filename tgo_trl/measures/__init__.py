"""What is measured of samples, whatever drew them."""

from .bootstrap import interval, resampled_means, resampled_medians
from .variety import THUMBNAIL, Moments, Spread, group_varieties, thumbnails, variety
from .wins import wins

__all__ = [
    "THUMBNAIL", "Moments", "Spread", "group_varieties", "interval", "resampled_means", "resampled_medians",
    "thumbnails", "variety", "wins",
]  # fmt: skip
