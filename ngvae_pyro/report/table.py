"""The table of a comparison: its metrics, how they are read from runs, and how they are shown."""

import csv
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ngvae_pyro.errors import printable

# The table in the slides of Jouffroy, Giremus, Berthoumieu and Bach (2022), who devised the model.
SLIDES = "Table of Jouffroy et al. (2022)"
FIT = "Fit and cost"
SCORES = "Disentanglement"
POSTERIOR = "Aggregate posterior"
DASH = "\N{EN DASH}"
# Characters with a special meaning in Markdown.
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&$!])")


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    ``path`` leads to the number in a run: ``metrics.`` for metrics.json, ``run.`` for run.json and
    ``evaluation.`` for evaluation.json. ``better`` is ``higher``, ``lower``, ``factors`` (nearest
    to the number of factors) or None. ``digits`` is a format specification, or ``count`` for a
    number of latents; ``text`` explains it, and ``fraction`` is true if it lies between 0 and 1.
    ``needs`` says what is required for a number, and ``factors`` how many known factors must vary.
    ``complete`` is true if the metric improves as factors are lost: then only models with at least
    as many informative latents as there are factors are compared.
    """

    key: str
    title: str
    unit: str
    group: str
    path: str
    better: Literal["higher", "lower", "factors"] | None
    digits: str
    text: str
    fraction: bool = False
    needs: str = ""
    factors: int = 0
    complete: bool = False

    @property
    def heading(self) -> str:
        """Title, unit, and the direction in which it is better."""
        arrow = {"higher": " ↑", "lower": " ↓"}.get(self.better or "", "")
        return f"{self.title}{f', {self.unit}' if self.unit else ''}{arrow}"

    def of(self, run: Mapping[str, Any]) -> float | None:
        """The number of a run, or None if it has none."""
        # Older versions wrote 1 for some scores with a single factor, whatever the codes were.
        factors = run.get("evaluation", {}).get("factors")
        if factors is not None and len(factors) < self.factors:
            return None
        value: Any = run
        for key in self.path.split("."):
            if key not in value:
                return None
            value = value[key]
        return None if value is None else float(value)

    def show(self, value: float) -> str:
        if self.digits == "count":
            # Means over seeds are shown with a decimal, counts without.
            return format(value, ".0f" if value == int(value) else ".1f")
        return format(value, self.digits)


# What scores need: with a single factor, or a single latent, some would be 1 for any codes.
ONE, TWO = "a known factor that varies", "at least two known factors that vary"
TWO_LATENTS = f"{ONE} and at least two latents"
# The remedy for evaluations by older versions, which lack some metrics.
AGAIN = "a new ngvae evaluate: the last one was an older version's"
NORMAL = "latents whose prior is Normal(0, 1)"
INDEPENDENT = "latents of which none follows from the others"


def _slides(
    key: str, title: str, unit: str, better: Any, digits: str, text: str, **more: Any
) -> Metric:
    path = f"evaluation.slides.{key}"
    return Metric(key, title, unit, SLIDES, path, better, digits, text, **more)


def _score(key: str, title: str, text: str, needs: str = ONE) -> Metric:
    path, factors = f"evaluation.scores.{key}", 2 if needs == TWO else 1
    row = (key, title, "", SCORES, path)
    return Metric(*row, "higher", ".3f", text, fraction=True, needs=needs, factors=factors)


def _fit(key: str, title: str, unit: str, path: str, better: Any, digits: str, text: str) -> Metric:
    return Metric(key, title, unit, FIT, path, better, digits, text)


def _posterior(
    key: str, title: str, unit: str, better: Any, digits: str, text: str, needs: str = ""
) -> Metric:
    path = f"evaluation.{key}"
    return Metric(key, title, unit, POSTERIOR, path, better, digits, text, needs=needs)


METRICS = (
    _slides(
        *("entropy", "Entropy", "nats", "lower", ".2f"),
        "of the latents' shares in the KL of z: log K if all are equal, 0 if one carries all; "
        "best among the models that lose no factor, since losing them lowers it",
        complete=True,
    ),
    _slides(
        *("decorrelation", "Decorrelation", "", "higher", ".2f"),
        "effective rank of the correlations of z: K if uncorrelated, 1 if all are copies",
    ),
    _slides(
        *("disentanglement", "Disentanglement", "", "higher", ".2f"),
        "FactorVAE score: 1 if each factor has a latent of its own, 1/F by chance",
        fraction=True,
        needs=TWO,
        factors=2,
    ),
    _slides(
        *("informative", "Informative latents", "", "factors", "count"),
        "latents with p above one half; best is the number of factors",
    ),
    _fit(
        *("mse", "Reconstruction MSE", "per pixel", "metrics.reconstruction_mse", "lower", ".2e"),
        "of held-out images, at the posterior mean of z",
    ),
    _fit(
        *("log_likelihood", "Log likelihood", "nats", "evaluation.log_likelihood.mean"),
        *("higher", ".1f"),
        "log p(x) of held-out images, by importance weighting",
    ),
    _fit(
        *("k_bad", "Pareto k above 0.7", "", "evaluation.log_likelihood.k_bad", None, ".2f"),
        "share of images whose log likelihood depends on a few draws and is too low",
    ),
    _fit(
        *("elbo", "ELBO", "nats", "metrics.elbo", None, ".1f"),
        "of held-out images; a bound, so not comparable between kinds of posteriors",
    ),
    _fit(
        *("seconds", "Training", "s", "run.seconds", None, ".0f"),
        "with as many runs at once as there were jobs",
    ),
    _score("mig", "MIG", "1 if one latent alone tells each factor, 0 if two tell it equally"),
    _score("sap", "SAP", "near 1 if one latent alone predicts each factor, 0 if two do equally"),
    _score(
        *("dci_disentanglement", "DCI disentanglement"),
        "1 if each latent serves one factor, 0 if each serves all equally",
        TWO,
    ),
    _score(
        *("dci_completeness", "DCI completeness"),
        "1 if one latent serves each factor, 0 if all are needed equally",
        TWO_LATENTS,
    ),
    _score(
        *("dci_informativeness", "DCI informativeness"),
        "1 if the latents predict all factors exactly, 0 if none",
    ),
    _score(
        *("beta_vae_score", "beta-VAE score"),
        "1 if a held factor can always be identified, 1/F by chance; lenient to mixtures",
        TWO,
    ),
    _score(
        *("modularity", "Modularity"),
        "1 if each latent tells of one factor, 0 if of all equally",
        TWO,
    ),
    _score("explicitness", "Explicitness", "ROC-AUC of factors read linearly: 0.5 by chance"),
    _score("irs", "IRS", "1 if a held factor holds its latents still, 0 if none does"),
    _score(
        *("mcc", "MCC"),
        "mean correlation of each factor with a latent of its own: 1 if linear in it",
        AGAIN,
    ),
    _score(
        *("mcc_rank", "MCC, ranks"),
        "the same of ranks (Spearman): 1 if each factor has a latent monotone in it",
        AGAIN,
    ),
    _posterior(
        *("active_units", "Active units", "", None, "count"),
        "latents whose posterior mean varies by more than 0.01",
    ),
    _posterior(
        *("total_correlation", "Total correlation", "nats", "lower", ".3f"),
        "of z, as if it were Gaussian: 0 if uncorrelated",
        INDEPENDENT,
    ),
    _posterior(
        *("variance_law", "Variance law", "", None, ".3f"),
        "variance of loc + mean inferred variance, averaged over latents: 1 if the law holds",
        NORMAL,
    ),
    _posterior(
        *("ks_statistic", "Distance from N(0, 1)", "", "lower", ".3f"),
        "Kolmogorov-Smirnov, of the aggregate posterior of a latent, mean: 0 if equal",
        NORMAL,
    ),
)


def of_run(run: Mapping[str, Any]) -> list[tuple[Metric, float | None]]:
    """The metrics of a run, in the groups that have numbers; None for those without a number."""
    found = [(metric, metric.of(run)) for metric in METRICS]
    named = {metric.group for metric, value in found if value is not None}
    return [
        (metric, value)
        for metric, value in found
        if value is not None or (metric.needs and metric.group in named)
    ]


def footnotes(missing: Iterable[tuple[str, str]]) -> list[str]:
    """Lines on why metrics have no number, one for each need, from (title, need)."""
    titles: dict[str, list[str]] = {}
    for title, needs in missing:
        if needs:
            titles.setdefault(needs, []).append(title)
    return [f"{DASH} {', '.join(names)}: needs {needs}." for needs, names in titles.items()]


def notes(comparison: Mapping[str, Any], group: str) -> list[str]:
    """The footnotes of a group's table, on metrics for which some pair has no number."""
    return footnotes(
        (metric["title"], metric.get("needs", ""))
        for metric in comparison["metrics"]
        if metric["group"] == group
        and any(
            None in cell.get("values", ())
            for cell in comparison["values"].get(metric["key"], {}).values()
        )
    )


def summarise(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    factors: int | None,
    metrics: Sequence[Metric] = METRICS,
) -> dict[str, dict[str, Any]]:
    """Mean and standard deviation over seeds of every metric and pair.

    Args:
        runs: For each pair its runs, each with the tables ``metrics`` and ``evaluation``.
        factors: Number of factors that vary, if known.
        metrics: The rows; one of them must be the number of informative latents.

    Returns:
        For each key and pair ``mean``, ``std`` (None for one seed), ``values`` by run, ``shown``
        and ``best``: among those that are best to the digits shown.
    """
    values: dict[str, dict[str, Any]] = {}
    for metric in metrics:
        cells: dict[str, Any] = {}
        for pair, of_pair in runs.items():
            found = [metric.of(run) for run in of_pair]
            numbers = [value for value in found if value is not None]
            mean = statistics.fmean(numbers) if numbers else None
            std = statistics.stdev(numbers) if len(numbers) > 1 else None
            shown = DASH if mean is None else metric.show(mean)
            if std is not None:
                shown += f" ± {metric.show(std)}"
            cells[pair] = {
                "mean": mean,
                "std": std,
                "values": found,
                "shown": shown,
                "best": False,
            }
        values[metric.key] = cells
    for metric in metrics:
        _mark_best(metric, values, factors)
    return values


def _mark_best(metric: Metric, values: dict[str, dict[str, Any]], factors: int | None) -> None:
    hangs_on_factors = metric.better == "factors" or metric.complete
    if metric.better is None or (hangs_on_factors and factors is None):
        return
    cells = values[metric.key]

    def badness(cell: Any) -> float:
        # Rounded to the digits shown, so that values that look equal are equal.
        if metric.better == "factors":
            away = statistics.fmean(abs(v - factors) for v in cell["values"] if v is not None)
            return float(metric.show(away))
        value = float(metric.show(cell["mean"]))
        return value if metric.better == "lower" else -value

    def keeps_all(pair: str) -> bool:
        mean = values["informative"][pair]["mean"]
        return mean is not None and factors is not None and round(mean) >= factors

    with_value = {pair: cell for pair, cell in cells.items() if cell["mean"] is not None}
    compared = [c for pair, c in with_value.items() if not metric.complete or keeps_all(pair)]
    if len(with_value) > 1 and compared:
        least = min(badness(cell) for cell in compared)
        for cell in compared:
            cell["best"] = badness(cell) == least


def describe(metrics: Sequence[Metric] = METRICS) -> list[dict[str, Any]]:
    """Metrics as plain values, for JSON and templates."""
    return [{**asdict(metric), "heading": metric.heading} for metric in metrics]


def groups(comparison: Mapping[str, Any]) -> list[str]:
    """The groups of metrics in which some pair has a number, in order."""
    names: dict[str, None] = {}
    for metric in comparison["metrics"]:
        cells = comparison["values"][metric["key"]].values()
        if any(cell["mean"] is not None for cell in cells):
            names[metric["group"]] = None
    return list(names)


def markdown(comparison: Mapping[str, Any]) -> str:
    """Format a comparison as one Markdown table per group; the best of a row is bold."""
    models = comparison["models"]
    text = f"{code(comparison['command'])}\n"
    for group in groups(comparison):
        lines = [
            f"| {group} | " + " | ".join(plain(model["label"]) for model in models) + " |",
            "|---|" + "---:|" * len(models),
        ]
        for metric in comparison["metrics"]:
            if metric["group"] == group:
                cells = [comparison["values"][metric["key"]][model["pair"]] for model in models]
                shown = [f"**{c['shown']}**" if c["best"] else c["shown"] for c in cells]
                lines.append(f"| {metric['heading']} | " + " | ".join(shown) + " |")
        lines += [line for note in notes(comparison, group) for line in ("", note)]
        text += "\n" + "\n".join(lines) + "\n"
    return text


def plain(text: str) -> str:
    r"""Escape text for a cell of a Markdown table, so that it is shown literally.

    >>> plain("a|b_c")
    'a\\|b\\_c'
    """
    return _SPECIAL.sub(r"\\\1", printable(text))


def code(text: str) -> str:
    """Format a Markdown code span; its fence is longer than any run of backticks in the text.

    >>> code("a `b`")
    '`` a `b` ``'
    """
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if len(fence) > 1 else ""
    return f"{fence}{pad}{printable(text)}{pad}{fence}"


def write_csv(path: Path, comparison: Mapping[str, Any]) -> None:
    """Write a CSV with a row for each run: pair, label, seed and every metric at full precision."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        keys = [metric["key"] for metric in comparison["metrics"]]
        writer.writerow(["pair", "label", "seed", *keys])
        for model in comparison["models"]:
            for i, seed in enumerate(model["seeds"]):
                cells = [comparison["values"][key][model["pair"]]["values"][i] for key in keys]
                writer.writerow([model["pair"], model["label"], seed, *cells])
