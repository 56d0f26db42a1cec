"""The guide beside NUTS: where the posterior is known, on a run, and what is refused."""

import json
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from support import SHORT, SMALL, ngvae
from torch import nn

import ngvae_pyro as ng
from ngvae_pyro import runs
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.errors import UserError
from ngvae_pyro.evaluation import checking
from ngvae_pyro.fitted import Fit
from ngvae_pyro.specs import FitSpec, LikelihoodSpec

SCALE = 0.5

pytestmark = pytest.mark.usefixtures("no_drawing")


class Linear(nn.Module):
    """x = W z, as a decoder of images (1, 2, 2)."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, z):
        return (z @ self.weight.T).unflatten(-1, (1, 2, 2))


def linear_fit(weight, monkeypatch, width=1.0, offset=0.0):
    """A linear Gaussian pair, whose guide is the best of independent latents, but for two errors.

    With p(z) = Normal(0, 1) and p(x | z) = Normal(W z, s), p(z | x) is Gaussian with precision
    A = 1 + W'W / s^2 and mean A^-1 W'x / s^2; the best independent latents have variances 1 / A_kk.

    Args:
        weight: W (4, K).
        width: What the guide's standard deviations are multiplied by.
        offset: What is added to its means, in its standard deviations.
    """
    likelihood = LikelihoodSpec(family="gaussian", scale=SCALE)
    size = weight.shape[1]
    model = ng.load_model(
        "gaussian", (1, 2, 2), latent_size=size, decoder=SMALL, likelihood=likelihood
    )
    guide = ng.load_guide("gaussian", model, encoder=SMALL)
    model.decoder = Linear(weight)
    precision = torch.eye(size) + weight.T @ weight / SCALE**2
    covariance = precision.inverse()

    def posterior(x):
        mean = x.flatten(1) @ weight @ covariance / SCALE**2
        scale = width * precision.diagonal().rsqrt().expand_as(mean)
        return dist.Normal(mean + offset * scale, scale)

    monkeypatch.setattr(guide, "posterior", posterior, raising=False)
    return Fit(model, guide, FitSpec()), covariance.diagonal().sqrt(), precision, covariance


IMAGES = ImageData("x", torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(0)))


def coverage(level, ratio, offset):
    """Share of Normal(0, 1) within the central interval of Normal(offset / ratio, 1 / ratio)."""
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2])
    low, high = dist.Normal(0.0, 1.0).icdf(ends) + offset
    normal = dist.Normal(0.0, ratio)
    return (normal.cdf(high) - normal.cdf(low)).item()


@pytest.mark.parametrize(("width", "offset"), [(1.0, 0.0), (0.5, 0.0), (1.0, 1.0)])
def test_coverage_ratio_and_shift_are_those_of_a_known_posterior(monkeypatch, width, offset):
    # Columns that are orthogonal, so that the best independent latents are the posterior itself.
    weight = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.3], [0.0, -0.3]])
    fit, *_ = linear_fit(weight, monkeypatch, width, offset)
    result = ng.check(fit, IMAGES, images=2, warmup=80, draws=250, seed=1)
    assert {row["latent"] for row in result["latents"]} == {0, 1}
    for row in result["latents"]:
        assert row["ess"] > 80
        assert row["sd_ratio"] == pytest.approx(1 / width, rel=0.1)
        assert 1.0 <= row["mean_field"] < 1.05
        # The mean of |.| over images has the error of a mean, 1 / sqrt(ESS), as a bias.
        assert row["shift"] == pytest.approx(offset, abs=0.12 / width)
        for name, level in checking.INTERVALS.items():
            expected = coverage(level, 1 / width, offset)
            assert row["coverage"][name] == pytest.approx(expected, abs=0.08)
    shifts = np.array(result["per_image"]["shift"])
    assert shifts.shape == (2, 2) and (offset == 0 or (shifts < -0.7).all())
    assert result["divergences"] == 0


@pytest.mark.slow
def test_what_mean_field_leaves_out(monkeypatch):
    """Two latents that the images can hardly tell apart, and one of its own."""
    weight = torch.tensor([[1.0, 0.8, 0.0], [1.0, 0.9, 0.0], [0.0, 0.0, 1.5], [0.0, 0.0, 1.5]])
    fit, scale, precision, covariance = linear_fit(weight, monkeypatch)
    result = ng.check(fit, IMAGES, images=2, warmup=100, draws=300)
    rows = {row["latent"]: row for row in result["latents"]}
    assert all(row["probs"] == 1.0 for row in rows.values())
    for k, row in rows.items():
        ratio = (scale[k] * precision[k, k].sqrt()).item()
        assert row["sd_ratio"] == pytest.approx(ratio, rel=0.12)
        assert row["mean_field"] == pytest.approx(ratio, rel=0.12)
        for name, level in checking.INTERVALS.items():
            expected = coverage(level, ratio, 0.0)
            assert row["coverage"][name] == pytest.approx(expected, abs=0.07)
    assert rows[0]["sd_ratio"] > 1.5 and rows[2]["sd_ratio"] < 1.1
    correlation = covariance / torch.outer(scale, scale)
    expected = correlation[[0, 0, 1], [1, 2, 2]].abs().mean().item()
    assert result["correlation"] == pytest.approx(expected, abs=0.08)
    assert result["by_chance"] == pytest.approx(math.sqrt(2 / math.pi / 300), rel=0.5)
    assert f"{result['correlation']:.2f} on average" in checking.mean_field(result)


def test_the_same_seed_gives_the_same_numbers_and_leaves_no_trace(small_pair, data):
    fit = Fit(*small_pair("gaussian", "gaussian"), FitSpec())
    weights = [p.detach().clone() for p in fit.model.parameters()]
    before = torch.get_rng_state()
    found = [ng.check(fit, data, images=1, warmup=50, draws=50, seed=4) for _ in range(2)]
    for result in found:
        del result["seconds"]
    assert found[0] == found[1] and len(found[0]["latents"]) == 5
    assert torch.equal(before, torch.get_rng_state())
    for parameter, value in zip(fit.model.parameters(), weights, strict=True):
        assert torch.equal(parameter, value) and parameter.requires_grad
        assert parameter.grad is None


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"images": 0}, "images: expected a whole number, at least 1, got 0"),
        ({"images": True}, "images: expected a whole number, at least 1, got True"),
        ({"draws": 10}, "draws: expected a whole number, at least 50, got 10"),
        ({"warmup": 2.5}, "warmup: expected a whole number, at least 50, got 2.5"),
        ({"images": 1000}, "images: expected at most the 200 images of 'sprites', got 1000"),
    ],
)
def test_wrong_numbers_are_one_line(small_pair, data, changes, line):
    with pytest.raises(UserError) as caught:
        ng.check(Fit(*small_pair(), FitSpec()), data, **changes)
    assert str(caught.value).startswith(line)


def test_counts_are_refused(small_pair, data):
    fit = Fit(*small_pair("poisson", "poisson"), FitSpec())
    with pytest.raises(UserError, match="expected a guide of continuous z, got a PoissonGuide"):
        ng.check(fit, data)


def test_a_chain_that_does_not_move_is_told(small_pair, data, monkeypatch):
    fit = Fit(*small_pair(), FitSpec())
    still = checking.Chain(torch.zeros(50, 1, 5), torch.full((1, 5), math.nan), 0)
    monkeypatch.setattr(checking, "posterior_draws", lambda *words: still)
    with pytest.raises(UserError, match="NUTS stays where it began; expected more warmup"):
        ng.check(fit, data, images=1)


# A run folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    # Wide, so that the posterior is nearly the prior, and drawn from with few steps.
    wide = ["--set", "model.likelihood.scale=4.0", "--set", "model.decoder.depth=1"]
    ngvae("train", "gaussian", "gaussian", "--out", path, *SHORT, *wide)
    return path


FEW = ["--images", "2", "--warmup", "50", "--draws", "50", "--device", "cpu"]


@pytest.fixture(scope="module")
def checked(folder):
    """What the first check of the run says."""
    return ngvae("check", folder, *FEW)


def quickly(monkeypatch):
    """Draws that nobody looks at."""

    def drawn(*words):
        return checking.Chain(torch.randn(50, 2, 4), torch.full((2, 4), 50.0), 0)

    monkeypatch.setattr(checking, "posterior_draws", drawn)


def test_a_run_is_checked(folder, checked, monkeypatch):
    said = checked
    result = json.loads((folder / "check.json").read_text())
    assert (folder / "figures" / "check.png").read_bytes().startswith(b"\x89PNG")
    assert {"check.json", "figures/check.png"} <= set(runs.load_record(folder)["files"])
    assert (result["images"], result["warmup"], result["draws"]) == (2, 50, 50)
    assert len(result["latents"]) == 4 and np.shape(result["per_image"]["sd_ratio"]) == (2, 4)
    for row in result["latents"]:
        assert f"z{row['latent']}" in said and f"{row['sd_ratio']:.2f}" in said
    assert checking.mean_field(result) in said and "figures/check.png" in said
    # Again, and its figure is one of the run's.
    quickly(monkeypatch)
    ngvae("check", folder, *FEW)
    assert "figures/check.png" in ngvae("inspect", folder)


def test_a_result_is_not_put_in_the_place_of_another_file(folder):
    path = folder / "check.json"
    path.unlink(missing_ok=True)
    record = runs.load_record(folder)
    record["files"] = [name for name in record["files"] if name != "check.json"]
    runs.write_json(folder / "run.json", record)
    path.write_text("mine")
    said = ngvae("check", folder, *FEW, code=2)
    assert "check.json: is not of the run" in said and path.read_text() == "mine"
    path.unlink()


def test_other_weights_have_no_check(folder, tmp_path, monkeypatch):
    quickly(monkeypatch)
    fit, spec = runs.load_run(folder, device="cpu")
    _, held_out = runs.load_data(spec)
    ng.save_run(tmp_path / "run", fit, spec, held_out)
    ngvae("check", tmp_path / "run", *FEW)
    ng.save_run(tmp_path / "run", fit, spec, held_out)
    assert not (tmp_path / "run" / "check.json").exists()
    assert not (tmp_path / "run" / "figures" / "check.png").exists()


def test_no_run_is_one_line(tmp_path):
    assert "no such run folder" in ngvae("check", tmp_path / "none", code=2)


def test_the_defaults_in_the_help_are_those_of_python():
    said = " ".join(ngvae("check", "--help").split())
    for value in (checking.IMAGES, checking.WARMUP, checking.DRAWS):
        assert f"{value}" in said
