"""Run folders, and what lies in and around them, as somebody may have left them.

A case of :class:`Arranged` starts from a run folder of a known state, changes it step by step
(files and folders put, replaced, linked, edited), runs one command, and is judged by what
:meth:`input_cases.Bench.judge` asks of every command, and by more: nothing that is not of the run
is gone or changed, nothing outside of the run folder is, and no number is read off other images.
"""

import csv
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from input_cases import (
    _PAIR,
    FITTING,
    GOOD,
    IMAGES,
    MISSING,
    WRONG,
    Bench,
    Result,
    lightened,
    npz,
    places,
    small_words,
    snapshot,
    toml,
)
from rich.console import Console
from safetensors.numpy import load, save

from ngvae_pyro import cli, runs
from ngvae_pyro.data import sources as data
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.errors import UserError
from ngvae_pyro.training import checkpoints
from ngvae_pyro.training.steps import NonFiniteLoss

TRAIN = small_words("gaussian", "gaussian")
COMPARE = ["compare", *small_words("", "", "c")[3:], *_PAIR]
SEED = "c/gaussian+gaussian/seed-0"
# Of a run that was written before there were more.
FIRST_KEYS = {"seed", "seconds", "starts"}

Step = tuple[Any, ...]


@dataclass
class Arranged:
    """A command and the folders that it finds.

    Args:
        kind: For the table.
        words: The command line.
        state: Of the run folder: finished, unfinished, diverged, older, compared or none.
        steps: What is done to the folders then, see :func:`arrange`.
        oracle: A further question; it gives a reason where the answer is wrong.
        then: A second command, which has to succeed where the first did.
        cap: Steps after which trainings end.
    """

    kind: str
    words: list[str]
    state: str = "none"
    steps: list[Step] = field(default_factory=list)
    oracle: "Callable[[Outcome], str] | None" = None
    then: list[str] = field(default_factory=list)
    env: dict[str, str | None] = field(default_factory=dict)
    encoding: str = "utf-8"
    cwd: str = "."
    cap: int = 2

    def __str__(self) -> str:
        def shown(step: Step) -> str:
            # Of a file of images a note says what it holds.
            parts = [part for part in step[1:] if len(step) < 4 or not isinstance(part, bytes)]
            return f"{step[0]}(" + ", ".join(f"{part!r:.80}" for part in parts) + ")"

        more = {"env": self.env, "encoding": self.encoding, "cwd": self.cwd, "then": self.then}
        usual = Arranged("", [])
        odd = {k: v for k, v in more.items() if v != getattr(usual, k)}
        steps = "; ".join(map(shown, self.steps))
        return f"{self.kind}, {self.state}: [{steps}] ngvae {self.words!r:.900} {odd or ''}"

    def run(self, bench: Bench) -> Result:
        folder = bench.emptied()
        _states(bench, folder, self.state)
        yours = {path for step in self.steps for path in arrange(bench, folder, step)}
        cwd, gone = folder / self.cwd, self.cwd == "gone"
        cwd.mkdir(exist_ok=True)
        before = {n: what for n, what in snapshot(folder).items() if n != "gone"}
        words = [word.replace("@", str(folder)) for word in self.words]
        with lightened(self.cap), environment(self.env):
            code, out, error = bench.main(cwd, words, self.encoding, gone)
            after = snapshot(folder)
            result = bench.judge(self, code, error, before, after)
            if self.then and code == 0 and not result.why:
                second, _, told = bench.main(cwd, self.then, self.encoding)
                if second != 0:
                    result = Result("failure", f"then {self.then}: exit {second}", told)
        found = Outcome(self, bench, folder, before, after, code, out, error)
        why = result.why or found.lost(yours) or (self.oracle(found) if self.oracle else "")
        return Result("failure" if why else result.outcome, why, result.error)


@dataclass
class Outcome:
    """What a case was, and what has become of it."""

    case: Arranged
    bench: Bench
    folder: Path
    before: dict[str, str]
    after: dict[str, str]
    code: Any
    out: str
    error: str

    def lost(self, yours: set[str]) -> str:
        """What is not of the run and is gone or changed."""
        under = tuple(f"{path}/" for path in yours)
        gone = [
            name
            for name, content in self.before.items()
            if (name in yours or name.startswith(under)) and self.after.get(name) != content
        ]
        return f"somebody's {gone[:5]} gone or changed" if gone else ""

    @property
    def changed(self) -> list[str]:
        names = {*self.before, *self.after}
        return sorted(n for n in names if self.before.get(n) != self.after.get(n))


@contextmanager
def environment(values: dict[str, str | None]) -> Iterator[None]:
    """With these environment variables; None is for one that is not set."""
    if not values:
        yield
        return
    with mock.patch.dict(os.environ, {k: v for k, v in values.items() if v is not None}):
        for name in (name for name, value in values.items() if value is None):
            os.environ.pop(name, None)
        # Rich asks the environment once, when a console is made.
        with (
            mock.patch.object(cli, "out", Console()),
            mock.patch.object(cli, "err", Console(stderr=True)),
        ):
            yield


# States and steps ----------------------------------------------------------------------------


def _stopped(save: Any, times: list[int]) -> Any:
    def saved(self: Any, snapshot: Any) -> None:
        if times:
            raise UserError("stopped")
        times.append(1)
        save(self, snapshot)

    return saved


def _make_states(bench: Bench) -> None:
    """An unfinished and a diverged run, beside the bench's finished one."""
    folder = bench.emptied()
    with lightened():
        save = checkpoints.Checkpoints.save
        with mock.patch.object(checkpoints.Checkpoints, "save", _stopped(save, [])):
            bench.main(folder, [*TRAIN, "--set", "fit.checkpoint_every=1"])
        assert runs.unfinished(folder / "run")
        (folder / "run").rename(bench.folder / "base" / "unfinished")
        diverged = mock.Mock(side_effect=NonFiniteLoss(1, float("inf"), float("inf")))
        with mock.patch("ngvae_pyro.runs.start.fit", diverged):
            assert bench.main(folder, TRAIN)[0] == 1
        (folder / "run").rename(bench.folder / "base" / "diverged")
        # What it says of its images, to compare with.
        shutil.copytree(bench.inside, folder / "run")
        assert bench.main(folder, ["score", "run", "--device", "cpu", "--size", "4"])[0] == 0
        shutil.copy(folder / "run" / "score_held_out.json", bench.folder / "base")


def prepared(bench: Bench) -> Path:
    """The folder with a run of each state, made when it is first asked for."""
    base = bench.folder / "base"
    if not (base / "unfinished").is_dir():
        _make_states(bench)
        bench.emptied()
    return base


def _states(bench: Bench, folder: Path, state: str) -> None:
    base = prepared(bench)
    if state == "compared":
        shutil.copytree(bench.compared, folder / "c")
    elif state != "none":
        name = {"unfinished": "unfinished", "diverged": "diverged"}.get(state)
        shutil.copytree(base / name if name else bench.inside, folder / "run")
    if state == "older":
        path = folder / "run" / "run.json"
        values = json.loads(path.read_text())
        path.write_text(json.dumps({key: values[key] for key in FIRST_KEYS & {*values}}))


def _cleared(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)


@contextmanager
def long_numbers() -> Iterator[None]:
    """Whole numbers of any length may be read and written."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(limit)


def rehashed(path: Path) -> None:
    """Make the hashes of a checkpoint's files those of what they hold now."""
    state = json.loads((path / checkpoints.STATE).read_text())
    sums = {
        name: hashlib.sha256((path / name).read_bytes()).hexdigest()
        for name in (checkpoints.WEIGHTS, checkpoints.OPTIMIZER)
    }
    if isinstance(state, dict) and isinstance(state.get("sha256"), dict):
        state["sha256"] = sums
        state["sha256"][checkpoints.STATE] = hashlib.sha256(
            json.dumps(state, sort_keys=True).encode()
        ).hexdigest()
    (path / checkpoints.STATE).write_text(json.dumps(state))


def arrange(bench: Bench, folder: Path, step: Step) -> list[str]:
    """Do one step in a folder; it gives the paths that are somebody's from then on.

    ``file``, ``folder`` (with a file in it), ``empty`` (without), ``link`` and ``other`` (another
    run) put something of somebody's; ``mine``, ``linked``, ``hard`` (a hard link) and ``lent``
    put what may be replaced; ``remove`` removes something; ``named`` has the run's own record
    name a path; ``state`` and ``tensor`` edit a checkpoint and make its hashes good again.
    """
    way, name, *more = step
    path = folder / name
    if way in ("file", "mine"):
        _cleared(path)
        path.write_bytes(more[0])
    elif way == "folder":
        _cleared(path)
        path.mkdir()
        (path / "data").write_bytes(b"years of work")
    elif way == "empty":
        _cleared(path)
        path.mkdir()
    elif way in ("link", "linked"):
        _cleared(path)
        path.symlink_to(more[0])
    elif way == "hard":
        _cleared(path)
        os.link(folder / more[0], path)
    elif way == "remove":
        _cleared(path)
    elif way in ("other", "lent"):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(bench.folder / "base" / more[0], path)
    elif way == "named":
        record = folder / name
        if record.is_file():
            record.write_text(json.dumps(_naming(json.loads(record.read_text()), more[0])))
    elif way in ("state", "tensor"):
        at = sorted((folder / name / "checkpoints").glob("step-*"))[-1]
        with long_numbers():
            (_edit_state if way == "state" else _edit_tensor)(at, *more)
            rehashed(at)
    else:
        raise AssertionError(way)
    return [name] if way in ("file", "folder", "empty", "link", "other") else []


def _naming(values: Any, name: str) -> Any:
    """A record in which every list of file names has one more."""
    if isinstance(values, dict):
        found = {key: _naming(value, name) for key, value in values.items()}
        if "config.toml" in values:
            found[name] = values["config.toml"]
        return found
    if isinstance(values, list):
        found_list = [_naming(value, name) for value in values]
        return [*found_list, name] if "config.toml" in values else found_list
    return values


def _edit_state(at: Path, path: tuple[Any, ...], value: Any) -> None:
    file = at / checkpoints.STATE
    state = json.loads(file.read_text())
    table = state
    for part in path[:-1]:
        table = table[part]
    if value is MISSING:
        del table[path[-1]]
    else:
        table[path[-1]] = value
    file.write_text(json.dumps(state))


def _edit_tensor(at: Path, name: str, index: int, way: str) -> None:
    tensors = load((at / name).read_bytes())
    key = sorted(tensors)[index % len(tensors)]
    value = tensors.pop(key)
    if way == "shape":
        tensors[key] = np.zeros((*value.shape, 2), value.dtype)
    elif way == "type":
        tensors[key] = value.astype(np.int8)
    elif way == "nan":
        tensors[key] = np.full(value.shape, np.nan, np.float32)
    elif way == "empty":
        tensors[key] = np.zeros(0, value.dtype)
    elif way == "large":
        tensors[key] = np.full(value.shape, 3e38, np.float32)
    elif way == "more":
        tensors |= {key: value, f"{key}.x": value}
    (at / name).write_bytes(save(tensors))


# Folders -------------------------------------------------------------------------------------


NAMES = ["thesis.csv", "backup.json", "paper.pdf", "notes.txt", "x.nc", "model.safetensors"]
NAMES += ["x.partial", "settings.toml", "results.html", "selection.png.bak", "data"]
NAMES += ["metrics.json.old", "config.toml~", "step-000000009-0", "checkpoints.zip", ".git"]
NAMES += ["score_mine.json", "mine.png", "evaluation.csv", ".x.partial.json", "metrics"]
WHERE = ["", "", "figures/", "checkpoints/", "checkpoints/keep/", "deep/er/", "figures/old/"]
WHERE += ["checkpoints/step-000000002-0/", "checkpoints/step-000000001-0/"]
# Where a run has a file or a folder of its own, and somebody now a folder with theirs.
OWN = ["metrics.json", "weights.safetensors", "evaluation.json", "report.html", "history.json"]
OWN += ["posterior.nc", "run.json", "figures/selection.png", "checkpoints/step-000000002-0"]
BESIDE = [".run.partial", ".run.old", ".run.lock", ".c.partial", "run.partial", "run.old"]
BESIDE += ["run.lock", ".s.partial.json"]
INSIDE = [".results.partial", ".metrics.partial.json", ".evaluation.partial.json"]
INSIDE += ["checkpoints/.step-000000002-0.partial", ".report.partial.html", ".figures.partial"]


def commands(state: str) -> list[list[str]]:
    """The commands that write into, or read, a run folder of this state."""
    if state == "compared":
        return [COMPARE]
    found = [[*TRAIN, "--overwrite"], [*TRAIN, "--overwrite"], ["train", "--resume", "run"]]
    if state in ("finished", "older"):
        score = ["score", "run", "--device", "cpu", "--size", "4"]
        found += [["evaluate", "run", "--device", "cpu"], score]
        found += [[*score, "--out", "s.json"], [*score, "--out", "run/s.json"]]
    return found


def folder_case(chance: random.Random) -> Arranged:
    """A run folder with somebody's files and folders in and beside it."""
    states = ["finished"] * 3 + ["unfinished"] * 2 + ["diverged", "older", "compared"]
    state = chance.choice(states)
    words = chance.choice(commands(state))
    root = "run/"
    if state == "compared":
        root = chance.choice(["c/", f"{SEED}/", "c/gaussian+gaussian/"])
    steps: list[Step] = []
    for _ in range(chance.randint(1, 3)):
        way = chance.choice(["put", "put", "put", "own", "beside", "inside", "forge"])
        put = chance.choice(["file", "folder", "folder", "empty"])
        more = (b"years of work",) if put == "file" else ()
        if way == "put":
            at = chance.choice(WHERE) if root in ("run/", f"{SEED}/") else ""
            steps.append((put, f"{root}{at}{chance.choice(NAMES)}", *more))
        elif way == "own" and root != "c/gaussian+gaussian/":
            own = ["comparison.json", "table.md", "table.csv", "report.html"]
            own = own if root == "c/" else OWN
            steps.append(("folder", f"{root}{chance.choice(own)}"))
        elif way == "beside":
            # An empty folder of one of these names is nobody's.
            steps.append(("folder" if put == "empty" else put, chance.choice(BESIDE), *more))
        elif way == "inside" and root in ("run/", f"{SEED}/"):
            # Files of these names are of a writing that was cut short.
            steps.append(("folder", f"{root}{chance.choice(INSIDE)}"))
        elif way == "forge" and root == "run/":
            steps.append(("file", "mine.txt", b"years of work"))
            steps.append(("file", "run/figures/mine.txt", b"years of work"))
            forged = ["../mine.txt", "figures/../../mine.txt", "..", ".", "", "figures/mine.txt/.."]
            name = chance.choice([*forged, "figures", "/etc/hostname"])
            steps.append(("named", f"{root}run.json", name))
        if "s.json" in words:
            # Of somebody's, for whom the file of that name is no score.
            name = chance.choice(["s.csv", "s.png", "s.json", "s"])
            steps.append((put, name, *more))
    return Arranged("folder, others' files", words, state, _apart(steps))


def _apart(steps: list[Step]) -> list[Step]:
    """Without steps that undo an earlier one, or that need a folder where a file is."""
    kept: list[Step] = []
    for step in steps:
        if step[0] == "named":
            kept.append(step)
            continue
        taken = [other[1] for other in kept if other[0] != "named"]
        if not any(_within(step[1], name) or _within(name, step[1]) for name in taken):
            kept.append(step)
    return kept


def _within(name: str, other: str) -> bool:
    return name == other or name.startswith(f"{other}/")


# Links ---------------------------------------------------------------------------------------


LINKED = ["", "checkpoints", "checkpoints", "figures", "figures/selection.png", "metrics.json"]
LINKED += ["config.toml", "weights.safetensors", "evaluation.json", "report.html", "run.json"]
LINKED += ["history.json", "posterior.nc", "checkpoints/step-000000002-0", "figures/scores.png"]
LINKED += ["checkpoints/step-000000001-0", "checkpoints/step-000000002-0/state.json"]
LINKED += ["checkpoints/step-000000001-0/weights.safetensors", "score_held_out.json"]
LINKED += [*INSIDE, *INSIDE, "figures/score_held_out.png", "extra"]


# What is cleared as a whole comes up most.
LINKED += ["checkpoints"] * 8 + ["figures"] * 4


def _only_its_own(found: Outcome) -> str:
    """Where the run folder itself is a link, a command that adds to it changes no other files."""
    gone = [n for n in found.before if n.startswith("elsewhere/") and n not in found.after]
    return f"{gone[:5]} gone" if gone else ""


def link_case(chance: random.Random) -> Arranged:
    """A run folder in which something is a link to elsewhere."""
    state = chance.choice(
        ["finished", "finished", "unfinished", "unfinished", "diverged", "compared"]
    )
    words = chance.choice(commands(state))
    at = chance.choice(LINKED)
    root = "c" if state == "compared" else "run"
    if state == "compared":
        names = ["", "gaussian+gaussian", "gaussian+gaussian/seed-0", "figures", "table.md"]
        names += [f"gaussian+gaussian/seed-0/{at}", ".table.partial.md", "report.html"]
        at = chance.choice(names).rstrip("/")
    name = f"{root}/{at}" if at else root
    other = {"unfinished": "unfinished", "diverged": "diverged", "compared": "c"}.get(state)
    other = other or "c/gaussian+gaussian/seed-0"
    up = "../" * name.count("/")
    same = f"{up}elsewhere/{name}"
    targets = [same] * 8 + [f"{up}elsewhere/{n}" for n in ("folder", "mine.txt", "nowhere")]
    target = chance.choice([*targets, name.rpartition("/")[2], ".", "..", "/dev/null"])
    steps: list[Step] = [
        ("other", f"elsewhere/{root}", other),
        ("folder", "elsewhere/folder"),
        ("file", "elsewhere/mine.txt", b"years of work"),
    ]
    if at in (*INSIDE, "extra") or at.startswith("score"):
        target = chance.choice([f"{up}elsewhere/folder", f"{up}elsewhere/mine.txt"])
    if not chance.randint(0, 9):
        name = chance.choice(BESIDE[:4])
        target = chance.choice(["elsewhere/folder", "elsewhere/mine.txt"])
    if name.endswith((".json", ".html")) and chance.random() < 0.5:
        steps.append(("hard", name, "elsewhere/mine.txt"))
    else:
        # A link of the run's own name may be replaced by what belongs there.
        steps.append(("link" if at == "extra" else "linked", name, target))
    if name in ("run", "c", "c/gaussian+gaussian", SEED) and words[0] != "train":
        # What is named is added to, as its own would be; what else is elsewhere stays.
        steps[0] = ("lent", *steps[0][1:])
    return Arranged("folder, links", words, state, steps, _only_its_own)


# Data ----------------------------------------------------------------------------------------


@cache
def changes() -> dict[str, bytes]:
    """What a file of images may hold after a training, by what was done to it."""
    more = np.concatenate([GOOD, GOOD[:3]])
    one = GOOD.copy()
    one[0, 0, 0] ^= 1
    found = {
        "reordered": {"imgs": GOOD[::-1]},
        "rolled": {"imgs": np.roll(GOOD, 1, 0)},
        "turned": {"imgs": GOOD.transpose(0, 2, 1)},
        "fewer": {"imgs": GOOD[:20]},
        "more": {"imgs": more},
        "one pixel": {"imgs": one},
        "other": {"imgs": 255 - GOOD},
        "smaller": {"imgs": GOOD[:, :24, :24]},
        "colour": {"imgs": np.repeat(GOOD[..., None], 3, -1)},
        "floats": {"imgs": (GOOD / 255).astype(np.float32)},
        "binary": {"imgs": (GOOD > 128).astype(np.uint8)},
        "two": {"imgs": GOOD[:2]},
        "last axis": {"imgs": GOOD[..., None]},
        "fortran": {"imgs": np.asfortranarray(GOOD)},
        "held out trained on": {"imgs": GOOD[np.random.default_rng(1).permutation(24)]},
    }
    return {name: npz(arrays) for name, arrays in found.items()} | {
        "stored": npz({"imgs": GOOD}, False)
    }


def _plain(path: Path) -> Any:
    values = json.loads(path.read_text())
    for key in ("seconds", "aggregate"):
        values.pop(key, None)
    return values


def _same_images(one: Path, other: Path) -> bool:
    try:
        first, second = (ImageData.to_unit(data.load(path).images) for path in (one, other))
    except UserError:
        return False
    return first.shape == second.shape and bool((first == second).all())


def _of_its_images(found: Outcome) -> str:
    """Success only with the images of the training, or with their numbers."""
    words, folder = found.case.words, found.folder
    if found.code != 0 or "--overwrite" in words:
        return ""
    base = found.bench.folder / "base"
    where = folder / found.case.cwd / IMAGES
    if _same_images(where, base / IMAGES):
        return ""
    if words[0] == "train" and (not found.changed or _same_images(folder / IMAGES, base / IMAGES)):
        # It was finished, and nothing was done; or it has found them where it was trained.
        return ""
    if words[0] in ("evaluate", "score"):
        name = {"evaluate": "evaluation.json", "score": "score_held_out.json"}[words[0]]
        own = base / name if words[0] == "score" else found.bench.inside / name
        got = folder / "run" / name
        if got.is_file() and _plain(got) == _plain(own):
            return ""
    return "success on other images"


def data_case(chance: random.Random) -> Arranged:
    """A run whose images are no longer those that it was trained on."""
    state = chance.choice(["finished", "finished", "finished", "unfinished", "compared"])
    score = ["score", "run", "--device", "cpu", "--size", "4"]
    if state == "compared":
        lines = [COMPARE, [*COMPARE, "--seeds", "2"]]
    elif state == "unfinished":
        lines = [["train", "--resume", "run"]]
    else:
        lines = [["evaluate", "run", "--device", "cpu"], score, ["train", "--resume", "run"]]
        lines += [["evaluate", "run", "--device", "cpu"], score]
    words = chance.choice(lines)
    steps: list[Step] = []
    if words == COMPARE and chance.random() < 0.5:
        steps.append(("remove", f"{SEED}/evaluation.json"))
    how = chance.choice(sorted(changes()))
    way = chance.choice(["change"] * 6 + ["elsewhere", "elsewhere", "remove", "folder", "link"])
    case = Arranged("data changed after training", words, state, steps, _of_its_images)
    if way == "change":
        steps.append(("mine", IMAGES, changes()[how], how))
    elif way == "elsewhere" and state != "compared":
        case.words = ["../run" if word == "run" else word for word in words]
        case.cwd = "other"
        if chance.random() < 0.5:
            steps.append(("mine", f"other/{IMAGES}", changes()[how], how))
        else:
            steps.append(("empty", "other"))
    elif way == "folder":
        steps.append(("folder", IMAGES))
    elif way == "link":
        steps += [("file", "elsewhere.npz", changes()[how], how), ("link", IMAGES, "elsewhere.npz")]
    else:
        steps.append(("remove", IMAGES))
    return case


# Checkpoints with good hashes ----------------------------------------------------------------


@cache
def _state_places(base: Path) -> list[tuple[Any, ...]]:
    at = sorted((base / "unfinished" / "checkpoints").glob("step-*"))[-1]
    state = json.loads((at / checkpoints.STATE).read_text())
    # Those of the hashes are made good again.
    return [path for path in places(state) if path and path[0] != "sha256"]


def _trained_to_its_end(found: Outcome) -> str:
    if found.code != 0:
        return ""
    steps = json.loads((found.folder / "run" / "metrics.json").read_text())["steps"]
    rows = json.loads((found.folder / "run" / "history.json").read_text())["rows"]
    if steps != 2:
        return f"success after {steps} of 2 steps"
    if not rows or rows[-1]["step"] != 2:
        return f"success with a history that ends with {rows[-1:]}"[:300]
    return ""


def checkpoint_case(chance: random.Random, bench: Bench) -> Arranged:
    """An unfinished run whose checkpoint was edited, with hashes of what it holds now."""
    values = [*WRONG, 0, 1, 2, 3, 10**6, -1, 0.5, "2", None, [1], [{}], {"step": 2}]
    if chance.randint(0, 3):
        paths = _state_places(prepared(bench))
        # What is identical has to be so, which one look finds out.
        position = [path for path in paths if path[0] == "position"]
        path = chance.choice(position if chance.randint(0, 3) else paths)
        step: Step = ("state", "run", path, chance.choice(values))
    else:
        name = chance.choice([checkpoints.WEIGHTS, checkpoints.OPTIMIZER])
        ways = ["shape", "type", "nan", "empty", "gone", "more", "large"]
        step = ("tensor", "run", name, chance.randint(0, 40), chance.choice(ways))
    words = ["train", "--resume", "run"]
    return Arranged("checkpoint, good hashes", words, "unfinished", [step], _trained_to_its_end)


# Environments --------------------------------------------------------------------------------


RANKS = ["", "0", "1", "2", "-1", "abc", "1.5", "10", "99999999999999999999", " ", "\u0661"]
ENVIRONMENTS: list[dict[str, str | None]] = [{"HOME": None}, {"HOME": "/no/such/home"}]
ENVIRONMENTS += [{"TMPDIR": "/no/such/folder"}, {"TERM": "dumb"}, {"NO_COLOR": "1"}]
ENVIRONMENTS += [{"FORCE_COLOR": "1"}, {"LANG": "xx_YY", "LC_ALL": "xx_YY"}, {"TZ": "x/y"}]
ENVIRONMENTS += [{"COLUMNS": w} for w in ("0", "1", "2", "10", "-5", "x", "", "4000")]
ENVIRONMENTS += [{"OMP_NUM_THREADS": "x"}, {"PATH": None}, {"USER": None, "LOGNAME": None}]
ENVIRONMENTS += [{"COLUMNS": "1", "LINES": "1", "TTY_COMPATIBLE": "1"}]
ENCODINGS = ["latin-1", "ascii", "cp1252", "koi8-r", "utf-16", "shift_jis", "utf-8"]


def environment_case(chance: random.Random) -> Arranged:
    """A good command in an odd environment: variables, encodings, names, working folders."""
    run = [["inspect", "run"], ["evaluate", "run", "--device", "cpu"], ["variants"], TRAIN]
    run += [
        ["score", "run", "--device", "cpu", "--size", "4"],
        ["train", "--resume", "run"],
        COMPARE,
    ]
    words = chance.choice(run)
    state = "finished" if "run" in words[1:3] else "compared" if words is COMPARE else "none"
    case = Arranged("environment", words, state)
    way = chance.choice(["ranks", "ranks", "plain", "encoding", "names", "gone"])
    if way == "ranks":
        names = ["WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"]
        case.env = {name: chance.choice([*RANKS, None]) for name in names}
        # Never so that it would wait for others.
        case.env |= {"MASTER_ADDR": None, "MASTER_PORT": None}
    elif way == "plain":
        case.env = dict(chance.choice(ENVIRONMENTS))
    elif way == "encoding":
        case.encoding = chance.choice(ENCODINGS)
        case.env = {"PYTHONIOENCODING": case.encoding}
    elif way == "names":
        name = chance.choice(["r\udcff", "\u00e9", "r|x", "[red]r[/]", "r\nx", "r\x1b[2J", "$r$"])
        name = chance.choice([name, f"{name}.x", name * 3])
        case.encoding = chance.choice(["utf-8", "ascii"])
        case.state = "none"
        what = chance.choice(["out", "images", "model"])
        case.words = small_words("gaussian", "gaussian", name)
        case.then = chance.choice([["inspect"], ["evaluate"], ["train", "--resume"]])
        case.then = [*case.then, name]
        if what == "images":
            case.steps = [("mine", f"{name}.npz", npz({"imgs": GOOD}))]
            case.words = [f"{name}.npz" if w == IMAGES else w for w in TRAIN]
            case.then[-1] = "run"
        elif what == "model":
            prior = {"prior": {"family": "gaussian"}, "decoder": {"width": 4}}
            case.steps = [("mine", f"{name}.toml", toml(prior))]
            case.words = [
                f"{name}.toml" if w == "gaussian" and i == 1 else w for i, w in enumerate(TRAIN)
            ]
            case.then[-1] = "run"
    else:
        case.cwd = "gone"
        case.words = [f"@/{w}" if w in ("run", IMAGES, "c") else w for w in words]
    return case


# Contradictions ------------------------------------------------------------------------------


TWICE = [("--seed", "fit.seed", ["3", "7"]), ("--steps", "fit.steps", ["2", "3"])]
TWICE += [("--latents", "model.latent_size", ["2", "3"])]
TWICE += [("--device", "fit.device", ["cpu", "auto"])]
TWICE += [("--data-root", "data.root", ["data", "elsewhere"])]
TWICE += [("--data", "data.name", [IMAGES, "other.npz"])]


def _refused(found: Outcome) -> str:
    return "a contradiction was taken" if found.code == 0 else ""


def contradiction_case(chance: random.Random) -> Arranged:
    """One key given twice; exit code 2 where the two differ."""
    option, key, values = chance.choice(TWICE)
    first, second = chance.choice(values), chance.choice(values)
    plain = {"fit.steps": ["--steps", "2"], "fit.batch_size": ["--set", "fit.batch_size=8"]}
    plain |= {"fit.device": ["--device", "cpu"], "model.latent_size": ["--latents", "2"]}
    plain |= {"data.name": ["--data", IMAGES]}
    plain |= {k: ["--set", f"{k}=4"] for k in ("model.decoder.width", "guide.encoder.width")}
    given = [word for name, words in plain.items() if name != key for word in words]
    command = chance.choice(["train", "train", "compare"])
    start = ["train", "gaussian", "gaussian", "--out", "run"]
    if command == "compare":
        start = ["compare", "--out", "run", *_PAIR]
        if option == "--seed":
            # It has --first-seed and --seeds in its place.
            option, first, second = "--first-seed", "3", "7"
    as_set = [["--set", f"{key}={value}"] for value in (first, second)]
    pairs = [[[option, first], as_set[1]], [as_set[0], [option, second]], as_set]
    pairs += [[[option, first], [option, second]]]
    twice = [word for words in chance.choice(pairs) for word in words]
    steps: list[Step] = [("mine", "other.npz", changes()["other"], "other")]
    words = [*start, *given, *twice]
    oracle = _refused if first != second else None
    return Arranged("contradiction", words, "none", steps, oracle)


# Labels --------------------------------------------------------------------------------------


LABELS = ["a|b", "|", "a\\|b", "a\nb", "[red]x[/red]", "[/red]", "<script>alert(1)</script>", "`x`"]
LABELS += ["$\\x$", "**b**", "\x1b[2J", "a,b", '"', "'", "=1+1", "é\u202e", "  ", "x" * 200]
LABELS += ["&amp;"]
LABELS += ["](javascript:x)", "![x](http://x/y.png)", "</title>", "{{ x }}", "{% x %}", "\u2028"]
LABELS += ["\ufeff"]


def _tables_hold(found: Outcome) -> str:
    """Every row of a table has as many cells as its head, and no text has become markup."""
    if found.code != 0:
        return ""
    for path in found.folder.rglob("*.md"):
        rows = [row for row in path.read_text().splitlines() if row.lstrip().startswith("|")]
        cells = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
        if len(cells) > 1:
            return f"{path.name}: rows of {sorted(cells)} bars"
    for path in found.folder.rglob("*.csv"):
        read = csv.reader(io.StringIO(path.read_text(), newline=""))
        if len({len(row) for row in read}) > 1:
            return f"{path.name}: rows of different lengths"
    for path in found.folder.rglob("*.html"):
        page = path.read_text()
        if "<script>alert" in page or page.lower().count("</title>") > 1:
            return f"{path.name}: text became markup"
    if any(not line.isprintable() for line in found.out.splitlines()):
        return "stdout: steers the terminal"
    return ""


def label_case(chance: random.Random) -> Arranged:
    """Names and labels that mean something to tables, pages and terminals."""
    odd = "".join(chance.choices("|\\[]<>&$`*_\n\t\"' a", k=chance.randint(1, 8)))
    label = chance.choice([*LABELS, *LABELS, *[odd] * 9])
    command = chance.choice(["compare", "compare", "train"])
    steps: list[Step] = []
    if chance.random() < 0.5:
        guide: Any = {"family": "gaussian", "label": label, "encoder": {"width": 4}}
        name = "g"
    else:
        guide = {"family": "gaussian", "encoder": {"width": 4}}
        name = re.sub(r"[/\0,]", "_", label).strip() or "x"
    steps.append(("mine", f"{name}.toml", toml(guide)))
    if command == "train":
        words = ["train", "gaussian", f"{name}.toml", *TRAIN[3:]]
        then = chance.choice([["inspect", "run"], ["evaluate", "run"]])
        return Arranged("labels", words, "none", steps, _tables_hold, then)
    pairs = [f"gaussian+{name}.toml", "gaussian+gaussian"][: chance.randint(1, 2)]
    words = ["compare", *small_words("", "", "c")[3:], "--jobs", "1"]
    words += [word for pair in pairs for word in ("--pairs", pair)]
    return Arranged("labels", words, "none", steps, _tables_hold)


# Degenerate images ---------------------------------------------------------------------------


def degenerate_case(chance: random.Random) -> Arranged:
    """Images of which hardly anything varies, and a guide of each kind."""
    # Of which the guides of the normal-gamma prior make moves and look at correlations.
    prior = chance.choice(["normal_gamma"] * 3 + sorted(FITTING))
    guide = chance.choice(FITTING[prior])
    count, size = chance.choice([(24, 8), (60, 8), (40, 16)])
    pixels = np.random.default_rng(chance.randint(0, 9))
    ways = ["constant", "constant", "ten", "pixel", "two", "black", "white", "one other", "grid"]
    way = chance.choice(ways)
    images = np.full((count, size, size), 77, np.uint8)
    if way == "ten":
        images = pixels.integers(0, 256, (10, size, size)).astype(np.uint8)[np.arange(count) % 10]
    elif way == "pixel":
        images[:, 3, 3] = pixels.integers(0, 256, count)
    elif way == "two":
        images[::2] = 200
    elif way == "one other":
        images[0] = 200
    elif way in ("black", "white"):
        images[:] = 255 * (way == "white")
    elif way == "grid":
        images[:] = pixels.integers(0, 256, (size, size))
    steps = chance.choice([2, 30, 60])
    changed = {"fit.steps=2": f"fit.steps={steps}", "model.latent_size=2": "model.latent_size=5"}
    words = [changed.get(word, word) for word in small_words(prior, guide)]
    then = chance.choice([[], ["evaluate", "run", "--device", "cpu"], ["inspect", "run"]])
    step = ("mine", IMAGES, npz({"imgs": images}), f"{way} {images.shape}")
    case = Arranged("degenerate images", words, "none", [step])
    case.then, case.cap = then, steps
    return case


# Locks ---------------------------------------------------------------------------------------


LONG = [w if w != "fit.steps=2" else "fit.steps=300" for w in TRAIN]
HELD = [SEED if w == "run" else w for w in LONG]
COMPARE_LONG = [w if w != "fit.steps=2" else "fit.steps=300" for w in COMPARE]


@dataclass
class Held:
    """A command on a folder that another process trains into.

    Args:
        when: ``starting``, before its folder is there; ``begun``, after; ``killed``, when it was
            begun and is no more, and has left what a crash leaves.
        words: The command.
    """

    when: str
    words: list[str]
    kind: str = "folder, held by another process"

    def __str__(self) -> str:
        return f"{self.kind}, {self.when}: ngvae {self.words!r}"

    def run(self, bench: Bench) -> Result:
        folder = bench.emptied()
        (folder / SEED).parent.mkdir(parents=True)
        holder = subprocess.Popen(
            [sys.executable, "-m", "ngvae_pyro", *HELD],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            run = folder / SEED
            while not run.is_dir():
                beside = [path.name for path in run.parent.iterdir()]
                if self.when == "starting" and any("seed-0" in name for name in beside):
                    break
                assert holder.poll() is None, "the other process has ended"
                time.sleep(0.002)
            # It holds what it holds, and changes nothing that could be taken for the other's doing.
            holder.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, holder.pid, os.WSTOPPED)
            if self.when == "killed":
                holder.kill()
                holder.wait()
            before = snapshot(folder)
            resumed = "--resume" in self.words
            with lightened(300 if resumed or "compare" in self.words else 2):
                code, _, error = bench.main(folder, self.words)
            result = bench.judge(self, code, error, before, snapshot(folder))
            why = result.why
            if not why and self.when == "killed" and code != 0:
                why = f"exit {code} after the other was killed"
            elif not why and self.when != "killed":
                if code != 2:
                    why = f"exit {code} while another process has the folder"
                elif str(holder.pid) not in error:
                    why = "the line does not name the process"
            return Result("failure" if why else result.outcome, why, error[-2000:])
        finally:
            with suppress(ProcessLookupError):
                holder.kill()
            holder.wait()


def lock_cases() -> list[Held]:
    """All of them; each takes the start of a process."""
    overwrite = [SEED if w == "run" else w for w in [*TRAIN, "--overwrite", "--seed", "2"]]
    plain = [SEED if w == "run" else w for w in [*TRAIN, "--seed", "2"]]
    resume = ["train", "--resume", SEED]
    return [
        Held("begun", overwrite),
        Held("begun", resume),
        Held("starting", plain),
        Held("killed", resume),
        Held("starting", overwrite),
        Held("killed", overwrite),
        Held("begun", COMPARE_LONG),
        Held("starting", COMPARE_LONG),
    ]


KINDS: dict[str, Callable[[random.Random, Bench], Arranged]] = {
    "folders": lambda chance, bench: folder_case(chance),
    "links": lambda chance, bench: link_case(chance),
    "data": lambda chance, bench: data_case(chance),
    "checkpoints": checkpoint_case,
    "environments": lambda chance, bench: environment_case(chance),
    "contradictions": lambda chance, bench: contradiction_case(chance),
    "labels": lambda chance, bench: label_case(chance),
    "degenerate": lambda chance, bench: degenerate_case(chance),
}
