"""The importance-weighted log likelihood against exact ones."""

import math
from types import SimpleNamespace

import numpy as np
import pyro
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from ngvae_pyro import _arviz
from ngvae_pyro.evidence import LogLikelihood, log_likelihood
from ngvae_pyro.guide import Codes, load_guide
from ngvae_pyro.images import ImageData
from ngvae_pyro.model import Likelihood, load_model
from ngvae_pyro.specs import FitSpec, LikelihoodSpec, MLPSpec
from ngvae_pyro.svi import Fit, site_terms

K, SIDE, SCALE = 3, 4, 0.3


class Affine(nn.Module):
    """A decoder for which p(x) is Gaussian."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.randn(SIDE * SIDE, K))

    def forward(self, z):
        return (0.5 + z @ self.weight.T).reshape(*z.shape[:-1], 1, SIDE, SIDE)


@pytest.fixture
def linear():
    """A fit with an affine decoder, its images, their exact log p(x), and the true posterior."""
    decoder = Affine()
    weight = decoder.weight.detach()
    covariance = weight @ weight.T + SCALE**2 * torch.eye(SIDE * SIDE)
    law = MultivariateNormal(torch.full((SIDE * SIDE,), 0.5), covariance)
    x = law.sample((20,)).clamp(0, 1)
    images = ImageData("linear", x.reshape(20, 1, SIDE, SIDE))
    precision = torch.eye(K) + weight.T @ weight / SCALE**2
    posterior = torch.linalg.inv(precision)
    mean = (x - 0.5) @ weight @ posterior / SCALE**2

    def codes(batch):
        rows = [int((x - b.flatten()).abs().sum(1).argmin()) for b in batch]
        variance = posterior.diagonal().expand(len(rows), K)
        return Codes(mean[rows], variance, 1.0 / variance, torch.ones(len(rows), K))

    model = SimpleNamespace(
        marginal=torch.distributions.Normal(torch.zeros(K), 1.0),
        decoder=decoder,
        likelihood=Likelihood(LikelihoodSpec(scale=SCALE)),
    )
    fit = SimpleNamespace(
        model=model, guide=SimpleNamespace(codes=codes), device=torch.device("cpu")
    )
    return fit, images, law.log_prob(x).numpy()


@pytest.mark.parametrize("widen", [1.0, 1.5])
def test_it_is_the_evidence_of_a_linear_model(linear, widen):
    fit, images, exact = linear
    found = log_likelihood(fit, images, draws=4000, widen=widen)
    np.testing.assert_allclose(found.values, exact, atol=0.2)
    assert found.values.mean() == pytest.approx(exact.mean(), abs=0.03)
    if widen > 1:
        # A proposal wider than the posterior has bounded weights.
        assert (found.pareto_k < _arviz.GOOD_K).all()


def test_more_draws_come_nearer_from_below(linear):
    fit, images, exact = linear
    few, many = (log_likelihood(fit, images, draws=n, widen=0.5) for n in (2, 2000))
    assert few.values.mean() < many.values.mean() < exact.mean() + 0.1
    assert np.median(few.pareto_k) >= 0 or few.draws == 2


def test_a_seed_gives_the_same_numbers(linear):
    fit, images, _ = linear
    a, b, c = (log_likelihood(fit, images, draws=50, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(a.values, b.values)
    assert (a.values != c.values).all()


@pytest.mark.parametrize(
    "names",
    [("normal_gamma", "relaxed"), ("normal_gamma_joint", "relaxed"), ("gaussian", "gaussian")],
)
def test_it_is_above_the_elbo(small_pair, data, names):
    model, guide = small_pair(*names)
    fit = Fit(model, guide, FitSpec())
    images = data.subset(slice(0, 16))
    found = log_likelihood(fit, images, draws=200)
    log_p, kl = site_terms(model, guide, ImageData.to_unit(images.images))
    elbo = log_p - sum(term.sum(-1) for term in kl.values())
    assert np.isfinite(found.values).all() and found.values.shape == (16,)
    assert found.values.mean() > elbo.mean().item()


def test_the_precision_is_integrated_out_of_the_prior():
    """p(z) of the model is that of its draws."""
    for name in ("normal_gamma", "normal_gamma_joint", "gaussian"):
        model = load_model(name, (1, 4, 4), latent_size=2, decoder=MLPSpec(width=4, depth=1))
        trace = pyro.poutine.trace(model).get_trace(None, size=40_000)
        z = trace.nodes["z"]["value"]
        for edge in (0.01, 0.5, 1.5):
            grid = torch.linspace(-edge, edge, 4001, dtype=torch.float64).unsqueeze(1)
            density = model.marginal.log_prob(grid.float().expand(-1, 2))[:, 0].double().exp()
            inside = torch.trapezoid(density, grid[:, 0]).item()
            share = (z[:, 0].abs() < edge).double().mean().item()
            assert share == pytest.approx(inside, abs=4 * math.sqrt(inside / 40_000) + 1e-3)


def test_the_summary():
    found = LogLikelihood(np.array([1.0, 2.0, 3.0]), np.array([0.1, 0.8, 0.9]), 500)
    summary = found.summary()
    assert summary == {
        "mean": 2.0,
        "se": pytest.approx(1 / math.sqrt(3)),
        "k_median": 0.8,
        "k_bad": pytest.approx(2 / 3),
        "draws": 500,
        "images": 3,
    }
    alone = LogLikelihood(np.array([1.0]), np.array([0.1]), 5).summary()
    assert alone["se"] == 0.0


def test_hopeless_weights_have_the_largest_k():
    log_weights = np.full((1, 200), -1e6)
    log_weights[0, 0] = 0.0
    assert 0.7 < _arviz.pareto_k(log_weights)[0] <= 10.0


def test_the_guide_is_not_changed(small_pair, data):
    model, guide = small_pair()
    before = {k: v.clone() for k, v in guide.state_dict().items()}
    log_likelihood(Fit(model, guide, FitSpec()), data.subset(slice(0, 3)), draws=10)
    assert all((v == before[k]).all() for k, v in guide.state_dict().items())
    assert load_guide("relaxed", model).spec.label == "NG-VAE"
