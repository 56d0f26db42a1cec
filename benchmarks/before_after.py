"""Traversals of two runs side by side: a latent without the rotation of its axes, and with it.

    ngvae train normal_gamma relaxed --set guide.schedule.independent=1 --out runs/before
    ngvae train normal_gamma relaxed --out runs/after
    python benchmarks/before_after.py runs/before runs/after --out docs/axes.png

Both are of the same images and start from the same one, which was held out. A row is one
latent, moved while the others stay; beside it the factor that it follows and their correlation.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from ngvae_pyro import runs
from ngvae_pyro.evaluation import diagnostics
from ngvae_pyro.evaluation.traversals import typical
from ngvae_pyro.fitted import locs

STEPS, GAP = 9, 2
TITLES = ("As trained", "Rotated to independent axes")


def rows_of(fit, held_out, base):
    """(images of a row, label) of each informative latent, most informative first."""
    rows = diagnostics.most_informative_first(diagnostics.evaluate(fit, held_out))
    rows = [row for row in rows if row["probs"] > 0.5]
    latents = [row["latent"] for row in rows]
    moved = fit.traverse(held_out.images.numpy(), latents, steps=STEPS, base=base)
    labels = [row["followed"].text for row in rows]
    # The factors in one order, so that the two halves can be compared.
    order = sorted(range(len(rows)), key=lambda i: rows[i]["followed"].closest[0])
    return [(moved[i], f"z{latents[i]}", labels[i]) for i in order]


def strip(images):
    """(H, W, 3) of the images of a row, side by side with white between them."""
    images = np.moveaxis(np.asarray(images), 1, -1).clip(0.0, 1.0)
    tall, wide = images.shape[1:3]
    shown = np.ones((tall, len(images) * (wide + GAP) - GAP, 3))
    for i, image in enumerate(images):
        shown[:, i * (wide + GAP) : i * (wide + GAP) + wide] = image
    return shown


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    words = parser.parse_args()
    loaded = [runs.load_run(folder, "cpu") for folder in (words.before, words.after)]
    _, held_out = runs.load_data(loaded[1][1])
    base = typical(locs(loaded[1][0], held_out), 1)[0]
    halves = [rows_of(fit, held_out, base) for fit, _ in loaded]
    count = max(map(len, halves))
    figure, axes = plt.subplots(
        count, 2, figsize=(11.0, 0.56 * count + 0.5), squeeze=False, layout="constrained"
    )
    for column, (half, title) in enumerate(zip(halves, TITLES, strict=True)):
        for ax in axes[:, column]:
            ax.set_axis_off()
        for ax, (images, name, label) in zip(axes[:, column], half, strict=False):
            ax.imshow(strip(images), interpolation="nearest")
            ax.text(-0.02, 0.5, f"{name}", transform=ax.transAxes, ha="right", va="center")
            ax.text(1.02, 0.5, label, transform=ax.transAxes, ha="left", va="center", fontsize=9)
        axes[0, column].set_title(title, fontsize=12, fontweight="bold")
    figure.savefig(words.out, dpi=150)


if __name__ == "__main__":
    main()
