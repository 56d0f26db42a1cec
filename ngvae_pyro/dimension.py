"""Classical estimates of how many numbers describe an image, without any training.

Each estimator is a function of points (N, D), a row for each image, as an array or a CPU tensor in
any one unit: scaling all columns alike changes nothing, scaling them apart does. They assume that
the points lie on a smooth manifold. Where pixels have noise of their own, the nearest neighbours
differ by the noise, and the estimates tend to the number of pixels.

The two that look at nearest neighbours count equal points once, because a distance of 0 has no
logarithm; points on a grid, like those of dSprites, are not what they assume either.

Wrong shapes, values that are not finite, and too few different points raise a
:class:`ngvae_pyro.UserError`.
"""

from numbers import Integral, Real
from typing import Any

import numpy as np
from torch import Tensor

from ngvae_pyro.arrays import Array, checked
from ngvae_pyro.errors import UserError, expect
from ngvae_pyro.extras import needed

with needed("train"):
    from sklearn.neighbors import NearestNeighbors


def two_nn(points: Array | Tensor, *, discard: float = 0.1) -> float:
    """Dimension from the ratio of the distances to the two nearest neighbours.

    With mu_i = r_2 / r_1 >= 1 of point i, where the density is constant up to the second neighbour,
    P(mu <= m) = 1 - m^-d. So the points (log mu_i, -log(1 - i/N)), mu sorted, lie on a line through
    the origin whose slope is d; it is fitted by least squares without the largest mu, which deviate
    most. Facco, d'Errico, Rodriguez and Laio (2017), "Estimating the intrinsic dimension of
    datasets by a minimal neighborhood information", Scientific Reports 7:12140.

    Args:
        points: (N, D), at least 3 different ones.
        discard: The fraction of points with the largest mu to leave out, in [0, 1); the largest of
            all is always left out.

    Returns:
        At least 0; infinite if every point has its two neighbours at the same distance.

    >>> line = np.random.default_rng(0).uniform(size=(2000, 1)) * [[1.0, -2.0, 3.0]]
    >>> round(two_nn(line), 1)
    1.0
    """
    expect("discard", discard, Real, "a fraction in [0, 1)")
    if not 0 <= discard < 1:
        raise UserError(f"discard: expected a fraction in [0, 1), got {discard}")
    nearest = _distances(points, 2)
    count = len(nearest)
    x = np.sort(np.log(nearest[:, 1] / nearest[:, 0]))
    y = -np.log1p(-np.arange(1, count) / count)
    # Of the last point the right-hand side is infinite.
    kept = max(1, min(count - 1, int(count * (1 - discard))))
    x, y = x[:kept], y[:kept]
    return float(x @ y / (x @ x)) if x.any() else np.inf


# Codes from which their dimension is estimated, with a standard error of d / 70, and the fewest
# different ones.
CODES, FEWEST = 5_000, 50
# The largest dimension that is told from a larger one: in 20, thousands of points are far apart.
MOST = 20


def dimension(points: Array | Tensor, *, seed: int = 0) -> float:
    """Dimension by :func:`two_nn`, corrected for the edges of the points.

    Few neighbours of a point near an edge lie beyond it, so that estimates are too low, the more so
    in many dimensions: of 20,000 uniform points in 7 dimensions it is 6.4. So this is the dimension
    of the uniform cube in which as many points have the same estimate, linear between whole numbers
    and at most 20.

    Args:
        points: (N, D), at least 3 different ones.
        seed: Of the points in the cubes.

    >>> cube = np.random.default_rng(1).uniform(size=(2000, 7))
    >>> round(two_nn(cube), 1), round(dimension(cube), 1)
    (6.0, 6.5)
    """
    found, count, below = two_nn(points), len(points), 0.0
    for size in range(1, MOST + 1):
        cube = np.random.default_rng([seed, size]).uniform(size=(count, size))
        if (above := two_nn(cube)) >= found:
            return size - 1 + (found - below) / (above - below)
        below = above
    return float(MOST)


def of_codes(loc: Tensor) -> float | None:
    """Dimension of the surface on which posterior means lie, by :func:`dimension`.

    Where it is well below the number of latents, a factor is bent over several of them.

    Args:
        loc: Means (N, M) of the informative latents; the first 5,000 are used.

    Returns:
        None for fewer than two latents or fewer than 50 different rows.
    """
    loc = loc[:CODES].cpu()
    if loc.shape[1] < 2 or len(loc) < FEWEST or len(loc.unique(dim=0)) < FEWEST:
        return None
    return dimension(loc)


def mle(points: Array | Tensor, *, k: int = 20) -> float:
    """Dimension from the distances to the k nearest neighbours, by maximum likelihood.

    As if the neighbours of a point were a Poisson process of constant density, whose number within
    a distance grows as its d-th power: with T_j the distance to the j-th,

        1 / d = mean over points, and over j = 1 ... k - 1, of log(T_k / T_j).

    Levina and Bickel (2004), "Maximum likelihood estimation of intrinsic dimension", NIPS 17, whose
    estimate of each point is averaged as its inverse: MacKay and Ghahramani (2005), "Comments on
    'Maximum likelihood estimation of intrinsic dimension'",
    http://www.inference.org.uk/mackay/dimension. That is the maximum of the likelihood of all
    points together, with one d.

    Args:
        points: (N, D), more than k different ones.
        k: Neighbours of each point, at least 2.

    Returns:
        At least 0; infinite if each point has all its neighbours at the same distance.

    >>> line = np.random.default_rng(0).uniform(size=(2000, 1)) * [[1.0, -2.0, 3.0]]
    >>> round(mle(line), 1)
    1.0
    """
    expect("k", k, Integral, "a whole number of neighbours")
    if k < 2:
        raise UserError(f"k: expected at least 2 neighbours, got {k}")
    nearest = _distances(points, int(k))
    mean = np.log(nearest[:, -1:] / nearest[:, :-1]).mean()
    return float(1.0 / mean) if mean > 0 else np.inf


def components(points: Array | Tensor, *, share: float = 0.95) -> int:
    """The number of principal components that hold a share of the variance.

    The smallest m for which the m largest eigenvalues of the covariance of the columns add up to at
    least ``share`` of its trace: the dimension of the smallest flat space near the points, an upper
    estimate where they lie on a curved one (Jolliffe, 2002, "Principal component analysis",
    section 6.1.1).

    Args:
        points: (N, D), at least 2.
        share: In (0, 1].

    Returns:
        From 0, where all points are equal, to min(N - 1, D).

    >>> components(np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 1.0]]))
    2
    """
    expect("share", share, Real, "a share in (0, 1]")
    if not 0 < share <= 1:
        raise UserError(f"share: expected a share in (0, 1], got {share}")
    points = checked("points", points, "ND")
    if len(points) < 2:
        raise UserError(f"points: expected at least 2, got {len(points)}")
    centred = points.astype(float) - points.mean(0, dtype=float)
    # Both products have the same eigenvalues, besides zeros.
    flat = centred.shape[0] < centred.shape[1]
    product = centred @ centred.T if flat else centred.T @ centred
    values = np.linalg.eigvalsh(product)[::-1].clip(min=0.0)
    # What is left of an eigenvalue 0 by rounding is no component.
    values[values <= values[0] * len(values) * np.finfo(float).eps] = 0.0
    total = values.cumsum()
    if total[-1] == 0:
        return 0
    return int(np.searchsorted(total, share * total[-1] * (1 - 1e-12)) + 1)


def _distances(points: Any, k: int) -> Array:
    """Distances (N, k) of each different point to its k nearest others, ascending and positive."""
    # The sum turns -0.0 into 0.0, whose bytes are others.
    points = checked("points", points, "ND") + 0.0
    # Not np.unique along an axis, which sorts whole rows.
    first = {row.tobytes(): i for i, row in reversed(list(enumerate(points)))}
    found = points[sorted(first.values())].astype(float)
    if len(found) <= k:
        raise UserError(f"points: expected more than {k} different ones, got {len(found)}")
    # A common offset would cost digits in the products by which neighbours are found.
    found -= found.mean(0)
    neighbours = NearestNeighbors(n_neighbors=k).fit(found).kneighbors(return_distance=False)
    # Differences have all digits even where the points are close together.
    nearest = np.stack([_norms(found - found[neighbours[:, j]]) for j in range(k)], 1)
    nearest.sort(1)
    if not nearest.all():
        raise UserError("points: expected different ones, got some whose distance rounds to 0")
    return nearest


def _norms(rows: Array) -> Array:
    norms: Array = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    return norms
