"""`tgo-trl inspect`: a report on a scored data set, before hours are spent on training with it."""

from typing import TYPE_CHECKING, Any

from .config import InspectConfig

if TYPE_CHECKING:
    from .run import inspect

__all__ = ["InspectConfig", "inspect"]


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that the settings alone load nothing heavy.
    if name != "inspect":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .run import inspect

    return inspect
