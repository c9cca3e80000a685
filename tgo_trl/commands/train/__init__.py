"""`tgo-trl train`: trains on a scored data set."""

from typing import TYPE_CHECKING, Any

from .config import TrainArguments

if TYPE_CHECKING:
    from .run import train

__all__ = ["TrainArguments", "train"]


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that the settings alone load nothing heavy.
    if name != "train":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .run import train

    return train
