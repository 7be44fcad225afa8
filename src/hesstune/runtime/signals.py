"""Stop when asked to: SIGINT (Ctrl-C) and SIGTERM are noted, and acted on once the state is saved.

Windows never sends SIGTERM; there a process is asked to stop by SIGBREAK.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

Progress = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, text)."""


# What asks a process to end, other than Ctrl-C.
ENDING = tuple(
    signal.Signals(getattr(signal, name)) for name in ("SIGTERM", "SIGBREAK") if hasattr(signal, name)
)
SIGNALS = (signal.SIGINT, *ENDING)


class Stop:
    """Whether a signal has asked to stop."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def deliver(self) -> None:
        """Pass the signal on to the handler that was there before, as if it arrived now.

        Raises:
            KeyboardInterrupt: Where that handler does not end the program or raise by itself.
        """
        number = signal.SIGINT if self.signal is None else self.signal
        self._restore()
        if threading.current_thread() is threading.main_thread():
            signal.raise_signal(number)
        raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:  # asked twice: do not wait for the step
            self.deliver()
        self.signal = number

    def _install(self) -> None:
        for number in SIGNALS:
            before = signal.getsignal(number)
            # Ignored (nohup), or not set from Python: left alone.
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
