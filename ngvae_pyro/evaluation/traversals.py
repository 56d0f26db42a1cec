"""Paths through the latent space that stay where there are data.

If latents depend on each other, moving one alone soon leaves the data: the decoder was never
trained there, and its images break up. So a path ends where the data end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ngvae_pyro.contexts import evaluating
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.errors import UserError, expect
from ngvae_pyro.evaluation.diagnostics import (
    BATCH,
    batches,
    codes,
    evaluate,
    most_informative_first,
)
from ngvae_pyro.fitted import Fit
from ngvae_pyro.guide import Codes
from ngvae_pyro.latents import LEAK, is_informative
from ngvae_pyro.machine import seeded

# The share of the images that count as similar to the base image, the least number of these, and
# the share of their values that is cut off at each end.
SIMILAR, LEAST, TAIL = 0.02, 20, 0.05
# Posterior draws of each image for these quantiles.
DRAWS = 10
# A traversal may make other latents drift as far as they do in this share of the images (estimated
# from so many images, and checked at so many places between the base image and an end). For 12
# typical sprites of a default run, 17 % of the ends broke up at the 1 % and 99 % quantiles over all
# images, 3 % at the quantiles over similar ones, and 1 % with this check too.
USUAL, LOOKED_AT, PLACES = 0.99, 1000, 10


@dataclass(frozen=True)
class Support:
    """Where N images are in the latent space.

    Attributes:
        loc: Posterior means, (N, K).
        z: Posterior draws, (S, N, K).
        informative: Which latents are informative.
        usual: How far an informative latent may usually drift, :func:`drift`.
    """

    loc: Tensor
    z: Tensor
    informative: list[int]
    usual: float

    @classmethod
    @torch.no_grad()
    def of(cls, fit: Fit, data: ImageData, known: Codes | None = None) -> "Support":
        """The support of some images, whose codes may be passed; the draws are always the same."""
        with evaluating(fit.guide), seeded(0, fit.device):
            draws = [fit.guide.draws(x, DRAWS)[1].cpu() for x in batches(fit, data)]
        code, z = known or codes(fit, data), torch.cat(draws, 1)
        informative = code.informative.nonzero().flatten().tolist()
        some = code.loc[:LOOKED_AT]
        usual = torch.quantile(drift(fit, some, _unit(z), informative), USUAL).item()
        return cls(code.loc, z, informative, usual)

    def ends(self, latent: int, base: int) -> tuple[float, float]:
        """How far a latent can move, from the code of one image, before it leaves the data.

        Among the N images, this considers those whose other latents are most like the base image's:
        a fiftieth of all, and at least 20. Nearness is the Euclidean distance between
        posterior means, with each latent but the moved one in units of the standard deviation of z
        over all images. The ends are the 5 % and the 95 % quantile of z over these images, moved
        out to the base image's own mean if that lies outside.

        These are quantiles of z rather than loc, because the decoder was trained on z: for a latent
        that carries nothing, they span its noise.

        Args:
            latent: Which latent moves.
            base: Which image the other latents are taken from.

        Returns:
            The lowest and the highest value.
        """
        distance = ((self.loc - self.loc[base]) / _unit(self.z)).square()
        distance[:, latent] = 0.0
        count = min(len(self.loc), max(LEAST, round(SIMILAR * len(self.loc))))
        similar = distance.sum(1).topk(count, largest=False).indices
        quantiles = self.z.new_tensor([TAIL, 1.0 - TAIL])
        low, high = torch.quantile(self.z[:, similar, latent], quantiles).tolist()
        own = self.loc[base, latent].item()
        return min(low, own), max(high, own)

    def reach(self, fit: Fit, latent: int, base: int) -> tuple[float, float]:
        """The :meth:`ends` of a latent, or the last places before the image breaks up.

        When an image lies outside the data, the guide does not encode it to the latents it was
        decoded from: the other informative latents appear to :func:`drift`. The path to each end is
        cut where this drift exceeds that of the base image by more than 99 % of the images drift at
        their own codes.

        Args:
            fit: The trained pair.
            latent: Which latent moves.
            base: Which image the other latents are taken from.

        Returns:
            The lowest and the highest value.
        """
        low, high = self.ends(latent, base)
        others = [k for k in self.informative if k != latent]
        if self.loc[:, latent].var(correction=0) <= LEAK:
            # It carries nothing, so moving it changes no image.
            return low, high
        own = self.loc[base, latent].item()
        found = []
        for end in (low, high):
            z = self.loc[base].repeat(PLACES + 1, 1)
            z[:, latent] = torch.linspace(own, end, PLACES + 1, dtype=z.dtype)
            drifts = drift(fit, z, _unit(self.z), others)
            fine = drifts - drifts[0] <= self.usual
            found.append(z[int(fine.int().cumprod(0).sum()) - 1, latent].item())
        return found[0], found[1]


def _unit(z: Tensor) -> Tensor:
    """Standard deviations (K,) of draws (S, N, K) over all images."""
    # Bounded, because a latent that is the same for all images does not separate them.
    return z.flatten(0, 1).std(0).clamp_min(1e-6)


@torch.no_grad()
def drift(fit: Fit, z: Tensor, unit: Tensor, latents: Sequence[int]) -> Tensor:
    """How far encoding moves decoded latents: max_k |loc_k(E[x | z]) - z_k| / unit_k.

    Args:
        fit: The trained pair.
        z: Latents (B, K), which are decoded and then encoded by the guide.
        unit: Units of the differences, (K,).
        latents: The latents that count; if there are none, the drift is 0, and so is that of a
            guide that encodes only what it was trained on.

    Returns:
        The largest difference, (B,).
    """
    if not latents or not fit.guide.amortized:
        return torch.zeros(len(z))
    with evaluating(fit.guide):
        again = [fit.guide.codes(x.to(fit.device)).loc for x in decode(fit, z).split(BATCH)]
    return ((torch.cat(again).cpu() - z) / unit)[:, list(latents)].abs().amax(1)


def decode(fit: Fit, z: Tensor) -> Tensor:
    """E[x | z] for latents (..., K): images (..., C, H, W) on the CPU."""
    return fit.means(z.flatten(0, -2)).unflatten(0, z.shape[:-1])


def walk(
    fit: Fit, support: Support, moved: Sequence[Sequence[int]], steps: int, base: int
) -> tuple[Tensor, list[tuple[float, float]]]:
    """Decoded images as latents move, a row for each set of latents that move together.

    Each latent moves as far as :meth:`Support.reach` allows; the others stay at the posterior
    means of the base image.

    Args:
        fit: The trained pair.
        support: Where the images are.
        moved: For each row the latents that move.
        steps: How many images a row has, at equal distances in z.
        base: The image whose code the other latents keep.

    Returns:
        Images (rows, steps, C, H, W), and the ends of each row, averaged over its latents.
    """
    z = support.loc[base].repeat(len(moved), steps, 1)
    found = []
    for i, latents in enumerate(moved):
        spans = np.array([support.reach(fit, k, base) for k in latents])
        for k, (low, high) in zip(latents, spans, strict=True):
            z[i, :, k] = torch.linspace(low, high, steps, dtype=z.dtype)
        low, high = spans.mean(0).tolist()
        found.append((low, high))
    if not moved:
        return z.new_zeros(0, steps, *fit.model.image_shape), found
    return decode(fit, z), found


def typical(loc: Tensor, count: int) -> list[int]:
    """Choose typical images, the one nearest to the centre of the codes first.

    Each further one is, among the half of the images nearest to the centre, the one farthest from
    those already chosen, so that they show different things.

    Args:
        loc: Posterior means (N, K).
        count: How many images.

    Returns:
        The numbers of the images.
    """
    distance = (loc - loc.mean(0)).square().sum(1)
    inner = distance.argsort()[: max(count, len(loc) // 2)]
    chosen = [0]
    nearest = (loc[inner] - loc[inner[0]]).square().sum(1)
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = nearest.minimum((loc[inner] - loc[inner[chosen[-1]]]).square().sum(1))
    return inner[chosen].tolist()


def check_number(name: str, value: Any, low: int, high: int) -> None:
    """Refuse anything but a whole number from ``low`` to ``high``.

    Raises:
        UserError: With the name of the argument.
    """
    expect(name, value, Integral, "a whole number")
    if not low <= value <= high:
        raise UserError(f"{name}: expected {low} to {high:,}, got {value}")


def check_numbers(name: str, values: Any, count: int, of: str) -> list[int]:
    """Check numbers below ``count`` and return them as a list.

    Args:
        name: Name of the argument.
        values: The numbers.
        count: How many there are to choose from.
        of: What they number, for the message.

    Raises:
        UserError: If they are not such numbers, or if there are none.
    """
    expect(name, values, (list, tuple, range, np.ndarray), f"numbers of {of}")
    if not len(values):
        raise UserError(f"{name}: expected numbers of {of}, got none")
    for value in values:
        check_number(name, value, 0, count - 1)
    return [int(value) for value in values]


def _one(fit: Fit, name: str, image: Any) -> ImageData:
    """A single image, given with or without the axis N."""
    if not isinstance(image, ImageData) and getattr(image, "ndim", 0) == fit.form.dimensions - 1:
        image = image[None]
    data = fit.as_images(image, name)
    if len(data) != 1:
        raise UserError(f"{name}: expected one image, got {len(data)}")
    return data


def interpolate(fit: Fit, a: Any, b: Any, steps: int) -> Tensor:
    """Decoded images (steps, C, H, W) on the straight line between the codes of two images."""
    check_number("steps", steps, 2, 1000)
    first, last = (codes(fit, _one(fit, name, x)).loc[0] for name, x in (("a", a), ("b", b)))
    share = torch.linspace(0.0, 1.0, steps, dtype=first.dtype)[:, None]
    return decode(fit, torch.lerp(first, last, share))


def traverse(
    fit: Fit, data: ImageData, latents: Sequence[int] | None, steps: int, base: int
) -> Tensor:
    """Decoded images (rows, steps, C, H, W); see :meth:`ngvae_pyro.Fit.traverse`."""
    check_number("steps", steps, 2, 1000)
    check_number("base", base, 0, len(data) - 1)
    if latents is None:
        rows = most_informative_first(evaluate(fit, data))
        latents = [row["latent"] for row in rows if is_informative(row["probs"])]
    else:
        latents = check_numbers("latents", latents, fit.model.latent_size, "latents, e.g. [3, 9]")
    return walk(fit, Support.of(fit, data), [[k] for k in latents], steps, int(base))[0]
