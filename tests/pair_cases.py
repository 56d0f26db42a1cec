"""Models and guides of one's own, which run folders name in full."""

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn

from ngvae_pyro.distributions import RelaxedNormalGammaMixture, SpikeSlabPrior
from ngvae_pyro.guide import Codes

K, D = 3, 6
GAMMAS = {"concentration": (10.0, 100.0), "rate": (1e-3, 100.0)}

decoder, encoder = nn.Linear(K, D), nn.Linear(D, 2 * K)


def model(x):
    pyro.module("decoder", decoder)
    scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(decoder(z), scale).to_event(1), obs=x)


def guide(x):
    pyro.module("encoder", encoder)
    loc, log_scale = encoder(x).chunk(2, -1)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class Model(PyroModule):
    """With a parameter of Pyro's, and an option."""

    def __init__(self, scale=0.2):
        super().__init__()
        self.options = {"scale": scale}
        self.linear = nn.Linear(K, D)
        self.scale = PyroParam(torch.tensor(scale), constraint=dist.constraints.positive)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.linear(z), self.scale).to_event(1), obs=x)


class Guide(PyroModule):
    """Whose layer has the name of the model's."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(D, 2 * K)

    def forward(self, x):
        loc, log_scale = self.linear(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class Both(nn.Module):
    """One module with a model and a guide, as in Pyro's tutorials."""

    def __init__(self, width=5):
        super().__init__()
        self.options = {"width": width}
        self.decoder = nn.Sequential(nn.Linear(K, width), nn.Dropout(0.5), nn.Linear(width, D))
        self.encoder = nn.Linear(D, 2 * K)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.2).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class SelectingModel(nn.Module):
    """Linear, with the prior of the Normal-Gamma VAE."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(K, D)
        probs = torch.full((K,), 0.02)
        self.prior = SpikeSlabPrior(probs, slab=(0.1, 1e-5), spike=(100.0, 100.0))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            precision = pyro.sample("precision", self.prior.precision.to_event(1))
            z = pyro.sample("z", self.prior.conditional(precision).to_event(1))
            pyro.sample("x", dist.Normal(self.stem(z), 0.1).to_event(1), obs=x)


class SelectingGuide(nn.Module):
    """Linear, with the relaxed posterior and without what moves need."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(D, 2 * K)

    def posterior(self, x):
        loc, logits = self.head(x).chunk(2, -1)
        return RelaxedNormalGammaMixture(loc, logits=logits, sharpness=20.0, **GAMMAS)

    def forward(self, x):
        q = self.posterior(x)
        with pyro.plate("data", len(x)):
            precision = pyro.sample("precision", q.precision.to_event(1))
            pyro.sample("z", q.conditional(precision).to_event(1))


class MovableGuide(SelectingGuide):
    """With what moves need."""

    p_is = "the weight of the informative component"

    def codes(self, x):
        q = self.posterior(x)
        return Codes(q.loc, q.variance[..., 0], q.mean[..., 1], q.probs)

    @torch.no_grad()
    def switch(self, model, latent, on, loc):
        assert isinstance(model, SelectingModel)
        factor = loc.std() if on else 0.0
        model.stem.bias += loc.mean() * model.stem.weight[:, latent]
        model.stem.weight[:, latent] *= factor
        self.head.bias[latent] -= loc.mean()
        for part in (self.head.weight, self.head.bias):
            part[latent] /= factor or torch.inf
        self.head.weight[K + latent], self.head.bias[K + latent] = 0.0, 2.5 if on else -4.0
        return [(part, ...) for part in (*model.parameters(), *self.parameters())]

    @torch.no_grad()
    def recombine(self, model, latents, change, precision):
        kept = latents[: len(change)]
        weight, bias = change @ self.head.weight[latents], change @ self.head.bias[latents]
        columns = model.stem.weight[:, latents] @ torch.linalg.pinv(change)
        self.head.weight[latents], self.head.bias[latents] = 0.0, 0.0
        model.stem.weight[:, latents] = 0.0
        self.head.weight[kept], self.head.bias[kept] = weight, bias
        model.stem.weight[:, kept] = columns
        return [(part, ...) for part in (*model.parameters(), *self.parameters())]

    def seal(self, sealed=True):
        pass


class Correlated(nn.Module):
    """A posterior whose latents depend on each other, and which knows neither mean nor variance."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(D, K)
        self.flow = dist.transforms.affine_autoregressive(K, hidden_dims=[4])

    def forward(self, x):
        normal = dist.Normal(self.linear(x), 0.1).to_event(1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(normal, [self.flow]))


def squared_guide(x):
    """z = y^2 / 2 with y ~ Normal(1, 0.2), of which Pyro knows no mean."""
    rate = pyro.param("unused", torch.zeros(()))
    normal = dist.Normal(torch.ones(len(x), K) + 0.0 * rate, 0.2)
    transforms = [dist.transforms.PowerTransform(torch.tensor(2.0))]
    transforms.append(dist.transforms.AffineTransform(0.0, 0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.TransformedDistribution(normal, transforms).to_event(1))
