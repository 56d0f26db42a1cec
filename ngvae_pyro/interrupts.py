"""Handling of SIGINT, SIGTERM and SIGHUP that keeps the work done so far.

A terminal that is closed sends SIGHUP to its processes. Signals that are ignored stay ignored:
SIGHUP under ``nohup``, SIGINT for a background job of a shell.
"""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], None]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal ended the work; what was done until then is kept."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """The exit code that shells report for a process killed by the signal: 129, 130 or 143."""
        return 128 + self.signum


def _set(signals: Iterable[int], handler: Handler) -> dict[int, Any]:
    """Install a handler for the signals that are not ignored; return the previous handlers."""
    heard = [signum for signum in signals if signal.getsignal(signum) not in (signal.SIG_IGN, None)]
    return {signum: signal.signal(signum, handler) for signum in heard}


def _restore(before: dict[int, Any]) -> None:
    for signum, handler in before.items():
        signal.signal(signum, handler)


@dataclass
class Stop:
    """The signal that asked the program to stop, if one has arrived."""

    signum: int | None = None


@contextmanager
def raised() -> Iterator[Stop]:
    """Let SIGTERM and SIGHUP raise :class:`Interrupted` in a block, so that it can clean up."""
    stop = Stop()

    def end(signum: int, frame: FrameType | None) -> None:
        stop.signum = signum
        if signum == signal.SIGHUP:
            # Both the system and the shell may send it; the second must not disturb the clean-up.
            signal.signal(signum, signal.SIG_IGN)
        raise Interrupted(signum)

    before = _set((signal.SIGTERM, signal.SIGHUP), end)
    try:
        yield stop
    finally:
        _restore(before)


@contextmanager
def deferred() -> Iterator[Stop]:
    """Record SIGINT, SIGTERM and SIGHUP during a block, which can then stop where it is safe.

    A second signal has its usual effect, except for SIGHUP, which may arrive twice. Nothing is
    recorded outside the main thread, the only one that can handle signals.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: dict[int, Any] = {}

    def note(signum: int, frame: FrameType | None) -> None:
        stop.signum = signum
        _restore({each: handler for each, handler in before.items() if each != signal.SIGHUP})

    before |= _set(SIGNALS, note)
    try:
        yield stop
    finally:
        _restore(before)
