"""The evaluation of a trained run: metrics of its codes, its aggregate posterior, its evidence.

:func:`assess` evaluates a fit; :func:`ngvae_pyro.runs.evaluating.evaluate_run` adds the result to a
run folder as ``evaluation.json``. The codes are those of images that were not trained on: 15,000
newly rendered ones for sprites (as many as Locatello et al., 2019, use), and the held-out ones for
all other data.
"""

import math
import time
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ngvae_pyro.contexts import evaluating
from ngvae_pyro.data import sources as data
from ngvae_pyro.data.declared import data_seed, rendered
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.errors import UserError
from ngvae_pyro.evaluation import aggregate, diagnostics, evidence, metrics
from ngvae_pyro.fitted import Fit
from ngvae_pyro.guide import Codes
from ngvae_pyro.latents import ACTIVE
from ngvae_pyro.machine import seeded
from ngvae_pyro.records import Evaluation
from ngvae_pyro.specs import RunSpec

POINTS = 15_000

# Held-out images and draws for the log likelihood; the standard error of its mean on sprites is
# then half a nat.
LIKELIHOOD_IMAGES, LIKELIHOOD_DRAWS = 500, 100

# Added to a run's data seed to render the images whose codes are measured.
NEW_SEED = 1_000_003


@dataclass(frozen=True)
class Sample:
    """Codes of a set of images: the guide's output, and one posterior draw of z for each."""

    images: ImageData
    codes: Codes
    z: Tensor


@torch.no_grad()
def sample(fit: Fit, images: ImageData, seed: int = 0) -> Sample:
    """The codes of images and one draw of z (N, K), on the CPU."""
    with evaluating(fit.model, fit.guide), seeded(seed, fit.device):
        draws = [fit.guide.draws(x, 1)[1][0].cpu() for x in diagnostics.batches(fit, images)]
    return Sample(images, diagnostics.codes(fit, images), torch.cat(draws))


def evaluation_images(spec: RunSpec, held_out: ImageData) -> tuple[ImageData, str]:
    """The images whose codes are measured, and a short description of them."""
    # Images from another source may come with a spec that names sprites, the default.
    if rendered(spec.data) and held_out.name == data.load(spec.data.name, n=1).name:
        seed, resolution = data_seed(spec) + NEW_SEED, spec.data.resolution
        images = data.load(
            spec.data.name,
            seed=seed,
            n=POINTS,
            resolution=resolution,
            covariates=spec.data.covariates or (),
        )
        return images.coded(held_out.form.covariates), f"{POINTS:,} new sprites"
    images = held_out.subset(slice(0, POINTS))
    return images, f"{len(images):,} held-out images"


def varying_factors(images: ImageData) -> tuple[np.ndarray, list[str]]:
    """The factors (N, F) that vary over the images, and their names; F is 0 if none is known."""
    if images.factors is None:
        return np.zeros((len(images), 0)), []
    factors = images.factors.numpy()
    varies = np.ptp(factors, axis=0) > 0
    return factors[:, varies], [n for n, v in zip(images.factor_names, varies, strict=True) if v]


def assess(fit: Fit, spec: RunSpec, held_out: ImageData, kl: list[float]) -> Evaluation:
    """All metrics of a fit.

    The slides' four metrics are our reading of rows that have no formula there (Jouffroy et al.,
    2022): the entropy of the latents' shares of the KL of z, the effective rank of the
    correlation matrix of z over the data, the FactorVAE score, and the number of informative
    latents (``informative`` of :func:`ngvae_pyro.evaluate`).

    Args:
        fit: From :func:`ngvae_pyro.fit`.
        spec: What was run.
        held_out: Images that were not trained on.
        kl: KL of z for each latent, nats per image.

    Returns:
        The content of ``evaluation.json``. Scores that need factors are computed from the posterior
        means of the active units, those that vary by more than 0.01, whose number is ``scored``;
        they are left out if no factor varies. The comparison of the aggregate posterior with
        Normal(0, 1) is left out if z are counts. A score that is meaningless with a single factor,
        or a single latent, is None.

    Raises:
        UserError: For a single image, whose codes have no variance, and for images of another shape
            than the model's.
    """
    seconds = {}
    began = time.perf_counter()
    images, source = evaluation_images(spec, held_out)
    if len(images) < 2:
        raise UserError(
            f"{held_out.name}: expected at least 2 held-out images to measure codes on, got 1; "
            "a larger data.held_out has more"
        )
    seen = sample(fit, images, spec.fit.seed)
    loc, z = seen.codes.loc.numpy(), seen.z.numpy()
    seconds["codes"] = time.perf_counter() - began

    correlation = metrics.total_correlation(z)
    result: dict[str, Any] = {
        "points": len(images),
        "source": source,
        "slides": {
            "entropy": metrics.information_entropy(np.asarray(kl)),
            "decorrelation": metrics.decorrelation(z),
            "informative": int(seen.codes.informative.sum()),
        },
        "active_units": metrics.active_units(loc),
        # Infinite with fewer points than latents, and JSON has no infinity.
        "total_correlation": correlation if math.isfinite(correlation) else None,
    }
    # Counts are not meant to be distributed as Normal(0, 1).
    if not fit.model.discrete:
        posterior = aggregate.aggregate_posterior(z, loc, seen.codes.variance.numpy())
        result["variance_law"] = float(posterior.variance_law.mean())
        result["ks_statistic"] = float(posterior.ks_statistic.mean())
        result["aggregate"] = posterior.as_rows()
    factors, names = varying_factors(images)
    if names:
        began = time.perf_counter()
        result["factors"] = names
        # As the FactorVAE score itself does (Kim and Mnih, 2018): the mean of a collapsed latent is
        # rounding noise, whatever it correlates with, and the scores ignore its size.
        active = loc.var(0) > ACTIVE
        result["scored"] = int(active.sum()) or loc.shape[1]
        codes = loc[:, active] if active.any() else loc
        scores = metrics.disentanglement(codes, factors, seed=spec.fit.seed)
        # JSON has no nan.
        result["scores"] = {k: None if math.isnan(v) else v for k, v in scores.items()}
        result["slides"]["disentanglement"] = result["scores"]["factor_vae_score"]
        gaps = metrics.mutual_information_gaps(codes, factors)
        result["mig_per_factor"] = dict(zip(names, gaps.tolist(), strict=True))
        seconds["scores"] = time.perf_counter() - began

    began = time.perf_counter()
    few = held_out.subset(slice(0, LIKELIHOOD_IMAGES))
    found = evidence.log_likelihood(fit, few, draws=LIKELIHOOD_DRAWS, seed=spec.fit.seed)
    seconds["log_likelihood"] = time.perf_counter() - began
    result["log_likelihood"] = found.summary()
    result["per_image"] = {
        "log_likelihood": found.values.tolist(),
        "k": found.pareto_k.tolist(),
    }
    result["seconds"] = seconds
    return cast(Evaluation, result)
