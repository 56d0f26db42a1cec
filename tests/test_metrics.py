"""Metrics: constructed codes of known scores, values of the reference, degenerate input."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score

from ngvae_pyro.errors import UserError
from ngvae_pyro.evaluation import metrics
from ngvae_pyro.evaluation.metrics import (
    active_units,
    beta_vae_score,
    correlations,
    dci,
    decorrelation,
    disentanglement,
    explicitness,
    factor_vae_score,
    information_entropy,
    irs,
    mcc,
    mig,
    modularity,
    mutual_information,
    mutual_information_gaps,
    sap,
    total_correlation,
)

# Of codes and factors; those that fit many trees are called where it matters.
CHEAP = [mig, sap, factor_vae_score, beta_vae_score, modularity, explicitness, irs, mcc]
SUPERVISED = [mutual_information, mutual_information_gaps, correlations, dci, *CHEAP]


@pytest.fixture(scope="module")
def factors():
    return np.random.default_rng(0).integers([3, 4, 5], size=(1500, 3))


@pytest.fixture(scope="module")
def continuous():
    return np.random.default_rng(1).uniform([0, -5, 0], [1, 5, 1e3], size=(1500, 3))


# The trees of `dci` are slow, one for each class, so that it gets few points and factors here.


def standardised(factors):
    return (factors - factors.mean(0)) / factors.std(0)


def perfect(factors, jitter=0.01):
    """Factors permuted, scaled and signed, with a little noise."""
    noise = np.random.default_rng(2).standard_normal(factors.shape)
    return (standardised(factors) + jitter * noise)[:, [2, 0, 1]] * [3.0, -1.0, 0.5]


def rotated(factors):
    rotation, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))
    return standardised(factors) @ rotation


# Constructed codes ---------------------------------------------------------------------------


def test_perfect_codes(factors):
    codes = perfect(factors)
    assert mig(codes, factors) > 0.98
    assert modularity(codes, factors) > 0.99
    assert factor_vae_score(codes, factors) == 1.0
    assert beta_vae_score(codes, factors) == 1.0
    assert irs(codes, factors) > 0.95
    # Middle classes are not linearly told from the rest.
    assert explicitness(codes, factors) > 0.8
    assert all(value > 0.99 for value in dci(codes[:250], factors[:250, :2]))
    gaps = mutual_information_gaps(codes, factors)
    assert gaps.shape == (3,) and gaps.mean() == pytest.approx(mig(codes, factors))


def test_perfect_codes_of_continuous_factors(continuous):
    codes = perfect(continuous, jitter=0.0)
    # The bins of a code are those of its factor, up to sign; independent ones share a little.
    assert mig(codes, continuous) > 0.9
    assert sap(codes, continuous) > 0.97
    assert factor_vae_score(codes, continuous) == 1.0
    assert beta_vae_score(codes, continuous) == 1.0
    assert irs(codes, continuous) > 0.9
    assert all(value > 0.98 for value in dci(codes, continuous))


@pytest.mark.parametrize("kind", ["factors", "continuous"])
def test_rotated_codes_score_lower(kind, request):
    values = request.getfixturevalue(kind)
    good, bad = perfect(values), rotated(values)
    for metric, drop in [
        (mig, 0.5),
        (sap, 0.1),
        (modularity, 0.1),
        (irs, 0.3),
        (factor_vae_score, 0.1),
    ]:
        assert metric(bad, values) < metric(good, values) - drop, metric.__name__


def test_rotated_codes_are_informative_but_not_disentangled(factors):
    found = dci(rotated(factors)[:300], factors[:300, :2])
    assert found.informativeness > 0.8
    assert found.disentanglement < 0.6 and found.completeness < 0.6


def test_duplicated_codes(factors):
    codes = np.tile(perfect(factors), 2)
    assert mig(codes, factors) == 0.0
    assert sap(codes, factors) == 0.0
    assert modularity(codes, factors) > 0.99
    assert decorrelation(codes) == pytest.approx(3.0, abs=0.02)
    assert total_correlation(codes) == math.inf


@pytest.mark.parametrize("collapsed", ["constant", "noise"])
def test_collapsed_latents_change_nothing(factors, collapsed):
    codes = perfect(factors)
    scale = 1e-3 if collapsed == "noise" else 0.0
    # 0.1 is no sum of powers of two: its mean and its variance are rounded.
    extra = 0.1 + scale * np.random.default_rng(4).standard_normal((len(codes), 2))
    padded = np.hstack([codes, extra])
    assert mig(padded, factors) == pytest.approx(mig(codes, factors), abs=0.02)
    assert irs(padded, factors) == pytest.approx(irs(codes, factors), abs=0.002)
    assert factor_vae_score(padded, factors) == beta_vae_score(padded, factors) == 1.0
    assert explicitness(padded, factors) == pytest.approx(explicitness(codes, factors), abs=0.02)
    few = factors[:150, :2]
    for a, b in zip(dci(padded[:150], few), dci(codes[:150], few), strict=True):
        assert a == pytest.approx(b, abs=0.02)
    assert active_units(padded) == active_units(codes) == 3
    assert total_correlation(padded) == pytest.approx(total_correlation(codes), abs=0.01)
    assert decorrelation(padded) == pytest.approx(5.0, abs=0.05)
    if collapsed == "constant":
        # A latent without information is not modular.
        assert modularity(padded, factors) == pytest.approx(0.6 * modularity(codes, factors))


def test_noise_is_at_chance(factors):
    codes = np.random.default_rng(5).standard_normal((1500, 4))
    assert mig(codes, factors) < 0.02 and sap(codes, factors) < 0.05
    assert factor_vae_score(codes, factors) == pytest.approx(1 / 3, abs=0.08)
    assert beta_vae_score(codes, factors) == pytest.approx(1 / 3, abs=0.08)
    assert explicitness(codes, factors) == pytest.approx(0.5, abs=0.05)


def test_all_constant_codes(factors):
    codes = np.full((150, 2), 0.1)
    factors = factors[:150]
    assert mig(codes, factors) == modularity(codes, factors) == irs(codes, factors) == 0.0
    assert sap(codes, factors) == factor_vae_score(codes, factors) == 0.0
    assert explicitness(codes, factors) == 0.5
    assert dci(codes, factors[:, :2])[:2] == (0.0, 0.0)
    assert beta_vae_score(codes, factors) == pytest.approx(1 / 3, abs=0.03)
    assert total_correlation(codes) == 0.0 and decorrelation(codes) == 2.0
    assert active_units(codes) == 0


def test_a_single_factor(factors):
    """What would be 1 for any codes, labels that have nothing to do with them among these."""
    codes, one = perfect(factors)[:150], factors[:150, :1]
    unrelated = np.random.default_rng(5).normal(size=codes.shape)
    for some in (codes, unrelated, 0 * codes):
        assert math.isnan(modularity(some, one)) and math.isnan(dci(some, one).disentanglement)
        assert math.isnan(factor_vae_score(some, one)) and math.isnan(beta_vae_score(some, one))
    # One that does not vary is none.
    assert math.isnan(modularity(codes, np.insert(one, 1, 7, axis=1)))
    # The others tell: the factor's latent is one of three.
    assert mig(codes, one) > 0.9 and dci(codes, one).completeness > 0.99
    assert mig(unrelated, one) < 0.1 and dci(0 * codes, one).completeness == 0.0
    named = disentanglement(codes, one)
    assert [key for key, value in named.items() if math.isnan(value)] == [
        *("dci_disentanglement", "factor_vae_score", "beta_vae_score", "modularity"),
    ]


def test_a_single_latent(factors):
    codes, factors = perfect(factors)[:150, 1:2], factors[:150]
    information = mutual_information(codes, factors)
    # Without a second latent a gap is the whole share; this latent tells the first factor.
    entropy_ = mutual_information(factors, factors).diagonal()
    assert mutual_information_gaps(codes, factors) == pytest.approx(information[0] / entropy_)
    assert math.isnan(dci(codes, factors[:, :2]).completeness)
    assert sap(codes, factors[:, :1]) > 0.9
    assert total_correlation(codes) == 0.0 and decorrelation(codes) == 1.0


def test_factors_that_never_vary_are_left_out(factors):
    codes, factors = rotated(factors)[:150], factors[:150]
    padded = np.insert(factors, 1, 7, axis=1)
    for metric in CHEAP:
        assert metric(codes, padded) == metric(codes, factors), metric.__name__
    assert dci(codes, padded[:, :3]) == dci(codes, factors[:, :2])
    information = mutual_information(codes, padded)
    assert (information[:, 1] == 0).all() and (information[:, [0, 2, 3]] > 0).all()
    assert mutual_information_gaps(codes, padded)[1] == 0.0


def test_units_and_order_do_not_matter(continuous):
    codes = rotated(continuous)
    for metric in (mig, modularity, irs, sap):
        value = metric(codes, continuous)
        assert metric(codes[:, ::-1], 7.0 * continuous[:, ::-1]) == pytest.approx(value)
    # Squares of tiny values vanish. A power of two, so that not a bit of the trees changes.
    tiny = 2.0**-600 * continuous
    assert sap(codes, tiny) == sap(codes, continuous)
    assert dci(codes[:90], tiny[:90]) == dci(codes[:90], continuous[:90])


# Correlations --------------------------------------------------------------------------------

# Two factors that do not correlate, and codes of which the correlations are known: of the second
# 2 / sqrt(5) with the first factor and 1 / sqrt(5) with the second.
CROSS = np.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
MIXING = np.array([[1.0, 2.0], [1.0, 1.0]])


def test_correlations_by_hand():
    table = correlations(CROSS @ MIXING, CROSS)
    root = 5**-0.5
    assert table == pytest.approx(np.array([[2**-0.5, 2**-0.5], [2 * root, root]]))
    # The first latent is matched with the second factor: 0.707 + 0.894, not 0.707 + 0.447.
    assert mcc(CROSS @ MIXING, CROSS) == pytest.approx((2**-0.5 + 2 * root) / 2)
    # Of one factor the best latent.
    assert mcc(CROSS @ MIXING, CROSS[:, :1]) == pytest.approx(2 * root)


def test_the_matching_is_one_to_one():
    """Both factors are nearest to the first latent, which can have one of them only."""
    codes = np.stack([CROSS.sum(1), CROSS @ [1.0, 0.1]], 1)
    first, second = correlations(codes, CROSS)
    assert second[0] > first[0] == pytest.approx(first[1])
    codes = np.stack([CROSS.sum(1), np.array([1.0, -1.0, -1.0, 1.0])], 1)
    # The second latent, the product, tells of neither factor.
    assert mcc(codes, CROSS) == pytest.approx(2**-0.5 / 2)


def test_what_mcc_does_not_depend_on(continuous):
    codes = rotated(continuous)
    value = mcc(codes, continuous)
    for same in (codes[:, [2, 0, 1]], codes * [-1.0, 1e-3, 1e6], codes + 7.0):
        assert mcc(same, continuous) == pytest.approx(value)
        ranks = mcc(codes, continuous, rank=True)
        assert mcc(same, continuous, rank=True) == pytest.approx(ranks)
    assert mcc(codes, continuous[:, ::-1] * [-1.0, 1e-300, 1e9]) == pytest.approx(value)


def test_mcc_of_perfect_and_rotated_codes(factors, continuous):
    for values in (factors, continuous):
        assert mcc(perfect(values, jitter=0.0), values) == pytest.approx(1.0)
        assert mcc(perfect(values, jitter=0.0), values, rank=True) == pytest.approx(1.0)
        assert mcc(rotated(values), values) < 0.9
    noise = np.random.default_rng(5).standard_normal(continuous.shape)
    assert mcc(noise, continuous) < 0.06


def test_ranks_see_through_monotone_maps(continuous):
    unit = (continuous - continuous.min(0)) / np.ptp(continuous, axis=0)
    bent = -np.exp(6.0 * unit)
    assert mcc(bent, continuous) < 0.85
    assert mcc(bent, continuous, rank=True) == pytest.approx(1.0)
    # By hand: ranks 1, 2, 3 and 2, 1, 3; of ties the mean rank.
    table = correlations([[1.0], [2.0], [99.0]], [[5.0, 0.0], [4.0, 0.0], [9.0, 1.0]], rank=True)
    assert table == pytest.approx(np.array([[0.5, 3**0.5 / 2]]))


def test_mcc_with_another_number_of_latents(factors):
    codes = perfect(factors, jitter=0.0)
    for rank in (False, True):
        # Two of three factors have a latent.
        assert mcc(codes[:, :2], factors, rank=rank) == pytest.approx(2 / 3)
        # The best are chosen of more.
        many = np.hstack([rotated(factors), codes, np.zeros((len(codes), 2))])
        assert mcc(many, factors, rank=rank) == pytest.approx(1.0)


def test_what_does_not_vary_correlates_with_nothing(factors):
    codes = perfect(factors, jitter=0.0)
    padded = np.insert(factors, 1, 7, axis=1)
    for rank in (False, True):
        table = correlations(codes, padded, rank=rank)
        assert (table[:, 1] == 0).all() and table.max(1) == pytest.approx(np.ones(3))
        assert mcc(codes, padded, rank=rank) == pytest.approx(1.0)
        # 0.1 is no sum of powers of two; the rounding of a collapsed latent may follow a factor.
        for still in (np.full_like(codes, 0.1), 0.1 + 1e-7 * codes):
            assert mcc(still, factors, rank=rank) == 0.0
    assert mcc(0.1 + 1e-4 * codes, factors) == pytest.approx(1.0)


# Classes -------------------------------------------------------------------------------------


def test_which_factors_are_classes():
    rng = np.random.default_rng(6)
    orientation = np.linspace(0, 2 * np.pi, 40)[rng.integers(40, size=1000)]
    many_integers = rng.integers(500, size=1000)
    for column, classes in [(orientation, 40), (many_integers, len(np.unique(many_integers)))]:
        assert len(np.unique(metrics._labels(column))) == classes
    few_but_distinct = rng.uniform(size=60)
    for column in (rng.uniform(size=1000), few_but_distinct):
        assert not metrics._class_valued(column)
        assert len(np.unique(metrics._labels(column))) <= 20
    # Labels do not depend on the values that name the classes.
    assert (metrics._labels(orientation) == metrics._labels(orientation.astype("float32"))).all()


def test_sap_takes_factors_as_told(factors, continuous):
    codes = rotated(factors)
    assert sap(codes, factors) == sap(codes, factors, continuous=False)
    assert sap(codes, factors) != sap(codes, factors, continuous=True)
    codes = rotated(continuous)
    assert sap(codes, continuous) == sap(codes, continuous, continuous=True)
    assert sap(codes, continuous) != sap(codes, continuous, continuous=False)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mutual_information_is_that_of_histogram_bins(factors, dtype):
    codes = rotated(factors).astype(dtype)
    found = mutual_information(codes, factors)
    for k, column in enumerate(codes.T):
        cells = np.digitize(column, np.histogram(column, 20)[1][:-1])
        for f, labels in enumerate(factors.T):
            assert found[k, f] == pytest.approx(mutual_info_score(labels, cells), abs=1e-12)


def test_bins_of_a_range_of_a_few_roundings():
    column = np.float32(1) + np.arange(3, dtype=np.float32) * np.float32(1.2e-7)
    # Since numpy 2 its histogram refuses them.
    assert len(np.unique(metrics._bins(column))) == 3


def test_tensors_are_taken_as_arrays(factors):
    codes = rotated(factors).astype(np.float32)
    tensor = torch.tensor(codes, requires_grad=True)
    assert mig(tensor, torch.tensor(factors)) == mig(codes, factors)
    assert total_correlation(tensor) == total_correlation(codes)
    assert active_units(tensor.to(torch.bfloat16)) == 3
    assert information_entropy(torch.ones(3)) == pytest.approx(math.log(3))


# The reference -------------------------------------------------------------------------------


def case(seed, n=3000, sizes=(2, 3, 4, 6, 10), latents=10, noise=0.1):
    """Codes that mix factors of mixed numbers of classes."""
    rng = np.random.default_rng(seed)
    factors = np.stack([rng.integers(size, size=n) for size in sizes], 1)
    loadings = rng.standard_normal((len(sizes), latents))
    codes = (factors / np.array(sizes)) @ loadings + noise * rng.standard_normal((n, latents))
    return codes, factors


# What google-research/disentanglement_lib at commit 86a644d4ed35c771560dc3360756363d35477357
# computes of these codes, with scikit-learn 1.9.1, its first two thirds for training.
REFERENCE = {
    0: {
        "mig": 0.213875763282,
        "modularity": 0.84068040751,
        "irs": 0.451716844296,
        "total_correlation": 7.583000597558,
        "sap_continuous": 0.233364235378,
        "sap": 0.0936,
        "explicitness": 0.996796388675,
    },
    1: {
        "mig": 0.068113820019,
        "modularity": 0.892758915475,
        "irs": 0.45129783829,
        "total_correlation": 6.962792347784,
        "sap_continuous": 0.128445835282,
        "sap": 0.0338,
        "explicitness": 0.993310355146,
    },
    2: {
        "mig": 0.241045275021,
        "modularity": 0.888218185331,
        "irs": 0.468723330046,
        "total_correlation": 7.067790961215,
        "sap_continuous": 0.275223682349,
        "sap": 0.1016,
        "explicitness": 0.983432211044,
    },
}


@pytest.mark.parametrize("seed", REFERENCE)
def test_values_of_the_reference(seed):
    codes, factors = case(seed)
    expected = REFERENCE[seed]
    assert mig(codes, factors) == pytest.approx(expected["mig"], abs=1e-9)
    assert modularity(codes, factors) == pytest.approx(expected["modularity"], abs=1e-9)
    assert irs(codes, factors) == pytest.approx(expected["irs"], abs=1e-9)
    found = total_correlation(codes)
    assert found == pytest.approx(expected["total_correlation"], abs=1e-9)
    found = sap(codes, factors, continuous=True)
    assert found == pytest.approx(expected["sap_continuous"], abs=1e-9)
    # Here they agree to 1e-12 as well; elsewhere the solvers may stop a step apart, and one point
    # of 1,000 may change sides.
    assert sap(codes, factors) == pytest.approx(expected["sap"], abs=1e-3)
    assert explicitness(codes, factors) == pytest.approx(expected["explicitness"], abs=1e-4)


def test_trees_of_the_reference():
    """With random_state=0 there too; its own trees, without a state, vary by some 0.003."""
    found = dci(*case(3, 600, (2, 3, 4), 5))
    assert found == pytest.approx((0.381818024319, 0.332248004113, 0.965), abs=1e-3)


def test_rounds_of_the_reference():
    """It draws new points for each round: means of four runs (0.556 to 0.576) and of two."""
    codes, factors = case(5, noise=0.6)
    assert factor_vae_score(codes, factors) == pytest.approx(0.56355, abs=0.03)
    assert beta_vae_score(codes, factors) == pytest.approx(0.7905, abs=0.03)


def test_rounds_follow_the_seed():
    codes, factors = case(5, 500, latents=4, noise=0.6)
    for score in (factor_vae_score, beta_vae_score):
        default = score(codes, factors)
        assert default == score(codes, factors, seed=0)
        assert default != score(codes, factors, seed=1)


def test_rounds_hold_the_drawn_factor():
    rng = np.random.default_rng(0)
    # The class 3 of the last factor has one point, which must never be held; the first is constant.
    factors = np.stack([np.zeros(40), np.arange(40) % 4, np.r_[np.arange(39) % 3, 3]], 1)
    seen = 0
    for anchors in (1, 64):
        for factor, chosen, companions in metrics._rounds(factors, 700, anchors, rng):
            assert factor in (1, 2) and companions.shape == (len(chosen), 64)
            column = factors[:, factor]
            assert (column[companions] == column[chosen]).all()
            if factor == 2:
                assert (column[chosen] < 3).all()
            seen += len(chosen)
    assert seen == 1400


def test_all_of_them_by_name(factors):
    codes, factors = rotated(factors)[:150], factors[:150, :2]
    found = disentanglement(codes, factors, seed=4)
    trees = dci(codes, factors)
    assert found == {
        "mig": mig(codes, factors),
        "sap": sap(codes, factors),
        "dci_disentanglement": trees.disentanglement,
        "dci_completeness": trees.completeness,
        "dci_informativeness": trees.informativeness,
        "factor_vae_score": factor_vae_score(codes, factors, 4),
        "beta_vae_score": beta_vae_score(codes, factors, 4),
        "modularity": modularity(codes, factors),
        "explicitness": explicitness(codes, factors),
        "irs": irs(codes, factors),
        "mcc": mcc(codes, factors),
        "mcc_rank": mcc(codes, factors, rank=True),
    }
    assert list(found)[:2] == ["mig", "sap"] and list(found)[-1] == "mcc_rank"
    assert all(type(value) is float for value in found.values())


def test_parts_for_training_and_testing():
    for n, train, test in [
        (6, 4, 2),
        (100, 67, 33),
        (15_000, 10_000, 5_000),
        (20_000, 10**4, 5000),
    ]:
        values = np.arange(n)[:, None] % 2
        (task,) = metrics._tasks(values, values)
        assert (len(task.y_train), len(task.y_test)) == (train, test)
        assert task.x_train.shape == (train, 1) and task.x_test.shape == (test, 1)


# Codes alone ---------------------------------------------------------------------------------


def test_total_correlation_of_two_gaussians():
    rho = 0.8
    z = np.random.default_rng(7).standard_normal((200_000, 2)) @ np.array([[1, rho], [0, 0.6]])
    assert total_correlation(z) == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.01)
    # Neither units nor means matter.
    assert total_correlation(z * [1e-6, 1e6] + 3) == pytest.approx(total_correlation(z), abs=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_total_correlation_of_dependent_latents_is_infinite(dtype):
    z = np.random.default_rng(8).standard_normal((1000, 3)) + 5.0
    mixed = np.hstack([z, z @ [[0.3], [-1.7], [2.9]]]).astype(dtype)
    assert total_correlation(mixed) == math.inf
    assert total_correlation(mixed[:, :3]) < 0.1
    assert total_correlation(mixed[:3, :3]) == math.inf  # no more points than latents


def test_decorrelation_counts_uncorrelated_latents():
    z = np.linalg.qr(np.random.default_rng(9).standard_normal((50, 5)))[0]
    z = np.linalg.qr(z - z.mean(0))[0]
    assert decorrelation(z) == pytest.approx(5.0)
    assert decorrelation(z[:, [0, 0, 0]] * [1, -2, 3]) == pytest.approx(1.0)
    assert decorrelation(z[:, [0, 0, 1, 1]]) == pytest.approx(2.0)
    assert decorrelation(1e-200 * z) == pytest.approx(5.0)


def test_active_units_by_variance():
    z = np.random.default_rng(10).standard_normal((1000, 3)) * [1.0, 0.2, 0.05]
    assert active_units(z) == 2
    assert active_units(z, threshold=0.5) == 1
    assert active_units(z[:1]) == 0


def test_information_entropy():
    assert information_entropy(np.array([0.0, 5.0, 0.0])) == 0.0
    assert information_entropy(np.array([2.0, 2.0, 2.0, 0.0])) == pytest.approx(math.log(3))
    assert information_entropy(np.array([2.0, 2.0, -0.1])) == pytest.approx(math.log(2))
    assert information_entropy(np.array([0.0, -0.1, 0.0])) == pytest.approx(math.log(3))


# Errors --------------------------------------------------------------------------------------

Z = np.random.default_rng(11).standard_normal((8, 2))
V = np.arange(16).reshape(8, 2) % 3


def with_value(values, value, index=(3, 1)):
    values = values.astype(float)
    values[index] = value
    return values


@pytest.mark.parametrize("metric", SUPERVISED)
@pytest.mark.parametrize(
    ("codes", "factors", "message"),
    [
        (Z[:, 0], V, r"^codes: expected a non-empty shape \(N, K\), got \(8,\)$"),
        (Z, V[:, 0], r"^factors: expected a non-empty shape \(N, F\), got \(8,\)$"),
        (Z[:0], V[:0], r"^codes: expected a non-empty shape \(N, K\), got \(0, 2\)$"),
        (Z, V[:7], r"^codes and factors: expected as many rows in both, got 8 and 7$"),
        (with_value(Z, np.nan), V, r"^codes: expected finite values of at most 1e\+15, got nan at"),
        (Z, with_value(V, -np.inf), r"^factors: expected finite values .* got -inf at \[3, 1\]$"),
        (with_value(Z, 1e16), V, r"^codes: .* of at most 1e\+15, got 1e\+16 at \[3, 1\]$"),
        (Z.astype(str), V, r"^codes: expected numbers, got <U"),
        (Z, 0 * V, r"^factors: none of the 2 varies over the points$"),
        (Z[:1], V[:1], r"^codes: expected at least [26] points, got 1$"),
    ],
)
def test_bad_input_is_a_user_error(metric, codes, factors, message):
    with pytest.raises(UserError, match=message):
        metric(codes, factors)


@pytest.mark.parametrize("metric", [sap, dci, explicitness])
def test_predictors_need_points_that_vary(metric):
    with pytest.raises(UserError, match=r"^codes: expected at least 6 points, got 5$"):
        metric(Z[:5], V[:5])
    factors = np.stack([V[:, 0], [0, 0, 0, 0, 0, 0, 1, 1]], 1)
    message = r"^factors: column 1 never varies among the first 6 points, .* shuffle the points$"
    with pytest.raises(UserError, match=message):
        metric(Z, factors)


@pytest.mark.parametrize("last", [[2, 2], [2, 3]])
def test_explicitness_needs_a_class_in_both_parts(last):
    factors = np.array([[0, 1, 0, 1, 0, 1, *last]]).T
    message = r"^factors: column 0: no class to test among points 6 to 7; shuffle the points$"
    with pytest.raises(UserError, match=message):
        explicitness(Z, factors)


def test_explicitness_leaves_out_classes_that_a_part_lacks(factors):
    codes = perfect(factors)[:300]
    column = factors[:300, 0].copy()
    column[200:][column[200:] == 2] = 1  # class 2 in training only
    column[0], column[250] = 5, 6  # class 5 in training only, class 6 in testing only
    assert 0.5 < explicitness(codes, column[:, None]) <= 1.0


@pytest.mark.parametrize("score", [factor_vae_score, beta_vae_score])
def test_rounds_need_points_that_share_a_class(score):
    factors = np.stack([V[:, 0], np.arange(8)], 1)
    with pytest.raises(UserError, match=r"^factors: column 1: no two points share a class$"):
        score(Z, factors)
    with pytest.raises(UserError, match=r"^seed: expected an integer of at least 0, got -1$"):
        score(Z, V, seed=-1)


def test_codes_alone_are_checked():
    for metric in (total_correlation, decorrelation):
        with pytest.raises(UserError, match=r"^codes: expected at least 2 points, got 1$"):
            metric(Z[:1])
    for metric in (total_correlation, decorrelation, active_units):
        with pytest.raises(UserError, match=r"^codes: .* got nan at \[3, 1\]$"):
            metric(with_value(Z, np.nan))
    with pytest.raises(UserError, match=r"^information: expected a non-empty shape \(K\), got"):
        information_entropy(Z)
    with pytest.raises(UserError, match=r"^information: .* got inf at \[1\]$"):
        information_entropy(np.array([0.0, math.inf]))
    with pytest.raises(UserError, match=r"^bins: expected at least 1, got 0$"):
        mutual_information(Z, V, bins=0)
    with pytest.raises(UserError, match=r"^threshold: expected a number, got 'much'"):
        active_units(Z, threshold="much")
    with pytest.raises(UserError, match=r"^rank: expected True or False, got 'yes'"):
        mcc(Z, V, rank="yes")


# Images ----------------------------------------------------------------------


def test_sharpness_is_the_variance_of_the_laplacian():
    images = torch.rand(3, 3, 9, 7, dtype=torch.float64)
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]).double()
    filtered = torch.nn.functional.conv2d(images.mean(1, keepdim=True), kernel[None, None])
    expected = filtered.flatten(1).var(1, correction=0).mean().item()
    # Images are single precision.
    assert metrics.sharpness(images) == pytest.approx(expected, rel=1e-5)
    assert metrics.sharpness(images.numpy()) == pytest.approx(expected, rel=1e-5)
    checks = (torch.arange(8) + torch.arange(8)[:, None]) % 2
    checks = (checks * 255).to(torch.uint8).expand(2, 1, 8, 8)
    assert metrics.sharpness(checks) == pytest.approx(16.0)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 1, 2, 8), (0, 1, 8, 8)])
def test_sharpness_needs_images(shape):
    with pytest.raises(UserError, match="images: expected shape"):
        metrics.sharpness(np.zeros(shape))
