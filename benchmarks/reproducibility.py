"""The same seed twice: does every declared pair give the same ``metrics.json``?

    python benchmarks/reproducibility.py --out runs/reproducibility.json

Every declared guide with every declared model that it fits is trained twice, in two processes with
one thread each, on 300 sprites with small networks. Steps are enough for a recording, and for the
moves of those schedules that have any. Weights and metrics have to be the same to the last byte.
"""

import argparse
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha256
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from ngvae_pyro import runs, variants
from ngvae_pyro.errors import UserError
from ngvae_pyro.evaluation import diagnostics
from ngvae_pyro.guide import load_guide
from ngvae_pyro.model import load_model
from ngvae_pyro.specs import MLPSpec
from ngvae_pyro.training.trainer import fit
from ngvae_pyro.variants import run_spec

CHANGES: dict[str, Any] = {
    "model": {"latent_size": 4, "decoder": {"width": 16}},
    "guide": {"encoder": {"width": 16}},
    "fit": {"batch_size": 16, "device": "cpu"},
    "data": {"name": "sprites", "size": 300},
}


def pairs() -> list[tuple[str, str]]:
    """The declared pairs that fit each other."""
    found = []
    for model, guide in product(variants.names("models"), variants.names("guides")):
        with torch.device("meta"):
            network = load_model(model, (3, 32, 32), decoder=MLPSpec(width=2, depth=1))
            try:
                load_guide(guide, network, encoder=MLPSpec(width=2, depth=1))
            except UserError:
                continue
        found.append((model, guide))
    return found


def results(steps: int) -> dict[str, dict[str, Any]]:
    """For each pair its ``metrics.json``, and the SHA-256 of weights and metrics."""
    torch.set_num_threads(1)
    found = {}
    for model, guide in pairs():
        changes = {**CHANGES, "fit": {**CHANGES["fit"], "steps": steps}}
        spec = run_spec(model, guide, changes, "benchmark")
        images, held_out = runs.load_data(spec)
        done = fit(*runs.load_pair(spec, images), images, spec.fit, progress=False)
        with tempfile.TemporaryDirectory() as folder:
            runs.save_weights(Path(folder), done.model, done.guide)
            metrics = diagnostics.evaluate(done, held_out, seed=spec.fit.seed)
            runs.write_json(Path(folder) / "metrics.json", metrics)
            files = ("weights.safetensors", "metrics.json")
            content = b"".join((Path(folder) / name).read_bytes() for name in files)
        found[f"{model}+{guide}"] = {
            "elbo": metrics["elbo"],
            "SHA-256": sha256(content).hexdigest(),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a .json file")
    parser.add_argument("--steps", type=int, default=400)
    words = parser.parse_args()

    began = time.perf_counter()
    # Two that start from nothing; one after the other where there is but one core.
    with ProcessPoolExecutor(2, get_context("spawn"), max_tasks_per_child=1) as pool:
        first, second = pool.map(results, [words.steps] * 2)
    rows = {pair: {**first[pair], "same": first[pair] == second[pair]} for pair in first}
    result = {"steps": words.steps, "seconds": time.perf_counter() - began, "pairs": rows}
    words.out.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(words.out, result)
    same = sum(row["same"] for row in rows.values())
    for pair, row in rows.items():
        print(f"{pair}: {'the same' if row['same'] else 'DIFFERENT'}, ELBO {row['elbo']:.1f}")
    print(f"{same} of {len(rows)} pairs: the same weights and metrics.json")
    if same < len(rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
