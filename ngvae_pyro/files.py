"""Files and folders that are either complete or absent, even after a power failure.

Content is first written beside its final place, flushed to the disk and then renamed, which every
file system does atomically: a reader sees either the old or the new content. A folder may belong to
somebody else, contain links that lead elsewhere, or hold other people's files. Writing and deleting
never follow a link, and only files known to be the folder's own are deleted.
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

# The contents of a folder at any depth, without following links: its own files and folders, each
# folder before its contents, and those that are not its own.
Contents = tuple[list[Path], list[Path]]
# These mean that the file system cannot flush folders, not that the disk has failed.
_FOLDERS_ARE_NOT_FLUSHED = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP)

# Largest TOML file: tomllib takes seconds for a key with that many dots, and four times as long for
# twice as many. A variant has 400 bytes, the configuration of a run 1,300.
TOML_BYTES = 2**14
# Largest JSON file. JSON is read in linear time; a row of a history has about 25 bytes per latent.
JSON_BYTES = 2**28


class CannotWrite(UserError):
    """The disk refuses a write: it is full, the folder is read-only, and so on."""


@contextmanager
def writing(path: str | Path, consequence: str = "") -> Iterator[None]:
    """Turn an error of the disk into one line.

    Args:
        path: The file or folder being written, for the message.
        consequence: What this means for the user, appended to the message.

    Raises:
        CannotWrite: For any OSError. One that an inner block raised gets the consequence appended.
    """
    try:
        yield
    except CannotWrite as error:
        raise CannotWrite(f"{error}{consequence}") from None
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise CannotWrite(f"{path}: cannot write there: {reason}{consequence}") from None


def flush(path: Path) -> None:
    """Flush a file's content, or a folder's list of files, to the disk.

    Some network and user-space file systems cannot do this for a folder. The process then gives one
    :class:`ngvae_pyro.errors.Notice` and goes on.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        is_folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        if not is_folder or error.errno not in _FOLDERS_ARE_NOT_FLUSHED:
            raise
        _warn_not_flushed(error.strerror)
    finally:
        os.close(handle)


@cache
def _warn_not_flushed(reason: str) -> None:
    warnings.warn(
        f"the file system cannot flush a folder to the disk ({reason}); a power failure may undo "
        "the last seconds",
        Notice,
        stacklevel=3,
    )


def reserve(path: Path, size: int) -> None:
    """Make sure that a file of ``size`` bytes can be written, without leaving one behind.

    Raises:
        OSError: If it cannot be written.
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
    """Refuse a text file that may be endless, or that would take too long to parse.

    Raises:
        OSError: For a device or a pipe, for a ``.json`` file of more than :data:`JSON_BYTES`, and
            for any other file of more than :data:`TOML_BYTES`.
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
    """Read a text file in UTF-8.

    Raises:
        OSError: If it cannot be read or :func:`check_text` refuses it.
        UnicodeDecodeError: If it is not UTF-8.
    """
    check_text(path)
    return path.read_text(encoding="utf-8")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield an empty file beside ``path``, which is renamed to it when the block succeeds.

    A link of that name is replaced; its target is left alone.

    Raises:
        CannotWrite: If it cannot be written there.
    """
    with writing(path), _replacing(path) as partial:
        yield partial


def write(path: Path, content: bytes) -> None:
    """Write or replace a file atomically.

    Raises:
        OSError: If the system refuses; :func:`writing` turns this into one line.
    """
    with _replacing(path) as partial:
        partial.write_bytes(content)


def make_folder(path: Path) -> Path:
    """Make a folder inside another one unless it exists.

    Returns:
        The same path.

    Raises:
        UserError: If it is a link or cannot be made.
    """
    if path.is_symlink():
        raise UserError(f"{path}: is a link; nothing is written through it")
    with writing(path):
        path.mkdir(exist_ok=True)
    return path


def partial_of(path: Path) -> Path:
    """The temporary file beside ``path`` that is written before the renaming."""
    return path.with_name(f".{path.stem}.partial{path.suffix}")


def with_partial(*names: str) -> set[Path]:
    """Relative paths, and those of the temporary file of each."""
    paths = set(map(Path, names))
    return paths | set(map(partial_of, paths))


def check_no_link(folder: Path, name: str) -> None:
    """Make sure that no link leads a path inside a folder elsewhere.

    Args:
        folder: The folder, which may itself be a link.
        name: Path relative to it.

    Raises:
        UserError: If the path is a link or passes through one.
    """
    place = folder
    for part in Path(name).parts:
        place = place / part
        if place.is_symlink():
            raise UserError(f"{place}: is a link; nothing is written or deleted through it")


def contents(folder: Path, own: Callable[[str], bool]) -> Contents:
    """Sort the contents of a folder into its own files and other ones.

    Args:
        folder: A folder.
        own: Whether a relative path is the folder's own; paths of folders end with a slash.

    Returns:
        Its own files and folders, and those that are not. Links, devices and the like are never
        its own; the ``.DS_Store`` files that macOS adds always are.
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
    """Delete a folder's own files, and the folder itself if it is then empty.

    A missing folder counts as deleted. If something is left because it belongs to somebody else or
    cannot be deleted, one :class:`ngvae_pyro.errors.Notice` says so.

    Args:
        folder: The folder; a link is left alone.
        found: Returns the :data:`Contents` of a folder; its own are deleted from last to first.
    """
    if not folder.is_dir() or folder.is_symlink():
        return
    mine, foreign = found(folder)
    for path in (*reversed(mine), folder):
        # A folder into which somebody has put a file is not empty, and stays.
        with suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()
    if folder.exists():
        mine, foreign = found(folder)
        why = "it is not of a run" if foreign else "it cannot be deleted"
        left = (foreign or mine or [folder])[0]
        warnings.warn(f"{left}: is left there, because {why}", Notice, stacklevel=2)


class NewFolder:
    """A folder that is written under a temporary name until :meth:`appear` renames it.

    Used as a context, it leaves no trace if it has not appeared::

        with NewFolder(folder, False, found) as new:
            (new.path / "config.toml").write_text(...)
            new.appear()

    No other process may use the place at the same time; see :func:`ngvae_pyro.locks.held`.

    Args:
        folder: Its final path; the parent folder must exist.
        replace: Whether an existing folder is replaced when the new one appears.
        found: Returns the :data:`Contents` of such a folder; only its own are deleted or replaced.

    Raises:
        UserError: If the folder exists and may not be replaced, holds files that are not its own,
            is a link, contains the working directory, or cannot be written.
    """

    def __init__(self, folder: Path, replace: bool, found: Callable[[Path], Contents]) -> None:
        if folder.is_symlink():
            raise UserError(f"{folder}: is a link; nothing is written through it")
        # Refuse to replace a folder that contains the working directory, such as `.` or `..`.
        if Path.cwd().is_relative_to(folder.resolve()):
            raise UserError(f"{folder}: holds the current folder; choose another place")
        self.folder, self.replace, self.found = folder, replace, found
        self.path = folder.with_name(f".{folder.name}.partial")
        self.old = folder.with_name(f".{folder.name}.old")

    def recover(self) -> None:
        """Restore a folder that was about to be replaced when the process died."""
        # The configuration is deleted first, so a folder that still has it is complete.
        if not os.path.lexists(self.folder) and (self.old / "config.toml").is_file():
            with writing(self.folder):
                self.old.rename(self.folder)

    def check(self) -> None:
        """Raise a UserError if the path is taken, or holds somebody else's files."""
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
        """Rename the folder to its final path, unless that is done, and return that path."""
        if self.path == self.folder:
            return self.path
        with writing(self.folder):
            flush(self.path)
            # Somebody may have put something there since the first check.
            self.check()
            if self.folder.exists():
                self.folder.rename(self.old)
            self.path.rename(self.folder)
            flush(self.folder.parent)
        self.path = self.folder
        remove(self.old, self.found)
        return self.path
