"""Runs on vectors, whose columns have units of their own."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support import SMALL, ngvae, undrawn

import ngvae_pyro as ng
from ngvae_pyro import locks, runs

WORDS = ["--steps", "4", "--latents", "3", "--set", "fit.batch_size=8", "--device", "cpu"]
WORDS += ["--set", "model.decoder.width=8", "--set", "guide.encoder.width=8"]


@pytest.fixture(scope="module")
def vectors():
    random = np.random.default_rng(0)
    return random.normal(size=(60, 4)) * [1.0, 50.0, 0.01, 3.0] + [0.0, 9000.0, 0.0, -1.0]


@pytest.fixture(scope="module")
def run(vectors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    np.save(folder / "own.npy", vectors)
    ngvae(
        "train",
        "normal_gamma",
        "relaxed",
        "--data",
        folder / "own.npy",
        *WORDS,
        "--out",
        folder / "r",
    )
    return folder


def test_other_vectors_are_scored_in_the_units_of_the_run(run, vectors):
    np.save(run / "far.npy", vectors + 8.0 * vectors.std(0))
    np.save(run / "wide.npy", vectors.repeat(2, 1))
    out = run / "score.json"
    ngvae("score", run / "r", "--data", run / "far.npy", "--out", out)
    scores = json.loads(out.read_text())["scores"]
    # Standardised by their own columns they would be the very vectors of the run.
    assert scores["reconstruction"]["auroc"] > 0.99
    said = ngvae("score", run / "r", "--data", run / "wide.npy", code=2)
    assert said == "wide: holds vectors of 8, and the run was trained on vectors of 4"


def test_a_training_does_not_go_on_with_vectors_in_other_units(run, vectors):
    folder = run / "again"
    shutil.copytree(run / "r", folder)
    # As if it had been cut short.
    (folder / "metrics.json").unlink()
    np.save(run / "own.npy", 1024.0 * vectors)
    try:
        said = ngvae("train", "--resume", folder, code=2)
    finally:
        np.save(run / "own.npy", vectors)
    assert "images are not those that" in said
    with undrawn():
        ngvae("train", "--resume", folder)


def test_npz_files_hold_vectors_too(tmp_path, vectors):
    np.savez(tmp_path / "v.npz", imgs=vectors, latents_values=vectors[:, 0])
    data = ng.load_data(tmp_path / "v.npz")
    assert data.form.layout == "vectors" and data.image_shape == (1, 1, 4)
    assert np.allclose(data.form.arrays(data.images), vectors)


def test_what_takes_a_fit_takes_arrays_in_its_units(run, vectors):
    fit, _ = runs.load_run(run / "r", "cpu")
    few = vectors[:20]
    assert ng.evaluate(fit, few) == ng.evaluate(fit, fit.as_images(few))
    posterior = ng.to_arviz(fit, few, observations=2, draws_per_chain=5)
    assert posterior.posterior["z"].shape[2] == 2
    assert np.isfinite(ng.log_likelihood(fit, few[:2], draws=25).values).all()


def test_an_estimator_is_no_fit(vectors):
    vae = ng.NGVAE(2, model=ng.ModelSpec(decoder=SMALL), steps=2, random_state=0).fit(vectors)
    for call in (ng.evaluate, ng.to_arviz, ng.log_likelihood, ng.check):
        with pytest.raises(ng.UserError, match="got an NGVAE; pass its fit_"):
            call(vae, vectors)


def test_a_folder_that_takes_no_file_is_one_line():
    with (
        pytest.raises(ng.UserError, match="/proc/x: cannot write there"),
        locks.held(Path("/proc/x")),
    ):
        pass
