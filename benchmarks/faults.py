"""Trainings that are killed, interrupted and starved, and what becomes of them.

    python benchmarks/faults.py --out runs/faults.json

A small training runs once from start to end. Then it runs again and again as a process of its own
that is ended on the way, goes on by ``ngvae train --resume``, and has to end with the very bytes of
the first one in ``weights.safetensors``, ``metrics.json`` and ``history.json``:

- *kill*: SIGKILL at a random step of the first third and up to 4 s later, inside of a move or not;
- *kill while writing*: SIGKILL before a random one of the calls that change the disk (flushing,
  renaming, making and removing files and folders) while checkpoints and results are written;
- *SIGTERM* and *SIGINT* at such a moment: the process has to end with 143 or 130 and one line;
- *full disk*: a file system that is too small for the results, then for a second checkpoint;
- *read-only disk*: a file system that takes nothing more from such a moment on.

In the last two the process has to end with 2 and one line. They need root, to mount file systems.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from ngvae_pyro import runs
from ngvae_pyro.training.checkpoints import Checkpoints

STEPS = 400
RUN = [
    *("normal_gamma", "relaxed", "--data", "sprites", "--steps", STEPS, "--device", "cpu"),
    *("--latents", 4, "--set", "data.size=300", "--set", "fit.batch_size=16"),
    *("--set", "model.decoder.width=16", "--set", "guide.encoder.width=16"),
    *("--set", "fit.checkpoint_every=20", "--set", "fit.monitor_every=50"),
]
RESULTS = ("weights.safetensors", "metrics.json", "history.json")

# Dies before the n-th call that changes the disk in the writing of checkpoints and results; counts
# them if n is -1.
DYING = """
import atexit, os, pathlib, signal, sys
from ngvae_pyro import checkpoints, cli, files, runs
left, counted, inside = [int(os.environ["DIES_AT"])], [0], [0]
def dying(call):
    def done(*words, **settings):
        if inside[0]:
            counted[0] += 1
            if counted[0] == left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
        return call(*words, **settings)
    return done
def within(call):
    def done(*words, **settings):
        inside[0] += 1
        try:
            return call(*words, **settings)
        finally:
            inside[0] -= 1
    return done
for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
    setattr(os, name, dying(getattr(os, name)))
checkpoints.Checkpoints.save = within(checkpoints.Checkpoints.save)
runs._add_results = within(runs._add_results)
if left[0] < 0:
    atexit.register(lambda: pathlib.Path(os.environ["COUNT"]).write_text(str(counted[0])))
cli.main()
"""


def start(*words: Any, code: str | None = None, **environment: Any) -> subprocess.Popen[str]:
    """``ngvae`` with some words, in a process of its own and with one thread."""
    program = ["-m", "ngvae_pyro"] if code is None else ["-c", code]
    variables = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        **{k: str(v) for k, v in environment.items()},
    }
    return subprocess.Popen(
        [sys.executable, *program, *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **{name: str(value) for name, value in variables.items()}},
    )


def said(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """How a process ended, and the lines that it left on stderr besides those on its progress."""
    _, text = process.communicate()
    return process.returncode, [line for line in text.splitlines() if not line.startswith("step ")]


def hashes(folder: Path) -> dict[str, str]:
    return {name: sha256((folder / name).read_bytes()).hexdigest() for name in RESULTS}


class Case:
    """One training that is ended on the way."""

    def __init__(self, folder: Path, calls: int, rng: random.Random) -> None:
        self.folder, self.calls, self.rng = folder, calls, rng

    def process(self, code: str | None = None, **environment: Any) -> subprocess.Popen[str]:
        return start("train", *RUN, "--out", self.folder, code=code, **environment)

    def moment(self, process: subprocess.Popen[str]) -> None:
        """Wait for a random step before the moves, and a random time: it may end inside of one."""
        kept, target = Checkpoints(self.folder / "checkpoints"), self.rng.randint(1, STEPS // 3)
        while process.poll() is None:
            if (names := kept.names()) and int(names[-1].split("-")[1]) >= target:
                break
            time.sleep(0.005)
        time.sleep(self.rng.uniform(0.0, 4.0))

    def end(self, signum: signal.Signals) -> str:
        """End it by a signal at a random moment, before it is over by itself."""
        while True:
            process = self.process()
            self.moment(process)
            process.send_signal(signum)
            code, lines = said(process)
            if code != 0:
                break
            shutil.rmtree(self.folder)
        wanted = (-signum, 0) if signum == signal.SIGKILL else (128 + signum, 1)
        return self.expect((code, len(lines)) == wanted, f"exit {code}: {lines}")

    def kill_while_writing(self) -> str:
        at = self.rng.randint(1, self.calls)
        code, _ = said(self.process(DYING, DIES_AT=at))
        return self.expect(code == -signal.SIGKILL, f"exit {code} at call {at} of {self.calls}")

    def starve(self, enough: Callable[[], Any]) -> str:
        """End by a disk that takes no more; ``enough`` gives it room again."""
        code, lines = said(self.process())
        self.expect(code == 2 and len(lines) == 1, f"exit {code}: {lines}")
        enough()
        return lines[0].partition("cannot write there: ")[2]

    def expect(self, good: bool, what: str) -> str:
        if not good:
            raise AssertionError(f"{self.folder.name}: {what}")
        return what

    def go_on(self) -> tuple[str, bool]:
        """Where it goes on from, and whether it ends as it should."""
        names = Checkpoints(self.folder / "checkpoints").names()
        words = ["--resume", self.folder] if names else [*RUN, "--out", self.folder]
        code, lines = said(start("train", *words))
        self.expect(code == 0 and not lines, f"the resumed run: exit {code}: {lines}")
        return (names[-1] if names else "the start"), runs.finished(self.folder)


@contextmanager
def file_system(folder: Path, kilobytes: int) -> Iterator[Callable[[str], None]]:
    """A file system of a size, with a function that mounts it otherwise."""

    def mount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)

    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    subprocess.run(words, check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a .json file")
    parser.add_argument("--kills", type=int, default=10, help="of each of the two kinds")
    parser.add_argument("--signals", type=int, default=5, help="of each of the two kinds")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    words = parser.parse_args()

    rng, found, began = random.Random(words.seed), [], time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        whole = root / "whole"
        counts = {"DIES_AT": -1, "COUNT": root / "count"}
        code, lines = said(start("train", *RUN, "--out", whole, code=DYING, **counts))
        if code or lines:
            raise AssertionError(f"the uninterrupted run: exit {code}: {lines}")
        wanted, calls = hashes(whole), int((root / "count").read_text())
        seconds = runs.load_record(whole)["seconds"]
        size = sum(path.stat().st_size for path in (whole / "checkpoints").rglob("*")) // 1024

        def report(kind: str, case: Case, how: str) -> None:
            origin, finished = case.go_on()
            row = {"kind": kind, "how": how, "went on from": origin, "finished": finished}
            row["same bytes"] = hashes(case.folder) == wanted
            found.append(row)
            print(json.dumps(row), flush=True)
            shutil.rmtree(case.folder)

        for i in range(words.kills):
            case = Case(root / f"kill{i}", calls, rng)
            report("kill", case, case.end(signal.SIGKILL))
            case = Case(root / f"write{i}", calls, rng)
            report("kill while writing", case, case.kill_while_writing())
        for signum in (signal.SIGTERM, signal.SIGINT):
            for i in range(words.signals):
                case = Case(root / f"{signum.name}{i}", calls, rng)
                report(signum.name, case, case.end(signum))
        if os.geteuid() == 0:
            # Room for a checkpoint and no results; for one and a half.
            for room in (2 * size + 100, size + size // 2):
                with file_system(root / f"full{room}", room) as mount:
                    case = Case(root / f"full{room}" / "run", calls, rng)
                    report("full disk", case, case.starve(lambda m=mount: m("size=100m")))
            with file_system(root / "read-only", 100_000) as mount:
                case = Case(root / "read-only" / "run", calls, rng)
                process = case.process()
                case.moment(process)
                # A file that is open for writing keeps it writable.
                while subprocess.run(
                    ["mount", "-o", "remount,ro", str(case.folder.parent)], capture_output=True
                ).returncode:
                    time.sleep(0.001)
                code, lines = said(process)
                case.expect(code == 2 and len(lines) == 1, f"exit {code}: {lines}")
                mount("rw")
                how = lines[0].partition("cannot write there: ")[2]
                report("read-only disk", case, how)

    kinds = {row["kind"]: [r for r in found if r["kind"] == row["kind"]] for row in found}
    result = {
        "uninterrupted": {"steps": STEPS, "seconds": seconds, "calls that change the disk": calls},
        "cases": {kind: len(rows) for kind, rows in kinds.items()},
        "survived": {kind: sum(r["same bytes"] for r in rows) for kind, rows in kinds.items()},
        "seconds": time.perf_counter() - began,
        "rows": found,
    }
    words.out.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(words.out, result)
    print("\n| what happened | times | survived, the same bytes |\n|---|---:|---:|")
    for kind, count in result["cases"].items():
        print(f"| {kind} | {count} | {result['survived'][kind]} |")
    if result["cases"] != result["survived"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
