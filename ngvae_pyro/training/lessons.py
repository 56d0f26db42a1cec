"""New codes, found by other means than gradients of the ELBO, and how a pair learns them.

Gradients improve the codes that there are; they neither unroll a factor that is bent over two
latents nor begin with one that is missing. In both cases better codes are easy to compute, and
encoder and decoder, which keep all they know of the images, learn them within some hundred steps
(:func:`teach`). After that the ELBO decides; see :mod:`ngvae_pyro.training.actions`.

- *Fewer codes*. A factor that travels far, such as a position of many widths, may end up bent over
  two latents: the codes lie on a curved surface with fewer dimensions than latents, and all shorter
  descriptions that are near are worse. :func:`coordinates` of the surface come from an autoencoder
  of the codes, a small problem of M numbers instead of an image.
- *One more code*. If a factor is missing, the reconstructions differ from the images by what it
  does, and :func:`missing` is the principal component of that.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ngvae_pyro.contexts import evaluating, given
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.data.rows import Rows
from ngvae_pyro.nn import ResidualLayer
from ngvae_pyro.specs import FitSpec

if TYPE_CHECKING:
    from ngvae_pyro.training.trainer import Trainer

# The autoencoder of codes: its layers, and its training by Adam, of at most as many steps as the
# pair's.
WIDTH, DEPTH = 128, 3
STEPS, BATCH, LEARNING_RATE = 1_500, 256, 3e-3
# Standard deviation of the noise on its middle, so that close codes get close coordinates.
NOISE = 0.02
# Weight of the squared middle, without which its size would be arbitrary.
DECAY = 1e-3

# Images from which the worth of a direction is estimated; of half of so many it has an error of a
# quarter.
FEWEST = 64

# Steps of the lesson, at most a tenth of those of the training, and its highest learning rate.
LESSON, LESSON_RATE = 400, 2e-3


def _network(inputs: int, outputs: int) -> nn.Sequential:
    layers = (ResidualLayer(WIDTH) for _ in range(DEPTH - 1))
    return nn.Sequential(nn.Linear(inputs, WIDTH), nn.SiLU(), *layers, nn.Linear(WIDTH, outputs))


def _rate(step: int, steps: int) -> float:
    """Factor on a learning rate: constant for half of the steps, then falling linearly to 0."""
    return min(1.0, 2.0 * (1.0 - step / steps))


@torch.enable_grad()
def coordinates(
    loc: Tensor,
    precision: Tensor,
    size: int,
    steps: int = STEPS,
    heed: Callable[[], None] = lambda: None,
) -> Tensor:
    """Fewer coordinates of codes, uncorrelated, with mean 0 and variance 1.

    The autoencoder minimises sum_k w_k (loc_k - g_k(f(loc)))^2 over the codes, where w are the
    posterior precisions divided by their mean.

    Args:
        loc: Codes (N, M), on any device.
        precision: Posterior precisions (M,).
        size: Number d of coordinates, 1 to M.
        steps: Steps of the autoencoder's training.
        heed: Called before each of them, to stop it by an exception.

    Returns:
        u (N, d).
    """
    into = _network(loc.shape[1], size).to(loc)
    back = _network(size, loc.shape[1]).to(loc)
    weights = precision / precision.mean()
    optimizer = torch.optim.Adam([*into.parameters(), *back.parameters()], LEARNING_RATE)
    for step in range(steps):
        heed()
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * _rate(step, steps)
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


@torch.no_grad()
def missing(trainer: "Trainer") -> tuple[float, Tensor]:
    """The direction along which the reconstructions of the monitor images miss most.

    With the residuals r = x - E[x | loc] of one half of the images, their first principal component
    v, of length 1, and with those of the other half what it is worth in nats per image,

        Var(v . r) / (2 s^2),

    s^2 the likelihood's variance, mean of pixels. Noise has no direction, and is worth 1/2.

    Returns:
        That worth, 0 for fewer than FEWEST images, and v (D,), the same in all processes.
    """
    rest, variance = residuals(trainer, trainer.monitor_images)
    half = len(rest) // 2
    first, second = (part - part.mean(0) for part in (rest[:half], rest[half:]))
    # The principal component's scores are the last eigenvector.
    direction = torch.linalg.eigh(first @ first.T).eigenvectors[:, -1] @ first
    direction = direction / direction.norm().clamp_min(torch.finfo(direction.dtype).tiny)
    enough = len(rest) >= FEWEST
    worth = ((second @ direction).var() / (2.0 * variance)).item() if enough else 0.0
    return trainer.team.agreed(worth), trainer.team.agreed(direction)


@torch.no_grad()
def residuals(trainer: "Trainer", x: Tensor) -> tuple[Tensor, Tensor]:
    """What reconstructions of x (N, C, H, W) miss, (N, D), and a pixel's variance given z.

    Of a value that is missing they miss nothing.
    """
    codes = trainer.codes(x)
    with evaluating(trainer.model):
        p = trainer.model.likelihood(trainer.model.decoder(codes.loc), x)
    rest = x - p.mean
    if trainer.model.likelihood.spec.missing:
        rest = rest.masked_fill(x.isnan(), 0.0)
    return rest.flatten(1), p.variance.mean()


def lesson_steps(spec: FitSpec) -> int:
    """Steps of a lesson in a training."""
    return min(LESSON, spec.steps // 10)


@torch.enable_grad()
def teach(
    trainer: "Trainer", images: Tensor | Rows, codes: Tensor, design: Tensor | None = None
) -> None:
    """Train encoder and decoder with given codes in place of the posterior means.

    The loss of an image x with codes u is, in nats and without a constant,

        -log p(x | z) + sum_k L_k (loc_k(x) - u_k)^2 / 2,  z_k ~ Normal(u_k, L_k^-1/2),

    the second term the KL between two Normals of the posterior's precision L_k. The optimizer of
    the training forgets its running means.

    Args:
        trainer: The training.
        images: (N, C, H, W), as the data have them.
        codes: u (N, K), of all latents.
        design: The covariates of the images, if they have any, in their first N rows.
    """
    model, guide, team = trainer.model, trainer.guide, trainer.team
    precision = trainer.codes(trainer.monitor_images).precision.mean(0).detach()
    both = (*model.parameters(), *guide.parameters())
    pair = [parameter for parameter in both if parameter.requires_grad]
    # Not that of the training, whose moments belong to the ELBO and whose gradients are those that
    # a recording writes to.
    optimizer, own = torch.optim.Adam(pair), [p.grad for p in pair]
    present = trainer.learning_rate(trainer.spec.learning_rate, trainer.step / trainer.spec.steps)
    highest = min(LESSON_RATE, present)
    steps = lesson_steps(trainer.spec)
    for step in range(steps):
        trainer.heed()
        trainer.bar.lesson(step, steps)
        optimizer.param_groups[0]["lr"] = highest * _rate(step, steps)
        index = torch.randint(len(images), (trainer.batches.batch_size,))
        x = ImageData.to_unit(images[index].to(trainer.device))
        u = codes[index.to(codes.device)]
        with given(None if design is None else design[index].to(trainer.device)):
            output = model.decoder(u + precision.rsqrt() * torch.randn_like(u))
            distance = (precision * (guide.codes(x).loc - u).square()).sum(1) / 2.0
        loss = (distance - model.likelihood(output, x).log_prob(x)).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(pair, trainer.spec.clip_norm)
        optimizer.step()
    with torch.no_grad():
        for parameter, gradient in zip(pair, own, strict=True):
            parameter.grad = gradient
            # Not the same to the last bit on different machines.
            parameter.copy_(team.agreed(parameter.detach()))
    trainer.forget([(parameter, ...) for parameter in pair])
