"""Who counts right? Methods that count the numbers behind data, on sets of which these are known.

    python benchmarks/counting.py --out runs/counting --kept --seeds 0 1 --processes 2

A job is a set of :mod:`sets`, a method and a seed. Its result is a small JSON file in the folder as
soon as it is done, and a job whose file is there is not done again, so the same command goes on
after whatever ended it, and one with more sets, methods or seeds adds to it. At the end come a
Markdown table, ``table.md``, and a figure, ``error.png``, of the error of the counts against the
noise. ``--ray ADDRESS`` gives the jobs to a Ray cluster, which needs this checkout in the same
place on all its machines, and no common folder.

Every method has the training images of a set, and nothing else: no method has a setting for a set.
Models have the declared networks, number of steps and number of latents (those of the set).

- ``ngvae``, ``ard``, ``beta``: informative latents of a fit of this package's declared pair;
  ``ngvae-conv``: of the first with the decoder :data:`LIGHT`.
- ``ngvae-codes``: of the fit of ``ngvae``, the dimension of the surface on which the codes of its
  informative latents lie, rounded (:func:`ngvae_pyro.dimension.dimension`).
- ``vanilla``: active units of the vanilla VAE, Burda et al. (2015), on held-out images.
- ``fondue``, ``irmae``: :mod:`peers`.
- ``pca95``, ``twonn``, ``mle``: :mod:`ngvae_pyro.dimension`, rounded to a whole number,
  of at most 10,000 training images.

Those that estimate a dimension (``ngvae-codes``, ``twonn``, ``mle``) are judged by that of the
set, for which a circle has one; the others by the number of latents that it takes, two.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peers
import sets
import torch
from matplotlib.ticker import NullLocator

from ngvae_pyro import dimension, interrupts, locks, provenance, runs
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.data.sources import as_images
from ngvae_pyro.errors import UserError, nearest, one_line
from ngvae_pyro.evaluation import assessment, diagnostics
from ngvae_pyro.extras import check_installed
from ngvae_pyro.files import whole
from ngvae_pyro.report.comparison_plots import COLOURS, MARKERS
from ngvae_pyro.report.plots import new_figure
from ngvae_pyro.runs import pool
from ngvae_pyro.specs import FitSpec, RunSpec
from ngvae_pyro.training import trainer
from ngvae_pyro.training.steps import NonFiniteLoss
from ngvae_pyro.variants import names, run_spec
from ngvae_pyro.verdict import Verdict

# Points whose neighbours are looked for; the time grows with their square.
POINTS = 10_000
TICKS = (0, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
# Noise in units of the contrast: up to here, and what the axis says.
NOISE = ((0.0, "none"), (0.05, "up to 0.05"), (0.1, "to 0.1"), (np.inf, "more, or\nBernoulli"))


@dataclass(frozen=True)
class Job:
    """One count: a set, a method, a seed, and what a smoke test changes."""

    set: str
    method: str
    seed: int
    steps: int | None = None
    images: int | None = None

    @property
    def file(self) -> str:
        return f"{self.set}+{self.method}+{self.seed}.json"


@dataclass(frozen=True)
class Case:
    """What a method has: images of a set, and the spec's changes."""

    latents: int
    train: ImageData
    held_out: ImageData
    seed: int
    steps: int | None

    def spec(
        self,
        pair: tuple[str, str],
        latents: int | None = None,
        share: float = 1,
        **changes: Any,
    ) -> RunSpec:
        fit: dict[str, Any] = {"seed": self.seed}
        if self.steps is not None or share < 1:
            fit["steps"] = max(1, round(share * (self.steps or FitSpec().steps)))
        model = {"latent_size": latents or self.latents, **changes}
        return run_spec(*pair, {"model": model, "fit": fit}, "benchmark")

    @property
    def points(self) -> np.ndarray:
        """At most :data:`POINTS` training images as rows."""
        return ImageData.to_unit(self.train.images[:POINTS]).flatten(1).numpy()

    def fitted(self, *about: Any, **changes: Any) -> Any:
        spec = self.spec(*about, **changes)
        return trainer.fit(*runs.load_pair(spec, self.train), self.train, spec.fit, progress=False)


VANILLA = ("gaussian", "gaussian")
PAIRS = {
    "ngvae": ("normal_gamma", "relaxed"),
    "ngvae-conv": ("normal_gamma", "relaxed"),
    "ard": ("ard", "ard"),
    "beta": ("gaussian", "beta_27"),
    "vanilla": VANILLA,
}


def of_pair(method: str, key: str, **changes: Any) -> Callable[[Case], dict[str, Any]]:
    def count(case: Case) -> dict[str, Any]:
        fit = case.fitted(PAIRS[method], **changes)
        metrics = diagnostics.evaluate(fit, case.held_out, case.seed)
        found = {"count": metrics[key], "mse": metrics["reconstruction_mse"]}
        verdict = Verdict.from_metrics(metrics)
        return found | {
            "dimension": metrics["dimension"],
            "verdict": verdict.word if verdict else None,
        }

    return count


def fondue(case: Case) -> dict[str, Any]:
    few = case.train.subset(slice(0, POINTS))

    def gap(latents: int) -> float:
        fit = case.fitted(VANILLA, latents, peers.SHARE)
        drawn = assessment.sample(fit, few, case.seed)
        return dimension.mle(drawn.z) - dimension.mle(drawn.codes.loc)

    return {"count": peers.fondue(gap, dimension.mle(case.points))}


def irmae(case: Case) -> dict[str, Any]:
    network = peers.trained(case.spec(VANILLA), case.train)
    codes, _ = peers.codes_and_error(network, case.train.subset(slice(0, POINTS)))
    _, error = peers.codes_and_error(network, case.held_out)
    return {"count": peers.rank(codes), "mse": error}


def rounded(estimate: Callable[[np.ndarray], float]) -> Callable[[Case], dict[str, Any]]:
    def count(case: Case) -> dict[str, Any]:
        found = estimate(case.points)
        if not np.isfinite(found):
            return {"diverged": "all neighbours are at the same distance"}
        return {"count": round(found), "estimate": found}

    return count


# Convolutions that take half as long again as the perceptron for a step at 32x32.
LIGHT = {"kind": "residual_conv", "channels": 16, "blocks": 1}

METHODS: dict[str, Callable[[Case], dict[str, Any]]] = {
    "ngvae": of_pair("ngvae", "informative"),
    "ngvae-conv": of_pair("ngvae-conv", "informative", decoder=LIGHT),
    "ard": of_pair("ard", "informative"),
    "beta": of_pair("beta", "informative"),
    "vanilla": of_pair("vanilla", "active_units"),
    "fondue": fondue,
    "irmae": irmae,
    "pca95": rounded(dimension.components),
    "twonn": rounded(dimension.two_nn),
    "mle": rounded(dimension.mle),
}


COLUMNS = ["ngvae", "ngvae-codes", *(method for method in METHODS if method != "ngvae")]

# Methods that estimate the dimension of a surface, for which a circle has one and not two.
DIMENSIONS = {"twonn", "mle", "ngvae-codes"}


def with_codes(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results, and for each NG-VAE also one by the dimension of its codes, ``ngvae-codes``.

    That is rounded; of fewer than two informative latents it is their number.
    """
    found = []
    for result in results:
        found.append(result)
        if result["method"] == "ngvae" and result["count"] is not None:
            estimate, true = result["dimension"], sets.find(result["set"]).dimension
            size = result["count"] if estimate is None else round(estimate)
            own = {"method": "ngvae-codes", "count": size, "off": size - true}
            found.append({**result, **own, "exact": size == true})
    return found


def count(job: Job) -> dict[str, Any]:
    """Do a job; what it returns is what its file holds."""
    one = sets.find(job.set)
    total = one.total if job.images is None else job.images
    images, _ = one.render(total, job.seed)
    train, held_out = as_images(images, one.name).split(sets.HELD_OUT, job.seed)
    case = Case(one.latents, train, held_out, job.seed, job.steps)
    began = time.perf_counter()
    found: dict[str, Any] = {"count": None, "mse": None, "estimate": None, "diverged": None}
    try:
        found |= METHODS[job.method](case)
    except NonFiniteLoss as error:
        # It would diverge again.
        found["diverged"] = one_line(error)
    true = one.dimension if job.method in DIMENSIONS else one.truth
    off = None if found["count"] is None else found["count"] - true
    return {
        **asdict(job),
        **{"truth": one.truth, "kept": one.kept, "exact": off == 0, "off": off},
        **found,
        "seconds": time.perf_counter() - began,
        "versions": provenance.versions(),
        "machine": f"{provenance.device_name(torch.device('cpu'))}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
    }


def planned(arguments: argparse.Namespace, say: Callable[[str], None]) -> list[Job]:
    """The jobs of a command, those that lack something left out unless they were named.

    Raises:
        UserError: If a set or a method that was named is not there.
    """
    for method in arguments.methods or []:
        if method not in METHODS:
            known = ", ".join(METHODS)
            raise UserError(f"unknown method '{method}'{nearest(method, METHODS)}; known: {known}")
    if arguments.sets:
        chosen = [sets.find(name) for name in dict.fromkeys(arguments.sets)]
    else:
        wanted = {True} if arguments.kept else {False} if arguments.chosen else {True, False}
        chosen = [one for one in sets.SETS.values() if one.kept in wanted]
    there = []
    for one in chosen:
        try:
            one.check()
        except UserError as error:
            if arguments.sets:
                raise
            say(f"left out: {error}")
        else:
            there.append(one)
    methods = list(dict.fromkeys(arguments.methods or METHODS))
    for method in list(methods):
        if method in PAIRS and PAIRS[method][1] not in names("guides"):
            line = f"{method}: there is no guide '{PAIRS[method][1]}' here"
            if arguments.methods:
                raise UserError(line)
            say(f"left out: {line}")
            methods.remove(method)
    extent = arguments.steps, arguments.images
    seeds = dict.fromkeys(arguments.seeds)
    return [Job(one.name, method, s, *extent) for s in seeds for one in there for method in methods]


def read(out: Path, job: Job) -> dict[str, Any] | None:
    """The result of a job, if it is there.

    Raises:
        UserError: If its file holds something else.
    """
    path = out / job.file
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        asked = asdict(job)
        there = {key: found[key] for key in asked} | {"truth": found["truth"]}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: expected the result of a job, got {one_line(error)}") from None
    for key, value in (asked | {"truth": sets.find(job.set).truth}).items():
        if there[key] != value:
            raise UserError(
                f"{path}: holds a result with {key} = {there[key]}, not {value}; "
                "choose another --out"
            )
    return found


def work(
    out: Path, jobs: Sequence[Job], processes: int, ray: str | None, say: Callable[[str], None]
) -> list[str]:
    """Do the jobs that are not done, and return a line for each that gave no result."""
    todo = [job for job in jobs if read(out, job) is None]
    say(f"{len(jobs) - len(todo)} of {len(jobs)} jobs are done already")
    failed = []
    for number, (job, result) in enumerate(pool.run_all(todo, count, processes, ray), 1):
        name = f"{job.set}, {job.method}, seed {job.seed}"
        try:
            found = result()
        except (UserError, pool.Lost) as error:
            failed.append(f"{name}: {one_line(error)}")
            say(f"{number}/{len(todo)}  {failed[-1]}")
            continue
        with whole(out / job.file) as path:
            path.write_text(json.dumps(found, indent=1), encoding="utf-8")
        said = found["diverged"] or f"{found['count']} of {found['truth']}"
        say(f"{number}/{len(todo)}  {name}: {said}, {found['seconds']:.0f} s")
    return failed


def in_order(values: Iterable[str], known: Iterable[str]) -> list[str]:
    values = set(values)
    return [each for each in known if each in values]


def table(results: Sequence[dict[str, Any]]) -> str:
    """Counts of every set and method, and how often each method is right, as Markdown."""
    methods = in_order((r["method"] for r in results), COLUMNS)
    lines = ["| set | true | " + " | ".join(methods) + " |", "|---|---:|" + "---:|" * len(methods)]
    for name in in_order((r["set"] for r in results), sets.SETS):
        one, cells = sets.find(name), []
        for method in methods:
            found = [r for r in results if (r["set"], r["method"]) == (name, method)]
            shown = ["diverged" if r["count"] is None else str(r["count"]) for r in found]
            cells.append(
                ", ".join(
                    f"**{text}**" if r["exact"] else text
                    for text, r in zip(shown, found, strict=True)
                )
                or "–"
            )
        mark = " †" if one.kept else ""
        lines.append(f"| {name}{mark} | {one.truth} | " + " | ".join(cells) + " |")
    lines.append("\n† kept from every choice. Bold: exact. A number for each seed.\n")
    lines.append("| method | sets | jobs | exact | at most one off | seconds, median |")
    lines.append("|---|---|---:|---:|---:|---:|")
    for method in methods:
        for kept, name in ((False, "others"), (True, "kept")):
            found = [r for r in results if r["method"] == method and r["kept"] is kept]
            if not found:
                continue
            exact = sum(r["exact"] for r in found) / len(found)
            near = sum(r["off"] is not None and abs(r["off"]) <= 1 for r in found) / len(found)
            seconds = statistics.median(r["seconds"] for r in found)
            lines.append(
                f"| {method} | {name} | {len(found)} | {exact:.0%} | {near:.0%} | {seconds:.0f} |"
            )
    return "\n".join(lines) + "\n"


def errors(results: Sequence[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Of each method, (place in :data:`NOISE`, mean absolute error of its counts)."""
    found: dict[str, dict[int, list[int]]] = {}
    for r in results:
        if r["off"] is not None:
            strength = sets.find(r["set"]).strength
            place = next(i for i, (most, _) in enumerate(NOISE) if strength <= most)
            found.setdefault(r["method"], {}).setdefault(place, []).append(abs(r["off"]))
    return {
        method: [(at, statistics.mean(found[method][at])) for at in sorted(found[method])]
        for method in in_order(found, COLUMNS)
    }


def apart(heights: Sequence[float], least: float) -> list[float]:
    """Heights moved as little as keeps them in order and at least so far apart.

    >>> apart([1.0, 1.0, 5.0], 1.0)
    [0.5, 1.5, 5.0]
    """
    # Groups of labels that touch, each centred on the mean of where its labels belong.
    groups: list[list[float]] = []

    def bottom(group: list[float]) -> float:
        return statistics.mean(group) - least * (len(group) - 1) / 2

    for height in sorted(heights):
        groups.append([height])
        while len(groups) > 1 and bottom(groups[-1]) < bottom(groups[-2]) + least * len(groups[-2]):
            groups[-2:] = [groups[-2] + groups[-1]]
    placed = [bottom(group) + least * i for group in groups for i in range(len(group))]
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    return [placed[order.index(i)] for i in range(len(heights))]


def draw(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """Draw the mean absolute error of each method against the noise."""
    lines = errors(results)
    with new_figure(path, 7.0, 4.2) as figure:
        axes = figure.subplots()
        # Linear up to one, so that a method without any error has a place.
        axes.set_yscale("symlog", linthresh=1.0)
        scale = axes.transData.transform
        for i, (method, points) in enumerate(lines.items()):
            x, y = zip(*points, strict=True)
            style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
            dashes = "-" if i < len(COLOURS) else "--"
            axes.plot(x, y, dashes, ms=6, label=method, clip_on=False, **style)
        # Room for the names of two methods without any error.
        axes.set_ylim(bottom=-0.15)
        ticks = [tick for tick in TICKS if tick <= axes.get_ylim()[1]]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlim(-0.2, len(NOISE) - 0.2)
        axes.set_xticks(range(len(NOISE)), [name for _, name in NOISE])
        axes.set_xlabel("noise of a pixel, standard deviation in units of the contrast")
        axes.set_ylabel("mean |count − truth|")
        axes.grid(True, axis="y")
        # Each line's name stands at its end; names are moved apart where ends are close.
        ends = [points[-1] for points in lines.values()]
        figure.draw_without_rendering()
        heights = [scale(end)[1] for end in ends]
        points_apart = 11.0 * figure.dpi / 72.0
        for (method, end), i, at in zip(
            zip(lines, ends, strict=True),
            range(len(ends)),
            apart(heights, points_apart),
            strict=True,
        ):
            moved = (at - heights[i]) * 72.0 / figure.dpi
            axes.annotate(
                *(method, end),
                xytext=(9, moved),
                textcoords="offset points",
                color=COLOURS[i % len(COLOURS)],
                va="center",
                fontsize=9,
                annotation_clip=False,
            )


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--sets", nargs="+", metavar="NAME", help="default: all")
    which.add_argument("--kept", action="store_true", help="the sets kept from every choice")
    which.add_argument("--chosen", action="store_true", help="the others")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--processes", type=int, default=1, help="jobs at once")
    parser.add_argument("--ray", metavar="ADDRESS", help="a Ray cluster; local: one started here")
    parser.add_argument("--steps", type=int, help="of a smoke test; default: the declared steps")
    parser.add_argument("--images", type=int, help="of a smoke test; default: those of the set")
    found = parser.parse_args(words)
    for name, least in (("processes", 1), ("steps", 1), ("images", 40)):
        value = getattr(found, name)
        if value is not None and value < least:
            parser.error(f"--{name}: expected at least {least}, got {value}")
    if min(found.seeds) < 0:
        parser.error(f"--seeds: expected whole numbers from 0, got {min(found.seeds)}")
    return found


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Do what is left to do, and write the table and the figure; the exit code."""
    jobs = planned(arguments, say)
    if arguments.ray is not None:
        check_installed("ray")
    out = arguments.out
    with locks.held(out):
        out.mkdir(parents=True, exist_ok=True)
        failed = work(out, jobs, arguments.processes, arguments.ray, say)
        results = with_codes(found for job in jobs if (found := read(out, job)) is not None)
        if results:
            text = table(results)
            with whole(out / "table.md") as path:
                path.write_text(text, encoding="utf-8")
            draw(out / "error.png", results)
            print(text)
    for line in failed:
        say(line)
    return 1 if failed else 0


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(words: Sequence[str] | None = None) -> int:
    arguments = parsed(words)
    # Of numpy and scikit-learn; processes inherit it, and torch is told by the pool.
    share = max(1, (os.cpu_count() or 1) // arguments.processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(share))
    try:
        with interrupts.raised():
            return run(arguments, say)
    except UserError as error:
        say(f"counting: {one_line(error)}")
        return 2
    except KeyboardInterrupt as error:
        say("interrupted; the same command goes on from here")
        return error.exit_code if isinstance(error, interrupts.Interrupted) else 130


if __name__ == "__main__":
    sys.exit(main())
