"""One writer per folder, so that two runs cannot mix their files."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

LOCK_NAME = "_writing.lock"
"""Begins with `_`, as what is not uploaded does."""


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Within, no other process that asks for the same folder gets it; the system releases what a killed one held.

    The process that has it may ask again.

    Raises:
        ValueError: if another process has it.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_NAME, timeout=0, is_singleton=True)
    try:
        _acquire(lock)
    except Timeout:
        raise ValueError(
            f"Another process is writing to the folder {str(folder)!r}; two would mix their files. Wait until it ends, "
            "or set another `output_dir`."
        ) from None
    try:
        yield
    finally:
        _release(lock)
        if is_new:
            with suppress(OSError):  # not empty
                folder.rmdir()


@contextmanager
def taking_turns(path: Path, waiting: str) -> Iterator[None]:
    """Within, this process alone has the lock `path`; one that comes later says so and waits.

    Args:
        path: of the lock.
        waiting: what is logged before waiting.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0)
    try:
        _acquire(lock)
    except Timeout:
        logger.warning(waiting)
        _acquire(lock, timeout=-1)
    try:
        yield
    finally:
        _release(lock)


def _acquire(lock: FileLock, timeout: float = 0) -> None:
    while True:
        try:
            lock.acquire(timeout=timeout)
        except NotImplementedError:  # of filelock: a file system without locks
            logger.warning("The file system of %s has no locks: do not start two runs there at once.", lock.lock_file)
            return
        if Path(lock.lock_file).exists():
            return
        lock.release()  # of a file that its last owner has just removed


def _release(lock: FileLock) -> None:
    if lock.lock_counter == 1:
        with suppress(OSError):
            Path(lock.lock_file).unlink()
    lock.release()
