"""`tgo-trl score`: adds the scores of reward models to a data set."""

from typing import TYPE_CHECKING, Any

from .config import ScoreConfig

if TYPE_CHECKING:
    from .run import score

__all__ = ["ScoreConfig", "score"]


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that the settings alone load nothing heavy.
    if name != "score":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .run import score

    return score
