"""Forms: how arrays become images of a model, and how they come back."""

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

import ngvae_pyro as ng
from ngvae_pyro.data import as_images, load
from ngvae_pyro.data.forms import Form, ranging, standardising
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.data.rows import BLOCK
from ngvae_pyro.errors import UserError

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (12, 8, 9)).astype(np.uint8)


def back(data):
    """What the arrays of images were."""
    return data.form.arrays(ImageData.to_unit(data.images)).numpy()


@pytest.mark.parametrize("offset", [0.0, 1e9])
def test_vectors_are_standardised_and_come_back(offset):
    x = RNG.normal(size=(50, 4)) * [1, 100, 1e-3, 0] + offset + np.arange(4)
    data = ImageData("x", x)
    assert data.image_shape == (1, 1, 4) and data.images.dtype == torch.float32
    columns = data.images[:, 0, 0].double()
    assert columns.mean(0).abs().max() < 1e-4
    assert (columns.std(0, correction=0) - torch.tensor([1.0, 1, 1, 0])).abs().max() < 1e-3
    assert data.form.scale[3] == 1.0 and repr(data) == "ImageData('x', 50 vectors of 4, no factors)"
    found = back(data)
    assert found.dtype == np.float64 and np.allclose(found, x, rtol=1e-12, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-300, 1e300, 5e-324])
def test_columns_of_any_size_have_a_scale(scale):
    form = standardising(np.array([[0.0], [scale], [scale]]), "x")
    assert 0 < form.scale[0] < np.inf and np.isfinite(form.loc).all()


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (
            np.array([[1.0], [np.nan]]),
            "^x: images: expected finite numbers, got NaN or inf; data.m",
        ),
        (np.array([[1e308], [-1e308]]), "expected finite numbers, got NaN or inf"),
        (np.zeros((0, 3)), r"expected shape \(N, D\) without a 0, got \(0, 3\)"),
        (np.array([["a"]]), "expected numbers, got dtype <U1"),
        (np.array([[1j]]), "expected numbers, got dtype complex128"),
    ],
)
def test_vectors_that_are_none_are_one_line(x, match):
    with pytest.raises(UserError, match=match):
        ImageData("x", x)


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16])
def test_images_of_any_range(tmp_path, kind):
    sixteen = (BYTES / 255.0 * 16).astype(kind)
    data = as_images(sixteen)
    assert data.images.min() == 0 and data.images.max() == 1 and data.form.layout == "grey"
    assert np.allclose(back(data), sixteen, atol=1e-5)
    new = ImageData("new", sixteen + 16, form=data.form)
    assert new.images.max() == 2 and not data.form.unit
    np.save(tmp_path / "x.npy", sixteen)
    np.savez_compressed(tmp_path / "x.npz", x=sixteen)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["images"] = sixteen
    files = [tmp_path / f"x.{ending}" for ending in ("npy", "npz", "h5")]
    same = [ImageData("x", sixteen), *map(load, files)]
    same += [load(file, stream=True) for file in files]
    for other in same:
        assert torch.equal(other.images[:].to("cpu"), data.images) and other.form.same_units(
            data.form
        )
    with pytest.raises(UserError, match="images: expected finite numbers, got NaN or inf"):
        ImageData.stored("x", torch.full((1, 1, 2, 2), np.inf), form=data.form)
    with pytest.raises(UserError, match=r"expected floats in \[0, 1\], got 2 to 2"):
        ImageData.stored("x", torch.full((1, 1, 2, 2), 2.0))
    flat = ranging(np.full((3, 2, 2), 5.0), "grey", "x")
    assert (flat.loc, flat.scale) == (5.0, 1.0)


@pytest.mark.parametrize(
    ("array", "layout"),
    [
        (BYTES, "grey"),
        (np.stack([BYTES] * 3, -1), "channels_last"),
        (np.stack([BYTES] * 3, 1), "channels_first"),
    ],
)
def test_layouts_come_back(array, layout):
    data = as_images(array)
    assert data.form.layout == layout and data.form.in_bytes and data.form.unit
    assert data.form.shape_of(data.image_shape) == array.shape[1:]
    assert np.array_equal(np.rint(255 * back(data)), array)
    train, held_out = data.split(0.25, seed=0)
    assert train.form is held_out.form is data.form is data.subset([1]).form


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_images_of_another_type_are_converted_however_many_there_are(dtype):
    array = np.random.default_rng(0).random((200, 64, 64)).astype(dtype)
    assert array.nbytes > BLOCK
    found = ImageData("a", array).images
    assert torch.equal(found[:, 0], torch.from_numpy(array.astype(np.float32)))


def test_black_and_white_are_no_bytes():
    bits = (BYTES > 127).astype(np.uint8)
    for array in (bits, bits.astype(bool)):
        data = as_images(array)
        assert not data.form.in_bytes and np.array_equal(back(data), bits)
        # Of a known form bytes are bytes, also where they are dark.
    dark = ImageData("dark", bits, form=as_images(BYTES).form)
    assert dark.images.max() == 1
    assert ImageData("new", bits, form=as_images(bits).form).images.max() == 255


def test_shape_changes_keep_the_form_or_refuse():
    grey = as_images(BYTES)
    coloured, _ = grey.fitted((3, 10, 10))
    assert coloured.form.layout == "channels_first" and coloured.form.in_bytes
    assert grey.fitted((1, 10, 10))[0].form.layout == "grey"
    vectors = as_images(RNG.normal(size=(9, 4)))
    assert vectors.fitted((1, 1, 4))[0].form is vectors.form
    with pytest.raises(UserError, match="cannot make images"):
        vectors.fitted((1, 2, 2))


def test_volumes_of_densities():
    assert Form().log_volume(10) == 0.0
    assert Form(in_bytes=True).log_volume(10) == pytest.approx(10 * np.log(255))
    assert ranging(16 * np.eye(4)[None], "grey", "x").log_volume(16) == 16 * np.log(16)
    form = standardising(np.array([[0.0, 0.0], [2.0, 20.0]]), "x")
    assert form.log_volume(2) == pytest.approx(np.log(10))


# What counts as data -------------------------------------------------------------------------


class Pairs(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def test_torch_data_sets():
    images = torch.from_numpy(BYTES)
    alone = as_images(Pairs(list(images)))
    assert torch.equal(alone.images, as_images(BYTES).images) and alone.factors is None
    labelled = as_images(TensorDataset(images, torch.arange(12)))
    assert labelled.factor_names == ("label",) and labelled.factors[:, 0].tolist() == list(
        range(12)
    )
    pictures = as_images(Pairs([(Image.fromarray(image), "a name") for image in BYTES]))
    assert torch.equal(pictures.images, alone.images) and pictures.factors is None
    assert as_images(TensorDataset(torch.randn(9, 4))).image_shape == (1, 1, 4)


class Endless(IterableDataset):
    def __iter__(self):
        return iter(BYTES)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (Pairs([]), "images: expected images, got an empty Pairs"),
        (Pairs([BYTES[0], BYTES[1, :4]]), r"images\[1\]: expected uint8 of shape \(8, 9\)"),
        (Pairs([{}]), r"images\[0\]: expected an array or a tensor, got dict"),
        (Endless(), "expected a Dataset of known length, got an Endless"),
        (5, "expected an array, a tensor, .* got 5"),
        ([[1.0]], "expected an array, a tensor, .* got a list"),
        ("nowhere", "unknown data 'nowhere'"),
        (np.zeros(3), r"images: expected shape \(N, H, W\)"),
    ],
)
def test_what_is_no_data_is_one_line(data, match):
    with pytest.raises(UserError, match=match):
        as_images(data)


def test_folders_of_pictures(tmp_path):
    for i in reversed(range(4)):
        Image.fromarray(BYTES[i]).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("none")
    data = ng.load_data(tmp_path)
    assert torch.equal(data.images[:, 0], torch.from_numpy(BYTES[:4]))
    assert data.form.layout == "grey" and data.form.in_bytes and data.name == tmp_path.name
    assert ng.load_data(f"{tmp_path}/", n=2).images.shape == (2, 1, 8, 9)
    Image.fromarray(np.stack([BYTES[0]] * 3, -1)).save(tmp_path / "4.PNG")
    data = as_images(tmp_path)
    assert data.image_shape == (3, 8, 9) and len(data) == 5 and data.form.layout == "channels_last"
    Image.fromarray(BYTES[0]).save(tmp_path / "5.jpg")
    assert len(as_images(tmp_path)) == 6
    Image.fromarray(BYTES[0, :4]).save(tmp_path / "6.png")
    with pytest.raises(UserError, match="6.png: expected 9x8 pixels as '0.png', got 9x4$"):
        as_images(tmp_path)
    (tmp_path / "6.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="6.png: cannot read the picture: "):
        as_images(tmp_path)
    Image.fromarray(np.zeros((8, 9), np.uint16)).save(tmp_path / "6.png")
    with pytest.raises(UserError, match="6.png: expected 8 bits of grey or of each colour, got"):
        as_images(tmp_path)
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "6.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="6.png: cannot read the picture: "):
        as_images(tmp_path)


@pytest.mark.parametrize(
    ("array", "layout", "in_bytes"),
    [
        (BYTES, "grey", True),
        (np.asfortranarray(BYTES), "grey", True),
        (np.stack([BYTES] * 3, -1), "channels_last", True),
        (BYTES > 127, "grey", False),
        (np.float32(BYTES / 255), "grey", False),
        (RNG.normal(size=(9, 4)), "vectors", False),
        (RNG.integers(0, 99, (9, 4)), "vectors", False),
    ],
)
def test_npy_files(tmp_path, array, layout, in_bytes):
    np.save(tmp_path / "x.npy", array)
    data = ng.load_data(tmp_path / "x.npy")
    assert (data.form.layout, data.form.in_bytes) == (layout, in_bytes)
    assert torch.equal(data.images, as_images(array).images) and data.name == "x"
    if layout != "vectors":
        np.savez(tmp_path / "x.npz", imgs=array)
        assert ng.load_data(tmp_path / "x.npz").form.layout == layout


@pytest.mark.parametrize("dtype", ["i1", "u2", ">u2", "i4", "u4", "i8", "u8"])
@pytest.mark.parametrize("shape", [(12, 8, 9), (12, 8, 9, 1), (36, 24)])
def test_integers_of_any_width_in_files_and_arrays(tmp_path, dtype, shape):
    """Of images the lowest becomes 0 and the highest 1, of vectors each column is standardised."""
    array = (BYTES.reshape(shape) // 2).astype(dtype)
    np.save(tmp_path / "x.npy", np.asfortranarray(array))
    np.savez(tmp_path / "x.npz", x=array)
    expected = as_images(array)
    assert np.allclose(back(expected), array, atol=1e-3)
    for data in (
        ng.load_data(tmp_path / "x.npy"),
        ng.load_data(tmp_path / "x.npz"),
        ImageData("x", array),
    ):
        assert torch.equal(data.images, expected.images) and data.form.same_units(expected.form)
        assert data.form.layout == expected.form.layout and data.images.dtype == torch.float32


def test_integers_far_from_zero_keep_their_differences():
    array = np.arange(12).reshape(3, 2, 2) + 2**40
    assert torch.equal(as_images(array).images.flatten(), torch.arange(12) / 11)


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (lambda path: path.write_bytes(b"x"), "expected a numpy array"),
        (lambda path: np.save(path, np.array([{}])), r"got object \(pickled\)"),
        (lambda path: np.save(path, np.zeros((1, 3))), "expected at least 2 vectors"),
        (lambda path: np.save(path, np.full((3, 2), np.inf)), "expected finite numbers"),
        (lambda path: path.write_bytes(_npy()[:-1]), "bytes of data for"),
        (lambda path: None, "expected an .npy file, found no such file"),
    ],
)
def test_broken_npy_files_are_one_line(tmp_path, write, match):
    write(tmp_path / "x.npy")
    with pytest.raises(UserError, match=f"^{tmp_path}/x.npy: .*{match}"):
        ng.load_data(tmp_path / "x.npy")


def _npy():
    from io import BytesIO

    file = BytesIO()
    np.save(file, BYTES)
    return file.getvalue()
