"""Noise processes, one file each: how samples are corrupted, apart from how a network is called."""

from .base import Process
from .diffusion import DiffusionProcess

__all__ = ["DiffusionProcess", "Process"]
