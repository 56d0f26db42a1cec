"""Changes during training: ramps, moves, and the default schedules of the guides."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from ngvae_pyro.extras import needed

with needed("train"):
    from pydantic import (
        BeforeValidator,
        Field,
        model_validator,
    )
from ngvae_pyro.specs.base import Fraction, Spec, Steps, Weight, merge, to_tuple


class Ramp(Spec):
    """A number that goes from ``initial`` to ``final`` between two fractions of training.

    It is ``initial`` until the fraction ``begin`` of training and ``final`` from ``end`` on.
    In between it is linear or geometric in the step. Fractions refer to the whole run, so a longer
    run stretches the schedule. Without arguments it is 1 throughout.
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
        """The value at a fraction of training in [0, 1]."""
        if fraction <= self.begin:
            return self.initial
        if fraction >= self.end:
            return self.final
        t = (fraction - self.begin) / (self.end - self.begin)
        if self.shape == "geometric":
            return self.initial ** (1.0 - t) * self.final**t
        return self.initial + (self.final - self.initial) * t


# The range of ``slab.initial``; a Gamma of a concentration of 1e-4 is as flat as anyone needs.
SLAB_FACTORS = 0.01, 1e3

MoveKind = Literal["birth", "death", "growth", "unfolding"]


class Move(Spec):
    """A trial jump of the posterior at the fraction ``at`` of training.

    ``birth`` lets a latent that leaks information become informative, ``death`` makes an
    informative one uninformative and is tried where the codes have fewer dimensions than there are
    informative latents, ``growth`` lets one begin with what the reconstructions miss, and
    ``unfolding`` replaces all informative ones by fewer where their codes have a smaller dimension;
    see :mod:`ngvae_pyro.training.actions`. Both branches, with and without the jump, are trained
    for ``steps`` steps, and as many again if that is close and there is time, and the one with the
    higher ELBO is kept.
    """

    kind: MoveKind
    at: Fraction
    steps: Steps = 100


def renamed(values: Any) -> Any:
    """A schedule's values under today's keys; runs of older versions use one older name."""
    if not (isinstance(values, Mapping) and "decorrelate" in values):
        return values
    if "independent" in values:
        raise ValueError("decorrelate is the older name of independent; expected one of them")
    rest = {key: value for key, value in values.items() if key != "decorrelate"}
    return {**rest, "independent": values["decorrelate"]}


class ScheduleSpec(Spec):
    """The weights and relaxations that change during training.

    ``z`` and ``precision`` are the weights of the KL of these sites; ``sharpness`` and
    ``temperature`` multiply those of the relaxations, ``freedom`` that of the latents' own rates,
    and ``slab`` both numbers of the prior's slab, whose mean stays; ``sharpening`` is a second
    factor on the sharpness, for the end. All end at 1, so that training ends by maximising the ELBO
    itself (for counts, as closely as their final temperature allows). ``signal_nats`` above 0
    replaces ``z.initial`` by signal / signal_nats (at least 1), where the signal is what the data
    carry above their mean image, in nats under the likelihood: the weight then suits a faint grey
    data set and a colourful one alike. At the fraction ``silence``, each latent that leaks becomes
    informative or the prior for good, whichever has the higher ELBO; 1 turns this off. At the
    fraction ``independent``, informative latents are rotated to independent components if that
    costs next to nothing (:mod:`ngvae_pyro.axes`), and their precisions are fitted; 1 turns this
    off. Until the fraction ``exact`` the mixture guide is relaxed. At the fractions ``rescale`` a
    likelihood whose scale is ``auto`` takes on the noise that the reconstruction leaves. In
    between, the defaults leave the ELBO unchanged.
    """

    z: Ramp = Ramp()
    precision: Ramp = Ramp()
    sharpness: Ramp = Ramp()
    sharpening: Ramp = Ramp()
    temperature: Ramp = Ramp()
    freedom: Ramp = Ramp()
    slab: Ramp = Ramp()
    signal_nats: Weight = 0.0
    moves: Annotated[tuple[Move, ...], BeforeValidator(to_tuple), Field(max_length=1000)] = ()
    silence: Fraction = 1.0
    independent: Fraction = 1.0
    exact: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    rescale: Annotated[tuple[Fraction, ...], BeforeValidator(to_tuple), Field(max_length=1000)] = (
        *(0.25, 0.3, 0.38, 0.5, 0.6, 0.7, 0.8, 0.88),
    )

    _older = model_validator(mode="before")(renamed)

    @model_validator(mode="after")
    def _ends_at_the_elbo(self) -> Self:
        for name, value in self:
            if isinstance(value, Ramp) and value.final != 1.0:
                raise ValueError(f"{name}.final must be 1, got {value.final:g}")
        least, most = SLAB_FACTORS
        if not least <= self.slab.initial <= most:
            raise ValueError(
                f"slab.initial: expected a number >= {least:g} and <= {most:g}, "
                f"got {self.slab.initial:g}"
            )
        return self

    def factor(self, name: str, fraction: float) -> float:
        """By what the number of this name is multiplied at a fraction of training."""
        ramp: Ramp = getattr(self, name)
        return ramp(fraction) * (self.sharpening(fraction) if name == "sharpness" else 1.0)

    @property
    def in_use(self) -> list[str]:
        """The keys whose values differ from the defaults."""
        fields = type(self).model_fields
        return [key for key, field in fields.items() if getattr(self, key) != field.default]


SELECT = ScheduleSpec(
    z=Ramp(initial=40.0, begin=0.04, end=0.3, shape="geometric"),
    precision=Ramp(initial=0.0, begin=0.15, end=0.26),
    sharpness=Ramp(initial=0.5, begin=0.15, end=0.26),
    # At half of its slope latents still change their minds, but precisions are bounded.
    sharpening=Ramp(initial=0.5, begin=0.96, end=0.98, shape="geometric"),
    freedom=Ramp(initial=0.0, begin=0.3, end=0.4),
    # While latents are selected Gamma(1, 1e-4), under which low precisions are dear.
    slab=Ramp(initial=10.0, begin=0.96, end=0.98, shape="geometric"),
    signal_nats=15.0,
    moves=(
        Move(kind="birth", at=0.33, steps=200),
        Move(kind="growth", at=0.38, steps=400),
        Move(kind="unfolding", at=0.45, steps=800),
        Move(kind="growth", at=0.6, steps=400),
        Move(kind="unfolding", at=0.6, steps=400),
        Move(kind="birth", at=0.65, steps=400),
        # Rarely right, so it has what time is left.
        Move(kind="death", at=0.65, steps=800),
    ),
    silence=0.8,
    independent=0.98,
)

# The exact mixture settles for good within 200 steps, which is too early, so it starts out relaxed
# (docs/posteriors.md); the score guide is exact throughout and has nothing to sharpen.
SELECT_THEN_EXACT = SELECT.model_copy(update={"exact": 0.75})
SELECT_EXACT = SELECT.model_copy(update={"sharpness": Ramp(), "sharpening": Ramp()})

# Temperatures fall from 1 to 0.05 over the first half of training, as in Vafaii, Galor and Yates
# (2024).
COOL = ScheduleSpec(temperature=Ramp(initial=20.0, end=0.5))


def on_top_of(schedule: ScheduleSpec) -> BeforeValidator:
    """A validator that fills in the keys a declared schedule omits from ``schedule``."""

    def merged(value: Any) -> Any:
        own = isinstance(value, Mapping)
        return merge(schedule.model_dump(), renamed(value)) if own else value

    return BeforeValidator(merged)
