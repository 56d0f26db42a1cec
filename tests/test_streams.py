"""Data that stay on the disk are those in memory: images, batches, trainings, messages."""

import errno
import io
import os
import pickle
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from support import SHORT, cut, growth, load, needs_peak, ngvae
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import ngvae_pyro as ng
from ngvae_pyro import machine
from ngvae_pyro.data import as_images, rows
from ngvae_pyro.data.batches import Batches
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.data.rows import BLOCK, Rows
from ngvae_pyro.errors import UserError
from ngvae_pyro.files import CannotWrite

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (60, 8, 9), dtype=np.uint8)
FLOATS = RNG.random((60, 8, 9)).astype(np.float32)
VECTORS = RNG.normal(size=(60, 4)) * [1, 10, 1e-3, 1e6]
ARRAYS = {
    "grey": GREY,
    "channels first": RNG.integers(0, 256, (60, 3, 8, 9), dtype=np.uint8),
    "channels last": RNG.integers(0, 256, (60, 8, 9, 3), dtype=np.uint8),
    "black and white": GREY % 2,
    "bool": GREY > 99,
    "float32": FLOATS,
    "big-endian": FLOATS.astype(">f4"),
    "float64, channels last": RNG.random((60, 8, 9, 3)),
    "16 bits": GREY.astype(np.uint16) * 200,
    "signed": GREY.astype(np.int64) - 100,
    "vectors": VECTORS,
    "whole vectors": RNG.integers(0, 9, (60, 4)),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch, tmp_path):
    """Blocks of a few rows, and a folder of temporary files of their own."""
    monkeypatch.setattr(rows, "BLOCK", 2000)
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))


def same(found, expected):
    assert isinstance(found.images, Rows) and not isinstance(expected.images, Rows)
    assert torch.equal(found.images.read(), expected.images)
    assert found.images.dtype == expected.images.dtype and found.nbytes == expected.nbytes
    assert found.digest == expected.digest and repr(found) == repr(expected)
    assert found.form.layout == expected.form.layout
    assert found.form.in_bytes == expected.form.in_bytes
    assert found.form.same_units(expected.form)
    assert (found.binary, found.varies, found.whole) == (
        expected.binary,
        expected.varies,
        expected.whole,
    )


def write(path, array):
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez_compressed(path, images=array)
    else:
        with h5py.File(path, "w") as file:
            chunks = (7, *array.shape[1:])
            file.create_dataset("images", data=array, chunks=chunks, compression="gzip")
    return path


# The same data -------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [".npy", ".npz", ".h5"])
@pytest.mark.parametrize("kind", ARRAYS)
def test_a_file_is_that_in_memory(tmp_path, kind, end):
    path = write(tmp_path / f"a{end}", ARRAYS[kind])
    same(ng.load_data(path, stream=True), ng.load_data(path))


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_maps_and_data_sets_are_those_in_memory(tmp_path, kind):
    array = ARRAYS[kind]
    path = write(tmp_path / "a.npy", array)
    for mode in ("r", "r+", "c"):
        same(as_images(np.load(path, mmap_mode=mode)), as_images(array))
    # A part of a map, with and without the rest between its rows.
    same(as_images(np.load(path, mmap_mode="r")[7:41]), as_images(array[7:41]))
    same(as_images(np.load(path, mmap_mode="r")[7:41:3]), as_images(array[7:41:3]))
    same(ng.stream(array), as_images(array, "data"))
    native = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    same(ng.stream(TensorDataset(native)), as_images(array, "data"))
    with h5py.File(write(tmp_path / "a.h5", array)) as file:
        same(ng.stream(file["images"]), as_images(array, "data"))


@pytest.mark.parametrize("shape", [(60, 30), (60, 3, 10)])
def test_sequences_are_standardised_as_in_memory(tmp_path, shape):
    path = write(tmp_path / "a.npy", 3 + 5 * RNG.normal(size=shape))
    found, expected = (ng.load_data(path, layout="sequences", stream=on) for on in (True, False))
    assert found.form.layout == expected.form.layout
    for key in ("loc", "scale"):
        own, other = getattr(found.form, key), getattr(expected.form, key)
        assert own.shape == other.shape and np.allclose(own, other, rtol=1e-14, atol=0)
    assert torch.allclose(found.images.read(), expected.images, rtol=1e-6, atol=1e-6)


def test_values_far_from_0_and_of_any_size_are_standardised_stably():
    columns = np.stack([1e9 + RNG.random(500), 1e300 * RNG.random(500), np.full(500, 3.0)], 1)
    same(ng.stream(columns), as_images(columns, "data"))


def test_a_map_is_data_wherever_arrays_are(tmp_path):
    path = write(tmp_path / "a.npy", GREY)
    mapped = np.load(path, mmap_mode="r")
    same(ImageData("a", mapped), ImageData("a", GREY))
    labels = np.arange(60)
    found = ImageData("a", mapped, labels, ["label"])
    assert found.factors[:, 0].tolist() == labels.tolist()
    same(ImageData.counts("a", mapped), ImageData.counts("a", GREY))
    same(ng.from_numpy(mapped), ng.from_numpy(GREY))
    form = as_images(FLOATS).form
    same(ImageData("a", mapped, form=form), ImageData("a", GREY, form=form))
    # What is changed in a private map is not in the file.
    private = np.load(path, mmap_mode="c")
    private[3] = 7
    assert bool((as_images(private).images[3] == 7).all())


def test_counts_stay_counts_from_any_units(tmp_path):
    for array in (GREY, RNG.integers(0, 500, (60, 4)), RNG.integers(0, 500, (60, 8, 9, 3))):
        same(ng.stream(array).as_counts(), as_images(array, "data").as_counts())
        floats = array.astype(np.float32)
        same(ng.stream(floats).as_counts(), as_images(floats, "data").as_counts())
    with pytest.raises(UserError, match=r"^data: expected counts, whole numbers .* got "):
        ng.stream(VECTORS[:, :1]).as_counts()


def test_data_in_the_units_of_a_fit():
    form = as_images(VECTORS).form
    found = as_images(ng.stream(VECTORS[:30]), form=form)
    assert isinstance(found.images, Rows)
    expected = as_images(VECTORS[:30], form=form).images
    assert torch.allclose(found.images.read(), expected, rtol=1e-5, atol=1e-5)
    other = as_images(VECTORS[:30], form=form, stream=True)
    assert torch.equal(other.images.read(), expected)
    with pytest.raises(UserError, match=r"expected shape \(N, D\), as what was fitted, got \(60, "):
        as_images(GREY, form=form, stream=True)


def test_the_layout_of_a_fit_in_bytes():
    form = as_images(ARRAYS["channels last"]).form
    for kind in ("channels last", "grey"):
        array = ARRAYS[kind]
        same(as_images(array, form=form, stream=True), as_images(array, form=form))


def test_pictures_and_idx_files(tmp_path):
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, image in enumerate(ARRAYS["channels last"][:5]):
        Image.fromarray(image).save(folder / f"{i}.png")
    same(ng.load_data(folder, stream=True), ng.load_data(folder))
    header = bytes([0, 0, 8, 3]) + np.array(GREY.shape, ">u4").tobytes()
    path = tmp_path / "a-images-idx3-ubyte"
    path.write_bytes(header + GREY.tobytes())
    same(ng.load_data(path, stream=True), ng.load_data(path))
    path.write_bytes(header + GREY.tobytes()[:-1])
    with pytest.raises(UserError, match=r"expected 4320 bytes of data for .*, got 4319$"):
        ng.load_data(path, stream=True)


def test_factors_come_along(tmp_path):
    np.savez(tmp_path / "a.npz", x=GREY, factors=np.arange(120).reshape(60, 2))
    found, expected = (ng.load_data(tmp_path / "a.npz", stream=on, n=20) for on in (True, False))
    same(found, expected)
    assert torch.equal(found.factors, expected.factors)


# Parts of them --------------------------------------------------------------------------------


def test_parts_are_those_in_memory():
    found, expected = ng.stream(GREY), as_images(GREY, "data")
    for index in (slice(3, 50, 4), [5, 2, 59, 2], np.arange(60) % 7 == 0, torch.tensor([9])):
        same(found.subset(index), expected.subset(index))
    assert torch.equal(found[7], expected[7]) and torch.equal(found[-1], expected[-1])
    for in_place in (False, True):
        for one, other in zip(
            found.split(0.2, 3, in_place=in_place),
            as_images(GREY.copy(), "data").split(0.2, 3, in_place=in_place),
            strict=True,
        ):
            same(one, other)
    train = found.split(0.2, 3)[0]
    same(train.split(5, 4)[1], expected.split(0.2, 3)[0].split(5, 4)[1])
    loader = DataLoader(train, batch_size=7)
    assert torch.equal(torch.cat(list(loader)), train.images.read())
    fitted = [data.subset(slice(9)).fitted((3, 16, 12)) for data in (found, expected)]
    assert torch.equal(fitted[0][0].images, fitted[1][0].images) and fitted[0][1] == fitted[1][1]


def test_rows_look_like_the_tensor_that_they_stand_for():
    found, tensor = ng.stream(GREY).images, as_images(GREY).images
    assert found.shape == tensor.shape and found.dtype == tensor.dtype
    assert found.device == tensor.device and found.nbytes == tensor.nbytes
    assert len(found) == len(tensor)
    parts = found[5:].split(11)
    assert len(parts) == len(tensor[5:].split(11)) and torch.equal(
        torch.cat(list(parts)), tensor[5:]
    )
    assert torch.equal(found[torch.tensor([4, 4, 1])].to(torch.float32), tensor[[4, 4, 1]].float())
    with pytest.raises(IndexError):
        found[60]
    assert repr(found) == "Rows((60, 1, 8, 9) of torch.uint8 in data)"


def test_pickled_they_are_in_memory():
    again = pickle.loads(pickle.dumps(ng.stream(GREY).subset([4, 2])))
    assert torch.equal(again.images, torch.from_numpy(GREY[[4, 2]])[:, None])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_in_memory(workers):
    ways = (ng.stream(GREY), as_images(GREY, "data"))
    found, expected = (
        Batches(data.split(0.1, 0)[0], 8, 5, torch.device("cpu"), 10**9, workers) for data in ways
    )
    assert found.resident is None and expected.resident is not None
    for step in (0, 1, 2, 9, 4):
        assert torch.equal(found[step], expected[step])


# Trainings ------------------------------------------------------------------------------------


def trained(data):
    train, held_out = data.split(0.2, 0)
    model, guide = load(train, "gaussian", "gaussian")
    options = {"steps": 8, "batch_size": 8, "validation": 0.1, "device": "cpu"}
    return ng.fit(model, guide, train, progress=False, **options), held_out


def test_a_training_ends_with_the_weights_of_that_in_memory():
    (found, held_out), (expected, _) = trained(ng.stream(GREY)), trained(as_images(GREY, "data"))
    for name, weight in expected.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], weight), name
    assert found.digest == expected.digest and found.history == expected.history
    codes = expected.encode(GREY[held_out.images.numbers])
    assert np.array_equal(found.encode(held_out), codes)


def test_the_estimator_takes_maps_and_streams(tmp_path):
    mapped = np.load(write(tmp_path / "a.npy", VECTORS), mmap_mode="r")
    fits = [
        ng.NGVAE(2, model="gaussian", guide="gaussian", steps=5, random_state=0, device="cpu").fit(
            x
        )
        for x in (VECTORS, mapped, ng.stream(mapped, "X"))
    ]
    codes = [vae.transform(x) for vae, x in zip(fits, (VECTORS, mapped, VECTORS), strict=True)]
    assert all(np.array_equal(codes[0], other) for other in codes[1:])
    again = pickle.loads(pickle.dumps(fits[1]))
    assert torch.equal(again.held_out_.images, fits[0].held_out_.images)


def test_the_command_line_trains_resumes_and_evaluates(tmp_path, no_drawing, monkeypatch):
    path = write(tmp_path / "a.h5", np.repeat(GREY, 2, 0))
    words = ["train", "gaussian", "gaussian", "--data", path, *SHORT]
    streamed, in_memory = tmp_path / "streamed", tmp_path / "in_memory"
    ngvae(*words, "--out", in_memory)
    cut(monkeypatch, 4)
    ngvae(*words, "--out", streamed, "--set", "data.stream=true", code=143)
    cut(monkeypatch)
    ngvae("train", "--resume", streamed, "--device", "cpu")
    weights = [(run / "weights.safetensors").read_bytes() for run in (streamed, in_memory)]
    assert weights[0] == weights[1]
    config = streamed / "config.toml"
    assert "stream = true" in config.read_text()
    # Whoever evaluates it may have the same images in memory.
    config.write_text(config.read_text().replace("stream = true", "stream = false"))
    ngvae("evaluate", streamed)


# Data sets that say little ----------------------------------------------------------------------


class Endless(IterableDataset):
    """Items without a length, in an order of their own."""

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def test_iterables_without_a_length_are_read_to_their_end():
    pairs = [(image, torch.tensor(i)) for i, image in enumerate(GREY)]
    for data in (Endless(pairs), Endless(iter(pairs)), DataLoader(Endless(pairs), batch_size=7)):
        found = ng.stream(data)
        same(found, ImageData("data", GREY, np.arange(60), ["label"]))
        assert found.factors[:, 0].tolist() == list(range(60))
    with pytest.raises(UserError, match=r"^data: expected images, got none$"):
        ng.stream(Endless([]))


def test_a_loader_is_read_once_in_the_order_of_its_data_set():
    data = TensorDataset(torch.from_numpy(GREY), torch.arange(60))
    found = ng.stream(DataLoader(data, batch_size=7, shuffle=True))
    assert torch.equal(found.images.read()[:, 0], torch.from_numpy(GREY))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (
            [GREY[0], GREY[1], GREY[2, :5]],
            r"data\[2\]: expected uint8 of shape \(8, 9\) .*\(5, 9\)$",
        ),
        ([GREY[0], FLOATS[0]], r"data\[1\]: expected uint8 of .* got float32 of shape \(8, 9\)$"),
        ([GREY[0], "no image"], r"data\[1\]: expected an array or a tensor, got str$"),
        ([], r"data: expected images, got an empty Items$"),
        ([np.array(["a"], object)] * 3, r"data: expected numbers, got dtype object$"),
        ([np.full((8, 9), np.nan)] * 3, r"data: expected finite numbers, got NaN or inf;"),
        ([np.zeros((0, 9))], r"data: expected a shape without a 0, got \(1, 0, 9\)$"),
    ],
)
def test_bad_items_are_refused_in_one_line(items, message):
    with pytest.raises(UserError, match=message):
        ng.stream(Items(items))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (FLOATS + np.inf, "expected finite numbers, got NaN or inf"),
        (np.asfortranarray(VECTORS), "stream: expected an array in C order, got one in Fortran"),
        (np.where(VECTORS > 1, np.inf, VECTORS), "expected finite numbers, got NaN or inf"),
        (VECTORS[:1], r"expected at least 2 vectors, got shape \(1, 4\)"),
        (GREY.astype(complex), "expected dtype bool, integer or float"),
        (np.zeros((5, 0, 3)), r"expected a shape without a 0, got \(5, 0, 3\)"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, array, message):
    with pytest.raises(UserError, match=message):
        ng.load_data(write(tmp_path / "a.npy", array), stream=True)


def test_what_cannot_be_streamed_says_so(tmp_path):
    for name in ("sprites", "mnist", "a.csv", "a.h5ad"):
        with pytest.raises(UserError, match=rf"^{name}: stream: only \.npz, "):
            ng.load_data(name, stream=True)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ([[1.0, 2.0]], {}, r"^data: expected an array, a tensor, .* got a list$"),
        (np.zeros(()), {}, r"^data: expected shape \(N, H, W\), "),
        (GREY, {"name": 3}, r"^name: expected a name for messages and reports, got 3$"),
        (GREY, {"folder": 3}, r"^stream: expected True, or the name of a folder, got 3$"),
        (
            GREY,
            {"layout": "vectors"},
            r"^data: layout: expected sequences, volumes or None, got 'vectors'$",
        ),
        (torch.zeros(5, 8, 8).to_sparse(), {}, r"^data: expected a dense tensor, got torch.sparse"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(data, options, message):
    with pytest.raises(UserError, match=message):
        ng.stream(data, **options)


def test_data_that_do_not_fit_into_memory_name_the_way_out(tmp_path, monkeypatch):
    path = write(tmp_path / "a.npz", GREY)
    monkeypatch.setattr(machine, "there", lambda device="cpu": 3000)
    for call, way in (
        (lambda: ng.load_data(path), r"data\.stream = true in a run, leaves it on the disk$"),
        (lambda: as_images(Items(list(GREY))), r"; ngvae_pyro\.stream leaves it on the disk$"),
        # What asks for all rows at once.
        (lambda: ng.stream(GREY).images.read(), r"expected something that fits into the 0\.0 GiB"),
    ):
        with pytest.raises(UserError, match=way):
            call()


# The disk ---------------------------------------------------------------------------------------


def test_a_file_that_changes_is_noticed(tmp_path):
    path = write(tmp_path / "a.npy", GREY)
    data = ng.load_data(path, stream=True)
    data.digest  # noqa: B018
    with path.open("r+b") as file:
        file.seek(200)
        file.write(b"\0\1\2")
    os.utime(path, ns=(0, 0))
    with pytest.raises(UserError, match=r"a\.npy: the file has changed since it was loaded$"):
        data.images[3]
    os.truncate(path, 1000)
    with pytest.raises(UserError, match=r"a\.npy: the file has changed since it was loaded$"):
        data.images[3]


def test_one_that_takes_its_place_does_not_matter(tmp_path):
    path = write(tmp_path / "a.npy", GREY)
    data = ng.load_data(path, stream=True)
    np.save(tmp_path / "b.npy", 255 - GREY)
    (tmp_path / "b.npy").rename(path)
    assert torch.equal(data.images.read()[:, 0], torch.from_numpy(GREY))


def test_without_room_there_is_one_line(monkeypatch, tmp_path):
    usage = rows.shutil.disk_usage(tmp_path)._replace(free=4000)
    monkeypatch.setattr(rows.shutil, "disk_usage", lambda path: usage)
    message = r"scratch: expected 0\.0 GiB of room, got 0\.0; data is kept there .* TMPDIR names"
    with pytest.raises(UserError, match=message):
        ng.stream(GREY)


def test_a_disk_that_fills_up_leaves_nothing(monkeypatch):
    class Full(io.FileIO):
        """Takes some bytes of a write, as a disk that is nearly full does, and then none."""

        left = 5000

        def write(self, content):
            if not self.left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            taken = super().write(content[: self.left])
            self.left -= taken
            return taken

    def full(dir, buffering):
        handle, path = tempfile.mkstemp(dir=dir)
        os.unlink(path)
        return Full(handle, "w+b")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    opened = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CannotWrite, match=r"scratch: cannot write there: No space left .* TMPDIR"):
        ng.stream(Endless([*GREY, *GREY]))
    assert len(os.listdir("/proc/self/fd")) == opened
    Full.left = 10**6
    same(ng.stream(GREY), as_images(GREY, "data"))


def test_the_file_is_gone_with_the_data(tmp_path):
    def handles():
        return [link for link in _links() if str(tmp_path) in link]

    data = ng.stream(GREY, folder=tmp_path / "scratch")
    part = data.split(0.1, 0)[1]
    del data
    assert len(handles()) == 1 and part.images.read().shape == (6, 1, 8, 9)
    del part
    assert not handles()
    with pytest.raises(UserError, match=r"^stream: expected a folder, found none at .*/nowhere$"):
        ng.stream(GREY, folder=tmp_path / "nowhere")


def _links():
    for name in os.listdir("/proc/self/fd"):
        path = Path("/proc/self/fd", name)
        if path.is_symlink():
            yield os.readlink(path)


@needs_peak
def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "BLOCK", BLOCK)
    shape = (30_000, 64, 64)
    with (tmp_path / "a.npy").open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        block = RNG.bytes(1000 * 64 * 64)
        for _ in range(30):
            file.write(block)

    def work():
        data = as_images(np.load(tmp_path / "a.npy", mmap_mode="r"))
        train = data.split(0.1, 0)[0]
        assert len(train.digest) == 64 and train.varies and not train.binary
        batches = Batches(train, 64, 0, torch.device("cpu"), 10**12)
        for step in range(20):
            batches[step]

    assert growth(work) < 50 * 2**20
