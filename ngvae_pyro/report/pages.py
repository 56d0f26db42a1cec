"""The HTML page of a run or of a comparison: one self-contained file."""

import base64
import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ngvae_pyro.axes import Rotation
from ngvae_pyro.data.images import known_count
from ngvae_pyro.errors import UserError
from ngvae_pyro.evaluation.diagnostics import (
    CLOSE,
    MIXED,
    MORE,
    Latent,
    Metrics,
    most_informative_first,
    remarks,
)
from ngvae_pyro.extras import needed
from ngvae_pyro.files import whole
from ngvae_pyro.guide import GUIDES
from ngvae_pyro.latents import is_informative
from ngvae_pyro.report.explorer import Explorer
from ngvae_pyro.report.table import DASH, FIT, SLIDES, notes, of_run
from ngvae_pyro.specs import SavedRun
from ngvae_pyro.verdict import Verdict

with needed("cli"):
    import tomli_w
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

# A log likelihood comes with a warning if more than this share of images has a bad Pareto k.
MANY_BAD = 0.1

MINUS = "\N{MINUS SIGN}"

PNG = b"\x89PNG\r\n\x1a\n"
# A figure's pixels per pixel of the page; the figures have 150 dots per inch.
PIXELS = 1.5


class Figure(NamedTuple):
    """A picture to embed: width in CSS pixels, and ``source``, a data URL."""

    name: str
    caption: str
    alt: str
    width: int
    source: str


# The figures that a training writes.
RUN_FIGURES = (
    "selection",
    "precisions",
    "variances",
    "covariance",
    "reconstructions",
    "traversals",
)
COMPARISON_FIGURES = {
    "variances": (
        "Inferred variances of z over images and latents: blue for informative latents, grey for "
        "the others.",
        "Histograms of the inferred variances of z, one for each model.",
    ),
    "covariances": (
        "Covariance of z over the data, over the largest variance: variances on the diagonal, "
        "covariances off it.",
        "Matrices of the covariances between the latents, one for each model.",
    ),
    "traversals": (
        "One latent per row, the most informative one on top, moved while the others stay fixed, "
        "as far as there are images alike in the others; in the last row all others move at once.",
        "Grids of decoded images, one for each model and one row for each latent.",
    ),
    "reconstruction": (
        "Reconstruction error of held-out images against the number of informative latents, one "
        "point per run.",
        "Scatter plot of the MSE per pixel against the number of informative latents.",
    ),
}

# Key, title, decimals, and the value for Normal(0, 1).
AGGREGATE = (
    ("mean", "mean", 3, 0.0),
    ("variance", "variance", 3, 1.0),
    ("skewness", "skewness", 2, 0.0),
    ("kurtosis", "excess kurtosis", 2, 0.0),
    ("variance_of_loc", "variance of loc", 4, None),
    ("mean_variance", "mean variance", 4, None),
    ("variance_law", "variance law", 3, 1.0),
    ("rho", "rho", 3, None),
    ("ks_statistic", "KS statistic", 3, 0.0),
    ("ks_p_value", "KS p", 3, None),
)


def write_run_report(
    folder: str | Path,
    spec: SavedRun,
    metrics: Metrics,
    evaluation: Mapping[str, Any] | None = None,
    record: Mapping[str, Any] | None = None,
    explorer: Explorer | None = None,
) -> Path:
    """Write ``report.html`` of a run: the findings, whether to trust them, and all numbers.

    Args:
        folder: The run folder; its ``figures/*.png`` are embedded.
        spec: The run's spec, ``config.toml``.
        metrics: From :func:`ngvae_pyro.evaluate`, ``metrics.json``.
        evaluation: ``evaluation.json``; any key may be missing.
        record: ``starts`` and ``seconds`` of ``run.json``: how it was trained, where, and how long.
        explorer: From :func:`ngvae_pyro.report.explorer.explore`.

    Returns:
        The path of the page.
    """
    folder, evaluation = Path(folder), evaluation or {}
    rows = most_informative_first(metrics)
    verdict = Verdict.from_metrics(metrics)
    leaking = verdict.uncounted(metrics["probs"]) if verdict else ()
    values = spec.model_dump(mode="json", exclude_none=True, exclude={"versions"})
    p_is = getattr(spec.guide, "p_is", None) or GUIDES[type(spec.guide)].p_is
    figures = _figures(folder, _run_captions(metrics, verdict))
    page = (
        _environment()
        .get_template("run.html.j2")
        .render(
            spec=spec,
            metrics=metrics,
            verdict=verdict,
            leaking=leaking,
            rows=rows,
            remarks=remarks(rows, leaking),
            rotation=Rotation.read(metrics.get("rotation")),
            unbroken=_unbroken,
            close=CLOSE,
            more=MORE,
            mixed=MIXED,
            evaluation=evaluation,
            record=record or {"starts": []},
            likelihood=evaluation.get("log_likelihood"),
            p_is=p_is,
            labelled=known_count(evaluation.get("factors")) is None,
            many_bad=MANY_BAD,
            scores=_scores({"metrics": metrics, "evaluation": evaluation}) if evaluation else {},
            aggregate=_aggregate(rows, evaluation.get("aggregate", [])),
            figures={figure.name: figure for figure in figures},
            explorer=explorer,
            config=tomli_w.dumps(values),
            versions=spec.versions,
        )
    )
    return _write(folder / "report.html", page)


def _run_captions(
    metrics: Mapping[str, Any], verdict: Verdict | None
) -> dict[str, tuple[str, str]]:
    """(caption, alt) of the known figures of a run, depending on its verdict.

    Without a verdict the figures are from an older version, and leaks are not mentioned.
    """
    discrete = metrics.get("discrete", False)
    leaking = verdict.uncounted(metrics["probs"]) if verdict else ()
    named = ", ".join(f"z{k}" for k in leaking[:8])
    if len(leaking) > 8:
        named += f" and {len(leaking) - 8} more"
    one = len(leaking) == 1
    precision = (
        "Precision of q(z | x), the inverse of the inferred variance of z: mean, and 5 % to "
        "95 % over images and draws."
    )
    if "precision" in metrics["kl"]:
        precision += (
            " It is the width of q(z | x), and not a posterior of the model's site precision: that "
            "site is drawn unconnected to z and x, so that its exact posterior is its prior."
        )
    variances = (
        "Inferred variances of z over images and latents: small where a latent carries the image, "
        "near 1 where z is noise."
    )
    covariance = (
        "Covariance of the posterior means, over the largest variance: variances on the diagonal, "
        "covariances off it."
    )
    traversals = (
        "One latent a row, most informative first, while the others stay at the code of one "
        "held-out image."
    )
    if discrete:
        precision = (
            "One over the posterior rate of each count: mean, and 5 % to 95 % over images. A count "
            "that is seldom above 0 has a high one."
        )
        variances = "Posterior variances of the counts over images and latents: their rates."
    if verdict is not None:
        traversals += (
            " Each row goes as far as there are images that are alike in the other latents."
        )
        if any(not is_informative(p) and k not in leaking for k, p in enumerate(metrics["probs"])):
            traversals += " In the last row all others move at once, which should change nothing."
    if metrics.get("correlations"):
        traversals += (
            " Beside its name is the factor that it follows, with their correlation, or the two "
            "that it mixes."
        )
    if leaking:
        precision += (
            f" {named} (diamond{'' if one else 's'}) {'leaks' if one else 'leak'}: z is "
            "wide there, and yet about means that vary with the image."
        )
        variances += (
            f" That of the leaking latent{'' if one else 's'} (hatched) is near 1 too, about means "
            "that vary with the image."
        )
        covariance += f" {named} (orange) {'is' if one else 'are'} not counted and yet vary."
        traversals += (
            f" {named} (orange) {'is' if one else 'are'} not counted; what "
            f"{'it changes' if one else 'they change'} is what leaks."
        )
    elif verdict is not None:
        covariance += " The rows of uninformative latents are empty."
    return {
        "traversals": (
            traversals,
            "Grid of decoded images, one row a latent, from the low to the high end of its range.",
        ),
        "precisions": (
            precision,
            "Forest plot of one over the posterior rate of each latent on a logarithmic axis."
            if discrete
            else "Forest plot of the precision of each latent on a logarithmic axis.",
        ),
        "selection": (
            "How the latents were selected: p of each, above one half where it is informative, and "
            "the KL, against the training step.",
            "Line chart. Top: p of each latent against the step. Bottom: KL of each site against "
            "the step.",
        ),
        "reconstructions": (
            "Held-out images, their reconstructions, and ten times the difference.",
            "Three rows of small images: held-out images, reconstructions, differences.",
        ),
        "covariance": (
            covariance,
            "Matrix of the covariances between the posterior means of the latents.",
        ),
        "variances": (
            variances,
            "Histogram of the inferred variances of z, informative and other latents apart.",
        ),
        "check": (
            "How near the guide's posterior of z is to the exact one of the trained model, which "
            "ngvae check draws from by NUTS for some held-out images.",
            "Comparison of the guide's posterior with draws from the exact one, for each latent.",
        ),
    }


def write_comparison_report(folder: str | Path, comparison: Mapping[str, Any]) -> Path:
    """Write ``report.html`` of a comparison: a table for each group of metrics, and the figures.

    Args:
        folder: The folder with ``comparison.json``; its ``figures/*.png`` are embedded.
        comparison: Content of ``comparison.json``.

    Returns:
        The path of the page.
    """
    folder = Path(folder)
    values = comparison["values"]
    groups: dict[str, list[Any]] = {SLIDES: []}
    for metric in comparison["metrics"]:
        cells = values.get(metric["key"], {}).values()
        # Without known factors many metrics have no value at all.
        if any(cell["mean"] is not None for cell in cells):
            groups.setdefault(metric["group"], []).append(metric)
    page = (
        _environment()
        .get_template("comparison.html.j2")
        .render(
            comparison=comparison,
            models=comparison["models"],
            groups={title: metrics for title, metrics in groups.items() if metrics},
            values=values,
            unit=_unit,
            footnotes={title: notes(comparison, title) for title in groups},
            figures=_figures(folder, COMPARISON_FIGURES, leave_out=("page",)),
        )
    )
    return _write(folder / "report.html", page)


def number(value: float | None, decimals: int = 2, digits: int = 5) -> str:
    """Format a number for readers, with fewer decimals if there are enough digits.

    >>> number(4149.71628, 1), number(0.12345), number(-0.0001), number(None), number(15000)
    ('4,149.7', '0.12', '0.00', '–', '15,000')
    """
    if value is None or not math.isfinite(value):
        return DASH
    if isinstance(value, int):
        decimals = 0
    elif value:
        decimals = max(0, min(decimals, digits - 1 - math.floor(math.log10(abs(value)))))
    return f"{value:z,.{decimals}f}".replace("-", MINUS)


def duration(seconds: float) -> str:
    """Format a duration for readers.

    >>> duration(0.4), duration(72.3), duration(7384.0)
    ('0 s', '1 min 12 s', '2 h 3 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _unit(metric: Mapping[str, Any], factors: int | None) -> str:
    """The unit of a metric, and which values are good."""
    better = metric["better"] and f"{metric['better']} is better"
    if metric["better"] == "factors":
        better = f"best near {factors}" if factors is not None else None
    return ", ".join(note for note in (metric["unit"], better) if note)


def _scores(run: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The metrics of a run by group; those of the fit are among its key numbers already."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for metric, value in of_run(run):
        if metric.group != FIT:
            score = {
                "title": metric.heading,
                "text": metric.text if value is not None else f"no number: needs {metric.needs}",
                "value": DASH if value is None else metric.show(value),
                "bar": value if metric.fraction else None,
            }
            groups.setdefault(metric.group, []).append(score)
    return groups


def _aggregate(rows: list[Latent], found: list[dict[str, Any]]) -> dict[str, Any]:
    """Table of the aggregate posterior: Normal(0, 1), and the latents in the order of ``rows``."""
    columns = [c for c in AGGREGATE if any(row.get(c[0]) is not None for row in found)]
    by_latent = {row["latent"]: row for row in found}
    return {
        "titles": [title for _, title, _, _ in columns],
        "reference": [number(value, decimals) for _, _, decimals, value in columns],
        "rows": [
            {
                "latent": row["latent"],
                "informative": is_informative(row["probs"]),
                "values": [
                    _cell(key, by_latent[row["latent"]].get(key), decimals)
                    for key, _, decimals, _ in columns
                ],
            }
            for row in rows
            if row["latent"] in by_latent
        ],
    }


def _unbroken(text: str) -> str:
    """Keep each number on the same line as the name before it."""
    return re.sub(r" (?=\d)", "\N{NO-BREAK SPACE}", text)


def _cell(key: str, value: float | None, decimals: int) -> str:
    # A p-value is never exactly 0.
    if key == "ks_p_value" and value is not None and value < 0.001:
        return "<0.001"
    return number(value, decimals)


def _figures(
    folder: Path, known: Mapping[str, tuple[str, str]], leave_out: tuple[str, ...] = ()
) -> list[Figure]:
    """The PNG files in a folder's ``figures``, with the known ones first, in their order."""
    paths = sorted((folder / "figures").glob("*.png"))
    # Not devices or links to devices, which might be endless.
    found = {path.stem: path for path in paths if path.is_file()}
    names = [name for name in known if name in found]
    names += [name for name in found if name not in known and name not in leave_out]
    return [_figure(found[name], *known.get(name, (name, f"Figure {name}"))) for name in names]


def _figure(path: Path, caption: str, alt: str) -> Figure:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read the file: {error.strerror}") from None
    if not content.startswith(PNG) or len(content) < 24:
        raise UserError(f"{path}: damaged: not a PNG image")
    (width,) = struct.unpack_from(">I", content, 16)
    source = f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
    return Figure(path.stem, caption, alt, round(width / PIXELS), source)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates", encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["is_informative"] = is_informative
    environment.filters["number"] = number
    environment.filters["duration"] = duration
    return environment


def _write(path: Path, page: str) -> Path:
    """Write a page atomically."""
    with whole(path) as partial:
        # A file name may contain characters that UTF-8 cannot encode.
        partial.write_text(page, encoding="utf-8", errors="replace", newline="\n")
    return path
