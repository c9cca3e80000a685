"""`tgo-trl strength`: at what scale a trained adapter is best applied."""

from .config import StrengthConfig

__all__ = ["StrengthConfig"]
