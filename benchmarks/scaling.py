"""How the time and the memory of a training step grow, with one thing varied at a time.

    python benchmarks/scaling.py --out runs/scaling

The step is that of ``ngvae_pyro.fit`` with the declared defaults (32x32 sprites, 15 latents,
batches of 64, MLPs), of which one thing is changed: the number of latents, the batch, the side of
the images, with MLPs and with convolutions, or how many images there are. The points of one sweep
take turns, each in a process of its own; see ``measuring.py``.

Memory is a peak: on CUDA of what was allocated, on the CPU of what the process grew by after its
imports, images included. An exponent is the slope of log time, or of log memory, on log size by
least squares from the middle size of a sweep on; below it the part of a step that does not grow
would hide it. It is that of the listed sizes, and not a law. The table is Markdown on standard
output and in ``table.md``, all numbers are in ``scaling.json``, the figure is ``scaling.png``.
"""

import argparse
import json
from pathlib import Path

import measuring
import numpy as np
import torch
from matplotlib.ticker import FixedLocator, NullLocator
from measuring import Contender

from ngvae_pyro.data.images import ImageData
from ngvae_pyro.guide import load_guide
from ngvae_pyro.model import load_model
from ngvae_pyro.report import plots
from ngvae_pyro.specs import ConvSpec, FitSpec, MLPSpec
from ngvae_pyro.training.trainer import Trainer

# Encoder and decoder: the declared defaults, and the convolutions.
MLP, CONV = (MLPSpec(), MLPSpec(depth=8)), (ConvSpec(), ConvSpec())
# Of time and of memory.
COLOURS = plots.INFORMATIVE, plots.UNINFORMATIVE
BASE = {"latents": 15, "batch": 64, "side": 32, "images": 2000, "network": MLP}
# Of each sweep: the title, what is varied, its values, and what else differs from the base point.
SWEEPS = {
    "latents": ("latents K", "latents", (10, 30, 100, 300, 1000), {}),
    "batch": ("images per batch", "batch", (16, 64, 256, 1024), {}),
    "side of MLP": ("side in pixels, MLP", "side", (16, 32, 64, 128), {}),
    "side of conv": ("side in pixels, conv", "side", (28, 32, 64), {"network": CONV}),
    # Small ones, so that it is their number that is large.
    "images": (
        "16x16 images in the data",
        "images",
        (1000, 10_000, 60_000, 300_000),
        {"side": 16},
    ),
}


class Fit:
    """Steps of ``ngvae_pyro.fit`` at a point."""

    def __init__(self, images, latents, batch, network, device):
        torch.manual_seed(0)
        encoder, decoder = network
        model = load_model("normal_gamma", images.shape[1:], latent_size=latents, decoder=decoder)
        guide = load_guide("relaxed", model, encoder=encoder)
        # More steps than are ever taken, so that the learning rate does not fall.
        spec = FitSpec(steps=10**9, batch_size=batch, device=device)
        self.trainer = Trainer(
            model, guide, ImageData("sprites", images), spec, guide.spec.schedule
        )

    def steps(self, count):
        for _ in range(count):
            self.trainer.train_step()

    def loss(self):
        return self.trainer.loss()


def sweep(key, sizes, changes, device, seconds):
    """[{size, ms, mib, ...}] of one sweep."""
    contenders = {}
    for size in sizes:
        point = BASE | changes | {key: size}
        images = measuring.pictures(point["images"], (3, point["side"], point["side"]))
        parts = (images, point["latents"], point["batch"], point["network"], device)
        contenders[size] = Contender(Fit, *parts)
    return [{"size": n, **row} for n, row in measuring.race(contenders, seconds).items()]


def upper_half(rows):
    return rows[(len(rows) - 1) // 2 :]


def exponent(rows, key="ms"):
    """Slope of log time, or of what else ``key`` says, on log size over the upper half."""
    size, values = (np.log([row[k] for row in upper_half(rows)]) for k in ("size", key))
    return float(np.polyfit(size, values, 1)[0])


def table(found):
    lines = ["| varied | size | ms per step | peak memory, MiB | exponents |"]
    lines.append("|---|---:|---:|---:|---:|")
    for name, rows in found.items():
        for row in rows:
            both = f"{exponent(rows):.2f} and {exponent(rows, 'mib'):.2f}"
            last = both if row is rows[-1] else ""
            numbers = f"{row['size']:,} | {row['ms']:.3g} | {row['mib']:.0f} | {last}"
            lines.append(f"| {SWEEPS[name][0]} | {numbers} |")
    return "\n".join(lines)


def figure(path, found):
    """Time above and memory below, a column for each sweep."""
    with plots.new_figure(path, 2.6 * len(found), 5.2) as fig:
        axes = fig.subplots(2, len(found), sharex="col", sharey="row", squeeze=False)
        for column, (name, rows) in zip(axes.T, found.items(), strict=True):
            size = [row["size"] for row in rows]
            for axis, key, colour in zip(column, ("ms", "mib"), COLOURS, strict=True):
                axis.loglog(size, [row[key] for row in rows], "o-", color=colour, markersize=5)
                axis.grid(True, axis="y")
            upper = upper_half(rows)
            centre = [
                np.exp(np.mean(np.log([row[key] for row in upper]))) for key in ("size", "ms")
            ]
            fitted = [centre[1] * (row["size"] / centre[0]) ** exponent(rows) for row in upper]
            label = f"size$^{{{exponent(rows):.2f}}}$"
            sizes = [row["size"] for row in upper]
            column[0].plot(sizes, fitted, color=plots.ACCENT, linestyle="--", label=label)
            column[0].legend(loc="upper left")
            column[1].set_xlabel(SWEEPS[name][0])
            column[1].xaxis.set_major_locator(FixedLocator(size))
            column[1].xaxis.set_minor_locator(NullLocator())
            column[1].set_xticks(size, [brief(n) for n in size])
        axes[0, 0].set_ylabel("time per step, ms")
        axes[1, 0].set_ylabel("peak memory, MiB")


def brief(size):
    return f"{size // 1000}k" if size >= 10_000 else str(size)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    devices = ["cpu", "cuda"]
    parser.add_argument("--device", choices=devices, default=devices[torch.cuda.is_available()])
    parser.add_argument("--seconds", type=float, default=15.0, help="of timing, per sweep")
    words = parser.parse_args()
    words.out.mkdir(parents=True, exist_ok=True)
    machine = measuring.machine(words.device)
    print(measuring.in_words(machine), flush=True)
    found = {}
    for name in words.sweeps:
        _, key, sizes, changes = SWEEPS[name]
        found[name] = sweep(key, sizes, changes, words.device, words.seconds)
        print(f"{name}: time grows as its power {exponent(found[name]):.2f}", flush=True)
    exponents = {
        name: {key: exponent(rows, key) for key in ("ms", "mib")} for name, rows in found.items()
    }
    result = {"machine": machine, "sweeps": found, "exponents": exponents}
    (words.out / "scaling.json").write_text(json.dumps(result, indent=2) + "\n")
    text = f"{measuring.in_words(machine)}:\n\n{table(found)}\n"
    (words.out / "table.md").write_text(text)
    figure(words.out / "scaling.png", found)
    print(f"\n{text}")


if __name__ == "__main__":
    main()
