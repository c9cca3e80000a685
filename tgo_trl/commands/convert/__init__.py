"""`tgo-trl convert`: what people said about images, as a score for each."""

from typing import TYPE_CHECKING, Any

from .config import ConvertConfig

if TYPE_CHECKING:
    from .run import convert

__all__ = ["ConvertConfig", "convert"]


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that the settings alone load nothing heavy.
    if name != "convert":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .run import convert

    return convert
