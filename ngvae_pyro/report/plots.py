"""Figures of a run: which latents carry the data, and what each of them does.

Each takes the Axes to draw into and returns them; without Axes it opens a figure of its own::

    figure, (left, right) = plt.subplots(1, 2, layout="constrained")
    plots.precisions(metrics, left)
    plots.covariance(loc, metrics, right)
    plots.save(left, "latents.pdf")

Informative latents are blue, uninformative ones grey and leaking ones, which carry information
without being counted, orange in every figure. The three differ in lightness and by marks too, so
the figures survive colour blindness and a black-and-white printer.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ngvae_pyro.data.images import ImageData
from ngvae_pyro.errors import UserError, described, expect, printable
from ngvae_pyro.evaluation import traversals as paths
from ngvae_pyro.evaluation.diagnostics import (
    Followed,
    Metrics,
    codes,
    evaluate,
    most_informative_first,
    reconstruct,
)
from ngvae_pyro.extras import needed
from ngvae_pyro.files import whole, writing
from ngvae_pyro.fitted import STEPS, Fit, check_data, check_fit
from ngvae_pyro.guide import Codes
from ngvae_pyro.latents import is_informative
from ngvae_pyro.verdict import Verdict

with needed("plots"):
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

INFORMATIVE, UNINFORMATIVE, ACCENT = "#0b5fa5", "#a3a9b0", "#c25e00"
# Of letters, for which the grey of the uninformative latents is too faint.
MUTED = "#57606a"
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
    "hatch.linewidth": 0.8,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "savefig.bbox": "tight",
    # Letters that stay letters, which publishers ask for.
    "pdf.fonttype": 42,
}


# Latents of which a figure has a row each, the most informative ones; a picture of thousands is
# more than matplotlib draws.
SHOWN = 200
# Images of a figure of reconstructions.
COLUMNS = 12
# Rows of a figure of traversals, besides that of all other latents.
ROWS = 20
# Of the name of a factor in a figure.
LETTERS = 14


# A latent of the rows: its number, its mean weight and what else `most_informative_first` says, and
# whether it leaks.
Row = dict[str, Any]


class _Sheet(Figure):
    """A figure that is only written, and takes the size of what is drawn into its one Axes.

    It needs no display and leaves no state in pyplot.
    """


@contextmanager
def _drawing(ax: Any, width: float, height: float) -> Iterator[Axes]:
    """The Axes to draw into, in our style: the caller's, or those of a new figure of this size."""
    with matplotlib.rc_context(STYLE):
        if ax is None:
            # Not before somebody asks for a figure on the screen.
            with needed("plots"):
                from matplotlib import pyplot

            ax = pyplot.figure(figsize=(width, height), layout="constrained").add_subplot()
        elif not isinstance(ax, Axes):
            raise UserError(f"ax: expected matplotlib Axes or None, got {described(ax)}")
        elif isinstance(ax.figure, _Sheet):
            ax.figure.set_size_inches(width, height)
        else:
            ax.spines[["top", "right"]].set_visible(False)
            ax.set_axisbelow(True)
            ax.grid(True, axis="x", color=STYLE["grid.color"])
        yield ax


def _panels(
    ax: Axes, heights: Sequence[float], columns: int = 1, gap: tuple[float, float] = (0.2, 0.2)
) -> list[Axes]:
    """Axes within others, row by row, which are left blank but for their title.

    ``gap`` is the room below each and beside each, as a part of their mean height and width.
    """
    ax.set_axis_off()
    below = gap[0] * sum(heights) / len(heights)
    height = sum(heights) + below * (len(heights) - 1)
    width = columns + gap[1] * (columns - 1)
    found, top = [], height
    for each in heights:
        for j in range(columns):
            place = (j * (1.0 + gap[1]) / width, (top - each) / height, 1 / width, each / height)
            found.append(ax.inset_axes(place))
        top -= each + below
    return found


def _check_suffix(path: Any) -> Path:
    expect("path", path, (str, Path), "the name of a file to write, e.g. 'figure.png'")
    path = Path(path)
    if path.suffix.lower().removeprefix(".") not in Figure().canvas.get_supported_filetypes():
        name = described(path).strip("'")
        raise UserError(f"{name}: expected a name that ends in .png, .pdf or .svg")
    return path


@contextmanager
def new_figure(path: str | Path, width: float, height: float) -> Iterator[Figure]:
    """A figure that is written when the block has ended well.

    Raises:
        UserError: If the file cannot be written, or its suffix names no kind of picture.
    """
    path = _check_suffix(path)
    # A bare Figure needs no display and leaves no state in pyplot.
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        save(figure, path)


@contextmanager
def sheet(path: str | Path) -> Iterator[Axes]:
    """Axes of a figure that takes the size of what is drawn, and is written after the block.

    Raises:
        UserError: As :func:`new_figure`.
    """
    path = _check_suffix(path)
    with matplotlib.rc_context(STYLE):
        ax = _Sheet(layout="constrained").add_subplot()
        yield ax
        save(ax, path)


def save(drawn: Axes | Figure, path: str | Path) -> None:
    """Write the figure of some Axes; the suffix says how, e.g. ``.png``, ``.pdf`` or ``.svg``.

    Args:
        drawn: Axes, as the functions here return them, or a figure.
        path: The file to write, or replace: there whole or not at all.

    Raises:
        UserError: If the file cannot be written, or its suffix names no kind of picture.
    """
    expect("drawn", drawn, (Axes, Figure), "matplotlib Axes, or a figure")
    path = _check_suffix(path)
    figure = drawn.figure if isinstance(drawn, Axes) else drawn
    if figure is None:
        raise UserError("drawn: expected Axes of a figure, got some that were removed from it")
    with matplotlib.rc_context(STYLE), whole(path) as partial:
        # The figure of a subfigure is the whole one. Matplotlib has other words for it since 3.10.
        figure.figure.savefig(partial)


def latent_rows(metrics: Any) -> list[Row]:
    """The latents of a figure, most informative first.

    Args:
        metrics: From :func:`ngvae_pyro.evaluate`, or rows that were made of them.

    Returns:
        What :func:`ngvae_pyro.evaluation.diagnostics.most_informative_first` says of each, and
        ``leaking``: whether it carries information and is not counted, as the verdict of the
        metrics says.

    Raises:
        UserError: If they are neither.
    """
    rows = metrics
    if isinstance(metrics, Mapping) and "probs" in metrics:
        verdict = Verdict.from_metrics(metrics)
        leaking = verdict.uncounted(metrics["probs"]) if verdict else ()
        rows = [
            {**row, "leaking": row["latent"] in leaking}
            for row in most_informative_first(cast(Metrics, metrics))
        ]
    if not (isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)):
        raise UserError(
            "rows: expected the metrics of ngvae_pyro.evaluate, or what most_informative_first "
            f"makes of them, got {described(rows)}"
        )
    return rows


def _codes_of(name: str, values: Any) -> Tensor:
    """Numbers (N, K) on the CPU, as :func:`ngvae_pyro.evaluation.diagnostics.codes` gives them."""
    expect(name, values, (Tensor, np.ndarray), "an array (N, K)")
    values = torch.as_tensor(values).detach().cpu()
    if values.dim() != 2 or 0 in values.shape:
        raise UserError(f"{name}: expected an array (N, K), got shape {tuple(values.shape)}")
    return values


def literal(text: str) -> str:
    """A text of the user's in a figure, where dollar signs would start a formula."""
    return text.replace("$", r"\$")


def save_all(
    folder: str | Path,
    fit: Fit,
    data: ImageData,
    metrics: Metrics,
    code: Codes | None = None,
    support: "paths.Support | None" = None,
) -> None:
    """Write every figure of a run as PNG into ``folder``, which is made where it is not there.

    Args:
        folder: Where to.
        fit: The trained pair.
        data: Images that were not trained on.
        metrics: Of :func:`ngvae_pyro.evaluate`.
        code: What the guide says of the images, where it is known already.
        support: Likewise, for the traversals.
    """
    expect("folder", folder, (str, Path), "the name of a folder")
    check_fit(fit)
    check_data(fit, data)
    rows, folder = latent_rows(metrics), Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    code = code or codes(fit, data)
    figures = {
        "selection": lambda ax: selection(fit, ax),
        "precisions": lambda ax: precisions(rows, ax),
        "variances": lambda ax: variances(code.variance, code.probs, rows, ax),
        "covariance": lambda ax: covariance(code.loc, rows, ax),
        "reconstructions": lambda ax: reconstructions(fit, data, ax=ax),
        "traversals": lambda ax: traversals(fit, data, rows, ax=ax, support=support),
    }
    for name, draw in figures.items():
        with sheet(folder / f"{name}.png") as ax:
            draw(ax)


def colours(rows: list[Row]) -> list[str]:
    return [
        INFORMATIVE
        if is_informative(row["probs"])
        else ACCENT
        if row.get("leaking")
        else UNINFORMATIVE
        for row in rows
    ]


def _names(rows: list[Row]) -> list[str]:
    return [f"z{row['latent']}" for row in rows]


def _legend(axes: Any, *more: Any, **where: Any) -> None:
    lines = [
        matplotlib.lines.Line2D([], [], color=colour, lw=3, label=label)
        for colour, label in ((INFORMATIVE, "informative"), (UNINFORMATIVE, "uninformative"))
    ]
    axes.legend(handles=[*lines, *more], **where)


def selection(fit: Fit, ax: Axes | None = None) -> Axes:
    """P of each latent, by which it is informative, and the KLs, against the step.

    Moves that were kept are lines; those that were tried and refused are hollow marks at the top,
    where their branches began: a triangle upwards for a birth, downwards for a death.
    """
    check_fit(fit)
    if not fit.history:
        raise UserError("fit: expected one with the history of its training, got none")
    with _drawing(ax, 7.0, 4.6) as ax:
        top, bottom = _panels(ax, (3, 2), gap=(0.1, 0.0))
        bottom.sharex(top)
        top.tick_params(labelbottom=False)
        steps = [row["step"] for row in fit.history]
        probs = np.array([row["probs"] for row in fit.history])
        final = is_informative(probs[-1])
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
        _legend(top, *moves.values(), loc="best")
        for site, colour, line in (("z", "#333333", "-"), ("precision", ACCENT, "--")):
            if site in fit.history[0]["kl"]:
                kl = [row["kl"][site] for row in fit.history]
                bottom.plot(steps, kl, line, color=colour, label=f"KL of {site}", lw=1.5)
        bottom.set(xlabel="step", ylabel="nats per image", ylim=(0, None))
        bottom.legend()
    return ax


def _mark(row: Row) -> dict[str, Any]:
    """How the latent of a row is drawn as a point: full, hollow, or as a diamond if it leaks."""
    (colour,) = colours([row])
    style = {"marker": "o", "color": colour, "mfc": "white", "ms": 5.5, "mew": 1.5, "ls": ""}
    if is_informative(row["probs"]):
        return style | {"mfc": colour}
    return style | ({"marker": "D"} if row.get("leaking") else {})


def _name_latents(axis: Any, rows: list[Row]) -> None:
    """Colours the names of latents at the ticks of an axis."""
    for label, colour in zip(axis.get_ticklabels(), colours(rows), strict=True):
        label.set_color(MUTED if colour == UNINFORMATIVE else colour)


def precisions(rows: Any, ax: Axes | None = None) -> Axes:
    """Forest plot of the precision of q(z | x), on a logarithmic axis.

    It is the inverse of the variance that z is inferred with, and not a posterior of the model's
    site ``precision``: that site is drawn unconnected to z and x.

    Args:
        rows: The metrics of :func:`ngvae_pyro.evaluate`, or :func:`latent_rows` of them.
        ax: Where to draw; a figure of its own by default.

    Returns:
        The Axes.
    """
    rows = latent_rows(rows)[:SHOWN]
    with _drawing(ax, 6.4, 1.1 + 0.27 * len(rows)) as ax:
        kinds = {}
        for y, (row, colour) in enumerate(zip(rows, colours(rows), strict=True)):
            precision = row["precision"]
            ax.plot([precision["5%"], precision["95%"]], [y, y], color=colour, lw=2.5)
            (point,) = ax.plot(precision["mean"], y, **_mark(row))
            kinds[_kind(row)] = point
        ax.set_yticks(range(len(rows)), _names(rows))
        _name_latents(ax.yaxis, rows)
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_xscale("log")
        # From half the prior's precision of 1; counts may have less.
        ax.set_xlim(min([0.5, *(0.8 * row["precision"]["5%"] for row in rows)]), None)
        ax.set_xlabel("precision of q(z | x): mean, and 5 % to 95 % over images and draws")
        ax.set_title("Precision of each latent")
        # The middle is empty: latents have a precision near 1 or a high one.
        ax.legend(kinds.values(), kinds, loc="best")
    return ax


def _kind(row: Row) -> str:
    if is_informative(row["probs"]):
        return "informative"
    return "leaking" if row.get("leaking") else "uninformative"


def variances(variance: Any, probs: Any, rows: Any, ax: Axes | None = None) -> Axes:
    """Histogram of the inferred variances over images and latents.

    Args:
        variance: Variances of z given each image, (N, K).
        probs: The weights p by which latents are informative, (N, K).
        rows: As for :func:`precisions`; they say which latents leak.
        ax: Where to draw; a figure of its own by default.

    Returns:
        The Axes.
    """
    rows, variance, probs = (
        latent_rows(rows),
        _codes_of("variance", variance),
        _codes_of("probs", probs),
    )
    if variance.shape != probs.shape:
        raise UserError(
            f"probs: expected the shape of variance, {tuple(variance.shape)}, "
            f"got {tuple(probs.shape)}"
        )
    with _drawing(ax, 6.4, 3.4) as ax:
        values = variance.clamp_min(1e-8).log10().numpy()
        edges = np.linspace(min(values.min() - 0.2, -1), max(values.max() + 0.2, 0.4), 60)
        on = is_informative(probs.mean(0).numpy())
        leaking = np.isin(np.arange(len(on)), [r["latent"] for r in rows if r.get("leaking")])
        groups: dict[str, tuple[np.ndarray, Any]] = {
            "informative": (on, {"color": INFORMATIVE}),
            "uninformative": (~on & ~leaking, {"color": UNINFORMATIVE}),
            "leaking": (
                ~on & leaking,
                {
                    "facecolor": "none",
                    "edgecolor": ACCENT,
                    "hatch": "////",
                    "histtype": "stepfilled",
                },
            ),
        }
        for kind, (mask, style) in groups.items():
            if mask.any():
                count = int(mask.sum())
                label = f"{kind} ({count} latent{'' if count == 1 else 's'})"
                ax.hist(values[:, mask].ravel(), bins=list(edges), label=label, **style)
        ticks = np.arange(np.ceil(edges[0]), np.floor(edges[-1]) + 1)
        ax.set_xticks(ticks, [f"$10^{{{int(t)}}}$" for t in ticks])
        ax.set_yscale("log")
        ax.set(xlabel="inferred variance of z given the image", ylabel="images × latents")
        ax.set_title("Inferred variances")
        ax.legend(loc="upper center")
    return ax


def covariance(loc: Any, rows: Any, ax: Axes | None = None) -> Axes:
    """Scaled covariance of the posterior means: variances on the diagonal, covariances off it.

    Args:
        loc: Posterior means (N, K).
        rows: As for :func:`precisions`; they give the order.
        ax: Where to draw; a figure of its own by default.

    Returns:
        The Axes.
    """
    loc, rows = _codes_of("loc", loc), latent_rows(rows)[:SHOWN]
    with _drawing(ax, 5.6, 4.8) as ax:
        image = draw_covariance(ax, loc, rows)
        figure = ax.get_figure()
        assert figure is not None
        figure.colorbar(image, ax=ax, label="covariance / largest variance", shrink=0.85)
        ax.set_title("Covariance of the posterior means")
    return ax


def draw_covariance(ax: Axes, values: Tensor, rows: list[Row]) -> AxesImage:
    """The matrix of the covariances of values (N, K) over the largest variance, latents named."""
    order = [row["latent"] for row in rows]
    cov = np.atleast_2d(np.cov(values[:, order].numpy().T, bias=True))
    # A latent that does not move has no correlation with anything; the scale of the largest
    # keeps its row faint instead of dividing noise by noise.
    scaled = cov / max(float(np.diag(cov).max()), 1e-12)
    ax.grid(False)
    image = ax.imshow(scaled, cmap="RdBu_r", vmin=-1, vmax=1)
    ax.set_xticks(range(len(rows)), _names(rows), rotation=90)
    ax.set_yticks(range(len(rows)), _names(rows))
    for axis in (ax.xaxis, ax.yaxis):
        _name_latents(axis, rows)
    return image


def draw_grid(axes: Any, images: Tensor, apart: int = 0) -> None:
    """One picture of images (rows, columns, C, H, W) with thin white lines between them.

    The last ``apart`` rows stand half a row below the others.
    """
    rows, columns, channels, height, width = images.shape
    gap = np.where(np.arange(rows) >= rows - apart, (height + 1) // 2, 0) if apart < rows else 0
    tops = np.arange(rows) * (height + 2) + gap
    canvas = np.ones((tops[-1] + height, columns * (width + 2) - 2, channels))
    for i, top in enumerate(tops):
        for j in range(columns):
            left = j * (width + 2)
            pixels = images[i, j].clamp(0, 1).permute(1, 2, 0).cpu().numpy()
            canvas[top : top + height, left : left + width] = pixels
    axes.imshow(
        canvas.squeeze(-1) if channels == 1 else canvas,
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    axes.set_yticks(tops + (height - 1) / 2)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)


def scores(
    panels: list[tuple[str, np.ndarray, np.ndarray | None, str]],
    other: str | None,
    ax: Axes | None = None,
) -> Axes:
    """Histograms of per-image scores, held-out images against others.

    Args:
        panels: (label with unit, held-out values, other values or None, title) for each score.
        other: Name of the other images, if there are any.
        ax: Where to draw; a figure of its own by default.

    Returns:
        The Axes, which have a panel for each score within.
    """
    across = 2 if len(panels) > 1 else 1
    down = -(-len(panels) // across)
    with _drawing(ax, 4.6 * across, 2.3 * down + 0.5) as ax:
        grid = _panels(ax, [1.0] * down, across, gap=(0.6, 0.2))
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
        place = (0.0, 1.0 + 0.25 / (2.3 * down))
        ax.legend(handles=handles, loc="lower left", bbox_to_anchor=place, ncols=2)
    return ax


def are_vectors(images: Tensor) -> bool:
    """Whether images (..., C, H, W) are vectors, which are drawn as curves."""
    return images.shape[-3:-1] == (1, 1)


def _curve(ax: Axes, vector: Tensor, **style: Any) -> None:
    """A vector (1, 1, D) against the number of its column."""
    values = vector.flatten().cpu().numpy()
    # Few columns are points that a line joins.
    ax.plot(np.arange(len(values)), values, marker="." if len(values) <= 40 else "", **style)
    ax.grid(False)
    ax.spines[["top", "right"]].set_visible(False)
    ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=True))


def reconstructions(
    fit: Fit, data: ImageData, columns: int = COLUMNS, ax: Axes | None = None
) -> Axes:
    """Held-out images, their reconstructions, and ten times the absolute difference.

    Vectors, images of shape (1, 1, D), are curves: each has a panel of its own, with its
    reconstruction over it.

    Args:
        fit: The trained pair.
        data: Images, of which the first are shown.
        columns: How many, 1 to 1,000.
        ax: Where to draw; a figure of its own by default.

    Returns:
        The Axes.
    """
    check_fit(fit)
    check_data(fit, data)
    paths.check_number("columns", columns, 1, 1000)
    x = ImageData.to_unit(data.images[:columns].to(fit.device))
    mean = reconstruct(fit, x)
    if are_vectors(x):
        return _reconstructed_curves(x, mean, ax)
    with _drawing(ax, 0.5 * len(x) + 1.4, 2.3) as ax:
        draw_grid(ax, torch.stack([x, mean, (10.0 * (x - mean)).abs()]))
        ax.set_yticklabels(["image", "reconstruction", "|difference| × 10"])
        ax.set_title("Held-out reconstructions")
    return ax


def _reconstructed_curves(x: Tensor, mean: Tensor, ax: Axes | None) -> Axes:
    across = min(3, len(x))
    down = -(-len(x) // across)
    with _drawing(ax, 2.3 * across + 0.6, 1.2 * down + 0.9) as ax:
        panels = _panels(ax, [1.0] * down, across, gap=(0.25, 0.25))
        for panel in panels[len(x) :]:
            panel.set_axis_off()
        for i, (panel, one, again) in enumerate(zip(panels, x, mean, strict=False)):
            _curve(panel, one, color=UNINFORMATIVE, lw=2.5, label="vector")
            _curve(panel, again, color=INFORMATIVE, lw=1.2, label="reconstruction")
            if i + across < len(x):
                panel.tick_params(labelbottom=False)
            else:
                panel.set_xlabel("column")
            if i % across == 0:
                panel.set_ylabel("value")
        panels[0].legend(
            loc="lower right", bbox_to_anchor=(across + 0.25 * (across - 1), 1.0), ncols=2
        )
        ax.set_title("Held-out reconstructions")
    return ax


def moved_rows(rows: list[Row]) -> tuple[list[list[int]], list[str]]:
    """Which latents move in each row of a figure of traversals, and the names of its rows.

    One row for each informative latent and one for each that leaks, 20 at most, and one in which
    all others move at once.
    """
    kinds = ("informative", "leaking", "uninformative")
    informative, leaking, others = (
        [row["latent"] for row in rows if _kind(row) == kind] for kind in kinds
    )
    shown = (informative + leaking)[:ROWS]
    moved, names = [[k] for k in shown], [f"z{k}" for k in shown]
    if others:
        moved.append(others)
        names.append(f"the other\n{len(others)} latents" if len(others) > 1 else f"z{others[0]}")
    return moved, names


def _with_factors(name: str, row: Row) -> str:
    """The name of a latent and what it follows, or below each other both factors that it mixes."""
    found: Followed | None = row.get("followed")
    if found is None or _kind(row) == "uninformative":
        return name
    shown = found.closest[:1] if found.factor is not None else found.mixed
    lines = [f"{literal(_short(factor))} {value:.2f}" for factor, value in shown]
    return " ".join([name, "\n".join(lines)]).rstrip()


def _short(name: str) -> str:
    """A name that leaves room for the rest, without its middle where it is a long one."""
    name = printable(name)
    return name if len(name) <= LETTERS else f"{name[: LETTERS - 5]}…{name[-4:]}"


def traversals(
    fit: Fit,
    data: ImageData,
    rows: Any,
    *,
    latents: Sequence[int] | None = None,
    steps: int = STEPS,
    bases: int | Sequence[int] = 1,
    ax: Axes | None = None,
    support: "paths.Support | None" = None,
) -> Axes:
    """Decoded images as latents move, from images that the others stay at.

    A row for each informative latent, most informative first, and one for each that leaks, 20 at
    most; in a last row all other latents move at once, which changes nothing where they carry
    nothing. Each row says between which values of z it goes: as far as there are images that are
    alike in the other latents (:meth:`ngvae_pyro.evaluation.traversals.Support.reach`). At its
    right are the KL of z (nats) and the mean precision of q(z | x). Where the factors of the images
    are known, the factor that a latent follows stands beside its name with their correlation, or
    the two that it mixes (:class:`ngvae_pyro.evaluation.diagnostics.Followed`). Vectors, images of
    shape (1, 1, D), are curves.

    Args:
        fit: The trained pair.
        data: Images; the ranges are theirs, so the more the better.
        rows: As for :func:`precisions`.
        latents: Numbers of the latents to show instead, in this order.
        steps: How many images a row has, 2 to 1,000.
        bases: How many images to start from, typical ones of which the first is the least special,
            or which of ``data`` by their numbers; a block of rows for each.
        ax: Where to draw; a figure of its own by default.
        support: Of the images, where it is known already.

    Returns:
        The Axes.

    Raises:
        UserError: For numbers of latents or of images that are not there, and for rows that are
            not those of all latents of the fit.
    """
    check_fit(fit)
    check_data(fit, data)
    rows, size = latent_rows(rows), fit.model.latent_size
    known = {row["latent"]: row for row in rows}
    if sorted(known) != list(range(size)):
        raise UserError(f"rows: expected the {size} latents of the fit, got {len(known)}")
    if latents is not None:
        latents = paths.check_numbers("latents", latents, size, "latents, e.g. [3, 9]")
    paths.check_number("steps", steps, 2, 1000)
    support = support or paths.Support.of(fit, data)
    if isinstance(bases, Integral) and not isinstance(bases, bool):
        paths.check_number("bases", bases, 1, min(100, len(data)))
        numbers = paths.typical(support.loc, int(bases))
    else:
        numbers = paths.check_numbers("bases", bases, len(data), "images, e.g. [0, 5]")
    if latents is None:
        moved, names = moved_rows(rows)
    else:
        moved, names = [[k] for k in latents], [f"z{k}" for k in latents]
    names = [
        _with_factors(name, known[row[0]]) if len(row) == 1 else name
        for name, row in zip(names, moved, strict=True)
    ]
    walks = [paths.walk(fit, support, moved, steps, base) for base in numbers]
    groups = [[known[k] for k in row] for row in moved]
    draw, across, down = _draw_walk, 0.42, 0.45
    if are_vectors(walks[0][0]):
        draw, across, down = _draw_curves, 4.2 / steps, 0.8
    else:
        _, pixels_down, pixels_across = fit.model.image_shape
        across *= min(max(pixels_across / pixels_down, 0.4), 2.5)
    height = down * (len(moved) + 0.5) * len(walks) + 0.7
    letters = max(len(line) for name in names for line in name.split("\n"))
    width = across * steps + 2.5 + 0.08 * max(letters - 6, 0)
    with _drawing(ax, width, height) as ax:
        blocks = [ax] if len(walks) == 1 else _panels(ax, [1.0] * len(walks), gap=(0.12, 0.0))
        for block, (images, found) in zip(blocks, walks, strict=True):
            draw(block, images, found, names, groups)
            if block is not ax:
                # Below the title, where the room is wider than the images.
                block.set_anchor("W")
        count = sum(_kind(row) != "uninformative" for row in rows)
        of = f": the {ROWS} most informative of {count}" if latents is None and count > ROWS else ""
        ax.set_title(f"Latent traversals{of}", pad=22)
    return ax


def _beside(
    ax: Axes, across: Any, y: float, name: str, group: list[Row], span: tuple[float, float]
) -> None:
    """What stands at both ends of a row: its name and where it starts, where it ends and numbers.

    Args:
        ax: The Axes of the row.
        across: Coordinates of which x goes from 0 to 1 over the Axes.
        y: Where the row is in them.
        name: Its name.
        group: The latents that move in it.
        span: Between which values.
    """
    (colour,) = set(colours(group)) if len(group) == 1 else (UNINFORMATIVE,)
    kl = sum(row["kl"]["z"] for row in group)
    precision = np.mean([row["precision"]["mean"] for row in group])
    digits = 0 if precision >= 100 else 1 if precision >= 10 else 2
    low, high = (f"{value:z.2f}".replace("-", "\N{MINUS SIGN}") for value in span)
    texts: list[tuple[int, int, str, Any, Any]] = [
        (0, -44, name, "right", {"color": MUTED if colour == UNINFORMATIVE else colour}),
        (0, -5, low, "right", {"color": MUTED}),
        (1, 5, high, "left", {"color": MUTED}),
        (1, 78, f"{max(kl, 0.0):.1f}", "right", {}),
        (1, 128, f"{precision:,.{digits}f}", "right", {}),
    ]
    for x, offset, text, side, style in texts:
        ax.annotate(
            text,
            (x, y),
            xycoords=across,
            xytext=(offset, 0),
            textcoords="offset points",
            ha=side,
            va="center",
            linespacing=1.1,
            **style,
        )


def _head(ax: Axes) -> None:
    """Headings of what stands beside the rows."""
    for x, offset, text, side in (
        (0, -5, "z from", "right"),
        (1, 5, "to", "left"),
        (1, 78, "KL (nats)", "right"),
        (1, 128, "precision", "right"),
    ):
        ax.annotate(
            text,
            (x, 1),
            xycoords="axes fraction",
            xytext=(offset, 4),
            textcoords="offset points",
            ha=side,
            va="bottom",
            fontsize=9,
            color=MUTED,
        )


def _draw_walk(
    ax: Axes,
    images: Tensor,
    spans: list[tuple[float, float]],
    names: list[str],
    groups: list[list[Row]],
) -> None:
    """A grid of images with what stands beside its rows."""
    draw_grid(ax, images, apart=sum(len(group) > 1 for group in groups))
    rows = ax.get_yticks()
    ax.set_yticks([])
    for y, name, group, span in zip(rows, names, groups, spans, strict=True):
        _beside(ax, ax.get_yaxis_transform(), y, name, group, span)
    _head(ax)


def _draw_curves(
    ax: Axes,
    images: Tensor,
    spans: list[tuple[float, float]],
    names: list[str],
    groups: list[list[Row]],
) -> None:
    """A panel of curves for each row with what stands beside it."""
    panels = draw_curves(ax, images)
    for panel, name, group, span in zip(panels, names, groups, spans, strict=True):
        # The left side is that of the name and the low end.
        panel.tick_params(left=False, labelleft=False)
        _beside(panel, panel.transAxes, 0.5, name, group, span)
    _head(panels[0])


def draw_curves(ax: Axes, images: Tensor) -> list[Axes]:
    """A panel for each row of vectors (rows, columns, 1, 1, D), in one scale; the panels.

    The curves of a row go from dark to light.
    """
    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.9, images.shape[1]))
    panels = _panels(ax, [1.0] * len(images))
    low, high = float(images.min()), float(images.max())
    room = 0.05 * (high - low) + 1e-6
    for panel, row in zip(panels, images, strict=True):
        for vector, shade in zip(row, shades, strict=True):
            _curve(panel, vector, color=shade, lw=1.2)
        panel.set_ylim(low - room, high + room)
        panel.tick_params(labelbottom=panel is panels[-1], labelsize=8)
    panels[-1].set_xlabel(
        "column; dark: the low end of z, light: the high end\n"
        f"(values from {low:.2g} to {high:.2g} in each panel)"
    )
    return panels


class Figures:
    """The figures of one fit, as ``fit.plot.precisions(images)``.

    Each takes ``ax``, matplotlib Axes to draw into, or opens a figure of its own, and returns the
    Axes. Images are an array, a tensor or :class:`ngvae_pyro.ImageData` of the model's shape, best
    some that were not trained on.
    """

    def __init__(self, fit: Fit) -> None:
        self._fit = fit

    def selection(self, ax: Axes | None = None) -> Axes:
        """P of each latent and the KLs over the training: :func:`ngvae_pyro.plots.selection`."""
        return selection(self._fit, ax)

    def precisions(self, images: Any, ax: Axes | None = None) -> Axes:
        """Forest plot of the precisions: :func:`ngvae_pyro.plots.precisions`."""
        return precisions(self._rows(images), ax)

    def variances(self, images: Any, ax: Axes | None = None) -> Axes:
        """Histogram of the inferred variances: :func:`ngvae_pyro.plots.variances`."""
        code = codes(self._fit, self._fit.as_images(images))
        return variances(code.variance, code.probs, self._rows(images), ax)

    def covariance(self, images: Any, ax: Axes | None = None) -> Axes:
        """Covariance of the posterior means: :func:`ngvae_pyro.plots.covariance`."""
        code = codes(self._fit, self._fit.as_images(images))
        return covariance(code.loc, self._rows(images), ax)

    def reconstructions(self, images: Any, columns: int = COLUMNS, ax: Axes | None = None) -> Axes:
        """Images and their reconstructions: :func:`ngvae_pyro.plots.reconstructions`."""
        return reconstructions(self._fit, self._fit.as_images(images), columns, ax)

    def traversals(
        self,
        images: Any,
        latents: Sequence[int] | None = None,
        steps: int = STEPS,
        bases: int | Sequence[int] = 1,
        ax: Axes | None = None,
    ) -> Axes:
        """Decoded images as latents move: :func:`ngvae_pyro.plots.traversals`."""
        data, rows = self._fit.as_images(images), self._rows(images)
        return traversals(self._fit, data, rows, latents=latents, steps=steps, bases=bases, ax=ax)

    def _rows(self, images: Any) -> list[Row]:
        return latent_rows(evaluate(self._fit, self._fit.as_images(images)))
