"""The aggregate posterior q(z) = 1/N sum_i q(z | x_i), compared with the prior N(0, 1).

The decoder is trained on draws of q(z), and images are generated from draws of the prior, so the
two should agree. The KL term makes their first two moments agree, but not the higher ones (Asperti
and Trentin, 2020, arXiv 2002.07514; Asperti, 2019, LOD, "About generative aspects of variational
autoencoders").
"""

from dataclasses import dataclass, fields

import numpy as np
from torch import Tensor

from ngvae_pyro.arrays import Array, checked
from ngvae_pyro.errors import UserError
from ngvae_pyro.extras import needed

with needed("metrics"):
    from scipy import stats

# The moments of a latent whose aggregate posterior equals the prior.
PRIOR = {"mean": 0.0, "variance": 1.0, "skewness": 0.0, "kurtosis": 0.0}


@dataclass(frozen=True, eq=False)
class AggregatePosterior:
    """The result of :func:`aggregate_posterior`; every field has shape (K,).

    ``mean``, ``variance``, ``skewness`` and excess ``kurtosis`` describe q(z_k); the prior's values
    are in :data:`PRIOR`. ``variance_of_loc`` and ``mean_variance`` are the two parts of the
    variance: the spread of the posterior means and the width of the posteriors. ``rho`` is
    sqrt(E[variance] / E[loc^2]): 0 for a latent known exactly, and inf if every loc is 0, as in a
    collapsed latent. ``ks_statistic`` is the largest distance, from 0 to 1, between the
    distribution functions of the draws and of N(0, 1), and ``ks_p_value`` the probability of a
    distance at least as large if the draws were from N(0, 1).
    """

    mean: Array
    variance: Array
    skewness: Array
    kurtosis: Array
    variance_of_loc: Array
    mean_variance: Array
    rho: Array
    ks_statistic: Array
    ks_p_value: Array

    @property
    def variance_law(self) -> Array:
        """Var[loc] + E[variance], (K,): 1 where the variance law holds (Asperti, 2019).

        By the law of total variance this equals ``variance``; the name states the law that it is
        expected to follow.
        """
        return self.variance_of_loc + self.mean_variance

    def as_rows(self) -> list[dict[str, float | None]]:
        """One dict for each latent, for tables and JSON; an infinite ``rho`` becomes None.

        The keys are ``latent``, the fields, and ``variance_law``.
        """
        names = [*(field.name for field in fields(self)), "variance_law"]
        columns = [getattr(self, name).tolist() for name in names]
        rows = [[None if x == np.inf else x for x in row] for row in zip(*columns, strict=True)]
        return [{"latent": k, **dict(zip(names, row, strict=True))} for k, row in enumerate(rows)]


def aggregate_posterior(
    z: Array | Tensor, loc: Array | Tensor, variance: Array | Tensor
) -> AggregatePosterior:
    """Moments of the aggregate posterior of each latent, and its distance from N(0, 1).

    Mean and variance are exact for these N points: E[z] = E[loc] and Var[z] = Var[loc] +
    E[variance]. Skewness and kurtosis are those of the draws.

    The variance law, and rho (Asperti, 2019). An affine map of the latent space can be undone by
    the decoder's first layer, so for each latent the network is free to keep the ratio rho^2 =
    variance(x) / loc(x)^2 and choose the scale. With loc^2 = variance / rho^2,

        KL(N(loc, variance) || N(0, 1)) = 1/2 (variance (1 + rho^2) / rho^2 - log variance - 1) + c,

    where c = 0 and which is smallest at variance = rho^2 / (1 + rho^2), that is, at variance +
    loc^2 = 1. On average over x, for a latent of mean 0: Var[loc] + E[variance] = 1.

    Args:
        z: (N, K), one posterior draw for each of N points, N at least 2.
        loc: (N, K), the posterior means.
        variance: (N, K), the posterior variances of z given x, positive; for a Normal-Gamma
            posterior rate / (concentration - 1).

    Raises:
        UserError: For shapes that differ, values that are not finite, a variance that is not
            positive, and a latent whose draws are all equal.

    >>> rng = np.random.default_rng(0)
    >>> loc = rng.normal(0.0, 0.6, (1000, 1))
    >>> found = aggregate_posterior(rng.normal(loc, 0.8), loc, np.full((1000, 1), 0.64))
    >>> found.variance_law.round(1), found.rho.round(1)
    (array([1.]), array([1.4]))
    """
    given = {"z": z, "loc": loc, "variance": variance}
    z, loc, variance = (checked(name, a, "NK").astype(float) for name, a in given.items())
    for name, values in (("loc", loc), ("variance", variance)):
        if values.shape != z.shape:
            raise UserError(f"{name}: expected the shape of z, {z.shape}, got {values.shape}")
    if len(z) < 2:
        raise UserError(f"z: expected at least 2 points, got {len(z)}")
    if (variance <= 0).any():
        row, k = np.argwhere(variance <= 0)[0]
        raise UserError(
            f"variance: expected positive values, got {variance[row, k]:g} at [{row}, {k}]"
        )
    # Up to rounding; such draws have no skewness.
    still = np.ptp(z, axis=0) <= 1e-12 * np.abs(z).max(0).clip(min=1.0)
    if still.any():
        raise UserError(f"z: expected draws, but those of latent {still.argmax()} are all equal")
    variance_of_loc, mean_variance = loc.var(0), variance.mean(0)
    size = np.sqrt(np.square(loc).mean(0))
    rho = np.full_like(size, np.inf)
    np.divide(np.sqrt(mean_variance), size, out=rho, where=size > 0)
    fits = [stats.kstest(column, "norm") for column in z.T]
    return AggregatePosterior(
        mean=loc.mean(0),
        variance=variance_of_loc + mean_variance,
        skewness=stats.skew(z),
        kurtosis=stats.kurtosis(z),
        variance_of_loc=variance_of_loc,
        mean_variance=mean_variance,
        rho=rho,
        ks_statistic=np.array([fit.statistic for fit in fits]),
        ks_p_value=np.array([fit.pvalue for fit in fits]),
    )
