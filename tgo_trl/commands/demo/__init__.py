"""`tgo-trl demo`: from prompts to an adapter and a comparison, on files that come with the package."""

from .config import DemoConfig

__all__ = ["DemoConfig"]
