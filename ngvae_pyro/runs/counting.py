"""How a count of latents depends on the scale at which the data are looked at.

A finer standard deviation of a pixel makes every factor worth more nats, so that weaker ones are
worth their price. :func:`count` trains the same pair at several scales, around the one that the
data themselves have, and looks for the longest stretch of scales that agree: the plateau.
"""

import math
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from ngvae_pyro import files, locks, variants
from ngvae_pyro.data import Images, as_images
from ngvae_pyro.data.declared import load_data
from ngvae_pyro.data.forms import Form
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.dimension import components, mle, two_nn
from ngvae_pyro.errors import Notice, UserError, described, expect
from ngvae_pyro.evaluation import diagnostics
from ngvae_pyro.fitted import Fit, check_count, check_folder, check_rows, is_seed
from ngvae_pyro.latents import is_informative
from ngvae_pyro.machine import resolve_device
from ngvae_pyro.records import (
    CheckedCurve,
    ClassicalEstimates,
    CountCurve,
    CountedScale,
    Metrics,
    Plateau,
)
from ngvae_pyro.report import plots
from ngvae_pyro.runs.comparison import Run, check_same, check_written, complete
from ngvae_pyro.runs.folder import load_metrics, write_json
from ngvae_pyro.runs.reading import check_recorded, load_pair, load_run
from ngvae_pyro.runs.start import Split, Stage
from ngvae_pyro.specs import LEAST_SCALE, DataSpec, FitSpec, LikelihoodSpec, RunSpec, Spec, parse
from ngvae_pyro.training.steps import NonFiniteLoss
from ngvae_pyro.training.trainer import fit
from ngvae_pyro.verdict import Verdict

# Of the own scale.
FACTORS = (0.25, 0.5, 2.0, 4.0)
# Factors that are nearer to each other, or to 1, may be one number in the digits of a folder's
# name.
APART = 1.01
# Most rows for the classical estimates, and most numbers in them: half a gigabyte in float64.
ROWS, NUMBERS = 5_000, 2**26

COUNT, FIGURE = "count.json", "count.png"
WRITTEN = (COUNT, FIGURE)


def count(
    images: Images,
    *,
    out: str | Path | None = None,
    factors: Sequence[float] = FACTORS,
    model: str | Path | Spec = "normal_gamma",
    guide: str | Path | Spec = "relaxed",
    latent_size: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    held_out: float = 0.1,
    device: str = "auto",
    progress: bool = False,
) -> CountCurve:
    """Count the latents of data at several scales, and find where the count does not depend on it.

    The pair is trained at the data's own scale
    (``model.likelihood.scale = "auto"``, unless the model declares another), and at ``factors`` of
    the scale at which this ended. The plateau is the longest stretch of neighbouring scales with
    the same count; of equally long ones it is the one with the own scale, or else the nearest to
    it. At a finer scale more is worth counting, also what the decoder fails to draw; at a coarser
    one factors that hardly change the images are lost in the noise.

    >>> curve = count(images, out="runs/count")  # doctest: +SKIP
    >>> print(sentence(curve))  # doctest: +SKIP
    5 latents between scales 0.02 and 0.09 (4 of 5 scales)

    Args:
        images: As for :func:`ngvae_pyro.fit`.
        out: A folder for the runs ``own`` and ``scale_...``, for ``count.json`` and ``count.png``.
            Finished runs in it are not trained again, and interrupted ones are resumed. None keeps
            nothing.
        factors: The other scales, in units of the own one: above 0, different, and not 1.
        model: As for :class:`ngvae_pyro.NGVAE`; its likelihood must be gaussian.
        guide: As for :class:`ngvae_pyro.NGVAE`.
        latent_size: Most latents K; None for the model's own number.
        steps: Steps of each training; None for the default.
        seed: Of what is held out, the weights and the noise.
        held_out: Fraction of the images that is not trained on.
        device: auto, cpu, cuda or cuda:N.
        progress: Whether to show the progress of the trainings.

    Returns:
        ``scales``: from the finest to the coarsest the ``scale``, its ``factor``, the ``folder``
        of the run, the number of ``informative`` latents, the word of the ``verdict``, the largest
        variance of a ``leak``, ``mse`` per pixel and ``elbo``, nats per image, all of held-out
        images; without numbers where the training diverged. ``own``: which of them is the own
        scale. ``plateau``: its count, and its ``first`` and ``last`` scale. ``classical``:
        :func:`~ngvae_pyro.dimension.two_nn`,
        :func:`~ngvae_pyro.dimension.mle` and
        :func:`~ngvae_pyro.dimension.components` of at most 5,000 training images.
        ``unit`` times a scale is in the ``units`` of the data. Also ``data`` and ``latent_size``.

    Raises:
        UserError: For images whose likelihood has no scale, such as those of only 0 and 1; for
            arguments out of range; and if the folder holds other runs or files.
        NonFiniteLoss: If the training at the own scale diverges.
    """
    check_rows(images, "images")
    if out is not None:
        check_folder(out)
        expect("out", out, (str, Path), "the name of a folder, or None")
    if latent_size is not None:
        check_count("latent_size", latent_size)
    if steps is not None:
        check_count("steps", steps)
    if not is_seed(seed):
        raise UserError(f"seed: expected a whole number in [0, 2**32), got {described(seed)}")
    expect("device", device, str, "auto, cpu, cuda or cuda:N")
    variants.check_variant("model", model, "models")
    variants.check_variant("guide", guide, "guides")
    path = isinstance(images, (str, Path))
    found = None if path else as_images(images)
    training = {"seed": int(seed), "device": device} | ({} if steps is None else {"steps": steps})
    size = {} if latent_size is None else {"latent_size": latent_size}
    pair = {
        "model": variants.spec_of("models", model, size),
        "guide": variants.spec_of("guides", guide, {}),
    }
    families = pair["model"].prior.family, pair["guide"].family
    names = [
        family if isinstance(given, Spec) else str(given)
        for given, family in zip((model, guide), families, strict=True)
    ]
    name = str(images) if found is None else found.name
    spec = RunSpec(
        **pair,
        model_name=names[0],
        guide_name=names[1],
        fit=parse(FitSpec, training, "count"),
        data=parse(DataSpec, {"name": name, "held_out": held_out}, "count"),
    )
    split = None if found is None else found.split(spec.data.held_out, spec.fit.seed)
    return curve_of(spec, out, factors, images=split, progress=bool(progress))


def curve_of(
    spec: RunSpec,
    out: str | Path | None,
    factors: Sequence[float] = FACTORS,
    *,
    images: Split | None = None,
    progress: bool = True,
    stage: Stage = lambda text: nullcontext(),
    say: Callable[[str], None] = lambda line: None,
) -> CountCurve:
    """Do what :func:`count` does for a spec.

    Args:
        spec: The run at the own scale.
        out: As for :func:`count`.
        factors: As for :func:`count`.
        images: (training, held-out) images given in Python; None for those that the spec names.
        progress: As for :func:`count`.
        stage: As for :func:`ngvae_pyro.runs.train`.
        say: Shows a line for each scale.

    Raises:
        UserError: As :func:`count`.
        NonFiniteLoss: As :func:`count`.
        Interrupted: On SIGINT, SIGTERM or SIGHUP; the same call goes on from there.
    """
    factors = _checked(factors)
    folder = None if out is None else Path(out)
    with ExitStack() as stack:
        if folder is not None:
            # Checked before the work, which takes minutes.
            stack.enter_context(locks.held(folder))
            check_written(folder, COUNT, CheckedCurve, WRITTEN)
        given = images is not None
        if images is None:
            with stage("preparing data"):
                images = load_data(spec, resolve_device(spec.fit.device))
        _check_scaled(spec, images[0], given)
        work = _Work(spec, images, given, folder, {"progress": progress, "stage": stage})
        scale, own = work.own()
        total = len(factors) + 1
        say(f"1/{total}  {_line(own, *_unit(images[0].form))}")
        scales = [own]
        for factor in factors:
            if (one := work.at(factor, scale)) is not None:
                scales.append(one)
                say(f"{len(scales)}/{total}  {_line(one, *_unit(images[0].form))}")
            else:
                total -= 1
        scales.sort(key=lambda one: one["scale"])
        with stage("classical estimates"):
            classical = estimates(images[0])
        unit, units = _unit(images[0].form)
        result: CountCurve = {
            "data": spec.data.name,
            "latent_size": spec.model.latent_size,
            "unit": unit,
            "units": units,
            "own": scales.index(own),
            "scales": scales,
            "plateau": plateau([one["informative"] for one in scales], scales.index(own)),
            "classical": classical,
        }
        if folder is not None:
            result["files"] = sorted(WRITTEN)
            # It lists the figure before it exists, so that it is known if it is interrupted here.
            write_json(folder / COUNT, result)
            with plots.sheet(folder / FIGURE) as ax:
                plots.counts(result, ax)
    return result


def _checked(factors: Any) -> list[float]:
    expected = "numbers above 0, different from each other and from 1, e.g. 0.5 and 2"
    expect("factors", factors, (list, tuple), expected)
    for factor in factors:
        expect("factors", factor, Real, expected)
        # Of whole numbers too large for a float as well, and of NaN.
        if not 0 < factor <= sys.float_info.max:
            raise UserError(f"factors: expected {expected}, got {described(factor)}")
    found = sorted([*map(float, factors), 1.0])
    for low, high in pairwise(found):
        if high < APART * low:
            raise UserError(f"factors: expected {expected}, got {low:g} and {high:g}")
    return [factor for factor in found if factor != 1.0]


def _check_scaled(spec: RunSpec, images: ImageData, given: bool) -> None:
    likelihood = spec.model.likelihood.resolved(binary=images.binary)
    if likelihood.family != "gaussian":
        why = "its images hold only 0 and 1, and the" if images.binary else "the"
        named = f"ngvae train {spec.model_name} {spec.guide_name} --data {spec.data.name}"
        once = "ngvae_pyro.NGVAE().fit(images)" if given else named
        raise UserError(
            f"count: {spec.data.name}: {why} likelihood {likelihood.family} has no scale to vary; "
            f"{once} counts once"
        )


@dataclass(frozen=True)
class _Work:
    """The trainings of a curve; ``given`` images come from Python, and not by a name."""

    spec: RunSpec
    images: Split
    given: bool
    folder: Path | None
    options: dict[str, Any]

    def own(self) -> tuple[float, CountedScale]:
        """The scale at which the training at the own scale ended, and what it counted."""
        if (done := self._trained("own", self.spec)) is None:
            raise UserError(
                f"{self.folder}/own: its training diverged; change what is trained, and choose "
                "another --out"
            )
        scale = done[0].model.likelihood.scale
        assert scale is not None
        return scale, self._counted(1.0, scale, "own", done[1])

    def at(self, factor: float, own: float) -> CountedScale | None:
        """What is counted at another scale; None if it is finer than any model can have."""
        # As it is written in the folder's name, so that the same command finds it again.
        text = f"{factor * own:.3g}"
        if float(text) < LEAST_SCALE:
            warnings.warn(
                f"scale {text}, {factor:g} of the own one, is left out: the least is {LEAST_SCALE}",
                Notice,
                stacklevel=3,
            )
            return None
        values = {"family": "gaussian", "scale": float(text)}
        values["per"] = self.spec.model.likelihood.per
        likelihood = parse(LikelihoodSpec, values, f"count: factor {factor:g}")
        model = self.spec.model.model_copy(update={"likelihood": likelihood})
        spec = self.spec.model_copy(update={"model": model})
        try:
            done = self._trained(f"scale_{text}", spec)
        except NonFiniteLoss:
            done = None
        return self._counted(factor, float(text), f"scale_{text}", done and done[1])

    def _trained(self, name: str, spec: RunSpec) -> tuple[Fit, Metrics] | None:
        """Train, resume or read one run; None if its training has diverged before."""
        if self.folder is None:
            pair = load_pair(spec, self.images[0])
            trained = fit(*pair, self.images[0], spec.fit, progress=self.options["progress"])
            return trained, diagnostics.evaluate(trained, self.images[1], seed=spec.fit.seed)
        run = Run(f"{spec.model_name}+{spec.guide_name}", name, spec, self.folder / name)
        if run.begun:
            check_same(run.folder, spec, self.given)
        else:
            files.check_no_link(self.folder, name)
        if run.diverged:
            return None
        if not run.trained:
            given = self.images if self.given else None
            complete(run, images=given, **self.options)
        else:
            check_recorded(run.folder, spec, self.images, resolve_device(spec.fit.device))
        return load_run(run.folder, "cpu")[0], load_metrics(run.folder)

    def _counted(
        self, factor: float, scale: float, name: str, metrics: Metrics | None
    ) -> CountedScale:
        found: CountedScale = {
            "factor": factor,
            "scale": scale,
            "folder": None if self.folder is None else name,
            "informative": None,
            "verdict": None,
            "leak": None,
            "mse": None,
            "elbo": None,
        }
        if metrics is None:
            return found
        verdict = Verdict.from_metrics(metrics)
        pairs = zip(metrics["probs"], metrics["variance_of_loc"], strict=True)
        leaks = [variance for p, variance in pairs if not is_informative(p)]
        found["informative"] = metrics["informative"]
        found["verdict"] = verdict.word if verdict else None
        found["leak"] = None if metrics.get("discrete") else max(leaks, default=None)
        found["mse"] = metrics["reconstruction_mse"]
        found["elbo"] = metrics["elbo"]
        return found


def _unit(form: Form) -> tuple[float, str]:
    """What turns a scale into the units of the data, and their name."""
    if form.scale is None:
        return 1.0, "of a pixel in [0, 1]"
    if form.scale.size == 1 and form.layout != "vectors":
        return float(form.scale.item()), "in the units of the data"
    what = "channel" if form.sequential else "column"
    return 1.0, f"in standard deviations of a {what}"


def plateau(counts: Sequence[int | None], own: int) -> Plateau:
    """The longest stretch of neighbouring scales with the same count.

    Args:
        counts: The count at each scale, in their order; None where there is none, which ends a
            stretch. That at the own scale is a number.
        own: Which scale is the own one.

    Returns:
        Of equally long stretches the one that has the own scale, or else the nearest to it, and of
        two as near the first.

    >>> plateau([6, 5, 5, 5, 3], own=2)
    {'informative': 5, 'first': 1, 'last': 3}
    """
    stretches: list[Plateau] = []
    for i, number in enumerate(counts):
        if number is None:
            continue
        if stretches and stretches[-1]["last"] == i - 1 and counts[i - 1] == number:
            stretches[-1]["last"] = i
        else:
            stretches.append({"informative": number, "first": i, "last": i})

    def rank(one: Plateau) -> tuple[int, int]:
        away = max(one["first"] - own, own - one["last"], 0)
        return one["first"] - one["last"], away

    return min(stretches, key=rank)


def estimates(images: ImageData, rows: int = ROWS) -> ClassicalEstimates:
    """Classical estimates from the first images, fewer of them if they are very large."""
    size = images.images[0].numel()
    few = images.images[: max(2, min(rows, NUMBERS // size))]
    points = ImageData.to_unit(few).flatten(1).cpu().numpy()
    # Distances are those of rows of which nothing is missing.
    points = points[~np.isnan(points).any(1)]
    return {
        "rows": len(points),
        "two_nn": _finite(two_nn, points),
        "mle": _finite(mle, points),
        "components": components(points) if len(points) > 1 else None,
    }


def _finite(estimate: Callable[[np.ndarray], float], points: np.ndarray) -> float | None:
    """An estimate, or None where too few different rows, or equal distances, do not give one."""
    try:
        value = estimate(points)
    except UserError:
        return None
    return value if math.isfinite(value) else None


def _latents(number: int) -> str:
    return f"{number} latent{'' if number == 1 else 's'}"


def _line(one: CountedScale, unit: float, units: str) -> str:
    at = f"scale {unit * one['scale']:.3g} {units}{' (own)' if one['factor'] == 1.0 else ''}"
    if one["informative"] is None:
        return f"{at}: the training diverged"
    return f"{at}: {_latents(one['informative'])} ({one['verdict']})"


def sentence(curve: CountCurve) -> str:
    """The plateau in a sentence: ``5 latents between scales 0.02 and 0.09 (4 of 5 scales)``."""
    found, scales = curve["plateau"], curve["scales"]
    low, high = (curve["unit"] * scales[found[end]]["scale"] for end in ("first", "last"))
    number = 1 + found["last"] - found["first"]
    if number == 1:
        there = f"{_latents(found['informative'])} at scale {low:.2g}"
        return there if len(scales) == 1 else f"{there} only: no two neighbouring scales agree"
    return (
        f"{_latents(found['informative'])} between scales {low:.2g} and {high:.2g} "
        f"({number} of {len(scales)} scales)"
    )


def classical(curve: CountCurve) -> str:
    """The classical estimates in a sentence."""
    found = curve["classical"]
    shown = {
        "TwoNN": found["two_nn"] and f"{found['two_nn']:.1f}",
        "maximum likelihood": found["mle"] and f"{found['mle']:.1f}",
        "principal components for 95 %": found["components"],
    }
    parts = [f"{name} {'none' if value is None else value}" for name, value in shown.items()]
    return f"without training, from {found['rows']:,} images: {', '.join(parts)}"
