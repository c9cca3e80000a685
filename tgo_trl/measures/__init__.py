"""What is measured of samples, whatever drew them."""

from .variety import thumbnails, variety

__all__ = ["thumbnails", "variety"]
