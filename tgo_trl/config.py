"""The older path of [`TGOConfig`]."""

from .trainer.tgo_config import TGOConfig

__all__ = ["TGOConfig"]
