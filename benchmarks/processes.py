"""What a second process saves: time per step of one process against two at the same batch.

    python benchmarks/processes.py

Every process has one thread. For the declared MLPs on sprites of 32x32 pixels and for convolutions
on sprites of 64x64, with the relaxed guide and batches of 128, the time of a training step is taken
in one process and in two, which ``torchrun`` starts: the shortest of ``--steps``, which is the one
least disturbed by whatever else runs. The efficiency is t1 / (2 t2): 1 where two processes need
half the time. The table is Markdown on standard output.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyro
import torch

from ngvae_pyro import distributed
from ngvae_pyro.data.rendering import sprites
from ngvae_pyro.guide import load_guide
from ngvae_pyro.model import load_model
from ngvae_pyro.specs import ConvSpec, FitSpec, MLPSpec
from ngvae_pyro.training import trainer as svi

NETWORKS = {
    "MLP, 32x32": (MLPSpec(depth=8), MLPSpec(), 32),
    "convolutions, 64x64": (ConvSpec(), ConvSpec(), 64),
}
WARM_UP = 5


def step_times(name: str, steps: int, team: distributed.Team) -> tuple[float, int]:
    """Shortest seconds of a step, and the bytes of all gradients."""
    decoder, encoder, resolution = NETWORKS[name]
    data = sprites(512, resolution=resolution)
    torch.manual_seed(0)
    model = load_model("normal_gamma", data, decoder=decoder)
    guide = load_guide("relaxed", model, encoder=encoder)
    spec = FitSpec(batch_size=128, device="cpu")
    trainer = svi.Trainer(model, guide, data, spec, guide.spec.schedule, team)
    seconds = []
    for _ in range(WARM_UP + steps):
        began = time.perf_counter()
        trainer.train_step()
        seconds.append(time.perf_counter() - began)
    return min(seconds[WARM_UP:]), 4 * sum(p.numel() for p in trainer.parameters)


def measure(steps: int) -> None:
    """What each of the started processes does; the first prints the results as JSON."""
    torch.set_num_threads(1)
    with distributed.joined() as team:
        results = {}
        for name in NETWORKS:
            with pyro.get_param_store().scope():
                results[name] = step_times(name, steps, team)
        if team.leads:
            print(json.dumps(results))


def start(processes: int, steps: int) -> dict[str, tuple[float, int]]:
    """The results of so many processes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = [str(Path(__file__)), "--measure", "--steps", str(steps)]
    result = subprocess.run(
        [*torchrun, "--nproc_per_node", str(processes), *script],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(result.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="timed steps of each")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.steps)
        return
    one, two = start(1, args.steps), start(2, args.steps)
    print("| networks | gradients | one process | two processes | efficiency |")
    print("|---|---|---|---|---|")
    for name, (alone, size) in one.items():
        shared = two[name][0]
        print(
            f"| {name} | {size / 1e6:.1f} MB | {1e3 * alone:.0f} ms | {1e3 * shared:.0f} ms "
            f"| {alone / (2 * shared):.2f} |"
        )


if __name__ == "__main__":
    main()
