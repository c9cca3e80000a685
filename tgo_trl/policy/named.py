"""What a pipeline can be named by, and the options that its files are read with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from diffusers import DiffusionPipeline

from ..messages.values import did_you_mean, shown_path

SUFFIX = ".safetensors"
PICKLED = (".ckpt", ".pt", ".pth", ".bin")
"""Formats that run code when they are read."""
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
INDEX_OPTIONS = (*HUB_OPTIONS, "proxies")
"""What an index is read with."""


def is_single_file(model: str) -> bool:
    """Whether a model's name is that of a file, here or at an address, not of a folder or a repository."""
    path = urlsplit(model).path if "://" in model else model
    return Path(path).suffix.lower() in (SUFFIX, ".gguf", *PICKLED) and not Path(model).is_dir()


def load_entries(model: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The `model_index.json` of a repository or folder: of the Hub, it is a request each time.

    Args:
        model: Hub id or folder.
        kwargs: that it is loaded with.

    Raises:
        OSError: if it has none.
    """
    options = {name: kwargs[name] for name in INDEX_OPTIONS if name in kwargs}
    try:
        return dict(DiffusionPipeline.load_config(model, **options))
    except OSError as error:
        if Path(model).is_dir():
            raise
        meant = did_you_mean(model, folders_beside(Path(model)))
        reason = " ".join(str(error).split())
        raise OSError(f"There is no folder {shown_path(model)} here, and of the Hub: {reason}{meant}") from error


def folders_beside(path: Path) -> list[str]:
    """The folders that lie where a path would; none where that cannot be read."""
    try:
        return [str(it) for it in path.parent.iterdir() if it.is_dir()]
    except OSError:
        return []
