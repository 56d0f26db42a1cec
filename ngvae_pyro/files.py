"""Files that appear under their names whole or not at all, and nowhere but there.

A folder may be another's, with links in it that lead elsewhere; what is written never follows them.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ngvae_pyro.errors import UserError


def read_text(path: Path) -> str:
    """The text of a file in UTF-8; one of a device, or of a pipe, might have no end.

    Raises:
        OSError: If it cannot be read.
        UnicodeDecodeError: If it is not UTF-8.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.read_text(encoding="utf-8")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """An empty file beside ``path`` to write, which takes its name when the block has ended well.

    A link of that name is replaced, and what it points to is left alone.

    Raises:
        UserError: If it cannot be written there.
    """
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        partial.unlink(missing_ok=True)
        partial.touch(exist_ok=False)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot write there: {error.strerror}") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def make_folder(path: Path) -> Path:
    """A folder inside another, made where it is not there.

    Raises:
        UserError: If it is a link, or cannot be made.
    """
    if path.is_symlink():
        raise UserError(f"{path}: is a link; nothing is written through it")
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot write there: {error.strerror}") from None
    return path
