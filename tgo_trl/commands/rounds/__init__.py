"""`tgo-trl rounds`: draws, scores and trains several times, each time from the policy of the time before."""

from .config import RoundsConfig

__all__ = ["RoundsConfig"]
