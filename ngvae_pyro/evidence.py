"""Held-out log likelihood by importance sampling: models with different bounds on one scale.

An ELBO falls short of log p(x) by the KL from its own posterior to the true one, so the ELBOs of
two guides are not comparable; the likelihoods that both bound are.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro.distributions import Normal

from ngvae_pyro import _arviz
from ngvae_pyro.images import ImageData
from ngvae_pyro.svi import Fit, seeded

# Decoded images at once.
CHUNK = 4096


@dataclass(frozen=True)
class LogLikelihood:
    """Log likelihood of each image and how far it can be trusted.

    ``values``: log p(x), nats, shape (N,). ``pareto_k``: shape (N,); above 0.7 the estimate is
    governed by a few draws and is too low. ``draws``: S.
    """

    values: np.ndarray
    pareto_k: np.ndarray
    draws: int

    def summary(self) -> dict[str, Any]:
        """``mean`` and its standard error ``se`` over the images, nats, and the Pareto k.

        ``k_median`` is their median and ``k_bad`` the share of images with k above 0.7.
        """
        count = len(self.values)
        return {
            "mean": float(self.values.mean()),
            "se": float(self.values.std(ddof=1) / count**0.5) if count > 1 else 0.0,
            "k_median": float(np.median(self.pareto_k)),
            "k_bad": float((self.pareto_k > _arviz.GOOD_K).mean()),
            "draws": self.draws,
            "images": count,
        }


@torch.no_grad()
def log_likelihood(
    fit: Fit, data: ImageData, *, draws: int = 500, widen: float = 1.5, seed: int = 0
) -> LogLikelihood:
    """log p(x) of each image, by importance weighting.

        log p(x) ~ log 1/S sum_s w_s,   w_s = p(x | z_s) p(z_s) / r(z_s | x),   z_s ~ r(z | x)

    The precision is integrated out of p. The proposal r is Normal with the guide's mean and
    variance of z; where that is below half the prior's, its scale is ``widen`` times the guide's,
    because a mean-field posterior is narrower than the true one. The estimate is low on average
    and rises to log p(x) with S, whatever r: Burda, Grosse and Salakhutdinov (2015), "Importance
    weighted autoencoders", arXiv:1509.00519. The Pareto k of the weights is that of Vehtari,
    Simpson, Gelman, Yao and Gabry (2024), "Pareto smoothed importance sampling", arXiv:1507.02646.

    Args:
        fit: From :func:`ngvae_pyro.fit`.
        data: Held-out images.
        draws: S, for each image.
        widen: Factor on the scale of the proposal; 1.5 raised the estimates of the vanilla VAE and
            of the NG-VAE on sprites, by 0.6 and 0.9 nats at 500 draws, and lowered k.
        seed: Of the draws.
    """
    prior, values, pareto_k = fit.model.marginal, [], []
    step = max(1, CHUNK // draws)
    with seeded(seed, fit.device):
        for start in range(0, len(data), step):
            x = ImageData.to_unit(data.images[start : start + step].to(fit.device))
            code = fit.guide.codes(x)
            scale = code.variance.sqrt()
            r = Normal(code.loc, torch.where(code.variance < 0.5, widen * scale, scale))
            z = r.sample((draws,))
            log_weights = (
                fit.model.likelihood(fit.model.decoder(z)).log_prob(x)
                + prior.log_prob(z).sum(-1)
                - r.log_prob(z).sum(-1)
            ).double()
            values.append((log_weights.logsumexp(0) - math.log(draws)).cpu().numpy())
            pareto_k.append(_arviz.pareto_k(log_weights.T.cpu().numpy()))
    return LogLikelihood(np.concatenate(values), np.concatenate(pareto_k), draws)
