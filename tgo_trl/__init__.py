"""Align image and video generators with scores: Threshold-Guided Optimization for diffusers, in the manner of TRL."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .families import Family
    from .models import MeissonicPipeline
    from .trainer.sample_grids import SampleGridCallback
    from .trainer.tgo_config import TGOConfig
    from .trainer.tgo_trainer import TGOTrainer

__version__ = "0.1.0"

_EXPORTS = {
    "Family": "families",
    "MeissonicPipeline": "models",
    "SampleGridCallback": "trainer.sample_grids",
    "TGOConfig": "trainer.tgo_config",
    "TGOTrainer": "trainer.tgo_trainer",
}

__all__ = ["Family", "MeissonicPipeline", "SampleGridCallback", "TGOConfig", "TGOTrainer", "__version__"]


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that `import tgo_trl` and its pure functions do not load every library.
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
