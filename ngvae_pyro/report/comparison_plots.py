"""Figures of a comparison: the same view of every model, side by side.

Each function draws into a figure or a part of one, so that its drawing can be a file of its own and
a part of the page that shows all of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ngvae_pyro.data.forms import Form
from ngvae_pyro.evaluation.assessment import Sample
from ngvae_pyro.extras import needed
from ngvae_pyro.files import make_folder
from ngvae_pyro.report.plots import (
    INFORMATIVE,
    SHOWN,
    SLICES_MOVED,
    UNINFORMATIVE,
    Row,
    are_curves,
    draw_covariance,
    draw_curves,
    draw_grid,
    literal,
    new_figure,
    slices,
)

with needed("plots"):
    from matplotlib.figure import Figure, SubFigure

# The colours of Okabe and Ito (2008), without the yellow; markers serve readers who see no colours.
COLOURS = ("#555555", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX*"


@dataclass(frozen=True)
class Look:
    """The data of one run that the figures need."""

    label: str
    seed: int
    code: Sample
    rows: list[Row]
    traversals: Tensor
    names: list[str]
    colours: list[str]
    form: Form

    @property
    def informative(self) -> np.ndarray:
        return self.code.codes.informative.numpy()


def save_all(folder: Path, looks: Sequence[Look], comparison: Any) -> None:
    """Save every figure of a comparison as PNG.

    Args:
        folder: The folder, which is made if necessary.
        looks: One for each pair of model and guide.
        comparison: Content of ``comparison.json``.
    """
    make_folder(folder)
    across = min(len(looks), 4)
    down = math.ceil(len(looks) / across)
    rows = max(len(one.traversals) for one in looks)
    parts = {
        "variances": (2.1 * len(looks) + 0.9, lambda f: variances(f, looks)),
        "covariances": (2.9 * math.ceil(len(looks) / 2) + 0.5, lambda f: covariances(f, looks)),
        "traversals": (down * (0.22 * rows + 0.6) + 0.6, lambda f: traversals(f, looks, across)),
        "reconstruction": (4.0, lambda f: reconstruction(f, comparison)),
    }
    widths = {"variances": 7.0, "covariances": 6.6, "traversals": 2.6 * across + 0.4}
    for name, (height, draw) in parts.items():
        with new_figure(folder / f"{name}.png", widths.get(name, 7.0), height) as figure:
            draw(figure)
    with new_figure(folder / "page.png", 14.0, 20.0) as figure:
        heights = [max(parts["variances"][0], parts["covariances"][0])]
        heights += [
            parts["traversals"][0] * 14.0 / widths["traversals"],
            parts["reconstruction"][0],
        ]
        figure.set_figheight(sum(heights) + 0.6)
        top, middle, bottom = figure.subfigures(3, 1, height_ratios=heights, squeeze=False)[:, 0]
        left, right = top.subfigures(1, 2, squeeze=False)[0]
        parts["variances"][1](left)
        parts["covariances"][1](right)
        parts["traversals"][1](middle)
        parts["reconstruction"][1](bottom)


def variances(figure: Figure | SubFigure, looks: Sequence[Look]) -> None:
    """Draw histograms of the inferred variances over images and latents, as on the slides."""
    figure.suptitle("Inferred variances of z", x=0.02, ha="left")
    values = [one.code.codes.variance.clamp_min(1e-8).log10().numpy() for one in looks]
    low = min(value.min() for value in values) - 0.2
    edges = np.linspace(low, max(0.4, max(value.max() for value in values) + 0.1), 70)
    panels = figure.subplots(len(looks), 1, sharex=True, squeeze=False)[:, 0]
    for axes, one, value in zip(panels, looks, values, strict=True):
        on = one.informative
        for mask, colour in ((on, INFORMATIVE), (~on, UNINFORMATIVE)):
            if mask.any():
                axes.hist(value[:, mask].ravel(), bins=list(edges), color=colour)
        axes.set_yscale("log")
        # As in the figure of one run.
        axes.set_ylim(bottom=0.5)
        axes.set_title(f"{one.label}: {on.sum()} of {len(on)} informative (blue)", fontsize=10)
    ticks = np.arange(np.ceil(edges[0]), np.floor(edges[-1]) + 1)
    panels[-1].set_xticks(ticks, [f"$10^{{{int(tick)}}}$" for tick in ticks])
    panels[-1].set_xlabel("inferred variance of z given the image")
    figure.supylabel("images x latents", fontsize=10)


def covariances(figure: Figure | SubFigure, looks: Sequence[Look]) -> None:
    """Draw the covariances of z over the data, divided by the largest variance."""
    figure.suptitle("Covariance of z over the data, largest variance = 1", x=0.02, ha="left")
    down = math.ceil(len(looks) / 2)
    panels = figure.subplots(down, min(2, len(looks)), squeeze=False).ravel()
    for axes in panels[len(looks) :]:
        axes.set_axis_off()
    for axes, one in zip(panels, looks, strict=False):
        image = draw_covariance(axes, one.code.z, one.rows[:SHOWN])
        axes.tick_params(labelsize=7, length=2, pad=1)
        axes.set_title(one.label, fontsize=10)
    figure.colorbar(image, ax=list(panels), shrink=0.7, label="covariance / largest variance")


def traversals(figure: Figure | SubFigure, looks: Sequence[Look], across: int) -> None:
    """Draw decoded images as one latent moves within the data; most informative latent on top."""
    figure.suptitle(
        "Latent traversals, most informative latent on top (orange: leaking, grey: all others)",
        x=0.01,
        ha="left",
    )
    panels = figure.subplots(math.ceil(len(looks) / across), across, squeeze=False).ravel()
    for axes in panels[len(looks) :]:
        axes.set_axis_off()
    for axes, one in zip(panels, looks, strict=False):
        if are_curves(one.traversals):
            curves = draw_curves(axes, one.traversals, one.form)
            for panel, name, colour in zip(curves, one.names, one.colours, strict=True):
                panel.set_ylabel(name, color=colour, fontsize=8)
        else:
            pictures, _ = slices(one.traversals, one.form, SLICES_MOVED)
            draw_grid(axes, pictures, apart=one.colours.count(UNINFORMATIVE))
            axes.set_yticklabels(one.names, fontsize=8)
            for text, colour in zip(axes.get_yticklabels(), one.colours, strict=True):
                text.set_color(colour)
        axes.set_title(f"{one.label}, seed {one.seed}", fontsize=10)
        axes.set_anchor("N")


def reconstruction(figure: Figure | SubFigure, comparison: Any) -> None:
    """Plot the reconstruction error against the number of informative latents, a point per run."""
    axes = figure.subplots()
    axes.grid(True, axis="both")
    mse, count = comparison["values"]["mse"], comparison["values"]["informative"]
    for i, model in enumerate(comparison["models"]):
        x, y = count[model["pair"]]["values"], mse[model["pair"]]["values"]
        if x:
            axes.plot(
                *(x, y, MARKERS[i % len(MARKERS)]),
                color=COLOURS[i % len(COLOURS)],
                ms=8,
                alpha=0.8,
                label=literal(model["label"]),
            )
    if comparison["factors"] is not None:
        # Behind the points, with its label beside it.
        axes.axvline(comparison["factors"], color=UNINFORMATIVE, lw=1, ls="--", zorder=0)
        axes.text(
            *(comparison["factors"], 1.01, f"{comparison['factors']} factors"),
            transform=axes.get_xaxis_transform(),
            ha="center",
            fontsize=9,
        )
    axes.set_yscale("log")
    axes.set_xlim(-0.5, comparison["latent_size"] + 0.5)
    axes.set(xlabel="informative latents", ylabel="MSE per pixel, held out")
    axes.set_title("Reconstruction against latents used", pad=18)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
