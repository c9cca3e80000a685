"""Training runs: their settings and checks, the loop, what they save and what they tell."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .tgo_trainer import TGOTrainer

__all__ = ["TGOTrainer"]


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that the settings of a run do not load what runs it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".tgo_trainer", __name__), name)
