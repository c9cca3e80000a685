"""The processes of a distributed launch: what each is among them, and what becomes of the others when one fails."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from ..messages.public import public_text

T = TypeVar("T")

FAILED, SEEN = "tgo_trl/failed/{}", "tgo_trl/seen/{}"
"""What the first process that failed has said, and how many know: entries of the store that the processes met at."""
INTERVAL = 1.0
"""Seconds between two looks at the store."""
PATIENCE = 30.0
"""Seconds that a process has to fail by itself, before it is ended."""
LONGEST_REASON = 2000


class OtherProcessError(ValueError):
    """Another process has failed; the message says which, and why."""


def process_state() -> PartialState:
    """The process among the others, which wait for each other for as long as the work takes.

    On machines without an accelerator too, where accelerate takes each launched process for the only one unless told.
    """
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=30))


def from_all(parts: list[T]) -> list[T]:
    """The parts of all processes, in their order; all of them come here alike."""
    return gather_object(parts) if PartialState().num_processes > 1 else parts


@contextmanager
def failing_together() -> Iterator[None]:
    """Within, a process that fails ends the others too, which would wait for it, with NCCL for good.

    What is raised here is told to the others. Each of them that has not raised something by itself within [`PATIENCE`]
    then says so, and ends with the status 1: Python cannot raise in a thread that waits for a collective. All processes
    come here alike; within another such block, and in a single process, it does nothing.

    Raises:
        OtherProcessError: in the place of what a collective raises whose other end has failed.
    """
    if Watch.is_on or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    watch = Watch(int(os.environ.get("RANK", "0")), int(os.environ["WORLD_SIZE"]), connect)
    Watch.is_on = True
    watch.start()
    try:
        yield
    except BaseException as error:
        first = watch.tell(error)
        if first is not None and _is_of_a_collective(error):
            raise OtherProcessError(first) from error
        raise
    finally:
        watch.over.set()
        Watch.is_on = False


def connect() -> Any:
    """The store that the processes met at, or None as long as they have not, or met elsewhere."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if address is None or port is None:
        return None
    return torch.distributed.TCPStore(address, int(port), wait_for_workers=False, timeout=timedelta(seconds=10))  # type: ignore[attr-defined]


class Watch(threading.Thread):
    """Looks whether another process has failed while this one is in a block of [`failing_together`].

    Args:
        rank: of this process.
        num_processes: all of them.
        connect: gives the store, or None as long as there is none.
        end: ends the process at once.

    Attributes:
        over: set at the end of the block.
    """

    is_on = False
    """Whether this process is in such a block."""
    number = 0
    """Of the blocks that this process has been in, so that what was raised in an earlier one is not taken for news."""

    def __init__(
        self, rank: int, num_processes: int, connect: Callable[[], Any], end: Callable[[int], Any] = os._exit
    ) -> None:
        super().__init__(name="watch of other processes", daemon=True)
        Watch.number += 1
        self.rank, self.num_processes, self.connect, self.end = rank, num_processes, connect, end
        self.failed, self.seen = FAILED.format(Watch.number), SEEN.format(Watch.number)
        self.over = threading.Event()
        self._store: Any = None

    def run(self) -> None:
        """Until the block is over, or the store is gone with the process that had it."""
        try:
            while not self.over.wait(INTERVAL):
                if self.store is None or not self.store.check([self.failed]):
                    continue
                self.store.add(self.seen, 1)
                if not self.over.wait(PATIENCE):
                    print(f"{self.store.get(self.failed).decode()} This one ends too.", file=sys.stderr, flush=True)
                    self.end(1)
                return
        except RuntimeError:  # of torch, for whatever befalls the store
            return

    def tell(self, error: BaseException) -> str | None:
        """Tells the others, and waits a moment until they know; what the first one said, if that was another."""
        own = f"Process {self.rank} of {self.num_processes} has failed: {type(error).__name__}: {error}"
        own = public_text(own[:LONGEST_REASON])
        try:
            if self.store is None:
                return None
            first = str(self.store.compare_set(self.failed, "", own).decode())
            known = self.store.add(self.seen, 1)
            until = time.monotonic() + 5 * INTERVAL
            while known < self.num_processes and time.monotonic() < until:  # it may go with this process
                time.sleep(0.05)
                known = self.store.add(self.seen, 0)
        except RuntimeError:
            return None
        return first if first != own else None

    @property
    def store(self) -> Any:
        """None as long as the processes have not met."""
        if self._store is None:
            self._store = self.connect()
        return self._store


def _is_of_a_collective(error: BaseException) -> bool:
    is_of_torch = isinstance(error, torch.distributed.DistError) if torch.distributed.is_available() else False
    return is_of_torch or (type(error) is RuntimeError and "gloo" in str(error))
