"""Digests of encoders by the files that they come from, kept beside what was encoded.

The names of encoded rows depend on the weights of the encoders. With these, they can be told without loading any.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from torch import nn

from ..storage.files import replace_file
from ..storage.fingerprints import fingerprint
from .encoders import FrozenEncoders

FOLDER = "digests"


def remember_digests(folder: Path, model: str, init_kwargs: Mapping[str, Any] | None, encoders: FrozenEncoders) -> None:
    """Notes the digests of encoders that were loaded by name.

    Args:
        folder: of the encodings.
        model: Hub id or folder; of a file, nothing is noted.
        init_kwargs: that it was loaded with.
        encoders: with weights.
    """
    for name, key in _keys(model, init_kwargs or {}, encoders.networks).items():
        path = folder / FOLDER / key
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, partial(_write, encoders.fingerprints[name]))


def recall_digests(
    folder: Path, model: str, init_kwargs: Mapping[str, Any] | None, networks: Mapping[str, nn.Module]
) -> dict[str, str]:
    """The digests of encoders by name, of those that were noted; arguments as of [`remember_digests`]."""
    keys = _keys(model, init_kwargs or {}, networks)
    paths = {name: folder / FOLDER / key for name, key in keys.items()}
    return {name: path.read_text("utf-8") for name, path in paths.items() if path.is_file()}


def _keys(model: str, init_kwargs: Mapping[str, Any], networks: Mapping[str, nn.Module]) -> dict[str, str]:
    """What the digest of each network depends on: its files, how it is loaded, and the dtype it was put into."""
    root = _folder_of(model, init_kwargs)
    if root is None:
        return {}
    how = sorted((name, str(value)) for name, value in init_kwargs.items())
    versions = (diffusers.__version__, transformers.__version__)
    return {
        name: fingerprint(name, type(it).__name__, _dtype(it), how, *versions, *files)
        for name, it in networks.items()
        if name not in init_kwargs and (files := _files(root / name))  # none, where an index names other places
    }


def _folder_of(model: str, init_kwargs: Mapping[str, Any]) -> Path | None:
    if Path(model).is_dir():
        return Path(model)
    if Path(model).is_file() or "://" in model:
        return None
    options = {name: init_kwargs[name] for name in ("cache_dir", "revision") if init_kwargs.get(name) is not None}
    index = try_to_load_from_cache(model, "model_index.json", **options)
    return Path(index).parent if isinstance(index, str) else None


def _files(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of each file of a part."""
    found = [(path, path.stat()) for path in sorted(folder.glob("*")) if path.is_file()]
    return [(path.name, status.st_size, status.st_mtime_ns) for path, status in found]


def _write(digest: str, path: Path) -> None:
    path.write_text(digest, "utf-8")


def _dtype(network: nn.Module) -> torch.dtype:
    return next(network.parameters()).dtype
