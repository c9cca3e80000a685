"""The older path of `noise`, for families that were written with it."""

from ..noise import (
    DENSITIES,
    DiffusionProcess,
    FlowMatchingProcess,
    MaskedTokenProcess,
    NoiseProcess,
    build_density,
)

Process = NoiseProcess
"""The older name."""

__all__ = ["DENSITIES", "DiffusionProcess", "FlowMatchingProcess", "MaskedTokenProcess", "Process", "build_density"]
