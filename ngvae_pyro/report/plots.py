"""Figures of a run: which latents carry the data, and what each of them does.

Each function takes the Axes to draw into and returns them; without Axes it opens a new figure::

    figure, (left, right) = plt.subplots(1, 2, layout="constrained")
    plots.precisions(metrics, left)
    plots.covariance(loc, metrics, right)
    plots.save(left, "latents.pdf")

Informative latents are blue, uninformative ones grey and leaking ones, which carry information
without being counted, orange in every figure. The three differ in lightness and by marks too, so
the figures remain readable with colour blindness and in black and white.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ngvae_pyro.data.forms import Form
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.data.rows import Rows
from ngvae_pyro.errors import UserError, described, expect, printable
from ngvae_pyro.evaluation import traversals as paths
from ngvae_pyro.evaluation.diagnostics import (
    Followed,
    Metrics,
    codes,
    difference,
    evaluate,
    most_informative_first,
    reconstruct,
)
from ngvae_pyro.extras import needed
from ngvae_pyro.files import whole, writing
from ngvae_pyro.fitted import STEPS, Fit, check_data, check_fit
from ngvae_pyro.guide import Codes
from ngvae_pyro.latents import is_informative
from ngvae_pyro.records import CountCurve
from ngvae_pyro.verdict import Verdict

with needed("plots"):
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.ticker import MaxNLocator

INFORMATIVE, UNINFORMATIVE, ACCENT = "#0b5fa5", "#a3a9b0", "#c25e00"
# The colour of text, for which the grey of the uninformative latents is too faint.
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
    # Embed fonts as TrueType, so that text stays text, as publishers require.
    "pdf.fonttype": 42,
}


# The most latents that get a row of their own in a figure, most informative first; matplotlib
# cannot draw a picture with thousands of rows.
SHOWN = 200
# Images in a figure of reconstructions.
COLUMNS = 12
# The most rows in a figure of traversals, not counting the row of all other latents.
ROWS = 20
# The most letters of a factor's name in a figure.
LETTERS = 14


# One latent: the entries of `most_informative_first`, and whether it leaks.
Row = dict[str, Any]


class _Sheet(Figure):
    """A figure that is only saved, and takes the size of the drawing in its single Axes.

    It needs no display and leaves no state in pyplot.
    """


@contextmanager
def _drawing(ax: Any, width: float, height: float) -> Iterator[Axes]:
    """Yield the Axes to draw into, in our style: the caller's, or those of a new figure."""
    with matplotlib.rc_context(STYLE):
        if ax is None:
            # Imported only when a figure for the screen is requested.
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
    """Make Axes inside other ones, row by row; the outer ones show only their title.

    ``gap`` is the space below and beside each, as fractions of their mean height and width.
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
    """Yield a figure that is saved when the block succeeds.

    Args:
        path: The file to write; its suffix gives the format.
        width: Width in inches.
        height: Height in inches.

    Raises:
        UserError: If the file cannot be written, or its suffix is not that of a picture format.
    """
    path = _check_suffix(path)
    # A bare Figure needs no display and leaves no state in pyplot.
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        save(figure, path)


@contextmanager
def sheet(path: str | Path) -> Iterator[Axes]:
    """Yield the Axes of a figure that takes the size of the drawing, and is saved after the block.

    Raises:
        UserError: As :func:`new_figure`.
    """
    path = _check_suffix(path)
    with matplotlib.rc_context(STYLE):
        ax = _Sheet(layout="constrained").add_subplot()
        yield ax
        save(ax, path)


def save(drawn: Axes | Figure, path: str | Path) -> None:
    """Save a figure; the suffix gives the format, e.g. ``.png``, ``.pdf`` or ``.svg``.

    Args:
        drawn: Axes, as the functions here return them, or a figure.
        path: The file, which is written or replaced atomically.

    Raises:
        UserError: If the file cannot be written, or its suffix is not that of a picture format.
    """
    expect("drawn", drawn, (Axes, Figure), "matplotlib Axes, or a figure")
    path = _check_suffix(path)
    figure = drawn.figure if isinstance(drawn, Axes) else drawn
    if figure is None:
        raise UserError("drawn: expected Axes of a figure, got some that were removed from it")
    with matplotlib.rc_context(STYLE), whole(path) as partial:
        # A subfigure's `figure` is the whole figure. Since 3.10 matplotlib also has another way.
        figure.figure.savefig(partial)


def latent_rows(metrics: Any) -> list[Row]:
    """The latents of a figure, most informative first.

    Args:
        metrics: From :func:`ngvae_pyro.evaluate`, or rows made from them.

    Returns:
        The rows of :func:`ngvae_pyro.evaluation.diagnostics.most_informative_first`, with
        ``leaking`` added: whether the latent carries information without being counted, according
        to the verdict in the metrics.

    Raises:
        UserError: If it is given neither.
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
    """Check numbers (N, K), and return them on the CPU."""
    expect(name, values, (Tensor, np.ndarray), "an array (N, K)")
    values = torch.as_tensor(values).detach().cpu()
    if values.dim() != 2 or 0 in values.shape:
        raise UserError(f"{name}: expected an array (N, K), got shape {tuple(values.shape)}")
    return values


def literal(text: str) -> str:
    """Escape a user's text for a figure, where dollar signs would start a formula."""
    return text.replace("$", r"\$")


def save_all(
    folder: str | Path,
    fit: Fit,
    data: ImageData,
    metrics: Metrics,
    code: Codes | None = None,
    support: "paths.Support | None" = None,
) -> None:
    """Save every figure of a run as PNG.

    Args:
        folder: The folder, which is made if necessary.
        fit: The trained pair.
        data: Images that were not trained on.
        metrics: From :func:`ngvae_pyro.evaluate`.
        code: The codes of the images, if already computed.
        support: The support of the images, if already computed.
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
    """The colour of each latent: informative, leaking or uninformative."""
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
    """Plot each latent's p, by which it counts as informative, and the KLs against the step.

    Moves that were kept are lines; moves that were tried and rejected are hollow marks at the top,
    where their branches began: an upward triangle for a birth, a downward one for a death, a square
    for a growth, a circle for an unfolding.

    Args:
        fit: The trained pair, with its history.
        ax: Where to draw; a new figure by default.

    Returns:
        The Axes.
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
        style = {"birth": ":", "death": "-.", "growth": "-", "unfolding": "--"}
        moves: dict[str, Any] = {
            move.kind: top.axvline(
                move.step, color=ACCENT, lw=1.2, ls=style[move.kind], label=f"{move.kind}, kept"
            )
            for move in fit.moves
            if move.accepted
        }
        for kind, marker in (("birth", "^"), ("death", "v"), ("growth", "s"), ("unfolding", "o")):
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
    """The marker of a latent: filled, hollow, or a diamond if it leaks."""
    (colour,) = colours([row])
    style = {"marker": "o", "color": colour, "mfc": "white", "ms": 5.5, "mew": 1.5, "ls": ""}
    if is_informative(row["probs"]):
        return style | {"mfc": colour}
    return style | ({"marker": "D"} if row.get("leaking") else {})


def _name_latents(axis: Any, rows: list[Row]) -> None:
    """Label the ticks of an axis with the names of latents, in their colours."""
    for label, colour in zip(axis.get_ticklabels(), colours(rows), strict=True):
        label.set_color(MUTED if colour == UNINFORMATIVE else colour)


def precisions(rows: Any, ax: Axes | None = None) -> Axes:
    """Forest plot of the precision of q(z | x), on a logarithmic axis.

    This is the inverse of the inferred variance of z. It is not a posterior of the model's site
    ``precision``, which is drawn independently of z and x.

    Args:
        rows: The metrics of :func:`ngvae_pyro.evaluate`, or :func:`latent_rows` of them.
        ax: Where to draw; a new figure by default.

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
        # Start at half the prior's precision of 1; counts may have less.
        ax.set_xlim(min([0.5, *(0.8 * row["precision"]["5%"] for row in rows)]), None)
        ax.set_xlabel("precision of q(z | x): mean, and 5 % to 95 % over images and draws")
        ax.set_title("Precision of each latent")
        # The middle is empty, because precisions are either near 1 or high.
        ax.legend(kinds.values(), kinds, loc="best")
    return ax


def _kind(row: Row) -> str:
    if is_informative(row["probs"]):
        return "informative"
    return "leaking" if row.get("leaking") else "uninformative"


# Colours and dashes of the classical estimates, by their keys, and what they are called.
_CLASSICAL: dict[str, tuple[str, Any, str]] = {
    "two_nn": (ACCENT, (0, (5, 2)), "TwoNN"),
    "mle": ("#007a5a", (0, (1, 1.5)), "max. likelihood"),
    "components": ("#9b3f7c", (0, (6, 2, 1, 2)), "components"),
}


def counts(curve: CountCurve, ax: Axes | None = None) -> Axes:
    """Plot the number of informative latents against the scale at which they were counted.

    The plateau is shaded, and the own scale of the data is marked. Filled points are settled
    counts, hollow ones are those that something speaks against. Classical estimates are lines where
    they are not far from the counts.

    Args:
        curve: From :func:`ngvae_pyro.count`.
        ax: Where to draw; a new figure by default.

    Returns:
        The Axes.
    """
    if not (isinstance(curve, Mapping) and "plateau" in curve and "scales" in curve):
        raise UserError(f"curve: expected the result of ngvae_pyro.count, got {described(curve)}")
    found, unit = curve["plateau"], curve["unit"]
    x = np.array([unit * one["scale"] for one in curve["scales"]])
    y = np.array([np.nan if (n := one["informative"]) is None else n for one in curve["scales"]])
    with _drawing(ax, 7.0, 4.0) as ax:
        ax.grid(True, axis="y", color=STYLE["grid.color"])
        ax.grid(False, axis="x")
        ax.set_xscale("log")
        # Halfway to the next scale, or as far beyond the last one.
        middles = np.sqrt(x[1:] * x[:-1])
        ratios = x[[1, -1]] / x[[0, -2]] if len(x) > 1 else np.array([2.0, 2.0])
        ends = np.array([x[0] / np.sqrt(ratios[0]), *middles, x[-1] * np.sqrt(ratios[1])])
        low, high = ends[found["first"]], ends[found["last"] + 1]
        if found["first"] < found["last"]:
            ax.axvspan(low, high, color=INFORMATIVE, alpha=0.13, lw=0)
            # Above the Axes, where nothing else is.
            ax.text(
                *(np.sqrt(low * high), 1.015, f"plateau: {found['informative']}"),
                transform=ax.get_xaxis_transform(),
                ha="center",
                va="bottom",
                color=INFORMATIVE,
                weight="bold",
            )
        own = x[curve["own"]]
        ax.axvline(own, color=MUTED, lw=1.2, ls=(0, (2, 2)), label=f"own scale, {own:.2g}")
        ax.plot(x, y, color=INFORMATIVE, lw=1.5)
        settled = np.array([one["verdict"] == "settled" for one in curve["scales"]])
        kinds = (("settled", settled, INFORMATIVE), ("not settled", ~settled, "white"))
        for kind, mask, face in kinds:
            if (mask & np.isfinite(y)).any():
                mark: Any = {"mfc": face, "mec": INFORMATIVE, "mew": 1.5, "ms": 8, "ls": ""}
                ax.plot(x[mask], y[mask], "o", label=kind, **mark)
        ax.set_xlim(ends[0], ends[-1])
        bottom, top = max(np.nanmin(y) - 1.5, -0.5), np.nanmax(y) + 1.5
        ax.set_ylim(bottom, top)
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xticks(x, [f"{value:.2g}" for value in x], rotation=45 if len(x) > 8 else 0)
        ax.set_xticks([], minor=True)
        ax.set_xlabel(f"standard deviation of the likelihood, {curve['units']}")
        ax.set_ylabel("informative latents")
        ax.set_title("The count at each scale", pad=20)
        _classical(ax, curve, bottom, top)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3)
    return ax


def _classical(ax: Axes, curve: CountCurve, bottom: float, top: float) -> None:
    """Draw the classical estimates that are in view, with labels beside the Axes, apart."""
    values: dict[str, Any] = {**curve["classical"]}
    seen = [
        (values[key], *look)
        for key, look in _CLASSICAL.items()
        if values[key] is not None and bottom < values[key] < top
    ]
    # Of a line of text.
    height, place = 0.075 * (top - bottom), bottom
    for value, colour, dashes, name in sorted(seen, key=lambda each: each[0]):
        ax.axhline(value, color=colour, lw=1.1, ls=dashes, zorder=1.5)
        place = max(value, place + height)
        ax.annotate(
            f"{name}, {value:.3g}",
            (1.0, value),
            xytext=(1.03, place),
            xycoords=ax.get_yaxis_transform(),
            textcoords=ax.get_yaxis_transform(),
            va="center",
            color=colour,
            fontsize=9,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.8, "shrinkA": 0, "shrinkB": 0},
        )


def variances(variance: Any, probs: Any, rows: Any, ax: Axes | None = None) -> Axes:
    """Histogram of the inferred variances over images and latents.

    Args:
        variance: Variances of z given each image, (N, K).
        probs: The weights p by which latents count as informative, (N, K).
        rows: As for :func:`precisions`; they mark the latents that leak.
        ax: Where to draw; a new figure by default.

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
        # The lowest bar is as visible as the others, and one of a single value has a height.
        ax.set_ylim(bottom=0.5)
        ax.set(xlabel="inferred variance of z given the image", ylabel="images × latents")
        ax.set_title("Inferred variances")
        ax.legend(loc="upper center")
    return ax


def covariance(loc: Any, rows: Any, ax: Axes | None = None) -> Axes:
    """Scaled covariance of the posterior means: variances on the diagonal, covariances off it.

    Args:
        loc: Posterior means (N, K).
        rows: As for :func:`precisions`; they give the order.
        ax: Where to draw; a new figure by default.

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
    """Draw the covariances of values (N, K), divided by the largest variance, with labels."""
    order = [row["latent"] for row in rows]
    cov = np.atleast_2d(np.cov(values[:, order].numpy().T, bias=True))
    # A latent that does not vary correlates with nothing; dividing by the largest variance keeps
    # its row faint instead of dividing noise by noise.
    scaled = cov / max(float(np.diag(cov).max()), 1e-12)
    ax.grid(False)
    image = ax.imshow(scaled, cmap="RdBu_r", vmin=-1, vmax=1)
    ax.set_xticks(range(len(rows)), _names(rows), rotation=90)
    ax.set_yticks(range(len(rows)), _names(rows))
    for axis in (ax.xaxis, ax.yaxis):
        _name_latents(axis, rows)
    return image


def in_colours(images: Tensor) -> Tensor:
    """Images (..., C, H, W) as grey or RGB: of other C each channel has a colour of its own."""
    channels = images.shape[-3]
    if channels in (1, 3):
        return images
    hues = np.stack([np.arange(channels) / channels, *np.ones((2, channels))], 1)
    colours = torch.from_numpy(matplotlib.colors.hsv_to_rgb(hues)).to(images)
    return torch.einsum("...chw,cr->...rhw", images, colours)


def brightest(fit: Fit, images: Tensor) -> float:
    """What is drawn as white: 1, or the largest of images of whole numbers, such as counts."""
    if not fit.model.likelihood.spec.whole:
        return 1.0
    return max(1.0, images.nan_to_num().max().item())


# Slices of a volume that are drawn: of its reconstruction, and as a latent moves.
SLICES, SLICES_MOVED = 6, 3


def slices(images: Tensor, form: Form, most: int) -> tuple[Tensor, str]:
    """Images as they are drawn: of volumes evenly spaced slices, one below the other.

    Args:
        images: (..., C, D H, W), or images of any other kind, which stay as they are.
        form: Their form.
        most: How many slices are drawn, or all if there are fewer: the middle ones of as many
            equal parts of the volume.

    Returns:
        (..., C, slices H, W), and which slices they are, in words ("" for other images).
    """
    if not form.depth:
        return images, ""
    count = min(most, form.depth)
    chosen = [(2 * i + 1) * form.depth // (2 * count) for i in range(count)]
    found = images.unflatten(-2, (form.depth, -1))[..., chosen, :, :].flatten(-3, -2)
    which = ", ".join(str(i + 1) for i in chosen)
    return found, f"slices {which} of {form.depth}, from top to bottom"


def draw_grid(axes: Any, images: Tensor, apart: int = 0) -> None:
    """Draw images (rows, columns, C, H, W) as one picture, separated by thin white lines.

    Args:
        axes: Where to draw.
        images: The images.
        apart: How many rows at the end are set half a row below the others.
    """
    images = in_colours(images)
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
    """Histograms of scores, comparing held-out images with others.

    Args:
        panels: (label with unit, held-out values, other values or None, title) for each score.
        other: Name of the other images, if there are any.
        ax: Where to draw; a new figure by default.

    Returns:
        The Axes, which contain a panel for each score.
    """
    across = 2 if len(panels) > 1 else 1
    down = -(-len(panels) // across)
    with _drawing(ax, 4.6 * across, 2.3 * down + 0.5) as ax:
        grid = _panels(ax, [1.0] * down, across, gap=(0.6, 0.2))
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        for axes, (label, own, others, title) in zip(grid, panels, strict=False):
            both = own if others is None else np.concatenate([own, others])
            # Foreign images may score a hundred times as high; typical ones would then be one bar.
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


def are_curves(images: Tensor | Rows) -> bool:
    """Whether images (..., C, H, W) have one row, as vectors and sequences, drawn as curves."""
    return images.shape[-2] == 1


def _in_own_units(images: Tensor, form: Form) -> Tensor:
    """Images (..., C, 1, W) as their curves are drawn: sequences in the units of the data."""
    if not form.sequential:
        return images
    return form.arrays(images.flatten(0, -4)).reshape(images.shape)


def _curve(ax: Axes, image: Tensor, label: str | None = None, **style: Any) -> None:
    """Draw an image (C, 1, W) against the column number, a line for each channel."""
    for channel in image.flatten(0, 1).cpu().numpy():
        # A few columns are drawn as points joined by a line.
        marker = "." if len(channel) <= 40 else ""
        ax.plot(np.arange(len(channel)), channel, marker=marker, label=label, **style)
        label = None
    ax.grid(False)
    ax.spines[["top", "right"]].set_visible(False)
    ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=True))


# Columns that are few enough for their names to be read below a curve.
NAMED = 12


def _place(form: Form) -> str:
    """What the horizontal axis of a curve is."""
    return "position" if form.sequential else "column"


def _name_columns(ax: Axes, form: Form) -> None:
    """Write the names of the columns of vectors, if they have some, in place of their numbers."""
    if 0 < len(form.columns) <= NAMED:
        names = [literal(_short(name)) for name in form.columns]
        ax.set_xticks(range(len(names)), names, rotation=90, fontsize=8)


def reconstructions(
    fit: Fit, data: ImageData, columns: int = COLUMNS, ax: Axes | None = None
) -> Axes:
    """Held-out images, their reconstructions, and ten times the absolute difference.

    Vectors and sequences, images of shape (C, 1, L), are curves: each has a panel of its own, with
    its reconstruction over it. Sequences are in the units of the data. Where a pixel is missing the
    image is grey and the difference black; where a value of a curve is, there is a gap. Of volumes
    at most 6 slices are drawn, one below the other.

    Args:
        fit: The trained pair.
        data: Images, of which the first are shown.
        columns: How many, 1 to 1,000.
        ax: Where to draw; a new figure by default.

    Returns:
        The Axes.
    """
    check_fit(fit)
    check_data(fit, data)
    paths.check_number("columns", columns, 1, 1000)
    with data.given(slice(0, columns), fit.device) as x:
        mean = reconstruct(fit, x)
    if are_curves(x):
        return _reconstructed_curves(fit.form, x, mean, ax)
    (x, which), (mean, _) = (slices(images, fit.form, SLICES) for images in (x, mean))
    tall = x.shape[-2] / fit.model.image_shape[1] * fit.form.depth if fit.form.depth else 1.0
    with _drawing(ax, 0.5 * len(x) + 1.4, 2.3 + 1.4 * (tall - 1.0)) as ax:
        apart = 10.0 * difference(mean, x)
        rows = torch.stack([x, mean, apart.abs()]) / brightest(fit, x)
        absent = x.isnan()
        rows[0].masked_fill_(absent, 0.5)
        draw_grid(ax, rows)
        of_image = "image\n(grey: missing)" if absent.any() else "image"
        ax.set_yticklabels([of_image, "reconstruction", "|difference| × 10"])
        ax.set_title(f"Held-out reconstructions{which and f': {which}'}")
    return ax


def _reconstructed_curves(form: Form, x: Tensor, mean: Tensor, ax: Axes | None) -> Axes:
    x, mean = (_in_own_units(images, form) for images in (x, mean))
    across = min(3, len(x))
    down = -(-len(x) // across)
    with _drawing(ax, 2.3 * across + 0.6, 1.2 * down + 0.9) as ax:
        panels = _panels(ax, [1.0] * down, across, gap=(0.25, 0.25))
        for panel in panels[len(x) :]:
            panel.set_axis_off()
        for i, (panel, one, again) in enumerate(zip(panels, x, mean, strict=False)):
            label = "sequence" if form.sequential else "vector"
            _curve(panel, one, color=UNINFORMATIVE, lw=2.5, label=label)
            _curve(panel, again, color=INFORMATIVE, lw=1.2, label="reconstruction")
            if i + across < len(x):
                panel.tick_params(labelbottom=False)
            else:
                panel.set_xlabel(_place(form))
                _name_columns(panel, form)
            if i % across == 0:
                panel.set_ylabel("value")
        panels[0].legend(
            loc="lower right", bbox_to_anchor=(across + 0.25 * (across - 1), 1.0), ncols=2
        )
        ax.set_title("Held-out reconstructions")
    return ax


def moved_rows(rows: list[Row]) -> tuple[list[list[int]], list[str]]:
    """The latents that move in each row of a figure of traversals, and the names of the rows.

    There is one row for each informative or leaking latent, 20 at most, and one in which all others
    move at once.
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
    """The name of a latent with the factor that it follows, or the two that it mixes, below it."""
    found: Followed | None = row.get("followed")
    if found is None or _kind(row) == "uninformative":
        return name
    shown = found.closest[:1] if found.factor is not None else found.mixed
    lines = [f"{literal(_short(factor))} {value:.2f}" for factor, value in shown]
    return " ".join([name, "\n".join(lines)]).rstrip()


def _short(name: str) -> str:
    """Shorten a long name by leaving out its middle."""
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
    """Decoded images as latents move, starting from images whose other latents stay fixed.

    There is a row for each informative latent, most informative first, and one for each that leaks,
    20 at most; in a last row all other latents move at once, which changes nothing if they carry
    nothing. Each row is labelled with the values of z between which it goes: as far as there are
    images alike in the other latents (:meth:`ngvae_pyro.evaluation.traversals.Support.reach`). On
    the right are the KL of z (nats) and the mean precision of q(z | x). If the factors of the
    images are known, the factor that a latent follows is shown below its name with their
    correlation, or the two that it mixes (:class:`ngvae_pyro.evaluation.diagnostics.Followed`).
    Vectors and sequences, images of shape (C, 1, L), are drawn as curves, and of volumes at most 3
    slices, one below the other.

    Args:
        fit: The trained pair.
        data: Images, which determine the ranges; the more the better.
        rows: As for :func:`precisions`.
        latents: Numbers of the latents to show instead, in this order.
        steps: How many images a row has, 2 to 1,000.
        bases: How many typical images to start from, the most typical first, or the numbers of
            images in ``data``; each gets a block of rows.
        ax: Where to draw; a new figure by default.
        support: The support of the images, if already computed.

    Returns:
        The Axes.

    Raises:
        UserError: For numbers of latents or images that do not exist, and for rows that do not
            describe all latents of the fit.
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
    walks, which = [paths.walk(fit, support, moved, steps, base) for base in numbers], ""
    if not are_curves(walks[0][0]):
        white = brightest(fit, torch.stack([images for images, _ in walks]))
        of_volumes = [slices(images, fit.form, SLICES_MOVED) for images, _ in walks]
        which = of_volumes[0][1]
        walks = [
            (images / white, found)
            for (images, _), (_, found) in zip(of_volumes, walks, strict=True)
        ]
    groups = [[known[k] for k in row] for row in moved]
    draw: Any = _draw_walk
    across, down = 0.42, 0.45
    if are_curves(walks[0][0]):
        draw, across, down = partial(_draw_curves, form=fit.form), 4.2 / steps, 0.8
    else:
        pixels_down, pixels_across = walks[0][0].shape[-2:]
        if fit.form.depth:
            # Each slice as high as an image.
            down *= min(SLICES_MOVED, fit.form.depth)
            pixels_down = fit.model.image_shape[1] // fit.form.depth
        across *= min(max(pixels_across / pixels_down, 0.4), 2.5)
    height = down * (len(moved) + 0.5) * len(walks) + 0.7
    letters = max(len(line) for name in names for line in name.split("\n"))
    width = across * steps + 2.5 + 0.08 * max(letters - 6, 0)
    with _drawing(ax, width, height) as ax:
        blocks = [ax] if len(walks) == 1 else _panels(ax, [1.0] * len(walks), gap=(0.12, 0.0))
        for block, (images, found) in zip(blocks, walks, strict=True):
            draw(block, images, found, names, groups)
            if block is not ax:
                # Align with the title if the space is wider than the images.
                block.set_anchor("W")
        count = sum(_kind(row) != "uninformative" for row in rows)
        of = f": the {ROWS} most informative of {count}" if latents is None and count > ROWS else ""
        ax.set_title(f"Latent traversals{of}{which and f'; {which}'}", pad=22)
    return ax


def _beside(
    ax: Axes, across: Any, y: float, name: str, group: list[Row], span: tuple[float, float]
) -> None:
    """Label a row: its name and low end on the left, its high end and numbers on the right.

    Args:
        ax: The Axes of the row.
        across: A transform whose x goes from 0 to 1 over the Axes.
        y: Vertical position of the row under this transform.
        name: Its name.
        group: The latents that move in it.
        span: The values between which they move.
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
    """Draw the headings of the labels beside the rows."""
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
    """Draw a grid of images and the labels of its rows."""
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
    form: Form,
) -> None:
    """Draw a panel of curves and its labels for each row."""
    panels = draw_curves(ax, images, form)
    for panel, name, group, span in zip(panels, names, groups, spans, strict=True):
        # The left side is needed for the name and the low end.
        panel.tick_params(left=False, labelleft=False)
        _beside(panel, panel.transAxes, 0.5, name, group, span)
    _head(panels[0])


def draw_curves(ax: Axes, images: Tensor, form: Form) -> list[Axes]:
    """Draw a panel for each row of curves (rows, columns, C, 1, L), all on one scale.

    The curves of a row go from dark to light.

    Args:
        ax: Where to draw.
        images: The curves.
        form: Their form, which knows the units of sequences, and may know the names of columns.

    Returns:
        The panels.
    """
    images = _in_own_units(images, form)
    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.9, images.shape[1]))
    panels = _panels(ax, [1.0] * len(images))
    low, high = float(images.min()), float(images.max())
    room = 0.05 * (high - low) + 1e-6
    for panel, row in zip(panels, images, strict=True):
        for vector, shade in zip(row, shades, strict=True):
            _curve(panel, vector, color=shade, lw=1.2)
        panel.set_ylim(low - room, high + room)
        panel.tick_params(labelbottom=panel is panels[-1], labelsize=8)
    _name_columns(panels[-1], form)
    panels[-1].set_xlabel(
        f"{_place(form)}; dark: the low end of z, light: the high end\n"
        f"(values from {low:.2g} to {high:.2g} in each panel)"
    )
    return panels


class Figures:
    """The figures of one fit, as ``fit.plot.precisions(images)``.

    Each method takes ``ax``, the matplotlib Axes to draw into, or opens a new figure, and returns
    the Axes. Images are an array, a tensor or :class:`ngvae_pyro.ImageData` of the model's shape,
    preferably ones that were not trained on.
    """

    def __init__(self, fit: Fit) -> None:
        self._fit = fit

    def selection(self, ax: Axes | None = None) -> Axes:
        """Each latent's p and the KLs during training: :func:`ngvae_pyro.plots.selection`."""
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
