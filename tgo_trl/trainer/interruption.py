"""Signals that ask a run to end: it saves what it has, says so, and ends with the status that the signal stands for."""

import signal
import threading
from types import FrameType, TracebackType

SIGNALS = ("SIGTERM", "SIGHUP")


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
        self._taken: list[int] = []

    @property
    def name(self) -> str:
        """Of the signal."""
        return signal.Signals(self.signum).name if self.signum is not None else "no signal"

    def __enter__(self) -> "Interruption":
        self.signum = None
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]  # Windows has no SIGHUP
            self._taken = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
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

    def _give_back(self) -> None:
        for number in self._taken:
            signal.signal(number, signal.SIG_DFL)
        self._taken = []
