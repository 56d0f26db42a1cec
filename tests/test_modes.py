"""The log likelihood of posteriors with several modes, against quadrature."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import growth, needs_peak
from torch import nn

from ngvae_pyro import _arviz, machine
from ngvae_pyro.data.forms import Form
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.errors import Notice, UserError
from ngvae_pyro.evaluation import diagnostics, evidence, uncertainty
from ngvae_pyro.guide import load_guide
from ngvae_pyro.model import load_model
from ngvae_pyro.specs import LikelihoodSpec, MLPSpec

PIXELS = 8
SMALL = MLPSpec(width=8, depth=1)


class Folded(nn.Module):
    """A decoder in which each latent has pixels of its own, through a function of it alone."""

    def __init__(self, *folds):
        super().__init__()
        self.folds = folds
        self.register_buffer("slope", torch.linspace(-0.3, 0.3, PIXELS))

    def of_one(self, k, z):
        """Pixels (..., PIXELS) of latent k."""
        return 0.5 + 0.4 * (self.folds[k](z).unsqueeze(-1) * self.slope).tanh()

    def forward(self, z):
        parts = [self.of_one(k, z[..., k]) for k in range(len(self.folds))]
        return torch.stack(parts, -2).unsqueeze(-3)


FOLDS = {
    "square": (torch.square,),
    "absolute and linear": (torch.abs, lambda z: 2 * z),
    "four modes": (torch.square, torch.abs, lambda z: 2 * z),
    "nearly square": (lambda z: (z + 0.1).square(),),
    "unequal modes": (lambda z: z.square() + 0.15 * z,),
    "linear": (lambda z: 2 * z, lambda z: z),
    "a wave": (lambda z: 2 * (2 * z).sin(),),
}


def folded(folds, count=40, scale=0.05, prior="gaussian"):
    """A fit of such a decoder, images drawn from it, and their log p(x) by quadrature."""
    torch.manual_seed(1)
    shape = (1, len(folds), PIXELS)
    model = load_model(
        prior, shape, latent_size=len(folds), likelihood=LikelihoodSpec(scale=scale), decoder=SMALL
    )
    guide = load_guide("relaxed" if "gamma" in prior else "gaussian", model, encoder=SMALL)
    model.decoder = Folded(*folds)
    with torch.no_grad():
        z = model.marginal.expand((count, len(folds))).sample()
        mean = model.decoder(z)
        x = (mean + scale * torch.randn_like(mean)).clamp(0, 1)
    grid = torch.linspace(-9, 9, 40_001).double()
    exact = torch.zeros(count).double()
    for k in range(len(folds)):
        residual = x[:, 0, k].double().unsqueeze(1) - model.decoder.of_one(k, grid)
        log_p = -0.5 * (residual / scale).square().sum(-1) - PIXELS * math.log(
            scale * math.sqrt(2 * math.pi)
        )
        log_prior = model.marginal.log_prob(grid.unsqueeze(-1).expand(-1, len(folds)))[:, k]
        exact += torch.logsumexp(log_p + log_prior, 1) + math.log(grid[1] - grid[0])
    fit = SimpleNamespace(model=model, guide=guide, device=torch.device("cpu"), form=Form())
    return fit, ImageData("folded", x), exact.numpy()


@pytest.mark.parametrize("name", FOLDS)
def test_it_is_the_evidence_of_posteriors_with_several_modes(name):
    fit, images, exact = folded(FOLDS[name])
    error = evidence.log_likelihood(fit, images, draws=400).values - exact
    # Of a mode that is missed, it is -0.69 or so.
    assert abs(np.median(error)) < 0.03
    assert np.abs(error).max() < 0.25


def test_latents_of_which_the_image_says_nothing_are_drawn_from_the_joint_prior():
    fit, images, exact = folded((lambda z: 2 * z, lambda z: 0 * z), prior="normal_gamma_joint")
    found = evidence.log_likelihood(fit, images, draws=1000)
    assert (found.pareto_k > _arviz.GOOD_K).mean() < 0.2
    assert np.abs(found.values - exact).mean() < 0.02


def test_wide_means_under_the_joint_prior_have_its_tails():
    """A mean far out, where the prior is the slab's Student's t and no Normal(0, 1)."""
    fit, *_ = folded((lambda z: z - 7,), count=2, prior="normal_gamma_joint")
    z = torch.linspace(5.0, 9.0, 20).unsqueeze(1)
    x = fit.model.decoder(z)
    peak = evidence.climb(fit.model, x, z + 0.5, iterations=6)
    slope = torch.autograd.functional.jacobian(
        lambda v: evidence.log_joint.__wrapped__(fit.model, x, v).sum(), peak.loc.float()
    )
    # In units of the posterior's standard deviation.
    assert (slope.double().squeeze(1) * peak.precision[:, 0, 0].rsqrt()).abs().max() < 0.3


def test_more_modes_than_are_kept_are_said():
    fit, images, _ = folded((torch.square,) * 5, count=3)
    with pytest.warns(Notice, match="of 3 images has more than 16 modes"):
        evidence.log_likelihood(fit, images, draws=25)


def test_less_room_gives_the_same_numbers(monkeypatch):
    fit, images, _ = folded(FOLDS["four modes"], count=12)
    whole = evidence.log_likelihood(fit, images, draws=50)
    monkeypatch.setattr(evidence, "ROOM", 20_000)
    np.testing.assert_allclose(
        evidence.log_likelihood(fit, images, draws=50).values, whole.values, atol=1e-3
    )


@needs_peak
@pytest.mark.filterwarnings("ignore::ngvae_pyro.errors.Notice")
def test_many_latents_take_little_memory():
    model = load_model("gaussian", (1, 4, 4), latent_size=300, decoder=SMALL)
    guide = load_guide("gaussian", model, encoder=SMALL)
    fit = SimpleNamespace(model=model, guide=guide, device=torch.device("cpu"), form=Form())
    images = ImageData("drawn", model(size=5).detach().clamp(0, 1))
    # A covariance for each draw is 1.3 GiB.
    assert growth(lambda: evidence.log_likelihood(fit, images, draws=400)) < 2**29


def test_draws_that_do_not_fit_are_one_line(monkeypatch):
    fit, images, _ = folded(FOLDS["linear"], count=2)
    monkeypatch.setattr(machine, "there", lambda device="cpu": 1e6)
    with pytest.raises(UserError, match=r"log likelihood \(draws, latent_size\): expected some"):
        evidence.log_likelihood(fit, images, draws=100_000)
    with pytest.raises(UserError, match=r"uncertainty \(precisions, draws\): expected some"):
        uncertainty.uncertainty(fit, images, precisions=1000, draws=1000)
    with pytest.raises(UserError, match=r"posterior draws \(observations, .*: expected some"):
        diagnostics.to_arviz(fit, images, draws_per_chain=100_000)
