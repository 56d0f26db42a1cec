"""SIGINT, SIGTERM and SIGHUP at a moment when what was done can be kept.

A terminal that is closed sends SIGHUP to what runs in it. What is ignored stays ignored: SIGHUP
under ``nohup``, SIGINT in the background of a shell.
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
    """A signal asked for the end, and what was done until then is kept."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """What a shell reports of a process that the signal ended: 129, 130 or 143."""
        return 128 + self.signum


def _set(signals: Iterable[int], handler: Handler) -> dict[int, Any]:
    """Handle the signals that are not ignored; the handlers until then."""
    heard = [signum for signum in signals if signal.getsignal(signum) not in (signal.SIG_IGN, None)]
    return {signum: signal.signal(signum, handler) for signum in heard}


def _restore(before: dict[int, Any]) -> None:
    for signum, handler in before.items():
        signal.signal(signum, handler)


@dataclass
class Stop:
    """The signal that asked for the end, if one has come."""

    signum: int | None = None


@contextmanager
def raised() -> Iterator[Stop]:
    """A block in which SIGTERM and SIGHUP raise :class:`Interrupted`, so that it tidies up."""
    stop = Stop()

    def end(signum: int, frame: FrameType | None) -> None:
        stop.signum = signum
        if signum == signal.SIGHUP:
            # It may come from the system and from the shell too, and is to disturb no tidying up.
            signal.signal(signum, signal.SIG_IGN)
        raise Interrupted(signum)

    before = _set((signal.SIGTERM, signal.SIGHUP), end)
    try:
        yield stop
    finally:
        _restore(before)


@contextmanager
def deferred() -> Iterator[Stop]:
    """A block in which SIGINT, SIGTERM and SIGHUP are noted, for the block to end where it can.

    A second signal has its usual effect, save for SIGHUP, which may come twice. Outside of the main
    thread, which alone may handle signals, nothing is noted.
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
