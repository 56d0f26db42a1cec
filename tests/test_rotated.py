"""Axes folded in afterwards: variances of a rotated posterior, and what of a fit they leave."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support import script
from torch.distributions import MultivariateNormal, kl_divergence

from ngvae_pyro import runs
from ngvae_pyro.evaluation import diagnostics
from ngvae_pyro.fitted import Fit
from ngvae_pyro.specs import FitSpec
from ngvae_pyro.variants import run_spec

SMALL = {"width": 16, "depth": 2}
LATENTS = torch.tensor([0, 2, 3])


@pytest.fixture
def rotated():
    """benchmarks/rotated.py, a script."""
    with script("rotated") as rotated:
        yield rotated


@pytest.fixture
def fit(small_pair):
    return Fit(*small_pair("gaussian", "gaussian"), FitSpec(device="cpu"))


def turn(size=3, seed=0):
    """A change of axes near a rotation, the columns of its inverse of norm 1."""
    random = torch.Generator().manual_seed(seed)
    inverse = torch.randn(size, size, generator=random) + torch.eye(size)
    return torch.linalg.inv(inverse / inverse.norm(dim=0))


@pytest.mark.parametrize("rule", ["marginal", "nearest"])
def test_the_variances_are_what_the_rule_says(rotated, rule):
    variance, change = torch.tensor([[0.5, 0.01, 0.2], [0.1, 0.3, 0.9]]), turn()
    found = rotated.rotated_variance(variance, change, rule)
    for row, own in zip(variance, found, strict=True):
        covariance = change @ row.diag() @ change.T
        if rule == "marginal":
            torch.testing.assert_close(own, covariance.diag())
            continue
        full = MultivariateNormal(torch.zeros(3), covariance)
        log = own.log().requires_grad_()
        kl_divergence(MultivariateNormal(torch.zeros(3), log.exp().diag()), full).backward()
        torch.testing.assert_close(log.grad, torch.zeros(3), atol=1e-5, rtol=0.0)
    same = rotated.rotated_variance(variance, torch.eye(3), rule)
    torch.testing.assert_close(same, variance)


@pytest.mark.parametrize("rule", ["marginal", "nearest"])
def test_no_change_is_exact(rotated, fit, data, rule):
    before = {k: v.clone() for k, v in fit.guide.state_dict().items()}
    copy, misfit = rotated.folded(fit, LATENTS, torch.eye(3), rule, rotated.features(fit, data))
    assert misfit < 1e-6
    for name, value in copy.guide.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=1e-6, rtol=0.0)
    for name, value in copy.model.state_dict().items():
        torch.testing.assert_close(value, fit.model.state_dict()[name])


@pytest.mark.parametrize("rule", ["marginal", "nearest"])
def test_a_change_turns_means_and_variances_and_no_reconstruction(rotated, fit, data, rule):
    change = turn()
    own = diagnostics.codes(fit, data)
    inputs = rotated.features(fit, data)
    copy, misfit = rotated.folded(fit, LATENTS, change, rule, inputs)
    new = diagnostics.codes(copy, data)
    torch.testing.assert_close(new.loc[:, LATENTS], own.loc[:, LATENTS] @ change.T)
    others = torch.tensor([1, 4])
    torch.testing.assert_close(new.loc[:, others], own.loc[:, others])
    torch.testing.assert_close(new.variance[:, others], own.variance[:, others])
    x = next(diagnostics.batches(fit, data))
    drawn = diagnostics.reconstruct(fit, x)
    torch.testing.assert_close(diagnostics.reconstruct(copy, x), drawn, atol=1e-5, rtol=1e-4)
    # Of an untrained head the variances hardly differ between images, and are fitted well.
    wanted = rotated.rotated_variance(own.variance[:, LATENTS], change, rule)
    left = (new.variance[:, LATENTS].log() - wanted.log()).square().mean().sqrt()
    assert float(left) == pytest.approx(misfit, abs=1e-4) and misfit < 0.02
    assert (wanted.log() - own.variance[:, LATENTS].log()).abs().max() > 0.1
    # A copy: the fit is as it was.
    torch.testing.assert_close(diagnostics.codes(fit, data).loc, own.loc, atol=0.0, rtol=0.0)


def test_a_head_that_cannot_is_as_near_as_least_squares(rotated, fit, data):
    inputs = rotated.features(fit, data)
    target = torch.randn(len(data), 3).double()
    misfit = rotated.fold_variances(fit.guide, inputs, LATENTS, target)
    design = np.column_stack([inputs.double().numpy(), np.ones(len(data))])
    best = np.linalg.lstsq(design, target.numpy(), rcond=None)[0]
    left = np.sqrt(np.square(target.numpy() - design @ best).mean())
    assert misfit == pytest.approx(left, rel=1e-4) and misfit > 0.5


@pytest.mark.slow
def test_runs_are_measured_and_then_read(rotated, tmp_path, monkeypatch, capsys):
    """A tiny comparison, of which a pair is not there; the second time nothing is measured."""
    changes = {
        "model": {"latent_size": 3, "decoder": SMALL},
        "guide": {"encoder": SMALL},
        "data": {"name": "sprites:x,red", "size": 200},
        "fit": {"steps": 5, "seed": 1, "device": "cpu"},
    }
    folder = tmp_path / "runs" / "gaussian+gaussian" / "seed-1"
    runs.train(run_spec("gaussian", "gaussian", changes, "test"), folder, progress=False)
    evaluate = diagnostics.evaluate
    # So short a training leaves nothing informative.
    seen = {"probs": [1.0, 1.0, 0.0]}
    monkeypatch.setattr(rotated.diagnostics, "evaluate", lambda *a: {**evaluate(*a), **seen})
    for name, value in {"POINTS": 100, "LIKELIHOOD_IMAGES": 3, "LIKELIHOOD_DRAWS": 25}.items():
        monkeypatch.setattr(rotated.evaluation, name, value)
    out = tmp_path / "rotated"
    command = ["rotated.py", str(tmp_path / "runs"), "--seeds", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*command, "--pairs", "gaussian+gaussian,gaussian+factor"])
    rotated.main()
    said = capsys.readouterr().out
    assert f"{Path('gaussian+factor', 'seed-1')}: no finished run, skipped" in said
    assert "| vanilla VAE | vanilla VAE, rotated |" in said
    kept = json.loads((out / "gaussian+gaussian-1.json").read_text())
    assert kept["latents"] == [0, 1] and kept["rule"] in kept["cost"]
    first, then = (kept[when]["metrics"] for when in ("before", "after"))
    assert then["reconstruction_mse"] == pytest.approx(first["reconstruction_mse"], rel=1e-3)
    assert first["elbo"] - then["elbo"] == pytest.approx(kept["cost"][kept["rule"]], abs=1e-6)
    monkeypatch.setattr(rotated, "run", None)
    rotated.main()
    assert capsys.readouterr().out == said


def test_hessian_eigenmaps_flatten_what_is_flat_and_leave_out_what_is_alone(rotated):
    random = np.random.default_rng(0)
    truth = random.uniform(size=(400, 7))
    truth[13] += 50.0
    x = truth @ np.linalg.qr(random.standard_normal((10, 7)))[0].T
    codes, used = rotated.hessian(x)
    # Besides the far one perhaps some at the rim.
    assert 13 not in used and len(used) > 380
    design = np.column_stack([codes, np.ones(len(codes))])
    left = truth[used] - design @ np.linalg.lstsq(design, truth[used], rcond=None)[0]
    assert np.abs(left).max() < 1e-3
