"""Images and their known factors: rendered sprites, files, torchvision sets.

Every loader returns one :class:`ngvae_pyro.ImageData`; :func:`load` picks the loader by a name or a
path. Any fault in a file gives a one-line :class:`ngvae_pyro.UserError`: file, key, expected, got.
"""

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ngvae_pyro.data.formats import (
    TORCHVISION,
    load_idx,
    load_npy,
    load_npz,
    load_pictures,
    make_room,
    named_path,
    torchvision_data,
)
from ngvae_pyro.data.forms import Form
from ngvae_pyro.data.images import (
    ImageData,
    factor_tensor,
    generator,
    image_tensor,
    layout_of,
    number_array,
    tensor_of,
)
from ngvae_pyro.data.rendering import sprites
from ngvae_pyro.data.tables import TABLES, Columns, columns_of, is_table, load_table
from ngvae_pyro.errors import UserError, described, nearest

# The types that `as_images` accepts, without and with tensors.
NoTensor = ImageData | np.ndarray | Dataset[Any] | DataLoader[Any] | str | Path
Images = NoTensor | Tensor

# The ends of the names of files, but for those of IDX, and of those that may hold sequences.
ARRAYS = (".npz", ".npy", ".h5", ".hdf5", *TABLES)
FILES = (*ARRAYS, ".h5ad")


def _named_range(word: str) -> tuple[str, tuple[float, float]]:
    """Parse ``background=0.4..0.8`` into a name and its range."""
    name, _, text = word.partition("=")
    match = re.fullmatch(r"\s*([0-9.]+?)\.\.([0-9.]+)\s*", text)
    try:
        low, high = map(float, match.groups()) if match else (math.nan, math.nan)
    except ValueError:
        low = high = math.nan
    if math.isnan(low):
        raise UserError(f"sprites: {word}: expected factor=low..high, e.g. background=0.4..0.8")
    return name.strip(), (low, high)


def load(
    name_or_path: str | Path,
    *,
    seed: int = 0,
    n: int | None = None,
    root: str | Path | None = None,
    download: bool = False,
    vary: Iterable[str] | None = None,
    hold: Mapping[str, float | str] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    resolution: int | None = None,
    edge: float | None = None,
    device: torch.device | str | None = None,
    factors: Sequence[str] = (),
    layout: str | None = None,
    missing: bool = False,
) -> ImageData:
    """Load the data that a name or a path stands for, as ``--data`` does on the command line.

    Args:
        name_or_path: ``sprites``; ``sprites:x,y,size``, where only these factors vary;
            ``sprites:background=0.4..0.8``, where this factor varies in its own range and the
            others as usual, or ``sprites:x,background=0.4..0.8``, where the others do not vary;
            ``mnist``, ``fashion_mnist`` or ``cifar10``; a file in ``.npz``, ``.npy``, ``.h5``,
            ``.hdf5``, ``.h5ad``, ``.csv``, ``.tsv`` or ``.parquet``; an IDX image file, whose
            name ends in idx3-ubyte or idx3-ubyte.gz; or a folder of PNG or JPEG pictures.
        seed: Draws the sprites; for other sources it chooses the ``n`` images.
        n: Number of images; default 22,000 sprites, or all that the source holds.
        root: Folder of the torchvision sets; default ``data``.
        download: Whether to download missing torchvision sets, see
            :func:`ngvae_pyro.data.torchvision_data`.
        vary: For sprites only, see :func:`ngvae_pyro.sprites`.
        hold: For sprites only.
        ranges: For sprites only.
        resolution: For sprites only.
        edge: For sprites only.
        device: Where sprites are rendered; it has no other effect. All images are on the CPU.
        factors: For tables and ``.h5ad`` files only: the columns (of ``obs``) that are factors, and
            no part of the vectors.
        layout: For arrays and tables only: ``sequences`` if they are (N, C, L) or, of one channel,
            (N, L), and for arrays ``volumes`` if they are (N, D, H, W), as for
            :class:`ngvae_pyro.ImageData`.
        missing: For arrays, tables and ``.h5ad`` files only: whether NaN, in a table an empty cell
            among numbers, stands for a missing value, as for :class:`ngvae_pyro.ImageData`.

    Raises:
        UserError: For unknown names and for options that the source does not have.

    >>> load("sprites:x,y", n=10)
    ImageData('sprites:x,y', 10 images of 3x32x32, x, y, size, red, green, blue, background)
    """
    name = str(named_path(name_or_path))
    given: dict[str, Any] = {"vary": vary, "hold": hold, "ranges": ranges}
    given |= {"resolution": resolution, "edge": edge}
    options = {key: value for key, value in given.items() if value is not None}
    head, colon, listed = name.partition(":")
    if factors and not name.endswith(tables := (*TABLES, ".h5ad")):
        raise UserError(f"{name}: factors: only tables ({', '.join(tables)}) have this option")
    if layout is not None and not name.endswith(ARRAYS):
        raise UserError(f"{name}: layout: only arrays ({', '.join(ARRAYS)}) have this option")
    if missing and not name.endswith(FILES):
        raise UserError(f"{name}: missing: only arrays ({', '.join(FILES)}) have this option")
    if head == "sprites":
        if colon:
            if twice := {"vary", "ranges"} & set(options):
                raise UserError(
                    f"{name}: the factors to vary are named twice, also by {min(twice)}"
                )
            words = [word.strip() for word in listed.split(",") if word.strip()]
            ranges = dict(_named_range(word) for word in words if "=" in word)
            if len(ranges) < len(words) or not words:
                options["vary"] = [word.partition("=")[0].strip() for word in words]
            options["ranges"] = ranges
        if n is not None:
            options["n"] = n
        if device is not None:
            options["device"] = device
        return sprites(seed=seed, **options)

    if options:
        raise UserError(f"{name}: {', '.join(options)}: only sprites have these options")
    if name in TORCHVISION:
        data = torchvision_data(name, "data" if root is None else root, download)
    elif name.endswith(".npz"):
        data = load_npz(name, layout, missing)
    elif name.endswith(("idx3-ubyte", "idx3-ubyte.gz")):
        data = load_idx(name)
    elif name.endswith(".npy"):
        data = load_npy(name, layout, missing)
    elif name.endswith((".h5", ".hdf5")):
        from ngvae_pyro.data.hdf5 import load_hdf5

        data = load_hdf5(name, layout, missing)
    elif name.endswith(TABLES):
        data = load_table(name, factors, layout, missing)
    elif name.endswith(".h5ad"):
        from ngvae_pyro.data.cells import load_cells

        data = load_cells(name, factors, missing)
    elif os.path.isdir(name):
        data = load_pictures(name)
    else:
        known = ("sprites", *TORCHVISION)
        raise UserError(
            f"unknown data {name!r}; expected one of {', '.join(known)}, a {', '.join(FILES)} or "
            "IDX file, or a folder of pictures" + nearest(head, known)
        )
    if n is None:
        return data
    if not 0 < n <= len(data):
        raise UserError(f"{name}: n: expected 1 to {len(data)} images, got {n}")
    order = torch.randperm(len(data), generator=generator(seed))[:n]
    # There may not be enough memory to copy more than half of them.
    return data.subset(order) if 2 * n <= len(data) else data.reordered(order)


def as_images(
    data: Images,
    name: str = "images",
    form: Form | None = None,
    layout: str | None = None,
    counts: bool = False,
    missing: bool = False,
) -> ImageData:
    """Convert any accepted kind of data to images in memory.

    Args:
        data: An :class:`ngvae_pyro.ImageData`, which is returned; an array, a tensor or any object
            with an array interface, of images (N, H, W), (N, C, H, W) or (N, H, W, C) or of vectors
            (N, D); a table of pandas, whose columns of text become factors as those of a file do
            (:func:`ngvae_pyro.data.load_table`); a torch ``Dataset`` of images or of (image, label)
            pairs; a ``DataLoader``, of which the whole data set is read once, in its own order,
            whatever the loader samples, shuffles or collates; or a name or path that :func:`load`
            accepts. Images in an array may have any range; the lowest value becomes 0 and the
            highest 1.
        name: Name of an array, for messages and reports.
        form: How to read arrays, if that is known; data read in another form are converted to its
            units.
        layout: ``sequences`` or ``volumes`` if arrays and files hold these, as for
            :class:`ngvae_pyro.ImageData`.
        counts: Whether they are counts, which are kept as they are, if no form is given.
        missing: Whether NaN stands for a missing value, as for :class:`ngvae_pyro.ImageData`. If a
            form is given, it knows.

    Raises:
        UserError: For anything else, for a shape other than the form's, for infinity, and for NaN
            unless values may be missing.
    """
    if form is not None:
        missing = form.missing
    if layout is not None and form is not None:
        raise UserError(f"{name}: expected a form or a layout, got both")
    if isinstance(data, (str, Path)):
        # A fit that takes missing values takes data that cannot have any, too.
        asked = missing and (form is None or str(data).endswith(FILES))
        data = load(data, layout=layout, missing=asked)
    if isinstance(data, DataLoader):
        data = data.dataset
        if not hasattr(data, "__array__") and not isinstance(data, Dataset):
            return _in_memory(data, name, form, layout, counts, missing)
    if isinstance(data, ImageData):
        held = "volumes" if data.form.depth else "sequences" if data.form.sequential else None
        if layout not in (None, held):
            raise UserError(f"data '{data.name}': layout: expected an array, got {data!r}")
        if missing and form is None and not data.form.missing:
            raise UserError(f"data '{data.name}': missing: expected an array, got {data!r}")
        if form is not None:
            form.check_columns(data.form.columns, f"data '{data.name}'")
        elif counts:
            return data.as_counts()
        return data if form is None or data.form.same_units(form) else _turned(data, form)
    if isinstance(data, Dataset):
        return _in_memory(data, name, form, layout, counts, missing)
    if is_table(data):
        table = columns_of(data, name, missing=missing)
        return _of_table(table, name, form, layout, counts, missing)
    if not hasattr(data, "__array__"):
        raise UserError(
            f"{name}: expected an array, a tensor, an ngvae_pyro.ImageData, a torch Dataset, or a "
            f"path of a file or a folder, got {described(data)}"
        )
    if form is None and counts:
        return ImageData.counts(name, number_array(data, name), layout=layout, missing=missing)
    if form is None:
        tensor, form = image_tensor(data, name, any_range=True, layout=layout, missing=missing)
    else:
        array = number_array(data, name)
        pictures = not form.standardised and not form.depth
        if pictures and array.ndim in (3, 4) and array.ndim != form.dimensions:
            form = replace(form, layout=layout_of(array.shape, name))
        tensor = tensor_of(array, form, name)
    return ImageData.stored(name, tensor, form=form)


def from_numpy(
    x: np.ndarray | Tensor,
    factors: np.ndarray | Tensor | None = None,
    factor_names: Sequence[str] = (),
    missing: bool = False,
) -> ImageData:
    """Images or vectors in memory, with their factors if these are known.

    Args:
        x: As for :func:`ngvae_pyro.data.as_images`: images of any range, or vectors in any units.
        factors: (N, F) or (N,); text becomes classes, as for :class:`ngvae_pyro.ImageData`.
        factor_names: The F names; by default factor_0, factor_1, ...
        missing: Whether NaN stands for a missing value, as for :class:`ngvae_pyro.ImageData`.

    Raises:
        UserError: For a wrong shape, type or range.

    >>> from_numpy(np.random.default_rng(0).normal(size=(9, 4)), np.arange(9))
    ImageData('data', 9 vectors of 4, factor_0)
    """
    data = as_images(x, "data", missing=missing)
    if factors is not None and not len(factor_names):
        factors = factor_tensor(factors, "data: factors")
        factor_names = [f"factor_{i}" for i in range(factors.shape[1])]
    return ImageData.stored("data", data.images, factors, factor_names, data.form)


def _of_table(
    table: Columns,
    name: str,
    form: Form | None,
    layout: str | None,
    counts: bool,
    missing: bool,
) -> ImageData:
    """The vectors of a table in memory, with its columns of text as factors."""
    if form is not None:
        form.check_columns(table.names, name)
    vectors = as_images(table.values, name, form, layout, counts, missing)
    form = replace(vectors.form, columns=table.names or vectors.form.columns)
    return ImageData.stored(name, vectors.images, table.factors, table.factor_names, form)


def _in_memory(
    dataset: Any,
    name: str,
    form: Form | None,
    layout: str | None,
    counts: bool,
    missing: bool,
) -> ImageData:
    """Load a torch data set; the numbers in its pairs become the factor ``label``."""
    if not hasattr(dataset, "__len__"):
        raise UserError(f"{name}: expected a Dataset of known length, got {described(dataset)}")
    count = len(dataset)
    if not count:
        raise UserError(f"{name}: expected images, got an empty {type(dataset).__name__}")
    labels: list[Any] = []
    images = np.empty(0)
    for i in range(count):
        item = dataset[i]
        paired = isinstance(item, (tuple, list)) and len(item) > 0
        found = number_array(item[0] if paired else item, f"{name}[{i}]")
        if i == 0:
            images = make_room((count, *found.shape), found.dtype, name)
        if (found.shape, found.dtype) != (images.shape[1:], images.dtype):
            raise UserError(
                f"{name}[{i}]: expected {images.dtype} of shape {images.shape[1:]} as the first, "
                f"got {found.dtype} of shape {found.shape}"
            )
        images[i] = found
        labels += item[1:2] if paired else []
    data = as_images(images, name, form, layout, counts, missing)
    numbers = all(isinstance(n, Real) or getattr(n, "ndim", 1) == 0 for n in labels)
    if len(labels) == count and numbers:
        factors = torch.tensor([float(label) for label in labels])[:, None]
        return ImageData.stored(name, data.images, factors, ("label",), data.form)
    return data


def _turned(data: ImageData, form: Form) -> ImageData:
    """Convert images or vectors to the units of another form."""
    if form.raw:
        return data.as_counts()
    if data.form.unit or form.unit:
        raise UserError(
            f"data '{data.name}': expected the units of {form!r}, got those of {data.form!r}; pass "
            "the array itself"
        )
    arrays = data.form.arrays(ImageData.to_unit(data.images)).numpy()
    if not form.standardised:
        form = replace(form, layout=data.form.layout, depth=data.form.depth)
    tensor = tensor_of(arrays, form, f"data '{data.name}'")
    return ImageData.stored(data.name, tensor, data.factors, data.factor_names, form)
