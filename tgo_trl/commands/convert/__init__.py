"""`tgo-trl convert`: what people said about images, as a score for each."""

from .config import ConvertConfig

__all__ = ["ConvertConfig"]
