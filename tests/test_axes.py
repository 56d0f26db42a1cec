"""Independent axes: what is found in codes of known sources, and what is said where nothing is."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm
from sklearn.decomposition import FastICA

from ngvae_pyro import axes
from ngvae_pyro.errors import UserError
from ngvae_pyro.evaluation import metrics

COUNT = 4000


def draws(seed, *kinds):
    """Independent sources of variance 1."""
    random = np.random.default_rng(seed)
    draw = {
        "uniform": lambda: random.uniform(-(3**0.5), 3**0.5, COUNT),
        "laplace": lambda: random.laplace(scale=0.5**0.5, size=COUNT),
        "gaussian": lambda: random.standard_normal(COUNT),
        "two": lambda: (
            random.choice([-1.0, 1.0], COUNT) * 0.9 + 0.19**0.5 * random.normal(0, 1, COUNT)
        ),
    }
    return np.stack([draw[kind]() for kind in kinds], 1)


def turned(sources, seed):
    random = np.random.default_rng(seed)
    size = sources.shape[1]
    return sources @ np.linalg.qr(random.standard_normal((size, size)))[0].T


def log_cosh(y):
    return np.logaddexp(y, -y) - np.log(2.0)


def expected(function):
    return quad(lambda y: function(y) * norm.pdf(y), -8.0, 8.0, epsabs=1e-12)[0]


def test_the_constants_are_those_of_a_gaussian():
    mean = expected(log_cosh)
    assert pytest.approx(mean, abs=1e-10) == axes.GAUSSIAN_MEAN
    square = expected(lambda y: (log_cosh(y) - mean) * (y * y - 1.0)) / 2.0**0.5
    residual = expected(lambda y: (log_cosh(y) - mean) ** 2) - square**2
    assert pytest.approx(residual, abs=1e-9) == axes.GAUSSIAN_RESIDUAL


def test_negentropy_is_the_second_order_of_what_it_is_called():
    """Of phi(y) (1 + e h(y)), h the statistic it looks at, it is e^2 / 2, as the exact one is."""
    mean, norm_of = axes.GAUSSIAN_MEAN, axes.GAUSSIAN_RESIDUAL**0.5
    slope = expected(lambda y: log_cosh(y) * (y * y - 1.0)) / 2.0

    def h(y):
        return (log_cosh(y) - mean - slope * (y * y - 1.0)) / norm_of

    e = 1e-3
    exact = expected(lambda y: (1.0 + e * h(y)) * np.log1p(e * h(y)))
    statistic = expected(lambda y: log_cosh(y) * (1.0 + e * h(y)))
    estimate = (statistic - mean) ** 2 / (2.0 * axes.GAUSSIAN_RESIDUAL)
    assert exact == pytest.approx(e**2 / 2.0, rel=0.05)
    assert estimate == pytest.approx(e**2 / 2.0, rel=1e-6)


def test_negentropy_of_a_gaussian_is_chance_and_of_others_is_not():
    scores = axes.negentropy(draws(0, *20 * ["gaussian"])) * 2.0 * COUNT
    assert 0.3 < scores.mean() < 2.2 and (scores > 3.84).sum() <= 4
    scores = axes.negentropy(draws(0, "uniform", "laplace", "two"))
    # Of a uniform the exact one is log(2 pi e / 12) / 2 = 0.176 nats.
    assert (scores > 0.02).all() and scores[0] < 0.176
    shifted = axes.negentropy(draws(0, "uniform", "laplace", "two") * [3.0, 1e-3, 7.0] + 5.0)
    assert shifted == pytest.approx(scores, rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_independent_sources_are_found(seed):
    sources = draws(seed, "uniform", "uniform", "laplace", "two", "gaussian", "uniform")
    codes = turned(sources, seed) + 3.0
    found = axes.find(codes)
    assert metrics.mcc(codes, sources) < 0.9 < 0.99 < metrics.mcc(found(codes), sources)
    assert found.found and found.gaussian.sum() == 1
    # Codes of equal noise: a rotation but for the chance correlations of the sources.
    assert abs(found.change @ found.change.T - np.eye(6)).max() < 0.1
    inverse = np.linalg.inv(found.change)
    assert np.linalg.norm(inverse, axis=0) == pytest.approx(np.ones(6))
    # Each is where the code is that it is most like, with its sign.
    table = np.corrcoef(found(codes).T, codes.T)[:6, 6:]
    assert (table.diagonal() > 0.0).all()
    assert abs(found(codes).mean(0)).max() < 1e-9
    again = axes.find(codes)
    assert (again.change == found.change).all()


def test_what_is_independent_already_stays():
    sources = draws(5, "uniform", "laplace", "two") * [1.0, 2.0, 0.5]
    assert axes.find(sources).change == pytest.approx(np.eye(3), abs=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_no_beginning_of_fast_ica_does_better(seed):
    """The contrast tells the best rotation without labels; FastICA may stop at others."""
    sources = draws(seed, *6 * ["uniform"])
    codes = turned(sources + 0.6 * np.tanh(sources[:, ::-1] * sources), seed)
    found = axes.find(codes)
    own = axes.negentropy(found(codes)).sum()
    random = np.random.default_rng(seed)
    others = []
    for _ in range(12):
        start = np.linalg.qr(random.standard_normal((6, 6)))[0]
        fast = FastICA(whiten="unit-variance", w_init=start, max_iter=500, tol=1e-3)
        others.append(axes.negentropy(fast.fit_transform(codes)).sum())
    assert own > max(others) * (1.0 - 1e-3)


def test_gaussian_codes_are_made_uncorrelated_and_no_more():
    random = np.random.default_rng(0)
    codes = draws(0, *4 * ["gaussian"]) @ (np.eye(4) + 0.3 * random.standard_normal((4, 4)))
    found = axes.find(codes)
    assert not found.found and found.gaussian.all()
    assert found.change == pytest.approx(found.uncorrelated, abs=1e-5)
    table = np.corrcoef(found(codes).T)
    assert abs(table - np.eye(4)).max() < 1e-6
    assert axes.agreement(found(codes)).max() < 0.95


def test_two_gaussian_sources_stay_as_near_to_the_codes_as_they_can():
    sources = draws(1, "uniform", "gaussian", "gaussian")
    angle = 0.4
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    found = axes.find(sources @ turn.T)
    assert found.gaussian.tolist() == [False, True, True]
    # The uniform one is turned back, and with it the Gaussian that it was mixed with.
    assert found.change @ turn == pytest.approx(np.eye(3), abs=0.08)


def test_a_sure_axis_agrees_between_samples_and_another_does_not():
    sources = draws(2, "uniform", "laplace", "two", "gaussian", "gaussian")
    sure = axes.agreement(sources)
    assert (sure[:3] > 0.99).all() and (sure[3:] < 0.97).all() and (sure <= 1.0).all()
    mixed = sources[:, :2] @ np.array([[1.0, 1.0], [1.0, -1.0]])
    assert axes.agreement(mixed) == pytest.approx([0.5**0.5, 0.5**0.5], abs=0.05)
    assert axes.agreement(sources, seed=0) == pytest.approx(sure, abs=0)


@pytest.mark.parametrize("size", [1, 9])
def test_one_code_and_many(size):
    sources = draws(3, *size * ["uniform"])
    found = axes.find(turned(sources, 3))
    assert metrics.mcc(found(turned(sources, 3)), sources) > 0.97


def test_what_has_no_axes():
    codes = draws(0, "uniform", "laplace")
    assert axes.find(codes[:, [0, 0]]) is None
    assert axes.find(np.column_stack([codes[:, 0], np.full(COUNT, 2.5)])) is None
    assert axes.find(codes[:1]) is None
    assert axes.find(codes[:2]) is None
    for wrong in (
        codes[:, 0],
        codes * np.nan,
        np.zeros((0, 2)),
        codes[:, :0],
        [["a"]],
        1e200 * codes,
    ):
        for function in (axes.find, axes.negentropy, axes.agreement, axes.gaussian):
            with pytest.raises(UserError, match="codes: expected "):
                function(wrong)
    for function in (axes.negentropy, axes.agreement, axes.gaussian):
        with pytest.raises(UserError, match="codes: expected columns that vary, got 2 that do not"):
            function(codes[:1])
    for samples in (0, -1, 2.5, "x"):
        with pytest.raises(UserError, match="samples: expected"):
            axes.agreement(codes, samples=samples)


def test_scores_do_not_know_units():
    codes = draws(0, "uniform", "laplace", "two")
    assert axes.negentropy(1e-200 * codes) == pytest.approx(axes.negentropy(codes))
    assert axes.agreement(1e-200 * codes) == pytest.approx(axes.agreement(codes), abs=1e-3)


def test_of_few_images_no_axis_is_sure():
    """Bootstrap samples of few rows are linearly dependent, and say nothing."""
    few = draws(0, "uniform", "laplace", "two", "uniform")[:6]
    assert axes.find(few) is not None
    sure = axes.agreement(few)
    assert (sure >= 0.0).all() and (sure < 0.9).all()


@pytest.mark.parametrize(("size", "searches"), [(2, 40), (5, 15), (8, 6)])
def test_a_search_in_gaussian_codes_hardly_ever_finds_anything(size, searches):
    random = np.random.default_rng(size)
    assert not any(axes.find(random.standard_normal((500, size))).found for _ in range(searches))


@pytest.mark.parametrize(
    ("outcome", "tried", "said"),
    [
        ("uncorrelated", "independent", "uncorrelated only: independent ones would cost 3 nats"),
        ("kept", "independent", "kept: independent ones would cost 3 nats"),
        ("kept", "uncorrelated", "kept: uncorrelated ones would cost 3 nats"),
        ("uncorrelated", "uncorrelated", "uncorrelated: the latents are Gaussian"),
    ],
)
def test_what_is_said_is_what_was_tried(outcome, tried, said):
    """However the latents look as they were left: mixtures of many look Gaussian."""
    codes = draws(4, "gaussian", "gaussian")
    assert said in str(axes.Rotation.of(codes, 1, [0, 1], outcome, tried, 3.0))


def test_a_rotation_is_read_as_it_was_written():
    codes = draws(4, "uniform", "laplace", "gaussian")
    rotation = axes.Rotation.of(codes, 7, [0, 2, 5], "independent", "independent", 0.01)
    assert axes.Rotation.read(rotation.as_dict()) == rotation
    assert rotation.gaussian == (False, False, True) and rotation.latents == (0, 2, 5)
    assert str(rotation).startswith("axes independent (least agreement")
    assert axes.Rotation.read(None) is None
