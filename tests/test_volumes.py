"""Volumes: stored with their slices one below the other, and back in the shape that came in."""

import tomllib

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from support import SMALL, cut, ngvae

import ngvae_pyro as ng
from ngvae_pyro.data import as_images
from ngvae_pyro.errors import UserError
from ngvae_pyro.interrupts import Interrupted
from ngvae_pyro.nn import Decoder, Encoder, activations
from ngvae_pyro.report import plots
from ngvae_pyro.report.explorer import explore
from ngvae_pyro.specs import Conv3dSpec, ModelSpec
from ngvae_pyro.training.trainer import convolutional

RNG = np.random.default_rng(0)
COUNT = 40
# A blob that moves through 6 slices of 8x9.
PLACES = RNG.uniform(0.2, 0.8, (COUNT, 3))
GRID = np.meshgrid(*(np.linspace(0, 1, side) for side in (6, 8, 9)), indexing="ij")
SQUARES = sum(
    (axis - place[:, None, None, None]) ** 2 for axis, place in zip(GRID, PLACES.T, strict=True)
)
GREY = np.exp(-SQUARES / 0.03).astype(np.float32)
BLOBS = np.stack([GREY, 0.5 * GREY], 1)
CASES = {
    "grey_volumes": (GREY, "volumes"),
    "volumes": (BLOBS, None),
    "volumes_last": (np.moveaxis(BLOBS, 1, 4), None),
}
CONV = Conv3dSpec(channels=4, width=16)


@pytest.mark.parametrize("layout", CASES)
@pytest.mark.parametrize("kind", ["unit", "bytes", "units", "counts"])
def test_volumes_come_back_as_they_came(layout, kind):
    x, said = CASES[layout]
    if kind == "bytes":
        x = (255 * x).astype(np.uint8)
    if kind in ("units", "counts"):
        x = np.round(1000 * x.astype(float))
    data = as_images(x, layout=said, counts=kind == "counts")
    channels = 1 if layout == "grey_volumes" else 2
    assert data.form.layout == layout and data.form.depth == 6
    assert data.image_shape == (channels, 48, 9)
    assert data.form.unit == (kind in ("unit", "bytes")) and data.form.raw == (kind == "counts")
    assert data.form.shape_of(data.image_shape) == x.shape[1:]
    first = np.moveaxis(x, 4, 1) if layout == "volumes_last" else x.reshape(COUNT, -1, 6, 8, 9)
    own = data.images.numpy().reshape(first.shape)
    if kind in ("bytes", "unit", "counts"):
        assert np.array_equal(own, first)
    back = data.form.arrays(ng.ImageData.to_unit(data.images)).numpy()
    assert back.shape == x.shape
    assert np.allclose(255 * back if kind == "bytes" else back, x, rtol=1e-5, atol=1e-4)
    size = "x".join(map(str, x.shape[1:]))
    assert repr(data) == f"ImageData('images', 40 volumes of {size}, no factors)"


def test_files_and_arrays_are_read_alike(tmp_path):
    import h5py

    for layout, (x, said) in CASES.items():
        expected = as_images(x, layout=said)
        np.save(tmp_path / "x.npy", np.asfortranarray(x))
        np.savez(tmp_path / "x.npz", x=x)
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["x"] = x
        for name in ("x.npy", "x.npz", "x.h5"):
            data = ng.load_data(tmp_path / name, layout=said)
            assert torch.equal(data.images, expected.images) and data.form.layout == layout
            assert data.form.depth == 6


def test_gaps_are_kept():
    x = np.where(RNG.random(BLOBS.shape) < 0.1, np.nan, BLOBS)
    data = as_images(x, missing=True)
    assert np.array_equal(data.images.numpy().reshape(x.shape), x, equal_nan=True)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: as_images(BLOBS[:, 0, 0], layout="volumes"), r"expected volumes \(N, D, H, W\),"),
        (lambda: as_images(BLOBS[:0], layout="volumes"), r"expected volumes .* without a 0"),
        (lambda: as_images(np.zeros((9, 3, 4, 5, 3))), "which could be both"),
        (lambda: as_images(np.zeros((9, 7, 4, 5, 6))), "which is neither"),
        (
            lambda: as_images(GREY, layout="cubes"),
            "expected sequences, volumes or None, got 'cubes'",
        ),
        (
            lambda: as_images(BLOBS[:, :, :4], form=as_images(BLOBS).form),
            "expected a depth of 6, as what was fitted, got 4",
        ),
        (
            lambda: as_images(GREY, form=as_images(BLOBS).form),
            r"expected shape \(N, C, D, H, W\), as what was fitted",
        ),
        (
            lambda: as_images(as_images(BLOBS), layout="sequences"),
            "layout: expected an array, got ImageData",
        ),
        (lambda: as_images(BLOBS).fitted((2, 64, 9)), "cannot make images"),
        (
            lambda: ng.load_model("normal_gamma", np.zeros((9, 8, 9)), decoder=CONV),
            r"the conv3d network takes volumes \(C, D, H, W\), got images; set model.decoder.kind",
        ),
        (
            lambda: ng.NGVAE(2, layout="volumes").fit(GREY[0]),
            r"X: expected volumes \(N, D, H, W\), \(N, C, D, H, W\) or",
        ),
    ],
)
def test_what_is_none_is_one_line(call, match):
    with pytest.raises(UserError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


# Networks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", [(6, 8, 9), (1, 5, 3), (17, 4, 2), (1, 1, 1)])
@pytest.mark.parametrize("blocks", [1, 2])
def test_volumes_of_any_size_go_through(sides, blocks):
    deep, high, wide = sides
    spec, shape = CONV.model_copy(update={"blocks": blocks}), (2, deep * high, wide)
    encoder = Encoder(spec, shape, 6, 2, depth=deep)
    assert [o.shape for o in encoder(torch.rand(3, *shape))] == [(3, 6), (3, 6)]
    decoder = Decoder(spec, shape, 6, depth=deep)
    assert decoder(torch.zeros(2, 3, 6)).shape == (2, 3, *shape)
    assert decoder.kept == activations(spec, shape)


def test_its_cells_are_neighbours_in_all_three_directions():
    encoder = Encoder(CONV, (1, 48, 9), 6, 2, depth=6)
    volume, convolution = encoder.trunk[:2]
    x = torch.zeros(1, 1, 6, 8, 9)
    x[0, 0, 3, 4, 5] = 1.0
    reached = (convolution(volume(x.flatten(2, 3))) != convolution(torch.zeros_like(x))).any(1)
    where = reached[0].nonzero()
    assert where.amin(0).tolist() == [2, 3, 4] and where.amax(0).tolist() == [4, 5, 6]


def pair(data, network=SMALL):
    torch.manual_seed(0)
    model = ng.load_model("normal_gamma", data, latent_size=3, decoder=network)
    return model, ng.load_guide("relaxed", model, encoder=network)


@pytest.mark.parametrize(
    "networks",
    [(CONV, CONV), ({"kind": "separable", "width": 16}, CONV), ("residual_conv", SMALL)],
    ids=["conv3d", "beside_2d", "2d"],
)
def test_networks_are_trained(networks):
    data = as_images(BLOBS)
    decoder, encoder = ({"kind": n} if isinstance(n, str) else n for n in networks)
    torch.manual_seed(0)
    model = ng.load_model("normal_gamma", data, latent_size=3, decoder=decoder)
    guide = ng.load_guide("relaxed", model, encoder=encoder)
    assert model.spec.depth == 6 and convolutional(model, guide) == (networks[0] is not CONV)
    fit = ng.fit(model, guide, data, steps=4, batch_size=8, progress=False)
    assert np.isfinite(fit.history[-1]["loss"])
    assert np.isfinite(ng.log_likelihood(fit, data.subset([0, 1])).values).all()


# Fits -------------------------------------------------------------------------------------------


def test_slices_are_drawn():
    data = as_images(BLOBS)
    fit = ng.fit(*pair(data), data, steps=2, progress=False)
    ax = plots.reconstructions(fit, data, 4, ax=Figure().add_subplot())
    assert (
        ax.get_title("left")
        == "Held-out reconstructions: slices 1, 2, 3, 4, 5, 6 of 6, from top to bottom"
    )
    canvas = np.asarray(ax.images[0].get_array())
    assert canvas.shape[:2] == (3 * 48 + 4, 4 * 9 + 6)
    rows = plots.latent_rows(ng.evaluate(fit, data))
    ax = plots.traversals(fit, data, rows, steps=3, ax=Figure().add_subplot())
    assert ax.get_title("left").endswith("; slices 2, 4, 6 of 6, from top to bottom")
    shown, _ = plots.slices(data.images, data.form, 3)
    expected = BLOBS[:, :, [1, 3, 5]].reshape(COUNT, 2, 24, 9)
    assert np.array_equal(shown, expected)
    metrics = ng.evaluate(fit, data)
    metrics["probs"] = [0.9] * 3
    explorer = explore(fit, data, metrics)
    assert explorer.data is None and explorer.texts == (
        "There is no explorer, because a page does not draw volumes.",
    )


def test_arviz_has_their_axes():
    data = as_images(BLOBS)
    fit = ng.fit(*pair(data), data, steps=2, progress=False)
    found = fit.to_arviz(data, observations=2, draws_per_chain=4).observed_data["x"]
    assert found.dims == ("image", "channel", "depth", "height", "width")
    assert np.array_equal(found.values, BLOBS[:2])


# Below here nothing is drawn.
@pytest.mark.parametrize("layout", ["grey_volumes", "volumes_last"])
def test_the_estimator_gives_back_what_it_takes(tmp_path, layout, no_drawing):
    x, said = CASES[layout]
    vae = ng.NGVAE(3, model=ModelSpec(decoder=CONV), steps=4, random_state=0, layout=said).fit(x)
    codes = vae.transform(x)
    again = vae.inverse_transform(codes)
    assert again.shape == x.shape and vae.fit_.reconstruct(x[:2]).shape == x[:2].shape
    assert vae.fit_.traverse(x, [0], steps=3).shape == (1, 3, *x.shape[1:])
    with pytest.raises(UserError, match="as what was fitted"):
        vae.transform(x[0])
    vae.save(tmp_path / "run")
    loaded = ng.NGVAE.load(tmp_path / "run")
    assert loaded.layout == said and np.array_equal(loaded.inverse_transform(codes), again)
    # Images with as many rows are no volumes.
    flat = vae.fit_.as_images(x).images
    with pytest.raises(UserError, match="expected a depth of 6, that of the training data, got 0"):
        vae.fit_.encode(ng.ImageData.stored("flat", flat))


# Runs -------------------------------------------------------------------------------------------

WORDS = ["--steps", "6", "--latents", "3", "--set", "fit.batch_size=8", "--device", "cpu"]
WORDS += ["--set", "model.decoder.kind=conv3d", "--set", "model.decoder.width=8"]
WORDS += ["--set", "guide.encoder.kind=conv3d", "--set", "guide.encoder.width=8"]
WORDS += ["--set", "model.decoder.channels=4", "--set", "guide.encoder.channels=4"]
WORDS += ["--set", "fit.checkpoint_every=2", "--set", "fit.monitor_every=3"]


@pytest.mark.slow
def test_a_run_of_volumes(tmp_path, monkeypatch, no_drawing):
    np.save(tmp_path / "x.npy", GREY)
    words = ["--data", tmp_path / "x.npy", "--set", "data.layout=volumes", *WORDS]
    ngvae("train", "normal_gamma", "relaxed", *words, "--out", tmp_path / "r")
    config = tomllib.loads((tmp_path / "r" / "config.toml").read_text())
    assert config["form"]["layout"] == "grey_volumes" and config["form"]["depth"] == 6
    assert config["model"]["depth"] == 6
    ngvae("inspect", tmp_path / "r")
    ngvae("evaluate", tmp_path / "r")
    ngvae("score", tmp_path / "r", "--data", tmp_path / "x.npy", "--size", "10")
    said = ngvae("score", tmp_path / "r", "--data", "sprites", code=2)
    assert said.endswith("holds images, and the run was trained on volumes of 6x8x9")
    fit, _ = ng.load_run(tmp_path / "r", "cpu")
    assert fit.reconstruct(GREY[:3]).shape == GREY[:3].shape
    # A training that was cut short ends with the same bytes.
    with monkeypatch.context() as patch:
        cut(patch, 5)
        with pytest.raises(Interrupted):
            ng.runs.train(ng.runs.load_spec(tmp_path / "r"), tmp_path / "s", progress=False)
    ngvae("train", "--resume", tmp_path / "s")
    one, other = ((tmp_path / name / "weights.safetensors").read_bytes() for name in "rs")
    assert one == other


def test_volumes_are_not_streamed(tmp_path):
    volumes = np.random.default_rng(0).random((20, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "v.npy", volumes)
    held = np.load(tmp_path / "v.npy", mmap_mode="r")
    vae = ng.NGVAE(2, layout="volumes", steps=2, random_state=0).fit(volumes)
    for array in (held, held[:, None]):
        with pytest.raises(ng.UserError, match="volumes are not streamed, got shape"):
            vae.fit_.encode(array)
    with pytest.raises(ng.UserError, match="volumes are not streamed, got shape"):
        ng.load_data(tmp_path / "v.npy", layout="volumes", stream=True)
