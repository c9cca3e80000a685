"""Files that are either whole or as they were, whatever kills the process or the machine."""

import hashlib
import json
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from ..messages.failures import writing

DAY = 86400  # seconds
_HOST = hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()
_TEMPORARY = re.compile(r"\..+\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a file that is either whole or as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(values, indent=2, sort_keys=True) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text, "utf-8"))


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file, which takes the place of `path` in one step once it is on the disk."""
    # hidden, since `datasets` passes over such files; machines that share a disk share process ids
    temporary = path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        with writing(path):
            write(temporary)
            flush(temporary)
            os.replace(temporary, path)
            flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR
    with suppress(PermissionError):  # Windows opens no folders
        descriptor = os.open(path, flags)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex, as `sha256sum` prints it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sweep(folder: Path) -> None:
    """Removes the temporary files that killed processes left in a folder.

    Those of a living process stay; of another machine's, which cannot be asked, those of the last day do.
    """
    for path in folder.glob(".*"):
        match = _TEMPORARY.fullmatch(path.name)
        if match is None:
            continue
        with suppress(FileNotFoundError):  # renamed or removed by the process that it belongs to
            is_alive = psutil.pid_exists(int(match["pid"]))
            if not is_alive if match["host"] == _HOST else time.time() - path.stat().st_mtime > DAY:
                path.unlink()
