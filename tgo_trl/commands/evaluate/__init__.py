"""`tgo-trl evaluate`: compares models on the same prompts and seeds, by several rewards."""

from .config import EvaluateConfig

__all__ = ["EvaluateConfig"]
