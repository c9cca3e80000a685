"""A folder's manifest: size and SHA-256 of every file, written last, so that a folder with one is whole."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .files import file_digest, flush, write_json

MANIFEST_NAME = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Lists every file that is in the folder now, once all of them are on the disk."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST_NAME:
            flush(path)
            files[path.relative_to(folder).as_posix()] = file_entry(path)
    write_json(folder / MANIFEST_NAME, {"files": files})


def revoke_manifest(folder: Path) -> None:
    """Removes the manifest before files of the folder are replaced: it would vouch for half old and half new ones."""
    (folder / MANIFEST_NAME).unlink(missing_ok=True)


def find_damage(folder: Path, contents: bool = True) -> str | None:
    """What is wrong with a folder that should have a manifest: a clause that names the file; None if it is whole.

    Args:
        folder: with the files.
        contents: False to look at sizes alone.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return f"{MANIFEST_NAME}, which is written last, is missing"
    try:
        files = dict(json.loads(path.read_text("utf-8"))["files"])
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST_NAME} cannot be read"
    return next(_damages(folder, files, contents), None)


def file_entry(path: Path) -> dict[str, Any]:
    """What a manifest says of a file."""
    return {"size": path.stat().st_size, "sha256": file_digest(path)}


def file_damage(path: Path, entry: Mapping[str, Any], contents: bool = True) -> str | None:
    """What is wrong with a file, a clause; None if it is what the manifest says, or has its size without `contents`."""
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != entry.get("size"):
        return f"{path.name} has {path.stat().st_size} bytes instead of {entry.get('size')}"
    if contents and file_digest(path) != entry.get("sha256"):
        return f"{path.name} is not as it was written (its SHA-256 differs)"
    return None


def _damages(folder: Path, files: Mapping[str, Mapping[str, Any]], contents: bool) -> Iterator[str]:
    for name, entry in files.items():
        damage = file_damage(folder / name, entry, contents)
        if damage is not None:
            yield damage
