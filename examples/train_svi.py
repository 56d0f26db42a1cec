"""A Normal-Gamma VAE in plain Pyro: literal SVI, nothing but the distribution from this package.

python examples/train_svi.py --steps 3000
"""

import argparse

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from torch import nn

from ngvae_pyro import sprites
from ngvae_pyro.distributions import RelaxedNormalGammaMixture, SpikeSlabPrior

K, PIXELS = 15, 3 * 32 * 32
ENCODER = nn.Sequential(nn.Linear(PIXELS, 256), nn.SiLU(), nn.Linear(256, 2 * K))
DECODER = nn.Sequential(nn.Linear(K, 256), nn.SiLU(), nn.Linear(256, PIXELS))


def model(x: torch.Tensor, weight: float) -> None:
    """p(precision) p(z) p(x | z); weight scales the KL and falls to 1 during training."""
    pyro.module("decoder", DECODER)
    prior = SpikeSlabPrior(torch.full((K,), 0.02), slab=(1.0, 1e-4), spike=(100.0, 100.0))
    with pyro.plate("data", len(x)):
        with pyro.poutine.scale(scale=weight):
            precision = pyro.sample("precision", prior.precision.to_event(1))
            z = pyro.sample("z", prior.conditional(precision).to_event(1))
        pyro.sample("x", dist.Normal(DECODER(z), 0.1).to_event(1), obs=x)


def guide(x: torch.Tensor, weight: float) -> None:
    """q(precision | x) q(z | precision, x)."""
    pyro.module("encoder", ENCODER)
    loc, logits = ENCODER(x).chunk(2, -1)
    q = RelaxedNormalGammaMixture(
        loc, logits=logits, concentration=(1000.0, 100.0), rate=(0.1, 100.0), sharpness=20.0
    )
    with pyro.plate("data", len(x)), pyro.poutine.scale(scale=weight):
        precision = pyro.sample("precision", q.precision.to_event(1))
        pyro.sample("z", q.conditional(precision).to_event(1))


def main(steps: int) -> None:
    pyro.set_rng_seed(0)
    images = sprites(20_000).images.flatten(1)
    svi = SVI(model, guide, ClippedAdam({"lr": 1e-3, "clip_norm": 100.0}), loss=Trace_ELBO())
    for step in range(1, steps + 1):
        x = images[torch.randint(len(images), (64,))] / 255.0
        loss = svi.step(x, max(1.0, 40.0 * (1.0 - 2.0 * step / steps))) / len(x)
        if step % max(1, steps // 10) == 0:
            print(f"step {step:6d}  weighted -ELBO {loss:9.1f} nats per image")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    main(parser.parse_args().steps)
