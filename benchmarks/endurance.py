"""A very long training of the default pair: is every number finite to the end?

    python benchmarks/endurance.py --out runs/endurance

Every step looks at its loss and at the norm of its gradient, and ends the training if one of them
is not finite; every look at the monitor images does the same for their ELBO. At the end come all
weights, the moments of Adam, the history and the metrics. The same command goes on after an
interruption.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from ngvae_pyro import runs
from ngvae_pyro.training.checkpoints import OPTIMIZER, WEIGHTS, Checkpoints
from ngvae_pyro.variants import run_spec


def numbers(value: Any) -> Iterator[float]:
    """All numbers of nested tables and arrays."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers(inner)
    elif isinstance(value, int | float):
        yield float(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--steps", type=int, default=100_000)
    words = parser.parse_args()

    if words.out.exists():
        fit, metrics = runs.resume(words.out)
    else:
        changes = {"fit": {"steps": words.steps, "monitor_every": 1000}}
        spec = run_spec("normal_gamma", "relaxed", changes, "benchmark")
        fit, metrics = runs.train(spec, words.out)

    checkpoint = words.out / "checkpoints" / Checkpoints(words.out / "checkpoints").names()[-1]
    tensors = [
        *load_file(checkpoint / WEIGHTS).values(),
        *load_file(checkpoint / OPTIMIZER).values(),
    ]
    tensors = [tensor for tensor in tensors if tensor.is_floating_point()]
    plain = [*numbers(fit.history), *numbers(metrics)]
    infinite = sum(int((~tensor.isfinite()).sum()) for tensor in tensors)
    infinite += sum(not math.isfinite(number) for number in plain)
    result = {
        "steps": fit.steps,
        "extra steps": fit.extra_steps,
        "looks": len(fit.history),
        "numbers at the end": sum(tensor.numel() for tensor in tensors) + len(plain),
        "not finite": infinite,
        "informative": metrics["informative"],
        "ELBO": metrics["elbo"],
        "largest loss of a look after the first": max(row["loss"] for row in fit.history[1:]),
        "minutes": fit.seconds / 60.0,
        "starts": len(fit.starts),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
