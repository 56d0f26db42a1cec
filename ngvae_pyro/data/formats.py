"""Image files and torchvision's data sets: each format is read in parts, and checked."""

import gzip
import io
import math
import os
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ngvae_pyro import machine
from ngvae_pyro.data.forms import Form, check_observed, declared, depth_of
from ngvae_pyro.data.images import (
    ImageData,
    as_classes,
    channels_axis,
    checked_values,
    factor_tensor,
    has_range,
    image_tensor,
    layout_of,
    of_another_range,
    of_covariate,
    parts,
    split_covariate,
    stored_dtype,
    tensor_of,
)
from ngvae_pyro.data.rows import BLOCK, Rows, block_rows
from ngvae_pyro.data.streams import Folder, folder_of, stream_blocks, stream_file, stream_items
from ngvae_pyro.errors import Notice, UserError, nearest
from ngvae_pyro.extras import needed

_Found = TypeVar("_Found")
_Reader = Callable[..., tuple[Tensor | Rows, Form]]


def named_path(name_or_path: object) -> str | Path:
    """Return a name or a path unchanged.

    Raises:
        UserError: If it is neither a ``str`` nor a ``Path``.
    """
    if not isinstance(name_or_path, (str, Path)):
        raise UserError(
            "expected data by name or path, as str or Path, got "
            f"{type(name_or_path).__name__}; ngvae_pyro.ImageData(name, images) takes arrays and "
            "tensors"
        )
    return name_or_path


PICTURES = (".png", ".jpg", ".jpeg")

# Pillow's modes with one byte for grey, or for each colour; palettes consist of RGB colours.
_GREY = ("1", "L", "LA")
_COLOURS = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")
_KINDS = {
    "biuf": "bool, integer or float",
    "biufU": "bool, integer, float or unicode (U)",
    "U": "unicode (U)",
}

# Keys of .npz and HDF5 files: of the images, of their factors (dSprites has the first two), and of
# the factors' names.
IMAGES = ("imgs", "x", "images")
FACTORS = ("latents_values", "latents_classes", "factors")
NAMES = ("latents_names", "factor_names")

# Torchvision's class and folder of each data set.
TORCHVISION = {
    "mnist": ("MNIST", "MNIST/raw"),
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
}


def _blocks(memory: np.ndarray, itemsize: int) -> Iterator[np.ndarray]:
    """Views of an array in index order, each about as large as one read."""
    row = memory[:1].size * itemsize
    if memory.ndim > 1 and row > BLOCK:
        for part in memory:
            yield from _blocks(part, itemsize)
    else:
        rows = max(1, BLOCK // max(1, row))
        for start in range(0, len(memory), rows):
            yield memory[start : start + rows]


def _read_into(
    room: np.ndarray, file: IO[bytes] | gzip.GzipFile, dtype: np.dtype, where: str
) -> None:
    """Read exactly the bytes of one C-ordered array, which must end with the file.

    ``room``, which receives them, has the array's shape, but may have another layout and type.
    """
    claim = f"{where}: expected {room.size * dtype.itemsize} bytes of data for {room.shape}"
    filled = 0
    for block in _blocks(room, dtype.itemsize):
        content = file.read(block.size * dtype.itemsize)
        filled += len(content)
        if len(content) < block.size * dtype.itemsize:
            raise UserError(f"{claim}, got {filled}")
        with np.errstate(over="ignore", invalid="ignore"):  # infinity is refused later
            block[...] = np.frombuffer(content, dtype).reshape(block.shape)
    # Reading past the end also makes zip and gzip verify their checksum.
    if file.read(1):
        raise UserError(f"{claim}, got more")


# What to do with data that do not fit into memory.
STREAM = "; stream=True, or data.stream = true in a run, leaves it on the disk"


def make_room(shape: tuple[int, ...], dtype: np.dtype, where: str, hint: str = "") -> np.ndarray:
    """Allocate an array, if there is memory for it and for what is made from it.

    Args:
        shape: Shape of the array.
        dtype: Type of its elements.
        where: What it is read from, for the message.
        hint: What to do if it does not fit into memory.

    Raises:
        UserError: If it does not fit into memory.
    """
    size = math.prod(shape) * dtype.itemsize
    machine.check(f"{where}: shape {shape}", machine.DATA_PEAK * size, hint=hint)
    try:
        return np.empty(shape, dtype)
    except (MemoryError, ValueError) as error:
        # ValueError: more elements than an index can count, e.g. (0, 2**62, 2**62).
        raise UserError(f"{where}: no room for the claimed shape {shape}: {error}") from error


def _read_array(
    file: IO[bytes] | gzip.GzipFile,
    shape: tuple[int, ...],
    dtype: np.dtype,
    where: str,
    fortran: bool = False,
) -> np.ndarray:
    """Read one array, in the machine's own byte order, the only one that torch supports."""
    array = make_room(shape, dtype.newbyteorder("="), where)
    _read_into(np.atleast_1d(array.T if fortran else array), file, dtype, where)
    return array


def _what(shape: tuple[int, ...], where: str, layout: str | None) -> str:
    """What an array holds, in a word."""
    if (special := declared(layout, shape, where)) is not None:
        return "volumes" if depth_of(special, shape) else "sequences"
    return "vectors" if len(shape) == 2 else "images"


def check_count(shape: tuple[int, ...], where: str, layout: str | None) -> None:
    """Refuse a file of fewer than two images, vectors or sequences.

    Args:
        shape: Shape of its array.
        where: What it is, for the message.
        layout: As for :class:`ngvae_pyro.ImageData`.

    Raises:
        UserError: With the shape.
    """
    what = _what(shape, where, layout)
    if not shape or shape[0] < 2:
        raise UserError(f"{where}: expected at least 2 {what}, got shape {shape}")


def read_stored(
    shape: tuple[int, ...],
    dtype: np.dtype,
    where: str,
    fill: Callable[[np.ndarray], None],
    layout: str | None = None,
    hint: str = STREAM,
    missing: bool = False,
) -> tuple[Tensor, Form]:
    """Read the images, vectors or sequences of a file in stored form.

    Images of bytes, of bool and of floating point are read without making a second copy.

    Args:
        shape: Shape of the file's array.
        dtype: Its type.
        where: What it is, for the message.
        fill: Writes the file's numbers into an array of that shape; it may be called twice.
        layout: As for :class:`ngvae_pyro.ImageData`.
        hint: What to do with what does not fit into memory.
        missing: Likewise.

    Raises:
        UserError: For a wrong shape, type or range, and for what does not fit into memory.
    """
    what = _what(shape, where, layout)
    axis = channels_axis(shape, where) if what == "images" else None
    stored = stored_dtype(dtype, where)
    check_count(shape, where, layout)
    count, *sizes = shape

    def converted() -> tuple[Tensor, Form]:
        """What becomes float32 once its range is known."""
        size = math.prod(shape) * (dtype.itemsize + machine.FLOAT_BYTES)
        machine.check(f"{where}: shape {shape}", machine.DATA_PEAK * size, hint=hint)
        array = make_room(shape, dtype.newbyteorder("="), where, hint)
        fill(array)
        return image_tensor(array, where, layout=layout, missing=missing)

    if what != "images" or has_range(dtype):
        return converted()
    channels = 1 if axis is None else sizes.pop(axis - 1)
    images = make_room((count, channels, *sizes), stored, where, hint)
    # The same memory, with the axes in the order of the file.
    fill(images[:, 0] if axis is None else np.moveaxis(images, 1, axis))
    if stored != np.uint8 and of_another_range(images):
        # Mapped to [0, 1] from all digits of the file, as an array in memory.
        del images
        return converted()
    # Images of only 0 and 1 are black and white, not bytes in 0..255.
    shades = dtype == np.uint8 and any(part.max() > 1 for part in parts(images))
    if missing:
        check_observed(images, where)
    form = Form(layout_of(shape, where), in_bytes=shades, missing=missing)
    found = checked_values(images, where, dtype.kind == "b", own=True, missing=missing)
    return torch.from_numpy(found), form


def _read_any(
    file: IO[bytes] | gzip.GzipFile,
    shape: tuple[int, ...],
    dtype: np.dtype,
    where: str,
    fortran: bool = False,
    layout: str | None = None,
    missing: bool = False,
) -> tuple[Tensor, Form]:
    """Read the images, vectors or sequences of a file in stored form."""
    start = file.tell()

    def fill(room: np.ndarray) -> None:
        held = np.dtype(np.uint8) if dtype.kind == "b" else dtype
        file.seek(start)
        _read_into(room.T if fortran else room, file, held, where)

    return read_stored(shape, dtype, where, fill, layout, missing=missing)


def _stream_any(
    file: IO[bytes] | gzip.GzipFile,
    shape: tuple[int, ...],
    dtype: np.dtype,
    where: str,
    fortran: bool = False,
    layout: str | None = None,
    folder: Folder = None,
) -> tuple[Rows, Form]:
    """Stream the images, vectors or sequences of a file: a plain one is read where it lies."""
    check_count(shape, where, layout)
    if fortran and len(shape) > 1:
        raise UserError(
            f"{where}: stream: expected an array in C order, got one in Fortran order, whose rows "
            "lie apart; numpy.ascontiguousarray changes it"
        )
    if isinstance(file, io.BufferedReader):
        return stream_file(file.name, file.tell(), shape, dtype, where, layout, folder)
    blocks = _read_parts(file, shape, dtype, where)
    return stream_blocks(blocks, shape, dtype, where, layout, folder)


def _reader(layout: str | None, stream: bool | str | Path, missing: bool) -> _Reader:
    """What reads the images of a file in stored form, into memory or not."""
    if stream:
        return partial(_stream_any, layout=layout, folder=folder_of(stream))
    return partial(_read_any, layout=layout, missing=missing)


def _read_parts(
    file: IO[bytes] | gzip.GzipFile, shape: tuple[int, ...], dtype: np.dtype, where: str
) -> Iterator[np.ndarray]:
    """Read the rows of one C-ordered array, which must end with the file, a few at a time."""
    size = math.prod(shape[1:]) * dtype.itemsize
    rows = block_rows(size)
    claim = f"{where}: expected {shape[0] * size} bytes of data for {shape}"
    for start in range(0, shape[0], rows):
        count = min(rows, shape[0] - start)
        content = file.read(count * size)
        if len(content) < count * size:
            raise UserError(f"{claim}, got {start * size + len(content)}")
        yield np.frombuffer(content, dtype).reshape(count, *shape[1:])
    if file.read(1):
        raise UserError(f"{claim}, got more")


def check_file(path: Path, kind: str) -> None:
    """Refuse a path that leads to no file.

    Args:
        path: The path.
        kind: Which file is expected, for the message.

    Raises:
        UserError: If it is a directory or nothing.
    """
    if os.path.isdir(path):
        raise UserError(f"{path}: expected {kind}, got a directory")
    if not os.path.isfile(path):
        raise UserError(f"{path}: expected {kind}, found no such file")


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Say in one line what another package finds wrong with a file.

    Args:
        path: The file.
        kind: What it should be, for the message.
    """
    try:
        yield
    except UserError:
        raise
    except (OSError, LookupError, RuntimeError, TypeError, ValueError, OverflowError) as error:
        # LookupError: damaged links of HDF5; TypeError: types that numpy does not have.
        raise UserError(f"{path}: cannot read the {kind}: {error}") from error


def load_npz(
    path: str | Path,
    layout: str | None = None,
    covariates: Sequence[str] = (),
    stream: bool | str | Path = False,
    missing: bool = False,
) -> ImageData:
    """Read an ``.npz`` file, as those of dSprites and MPI3D.

    - ``imgs``, ``x`` or ``images``: an array that :class:`ngvae_pyro.ImageData` accepts, of at
      least 2 images or vectors.
    - ``latents_values`` (or, without it, ``latents_classes``) or ``factors``: optional, (N, F) or
      (N,). Text becomes classes: numbers from 0 in the alphabetical order of the column's texts.
    - ``latents_names`` or ``factor_names``: optional, (F,) unicode strings; default factor_0,
      factor_1, ...

    Other keys are never read; a :class:`ngvae_pyro.errors.Notice` names them, except for the
    pickled ``metadata`` of dSprites. Nothing is ever unpickled, and a member is not inflated beyond
    the shape in its own header.

    Args:
        path: The file.
        layout: As for :class:`ngvae_pyro.ImageData`.
        covariates: Names of factors, or further keys of arrays (N,), that are covariates; C(name)
            if their numbers are classes.
        stream: As for :func:`ngvae_pyro.load_data`.
        missing: As for :func:`ngvae_pyro.load_data`.

    Raises:
        UserError: For anything that does not fit this description, or does not fit into memory.
    """
    path = Path(named_path(path))
    check_file(path, "an .npz file")
    try:
        with zipfile.ZipFile(path) as archive:
            return _parse_npz(path, archive, _reader(layout, stream, missing), covariates)
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError) as error:
        raise UserError(f"{path}: expected an .npz file, got a broken zip: {error}") from error
    except (OSError, RuntimeError, OverflowError, UnicodeDecodeError) as error:
        # RuntimeError: encrypted members, or features that zipfile does not support;
        # OverflowError: offsets beyond any file; UnicodeDecodeError: members' names.
        raise UserError(f"{path}: cannot read the .npz file: {error}") from error


def _parse_npz(
    path: Path, archive: zipfile.ZipFile, read: _Reader, covariates: Sequence[str]
) -> ImageData:
    keys = [name.removesuffix(".npy") for name in archive.namelist()]
    own = covariate_keys(keys, covariates)
    key, source, named = chosen_keys(path, [key for key in keys if key not in own], FACTORS)
    images, form = _read_npy(path, archive, key, "biuf", read)
    given = {key: _read_npy(path, archive, key, "biufU", _read_array) for key in own}
    for name, values in given.items():
        if values.dtype.kind == "U":
            _check_unicode(values, f"{path}: {name}")
    factors = None if source is None else _read_npy(path, archive, source, "biufU", _read_array)
    names = None if named is None else _read_npy(path, archive, named, "U", _read_array)
    return with_factors(path, images, form, (source, factors), (named, names), given, covariates)


def covariate_keys(keys: Sequence[str], covariates: Sequence[str]) -> list[str]:
    """The keys of a file that are covariates themselves; others are names of its factors."""
    names = [split_covariate(declared, keys)[0] for declared in covariates]
    return [name for name in names if name in keys]


def chosen_keys(
    path: Path, keys: Sequence[str], factors: Sequence[str]
) -> tuple[str, str | None, str | None]:
    """The keys of a file that hold its images, its factors and their names.

    Args:
        path: The file.
        keys: All that it has.
        factors: Those that may hold factors.

    Raises:
        UserError: Unless one key holds the images, and at most one the factors and one the names.
            Of dSprites' values and classes the values are taken.
    """
    found = [[key for key in group if key in keys] for group in (IMAGES, factors, NAMES)]
    images, sources, names = found
    if len(images) != 1:
        raise UserError(
            f"{path}: expected exactly one of the keys {', '.join(IMAGES)}, "
            f"got {', '.join(images or keys) or 'no key'}"
        )
    if set(sources) == set(FACTORS[:2]):
        sources = sources[:1]
    for several in (sources, names):
        if len(several) > 1:
            raise UserError(f"{path}: expected one of the keys {', '.join(several)}, got both")
    used = {*images, *sources, *(names if sources else ())}
    # The other keys of dSprites hold nothing that would be missed.
    if unused := [key for key in keys if key not in {*used, "metadata", "latents_classes"}]:
        warnings.warn(
            f"{path}: not used: {', '.join(unused[:10])}; factors are read from "
            f"{' or '.join(factors)}, and their names from {' or '.join(NAMES)}",
            Notice,
            stacklevel=2,
        )
    source = sources[0] if sources else None
    return images[0], source, names[0] if sources and names else None


def with_factors(
    path: Path,
    images: Tensor | Rows,
    form: Form,
    factors: tuple[str | None, np.ndarray | None],
    names: tuple[str | None, np.ndarray | None],
    given: Mapping[str, np.ndarray],
    covariates: Sequence[str],
) -> ImageData:
    """Images with the factors of their file; each array comes with its key.

    Args:
        path: The file.
        images: As stored.
        form: Their form.
        factors: The array of factors, if there is one.
        names: The array of their names, if there is one.
        given: Arrays of the file that are covariates.
        covariates: Those that were declared.

    Raises:
        UserError: For factors, names or covariates that do not fit the images or one another.
    """
    known, left = dict(given), ImageData.stored(path.stem, images, form=form)
    if factors[1] is not None:
        left, values = _factors(path, left, (factors[0], factors[1]), names)
        known |= dict(zip(left.factor_names, values.T, strict=True))
    found = {}
    for text in covariates:
        name, classes = of_covariate(text, known, str(path))
        found[name] = as_classes(known[name]) if classes else known[name]
    return left.moved(found)


def _factors(
    path: Path,
    images: ImageData,
    factors: tuple[str | None, np.ndarray],
    names: tuple[str | None, np.ndarray | None],
) -> tuple[ImageData, np.ndarray]:
    """The images with the factors (N, F) of their file, and these as the file has them."""
    source, values = factors
    where = f"{path}: {source}"
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or values.shape[1] == 0 or len(values) != len(images):
        raise UserError(
            f"{where}: expected shape ({len(images)}, F) for {len(images)} images, "
            f"got {values.shape}"
        )
    if values.dtype.kind == "U":
        _check_unicode(values, where)
    tensor = factor_tensor(values, where)
    named, array = names
    if array is None:
        shown = tuple(f"factor_{i}" for i in range(values.shape[1]))
        return ImageData.stored(path.stem, images.images, tensor, shown, images.form), values
    _check_unicode(array, f"{path}: {named}")
    shown = tuple(array.reshape(-1).tolist())
    good = all(name and name.isprintable() for name in shown) and len(set(shown)) == len(shown)
    if array.shape != (values.shape[1],) or not good:
        raise UserError(
            f"{path}: {named}: expected {values.shape[1]} different printable names, "
            f"got shape {array.shape}: {', '.join(map(repr, shown))}"
        )
    return ImageData.stored(path.stem, images.images, tensor, shown, images.form), values


def _check_unicode(text: np.ndarray, where: str) -> None:
    """Refuse invalid code points, which numpy never checks, and at which Python may fail."""
    try:
        text.astype(text.dtype.newbyteorder("<")).tobytes().decode("utf-32-le")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: expected unicode, got {error}") from error


def _read_npy(
    path: Path, archive: zipfile.ZipFile, key: str, kinds: str, read: Callable[..., _Found]
) -> _Found:
    """Read one array of an ``.npz`` if its dtype's kind is in ``kinds``."""
    where = f"{path}: {key}"
    name = f"{key}.npy" if f"{key}.npy" in archive.namelist() else key
    if archive.getinfo(name).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(f"{where}: expected the zip's stored or deflate method, got another one")
    with archive.open(name) as file:
        return _read_plain(file, archive.getinfo(name).file_size, where, kinds, read)


def _read_plain(
    file: IO[bytes], file_size: int, where: str, kinds: str, read: Callable[..., _Found]
) -> _Found:
    """Read one array in numpy's format if its dtype's kind is in ``kinds``.

    Numpy's own reader evaluates the header as Python and may raise almost anything on a broken one;
    three patterns suffice for plain numeric and string headers.
    """
    start = file.read(8)
    width = {b"\x93NUMPY\x01\x00": 2, b"\x93NUMPY\x02\x00": 4}.get(start)
    if width is None:
        raise UserError(f"{where}: expected a numpy array (.npy 1.0 or 2.0), got {start!r}")
    length = int.from_bytes(file.read(width), "little")
    header = file.read(min(length, 2**16)).decode("latin-1")
    descr = re.search(r"""['"]descr['"]\s*:\s*['"]([<>|=]?[a-zA-Z][0-9]{0,6})['"]""", header)
    order = re.search(r"""['"]fortran_order['"]\s*:\s*(True|False)""", header)
    # The L was written by Python 2, as in dSprites.
    dims = re.search(r"""['"]shape['"]\s*:\s*\(((?:[0-9]{1,18}L?,? ?){0,5})\)""", header)
    if descr is None or order is None or dims is None:
        raise UserError(f"{where}: expected the header of a plain array, got {header[:80]!r}")
    # Checked by its letter before numpy sees it, so that an object array is refused unread.
    if descr[1].lstrip("<>|=")[0] not in kinds:
        raise UserError(f"{where}: expected dtype {_KINDS[kinds]}, got {_dtype_name(descr[1])}")
    try:
        dtype = np.dtype(descr[1])
    except TypeError as error:
        raise UserError(f"{where}: expected a numpy dtype, got {descr[1]!r}") from error
    shape = tuple(int(size) for size in re.findall("[0-9]+", dims[1]))
    # Checked before anything is inflated; a wrong size in the zip itself is noticed while reading.
    size = math.prod(shape) * dtype.itemsize
    there = file_size - len(start) - width - length
    if size != there:
        raise UserError(f"{where}: expected {size} bytes of data for {shape}, got {there}")
    return read(file, shape, dtype, where, order[1] == "True")


def load_npy(
    path: str | Path,
    layout: str | None = None,
    stream: bool | str | Path = False,
    missing: bool = False,
) -> ImageData:
    """Read an ``.npy`` file of at least 2 images or vectors.

    Nothing is ever unpickled.

    Args:
        path: The file; its array is one that :class:`ngvae_pyro.ImageData` accepts.
        layout: As for :class:`ngvae_pyro.ImageData`.
        stream: As for :func:`ngvae_pyro.load_data`.
        missing: As for :func:`ngvae_pyro.load_data`.

    Raises:
        UserError: For anything that does not fit this description.
    """
    path = Path(named_path(path))
    check_file(path, "an .npy file")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            read = _reader(layout, stream, missing)
            images, form = _read_plain(file, size, str(path), "biuf", read)
    except OSError as error:
        raise UserError(f"{path}: cannot read the .npy file: {error}") from error
    return ImageData.stored(path.stem, images, form=form)


def load_pictures(folder: str | Path, stream: bool | str | Path = False) -> ImageData:
    """Read the PNG and JPEG files of a folder in the order of their names; others are skipped.

    All must have one size. They are read as grey if all of them are grey, and otherwise as RGB;
    transparency is ignored.

    Args:
        folder: The folder.
        stream: As for :func:`ngvae_pyro.load_data`.

    Raises:
        UserError: For fewer than 2 pictures, for different sizes, for more than 8 bits, and for
            files that cannot be read.
    """
    folder = Path(named_path(folder))
    try:
        names = sorted(name for name in os.listdir(folder) if name.lower().endswith(PICTURES))
    except OSError as error:
        raise UserError(f"{folder}: cannot read the folder: {error.strerror}") from error
    paths = [folder / name for name in names]
    if len(paths) < 2:
        raise UserError(
            f"{folder}: expected at least 2 pictures ({', '.join(PICTURES)}), got {len(paths)}"
        )
    # This reads only the headers.
    kinds = [_opened(path, lambda picture: (picture.size, picture.mode)) for path in paths]
    (width, height), _ = kinds[0]
    for path, ((across, down), mode) in zip(paths, kinds, strict=True):
        if (across, down) != (width, height):
            raise UserError(
                f"{path}: expected {width}x{height} pixels as '{names[0]}', got {across}x{down}"
            )
        if mode not in _GREY + _COLOURS:
            raise UserError(f"{path}: expected 8 bits of grey or of each colour, got mode {mode!r}")
    grey = all(mode in _GREY for _, mode in kinds)
    mode, shape = ("L", (height, width)) if grey else ("RGB", (height, width, 3))
    found = (_opened(path, lambda p: np.asarray(p.convert(mode))) for path in paths)
    form = Form("grey" if grey else "channels_last", in_bytes=True)
    name = folder.name or str(folder)
    if stream:
        rows, _, _ = stream_items(
            found, str(folder), folder=folder_of(stream), count=len(paths), form=form
        )
        return ImageData.stored(name, rows, form=form)
    images = make_room((len(paths), *shape), np.dtype(np.uint8), str(folder), STREAM)
    for room in images:
        room[...] = next(found)
    tensor = tensor_of(images, form, str(folder))
    return ImageData.stored(name, tensor, form=form)


def _opened(path: Path, look: Callable[[Any], _Found]) -> _Found:
    """Open a picture and return what ``look`` makes of it."""
    with needed("images"):
        from PIL import Image

    try:
        with Image.open(path, formats=("PNG", "JPEG")) as picture:
            return look(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow's errors for damaged files, and for those with billions of pixels.
        raise UserError(f"{path}: cannot read the picture: {error}") from error


def _dtype_name(descr: str) -> str:
    return "object (pickled)" if "O" in descr else repr(descr)


def load_idx(path: str | Path, stream: bool | str | Path = False) -> ImageData:
    """Read the images of one IDX file (MNIST's format), gzipped or not.

    If a file of labels lies beside it under the usual name (``t10k-labels-idx1-ubyte`` for
    ``t10k-images-idx3-ubyte``), the labels become the factor ``label``.

    Args:
        path: The file.
        stream: As for :func:`ngvae_pyro.load_data`.

    Raises:
        UserError: For a wrong magic number, truncation, broken gzip, and labels of another length.
    """
    path = Path(named_path(path))
    images, form = _read_idx(path, 3, _reader(None, stream, missing=False))
    stem = path.name.removesuffix(".gz")
    labels_stem = re.sub(r"images([-.])idx3", r"labels\1idx1", stem)
    labels_path = _plain_or_gz(path.with_name(labels_stem))
    if labels_stem == stem or labels_path is None:
        return ImageData.stored(stem, images, form=form)
    labels = _read_idx(labels_path, 1, _read_array)
    if len(labels) != len(images):
        raise UserError(
            f"{labels_path}: expected {len(images)} labels for {path.name}, got {len(labels)}"
        )
    factors = torch.from_numpy(labels.astype(np.float32))[:, None]
    return ImageData.stored(stem, images, factors, ("label",), form)


def _plain_or_gz(path: Path) -> Path | None:
    """The file or else its gzipped version, if either exists."""
    candidates = (path, path.with_name(f"{path.name}.gz"))
    return next((candidate for candidate in candidates if candidate.exists()), None)


def _read_idx(path: Path, dims: int, read: Callable[..., _Found]) -> _Found:
    """Read the unsigned bytes of one IDX file with ``dims`` dimensions."""
    check_file(path, "an IDX file")
    try:
        with path.open("rb") as start:
            zipped = start.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            # http://yann.lecun.com/exdb/mnist: 0, 0, 8 for unsigned bytes, dimensions, sizes.
            header = file.read(4 + 4 * dims)
            magic = bytes([0, 0, 8, dims])
            if header[:4] != magic or len(header) < 4 + 4 * dims:
                raise UserError(
                    f"{path}: expected an IDX header 0x{magic.hex()} and {dims} sizes, "
                    f"got 0x{header.hex()}"
                )
            shape = struct.unpack(f">{dims}I", header[4:])
            return read(file, shape, np.dtype(np.uint8), str(path))
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot read the IDX file: {error}") from error


def torchvision_data(name: str, root: str | Path = "data", download: bool = False) -> ImageData:
    """The training set of ``mnist``, ``fashion_mnist`` or ``cifar10``, with the factor ``label``.

    The files of ``cifar10`` are the only pickles that are ever read: torchvision loads them only
    if the MD5 of each is that of the published file.

    Args:
        name: One of the three.
        root: Torchvision's folder; the files lie where torchvision puts them below it.
        download: Whether to fetch missing files; otherwise nothing is ever fetched.

    Raises:
        UserError: For an unknown name, missing or broken files, and a failed download.
    """
    if name not in TORCHVISION:
        raise UserError(
            f"unknown torchvision data {name!r}; expected one of {', '.join(TORCHVISION)}"
            + nearest(name, TORCHVISION)
        )
    folder = Path(root, TORCHVISION[name][1])
    if not download and not folder.is_dir():
        raise UserError(f"{name}: found no data in {folder}; --download fetches it")

    if name == "cifar10":
        source = _from_torchvision(name, root, download)
        labels = torch.tensor(source.targets, dtype=torch.float32)
        return ImageData(name, source.data, labels, ("label",))

    if download:
        _from_torchvision(name, root, download)
    # Read here, because torchvision's reader fails an assertion on a broken file.
    path = _plain_or_gz(folder / "train-images-idx3-ubyte")
    if path is None:
        raise UserError(
            f"{name}: found no train-images-idx3-ubyte in {folder}; --download fetches it"
        )
    data = load_idx(path)
    return ImageData.stored(name, data.images, data.factors, data.factor_names, data.form)


def _from_torchvision(name: str, root: str | Path, download: bool) -> Any:
    """The training set as torchvision's class, with the attributes ``data`` and ``targets``."""
    with needed("images"):
        from torchvision import datasets
    class_name, folder = TORCHVISION[name]
    try:
        return getattr(datasets, class_name)(str(root), train=True, download=download)
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = "" if download else "; --download fetches it"
        raise UserError(
            f"{name}: cannot load it from {Path(root, folder)}: {reason}{hint}"
        ) from error
