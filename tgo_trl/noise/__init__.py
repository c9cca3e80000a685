"""Noise processes, one file each: how samples are corrupted, apart from how a network is called."""

from .base import NoiseProcess
from .densities import DENSITIES, build_density
from .diffusion import DiffusionProcess
from .flow_matching import FlowMatchingProcess
from .masked_tokens import MaskedTokenProcess

__all__ = [
    "DENSITIES",
    "DiffusionProcess",
    "FlowMatchingProcess",
    "MaskedTokenProcess",
    "NoiseProcess",
    "build_density",
]
