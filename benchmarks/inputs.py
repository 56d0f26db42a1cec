"""What becomes of right and wrong inputs of all kinds: thousands of command lines, counted.

    python benchmarks/inputs.py --cases 4000 --out runs/inputs.json

Each case is a command line, or a call in Python, with the files that it finds: every key of every
spec with values of every type and around its bounds; TOML, .npz and IDX files with mangled bytes,
lying headers and pickles; run folders that somebody has edited, put files or links into, or trains
into at the same time; data that have changed since the training; checkpoints with good hashes and
wrong contents; odd environments, contradictions, names that are markup, images of which nothing
varies; arrays in memory of all types and layouts; tables, HDF5 files and annotated matrices with
mistakes in them; layouts, likelihoods, covariates, missing values and streams that suit the data or
do not; networks, likelihoods and pairs of somebody's own by their import path; what a training loop
and an estimator are told; and options, or arguments, in any order. It has to end in success, or in
exit code 2 with one line on standard error and nothing written (in Python: a UserError of one
line); a training that really diverges ends in exit code 1 with one line, and is counted apart.
Anything else is a failure, and so is a file of somebody's that is gone, one outside of the run
folder that has changed, a number read off other images, or a mistake that is taken where it is
plain that it is one. Failures are printed with their input; ``--kinds folders,links`` runs some
kinds alone. The cases, and what is taken out to make them quick, are in ``tests/input_cases.py``,
``folder_cases.py``, ``call_cases.py``, ``data_cases.py`` and ``code_cases.py``; they follow from
the seed, and those of hypothesis from its version.

The table is Markdown on standard output; the JSON file has the counts and the failures.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import torch

from ngvae_pyro import files, runs

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
try:
    import call_cases
    import code_cases
    import data_cases
    import folder_cases
    import hypothesis
    import input_cases
    from hypothesis import HealthCheck, Phase, given, settings
except ModuleNotFoundError:
    # Of an extra, which --help does without.
    hypothesis = None

# Of all cases; the rest are those of the keys.
SHARES = {
    **{"toml": 0.05, "images": 0.09, "files": 0.03, "commands": 0.08, "edited": 0.08},
    **{"folders": 0.08, "links": 0.06, "data": 0.04, "checkpoints": 0.05, "environments": 0.04},
    **{
        "contradictions": 0.02,
        "labels": 0.03,
        "degenerate": 0.01,
        "arrays": 0.08,
        "calls": 0.1,
        "types": 0.04,
    },
}
# These come on top of the number of cases that is asked for.
ON_TOP = {
    **{"tables": 0.02, "hdf5": 0.01, "cells": 0.02, "layouts": 0.01, "covariates": 0.02},
    **{"missing": 0.02, "streams": 0.02, "likelihoods": 0.02, "own": 0.02, "loop": 0.02},
}
KINDS = ("keys", *SHARES, *ON_TOP, "locks", "whole")
OUTCOMES = ("success", "exit 2", "diverged", "failure")


def drawn(strategy, count):
    """So many cases of a strategy, the same ones each time."""
    found = []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(case):
        found.append(case)

    collect()
    return found


def all_cases(bench, count, seed, whole, kinds):
    """The cases of these kinds; a kind has the same cases whichever others there are."""
    counts = {name: round(share * count) for name, share in (SHARES | ON_TOP).items()}
    strategies = {
        "toml": lambda bench: input_cases.toml_cases(),
        "images": lambda bench: input_cases.image_cases(),
        "files": lambda bench: input_cases.file_cases(),
        "commands": lambda bench: input_cases.command_cases(),
        "edited": lambda bench: input_cases.folder_cases(bench.inside),
    }
    others = folder_cases.KINDS | call_cases.KINDS | data_cases.KINDS | code_cases.KINDS
    locks = folder_cases.lock_cases()[: max(2, round(0.002 * count))]
    if "keys" in kinds:
        rest = count - sum(counts[name] for name in SHARES) - whole - len(locks)
        yield from islice(input_cases.key_cases(bench.run_folder, seed), rest)
    for name, strategy in strategies.items():
        if name in kinds:
            yield from drawn(strategy(bench), counts[name])
    for name, case in others.items():
        chance = random.Random(f"{name} {seed}")
        if name in kinds:
            yield from (case(chance, bench) for _ in range(counts[name]))
    if "locks" in kinds:
        yield from locks
    if "whole" in kinds:
        yield from input_cases.whole_cases(whole)


def table(counts, seconds):
    lines = ["| kind | cases | success | exit 2 | diverged | failures | seconds |"]
    lines.append("|---|" + "---:|" * 6)
    total, spent = Counter(), sum(seconds.values())
    for kind in sorted(counts):
        numbers = [counts[kind][outcome] for outcome in OUTCOMES]
        total += counts[kind]
        cells = [f"{n:,}" for n in (sum(numbers), *numbers)]
        lines.append(f"| {kind} | " + " | ".join(cells) + f" | {seconds[kind]:.0f} |")
    cells = [f"**{n:,}**" for n in (total.total(), *(total[o] for o in OUTCOMES))]
    lines.append("| all | " + " | ".join(cells) + f" | {spent:.0f} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--whole", type=int, default=24, help="cases in a process of their own")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"of {', '.join(KINDS)}")
    words = parser.parse_args()
    if hypothesis is None:
        parser.error("needs hypothesis: pip install 'ngvae_pyro[test]'")
    kinds = words.kinds.split(",")
    if unknown := sorted({*kinds} - {*KINDS}):
        parser.error(f"--kinds: unknown {', '.join(unknown)}; known: {', '.join(KINDS)}")
    words.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    counts, seconds, failures = {}, Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        bench = input_cases.Bench(Path(folder))
        cases = all_cases(bench, words.cases, words.seed, words.whole, kinds)
        for number, case in enumerate(cases, 1):
            began = time.perf_counter()
            result = bench(case)
            seconds[case.kind] += time.perf_counter() - began
            counts.setdefault(case.kind, Counter())[result.outcome] += 1
            if result.outcome == "failure":
                failures.append({"case": str(case), "why": result.why, "stderr": result.error})
                print(f"FAILURE: {case}\n    {result.why}\n    {result.error}", file=sys.stderr)
            if number % 100 == 0:
                print(f"{number} cases, {sum(seconds.values()):.0f} s", file=sys.stderr)
    with files.whole(words.out) as path:
        runs.write_json(
            path,
            {
                "cases": sum(count.total() for count in counts.values()),
                "seed": words.seed,
                "hypothesis": hypothesis.__version__,
                "counts": {kind: {o: count[o] for o in OUTCOMES} for kind, count in counts.items()},
                "seconds": dict(seconds),
                "failures": failures,
            },
        )
    print(table(counts, seconds))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
