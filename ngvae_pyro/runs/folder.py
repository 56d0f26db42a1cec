"""The files of a run folder: which are its own, and how they are read and written."""

import json
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ngvae_pyro import files
from ngvae_pyro.errors import UserError, expect, nearest
from ngvae_pyro.files import read_text
from ngvae_pyro.records import CheckedMetrics, Metrics, RunRecord, check
from ngvae_pyro.report import pages as report
from ngvae_pyro.specs import SavedRun, parse
from ngvae_pyro.training.checkpoints import Checkpoints, is_own

CHECKPOINTS, METRICS, RECORD = "checkpoints", "metrics.json", "run.json"

# The files that a training writes into its run folder, besides checkpoints.
RESULTS = frozenset(
    {
        *("config.toml", "weights.safetensors", METRICS, "history.json", RECORD, "posterior.nc"),
        "report.html",
        *(f"figures/{name}.png" for name in report.RUN_FIGURES),
    }
)

# The files that later commands add; they depend on the weights.
ADDED = ("evaluation.json", "check.json", "figures/check.png")

# The tensors of a form that has units of its own.
UNITS = ("loc", "scale")

# Where the results are kept until they are complete.
_UNFINISHED = ".results.partial"


# A run's own files ---------------------------------------------------------------------------


def own_files(folder: Path) -> set[str]:
    """Relative paths of the files that are a run's own, whether or not they exist.

    Its ``run.json`` names them. If that was written by an earlier version and does not, they are
    those that a run may have: its results, its evaluation, and scores whose three files all exist.

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
    """The contents of a run folder; its record comes first and its configuration last."""
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
        UserError: If one exists that is not the run's own, is a link, or is reached through one.
    """
    own = own_files(folder)
    for name in sorted(names):
        files.check_no_link(folder, name)
        place = folder / name
        if place.exists() and (name not in own or not place.is_file()):
            raise UserError(f"{place}: is not of the run, and is not replaced; move it")


def claim(folder: Path, names: Iterable[str]) -> None:
    """Record files in ``run.json`` as the run's own, before they are written.

    Raises:
        UserError: As :func:`check_own`, or if ``run.json`` cannot be written.
    """
    names = set(names)
    check_own(folder, {*names, RECORD})
    # A folder that has lost its record gets a new one when its training is finished.
    if (folder / RECORD).exists():
        own = names | _there(folder, own_files(folder))
        write_json(folder / RECORD, {**load_record(folder), "files": sorted(own)})


# Reading -------------------------------------------------------------------------------------


def finished(folder: str | Path) -> bool:
    """Whether a folder is a run whose training is finished and whose results exist."""
    return (Path(folder) / METRICS).is_file()


def unfinished(folder: str | Path) -> bool:
    """Whether a folder is a run that :func:`ngvae_pyro.runs.resume` can continue."""
    return not finished(folder) and bool(Checkpoints(Path(folder) / CHECKPOINTS).names())


def _check_finished(folder: Path) -> None:
    if unfinished(folder):
        raise UserError(
            f"{folder}: its training is not finished; ngvae train --resume {folder} goes on with it"
        )


def _runs_in(folder: Path) -> list[str]:
    """Names of the run folders in a folder, sorted; none if it cannot be read."""
    try:
        return sorted(path.parent.name for path in folder.glob("*/config.toml"))
    except OSError:
        return []


def _check_run(folder: Path) -> None:
    """Raise a UserError if a folder is not a run; it suggests one that may be meant."""
    # Not the methods of Path, which raise for a name that is too long.
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
    """Read ``config.toml`` of a run folder.

    Its ``data.download`` is ignored: the folder may be somebody else's, and reading it must not
    download anything.

    Raises:
        UserError: If the folder does not exist or is not a run, or the file is damaged.
    """
    expect("folder", folder, (str, Path), "the name of a run folder")
    _check_run(Path(folder))
    path = Path(folder) / "config.toml"
    saved = parse(SavedRun, _read(path, tomllib.loads), str(path))
    return saved.model_copy(update={"data": saved.data.model_copy(update={"download": False})})


def load_metrics(folder: str | Path) -> Metrics:
    """Read ``metrics.json`` of a run folder."""
    found: Metrics = read_json(Path(folder) / METRICS, CheckedMetrics)
    return found


def load_record(folder: str | Path) -> dict[str, Any]:
    """Read ``run.json`` of a run folder: its seed, its time, where it was trained, its files."""
    record: dict[str, Any] = read_json(Path(folder) / RECORD, RunRecord)
    return record


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write indented JSON atomically.

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
    """Read a JSON file that must hold what a record declares (:func:`ngvae_pyro.records.check`).

    Raises:
        UserError: If it is missing, damaged, or lacks something.
    """
    values = _read(path, json.loads)
    check(record, values, str(path))
    return values


def _read(path: Path, loads: Callable[[str], Any]) -> dict[str, Any]:
    """Read the table in a file."""
    try:
        values = loads(read_text(path))
    except OSError as error:
        raise UserError(f"{path}: cannot read the file: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        # Also raised for overlong numbers and for deeply nested tables.
        raise UserError(f"{path}: damaged: {error}") from None
    # An array or a number has none of the keys that are checked next.
    return values if isinstance(values, dict) else {}
