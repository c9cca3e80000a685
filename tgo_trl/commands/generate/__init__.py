"""`tgo-trl generate`: images of prompts, as a data set."""

from .config import GenerateConfig

__all__ = ["GenerateConfig"]
