"""HDF5 files: read as an .npz with the same arrays, or one line says why not."""

import h5py
import numpy as np
import pytest
import torch
from test_data import BYTES, COLOUR, FLOATS, write_npz

import ngvae_pyro as ng
from ngvae_pyro import machine
from ngvae_pyro.data.hdf5 import load_hdf5
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.data.rows import BLOCK
from ngvae_pyro.errors import Notice, UserError

RNG = np.random.default_rng(0)


def write(path, **arrays):
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            options = {"compression": "gzip"} if np.ndim(array) else {}
            file.create_dataset(key, data=array, **options)
    return path


@pytest.mark.parametrize(
    "images",
    [
        BYTES,
        COLOUR,
        COLOUR.transpose(0, 2, 3, 1),
        BYTES > 127,
        (BYTES > 127).astype(np.uint8),
        FLOATS,
        FLOATS.astype(">f8"),
        FLOATS.astype(np.float16),
        BYTES.astype(np.uint16) * 200,
        BYTES.astype(np.int64) - 100,
        RNG.normal(size=(5, 4)),
        RNG.integers(0, 2, (5, 4)).astype(bool),
    ],
)
@pytest.mark.parametrize("key", ["imgs", "x", "images"])
def test_arrays_are_read_as_those_of_an_npz(tmp_path, images, key):
    found = ng.load_data(write(tmp_path / "a.hdf5", **{key: images}))
    expected = ng.load_data(write_npz(tmp_path / "a.npz", x=images))
    assert torch.equal(found.images, expected.images) and found.name == "a"
    assert found.images.dtype == expected.images.dtype and found.images.is_contiguous()
    assert found.form.same_units(expected.form) and found.form.in_bytes == expected.form.in_bytes
    assert found.form.layout == expected.form.layout and found.factors is None


def test_the_layout_of_3d_shapes(tmp_path):
    images = RNG.integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    labels = RNG.random((6, 6))
    data = load_hdf5(write(tmp_path / "3dshapes.h5", images=images, labels=labels))
    assert data.image_shape == (3, 64, 64) and data.form.layout == "channels_last"
    assert np.array_equal(data.images.numpy(), images.transpose(0, 3, 1, 2))
    assert np.array_equal(data.factors.numpy(), labels.astype(np.float32))
    assert data.factor_names == tuple(f"factor_{i}" for i in range(6))


@pytest.mark.parametrize("text", [np.dtype("S4"), h5py.string_dtype()])
def test_text_is_classes_and_names(tmp_path, text):
    shapes = np.array([["b", "x"], ["a", "x"], ["ä", "x"], ["a", "y"], ["b", "x"]], dtype=object)
    encoded = np.vectorize(str.encode, otypes=[object])(shapes)
    names = np.array([b"shape", b"side"], dtype="S5")
    file = write(tmp_path / "a.h5", x=BYTES, factor_names=names)
    with h5py.File(file, "a") as opened:
        opened.create_dataset("factors", data=encoded.astype(text), dtype=text)
    data = load_hdf5(file)
    assert data.factor_names == ("shape", "side")
    assert data.factors.T.tolist() == [[1, 0, 2, 0, 1], [0, 0, 0, 1, 0]]


@pytest.mark.parametrize("chunks", [None, (7, 16, 16, 3), (120, 64, 64, 3)])
def test_images_of_many_reads_are_read_once(tmp_path, monkeypatch, chunks):
    images = RNG.integers(0, 256, (250, 64, 64, 3), dtype=np.uint8)
    assert images.nbytes > 2 * BLOCK
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=images, chunks=chunks)
    read, rows = h5py.Dataset.__getitem__, []

    def counted(self, part):
        rows.append((part.start, part.stop))
        return read(self, part)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counted)
    data = load_hdf5(tmp_path / "a.h5")
    assert torch.equal(data.images, ImageData("a", images).images)
    starts, stops = zip(*rows, strict=True)
    assert len(rows) > 1 and starts[0] == 0 and starts[1:] == stops[:-1] and stops[-1] >= 250
    # A chunk that lies in two reads would be inflated twice.
    assert all(start % (chunks or (1,))[0] == 0 for start in starts)


def test_what_is_not_used_is_named(tmp_path):
    with pytest.warns(Notice, match="a.h5: not used: mask; factors are read from .* or labels, "):
        load_hdf5(write(tmp_path / "a.h5", x=BYTES, mask=BYTES))


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({}, "expected exactly one of the keys imgs, x, images, got no key"),
        ({"data": BYTES}, "expected exactly one of the keys imgs, x, images, got data"),
        ({"x": BYTES, "images": BYTES}, "got x, images"),
        ({"x": BYTES, "labels": np.zeros(5), "factors": np.zeros(5)}, "factors, labels, got both"),
        ({"x": 3}, r"x: expected shape \(N, H, W\), .* got \(\)"),
        ({"x": BYTES[:1]}, "expected at least 2 images"),
        ({"x": FLOATS + np.inf}, "x: expected finite numbers, got NaN or inf"),
        ({"x": FLOATS * np.float32("nan")}, "got nan to nan"),
        ({"x": FLOATS.astype(complex)}, "expected bool, integer or float, got dtype complex128"),
        ({"x": np.full((3, 2), b"a")}, r"expected bool, integer or float, got dtype \|S1"),
        ({"x": BYTES, "factors": np.zeros(4)}, r"factors: expected shape \(5, F\)"),
        ({"x": BYTES, "factors": np.full(5, np.nan)}, "factors: .* NaN or inf"),
        ({"x": BYTES, "factors": 1.0}, r"expected shape \(5, F\) for 5 images, got \(\)"),
        (
            {"x": BYTES, "factors": np.zeros((5, 2)), "factor_names": np.zeros(2)},
            "factor_names: expected text, got dtype float64",
        ),
        (
            {"x": BYTES, "factors": np.zeros((5, 2)), "factor_names": np.array([b"a", b"a"])},
            "factor_names: expected 2 different printable names",
        ),
    ],
)
def test_refused_arrays_are_one_line(tmp_path, arrays, match):
    path = write(tmp_path / "bad.h5", **arrays)
    with pytest.raises(UserError, match=match) as caught:
        load_hdf5(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_arrays_of_other_files_are_refused(tmp_path):
    """HDF5 gives zeros where the other file is missing."""
    other = write(tmp_path / "other.h5", x=BYTES)
    with h5py.File(tmp_path / "linked.h5", "w") as file:
        file["x"] = h5py.ExternalLink(str(other), "x")
    layout = h5py.VirtualLayout(BYTES.shape, np.uint8)
    layout[...] = h5py.VirtualSource(str(other), "x", BYTES.shape)
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset("x", layout)
    with h5py.File(tmp_path / "external.h5", "w") as file:
        raw = [(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("x", BYTES.shape, np.uint8, external=raw)
    for name in ("linked.h5", "virtual.h5", "external.h5"):
        with pytest.raises(UserError, match=f"{name}: x: expected an array in this file, got one"):
            load_hdf5(tmp_path / name)


def test_what_is_no_array(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("x")
    with pytest.raises(UserError, match="a.h5: x: expected an array, got Group"):
        load_hdf5(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = h5py.Empty("f4")
    with pytest.raises(UserError, match="a.h5: x: expected an array, got Dataset"):
        load_hdf5(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = h5py.SoftLink("/nowhere")
    with pytest.raises(UserError, match="a.h5: cannot read the HDF5 file: "):
        load_hdf5(tmp_path / "a.h5")


def test_a_shape_that_nothing_holds_is_refused_before_it_is_allocated(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (10**9, 64, 64), np.uint8, chunks=(1, 64, 64))
    with pytest.raises(UserError, match="a.h5: x: shape .* fits into the .* GiB of memory"):
        load_hdf5(tmp_path / "a.h5")
    # What integers become needs room as well.
    monkeypatch.setattr(machine, "there", lambda device="cpu": 3.9 * 4 * 2**20)
    path = write(tmp_path / "b.h5", x=np.zeros((2, 1024, 1024), np.uint16))
    with pytest.raises(UserError, match="b.h5: x: shape .* fits into"):
        load_hdf5(path)


@pytest.mark.parametrize("content", [b"", b"text", bytes(3000)])
def test_what_is_no_hdf5_file(tmp_path, content):
    (tmp_path / "bad.h5").write_bytes(content)
    with pytest.raises(UserError, match="bad.h5: cannot read the HDF5 file: "):
        load_hdf5(tmp_path / "bad.h5")
    with pytest.raises(UserError, match="no.h5: expected an HDF5 file, found no such file"):
        ng.load_data(tmp_path / "no.h5")


def test_a_file_that_was_cut_short(tmp_path):
    whole = write(tmp_path / "bad.h5", x=BYTES).read_bytes()
    for share in (0.3, 0.6, 0.99):
        (tmp_path / "bad.h5").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match="bad.h5: cannot read the HDF5 file: "):
            load_hdf5(tmp_path / "bad.h5")
