"""Files and folders that are there whole or not at all, whenever the power fails.

What is written goes beside its place first, is flushed to the disk, and is then renamed, which
every file system does at once. A reader sees the old or the new, and a link that somebody has put
in the place is replaced, not followed.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from ngvae_pyro.errors import UserError


@contextmanager
def writing(path: str | Path, consequence: str = "") -> Iterator[None]:
    """What the disk refuses becomes one line.

    Args:
        path: What is written, for the message.
        consequence: What follows for the user.

    Raises:
        UserError: For a full disk, a read-only folder and the like.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise UserError(f"{path}: cannot write there: {reason}{consequence}") from None


def flush(path: Path) -> None:
    """Have on the disk what a file holds, or which files a folder has."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write(path: Path, content: bytes) -> None:
    """Write a file, or replace one at once."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    flush(path.parent)


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
        UserError: If the folder is there and may not be replaced, or cannot be written.
    """

    def __init__(self, folder: Path, replace: bool) -> None:
        self.folder = folder
        self.path = folder.with_name(f".{folder.name}.partial")
        self.replace = replace

    def __enter__(self) -> "NewFolder":
        with writing(self.folder):
            if self.folder.exists() and not self.replace:
                raise UserError(f"{self.folder}: already exists")
            shutil.rmtree(self.path, ignore_errors=True)
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
