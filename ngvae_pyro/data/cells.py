"""Annotated matrices of cells (AnnData): their values are vectors, their annotations factors.

The files are HDF5, described in https://anndata.readthedocs.io/en/stable/fileformat-prose.html, and
are read without the package anndata.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ngvae_pyro import machine
from ngvae_pyro.data.formats import check_file, named_path, read_stored, reading
from ngvae_pyro.data.hdf5 import array_of, read_into, whole
from ngvae_pyro.data.images import ImageData, image_tensor, of_covariate
from ngvae_pyro.data.rows import BLOCK
from ngvae_pyro.data.tables import covariate_columns, factor_columns, stacked
from ngvae_pyro.errors import UserError, described, nearest, one_line
from ngvae_pyro.extras import needed

with needed("hdf5"):
    import h5py
with needed("tables"):
    import pandas

_SPARSE = ("csr_matrix", "csc_matrix")


def from_anndata(
    adata: Any,
    layer: str | None = None,
    factors: Sequence[str] = (),
    covariates: Sequence[str] = (),
    missing: bool = False,
) -> ImageData:
    """The vectors of an annotated matrix, one of each cell.

    Args:
        adata: An ``anndata.AnnData``. Its values, (N, D) for N cells and D genes, may be sparse,
            and are made dense. The names of the genes become those of the columns.
        layer: The layer that holds the values; by default ``adata.X``.
        factors: Columns of ``adata.obs`` that are factors; text becomes classes.
        covariates: Columns of ``adata.obs`` that are covariates, such as the batch; C(name) if
            their numbers are classes.
        missing: Whether NaN stands for a missing value, as for :class:`ngvae_pyro.ImageData`. What
            a sparse matrix does not hold is 0, and not missing.

    Raises:
        UserError: If it is none, for a layer or a column that it does not have, for missing values,
            and if the dense values do not fit into memory.
    """
    if not all(hasattr(adata, part) for part in ("X", "layers", "obs", "var_names")):
        raise UserError(f"adata: expected an anndata.AnnData, got {described(adata)}")
    if layer is not None and layer not in adata.layers:
        known = list(adata.layers)
        raise UserError(
            f"adata: layer: found no {layer!r} among {', '.join(known) or 'no layers'}"
            + nearest(str(layer), known)
        )
    values = adata.X if layer is None else adata.layers[layer]
    where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    if values is None:
        raise UserError(f"{where}: expected values, got None; layer= names others")
    if hasattr(values, "toarray"):
        size = np.prod(values.shape, dtype=float) * (values.dtype.itemsize + machine.FLOAT_BYTES)
        machine.check(f"{where}: dense, shape {values.shape}", machine.DATA_PEAK * size)
        values = values.toarray()
    found = factor_columns(adata.obs, "adata.obs", factors)
    given = covariate_columns(adata.obs, "adata.obs", covariates)
    images, form = image_tensor(np.asarray(values), where, missing=missing)
    form = replace(form, columns=tuple(map(one_line, adata.var_names)))
    return ImageData.stored("cells", images, stacked(found), tuple(found), form, given)


def load_cells(
    path: str | Path,
    factors: Sequence[str] = (),
    covariates: Sequence[str] = (),
    missing: bool = False,
) -> ImageData:
    """Read the values ``X`` of an ``.h5ad`` file, dense or sparse, in parts.

    Args:
        path: The file. The names of its genes become those of the columns.
        factors: Columns of ``obs`` that are factors; text becomes classes.
        covariates: As for :func:`from_anndata`.
        missing: As for :func:`from_anndata`.

    Raises:
        UserError: As :func:`from_anndata`, and for files that are damaged or of another structure.
    """
    path = Path(named_path(path))
    covariates = (covariates,) if isinstance(covariates, str) else tuple(covariates)
    check_file(path, "an .h5ad file")
    with reading(path, ".h5ad file"), h5py.File(path, "r") as file:
        for key in ("X", "obs", "var"):
            if key not in file:
                raise UserError(f"{path}: expected X, obs and var, got {', '.join(file)}")
        where = f"{path}: X"
        if _encoding(file["X"]) in _SPARSE:
            shape, dtype, fill = _sparse(file["X"], path)
        else:
            found = array_of(file, "X", path)
            shape, dtype, fill = found.shape, found.dtype, lambda room: read_into(room, found)
        if len(shape) != 2 or dtype.kind not in "biuf":
            raise UserError(f"{where}: expected numbers (N, D), got {dtype} of shape {shape}")
        images, form = read_stored(shape, dtype, where, fill, hint="", missing=missing)
        names = _column(file["var"], file["var"].attrs["_index"], path)
        if len(names) != shape[1]:
            raise UserError(f"{path}: var: expected {shape[1]} names, got {len(names)}")
        known = list(map(str, file["obs"].attrs["column-order"]))
        own = [of_covariate(name, known, f"{path}: obs")[0] for name in covariates]
        read = [name for name in known if name in factors or name in own]
        obs = {
            name: pandas.Series(_column(file["obs"], name, path)) if name in read else None
            for name in known
        }
    found = factor_columns(obs, f"{path}: obs", factors)
    given = covariate_columns(obs, f"{path}: obs", covariates)
    for name, values in {**found, **given}.items():
        if values.shape != (len(images),):
            raise UserError(
                f"{path}: obs: column {name!r}: expected {len(images)} values, got {values.shape}"
            )
    form = replace(form, columns=tuple(map(one_line, names)))
    return ImageData.stored(path.stem, images, stacked(found), tuple(found), form, given)


def _encoding(found: Any) -> str:
    """What a group of the file holds."""
    return str(found.attrs.get("encoding-type", "")) if isinstance(found, h5py.Group) else ""


def _sparse(
    group: Any, path: Path
) -> tuple[tuple[int, ...], np.dtype, Callable[[np.ndarray], None]]:
    """The shape and type of a sparse matrix, and what writes it into a dense one.

    Entry i has the value data[i]. It is in row j of a ``csr_matrix``, and in column j of a
    ``csc_matrix``, if indptr[j] <= i < indptr[j + 1]; indices[i] is the other coordinate.
    """
    shape = tuple(int(size) for size in group.attrs["shape"])
    by_row = _encoding(group) == "csr_matrix"
    outer, inner = shape if by_row else shape[::-1]
    starts = whole(group, "indptr", path)
    data, indices = (array_of(group, key, path) for key in ("data", "indices"))

    def fill(room: np.ndarray) -> None:
        room[...] = 0
        good = starts.shape == (outer + 1,) and data.shape == indices.shape == (starts[-1],)
        if not good or starts[0] != 0 or (np.diff(starts.astype(np.int64)) < 0).any():
            raise UserError(f"{path}: X: expected an indptr of {outer + 1} rising numbers")
        flat, step = room.reshape(-1), BLOCK // room.itemsize
        for start in range(0, len(data), step):
            part = slice(start, start + step)
            values, across = data[part], indices[part].astype(np.int64)
            if (across < 0).any() or (across >= inner).any():
                raise UserError(f"{path}: X: expected indices below {inner}, got others")
            at = np.searchsorted(starts, np.arange(start, start + len(values)), "right") - 1
            np.add.at(flat, at * shape[1] + across if by_row else across * shape[1] + at, values)

    return shape, data.dtype, fill


def _column(group: Any, name: str, path: Path) -> np.ndarray:
    """A column of ``obs`` or ``var``: numbers, or text, with NaN or None where one is missing."""
    found = group[name]
    encoding = _encoding(found)
    if encoding == "categorical":
        codes = whole(found, "codes", path)
        values = _column(found, "categories", path)[codes]
        missing = codes < 0
    elif encoding.startswith("nullable-"):
        values = whole(found, "values", path)
        missing = whole(found, "mask", path).astype(bool)
    elif "categories" in found.attrs:
        raise UserError(f"{path}: {name}: expected a file of anndata 0.8 or later, got an older")
    else:
        return whole(group, name, path)
    if values.dtype.kind in "biuf":
        return np.where(missing, np.nan, values)
    values = values.astype(object)
    values[missing] = None
    return values
