"""Whether a count of latents can be trusted, from the numbers of a fit, and what would help.

A training always ends with some number of informative latents. This module says what speaks against
that number: latents that carry information without being counted, latents that are informative for
some of the images only, and a training that was too short.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ngvae_pyro.latents import INFORMATIVE, LEAK, is_informative
from ngvae_pyro.records import FindingValues, VerdictValues
from ngvae_pyro.specs import FitSpec, ModelSpec, NormalGammaPriorSpec

# Mean p of a latent that is informative for some images and not for others. Decided ones end below
# 0.16 or above 0.84: on the flat ends of a relaxation there is nothing more to gain.
UNDECIDED = 0.25, 0.75
# Part of the training at its end, and the nats by which the ELBO may still rise over it: what an
# informative latent has to earn, so that with more steps the count could be another. Some nats are
# gained there by the learning rate's fall to 0 alone, 5 on the default sprites.
LAST, RISE = 0.1, 11.0
# By how much the dimension of the codes is below the count where latents are folded. Of 2,200
# images of seven factors, all told, it was 6.4 to 6.8.
FOLDED = 0.75
# What is said of folded images besides, where a perceptron draws them, which needs more latents.
DRAW_BETTER = ", or let the default decoder draw images (model.decoder.kind=separable)"
# What one more informative latent is seen at; the halved standard deviation makes a factor worth
# four times as many nats.
SHARPER = 0.5


@dataclass(frozen=True)
class Finding:
    """One thing that speaks against a count.

    Attributes:
        kind: ``leaking``, latents that are not counted and yet carry information; ``shared``,
            latents that are informative for some of the images only; ``folded``, more latents than
            the surface of their codes has dimensions; ``short``, a training that
            ended before its schedule could work, or while the ELBO still rose.
        text: What was found, in a sentence.
        reason: Why it matters, in a sentence.
        latents: Which latents it is about, if any.
        changes: Keys of the run to change, and the values to try.
    """

    kind: Literal["leaking", "shared", "folded", "short"]
    text: str
    reason: str
    latents: tuple[int, ...] = ()
    changes: Mapping[str, float] = field(default_factory=dict)

    @property
    def advised(self) -> list[str]:
        """What to try, ``key=value`` each; none where nothing is known to help."""
        return [f"{key}={value:g}" for key, value in self.changes.items()]


@dataclass(frozen=True)
class Verdict:
    """How many latents are informative, and what speaks against it."""

    informative: int
    latent_size: int
    findings: tuple[Finding, ...] = ()

    @property
    def settled(self) -> bool:
        """Whether nothing speaks against the count."""
        return not self.findings

    @property
    def word(self) -> str:
        """``settled``, or the kinds of what was found: ``leaking, short``."""
        return ", ".join(finding.kind for finding in self.findings) or "settled"

    @property
    def leaking(self) -> tuple[int, ...]:
        """Latents that carry information and are not counted."""
        return self._of("leaking")

    @property
    def shared(self) -> tuple[int, ...]:
        """Latents that are informative for some of the images only."""
        return self._of("shared")

    def uncounted(self, probs: Sequence[float]) -> tuple[int, ...]:
        """Latents that carry information and are not counted: they leak, or have less than half."""
        return (*self.leaking, *(k for k in self.shared if not is_informative(probs[k])))

    def _of(self, kind: str) -> tuple[int, ...]:
        return tuple(k for f in self.findings if f.kind == kind for k in f.latents)

    @property
    def count(self) -> str:
        """The count in words: ``7 of 15 latents are informative``."""
        verb = "is" if self.informative == 1 else "are"
        return f"{self.informative} of {self.latent_size} latents {verb} informative"

    def __str__(self) -> str:
        return f"{self.count} ({self.word})"

    def lines(self, option: str = "") -> Iterator[str]:
        """A line for each finding: what, why, and what to try.

        Args:
            option: What stands before each key to change; the command line has ``--set``.
        """
        for finding in self.findings:
            keys = [f"{option} {key}".strip() for key in finding.advised]
            tried = f"; try {', '.join(keys)}" if keys else ""
            yield f"{finding.kind}: {finding.text}; {finding.reason}{tried}"

    def as_dict(self) -> VerdictValues:
        """Plain values, as ``metrics.json`` has them."""
        findings: list[FindingValues] = [
            {
                "kind": f.kind,
                "text": f.text,
                "reason": f.reason,
                "latents": list(f.latents),
                "changes": dict(f.changes),
            }
            for f in self.findings
        ]
        return {"settled": self.settled, "findings": findings}

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any]) -> "Verdict | None":
        """That of ``metrics.json``; None where an older version has written it."""
        found = metrics.get("verdict")
        if found is None:
            return None
        findings = tuple(
            Finding(**{**f, "latents": tuple(f["latents"])}) for f in found["findings"]
        )
        return cls(metrics["informative"], len(metrics["probs"]), findings)


def leaks(found: Mapping[str, Any], selects: bool) -> list[int]:
    """Latents that carry information and are not informative, nor undecided.

    Args:
        found: With ``probs`` and ``variance_of_loc`` of each latent: a row of the history, or
            metrics. Their latents must be no counts, whose rate may vary however it likes.
        selects: Whether p is decided in training; else it is a share of the images.
    """
    most = UNDECIDED[0] if selects else INFORMATIVE
    pairs = zip(found["probs"], found["variance_of_loc"], strict=True)
    return [k for k, (p, variance) in enumerate(pairs) if p <= most and variance > LEAK]


def judge(
    probs: Sequence[float],
    variance_of_loc: Sequence[float],
    *,
    model: ModelSpec,
    selects: bool,
    steps: int,
    history: Sequence[Mapping[str, Any]] = (),
    discrete: bool = False,
    precision: Sequence[float] | None = None,
    scale: float | None = None,
    dimension: float | None = None,
) -> Verdict:
    """What speaks against a count of informative latents.

    Args:
        probs: p of each latent, mean of the images; informative above 1/2.
        variance_of_loc: Variance of the posterior mean of each latent over the images.
        model: What the model is, for what would help.
        selects: Whether the guide has a schedule of moves that select latents.
        steps: How many steps it was trained for.
        history: Rows with ``step`` and ``loss`` (-ELBO, nats per image), of the training.
        discrete: Whether latents are counts, whose rate may vary however it likes.
        precision: Mean posterior precision of each latent; by default that of the prior, 1.
        scale: Standard deviation of a pixel in the gaussian likelihood, in units of the images.
        dimension: That of the surface on which the means of the informative latents lie.
    """
    count = sum(map(is_informative, probs))
    findings = []
    low, high = UNDECIDED
    shared = [k for k, p in enumerate(probs) if low < p < high] if selects else []
    leaking = leaks({"probs": probs, "variance_of_loc": variance_of_loc}, selects)
    if leaking and not discrete:
        # What a Gaussian of this precision can tell of means of this variance.
        nats = {
            k: 0.5 * math.log1p(variance_of_loc[k] * (precision[k] if precision else 1.0))
            for k in leaking
        }
        findings.append(_leaking(nats, model, selects, scale))
    if shared:
        named = ", ".join(f"z{k} (p {probs[k]:.2f})" for k in shared)
        findings.append(
            Finding(
                "shared",
                f"{named} {'is' if len(shared) == 1 else 'are'} informative for some images only",
                "half latents may stand for one factor together, so that the count is off; train "
                "other seeds and keep the highest ELBO",
                tuple(shared),
            )
        )
    if selects and dimension is not None and count - dimension > FOLDED:
        findings.append(
            Finding(
                "folded",
                f"the codes of the {count} informative latents lie on a surface of "
                f"{dimension:.1f} dimensions",
                "a circle takes two latents, and so may a factor whose images change along a long "
                "arc; count them as one" + DRAW_BETTER * (model.decoder.kind == "mlp"),
            )
        )
    if short := _short(steps, history, selects):
        findings.append(short)
    return Verdict(count, len(probs), tuple(findings))


def _leaking(
    nats: Mapping[int, float], model: ModelSpec, selects: bool, scale: float | None
) -> Finding:
    """Of latents that leak so many nats at most."""
    first = sorted(nats, key=lambda k: -nats[k])
    named = ", ".join(f"z{k} (up to {nats[k]:.2f} nats)" for k in first[:5])
    more = f" and {len(first) - 5} more" if len(first) > 5 else ""
    changes: dict[str, float] = {}
    reason = "without a price of a latent, the count depends on where the line is drawn"
    if selects:
        reason = "a factor worth less than the price of a latent may be missing from the count"
        if scale is not None and not model.likelihood.learned:
            # Rounded, because the scale of the data has more digits than anyone would type.
            changes["model.likelihood.scale"] = float(f"{SHARPER * scale:.2g}")
        elif isinstance(model.prior, NormalGammaPriorSpec):
            changes["model.prior.price"] = SHARPER * model.prior.price
    one = len(nats) == 1
    return Finding(
        "leaking",
        f"{named}{more} {'carries' if one else 'carry'} information and {'is' if one else 'are'} "
        "not counted",
        reason,
        tuple(nats),
        changes,
    )


def _short(steps: int, history: Sequence[Mapping[str, Any]], selects: bool) -> Finding | None:
    expected: int = FitSpec.model_fields["steps"].default
    if selects and steps < expected:
        return Finding(
            "short",
            f"trained for {steps:,} steps, and the schedule was made for {expected:,}",
            "the trials that add and remove latents had too little time to decide",
            changes={"fit.steps": expected},
        )
    # Without the KL of the precisions, whose prior changes in that time (``schedule.slab``).
    losses = [row["loss"] - row["kl"].get("precision", 0.0) for row in history]
    at = [row["step"] for row in history]
    # Between two rows, because a step of the training need not have one.
    before = float(np.interp((1.0 - LAST) * steps, at, losses)) if len(at) > 1 else -math.inf
    if (rise := before - losses[-1] if losses else 0.0) > RISE:
        return Finding(
            "short",
            f"the ELBO still rose by {rise:.1f} nats in the last tenth of the training",
            "what is not learned yet may ask for other latents",
            changes={"fit.steps": 2 * steps},
        )
    return None
