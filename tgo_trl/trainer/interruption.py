"""Signals that ask a run to end: it saves what it has, says so, and ends with the status that the signal stands for."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = ("SIGTERM", "SIGHUP", "SIGINT")
"""SIGINT is Ctrl-C; a launcher such as torchrun passes it on a second time, and so ends its processes at once."""
NOTICE = b"\nInterrupted: the run ends with a checkpoint when this update is made. Ctrl-C once more ends it at once.\n"


class Terminated(SystemExit):
    """A signal has ended the run; the exit status is 128 and the signal's number, as a shell reports it."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)


class Interruption:
    """Within its context, remembers the first of [`SIGNALS`] instead of ending the process; a second one ends it.

    Signals that the user's program handles or ignores (`nohup`) are left to it, and so are those of a program that
    trains outside its main thread, where Python takes none.

    Attributes:
        signum: of the signal; None as long as there was none.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._taken: dict[int, Any] = {}

    @property
    def name(self) -> str:
        """Of the signal."""
        return signal.Signals(self.signum).name if self.signum is not None else "no signal"

    def __enter__(self) -> "Interruption":
        self.signum = None
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]  # Windows has no SIGHUP
            handlers = {number: signal.getsignal(number) for number in numbers}
            defaults = (signal.SIG_DFL, signal.default_int_handler)  # the latter is Python's own, of Ctrl-C
            self._taken = {number: handler for number, handler in handlers.items() if handler in defaults}
            for number in self._taken:
                signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._give_back()

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self._give_back()
        if signum == signal.SIGINT and os.environ.get("RANK", "0") == "0":
            os.write(2, NOTICE)  # a signal may come in the middle of a `print`, which another must not enter

    def _give_back(self) -> None:
        for number, handler in self._taken.items():
            signal.signal(number, handler)
        self._taken = {}
