"""SIGINT and SIGTERM at a moment when what was done can be kept."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal asked for the end, and what was done until then is kept."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """What a shell reports of a process that the signal ended: 130 or 143."""
        return 128 + self.signum


@contextmanager
def raised() -> Iterator[None]:
    """A block in which SIGTERM raises :class:`Interrupted`, so that it tidies up as it ends."""

    def end(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass
class Stop:
    """The signal that asked for the end, if one has come."""

    signum: int | None = None


@contextmanager
def deferred() -> Iterator[Stop]:
    """A block in which SIGINT and SIGTERM are noted, for the block to end where it can.

    A second signal has its usual effect. Outside of the main thread, which alone may handle
    signals, nothing is noted.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: dict[int, Any] = {}

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)

    def note(signum: int, frame: FrameType | None) -> None:
        stop.signum = signum
        restore()

    for signum in SIGNALS:
        # What is ignored stays ignored, as SIGINT is in the background of a shell.
        if signal.getsignal(signum) not in (signal.SIG_IGN, None):
            before[signum] = signal.signal(signum, note)
    try:
        yield stop
    finally:
        restore()
