"""A likelihood of one's own, which tests name in full."""

import pyro.distributions as dist
import torch
from torch import nn

from ngvae_pyro.likelihoods import Likelihood


class LaplaceLikelihood(Likelihood):
    """Laplace(output, scale), with a learned scale."""

    in_units = True

    def __init__(self, spec, image_shape, scale=0.1):
        super().__init__(spec, image_shape)
        self.log_scale = nn.Parameter(torch.tensor(scale).log())

    def forward(self, output, x=None):
        return dist.Laplace(output, self.log_scale.exp()).to_event(3)


class Shapeless(Likelihood):
    def forward(self, output, x=None):
        return dist.Normal(output, 1.0)


class Meanless(Likelihood):
    def forward(self, output, x=None):
        return dist.Cauchy(output, 1.0).to_event(3)


class NoLikelihood(nn.Module):
    pass


class Wordless(Likelihood):
    """It does not say what p(x | z) is."""


class Unmade(LaplaceLikelihood):
    """It refuses what it is made of."""

    def __init__(self, spec, image_shape):
        raise ValueError("expected two classes")


class OwnCounts(Likelihood):
    """Counts, whose spec has to say so too."""

    counts = True

    def forward(self, output, x=None):
        return dist.Poisson(output.exp()).to_event(3)
