"""The files of a run folder: which are its own, and how each is read and written."""

import json
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ngvae_pyro import files
from ngvae_pyro.errors import UserError, expect, nearest
from ngvae_pyro.extras import needed
from ngvae_pyro.files import read_text
from ngvae_pyro.records import CheckedMetrics, Metrics, RunRecord, check
from ngvae_pyro.report import pages as report
from ngvae_pyro.specs import SavedRun, parse
from ngvae_pyro.training.checkpoints import Checkpoints, is_own

with needed("cli"):
    pass
with needed("train"):
    pass


CHECKPOINTS, METRICS, RECORD = "checkpoints", "metrics.json", "run.json"

# What a training writes into its run folder, besides checkpoints.
RESULTS = frozenset(
    {
        *("config.toml", "weights.safetensors", METRICS, "history.json", RECORD, "posterior.nc"),
        "report.html",
        *(f"figures/{name}.png" for name in report.RUN_FIGURES),
    }
)

# What later commands add, of the weights that are there.
ADDED = ("evaluation.json", "check.json", "figures/check.png")

# The tensors of a form, where it has units of its own.
UNITS = ("loc", "scale")

# Where the results lie until all of them are there.
_UNFINISHED = ".results.partial"


# What is a run's own -------------------------------------------------------------------------


def own_files(folder: Path) -> set[str]:
    """Relative paths of the files that are a run's own, whether or not they are there.

    Its ``run.json`` names them. One of an earlier version does not; then they are those that a run
    may have: its results, its evaluation, and scores of which all three files are there.

    Raises:
        UserError: If ``run.json`` is damaged.
    """
    if not os.path.lexists(folder / RECORD):
        return set(RESULTS)
    record = load_record(folder)
    if record.get("files") is not None:
        return set(record["files"])
    own = {*RESULTS, "evaluation.json"}
    for path in folder.glob("score_*.json"):
        score = {path.name, f"{path.stem}.csv", f"figures/{path.stem}.png"}
        if score == _there(folder, score):
            own |= score
    return own


def _there(folder: Path, names: Iterable[str]) -> set[str]:
    return {name for name in names if (folder / name).is_file()}


def contents(folder: Path) -> files.Contents:
    """What a run folder holds, told apart; its record comes first and its configuration last."""
    names = own_files(folder)
    own = {path.as_posix() for path in files.with_partial(*names)}
    own |= {f"{_UNFINISHED}/{path.as_posix()}" for path in files.with_partial(*RESULTS)}
    own |= {f"{parent}/" for name in own for parent in PurePosixPath(name).parents}
    inside = f"{CHECKPOINTS}/"
    mine, foreign = files.contents(
        folder,
        lambda name: (
            name == inside
            or name in own
            or (name.startswith(inside) and is_own(name.removeprefix(inside)))
        ),
    )
    order = {folder / RECORD: 0, folder / "config.toml": 2}
    return sorted(mine, key=lambda path: order.get(path, 1)), foreign


def check_own(folder: Path, names: Iterable[str]) -> None:
    """Make sure that files may be written into a run folder.

    Raises:
        UserError: If one is there that is not of the run, or is a link or in one.
    """
    own = own_files(folder)
    for name in sorted(names):
        files.check_no_link(folder, name)
        place = folder / name
        if place.exists() and (name not in own or not place.is_file()):
            raise UserError(f"{place}: is not of the run, and is not replaced; move it")


def claim(folder: Path, names: Iterable[str]) -> None:
    """Name files in ``run.json`` as the run's own, before they are written.

    Raises:
        UserError: As :func:`check_own`, or if ``run.json`` cannot be written.
    """
    names = set(names)
    check_own(folder, {*names, RECORD})
    # A folder that has lost its record has one again when its training is finished.
    if (folder / RECORD).exists():
        own = names | _there(folder, own_files(folder))
        write_json(folder / RECORD, {**load_record(folder), "files": sorted(own)})


# Reading -------------------------------------------------------------------------------------


def finished(folder: str | Path) -> bool:
    """Whether a folder is a run that was trained to its end and has its results."""
    return (Path(folder) / METRICS).is_file()


def unfinished(folder: str | Path) -> bool:
    """Whether a folder is a run that :func:`resume` can go on with."""
    return not finished(folder) and bool(Checkpoints(Path(folder) / CHECKPOINTS).names())


def _check_finished(folder: Path) -> None:
    if unfinished(folder):
        raise UserError(
            f"{folder}: its training is not finished; ngvae train --resume {folder} goes on with it"
        )


def _runs_in(folder: Path) -> list[str]:
    """Names of the run folders in a folder, sorted; none where it cannot be looked into."""
    try:
        return sorted(path.parent.name for path in folder.glob("*/config.toml"))
    except OSError:
        return []


def _check_run(folder: Path) -> None:
    """Raise a UserError, which names the run that may be meant, if a folder is none."""
    # Not the methods of a path, which raise for a name that is too long.
    if os.path.exists(folder / "config.toml"):
        return
    if os.path.isdir(folder):
        inside = _runs_in(folder)
        hint = f"; did you mean '{folder / inside[0]}'?" if inside else ""
        raise UserError(f"{folder}: is not a run folder (no config.toml){hint}")
    prefix = "" if folder.parent == Path() else f"{folder.parent / 'x'}"[:-1]
    hint = nearest(folder.name, _runs_in(folder.parent), prefix)
    there = "is not a folder" if os.path.exists(folder) else "no such run folder"
    raise UserError(f"{folder}: {there}{hint}")


def load_spec(folder: str | Path) -> SavedRun:
    """``config.toml`` of a run folder.

    Its ``data.download`` is not obeyed: the folder may be another's, and reading it fetches
    nothing.

    Raises:
        UserError: If the folder is not there or no run, or the file is damaged.
    """
    expect("folder", folder, (str, Path), "the name of a run folder")
    _check_run(Path(folder))
    path = Path(folder) / "config.toml"
    saved = parse(SavedRun, _read(path, tomllib.loads), str(path))
    return saved.model_copy(update={"data": saved.data.model_copy(update={"download": False})})


def load_metrics(folder: str | Path) -> Metrics:
    """``metrics.json`` of a run folder."""
    found: Metrics = read_json(Path(folder) / METRICS, CheckedMetrics)
    return found


def load_record(folder: str | Path) -> dict[str, Any]:
    """``run.json`` of a run folder: its seed, its seconds, where it was trained, its files."""
    record: dict[str, Any] = read_json(Path(folder) / RECORD, RunRecord)
    return record


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Indented JSON, there whole or not at all.

    Raises:
        UserError: For NaN and infinity, which JSON does not have, or if it cannot be written.
    """
    try:
        text = json.dumps(values, indent=2, allow_nan=False)
    except ValueError:
        raise UserError(f"{path}: not written, because a value is NaN or infinite") from None
    with files.writing(path):
        files.write(path, f"{text}\n".encode())


def read_json(path: Path, record: Any) -> Any:
    """A JSON file that holds what a record declares (:func:`ngvae_pyro.records.check`).

    Raises:
        UserError: If it cannot be read, or does not hold that.
    """
    values = _read(path, json.loads)
    check(record, values, str(path))
    return values


def _read(path: Path, loads: Callable[[str], Any]) -> dict[str, Any]:
    """The table that a file holds."""
    try:
        values = loads(read_text(path))
    except OSError as error:
        raise UserError(f"{path}: cannot read the file: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        # Also of numbers too long to be read, and of tables in tables in tables.
        raise UserError(f"{path}: damaged: {error}") from None
    # An array, or a number, has none of the keys that are looked for next.
    return values if isinstance(values, dict) else {}
