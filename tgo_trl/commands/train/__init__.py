"""`tgo-trl train`: trains on a scored data set."""

from .config import TrainArguments

__all__ = ["TrainArguments"]
