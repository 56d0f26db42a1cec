"""How good the guide's posterior is: its draws of z compared with those of NUTS.

A guide is amortized, and its latents are independent given the image (mean field). For a handful of
images :func:`check` draws from the exact posterior of the same trained networks,

    p(z | x) proportional to p(z) p(x | z),

with p(z) the prior's marginal and p(x | z) the likelihood of the decoder's output, by the No-U-Turn
Sampler (Hoffman and Gelman, 2014), and compares the guide with these draws.
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypedDict

import numpy as np
import pyro
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from ngvae_pyro import machine
from ngvae_pyro._doors import lazily
from ngvae_pyro.contexts import evaluating
from ngvae_pyro.data import Images
from ngvae_pyro.errors import UserError
from ngvae_pyro.evaluation import diagnostics
from ngvae_pyro.fitted import Fit, check_fit, data_of
from ngvae_pyro.latents import is_informative
from ngvae_pyro.machine import seeded
from ngvae_pyro.model import VAE

IMAGES, WARMUP, DRAWS = 8, 300, 500

# Fewer draws tell nothing about quantiles, and NUTS adapts in windows of a few tens of steps.
LEAST_DRAWS = 50

# Draws of the guide for each image; its quantiles are then known to a hundredth of their level.
GUIDE_DRAWS = 4000

# Images that share a chain of NUTS; for a network that many cost hardly more than one.
TOGETHER = 8
INTERVALS = {"50%": 0.5, "80%": 0.8}
WRITTEN = ("check.json", "figures/check.png")

# Most latents that get a row in the figure.
SHOWN = 60


class CheckedLatent(TypedDict):
    """One latent in a :class:`Check`."""

    latent: int
    probs: float
    coverage: dict[str, float]
    sd_ratio: float
    mean_field: float
    shift: float
    ess: float


class Check(TypedDict):
    """The result of :func:`check`, as in ``check.json``."""

    images: int
    warmup: int
    draws: int
    latents: list[CheckedLatent]
    correlation: float | None
    by_chance: float | None
    divergences: int
    seconds: float
    per_image: dict[str, list[list[float]]]


def check(
    fit: Fit,
    data: Images,
    *,
    images: int = IMAGES,
    warmup: int = WARMUP,
    draws: int = DRAWS,
    seed: int = 0,
    stage: Callable[[str], AbstractContextManager[Any]] = lambda text: nullcontext(),
) -> Check:
    """Compare the guide's posterior of z with draws of NUTS, for some images.

    A chain starts at the guide's mean, in units of the guide's standard deviations, and adapts a
    full mass matrix for each image; up to 8 images share a chain, which draws from the product of
    their posteriors. It finds the mode that the guide is in, and another one only if it is near.
    All is computed in float32, like the model itself: log p(x, z) of thousands of nats then has an
    error of some thousandths, whereas it takes tenths to make NUTS reject a draw.

    Args:
        fit: A trained pair with continuous z.
        data: Images or vectors, at least as many as are checked. The first ones are checked; all of
            them determine which latents are informative.
        images: How many images are checked, N.
        warmup: Steps of NUTS for each image before the draws, at least 50.
        draws: Draws of NUTS for each image, S, at least 50.
        seed: Seed of the draws.
        stage: Shows the current stage, as for :func:`ngvae_pyro.runs.train`.

    Returns:
        ``latents``, a row for each latent, informative ones first, by their precision:

        - ``latent``: its number; ``probs``: its mean p over the data, informative above 1/2;
        - ``coverage``: for c of ``50%`` and ``80%``, the share of NUTS's draws z_nsk in the guide's
          central interval, sum_ns 1[l_nk <= z_nsk <= u_nk] / (N S), with l_nk and u_nk the
          quantiles (1 - c) / 2 and (1 + c) / 2 of the guide's draws for image n. For an exact
          posterior it is c, and for one too narrow it is less;
        - ``sd_ratio``: standard deviation of NUTS's draws / that of the guide's, geometric mean
          over the images;
        - ``mean_field``: the part of ``sd_ratio`` that no guide of independent latents could avoid,
          sqrt(C_kk (C^-1)_kk) with C the covariance of NUTS's draws, as for a Gaussian posterior;
          about 1 + K / (2 S) by chance;
        - ``shift``: ``|mean of NUTS's draws - that of the guide's|`` / the guide's standard
          deviation, mean over the images;
        - ``ess``: effective sample size of the S draws for the worst image.

        ``correlation``: mean absolute correlation of NUTS's draws of two informative latents, over
        their pairs and the images, which a guide with independent latents ignores; None with fewer
        than two. ``by_chance`` is the value that independent latents would show with as few draws,
        sqrt(2 / (pi ESS)). Also ``divergences``, ``images``, ``warmup`` and ``draws`` of NUTS,
        ``seconds``, and ``per_image`` with ``sd_ratio`` and the signed ``shift`` of each image,
        (N, K), in the order of the latents' numbers.

    Raises:
        UserError: If z are counts, the images do not have the model's shape or are too few, a
            number is out of range, or a chain does not move.
    """
    check_fit(fit)
    data = data_of(fit, data)
    if fit.model.discrete:
        raise UserError(
            f"check: expected a guide of continuous z, got a {type(fit.guide).__name__}, whose z "
            "are counts, of which NUTS draws none"
        )
    for name, value, least in (
        ("images", images, 1),
        ("warmup", warmup, LEAST_DRAWS),
        ("draws", draws, LEAST_DRAWS),
    ):
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise UserError(f"{name}: expected a whole number, at least {least}, got {value!r}")
    if images > len(data):
        raise UserError(
            f"images: expected at most the {len(data)} images of '{data.name}', got {images}"
        )
    size = images * (GUIDE_DRAWS + draws) * fit.model.latent_size
    machine.check("posterior draws (images, draws)", 2 * machine.FLOAT_BYTES * size, fit.device)
    began = time.perf_counter()
    code = diagnostics.codes(fit, data)
    probs = code.probs.mean(0)
    informative = is_informative(probs)
    parts: dict[str, list[Tensor]] = {}
    chains: list[Chain] = []
    looks = evaluating(fit.model, fit.guide)
    with looks, seeded(seed, fit.device), pyro.get_param_store().scope():
        for start in range(0, images, TOGETHER):
            stop = min(start + TOGETHER, images)
            loc = code.loc[start:stop].to(fit.device)
            with data.given(slice(start, stop), fit.device) as x:
                guide = fit.guide.draws(x, GUIDE_DRAWS)[1]
                with stage(f"NUTS on images {start + 1} to {stop} of {images}"):
                    chain = posterior_draws(fit.model, x, loc, guide.std(0), warmup, draws)
            if not chain.ess.isfinite().all():
                raise UserError(
                    f"check: NUTS stays where it began; expected more warmup than {warmup} steps"
                )
            for name, numbers in {**compared(guide, chain.z), "ess": chain.ess}.items():
                parts.setdefault(name, []).append(numbers.cpu())
            chains.append(chain)
    values = {name: torch.cat(numbers).double() for name, numbers in parts.items()}
    ess = values["ess"].amin(0)
    rows: list[CheckedLatent] = [
        {
            "latent": k,
            "probs": probs[k].item(),
            "coverage": {name: values[name][:, k].mean().item() for name in INTERVALS},
            "sd_ratio": values["sd_ratio"][:, k].log().mean().exp().item(),
            "mean_field": values["mean_field"][:, k].log().mean().exp().item(),
            "shift": values["shift"][:, k].abs().mean().item(),
            "ess": ess[k].item(),
        }
        for k in _order(code.precision.mean(0), informative)
    ]
    correlations = []
    if informative.sum() > 1:
        correlations = [
            mean_correlation(z)
            for chain in chains
            for z in chain.z.cpu()[:, :, informative].unbind(1)
        ]
    chance = values["ess"][:, informative].rsqrt().mean().item() * math.sqrt(2 / math.pi)
    return {
        "images": int(images),
        "warmup": int(warmup),
        "draws": int(draws),
        "latents": rows,
        "correlation": float(np.mean(correlations)) if correlations else None,
        "by_chance": chance if correlations else None,
        "divergences": sum(chain.divergences for chain in chains),
        "seconds": time.perf_counter() - began,
        "per_image": {name: values[name].tolist() for name in ("sd_ratio", "shift")},
    }


def _order(precision: Tensor, informative: Tensor) -> list[int]:
    return sorted(range(len(precision)), key=lambda k: (not informative[k], -precision[k].item()))


@dataclass(frozen=True)
class Chain:
    """Draws z (S, B, K) for B images, and their diagnostics.

    ``ess`` is the effective sample size, (B, K), and ``divergences`` the number of divergent
    trajectories of NUTS.
    """

    z: Tensor
    ess: Tensor
    divergences: int


def posterior_draws(
    model: VAE, x: Tensor, loc: Tensor, scale: Tensor, warmup: int, draws: int
) -> Chain:
    """Draw from p(z | x) for some images by NUTS.

    Args:
        model: The model, whose networks are not changed.
        x: Images (B, C, H, W).
        loc: Where the chain starts, (B, K).
        scale: Units in which it measures z, (B, K); any will do, good ones shorten the warmup.
        warmup: Steps before the draws.
        draws: Number of draws, S.
    """

    def log_joint(z: Tensor) -> Tensor:
        return model.marginal.log_prob(z).sum(-1) + model.likelihood(model.decoder(z), x).log_prob(
            x
        )

    with torch.no_grad():
        # Subtracted, because differences of large sums would be dominated by their rounding.
        at_start = log_joint(loc)

    def potential(offsets: Mapping[str, Tensor]) -> Tensor:
        z = loc + scale * torch.stack([*offsets.values()])
        return (at_start - log_joint(z)).sum()

    # One site for each image, because the posterior has no correlations between images.
    names = [f"image {number}" for number in range(len(x))]
    mcmc = MCMC(
        NUTS(potential_fn=potential, full_mass=[(name,) for name in names]),
        num_samples=int(draws),
        warmup_steps=int(warmup),
        initial_params={name: torch.zeros_like(loc[0]) for name in names},
        disable_progbar=True,
    )
    mcmc.run()
    samples, found = mcmc.get_samples(), mcmc.diagnostics()
    return Chain(
        z=loc + scale * torch.stack([samples[name] for name in names], 1),
        ess=torch.stack([found[name]["n_eff"] for name in names]),
        divergences=len(found["divergences"]["chain 0"]),
    )


def compared(guide: Tensor, exact: Tensor) -> dict[str, Tensor]:
    """Compare the guide's draws (G, B, K) with exact ones (S, B, K); all results are (B, K)."""
    result = {}
    for name, level in INTERVALS.items():
        ends = guide.new_tensor([(1 - level) / 2, (1 + level) / 2])
        low, high = guide.quantile(ends, dim=0)
        result[name] = ((low <= exact) & (exact <= high)).double().mean(0)
    result["sd_ratio"] = exact.std(0) / guide.std(0)
    result["mean_field"] = mean_field_ratio(exact)
    result["shift"] = (exact.mean(0) - guide.mean(0)) / guide.std(0)
    return result


def mean_field_ratio(z: Tensor) -> Tensor:
    """By which factor the best independent latents are narrower than draws z (S, B, K), (B, K).

    For a Gaussian posterior with covariance C, the best mean-field approximation has variances
    1 / (C^-1)_kk, so the ratio of standard deviations is sqrt(C_kk (C^-1)_kk), at least 1.
    """
    covariance = torch.stack([draws.T.cov() for draws in z.double().unbind(1)])
    diagonals = [m.diagonal(dim1=-2, dim2=-1) for m in (covariance, covariance.inverse())]
    return (diagonals[0] * diagonals[1]).sqrt()


def mean_correlation(z: Tensor) -> float:
    """Mean absolute correlation of draws z (S, M) over the pairs of latents."""
    matrix = z.double().T.corrcoef()
    above = torch.ones_like(matrix, dtype=torch.bool).triu(diagonal=1)
    return matrix[above].abs().mean().item()


def mean_field(result: Check) -> str:
    """A sentence on what a guide with independent latents leaves out."""
    if result["correlation"] is None:
        return "with fewer than two informative latents there is no correlation to leave out"
    return (
        "mean field leaves out that informative latents are correlated given an image: "
        f"{result['correlation']:.2f} on average (absolute; {result['by_chance']:.2f} would be "
        "chance)"
    )


# Functions that write run folders and figures live in higher layers, but can be imported from here.
__getattr__ = lazily(__name__, {"check_run": "runs.checking", "draw": "report.checks"})
