"""Commands that are killed: at a file operation that is counted, not at a time, so that the same one comes every time.

Commands, and programs that end in other ways, run in processes that are forked from one where all is imported already.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from matplotlib.figure import Figure

from tgo_trl import cli
from tgo_trl.trainer import tgo_trainer  # noqa: F401 (so that no command has to)

from .hub_server import connect
from .pictures import save_empty

_PATHS: dict[str, tuple[int, ...]] = {
    "open": (0,), "os.rename": (0, 1), "os.remove": (0,), "os.mkdir": (0,), "os.rmdir": (0,), "os.link": (1,),
    "os.symlink": (1,), "os.truncate": (0,),
}  # fmt: skip
"""Events of Python's that change folders, and which of their arguments are the paths."""


@dataclass(frozen=True)
class Death:
    """When a process ends itself with SIGKILL.

    Attributes:
        at: which of its file operations it does not live to do, from 1 on; 0 for none.
        is_torn: whether half of a file is lost that the process just waits for the disk to have, as when the machine
            loses its power.
    """

    at: int = 0
    is_torn: bool = False


class _Counter:
    """Counts operations that change folders, and kills the process at one of them."""

    def __init__(self, folders: list[Path], death: Death) -> None:
        self.folders = [f"{folder.resolve()}{os.sep}" for folder in folders]
        self.death = death
        self.count = 0
        self.lock = threading.RLock()

    def install(self) -> None:
        sys.addaudithook(self._hear)
        os.fsync = self._fsync

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _PATHS or (event == "open" and not _writes(*arguments[1:])):
            return
        if any(self._is_inside(arguments[position]) for position in _PATHS[event]):
            self._next()

    def _is_inside(self, path: Any) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False
        return f"{os.path.abspath(os.fsdecode(path))}{os.sep}".startswith(tuple(self.folders))

    def _fsync(self, descriptor: int) -> None:
        if self._is_inside(os.readlink(f"/proc/self/fd/{descriptor}")):
            self._next(descriptor)  # and nothing is waited for: what was written outlives a process

    def _next(self, descriptor: int | None = None) -> None:
        with self.lock:
            self.count += 1
            if self.count != self.death.at:
                return
            if self.death.is_torn and descriptor is not None:
                with suppress(OSError):  # a folder
                    os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)


def _writes(mode: str | None, flags: int) -> bool:
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) if mode is None else any(c in mode for c in "wax+")


def _run(arguments: list[str], folder: Path, watched: list[Path], death: Death, url: str | None) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    datasets.config.HF_DATASETS_CACHE = folder / "datasets"
    if url is not None:
        connect(SimpleNamespace(url=url), folder, pytest.MonkeyPatch())  # type: ignore[arg-type]
    Figure.savefig = save_empty  # type: ignore[method-assign]
    counter = _Counter(watched, death)
    counter.install()
    status = cli.main(arguments)
    (folder / "count.txt").write_text(str(counter.count))
    sys.exit(status)


def run(
    arguments: list[str], folder: Path, watched: list[Path], death: Death | None = None, url: str | None = None,
    started: Callable[[BaseProcess], object] = lambda process: None,
) -> tuple[int, int]:  # fmt: skip
    """Exit status of a command, negative for a signal, and the number of its file operations, if it ended by itself.

    Args:
        arguments: of `tgo-trl`.
        folder: for its log and its caches.
        watched: folders; only operations inside them count.
        death: if it is to be killed.
        url: of the server that it takes for the Hub.
        started: called with the process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = folder / "count.txt"
    count.unlink(missing_ok=True)
    process = _start(_run, arguments, folder, watched, death or Death(), url)
    started(process)
    return _status(process), int(count.read_text()) if count.exists() else 0


def _execute(code: str, arguments: tuple[str, ...], out: str, errors: str) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    for descriptor, path in ((1, out), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    sys.argv = ["program", *arguments]
    exec(code, {"__name__": "__main__"})


def begin(code: str, *arguments: object, out: str | Path = os.devnull, errors: str | Path = os.devnull) -> BaseProcess:
    """A process that runs a program, and writes what it prints to files."""
    return _start(_execute, code, tuple(map(str, arguments)), str(out), str(errors))


def execute(code: str, *arguments: object) -> tuple[int, str, str]:
    """Exit status of a program, negative for a signal, and what it printed, to its standard output and error."""
    with TemporaryDirectory() as folder:
        out, errors = Path(folder, "out"), Path(folder, "errors")
        status = _status(begin(code, *arguments, out=out, errors=errors))
        return status, out.read_text(), errors.read_text()


def _start(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, f"{__package__}.runs"])
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def _status(process: BaseProcess) -> int:
    process.join(timeout=300)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode or 0
