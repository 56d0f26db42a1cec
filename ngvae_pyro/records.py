"""What the JSON files of a run folder hold, as far as it is read again.

The folder may be another's, or edited; so each file is checked as the TOML files are, and what does
not fit is one line. Keys that are not here are let pass.
"""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from ngvae_pyro.errors import UserError
from ngvae_pyro.extras import needed
from ngvae_pyro.specs import Spec, Text, parse
from ngvae_pyro.specs.schedule import MoveKind

with needed("train"):
    from typing import NotRequired

    from pydantic import (
        AfterValidator,
        ConfigDict,
        Field,
        TypeAdapter,
        model_validator,
        with_config,
    )

    # Not that of typing, which pydantic refuses before Python 3.12.
    from typing_extensions import TypedDict


def _within(name: str) -> str:
    """The name of a file somewhere in a folder, which leads nowhere else."""
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts or str(path) != name:
        raise ValueError(f"expected the name of a file in the folder, got {name!r}")
    return name


Count = Annotated[int, Field(ge=0, le=10**12)]


class Record(Spec):
    """Base of the records: as strict as a spec, but open to more keys."""

    model_config = ConfigDict(extra="allow")


def check(record: Any, values: dict[str, Any], source: str) -> None:
    """Refuse plain values that are not what a record declares.

    Args:
        record: A subclass of :class:`Record`, or a ``TypedDict``, also one with a validator.
        values: As read from JSON.
        source: Name of the file, for the message.

    Raises:
        UserError: One line with the first key that is missing or wrong.
    """
    if isinstance(record, type) and issubclass(record, Record):
        required = [name for name, field in record.model_fields.items() if field.is_required()]
        schema: Any = record
    else:
        plain = get_args(record)[0] if get_origin(record) is Annotated else record
        required = [name for name in plain.__annotations__ if name in plain.__required_keys__]
        schema = TypeAdapter(record)
    for name in required:
        if name not in values:
            raise UserError(f"{source}: damaged or of another version: no key '{name}'")
    parse(schema, values, source)


# A share, or an absolute correlation.
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]

# The results of a run are plain values, described once: what computes them returns these types,
# and what reads them checks them by these types.
OPEN = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
CLOSED = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@with_config(OPEN)
class SiteKL(TypedDict):
    """KL of one latent site, nats per image, and the shares of the latents."""

    total: float
    per_latent: list[float]


# The posterior precision of each latent, its mean and two quantiles; no class has such names.
Precisions = TypedDict("Precisions", {"mean": list[float], "5%": list[float], "95%": list[float]})
with_config(OPEN)(Precisions)
Precision = TypedDict("Precision", {"mean": float, "5%": float, "95%": float})


@with_config(CLOSED)
class FindingValues(TypedDict):
    """A :class:`ngvae_pyro.verdict.Finding` as plain values."""

    kind: Literal["leaking", "shared", "folded", "short"]
    text: Text
    reason: Text
    latents: list[Count]
    changes: dict[str, float]


@with_config(OPEN)
class VerdictValues(TypedDict):
    """A :class:`ngvae_pyro.verdict.Verdict` as plain values, without the count."""

    settled: bool
    findings: Annotated[list[FindingValues], Field(max_length=100)]


# Of a latent with each factor, by its name; there is at least one.
Correlations = Annotated[dict[str, Fraction], Field(min_length=1, max_length=10_000)]


@with_config(CLOSED)
class RotationValues(TypedDict):
    """A :class:`ngvae_pyro.axes.Rotation` as plain values."""

    step: Count
    latents: Annotated[list[Count], Field(min_length=2)]
    outcome: Literal["independent", "uncorrelated", "kept"]
    tried: Literal["independent", "uncorrelated"]
    cost: float
    negentropy: list[Annotated[float, Field(ge=0.0)]]
    gaussian: list[bool]
    agreement: list[Fraction]


def _one_for_each(rotation: RotationValues) -> RotationValues:
    latents = rotation["latents"]
    columns: dict[str, list[Any]] = {
        "negentropy": [*rotation["negentropy"]],
        "gaussian": [*rotation["gaussian"]],
        "agreement": [*rotation["agreement"]],
    }
    for name, values in columns.items():
        if len(values) != len(latents):
            raise ValueError(f"{name}: expected {len(latents)} values, got {len(values)}")
    if len(set(latents)) < len(latents):
        raise ValueError(f"latents: expected each once, got {latents}")
    return rotation


CheckedRotation = Annotated[RotationValues, AfterValidator(_one_for_each)]


def check_latents(rotation: RotationValues, size: int) -> None:
    """Refuse latents that a model with ``size`` of them does not have.

    Raises:
        ValueError: With the largest number.
    """
    if (most := max(rotation["latents"])) >= size:
        raise ValueError(f"rotation.latents: expected numbers below {size}, got {most}")


@with_config(OPEN)
class Metrics(TypedDict):
    """What :func:`ngvae_pyro.evaluate` returns and ``metrics.json`` holds; see there.

    Keys that may be missing were not known to older versions, or are not known of these images.
    """

    discrete: NotRequired[bool]
    informative: Count
    active_units: NotRequired[Count]
    elbo: float
    reconstruction_mse: float
    kl: dict[str, SiteKL]
    precision: Precisions
    probs: list[float]
    variance_of_loc: list[float]
    dimension: NotRequired[float | None]
    earned: NotRequired[list[float] | None]
    steps: Count
    extra_steps: Count
    verdict: NotRequired[VerdictValues | None]
    correlations: NotRequired[list[Correlations] | None]
    rotation: NotRequired[CheckedRotation | None]


def _of_the_same_latents(metrics: Metrics) -> Metrics:
    if "z" not in metrics["kl"]:
        raise ValueError("kl: expected the site z")
    of_latents: dict[str, list[Any]] = {
        "variance_of_loc": [*metrics["variance_of_loc"]],
        "precision.mean": [*metrics["precision"]["mean"]],
        "precision.5%": [*metrics["precision"]["5%"]],
        "precision.95%": [*metrics["precision"]["95%"]],
        **{f"kl.{name}.per_latent": [*site["per_latent"]] for name, site in metrics["kl"].items()},
    }
    if (earned := metrics.get("earned")) is not None:
        of_latents["earned"] = [*earned]
    if (correlations := metrics.get("correlations")) is not None:
        of_latents["correlations"] = [*correlations]
    if (rotation := metrics.get("rotation")) is not None:
        check_latents(rotation, len(metrics["probs"]))
    for key, values in of_latents.items():
        if len(values) != len(metrics["probs"]):
            raise ValueError(f"{key}: expected {len(metrics['probs'])} numbers, got {len(values)}")
    return metrics


CheckedMetrics = Annotated[Metrics, AfterValidator(_of_the_same_latents)]


@with_config(OPEN)
class LogLikelihoodValues(TypedDict):
    """The held-out log likelihood, nats, and how far it can be trusted."""

    mean: float
    se: float
    k_median: NotRequired[float]
    k_bad: float
    draws: Annotated[int, Field(gt=0, le=10**12)]
    images: NotRequired[Count]


@with_config(OPEN)
class PerImage(TypedDict):
    """Log likelihood and Pareto k of each image."""

    log_likelihood: list[float]
    k: list[float]


def _both_of_each(values: PerImage) -> PerImage:
    expected, got = len(values["log_likelihood"]), len(values["k"])
    if got != expected:
        raise ValueError(f"k: expected {expected} numbers, got {got}")
    return values


@with_config(OPEN)
class Evaluation(TypedDict):
    """``evaluation.json``, from :func:`ngvae_pyro.evaluation.assess`; see there."""

    points: NotRequired[Count]
    source: NotRequired[str]
    slides: dict[str, float | None]
    active_units: Count
    total_correlation: float | None
    variance_law: NotRequired[float | None]
    ks_statistic: NotRequired[float | None]
    aggregate: NotRequired[list[dict[str, float | None]]]
    factors: NotRequired[list[Text] | None]
    scored: NotRequired[Count | None]
    scores: NotRequired[dict[str, float | None] | None]
    mig_per_factor: NotRequired[dict[str, float]]
    log_likelihood: LogLikelihoodValues
    per_image: Annotated[PerImage, AfterValidator(_both_of_each)]
    seconds: NotRequired[dict[str, float]]


# Of a file in a folder, relative to it.
Name = Annotated[Text, AfterValidator(_within)]
# SHA-256, in hexadecimal digits.
Digest = Annotated[str, Field(min_length=64, max_length=64)]


class Images(Record):
    """Digests of the images of a run, and by what they were computed if they were rendered."""

    train: Digest | None
    held_out: Digest
    renderer: Text | None = None


class Start(Record):
    """What a process of a training was started by, and where."""

    command: str
    began: str
    device: str
    threads: Annotated[int, Field(gt=0, le=10**6)]
    processes: Annotated[int, Field(gt=0, le=10**6)]


class RunRecord(Record):
    """``run.json``: the seconds of a training, where its processes were started, its images.

    ``files`` are those that the run has written into its folder, besides checkpoints. A run of an
    older version does not say which its images and its files were.
    """

    seed: Count
    seconds: float
    starts: list[Start]
    files: list[Name] | None = None
    images: Images | None = None


class SavedMove(Spec):
    """A :class:`ngvae_pyro.fitted.MoveRecord`."""

    kind: MoveKind
    latent: Count | None
    step: Count
    loss_without: float
    loss_with: float
    size: Count | None = None


class HistoryRow(Record):
    """One look at the monitor images, and at images for validation if there are any."""

    step: Count
    loss: float
    kl: dict[str, float]
    informative: Count
    probs: list[float]
    variance_of_loc: list[float] | None = None
    validation_loss: float | None = None


class Place(Record):
    """Where a training is: its step, and how many of its actions are done."""

    step: Count
    acted: Count


class KeptPlace(Place):
    """Where a training was that may go back to there."""

    exact: bool


class Recording(Record):
    """What decides over the recordings of a step, :meth:`ngvae_pyro.training.steps.Steps.state`."""

    fast: bool
    recorded: bool
    since: Count


class Position(Place):
    """``position`` in the ``state.json`` of a checkpoint: what else changes in a training."""

    exact: bool
    steps: Recording
    history: Annotated[list[HistoryRow], Field(min_length=1)]
    moves: list[SavedMove]
    rotation: CheckedRotation | None = None
    extra_steps: Count
    skipped: Count = 0
    kept: KeptPlace | None = None
    seconds: Annotated[float, Field(ge=0.0, le=1e12)]
    starts: Annotated[list[Start], Field(min_length=1)]


class State(Record):
    """``state.json`` of a checkpoint, whatever it is of."""

    position: Place
    identity: dict[str, Any]
    sha256: dict[str, str]


class History(Record):
    """``history.json``."""

    rows: list[HistoryRow]
    moves: list[SavedMove]
    rotation: CheckedRotation | None = None
    skipped: Count = 0

    @model_validator(mode="after")
    def _of_the_latents(self) -> Self:
        if self.rotation is not None and self.rows:
            check_latents(self.rotation, len(self.rows[-1].probs))
        return self


@with_config(OPEN)
class CountedScale(TypedDict):
    """What was counted at one scale; a training that diverged has no numbers.

    ``factor`` is in units of the own scale, ``scale`` in those of ``model.likelihood.scale``,
    ``verdict`` a word, and ``leak`` the largest variance of the posterior mean of a latent that is
    not counted, None if all are or if they are counts.
    """

    factor: Annotated[float, Field(gt=0.0)]
    scale: Annotated[float, Field(gt=0.0)]
    folder: Name | None
    informative: Count | None
    verdict: Text | None
    leak: float | None
    mse: float | None
    elbo: float | None


@with_config(OPEN)
class Plateau(TypedDict):
    """Neighbouring scales with the same count, by the numbers of the first and the last."""

    informative: Count
    first: Count
    last: Count


@with_config(OPEN)
class ClassicalEstimates(TypedDict):
    """Estimates from so many rows without training (:mod:`ngvae_pyro.dimension`).

    None where there are too few different rows, or there is no finite estimate.
    """

    rows: Count
    two_nn: float | None
    mle: float | None
    components: Count | None


@with_config(OPEN)
class CountCurve(TypedDict):
    """What :func:`ngvae_pyro.count` returns and ``count.json`` holds; see there."""

    data: str
    latent_size: Count
    unit: Annotated[float, Field(gt=0.0)]
    units: Text
    own: Count
    scales: Annotated[list[CountedScale], Field(min_length=1)]
    plateau: Plateau
    classical: ClassicalEstimates
    files: NotRequired[list[Name]]


def _of_the_same_scales(curve: CountCurve) -> CountCurve:
    scales, plateau = curve["scales"], curve["plateau"]
    if curve["own"] >= len(scales):
        raise ValueError(f"own: expected a number below {len(scales)}, got {curve['own']}")
    if not plateau["first"] <= plateau["last"] < len(scales):
        raise ValueError(
            f"plateau: expected first <= last < {len(scales)}, got {plateau['first']} and "
            f"{plateau['last']}"
        )
    for one in scales[plateau["first"] : plateau["last"] + 1]:
        if one["informative"] != plateau["informative"]:
            raise ValueError(
                f"plateau.informative: expected {plateau['informative']} at scale "
                f"{one['scale']:g}, got {one['informative']}"
            )
    return curve


CheckedCurve = Annotated[CountCurve, AfterValidator(_of_the_same_scales)]


class Comparison(Record):
    """``comparison.json``, as far as it tells that a folder is one of a comparison."""

    seeds: list[Count]
    models: list[dict[str, Any]]
    files: list[Name] | None = None
