"""`tgo-trl export`: an adapter for other programs, or merged into its base."""

from .config import ExportConfig

__all__ = ["ExportConfig"]
