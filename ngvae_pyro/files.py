"""Files and folders that are there whole or not at all, whenever the power fails.

What is written goes beside its place first, is flushed to the disk, and is then renamed, which
every file system does at once. A reader sees the old or the new. A folder may be another's, with
links in it that lead elsewhere; what is written never follows them.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from ngvae_pyro.errors import UserError

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
    """Have on the disk what a file holds, or which files a folder has."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
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


class NewFolder:
    """A folder that appears under its name only when it is asked to.

    As a context it ends without a trace if it has not appeared::

        with NewFolder(folder, replace=False) as new:
            (new.path / "config.toml").write_text(...)
            new.appear()

    Args:
        folder: Its place.
        replace: Whether a folder that is there already gives way when the new one appears.

    Raises:
        UserError: If the folder is there and may not be replaced, is a link or holds the current
            folder, or cannot be written.
    """

    def __init__(self, folder: Path, replace: bool) -> None:
        if folder.is_symlink():
            raise UserError(f"{folder}: is a link; nothing is written through it")
        # Not to saw off the branch that one sits on; `.` and `..` are among these.
        if Path.cwd().is_relative_to(folder.resolve()):
            raise UserError(f"{folder}: holds the current folder; choose another place")
        self.folder = folder
        self.path = folder.with_name(f".{folder.name}.partial")
        self.replace = replace
        self.made: list[Path] = []

    def __enter__(self) -> "NewFolder":
        with writing(self.folder):
            if self.folder.exists() and not self.replace:
                raise UserError(f"{self.folder}: already exists")
            shutil.rmtree(self.path, ignore_errors=True)
            self.made = [parent for parent in self.path.parents if not parent.exists()]
            self.path.mkdir(parents=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.path != self.folder:
            shutil.rmtree(self.path, ignore_errors=True)
            for parent in self.made:
                with suppress(OSError):
                    parent.rmdir()

    def appear(self) -> Path:
        """Take the place, where :attr:`path` is from now on, if that has not happened yet."""
        if self.path == self.folder:
            return self.path
        with writing(self.folder):
            flush(self.path)
            old = self.folder.with_name(f".{self.folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            if self.replace and self.folder.exists():
                self.folder.rename(old)
            self.path.rename(self.folder)
            flush(self.folder.parent)
        self.path = self.folder
        shutil.rmtree(old, ignore_errors=True)
        return self.path
