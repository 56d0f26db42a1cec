"""What the JSON files of a run folder hold, as far as it is read again.

The folder may be another's, or edited; so each file is checked as the TOML files are, and what does
not fit is one line. Keys that are not here are let pass.
"""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from ngvae_pyro.extras import needed
from ngvae_pyro.specs import Spec, Text

with needed("train"):
    from pydantic import AfterValidator, ConfigDict, Field, model_validator


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


class SiteKL(Record):
    """KL of one latent site, nats per image, and the shares of the latents."""

    total: float
    per_latent: list[float]


class Quantiles(Record):
    """The posterior precision of each latent."""

    mean: list[float]
    low: list[float] = Field(alias="5%")
    high: list[float] = Field(alias="95%")


class SavedFinding(Spec):
    """A :class:`ngvae_pyro.verdict.Finding`."""

    kind: Literal["leaking", "shared", "short"]
    text: Text
    reason: Text
    latents: list[Count]
    changes: dict[str, float]


class SavedVerdict(Record):
    """What speaks against a count of latents."""

    settled: bool
    findings: Annotated[list[SavedFinding], Field(max_length=100)]


# Of a latent with each factor, by its name; there is at least one.
Correlations = Annotated[
    dict[str, Annotated[float, Field(ge=0.0, le=1.0)]], Field(min_length=1, max_length=10_000)
]


class SavedRotation(Spec):
    """A :class:`ngvae_pyro.axes.Rotation`."""

    step: Count
    latents: Annotated[list[Count], Field(min_length=2)]
    outcome: Literal["independent", "uncorrelated", "kept"]
    tried: Literal["independent", "uncorrelated"]
    cost: float
    negentropy: list[Annotated[float, Field(ge=0.0)]]
    gaussian: list[bool]
    agreement: list[Annotated[float, Field(ge=0.0, le=1.0)]]

    @model_validator(mode="after")
    def _one_for_each_latent(self) -> Self:
        for name in ("negentropy", "gaussian", "agreement"):
            if len(getattr(self, name)) != len(self.latents):
                raise ValueError(
                    f"{name}: expected {len(self.latents)} values, got {len(getattr(self, name))}"
                )
        if len(set(self.latents)) < len(self.latents):
            raise ValueError(f"latents: expected each once, got {self.latents}")
        return self

    def check(self, size: int) -> None:
        """Refuse latents that a model of so many has not."""
        if max(self.latents) >= size:
            raise ValueError(
                f"rotation.latents: expected numbers below {size}, got {max(self.latents)}"
            )


class Metrics(Record):
    """``metrics.json``, from :func:`ngvae_pyro.evaluate`."""

    informative: Count
    elbo: float
    kl: dict[str, SiteKL]
    precision: Quantiles
    probs: list[float]
    variance_of_loc: list[float]
    reconstruction_mse: float
    steps: Count
    extra_steps: Count
    discrete: bool = False
    # A run of an older version has none.
    verdict: SavedVerdict | None = None
    # Neither has one whose factors are not known.
    correlations: list[Correlations] | None = None
    rotation: SavedRotation | None = None

    @model_validator(mode="after")
    def _one_for_each_latent(self) -> Self:
        if "z" not in self.kl:
            raise ValueError("kl: expected the site z")
        of_latents: dict[str, list[Any]] = {
            "variance_of_loc": self.variance_of_loc,
            "precision.mean": self.precision.mean,
            "precision.5%": self.precision.low,
            "precision.95%": self.precision.high,
            **{f"kl.{name}.per_latent": site.per_latent for name, site in self.kl.items()},
        }
        if self.correlations is not None:
            of_latents["correlations"] = self.correlations
        if self.rotation is not None:
            self.rotation.check(len(self.probs))
        for key, values in of_latents.items():
            if len(values) != len(self.probs):
                raise ValueError(f"{key}: expected {len(self.probs)} numbers, got {len(values)}")
        return self


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

    kind: Literal["birth", "death"]
    latent: Count
    step: Count
    loss_without: float
    loss_with: float


class HistoryRow(Record):
    """One look at the monitor images."""

    step: Count
    loss: float
    kl: dict[str, float]
    informative: Count
    probs: list[float]
    variance_of_loc: list[float] | None = None


class Place(Record):
    """Where a training is: its step, and how many of its actions are done."""

    step: Count
    acted: Count


class Recording(Record):
    """What decides over the recordings of a step, :meth:`ngvae_pyro.steps.Steps.state`."""

    fast: bool
    recorded: bool
    since: Count


class Position(Place):
    """``position`` in the ``state.json`` of a checkpoint: what else changes in a training."""

    exact: bool
    steps: Recording
    history: Annotated[list[HistoryRow], Field(min_length=1)]
    moves: list[SavedMove]
    rotation: SavedRotation | None = None
    extra_steps: Count
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
    rotation: SavedRotation | None = None

    @model_validator(mode="after")
    def _of_the_latents(self) -> Self:
        if self.rotation is not None and self.rows:
            self.rotation.check(len(self.rows[-1].probs))
        return self


class Comparison(Record):
    """``comparison.json``, as far as it tells that a folder is one of a comparison."""

    seeds: list[Count]
    models: list[dict[str, Any]]
    files: list[Name] | None = None


class LogLikelihood(Record):
    """The held-out log likelihood, nats, and what it hangs on."""

    mean: float
    se: float
    k_bad: float
    draws: Annotated[int, Field(gt=0, le=10**12)]


class PerImage(Record):
    """Log likelihood and Pareto k of each image."""

    log_likelihood: list[float]
    k: list[float]

    @model_validator(mode="after")
    def _both_of_each(self) -> Self:
        if len(self.k) != len(self.log_likelihood):
            raise ValueError(f"k: expected {len(self.log_likelihood)} numbers, got {len(self.k)}")
        return self


class Evaluation(Record):
    """``evaluation.json``, from :func:`ngvae_pyro.evaluation.evaluate_run`."""

    slides: dict[str, float | None]
    log_likelihood: LogLikelihood
    per_image: PerImage
    scores: dict[str, float | None] | None = None
    scored: Count | None = None
    factors: list[Text] | None = None
    active_units: Count
    total_correlation: float | None
    variance_law: float | None = None
    ks_statistic: float | None = None
