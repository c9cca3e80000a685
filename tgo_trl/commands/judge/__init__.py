"""`tgo-trl judge`: lets a model that sees images say whose are better, pair by pair."""

from .config import JudgeConfig

__all__ = ["JudgeConfig"]
