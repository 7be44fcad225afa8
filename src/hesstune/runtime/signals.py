"""SIGINT (Ctrl-C) and SIGTERM, on Windows SIGBREAK: noted, and acted on once the state is saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

Progress = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, text)."""

# Signals that end a process, other than Ctrl-C.
ENDING = tuple(
    signal.Signals(getattr(signal, name)) for name in ("SIGTERM", "SIGBREAK") if hasattr(signal, name)
)
SIGNALS = (signal.SIGINT, *ENDING)


class Stop:
    """True once a signal has arrived."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def deliver(self) -> None:
        """Pass the signal on to the previous handler; KeyboardInterrupt if that does nothing."""
        number = signal.SIGINT if self.signal is None else self.signal
        self._restore()
        if threading.current_thread() is threading.main_thread():
            signal.raise_signal(number)
        raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:  # a second signal does not wait for the end of the step
            self.deliver()
        self.signal = number

    def _install(self) -> None:
        for number in SIGNALS:
            before = signal.getsignal(number)
            # Handlers that ignore the signal (nohup), or were not set from Python, stay.
            if before not in (None, signal.SIG_IGN):
                self._before[number] = before
                signal.signal(number, self._note)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Yield a Stop that notes these signals while the block runs; a second signal acts at once.

    Handlers are restored afterwards. In other threads than the main one, signals are not noted.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    stop._install()
    try:
        yield stop
    finally:
        stop._restore()
