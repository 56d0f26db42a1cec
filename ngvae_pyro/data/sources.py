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
from torch.utils.data import DataLoader, Dataset, IterableDataset

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
from ngvae_pyro.data.forms import Covariate, Form, declarations
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
from ngvae_pyro.data.streams import check_like, folder_of, stream_array, stream_items
from ngvae_pyro.data.tables import TABLES, Columns, columns_of, is_table, load_table
from ngvae_pyro.errors import UserError, described, expect, nearest

# What to do with a data set that does not fit into memory.
STREAMED = "; ngvae_pyro.stream leaves it on the disk"

# The types that `as_images` accepts, without and with tensors.
NoTensor = ImageData | np.ndarray | Dataset[Any] | DataLoader[Any] | str | Path
Images = NoTensor | Tensor

# The ends of the names of files, but for those of IDX, and of those that may hold sequences.
ARRAYS = (".npz", ".npy", ".h5", ".hdf5", *TABLES)
STREAMS = (".npz", ".npy", ".h5", ".hdf5")
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
    stream: bool | str | Path = False,
    covariates: Sequence[str] = (),
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
        stream: Whether the images stay on the disk, for those that do not fit into memory; for
            ``.npy``, ``.npz``, ``.h5`` and ``.hdf5`` files, IDX files and folders of pictures
            only. What cannot be read where it lies is written once, to a file in the folder of
            temporary files (``TMPDIR``), or in the folder that this names.
        covariates: What is known of each row besides what latents are to tell, such as its batch:
            columns of tables and of ``obs``, keys of an ``.npz`` or HDF5 file, or factors, as which
            they count no longer. Text is classes, and numbers are standardised; C(name) says that
            numbers are classes.
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
    # A single name is a string, which would otherwise be split into letters.
    covariates = (covariates,) if isinstance(covariates, str) else tuple(covariates)
    if factors and not name.endswith(tables := (*TABLES, ".h5ad")):
        raise UserError(f"{name}: factors: only tables ({', '.join(tables)}) have this option")
    if layout is not None and not name.endswith(ARRAYS):
        raise UserError(f"{name}: layout: only arrays ({', '.join(ARRAYS)}) have this option")
    streams = (*STREAMS, "idx3-ubyte", "idx3-ubyte.gz")
    if stream and not (name.endswith(streams) or os.path.isdir(name)):
        raise UserError(
            f"{name}: stream: only {', '.join(STREAMS)} and IDX files and folders of pictures have "
            "this option"
        )
    if missing and not name.endswith(FILES):
        raise UserError(f"{name}: missing: only arrays ({', '.join(FILES)}) have this option")
    if missing and stream:
        raise UserError(f"{name}: expected missing or stream, got both")
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
        return sprites(seed=seed, **options).conditioned(covariates)

    if options:
        raise UserError(f"{name}: {', '.join(options)}: only sprites have these options")
    if name in TORCHVISION:
        data = torchvision_data(name, "data" if root is None else root, download)
        data = data.conditioned(covariates)
    elif name.endswith(".npz"):
        data = load_npz(name, layout, covariates, stream, missing)
    elif name.endswith(("idx3-ubyte", "idx3-ubyte.gz")):
        data = load_idx(name, stream).conditioned(covariates)
    elif name.endswith(".npy"):
        data = load_npy(name, layout, stream, missing).conditioned(covariates)
    elif name.endswith((".h5", ".hdf5")):
        from ngvae_pyro.data.hdf5 import load_hdf5

        data = load_hdf5(name, layout, covariates, stream, missing)
    elif name.endswith(TABLES):
        data = load_table(name, factors, layout, covariates, missing)
    elif name.endswith(".h5ad"):
        from ngvae_pyro.data.cells import load_cells

        data = load_cells(name, factors, covariates, missing)
    elif os.path.isdir(name):
        data = load_pictures(name, stream).conditioned(covariates)
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
    stream: bool | str | Path = False,
    missing: bool = False,
) -> ImageData:
    """Convert any accepted kind of data to images, which are in memory unless they are streamed.

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
            units. Of files and tables its covariates are read too; other data have to have them.
        layout: ``sequences`` or ``volumes`` if arrays and files hold these, as for
            :class:`ngvae_pyro.ImageData`.
        counts: Whether they are counts, which are kept as they are, if no form is given.
        stream: Whether they stay on the disk, as for :func:`load`, in which case a ``Dataset`` need
            not know its length. A ``numpy.memmap`` always does, and an
            :class:`ngvae_pyro.ImageData` is as it is.
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
    if missing and form is None and (isinstance(data, np.memmap) or stream):
        raise UserError(f"{name}: missing: data that stay on the disk have no NaN")
    coding = () if form is None else form.covariates
    if isinstance(data, (str, Path)):
        # A fit that takes missing values takes data that cannot have any, too.
        asked = missing and (form is None or str(data).endswith(FILES))
        covariates = declarations(coding)
        data = load(data, layout=layout, covariates=covariates, stream=stream, missing=asked)
    if isinstance(data, DataLoader):
        data = data.dataset
        if not hasattr(data, "__array__") and not isinstance(data, Dataset):
            return _of_dataset(data, name, form, layout, counts, stream, missing)
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
        if form is None:
            return data
        return (data if data.form.same_units(form) else _turned(data, form)).coded(coding)
    if isinstance(data, Dataset):
        return _of_dataset(data, name, form, layout, counts, stream, missing)
    if is_table(data):
        columns = columns_of(data, name, covariates=declarations(coding), missing=missing)
        return _of_table(columns, name, form, layout, counts, stream, missing)
    if not hasattr(data, "__array__"):
        raise UserError(
            f"{name}: expected an array, a tensor, an ngvae_pyro.ImageData, a torch Dataset, or a "
            f"path of a file or a folder, got {described(data)}"
        )
    if isinstance(data, np.memmap) or stream:
        # Arrays of HDF5 and the like have numpy's types, and are sliced.
        sliced = isinstance(getattr(data, "dtype", None), np.dtype)
        array = data if sliced else number_array(data, name)
        options: dict[str, Any] = {"form": form, "counts": counts}
        rows, form = stream_array(array, name, layout, folder_of(stream), **options)
        return ImageData.stored(name, rows, form=form)
    if form is None and counts:
        return ImageData.counts(name, number_array(data, name), layout=layout, missing=missing)
    if form is None:
        tensor, form = image_tensor(data, name, layout=layout, missing=missing)
    else:
        array = number_array(data, name)
        pictures = not form.standardised and not form.depth
        if pictures and array.ndim in (3, 4) and array.ndim != form.dimensions:
            form = replace(form, layout=layout_of(array.shape, name))
        tensor = tensor_of(array, form, name)
    return ImageData.stored(name, tensor, form=form)


def stream(
    data: Images, name: str = "data", layout: str | None = None, folder: str | Path | None = None
) -> ImageData:
    """Images, vectors or sequences that stay on the disk, for those that do not fit into memory.

    They are read in passes: for their range or their means, for each step of a training, and
    whenever they are looked at.

    Args:
        data: As for :func:`ngvae_pyro.data.as_images`: a torch ``Dataset`` or ``DataLoader``, whose
            items are read once, in the order of the data set, and kept as they were then; a data
            set of that kind without a length; a ``numpy.memmap``, an array of an HDF5 file or
            anything else with a shape, a type and slices; or a path that :func:`load` accepts with
            ``stream=True``.
        name: For messages and reports.
        layout: As for :class:`ngvae_pyro.ImageData`.
        folder: Where what cannot be read in its own file is written once, to a file without a name
            that is gone with the data; by default the folder of temporary files (``TMPDIR``).

    Raises:
        UserError: As :func:`ngvae_pyro.data.as_images`, and if there is no room on the disk.
    """
    expect("name", name, str, "a name for messages and reports")
    return as_images(data, name, layout=layout, stream=True if folder is None else folder)


def from_numpy(
    x: np.ndarray | Tensor,
    factors: np.ndarray | Tensor | None = None,
    factor_names: Sequence[str] = (),
    covariates: Mapping[str, np.ndarray | Tensor] | None = None,
    missing: bool = False,
) -> ImageData:
    """Images or vectors in memory, with their factors if these are known.

    Args:
        x: As for :func:`ngvae_pyro.data.as_images`: images of any range, or vectors in any units.
        factors: (N, F) or (N,); text becomes classes, as for :class:`ngvae_pyro.ImageData`.
        factor_names: The F names; by default factor_0, factor_1, ...
        covariates: As for :class:`ngvae_pyro.ImageData`, arrays (N,) by name.
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
    return ImageData.stored("data", data.images, factors, factor_names, data.form, covariates)


def _of_table(
    table: Columns,
    name: str,
    form: Form | None,
    layout: str | None,
    counts: bool,
    stream: bool | str | Path,
    missing: bool,
) -> ImageData:
    """The vectors of a table, with its columns of text as factors."""
    coding: tuple[Covariate, ...] = ()
    if form is not None:
        form.check_columns(table.names, name)
        coding, form = form.covariates, replace(form, covariates=())
    vectors = as_images(table.values, name, form, layout, counts, stream, missing)
    columns = table.names or vectors.form.columns
    form = replace(vectors.form, columns=columns, covariates=coding)
    return ImageData.stored(
        name, vectors.images, table.factors, table.factor_names, form, table.covariates
    )


def _of_dataset(
    dataset: Any,
    name: str,
    form: Form | None,
    layout: str | None,
    counts: bool,
    stream: bool | str | Path,
    missing: bool,
) -> ImageData:
    """Read a torch data set once; the numbers in its pairs become the factor ``label``."""
    if not stream:
        return _in_memory(dataset, name, form, layout, counts, missing)
    count = len(dataset) if hasattr(dataset, "__len__") else None
    if count == 0:
        raise UserError(f"{name}: expected images, got an empty {type(dataset).__name__}")
    iterable = isinstance(dataset, IterableDataset) or count is None
    items = dataset if iterable else (dataset[i] for i in range(count or 0))
    rows, form, labels = stream_items(
        items,
        name,
        layout,
        folder_of(stream),
        # What an iterable says of its length may be wrong.
        None if iterable else count,
        form,
        counts=counts,
    )
    if labels is None:
        return ImageData.stored(name, rows, form=form)
    return ImageData.stored(name, rows, torch.tensor(labels)[:, None], ("label",), form)


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
            images = make_room((count, *found.shape), found.dtype, name, STREAMED)
        check_like(found, images.shape[1:], images.dtype, f"{name}[{i}]")
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
    own = form
    if not form.standardised:
        own = replace(form, layout=data.form.layout, depth=data.form.depth)

    def turned(part: Tensor) -> Tensor:
        arrays = data.form.arrays(ImageData.to_unit(part)).numpy()
        return tensor_of(arrays, own, f"data '{data.name}'")

    images = data.mapped(turned)
    own = replace(own, covariates=data.form.covariates)
    return ImageData.stored(
        data.name, images, data.factors, data.factor_names, own, data.covariates
    )
