"""The rotation of the informative latents after which each of them is one factor.

All coordinates of a latent space are equally good if prior and posterior do not distinguish them.
The informative latents of an NG-VAE have much the same posterior precision, whatever the image, and
the best posterior has precision J'J / scale^2 + 1, with J the Jacobian of the decoder; so the
decoder is close to a local isometry, and a rotation of these latents changes neither the ELBO nor
the reconstruction. Isometric coordinates of independent factors, of which at most one is Gaussian,
are a rotation of the factors themselves, and independent component analysis finds it without labels
(Horan, Richardson and Weiss, 2021, "When is unsupervised disentanglement possible?", NeurIPS).

:func:`find` finds that rotation, and :class:`ngvae_pyro.training.actions.Rotate` applies it to
encoder and decoder. If the latents are Gaussian, every rotation is as independent as any other, and
they are only made uncorrelated.
"""

from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

import numpy as np

from ngvae_pyro.arrays import checked
from ngvae_pyro.errors import UserError, expect
from ngvae_pyro.extras import needed
from ngvae_pyro.records import RotationValues

with needed("train"):
    from scipy.optimize import linear_sum_assignment
    from scipy.special import chdtri

Array = np.ndarray[Any, np.dtype[np.floating[Any]]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]

# For y ~ Normal(0, 1): E log cosh y, and the variance of the part of log cosh y that is not a
# linear combination of 1 and y^2 (y itself is odd and does not contribute). By quadrature.
GAUSSIAN_MEAN, GAUSSIAN_RESIDUAL = 0.3745672074914, 0.0063278669912

# Fraction of searches in Gaussian latents that find a direction which passes for non-Gaussian.
FALSE_ALARM = 1e-3

# Random starts of the search, besides the codes themselves. On nine kinds of images each of eight
# starts ended within 0.1 % of the best, except on hard-edged squares, where four were up to 2 %
# below.
STARTS = 3
# Angles at which a pair of sources is evaluated, with a parabola in between to find the best one;
# and the largest number of sweeps over all pairs.
ANGLES, SWEEPS = 8, 12
# Relative gain in contrast that a sweep must reach for another one to follow.
GAIN = 1e-3
# Pairs times images in a sweep: 20,000 images for up to ten latents, and fewer images for more
# latents, so that the search takes seconds even for 50.
WORK, FEWEST = 20_000 * 45, 2_000

# Largest number of latents for which training searches for axes: with more, a search takes minutes,
# and a training that ends with so many informative latents has not selected any.
MOST = 50

# Bootstrap samples behind the agreement.
SAMPLES = 10

# Eigenvalue of the correlations up to which latents count as linearly dependent in float32: its
# computed sign is that of a rounding error.
SINGULAR = 1e-6
# Standard deviation of a loc, relative to its largest value (at least 1), up to which it counts as
# constant in float32: a few rounding errors of the layers before it.
STILL = 1e-5


def negentropy(sources: Array) -> Array:
    """How far each column is from a Gaussian of its mean and variance, nats.

    J = (E log cosh y - E log cosh v)^2 / (2 d^2), where y is the standardised column,
    v ~ Normal(0, 1) and d^2 the variance of the part of log cosh v that is not a linear combination
    of 1 and v^2: the negentropy to second order in that one statistic (Hyvarinen, 1998, "New
    approximations of differential entropy for independent component analysis and projection
    pursuit", NIPS). It is 0 for a Gaussian, and for N draws from one, 2 N J is chi-squared with one
    degree of freedom.

    Args:
        sources: Values of shape (N, M), with no constant column.

    Returns:
        J of each column, shape (M,).

    Raises:
        UserError: If they are not finite numbers of that shape, or a column never varies.
    """
    y = _standardised(_checked(sources))
    return _contrast(y.T) / (2.0 * GAUSSIAN_RESIDUAL)


def _checked(codes: Array) -> Array:
    """Codes as float64.

    Raises:
        UserError: If they are not finite numbers of shape (N, M), or a column never varies.
    """
    found = np.asarray(checked("codes", codes, "NK"), np.float64)
    still = np.ptp(found, axis=0) == 0.0
    if still.any():
        raise UserError(f"codes: expected columns that vary, got {int(still.sum())} that do not")
    return found


def _standardised(codes: Array) -> Array:
    # In units of the largest value, because the square of a small number may be 0.
    codes = (codes - codes.mean(0)) / np.abs(codes).max(0)
    return np.asarray(codes / codes.std(0))


def _contrast(y: Array) -> Array:
    """(E log cosh y - E log cosh v)^2 over the last axis, of standardised rows."""
    size = np.abs(y)
    log_cosh = size + np.log1p(np.exp(-2.0 * size))
    difference = log_cosh.mean(-1, dtype=np.float64) - np.log(2.0) - GAUSSIAN_MEAN
    squares: Array = np.square(difference)
    return squares


@dataclass(frozen=True)
class Axes:
    """Independent coordinates of M codes: sources = (codes - mean) change'.

    ``change`` is (M, M), and the columns of its inverse have norm 1, so that noise of equal
    precision in all codes keeps its precision to the extent that ``change`` is orthogonal. Each
    source has the position and the sign of the code that it is most similar to. ``gaussian`` (M,)
    marks sources whose negentropy may be due to chance; two or more of them could be rotated among
    themselves at will, and are in the rotation nearest to the codes. ``uncorrelated`` (M, M) is the
    change to uncorrelated codes that changes them least, scaled in the same way.
    """

    mean: Array
    change: Array
    gaussian: Bools
    uncorrelated: Array

    @property
    def found(self) -> bool:
        """Whether any source is non-Gaussian; otherwise there is nothing to find."""
        return not bool(self.gaussian.all())

    def __call__(self, codes: Array) -> Array:
        return np.asarray((codes - self.mean) @ self.change.T)


def find(codes: Array, seed: int = 0) -> Axes | None:
    """Independent coordinates of codes, with the order and signs that are nearest to the codes.

    Codes are made uncorrelated with the least change (Kessy, Lewin and Strimmer, 2018, "Optimal
    whitening and decorrelation", ZCA-cor), and rotated to maximise the sum over sources of
    (E log cosh y - E log cosh v)^2, the contrast of FastICA (Hyvarinen, 1999): as in Jacobi's
    method, in the plane of one pair of sources after the other, over all angles, until no plane
    gains.

    Args:
        codes: Values of shape (N, M), such as posterior means of the informative latents.
        seed: Seed of the random starts.

    Returns:
        The axes, or None if codes are linearly dependent, as M codes of M or fewer images are, or
        vary by less than 1e-5 of their largest value or of 1, which is constant in float32.

    Raises:
        UserError: If they are not finite numbers of that shape.
    """
    codes = np.asarray(checked("codes", codes, "NK"), np.float64)
    if len(codes) < 2 or (codes.std(0) <= STILL * np.maximum(np.abs(codes).max(0), 1.0)).any():
        return None
    mean, std = codes.mean(0), codes.std(0)
    values, vectors = np.linalg.eigh(np.corrcoef(codes.T).reshape(len(std), -1))
    if not (values > SINGULAR).all():
        return None
    whiten = (vectors / np.sqrt(values)) @ vectors.T / std
    white = (codes - mean) @ whiten.T
    random = np.random.default_rng(seed)
    starts = [np.eye(len(std)), *(_random_rotation(random, len(std)) for _ in range(STARTS))]
    some, _ = _whitened(_some(white)) or (white, None)
    _, rotation = max((_climb(some, start) for start in starts), key=lambda found: found[0])
    rotation = _nearest(rotation, gaussian(white @ rotation.T))
    change = _of_unit_columns(rotation @ whiten)
    # The sources are in the order of the codes now.
    rest = gaussian(codes @ change.T)
    return Axes(mean, change, rest, _of_unit_columns(whiten))


def gaussian(sources: Array) -> Bools:
    """Which columns may be Gaussian, although found as the least Gaussian of all directions.

    For one direction of Gaussian codes 2 N J is chi-squared with one degree of freedom. Over all
    directions in M dimensions it is the square of a random field, whose statistic varies with the
    direction as a form of degree 4 and more; by its Euler characteristic the probability that its
    largest value exceeds u is about 4^((M - 1) / 2) times that of a chi-squared variable with M
    degrees of freedom (Adler and Taylor, 2007, "Random fields and geometry"). Columns below the
    value that one search in 1,000 reaches by chance are taken to be Gaussian.

    Args:
        sources: Values of shape (N, M), with no constant column.

    Returns:
        One boolean for each column, shape (M,).

    Raises:
        UserError: As for :func:`negentropy`.
    """
    scores = negentropy(sources)
    size = len(scores)
    chance = chdtri(size, FALSE_ALARM / 2.0 ** (size - 1)) / (2.0 * len(sources))
    return np.asarray(scores <= chance)


def _of_unit_columns(change: Array) -> Array:
    """A change of coordinates, its rows scaled so that the columns of its inverse have norm 1."""
    return np.asarray(change * np.linalg.norm(np.linalg.inv(change), axis=0)[:, None])


def _some(codes: Array) -> Array:
    """The images that a search uses, evenly spaced."""
    pairs = max(1, codes.shape[1] * (codes.shape[1] - 1) // 2)
    return codes[:: -(-len(codes) // max(FEWEST, WORK // pairs))]


def _climb(white: Array, start: Array) -> tuple[float, Array]:
    """(contrast, rotation) at which rotating pairs of sources no longer helps.

    FastICA's fixed points need not be maxima of this contrast: from the best of ten starts it ended
    up to 38 % below, and this search within 2 % from any of eight.
    """
    # In float32, which is twice as fast and far finer than the scatter of a mean.
    y, rotation = (start @ white.T).astype(np.float32), start.copy()
    for _ in range(SWEEPS):
        gain = sum([_turn(y, rotation, i, j) for i in range(len(y)) for j in range(i)])
        if gain <= GAIN * _contrast(y).sum():
            break
    return float(_contrast(y).sum()), rotation


# A quarter turn changes only the order and signs of a pair.
_ANGLES = np.linspace(0.0, np.pi / 2.0, ANGLES, endpoint=False)


def _turned(a: Array, b: Array, angle: float) -> tuple[Array, Array]:
    """Two sources after a rotation in their plane."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * a + sin * b, cos * b - sin * a


def _turn(y: Array, rotation: Array, i: int, j: int) -> float:
    """Rotate sources i and j in their plane to maximise their contrast; returns the gain."""
    a, b = y[i], y[j]
    # One angle at a time, because larger arrays leave the cache.
    values = np.array([sum(map(_contrast, _turned(a, b, angle))) for angle in _ANGLES])
    best = int(values.argmax())
    angle, before, after = _ANGLES[best], values[best - 1], values[(best + 1) % ANGLES]
    bend = before - 2.0 * values[best] + after
    if bend < 0.0:
        angle += 0.5 * _ANGLES[1] * (before - after) / bend
    first, second = _turned(a, b, angle)
    gain = float(_contrast(first) + _contrast(second) - values[0])
    if gain <= 0.0:
        return 0.0
    y[i], y[j] = first, second
    rotation[i], rotation[j] = _turned(rotation[i], rotation[j], angle)
    return gain


def _nearest(rotation: Array, free: Bools) -> Array:
    """The rotation with its rows in the order and with the signs nearest to the identity.

    The rows in ``free`` may be replaced by any basis of their span, and become the one nearest to
    the remaining axes.
    """
    _, places = linear_sum_assignment(-np.abs(rotation))
    order = np.argsort(places)
    rotation, free = rotation[order], free[order]
    rotation = rotation * np.where(np.diag(rotation) < 0.0, -1.0, 1.0)[:, None]
    if free.sum() > 1:
        span = rotation[free]
        # The projections of the axes onto that span, and the orthonormal rows nearest to them.
        left, _, right = np.linalg.svd(span[:, free].T)
        rotation[free] = left @ right @ span
    return np.asarray(rotation)


def agreement(codes: Array, samples: int = SAMPLES, seed: int = 0) -> Array:
    """How reliably the codes are independent axes: whether other samples give the same ones.

    It is the mean over bootstrap samples of ``|corr(code, matched source of the sample)|``, both
    over all codes (as in ICASSO: Himberg, Hyvarinen and Esposito, 2004, "Validating the independent
    components of neuroimaging time series via clustering and visualization"). The search in each
    sample has a random start. 1 is certain. Gaussian codes have the value of a random rotation,
    about 0.7 for M = 5, and codes that are not independent sources have a low value too.

    Args:
        codes: Values of shape (N, M), not linearly dependent.
        samples: Number of bootstrap samples.
        seed: Seed of the samples and of the random starts.

    Returns:
        One number for each code, at most 1, shape (M,).

    Raises:
        UserError: If they are not finite numbers of that shape, or a column never varies.
    """
    expect("samples", samples, Integral, "a whole number")
    if samples < 1:
        raise UserError(f"samples: expected at least 1, got {samples}")
    y = _standardised(_some(_checked(codes)))
    count, size = y.shape
    correlations = y.T @ y / count
    random, total = np.random.default_rng(seed), np.zeros(size)
    for _ in range(samples):
        sample = _whitened(y[random.integers(0, count, count)])
        # A sample of few images may be linearly dependent; it counts as no agreement.
        if sample is None:
            continue
        white, whiten = sample
        _, rotation = _climb(white, _random_rotation(random, size))
        # Weights of the sample's sources, each of which then has variance 1 over all codes.
        rows = rotation @ whiten
        rows /= np.sqrt((rows @ correlations * rows).sum(1, keepdims=True))
        match = np.abs(rows @ correlations)
        of_sample, own = linear_sum_assignment(-match)
        total[own] += match[of_sample, own]
    return np.minimum(total / samples, 1.0)


def _random_rotation(random: np.random.Generator, size: int) -> Array:
    return np.asarray(np.linalg.qr(random.standard_normal((size, size)))[0])


def _whitened(y: Array) -> tuple[Array, Array] | None:
    """Columns made uncorrelated with variance 1 by the least change, and the matrix that does it.

    None if the columns are linearly dependent.
    """
    values, vectors = np.linalg.eigh(np.cov(y.T).reshape(y.shape[1], -1))
    if not (values > SINGULAR).all():
        return None
    whiten = (vectors / np.sqrt(values)) @ vectors.T
    return (y - y.mean(0)) @ whiten.T, whiten


Attempt = Literal["independent", "uncorrelated"]
Outcome = Literal["independent", "uncorrelated", "kept"]


@dataclass(frozen=True)
class Rotation:
    """What became of the axes of the informative latents in a training.

    ``outcome``: they were rotated to independent components, made uncorrelated only, because they
    are Gaussian or the rotation was not free, or kept as they were, because that was not free
    either. ``tried``: what was tried first, independent components unless all latents were
    Gaussian. ``cost``: what that added to the -ELBO, nats per image. Then for each of the
    ``latents``, as they were after ``step``: :func:`negentropy` in nats, whether that may be
    chance (:func:`gaussian`), and :func:`agreement`.
    """

    step: int
    latents: tuple[int, ...]
    outcome: Outcome
    tried: Attempt
    cost: float
    negentropy: tuple[float, ...]
    gaussian: tuple[bool, ...]
    agreement: tuple[float, ...]

    @classmethod
    def of(
        cls,
        codes: Array,
        step: int,
        latents: list[int],
        outcome: Outcome,
        tried: Attempt,
        cost: float,
    ) -> "Rotation":
        """From the codes (N, M) of the training images, as they were left."""
        columns = (negentropy(codes), gaussian(codes), agreement(codes))
        of_each = (tuple(column.tolist()) for column in columns)
        return cls(step, tuple(latents), outcome, tried, cost, *of_each)

    @classmethod
    def read(cls, saved: RotationValues | None) -> "Rotation | None":
        """From its plain values; None where none are there."""
        if saved is None:
            return None
        return cls(
            step=saved["step"],
            latents=tuple(saved["latents"]),
            outcome=saved["outcome"],
            tried=saved["tried"],
            cost=saved["cost"],
            negentropy=tuple(saved["negentropy"]),
            gaussian=tuple(saved["gaussian"]),
            agreement=tuple(saved["agreement"]),
        )

    def as_dict(self) -> RotationValues:
        return {
            "step": self.step,
            "latents": [*self.latents],
            "outcome": self.outcome,
            "tried": self.tried,
            "cost": self.cost,
            "negentropy": [*self.negentropy],
            "gaussian": [*self.gaussian],
            "agreement": [*self.agreement],
        }

    def __str__(self) -> str:
        if self.outcome == "independent":
            sure, alike = min(self.agreement), sum(self.gaussian)
            rest = f"; {alike} latents are Gaussian, and any rotation of them" if alike > 1 else ""
            rest = f"{rest} is as independent" if rest else ""
            return f"axes independent (least agreement of bootstrap samples {sure:.2f}){rest}"
        if self.tried == self.outcome:
            return "axes uncorrelated: the latents are Gaussian, any rotation is as independent"
        made = "kept" if self.outcome == "kept" else "uncorrelated only"
        return f"axes {made}: {self.tried} ones would cost {self.cost:.2g} nats per image"
