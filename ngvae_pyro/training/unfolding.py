"""Coordinates of a folded surface of codes, and how encoder and decoder learn them.

A factor that travels far, such as a position of many widths, may end up bent over two latents: the
codes then lie on a curved surface with fewer dimensions than latents. Neither gradients nor the
death of a latent lead out of that, because all shorter descriptions that are near are worse: half
of the arc would have to be drawn anew. The surface itself is easy to learn, though. It takes three
steps:

1. *The size*: the dimension d of the surface (:func:`ngvae_pyro.dimension.of_codes`).
2. *The coordinates*: an autoencoder of the codes with d units in the middle, u = f(loc) and
   loc ~ g(u) (:func:`coordinates`). That is a small problem, of M numbers instead of an image.
3. *The lesson*: encoder and decoder, which keep all they know of the images, are trained for some
   hundred steps with u in place of the posterior means (:func:`teach`).

After that :class:`ngvae_pyro.training.actions.Unfold` lets the ELBO decide.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ngvae_pyro.data.images import ImageData
from ngvae_pyro.nn import ResidualLayer

if TYPE_CHECKING:
    from ngvae_pyro.training.trainer import Trainer

# The autoencoder of codes: its layers, and its training by Adam.
WIDTH, DEPTH = 128, 3
STEPS, BATCH, LEARNING_RATE = 1_500, 256, 3e-3
# Standard deviation of the noise on its middle, so that close codes get close coordinates.
NOISE = 0.02
# Weight of the squared middle, without which its size would be arbitrary.
DECAY = 1e-3

# Steps of the lesson, at most at this learning rate.
LESSON, LESSON_RATE = 400, 2e-3


def _network(inputs: int, outputs: int) -> nn.Sequential:
    layers = (ResidualLayer(WIDTH) for _ in range(DEPTH - 1))
    return nn.Sequential(nn.Linear(inputs, WIDTH), nn.SiLU(), *layers, nn.Linear(WIDTH, outputs))


def _rate(step: int, steps: int) -> float:
    """Factor on a learning rate: constant for half of the steps, then falling linearly to 0."""
    return min(1.0, 2.0 * (1.0 - step / steps))


@torch.enable_grad()
def coordinates(loc: Tensor, precision: Tensor, size: int) -> Tensor:
    """Fewer coordinates of codes, uncorrelated, with mean 0 and variance 1.

    The autoencoder minimises sum_k w_k (loc_k - g_k(f(loc)))^2 over the codes, where w are the
    posterior precisions divided by their mean.

    Args:
        loc: Codes (N, M), on any device.
        precision: Posterior precisions (M,).
        size: Number d of coordinates, 1 to M.

    Returns:
        u (N, d).
    """
    into = _network(loc.shape[1], size).to(loc)
    back = _network(size, loc.shape[1]).to(loc)
    weights = precision / precision.mean()
    optimizer = torch.optim.Adam([*into.parameters(), *back.parameters()], LEARNING_RATE)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * _rate(step, STEPS)
        z = loc[torch.randint(len(loc), (BATCH,)).to(loc.device)]
        u = into(z)
        error = back(u + NOISE * torch.randn_like(u)) - z
        loss = (weights * error.square()).sum(1).mean() + DECAY * u.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        u = into(loc)
        variance, vectors = torch.linalg.eigh(torch.cov(u.T).reshape(size, size))
        found: Tensor = (u - u.mean(0)) @ vectors / variance.sqrt()
        return found


@torch.enable_grad()
def teach(trainer: "Trainer", images: Tensor, latents: Tensor, codes: Tensor) -> None:
    """Train encoder and decoder with given codes in place of the posterior means.

    The loss of an image x with codes u is, in nats and without a constant,

        -log p(x | z) + sum_k L_k (loc_k(x) - u_k)^2 / 2,  z_k ~ Normal(u_k, L_k^-1/2),

    the second term the KL between two Normals of the posterior's precision L_k.

    Args:
        trainer: The training.
        images: (N, C, H, W), as the data have them.
        latents: Indices (d,) of the latents that take the codes; the others are 0.
        codes: u (N, d).
    """
    model, guide = trainer.model, trainer.guide
    precision = trainer.codes(trainer.monitor_images).precision.mean(0)[latents].detach()
    pair = [*model.parameters(), *guide.parameters()]
    # Not that of the training, whose moments belong to the ELBO and whose gradients are those that
    # a recording writes to.
    optimizer, own = torch.optim.Adam(pair), [p.grad for p in pair]
    present = trainer.learning_rate(trainer.spec.learning_rate, trainer.step / trainer.spec.steps)
    highest = min(LESSON_RATE, present)
    for step in range(LESSON):
        trainer.heed()
        optimizer.param_groups[0]["lr"] = highest * _rate(step, LESSON)
        index = torch.randint(len(images), (trainer.batches.batch_size,))
        x = ImageData.to_unit(images[index].to(trainer.device))
        u = codes[index.to(codes.device)]
        z = x.new_zeros(len(x), model.latent_size)
        z[:, latents] = u + precision.rsqrt() * torch.randn_like(u)
        error = guide.codes(x).loc[:, latents] - u
        likelihood = model.likelihood(model.decoder(z)).log_prob(x).mean()
        loss = (precision * error.square()).sum(1).mean() / 2.0 - likelihood
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(pair, trainer.spec.clip_norm)
        optimizer.step()
    for parameter, gradient in zip(pair, own, strict=True):
        parameter.grad = gradient
