"""How exact are the densities and KLs in float32? Against mpmath, over all that a user can set.

    pip install -e ".[bench]"
    python benchmarks/numerics.py --out runs/numerics.json

Each row is a density, a KL, an entropy or a quantile at some thousand points: all corners of the
ranges, and random picks from a grid between them, half of the numbers on it, a quarter between two
of its points, and a quarter within a millionth of one. The parameters and values are float32
numbers, and the reference takes these very numbers in 50 digits, so that only the computation is
judged, not the rounding of what it is given. Densities are taken at quantiles from 1e-6 to 1 - 1e-6
and at a tenth and ten times those, far out in the tails, and an Epanechnikov kernel's to 1e-7 of
its edges.

The error is |got - want| / max(|want|, 1): log densities and KLs pass through zero, where a purely
relative error says nothing, and below one nat it is the absolute error in nats. The purely relative
error, of those with |want| >= 1, is there too. Gradients are compared with mpmath's numerical
derivatives nowhere, but with autograd's in float64, as parameter times derivative: nats for a
relative change of the parameter.
"""

import argparse
import itertools
import math
from pathlib import Path

import numpy as np
import torch
from pyro.distributions import Normal, Poisson
from scipy import stats
from torch.distributions import kl_divergence

from ngvae_pyro import runs
from ngvae_pyro.distributions import normal_gamma as ng
from ngvae_pyro.distributions.location_scale import Epanechnikov, GaussianMixture
from ngvae_pyro.distributions.poisson import RelaxedPoisson

try:
    import mpmath as mp
except ModuleNotFoundError:
    # Of an extra, which --help does without.
    mp = None

DIGITS = 50
TINY = float(np.finfo(np.float32).tiny)
# No draw of a precision is less in float32.
LEAST = TINY**0.4
BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))
CONCENTRATION = [1e-2, 0.1, 0.5, 1.0, 1.001, 2.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6]
RATE = [1e-6, 1e-4, 1e-2, 0.1, 1.0, 10.0, 1e2, 1e4, 1e6]
PROBS = [0.0, TINY, 1e-6, 0.3, 0.5, 0.9, BELOW_ONE, 1.0]
LOGITS = [-math.inf, -100.0, -10.0, -1.0, 0.0, 1e-3, 3.0, 17.0, 100.0, math.inf]
SHARPNESS = [0.1, 1.0, 10.0, 20.0, 100.0, 1e3]
LOC = [0.0, 3.0]
SCALE = [1e-3, 1.0, 1e3]
# Of the whole range of a model's prior, and to the bound on a posterior's.
POISSON_RATE = [2e-9, 1e-6, 1e-3, 0.1, 1.0, 10.0, 50.0, 100.0, 148.0]
# 1 - |u| of a value in the support of an Epanechnikov kernel, and probabilities.
EDGE = [1e-7, 1e-6, 1e-5, 1e-3, 0.1, 0.5, 1.0]
PROBABILITY = [0.0, 1e-30, 1e-12, 1e-8, 1e-6, 1e-3, 0.1, 0.25, 0.3, 0.5, 0.75, 0.9, 1 - 1e-6, 1.0]
QUANTILE = [1e-6, 1e-3, 0.1, 0.5, 0.9, 0.999, 1 - 1e-6]
STRETCH = [0.1, 1.0, 1.0, 1.0, 10.0]
# Of z from loc, in standard deviations.
OFFSET = [0.0, 1.0, -6.0, 30.0]


# The reference -----------------------------------------------------------------------------------


def gamma(x, a, b):
    return a * mp.log(b) - mp.loggamma(a) + (a - 1) * mp.log(x) - b * x


def normal(z, loc, precision):
    return (mp.log(precision / (2 * mp.pi)) - precision * (z - loc) ** 2) / 2


def student(z, loc, a, b):
    constant = mp.loggamma(a + mp.mpf(1) / 2) - mp.loggamma(a) - mp.log(2 * mp.pi * b) / 2
    return constant - (a + mp.mpf(1) / 2) * mp.log1p((z - loc) ** 2 / (2 * b))


def mixture(p, first, second):
    """log(p exp(first) + (1 - p) exp(second)) for a weight as (p, 1 - p)."""
    return mp.log(p[0] * mp.exp(first) + p[1] * mp.exp(second))


def sigmoid(x):
    if mp.isinf(x):
        return mp.mpf(x > 0)
    return 1 / (1 + mp.exp(-x))


def weight(c):
    """(p, 1 - p), each exact however near to 0."""
    if "logits" in c:
        return sigmoid(c["logits"]), sigmoid(-c["logits"])
    return c["probs"], 1 - c["probs"]


def gammas(x, c):
    return mixture(weight(c), gamma(x, c["a1"], c["b1"]), gamma(x, c["a2"], c["b2"]))


def slid(c):
    """Concentration and rate of the relaxed mixture."""
    p, rest = weight(c)
    gate = sigmoid(c["sharpness"] * (p - rest) / 2)
    other = sigmoid(-c["sharpness"] * (p - rest) / 2)
    return c["a1"] * gate + c["a2"] * other, c["b1"] * gate + c["b2"] * other


def kl_gamma(a, b, c, d):
    """KL[Gamma(a, b) || Gamma(c, d)]."""
    constant = mp.loggamma(c) - mp.loggamma(a) + c * mp.log(b / d)
    return constant + (a - c) * mp.digamma(a) + a * (d - b) / b


def kl_z(distance, a, b, scale):
    """The conditional KL to an independent z."""
    if a <= 1:
        return mp.inf
    squares = (distance**2 + b / (a - 1)) / scale**2
    return (squares - 1 + 2 * mp.log(scale) + mp.digamma(a) - mp.log(b)) / 2


def average(p, *values):
    return sum(w * v for w, v in zip(p, values, strict=True) if w > 0)


def kl_weights(p, q):
    return average(p, *(mp.log(u / v) if u > 0 else 0 for u, v in zip(p, q, strict=True)))


def entropy_gamma(a, b):
    return a - mp.log(b) + mp.loggamma(a) + (1 - a) * mp.digamma(a)


def kl_epanechnikov(m, s, loc, scale):
    entropy = mp.mpf(5) / 3 - mp.log(3) + mp.log(s)
    second = (m - loc) ** 2 + s**2 / 5
    return mp.log(2 * mp.pi) / 2 + mp.log(scale) + second / (2 * scale**2) - entropy


# The points --------------------------------------------------------------------------------------


def points(count, seed, **grids):
    """Columns of float32: all corners of the grids, at most half of ``count``, and random picks.

    What is on the grid is only half of the numbers picked.
    """
    generator = np.random.default_rng(seed)
    ends = [(min(g), max(g)) for g in grids.values()]
    corners = np.array(list(itertools.product(*ends)))
    if len(corners) > count // 2:
        corners = generator.permutation(corners)[: count // 2]
    picks = [picked(np.sort(g), count - len(corners), generator) for g in grids.values()]
    columns = np.concatenate([corners, np.stack(picks, 1)]).astype(np.float32)
    return dict(zip(grids, columns.T, strict=True))


def picked(grid, count, generator):
    """Numbers of a grid, between two of its points, and next to one, never beyond its ends."""
    chosen = generator.choice(grid, count)
    finite = grid[np.isfinite(grid)]
    first = generator.integers(len(finite) - 1, size=count) if len(finite) > 1 else 0
    low, high = finite[first], finite[first + (len(finite) > 1)]
    share = generator.random(count)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = np.where(low > 0, low * (high / low) ** share, low + share * (high - low))
    beside = (chosen * (1 + 1e-6 * generator.uniform(-1, 1, count))).clip(grid[0], grid[-1])
    which = generator.random(count)
    found = np.select([which < 0.5, which < 0.75], [chosen, between], beside)
    # Of a probability below, the derivative of a logarithm is beyond float32.
    return np.where(np.abs(found) < TINY, 0.0, found)


def with_precision(c, a, b, seed):
    """Adds a value of the precision: a stretched quantile of Gamma(a, b), of at least LEAST."""
    generator = np.random.default_rng(seed)
    quantile = generator.choice(QUANTILE, len(a))
    value = stats.gamma.ppf(quantile, a.astype(float), scale=1 / b.astype(float))
    value = value * generator.choice(STRETCH, len(a))
    c["precision"] = np.maximum(value, LEAST).astype(np.float32)
    return c


def with_z(c, scale, seed):
    offset = np.random.default_rng(seed + 1).choice(OFFSET, len(scale))
    c["z"] = (c["loc"] + offset * scale.astype(float)).astype(np.float32)
    return c


PAIR = {"a1": CONCENTRATION, "b1": RATE, "a2": CONCENTRATION, "b2": RATE}
SINGLE = {"a": CONCENTRATION, "b": RATE}


def either(c, seed):
    """Concentration and rate of a component of each point."""
    first = np.random.default_rng(seed + 2).random(len(c["a1"])) < 0.5
    return np.where(first, c["a1"], c["a2"]), np.where(first, c["b1"], c["b2"])


def single(count, seed):
    c = points(count, seed, loc=LOC, **SINGLE)
    c = with_precision(c, c["a"], c["b"], seed)
    return with_z(c, c["precision"].astype(float) ** -0.5, seed)


def mixed(name, values, wide=False):
    def build(count, seed):
        c = points(count, seed, loc=[0.0] if wide else LOC, **{name: values}, **PAIR)
        c = with_precision(c, *either(c, seed), seed)
        scale = c["precision"].astype(float) ** -0.5
        return with_z(c, np.ones_like(scale) if wide else scale, seed)

    return build


def relaxed(name, values):
    def build(count, seed):
        c = points(count, seed, loc=LOC, sharpness=SHARPNESS, **{name: values}, **PAIR)
        rows = [dict(zip(c, map(mp.mpf, map(float, row)), strict=True)) for row in _rows(c)]
        a, b = np.array([[float(v) for v in slid(row)] for row in rows]).T
        c = with_precision(c, a, b, seed)
        return with_z(c, c["precision"].astype(float) ** -0.5, seed)

    return build


def independent(count, seed):
    c = points(count, seed, loc=LOC, scale=SCALE, **SINGLE)
    return with_z(with_precision(c, c["a"], c["b"], seed), c["scale"], seed)


def epanechnikov(count, seed):
    c = points(count, seed, loc=LOC, scale=SCALE, edge=EDGE, side=[-1.0, 1.0])
    loc, scale, edge = (c[n].astype(float) for n in ("loc", "scale", "edge"))
    z = (loc + np.copysign(1 - edge, c.pop("side")) * scale).astype(np.float32)
    # What rounding takes onto the edge or beyond it comes back by one float32.
    beyond = np.abs(z - loc) >= scale
    c["z"] = np.where(beyond, np.nextafter(z, c["loc"]), z)
    del c["edge"]
    return c


def normals(count, seed):
    c = points(
        *(count, seed),
        **{"loc": LOC, "loc2": [-2.0, 0.0, 5.0], "scale": SCALE, "scale2": SCALE},
        **{"logit": [-10.0, 0.0, 2.0], "offset": OFFSET},
    )
    c["z"] = (c["loc"] + c.pop("offset") * c["scale"].astype(float)).astype(np.float32)
    return c


def counts(count, seed):
    c = points(count, seed, rate=POISSON_RATE, q=QUANTILE, stretch=STRETCH, soft=[0.0, 0.0, 0.7])
    whole = stats.poisson.ppf(c.pop("q"), c["rate"].astype(float)) * c.pop("stretch")
    # Whole counts, soft ones, and both far out.
    c["z"] = (np.floor(whole) + c.pop("soft")).astype(np.float32)
    return c


def _rows(c):
    return zip(*c.values(), strict=True)


# The rows ----------------------------------------------------------------------------------------


def _pair(c):
    """z and the precision of a point as a value."""
    return torch.stack((c["z"], c["precision"]), -1)


def _weights(c):
    return {name: c[name] for name in ("probs", "logits") if name in c}


def _two(c):
    return {"concentration": (c["a1"], c["a2"]), "rate": (c["b1"], c["b2"])}


def _slab(c):
    return {"slab": (c["a1"], c["b1"]), "spike": (c["a2"], c["b2"])}


def _mixture(c):
    return ng.NormalGammaMixture(c["loc"], **_weights(c), **_two(c))


def _relaxed(c):
    return ng.RelaxedNormalGammaMixture(
        c["loc"], **_weights(c), **_two(c), sharpness=c["sharpness"]
    )


def _independent(c):
    return ng.IndependentNormalGamma(c["a"], c["b"], c["loc"], c["scale"])


def _other(c):
    return ng.NormalGamma(c["loc2"], c["c"], c["d"])


def _gaussians(c):
    loc, scale = (torch.stack((c[n], c[f"{n}2"]), -1) for n in ("loc", "scale"))
    logits = torch.stack((c["logit"], torch.zeros_like(c["logit"])), -1)
    return GaussianMixture(loc, scale, logits)


def _reference_gaussians(c):
    p = sigmoid(c["logit"]), sigmoid(-c["logit"])
    parts = [normal(c["z"], c[f"loc{n}"], c[f"scale{n}"] ** -2) for n in ("", "2")]
    return mixture(p, *parts)


TWO_PAIRS = {**SINGLE, "c": CONCENTRATION, "d": RATE}
FOUR = {**PAIR, "c1": CONCENTRATION, "d1": RATE, "c2": CONCENTRATION, "d2": RATE}


def _kls(**grids):
    return lambda count, seed: points(count, seed, **grids)


def _q(c):
    return ng.GammaMixture(
        c["q"], concentration=(c["c1"], c["c2"]), rate=(c["d1"], c["d2"]), validate_args=False
    )


def _reference_bound(c):
    p = weight(c)
    kls = [kl_gamma(c[f"a{n}"], c[f"b{n}"], c[f"c{n}"], c[f"d{n}"]) for n in "12"]
    return kl_weights(p, (c["q"], 1 - c["q"])) + average(p, *kls)


def _reference_mixture_z(c):
    return average(weight(c), *(kl_z(c["loc"], c[f"a{n}"], c[f"b{n}"], mp.mpf(1)) for n in "12"))


def _unit(c):
    """A spike and slab whose z is standard Normal; of its precision the KL does not depend."""
    return ng.SpikeSlabPrior(torch.full_like(c["loc"], 0.1), slab=(1.0, 1e-4), spike=(100.0, 100.0))


# Name: (points, what the package says, reference).
ROWS = {
    "NormalGamma": (
        single,
        lambda c: ng.NormalGamma(c["loc"], c["a"], c["b"]).log_prob(_pair(c)),
        lambda c: gamma(c["precision"], c["a"], c["b"]) + normal(c["z"], c["loc"], c["precision"]),
    ),
    "NormalGamma.marginal": (
        single,
        lambda c: ng.NormalGamma(c["loc"], c["a"], c["b"]).marginal.log_prob(c["z"]),
        lambda c: student(c["z"], c["loc"], c["a"], c["b"]),
    ),
    "GammaMixture, probs": (
        mixed("probs", PROBS),
        lambda c: ng.GammaMixture(**_weights(c), **_two(c)).log_prob(c["precision"]),
        lambda c: gammas(c["precision"], c),
    ),
    "GammaMixture, logits": (
        mixed("logits", LOGITS),
        lambda c: ng.GammaMixture(**_weights(c), **_two(c)).log_prob(c["precision"]),
        lambda c: gammas(c["precision"], c),
    ),
    "NormalGammaMixture, probs": (
        mixed("probs", PROBS),
        lambda c: _mixture(c).log_prob(_pair(c)),
        lambda c: gammas(c["precision"], c) + normal(c["z"], c["loc"], c["precision"]),
    ),
    "NormalGammaMixture, logits": (
        mixed("logits", LOGITS),
        lambda c: _mixture(c).log_prob(_pair(c)),
        lambda c: gammas(c["precision"], c) + normal(c["z"], c["loc"], c["precision"]),
    ),
    "NormalGammaMarginal": (
        mixed("logits", LOGITS),
        lambda c: _mixture(c).marginal.log_prob(c["z"]),
        lambda c: mixture(
            weight(c), *(student(c["z"], c["loc"], c[f"a{n}"], c[f"b{n}"]) for n in "12")
        ),
    ),
    "RelaxedNormalGammaMixture, probs": (
        relaxed("probs", PROBS),
        lambda c: _relaxed(c).log_prob(_pair(c)),
        lambda c: gamma(c["precision"], *slid(c)) + normal(c["z"], c["loc"], c["precision"]),
    ),
    "RelaxedNormalGammaMixture, logits": (
        relaxed("logits", [*LOGITS, 0.01, -0.03, 0.1]),
        lambda c: _relaxed(c).log_prob(_pair(c)),
        lambda c: gamma(c["precision"], *slid(c)) + normal(c["z"], c["loc"], c["precision"]),
    ),
    "NormalGammaPrior": (
        mixed("probs", PROBS, wide=True),
        lambda c: ng.NormalGammaPrior(c["probs"], **_slab(c)).log_prob(_pair(c)),
        lambda c: gammas(c["precision"], c) + normal(c["z"], 0, c["precision"]),
    ),
    "SpikeSlabPrior": (
        mixed("probs", PROBS, wide=True),
        lambda c: ng.SpikeSlabPrior(c["probs"], **_slab(c)).log_prob(_pair(c)),
        lambda c: gammas(c["precision"], c) + normal(c["z"], 0, mp.mpf(1)),
    ),
    "IndependentNormalGamma": (
        independent,
        lambda c: _independent(c).log_prob(_pair(c)),
        lambda c: (
            gamma(c["precision"], c["a"], c["b"]) + normal(c["z"], c["loc"], c["scale"] ** -2)
        ),
    ),
    "GeneralizedGamma": (
        single,
        lambda c: ng.GeneralizedGamma(c["a"], c["b"]).log_prob(c["precision"]),
        lambda c: gamma(c["precision"], c["a"], c["b"]),
    ),
    "Epanechnikov": (
        epanechnikov,
        lambda c: Epanechnikov(c["loc"], c["scale"], validate_args=False).log_prob(c["z"]),
        lambda c: mp.log(0.75 * (1 - ((c["z"] - c["loc"]) / c["scale"]) ** 2) / c["scale"]),
    ),
    "Epanechnikov.cdf": (
        epanechnikov,
        lambda c: Epanechnikov(c["loc"], c["scale"], validate_args=False).cdf(c["z"]),
        lambda c: (
            (1 + (c["z"] - c["loc"]) / c["scale"]) ** 2 * (2 - (c["z"] - c["loc"]) / c["scale"]) / 4
        ),
    ),
    "Epanechnikov.icdf": (
        _kls(p=PROBABILITY),
        lambda c: Epanechnikov(0.0 * c["p"], 1.0).icdf(c["p"]),
        lambda c: 2 * mp.sin(mp.asin(2 * c["p"] - 1) / 3),
    ),
    "GaussianMixture": (
        normals,
        lambda c: _gaussians(c).log_prob(c["z"]),
        _reference_gaussians,
    ),
    "RelaxedPoisson": (
        counts,
        lambda c: RelaxedPoisson(c["rate"], 0.1).log_prob(c["z"]),
        lambda c: c["z"] * mp.log(c["rate"]) - c["rate"] - mp.loggamma(c["z"] + 1),
    ),
    "entropy of NormalGamma": (
        _kls(loc=LOC, **SINGLE),
        lambda c: ng.NormalGamma(c["loc"], c["a"], c["b"]).entropy(),
        lambda c: (
            entropy_gamma(c["a"], c["b"])
            + (1 + mp.log(2 * mp.pi) - mp.digamma(c["a"]) + mp.log(c["b"])) / 2
        ),
    ),
    "KL of Gammas": (
        _kls(**TWO_PAIRS),
        lambda c: kl_divergence(
            ng.NormalGamma(0.0, c["a"], c["b"]).precision,
            ng.NormalGamma(0.0, c["c"], c["d"]).precision,
        ),
        lambda c: kl_gamma(c["a"], c["b"], c["c"], c["d"]),
    ),
    "KL of NormalGamma": (
        _kls(loc=LOC, loc2=[-2.0, 0.0, 3.0], **TWO_PAIRS),
        lambda c: kl_divergence(ng.NormalGamma(c["loc"], c["a"], c["b"]), _other(c)),
        lambda c: (
            kl_gamma(c["a"], c["b"], c["c"], c["d"])
            + (c["loc"] - c["loc2"]) ** 2 * c["a"] / (2 * c["b"])
        ),
    ),
    "KL to IndependentNormalGamma": (
        _kls(loc=LOC, scale=SCALE, **TWO_PAIRS),
        lambda c: kl_divergence(
            ng.NormalGamma(c["loc"], c["a"], c["b"]),
            ng.IndependentNormalGamma(c["c"], c["d"], 1.0, c["scale"]),
        ),
        lambda c: (
            kl_gamma(c["a"], c["b"], c["c"], c["d"])
            + kl_z(c["loc"] - 1, c["a"], c["b"], c["scale"])
        ),
    ),
    "conditional_kl of a mixture": (
        _kls(loc=LOC, logits=LOGITS, **PAIR),
        lambda c: ng.conditional_kl(_mixture(c), _unit(c)),
        _reference_mixture_z,
    ),
    "conditional_kl, joint": (
        _kls(loc=LOC, logits=LOGITS, **PAIR),
        lambda c: ng.conditional_kl(
            _mixture(c), ng.NormalGammaPrior(0.1, slab=(1.0, 1e-4), spike=(100.0, 100.0))
        ),
        lambda c: average(
            weight(c), *(c["loc"] ** 2 * c[f"a{n}"] / (2 * c[f"b{n}"]) for n in "12")
        ),
    ),
    "kl_bound": (
        _kls(logits=LOGITS, q=[TINY, 1e-6, 0.02, 0.5, BELOW_ONE], **FOUR),
        lambda c: ng.kl_bound(ng.GammaMixture(**_weights(c), **_two(c)), _q(c)),
        _reference_bound,
    ),
    "KL of Epanechnikov": (
        _kls(loc=LOC, scale=SCALE, loc2=LOC, scale2=SCALE),
        lambda c: kl_divergence(Epanechnikov(c["loc"], c["scale"]), Normal(c["loc2"], c["scale2"])),
        lambda c: kl_epanechnikov(c["loc"], c["scale"], c["loc2"], c["scale2"]),
    ),
    "KL of Poisson": (
        _kls(rate=POISSON_RATE, other=POISSON_RATE),
        lambda c: kl_divergence(RelaxedPoisson(c["rate"], 0.1), Poisson(c["other"])),
        lambda c: c["rate"] * mp.log(c["rate"] / c["other"]) - c["rate"] + c["other"],
    ),
}


def errors(got, want):
    """Errors (relative to at least 1, relative) of a number, 0 where both are beyond the range."""
    got = mp.mpf(float(got))
    if mp.isnan(got) or (mp.inf in (abs(got), abs(want)) and got != want):
        # An exact value that no float32 holds is rightly infinite.
        beyond = mp.isinf(got) and not mp.isnan(want) and abs(want) > np.finfo(np.float32).max
        return (0.0, 0.0) if beyond and mp.sign(got) == mp.sign(want) else (math.inf, math.inf)
    if mp.isinf(want):
        return 0.0, 0.0
    error = abs(got - want)
    return float(error / max(abs(want), 1)), float(error / abs(want)) if abs(want) >= 1 else 0.0


def gradients(function, columns, dtype):
    """Parameter times derivative, of each column that is differentiable and finite."""
    c = {n: torch.from_numpy(v).to(dtype).requires_grad_() for n, v in columns.items()}
    got = function(c)
    # An infinite log density or KL has no gradient to compare.
    total = torch.where(got.isfinite(), got, 0.0).sum()
    slopes = torch.autograd.grad(total, list(c.values()), allow_unused=True)
    return {
        name: (value * slope).detach().double()
        for (name, value), slope in zip(c.items(), slopes, strict=True)
        if slope is not None
    }


def row(name, count, seed):
    """The largest errors of one density or KL."""
    build, function, reference = ROWS[name]
    columns = build(count, seed)
    cases = [dict(zip(columns, map(float, values), strict=True)) for values in _rows(columns)]
    want = [reference({k: mp.mpf(v) for k, v in case.items()}) for case in cases]
    found = {"name": name, "points": len(cases)}
    for dtype in (torch.float32, torch.float64):
        with torch.no_grad():
            got = function({n: torch.from_numpy(v).to(dtype) for n, v in columns.items()})
        floored, relative = np.array([errors(*pair) for pair in zip(got, want, strict=True)]).T
        worst = int(floored.argmax())
        found[str(dtype).removeprefix("torch.")] = {
            "error": float(floored[worst]),
            "relative": float(relative.max()),
            "beyond_1e-4": int((floored > 1e-4).sum()),
            # In words, because JSON has no infinity.
            "case": show({**cases[worst], "got": got[worst], "want": want[worst]}),
        }
    single, double = (gradients(function, columns, d) for d in (torch.float32, torch.float64))
    slopes = {}
    for parameter, value in single.items():
        exact = double[parameter]
        # Of an infinite logit or a loc of 0, the product is not a number or nothing.
        known = torch.from_numpy(np.isfinite(columns[parameter])) & exact.isfinite()
        known &= exact.abs() < torch.finfo(torch.float32).max
        error = ((value - exact).abs() / exact.abs().clamp(min=1.0))[known]
        slopes[parameter] = float(error.max()) if len(error) else 0.0
        if not math.isfinite(slopes[parameter]):
            slopes[parameter] = math.inf
    found["gradient"] = slopes
    return found


def show(case):
    """The parameters of a case, in a cell."""
    return ", ".join(f"{name} {float(value):.9g}" for name, value in case.items())


def table(rows):
    lines = [
        "| | points | float32 | purely relative | float64 | gradient, float32 | worst case |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for r in rows:
        one, two = r["float32"], r["float64"]
        cells = [r["name"], str(r["points"])]
        cells += [f"{v:.1e}" for v in (one["error"], one["relative"], two["error"])]
        cells += [f"{max(r['gradient'].values()):.1e}", one["case"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--points", type=int, default=3000, help="of each row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    words = parser.parse_args()
    if mp is None:
        parser.error("needs mpmath: pip install 'ngvae_pyro[bench]'")
    torch.set_num_threads(1)
    mp.mp.dps = DIGITS
    rows = [row(name, words.points, words.seed) for name in words.rows]
    words.out.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(words.out, {"rows": rows})
    print(table(rows))


if __name__ == "__main__":
    main()
