"""The figure of a check of the posterior."""

from pathlib import Path
from typing import Any

import numpy as np

from ngvae_pyro.evaluation.checking import INTERVALS, SHOWN, Check
from ngvae_pyro.extras import needed
from ngvae_pyro.latents import is_informative
from ngvae_pyro.report import plots


def draw(path: str | Path, result: Check) -> None:
    """Draw the coverage, ratio of standard deviations and shift of each latent.

    Args:
        path: The file to write.
        result: From :func:`ngvae_pyro.check`; if there are very many latents, only the first ones
            are shown.
    """
    rows = result["latents"][:SHOWN]
    colours = [
        plots.INFORMATIVE if is_informative(r["probs"]) else plots.UNINFORMATIVE for r in rows
    ]
    with plots.new_figure(path, 10.0, 1.9 + 0.26 * len(rows)) as figure:
        coverage, ratio, shift = figure.subplots(1, 3, sharey=True)
        for y, (row, colour) in enumerate(zip(rows, colours, strict=True)):
            held = [row["coverage"][name] for name in INTERVALS]
            coverage.plot(held, [y, y], color=colour, lw=1.0, alpha=0.5)
            coverage.plot(held[0], y, "o", color=colour, ms=6)
            coverage.plot(held[1], y, "s", mfc="white", mec=colour, mew=1.5, ms=6)
            for axes, name in ((ratio, "sd_ratio"), (shift, "shift")):
                each = [image[row["latent"]] for image in result["per_image"][name]]
                axes.plot(each, [y] * len(each), "o", color=colour, ms=4.5, alpha=0.45, mew=0)
                axes.plot(np.median(each), y, "|", color=colour, ms=12, mew=2.2)
            ratio.plot(row["mean_field"], y, "D", mfc="white", mec=colour, mew=1.5, ms=5)
        for axes, references in ((coverage, INTERVALS.values()), (ratio, [1.0]), (shift, [0.0])):
            for reference in references:
                axes.axvline(reference, color=plots.ACCENT, lw=1.2, ls="--", zorder=0.9)
        coverage.set(xlim=(0, 1), xlabel="share of NUTS's draws inside", title="Guide's intervals")
        coverage.set_yticks(range(len(rows)), [f"z{row['latent']}" for row in rows])
        coverage.invert_yaxis()
        ratio.set_xscale("log", base=2)
        ratio.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ratio.set(xlabel="standard deviation, NUTS / guide", title="Width")
        shift.set(xlabel="mean, NUTS - guide, in the guide's sd", title="Shift")
        figure.legend(handles=_handles(), loc="outside lower center", ncols=4)


def _handles() -> list[Any]:
    with needed("plots"):
        from matplotlib.lines import Line2D

    grey = "#333333"
    return [
        Line2D([], [], color=plots.INFORMATIVE, lw=3, label="informative"),
        Line2D([], [], color=plots.UNINFORMATIVE, lw=3, label="uninformative"),
        Line2D([], [], color=grey, marker="o", ls="", ms=6, label="50 % interval"),
        Line2D([], [], color=grey, marker="s", mfc="white", ls="", ms=6, label="80 % interval"),
        Line2D([], [], color=grey, marker="o", ls="", ms=4.5, alpha=0.45, label="an image"),
        Line2D([], [], color=grey, marker="|", ls="", ms=12, mew=2.2, label="their median"),
        Line2D([], [], color=grey, marker="D", mfc="white", ls="", ms=5, label="mean field's part"),
        Line2D([], [], color=plots.ACCENT, lw=1.2, ls="--", label="exact posterior"),
    ]
