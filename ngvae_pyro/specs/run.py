"""Typed specs of a model, a guide and a fit: the only schema and the only place with defaults.

Each spec is a frozen pydantic model. A TOML variant file, a ``--set`` option and Python code all
build the same objects, so each of them is checked in the same way: unknown keys, wrong types,
values out of range, NaN and infinity are errors. Every number has bounds and every text is one
printable line: beyond them lies what float32, a machine's memory or a lifetime cannot hold. Those
of the distributions are what they are tested for: concentrations from 0.01 to a million, rates
from a millionth to a million, and a sharpness up to 1,000 wherever its schedule takes it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from ngvae_pyro.errors import UserError, nearest, one_line
from ngvae_pyro.extras import needed

with needed("train"):
    from pydantic import (
        AfterValidator,
        BaseModel,
        BeforeValidator,
        ConfigDict,
        Field,
        GetCoreSchemaHandler,
        SerializerFunctionWrapHandler,
        TypeAdapter,
        ValidationError,
        model_serializer,
        model_validator,
    )
    from pydantic_core import core_schema


class Spec(BaseModel):
    """Base of all specs: frozen, strict, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            name = type(self).__name__
            raise UserError(f"{name}: {_explain(type(self), error)}") from None

    # As pydantic's own has it: specs inside of specs are validated without it, and keep their path.
    setattr(__init__, "__pydantic_base_init__", True)  # noqa: B010

    @model_validator(mode="after")
    def _says_what_it_is(self) -> Self:
        # So that what was given, without the defaults, can be read again as the same member of a
        # union: `FactorSpec(width=16)` is more than its width.
        known = {"kind", "family"} & type(self).model_fields.keys()
        self.__pydantic_fields_set__.update(known)
        return self


def _to_tuple(value: Any) -> Any:
    # TOML has arrays where Python has tuples.
    return tuple(value) if isinstance(value, list) else value


def merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested update: tables are merged key by key, anything else is replaced."""
    merged = dict(values)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = merge(old, value)
        merged[key] = value
    return merged


# Values that the key of each union takes, for messages.
_UNIONS: dict[str, list[str]] = {}


@dataclass(frozen=True)
class _ChosenBy:
    """Of a union of specs: the member is chosen by the value of ``key``, by default the first."""

    key: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        key = self.key
        members: tuple[type[Spec], ...] = get_args(source)
        by_value = {member.model_fields[key].default: member.__name__ for member in members}
        first = members[0]

        def choose(value: Any) -> str | None:
            if isinstance(value, Spec):
                return type(value).__name__
            if not isinstance(value, Mapping):
                return first.__name__
            given = value.get(key, first.model_fields[key].default)
            # An unknown value is passed on, for pydantic to report.
            return by_value.get(given, str(given)) if isinstance(given, str) else _shown(given)

        union = " | ".join(by_value.values())
        _UNIONS[union] = list(by_value)
        return core_schema.tagged_union_schema(
            {member.__name__: handler.generate_schema(member) for member in members},
            choose,
            custom_error_type="unknown_member",
            custom_error_message="not a member of the union",
            custom_error_context={"key": key, "union": union},
        )


def _members(union: Any) -> tuple[type["Spec"], ...]:
    """The specs of a union, in the order in which it is written."""
    members: tuple[type[Spec], ...] = get_args(get_args(union)[0])
    return members


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"expected one printable line, got {text!r}")
    return text


# The ranges in which the distributions are tested to hold their accuracy.
Concentration = Annotated[float, Field(ge=1e-2, le=1e6)]
Rate = Annotated[float, Field(ge=1e-6, le=1e6)]
MAX_SHARPNESS = 1e3
Sharpness = Annotated[float, Field(gt=0.0, le=MAX_SHARPNESS)]
# Informative and uninformative; and one Gamma.
Concentrations = Annotated[tuple[Concentration, Concentration], BeforeValidator(_to_tuple)]
Rates = Annotated[tuple[Rate, Rate], BeforeValidator(_to_tuple)]
GammaPair = Annotated[tuple[Concentration, Rate], BeforeValidator(_to_tuple)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
# The pull of Adam's steps grows with it; far below its bound a training diverges, and says so.
LearningRate = Annotated[float, Field(gt=0.0, le=1e30)]
# Weights of terms of a loss in nats, which float32 must still add up.
Weight = Annotated[float, Field(ge=0.0, le=1e9)]
PositiveWeight = Annotated[float, Field(gt=0.0, le=1e9)]
Steps = Annotated[int, Field(gt=0, le=10**9)]
# Sizes of networks and batches; whether they fit together is for :mod:`ngvae_pyro.machine`.
Width = Annotated[int, Field(gt=0, le=100_000)]
Depth = Annotated[int, Field(gt=0, le=1_000)]
Channels = Annotated[int, Field(gt=0, le=10_000)]
Copies = Annotated[int, Field(gt=0, le=10_000)]
Side = Annotated[int, Field(gt=0, le=65_536)]
Colours = Annotated[int, Field(gt=0, le=1_000)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
# Of a name or a path, and of what tables and figures show.
Text = Annotated[str, Field(max_length=4096), AfterValidator(_one_line)]
Label = Annotated[str, Field(max_length=100), AfterValidator(_one_line)]


class Ramp(Spec):
    """A schedule: ``initial`` until the fraction ``begin`` of training, ``final`` from ``end`` on.

    In between it is linear or geometric in the step. Fractions are of the whole run, so that a
    longer run stretches the schedule. Without arguments it is 1 throughout.
    """

    initial: Annotated[float, Field(ge=0.0, le=1e6)] = 1.0
    final: Annotated[float, Field(gt=0.0, le=1e6)] = 1.0
    begin: Fraction = 0.0
    end: Fraction = 1.0
    shape: Literal["linear", "geometric"] = "linear"

    @property
    def constant(self) -> bool:
        """Whether it is 1 throughout."""
        return self.initial == self.final == 1.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.end < self.begin:
            raise ValueError(f"end ({self.end:g}) must not come before begin ({self.begin:g})")
        if self.shape == "geometric" and self.initial == 0.0:
            raise ValueError("a geometric ramp cannot start at 0")
        return self

    def __call__(self, fraction: float) -> float:
        """Value at a fraction of training in [0, 1]."""
        if fraction <= self.begin:
            return self.initial
        if fraction >= self.end:
            return self.final
        t = (fraction - self.begin) / (self.end - self.begin)
        if self.shape == "geometric":
            return self.initial ** (1.0 - t) * self.final**t
        return self.initial + (self.final - self.initial) * t


# What names a device; also :func:`ngvae_pyro.machine.resolve_device` goes by it.
DEVICE = r"^(auto|cpu|cuda(:[0-9]{1,3})?)$"


# Networks ------------------------------------------------------------------------------------


class MLPSpec(Spec):
    """Residual multilayer perceptron with ``depth`` hidden layers of ``width`` units.

    A decoder that is declared without a depth has 8 layers: what it cannot draw from few latents
    is drawn from more of them, so a shallow decoder finds too many.
    """

    kind: Literal["mlp"] = "mlp"
    width: Width = 256
    depth: Depth = 3


class ConvSpec(Spec):
    """Stride-2 convolutions down to (or up from) a small grid, then two dense layers.

    For 64x64 images this is the network of Burgess et al. (2018).
    """

    kind: Literal["conv"] = "conv"
    channels: Channels = 32
    width: Width = 256


class ResNetV2Spec(Spec):
    """Pre-activation residual blocks, ``blocks`` of them at each size, then one dense layer.

    ``channels`` are those of the full size; each halving of the grid doubles them, up to eight
    times as many.
    """

    kind: Literal["resnet_v2"] = "resnet_v2"
    channels: Channels = 16
    blocks: Annotated[int, Field(gt=0, le=100)] = 1
    width: Width = 256


NetworkSpec = Annotated[MLPSpec | ConvSpec | ResNetV2Spec, _ChosenBy("kind")]


def _deep(value: Any) -> Any:
    if isinstance(value, Mapping) and value.get("kind", "mlp") == "mlp":
        return {"depth": 8, **value}
    return value


# Model: p(x, z, precision) -------------------------------------------------------------------


class NormalGammaPriorSpec(Spec):
    """Prior on (z, precision) with a spike-and-slab mixture of Gammas on the precision.

    ``precision ~ pi Gamma(*slab) + (1 - pi) Gamma(*spike)``, pi = exp(-price): the spike at
    precision 1 makes an uninformative latent exactly the prior, the broad slab leaves the
    precision of an informative one free, and ``price`` is what one informative latent costs, in
    nats: up to 87, beyond which float32 has no exp(-price). ``joint`` false: z ~ Normal(0, 1)
    independent of the precision (the abstract's p(z) p(lambda)); ``joint`` true:
    z ~ Normal(0, precision^-1/2) (the slides' p(z, lambda)).
    """

    family: Literal["normal_gamma"] = "normal_gamma"
    joint: bool = False
    price: Annotated[float, Field(ge=1e-6, le=87.0)] = 4.0
    slab: GammaPair = (1.0, 1e-4)
    spike: GammaPair = (100.0, 100.0)

    @property
    def slab_probs(self) -> float:
        """Prior weight of the slab, pi = exp(-price)."""
        return math.exp(-self.price)


class GaussianPriorSpec(Spec):
    """Prior of a vanilla VAE: z ~ Normal(0, 1), no precision site."""

    family: Literal["gaussian"] = "gaussian"


# A posterior's rates are softly bounded by exp(5), and of one of exp(-20) no count is ever seen.
LogRate = Annotated[float, Field(ge=-20.0, le=5.0)]


class PoissonPriorSpec(Spec):
    """Prior of a Poisson VAE: counts z ~ Poisson(rate), with a learned rate for each latent.

    The logarithms of the rates start uniformly between the two numbers ``log_rate``. The code of
    Vafaii, Galor and Yates (2024), github.com/hadivafaii/PoissonVAE, has -6 and -2 there, for 512
    latents; of 15 on sprites, 13 such rare counts were silent after 60 steps and stayed so.
    """

    family: Literal["poisson"] = "poisson"
    log_rate: Annotated[tuple[LogRate, LogRate], BeforeValidator(_to_tuple)] = (0.0, 2.0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, high = self.log_rate
        if high < low:
            raise ValueError(f"log_rate: expected (low, high), got ({low:g}, {high:g})")
        return self


PriorSpec = Annotated[
    NormalGammaPriorSpec | GaussianPriorSpec | PoissonPriorSpec,
    _ChosenBy("family"),
]


class LikelihoodSpec(Spec):
    """Likelihood of a pixel in [0, 1] given the decoder's output.

    ``auto`` is bernoulli for images that hold only 0 and 1, and gaussian for all others.
    ``scale`` is the standard deviation of the gaussian; ``learned`` makes it a parameter (one
    for the whole data set) that starts there. The other families have neither.
    """

    family: Literal["auto", "gaussian", "bernoulli", "continuous_bernoulli"] = "auto"
    scale: Annotated[float, Field(ge=1e-4, le=1e4)] = 0.1
    learned: bool = False

    @property
    def _of_the_gaussian(self) -> list[str]:
        return sorted(self.model_fields_set & {"scale", "learned"})

    @model_validator(mode="after")
    def _scale_is_gaussian(self) -> Self:
        if self.family not in ("auto", "gaussian") and (keys := self._of_the_gaussian):
            raise ValueError(
                f"{' and '.join(keys)} belongs to the gaussian likelihood, not to {self.family}"
            )
        return self

    @model_serializer(mode="wrap")
    def _own_keys(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What is read again must neither be refused nor look as if it had been given.
        values: dict[str, Any] = serialize(self)
        if self.family == "gaussian":
            return values
        keys = {"family", *self._of_the_gaussian}
        return {key: value for key, value in values.items() if key in keys}

    def resolved(self, binary: bool) -> Self:
        """With ``auto`` decided by whether the images hold only 0 and 1.

        A ``scale`` or ``learned`` that was given asks for the gaussian.
        """
        if self.family != "auto":
            return self
        family = "bernoulli" if binary and not self._of_the_gaussian else "gaussian"
        return self.model_copy(update={"family": family})


class ModelSpec(Spec):
    """What p(x, z, precision) is: latent size, prior, likelihood and decoder."""

    latent_size: Annotated[int, Field(gt=0, le=10_000)] = 15
    prior: PriorSpec = NormalGammaPriorSpec()
    likelihood: LikelihoodSpec = LikelihoodSpec()
    decoder: Annotated[NetworkSpec, BeforeValidator(_deep)] = MLPSpec(depth=8)


# Guide: q(z, precision | x) ------------------------------------------------------------------


class Move(Spec):
    """A trial jump of the posterior at the fraction ``at`` of training.

    ``birth`` lets a latent that leaks information become informative, ``death`` makes an
    informative one uninformative; see :mod:`ngvae_pyro.selection`. Both branches, with and
    without the jump, are trained for ``steps`` steps and the one with the higher ELBO is kept.
    """

    kind: Literal["birth", "death"]
    at: Fraction
    steps: Steps = 100


def _renamed(values: Any) -> Any:
    """Keys of a schedule with today's names; runs of older versions have one of before."""
    if not (isinstance(values, Mapping) and "decorrelate" in values):
        return values
    if "independent" in values:
        raise ValueError("decorrelate is the older name of independent; expected one of them")
    rest = {key: value for key, value in values.items() if key != "decorrelate"}
    return {**rest, "independent": values["decorrelate"]}


class ScheduleSpec(Spec):
    """What changes during training.

    ``z`` and ``precision`` weigh the KL of these sites, ``sharpness`` and ``temperature`` multiply
    those of the relaxations. All end at 1, so that what is maximised at the end is the ELBO itself,
    for counts as near as their last temperature brings it.
    ``signal_nats`` above 0 replaces ``z.initial`` by signal / signal_nats (at least 1), where
    the signal is what the data carry above their mean image, in nats under the likelihood: the
    weight then suits a faint grey data set and a colourful one alike. At the fraction ``silence``
    uninformative latents that leak too little for a birth lose the last trace of the data; at 1
    nothing is left to do. At the fraction ``independent`` informative latents are rotated to
    independent components, if that is free (:mod:`ngvae_pyro.axes`); at 1 they stay as they are.
    Until the fraction ``exact`` the mixture guide is relaxed. The defaults leave the ELBO as it is
    throughout.
    """

    z: Ramp = Ramp()
    precision: Ramp = Ramp()
    sharpness: Ramp = Ramp()
    temperature: Ramp = Ramp()
    signal_nats: Weight = 0.0
    moves: Annotated[tuple[Move, ...], BeforeValidator(_to_tuple), Field(max_length=1000)] = ()
    silence: Fraction = 1.0
    independent: Fraction = 1.0
    exact: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    _older = model_validator(mode="before")(_renamed)

    @model_validator(mode="after")
    def _ends_at_the_elbo(self) -> Self:
        for name in ("z", "precision", "sharpness", "temperature"):
            ramp = getattr(self, name)
            if ramp.final != 1.0:
                raise ValueError(f"{name}.final must be 1, got {ramp.final:g}")
        return self

    @property
    def in_use(self) -> list[str]:
        """The keys that are not as they are by default."""
        fields = type(self).model_fields
        return [key for key, field in fields.items() if getattr(self, key) != field.default]


# In float32 less may be 0.
LEAST_ANNEALED = 1e-6


def _annealed(spec: Any, name: str, most: float) -> Any:
    """Refuses a schedule that takes a number of the guide out of its own range."""
    ramp: Ramp = getattr(spec.schedule, name)
    product = getattr(spec, name) * ramp.initial
    if not LEAST_ANNEALED <= product <= most:
        raise ValueError(
            f"{name} times schedule.{name}.initial: expected a number >= {LEAST_ANNEALED:g} and "
            f"<= {most:g}, got {product:g}"
        )
    return spec


class BaseGuideSpec(Spec):
    """What every guide declares besides the fields of its own class.

    Those are its ``family``, an optional ``label``, an ``encoder`` and a ``schedule``.
    """

    # Keys of the schedule that mean something to this guide.
    schedule_keys: ClassVar[frozenset[str]] = frozenset({"z", "signal_nats"})

    def foreign(self, schedule: ScheduleSpec) -> dict[str, str]:
        """Keys in use that mean nothing to this guide, each with a family it belongs to."""
        return {
            key: next(
                spec.model_fields["family"].default
                for spec in GUIDE_SPECS
                if issubclass(spec, BaseGuideSpec) and key in spec.schedule_keys
            )
            for key in schedule.in_use
            if key not in self.schedule_keys
        }

    @model_validator(mode="after")
    def _own_schedule(self) -> Self:
        values: Any = self
        for key, owner in self.foreign(values.schedule).items():
            raise ValueError(f"schedule.{key} belongs to the {owner} guide, not to {values.family}")
        return self


SELECT = ScheduleSpec(
    z=Ramp(initial=40.0, begin=0.125, end=0.25, shape="geometric"),
    precision=Ramp(initial=0.0, begin=0.15, end=0.225),
    sharpness=Ramp(initial=0.5, begin=0.15, end=0.225),
    signal_nats=60.0,
    moves=(
        Move(kind="birth", at=0.3, steps=200),
        Move(kind="death", at=0.38, steps=800),
        Move(kind="birth", at=0.5, steps=200),
    ),
    silence=0.8,
    independent=0.98,
)


# The exact mixture decides for good within 200 steps, too early, so it starts out relaxed
# (docs/posteriors.md); the score guide is exact throughout and has nothing to sharpen.
SELECT_THEN_EXACT = SELECT.model_copy(update={"exact": 0.75})
SELECT_EXACT = SELECT.model_copy(update={"sharpness": Ramp()})

# Temperatures 1 to 0.05 over the first half of training, as Vafaii, Galor and Yates (2024).
COOL = ScheduleSpec(temperature=Ramp(initial=20.0, end=0.5))


def _on_top_of(schedule: ScheduleSpec) -> BeforeValidator:
    def merged(value: Any) -> Any:
        own = isinstance(value, Mapping)
        return merge(schedule.model_dump(), _renamed(value)) if own else value

    return BeforeValidator(merged)


class NormalGammaGuideSpec(BaseGuideSpec):
    """What all guides with the sites ``precision`` and ``z`` declare.

    ``concentration`` and ``rate`` are (informative, uninformative). A declared ``schedule`` changes
    only the keys that it names. ``label`` is what tables and figures call the guide; its name
    otherwise.
    """

    schedule_keys: ClassVar[frozenset[str]] = BaseGuideSpec.schedule_keys | {
        "precision",
        "moves",
        "silence",
        "independent",
    }

    family: str
    label: Label | None = None
    concentration: Concentrations = (1000.0, 100.0)
    rate: Rates = (0.1, 100.0)
    encoder: NetworkSpec = MLPSpec()
    schedule: Annotated[ScheduleSpec, _on_top_of(SELECT)] = SELECT


class SlidingGuideSpec(NormalGammaGuideSpec):
    """Of the relaxed posteriors: ``sharpness`` is the slope r at the end of training."""

    schedule_keys: ClassVar[frozenset[str]] = NormalGammaGuideSpec.schedule_keys | {"sharpness"}

    sharpness: Sharpness = 20.0

    @model_validator(mode="after")
    def _sharpness_of_the_schedule(self) -> Self:
        return _annealed(self, "sharpness", MAX_SHARPNESS)


class RelaxedGuideSpec(SlidingGuideSpec):
    """Relaxed Normal-Gamma posterior of the NG-VAE, with the schedule that makes it select."""

    family: Literal["relaxed"] = "relaxed"


class FlatGuideSpec(SlidingGuideSpec):
    """Flat hierarchical posterior: ``draws`` z share the one precision of each latent."""

    family: Literal["flat"] = "flat"
    draws: Copies = 4


class GeneralizedGuideSpec(SlidingGuideSpec):
    """The relaxed posterior with the slides' own gradient (Ruiz, Titsias and Blei, 2016)."""

    family: Literal["generalized"] = "generalized"


class MixtureGuideSpec(SlidingGuideSpec):
    """The exact mixture, with an unbiased gradient of p; relaxed until ``schedule.exact``."""

    schedule_keys: ClassVar[frozenset[str]] = SlidingGuideSpec.schedule_keys | {"exact"}

    family: Literal["mixture"] = "mixture"
    schedule: Annotated[ScheduleSpec, _on_top_of(SELECT_THEN_EXACT)] = SELECT_THEN_EXACT


class ScoreGuideSpec(NormalGammaGuideSpec):
    """The exact mixture, with the plain score-function gradient of p."""

    family: Literal["score"] = "score"
    schedule: Annotated[ScheduleSpec, _on_top_of(SELECT_EXACT)] = SELECT_EXACT


# Objectives of the gaussian guide; their formulas are in :mod:`ngvae_pyro.objectives`.


class ElboSpec(Spec):
    """The ELBO itself, estimated as ``fit.elbo`` says; the other objectives have the KL exact."""

    kind: Literal["elbo"] = "elbo"


class BetaSpec(Spec):
    """The beta-VAE: ``beta`` weighs the KL."""

    kind: Literal["beta"] = "beta"
    beta: PositiveWeight = 4.0


class CapacitySpec(Spec):
    """Capacity annealing: ``gamma |KL - C|``, C from 0 to ``capacity`` nats until ``end``."""

    kind: Literal["capacity"] = "capacity"
    gamma: PositiveWeight = 1000.0
    capacity: PositiveWeight = 25.0
    end: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0


class BetaTCSpec(Spec):
    """The beta-TCVAE: ``beta`` weighs the total correlation."""

    kind: Literal["beta_tc"] = "beta_tc"
    beta: PositiveWeight = 6.0


class FactorSpec(Spec):
    """The FactorVAE: ``gamma`` times the total correlation that a discriminator sees.

    ``width`` and ``depth`` are the discriminator's hidden layers, ``learning_rate`` is its own.
    """

    kind: Literal["factor"] = "factor"
    gamma: PositiveWeight = 35.0
    width: Width = 1000
    depth: Depth = 6
    learning_rate: LearningRate = 1e-4


class DIPISpec(Spec):
    """The DIP-VAE-I: the covariance of the posterior means is drawn to the identity."""

    kind: Literal["dip_i"] = "dip_i"
    off_diagonal: Weight = 10.0
    diagonal: Weight = 100.0


class DIPIISpec(Spec):
    """The DIP-VAE-II: the covariance of the posterior draws is drawn to the identity."""

    kind: Literal["dip_ii"] = "dip_ii"
    off_diagonal: Weight = 10.0
    diagonal: Weight = 10.0


class GamixSpec(Spec):
    """The GAMIX-VAE: KL of the mixture over a batch, and ``regulariser`` against its collapse."""

    kind: Literal["gamix"] = "gamix"
    regulariser: Weight = 0.2


ObjectiveSpec = Annotated[
    ElboSpec | BetaSpec | CapacitySpec | BetaTCSpec | FactorSpec | DIPISpec | DIPIISpec | GamixSpec,
    _ChosenBy("kind"),
]


class GaussianGuideSpec(BaseGuideSpec):
    """Gaussian posterior of a vanilla VAE, z ~ Normal(loc(x), scale(x)), and its objective."""

    family: Literal["gaussian"] = "gaussian"
    label: Label | None = None
    encoder: NetworkSpec = MLPSpec()
    objective: ObjectiveSpec = ElboSpec()
    schedule: ScheduleSpec = ScheduleSpec()


class EpanechnikovGuideSpec(BaseGuideSpec):
    """Epanechnikov posterior, a parabola at loc(x) with its half-width from the encoder."""

    family: Literal["epanechnikov"] = "epanechnikov"
    label: Label | None = None
    encoder: NetworkSpec = MLPSpec()
    schedule: ScheduleSpec = ScheduleSpec()


# Colder relaxed counts are steps, warmer ones half of the most events that are looked at.
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-4, 1e3


class PoissonGuideSpec(BaseGuideSpec):
    """Poisson posterior of a Poisson VAE, z ~ Poisson(rate factor(x)) with the prior's rate.

    ``temperature`` is that of the relaxed counts at the end of training. A declared ``schedule``
    changes only the keys that it names. The objective is the ELBO with the KL in closed form,
    whatever ``fit.elbo`` says: relaxed counts have no density of their own to estimate it from.
    """

    schedule_keys: ClassVar[frozenset[str]] = BaseGuideSpec.schedule_keys | {"temperature"}

    family: Literal["poisson"] = "poisson"
    label: Label | None = None
    temperature: Annotated[float, Field(ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)] = 0.05
    encoder: NetworkSpec = MLPSpec()
    schedule: Annotated[ScheduleSpec, _on_top_of(COOL)] = COOL

    @model_validator(mode="after")
    def _temperature_of_the_schedule(self) -> Self:
        return _annealed(self, "temperature", MAX_TEMPERATURE)


class GaussianMixtureGuideSpec(BaseGuideSpec):
    """Posterior of ``components`` Gaussians for each latent, with weights of their own.

    ``regulariser`` weighs the term that keeps their variances from collapsing.
    """

    family: Literal["gaussian_mixture"] = "gaussian_mixture"
    label: Label | None = None
    components: Annotated[int, Field(gt=0, le=1_000)] = 3
    regulariser: Weight = 0.2
    encoder: NetworkSpec = MLPSpec()
    schedule: ScheduleSpec = ScheduleSpec()


# The guides that may be declared; the first one where no family is.
GuideSpec = Annotated[
    RelaxedGuideSpec
    | MixtureGuideSpec
    | FlatGuideSpec
    | GeneralizedGuideSpec
    | ScoreGuideSpec
    | GaussianGuideSpec
    | GaussianMixtureGuideSpec
    | EpanechnikovGuideSpec
    | PoissonGuideSpec,
    _ChosenBy("family"),
]

GUIDE_SPECS = _members(GuideSpec)

# What the files in each folder of variants declare.
DECLARED: dict[str, Any] = {"models": ModelSpec, "guides": TypeAdapter(GuideSpec)}


# Fit and run ---------------------------------------------------------------------------------


class AdversarialSpec(Spec):
    """A PatchGAN discriminator whose verdict on the reconstructions is part of the fit.

    ``weight`` multiplies what it costs to be recognised, in nats per image; its default is for RGB
    images of 64x64 pixels of standard deviation 0.1, whose likelihood is a sum over the pixels.
    ``begin`` is the fraction of training from which it acts, ``channels`` are those of the first
    of its ``layers`` stride-2 layers, ``learning_rate`` is its own.
    """

    weight: Weight = 200.0
    channels: Channels = 32
    layers: Annotated[int, Field(gt=0, le=10)] = 2
    learning_rate: LearningRate = 1e-3
    begin: Fraction = 0.4


class FitSpec(Spec):
    """How a model and a guide are trained: Adam on the negative ELBO per data point.

    ``elbo`` is the estimator of the plain ELBO; the mixture, flat and Poisson guides and the
    baselines' objectives have their own. ``adversarial``, where it is given, is added to whichever
    objective there is. ``fast`` records the operations of a step and replays them, on CUDA as a
    graph. ``network_dtype`` is what the trunks of the networks compute in during training, whose
    weights, latent layers and densities are float32 throughout.
    There is a checkpoint every ``checkpoint_every`` steps.
    Data of more than ``resident_bytes`` stay in main memory, and ``workers``
    threads gather their batches ahead; by default 2 for a GPU and none for the CPU.
    """

    steps: Steps = 4400
    batch_size: Annotated[int, Field(gt=0, le=10**6)] = 64
    learning_rate: LearningRate = 3e-3
    decay_begin: Fraction = 0.3
    clip_norm: Annotated[float, Field(ge=1e-6, le=1e12)] = 2000.0
    elbo: Literal["Trace_ELBO", "TraceMeanField_ELBO"] = "Trace_ELBO"
    particles: Copies = 1
    adversarial: AdversarialSpec | None = None
    seed: Seed = 0
    device: Annotated[str, Field(pattern=DEVICE)] = "auto"
    monitor_every: Steps = 250
    checkpoint_every: Steps = 500
    fast: bool = True
    network_dtype: Literal["float32", "bfloat16"] = "float32"
    resident_bytes: Annotated[int, Field(gt=0, le=10**18)] = 4 * 2**30
    workers: Annotated[int, Field(ge=0, le=256)] | None = None


# Keys that change where a run is done, where its data lie or what it is called, not what is run.
IMMATERIAL = {
    "fit": {"device", "resident_bytes", "workers", "checkpoint_every"},
    "data": {"root", "download"},
    "guide": {"label"},
}


class DataSpec(Spec):
    """Which images: a name or a path as :func:`ngvae_pyro.data.load` takes it.

    ``size`` is the number of images, by default all (22,000 sprites), and ``held_out`` the part
    of them that is not trained on; ``resolution`` is the sprites' side in pixels, by default 32.
    """

    name: Text = "sprites"
    size: Annotated[int, Field(gt=0, le=10**9)] | None = None
    resolution: Side | None = None
    seed: Seed | None = None
    held_out: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    root: Text = "data"
    download: bool = False


class RunSpec(Spec):
    """Everything that defines a run; written to ``config.toml`` of the run folder."""

    model_name: Text = "normal_gamma"
    guide_name: Text = "relaxed"
    model: ModelSpec = ModelSpec()
    guide: GuideSpec = RelaxedGuideSpec()
    fit: FitSpec = FitSpec()
    data: DataSpec = DataSpec()


class FormSpec(Spec):
    """The axes of the arrays that the images came as, and whether they were bytes.

    Their units, where they have some of their own, are with the weights
    (:class:`ngvae_pyro.forms.Form`).
    """

    layout: Literal["vectors", "grey", "channels_last", "channels_first"]
    in_bytes: bool


class SavedRun(RunSpec):
    """``config.toml`` of a run folder: the run, and what is needed to build its pair again.

    Relative paths of ``data`` start from ``folder``. ``images`` says so where the images were given
    in Python, and ``data.name`` alone does not lead to them. A run of an older version has no
    ``form``.
    """

    image_shape: Annotated[tuple[Colours, Side, Side], BeforeValidator(_to_tuple)]
    folder: Text | None = None
    images: Literal["given in Python"] | None = None
    form: FormSpec | None = None
    versions: dict[str, str] = {}


# Errors --------------------------------------------------------------------------------------


_EXPECTED = {
    "float_type": "a number",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "string_type": "a string",
    "tuple_type": "an array",
    "list_type": "an array",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "finite_number": "a finite number",
    "literal_error": "one of {expected}",
    "greater_than": "a number > {gt:g}",
    "greater_than_equal": "a number >= {ge:g}",
    "less_than": "a number < {lt:g}",
    "less_than_equal": "a number <= {le:g}",
    "too_short": "an array of at least {min_length}",
    "too_long": "an array of at most {max_length}",
    "string_too_long": "at most {max_length} characters",
    "string_unicode": "text that UTF-8 can write",
    # The one pattern is that of fit.device.
    "string_pattern_mismatch": "auto, cpu, cuda or cuda:N",
}


def parse(spec: Any, values: Mapping[str, Any], source: str) -> Any:
    """Build a spec from plain values; the first mistake becomes one :class:`UserError` line.

    Args:
        spec: Spec class, or a type adapter of a union of them.
        values: Nested mapping as read from TOML.
        source: Name of the file or option, for the message.

    Raises:
        UserError: ``source: key: expected ..., got ...`` with the nearest known name.
    """
    validate = spec.validate_python if isinstance(spec, TypeAdapter) else spec.model_validate
    try:
        return validate(dict(values))
    except ValidationError as error:
        root = None if isinstance(spec, TypeAdapter) else spec
        raise UserError(f"{source}: {_explain(root, error)}") from None


def _shown(value: Any) -> str:
    try:
        return one_line(repr(value))
    except ValueError:
        # Python refuses to write out a whole number of thousands of digits.
        return "a number of thousands of digits"


def _subclasses(spec: type[Spec]) -> Iterator[type[Spec]]:
    for member in spec.__subclasses__():
        yield member
        yield from _subclasses(member)


def _explain(root: type[Spec] | None, error: ValidationError) -> str:
    """One line for the first of a validation's errors."""
    first = error.errors()[0]
    kind, got, context = first["type"], first["input"], first.get("ctx", {})
    # The location holds keys, array positions and the tags of unions, which are class names.
    members = {member.__name__: member for member in _subclasses(Spec)}
    keys = [str(part) for part in first["loc"] if part not in members]
    key = ".".join(keys) or "the file"
    if kind == "value_error":
        return f"{key}: {context['error']}" if keys else str(context["error"])
    if kind == "extra_forbidden":
        known = list(_table(root, first["loc"][:-1], members).model_fields)
        return f"unknown key '{key}'{nearest(keys[-1], known)} (known: {', '.join(known)})"
    if kind == "missing":
        return f"{key}: expected a value, got none"
    if kind == "unknown_member":
        options, got = _UNIONS[context["union"]], got[context["key"]]
        key = ".".join([*keys, context["key"]])
        expected, hint = f"one of {', '.join(map(repr, options))}", nearest(str(got), options)
    else:
        expected, hint = _EXPECTED.get(kind, first["msg"]).format(**context), ""
    if kind == "literal_error" and isinstance(got, str):
        options = context["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        hint = nearest(got, options)
    return f"{key}: expected {expected}, got {_shown(got)}{hint}"


def _table(root: type[Spec] | None, location: tuple[Any, ...], members: Mapping[str, Any]) -> Any:
    """Spec of the table that a location points into."""
    table = root
    for part in location:
        if part in members:
            table = members[part]
        elif table is not None and part in table.model_fields:
            annotation = table.model_fields[part].annotation
            inner = [a for a in (annotation, *get_args(annotation)) if a in members.values()]
            table = inner[0] if inner else table
    return table
