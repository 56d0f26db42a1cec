"""One process at a time writes a folder.

The lock of ``runs/demo`` is the file ``runs/.demo.lock``, which says who holds it. The system lets
go of it when its process ends, however that ends; a file that a killed process has left behind
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
# Of file systems without locks, of which some network ones are.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
# Of a folder that may be written, in one that may not.
_NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS)
_BEGINNING = b'{"pid": '
_LONGEST = 2**16


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """A block in which no other process writes a folder, which need not be there yet.

    The folders on the way to it are made, and removed again if they are empty in the end. Where
    there can be no lock that is one :class:`Notice`, and the block goes on without.

    Raises:
        UserError: If another holds the lock, or has something else in its place; or if the disk
            refuses.
    """
    # Not `resolve`, which before Python 3.13 raises where links lead in a circle.
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
    """The open file of the lock, None where there can be none."""
    while True:
        missing = [parent for parent in path.parents if not parent.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        made += [parent for parent in missing if parent not in made]
        try:
            handle = _opened(path)
        except FileNotFoundError as error:
            # A folder that is there and takes no file, as those of /proc, will not take one later.
            if path.parent.is_dir():
                raise UserError(f"{folder}: cannot write there: {error.strerror}") from None
            # Another has just removed the folder that both have made.
            continue
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise UserError(f"{path}: is a link; nothing is written through it") from None
            if error.errno in _NO_PLACE and folder.is_dir() and not os.path.lexists(path):
                _say_without(folder, error)
                return None
            raise
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who held it until now may have removed it before it was locked here.
            if _is_at(handle, path):
                _say(handle)
                return handle
        except OSError as error:
            if error.errno in _HELD:
                raise UserError(f"{folder}: is being written by {_holder(handle)}") from None
            if error.errno not in _NO_LOCKS:
                raise
            path.unlink()
            os.close(handle)
            _say_without(folder, error)
            return None
        os.close(handle)


def _opened(path: Path) -> int:
    """The file of the lock, made where it is not there; somebody's file is left alone."""
    flags = os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        handle = os.open(path, flags | os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        # Another user's can be locked as well, but says who held it last.
        if not os.path.lexists(path):
            raise
        handle = os.open(path, flags | os.O_RDONLY)
    said = _said(handle) if stat.S_ISREG(os.fstat(handle).st_mode) else b"?"
    # A power failure may leave it empty, or zeros.
    if said.strip(b"\0") and not said.startswith(_BEGINNING):
        os.close(handle)
        raise UserError(f"{path}: is not a lock of ngvae; move it")
    return handle


def _is_at(handle: int, path: Path) -> bool:
    """Whether the open file is the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def _said(handle: int) -> bytes:
    return os.pread(handle, _LONGEST, 0)


def _say(handle: int) -> None:
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
        values = json.loads(_said(handle))
        return f"process {values['pid']} on {values['host']} ({values['command']})"
    except (ValueError, KeyError):
        # It is just about to write it.
        return "another process"


def _say_without(folder: Path, error: OSError) -> None:
    warnings.warn(
        f"{folder}: cannot be locked ({error.strerror}); let no other process write there",
        Notice,
        stacklevel=4,
    )
