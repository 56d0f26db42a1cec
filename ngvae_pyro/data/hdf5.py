"""HDF5 files of images: read in parts, and checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ngvae_pyro.data.formats import (
    FACTORS,
    check_count,
    check_file,
    chosen_keys,
    covariate_keys,
    make_room,
    named_path,
    read_stored,
    reading,
    with_factors,
)
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.data.rows import Rows, block_rows
from ngvae_pyro.data.streams import folder_of, stream_array
from ngvae_pyro.errors import UserError
from ngvae_pyro.extras import needed

with needed("hdf5"):
    import h5py


def load_hdf5(
    path: str | Path,
    layout: str | None = None,
    covariates: Sequence[str] = (),
    stream: bool | str | Path = False,
    missing: bool = False,
) -> ImageData:
    """Read an HDF5 file (``.h5``, ``.hdf5``), as those of 3D Shapes.

    - ``imgs``, ``x`` or ``images``: an array that :class:`ngvae_pyro.ImageData` accepts, of at
      least 2 images or vectors. It is read in parts, in the order of the file.
    - ``latents_values``, ``latents_classes``, ``factors`` or ``labels``: optional, (N, F) or (N,),
      numbers, or text, which becomes classes as in an ``.npz``.
    - ``latents_names`` or ``factor_names``: optional, (F,) strings; default factor_0, ...

    Others are never read; a :class:`ngvae_pyro.errors.Notice` names them.

    Args:
        path: The file.
        layout: As for :class:`ngvae_pyro.ImageData`.
        covariates: Names of factors, or further keys of arrays (N,), that are covariates; C(name)
            if their numbers are classes.
        stream: As for :func:`ngvae_pyro.load_data`.
        missing: As for :func:`ngvae_pyro.load_data`.

    Raises:
        UserError: For anything that does not fit this description, for arrays whose numbers lie in
            other files, and for what does not fit into memory.
    """
    path = Path(named_path(path))
    check_file(path, "an HDF5 file")
    with reading(path, "HDF5 file"), h5py.File(path, "r") as file:
        own = covariate_keys(list(file), covariates)
        left = [key for key in file if key not in own]
        key, source, named = chosen_keys(path, left, (*FACTORS, "labels"))
        found = _numbers(file, key, path)
        where = f"{path}: {key}"
        images: Tensor | Rows
        if stream:
            check_count(found.shape, where, layout)
            images, form = stream_array(found, where, layout, folder_of(stream))
        else:
            images, form = read_stored(
                *(found.shape, found.dtype, where, lambda room: read_into(room, found), layout),
                missing=missing,
            )
        given = {key: whole(file, key, path) for key in own}
        values = None if source is None else whole(file, source, path)
        names = None if named is None else whole(file, named, path)
        if names is not None and names.dtype.kind != "U":
            raise UserError(f"{path}: {named}: expected text, got dtype {names.dtype}")
        return with_factors(path, images, form, (source, values), (named, names), given, covariates)


def array_of(file: Any, key: str, path: Path) -> Any:
    """An array of a file."""
    where = f"{path}: {key}"
    outside = isinstance(file.get(key, getlink=True), h5py.ExternalLink)
    found = None if outside else file[key]
    if not outside and not (isinstance(found, h5py.Dataset) and found.shape is not None):
        raise UserError(f"{where}: expected an array, got {type(found).__name__}")
    # Where the other file is missing, HDF5 would silently give zeros.
    if found is None or found.is_virtual or found.external:
        raise UserError(f"{where}: expected an array in this file, got one that lies in another")
    return found


def _numbers(file: Any, key: str, path: Path) -> Any:
    """An array of numbers of a file."""
    found = array_of(file, key, path)
    if found.dtype.kind not in "biuf":
        raise UserError(f"{path}: {key}: expected bool, integer or float, got dtype {found.dtype}")
    return found


def whole(file: Any, key: str, path: Path) -> np.ndarray:
    """A small array of numbers or text of a file."""
    found = array_of(file, key, path)
    if h5py.check_string_dtype(found.dtype) is not None:
        # Checked as pointers: how long the strings are is only known when they are read.
        make_room(found.shape, np.dtype(np.int64), f"{path}: {key}")
        return np.asarray(found.asstr("utf-8")[()]).astype(str)
    found = _numbers(file, key, path)
    room = make_room(found.shape, found.dtype.newbyteorder("="), f"{path}: {key}")
    read_into(np.atleast_1d(room), found)
    return room


def read_into(room: np.ndarray, found: Any) -> None:
    """Read an array, about as much at once as one read; chunks are inflated as a whole."""
    if found.shape == ():
        room[...] = found[()]
        return
    rows = block_rows(room[:1].nbytes)
    chunk = found.chunks[0] if found.chunks else 1
    rows = -(-rows // chunk) * chunk
    with np.errstate(over="ignore", invalid="ignore"):  # infinity is refused later
        for start in range(0, len(room), rows):
            room[start : start + rows] = found[start : start + rows]
