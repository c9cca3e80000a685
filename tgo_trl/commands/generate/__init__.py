"""`tgo-trl generate`: images of prompts, as a data set."""

from typing import TYPE_CHECKING, Any

from .config import GenerateConfig

if TYPE_CHECKING:
    from .run import generate

__all__ = ["GenerateConfig", "generate"]


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that the settings alone load nothing heavy.
    if name != "generate":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .run import generate

    return generate
