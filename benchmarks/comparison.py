"""How the time of a comparison divides: training, run folders, metrics, tables and figures.

    python benchmarks/comparison.py --out runs/comparison-timing

Runs the slides' table with one seed from nothing and prints, as Markdown, the seconds of each part
summed over its four runs, the share of the whole, and the wall clock. ``--steps`` shortens it.
"""

import argparse
import os
from pathlib import Path

from ngvae_pyro.errors import UserError
from ngvae_pyro.runs import comparison


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--steps", type=int, default=None, help="default: the declared steps")
    words = parser.parse_args()
    if words.out.exists():
        parser.error(f"{words.out}: already exists; what is there would not be timed")
    changes = {"fit": {"steps": words.steps} if words.steps else {}, "data": {"name": "sprites"}}
    try:
        planned = comparison.plan(words.out, comparison.SLIDES, [words.seed], changes)
        result = comparison.compare(words.out, planned, jobs=words.jobs)
    except UserError as error:
        parser.error(str(error))
    seconds = result["seconds"]
    jobs, wall = seconds.pop("jobs"), seconds.pop("wall clock")
    total = sum(seconds.values())
    print("\n| part | seconds | share |\n|---|---:|---:|")
    for name, value in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"| {name} | {value:.0f} | {value / total:.0%} |")
    print(f"\nWall clock {wall / 60:.1f} minutes, {jobs} jobs at once on {os.cpu_count()} cores.")


if __name__ == "__main__":
    main()
