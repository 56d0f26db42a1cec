"""Diagnostics of a fit and its latents on held-out data, and posterior draws for ArviZ."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import numpy as np
import pyro
import torch
from torch import Tensor

from ngvae_pyro import __version__, _arviz, machine
from ngvae_pyro.arrays import checked
from ngvae_pyro.axes import Rotation
from ngvae_pyro.contexts import evaluating
from ngvae_pyro.data import Images
from ngvae_pyro.data.images import ImageData, known_count
from ngvae_pyro.errors import UserError, expect
from ngvae_pyro.fitted import BATCH, Fit, check_data, check_fit, data_of, site_terms
from ngvae_pyro.guide import Codes
from ngvae_pyro.latents import ACTIVE, is_informative
from ngvae_pyro.machine import seeded
from ngvae_pyro.model import VAE
from ngvae_pyro.records import Metrics, Precision

if TYPE_CHECKING:
    from arviz import InferenceData
    from xarray import DataTree

# By default, the images whose posterior draws are kept, and the draws of each.
OBSERVATIONS, DRAWS = 50, 1000
# As many of these are drawn as images too as take no more numbers than this (16 MiB): of 32x32
# pixels all would be 600 MB.
MOST_NUMBERS = 2**22
# Dimensions of what is no image.
DIMENSIONS = {"vectors": ["column"], "curves": ["position"], "sequences": ["channel", "position"]}
# What is a number in each row of a history.
LOOKED = ("step", "loss", "informative")

# A latent follows a factor if their correlation is at least CLOSE and the factor explains at least
# MORE times as much of its variance as any other; it mixes two if the second has at least MIXED.
CLOSE, MORE, MIXED = 0.5, 2.0, 0.2
# Images over which it is measured what a latent earns.
EARNING = 512
# With fewer images the correlations of noise are too large to decide what is followed: with 50, one
# table of 7 by 7 in a hundred has one above a half by chance.
FEWEST = 50


@dataclass(frozen=True)
class Followed:
    """Which factors a latent follows, and how closely.

    This is decided by its ``correlations``, ``|corr(loc, factor)|`` for each factor that varies
    (:func:`ngvae_pyro.metrics.correlations`, on which the matching metric
    :func:`ngvae_pyro.metrics.mcc` is based). The latent

    - *follows* the factor with the largest correlation if that is at least 0.5, and if the factor
      explains at least twice as much of the latent's variance (the squared correlation) as any
      other does;
    - otherwise *mixes* the two factors with the largest if the second is at least 0.2;
    - otherwise follows *none* closely: it is not a linear function of the factors.

    Each latent is judged separately, so two may follow one factor, like the sine and the cosine of
    an angle, and none another. For classes without an order, such as the shape of a sprite, the
    correlation with their numbers may understate the dependence, but never overstates it.

    >>> print(Followed({"x": 0.1, "red": 0.93}), Followed({"y": 0.52, "size": 0.61}), sep="; ")
    follows red (0.93); mixes size 0.61, y 0.52
    >>> print(Followed({"angle": 0.04}))
    follows none closely (angle 0.04)
    """

    correlations: Mapping[str, float]

    @property
    def closest(self) -> list[tuple[str, float]]:
        """All factors and their correlations, the largest first."""
        return sorted(self.correlations.items(), key=lambda pair: -pair[1])

    @property
    def factor(self) -> str | None:
        """The factor that it follows; None if it mixes two or follows none."""
        (name, first), (_, second) = [*self.closest, ("", 0.0)][:2]
        return name if first >= CLOSE and first**2 >= MORE * second**2 else None

    @property
    def mixed(self) -> list[tuple[str, float]]:
        """The two factors that it mixes, with their correlations; empty if it mixes none."""
        two = self.closest[:2]
        mixes = self.factor is None and len(two) == 2 and two[1][1] >= MIXED
        return two if mixes else []

    @property
    def text(self) -> str:
        """A cell of a table: ``red 0.93``, ``mixes size 0.61, y 0.52`` or ``none (x 0.04)``."""
        if self.mixed:
            return "mixes " + ", ".join(f"{name} {value:.2f}" for name, value in self.mixed)
        name, value = self.closest[0]
        return f"{name} {value:.2f}" if self.factor is not None else f"none ({name} {value:.2f})"

    def __str__(self) -> str:
        if self.mixed:
            return self.text
        name, value = self.closest[0]
        what = name if self.factor is not None else "none closely"
        return f"follows {what} ({'' if self.factor is not None else f'{name} '}{value:.2f})"


class Latent(TypedDict):
    """One latent of :class:`Metrics`: its number, its p, and its part of the rest.

    ``paid`` is its KL, of all sites, nats per image. ``earned`` is not there for counts, nor in
    runs of older versions. ``followed`` is there where the factors of the images are known;
    ``negentropy``, ``gaussian`` and ``agreement`` where training has looked for independent axes
    (:class:`ngvae_pyro.axes.Rotation`).
    """

    latent: int
    probs: float
    precision: Precision
    variance_of_loc: float
    kl: dict[str, float]
    paid: float
    earned: NotRequired[float]
    followed: NotRequired[Followed]
    negentropy: NotRequired[float]
    gaussian: NotRequired[bool]
    agreement: NotRequired[float]


def followed(
    codes: np.ndarray | Tensor, factors: np.ndarray | Tensor, names: Sequence[str]
) -> list[Followed]:
    """Which factors each latent follows, and how closely, by the rule of :class:`Followed`.

    Args:
        codes: (N, K), preferably posterior means of images that were not trained on.
        factors: (N, F), the generating factors of the images.
        names: Names of the factors.

    Returns:
        One for each latent, without factors that never vary; a constant latent has a correlation
        of 0 with each.

    Raises:
        UserError: As :func:`ngvae_pyro.metrics.correlations`, and for another number of names.
    """
    # Imported only when needed, because importing scikit-learn takes a second.
    from ngvae_pyro.evaluation.metrics import correlations

    table = correlations(codes, factors)
    expect("names", names, (list, tuple), "the names of the factors")
    if len(names) != table.shape[1]:
        raise UserError(f"names: expected {table.shape[1]}, one for each factor, got {len(names)}")
    varies = np.ptp(checked("factors", factors, "NF"), axis=0) > 0
    kept = [name for name, varied in zip(names, varies, strict=True) if varied]
    return [Followed(dict(zip(kept, row, strict=True))) for row in table[:, varies].tolist()]


def batches(fit: Fit, data: ImageData) -> Iterator[Tensor]:
    """Yield the images of a data set in order, float in [0, 1], on the device of the fit.

    Until the next ones, networks are given their covariates.

    Raises:
        UserError: If the images do not have the model's shape.
    """
    check_data(fit, data)
    yield from data.in_parts(BATCH, fit.device)


@torch.no_grad()
def codes(fit: Fit, data: ImageData) -> Codes:
    """The guide's output for every image; each field is (N, K), on the CPU."""
    check_fit(fit)
    with evaluating(fit.guide):
        parts = [fit.guide.codes(x) for x in batches(fit, data)]
    names = [field.name for field in fields(Codes)]
    return Codes(*(torch.cat([getattr(p, name) for p in parts]).cpu() for name in names))


@torch.no_grad()
def reconstruct(fit: Fit, x: Tensor) -> Tensor:
    """E[x | z] at the posterior mean of z, with the shape of the images x (B, C, H, W).

    Raises:
        UserError: For a shape other than the model's.
    """
    if tuple(x.shape[1:]) != fit.model.image_shape:
        expected = ", ".join(map(str, ("B", *fit.model.image_shape)))
        raise UserError(f"x: expected images of shape ({expected}), got {tuple(x.shape)}")
    with evaluating(fit.model, fit.guide):
        return fit.model.likelihood(fit.model.decoder(fit.guide.codes(x).loc), x).mean


def difference(mean: Tensor, x: Tensor) -> Tensor:
    """The difference of means from images x, 0 where a value of these is missing."""
    return (mean - x).masked_fill(x.isnan(), 0.0)


def evaluate(fit: Fit, data: Images, seed: int = 0) -> Metrics:
    """Numbers of a fit on held-out data, as :meth:`ngvae_pyro.Fit.as_images` takes them.

    Returns:
        ``informative``: latents whose p exceeds 1/2. What p is depends on the guide, which says it
        by its ``p_is``: of a Normal-Gamma mixture the mean weight of the informative component; of
        the gaussian, gaussian_mixture and epanechnikov guides the share of images whose inferred
        variance is below 1/2; of counts 1 where the rate varies over the images by more than the
        counts do about it. ``discrete``: whether z are counts.
        ``active_units``: latents whose posterior mean varies by more than 0.01 over the data.
        ``elbo``: nats per image, one posterior draw an image. ``reconstruction_mse``: per pixel
        that is not missing, at the posterior mean of z. ``kl``: for each site its ``total``, nats
        per image, and the shares of the latents, ``per_latent``. ``precision``: for each latent the
        ``mean`` of the posterior precision (exact for each image), and the ``5%`` and ``95%``
        quantiles over images and draws. ``probs`` and ``variance_of_loc``: for each latent its p
        and the variance of its posterior mean. ``earned``: for each latent how many nats per image
        of E_q log p(x | z) it is worth over at most 512 images (:func:`earned`); not for counts.
        ``dimension``: that of the surface on which the means of the informative latents lie
        (:func:`ngvae_pyro.dimension.dimension`), None for fewer than two of them or
        fewer than 50 different images. ``steps`` and ``extra_steps`` of the training. ``verdict``:
        whether the count is settled, and the findings that speak against it
        (:mod:`ngvae_pyro.verdict`). ``correlations``: for each latent those of its posterior
        mean with the factors (:class:`Followed`), the largest first, where there are at least 50
        images and their factors are known and more than a class label. ``rotation``: what became
        of the axes of the informative latents in training (:class:`ngvae_pyro.axes.Rotation`).
        The same seed gives the same numbers on the same machine.
    """
    check_fit(fit)
    data = data_of(fit, data)
    return measured(fit, data, codes(fit, data), seed)


def measured(fit: Fit, data: ImageData, code: Codes, seed: int = 0) -> Metrics:
    """Compute what :func:`evaluate` returns, from known codes of the images."""
    log_likelihood, squared_error, numbers = 0.0, 0.0, 0
    totals: dict[str, Tensor] = {}
    precision = []
    looks = evaluating(fit.model, fit.guide)
    with looks, seeded(seed, fit.device), pyro.get_param_store().scope():
        for x, loc in zip(batches(fit, data), code.loc.split(BATCH), strict=True):
            terms, kl_terms = site_terms(fit.model, fit.guide, x)
            log_likelihood += terms.sum().item()
            with torch.no_grad():
                mean = fit.model.likelihood(fit.model.decoder(loc.to(fit.device)), x).mean
            squared_error += difference(mean, x).square().sum().item()
            numbers += int((~x.isnan()).sum())
            for name, term in kl_terms.items():
                totals[name] = totals.get(name, 0.0) + term.sum(0).double().cpu()
            precision.append(fit.guide.draws(x, 10)[0].flatten(0, 1).cpu())
    count = len(data)
    kl = {name: (term / count).tolist() for name, term in totals.items()}
    low, high = np.quantile(torch.cat(precision).numpy(), [0.05, 0.95], axis=0)
    # The variance over these very images, so that a single one has variance 0 and not nan.
    variance, probs = code.loc.var(0, correction=0), code.probs.mean(0)
    extent = _dimension(code)
    found: Metrics = {
        "discrete": fit.model.discrete,
        "informative": int(code.informative.sum()),
        "active_units": int((variance > ACTIVE).sum()),
        "elbo": log_likelihood / count - sum(sum(term) for term in kl.values()),
        "reconstruction_mse": squared_error / numbers,
        "kl": {name: {"total": sum(term), "per_latent": term} for name, term in kl.items()},
        "precision": {
            "mean": code.precision.double().mean(0).tolist(),
            "5%": low.tolist(),
            "95%": high.tolist(),
        },
        "probs": probs.tolist(),
        "variance_of_loc": variance.tolist(),
        "dimension": extent,
        "steps": fit.steps,
        "extra_steps": fit.extra_steps,
        "verdict": fit.judge(
            probs.tolist(), variance.tolist(), code.precision.double().mean(0).tolist(), extent
        ).as_dict(),
    }
    if not fit.model.discrete:
        found["earned"] = earned(fit, data, code, seed)
    if (factors := _factors(data)) is not None:
        of_latents = followed(code.loc, factors, data.factor_names)
        found["correlations"] = [dict(one.closest) for one in of_latents]
    if fit.rotation is not None:
        found["rotation"] = fit.rotation.as_dict()
    return found


def _dimension(code: Codes) -> float | None:
    """Dimension of the surface on which the informative latents' means lie."""
    # Imported only when needed, because importing scikit-learn takes a second.
    from ngvae_pyro.dimension import of_codes

    return of_codes(code.loc[:, code.informative])


@torch.no_grad()
def earned(fit: Fit, data: ImageData, code: Codes, seed: int = 0) -> list[float]:
    """What each latent is worth to the reconstruction, in nats per image.

    The nats by which E_q log p(x | z) falls if z_k is the same for all images,

        earned_k = mean over images of log p(x | z) - log p(x | z with z_k = mean loc_k),

    with one draw of z for each image, the same in both terms. Nothing else is adapted: a decoder
    that is trained without the latent, or other latents, might make up for a part of the loss, so
    this is an upper bound of what the latent earns. It is negative for a latent of which the
    decoder only hears the noise.

    A latent is worth counting if it earns more than it pays, its KL.

    Args:
        fit: From :func:`ngvae_pyro.fit`.
        data: Images that were not trained on; the first 512 are used.
        code: The codes of the images.
        seed: Seed of the draws.

    Returns:
        A number for each latent, in their order.
    """
    mean = code.loc[:EARNING].mean(0).to(fit.device)

    def log_likelihood(z: Tensor) -> float:
        return fit.model.likelihood(fit.model.decoder(z), x).log_prob(x).double().mean().item()

    few, looks = data.given(slice(0, EARNING), fit.device), evaluating(fit.model, fit.guide)
    with few as x, looks, seeded(seed, fit.device):
        z = fit.guide.draws(x, 1)[1][0]
        whole, without = log_likelihood(z), []
        for k in range(fit.model.latent_size):
            changed = z.clone()
            changed[:, k] = mean[k]
            without.append(log_likelihood(changed))
    return [whole - less for less in without]


def _factors(data: ImageData) -> np.ndarray | None:
    """The factors that latents may follow, (N, F); None where too little is known of them."""
    if data.factors is None or known_count(data.factor_names) is None or len(data) < FEWEST:
        return None
    # In units of the largest value, because some may exceed what the metrics accept.
    factors = data.factors.double()
    factors = factors / factors.abs().amax(0).clamp_min(torch.finfo(torch.float64).tiny)
    return factors.numpy() if (factors.amin(0) < factors.amax(0)).any() else None


def most_informative_first(metrics: Metrics) -> list[Latent]:
    """Rows for the latents, informative ones first, both groups sorted by the KL of z.

    The KL is the information about an image that a latent carries, in nats. The precision is less
    telling: that of a count, 1 / rate, is high if it rarely fires, and of two latents with the same
    precision the one whose mean varies more carries more.
    """
    precision = metrics["precision"]
    rows: list[Latent] = [
        {
            "latent": k,
            "probs": probs,
            "precision": {
                "mean": precision["mean"][k],
                "5%": precision["5%"][k],
                "95%": precision["95%"][k],
            },
            "variance_of_loc": metrics["variance_of_loc"][k],
            "kl": {site: kl["per_latent"][k] for site, kl in metrics["kl"].items()},
            "paid": sum(kl["per_latent"][k] for kl in metrics["kl"].values()),
        }
        for k, probs in enumerate(metrics["probs"])
    ]
    for row, nats in zip(rows, metrics.get("earned") or (), strict=False):
        row["earned"] = nats
    for row, correlations in zip(rows, metrics.get("correlations") or (), strict=False):
        row["followed"] = Followed(correlations)
    if (axes := Rotation.read(metrics.get("rotation"))) is not None:
        columns = zip(axes.latents, axes.negentropy, axes.gaussian, axes.agreement, strict=True)
        for k, negentropy, gaussian, agreement in columns:
            rows[k] |= {"negentropy": negentropy, "gaussian": gaussian, "agreement": agreement}
    return sorted(rows, key=lambda row: (not is_informative(row["probs"]), -row["kl"]["z"]))


def remarks(rows: Sequence[Latent], latents: Iterable[int] = ()) -> dict[str, dict[int, str]]:
    """Columns of a table that describe latents.

    Args:
        rows: From :func:`most_informative_first`.
        latents: Latents to describe besides the informative ones, such as those that leak; the
            others carry nothing.

    Returns:
        For each heading, the cell of each latent: ``follows``, the :attr:`Followed.text`, if the
        factors are known; ``negentropy``, in nats, and ``agreement``, if training has looked for
        independent axes.
    """
    of = set(latents)
    shown = [row for row in rows if is_informative(row["probs"]) or row["latent"] in of]
    found = {
        "follows": {r["latent"]: r["followed"].text for r in shown if "followed" in r},
        "negentropy": {
            r["latent"]: f"{r['negentropy']:.4f}{' (Gaussian)' if r['gaussian'] else ''}"
            for r in shown
            if "negentropy" in r
        },
        "agreement": {r["latent"]: f"{r['agreement']:.2f}" for r in shown if "agreement" in r},
    }
    return {heading: cells for heading, cells in found.items() if cells}


@torch.no_grad()
def to_arviz(
    fit: Fit,
    data: Images,
    *,
    observations: int | None = None,
    chains: int = 1,
    draws_per_chain: int = DRAWS,
    predictive: int | None = None,
    seed: int = 0,
    attrs: dict[str, Any] | None = None,
) -> "InferenceData | DataTree":
    r"""Draw from the posterior of a fit, as an ArviZ object.

    The guide is sampled directly, so its draws are independent and make one chain. Several are
    those of one, cut into pieces, and their r_hat is 1 by construction.

    Leaving an image out leaves its z with the prior, since the networks stay as they are and every
    image has a z of its own. So what ``az.loo`` estimates from these draws is a marginal
    likelihood, by its harmonic mean (Newton and Raftery, 1994, "Approximate Bayesian inference with
    the weighted likelihood bootstrap", JRSS B 56),

    .. math::
        \log p(x_i \mid x_{-i}) = \log p(x_i)
        = -\log \mathrm E_{p(z \mid x_i)} \left[\frac 1 {p(x_i \mid z)}\right],

    with draws of the guide in place of the posterior. The weights 1 / p(x | z) would have to turn a
    posterior into a prior that is many times as wide, and their Pareto k says that they do not: it
    is above 0.7 for most images, ``az.loo`` and ``az.compare`` warn, and are off by several nats an
    image. The same log p(x) is what :func:`ngvae_pyro.log_likelihood` estimates, with low k. An
    image is a cluster of pixels in the words of Merkle, Furr and Rabe-Hesketh (2019), "Bayesian
    comparison of latent variable models: conditional versus marginal likelihoods", Psychometrika
    84, where the conditional likelihood, as it is here, is for leaving out units, and the marginal
    for leaving out clusters. If the log likelihoods of an image's draws differ by more than 708
    nats, as may happen with a barely trained pair, the result is NaN with ArviZ 1.x.

    ``az.plot_loo_pit`` takes one number of each image, such as a pixel or a column, in all draws:
    ``to_arviz(fit, data, predictive=1000).sel(column=0)``.

    Args:
        fit: From :func:`ngvae_pyro.fit`.
        data: Images or vectors; the first ``observations`` are used.
        observations: How many images, by default 50, or as many as there are.
        chains: How many chains, at least 1.
        draws_per_chain: Draws in each chain, at least 1.
        predictive: For how many draws of each chain, its first, x is drawn too; by default for all
            if they take at most 16 MiB, and for as many as that if not, which is none for large
            images.
        seed: Seed of the draws.
        attrs: Further attributes.

    Returns:
        An ``InferenceData`` (ArviZ 0.23) or ``DataTree`` (ArviZ 1.x). In it x has the units of the
        model: images (image, channel, height, width) and volumes (image, channel, depth, height,
        width) are in [0, 1], vectors (image, column) and sequences (image, channel, position)
        standardised, and counts as they are. Latents are named
        z0, z1 and so on. The groups are
        ``posterior``: precision and z (chain, draw, image, latent);
        ``log_likelihood``: x (chain, draw, image), log p(x | z), nats;
        ``sample_stats``: lp (chain, draw, image), log p(x, z), nats;
        ``posterior_predictive``: x (chain, draw, image, ...), drawn from p(x | z);
        ``prior`` and ``prior_predictive``: as the posterior and its predictive, from the model
        alone, counts with the exposure of each image;
        ``observed_data``: x (image, ...);
        ``constant_data``: loc and probs of the encoder (image, latent), and the factors
        (image, factor) if they are known;
        ``training``: step, loss (-ELBO, nats per image) and informative, the number of informative
        latents (look), and probs (look, latent) at the looks of the training, of which there are
        not as many as draws, so that they do not fit into ``sample_stats``. Not for a pair that was
        not trained here.

    Raises:
        UserError: For images of a shape other than the model's, for fewer images than requested,
            for fewer than one observation, chain or draw, and for more predictive draws than draws.
    """
    check_fit(fit)
    data = data_of(fit, data)
    if attrs is not None:
        expect("attrs", attrs, Mapping, "a table of names and values")
    if observations is None:
        observations = min(OBSERVATIONS, len(data))
    for name, value in (
        ("observations", observations),
        ("chains", chains),
        ("draws_per_chain", draws_per_chain),
    ):
        if not isinstance(value, Integral) or value < 1:
            raise UserError(f"{name}: expected a whole number, at least 1, got {value!r}")
    if observations > len(data):
        raise UserError(
            f"observations: expected at most the {len(data)} images of '{data.name}', "
            f"got {observations}"
        )
    data = data.subset(slice(0, observations))
    with data.given(slice(None), fit.device) as x:
        return _drawn(fit, data, x, chains, draws_per_chain, predictive, seed, attrs)


def _drawn(
    fit: Fit,
    data: ImageData,
    x: Tensor,
    chains: int,
    draws_per_chain: int,
    predictive: int | None,
    seed: int,
    attrs: dict[str, Any] | None,
) -> "InferenceData | DataTree":
    """What :func:`to_arviz` returns, of images x whose covariates are given."""
    if predictive is None:
        predictive = min(draws_per_chain, MOST_NUMBERS // (chains * x.numel()))
    if not isinstance(predictive, Integral) or not 0 <= predictive <= draws_per_chain:
        raise UserError(
            f"predictive: expected a whole number, at most the {draws_per_chain} draws of a chain, "
            f"got {predictive!r}"
        )
    shape = (chains, draws_per_chain, len(data))
    # For z, the precision and images, of posterior and prior, and the same again while written.
    numbers = 8 * math.prod(shape) * fit.model.latent_size + 4 * chains * predictive * x.numel()
    machine.check(
        "posterior draws (observations, chains, draws_per_chain, predictive)",
        machine.FLOAT_BYTES * numbers,
        fit.device,
    )
    of_image = ["channel", "height", "width"]
    sizes: tuple[int, ...] = data.image_shape
    if data.form.depth:
        channels, height, width = data.image_shape
        of_image = ["channel", "depth", "height", "width"]
        sizes = (channels, data.form.depth, height // data.form.depth, width)
    if data.form.layout in DIMENSIONS:
        of_image, sizes = DIMENSIONS[data.form.layout], data.form.shape_of(data.image_shape)

    def shaped(x: Tensor) -> Tensor:
        """Images (..., C, H, W) without the axes that their layout has not.

        Counts become integers, of which none is missing.
        """
        whole = fit.model.likelihood.spec.whole and not x.isnan().any()
        return (x.int() if whole else x).reshape(*x.shape[:-3], *sizes)

    def in_chains(values: Tensor, *dims: str) -> tuple[list[str], np.ndarray]:
        """Draws (S, N, ...) in their chains, and the names of their dimensions."""
        return ["chain", "draw", "image", *dims], values.unflatten(0, (chains, -1)).cpu().numpy()

    def drawn(z: Tensor) -> dict[str, tuple[list[str], np.ndarray]]:
        """Images x given the first draws z (S, N, K) of each chain."""
        few = z.unflatten(0, (chains, -1))[:, :predictive].flatten(0, 1)
        given = [fit.model.likelihood(fit.model.decoder(part), x) for part in few]
        return {"x": in_chains(shaped(torch.stack([fn.sample() for fn in given])), *of_image)}

    with evaluating(fit.model, fit.guide), seeded(seed, fit.device):
        precision, z = fit.guide.draws(x, chains * draws_per_chain)
        code = fit.guide.codes(x)
        log_likelihood = torch.stack(
            [fit.model.likelihood(fit.model.decoder(part), x).log_prob(x) for part in z]
        ).double()
        log_prior = fit.model.marginal.log_prob(z).double().sum(-1)
        prior = prior_draws(fit.model, *z.shape[:2])
        predicted = {}
        if predictive:
            predicted["posterior_predictive"] = drawn(z)
            predicted["prior_predictive"] = drawn(prior["z"])
    groups = {
        "posterior": {"precision": in_chains(precision, "latent"), "z": in_chains(z, "latent")},
        "log_likelihood": {"x": in_chains(log_likelihood)},
        "sample_stats": {"lp": in_chains(log_likelihood + log_prior)},
        "prior": {name: in_chains(values, "latent") for name, values in prior.items()},
        **predicted,
        "observed_data": {"x": (["image", *of_image], shaped(x).cpu().numpy())},
        "constant_data": {
            "loc": (["image", "latent"], code.loc.cpu().numpy()),
            "probs": (["image", "latent"], code.probs.cpu().numpy()),
        },
    }
    coords = {"latent": [f"z{k}" for k in range(fit.model.latent_size)]}
    if data.factors is not None:
        groups["constant_data"]["factors"] = (["image", "factor"], data.factors.numpy())
        coords["factor"] = list(data.factor_names)
    if fit.history:
        groups["training"] = {
            **{key: (["look"], [row[key] for row in fit.history]) for key in LOOKED},
            "probs": (["look", "latent"], [row["probs"] for row in fit.history]),
        }
    library = {"inference_library": "ngvae_pyro", "inference_library_version": __version__}
    return _arviz.from_groups(groups, coords, {**library, **(attrs or {})})


def prior_draws(model: VAE, count: int, images: int) -> dict[str, Tensor]:
    """Draws (count, images, K) from the prior of the sites of a model that are of its latents."""
    drawn = model.drawn(count * images)
    return {name: values.unflatten(0, (count, images)) for name, values in drawn.items()}
