"""Locks, so that only one process at a time writes a folder.

The lock of ``runs/demo`` is the file ``runs/.demo.lock``, which names its holder. The system
releases the lock whenever the process ends, in whatever way; a file left behind by a killed process
locks nothing.
"""

import errno
import fcntl
import json
import os
import socket
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ngvae_pyro import files, provenance
from ngvae_pyro.errors import Notice, UserError

_HELD = (errno.EAGAIN, errno.EACCES)
# The file system has no locks, as is the case for some network file systems.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
# The folder may be writable although its parent, where the lock would be, is not.
_NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS)
_BEGINNING = b'{"pid": '
_LONGEST = 2**16


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which need not exist yet, during a block.

    Missing parent folders are made, and removed again if they are empty in the end. Where locking
    is impossible, one :class:`ngvae_pyro.errors.Notice` says so and the block runs without a lock.

    Raises:
        UserError: If another process holds the lock, another file is in its place, or the disk
            refuses to write it.
    """
    # Not `resolve`, which before Python 3.13 raises for links that form a cycle.
    place = Path(os.path.realpath(folder))
    path = place.with_name(f".{place.name}.lock")
    made: list[Path] = []
    handle = None
    try:
        with files.writing(folder):
            handle = _locked(folder, path, made)
        yield
    finally:
        if handle is not None:
            with suppress(OSError):
                if _is_at(handle, path):
                    path.unlink()
            os.close(handle)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()


def _locked(folder: Path, path: Path, made: list[Path]) -> int | None:
    """Take the lock and return its open file, or None if locking is impossible here."""
    while True:
        missing = [parent for parent in path.parents if not parent.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        made += [parent for parent in missing if parent not in made]
        try:
            handle = _opened(path)
        except FileNotFoundError as error:
            # An existing folder that takes no file, such as those in /proc, never will.
            if path.parent.is_dir():
                raise UserError(f"{folder}: cannot write there: {error.strerror}") from None
            # Another process has just removed the folder that both had made.
            continue
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise UserError(f"{path}: is a link; nothing is written through it") from None
            if error.errno in _NO_PLACE and folder.is_dir() and not os.path.lexists(path):
                _warn_unlocked(folder, error)
                return None
            raise
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous holder may have removed the file before it was locked here.
            if _is_at(handle, path):
                _write_holder(handle)
                return handle
        except OSError as error:
            if error.errno in _HELD:
                raise UserError(f"{folder}: is being written by {_holder(handle)}") from None
            if error.errno not in _NO_LOCKS:
                raise
            path.unlink()
            os.close(handle)
            _warn_unlocked(folder, error)
            return None
        os.close(handle)


def _opened(path: Path) -> int:
    """Open the lock's file, creating it if necessary; any other file there is left alone."""
    flags = os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        handle = os.open(path, flags | os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        # Another user's file can be locked too, but keeps the name of its previous holder.
        if not os.path.lexists(path):
            raise
        handle = os.open(path, flags | os.O_RDONLY)
    content = _content(handle) if stat.S_ISREG(os.fstat(handle).st_mode) else b"?"
    # After a power failure the file may be empty or hold zeros.
    if content.strip(b"\0") and not content.startswith(_BEGINNING):
        os.close(handle)
        raise UserError(f"{path}: is not a lock of ngvae; move it")
    return handle


def _is_at(handle: int, path: Path) -> bool:
    """Whether the open file is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def _content(handle: int) -> bytes:
    return os.pread(handle, _LONGEST, 0)


def _write_holder(handle: int) -> None:
    values = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": provenance.command_line(),
    }
    if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_RDWR:
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(values).encode(), 0)


def _holder(handle: int) -> str:
    try:
        values = json.loads(_content(handle))
        return f"process {values['pid']} on {values['host']} ({values['command']})"
    except (ValueError, KeyError):
        # The holder has not written its name yet.
        return "another process"


def _warn_unlocked(folder: Path, error: OSError) -> None:
    warnings.warn(
        f"{folder}: cannot be locked ({error.strerror}); let no other process write there",
        Notice,
        stacklevel=4,
    )
