"""Scores of foreign images, their AUROC, and `ngvae score`."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
from conftest import PAIRS
from support import SHORT, ngvae, undrawn

from ngvae_pyro import runs
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.errors import Notice, UserError
from ngvae_pyro.evaluation import scores
from ngvae_pyro.evaluation.diagnostics import codes
from ngvae_pyro.fitted import Fit
from ngvae_pyro.runs import scoring
from ngvae_pyro.specs import FitSpec

CPU = torch.device("cpu")

BEYOND = "sprites:background=0.6..0.9"


@pytest.fixture
def untrained(small_pair, data):
    """Builds a fit, its reference and a few images."""

    def build(*names):
        result = Fit(*small_pair(*names), FitSpec())
        return result, scores.reference(result, data), data.subset(slice(0, 30))

    return build


@pytest.mark.parametrize("names", PAIRS)
def test_every_image_has_every_score(untrained, names):
    result, known, images = untrained(*names)
    found = scores.scores(result, images, known)
    missing = set() if names[0].startswith("normal_gamma") else {"precision_part"}
    if not (known.probs > 0.5).any():
        missing |= {"precision"}
    assert list(found) == [key for key in scores.SCORES if key not in missing]
    for values in found.values():
        assert values.shape == (30,) and np.isfinite(values).all()
    again = scores.scores(result, images, known)
    assert all((values == again[key]).all() for key, values in found.items())


def test_scores_are_those_of_their_formulas(untrained):
    result, known, images = untrained("normal_gamma", "fixed")
    known = scores.Reference(known.loc, known.covariance, torch.tensor([0.9, 0.1, 0.6, 0.2, 0.0]))
    found = scores.scores(result, images, known)
    code, x = codes(result, images), ImageData.to_unit(images.images)
    expected = -(code.precision[:, 0].log() + code.precision[:, 2].log()) / 2
    np.testing.assert_allclose(found["precision"], expected, rtol=1e-5)
    expected = (code.probs - known.probs).abs().sum(1)
    np.testing.assert_allclose(found["selection"], expected, rtol=1e-5)
    for i in range(3):
        offset = code.loc[i].double() - known.loc
        expected = offset @ torch.linalg.inv(known.covariance) @ offset
        assert found["distance"][i] == pytest.approx(expected.item(), rel=1e-6)
    with torch.no_grad():
        error = (result.model.decoder(code.loc) - x).square().mean((1, 2, 3))
        # The scale is 0.1; the draws of z move the image too, but little.
        nats = error * x[0].numel() / 0.02 + x[0].numel() * math.log(0.1 * math.sqrt(2 * math.pi))
    np.testing.assert_allclose(found["reconstruction"], error, rtol=1e-5)
    np.testing.assert_allclose(found["elbo"] - found["kl"], nats, rtol=0.2)


def test_the_reference_is_the_aggregate_posterior(untrained, data):
    result, known, _ = untrained("normal_gamma", "relaxed")
    with torch.no_grad():
        z = result.guide.draws(ImageData.to_unit(data.images), 300)[1].flatten(0, 1).double()
    torch.testing.assert_close(known.loc, z.mean(0), atol=0.02, rtol=0.0)
    torch.testing.assert_close(known.covariance, z.T.cov(), atol=0.03, rtol=0.03)


@pytest.mark.parametrize("auroc", [0.0, 0.5, 1.0])
def test_auroc_is_the_probability_of_a_higher_score(auroc):
    own = np.arange(20.0)
    others = {0.0: own - 100, 0.5: own, 1.0: own + 100}[auroc]
    found = scoring._summary(scores.SCORES["kl"], {"held out": own, "other": others})
    assert found["auroc"] == pytest.approx(auroc) and found["held out"]["50%"] == 9.5
    with pytest.raises(UserError, match="KL: not finite for some of the images 'other'"):
        scoring._summary(scores.SCORES["kl"], {"held out": own, "other": own + np.inf})


# Images of another shape


def test_images_are_fitted():
    grey = torch.arange(2 * 28 * 28).remainder(256).to(torch.uint8).view(2, 1, 28, 28)
    digits = ImageData("digits", grey, torch.zeros(2, 1), ("label",))
    fitted, done = digits.fitted((3, 32, 32))
    assert done == "28x28 padded with black to 32x32, grey repeated over 3 channels"
    assert fitted.image_shape == (3, 32, 32) and fitted.factor_names == ("label",)
    for channel in range(3):
        assert torch.equal(fitted.images[:, channel, 2:30, 2:30], grey[:, 0])
    assert fitted.images.sum() == 3 * grey.sum()
    smaller, done = digits.fitted((1, 14, 40))
    assert done == "28x28 resized to 14x40" and smaller.images.dtype == torch.float32
    assert smaller.images.mean().item() == pytest.approx(grey.float().mean().item() / 255, abs=0.01)
    colour = ImageData("c", torch.stack([torch.zeros(2, 4, 4), torch.ones(2, 4, 4)] * 2, 1)[:, :3])
    averaged, done = colour.fitted((1, 4, 4))
    assert done == "colours averaged to grey" and averaged.images.unique().tolist() == [
        pytest.approx(1 / 3)
    ]
    assert digits.fitted((1, 28, 28))[1] == ""
    with pytest.raises(UserError, match="c: cannot make 2 channels of 3"):
        colour.fitted((2, 4, 4))


# Command line


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    with undrawn():
        ngvae("train", "normal_gamma", "relaxed", "--out", path, *SHORT)
    return path


@pytest.fixture
def digits(tmp_path):
    path = tmp_path / "digits.npz"
    np.savez(path, imgs=np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8))
    return path


def test_the_held_out_images_alone(folder):
    said = ngvae("score", folder)
    assert "held out: 12 images held out of sprites" in said and "AUROC" not in said
    found = json.loads((folder / "score_held_out.json").read_text())
    assert found["images"] == {"held out": 12} and found["other"] is None
    assert all("auroc" not in row and len(row["held out"]) == 3 for row in found["scores"].values())
    assert (folder / "figures" / "score_held_out.png").read_bytes().startswith(b"\x89PNG")


def test_another_set(folder):
    said = ngvae("score", folder, "--data", BEYOND, "--size", "10")
    assert f"other: 10 images {BEYOND}" in said and "AUROC" in said
    stem = "score_sprites_background_0.6..0.9"
    found = json.loads((folder / f"{stem}.json").read_text())
    assert found["images"] == {"held out": 10, "other": 10} and found["fitted"] == ""
    with (folder / f"{stem}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["set"], row["image"]) for row in rows[9:11]] == [("held out", "9"), ("other", "0")]
    for key, row in found["scores"].items():
        assert 0.0 <= row["auroc"] <= 1.0 and row["title"] in said
        values = [float(r[key]) for r in rows if r["set"] == "other"]
        assert row["other"]["50%"] == pytest.approx(np.median(values), rel=1e-4, abs=1e-6)
    assert (folder / "figures" / f"{stem}.png").is_file()
    assert not list(folder.rglob(".*"))


def test_images_that_a_run_was_not_trained_on(folder):
    """New sprites have another seed than those of the run, unless it is given."""
    seen = []
    for words in ([], ["--set", "data.seed=0", "--set", "data.size=120"]):
        fit, spec = runs.load_run(folder, "cpu")
        values = {"name": "sprites"} | ({"seed": 0, "size": 120} if words else {})
        images, _ = scoring._other_images(values, spec.data, 50, 0, fit, False)
        train, held_out = runs.load_data(spec)
        own = {image.numpy().tobytes() for image in torch.cat([train.images, held_out.images])}
        seen.append(sum(image.numpy().tobytes() in own for image in images.images))
        assert len(images) == 50
    assert seen == [0, 50]


def test_digits_are_fitted_where_that_is_asked_for(folder, digits, tmp_path):
    line = "digits: images are 1x28x28, those of the run 3x32x32; --fit-images pads or resizes"
    assert line in ngvae("score", folder, "--data", digits, code=2)
    out = tmp_path / "here.json"
    said = ngvae("score", folder, "--data", digits, "--fit-images", "--out", out)
    assert "digits: 28x28 padded with black to 32x32, grey repeated over 3 channels" in said
    assert sorted(p.name for p in tmp_path.iterdir() if p != digits) == [
        *("here.csv", "here.json", "here.png")
    ]
    assert json.loads(out.read_text())["images"] == {"held out": 12, "other": 30}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--data", "spritez"], "unknown data 'spritez'; expected one of"),
        (["--data", "no.npz"], "no.npz: expected an .npz file, found no such file"),
        (["--data", "sprites:size=0.3..0.5"], "leaves the image"),
        (["--data", "sprites", "--set", "data.size=1"], "expected at least 2 images to score"),
        (["--data", "sprites", "--set", "data.sise=1"], "unknown key 'sise'; did you mean 'size'?"),
        (["--data", "sprites", "--set", "fit.steps=1"], "--set fit: only the keys of data"),
        (["--set", "data.size=1"], "--set, --fit-images, --data-root and --download need --data"),
        (["--fit-images"], "need --data"),
        (["--out", "scores.csv"], "scores.csv: expected the name of a .json file"),
        (
            ["--out", "no/such/folder.json"],
            "no/such/folder.json: expected the folder no/such to be there",
        ),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(folder, words, line):
    before = sorted(folder.rglob("*"))
    message = ngvae("score", folder, *words, code=2)
    assert line in message and "\n" not in message
    assert sorted(folder.rglob("*")) == before


def test_no_run_and_a_run_of_few_images(folder, tmp_path):
    assert "none: no such run folder" in ngvae("score", tmp_path / "none", code=2)
    few = shutil.copytree(folder, tmp_path / "few")
    config = (few / "config.toml").read_text()
    (few / "config.toml").write_text(config.replace("size = 120", "size = 10"))
    message = ngvae("score", few, code=2)
    assert f"{few}: its training images are not those that sprites holds now" in message
    # Of an older version, which does not say so.
    record = json.loads((few / "run.json").read_text())
    del record["images"]
    (few / "run.json").write_text(json.dumps(record))
    with pytest.warns(Notice, match="few: does not say what its images were"):
        message = ngvae("score", few, code=2)
    assert message == "sprites: expected at least 2 images to score, got 1"
