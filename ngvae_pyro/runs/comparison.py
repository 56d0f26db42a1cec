"""Comparisons of pairs: train and evaluate missing runs, then write tables and figures.

A comparison is a folder of run folders, ``<model>+<guide>/seed-<n>``. Finished runs are not
repeated and begun ones continue from their last checkpoint, so an interrupted comparison can be
continued.
"""

import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ngvae_pyro import _arviz, locks
from ngvae_pyro.data.declared import load_data, located, paths, rendered
from ngvae_pyro.data.images import ImageData, known_count
from ngvae_pyro.errors import Notice, UserError
from ngvae_pyro.evaluation.assessment import evaluation_images, sample
from ngvae_pyro.evaluation.traversals import Support, typical, walk
from ngvae_pyro.extras import check_installed
from ngvae_pyro.files import check_no_link, whole
from ngvae_pyro.fitted import Fit
from ngvae_pyro.machine import resolve_device
from ngvae_pyro.records import Comparison
from ngvae_pyro.report import comparison_plots, table
from ngvae_pyro.report import pages as report
from ngvae_pyro.report.plots import colours, latent_rows, literal, moved_rows
from ngvae_pyro.runs import pool
from ngvae_pyro.runs.evaluating import evaluate_run, load_evaluation
from ngvae_pyro.runs.folder import (
    finished,
    load_metrics,
    load_record,
    load_spec,
    read_json,
    unfinished,
    write_json,
)
from ngvae_pyro.runs.reading import check_recorded, load_pair, load_run
from ngvae_pyro.runs.start import resume, train
from ngvae_pyro.specs import IMMATERIAL, RunSpec
from ngvae_pyro.training.checkpoints import first_difference
from ngvae_pyro.training.steps import NonFiniteLoss
from ngvae_pyro.variants import run_spec

# The columns of the slides' table, in its order.
SLIDES = (
    "gaussian+gaussian",
    "gaussian+beta_27",
    "gaussian+beta_150",
    "normal_gamma+relaxed",
)
# The files that it writes into its folder, besides the runs.
COMPARISON = "comparison.json"
WRITTEN = frozenset(
    {
        *(COMPARISON, "table.md", "table.csv", "report.html"),
        *(f"figures/{name}.png" for name in (*report.COMPARISON_FIGURES, "page")),
    }
)


@dataclass(frozen=True)
class Run:
    """One run of a comparison: its pair, its label, its spec with the seed, and its folder."""

    pair: str
    label: str
    spec: RunSpec
    folder: Path

    @property
    def seed(self) -> int:
        return self.spec.fit.seed

    @property
    def begun(self) -> bool:
        return self.folder.exists()

    @property
    def trained(self) -> bool:
        return self.begun and not unfinished(self.folder)

    @property
    def diverged(self) -> bool:
        return self.trained and not finished(self.folder)

    @property
    def evaluated(self) -> bool:
        return (self.folder / "evaluation.json").exists()


def plan(
    out: str | Path, pairs: Iterable[str], seeds: Iterable[int], changes: Mapping[str, Any]
) -> list[Run]:
    """The runs of a comparison, all checked before the first is trained.

    Args:
        out: Folder of the comparison.
        pairs: Pairs ``model+guide`` of names of variants or paths to TOML files.
        seeds: Seeds of data, weights and noise, the same for all pairs, so that they see the same
            data.
        changes: Tables ``model``, ``guide``, ``fit`` and ``data`` with keys to change in all runs.

    Returns:
        The runs, for :func:`compare`.

    Raises:
        UserError: If a pair or the data do not exist or do not match, a folder holds a different
            run or one on other images, or the changes contain a seed.
    """
    if "seed" in changes.get("fit", {}):
        raise UserError(
            "fit.seed: the runs of a comparison have a seed each; pass the first of them with "
            f"--first-seed {changes['fit']['seed']}, and their number with --seeds"
        )
    planned: list[Run] = []
    images: ImageData | None = None
    for pair in pairs:
        model, plus, guide = pair.partition("+")
        if not plus or not model or not guide:
            raise UserError(f"--pairs: expected model+guide, e.g. gaussian+beta_27, got '{pair}'")
        name = f"{Path(model).stem}+{Path(guide).stem}"
        if any(run.pair == name for run in planned):
            raise UserError(f"--pairs: '{name}' is named twice")
        for seed in seeds:
            fit = {**changes.get("fit", {}), "seed": seed}
            spec = run_spec(model, guide, {**changes, "fit": fit}, "command line")
            if not planned or planned[-1].pair != name:
                # Building the pair checks that guide, model and images match.
                images = images or load_data(spec)[0]
                load_pair(spec, images)
            folder = Path(out) / name / f"seed-{seed}"
            planned.append(Run(name, spec.guide.label or name, spec, folder))
    # Two models with the same guide share a label; then the names of the pairs are shown.
    shared = {label for label, pairs in _by_label(planned).items() if len(pairs) > 1}
    planned = [
        Run(run.pair, run.pair if run.label in shared else run.label, run.spec, run.folder)
        for run in planned
    ]
    for run in planned:
        if run.begun:
            check_same(run.folder, run.spec)
        else:
            # Existing runs may be reached through links; new ones are written here.
            check_no_link(Path(out), f"{run.pair}/{run.folder.name}")
    _check_images(planned, now=True)
    return planned


def _by_label(planned: Sequence[Run]) -> dict[str, set[str]]:
    labels: dict[str, set[str]] = {}
    for run in planned:
        labels.setdefault(run.label, set()).add(run.pair)
    return labels


def check_same(folder: Path, spec: RunSpec, given: bool = False) -> None:
    """Refuse a run folder that holds another run than one that is to be trained.

    Args:
        folder: The run folder.
        spec: The spec of what is to be trained.
        given: Whether the images are given in Python.

    Raises:
        UserError: With the first key that differs.
    """
    saved = load_spec(folder)
    # The saved spec has the likelihood that the images decided.
    likelihood = spec.model.likelihood.like(saved.model.likelihood)
    model = spec.model.model_copy(update={"likelihood": likelihood})
    wanted = spec.model_copy(update={"model": model})
    if difference := first_difference(_material(saved, given), _material(wanted, given)):
        key, there, asked = difference
        raise UserError(
            f"{folder}: holds a run with {key} = {there}, not {asked}; choose another --out"
        )


def _material(spec: RunSpec, given: bool) -> dict[str, Any]:
    """The keys of a spec that determine the result, as plain values."""
    data = spec.data if given else located(spec)
    if "name" in paths(data) and not given:
        # The absolute path, however it is written and wherever it starts from.
        data = data.model_copy(update={"name": os.path.abspath(data.name)})
    parts = {"model": spec.model, "guide": spec.guide, "fit": spec.fit, "data": data}
    return {
        part: values.model_dump(mode="json", exclude=IMMATERIAL.get(part))
        for part, values in parts.items()
    }


def _check_images(planned: Sequence[Run], now: bool = False) -> None:
    """Refuse to compare runs on different images.

    All runs of a seed must have the same images. If these come from a file, they must also be the
    images that it holds now, because further runs would be trained on those.

    Args:
        planned: The runs; the finished ones are checked.
        now: Whether to read the files.

    Raises:
        UserError: If some runs have other images.
    """
    done = [run for run in planned if finished(run.folder)]
    known = [(run, load_record(run.folder).get("images")) for run in done]
    if unknown := [run for run, images in known if images is None]:
        warnings.warn(
            f"{len(unknown)} of {len(known)} runs, {unknown[0].folder} for one, do not say what "
            "their images were, as runs of older versions do not: whether all are on the same "
            "images is not checked",
            Notice,
            stacklevel=2,
        )
    first: dict[int, tuple[Run, dict[str, Any]]] = {}
    for run, images in known:
        if images is None:
            continue
        if run.seed not in first:
            first[run.seed] = run, images
            if now and not rendered(run.spec.data):
                check_recorded(run.folder, run.spec, load_data(run.spec), "cpu")
        _check_alike(*first[run.seed], run, images)


def _check_alike(
    one: Run, images: Mapping[str, Any], other: Run, others: Mapping[str, Any]
) -> None:
    for key, what in (("train", "training"), ("held_out", "held-out")):
        # Sprites rendered on different machines differ by rounding.
        if images[key] != others[key] and images.get("renderer") == others.get("renderer"):
            raise UserError(
                f"{other.folder}: its {what} images are not those of {one.folder}, so the two are "
                "not compared; train one of them again, or choose another --out"
            )


def complete(run: Run, **options: Any) -> Fit:
    """Train a run, or go on with one that was interrupted.

    Args:
        run: A run that is not trained yet.
        options: Those that both :func:`train` and :func:`resume` have.

    Returns:
        The fit.
    """
    if not run.begun:
        return train(run.spec, run.folder, **options)[0]
    place = run.spec.data
    where: Any = {"data_root": place.root, "download": place.download}
    return resume(run.folder, device=run.spec.fit.device, **where, **options)[0]


def _do(run: Run) -> dict[str, float]:
    """Train and evaluate one run unless that is done; returns the seconds of each part."""
    seconds: dict[str, float] = {}
    began = time.perf_counter()
    if not run.trained:
        fit = complete(run, progress=False)
        seconds = {"training": fit.seconds}
        seconds["run folders"] = time.perf_counter() - began - fit.seconds
        began = time.perf_counter()
    if not run.evaluated:
        parts = evaluate_run(run.folder, run.spec.fit.device)["seconds"]
        seconds |= {f"evaluation: {name}": value for name, value in parts.items()}
        rest = time.perf_counter() - began - sum(parts.values())
        seconds["evaluation: reading and writing"] = rest
    return seconds


def compare(
    out: str | Path,
    planned: Sequence[Run],
    *,
    jobs: int | None = None,
    ray: str | None = None,
    command: str = "",
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Complete a comparison and write its tables and figures.

    The folder and its runs are locked against other processes until the end.

    Args:
        out: Folder of the comparison.
        planned: The runs, from :func:`plan`.
        jobs: Runs at once, each in its own process; by default one per core, or one on a GPU.
        ray: Address of a Ray cluster that does the runs instead, or ``local``; the folder must be
            in the same place on all its machines (:func:`ngvae_pyro.runs.pool.run_all`).
        command: The command that made it, for the reader.
        say: Shows a line for each finished run.

    Returns:
        The comparison, as written to ``comparison.json``; ``failed`` has a line for every run
        that diverged or whose process was killed. The tables leave these out.

    Raises:
        UserError: If another process is writing the folder or a run, the disk refuses a write, or a
            file that is not of a comparison is in the way.
    """
    with locks.held(Path(out)):
        return _compare(Path(out), planned, jobs, ray, command, say)


def _compare(
    out: Path,
    planned: Sequence[Run],
    jobs: int | None,
    ray: str | None,
    command: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    check_written(out, COMPARISON, Comparison, WRITTEN)
    began = time.perf_counter()
    todo = [run for run in planned if not run.diverged and not (run.trained and run.evaluated)]
    if ray is not None:
        check_installed("ray")
    asked = jobs is None or ray is not None
    on_gpu = asked and resolve_device(planned[0].spec.fit.device).type == "cuda"
    if jobs is None:
        jobs = 1 if on_gpu else max(1, min(os.cpu_count() or 1, len(todo)))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot write there: {error.strerror}") from None
    say(f"{len(planned) - len(todo)} of {len(planned)} runs are there already")
    seconds: dict[str, float] = {}
    ended = pool.run_all(todo, _do, jobs, ray, gpus=int(on_gpu))
    lost = _work(ended, len(todo), seconds, say)
    _check_images(planned)
    drawing = time.perf_counter()
    result = _collect(planned, command)
    result["failed"] += lost
    done = [run for run in planned if run.evaluated]
    # The figures show the first run of each pair, which is read before anything is written.
    first = {run.pair: run for run in reversed(done)}
    looks = [look(first[pair]) for pair in dict.fromkeys(run.pair for run in done)]
    # It lists the files before they exist, so that they count as its own if it is interrupted here.
    write_json(out / COMPARISON, result)
    if looks:
        comparison_plots.save_all(out / "figures", looks, result)
    seconds["tables and figures"] = time.perf_counter() - drawing
    result["seconds"] = {**seconds, "wall clock": time.perf_counter() - began, "jobs": jobs}
    write_json(out / COMPARISON, result)
    with whole(out / "table.md") as path:
        path.write_text(table.markdown(result), encoding="utf-8", errors="replace")
    with whole(out / "table.csv") as path:
        table.write_csv(path, result)
    report.write_comparison_report(out, result)
    return result


def check_written(out: Path, result: str, record: Any, written: Iterable[str]) -> None:
    """Refuse a folder of runs in which files to be written exist and are not its own.

    Args:
        out: The folder.
        result: The name of its result, a JSON file that lists the files written with it.
        record: What that file must hold.
        written: The files to be written, the result too.

    Raises:
        UserError: With the first such file.
    """
    own: set[str] = set()
    if os.path.lexists(out / result):
        found = read_json(out / result, record)
        # Comparisons of earlier versions do not list them.
        own = set(found.get("files") or written)
    for name in sorted(written):
        check_no_link(out, name)
        if (out / name).exists() and not (name in own and (out / name).is_file()):
            kind = result.removesuffix(".json")
            raise UserError(f"{out / name}: is not of a {kind}, and is not replaced; move it")


def _work(
    ended: Iterable[tuple[Run, Callable[[], dict[str, float]]]],
    total: int,
    seconds: dict[str, float],
    say: Callable[[str], None],
) -> list[str]:
    """Say how each run ended, and add up the seconds.

    Returns:
        A line for each run whose process was killed.
    """
    lost = []
    for count, (run, result) in enumerate(ended, 1):
        try:
            spent = result()
        except NonFiniteLoss as error:
            outcome = str(error)
        except pool.Lost as error:
            outcome = f"{error}; the same command goes on with it"
            lost.append(f"{run.label}, seed {run.seed}: {outcome}")
        else:
            outcome = f"{sum(spent.values()):.0f} s"
            for name, value in spent.items():
                seconds[name] = seconds.get(name, 0.0) + value
        say(f"{count}/{total}  {run.label}, seed {run.seed}: {outcome}")
    return lost


def _collect(planned: Sequence[Run], command: str) -> dict[str, Any]:
    found: dict[str, list[dict[str, Any]]] = {run.pair: [] for run in planned}
    seeds: dict[str, list[int]] = {run.pair: [] for run in planned}
    labels = {run.pair: run.label for run in planned}
    factors: int | None = None
    for run in planned:
        if run.evaluated:
            numbers = load_evaluation(run.folder)
            metrics, record = load_metrics(run.folder), load_record(run.folder)
            found[run.pair].append({"metrics": metrics, "run": record, "evaluation": numbers})
            seeds[run.pair].append(run.seed)
            factors = known_count(numbers.get("factors"))
    spec = planned[0].spec
    return {
        "data": spec.data.name,
        "factors": factors,
        "latent_size": spec.model.latent_size,
        "seeds": sorted({run.seed for run in planned}),
        "command": command,
        "files": sorted(WRITTEN),
        "models": [
            {"pair": pair, "label": labels[pair], "runs": len(found[pair]), "seeds": seeds[pair]}
            for pair in found
        ],
        "metrics": table.describe(),
        "values": table.summarise(found, factors),
        "failed": [
            f"{run.label}, seed {run.seed}: the training diverged; its weights are in {run.folder}"
            for run in planned
            if run.diverged
        ],
    }


def elpds(out: str | Path, seed: int) -> dict[str, Any]:
    """Held-out log likelihoods of each image for the runs of one seed, for ``az.compare``.

    They are relative to the best run for each image, in nats, because ``az.compare`` takes their
    exponentials, which overflow for thousands of nats; differences and weights do not change.

    >>> az.compare(elpds("runs/comparison", seed=0))  # doctest: +SKIP

    Args:
        out: Folder of a comparison.
        seed: Seed of the runs; those with the same seed have the same held-out images.

    Returns:
        An ``ELPDData`` object for each run, by its name.

    Raises:
        UserError: If the folder has no evaluated runs of that seed, or their images differ.
    """
    folders = sorted(Path(out).glob(f"*/seed-{seed}/evaluation.json"))
    if not folders:
        raise UserError(f"{out}: no evaluated runs of seed {seed}")
    known = [load_record(path.parent).get("images") for path in folders]
    # Sprites rendered on different machines differ by rounding.
    held_out = {(i["held_out"], i.get("renderer")) for i in known if i is not None}
    if len(held_out) > len({renderer for _, renderer in held_out}):
        raise UserError(f"{out}: runs of seed {seed} have different held-out images")
    found = {path.parent.parent.name: load_evaluation(path.parent) for path in folders}
    values = {
        pair: np.array(numbers["per_image"]["log_likelihood"]) for pair, numbers in found.items()
    }
    if len({len(value) for value in values.values()}) > 1:
        raise UserError(f"{out}: runs of seed {seed} were evaluated on different numbers of images")
    best = np.max(list(values.values()), axis=0)
    return {
        pair: _arviz.elpd(
            values[pair] - best,
            np.array(numbers["per_image"]["k"]),
            numbers["log_likelihood"]["draws"],
        )
        for pair, numbers in found.items()
    }


# Images that are encoded by each model for the figures, and images in a row of a traversal.
IMAGES, COLUMNS = 2_000, 9


def look(run: Run) -> comparison_plots.Look:
    """Load a run and encode some images that it was not trained on."""
    fit, spec = load_run(run.folder, "cpu")
    _, held_out = load_data(spec)
    images, _ = evaluation_images(spec, held_out)
    few = images.subset(slice(0, IMAGES))
    rows = latent_rows(load_metrics(run.folder))
    moved, names = moved_rows(rows)
    support = Support.of(fit, few)
    (base,) = typical(support.loc, 1)
    pictures, _ = walk(fit, support, moved, COLUMNS, base)
    # All latents that move in one row are of one kind.
    known = {row["latent"]: row for row in rows}
    inks = colours([known[latents[0]] for latents in moved])
    code = sample(fit, few)
    return comparison_plots.Look(
        literal(run.label), spec.fit.seed, code, rows, pictures, names, inks, fit.form
    )
