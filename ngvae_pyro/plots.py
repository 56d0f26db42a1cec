"""Figures of a run: which latents carry the data, and what each of them does.

Informative latents are blue and uninformative ones grey in every figure; the two differ in
lightness too, so the figures survive colour blindness and a black-and-white printer.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ngvae_pyro.contexts import evaluating
from ngvae_pyro.diagnostics import Latent, Metrics, codes, most_informative_first, reconstruct
from ngvae_pyro.errors import UserError, described, expect
from ngvae_pyro.files import whole, writing
from ngvae_pyro.fitted import Fit, check_data, check_fit
from ngvae_pyro.images import ImageData

INFORMATIVE, UNINFORMATIVE, ACCENT = "#0b5fa5", "#a3a9b0", "#c25e00"
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "x",
    "grid.color": "#e4e6e9",
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "savefig.bbox": "tight",
}


# Latents of which a figure has a row each, the most informative ones; a picture of thousands is
# more than matplotlib draws.
SHOWN = 200


@contextmanager
def new_figure(path: str | Path, width: float, height: float) -> Iterator[Figure]:
    """A figure that is written when the block has ended well.

    Raises:
        UserError: If the file cannot be written, or its suffix names no kind of picture.
    """
    expect("path", path, (str, Path), "the name of a file to write, e.g. 'figure.png'")
    path = Path(path)
    # A bare Figure needs no display and leaves no state in pyplot.
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        known = figure.canvas.get_supported_filetypes()
        if path.suffix.lower().removeprefix(".") not in known:
            name = described(path).strip("'")
            raise UserError(f"{name}: expected a name that ends in .png, .pdf or .svg")
        yield figure
        with whole(path) as partial:
            figure.savefig(partial)


def _rows(rows: Any) -> list[Latent]:
    """The latents of a figure with a row for each, also from the metrics that they come from."""
    if isinstance(rows, Mapping) and "probs" in rows:
        rows = most_informative_first(cast(Metrics, rows))[:SHOWN]
    if not (isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)):
        raise UserError(
            "rows: expected the metrics of ngvae_pyro.evaluate, or what most_informative_first "
            f"makes of them, got {described(rows)}"
        )
    return rows


def _codes_of(name: str, values: Any) -> Tensor:
    """Numbers (N, K) on the CPU, as :func:`ngvae_pyro.diagnostics.codes` gives them."""
    expect(name, values, (Tensor, np.ndarray), "an array (N, K)")
    values = torch.as_tensor(values).detach().cpu()
    if values.dim() != 2 or 0 in values.shape:
        raise UserError(f"{name}: expected an array (N, K), got shape {tuple(values.shape)}")
    return values


def literal(text: str) -> str:
    """A text of the user's in a figure, where dollar signs would start a formula."""
    return text.replace("$", r"\$")


def save_all(folder: str | Path, fit: Fit, data: ImageData, metrics: Metrics) -> None:
    """Write every figure of a run as PNG into ``folder``, which is made where it is not there."""
    expect("folder", folder, (str, Path), "the name of a folder")
    check_fit(fit)
    check_data(fit, data)
    rows, folder = _rows(metrics), Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    code = codes(fit, data)
    selection(folder / "selection.png", fit)
    precisions(folder / "precisions.png", rows)
    variances(folder / "variances.png", code.variance, code.probs, rows)
    covariance(folder / "covariance.png", code.loc, rows)
    reconstructions(folder / "reconstructions.png", fit, data)
    traversals(folder / "traversals.png", fit, data, rows)


def _colours(rows: list[Latent]) -> list[str]:
    return [INFORMATIVE if row["probs"] > 0.5 else UNINFORMATIVE for row in rows]


def _names(rows: list[Latent]) -> list[str]:
    return [f"z{row['latent']}" for row in rows]


def _legend(axes: Any, *more: Any, **where: Any) -> None:
    lines = [
        matplotlib.lines.Line2D([], [], color=colour, lw=3, label=label)
        for colour, label in ((INFORMATIVE, "informative"), (UNINFORMATIVE, "uninformative"))
    ]
    axes.legend(handles=[*lines, *more], **where)


def selection(path: str | Path, fit: Fit) -> None:
    """p of each latent, by which it is informative, and the KLs, against the step.

    Moves that were kept are lines; those that were tried and refused are hollow marks at the top,
    where their branches began: a triangle upwards for a birth, downwards for a death.
    """
    expect("path", path, (str, Path), "the name of a file to write, e.g. 'selection.png'")
    check_fit(fit)
    if not fit.history:
        raise UserError("fit: expected one with the history of its training, got none")
    with new_figure(path, 7.0, 4.6) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        steps = [row["step"] for row in fit.history]
        probs = np.array([row["probs"] for row in fit.history])
        final = probs[-1] > 0.5
        for k in np.argsort(final):
            top.plot(steps, probs[:, k], color=INFORMATIVE if final[k] else UNINFORMATIVE, lw=1.5)
        # Named in the legend, because moves may follow each other closely.
        style = {"birth": ":", "death": "-."}
        moves: dict[str, Any] = {
            move.kind: top.axvline(
                move.step, color=ACCENT, lw=1.2, ls=style[move.kind], label=f"{move.kind}, kept"
            )
            for move in fit.moves
            if move.accepted
        }
        for kind, marker in (("birth", "^"), ("death", "v")):
            refused = [m.step for m in fit.moves if m.kind == kind and not m.accepted]
            if refused:
                (moves[f"{kind}, refused"],) = top.plot(
                    refused,
                    [1.07] * len(refused),
                    marker,
                    ms=6,
                    mfc="white",
                    mec="#6b7178",
                    label=f"{kind}, refused",
                )
        top.set(ylim=(-0.03, 1.12), ylabel="p, mean of the images")
        count = int(final.sum())
        top.set_title(f"{count} of {len(final)} latents end up informative")
        _legend(top, *moves.values(), loc="center right")
        for site, colour, line in (("z", "#333333", "-"), ("precision", ACCENT, "--")):
            if site in fit.history[0]["kl"]:
                kl = [row["kl"][site] for row in fit.history]
                bottom.plot(steps, kl, line, color=colour, label=f"KL of {site}", lw=1.5)
        bottom.set(xlabel="step", ylabel="nats per image", ylim=(0, None))
        bottom.legend()


def precisions(path: str | Path, rows: list[Latent]) -> None:
    """Forest plot of the posterior precisions."""
    rows = _rows(rows)
    with new_figure(path, 7.0, 0.9 + 0.28 * len(rows)) as figure:
        axes = figure.subplots()
        for y, (row, colour) in enumerate(zip(rows, _colours(rows), strict=True)):
            precision = row["precision"]
            axes.plot([precision["5%"], precision["95%"]], [y, y], color=colour, lw=2.5)
            axes.plot(precision["mean"], y, "o", color=colour, ms=6)
        axes.set_yticks(range(len(rows)), _names(rows))
        axes.invert_yaxis()
        axes.set_xscale("log")
        # From half the prior's precision of 1; counts may have less.
        axes.set_xlim(min([0.5, *(0.8 * row["precision"]["5%"] for row in rows)]), None)
        axes.set_xlabel("posterior precision of z (mean, and 5 % to 95 % over images and draws)")
        axes.set_title("Precision of each latent")
        # The middle is empty: latents have a precision near 1 or a high one.
        _legend(axes, loc="center")


def variances(path: str | Path, variance: Tensor, probs: Tensor, rows: list[Latent]) -> None:
    """Histogram of the inferred variances over images and latents, both (N, K)."""
    rows, variance, probs = _rows(rows), _codes_of("variance", variance), _codes_of("probs", probs)
    if variance.shape != probs.shape:
        raise UserError(
            f"probs: expected the shape of variance, {tuple(variance.shape)}, "
            f"got {tuple(probs.shape)}"
        )
    with new_figure(path, 7.0, 3.4) as figure:
        axes = figure.subplots()
        values = variance.clamp_min(1e-8).log10().numpy()
        edges = np.linspace(min(values.min() - 0.2, -1), max(values.max() + 0.2, 0.4), 60)
        mean = probs.mean(0).numpy() > 0.5
        for mask, colour, label in (
            (mean, INFORMATIVE, "informative"),
            (~mean, UNINFORMATIVE, "uninformative"),
        ):
            if mask.any():
                axes.hist(
                    values[:, mask].ravel(),
                    bins=list(edges),
                    color=colour,
                    label=f"{label} ({int(mask.sum())} latents)",
                )
        ticks = np.arange(np.ceil(edges[0]), np.floor(edges[-1]) + 1)
        axes.set_xticks(ticks, [f"$10^{{{int(t)}}}$" for t in ticks])
        axes.set_yscale("log")
        axes.set(xlabel="inferred variance of z given the image", ylabel="images x latents")
        axes.set_title("Inferred variances")
        axes.legend(loc="upper center")


def covariance(path: str | Path, loc: Tensor, rows: list[Latent]) -> None:
    """Scaled covariance of the posterior means: variances on the diagonal, correlations off it."""
    loc, rows = _codes_of("loc", loc), _rows(rows)
    order = [row["latent"] for row in rows]
    cov = np.atleast_2d(np.cov(loc[:, order].numpy().T, bias=True))
    std = np.sqrt(np.diag(cov))
    # A latent that does not move has no correlation with anything; the scale of the largest
    # keeps its row faint instead of dividing noise by noise.
    scaled = cov / max(float((std**2).max()), 1e-12)
    with new_figure(path, 5.6, 4.8) as figure:
        axes = figure.subplots()
        axes.grid(False)
        image = axes.imshow(scaled, cmap="RdBu_r", vmin=-1, vmax=1)
        axes.set_xticks(range(len(rows)), _names(rows), rotation=90)
        axes.set_yticks(range(len(rows)), _names(rows))
        figure.colorbar(image, ax=axes, label="covariance / largest variance", shrink=0.85)
        axes.set_title("Covariance of the posterior means")


def draw_grid(axes: Any, images: Tensor) -> None:
    """One picture of images (rows, columns, C, H, W) with thin white lines between them."""
    rows, columns, channels, height, width = images.shape
    canvas = np.ones((rows * (height + 2) - 2, columns * (width + 2) - 2, channels))
    for i in range(rows):
        for j in range(columns):
            top, left = i * (height + 2), j * (width + 2)
            pixels = images[i, j].clamp(0, 1).permute(1, 2, 0).cpu().numpy()
            canvas[top : top + height, left : left + width] = pixels
    axes.imshow(
        canvas.squeeze(-1) if channels == 1 else canvas,
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    axes.set_yticks([i * (height + 2) + height / 2 for i in range(rows)])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)


def scores(
    path: str | Path,
    panels: list[tuple[str, np.ndarray, np.ndarray | None, str]],
    other: str | None,
) -> None:
    """Histograms of per-image scores, held-out images against others.

    Args:
        path: The PNG to write.
        panels: (label with unit, held-out values, other values or None, title) for each score.
        other: Name of the other images, if there are any.
    """
    across = 2 if len(panels) > 1 else 1
    down = -(-len(panels) // across)
    with new_figure(path, 4.6 * across, 2.3 * down + 0.5) as figure:
        grid = figure.subplots(down, across, squeeze=False).ravel()
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        for axes, (label, own, others, title) in zip(grid, panels, strict=False):
            both = own if others is None else np.concatenate([own, others])
            # Foreign images may score a hundred times as high; what is typical would be one bar.
            log = both.min() > 0 and both.max() > 100 * np.median(own)
            space = np.geomspace if log else np.linspace
            low, high = both.min(), both.max()
            edges = space(low, high if high > low else low + 1.0, 41)
            axes.hist(own, bins=list(edges), color=INFORMATIVE, alpha=0.8)
            if others is not None:
                axes.hist(others, bins=list(edges), color=ACCENT, histtype="step", lw=1.8)
            if log:
                axes.set_xscale("log")
            else:
                # Few, because the numbers may be long.
                axes.locator_params(axis="x", nbins=5)
            axes.set_title(title, fontsize=10)
            axes.set(xlabel=label, ylabel="images")
        handles = [matplotlib.patches.Patch(color=INFORMATIVE, alpha=0.8, label="held-out images")]
        if other is not None:
            handles.append(
                matplotlib.patches.Patch(fill=False, edgecolor=ACCENT, lw=1.8, label=literal(other))
            )
        figure.legend(handles=handles, loc="outside upper left", ncols=2)


def _check_grid(fit: Any, data: Any, columns: Any) -> None:
    """Refuses what no pictures of images can be drawn from."""
    check_fit(fit)
    check_data(fit, data)
    expect("columns", columns, int, "a whole number")
    if not 1 <= columns <= 1000:
        raise UserError(f"columns: expected 1 to 1,000, got {columns}")


@torch.no_grad()
def reconstructions(path: str | Path, fit: Fit, data: ImageData, columns: int = 12) -> None:
    """Held-out images, their reconstructions, and ten times the absolute difference."""
    expect("path", path, (str, Path), "the name of a file to write, e.g. 'reconstructions.png'")
    _check_grid(fit, data, columns)
    x = ImageData.to_unit(data.images[:columns].to(fit.device))
    mean = reconstruct(fit, x)
    images = torch.stack([x, mean, (10.0 * (x - mean)).abs()])
    with new_figure(path, 0.75 * len(x) + 1.6, 3.0) as figure:
        axes = figure.subplots()
        draw_grid(axes, images)
        axes.set_yticklabels(["image", "reconstruction", "|difference| x 10"])
        axes.set_title("Held-out reconstructions")


@torch.no_grad()
def traverse(
    fit: Fit, data: ImageData, rows: list[Latent], columns: int, uninformative: int
) -> tuple[Tensor, list[Latent]]:
    """Decoded images (rows, columns, C, H, W), a row for each latent moved, and those rows.

    All informative latents (15 at most), most informative first, and then up to ``uninformative``
    others move over the range that they have in the data, from the 1 % to the 99 % quantile.
    """
    loc = codes(fit, data).loc
    shown = [row for row in rows if row["probs"] > 0.5][:15]
    shown += [row for row in rows if row["probs"] <= 0.5][:uninformative]
    # The image nearest to the centre of the codes is the least special one.
    centre = loc[(loc - loc.mean(0)).square().sum(1).argmin()]
    z = centre.repeat(len(shown), columns, 1)
    for i, row in enumerate(shown):
        k = row["latent"]
        low, high = torch.quantile(loc[:, k], loc.new_tensor([0.01, 0.99])).tolist()
        if row["probs"] <= 0.5:
            # Such a latent is noise from the prior to the decoder: Normal(0, 1), or counts.
            low, high = -2.0, 2.0
            if fit.model.discrete:
                rate = fit.model.marginal.mean[k].item()
                low, high = 0.0, rate + 2.0 * rate**0.5
        z[i, :, k] = torch.linspace(low, high, columns)
    with evaluating(fit.model):
        return fit.model.likelihood(fit.model.decoder(z.to(fit.device))).mean, shown


@torch.no_grad()
def traversals(
    path: str | Path, fit: Fit, data: ImageData, rows: list[Latent], columns: int = 11
) -> None:
    """Decoded images as one latent moves over the range it has in the data.

    The rows are all informative latents, most informative first, and up to two uninformative
    ones, which change nothing; the other latents stay at those of one held-out image.
    """
    expect("path", path, (str, Path), "the name of a file to write, e.g. 'traversals.png'")
    _check_grid(fit, data, columns)
    images, shown = traverse(fit, data, _rows(rows), columns, uninformative=2)
    with new_figure(path, 0.62 * columns + 1.6, 0.62 * len(shown) + 0.9) as figure:
        axes = figure.subplots()
        draw_grid(axes, images)
        axes.set_yticklabels(_names(shown))
        for label, colour in zip(axes.get_yticklabels(), _colours(shown), strict=True):
            label.set_color(colour)
        axes.set_xlabel("1 % to 99 % of the latent's range in the data (grey: the prior's)")
        axes.set_title("Latent traversals")
