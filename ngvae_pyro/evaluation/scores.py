"""How foreign an image is to a trained run: out-of-distribution scores, and their AUROC.

:func:`scores` scores each image; :func:`ngvae_pyro.runs.scoring.score_run` scores the held-out
images of a run folder and other images. A higher score means more foreign. None is calibrated: a
model may give foreign images a higher likelihood than its own (Nalisnick, Matsukawa, Teh, Gorur and
Lakshminarayanan, 2019, "Do deep generative models know what they don't know?", arXiv:1810.09136).

AUROC on sprites, for the relaxed guide with seed 0 and 1,000 images per set: background 0.4..0.8,
red 0..0.4, size 0.3..0.4 (x and y in 0.4..0.6), x 0.7..0.8 (size in 0.15..0.2), and MNIST digits.

====================  ==========  =====  =====  =====  ======
score                 background  red    size   x      digits
====================  ==========  =====  =====  =====  ======
``elbo``              0.892       0.866  0.981  0.990  1.000
``reconstruction``    0.875       0.877  0.981  0.992  1.000
``kl``                0.921       0.591  0.939  0.707  0.476
``precision``         0.268       0.898  0.667  0.691  0.827
``selection``         0.817       0.854  0.734  0.658  0.832
``distance``          0.893       0.757  0.962  0.722  0.576
``z_part``            0.143       0.601  0.200  0.746  0.403
``precision_part``    0.515       0.500  0.510  0.494  0.506
====================  ==========  =====  =====  =====  ======

So ``elbo`` and ``reconstruction`` are the ones to use: only they detect all five.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor

from ngvae_pyro._doors import lazily
from ngvae_pyro.contexts import evaluating
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.errors import expect
from ngvae_pyro.evaluation import diagnostics, uncertainty
from ngvae_pyro.fitted import Fit, check_data, check_fit, site_terms
from ngvae_pyro.latents import is_informative
from ngvae_pyro.machine import seeded

# Posterior draws for the ELBO of an image, and precisions and draws for its uncertainty.
ELBO_DRAWS, PRECISIONS, DRAWS = 8, 8, 4

# Training images from which the aggregate posterior is estimated.
REFERENCE_IMAGES = 20_000

# Default number of images in each set.
SIZE = 1_000


class Score(NamedTuple):
    """The title of a score, and its unit."""

    title: str
    unit: str


SCORES = {
    "elbo": Score("-ELBO", "nats"),
    "reconstruction": Score("reconstruction error", "intensity²/pixel"),
    "kl": Score("KL", "nats"),
    "precision": Score("minus log precision", "natural log"),
    "selection": Score("change of selection", "latents"),
    "distance": Score("distance", "sd²"),
    "z_part": Score("variance by z", "intensity²"),
    "precision_part": Score("variance by the precision", "intensity²"),
}


@dataclass(frozen=True, eq=False)
class Reference:
    """The training images as the guide encodes them.

    ``loc`` (K,) and ``covariance`` (K, K) are the moments of the aggregate posterior
    1/N sum_i q(z | x_i), ``probs`` (K,) the mean p of each latent.
    """

    loc: Tensor
    covariance: Tensor
    probs: Tensor


def reference(fit: Fit, train: ImageData) -> Reference:
    """The reference of a fit, from its training images: at least 2, of which 20,000 are used.

    The covariance is Cov[loc] + diag(E[variance]), which is regular even if a latent never varies.
    """
    check_fit(fit)
    check_data(fit, train)
    codes = diagnostics.codes(fit, train.subset(slice(0, REFERENCE_IMAGES)))
    loc = codes.loc.double()
    covariance = torch.atleast_2d(loc.T.cov()) + codes.variance.double().mean(0).diag()
    return Reference(loc.mean(0), covariance, codes.probs.double().mean(0))


@torch.no_grad()
def scores(fit: Fit, data: ImageData, known: Reference, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Scores of each image, (N,), by the keys of `SCORES`; higher is more foreign.

    - ``elbo``: -ELBO(x), mean of 8 posterior draws, nats.
    - ``reconstruction``: ``|x - E[x | z = E[z]]|^2`` / pixels, of those that are not missing.
    - ``kl``: KL(q(z, precision | x) || p(z, precision)), from the same draws, nats.
    - ``precision``: -1/J sum_j log E[precision_j | x] over the J informative latents.
    - ``selection``: ``sum_k |p_k(x) - E[p_k]|``, E over the training images, in latents.
    - ``distance``: (loc(x) - m)' C^-1 (loc(x) - m), m and C the moments of the aggregate posterior;
      the Mahalanobis score of Lee, Lee, Lee and Shin (2018), "A simple unified framework for
      detecting out-of-distribution samples and adversarial attacks", arXiv:1807.03888, with one
      class.
    - ``z_part``, ``precision_part``: parts of the predictive variance, summed over the pixels; see
      :func:`ngvae_pyro.evaluation.uncertainty.uncertainty`.

    Without a precision site there is no ``precision_part``, and without informative latents no
    ``precision``. Likelihood regret (Xiao, Yan and Amit, 2020, arXiv:2003.02977), which trains the
    posterior of each image, and ratios with a background model (Ren et al., 2019,
    arXiv:1906.02845), which need a second model, are not implemented.

    Args:
        fit: From :func:`ngvae_pyro.fit`.
        data: Images of the model's shape.
        known: From :func:`reference`.
        seed: Seed of the draws.
    """
    check_fit(fit)
    expect("known", known, Reference, "what ngvae_pyro.scores.reference(fit, train) gives")
    log_likelihood, kl, error = [], [], []
    looks = evaluating(fit.model, fit.guide)
    with looks, seeded(seed, fit.device), pyro.get_param_store().scope():
        for x in diagnostics.batches(fit, data):
            drawn = [site_terms(fit.model, fit.guide, x) for _ in range(ELBO_DRAWS)]
            log_likelihood.append(torch.stack([terms for terms, _ in drawn]).mean(0))
            sites = [term.sum(-1) for _, terms in drawn for term in terms.values()]
            kl.append(torch.stack(sites).sum(0) / ELBO_DRAWS)
            squares = diagnostics.difference(diagnostics.reconstruct(fit, x), x).square()
            error.append(squares.flatten(1).sum(1) / (~x.isnan()).flatten(1).sum(1))
    parts = [
        part.per_image() for part in uncertainty.in_batches(fit, data, PRECISIONS, DRAWS, seed)
    ]
    codes = diagnostics.codes(fit, data)
    offset = codes.loc.double() - known.loc
    informative = is_informative(known.probs)
    found = {
        "elbo": torch.cat(kl) - torch.cat(log_likelihood),
        "reconstruction": torch.cat(error),
        "kl": torch.cat(kl),
        "precision": -codes.precision[:, informative].log().mean(1),
        "selection": (codes.probs - known.probs).abs().sum(1),
        "distance": (offset * torch.linalg.solve(known.covariance, offset.T).T).sum(1),
        "z_part": torch.cat([part.z for part in parts]),
        "precision_part": torch.cat([part.precision for part in parts]),
    }
    if not informative.any():
        del found["precision"]
    if "precision" not in drawn[0][1]:
        del found["precision_part"]
    return {name: values.double().cpu().numpy() for name, values in found.items()}


# Functions that write run folders live in a higher layer, but can be imported from here.
__getattr__ = lazily(__name__, {"score_run": "runs.scoring"})
