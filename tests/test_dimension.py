"""Classical estimates of the intrinsic dimension, on points whose dimension is known."""

import numpy as np
import pytest
import torch

import ngvae_pyro as ng
from ngvae_pyro import dimension
from ngvae_pyro.errors import UserError

# Distances to the nearest are 1, 1, 2 and 4, to the second nearest 3, 2, 3 and 6.
LINE = np.array([[0.0], [1.0], [3.0], [7.0]])
ALL = [dimension.two_nn, dimension.mle, dimension.components]


def cube(r, count=3000, width=20):
    """A uniform cube in R^r, mapped linearly into a larger space."""
    random = np.random.default_rng(r)
    return random.uniform(size=(count, r)) @ random.normal(size=(r, width))


def swiss_roll(count=3000):
    random = np.random.default_rng(0)
    angle = 1.5 * np.pi * (1 + 2 * random.uniform(size=count))
    height = 21 * random.uniform(size=count)
    return np.stack([angle * np.cos(angle), height, angle * np.sin(angle)], 1)


@pytest.mark.parametrize("r", [1, 2, 3, 5])
@pytest.mark.parametrize("estimate", ALL[:2])
def test_a_cube_has_its_dimension_whatever_space_it_is_in(estimate, r):
    found = estimate(cube(r))
    # The edges of the cube take away more in more dimensions.
    assert r * 0.88 < found < r * 1.06
    assert found == pytest.approx(estimate(3.0 * cube(r) - 100.0), rel=1e-6)


def test_a_swiss_roll_has_two_dimensions_and_three_components():
    roll = swiss_roll()
    assert dimension.two_nn(roll) == pytest.approx(2.0, abs=0.1)
    assert dimension.mle(roll) == pytest.approx(2.0, abs=0.1)
    assert dimension.components(roll) == 3


def test_two_nn_by_hand():
    # mu is 3, 2, 3/2, 3/2; the largest is left out.
    x = np.log([1.5, 1.5, 2.0])
    y = -np.log([3 / 4, 2 / 4, 1 / 4])
    assert dimension.two_nn(LINE, discard=0.0) == pytest.approx(x @ y / (x @ x))
    assert dimension.two_nn(LINE, discard=0.5) == pytest.approx(x[:2] @ y[:2] / (x[:2] @ x[:2]))
    assert dimension.two_nn(LINE, discard=0.99) == pytest.approx(y[0] / x[0])


def test_mle_by_hand():
    assert dimension.mle(LINE, k=2) == pytest.approx(4 / np.log([3.0, 2.0, 1.5, 1.5]).sum())
    # The third nearest are at 7, 6, 4 and 7.
    ratios = [7 / 1, 7 / 3, 6 / 1, 6 / 2, 4 / 2, 4 / 3, 7 / 4, 7 / 6]
    assert dimension.mle(LINE, k=3) == pytest.approx(8 / np.log(ratios).sum())


def test_components_by_hand():
    # Variances of 9, 4 and 1 in the ratio 9 : 4 : 1, along turned axes.
    points = np.diag([3.0, 2.0, 1.0])
    points = np.concatenate([points, -points]) @ np.linalg.qr(np.arange(9).reshape(3, 3) + 1.0)[0]
    shares = [0.5, 9 / 14, 0.65, 13 / 14, 0.95, 1.0]
    assert [dimension.components(points, share=s) for s in shares] == [1, 1, 2, 2, 3, 3]
    # More columns than points.
    wide = np.concatenate([points, np.zeros((6, 9))], 1)
    assert [dimension.components(wide, share=s) for s in shares] == [1, 1, 2, 2, 3, 3]
    assert dimension.components(np.ones((5, 3))) == 0
    assert dimension.components(cube(4), share=1.0) == 4


def test_noise_hides_the_manifold():
    """Which is why a count needs a model of the noise."""
    noisy = cube(2) + 0.1 * np.random.default_rng(0).normal(size=(3000, 20))
    assert dimension.two_nn(noisy) > 8 and dimension.mle(noisy) > 6


def test_tensors_and_copies_of_points_change_nothing():
    points = cube(2, 300).astype(np.float32)
    copies = np.concatenate([points, points[:100], points])
    for estimate in ALL[:2]:
        assert estimate(copies) == estimate(points) == estimate(torch.from_numpy(points))
    zeros = np.array([[0.0, 0.0], [-0.0, 0.0], [1.0, 0.0], [3.0, 0.0], [7.0, -0.0]])
    assert dimension.two_nn(zeros) == dimension.two_nn(LINE)


def test_equal_distances_have_no_dimension():
    triangle = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert dimension.two_nn(triangle) == dimension.mle(triangle, k=2) == np.inf


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: dimension.two_nn(LINE[:2]), "expected more than 2 different ones, got 2"),
        (lambda: dimension.mle(LINE), "expected more than 20 different ones, got 4"),
        (lambda: dimension.mle(LINE, k=1), "k: expected at least 2 neighbours, got 1"),
        (lambda: dimension.mle(LINE, k=2.5), "k: expected a whole number of neighbours, got 2.5"),
        (lambda: dimension.two_nn(LINE, discard=1.0), r"discard: expected a fraction in \[0, 1\)"),
        (lambda: dimension.two_nn(LINE, discard=np.nan), "discard: expected a fraction"),
        (lambda: dimension.components(LINE, share=0.0), r"share: expected a share in \(0, 1\]"),
        (lambda: dimension.components(LINE[:1]), "points: expected at least 2, got 1"),
        (lambda: dimension.two_nn(LINE[:, 0]), r"points: expected a non-empty shape \(N, D\)"),
        (lambda: dimension.two_nn(LINE * np.nan), "points: expected finite values"),
    ],
)
def test_wrong_arguments_are_a_line(call, line):
    with pytest.raises(UserError, match=line):
        call()


def test_it_is_a_public_module():
    assert ng.dimension.two_nn is dimension.two_nn


@pytest.mark.parametrize("r", [1, 4, 7])
def test_a_cube_has_its_dimension_after_the_edges_are_allowed_for(r):
    assert dimension.dimension(cube(r)) == pytest.approx(r, rel=0.06)


def test_a_sphere_has_fewer_dimensions_than_coordinates():
    """As the codes of a circle have that take two latents."""
    points = np.random.default_rng(3).normal(size=(2000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    assert round(dimension.dimension(points)) == 2
