"""The aggregate posterior: moments, the variance law, rho, and the fit to the prior."""

import json
import math

import numpy as np
import pytest
import torch

from ngvae_pyro.errors import UserError
from ngvae_pyro.evaluation.aggregate import PRIOR, AggregatePosterior, aggregate_posterior


def drawn(loc, variance, seed=0):
    rng = np.random.default_rng(seed)
    return aggregate_posterior(rng.normal(loc, np.sqrt(variance)), loc, variance)


@pytest.fixture(scope="module")
def found():
    """A latent that keeps the law, one that does not, one with two humps, one collapsed."""
    rng = np.random.default_rng(1)
    n = 20_000
    loc = np.stack(
        [
            0.6 * rng.standard_normal(n),
            2.0 * rng.standard_normal(n) + 1.0,
            rng.choice([-0.99, 0.99], size=n),
            np.zeros(n),
        ],
        1,
    )
    return drawn(loc, np.broadcast_to([0.64, 0.25, 0.02, 1.0], loc.shape))


def test_moments(found):
    assert found.mean == pytest.approx([0, 1, 0, 0], abs=0.05)
    assert found.variance == pytest.approx([1, 4.25, 1, 1], rel=0.03)
    assert found.skewness == pytest.approx([0, 0, 0, 0], abs=0.06)
    # Two narrow humps have nearly the kurtosis of a coin, -2.
    assert found.kurtosis == pytest.approx([0, 0, -1.92, 0], abs=0.1)
    assert set(PRIOR) <= {*AggregatePosterior.__dataclass_fields__}


def test_the_variance_law_is_that_of_total_variance(found):
    assert found.variance_law == pytest.approx([1, 4.25, 1, 1], rel=0.03)
    assert found.variance_law == pytest.approx(found.variance, rel=1e-12)
    assert found.mean_variance == pytest.approx([0.64, 0.25, 0.02, 1.0])
    assert found.variance_of_loc == pytest.approx([0.36, 4.0, 0.98, 0.0], rel=0.03)


def test_mean_and_variance_agree_with_many_draws():
    rng = np.random.default_rng(2)
    loc, variance = rng.normal(1.0, 2.0, (50, 1)), rng.uniform(0.1, 2.0, (50, 1))
    found = drawn(loc, variance)
    draws = rng.normal(loc, np.sqrt(variance), (50, 20_000))
    assert found.mean == pytest.approx([draws.mean()], abs=0.01)
    assert found.variance == pytest.approx([draws.var()], rel=0.01)


def test_rho_is_the_ratio_at_which_the_kl_is_smallest(found):
    assert found.rho[0] == pytest.approx(0.8 / 0.6, rel=0.02)
    assert found.rho[1] == pytest.approx(math.sqrt(0.25 / 5.0), rel=0.02)
    assert found.rho[3] == math.inf
    # KL(N(loc, variance) || N(0, 1)) over the variance, where loc^2 = variance / rho^2.
    rho = 0.7
    variance = np.linspace(0.01, 1.0, 100_000)
    kl = 0.5 * (variance * (1 + rho**2) / rho**2 - np.log(variance) - 1)
    best = variance[kl.argmin()]
    assert best + best / rho**2 == pytest.approx(1.0, abs=1e-4)
    loc = np.full((10, 1), math.sqrt(best) / rho)
    assert drawn(loc, np.full((10, 1), best)).rho == pytest.approx([rho])


def test_fit_to_the_prior(found):
    assert found.ks_statistic[[0, 3]] == pytest.approx([0, 0], abs=0.02)
    assert (found.ks_p_value[[0, 3]] > 1e-3).all()
    # The two humps keep the law, and yet are far from the prior.
    assert (found.ks_statistic[[1, 2]] > 0.1).all() and (found.ks_p_value[[1, 2]] < 1e-6).all()


def test_rows_are_json(found):
    rows = found.as_rows()
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert [row["latent"] for row in rows] == [0, 1, 2, 3]
    assert rows[3]["rho"] is None and rows[0]["rho"] == found.rho[0]
    assert rows[1]["variance_law"] == found.variance_law[1]
    assert {*AggregatePosterior.__dataclass_fields__} < rows[0].keys()


def test_tensors_are_taken_as_arrays():
    loc = torch.randn(30, 2)
    variance = torch.full_like(loc, 0.5)
    z = loc + variance.sqrt() * torch.randn(30, 2)
    a = aggregate_posterior(z.requires_grad_(), loc, variance)
    b = aggregate_posterior(z.detach().double().numpy(), loc.numpy(), variance.numpy())
    assert a.as_rows() == b.as_rows()


ONES = np.ones((4, 2))
DRAWS = np.arange(8.0).reshape(4, 2)


def with_value(values, value):
    values = values.copy()
    values[2, 1] = value
    return values


@pytest.mark.parametrize(
    ("z", "loc", "variance", "message"),
    [
        (DRAWS[0], ONES, ONES, r"^z: expected a non-empty shape \(N, K\), got \(2,\)$"),
        (DRAWS, ONES[:, :1], ONES, r"^loc: expected the shape of z, \(4, 2\), got \(4, 1\)$"),
        (DRAWS, ONES, ONES[:3], r"^variance: expected the shape of z, \(4, 2\), got \(3, 2\)$"),
        (with_value(DRAWS, np.nan), ONES, ONES, r"^z: .* got nan at \[2, 1\]$"),
        (DRAWS, ONES, with_value(ONES, np.inf), r"^variance: .* got inf at \[2, 1\]$"),
        (DRAWS, ONES, with_value(ONES, 0.0), r"^variance: expected positive .* 0 at \[2, 1\]$"),
        (DRAWS[:1], ONES[:1], ONES[:1], r"^z: expected at least 2 points, got 1$"),
        (DRAWS * [1, 0], ONES, ONES, r"^z: expected draws, but those of latent 1 are all equal$"),
    ],
)
def test_bad_input_is_a_user_error(z, loc, variance, message):
    with pytest.raises(UserError, match=message):
        aggregate_posterior(z, loc, variance)
