"""Specs of networks, models p(x, z, precision) and guides q(z, precision | x)."""

import math
import re
import sys
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Annotated, Any, ClassVar, Literal, Self

from ngvae_pyro.errors import described
from ngvae_pyro.extras import needed

with needed("train"):
    from pydantic import (
        AfterValidator,
        BeforeValidator,
        Field,
        PlainSerializer,
        PlainValidator,
        SerializerFunctionWrapHandler,
        TypeAdapter,
        model_serializer,
        model_validator,
    )
from ngvae_pyro.specs.base import (
    MAX_SHARPNESS,
    Blocks,
    Channels,
    ChosenBy,
    Concentrations,
    Copies,
    Depth,
    GammaPair,
    Label,
    LearningRate,
    PositiveWeight,
    Rank,
    Rates,
    Sharpness,
    Side,
    Spec,
    Text,
    Weight,
    Width,
    members_of,
    printable_line,
    shown,
    to_tuple,
)
from ngvae_pyro.specs.schedule import (
    COOL,
    SELECT,
    SELECT_EXACT,
    SELECT_THEN_EXACT,
    Ramp,
    ScheduleSpec,
    on_top_of,
)

# Networks ------------------------------------------------------------------------------------


class SeparableSpec(Spec):
    """Decoder only: a sum of ``rank`` products of a row's, a column's and a channel's weights.

    All weights are linear in the output of a residual perceptron with ``depth`` hidden layers of
    ``width`` units. What moves along an axis of the image, or grows along it, changes only the
    weights of that axis. Beside it, ``channels`` such features on a grid of patches go through a
    convolution; with none of them an image is the sum of products alone. The formulas and their
    source are in :class:`ngvae_pyro.nn.SumOfProducts` and :class:`ngvae_pyro.nn.Products`. Data of
    one row, such as vectors, have nothing to multiply, and are drawn by the perceptron alone.
    """

    kind: Literal["separable"] = "separable"
    rank: Rank = 32
    channels: Annotated[int, Field(ge=0, le=10_000)] = 16
    width: Width = 256
    depth: Depth = 4


class MLPSpec(Spec):
    """Residual multilayer perceptron with ``depth`` hidden layers of ``width`` units.

    A decoder declared without a depth gets 8 layers: a shallow decoder makes up for what it cannot
    draw from few latents by using more of them, so too many are found.
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

    ``channels`` is the number at full size; each halving of the grid doubles it, up to eight times
    as many.
    """

    kind: Literal["resnet_v2"] = "resnet_v2"
    channels: Channels = 16
    blocks: Blocks = 1
    width: Width = 256


class ResidualConvSpec(Spec):
    """Residual 3x3 convolutions on a grid of patches, beside a residual perceptron.

    The longer side of the image is cut into at most 16 patches, so all sizes have about the same
    grid and cost. ``channels`` and ``blocks`` are those of the grid, ``width`` and ``depth`` those
    of the perceptron between the grid and the latents. As an MLP, a decoder declared without a
    depth gets 8 layers.
    """

    kind: Literal["residual_conv"] = "residual_conv"
    channels: Channels = 32
    blocks: Blocks = 2
    width: Width = 256
    depth: Depth = 3


class Conv1dSpec(Spec):
    """Residual convolutions along data of one row (C, 1, L), such as sequences and curves.

    Strides of 2 halve the length, whatever it is, until at most 8 are left, with ``channels`` and
    ``blocks`` residual blocks at each length. Then one dense layer of ``width`` units.
    """

    kind: Literal["conv1d"] = "conv1d"
    channels: Channels = 32
    blocks: Blocks = 1
    width: Width = 256


class Conv3dSpec(Spec):
    """Residual convolutions of volumes (C, D, H, W).

    Strides of 2 halve all sides, whatever they are, until the longest is at most 4, with
    ``channels`` and ``blocks`` residual blocks at each size. Then one dense layer of ``width``
    units.
    """

    kind: Literal["conv3d"] = "conv3d"
    channels: Channels = 16
    blocks: Blocks = 1
    width: Width = 256


# A class by its full name; its module is one of an installed package or of the working folder.
_FULL_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def _factory(value: Any) -> str | Callable[..., Any]:
    """A class by its full name, which any process can import, and anything else as it is."""
    if isinstance(value, str):
        if not _FULL_NAME.fullmatch(value):
            raise ValueError(f"expected package.module:Name, got {shown(value)}")
        return value
    if not isinstance(value, (type, FunctionType)):
        raise ValueError(
            "expected package.module:Name, or a class or function that makes it anew for "
            f"each model, got {described(value)}"
        )
    return _name_of(value) if _can_be_imported(value) else value


def _name_of(factory: Any) -> str:
    return f"{factory.__module__}:{factory.__qualname__}"


def _can_be_imported(factory: Any) -> bool:
    found: Any = sys.modules.get(factory.__module__)
    for part in factory.__qualname__.split("."):
        found = getattr(found, part, None)
    # The main program has other names in each process.
    return isinstance(factory, type) and found is factory and factory.__module__ != "__main__"


def _text(factory: Any) -> str:
    return factory if isinstance(factory, str) else _name_of(factory)


def _options(values: dict[str, Any]) -> dict[str, Any]:
    for name in values:
        if not name.isidentifier():
            raise ValueError(f"expected names of arguments, got {shown(name)}")
    return {name: _option(name, value) for name, value in values.items()}


def _option(name: str, value: Any) -> Any:
    """A value that a run folder can hold, with tuples for arrays."""
    if isinstance(value, (list, tuple)):
        return tuple(_option(name, item) for item in value)
    if isinstance(value, str):
        return printable_line(value)
    if not isinstance(value, (bool, int, float)) or not math.isfinite(value):
        raise ValueError(
            f"{name}: expected true or false, a finite number, a string or an array of these, got "
            f"{described(value)}"
        )
    return value


class OwnSpec(Spec):
    """A network of one's own; the package adds the linear layer at the latents.

    ``factory`` is a class of :class:`torch.nn.Module`, named in full ("package.module:Name"), of an
    installed package or of the working folder. It is called as ``factory(image_shape, width,
    **options)`` with image_shape = (C, H, W). A decoder maps (B, width) to images (B, C, H, W), an
    encoder images to any number of features for each. In Python ``factory`` may be the class itself
    or a function; a run folder can hold only what has a full name.

    ``recorded`` says that its ``forward`` consists of the same operations in every step, so that a
    training may record them (``fit.fast``); of modules of ``torch.nn`` alone this is known.
    """

    kind: Literal["own"] = "own"
    factory: Annotated[Any, PlainValidator(_factory), PlainSerializer(_text, when_used="json")]
    width: Width = 256
    options: Annotated[dict[str, Any], AfterValidator(_options)] = Field(default_factory=dict)
    recorded: bool = False


def _own(value: Any) -> Any:
    """What can be called, in place of a spec, is the factory of a network of one's own."""
    return {"kind": "own", "factory": value} if callable(value) else value


NetworkSpec = Annotated[
    MLPSpec | ConvSpec | ResNetV2Spec | ResidualConvSpec | Conv1dSpec | Conv3dSpec | OwnSpec,
    ChosenBy("kind"),
    BeforeValidator(_own),
]
# A mapping without a kind changes the default, which is the first.
DecoderSpec = Annotated[
    SeparableSpec
    | MLPSpec
    | ConvSpec
    | ResNetV2Spec
    | ResidualConvSpec
    | Conv1dSpec
    | Conv3dSpec
    | OwnSpec,
    ChosenBy("kind"),
    BeforeValidator(_own),
]


def _deep(value: Any) -> Any:
    if isinstance(value, Mapping) and value.get("kind") in ("mlp", "residual_conv"):
        return {"depth": 8, **value}
    return value


# Model: p(x, z, precision) -------------------------------------------------------------------


class NormalGammaPriorSpec(Spec):
    """Prior on (z, precision) with a spike-and-slab mixture of Gammas on the precision.

    ``precision ~ pi Gamma(*slab) + (1 - pi) Gamma(*spike)`` with pi = exp(-price). The spike at
    precision 1 makes an uninformative latent exactly the prior, and the slab, nearly flat in the
    logarithm of the precision between some tens and 100,000, leaves that of an informative one to
    the images. ``price`` is the cost of one informative latent in nats, at most 87 because
    exp(-price) underflows in float32 beyond that. With ``joint`` false,
    z ~ Normal(0, 1) independently of the precision (the abstract's p(z) p(lambda)); with ``joint``
    true, z ~ Normal(0, precision^-1/2) (the slides' p(z, lambda)).
    """

    family: Literal["normal_gamma"] = "normal_gamma"
    joint: bool = False
    price: Annotated[float, Field(ge=1e-6, le=87.0)] = 4.0
    slab: GammaPair = (0.1, 1e-5)
    spike: GammaPair = (100.0, 100.0)

    @property
    def slab_probs(self) -> float:
        """Prior weight of the slab, pi = exp(-price)."""
        return math.exp(-self.price)


class GaussianPriorSpec(Spec):
    """Prior of a vanilla VAE: z ~ Normal(0, 1), without a precision site."""

    family: Literal["gaussian"] = "gaussian"


# A posterior's rates are softly bounded by exp(5), and a rate of exp(-20) never yields a count.
LogRate = Annotated[float, Field(ge=-20.0, le=5.0)]


class PoissonPriorSpec(Spec):
    """Prior of a Poisson VAE: counts z ~ Poisson(rate), with a learned rate for each latent.

    The log rates are initialised uniformly between the two numbers in ``log_rate``. The code of
    Vafaii, Galor and Yates (2024), github.com/hadivafaii/PoissonVAE, uses -6 and -2 for 512
    latents; with such rare counts, 13 of 15 latents on sprites were silent after 60 steps and
    stayed so.
    """

    family: Literal["poisson"] = "poisson"
    log_rate: Annotated[tuple[LogRate, LogRate], BeforeValidator(to_tuple)] = (0.0, 2.0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, high = self.log_rate
        if high < low:
            raise ValueError(f"log_rate: expected (low, high), got ({low:g}, {high:g})")
        return self


# At most the weight of some millions of codes.
PseudoCodes = Annotated[float, Field(ge=0.0, le=1e6)]


class ArdPriorSpec(Spec):
    """Prior of an ARD-VAE: z ~ Normal(0, alpha^-1/2), alpha ~ Gamma(concentration, rate).

    The posterior of each latent's alpha is computed from ``codes`` codes of training images, again
    and again. Saha, Joshi and Whitaker (2025) have 0 and 0, the improper prior that says nothing of
    alpha, and 10,000 codes.
    """

    family: Literal["ard"] = "ard"
    concentration: PseudoCodes = 0.0
    rate: PseudoCodes = 0.0
    codes: Annotated[int, Field(gt=0, le=10**9)] = 10_000


class OwnPriorSpec(Spec):
    """A whole model of one's own, a Pyro program (:mod:`ngvae_pyro.own`).

    ``factory`` is the full name ("package.module:Name") of a function, or of a class of
    :class:`torch.nn.Module` that is made with ``options``. What cannot be imported by such a name
    can be trained, but not saved.
    """

    family: Literal["own"] = "own"
    factory: Text = ""
    options: Annotated[dict[str, Any], AfterValidator(_options)] = Field(default_factory=dict)


PriorSpec = Annotated[
    NormalGammaPriorSpec | GaussianPriorSpec | PoissonPriorSpec | ArdPriorSpec | OwnPriorSpec,
    ChosenBy("family"),
]


# Smallest standard deviation of a pixel: its square is still far above float32's rounding of 1.
LEAST_SCALE = 1e-4


# Which keys of the spec belong to which likelihoods.
LIKELIHOOD_KEYS: dict[str, tuple[str, ...]] = {
    "gaussian": ("scale", "learned", "per"),
    "student_t": ("scale", "learned", "df"),
    "poisson": ("exposure",),
    "negative_binomial": ("exposure",),
    "own": ("factory", "options", "whole_numbers"),
}
# Columns of vectors from which each has a scale of its own: one that is all noise then has 1 % or
# less of what varies.
MANY_COLUMNS = 100


class LikelihoodSpec(Spec):
    """Likelihood of an image's values given the decoder's output.

    The family ``auto`` means bernoulli for images that hold only 0 and 1, and gaussian for all
    others. :mod:`ngvae_pyro.likelihoods` has all of them. A key that belongs to some families alone
    is refused with the others:

    - ``scale``, of gaussian and student_t: the standard deviation (of student_t the scale) in the
      units of images. Its default ``auto`` takes it from the data: the resolution at which they
      carry 5,200 nats, or their noise where that is larger. ``learned`` makes it a parameter that
      starts at this value, without a lower bound.
    - ``per``, of gaussian: whether ``all`` values have one scale, or each ``channel``, or each
      ``value`` (of vectors: each column). By default each column of vectors of 100 columns or more,
      and otherwise all.
    - ``df``, of student_t: the degrees of freedom, above 2, so that there is a variance.
    - ``exposure``, of poisson and negative_binomial: by what the rates of an image are multiplied,
      ``none`` or the ``total`` of its counts; by default none for poisson, and the total for
      negative_binomial.
    - ``factory``, of own: a class of :class:`ngvae_pyro.likelihoods.Likelihood` by its full name
      ("package.module:Name"), as for :class:`OwnSpec`; in Python the class itself, or a function
      from the decoder's output to a Pyro distribution. ``options`` are further arguments of the
      class, and ``whole_numbers`` says that data are kept as they are, as those of counts.

    ``missing`` says that values may be missing, NaN, of which the likelihood then says nothing; it
    follows from the data.
    """

    family: Literal[
        "auto",
        "gaussian",
        "bernoulli",
        "continuous_bernoulli",
        "categorical",
        "student_t",
        "poisson",
        "negative_binomial",
        "own",
    ] = "auto"
    scale: Annotated[float, Field(ge=LEAST_SCALE, le=1e4)] | Literal["auto"] = "auto"
    learned: bool = False
    per: Literal["auto", "all", "channel", "value"] = "auto"
    df: Annotated[float, Field(gt=2.0, le=1e4)] = 4.0
    exposure: Literal["auto", "none", "total"] = "auto"
    factory: Annotated[
        Any, PlainValidator(_factory), PlainSerializer(_text, when_used="json-unless-none")
    ] = None
    options: Annotated[dict[str, Any], AfterValidator(_options)] = Field(default_factory=dict)
    whole_numbers: bool = False
    missing: bool = False

    @property
    def whole(self) -> bool:
        """Whether its data are whole numbers, which are kept as they are."""
        named = self.family in ("poisson", "negative_binomial", "categorical")
        return named or self.whole_numbers

    def _given(self) -> set[str]:
        return self.model_fields_set - {"family", "missing"}

    @model_validator(mode="after")
    def _keys_are_of_the_family(self) -> Self:
        own = LIKELIHOOD_KEYS.get("gaussian" if self.family == "auto" else self.family, ())
        for key in sorted(self._given() - set(own)):
            owners = " or ".join(name for name, keys in LIKELIHOOD_KEYS.items() if key in keys)
            raise ValueError(f"{key} belongs to the {owners} likelihood, not to {self.family}")
        if self.family == "own" and self.factory is None:
            raise ValueError("own: expected a factory, package.module:Name, got none")
        return self

    @model_serializer(mode="wrap")
    def _own_keys(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Drop the keys of other families: on reading back they would be refused, or taken for
        # values that somebody gave.
        values: dict[str, Any] = serialize(self)
        keys = {"family", *LIKELIHOOD_KEYS.get(self.family, ()), *self._given()}
        if self.missing:
            keys.add("missing")
        return {key: value for key, value in values.items() if key in keys}

    def resolved(self, *, binary: bool = False, columns: int = 0) -> Self:
        """A copy in which every ``auto`` but that of the scale is what suits the data.

        A key of the gaussian that was given selects that.

        Args:
            binary: Whether they are images that hold only 0 and 1.
            columns: How many columns vectors have; 0 for images.
        """
        changes: dict[str, Any] = {}
        family: str = self.family
        if family == "auto":
            family = "bernoulli" if binary and not self._given() else "gaussian"
            changes["family"] = family
        if family == "gaussian" and self.per == "auto":
            changes["per"] = "value" if columns >= MANY_COLUMNS else "all"
        if "exposure" in LIKELIHOOD_KEYS.get(family, ()) and self.exposure == "auto":
            changes["exposure"] = "none" if family == "poisson" else "total"
        return self.model_copy(update=changes) if changes else self

    def like(self, other: Self) -> Self:
        """A copy in which every ``auto`` but that of the scale is what another spec has."""
        family = other.family if self.family == "auto" else self.family
        changes: dict[str, Any] = {"family": family}
        if other.missing:
            changes["missing"] = True
        for key in LIKELIHOOD_KEYS.get(family, ()):
            if key != "scale" and getattr(self, key) == "auto":
                changes[key] = getattr(other, key)
        return self.model_copy(update=changes)


def _own_likelihood(value: Any) -> Any:
    """What can be called, in place of a spec, is the factory of a likelihood of one's own."""
    return {"family": "own", "factory": value} if callable(value) else value


class ModelSpec(Spec):
    """Declares p(x, z, precision): latent size, prior, likelihood and decoder.

    ``depth`` is D of volumes (C, D, H, W), which networks have as images (C, D H, W); it follows
    from the data.
    """

    latent_size: Annotated[int, Field(gt=0, le=10_000)] = 15
    prior: PriorSpec = NormalGammaPriorSpec()
    likelihood: Annotated[LikelihoodSpec, BeforeValidator(_own_likelihood)] = LikelihoodSpec()
    decoder: Annotated[DecoderSpec, BeforeValidator(_deep)] = SeparableSpec()
    depth: Side | None = None

    def of_data(self, *, missing: bool, depth: int) -> Self:
        """A copy for data of which values may be missing or not, and that are volumes or not.

        Args:
            missing: Whether they may be missing.
            depth: D of volumes; 0 of all else.
        """
        changes: dict[str, Any] = {"depth": depth or None}
        if missing:
            changes["likelihood"] = self.likelihood.model_copy(update={"missing": True})
        return self.model_copy(update=changes)


# Guide: q(z, precision | x) ------------------------------------------------------------------


# Anything smaller may be 0 in float32.
LEAST_ANNEALED = 1e-6


def _annealed(spec: Any, name: str, most: float) -> Any:
    """Refuse a schedule that takes one of the guide's numbers out of its range."""
    ramp: Ramp = getattr(spec.schedule, name)
    product = getattr(spec, name) * ramp.initial
    if not LEAST_ANNEALED <= product <= most:
        raise ValueError(
            f"{name} times schedule.{name}.initial: expected a number >= {LEAST_ANNEALED:g} and "
            f"<= {most:g}, got {product:g}"
        )
    return spec


class BaseGuideSpec(Spec):
    """Keys that every guide declares: ``family``, ``label``, ``encoder`` and ``schedule``."""

    # The schedule keys that have an effect on this guide.
    schedule_keys: ClassVar[frozenset[str]] = frozenset({"z", "signal_nats", "rescale"})

    def foreign(self, schedule: ScheduleSpec) -> dict[str, str]:
        """Schedule keys in use that this guide ignores, each with a family that has it."""
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


class NormalGammaGuideSpec(BaseGuideSpec):
    """Keys that all guides with the sites ``precision`` and ``z`` declare.

    ``concentration`` and ``rate`` are pairs (informative, uninformative). A concentration of 10
    costs an informative latent 2.3 nats less than the slides' 1000, and says as much of z.
    ``freedom`` is the logarithm of the largest factor by which each latent's own rate of the
    informative component, which is learned, may differ from the declared one, either way; 0 keeps
    that one for all. A declared ``schedule`` changes only the keys that it names. ``label`` is the
    guide's name in tables and figures, by default the name of the variant.
    """

    schedule_keys: ClassVar[frozenset[str]] = BaseGuideSpec.schedule_keys | {
        "precision",
        "freedom",
        "slab",
        "moves",
        "silence",
        "independent",
    }

    family: str
    label: Label | None = None
    concentration: Concentrations = (10.0, 100.0)
    rate: Rates = (1e-3, 100.0)
    freedom: Annotated[float, Field(ge=0.0, le=10.0)] = 6.0
    encoder: NetworkSpec = MLPSpec()
    schedule: Annotated[ScheduleSpec, on_top_of(SELECT)] = SELECT


class SlidingGuideSpec(NormalGammaGuideSpec):
    """Base of the relaxed posteriors: ``sharpness`` is the slope r at the end of training.

    The relaxed rate of a latent with weight p has a part sigmoid(-r (p - 1/2)) of the uninformative
    one, which bounds its precision: with a concentration of 10 at 2,200 for r = 20, no longer for
    r = 40.
    """

    schedule_keys: ClassVar[frozenset[str]] = NormalGammaGuideSpec.schedule_keys | {
        "sharpness",
        "sharpening",
    }

    sharpness: Sharpness = 40.0

    @model_validator(mode="after")
    def _sharpness_of_the_schedule(self) -> Self:
        return _annealed(self, "sharpness", MAX_SHARPNESS)


class RelaxedGuideSpec(SlidingGuideSpec):
    """Relaxed Normal-Gamma posterior of the NG-VAE, with the schedule that selects latents."""

    family: Literal["relaxed"] = "relaxed"


class FlatGuideSpec(SlidingGuideSpec):
    """Flat hierarchical posterior: ``draws`` draws of z share each latent's one precision."""

    family: Literal["flat"] = "flat"
    draws: Copies = 4


class GeneralizedGuideSpec(SlidingGuideSpec):
    """The relaxed posterior with the slides' own gradient (Ruiz, Titsias and Blei, 2016)."""

    family: Literal["generalized"] = "generalized"


class MixtureGuideSpec(SlidingGuideSpec):
    """The exact mixture, with an unbiased gradient of p; relaxed until ``schedule.exact``."""

    schedule_keys: ClassVar[frozenset[str]] = SlidingGuideSpec.schedule_keys | {"exact"}

    family: Literal["mixture"] = "mixture"
    schedule: Annotated[ScheduleSpec, on_top_of(SELECT_THEN_EXACT)] = SELECT_THEN_EXACT


class ScoreGuideSpec(NormalGammaGuideSpec):
    """The exact mixture, with the plain score-function gradient of p."""

    family: Literal["score"] = "score"
    schedule: Annotated[ScheduleSpec, on_top_of(SELECT_EXACT)] = SELECT_EXACT


class ElboSpec(Spec):
    """The ELBO itself, estimated by ``fit.elbo``; the other objectives use the exact KL."""

    kind: Literal["elbo"] = "elbo"


class BetaSpec(Spec):
    """The beta-VAE: ``beta`` is the weight of the KL."""

    kind: Literal["beta"] = "beta"
    beta: PositiveWeight = 4.0


class CapacitySpec(Spec):
    """Capacity annealing: ``gamma |KL - C|``, C from 0 to ``capacity`` nats until ``end``."""

    kind: Literal["capacity"] = "capacity"
    gamma: PositiveWeight = 1000.0
    capacity: PositiveWeight = 25.0
    end: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0


class BetaTCSpec(Spec):
    """The beta-TCVAE: ``beta`` is the weight of the total correlation."""

    kind: Literal["beta_tc"] = "beta_tc"
    beta: PositiveWeight = 6.0


class FactorSpec(Spec):
    """The FactorVAE: ``gamma`` times the total correlation that a discriminator estimates.

    ``width``, ``depth`` (of its hidden layers) and ``learning_rate`` are the discriminator's.
    """

    kind: Literal["factor"] = "factor"
    gamma: PositiveWeight = 35.0
    width: Width = 1000
    depth: Depth = 6
    learning_rate: LearningRate = 1e-4


class DIPISpec(Spec):
    """The DIP-VAE-I: the covariance of the posterior means is pulled towards the identity."""

    kind: Literal["dip_i"] = "dip_i"
    off_diagonal: Weight = 10.0
    diagonal: Weight = 100.0


class DIPIISpec(Spec):
    """The DIP-VAE-II: the covariance of the posterior draws is pulled towards the identity."""

    kind: Literal["dip_ii"] = "dip_ii"
    off_diagonal: Weight = 10.0
    diagonal: Weight = 10.0


class GamixSpec(Spec):
    """The GAMIX-VAE: KL of the batch's mixture; ``regulariser`` keeps it from collapsing."""

    kind: Literal["gamix"] = "gamix"
    regulariser: Weight = 0.2


ObjectiveSpec = Annotated[
    ElboSpec | BetaSpec | CapacitySpec | BetaTCSpec | FactorSpec | DIPISpec | DIPIISpec | GamixSpec,
    ChosenBy("kind"),
]


class GaussianGuideSpec(BaseGuideSpec):
    """Gaussian posterior of a vanilla VAE, z ~ Normal(loc(x), scale(x)), and its objective."""

    family: Literal["gaussian"] = "gaussian"
    label: Label | None = None
    encoder: NetworkSpec = MLPSpec()
    objective: ObjectiveSpec = ElboSpec()
    schedule: ScheduleSpec = ScheduleSpec()


class EpanechnikovGuideSpec(BaseGuideSpec):
    """Epanechnikov posterior: a parabola centred at loc(x), with an encoded half-width."""

    family: Literal["epanechnikov"] = "epanechnikov"
    label: Label | None = None
    encoder: NetworkSpec = MLPSpec()
    schedule: ScheduleSpec = ScheduleSpec()


# Below this range relaxed counts are step functions; above it they are half of the largest number
# of events considered, whatever the rate.
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-4, 1e3


class PoissonGuideSpec(BaseGuideSpec):
    """Poisson posterior of a Poisson VAE, z ~ Poisson(rate factor(x)) with the prior's rate.

    ``temperature`` is the temperature of the relaxed counts at the end of training. A declared
    ``schedule`` changes only the keys that it names. The objective is the ELBO with the KL in
    closed form, whatever ``fit.elbo`` says: relaxed counts have no density from which the KL could
    be estimated.
    """

    schedule_keys: ClassVar[frozenset[str]] = BaseGuideSpec.schedule_keys | {"temperature"}

    family: Literal["poisson"] = "poisson"
    label: Label | None = None
    temperature: Annotated[float, Field(ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)] = 0.05
    encoder: NetworkSpec = MLPSpec()
    schedule: Annotated[ScheduleSpec, on_top_of(COOL)] = COOL

    @model_validator(mode="after")
    def _temperature_of_the_schedule(self) -> Self:
        return _annealed(self, "temperature", MAX_TEMPERATURE)


class GaussianMixtureGuideSpec(BaseGuideSpec):
    """Posterior with a mixture of ``components`` Gaussians for each latent.

    ``regulariser`` is the weight of the term that keeps their variances from collapsing.
    """

    family: Literal["gaussian_mixture"] = "gaussian_mixture"
    label: Label | None = None
    components: Annotated[int, Field(gt=0, le=1_000)] = 3
    regulariser: Weight = 0.2
    encoder: NetworkSpec = MLPSpec()
    schedule: ScheduleSpec = ScheduleSpec()


class ArdGuideSpec(BaseGuideSpec):
    """Gaussian posterior of an ARD-VAE; its relevant latents explain the ``share`` of the images.

    ``beta`` is the weight of the KL.
    """

    family: Literal["ard"] = "ard"
    label: Label | None = None
    beta: PositiveWeight = 1.0
    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.99
    encoder: NetworkSpec = MLPSpec()
    schedule: ScheduleSpec = ScheduleSpec()


class OwnGuideSpec(BaseGuideSpec):
    """A guide of one's own, a Pyro program (:mod:`ngvae_pyro.own`).

    ``factory`` and ``options`` are as those of :class:`OwnPriorSpec`, and ``p_is`` says when a
    latent is informative.
    """

    schedule_keys: ClassVar[frozenset[str]] = BaseGuideSpec.schedule_keys | {
        "precision",
        "moves",
        "silence",
        "independent",
    }

    family: Literal["own"] = "own"
    label: Label | None = None
    p_is: Text = (
        "the share of rows whose inferred variance is below one half, half that of Normal(0, 1)"
    )
    factory: Text = ""
    options: Annotated[dict[str, Any], AfterValidator(_options)] = Field(default_factory=dict)
    schedule: ScheduleSpec = ScheduleSpec()


# The guides that can be declared; the first is the default family.
GuideSpec = Annotated[
    RelaxedGuideSpec
    | MixtureGuideSpec
    | FlatGuideSpec
    | GeneralizedGuideSpec
    | ScoreGuideSpec
    | GaussianGuideSpec
    | GaussianMixtureGuideSpec
    | EpanechnikovGuideSpec
    | PoissonGuideSpec
    | ArdGuideSpec
    | OwnGuideSpec,
    ChosenBy("family"),
]
GUIDE_SPECS = members_of(GuideSpec)

# The spec that the files in each folder of variants declare.
DECLARED: dict[str, Any] = {"models": ModelSpec, "guides": TypeAdapter(GuideSpec)}
