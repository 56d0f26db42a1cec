"""Scores of the images of a run folder, and of other images."""

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from ngvae_pyro import files, locks
from ngvae_pyro.data.declared import data_seed, load_images
from ngvae_pyro.data.forms import Form
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.data.sources import ARRAYS, FILES
from ngvae_pyro.data.tables import TABLES
from ngvae_pyro.errors import UserError, expect
from ngvae_pyro.evaluation.assessment import NEW_SEED
from ngvae_pyro.extras import needed
from ngvae_pyro.fitted import Fit
from ngvae_pyro.report import plots
from ngvae_pyro.runs.folder import check_own, claim, load_spec, write_json
from ngvae_pyro.runs.reading import load_run, run_images
from ngvae_pyro.specs import DataSpec, parse

with needed("metrics"):
    from sklearn.metrics import roc_auc_score
from ngvae_pyro.evaluation.scores import SCORES, SIZE, Score, reference, scores


def score_run(
    folder: str | Path,
    other: Mapping[str, Any] | None = None,
    *,
    size: int = SIZE,
    fit_images: bool = False,
    out: str | Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Score the held-out images of a run and, if given, other images, and write the results.

    Args:
        folder: A run folder.
        other: Keys of :class:`ngvae_pyro.specs.DataSpec` for other images, rendered by default with
            another seed than the run's.
        size: Most images in each set.
        fit_images: Whether other images are brought to the shape of the run's, by
            :meth:`ngvae_pyro.ImageData.fitted`; otherwise another shape is an error.
        out: The ``.json`` file to write, with a ``.csv`` and a ``.png`` beside it; by default
            ``score_NAME`` in the folder, and the figure in its ``figures``.
        device: As for :func:`ngvae_pyro.load_run`.

    Returns:
        The content of the JSON file: ``images``, the number in each set; ``other``, the name of the
        other images, and ``fitted``, what was done to their shape; ``scores``, for each of
        ``SCORES`` its ``title`` and ``unit``, the ``5%``, ``50%`` and ``95%`` quantiles of each
        set, and ``auroc``, the probability that another image scores higher than a held-out one.
        The CSV has one row per image.

    Raises:
        UserError: If the folder is not a run, images are missing, too few, of another shape, or not
            those that the run was trained with, or a file to be written already exists and was not
            written by an earlier score.
    """
    expect("folder", folder, (str, Path), "the name of a run folder")
    if other is not None:
        expect("other", other, Mapping, "keys of the data, e.g. {'name': 'other.npz'}")
    folder = Path(folder)
    # Checked before the work, which takes a minute.
    if out is not None and Path(out).suffix != ".json":
        raise UserError(f"{out}: expected the name of a .json file")
    if out is not None and not Path(out).parent.is_dir():
        raise UserError(f"{out}: expected the folder {Path(out).parent} to be there")
    load_spec(folder)
    within = out is None or Path(out).parent.resolve() == folder.resolve()
    # If the files are written elsewhere, the run is only read, and needs no lock.
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
    fit, spec = load_run(folder, device)
    seed = data_seed(spec)
    train, held_out = run_images(folder, spec, fit.device)
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
        check_own(folder, names)

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
        claim(folder, names)
        files.make_folder(paths[-1].parent)
    _write(paths, result, values, name)
    return {**result, "files": [str(path) for path in paths]}


def _check_replaced(paths: list[Path]) -> None:
    """Raise a UserError if one of the files exists and was not written by an earlier score."""
    # All three were written by a score if the first was.
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
    """At most ``size`` of the other images, in the run's shape, and what was done to them."""
    values = dict(other)
    if str(values["name"]).startswith("sprites"):
        values.setdefault("size", size)
        if own.name.startswith("sprites") and own.resolution is not None:
            values.setdefault("resolution", own.resolution)
    elif fit.form.sequential and str(values["name"]).endswith(ARRAYS):
        values.setdefault("layout", "sequences")
    elif fit.form.layout == "grey_volumes" and str(values["name"]).endswith(ARRAYS):
        values.setdefault("layout", "volumes")
    if fit.form.missing and str(values["name"]).endswith(FILES):
        values.setdefault("missing", True)
    if own.factors and str(values["name"]).endswith((*TABLES, ".h5ad")):
        values.setdefault("factors", own.factors)
    if own.covariates:
        values.setdefault("covariates", own.covariates)
    spec = parse(DataSpec, values, "--data")
    # Not the run's seed, which would give the sprites that it was trained on.
    new = seed + NEW_SEED if spec.seed is None else spec.seed
    images = load_images(spec, new, fit.device)
    if len(images) > size:
        images = images.split(size, new)[1]
    image_shape = fit.model.image_shape
    if images.image_shape == image_shape:
        # In the run's units, if it has its own.
        return fit.as_images(images), ""
    # What is not resized.
    if any(form.standardised or form.depth for form in (images.form, fit.form)):
        got, expected = (
            _kind(form, shape)
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
    fitted, how = images.coded(fit.form.covariates).fitted((channels, height, width))
    return (fitted.as_counts() if fit.form.raw else fitted), how


def _kind(form: Form, image_shape: tuple[int, ...]) -> str:
    """What the images of a form are, in words."""
    size = "x".join(map(str, form.shape_of(image_shape)))
    if form.depth:
        return f"volumes of {size}"
    if not form.standardised:
        return "images"
    return f"{'sequences' if form.sequential else 'vectors'} of {size}"


def _summary(score: Score, values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Quantiles of one score in each set, and its AUROC if there are two."""
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
    """Write JSON, CSV and figure, and rename them only when all three are complete."""
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
        write_json(partial[0], result)
        partial[1].write_text(text.getvalue(), encoding="utf-8")
        ax = stack.enter_context(plots.sheet(partial[2]))
        plots.scores(panels, other, ax)
