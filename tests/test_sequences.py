"""Sequences: one loc and scale for each channel, and back in the shape and units that came in."""

import re
import tomllib

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from support import SMALL, ngvae
from torch.utils.data import DataLoader, TensorDataset

import ngvae_pyro as ng
from ngvae_pyro.data import as_images
from ngvae_pyro.data.forms import standardising, units_shape
from ngvae_pyro.errors import UserError
from ngvae_pyro.report import plots
from ngvae_pyro.report.explorer import explore
from ngvae_pyro.runs import counting

RNG = np.random.default_rng(0)
GRID = np.linspace(0, 1, 24)
# A common curve, and what differs from one to the next.
PHASES = RNG.uniform(0.2, 0.8, (40, 1))
SPECTRA = 500 + 90 * np.exp(-((GRID - PHASES) ** 2) / 0.02) + 30 * GRID
SERIES = np.stack([SPECTRA, 1e-3 * np.cos(9 * (GRID - PHASES))], 1)
CASES = {"curves": SPECTRA, "sequences": SERIES}


@pytest.mark.parametrize("layout", CASES)
def test_channels_are_standardised_as_a_whole_and_come_back(layout):
    x = CASES[layout]
    data = ng.ImageData("x", x, layout="sequences")
    channels = 2 if layout == "sequences" else 1
    assert data.image_shape == (channels, 1, 24) and data.images.dtype == torch.float32
    assert data.form.layout == layout and data.form.sequential and not data.binary
    each = data.images.double().movedim(1, 0).flatten(1)
    assert each.mean(1).abs().max() < 1e-5
    assert (each.std(1, correction=0) - 1).abs().max() < 1e-5
    # Not position by position: where the curves hardly differ, they still do not.
    spread = data.images.std(0).flatten()
    assert spread.max() > 1.3 * spread.min()
    assert data.form.shape_of(data.image_shape) == x.shape[1:]
    assert data.form.loc.shape == units_shape(layout, data.image_shape)
    back = data.form.arrays(data.images).numpy()
    assert back.shape == x.shape and back.dtype == np.float64 and np.allclose(back, x, rtol=1e-6)
    size = "24" if layout == "curves" else "2x24"
    assert repr(data) == f"ImageData('x', 40 sequences of {size}, no factors)"


def test_the_volume_has_the_scale_of_each_channel_at_each_position():
    form = ng.ImageData("x", SERIES, layout="sequences").form
    assert form.log_volume(48) == pytest.approx(24 * np.log(form.scale).sum())
    form = ng.ImageData("x", SPECTRA, layout="sequences").form
    assert form.log_volume(24) == pytest.approx(24 * np.log(form.scale).sum())


def test_a_channel_that_never_varies_has_the_scale_1():
    x = SERIES.copy()
    x[:, 1] = 7
    assert standardising(x, "x", "sequences").scale[:, 0].tolist()[1] == 1.0


@pytest.mark.parametrize("layout", CASES)
def test_files_and_arrays_are_read_alike(tmp_path, layout):
    import h5py

    x = CASES[layout]
    expected = as_images(x, layout="sequences")
    np.save(tmp_path / "x.npy", np.asfortranarray(x))
    np.savez(tmp_path / "x.npz", x=x)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = x
    for name in ("x.npy", "x.npz", "x.h5"):
        data = ng.load_data(tmp_path / name, layout="sequences")
        assert torch.equal(data.images, expected.images) and data.form.same_units(expected.form)
        assert data.form.layout == layout
    pairs = TensorDataset(torch.from_numpy(x), torch.arange(40))
    data = as_images(pairs, layout="sequences")
    assert torch.equal(data.images, expected.images) and data.factor_names == ("label",)


def test_the_columns_of_a_table_are_places_of_a_curve(tmp_path):
    table = pd.DataFrame(SPECTRA, columns=[f"{100 * i} nm" for i in range(24)])
    table.to_csv(tmp_path / "x.csv", index=False)
    for data in (
        ng.load_data(tmp_path / "x.csv", layout="sequences"),
        as_images(table, layout="sequences"),
    ):
        assert data.form.layout == "curves" and data.form.columns[1] == "100 nm"
        assert torch.allclose(data.images, as_images(SPECTRA, layout="sequences").images)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: ng.ImageData("x", SERIES, layout="rows"),
            "layout: expected sequences, volumes or None, got",
        ),
        (
            lambda: as_images(SERIES[0, 0], layout="sequences"),
            r"sequences \(N, L\) or \(N, C, L\),",
        ),
        (lambda: as_images(SERIES[None], layout="sequences"), r"got shape \(1, 40, 2, 24\)"),
        (lambda: as_images(SERIES[:0], layout="sequences"), r"\(N, C, L\) without a 0"),
        (lambda: as_images(SERIES * np.nan, layout="sequences"), "finite numbers, got NaN or inf"),
        (lambda: ng.load_data("sprites", layout="sequences"), "sprites: layout: only arrays"),
        (lambda: ng.load_data("x.h5ad", layout="sequences"), "x.h5ad: layout: only arrays"),
        (
            lambda: as_images(ng.ImageData("x", SERIES > 1), layout="sequences"),
            "data 'x': layout: expected an array, got ImageData",
        ),
        (
            lambda: as_images(SERIES, form=as_images(SERIES).form, layout="sequences"),
            "expected a form or a layout, got both",
        ),
        (
            lambda: as_images(SERIES[:, :1], form=as_images(SERIES, layout="sequences").form),
            "expected 2 channels, as what was fitted, got 1",
        ),
        (
            lambda: as_images(SPECTRA, form=as_images(SERIES, layout="sequences").form),
            r"expected shape \(N, C, L\), as what was fitted",
        ),
        (
            lambda: as_images(SERIES, layout="sequences").fitted((2, 1, 30)),
            "cannot make images",
        ),
        (
            lambda: ng.load_model(
                "normal_gamma",
                as_images(SERIES, layout="sequences"),
                decoder={"kind": "conv"},
            ),
            "the conv network takes 28x28, .*, got 1x24; set .* 'residual_conv' or 'mlp'",
        ),
    ],
)
def test_what_is_none_is_one_line(call, match):
    with pytest.raises(UserError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_small_file_of_one_sequence_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", SERIES[:1])
    with pytest.raises(UserError, match="x.npy: expected at least 2 sequences"):
        ng.load_data(tmp_path / "x.npy", layout="sequences")


# Fits -------------------------------------------------------------------------------------------


def pair(data, **likelihood):
    torch.manual_seed(0)
    model = ng.load_model("normal_gamma", data, latent_size=3, decoder=SMALL, **likelihood)
    return model, ng.load_guide("relaxed", model, encoder=SMALL)


def test_networks_see_differences_from_the_mean_curve():
    data = as_images(SERIES, layout="sequences")
    model, _ = pair(data)
    assert torch.allclose(model.decoder.loc, data.images.mean(0), atol=1e-5)
    assert model.likelihood.family == "gaussian"
    with pytest.raises(UserError, match="expected gaussian for the sequences of 'images'"):
        ng.fit(*pair(data, likelihood={"family": "bernoulli"}), data, steps=1, progress=False)


@pytest.mark.parametrize("layout", [pytest.param("curves", marks=pytest.mark.slow), "sequences"])
def test_the_estimator_gives_back_what_it_takes(tmp_path, layout):
    x = CASES[layout]
    model = ng.ModelSpec(decoder=SMALL)
    vae = ng.NGVAE(3, model=model, steps=30, random_state=0, layout="sequences").fit(x)
    assert vae.fit_.form.layout == layout and vae.n_features_in_ == x[0].size
    codes = vae.transform(x)
    again = vae.inverse_transform(codes)
    assert again.shape == x.shape and again.dtype == np.float64
    assert np.isfinite(vae.score_samples(x[:2])).all()
    with pytest.raises(UserError, match="as what was fitted"):
        vae.transform(x[:, None])
    vae.save(tmp_path / "run")
    loaded = ng.NGVAE.load(tmp_path / "run")
    assert loaded.layout == "sequences" and loaded.fit_.form.same_units(vae.fit_.form)
    assert np.array_equal(loaded.inverse_transform(codes), again)
    with pytest.raises(UserError, match=r"X: expected sequences \(N, L\) or \(N, C, L\), got"):
        ng.NGVAE(3, layout="sequences").fit(x[None, None])


def test_the_unit_of_a_count_is_that_of_a_lone_channel():
    data = as_images(SPECTRA, layout="sequences")
    assert counting._unit(data.form) == (data.form.scale.item(), "in the units of the data")
    several = as_images(SERIES, layout="sequences").form
    assert counting._unit(several) == (1.0, "in standard deviations of a channel")


@pytest.mark.parametrize("layout", CASES)
def test_curves_are_drawn_in_the_units_of_the_data_with_a_line_for_each_channel(layout):
    x = CASES[layout]
    channels = x[0].size // 24
    data = as_images(x, layout="sequences")
    fit = ng.fit(*pair(data), data, steps=2, progress=False)
    ax = plots.reconstructions(fit, data, 2, ax=Figure().add_subplot())
    panels = [panel for panel in ax.child_axes if panel.lines]
    assert [len(panel.lines) for panel in panels] == [2 * channels] * 2
    drawn = [line.get_ydata() for line in panels[1].lines[:channels]]
    assert np.allclose(np.squeeze(drawn), x[1], rtol=1e-5)
    assert panels[1].get_xlabel() == "position"
    assert [text.get_text() for text in panels[0].get_legend().texts] == [
        "sequence",
        "reconstruction",
    ]
    rows = plots.latent_rows(ng.evaluate(fit, data))
    ax = plots.traversals(fit, data, rows, steps=3, ax=Figure().add_subplot())
    lines = ax.child_axes[0].lines
    assert len(lines) == 3 * channels and lines[0].get_ydata().mean() > 400
    assert ax.child_axes[-1].get_xlabel().startswith("position; dark")
    metrics = ng.evaluate(fit, data)
    metrics["probs"] = [0.9] * 3
    curve = explore(fit, data, metrics).data["curve"]
    assert (curve["unit"], curve["place"]) == ("value", "position")
    assert len(curve["loc"]) == len(curve["scale"]) == x[0].size
    assert curve["loc"] == np.repeat(data.form.loc, 24).tolist()


# Runs -------------------------------------------------------------------------------------------

WORDS = ["--steps", "4", "--latents", "3", "--set", "fit.batch_size=8", "--device", "cpu"]
WORDS += ["--set", "model.decoder.width=8", "--set", "guide.encoder.width=8"]


@pytest.fixture(
    scope="module", params=[pytest.param("curves", marks=pytest.mark.slow), "sequences"]
)
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    np.save(folder / "x.npy", CASES[request.param])
    words = ["--data", folder / "x.npy", "--set", "data.layout=sequences", *WORDS]
    ngvae("train", "normal_gamma", "relaxed", *words, "--out", folder / "r")
    return folder, request.param


def test_a_run_of_sequences(run):
    folder, layout = run
    config = tomllib.loads((folder / "r" / "config.toml").read_text())
    assert config["data"]["layout"] == "sequences" and config["form"]["layout"] == layout
    fit, _ = ng.load_run(folder / "r", "cpu")
    x = CASES[layout]
    assert fit.form.same_units(as_images(x, layout="sequences").split(0.1, 0)[0].form)
    assert fit.reconstruct(x[:3]).shape == x[:3].shape
    ngvae("inspect", folder / "r")
    # Others are read as the run's are.
    np.save(folder / "far.npy", x + 3 * x.std())
    ngvae("score", folder / "r", "--data", folder / "far.npy", "--size", "10")
    np.save(folder / "short.npy", x[..., :20])
    said = ngvae("score", folder / "r", "--data", folder / "short.npy", code=2)
    size = "" if layout == "curves" else "2x"
    assert (
        said
        == f"short: holds sequences of {size}20, and the run was trained on sequences of {size}24"
    )
    said = ngvae("score", folder / "r", "--data", "sprites", code=2)
    assert re.match(r"sprites.*: holds images, and the run was trained on sequences of ", said)


# Loaders ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_loader_is_read_as_its_data_set(shuffle):
    images = torch.from_numpy(RNG.integers(0, 256, (12, 8, 9), dtype=np.uint8))
    expected = as_images(images)
    for dataset in (TensorDataset(images, torch.arange(12)), list(images), images, expected):
        data = as_images(DataLoader(dataset, batch_size=5, shuffle=shuffle))
        assert torch.equal(data.images, expected.images) and data.form.in_bytes
    labelled = as_images(DataLoader(TensorDataset(images, torch.arange(12)), shuffle=shuffle))
    assert labelled.factors[:, 0].tolist() == list(range(12))
    vae = ng.NGVAE(2, model=ng.ModelSpec(decoder=SMALL), steps=2, random_state=0)
    loader = DataLoader(TensorDataset(images), batch_size=5, shuffle=shuffle)
    assert vae.fit(loader).transform(loader).shape[0] == 12
