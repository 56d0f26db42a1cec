"""Rows of a file that are read when they are looked at, in place of a tensor in memory."""

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ngvae_pyro import files, machine
from ngvae_pyro.errors import UserError

# Bytes read, checked, converted or moved at once, because a copy of all images may not fit.
BLOCK = 2**20


def block_rows(row_bytes: int) -> int:
    """How many rows of so many bytes are read at once."""
    return max(1, BLOCK // max(1, row_bytes))


class RowFile:
    """An array (N, ...) in a file, of which rows are read by their numbers.

    They are read, and not mapped into memory: pages of a map count as memory of the process once
    they have been touched, and a file that is cut short would end it without a word.

    Args:
        handle: The open file, which belongs to this object from now on.
        offset: Where the array begins, in bytes.
        shape: (N, ...), in C order.
        dtype: The type of its numbers.
        where: What it is, for messages.
        own: Whether nobody else can write to the file.
    """

    def __init__(
        self,
        handle: int,
        offset: int,
        shape: Sequence[int],
        dtype: np.dtype,
        where: str,
        own: bool,
    ) -> None:
        self.shape, self.dtype, self.where = tuple(shape), dtype, where
        self._handle, self._offset = handle, offset
        self._row_bytes = int(np.prod(self.shape[1:], dtype=np.int64)) * dtype.itemsize
        self._known = None if own else self._stamp()
        weakref.finalize(self, os.close, handle)

    def __len__(self) -> int:
        """The number of rows, N."""
        return self.shape[0]

    def _stamp(self) -> tuple[int, int]:
        found = os.fstat(self._handle)
        return found.st_size, found.st_mtime_ns

    def read(self, numbers: np.ndarray, out: np.ndarray) -> None:
        """Read rows.

        Args:
            numbers: Those of the rows.
            out: Where they go, a C-contiguous array of their shape and type.

        Raises:
            UserError: If the file has changed since it was opened, or cannot be read.
        """
        if self._known not in (None, self._stamp()):
            raise UserError(f"{self.where}: the file has changed since it was loaded")
        room = out.reshape(-1).view(np.uint8).data
        begin = 0
        # Rows that follow one another are one read.
        for start, stop in _runs(numbers):
            end = begin + (stop - start) * self._row_bytes
            self._fill(room[begin:end], self._offset + start * self._row_bytes)
            begin = end

    def _fill(self, room: memoryview, place: int) -> None:
        while room:
            try:
                count = os.preadv(self._handle, [room], place)
            except OSError as error:
                raise UserError(f"{self.where}: cannot read it: {error.strerror}") from error
            if not count:
                raise UserError(f"{self.where}: the file ends before its last row")
            room, place = room[count:], place + count

    def parts(self) -> Iterator[np.ndarray]:
        """All rows in order, ``BLOCK`` bytes at a time."""
        size = block_rows(self._row_bytes)
        for start in range(0, len(self), size):
            numbers = np.arange(start, min(start + size, len(self)))
            part = np.empty((len(numbers), *self.shape[1:]), self.dtype)
            self.read(numbers, part)
            yield part


def _runs(numbers: np.ndarray) -> Iterator[tuple[int, int]]:
    """The numbers as ranges [start, stop), in their order."""
    first = np.diff(numbers, prepend=-2) != 1
    last = np.diff(numbers, append=-2) != 1
    yield from zip(numbers[first].tolist(), (numbers[last] + 1).tolist(), strict=True)


class _Parts(Sequence[Tensor]):
    """Tensors of so many rows, each of which is read when it is looked at."""

    def __init__(self, rows: "Rows", size: int) -> None:
        self.rows, self.size = rows, size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.size)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.rows[index * self.size : (index + 1) * self.size].read()


class Rows:
    """Images (N, C, H, W) in a file, in stored form, in any order.

    They stand for a tensor where data are looked at a few rows at a time, and have the part of its
    methods that this takes. One row by its number is a tensor; more of them, by a slice, by numbers
    or by a mask, are rows of the file again, which :meth:`read` and :meth:`to` bring into memory.
    Pickled they are a tensor.

    Args:
        file: (N, C, H, W), uint8 or float32.
        numbers: Those of its rows that these are; by default all of them.
    """

    device = torch.device("cpu")

    def __init__(self, file: RowFile, numbers: np.ndarray | None = None) -> None:
        self.file = file
        self.numbers = np.arange(len(file)) if numbers is None else numbers
        self.dtype = torch.from_numpy(np.empty(0, file.dtype)).dtype

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return torch.Size((len(self), *self.file.shape[1:]))

    @property
    def nbytes(self) -> int:
        """Their size in bytes."""
        return self.shape.numel() * self.file.dtype.itemsize

    def __len__(self) -> int:
        """The number of rows, N."""
        return len(self.numbers)

    def __repr__(self) -> str:
        return f"Rows({tuple(self.shape)} of {self.dtype} in {self.file.where})"

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int | np.integer):
            at = range(len(self))[index]
            return self[at : at + 1].read()[0]
        if isinstance(index, slice):
            return Rows(self.file, self.numbers[index])
        return Rows(self.file, self.numbers[np.asarray(index)])

    def split(self, size: int) -> Sequence[Tensor]:
        """Tensors of ``size`` rows in order, each read when it is looked at."""
        return _Parts(self, size)

    def read(self, out: Tensor | None = None) -> Tensor:
        """The rows as a tensor in memory, ``out`` if that is given."""
        if out is None:
            # Which takes as long as a batch does.
            if self.nbytes > BLOCK:
                machine.check(f"{self.file.where}: shape {tuple(self.shape)}", self.nbytes)
            out = torch.empty(self.shape, dtype=self.dtype)
        self.file.read(self.numbers, out.numpy())
        return out

    def to(self, *args: Any, **options: Any) -> Tensor:
        """The rows as a tensor on a device or of a type, as ``Tensor.to`` has them."""
        return self.read().to(*args, **options)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Tensor]]:
        return torch.detach, (self.read(),)


# Files of one's own ---------------------------------------------------------------------------


def scratch_folder(folder: str | Path | None) -> Path:
    """The folder of files for data that are streamed: by default that of temporary files.

    Raises:
        UserError: If it is not there.
    """
    found = Path(tempfile.gettempdir() if folder is None else folder)
    if not found.is_dir():
        raise UserError(f"stream: expected a folder, found none at {found}")
    return found


def written(
    blocks: Iterable[np.ndarray], where: str, folder: str | Path | None, size: int | None = None
) -> RowFile:
    """Write arrays (n, ...) of one type, one after the other, to a file without a name.

    It is gone with the last object that reads it, or with the process, however that ends.

    Args:
        blocks: The arrays.
        where: What they are, for messages.
        folder: The folder of the file; None for that of temporary files.
        size: How many bytes there will be, if that is known.

    Raises:
        UserError: If there are no rows, or no room for them.
    """
    place = scratch_folder(folder)
    refusal = f"; {where} is kept there while it is streamed, and TMPDIR names another folder"
    if size is not None and size > (free := shutil.disk_usage(place).free):
        raise UserError(
            f"{place}: expected {size / 2**30:,.1f} GiB of room, got {free / 2**30:,.1f}{refusal}"
        )
    shape: tuple[int, ...] = ()
    dtype, count = np.dtype(np.uint8), 0
    with _nameless(place, refusal) as file:
        for block in blocks:
            shape, dtype, count = block.shape[1:], block.dtype, count + len(block)
            rest = np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
            with files.writing(place, refusal):
                while rest:
                    rest = rest[file.write(rest) :]
        if not count:
            raise UserError(f"{where}: expected at least one row, got none")
        handle = os.dup(file.fileno())
    return RowFile(handle, 0, (count, *shape), dtype, where, own=True)


@contextmanager
def _nameless(folder: Path, refusal: str) -> Iterator[Any]:
    """A new file that no folder lists."""
    with ExitStack() as stack:
        with files.writing(folder, refusal):
            # Without a buffer, in which something would be left that cannot be written.
            file = stack.enter_context(tempfile.TemporaryFile(dir=folder, buffering=0))
        yield file
