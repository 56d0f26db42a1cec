"""The log likelihood of posteriors with several modes, against quadrature."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ngvae_pyro import _arviz, evidence
from ngvae_pyro.guide import load_guide
from ngvae_pyro.images import ImageData
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
    "eight modes": (torch.square, torch.abs, lambda z: 2 * z.square()),
    "nearly square": (lambda z: (z + 0.1).square(),),
    "unequal modes": (lambda z: z.square() + 0.15 * z,),
    "linear": (lambda z: 2 * z, lambda z: z),
    "three modes": (lambda z: 2 * (2 * z).sin(),),
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
    fit = SimpleNamespace(model=model, guide=guide, device=torch.device("cpu"))
    return fit, ImageData("folded", x), exact.numpy()


@pytest.mark.parametrize("name", FOLDS)
def test_it_is_the_evidence_of_posteriors_with_several_modes(name):
    fit, images, exact = folded(FOLDS[name])
    found = evidence.log_likelihood(fit, images, draws=400)
    error = found.values - exact
    print(
        name,
        np.median(error),
        np.abs(error).max(),
        error.mean(),
        (found.pareto_k > 0.7).mean(),
        np.sort(error)[[0, 1, -2, -1]],
    )
    assert abs(np.median(error)) < 0.02
    assert np.abs(error).max() < 0.2
    assert (found.pareto_k < _arviz.GOOD_K).mean() > 0.9
