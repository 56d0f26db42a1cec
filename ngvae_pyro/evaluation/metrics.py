"""How well codes tell known factors apart, and how informative and correlated codes are.

Every metric is a pure function of codes (N, K), with a row for each point and a column for each
latent (usually the posterior mean), and most also of the generating factors (N, F); both are
numpy arrays or CPU tensors. Only :func:`sharpness` is a function of images. The conventions are
those of Locatello et al. (2019, arXiv 1811.12359), whose disentanglement_lib gives the same values
for class-valued factors, up to random draws.

- A factor is *class-valued* if all its values are integers, or if it has at most 100 values, each
  taken at least twice on average. Other factors are continuous; metrics that need classes cut them
  into 20 bins of equal width.
- Factors that never vary are left out of every metric.
- A metric that would be 1 (or 0) for any codes is nan: ``modularity``, the disentanglement of
  ``dci``, ``factor_vae_score`` and ``beta_vae_score`` with a single factor that varies, such as the
  label of MNIST, and the completeness of ``dci`` with a single latent.
- ``sap``, ``dci`` and ``explicitness`` train on the first min(10,000, 2N/3) points and test on up
  to 5,000 that follow, so the points should come in random order. All others use every point.

Wrong shapes, values that are not finite or exceed 1e15, too few points, and factors of which none
varies raise a :class:`ngvae_pyro.UserError`.
"""

import math
import warnings
from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ngvae_pyro.arrays import Array, checked
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.errors import UserError, described, expect
from ngvae_pyro.extras import needed

with needed("metrics"):
    from scipy.optimize import linear_sum_assignment
    from scipy.stats import entropy, rankdata
    from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import mutual_info_score, r2_score, roc_auc_score
    from sklearn.svm import LinearSVC

BINS = 20
# A factor with more distinct values than this, not all integers, is continuous.
MOST_CLASSES = 100
# Points on which predictors are trained and tested; also the rounds of the two scores with rounds.
TRAIN, TEST = 10_000, 5_000
# Points in a round.
BATCH = 64
# Latents with a smaller standard deviation are left out of the FactorVAE score.
PRUNED = 0.05
# The quantile that IRS uses as the largest deviation; anything above it is an outlier.
QUANTILE = 0.99
# A latent with at most this variance is collapsed, whatever its rounding errors correlate with.
STILL = 1e-12


class DCI(NamedTuple):
    """Disentanglement, completeness and informativeness, from :func:`dci`."""

    disentanglement: float
    completeness: float
    informativeness: float


# Images --------------------------------------------------------------------------------------


def sharpness(images: Array | Tensor) -> float:
    """How sharp images are: the variance of their Laplacian over the pixels, averaged over images.

    The Laplacian of the grey image (the mean of the channels) is the sum of a pixel's four
    neighbours minus four times itself, inside the border: 0 where the image is flat or a linear
    slope, large at edges and in noise. Images sharper than the data are therefore not better.
    Tolstikhin, Bousquet, Gelly and Schoelkopf (2018), "Wasserstein auto-encoders",
    arXiv:1711.01558, section 4.

    Args:
        images: (N, C, H, W), uint8 or in [0, 1], at least 3 pixels high and wide.

    Returns:
        At least 0, at most 16 for values in [0, 1].

    >>> edge = np.zeros((1, 1, 8, 8)); edge[..., 4:] = 1.0
    >>> slope = np.linspace(0.0, 1.0, 8).reshape(1, 1, 1, 8).repeat(8, 2)
    >>> round(sharpness(edge), 3), round(sharpness(slope), 3)
    (0.333, 0.0)
    """
    expect("images", images, (np.ndarray, Tensor), "an array or a tensor (N, C, H, W)")
    images = torch.as_tensor(images)
    if images.dim() != 4 or not len(images) or min(images.shape[-2:]) < 3:
        raise UserError(
            f"images: expected shape (N, C, H, W), at least 3x3 pixels, got {tuple(images.shape)}"
        )
    grey = ImageData.to_unit(images).double().mean(1)
    inner = grey[:, 1:-1, 1:-1]
    vertical = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] - 2 * inner
    horizontal = grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:] - 2 * inner
    return (vertical + horizontal).flatten(1).var(1, correction=0).mean().item()


# Mutual information --------------------------------------------------------------------------


def mutual_information(
    codes: Array | Tensor, factors: Array | Tensor, *, bins: int = BINS
) -> Array:
    """Mutual information I(z_k; v_f) of each latent and each factor, nats.

    Codes and continuous factors are cut into bins of equal width over their range (Locatello et
    al., 2019), and I is computed from the table of counts. It is 0 if the latent's bin says nothing
    about the factor, and the factor's entropy if it determines the class; it never exceeds
    log(bins). For independent columns it is a little above 0, less so the more points there are.

    Args:
        codes: (N, K).
        factors: (N, F).
        bins: Bins of each column.

    Returns:
        (K, F), at least 0; a column of zeros for a factor that never varies.
    """
    codes, factors = _points(codes, factors)
    expect("bins", bins, Integral, "a whole number")
    if bins < 1:
        raise UserError(f"bins: expected at least 1, got {bins}")
    return _mutual_information(codes, factors, bins)


def mutual_information_gaps(codes: Array | Tensor, factors: Array | Tensor) -> Array:
    """By how much the best latent for each factor is more informative than the second best.

    (I(z_1st; v) - I(z_2nd; v)) / H(v), of the two latents with the largest mutual information
    (Chen et al., 2018, arXiv 1802.04942, eq. 6): 1 if one latent determines the factor and no other
    says anything about it; 0 if two latents are equally informative, or none is. A single latent
    has no second: I / H.

    Args:
        codes: (N, K).
        factors: (N, F).

    Returns:
        (F,), in [0, 1]; 0 for a factor that never varies, which :func:`mig` leaves out.
    """
    codes, factors = _points(codes, factors)
    information = np.sort(_mutual_information(codes, factors), axis=0)
    gaps = information[-1] - (information[-2] if len(information) > 1 else 0.0)
    entropies = np.array([entropy(np.bincount(_labels(column))) for column in factors.T])
    return np.divide(gaps, entropies, out=np.zeros_like(gaps), where=entropies > 0)


def mig(codes: Array | Tensor, factors: Array | Tensor) -> float:
    """Mutual information gap: the mean of :func:`mutual_information_gaps`.

    Chen et al., 2018, arXiv 1802.04942. In [0, 1]: 1 if each factor has a latent of its own; 0
    if two latents, or none, are equally informative about every factor. Factors that never vary are
    left out.

    Args:
        codes: (N, K).
        factors: (N, F).

    >>> factors = np.stack(np.meshgrid(np.arange(4), np.arange(3)), -1).reshape(-1, 2)
    >>> mig(-2.0 * factors[:, ::-1], factors), mig(factors @ [[1.0, 1.0], [1.0, 1.0]], factors)
    (1.0, 0.0)
    """
    codes, factors = _points(codes, factors)
    return float(mutual_information_gaps(codes, factors)[_varies(factors)].mean())


def modularity(codes: Array | Tensor, factors: Array | Tensor) -> float:
    """Whether each latent carries information about one factor only.

    Mean over latents of 1 - sum_{f != f*} I_kf^2 / (I_kf*^2 (F - 1)), where f* is the factor about
    which latent k is most informative (Ridgeway and Mozer, 2018, arXiv 1802.05312). In [0, 1]: 1 if
    each latent is informative about one factor; 0 if each is equally informative about all factors,
    or about none. So a latent without information, such as a constant one, counts 0. nan with a
    single factor, for which it would always be 1. Factors that never vary are left out.

    Args:
        codes: (N, K).
        factors: (N, F).
    """
    codes, factors = _points(codes, factors)
    if _single(factors):
        return math.nan
    squared = _mutual_information(codes, factors[:, _varies(factors)]) ** 2
    largest = squared.max(1)
    informed = largest > 0
    leaked = (squared.sum(1) - largest)[informed] / (largest[informed] * (squared.shape[1] - 1))
    return float((1.0 - leaked).sum() / len(squared))


# Correlations --------------------------------------------------------------------------------


def correlations(codes: Array | Tensor, factors: Array | Tensor, *, rank: bool = False) -> Array:
    """The absolute correlation ``|corr(z_k, v_f)|`` of each latent and each factor.

    This is Pearson's correlation or, with ``rank``, Spearman's: Pearson's correlation of the ranks
    (ties get their mean rank). It is 1 if the latent is a linear function of the factor (with
    ``rank``, a monotone one), and 0 if it is constant, or collapsed to a variance of at most 1e-12.
    With N points, two unrelated columns have about N^-1/2. For a factor whose classes have no
    order, such as a shape, it is the correlation with the numbers of the classes: at most the
    correlation ratio, the share of the latent's standard deviation that the classes explain.

    Args:
        codes: (N, K).
        factors: (N, F).
        rank: Whether to correlate ranks instead of values.

    Returns:
        (K, F), in [0, 1]; a column of zeros for a factor that never varies.
    """
    codes, factors = _points(codes, factors)
    expect("rank", rank, bool, "True or False")
    return _correlations(codes, factors, rank)


def mcc(codes: Array | Tensor, factors: Array | Tensor, *, rank: bool = False) -> float:
    """Mean correlation coefficient: how closely each factor is followed by a latent of its own.

    The mean over factors of :func:`correlations` with the latent that each factor is matched with,
    one to one, so that their sum is largest (Hyvarinen and Morioka, 2016, arXiv 1605.06336;
    Khemakhem et al., 2020, arXiv 1907.04809; Horan, Richardson and Weiss, 2021, "When is
    unsupervised disentanglement possible?"). In [0, 1]: 1 if each factor has a latent that is a
    linear function of it (with ``rank``, a monotone one), whatever the order, the signs and the
    scales. Codes that mix factors are far above 0: a random rotation of seven has 0.67.

    With more latents than factors the best ones are chosen, as in these papers, and the others cost
    nothing. With fewer, factors left without a latent count 0. Constant and collapsed latents
    correlate with nothing. Factors that never vary are left out.

    Args:
        codes: (N, K).
        factors: (N, F).
        rank: Whether to correlate ranks instead of values: Spearman's instead of Pearson's.

    >>> factors = np.stack(np.meshgrid(np.arange(4.0), np.arange(3.0)), -1).reshape(-1, 2)
    >>> round(mcc(-2.0 * factors[:, ::-1], factors), 6), round(mcc(factors[:, :1], factors), 6)
    (1.0, 0.5)
    >>> round(mcc(np.exp(factors), factors), 2), round(mcc(np.exp(factors), factors, rank=True), 2)
    (0.95, 1.0)
    """
    codes, factors = _points(codes, factors)
    table = correlations(codes, factors[:, _varies(factors)], rank=rank)
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / table.shape[1])


# Predictors of the factors -------------------------------------------------------------------


def sap(codes: Array | Tensor, factors: Array | Tensor, *, continuous: bool | None = None) -> float:
    """Separated attribute predictability: how much better the best latent predicts a factor.

    Mean over factors of the gap between the two latents with the highest scores (Kumar,
    Sattigeri and Balakrishnan, 2018, arXiv 1711.00848). The score of a latent is the test
    accuracy of a linear support vector machine for classes, and the squared correlation on the
    training part for a continuous factor. In [0, 1]: 0 if two latents predict equally well; 1 if
    for every factor one latent predicts perfectly and no other predicts at all. Since accuracy by
    chance is above 0, a perfect code of classes stays below 1. A single latent has no second: the
    gap is its score. Factors that never vary are left out.

    Args:
        codes: (N, K), N at least 6.
        factors: (N, F).
        continuous: True treats every factor as continuous, False every factor as classes
            (continuous ones are cut into 20 bins); None decides for each factor.
    """
    gaps = []
    for task in _tasks(codes, factors, continuous):
        if task.continuous:
            scores = np.sort([_squared_correlation(z, task.y_train) for z in task.x_train.T])
        else:
            scores = np.sort([_accuracy(task, k) for k in range(task.x_train.shape[1])])
        gaps.append(scores[-1] - (scores[-2] if len(scores) > 1 else 0.0))
    return float(np.mean(gaps))


def dci(codes: Array | Tensor, factors: Array | Tensor) -> DCI:
    """Disentanglement, completeness and informativeness.

    Eastwood and Williams (2018, https://openreview.net/forum?id=By-7dz-AZ), with the
    gradient-boosted trees of Locatello et al. (2019). R_kf is the importance of latent k for
    predicting factor f. ``disentanglement`` is the mean over latents of
    ``1 - H(R_k. / sum) / log F``, weighted by importance: 1 if each latent serves one factor, 0 if
    each serves all equally. ``completeness`` is the same over factors, ``1 - H(R_.f / sum) / log
    K``: 1 if one latent predicts each factor, 0 if all are needed equally. ``informativeness`` is
    the mean test accuracy, or for a continuous factor the test R^2, at least 0: 1 if the codes
    predict every factor, 0 if they predict none.

    Disentanglement is nan with a single factor, and completeness with a single latent, since they
    would be 1 for any codes; without any importance (constant codes) both are 0. Factors that never
    vary are left out. Trees are grown for each factor and for each of its classes, which takes
    minutes if there are many.

    Args:
        codes: (N, K), N at least 6.
        factors: (N, F).
    """
    importance, scores = [], []
    for task in _tasks(codes, factors):
        # The seed only breaks ties between equally good splits, which does not matter.
        if task.continuous:
            trees = GradientBoostingRegressor(random_state=0).fit(task.x_train, task.y_train)
            score = max(0.0, r2_score(task.y_test, trees.predict(task.x_test)))
        else:
            trees = GradientBoostingClassifier(random_state=0).fit(task.x_train, task.y_train)
            score = np.mean(trees.predict(task.x_test) == task.y_test)
        importance.append(trees.feature_importances_)
        scores.append(score)
    by_factor = np.array(importance)
    return DCI(_concentration(by_factor), _concentration(by_factor.T), float(np.mean(scores)))


def explicitness(codes: Array | Tensor, factors: Array | Tensor) -> float:
    """How well a linear classifier tells the classes of the factors from all latents together.

    Mean over factors of the test ROC-AUC of logistic regression on the standardised codes, each
    class against the rest, averaged over the classes (Ridgeway and Mozer, 2018, arXiv 1802.05312).
    The raw area is given: 1 if a linear classifier tells every class, 0.5 at chance; Ridgeway and
    Mozer rescale it to [0, 1], Locatello et al. (2019) do not. The middle classes of an ordered
    factor cannot be told linearly from the rest, so a perfect code stays below 1. Classes that
    are missing from either part are left out, and so are factors that never vary.

    Args:
        codes: (N, K), N at least 6.
        factors: (N, F); continuous ones are cut into 20 bins.

    Raises:
        UserError: For a factor without any class that can be trained and tested.
    """
    scores = []
    for task in _tasks(codes, factors, continuous=False):
        mean, scale = task.x_train.mean(0), task.x_train.std(0)
        # A latent that is constant in training is set to 0 in both parts, so it has no effect.
        usable = _varies(task.x_train) & (scale > 0)
        scale = np.where(usable, scale, 1)
        x_train, x_test = (
            np.where(usable, (x - mean) / scale, 0) for x in (task.x_train, task.x_test)
        )
        classifier = _fit(LogisticRegression(), x_train, task.y_train)
        present = np.unique(task.y_test)
        areas = [
            roc_auc_score(task.y_test == label, score)
            for label, score in zip(
                classifier.classes_, classifier.predict_proba(x_test).T, strict=True
            )
            # The area is undefined if the label is absent, or the only one.
            if label in present and len(present) > 1
        ]
        if not areas:
            raise UserError(
                f"factors: column {task.column}: no class to test among points "
                f"{len(task.y_train)} to {len(task.y_train) + len(task.y_test) - 1}; "
                "shuffle the points"
            )
        scores.append(np.mean(areas))
    return float(np.mean(scores))


# Points that share a factor ------------------------------------------------------------------


def factor_vae_score(codes: Array | Tensor, factors: Array | Tensor, seed: int = 0) -> float:
    """Whether the latent that varies least, while one factor is held, tells which one was held.

    In each round one factor is drawn, and 64 points that share its class; the latent with the
    smallest variance among them, relative to its variance over all points, votes for the factor.
    The majority votes of the latents in 10,000 rounds form a classifier; the score is its accuracy
    in 5,000 others (Kim and Mnih, 2018, arXiv 1802.05983). 1 if each factor has a latent of its
    own; 1 / F at chance; 0 if every latent has a standard deviation below 0.05, since those are
    left out; nan with a single factor, for which every vote would be cast. Factors that never vary
    are left out.

    This is our reading of the slides' row "Disentanglement" (Jouffroy et al., 2022), which has no
    formula: they cite Kim and Mnih, and their 0.67 for the vanilla VAE is close to this score.

    Kim and Mnih render new points for each round. Here they are drawn, with replacement, from the
    given points, and the held class is that of a random point. Classes of a single point are
    never held.

    Args:
        codes: (N, K).
        factors: (N, F); continuous ones are cut into 20 bins.
        seed: Seed of the draws.

    Raises:
        UserError: For a factor with no class that two points share.
    """
    codes, factors = _points(codes, factors)
    rng = _generator(seed)
    if _single(factors):
        return math.nan
    variance = codes.var(0, ddof=1)
    active = np.sqrt(variance) >= PRUNED
    if not active.any():
        return 0.0
    codes, variance = codes[:, active], variance[active]

    def votes(rounds: int) -> Array:
        table = np.zeros((factors.shape[1], len(variance)), dtype=int)
        for factor, _, companions in _rounds(factors, rounds, 1, rng):
            steadiest = (codes[companions].var(1, ddof=1) / variance).argmin(1)
            table[factor] += np.bincount(steadiest, minlength=len(variance))
        return table

    majority = votes(TRAIN).argmax(0)
    tested = votes(TEST)
    return float(tested[majority, np.arange(len(majority))].sum() / tested.sum())


def beta_vae_score(codes: Array | Tensor, factors: Array | Tensor, seed: int = 0) -> float:
    """Whether differences of codes tell which factor a set of pairs shares.

    In each round one factor is drawn, and 64 pairs of points; the two points of a pair share the
    factor's class. The features are the means of ``|z_1 - z_2|``, one for each latent. A logistic
    regression learns the factor from 10,000 rounds; the score is its accuracy in 5,000 others
    (Higgins et al., 2017, https://openreview.net/forum?id=Sy2fzU9gl). 1 if it always names the
    factor, 1 / F at chance; nan with a single factor, where there is nothing to choose from. It is
    lenient: codes that mix factors also reach 1, as long as the mixtures differ. Factors that
    never vary are left out.

    Points are drawn as in :func:`factor_vae_score`.

    Args:
        codes: (N, K).
        factors: (N, F); continuous ones are cut into 20 bins.
        seed: Seed of the draws.

    Raises:
        UserError: For a factor with no class that two points share.
    """
    codes, factors = _points(codes, factors)
    rng = _generator(seed)
    if _single(factors):
        return math.nan

    def batch(rounds: int) -> tuple[Array, Array]:
        features, labels = [], []
        for factor, anchors, companions in _rounds(factors, rounds, BATCH, rng):
            features.append(np.abs(codes[anchors] - codes[companions]).mean(1))
            labels.append(np.full(len(anchors), factor))
        return np.concatenate(features), np.concatenate(labels)

    classifier = _fit(LogisticRegression(), *batch(TRAIN))
    return float(classifier.score(*batch(TEST)))


def irs(codes: Array | Tensor, factors: Array | Tensor) -> float:
    """Interventional robustness: whether a latent stays put while its factor does.

    The score 1 - D_kf / M_k, where D_kf is the 99% quantile of ``|z_k - E[z_k | v_f]|``, averaged
    over the values of factor f, and M_k the largest ``|z_k - E[z_k]|``, is maximised over factors
    and then averaged over latents with weights M_k (Suter et al., 2019, arXiv 1811.00007, with the
    quantile of Locatello et al., 2019). Every factor, class-valued or not, is cut into 20 bins. 1
    if each latent is a function of one factor; low, and with few points even a little below 0, if
    no factor determines any latent. Constant latents have no weight; if all are constant it is 0.
    Factors that never vary are left out.

    Args:
        codes: (N, K).
        factors: (N, F).
    """
    codes, factors = _points(codes, factors)
    codes = codes[:, _varies(codes)]
    if codes.shape[1] == 0:
        return 0.0
    largest = np.abs(codes - codes.mean(0)).max(0)
    robustness = []
    for column in factors[:, _varies(factors)].T:
        bins = _bins(column)
        groups = [codes[bins == b] for b in np.unique(bins)]
        deviations = [
            np.percentile(np.abs(group - group.mean(0)), 100 * QUANTILE, axis=0) for group in groups
        ]
        robustness.append(1.0 - np.mean(deviations, axis=0) / largest)
    return float(np.average(np.max(robustness, axis=0), weights=largest))


# All of them ---------------------------------------------------------------------------------


def disentanglement(
    codes: Array | Tensor, factors: Array | Tensor, seed: int = 0
) -> dict[str, float]:
    """Every metric that compares codes with factors, by name, each on its usual number of points.

    As in Locatello et al. (2019), ``mig``, ``factor_vae_score``, ``beta_vae_score``, ``modularity``
    and ``irs`` use the first 10,000 points; ``sap``, ``dci_disentanglement``, ``dci_completeness``,
    ``dci_informativeness`` and ``explicitness`` use the first 15,000, a third of them for
    testing. ``mcc`` and ``mcc_rank``, Pearson's and Spearman's, use the first 10,000 too. Nearly
    all of the time goes into the trees of :func:`dci`. Metrics that are meaningless with a single
    factor or a single latent are nan.

    Args:
        codes: (N, K), N at least 6.
        factors: (N, F).
        seed: Seed of the two scores that draw points.
    """
    codes, factors = _points(codes, factors)
    first = codes[:TRAIN], factors[:TRAIN]
    trees = dci(codes, factors)
    return {
        "mig": mig(*first),
        "sap": sap(codes, factors),
        "dci_disentanglement": trees.disentanglement,
        "dci_completeness": trees.completeness,
        "dci_informativeness": trees.informativeness,
        "factor_vae_score": factor_vae_score(*first, seed),
        "beta_vae_score": beta_vae_score(*first, seed),
        "modularity": modularity(*first),
        "explicitness": explicitness(codes, factors),
        "irs": irs(*first),
        "mcc": mcc(*first),
        "mcc_rank": mcc(*first, rank=True),
    }


# Codes alone ---------------------------------------------------------------------------------


def active_units(codes: Array | Tensor, threshold: float = 0.01) -> int:
    """Number of latents whose code varies by more than ``threshold`` over the points.

    #{k: Var[z_k] > threshold}, with the variance over the N points of codes that are posterior
    means (Burda, Grosse and Salakhutdinov, 2015, arXiv 1509.00519). From 0 to K.

    Args:
        codes: (N, K).
        threshold: In units of z squared.

    >>> active_units(np.array([[0.0, 1.0], [0.1, -1.0]]))
    1
    """
    expect("threshold", threshold, Real, "a number")
    return int((_codes(codes, least=1).astype(float).var(0) > threshold).sum())


def total_correlation(codes: Array | Tensor) -> float:
    """KL from the codes' distribution to the product of its marginals, as if Gaussian; nats.

    -1/2 log det R, with R the correlation matrix (Watanabe, 1960, as used by Locatello et al.,
    2019). 0 if all latents are uncorrelated; inf if some are linearly dependent, to about
    one part in a million, as they always are with no more points than latents. Constant latents
    carry nothing and are left out.

    Args:
        codes: (N, K), N at least 2.

    >>> z = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    >>> total_correlation(z), total_correlation(z @ [[1.0, 2.0], [0.0, 0.0]])
    (0.0, inf)
    """
    # Constant columns are rows of the identity here, and so do not change the determinant.
    eigenvalues = np.linalg.eigvalsh(_correlation(codes))
    # Because of rounding, exact dependence does not give exactly 0: codes in float32 are accurate
    # to 1e-6 of a standard deviation, which is squared here.
    if eigenvalues[0] < 1e-12:
        return math.inf
    return max(0.0, -0.5 * float(np.log(eigenvalues).sum()))


def decorrelation(codes: Array | Tensor) -> float:
    """Effective number of uncorrelated latents, from 1 to K.

    K^2 / ||R||_F^2, with R the correlation matrix: (sum of eigenvalues)^2 over the sum of their
    squares, an effective rank. K if all latents are uncorrelated, 1 if all are copies of one.
    A constant latent correlates with nothing and so counts as uncorrelated.

    This is our reading of the slides' row "Decorrelation" (Jouffroy et al., 2022), which has no
    formula: its values, 7.8 to 14.3 with higher better, fit this range for K = 15.

    Args:
        codes: (N, K), N at least 2.

    >>> z = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    >>> decorrelation(z), decorrelation(z @ [[1.0, 2.0], [0.0, 0.0]])
    (2.0, 1.0)
    """
    correlation = _correlation(codes)
    return float(len(correlation) ** 2 / np.square(correlation).sum())


def information_entropy(information: Array | Tensor) -> float:
    """Entropy of the latents' shares of the information; nats.

    -sum_k s_k log s_k, with s_k = I_k / sum_j I_j. 0 if one latent holds all information, log n
    if n latents hold equal shares, so log K at most. Negative entries, which are estimation noise,
    count as 0. If there is no information at all, the shares are taken as equal: log K.

    This is our reading of the slides' row "Entropy" (Jouffroy et al., 2022), which has no formula:
    its values, 2.3 to 2.6 with lower better, lie below log 15 = 2.71.

    Args:
        information: (K,), the information of each latent in nats, such as its KL.

    >>> round(information_entropy(np.array([3.0, 3.0, 0.0])) / math.log(2), 6)
    1.0
    """
    shares = checked("information", information, "K").astype(float).clip(min=0.0)
    if not shares.any():
        return math.log(len(shares))
    return float(entropy(shares))


# Shared --------------------------------------------------------------------------------------


def _codes(codes: Array | Tensor, least: int = 2) -> Array:
    """Check codes (N, K) for enough points."""
    codes = checked("codes", codes, "NK")
    if len(codes) < least:
        raise UserError(f"codes: expected at least {least} points, got {len(codes)}")
    return codes


def _points(codes: Array | Tensor, factors: Array | Tensor, least: int = 2) -> tuple[Array, Array]:
    """Check codes and factors, which must be of the same points."""
    codes, factors = _codes(codes, least), checked("factors", factors, "NF")
    if len(codes) != len(factors):
        raise UserError(
            f"codes and factors: expected as many rows in both, got {len(codes)} and {len(factors)}"
        )
    if not _varies(factors).any():
        raise UserError(f"factors: none of the {factors.shape[1]} varies over the points")
    return codes, factors


def _varies(values: Array) -> Array:
    """Which columns take more than one value (a variance would be subject to rounding)."""
    return values.min(0) < values.max(0)


def _single(factors: Array) -> bool:
    """Whether only one factor varies."""
    return np.count_nonzero(_varies(factors)) == 1


def _class_valued(column: Array) -> bool:
    """Whether a factor has classes, by the rule of the module's docstring."""
    values = np.unique(column)
    few = len(values) <= min(MOST_CLASSES, len(column) / 2)
    return few or bool((values == np.floor(values)).all())


def _bins(column: Array, bins: int = BINS) -> Array:
    """The bin of each value, from 0, of equal width and closed below."""
    # The edges of np.histogram, which itself refuses a range of a few rounding errors, such as a
    # collapsed latent may have.
    edges = np.linspace(column.min(), column.max(), bins + 1, dtype=column.dtype)
    return np.digitize(column, edges[:-1]) - 1


def _labels(column: Array, bins: int = BINS) -> Array:
    """A factor's classes, numbered from 0; those of a continuous factor are its bins."""
    classes = column if _class_valued(column) else _bins(column, bins)
    return np.unique(classes, return_inverse=True)[1]


def _mutual_information(codes: Array, factors: Array, bins: int = BINS) -> Array:
    """The :func:`mutual_information` of checked codes and factors."""
    cells = [_bins(column, bins) for column in codes.T]
    classes = [_labels(column, bins) for column in factors.T]
    table = np.empty((len(cells), len(classes)))
    for f, label in enumerate(classes):
        for k, cell in enumerate(cells):
            joint = np.bincount(label * bins + cell, minlength=(label.max() + 1) * bins)
            table[k, f] = mutual_info_score(None, None, contingency=joint.reshape(-1, bins))
    return table


class _Task(NamedTuple):
    """One factor to predict: its column, whether it is continuous, and both parts of the points."""

    column: int
    continuous: bool
    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array


def _tasks(
    codes: Array | Tensor, factors: Array | Tensor, continuous: bool | None = None
) -> Iterator[_Task]:
    """The factors that vary, each with points to train on and others to test on."""
    if continuous is not None:
        expect("continuous", continuous, bool, "True, False or None")
    # Six points leave two to test on, the fewest that have an R^2.
    codes, factors = _points(codes, factors, least=6)
    train = min(TRAIN, math.ceil(2 * len(codes) / 3))
    end = min(train + TEST, len(codes))
    for j in np.flatnonzero(_varies(factors)):
        column = factors[:end, j]
        numeric = not _class_valued(column) if continuous is None else continuous
        y = column.astype(float) - column.min() if numeric else _labels(column)
        if y[:train].min() == y[:train].max():
            raise UserError(
                f"factors: column {j} never varies among the first {train} points, "
                "on which predictors are trained; shuffle the points"
            )
        if numeric:
            # No score depends on the unit, but the squares of tiny values would underflow.
            y = y / y.max()
        yield _Task(int(j), numeric, codes[:train], y[:train], codes[train:end], y[train:])


def _fit(estimator: Any, x: Array, y: Array) -> Any:
    """Fit with the estimator's default limit of iterations, as the published values were."""
    with warnings.catch_warnings():
        # The published values stopped at that limit too; more iterations would give other numbers.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator.fit(x, y)


def _squared_correlation(z: Array, y: Array) -> float:
    (variance_z, covariance), (_, variance_y) = np.cov(z, y)
    if variance_z <= STILL or variance_y == 0:
        return 0.0
    return covariance**2 / (variance_z * variance_y)


def _accuracy(task: _Task, k: int) -> float:
    """Test accuracy of a linear support vector machine on latent k alone."""
    machine = LinearSVC(C=0.01, class_weight="balanced", random_state=0)
    _fit(machine, task.x_train[:, [k]], task.y_train)
    return float(np.mean(machine.predict(task.x_test[:, [k]]) == task.y_test))


def _concentration(importance: Array) -> float:
    """How far each column (R, C) rests on one row: 1 - H / log R, weighted by the columns' sums."""
    rows, total = len(importance), importance.sum()
    if rows == 1:
        return math.nan
    if total == 0:
        return 0.0
    # The small number gives columns of zeros an entropy; their weight is 0.
    concentration = 1.0 - entropy(importance + 1e-11, base=rows)
    return float(concentration @ importance.sum(0) / total)


def _correlation(codes: Array | Tensor) -> Array:
    """Correlation matrix (K, K); a constant latent correlates with nothing but itself."""
    columns = _normed(_codes(codes))
    correlation = (columns.T @ columns).clip(-1.0, 1.0)
    np.fill_diagonal(correlation, 1.0)
    return correlation


def _correlations(codes: Array, factors: Array, rank: bool) -> Array:
    """:func:`correlations` of checked codes and factors."""
    codes = np.where(codes.var(0, dtype=float) > STILL, codes, 0.0)
    if rank:
        codes, factors = rankdata(codes, axis=0), rankdata(factors, axis=0)
    return np.abs(_normed(codes).T @ _normed(factors)).clip(max=1.0)


def _normed(values: Array) -> Array:
    """Columns less their mean, of norm 1; those that never vary are 0."""
    values = values.astype(float)
    centred = np.where(_varies(values), values - values.mean(0), 0.0)
    # Twice, because the squares of tiny values vanish in the norm.
    for order in (np.inf, 2):
        norm = np.linalg.norm(centred, ord=order, axis=0)
        centred = centred / np.where(norm > 0, norm, 1.0)
    return centred


def _generator(seed: int) -> np.random.Generator:
    if not isinstance(seed, Integral) or seed < 0:
        raise UserError(f"seed: expected an integer of at least 0, got {described(seed)}")
    return np.random.default_rng(int(seed))


def _rounds(
    factors: Array, rounds: int, anchors: int, rng: np.random.Generator
) -> Iterator[tuple[int, Array, Array]]:
    """Random rounds of a game, each about a random factor that varies.

    Yields:
        The factor; anchors (R, A), points at random; and companions (R, 64) of R rounds. Each
        companion is drawn, with replacement, from the points that share the factor's class with
        its anchor: the one of the round, or the one of 64 in the same place.
    """
    columns = np.flatnonzero(_varies(factors))
    shares = np.bincount(rng.integers(len(columns), size=rounds), minlength=len(columns))
    for j, share in zip(columns, shares, strict=True):
        labels = _labels(factors[:, j])
        sizes = np.bincount(labels)
        candidates = np.flatnonzero(sizes[labels] > 1)
        if len(candidates) == 0:
            raise UserError(f"factors: column {j}: no two points share a class")
        by_class = np.argsort(labels, kind="stable")
        starts = np.cumsum(sizes) - sizes
        # In pieces, because all rounds at once may fill the memory.
        for start in range(0, share, 500):
            chosen = rng.choice(candidates, size=(min(500, share - start), anchors))
            classes = np.broadcast_to(labels[chosen], (len(chosen), BATCH))
            yield int(j), chosen, by_class[starts[classes] + rng.integers(sizes[classes])]
