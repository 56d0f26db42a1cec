"""Every kind of data through every command: trained, stopped and resumed, read, and compared."""

import json

import h5py
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_wine
from support import SHORT, cut, ngvae

from ngvae_pyro.runs import load_run

ROWS = 60
COUNTS = ["--set", "model.likelihood.family=negative_binomial"]


def spectra(folder):
    band, random = np.linspace(0, 1, 24), np.random.default_rng(0)
    place = random.uniform(0.3, 0.7, (ROWS, 1))
    np.save(folder / "spectra.npy", np.exp(-(((band - place) / 0.1) ** 2)))
    return folder / "spectra.npy", ["--set", "data.layout=sequences"]


def table(folder):
    wines = load_wine(as_frame=True)
    wines.data[:ROWS].to_csv(folder / "wines.csv", index=False)
    return folder / "wines.csv", []


def counts(folder):
    random = np.random.default_rng(0)
    rate = np.exp(random.normal(size=(ROWS, 2)) @ random.normal(size=(2, 12)))
    np.savez(folder / "cells.npz", x=random.poisson(rate))
    return folder / "cells.npz", COUNTS


def digits(folder):
    np.savez(folder / "digits.npz", images=load_digits().images[:ROWS])
    return folder / "digits.npz", []


def pictures(folder):
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (ROWS, 8, 8, 3), np.uint8)):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder, []


def hdf5(folder):
    random = np.random.default_rng(0)
    with h5py.File(folder / "shapes.h5", "w") as file:
        file["images"] = random.integers(0, 256, (ROWS, 8, 8, 3), np.uint8)
        file["labels"] = random.uniform(size=ROWS)
    return folder / "shapes.h5", []


KINDS = {
    "spectra": spectra,
    "table": table,
    "counts": counts,
    "digits": digits,
    "pictures": pictures,
    "hdf5": hdf5,
}
FIGURES = {"selection", "precisions", "variances", "covariance", "reconstructions", "traversals"}
LAYOUTS = {
    **{"spectra": "curves", "table": "vectors", "counts": "vectors"},
    **{"digits": "grey", "pictures": "channels_last", "hdf5": "channels_last"},
}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(kind, marks=() if kind in ("spectra", "counts") else pytest.mark.slow)
        for kind in KINDS
    ],
)
def trained(request, tmp_path_factory):
    """The kind, its data, their options, and a run that was stopped once."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "data").mkdir()
    data, more = KINDS[request.param](folder / "data")
    options = [*SHORT, "--set", f"data.size={ROWS}", "--set", "data.held_out=0.4"]
    options += more
    with pytest.MonkeyPatch.context() as patch:
        cut(patch, after=3)
        words = ["normal_gamma", "relaxed", "--data", data, "--out", folder / "run", *options]
        ngvae("train", *words, code=143)
    ngvae("train", "--resume", folder / "run")
    return request.param, data, options, folder


def test_a_run_is_resumed_and_read(trained):
    kind, _, _, folder = trained
    figures = {path.stem for path in (folder / "run" / "figures").glob("*.png")}
    assert figures >= FIGURES and (folder / "run" / "report.html").stat().st_size > 10_000
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    assert np.isfinite([metrics["elbo"], metrics["reconstruction_mse"]]).all()
    assert "4 latents" in ngvae("inspect", folder / "run")
    fit, _ = load_run(folder / "run", device="cpu")
    assert fit.form.layout == LAYOUTS[kind]


def test_a_run_is_measured_and_scored(trained):
    kind, data, _, folder = trained
    said = ngvae("evaluate", folder / "run")
    assert "nan nats" not in said and ("MIG" in said) == (kind == "hdf5"), said
    ngvae("score", folder / "run", "--data", data, "--size", 20, "--out", folder / "scores.json")
    scores = json.loads((folder / "scores.json").read_text())
    assert scores and (folder / "scores.png").is_file()


def test_codes_are_of_the_rows(trained):
    _, data, _, folder = trained
    fit, _ = load_run(folder / "run", device="cpu")
    assert fit.encode(data).shape == (ROWS, 4)
    again = fit.reconstruct(data)
    assert len(again) == ROWS and np.isfinite(again).all()


@pytest.mark.slow
def test_pairs_are_compared(trained):
    _, data, options, folder = trained
    pairs = ["--pairs", "normal_gamma+relaxed,gaussian+gaussian", "--jobs", 1]
    said = ngvae("compare", "--out", folder / "table", "--data", data, *pairs, *options)
    assert "NG-VAE" in said and "vanilla" in said.lower()
    assert (folder / "table" / "report.html").is_file()
