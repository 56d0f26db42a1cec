"""How foreign an image is to a trained run: out-of-distribution scores, and their AUROC.

:func:`scores` says it of each image, :func:`score_run` of the held-out images of a run folder and
of images of another kind. A score is higher for what looks more foreign. None is calibrated: a
model may give foreign images a higher likelihood than its own (Nalisnick, Matsukawa, Teh, Gorur and
Lakshminarayanan, 2019, "Do deep generative models know what they don't know?", arXiv:1810.09136).

AUROC on sprites, of the relaxed guide at seed 0 and 1,000 images of each set: background 0.4..0.8,
red 0..0.4, size 0.3..0.4 (x and y in 0.4..0.6), x 0.7..0.8 (size in 0.15..0.2), and MNIST digits.

====================  ==========  =====  =====  =====  ======
score                 background  red    size   x      digits
====================  ==========  =====  =====  =====  ======
``elbo``              0.892       0.866  0.981  0.990  1.000
``reconstruction``    0.875       0.877  0.981  0.992  1.000
``kl``                0.921       0.591  0.939  0.707  0.476
``precision``         0.268       0.898  0.667  0.691  0.827
``selection``         0.817       0.854  0.734  0.658  0.832
``distance``          0.893       0.757  0.962  0.722  0.576
``z_part``            0.143       0.601  0.200  0.746  0.403
``precision_part``    0.515       0.500  0.510  0.494  0.506
====================  ==========  =====  =====  =====  ======

There ``elbo`` and ``reconstruction`` are the ones to use: no other score misses none of the five.
"""

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor

from ngvae_pyro import files, locks
from ngvae_pyro.contexts import evaluating
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.errors import UserError, expect
from ngvae_pyro.evaluation import diagnostics, uncertainty
from ngvae_pyro.evaluation.assessment import NEW_SEED
from ngvae_pyro.extras import needed
from ngvae_pyro.fitted import Fit, check_data, check_fit, site_terms
from ngvae_pyro.latents import is_informative
from ngvae_pyro.machine import seeded
from ngvae_pyro.report import plots
from ngvae_pyro.runs import folder as runs
from ngvae_pyro.specs import DataSpec, parse

with needed("metrics"):
    from sklearn.metrics import roc_auc_score

# Posterior draws behind the ELBO of an image, and precisions and draws behind its uncertainty.
ELBO_DRAWS, PRECISIONS, DRAWS = 8, 8, 4
# Training images that the aggregate posterior is known from.
REFERENCE_IMAGES = 20_000
# Images of each set by default.
SIZE = 1_000


class Score(NamedTuple):
    """What a score is called, and its unit."""

    title: str
    unit: str


SCORES = {
    "elbo": Score("-ELBO", "nats"),
    "reconstruction": Score("reconstruction error", "intensity²/pixel"),
    "kl": Score("KL", "nats"),
    "precision": Score("minus log precision", "natural log"),
    "selection": Score("change of selection", "latents"),
    "distance": Score("distance", "sd²"),
    "z_part": Score("variance by z", "intensity²"),
    "precision_part": Score("variance by the precision", "intensity²"),
}


@dataclass(frozen=True, eq=False)
class Reference:
    """What the training images look like to the guide.

    ``loc`` (K,) and ``covariance`` (K, K) are the moments of the aggregate posterior
    1/N sum_i q(z | x_i), ``probs`` (K,) the mean p of each latent.
    """

    loc: Tensor
    covariance: Tensor
    probs: Tensor


def reference(fit: Fit, train: ImageData) -> Reference:
    """The reference of a fit, from its training images; at least 2, of which 20,000 are used.

    The covariance is Cov[loc] + diag(E[variance]), which is regular however still a latent is.
    """
    check_fit(fit)
    check_data(fit, train)
    codes = diagnostics.codes(fit, train.subset(slice(0, REFERENCE_IMAGES)))
    loc = codes.loc.double()
    covariance = torch.atleast_2d(loc.T.cov()) + codes.variance.double().mean(0).diag()
    return Reference(loc.mean(0), covariance, codes.probs.double().mean(0))


@torch.no_grad()
def scores(fit: Fit, data: ImageData, known: Reference, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Scores of each image, (N,), by the keys of `SCORES`; higher is more foreign.

    - ``elbo``: -ELBO(x), mean of 8 posterior draws, nats.
    - ``reconstruction``: ``|x - E[x | z = E[z]]|^2`` / pixels.
    - ``kl``: KL(q(z, precision | x) || p(z, precision)), from the same draws, nats.
    - ``precision``: -1/J sum_j log E[precision_j | x] over the J informative latents.
    - ``selection``: ``sum_k |p_k(x) - E[p_k]|``, E over the training images, in latents.
    - ``distance``: (loc(x) - m)' C^-1 (loc(x) - m), m and C the moments of the aggregate posterior;
      the Mahalanobis score of Lee, Lee, Lee and Shin (2018), "A simple unified framework for
      detecting out-of-distribution samples and adversarial attacks", arXiv:1807.03888, with one
      class.
    - ``z_part``, ``precision_part``: of the predictive variance, summed over the pixels; see
      :func:`ngvae_pyro.uncertainty.uncertainty`.

    Without a precision site there is no ``precision_part``, and without informative latents no
    ``precision``. Likelihood regret (Xiao, Yan and Amit, 2020, arXiv:2003.02977), which trains the
    posterior of each image, and ratios with a background model (Ren et al., 2019,
    arXiv:1906.02845), which train a second one, are not here.

    Args:
        fit: From :func:`ngvae_pyro.fit`.
        data: Images of the model's shape.
        known: From :func:`reference`.
        seed: Of the draws.
    """
    check_fit(fit)
    expect("known", known, Reference, "what ngvae_pyro.scores.reference(fit, train) gives")
    log_likelihood, kl, error = [], [], []
    looks = evaluating(fit.model, fit.guide)
    with looks, seeded(seed, fit.device), pyro.get_param_store().scope():
        for x in diagnostics.batches(fit, data):
            drawn = [site_terms(fit.model, fit.guide, x) for _ in range(ELBO_DRAWS)]
            log_likelihood.append(torch.stack([terms for terms, _ in drawn]).mean(0))
            sites = [term.sum(-1) for _, terms in drawn for term in terms.values()]
            kl.append(torch.stack(sites).sum(0) / ELBO_DRAWS)
            error.append((diagnostics.reconstruct(fit, x) - x).square().flatten(1).mean(1))
    parts = [
        part.per_image() for part in uncertainty.in_batches(fit, data, PRECISIONS, DRAWS, seed)
    ]
    codes = diagnostics.codes(fit, data)
    offset = codes.loc.double() - known.loc
    informative = is_informative(known.probs)
    found = {
        "elbo": torch.cat(kl) - torch.cat(log_likelihood),
        "reconstruction": torch.cat(error),
        "kl": torch.cat(kl),
        "precision": -codes.precision[:, informative].log().mean(1),
        "selection": (codes.probs - known.probs).abs().sum(1),
        "distance": (offset * torch.linalg.solve(known.covariance, offset.T).T).sum(1),
        "z_part": torch.cat([part.z for part in parts]),
        "precision_part": torch.cat([part.precision for part in parts]),
    }
    if not informative.any():
        del found["precision"]
    if "precision" not in drawn[0][1]:
        del found["precision_part"]
    return {name: values.double().cpu().numpy() for name, values in found.items()}


def score_run(
    folder: str | Path,
    other: Mapping[str, Any] | None = None,
    *,
    size: int = SIZE,
    fit_images: bool = False,
    out: str | Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Score held-out images of a run, and other ones where they are named, and write it down.

    Args:
        folder: A run folder.
        other: Keys of :class:`ngvae_pyro.specs.DataSpec`; by default new images, of another seed
            than the run's.
        size: Images of each set, at most.
        fit_images: Whether other images are brought to the shape of the run's, as
            :meth:`ngvae_pyro.ImageData.fitted` does; else another shape is an error.
        out: The ``.json`` file to write, with a ``.csv`` and a ``.png`` beside it; by default
            ``score_NAME`` in the folder, and the figure in its ``figures``.
        device: As for :func:`ngvae_pyro.load_run`.

    Returns:
        What the JSON file holds: ``images``, the number in each set; ``other``, the name of the
        other images, and ``fitted``, what was done to their shape; ``scores``, for each of `SCORES`
        its ``title`` and ``unit``, the ``5%``, ``50%`` and ``95%`` quantiles of each set, and
        ``auroc``, the probability that another image scores higher than a held-out one. The CSV
        has one row an image.

    Raises:
        UserError: If the folder is no run, images are missing, too few, of another shape, or not
            those that the run was trained with, or a file that is to be written is there already
            and no earlier score has written it.
    """
    expect("folder", folder, (str, Path), "the name of a run folder")
    if other is not None:
        expect("other", other, Mapping, "keys of the data, e.g. {'name': 'other.npz'}")
    folder = Path(folder)
    # Before the work, which takes a minute.
    if out is not None and Path(out).suffix != ".json":
        raise UserError(f"{out}: expected the name of a .json file")
    if out is not None and not Path(out).parent.is_dir():
        raise UserError(f"{out}: expected the folder {Path(out).parent} to be there")
    runs.load_spec(folder)
    within = out is None or Path(out).parent.resolve() == folder.resolve()
    # With files elsewhere to write it only reads the run.
    with locks.held(folder) if within else nullcontext():
        return _score_run(folder, within, other, size, fit_images, out, device)


def _score_run(
    folder: Path,
    within: bool,
    other: Mapping[str, Any] | None,
    size: int,
    fit_images: bool,
    out: str | Path | None,
    device: str,
) -> dict[str, Any]:
    fit, spec = runs.load_run(folder, device)
    seed = runs.data_seed(spec)
    train, held_out = runs.run_images(folder, spec, fit.device)
    sets = {"held out": held_out.subset(slice(0, size))}
    name, fitted = None, ""
    if other is not None:
        images, fitted = _other_images(other, spec.data, size, seed, fit, fit_images)
        name, sets["other"] = images.name, images
    for images in (train, *sets.values()):
        if len(images) < 2:
            raise UserError(f"{images.name}: expected at least 2 images to score, got 1")
    stem = f"score_{re.sub('[^A-Za-z0-9.-]+', '_', name or 'held_out').strip('_.')[:100]}"
    if out is not None:
        paths = [Path(out).with_suffix(suffix) for suffix in (".json", ".csv", ".png")]
        _check_replaced(paths)
        names = [path.name for path in paths]
    else:
        names = [f"{stem}.json", f"{stem}.csv", f"figures/{stem}.png"]
        paths = [folder / name for name in names]
    if within:
        runs.check_own(folder, names)

    known = reference(fit, train)
    values = {label: scores(fit, images, known, seed=seed) for label, images in sets.items()}
    result = {
        "run": spec.data.name,
        "other": name,
        "fitted": fitted,
        "images": {label: len(images) for label, images in sets.items()},
        "scores": {
            key: _summary(score, {label: found[key] for label, found in values.items()})
            for key, score in SCORES.items()
            if key in values["held out"]
        },
    }
    if within:
        runs.claim(folder, names)
        files.make_folder(paths[-1].parent)
    _write(paths, result, values, name)
    return {**result, "files": [str(path) for path in paths]}


def _check_replaced(paths: list[Path]) -> None:
    """Raise a UserError if one of the files is there and no earlier score has written it."""
    # All three have come from a score if the first has.
    ours = {"run", "other", "images", "scores"} <= {*_keys(paths[0])}
    for path in paths:
        if os.path.lexists(path) and (path.is_symlink() or not path.is_file() or not ours):
            raise UserError(f"{path}: is not of a score, and is not replaced; move it")


def _keys(path: Path) -> Iterable[str]:
    try:
        values = json.loads(files.read_text(path))
    except (OSError, ValueError, RecursionError):
        return ()
    return values if isinstance(values, dict) else ()


def _other_images(
    other: Mapping[str, Any],
    own: DataSpec,
    size: int,
    seed: int,
    fit: Fit,
    fit_images: bool,
) -> tuple[ImageData, str]:
    """At most ``size`` of the other images, in the shape of the run's, and how they got there."""
    values = dict(other)
    if str(values["name"]).startswith("sprites"):
        values.setdefault("size", size)
        if own.name.startswith("sprites") and own.resolution is not None:
            values.setdefault("resolution", own.resolution)
    spec = parse(DataSpec, values, "--data")
    # Another seed than the run's, whose sprites are those that it was trained on.
    new = seed + NEW_SEED if spec.seed is None else spec.seed
    images = runs.load_images(spec, new, fit.device)
    if len(images) > size:
        images = images.split(size, new)[1]
    image_shape = fit.model.image_shape
    if images.image_shape == image_shape:
        # In the run's units, where it has its own.
        return fit.as_images(images), ""
    if "vectors" in (images.form.layout, fit.form.layout):
        got, expected = (
            f"vectors of {shape[-1]}" if form.layout == "vectors" else "images"
            for form, shape in ((images.form, images.image_shape), (fit.form, image_shape))
        )
        raise UserError(f"{images.name}: holds {got}, and the run was trained on {expected}")
    if not fit_images:
        got, expected = ("x".join(map(str, s)) for s in (images.image_shape, image_shape))
        raise UserError(
            f"{images.name}: images are {got}, those of the run {expected}; --fit-images pads or "
            "resizes them and repeats or averages channels"
        )
    channels, height, width = image_shape
    return images.fitted((channels, height, width))


def _summary(score: Score, values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Quantiles of one score in each set, and its AUROC where there are two."""
    for label, found in values.items():
        if not np.isfinite(found).all():
            raise UserError(f"{score.title}: not finite for some of the images '{label}'")
    names = ("5%", "50%", "95%")
    summary: dict[str, Any] = {"title": score.title, "unit": score.unit}
    for label, found in values.items():
        quantiles = np.quantile(found, [0.05, 0.5, 0.95]).tolist()
        summary[label] = dict(zip(names, quantiles, strict=True))
    if len(values) > 1:
        own, others = values.values()
        foreign = np.repeat([0, 1], [len(own), len(others)])
        summary["auroc"] = float(roc_auc_score(foreign, np.concatenate([own, others])))
    return summary


def _write(
    paths: list[Path],
    result: Mapping[str, Any],
    values: Mapping[str, Mapping[str, np.ndarray]],
    other: str | None,
) -> None:
    """JSON, CSV and figure under their names only when all of them are whole."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["set", "image", *result["scores"]])
    for label, found in values.items():
        columns = [found[key].tolist() for key in result["scores"]]
        for i, row in enumerate(zip(*columns, strict=True)):
            rows.writerow([label, i, *(f"{value:.6g}" for value in row)])
    panels = []
    for key, summary in result["scores"].items():
        others = values["other"][key] if other is not None else None
        auroc = f", AUROC {summary['auroc']:.3f}" if other is not None else ""
        title = f"{summary['title']}{auroc}"
        panels.append((summary["unit"], values["held out"][key], others, title))
    with ExitStack() as stack:
        partial = [stack.enter_context(files.whole(path)) for path in paths]
        runs.write_json(partial[0], result)
        partial[1].write_text(text.getvalue(), encoding="utf-8")
        ax = stack.enter_context(plots.sheet(partial[2]))
        plots.scores(panels, other, ax)
