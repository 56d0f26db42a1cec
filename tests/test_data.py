"""Sprites against a per-pixel reference; every loader against good, bad and broken files."""

import gzip
import hashlib
import importlib
import io
import math
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ngvae_pyro.data import load, load_idx, load_npz, torchvision_data
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.data.rendering import SHAPES, SPRITE_FACTORS, sprites
from ngvae_pyro.data.rows import BLOCK
from ngvae_pyro.errors import Notice, UserError

SEVEN = ("x", "y", "size", "red", "green", "blue", "background")


def rng():
    return np.random.default_rng(0)


# ImageData


def numbered(n=10):
    """Images whose pixels, and whose one factor, say which image it is."""
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, 4, 5).clone()
    return ImageData("numbered", images, torch.arange(n)[:, None], ("which",))


def test_image_data_shapes_and_access():
    data = numbered()
    assert len(data) == 10 and data.image_shape == (3, 4, 5) and data.nbytes == 600
    assert data.factors.dtype == torch.float32
    assert data[3].dtype == torch.uint8 and (data[3] == 3).all()
    assert repr(data) == "ImageData('numbered', 10 images of 3x4x5, which)"
    batches = list(torch.utils.data.DataLoader(data, batch_size=4))
    assert [tuple(b.shape) for b in batches] == [(4, 3, 4, 5), (4, 3, 4, 5), (2, 3, 4, 5)]
    assert torch.equal(torch.cat(batches), data.images)


def test_images_are_stored_as_bytes_or_float32():
    boolean = ImageData("b", torch.tensor([True, False]).view(2, 1, 1, 1))
    assert boolean.images.dtype == torch.uint8 and boolean.images.flatten().tolist() == [255, 0]
    double = ImageData("d", torch.full((2, 1, 2, 2), 0.25, dtype=torch.float64))
    assert double.images.dtype == torch.float32
    assert torch.equal(ImageData.to_unit(double.images), double.images)
    assert ImageData.to_unit(boolean.images).flatten().tolist() == [1.0, 0.0]
    with pytest.raises(TypeError, match="got torch.int64"):
        ImageData.to_unit(torch.zeros(2, dtype=torch.long))


IMAGES = torch.zeros(3, 1, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((IMAGES[0, 0, 0],), r"expected shape \(N, H, W\), .* got \(2,\)"),
        ((IMAGES[:0],), r"got \(0, 1, 2, 2\)"),
        ((IMAGES.numpy().astype(complex),), "expected numbers, got dtype complex128"),
        (("a.npz",), "bad: images: expected an array or a tensor, got str"),
        (([IMAGES],), "bad: images: expected an array or a tensor, got list"),
        ((IMAGES.to_sparse(),), "expected a dense tensor, got torch.sparse_coo"),
        (
            (np.zeros((9, 3, 8, 3)),),
            r"got \(9, 3, 8, 3\), which could be both; pass grey images as",
        ),
        ((np.zeros((9, 8, 8, 8)),), r"got \(9, 8, 8, 8\), which is neither; .*ImageData.stored"),
        (
            (IMAGES, [[b"a"], [b"b"], [b"c"]], ("a",)),
            r"factors: expected numbers or text of shape \(N, F\), got \|S1 of shape \(3, 1\)",
        ),
        ((IMAGES * math.nan,), "got nan to nan"),
        ((IMAGES, None, ("a",)), "factor names without factors: a"),
        ((IMAGES, torch.zeros(2, 1), ("a",)), r"expected shape \(3, 1\).* got \(2, 1\)"),
        ((IMAGES, torch.zeros(3, 2), ("a", "a")), "no name twice, got a, a"),
        ((IMAGES, torch.full((3, 1), math.inf), ("a",)), "expected finite float32 values"),
    ],
)
def test_image_data_refuses(arguments, match):
    with pytest.raises(UserError, match=match):
        ImageData("bad", *arguments)


@pytest.mark.parametrize("held_out", [3, 0.3])
def test_split_is_disjoint_complete_and_seeded(held_out):
    data = numbered()
    train, test = data.split(held_out, seed=1)
    assert (len(train), len(test)) == (7, 3)
    assert sorted(torch.cat([train.factors, test.factors]).flatten().tolist()) == list(range(10))
    for part in (train, test):
        assert torch.equal(part.images[:, 0, 0, 0].float(), part.factors[:, 0])
    again, _ = data.split(held_out, seed=1)
    other, _ = data.split(held_out, seed=2)
    assert torch.equal(train.factors, again.factors)
    assert not torch.equal(train.factors, other.factors)


@pytest.mark.parametrize("held_out", [0, 10, -1, 0.0, 0.01, 1.0, 2.5, math.nan])
def test_split_refuses_an_empty_part(held_out):
    with pytest.raises(UserError, match="expected to hold out 1 to 9 of 10 images"):
        numbered().split(held_out, seed=0)


@pytest.mark.parametrize("index", [[4, 2], torch.tensor([4, 2]), slice(4, 1, None)])
def test_subset(index):
    index = slice(2, 5, 2) if isinstance(index, slice) else index
    part = numbered().subset(index)
    assert sorted(part.factors.flatten().tolist()) == [2.0, 4.0]
    assert torch.equal(part.images[:, 0, 0, 0].float(), part.factors[:, 0])


def test_a_bad_seed_is_refused():
    with pytest.raises(UserError, match=r"seed: expected an integer in \[0, 2\*\*63\), got -1"):
        sprites(2, seed=-1)


@pytest.mark.parametrize("how", ["mask", "list of bool", "array"])
def test_subset_by_a_mask_and_by_an_array(how):
    mask = np.arange(10) % 3 == 1
    index = {"mask": mask, "list of bool": mask.tolist(), "array": np.array([1, 4, 7])}[how]
    assert numbered().subset(index).factors.flatten().tolist() == [1.0, 4.0, 7.0]
    with pytest.raises(UserError, match="expected a non-empty tensor"):
        numbered().subset([])


def large():
    """Images of several blocks, each with its number in its factor and in its first bytes."""
    images = torch.from_numpy(rng().integers(0, 256, (500, 3, 64, 64), dtype=np.uint8))
    images[:, 0, 0, 0], images[:, 0, 0, 1] = torch.arange(500) // 256, torch.arange(500) % 256
    assert images.nbytes > 4 * BLOCK
    return ImageData("large", images, torch.arange(500.0), "which")


@pytest.mark.parametrize("held_out", [1, 0.1, 0.5, 499])
def test_split_in_place_gives_the_parts_of_a_split(held_out):
    data, whole = large(), large()
    expected, found = data.split(held_out, seed=1), whole.split(held_out, seed=1, in_place=True)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.factors, other.factors)
        assert other.images.data_ptr() in range(
            whole.images.data_ptr(), whole.images.data_ptr() + whole.nbytes
        )
    # The whole has every image still, with its own factor.
    number = whole.images[:, 0, 0, 0].int() * 256 + whole.images[:, 0, 0, 1]
    assert torch.equal(whole.factors[:, 0], number.float())
    assert sorted(number.tolist()) == list(range(500))


@pytest.mark.parametrize("count", [1, 200, 499, 500])
def test_some_in_place_are_those_of_a_subset(count):
    order = torch.randperm(500, generator=torch.Generator().manual_seed(3))[:count]
    expected, found = large().subset(order), large().reordered(order)
    assert torch.equal(expected.images, found.images)
    assert torch.equal(expected.factors, found.factors)


def test_digest_and_binary_of_more_than_a_block_are_those_of_all():
    data = large()
    text = f"uint8 {tuple(data.images.shape)} ".encode()
    expected = hashlib.sha256(text + data.images.numpy().tobytes()).hexdigest()
    assert data.digest == expected
    # Not contiguous in memory, as images in which grey is repeated.
    grey = ImageData.stored("g", data.images[:, :1].expand(-1, 3, -1, -1))
    assert grey.digest == ImageData.stored("g", grey.images.clone()).digest
    white = ImageData("w", torch.full((500, 1, 64, 64), True))
    assert white.binary and not data.binary
    white.images[-1, 0, -1, -1] = 1
    assert not white.binary


# Arrays in memory


BITS = rng().integers(0, 2, (10, 6, 7), dtype=np.uint8)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("of", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
@pytest.mark.parametrize(
    ("images", "shape"),
    [
        (BITS, (1, 6, 7)),
        (BITS[..., None], (1, 6, 7)),
        (BITS.astype(bool), (1, 6, 7)),
        (rng().integers(0, 256, (10, 28, 28, 3), dtype=np.uint8), (3, 28, 28)),
        (rng().integers(0, 256, (10, 28, 28, 4), dtype=np.uint8), (4, 28, 28)),
        (rng().integers(0, 256, (10, 2, 6, 7), dtype=np.uint8), (2, 6, 7)),
        (rng().random((10, 3, 6, 7)), (3, 6, 7)),
        (rng().random((10, 6, 7, 3), np.float32), (3, 6, 7)),
        (rng().random((10, 6, 7)).astype(np.float16), (1, 6, 7)),
    ],
)
def test_arrays_are_read_as_files_are(tmp_path, images, shape, of):
    before = images.copy()
    data = ImageData("a", of(images))
    loaded = load_npz(write_npz(tmp_path / "a.npz", imgs=images))
    assert data.image_shape == shape and data.images.dtype == loaded.images.dtype
    assert torch.equal(data.images, loaded.images) and data.binary == loaded.binary
    assert data.images.is_contiguous() and np.array_equal(images, before)


def test_zeros_and_ones_are_black_and_white():
    data = ImageData("a", BITS)
    assert data.binary and torch.equal(data.images.unique(), torch.tensor([0, 255]).byte())
    # Not in a part of darker images, nor where it is said that they are stored.
    dark = ImageData("d", np.repeat(np.uint8([0, 1, 2, 9]), 4).reshape(4, 2, 2))
    part = dark.subset([0, 1])
    assert part.images.unique().tolist() == [0, 1] and part.fitted((3, 4, 4))[0].images.max() == 1
    assert dark.split(2, seed=0)[0].images.max() < 10
    stored = ImageData.stored("s", torch.ones(2, 3, 4, 3, dtype=torch.uint8))
    assert stored.image_shape == (3, 4, 3) and (stored.images == 1).all()
    with pytest.raises(UserError, match=r"non-empty tensor \(N, C, H, W\).*got ndarray"):
        ImageData.stored("s", BITS)
    with pytest.raises(UserError, match=r"expected floats in \[0, 1\], got 2 to 2"):
        ImageData.stored("s", torch.full((1, 1, 2, 2), 2.0))


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(FLOATS32 := rng().random((10, 6, 7), np.float32)),
        FLOATS32.astype(">f4"),
        read_only(FLOATS32),
        np.repeat(FLOATS32, 2, axis=0)[::2],
        FLOATS32[::-1][::-1],
        torch.from_numpy(FLOATS32.copy()).requires_grad_(),
        torch.from_numpy(FLOATS32.transpose(2, 0, 1).copy()).permute(1, 2, 0),
    ],
    ids=["Fortran", "big-endian", "read-only", "strided", "turned", "gradient", "permuted"],
)
def test_arrays_of_any_memory(array):
    data = ImageData("a", array)
    np.testing.assert_array_equal(data.images.numpy(), FLOATS32[:, None])
    assert data.images.is_contiguous() and not data.images.requires_grad


def test_what_is_stored_already_is_not_copied():
    array = rng().integers(0, 256, (5, 3, 6, 7), dtype=np.uint8)
    assert np.shares_memory(ImageData("a", array).images.numpy(), array)
    sixteen = torch.rand(5, 1, 6, 7).bfloat16()
    assert torch.equal(ImageData("b", sixteen).images, sixteen.float())


def test_factors_of_arrays():
    data = ImageData("a", BITS, np.arange(10), "which")
    assert data.factor_names == ("which",) and data.factors.flatten().tolist() == list(range(10))
    with pytest.raises(UserError, match="expected a name and then the images, got ndarray as"):
        ImageData(BITS, "a")


def test_an_idx_file_of_zeros_and_ones_is_black_and_white(tmp_path):
    (tmp_path / "a-idx3-ubyte").write_bytes(idx(BITS))
    data = load_idx(tmp_path / "a-idx3-ubyte")
    np.testing.assert_array_equal(data.images.numpy(), 255 * BITS[:, None])


@pytest.mark.parametrize("read", [load, load_npz, load_idx])
@pytest.mark.parametrize("what", [torch.rand(3), BITS, [1, 2], b"a.npz", None])
def test_what_is_no_name_is_refused_and_not_shown(read, what):
    line = f"^expected data by name or path, as str or Path, got {type(what).__name__}; .*ImageData"
    with pytest.raises(UserError, match=line):
        read(what)


# Sprites


def disc_reference(factors, resolution, edge):
    """The documented formula, a pixel at a time in float64, before rounding."""
    x, y, size, red, green, blue, background = (float(value) for value in factors)
    image = np.empty((3, resolution, resolution))
    for row in range(resolution):
        for column in range(resolution):
            offset = ((column + 0.5) / resolution - x, (row + 0.5) / resolution - y)
            pixels = 32 * (math.hypot(*offset) - size)
            coverage = min(max(0.5 - pixels / edge, 0.0), 1.0)
            for channel, colour in enumerate((red, green, blue)):
                image[channel, row, column] = background * (1 - coverage) + colour * coverage
    return 255 * image


@pytest.mark.parametrize(
    ("resolution", "edge"), [(32, 3.0), (32, 1.0), (64, 3.0), (64, 0.5), (128, 3.0)]
)
def test_sprites_equal_the_per_pixel_reference(resolution, edge):
    data = sprites(4, seed=5, resolution=resolution, edge=edge)
    assert data.image_shape == (3, resolution, resolution) and data.images.dtype == torch.uint8
    for image, factors in zip(data.images, data.factors, strict=True):
        reference = disc_reference(factors, resolution, edge)
        # Half a step is rounding; the rest is float32 against float64.
        assert np.abs(image.numpy() - reference).max() < 0.5 + 2e-3


def test_sprites_are_determined_by_the_seed():
    first, again, other = sprites(50, seed=3), sprites(50, seed=3), sprites(50, seed=4)
    assert torch.equal(first.images, again.images) and torch.equal(first.factors, again.factors)
    assert not torch.equal(first.factors, other.factors)


def test_chunks_do_not_show():
    data = sprites(2005, seed=0, vary=("x", "red"), resolution=32)
    for image, factors in zip(data.images[1999:2002], data.factors[1999:2002], strict=True):
        assert np.abs(image.numpy() - disc_reference(factors, 32, 3.0)).max() < 0.5 + 2e-3


def test_default_factors_are_uniform_and_independent():
    data = sprites(4000, seed=0)
    assert data.factor_names == SEVEN and data.factors.shape == (4000, 7)
    for column, (low, high) in zip(data.factors.T, SPRITE_FACTORS.values(), strict=True):
        width = high - low
        assert low <= column.min() < low + 0.01 * width
        assert high - 0.01 * width < column.max() <= high
        assert abs(column.mean() - (low + high) / 2) < 0.02 * width
        assert abs(column.var() - width**2 / 12) < 0.06 * width**2 / 12
    correlation = torch.corrcoef(data.factors.T) - torch.eye(7)
    assert correlation.abs().max() < 0.06


@pytest.mark.parametrize("name", [*SEVEN, "hue", "rotation", "shape"])
def test_each_factor_alone_changes_the_image(name):
    data = sprites(30, vary=(name,))
    assert data.factors[:, data.factor_names.index(name)].unique().numel() > 1
    constant = [i for i, other in enumerate(data.factor_names) if other != name]
    assert (data.factors[:, constant] == data.factors[0, constant]).all()
    # Rounding to bytes may make two images equal.
    different = data.images.flatten(1).unique(dim=0).shape[0]
    assert different == 3 if name == "shape" else different > 20


def test_holding_factors_leaves_the_others_as_they_were():
    everything, two = sprites(20), sprites(20, vary=("y", "x"), hold={"red": 0.9, "size": 0.2})
    assert two.factor_names == SEVEN and two.name == "sprites:x,y"
    assert torch.equal(two.factors[:, :2], everything.factors[:, :2])
    expected = torch.tensor([0.2, 0.9, 0.7, 0.7, 0.2])
    assert torch.allclose(two.factors[:, 2:], expected.expand(20, 5))


def test_a_held_factor_does_not_vary():
    data = sprites(20, hold={"red": 0.5, "background": 0.0})
    assert data.name == "sprites:x,y,size,green,blue"
    assert torch.equal(data.factors[:, :3], sprites(20).factors[:, :3])
    assert (data.factors[:, [3, 6]] == torch.tensor([0.5, 0.0])).all()


def test_optional_factors_follow_the_seven():
    data = sprites(600, vary=("shape", *SEVEN, "hue", "rotation"))
    assert data.factor_names == (*SEVEN, "hue", "rotation", "shape")
    assert data.factors[:, 9].unique().tolist() == [0.0, 1.0, 2.0]
    assert 0.95 * 2 * math.pi < data.factors[:, 8].max() < 2 * math.pi
    held = sprites(2, hold={"shape": "triangle"})
    assert held.factor_names == (*SEVEN, "shape") and (held.factors[:, 7] == 2).all()
    assert torch.equal(held.images, sprites(2, hold={"shape": 2}).images)


@pytest.mark.parametrize(("shape", "sides"), [("square", 4), ("triangle", 3)])
def test_rotation_covers_one_period_of_the_shape(shape, sides):
    data = sprites(300, vary=("rotation",), hold={"shape": shape})
    rotation = data.factors[:, data.factor_names.index("rotation")]
    assert 0.95 * 2 * math.pi / sides < rotation.max() < 2 * math.pi / sides
    start, end = (
        sprites(1, hold={"shape": shape, "rotation": angle}).images.int()
        for angle in (0.0, 2 * math.pi / sides)
    )
    assert (start - end).abs().max() <= 1


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_have_their_area_and_stay_inside(shape):
    hold = {"shape": shape, "size": 0.3, "x": 0.3, "y": 0.7, "background": 0.0}
    data = sprites(3, hold=hold, resolution=64, edge=0.5)
    coverage = data.images[:, 0].float().mean((1, 2)) / 255 / data.factors[:, 3]
    sides = {"square": 4, "triangle": 3}.get(shape)
    area = 0.09 * (math.pi if sides is None else sides / 2 * math.sin(2 * math.pi / sides))
    assert (coverage - area).abs().max() < 0.003


def test_polygons_stand_upright():
    hold = {"x": 0.5, "y": 0.5, "size": 0.3, "background": 0.0}
    square = sprites(1, vary=("red",), hold=hold | {"shape": "square"}).images[0, 0].int()
    assert (square - square.T).abs().max() <= 1 and (square - square.flip(0)).abs().max() <= 1
    assert square[16, 16] == square[11, 11] > square[5, 5]  # a diamond would be empty at (11, 11)
    triangle = sprites(1, vary=("red",), hold=hold | {"shape": "triangle"}).images[0, 0].float()
    assert (triangle - triangle.flip(1)).abs().max() <= 1
    widths = (triangle > triangle.max() / 2).sum(1)
    assert widths[10] < widths[14] < widths[18] and widths[10] > 0
    assert widths[23] == 0 < widths[9]  # the apex is farther from the centre than the base


def test_hue_turns_red_into_green_into_blue():
    hold = {"red": 1.0, "green": 0.4, "blue": 0.4, "x": 0.5, "y": 0.5, "size": 0.2}
    for turn in range(3):
        data = sprites(1, hold=hold | {"hue": turn * 2 * math.pi / 3})
        pixel = data.images[0, :, 16, 16].tolist()
        assert pixel == [255 if channel == turn else 102 for channel in range(3)]


def test_a_factor_may_vary_in_a_range_of_its_own():
    usual, beyond = sprites(500), sprites(500, ranges={"background": (0.4, 0.8)})
    assert beyond.name == "sprites:background=0.4..0.8"
    assert torch.equal(usual.factors[:, :6], beyond.factors[:, :6])
    torch.testing.assert_close(usual.factors[:, 6] + 0.4, beyond.factors[:, 6])
    two = sprites(500, vary=("x", "size"), ranges={"x": (0.7, 0.8), "size": (0.15, 0.2)})
    assert two.name == "sprites:x=0.7..0.8,size=0.15..0.2"
    x, size = two.factors[:, 0], two.factors[:, 2]
    assert x.min() >= 0.7 and (x + size).max() <= 1.0 and len(two.factors[:, 3].unique()) == 1
    # The size that is not named is held at 0.225.
    assert sprites(5, vary=("x",), ranges={"x": (0.7, 0.77)}).factors[:, 0].min() > 0.7


def test_a_wider_edge_is_softer():
    def sharpest_step(edge, resolution=32):
        row = sprites(1, edge=edge, resolution=resolution).images[0, 0, resolution // 2].int()
        return row.diff().abs().max()

    assert sharpest_step(1.0) > sharpest_step(3.0) > sharpest_step(6.0)
    # The same relative edge takes twice the pixels.
    assert sharpest_step(3.0) > sharpest_step(3.0, resolution=64)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"n": 0}, "n: expected at least 1 image, got 0"),
        ({"resolution": 28}, "resolution: expected 32, 64 or 128, got 28"),
        ({"edge": 0.9}, "edge: expected 1 to 32 pixels, got 0.9"),
        ({"edge": 0.4, "resolution": 64}, "edge: expected 0.5 to 32"),
        ({"edge": math.nan}, "edge: expected"),
        ({"vary": ("x", "siez")}, "unknown factor 'siez'.* did you mean 'size'"),
        ({"vary": ()}, "at least one factor to vary and none named twice, got none"),
        ({"vary": ("x", "x")}, "got x, x"),
        ({"hold": {"sahpe": 1}}, "unknown factor 'sahpe'.* did you mean 'shape'"),
        ({"vary": SEVEN, "hold": {"x": 0.5}}, "x cannot both vary and be held at 0.5"),
        ({"vary": ("x",), "hold": {"red": 1.1}}, r"red: expected a value in \[0, 1\], got 1.1"),
        ({"vary": ("x",), "hold": {"red": math.nan}}, "red: expected a finite number, got nan"),
        ({"vary": ("x",), "hold": {"red": "full"}}, "red: expected a finite number, got 'full'"),
        ({"hold": {"shape": "star"}}, "expected one of disc, square, triangle or 0..2, got 'star'"),
        ({"hold": {"shape": 1.5}}, "shape: expected .* got 1.5"),
        ({"vary": ("rotation",), "hold": {"shape": "disc"}}, "does not show on the held shape"),
        ({"vary": ("hue",), "hold": {"red": 0.4}}, "does not show on the held grey"),
        ({"ranges": {"siez": (0.1, 0.2)}}, "unknown factor 'siez'.* did you mean 'size'"),
        ({"ranges": {"hue": (0.1, 0.2)}}, "hue: got the range 0.1..0.2, but it has none"),
        ({"vary": ("x",), "ranges": {"y": (0.4, 0.6)}}, "y: got the range .* does not vary"),
        (
            {"ranges": {"red": (0.4, 1.1)}},
            r"red: expected a range low..high in \[0, 1\], got 0.4..1.1",
        ),
        ({"ranges": {"red": (0.5, 0.4)}}, "got 0.5..0.4"),
        ({"ranges": {"red": (math.nan, 0.4)}}, "got nan..0.4"),
        (
            {"ranges": {"size": (0.3, 0.4)}},
            "size 0.4 at x 0.3..0.7 leaves the image; expected x in 0.4..0.6 or size up to 0.3",
        ),
        ({"ranges": {"y": (0.7, 0.8)}}, "size 0.3 at y 0.7..0.8 .* size up to 0.2"),
        ({"ranges": {"size": (0.1, 0.6)}}, "leaves the image; expected size up to 0.3"),
    ],
)
def test_sprites_refuse(arguments, match):
    with pytest.raises(UserError, match=match):
        sprites(**{"n": 2, **arguments})


# .npz


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


BYTES = rng().integers(0, 256, (5, 6, 7), dtype=np.uint8)
BINARY = rng().integers(0, 2, (5, 6, 7), dtype=np.uint8)
FLOATS = rng().random((5, 6, 7), dtype=np.float32)
COLOUR = rng().integers(0, 256, (5, 3, 6, 7), dtype=np.uint8)


@pytest.mark.parametrize(
    ("imgs", "expected"),
    [
        (BYTES, BYTES[:, None]),
        (BYTES[..., None], BYTES[:, None]),
        (BYTES[:, None], BYTES[:, None]),
        (np.asfortranarray(BYTES), BYTES[:, None]),
        (BINARY, 255 * BINARY[:, None]),
        (BINARY.astype(bool), 255 * BINARY[:, None]),
        (BINARY.astype(bool)[..., None], 255 * BINARY[:, None]),
        (COLOUR, COLOUR),
        (np.asfortranarray(COLOUR), COLOUR),
        (np.asfortranarray(COLOUR.transpose(0, 2, 3, 1)), COLOUR),
        (COLOUR.transpose(0, 2, 3, 1), COLOUR),
        (FLOATS, FLOATS[:, None]),
        (FLOATS.astype(">f8"), FLOATS[:, None]),
        (FLOATS.astype(np.float16), FLOATS.astype(np.float16)[:, None].astype(np.float32)),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_layouts(tmp_path, imgs, expected, save):
    save(tmp_path / "some.npz", imgs=imgs)
    data = load_npz(tmp_path / "some.npz")
    assert data.name == "some" and data.factors is None and data.factor_names == ()
    assert data.images.is_contiguous() and data.images.numpy().dtype == expected.dtype
    np.testing.assert_array_equal(data.images.numpy(), expected)


@pytest.mark.parametrize("dtype", ["f8", "f4", ">f4", "i8", "u1", "?"])
def test_npz_factors(tmp_path, dtype):
    values = rng().integers(0, 2, (5, 3)).astype(dtype)
    path = write_npz(tmp_path / "a.npz", imgs=BYTES, latents_values=values, latents_classes=1)
    data = load_npz(path)
    assert data.factor_names == ("factor_0", "factor_1", "factor_2")
    np.testing.assert_array_equal(data.factors.numpy(), values.astype(np.float32))


def test_npz_names_and_classes(tmp_path):
    values, names = np.arange(5), np.array(["größe"])
    path = write_npz(tmp_path / "a.npz", imgs=BYTES, latents_classes=values, latents_names=names)
    data = load_npz(path)
    assert data.factor_names == ("größe",) and data.factors.flatten().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("key", ["imgs", "x", "images"])
def test_npz_has_its_images_under_one_of_three_keys(tmp_path, key):
    arrays = {key: BYTES, "factors": np.eye(5)[:, :2], "factor_names": np.array(["a", "b"])}
    data = load_npz(write_npz(tmp_path / "a.npz", **arrays))
    assert torch.equal(data.images[:, 0], torch.from_numpy(BYTES))
    assert data.factor_names == ("a", "b") and data.factors[:, 0].tolist() == [1, 0, 0, 0, 0]


def test_npz_keys_that_are_not_used_are_named(tmp_path):
    path = write_npz(tmp_path / "a.npz", x=BYTES, labels=1, factor_names=np.array(["a"]))
    with pytest.warns(Notice, match="a.npz: not used: labels, factor_names; factors are read from"):
        assert load_npz(path).factors is None


def test_text_becomes_classes_in_alphabetical_order(tmp_path):
    shapes = np.array(["square", "ellipse", "heart", "ellipse", "square"])
    both = np.stack([shapes, shapes[::-1]], 1)
    path = write_npz(tmp_path / "a.npz", x=BYTES, factors=both)
    assert load_npz(path).factors.T.tolist() == [[2, 0, 1, 0, 2], [2, 0, 1, 0, 2][::-1]]
    path = write_npz(tmp_path / "a.npz", x=BYTES, factors=shapes.astype(">U9"))
    assert load_npz(path).factors.T.tolist() == [[2, 0, 1, 0, 2]]
    for text in (shapes, shapes.astype(object), shapes.tolist()):
        assert ImageData("a", BYTES, text, "s").factors.T.tolist() == [[2, 0, 1, 0, 2]]
    # Whichever rows come first.
    assert ImageData("a", BYTES, shapes[::-1], "s").factors.T.tolist() == [[2, 0, 1, 0, 2][::-1]]


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was loaded",))


def test_npz_like_dsprites_never_touches_the_pickled_metadata(tmp_path):
    metadata = np.array(Bomb(), dtype=object)
    path = write_npz(tmp_path / "a.npz", metadata=metadata, imgs=BINARY, latents_values=np.eye(5))
    assert load_npz(path).factors.shape == (5, 5)


OBJECTS = np.array([Bomb(), Bomb()], dtype=object)


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"im": BYTES}, "expected exactly one of the keys imgs, x, images, got im$"),
        ({}, "expected exactly one of the keys imgs, x, images, got no key$"),
        ({"images": BYTES, "x": BYTES}, "expected exactly one of the keys .*, got x, images$"),
        (
            {"x": BYTES, "factors": np.zeros(5), "latents_values": np.zeros(5)},
            "expected one of the keys latents_values, factors, got both$",
        ),
        (
            {"x": BYTES, "factors": 1, "factor_names": 1, "latents_names": 1},
            "expected one of the keys latents_names, factor_names, got both$",
        ),
        ({"imgs": BYTES[0, 0]}, r"imgs: expected shape \(N, H, W\).* got \(7,\)"),
        ({"imgs": BYTES[:1]}, r"expected at least 2 images, got shape \(1, 6, 7\)"),
        ({"imgs": BYTES[:0]}, r"got \(0, 6, 7\)"),
        ({"imgs": BYTES[:, :0]}, r"got \(5, 0, 7\)"),
        ({"imgs": BYTES[:, None, :, :, None, None]}, r"imgs: .* header"),
        ({"imgs": np.zeros((5, 7, 6, 7), "u1")}, r"got \(5, 7, 6, 7\), which is neither"),
        ({"imgs": np.zeros((5, 3, 6, 3), "u1")}, r"got \(5, 3, 6, 3\), which could be both"),
        ({"imgs": BYTES.astype(np.complex64)}, "expected dtype bool, integer or float, got '<c8'"),
        ({"imgs": OBJECTS}, r"imgs: expected dtype .*, got object \(pickled\)"),
        ({"imgs": FLOATS + np.inf}, "imgs: expected finite numbers, got NaN or inf"),
        ({"imgs": FLOATS * np.float32("nan")}, "got nan to nan"),
        ({"imgs": BYTES, "latents_values": np.zeros((4, 2))}, r"expected shape \(5, F\).*\(4, 2\)"),
        ({"imgs": BYTES, "latents_values": np.zeros((5, 0))}, r"got \(5, 0\)"),
        ({"imgs": BYTES, "latents_values": np.zeros((5, 1, 1))}, r"got \(5, 1, 1\)"),
        ({"imgs": BYTES, "latents_values": np.full(5, np.nan)}, "latents_values: .* NaN or inf"),
        ({"imgs": BYTES, "latents_values": np.full(5, 1e300)}, "expected finite float32"),
        ({"imgs": BYTES, "latents_values": np.full(5, b"a")}, "bool, integer, float or uni"),
        ({"imgs": BYTES, "latents_values": np.full((5, 1, 1), "a")}, r"got \(5, 1, 1\)"),
        ({"imgs": BYTES, "latents_values": OBJECTS}, r"latents_values: .* object \(pickled\)"),
        ({"imgs": BYTES, "latents_values": np.zeros(5, "c8")}, "latents_values: .*, got '<c8'"),
        (
            {"imgs": BYTES, "latents_values": np.zeros((5, 2)), "latents_names": np.array(["a"])},
            r"latents_names: expected 2 different printable names, got shape \(1,\): 'a'",
        ),
        (
            {"imgs": BYTES, "latents_values": np.zeros(5), "latents_names": np.array(["a\nb"])},
            r"latents_names: expected 1 different printable names, got shape \(1,\): 'a\\nb'",
        ),
        (
            {"imgs": BYTES, "latents_values": np.zeros(5), "latents_names": OBJECTS[:1]},
            r"latents_names: expected dtype unicode \(U\), got object \(pickled\)",
        ),
    ],
)
def test_npz_refuses_arrays(tmp_path, arrays, match):
    path = write_npz(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=match) as caught:
        load_npz(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def npy(descr="'|u1'", shape="(2, 2, 2)", data=bytes(8), version=b"\x01\x00"):
    """A member as somebody else, or an attacker, may write it."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header))
    return b"\x93NUMPY" + version + length + header + data


def write_zip(path, member, method=zipfile.ZIP_DEFLATED, key="imgs.npy"):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(key, member)
    return path


@pytest.mark.parametrize(
    "member",
    [npy(), npy(version=b"\x02\x00"), npy(shape="(2L, 2L, 2L)"), npy("'|b1'", data=b"\x07" * 8)],
)
def test_npz_headers_of_other_writers(tmp_path, member):
    data = load_npz(write_zip(tmp_path / "a.npz", member))
    assert data.images.shape == (2, 1, 2, 2) and data.images.unique().numel() == 1
    assert data.images.max() == (255 if b"b1" in member else 0)


@pytest.mark.parametrize(
    ("member", "match"),
    [
        (b"", "expected a numpy array"),
        (b"not an array", "expected a numpy array .* got b'not an a'"),
        (npy(version=b"\x03\x00"), "expected a numpy array"),
        (npy()[:40], "expected the header of a plain array"),
        (npy("[('a', '|u1')]"), "expected the header of a plain array"),
        (npy(shape="(2, -2, 2)"), "expected the header of a plain array"),
        (npy(shape="(" * 50 + ")" * 50), "expected the header of a plain array"),
        (npy("'<f3'"), "expected a numpy dtype, got '<f3'"),
        (npy(data=bytes(7)), r"expected 8 bytes of data for \(2, 2, 2\), got 7"),
        (npy(data=bytes(9)), r"expected 8 bytes of data for \(2, 2, 2\), got 9"),
        (npy(shape="(999999999999, 64, 64)"), "expected 4095999999995904 bytes of data"),
        (npy(shape=f"(0, {10**17}, {10**17})", data=b""), "expected shape .* without a 0"),
        (npy(shape="(60000, 1000, 1000)"), "bytes of data for.*60000"),
        (npy(shape="()", data=b"\x01"), "expected shape"),
    ],
)
def test_npz_refuses_members(tmp_path, member, match):
    with pytest.raises(UserError, match=f"bad.npz: imgs: .*{match}"):
        load_npz(write_zip(tmp_path / "bad.npz", member))


def test_npz_refuses_unknown_compression_and_encryption(tmp_path):
    path = write_zip(tmp_path / "bad.npz", npy(), zipfile.ZIP_LZMA)
    with pytest.raises(UserError, match="stored or deflate"):
        load_npz(path)
    content = bytearray(write_zip(path, npy(), zipfile.ZIP_STORED).read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="encrypted"):
        load_npz(path)


def test_npz_refuses_invalid_unicode(tmp_path):
    path = write_zip(tmp_path / "bad.npz", npy(), key="größe.npy")
    path.write_bytes(path.read_bytes().replace("größe".encode(), b"gr\xff\xff\xff\xffe"))
    with pytest.raises(UserError, match="bad.npz: cannot read the .npz file: 'utf-8'"):
        load_npz(path)
    path = write_npz(tmp_path / "bad.npz", imgs=BYTES, latents_values=np.zeros(5))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("latents_names.npy", npy("'<U1'", "(1,)", b"\xff\xff\xff\x7f"))
    with pytest.raises(UserError, match="latents_names: expected unicode"):
        load_npz(path)
    path = write_npz(tmp_path / "bad.npz", x=np.zeros((2, 3)))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("factors.npy", npy("'<U1'", "(2,)", b"\xff\xff\xff\x7f" * 2))
    with pytest.raises(UserError, match="factors: expected unicode"):
        load_npz(path)


def test_npz_refuses_what_is_no_zip(tmp_path):
    path = tmp_path / "bad.npz"
    with pytest.raises(UserError, match="bad.npz: expected an .npz file, found no such file"):
        load_npz(path)
    with pytest.raises(UserError, match="expected an .npz file, got a directory"):
        load_npz(tmp_path)
    for content in (b"", b"text", npy(), write_zip(path, npy()).read_bytes()[:-30]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="bad.npz: expected an .npz file, got a broken zip"):
            load_npz(path)


def small_npz(save):
    buffer = io.BytesIO()
    names = np.array(["a", "b"])
    save(buffer, imgs=BINARY, latents_values=np.ones((5, 2)), latents_names=names)
    return buffer.getvalue()


WHOLE = {save.__name__: small_npz(save) for save in (np.savez, np.savez_compressed)}


# What is corrupt may be a name, which is then that of a key that is not used.
@pytest.mark.filterwarnings("ignore:.*not used:ngvae_pyro.errors.Notice")
@settings(derandomize=True, max_examples=400, deadline=None)
@given(data=st.data(), kind=st.sampled_from(sorted(WHOLE)))
def test_a_corrupt_npz_loads_or_is_refused(tmp_path_factory, data, kind):
    content = bytearray(WHOLE[kind])
    edits = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255))
    for position, byte in data.draw(st.lists(edits, max_size=4)):
        content[position] = byte
    path = tmp_path_factory.getbasetemp() / "corrupt.npz"
    path.write_bytes(content[: data.draw(st.integers(0, 2 * len(content)))])
    try:
        loaded = load_npz(path)
    except UserError as error:
        assert "corrupt.npz" in str(error) and "\n" not in str(error)
    else:
        assert loaded.image_shape[0] == 1


# IDX


def idx(array):
    return (
        bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + bytes(array)
    )


LABELS = np.array([3, 1, 4, 1, 5], dtype=np.uint8)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("images_end", ["", ".gz"])
@pytest.mark.parametrize("labels_end", [None, "", ".gz"])
def test_idx(tmp_path, pack, images_end, labels_end):
    path = tmp_path / f"t10k-images-idx3-ubyte{images_end}"
    path.write_bytes(pack(idx(BYTES)))
    if labels_end is not None:
        (tmp_path / f"t10k-labels-idx1-ubyte{labels_end}").write_bytes(pack(idx(LABELS)))
    data = load_idx(path)
    assert data.name == "t10k-images-idx3-ubyte"
    np.testing.assert_array_equal(data.images.numpy(), BYTES[:, None])
    if labels_end is None:
        assert data.factors is None and data.factor_names == ()
    else:
        assert data.factors.flatten().tolist() == LABELS.tolist()
        assert data.factor_names == ("label",)


def test_idx_under_another_name_has_no_labels(tmp_path):
    (tmp_path / "digits-idx3-ubyte").write_bytes(idx(BYTES))
    (tmp_path / "digits-idx3-ubyte.gz").write_bytes(gzip.compress(idx(BYTES)))
    assert load_idx(tmp_path / "digits-idx3-ubyte").factors is None
    assert load_idx(tmp_path / "digits-idx3-ubyte.gz").factors is None


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "expected an IDX header 0x00000803 and 3 sizes, got 0x$"),
        (idx(LABELS), "got 0x00000801"),
        (idx(BYTES)[:10], "got 0x00000803"),
        (idx(BYTES)[:-1], r"expected 210 bytes of data for \(5, 6, 7\), got 209"),
        (idx(BYTES) + b"\x00", "got more"),
        (idx(BYTES[:1]), r"at least 2 images, got shape \(1, 6, 7\)"),
        (idx(BYTES)[:4] + b"\xff" * 12, "expected something that fits into the .* GiB of memory"),
        (gzip.compress(idx(BYTES))[:-20], "cannot read the IDX file"),
        (gzip.compress(idx(BYTES))[:-8] + bytes(8), "cannot read the IDX file: CRC"),
        (b"\x1f\x8b\x08\x00" + bytes(6) + b"\xff" * 20, "cannot read the IDX file"),
    ],
)
def test_idx_refuses(tmp_path, content, match):
    path = tmp_path / "bad-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path.name}: .*{match}"):
        load_idx(path)


def test_idx_refuses_a_missing_file_and_labels_of_another_length(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte"
    with pytest.raises(UserError, match="expected an IDX file, found no such file"):
        load_idx(path)
    path.write_bytes(idx(BYTES))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(LABELS[:4]))
    with pytest.raises(UserError, match="labels-idx1-ubyte: expected 5 labels for .* got 4"):
        load_idx(path)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(data=st.data(), content=st.sampled_from([idx(BYTES), gzip.compress(idx(BYTES), mtime=0)]))
def test_a_corrupt_idx_loads_or_is_refused(tmp_path_factory, data, content):
    content = bytearray(content)
    edits = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255))
    for position, byte in data.draw(st.lists(edits, max_size=4)):
        content[position] = byte
    path = tmp_path_factory.getbasetemp() / "corrupt-images-idx3-ubyte"
    path.write_bytes(content[: data.draw(st.integers(0, 2 * len(content)))])
    try:
        load_idx(path)
    except UserError as error:
        assert path.name in str(error) and "\n" not in str(error)


# torchvision


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_torchvision_data_that_is_missing(tmp_path, name):
    with pytest.raises(UserError, match=f"{name}: found no data in {tmp_path}.*--download"):
        torchvision_data(name, tmp_path)
    assert not list(tmp_path.iterdir())  # nothing was fetched


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")]
)
@pytest.mark.parametrize("end", ["", ".gz"])
def test_torchvision_mnist_folder(tmp_path, name, folder, end):
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    with pytest.raises(UserError, match="found no train-images-idx3-ubyte in .*--download"):
        torchvision_data(name, tmp_path)
    pack = gzip.compress if end else bytes
    (raw / f"train-images-idx3-ubyte{end}").write_bytes(pack(idx(BYTES)))
    (raw / f"train-labels-idx1-ubyte{end}").write_bytes(pack(idx(LABELS)))
    data = load(name, root=tmp_path)
    assert data.name == name and data.factor_names == ("label",)
    np.testing.assert_array_equal(data.images.numpy(), BYTES[:, None])


def test_torchvision_cifar10_folder(tmp_path, monkeypatch):
    datasets = importlib.import_module("torchvision.datasets")
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    with pytest.raises(UserError, match="cifar10: cannot load it from .*--download"):
        torchvision_data("cifar10", tmp_path)

    class Stub:
        def __init__(self, root, train, download):
            assert root == str(tmp_path) and train and not download
            self.data, self.targets = COLOUR.transpose(0, 2, 3, 1), LABELS.tolist()

    monkeypatch.setattr(datasets, "CIFAR10", Stub)
    data = torchvision_data("cifar10", tmp_path)
    assert data.factors.flatten().tolist() == LABELS.tolist()
    np.testing.assert_array_equal(data.images.numpy(), COLOUR)


def test_torchvision_failed_download_and_unknown_name(tmp_path, monkeypatch):
    datasets = importlib.import_module("torchvision.datasets")

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(datasets, "MNIST", offline)
    with pytest.raises(UserError, match="mnist: cannot load it from .*: no route to host$"):
        torchvision_data("mnist", tmp_path, download=True)
    with pytest.raises(UserError, match="unknown torchvision data 'mnits'.* did you mean 'mnist'"):
        torchvision_data("mnits", tmp_path)


# load


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("vary", [SEVEN, ("shape", *SEVEN, "hue", "rotation")])
def test_sprites_of_a_gpu_are_those_of_the_cpu(vary):
    cpu, gpu = sprites(3000, vary=vary), sprites(3000, vary=vary, device="cuda")
    assert gpu.images.device.type == "cpu" and torch.equal(cpu.factors, gpu.factors)
    # Where rounding to a byte is a close call.
    assert (cpu.images.int() - gpu.images.int()).abs().max() <= 1


def test_load_sprites():
    assert torch.equal(load("sprites", n=5, seed=2).images, sprites(5, 2).images)
    named = load("sprites:x, size", n=5, resolution=64, hold={"red": 1.0}, edge=1.0)
    direct = sprites(5, vary=("x", "size"), resolution=64, hold={"red": 1.0}, edge=1.0)
    assert named.name == direct.name == "sprites:x,size"
    assert torch.equal(named.images, direct.images)
    assert torch.equal(load("sprites", n=5, vary=("x",)).images, sprites(5, vary=("x",)).images)
    for name, varying in (
        ("sprites:red=0.1..0.4", SEVEN),
        ("sprites:x,red=0.1..0.4", ("x", "red")),
    ):
        found, expected = load(name, n=5), sprites(5, vary=varying, ranges={"red": (0.1, 0.4)})
        assert found.name == name and torch.equal(found.images, expected.images)


def test_load_files(tmp_path):
    npz = write_npz(tmp_path / "a.npz", imgs=BYTES, latents_values=np.arange(5))
    assert len(load(npz)) == len(load(str(npz))) == 5
    chosen, again = load(npz, n=3, seed=1), load(npz, n=3, seed=1)
    assert len(set(chosen.factors.flatten().tolist())) == 3
    assert torch.equal(chosen.factors, again.factors)
    (tmp_path / "t-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(BYTES)))
    assert load(tmp_path / "t-images-idx3-ubyte.gz").image_shape == (1, 6, 7)
    with pytest.raises(UserError, match="a.npz: n: expected 1 to 5 images, got 6"):
        load(npz, n=6)
    with pytest.raises(UserError, match="a.npz: vary, edge: only sprites have these options"):
        load(npz, vary=("x",), edge=2.0)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("spritez", {}, "^unknown data 'spritez'; expected one of sprites, mnist, fashion_mnist"),
        (
            "spritez",
            {},
            "or IDX file, or a folder of pictures; did you mean 'sprites'\\?$",
        ),
        ("spritez:x", {}, "did you mean 'sprites'"),
        ("/nowhere/q", {}, "or IDX file, or a folder of pictures$"),
        ("sprites:x,backgruond", {}, "unknown factor 'backgruond'.* did you mean 'background'"),
        (".", {}, "expected at least 2 pictures .* got 0"),
        ("sprites:", {}, "at least one factor"),
        ("sprites:x", {"vary": ("y",)}, "named twice"),
        ("sprites:x", {"ranges": {"y": (0.4, 0.6)}}, "named twice, also by ranges"),
        ("sprites:red=0.5", {}, "red=0.5: expected factor=low..high, e.g. background=0.4..0.8"),
        ("sprites:red=0.1..", {}, "red=0.1..: expected factor=low..high"),
        ("sprites:red=0.1..2.3.4", {}, "expected factor=low..high"),
        ("sprites:red=0.5..0.6,red", {}, "none named twice, got red, red"),
        ("missing.npz", {}, "missing.npz: expected an .npz file, found no such file"),
        ("missing-idx3-ubyte", {}, "expected an IDX file, found no such file"),
        ("mnist", {"resolution": 64}, "mnist: resolution: only sprites"),
        ("mnist", {"root": "nowhere"}, "mnist: found no data in nowhere"),
    ],
)
def test_load_refuses(name, options, match):
    with pytest.raises(UserError, match=match):
        load(name, **options)
