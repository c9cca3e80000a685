"""What is measured of samples, whatever drew them."""

from .variety import THUMBNAIL, Moments, Spread, thumbnails, variety

__all__ = ["THUMBNAIL", "Moments", "Spread", "thumbnails", "variety"]
