"""Annotated matrices of cells, in files as anndata writes them and in memory."""

from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

import ngvae_pyro as ng
from ngvae_pyro import machine
from ngvae_pyro.data import cells
from ngvae_pyro.data.cells import from_anndata, load_cells
from ngvae_pyro.errors import UserError

RNG = np.random.default_rng(0)
COUNTS = RNG.poisson(0.4, (30, 5)).astype(np.float32)
GENES = ["Actb", "Gapdh", "Cd4", "Cd8a", "Sox2"]
TYPES = np.array(["T", "B", "NK"])[RNG.integers(0, 3, 30)]
CLASSES = [["B", "NK", "T"].index(kind) for kind in TYPES]
DEPTH = np.arange(30) / 10
NUMBERS = ng.ImageData("cells", COUNTS)


def write(path, x=COUNTS):
    """As anndata 0.12 writes it."""
    text = h5py.string_dtype()
    with h5py.File(path, "w") as file:
        if scipy.sparse.issparse(x):
            group = file.create_group("X")
            group.attrs.update({"encoding-type": f"{x.format}_matrix", "shape": x.shape})
            for key in ("data", "indices", "indptr"):
                group.create_dataset(key, data=getattr(x, key), compression="gzip")
        else:
            file["X"] = x
        for name, columns in (("obs", ["type", "depth", "batch", "stage"]), ("var", [])):
            group = file.create_group(name)
            group.attrs.update({"encoding-type": "dataframe", "_index": "_index"})
            group.attrs["column-order"] = np.array(columns, dtype=text)
        file["obs/_index"] = np.array([f"cell {i}" for i in range(30)], dtype=text)
        file["var/_index"] = np.array(GENES, dtype=text)
        file["obs/depth"] = DEPTH
        file["obs/stage"] = np.array(["late"] * 10 + ["early"] * 20, dtype=text)
        kinds = file.create_group("obs/type")
        kinds.attrs["encoding-type"] = "categorical"
        kinds["categories"] = np.array(["NK", "T", "B"], dtype=text)
        kinds["codes"] = np.array([["NK", "T", "B"].index(kind) for kind in TYPES], np.int8)
        batch = file.create_group("obs/batch")
        batch.attrs["encoding-type"] = "nullable-integer"
        batch["values"], batch["mask"] = np.arange(30), np.zeros(30, bool)
    return path


@pytest.mark.parametrize(
    "x",
    [
        COUNTS,
        COUNTS.astype(np.int64),
        scipy.sparse.csr_matrix(COUNTS),
        scipy.sparse.csc_matrix(COUNTS),
        scipy.sparse.csr_matrix(COUNTS.astype(np.int32)),
    ],
    ids=["dense", "integers", "rows", "columns", "sparse integers"],
)
@pytest.mark.parametrize("block", [2**20, 64])
def test_values_are_vectors_and_genes_name_columns(tmp_path, monkeypatch, x, block):
    monkeypatch.setattr(cells, "BLOCK", block)
    data = ng.load_data(write(tmp_path / "pbmc.h5ad", x))
    assert torch.equal(data.images, NUMBERS.images) and data.form.same_units(NUMBERS.form)
    assert data.form.columns == tuple(GENES) and data.name == "pbmc" and data.factors is None


def test_annotations_are_factors_if_they_are_named(tmp_path):
    path = write(tmp_path / "a.h5ad")
    data = ng.load_data(path, factors=["type", "depth", "batch", "stage"])
    assert data.factor_names == ("type", "depth", "batch", "stage")
    stages = [1] * 10 + [0] * 20
    expected = np.stack([CLASSES, DEPTH, np.arange(30), stages], 1).astype(np.float32)
    assert np.array_equal(data.factors.numpy(), expected)
    assert ng.load_data(path, factors="type").factor_names == ("type",)
    with pytest.raises(UserError, match="a.h5ad: obs: factors: found no column 'typ'; did you mea"):
        ng.load_data(path, factors=["typ"])


def edit(path, key, value):
    with h5py.File(path, "a") as file:
        if key in file:
            del file[key]
        if value is not None:
            file[key] = value
    return path


SPARSE = scipy.sparse.csr_matrix(COUNTS)


@pytest.mark.parametrize(
    ("x", "key", "value", "match"),
    [
        (COUNTS, "X", None, "expected X, obs and var, got obs, var"),
        (COUNTS, "X", COUNTS[0], r"X: expected numbers \(N, D\), got float32 of shape \(5,\)"),
        (COUNTS, "X", COUNTS[:1], "X: expected at least 2 vectors"),
        (COUNTS, "X", COUNTS * np.float32("nan"), "X: expected finite numbers, got NaN or inf"),
        (COUNTS, "X", COUNTS[:, :4], "var: expected 4 names, got 5"),
        (COUNTS, "obs/type/codes", np.full(30, -1), "obs: column 'type': .* none in 30 of 30"),
        (COUNTS, "obs/batch/mask", np.arange(30) > 9, "'batch': .*, got NaN or none in 20 of 30"),
        (COUNTS, "obs/type/codes", np.full(30, 3), "cannot read the .h5ad file: "),
        (COUNTS, "obs/depth", np.arange(29), r"'depth': expected 30 values, got \(29,\)"),
        (SPARSE, "X/indptr", np.arange(30), "X: expected an indptr of 31 rising numbers"),
        (SPARSE, "X/indptr", SPARSE.indptr[::-1], "X: expected an indptr of 31 rising numbers"),
        (SPARSE, "X/indices", SPARSE.indices + 1, "X: expected indices below 5, got others"),
        (SPARSE, "X/indices", SPARSE.indices - 1, "X: expected indices below 5, got others"),
        (SPARSE, "X/data", SPARSE.data[1:], "X: expected an indptr"),
        (SPARSE, "X/data", np.full(len(SPARSE.data), b"a"), r"X: expected numbers \(N, D\), got"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, x, key, value, match):
    path = edit(write(tmp_path / "bad.h5ad", x), key, value)
    with pytest.raises(UserError, match=match) as caught:
        load_cells(path, ["type", "batch", "depth"])
    assert str(caught.value).startswith(str(tmp_path)) or "bad" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_files_are_one_line(tmp_path):
    path = write(tmp_path / "old.h5ad")
    with h5py.File(path, "a") as file:
        file["obs/depth"].attrs["categories"] = 1
    with pytest.raises(UserError, match="old.h5ad: depth: expected a file of anndata 0.8 or later"):
        load_cells(path, ["depth"])
    with h5py.File(path, "a") as file:
        del file["obs"].attrs["column-order"]
    with pytest.raises(UserError, match="old.h5ad: cannot read the .h5ad file: "):
        load_cells(path)
    path.write_bytes(b"x")
    with pytest.raises(UserError, match="old.h5ad: cannot read the .h5ad file: "):
        load_cells(path)
    with pytest.raises(UserError, match="no.h5ad: expected an .h5ad file, found no such file"):
        ng.load_data(tmp_path / "no.h5ad")


def test_what_is_dense_nowhere_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "there", lambda device="cpu": 1000)
    with pytest.raises(UserError, match=r"a.h5ad: X: shape \(30, 5\): expected something that fit"):
        load_cells(write(tmp_path / "a.h5ad", SPARSE))
    with pytest.raises(UserError, match=r"^adata.X: dense, shape \(30, 5\): expected something"):
        from_anndata(matrix(SPARSE))


# In memory --------------------------------------------------------------------------------------


def matrix(x=COUNTS, **layers):
    """What anndata.AnnData has of it."""
    obs = pd.DataFrame({"type": pd.Categorical(TYPES), "depth": DEPTH})
    return SimpleNamespace(X=x, obs=obs, layers=layers, var_names=pd.Index(GENES))


@pytest.mark.parametrize("x", [COUNTS, SPARSE, scipy.sparse.csc_array(COUNTS)])
def test_matrices_in_memory(x):
    data = ng.from_anndata(matrix(x), factors=["type", "depth"])
    assert torch.equal(data.images, NUMBERS.images) and data.form.columns == tuple(GENES)
    assert data.factor_names == ("type", "depth") and data.factors[:, 0].tolist() == CLASSES
    layered = ng.from_anndata(matrix(None, log=scipy.sparse.csr_matrix(2 * COUNTS)), layer="log")
    assert np.allclose(layered.form.arrays(layered.images), 2 * COUNTS, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: from_anndata(COUNTS), r"^adata: expected an anndata.AnnData, got a ndarray of sh"),
        (lambda: from_anndata(matrix(), "raw"), "^adata: layer: found no 'raw' among no layers$"),
        (lambda: from_anndata(matrix(raw=COUNTS), "row"), "no 'row' among raw; did you mean 'raw'"),
        (lambda: from_anndata(matrix(None)), "^adata.X: expected values, got None; layer= names"),
        (lambda: from_anndata(matrix(), factors=["x"]), "^adata.obs: factors: found no column 'x'"),
        (lambda: from_anndata(matrix(COUNTS * np.inf)), "^adata.X: expected finite numbers"),
    ],
)
def test_what_is_no_matrix_is_one_line(call, match):
    with np.errstate(invalid="ignore"), pytest.raises(UserError, match=match):
        call()


@pytest.mark.skipif(pd.__version__ >= "3", reason="anndata 0.12 takes no pandas 3")
def test_those_of_anndata(tmp_path):
    anndata = pytest.importorskip("anndata")
    adata = anndata.AnnData(SPARSE, obs=matrix().obs.set_axis([f"c{i}" for i in range(30)]))
    adata.var_names = GENES
    data = ng.from_anndata(adata, factors=["type"])
    assert torch.equal(data.images, NUMBERS.images) and data.form.columns == tuple(GENES)
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = load_cells(tmp_path / "a.h5ad", ["type"])
    assert torch.equal(again.images, data.images) and torch.equal(again.factors, data.factors)
    assert again.form.columns == data.form.columns


def test_from_numpy():
    data = ng.from_numpy(COUNTS, TYPES)
    assert torch.equal(data.images, NUMBERS.images) and data.factor_names == ("factor_0",)
    assert data.factors[:, 0].tolist() == CLASSES
    images = 16 * RNG.random((6, 4, 5))
    named = ng.from_numpy(torch.from_numpy(images), np.eye(6)[:, :2], ["a", "b"])
    assert named.factor_names == ("a", "b") and named.images.max() == 1
    assert ng.from_numpy(images).factors is None
    with pytest.raises(UserError, match=r"data: factors: expected shape \(6, 1\) for 6 images"):
        ng.from_numpy(images, np.eye(6), "a")
    with pytest.raises(UserError, match="data: expected an array, a tensor, .* got a list"):
        ng.from_numpy([[1.0]])
