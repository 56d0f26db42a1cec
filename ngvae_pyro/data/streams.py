"""Data that stay on the disk: what becomes of an array is found in passes over the file.

An array of stored type, in a file of its own and in a layout that needs no change, is read where it
lies. Anything else is written once to a file without a name
(:func:`ngvae_pyro.data.rows.written`).
"""

import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from ngvae_pyro.data.forms import SHAPES, Form, Layout, counting, sequential
from ngvae_pyro.data.images import (
    checked_values,
    has_range,
    layout_of,
    number_array,
    stored_dtype,
    tensor_of,
)
from ngvae_pyro.data.rows import RowFile, Rows, block_rows, written
from ngvae_pyro.errors import UserError, expect
from ngvae_pyro.machine import FLOAT_BYTES

Folder = str | Path | None


def folder_of(stream: bool | str | Path) -> Folder:
    """The folder that an option ``stream`` names, if it names one."""
    expect("stream", stream, (bool, str, Path), "True, or the name of a folder")
    return None if isinstance(stream, bool) else stream


def _layout(shape: Sequence[int], where: str, layout: str | None, form: Form | None) -> Layout:
    """What an array of a shape is, as :func:`ngvae_pyro.data.sources.as_images` reads it."""
    if 0 in shape:
        raise UserError(f"{where}: expected a shape without a 0, got {tuple(shape)}")
    if layout == "volumes" or len(shape) == 5 or (form is not None and form.depth):
        raise UserError(
            f"{where}: volumes are not streamed, got shape {tuple(shape)}; numpy.array(x) is in "
            "memory"
        )
    if form is not None:
        if len(shape) == form.dimensions:
            return form.layout
        if form.standardised or len(shape) not in (3, 4):
            raise UserError(
                f"{where}: expected shape {SHAPES[form.layout]}, as what was fitted, "
                f"got {tuple(shape)}"
            )
    if layout is not None:
        return sequential(layout, shape, where)
    return "vectors" if len(shape) == 2 else layout_of(shape, where)


def _as_images(array: np.ndarray, layout: Layout) -> np.ndarray:
    """A view (N, C, H, W) of an array, whose values stay as they are."""
    if layout in ("vectors", "curves"):
        return array[:, None, None, :]
    if layout == "sequences":
        return array[:, :, None, :]
    if layout == "grey":
        return array[:, None]
    return np.moveaxis(array, 3, 1) if layout == "channels_last" else array


def _as_arrays(images: np.ndarray, layout: Layout) -> np.ndarray:
    """The inverse for vectors and sequences; images stay (N, C, H, W)."""
    if layout in ("vectors", "curves"):
        return images[:, 0, 0]
    return images[:, :, 0] if layout == "sequences" else images


# Where rows come from -------------------------------------------------------------------------


def stream_file(
    path: str | Path,
    offset: int,
    shape: Sequence[int],
    dtype: np.dtype,
    where: str,
    layout: str | None = None,
    folder: Folder = None,
    form: Form | None = None,
    **options: Any,
) -> tuple[Rows, Form]:
    """Stream an array that lies in a file, C-ordered, from ``offset`` on.

    Args:
        path: The file.
        offset: In bytes.
        shape: The array's shape.
        dtype: Its type.
        where: What it is, for messages.
        layout: As for :class:`ngvae_pyro.ImageData`.
        folder: Of the file that is written, if one has to be.
        form: As for :func:`stored_rows`.
        options: As for :func:`stored_rows`.
    """
    found = _layout(shape, where, layout, form)
    stored_dtype(dtype, where)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if (there := os.stat(path).st_size - offset) < size:
        raise UserError(f"{where}: expected {size} bytes of data for {tuple(shape)}, got {there}")
    turned = found == "channels_last"
    # Axes of length 1 alone are added to the others.
    axes = tuple(shape) if turned else _as_images(np.empty((0, *shape[1:])), found).shape
    handle = os.open(path, os.O_RDONLY)
    rows = RowFile(handle, offset, (shape[0], *axes[1:]), dtype, where, own=False)
    if turned:
        parts = (_as_images(part, found) for part in rows.parts())
        rows = written(parts, where, folder, size)
    return stored_rows(rows, found, where, folder=folder, form=form, **options)


def stream_array(
    array: Any,
    where: str,
    layout: str | None = None,
    folder: Folder = None,
    form: Form | None = None,
    **options: Any,
) -> tuple[Rows, Form]:
    """Stream an array, or anything else that has a shape, a type and slices, as those of HDF5.

    A map of numpy is read as the file that it is of. What somebody has changed in a map of mode
    ``c`` is nowhere in the file, so that one is written to another.

    Args:
        array: The array.
        where: What it is, for messages.
        layout: As for :class:`ngvae_pyro.ImageData`.
        folder: Of the file that is written, if one has to be.
        form: As for :func:`stored_rows`.
        options: As for :func:`stored_rows`.
    """
    if isinstance(array, np.memmap) and (place := _place(array)) is not None:
        return stream_file(*place, array.shape, array.dtype, where, layout, folder, form, **options)
    shape, dtype = tuple(array.shape), np.dtype(array.dtype)
    _layout(shape, where, layout, form)
    size = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    # Chunks of HDF5 are inflated as a whole.
    chunk = chunks[0] if (chunks := getattr(array, "chunks", None)) else 1
    rows = -(-block_rows(size) // chunk) * chunk
    blocks = (np.asarray(array[i : i + rows]) for i in range(0, shape[0], rows))
    return stream_blocks(blocks, shape, dtype, where, layout, folder, form, **options)


def _place(array: np.memmap) -> tuple[str, int] | None:
    """The file of a map, or of a part of one, and where the array begins in it."""
    root: Any = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    known = isinstance(root, np.memmap) and isinstance(root.base, mmap.mmap)
    if not known or root.mode == "c" or root.filename is None or not array.flags.c_contiguous:
        return None
    if root.mode != "r":
        # So that the file is not seen to change later.
        root.flush()
    start, first = (a.__array_interface__["data"][0] for a in (array, root))
    return str(root.filename), root.offset + start - first


def stream_blocks(
    blocks: Iterable[np.ndarray],
    shape: Sequence[int],
    dtype: np.dtype,
    where: str,
    layout: str | None = None,
    folder: Folder = None,
    form: Form | None = None,
    **options: Any,
) -> tuple[Rows, Form]:
    """Stream an array that comes in parts (n, ...), one after the other.

    Args:
        blocks: The parts.
        shape: The shape of the whole array.
        dtype: Its type.
        where: What it is, for messages.
        layout: As for :class:`ngvae_pyro.ImageData`.
        folder: Of the file that is written.
        form: As for :func:`stored_rows`.
        options: As for :func:`stored_rows`.
    """
    found = _layout(shape, where, layout, form)
    stored_dtype(dtype, where)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    rows = written((_as_images(block, found) for block in blocks), where, folder, size)
    return stored_rows(rows, found, where, folder=folder, form=form, **options)


def stream_items(
    items: Iterable[Any],
    where: str,
    layout: str | None = None,
    folder: Folder = None,
    count: int | None = None,
    form: Form | None = None,
    **options: Any,
) -> tuple[Rows, Form, list[float] | None]:
    """Stream images, or pairs of an image and a label, that come one by one.

    Args:
        items: The images or pairs, which are read once.
        where: What they are, for messages.
        layout: As for :class:`ngvae_pyro.ImageData`.
        folder: Of the file that is written.
        count: How many there are, if that is known.
        form: As for :func:`stored_rows`.
        options: As for :func:`stored_rows`.

    Returns:
        The images, their form, and the labels if each has one that is a number.
    """
    labels: list[float] = []
    first, source = _first(items, where, labels)
    shape, dtype = first.shape, first.dtype
    rows = block_rows(first.nbytes)
    layout_found = _layout((count or 1, *shape), where, layout, form)
    stored_dtype(dtype, where)

    def blocks() -> Iterator[np.ndarray]:
        block, filled = np.empty((rows, *shape), dtype), 0
        for image in source:
            block[filled] = image
            filled += 1
            if filled == rows:
                yield _as_images(block, layout_found)
                filled = 0
        if filled:
            yield _as_images(block[:filled], layout_found)

    size = None if count is None else count * first.nbytes
    found = written(blocks(), where, folder, size)
    stored, form = stored_rows(found, layout_found, where, folder=folder, form=form, **options)
    return stored, form, labels if len(labels) == len(stored) else None


def _first(
    items: Iterable[Any], where: str, labels: list[float]
) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """The first image, and all of them, whose labels are put into a list as they come."""

    def images() -> Iterator[np.ndarray]:
        for number, item in enumerate(items):
            paired = isinstance(item, (tuple, list)) and len(item) > 0
            if paired and len(item) > 1 and _is_number(item[1]):
                labels.append(float(item[1]))
            yield number_array(item[0] if paired else item, f"{where}[{number}]")

    def like(first: np.ndarray, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        yield first
        for number, image in enumerate(rest, 1):
            check_like(image, first.shape, first.dtype, f"{where}[{number}]")
            yield image

    found = images()
    first = next(found, None)
    if first is None:
        raise UserError(f"{where}: expected images, got none")
    return first, like(first, found)


def _is_number(label: Any) -> bool:
    return isinstance(label, Real) or getattr(label, "ndim", 1) == 0


def check_like(image: np.ndarray, shape: Sequence[int], dtype: np.dtype, where: str) -> None:
    """Refuse an image that has not the shape and type of the first.

    Raises:
        UserError: With both.
    """
    if (image.shape, image.dtype) != (tuple(shape), dtype):
        raise UserError(
            f"{where}: expected {dtype} of shape {tuple(shape)} as the first, "
            f"got {image.dtype} of shape {image.shape}"
        )


# What they become -----------------------------------------------------------------------------


def stored_rows(
    rows: RowFile,
    layout: Layout,
    where: str,
    *,
    folder: Folder = None,
    form: Form | None = None,
    counts: bool = False,
) -> tuple[Rows, Form]:
    """Rows in stored form, and their form, which is that of the same array in memory.

    Means and standard deviations of vectors of two or more columns are the same to the last bit,
    others but for rounding.

    Args:
        rows: The numbers as they were given, (N, C, H, W).
        layout: What they were given as.
        where: What they are, for messages.
        folder: Of the file that is written, if one has to be.
        form: How to read them, if that is known.
        counts: Whether they are counts, which are kept as they are, if no form is given.

    Raises:
        UserError: For a wrong type or range.
    """
    if form is None:
        form = _form_of(rows, layout, where, counts)
    elif not form.standardised:
        form = replace(form, layout=layout)
    floats = rows.dtype == np.float32 and rows.dtype.isnative
    if counts and form.raw and floats:
        return Rows(rows), form
    literal = rows.dtype == np.uint8 and (form.in_bytes or _has_shades(rows))
    if form.unit and literal:
        return Rows(rows), form
    if form.unit and floats:
        for part in rows.parts():
            checked_values(part, where, boolean=False, own=False)
        return Rows(rows), form
    own = form if form.standardised else replace(form, layout="channels_first")

    def stored() -> Iterator[np.ndarray]:
        for part in rows.parts():
            native = part.astype(part.dtype.newbyteorder("="), copy=False)
            yield tensor_of(_as_arrays(native, layout), own, where).numpy()

    bytes_of_one = 1 if form.unit and rows.dtype.itemsize == 1 else FLOAT_BYTES
    size = int(np.prod(rows.shape, dtype=np.int64)) * bytes_of_one
    return Rows(written(stored(), where, folder, size)), form


def _has_shades(rows: RowFile) -> bool:
    """Whether bytes are more than 0 and 1, which would be black and white."""
    return any(part.max() > 1 for part in rows.parts())


def _form_of(rows: RowFile, layout: Layout, where: str, counts: bool) -> Form:
    form = Form(layout)
    if counts:
        for part in rows.parts():
            form = counting(_as_arrays(part, layout), layout, where)
        return form
    if form.standardised:
        return _standardising(rows, layout, where)
    if has_range(rows.dtype) or rows.dtype.kind == "f":
        low, high = _extremes(rows, layout, (0, 1, 2, 3))
        if has_range(rows.dtype) or low < 0 or high > 1:
            low, span = _span(low.reshape(()), high.reshape(()), where)
            return Form(layout, loc=low, scale=np.where(span > 0, span, 1.0))
    return replace(form, in_bytes=rows.dtype == np.uint8 and _has_shades(rows))


def _extremes(
    rows: RowFile, layout: Layout, axis: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest values over some axes, of which only N is dropped."""
    low = high = None
    for part in rows.parts():
        array = _as_arrays(part, layout)
        least, most = array.min(axis, keepdims=True)[0], array.max(axis, keepdims=True)[0]
        # These propagate NaN, which is refused.
        low = least if low is None else np.minimum(low, least)
        high = most if high is None else np.maximum(high, most)
    return np.asarray(low), np.asarray(high)


def _span(low: np.ndarray, high: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """The lowest values and their distances to the highest, float64."""
    low = low.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        span = high.astype(np.float64) - low
    if not (np.isfinite(low).all() and np.isfinite(span).all()):
        raise UserError(f"{where}: expected finite numbers, got NaN or inf")
    return low, span


def _standardising(rows: RowFile, layout: Layout, where: str) -> Form:
    """As :func:`ngvae_pyro.data.forms.standardising`: a pass for the range, the mean, the variance.

    Of vectors the rows are added one after the other, as numpy does.
    """
    axis = {"vectors": (0,), "curves": (0, 1)}.get(layout, (0, 2))
    low, span = _span(*_extremes(rows, layout, axis), where)
    unit = np.where(span > 0, span, 1.0)
    shape = rows.shape
    count = shape[0] * (1 if layout == "vectors" else shape[3])

    def mean(of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        total: Any = None
        for part in rows.parts():
            scaled = of((_as_arrays(part, layout).astype(np.float64) - low) / unit)
            if layout != "vectors":
                found = scaled.sum(axis, keepdims=True)[0]
                total = found if total is None else total + found
            else:
                if total is not None:
                    scaled = np.concatenate([total[None], scaled])
                total = scaled.sum(0)
        return np.asarray(total / count)

    centre = mean(lambda scaled: scaled)
    deviation = np.sqrt(mean(lambda scaled: np.square(scaled - centre)))
    scale = np.where(span > 0, np.maximum(span * deviation, np.finfo(np.float64).tiny), 1.0)
    return Form(layout, loc=low + span * centre, scale=scale)
