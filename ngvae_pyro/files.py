"""Files and folders that are there whole or not at all, whenever the power fails.

What is written goes beside its place first, is flushed to the disk, and is then renamed, which
every file system does at once. A reader sees the old or the new. A folder may be another's, with
links in it that lead elsewhere, or have somebody's files in it; what is written or deleted never
follows a link, and only what is known to be the folder's own is deleted.
"""

import errno
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType

from ngvae_pyro.errors import Notice, UserError

# What a folder holds at any depth, without entering links: its own files and folders, each folder
# before what is in it, and those that are not its own.
Contents = tuple[list[Path], list[Path]]
# Says of a folder's files that they need no flushing, not that the disk has failed.
_FOLDERS_ARE_NOT_FLUSHED = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP)

# tomllib takes seconds for a key of as many dots, and four times as long for twice as many. A
# variant has 400 bytes, the configuration of a run 1,300.
TOML_BYTES = 2**14
# JSON is read in linear time. A row of a history takes about 25 bytes for each latent.
JSON_BYTES = 2**28


class CannotWrite(UserError):
    """What the disk refuses: it is full, the folder is read-only, and the like."""


@contextmanager
def writing(path: str | Path, consequence: str = "") -> Iterator[None]:
    """What the disk refuses becomes one line.

    Args:
        path: What is written, for the message.
        consequence: What follows for the user.

    Raises:
        CannotWrite: For any OSError, and with the consequence for what a block within has raised.
    """
    try:
        yield
    except CannotWrite as error:
        raise CannotWrite(f"{error}{consequence}") from None
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise CannotWrite(f"{path}: cannot write there: {reason}{consequence}") from None


def flush(path: Path) -> None:
    """Have on the disk what a file holds, or which files a folder has.

    Some file systems, of networks and of user space, have no such thing for a folder. That is one
    :class:`Notice` of a process, and it goes on.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        is_folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        if not is_folder or error.errno not in _FOLDERS_ARE_NOT_FLUSHED:
            raise
        _say_that_folders_are_not_flushed(error.strerror)
    finally:
        os.close(handle)


@cache
def _say_that_folders_are_not_flushed(reason: str) -> None:
    warnings.warn(
        f"the file system cannot flush a folder to the disk ({reason}); a power failure may undo "
        "the last seconds",
        Notice,
        stacklevel=3,
    )


def reserve(path: Path, size: int) -> None:
    """Make sure that a file of so many bytes can be written, and leave none.

    Raises:
        OSError: If it cannot.
    """
    try:
        with path.open("wb") as file:
            for start in range(0, size, 2**20):
                file.write(bytes(min(2**20, size - start)))
            file.flush()
            os.fsync(file.fileno())
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    partial = partial_of(path)
    try:
        partial.unlink(missing_ok=True)
        partial.touch(exist_ok=False)
        yield partial
        flush(partial)
        partial.replace(path)
        flush(path.parent)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def check_text(path: Path) -> None:
    """Refuses a text that may have no end, or that takes too long to be understood.

    Raises:
        OSError: For a device or a pipe, a file of more than `JSON_BYTES` whose name ends in .json,
            and another one of more than `TOML_BYTES`.
    """
    if not path.exists():
        return
    if not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    most = JSON_BYTES if path.suffix == ".json" else TOML_BYTES
    if (size := path.stat().st_size) > most:
        reason = f"too large: expected at most {most:,} bytes, got {size:,}"
        raise OSError(errno.EFBIG, reason, str(path))


def read_text(path: Path) -> str:
    """The text of a file in UTF-8.

    Raises:
        OSError: If it cannot be read, or :func:`check_text` refuses it.
        UnicodeDecodeError: If it is not UTF-8.
    """
    check_text(path)
    return path.read_text(encoding="utf-8")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """An empty file beside ``path`` to write, which takes its name when the block has ended well.

    A link of that name is replaced, and what it points to is left alone.

    Raises:
        CannotWrite: If it cannot be written there.
    """
    with writing(path), _replacing(path) as partial:
        yield partial


def write(path: Path, content: bytes) -> None:
    """Write a file, or replace one at once.

    Raises:
        OSError: As of the system; :func:`writing` makes a line of it.
    """
    with _replacing(path) as partial:
        partial.write_bytes(content)


def make_folder(path: Path) -> Path:
    """A folder inside another, made where it is not there.

    Raises:
        UserError: If it is a link, or cannot be made.
    """
    if path.is_symlink():
        raise UserError(f"{path}: is a link; nothing is written through it")
    with writing(path):
        path.mkdir(exist_ok=True)
    return path


def partial_of(path: Path) -> Path:
    """The file beside ``path`` that is written first."""
    return path.with_name(f".{path.stem}.partial{path.suffix}")


def with_partial(*names: str) -> set[Path]:
    """Relative paths, and those of what is written first of each."""
    paths = set(map(Path, names))
    return paths | set(map(partial_of, paths))


def check_no_link(folder: Path, name: str) -> None:
    """Make sure that a path inside a folder leads there, and not elsewhere by a link.

    Args:
        folder: Not looked at itself.
        name: Relative to it.

    Raises:
        UserError: If it is a link, or in one.
    """
    place = folder
    for part in Path(name).parts:
        place = place / part
        if place.is_symlink():
            raise UserError(f"{place}: is a link; nothing is written or deleted through it")


def contents(folder: Path, own: Callable[[str], bool]) -> Contents:
    """What a folder holds, told apart.

    Args:
        folder: A folder.
        own: Whether a path relative to it is its own; that of a folder ends with a slash.

    Returns:
        Its own files and folders, and those that are not. A link, a device and the like is never
        its own. The views of folders that a Mac keeps in ``.DS_Store`` always are.
    """
    mine: list[Path] = []
    foreign: list[Path] = []

    def look(place: Path) -> None:
        for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
            path = Path(entry.path)
            name = path.relative_to(folder).as_posix()
            if entry.is_dir(follow_symlinks=False) and own(f"{name}/"):
                mine.append(path)
                look(path)
            elif entry.is_file(follow_symlinks=False) and (own(name) or path.name == ".DS_Store"):
                mine.append(path)
            else:
                foreign.append(path)

    look(folder)
    return mine, foreign


def remove(folder: Path, found: Callable[[Path], Contents]) -> None:
    """Delete a folder's own files, and the folder if it is empty then; one that is not there is.

    What is left, because it is somebody's or cannot be deleted, is one :class:`Notice`.

    Args:
        folder: No link.
        found: Tells what is the folder's own; it is deleted from the last to the first.
    """
    if not folder.is_dir() or folder.is_symlink():
        return
    mine, foreign = found(folder)
    for path in (*reversed(mine), folder):
        # A folder that somebody's file has been put into is not empty, and stays.
        with suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()
    if folder.exists():
        mine, foreign = found(folder)
        why = "it is not of a run" if foreign else "it cannot be deleted"
        left = (foreign or mine or [folder])[0]
        warnings.warn(f"{left}: is left there, because {why}", Notice, stacklevel=2)


class NewFolder:
    """A folder that appears under its name only when it is asked to.

    As a context it ends without a trace if it has not appeared::

        with NewFolder(folder, False, found) as new:
            (new.path / "config.toml").write_text(...)
            new.appear()

    Nobody else may use the place at the same time; see :func:`ngvae_pyro.locks.held`.

    Args:
        folder: Its place, in a folder that is there.
        replace: Whether a folder that is there already gives way when the new one appears.
        found: Tells what is such a folder's own; nothing else is deleted, nor replaced.

    Raises:
        UserError: If the folder is there and may not be replaced, holds what is not its own, is a
            link or holds the current folder, or cannot be written.
    """

    def __init__(self, folder: Path, replace: bool, found: Callable[[Path], Contents]) -> None:
        if folder.is_symlink():
            raise UserError(f"{folder}: is a link; nothing is written through it")
        # Not to saw off the branch that one sits on; `.` and `..` are among these.
        if Path.cwd().is_relative_to(folder.resolve()):
            raise UserError(f"{folder}: holds the current folder; choose another place")
        self.folder, self.replace, self.found = folder, replace, found
        self.path = folder.with_name(f".{folder.name}.partial")
        self.old = folder.with_name(f".{folder.name}.old")

    def recover(self) -> None:
        """Put back a folder that was about to be replaced when the process died."""
        # What is deleted of one that was replaced begins with its configuration.
        if not os.path.lexists(self.folder) and (self.old / "config.toml").is_file():
            with writing(self.folder):
                self.old.rename(self.folder)

    def check(self) -> None:
        """Raise a UserError if the place is taken, or something there is somebody's."""
        if os.path.lexists(self.folder) and not self.replace:
            raise UserError(f"{self.folder}: already exists")
        for place in (self.folder, self.path, self.old):
            if place.is_symlink() or (place.exists() and not place.is_dir()):
                raise UserError(f"{place}: is not of a run; move it, or choose another --out")
            if place.is_dir() and (foreign := self.found(place)[1]):
                raise UserError(f"{foreign[0]}: is not of a run; move it, or choose another --out")

    def __enter__(self) -> "NewFolder":
        with writing(self.folder):
            self.check()
            for rest in (self.path, self.old):
                remove(rest, self.found)
            self.path.mkdir()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.path != self.folder:
            remove(self.path, self.found)
            self.recover()

    def appear(self) -> Path:
        """Take the place, where :attr:`path` is from now on, if that has not happened yet."""
        if self.path == self.folder:
            return self.path
        with writing(self.folder):
            flush(self.path)
            # Somebody may have put something there since it was looked at first.
            self.check()
            if self.folder.exists():
                self.folder.rename(self.old)
            self.path.rename(self.folder)
            flush(self.folder.parent)
        self.path = self.folder
        remove(self.old, self.found)
        return self.path
