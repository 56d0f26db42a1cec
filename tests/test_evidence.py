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
from ngvae_pyro.data.forms import Form
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.errors import UserError
from ngvae_pyro.evaluation.evidence import LogLikelihood, laplace, log_likelihood
from ngvae_pyro.fitted import Fit, site_terms
from ngvae_pyro.guide import Codes, load_guide
from ngvae_pyro.likelihoods import GaussianLikelihood
from ngvae_pyro.model import load_model
from ngvae_pyro.specs import FitSpec, LikelihoodSpec, MLPSpec

K, SIDE, SCALE = 3, 4, 0.3
# Of a stub that has neither parts nor buffers.
NO_MODULE = {"modules": list, "buffers": list, "train": lambda mode: None}


class Affine(nn.Module):
    """A decoder for which p(x) is Gaussian."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.randn(SIDE * SIDE, K))

    def forward(self, z):
        return (0.5 + z @ self.weight.T).reshape(*z.shape[:-1], 1, SIDE, SIDE)


@pytest.fixture
def linear():
    """A fit with an affine decoder, its images, and their exact log p(x)."""
    decoder = Affine()
    weight = decoder.weight.detach()
    covariance = weight @ weight.T + SCALE**2 * torch.eye(SIDE * SIDE)
    law = MultivariateNormal(torch.full((SIDE * SIDE,), 0.5), covariance)
    x = law.sample((20,)).clamp(0, 1)
    images = ImageData("linear", x.reshape(20, 1, SIDE, SIDE))

    def codes(batch):
        # A guide that knows nothing; the proposal only starts from it.
        zeros = torch.zeros(len(batch), K)
        return Codes(zeros, zeros + 1.0, zeros + 1.0, zeros)

    model = SimpleNamespace(
        **NO_MODULE,
        discrete=False,
        reference=None,
        latent_size=K,
        image_shape=(1, SIDE, SIDE),
        spec=SimpleNamespace(decoder=MLPSpec(width=1, depth=1)),
        marginal=torch.distributions.Normal(torch.zeros(K), 1.0),
        decoder=decoder,
        likelihood=GaussianLikelihood(LikelihoodSpec(scale=SCALE), (1, SIDE, SIDE)),
    )
    fit = SimpleNamespace(
        model=model,
        guide=SimpleNamespace(**NO_MODULE, codes=codes),
        device=torch.device("cpu"),
        form=Form(),
    )
    return fit, images, law.log_prob(x).numpy()


@pytest.mark.parametrize("widen", [1.0, 1.2, 2.0])
def test_it_is_the_evidence_of_a_linear_model(linear, widen):
    fit, images, exact = linear
    found = log_likelihood(fit, images, draws=500, widen=widen)
    # At 1 the proposal is the posterior, and every weight is p(x).
    np.testing.assert_allclose(found.values, exact, atol=1e-3 if widen == 1.0 else 0.3)
    assert found.values.mean() == pytest.approx(exact.mean(), abs=0.05)
    if widen > 1:
        assert (found.pareto_k < _arviz.GOOD_K).all()


def test_laplace_is_the_posterior_of_a_linear_model(linear):
    fit, images, _ = linear
    x = images.images
    found = laplace(fit.model, x, torch.randn(len(x), K), iterations=5)
    weight = fit.model.decoder.weight.detach().double()
    precision = torch.eye(K) + weight.T @ weight / SCALE**2
    mean = torch.linalg.solve(precision, weight.T @ (x.double().flatten(1) - 0.5).T / SCALE**2).T
    torch.testing.assert_close(found.loc, mean, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.precision_matrix[0], precision, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("family", ["gaussian", "bernoulli", "continuous_bernoulli"])
def test_laplace_finds_the_mode_of_any_likelihood(data, family):
    torch.manual_seed(4)
    model = load_model(
        *("gaussian", data),
        latent_size=K,
        likelihood=LikelihoodSpec(family=family),
        decoder=MLPSpec(width=16, depth=2),
    ).double()
    truth = torch.randn(6, K, dtype=torch.float64)
    x = model.likelihood(model.decoder(truth)).mean.detach()
    start = torch.zeros(6, K, dtype=torch.float64)
    found = laplace(model, x, start, iterations=30)

    def log_joint(z):
        return model.likelihood(model.decoder(z)).log_prob(x) + model.marginal.log_prob(z).sum(-1)

    z = found.loc.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(log_joint(z).sum(), z)
    assert (log_joint(z) > log_joint(start)).all()
    # In units of the posterior's own scale the mode is flat.
    slope = (gradient.unsqueeze(1) @ found.covariance_matrix @ gradient.unsqueeze(2)).sqrt()
    assert slope.max() < 0.05
    hessian = torch.autograd.functional.hessian(lambda v: log_joint(v).sum(), z.detach())
    curvature = -torch.stack([hessian[i, :, i] for i in range(6)])
    ratio = found.precision_matrix.diagonal(dim1=1, dim2=2) / curvature.diagonal(dim1=1, dim2=2)
    assert ((ratio > 0.5) & (ratio < 2.0)).all()


def test_more_draws_come_nearer_from_below(linear):
    fit, images, exact = linear
    few, many = (log_likelihood(fit, images, draws=n, widen=0.4) for n in (25, 2000))
    assert few.values.mean() < many.values.mean() < exact.mean() + 0.1


def test_a_seed_gives_the_same_numbers(linear):
    fit, images, _ = linear
    a, b, c = (log_likelihood(fit, images, draws=50, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(a.values, b.values)
    assert (a.values != c.values).all()


@pytest.mark.parametrize(
    "names",
    [
        ("normal_gamma", "relaxed"),
        ("normal_gamma_joint", "relaxed"),
        ("gaussian", "gaussian"),
        ("gaussian", "epanechnikov"),
        ("poisson", "poisson"),
        ("ard", "ard"),
    ],
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


def test_it_is_the_evidence_of_counts(small_pair):
    """Of two counts, against the sum over the pmf."""
    model, guide = small_pair("poisson", "poisson", image_shape=(1, 2, 2), latent_size=2)
    # A broad likelihood, for which the encoder's posterior is a fair proposal.
    model.likelihood.log_scale.fill_(0.0)
    images = ImageData("few", torch.rand(6, 1, 2, 2))
    grid = torch.cartesian_prod(*2 * [torch.arange(60.0)])
    with torch.no_grad():
        log_prior = model.marginal.log_prob(grid).sum(-1)
        decoded = model.likelihood(model.decoder(grid.unsqueeze(1)))
        exact = (decoded.log_prob(images.images) + log_prior.unsqueeze(1)).logsumexp(0)
    found = log_likelihood(Fit(model, guide, FitSpec()), images, draws=20_000)
    np.testing.assert_allclose(found.values, exact.numpy(), atol=0.05)


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
    log_likelihood(Fit(model, guide, FitSpec()), data.subset(slice(0, 3)), draws=25)
    assert all((v == before[k]).all() for k, v in guide.state_dict().items())
    assert load_guide("relaxed", model).spec.label == "NG-VAE"


def test_equal_weights_have_no_tail():
    noise = np.random.default_rng(0).normal(size=100)
    k = _arviz.pareto_k(np.stack([np.full(100, -3.0), noise, 4000 + 1e-4 * (noise > 2.0)]))
    # The third only differs as float32 rounds 4,000 nats.
    assert k[0] == k[2] == 0.0 and k[1] < 1.0
    rows = np.full((1, 100), -3.0)
    assert (_arviz.pareto_k(rows[:1]) == 0.0).all()


def test_too_few_draws_are_one_line(linear):
    fit, images, _ = linear
    with pytest.raises(UserError, match="draws: expected at least 25, got 24"):
        log_likelihood(fit, images, draws=24)
