"""`tgo-trl inspect`: a report on a scored data set, before hours are spent on training with it."""

from .config import InspectConfig

__all__ = ["InspectConfig"]
