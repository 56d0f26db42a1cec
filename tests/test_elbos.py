"""The two plain ELBOs are Pyro's, estimator by estimator."""

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from ngvae_pyro.objectives.base import MeanFieldELBO, TraceELBO


class Model(nn.Module):
    """A count that only scores reach, two reparameterised latents, and one with a closed KL."""

    def forward(self, x):
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=0.7):
            k = pyro.sample("k", dist.Poisson(2.0))
            a = pyro.sample("a", dist.Normal(k, 1.0))
            b = pyro.sample("b", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Normal(a, 1.0 / b.sqrt()), obs=x)


class Guide(nn.Module):
    def __init__(self, discrete):
        super().__init__()
        self.p, self.discrete = nn.Parameter(torch.tensor([0.5, 0.3, -0.2, 1.0])), discrete

    def forward(self, x):
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=0.7):
            rate = self.p[0].exp() + 0.0 * x
            if self.discrete:
                pyro.sample("k", dist.Poisson(rate))
            pyro.sample("a", dist.Normal(self.p[1] * x, self.p[2].exp()))
            pyro.sample("b", dist.Gamma(self.p[3].exp() + x.abs(), 1.0))


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize(
    ("own", "pyros", "discrete"),
    [
        (TraceELBO, Trace_ELBO, True),
        (TraceELBO, Trace_ELBO, False),
        (MeanFieldELBO, TraceMeanField_ELBO, False),
    ],
)
def test_losses_and_gradients_are_pyros(own, pyros, discrete, particles):
    x, guide, model = torch.randn(7), Guide(discrete), Model()
    if not discrete:
        model = pyro.poutine.condition(model, data={"k": torch.full((7,), 2.0)})
    values = []
    for family in (own, pyros):
        elbo = family(num_particles=particles)
        torch.manual_seed(1)
        loss = elbo.differentiable_loss(model, guide, x)
        (gradient,) = torch.autograd.grad(loss, guide.p)
        evaluated = elbo.loss(model, guide, x)
        optimizer = pyro.optim.SGD({"lr": 0.0})
        stepped = SVI(model, guide, optimizer, elbo).step(x)
        values.append(torch.tensor([loss.item(), *gradient, evaluated, stepped]))
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-5)
