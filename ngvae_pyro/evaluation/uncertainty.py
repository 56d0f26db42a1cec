"""Predictive uncertainty of images, divided into noise, z and the precision."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ngvae_pyro import machine
from ngvae_pyro.contexts import evaluating
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.errors import UserError, expect
from ngvae_pyro.evaluation.evidence import CHUNK
from ngvae_pyro.fitted import Fit, check_data, check_fit
from ngvae_pyro.machine import seeded


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """The three parts of the predictive variance of x, in squared intensities.

    ``noise``, ``z`` and ``precision`` hold a value for each pixel, (N, C, H, W), or, as returned by
    :meth:`per_image`, sums over the pixels, (N,).
    """

    noise: Tensor
    z: Tensor
    precision: Tensor

    @property
    def total(self) -> Tensor:
        """Var[x | x0], the sum of the parts."""
        return self.noise + self.z + self.precision

    def per_image(self) -> "Uncertainty":
        """Sums over the pixels, each (N,)."""
        parts = (self.noise, self.z, self.precision)
        return Uncertainty(*(part.flatten(1).sum(1) for part in parts))


def uncertainty(
    fit: Fit, data: ImageData, *, precisions: int = 8, draws: int = 8, seed: int = 0
) -> Uncertainty:
    """Predictive variance of every pixel given an image x0, by the law of total variance.

        Var[x | x0] = E_precision E_z Var[x | z]        noise of the likelihood
                    + E_precision Var_z E[x | z]        z, given its precision
                    + Var_precision E_z E[x | z]        precision

    with precision ~ q(precision | x0) and z ~ q(z | precision, x0), from S precisions and M draws
    of z for each. With W the mean over the S groups of the variances in them, and B the variance
    of the S means,

        z = W,    precision = B - W / M.

    B alone is too large by W / M, the variance of a mean of M draws. These analysis of variance
    estimators of a one-way random model are unbiased (Searle, Casella and McCulloch, 1992,
    "Variance components", Wiley, chapter 3), so the precision's part may come out below 0
    where it is small. It is exactly 0 for a guide without a precision site, whose S M draws form
    one group.

    The precision's part is its effect on the mean image. It is zero for a linear decoder, because a
    change of precision changes the spread of z but not its mean. It is small for the relaxed guide,
    where the precision of an informative latent varies by 3 % about its mean: on sprites, an image
    has 30.72 from noise, 0.021 from z and 0.00003 from the precision.

    Args:
        fit: From :func:`ngvae_pyro.fit`.
        data: Images x0; the result takes three times their size in float32.
        precisions: S, at least 2.
        draws: M, at least 2.
        seed: Seed of the draws.

    Raises:
        UserError: For fewer than 2 precisions or draws, which have no variance, and for more than
            fit into memory.
    """
    parts = list(in_batches(fit, data, precisions, draws, seed))
    names = ("noise", "z", "precision")
    return Uncertainty(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


@torch.no_grad()
def in_batches(
    fit: Fit, data: ImageData, precisions: int, draws: int, seed: int
) -> Iterator[Uncertainty]:
    """Yield the uncertainty of a few images at a time, on the CPU."""
    check_fit(fit)
    for name, value in (("precisions", precisions), ("draws", draws)):
        expect(name, value, int, "a whole number")
        if value < 2:
            raise UserError(f"{name}: expected at least 2, got {value}")
    check_data(fit, data)
    step = max(1, CHUNK // (precisions * draws))
    # All draws of an image are decoded at once, and copied a few times to compute variances.
    pixels = math.prod(data.image_shape)
    needed = 6.0 * machine.FLOAT_BYTES * precisions * draws * step * pixels
    machine.check("the uncertainty (precisions, draws)", needed, fit.device)
    for start in range(0, len(data), step):
        part = data.given(slice(start, start + step), fit.device)
        # Entered for each batch, so that the networks' modes are restored between batches.
        with part as x, evaluating(fit.model, fit.guide):
            with seeded(seed + start, fit.device):
                z = fit.guide.nested_draws(x, precisions, draws)
            groups, members = z.shape[:2]
            likelihood = fit.model.likelihood(fit.model.decoder(z), x)
            mean, noise = likelihood.mean, likelihood.variance.mean((0, 1))
        within = mean.var(1).mean(0)
        if groups == 1:
            between = torch.zeros_like(within)
        else:
            between = mean.mean(1).var(0) - within / members
        yield Uncertainty(*(part.cpu() for part in (noise, within, between)))
