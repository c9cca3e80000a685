"""`tgo-trl score`: adds the scores of reward models to a data set."""

from .config import ScoreConfig

__all__ = ["ScoreConfig"]
