"""A Normal-Gamma VAE in plain Pyro. Seeds 0 to 3 find four of the seven factors each; the rest
leaks through a wide loc at precision 1, which the births in `ngvae_pyro.fit` repair."""

import argparse

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam

from ngvae_pyro import sprites
from ngvae_pyro.distributions import RelaxedNormalGammaMixture, SpikeSlabPrior
from ngvae_pyro.nn import Decoder, Encoder
from ngvae_pyro.specs import SELECT, MLPSpec
from ngvae_pyro.training.trainer import SiteWeights

K, SHAPE, SCALE = 15, (3, 32, 32), 0.1
GAMMAS = {"concentration": (1000.0, 100.0), "rate": (0.1, 100.0)}


def model(x, sharpness):
    pyro.module("decoder", decoder)
    prior = SpikeSlabPrior(torch.full((K,), 0.02), slab=(1.0, 1e-4), spike=(100.0, 100.0))
    with pyro.plate("data", len(x)):
        precision = pyro.sample("precision", prior.precision.to_event(1))
        z = pyro.sample("z", prior.conditional(precision).to_event(1))
        pyro.sample("x", pyro.distributions.Normal(decoder(z), SCALE).to_event(3), obs=x)


def guide(x, sharpness):
    pyro.module("encoder", encoder)
    loc, logits = encoder(x)
    q = RelaxedNormalGammaMixture(loc, logits=logits, **GAMMAS, sharpness=sharpness)
    with pyro.plate("data", len(x)):
        precision = pyro.sample("precision", q.precision.to_event(1))
        pyro.sample("z", q.conditional(precision).to_event(1))
    return q


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=3000)
parser.add_argument("--seed", type=int, default=0)
words = parser.parse_args()
pyro.set_rng_seed(words.seed)
encoder, decoder = Encoder(MLPSpec(), SHAPE, K, outputs=2), Decoder(MLPSpec(depth=8), SHAPE, K)
images = sprites(20_000).images / 255.0
# Start with few latents: the weight of z's KL falls from (nats in the data) / signal_nats to 1.
weight = images.var(0).sum().item() / (2 * SCALE**2) / SELECT.signal_nats
z_weight = SELECT.z.model_copy(update={"initial": weight})
optimizer = ClippedAdam({"lr": 3e-3, "lrd": 0.1 ** (1 / words.steps), "clip_norm": 2000.0})
svi = SVI(model, guide, optimizer, loss=Trace_ELBO())
for step in range(words.steps):
    t, x = step / words.steps, images[torch.randint(len(images), (64,))]
    with SiteWeights({"z": z_weight(t), "precision": SELECT.precision(t)}):
        loss = svi.step(x, sharpness=20.0 * SELECT.sharpness(t)) / len(x)
    if step % 300 == 0:
        print(f"step {step:6d}  weighted -ELBO {loss:9.1f} nats per image")
q = guide(images[:1000], sharpness=20.0)
print("precision of each latent:", *(f"{value:,.0f}" for value in q.mean[..., 1].mean(0)))
print("variance of its loc:", *(f"{value:.2f}" for value in q.loc.var(0)))
