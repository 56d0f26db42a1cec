"""Actions that a training takes once, at a fraction of its steps, such as moves and a rotation.

An action is an object that acts on a :class:`ngvae_pyro.training.trainer.Trainer`. Those of a
schedule come from :func:`actions_of`; ``fit`` takes further ones from the user::

    @dataclass(frozen=True)
    class Report(Action):
        def apply(self, trainer):
            print(trainer.step, trainer.loss())

    ngvae_pyro.fit(model, guide, data, actions=[Report(at=0.5)])

An action requires a capability of the guide and never a class: ``needs`` names what the guide must
be able to do, and is checked before the first step.

Moves between informative and uninformative latents achieve what gradients alone cannot. The price
of an informative latent is flat once the latent is informative, and its relaxation is flat once it
is not, so gradient steps neither switch a redundant latent off nor let a missing one in. A move is
a jump in the parameters, kept only if it pays (like the birth and delete moves for variational
mixtures; Hughes and Sudderth, 2013):

- *birth*. An uninformative latent has precision 1, so it can only carry information through a wide
  loc; the variance of its loc reveals that. The jump divides loc by its standard deviation and
  multiplies the decoder's column by it, which leaves the reconstruction unchanged, and sets
  p near 1, and the latent's own precision to what the leak is worth: the same code, less noise.
- *death*. The jump sets loc to 0 and p near 0, and the decoder's column to 0 (its mean
  contribution goes into the bias). It is tried where latents are more than the dimensions of the
  surface of their codes: of as many each tells something, and a fork could only err.
- *growth*. A factor that no latent tells moves all images away from their reconstructions. A silent
  latent is taught the principal component of these residuals.
- *unfolding*. A factor that is bent over several latents leaves codes on a surface of fewer
  dimensions. The latents are taught as many coordinates of that surface.

The last two, of :mod:`ngvae_pyro.training.lessons`, are no small jumps: encoder and decoder learn
the new codes in some hundred steps of their own before the fork begins.

Training is then forked: a fixed number of steps with and without the jump, on the same batches
and the same noise, and the branch with the higher ELBO on a fixed part of the training data
continues. If that is close and there is time, both are trained for as long again. Leaks are a cheap
way to pay for little, so both branches are judged with each strong one switched on or off, and late
in the training all are ended so (:func:`resolve`).

At the end :mod:`ngvae_pyro.axes` chooses, among coordinates that fit the data equally well, those
in which the informative latents are independent.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ngvae_pyro import axes
from ngvae_pyro.contexts import evaluating, given, given_rows
from ngvae_pyro.errors import UserError, described, expect
from ngvae_pyro.fitted import MoveRecord
from ngvae_pyro.guide import Guide, OwnPrecisions, Relaxable, SwitchableLatents
from ngvae_pyro.latents import LEAK, is_informative
from ngvae_pyro.likelihoods import GaussianLikelihood
from ngvae_pyro.specs import Move, ScheduleSpec
from ngvae_pyro.specs.schedule import MoveKind
from ngvae_pyro.training.lessons import (
    FEWEST,
    STEPS,
    coordinates,
    lesson_steps,
    missing,
    residuals,
    teach,
)
from ngvae_pyro.verdict import FOLDED

if TYPE_CHECKING:
    from ngvae_pyro.training.trainer import Trainer

# Images from whose codes new coordinates are found; this many because the error of a correlation
# over N images is 1 / sqrt(N) for each of the M (M - 1) / 2 pairs of M latents. And how many of
# them are encoded together.
LOOK_AT, LOOK_IMAGES = 20_000, 1024

# Variance of a leak's loc above which it may be worth an informative latent; up to there the factor
# is worth two nats.
WORTH_A_TRIAL = 1.0

# Nats from which a direction of the residuals is worth a trial: half of what an informative latent
# costs, because what a factor does to the images lies along several directions.
WORTH_A_BEGINNING = 6.0

# Nats by which one branch has to be ahead of the other, or both go into overtime.
CLOSE = 3.0

# The losses of a move before its fork.
UNKNOWN = math.nan, math.nan

# The fit of the precisions: steps of Adam, its learning rate, and images in each. The factor on a
# rate changes by up to freedom times the learning rate in a step, 12 %.
PRECISION_STEPS, PRECISION_RATE, PRECISION_IMAGES = 60, 0.02, 128

# Largest cost of a change of coordinates, in nats per image: a twentieth of an informative latent.
FREE = 0.5


@dataclass(frozen=True)
class Action(ABC):
    """Something that a training does once.

    A resumed training takes the actions that were not taken yet; its checkpoints identify actions
    by their ``repr``, which therefore has to describe them completely.

    Args:
        at: When, as a fraction of the steps of the training.
    """

    at: float

    # The capability that the guide must have.
    needs: ClassVar[type] = Guide

    @abstractmethod
    def apply(self, trainer: "Trainer") -> None:
        """Act on a training, between two of its steps."""


@dataclass(frozen=True)
class Fork(Action):
    """Train a while with and without a jump, and continue with the branch that has more ELBO.

    Args:
        at: When, as a fraction of the steps of the training.
        kind: What the jump is called.
        steps: How many steps each branch is trained for, and again if that does not decide.
    """

    kind: MoveKind
    steps: int = 100

    def end(self, trainer: "Trainer") -> int:
        """The last step at which a fork may end: before leaks do, which needs time too."""
        last = trainer.spec.steps
        ends = [round(a.at * last) for a in trainer.actions if isinstance(a, Resolve)]
        return min((end for end in ends if end >= self.at * last), default=last)

    def length(self, trainer: "Trainer", step: int) -> int:
        """Steps of a fork that begins at a step."""
        return min(self.steps, self.end(trainer) - step)

    def overtime(self, trainer: "Trainer", step: int) -> int:
        """Steps of an overtime that begins at a step, if it is close: those of a fork, or none.

        None where there is no time for as many, or where forks that it delays would be cut short.
        """
        end = step + self.steps
        due = (a for a in trainer.actions[trainer.acted + 1 :] if isinstance(a, Fork))
        delayed = sum(a.steps for a in due if a.at * trainer.spec.steps < end)
        return self.steps if end + delayed <= self.end(trainer) else 0

    def lesson(self, trainer: "Trainer") -> int:
        """Steps by which the jump trains encoder and decoder, besides those of the fork."""
        return 0

    def later(self, trainer: "Trainer", step: int) -> int:
        """Steps after which the branch without the jump is judged, besides those of the fork.

        As many as the lesson has: a branch must not win because of more steps.
        """
        end = step + self.length(trainer, step)
        return min(self.lesson(trainer), trainer.spec.steps - end)

    def spent(self, trainer: "Trainer", step: int, overtime: bool = False) -> int:
        """Steps of a fork, or of its overtime, from a step on, besides those that train on."""
        lesson = 0 if overtime else self.lesson(trainer)
        return self.length(trainer, step) + lesson + self.later(trainer, step)

    def fork(self, trainer: "Trainer", jump: Callable[[], None], move: MoveRecord) -> MoveRecord:
        """Fork the training at its present step.

        Where the losses differ by less than CLOSE, both branches are trained for as many steps
        again, if there is time, and judged then: what a jump begins with is rough, and gains longer
        than the rest.

        Args:
            trainer: The training, which then continues with the better branch.
            jump: What one of the branches begins with.
            move: The record of the move, whose losses are not known yet.

        Returns:
            The record with the losses, which has also become a part of the fit.
        """
        ends = [trainer.state()] * 2
        rows: tuple[list[Any], list[Any]] = ([], [])
        losses: list[float] = []
        steps = self.length(trainer, trainer.step)
        for name in (str(move), f"{move}, overtime"):
            start, first = ends[0]["step"], not losses
            losses.clear()
            for branch in (0, 1):
                trainer.set_state(ends[branch])
                trainer.bar.trying(name, start, steps, branch)
                if branch and first:
                    jump()
                loss, more = trainer.train_and_judge(steps)
                rows[branch].extend(more)
                ends[branch] = trainer.state()
                if not branch and (later := self.later(trainer, start)):
                    loss, _ = trainer.train_and_judge(later)
                losses.append(loss)
            trainer.fit.extra_steps += self.spent(trainer, start, overtime=not first)
            steps = self.overtime(trainer, ends[0]["step"])
            if not steps or abs(losses[0] - losses[1]) >= CLOSE:
                break
        without, with_it = losses
        record = replace(move, loss_without=without, loss_with=with_it)
        trainer.set_state(ends[record.accepted])
        trainer.fit.moves.append(record)
        trainer.record(rows[record.accepted])
        trainer.moved(record)
        return record


@dataclass(frozen=True)
class Propose(Fork):
    """Fork the training for the most promising latent, and for the next one as long as that pays.

    Args:
        at: When, as a fraction of the steps of the training.
        kind: ``birth`` lets a latent that leaks become informative, ``death`` makes an informative
            one uninformative.
        steps: How many steps each branch of a fork is trained for, and again if that does not
            decide.
    """

    needs = SwitchableLatents

    def apply(self, trainer: "Trainer") -> None:
        tried: set[int] = set()
        while self.length(trainer, trainer.step) > 0:
            if self.kind == "death" and not _are_folded(trainer):
                return
            latents, loc = self.candidates(trainer)
            latents = [k for k in latents if k not in tried]
            if not latents:
                return
            k = latents[0]
            tried.add(k)
            jump = partial(_switch, trainer, k, self.kind == "birth", loc[:, k])
            move = MoveRecord(self.kind, k, trainer.step, *UNKNOWN)
            if not self.fork(trainer, jump, move).accepted:
                return

    @torch.no_grad()
    def candidates(self, trainer: "Trainer") -> tuple[list[int], Tensor]:
        """Latents to try, most promising first, and the posterior means (N, K) of all latents."""
        codes = trainer.codes(trainer.monitor_images)
        informative = codes.informative
        if self.kind == "birth":
            variance = codes.loc.var(0)
            leaks = (~informative & (variance > LEAK)).nonzero().flatten().tolist()
            return sorted(leaks, key=lambda k: -variance[k].item()), codes.loc
        state, harm = trainer.state(), {}
        for k in informative.nonzero().flatten().tolist():
            _switch(trainer, k, False, codes.loc[:, k])
            harm[k] = trainer.loss()
            trainer.set_state(state)
        return sorted(harm, key=harm.__getitem__), codes.loc


@dataclass(frozen=True)
class Unfold(Fork):
    """Replace the informative latents by fewer, where their codes have a smaller dimension.

    The number of latents is the dimension of the codes, rounded, or one more than what was refused
    before; see :mod:`ngvae_pyro.training.lessons`.
    """

    kind: MoveKind = "unfolding"

    needs = SwitchableLatents

    def apply(self, trainer: "Trainer") -> None:
        if self.length(trainer, trainer.step) <= 0:
            return
        found, latents = _dimension(trainer)
        if found is None:
            return
        size = max(1, round(found))
        while size in {move.size for move in trainer.fit.moves if not move.accepted}:
            size += 1
        if size < len(latents):
            jump = partial(self.jump, trainer, latents, size)
            self.fork(trainer, jump, MoveRecord(self.kind, None, trainer.step, *UNKNOWN, size))

    def lesson(self, trainer: "Trainer") -> int:
        return lesson_steps(trainer.spec)

    @torch.no_grad()
    def jump(self, trainer: "Trainer", latents: Tensor, size: int) -> None:
        """Replace latents by the first ``size`` of them."""
        guide = trainer.guide
        assert isinstance(guide, SwitchableLatents)
        loc, precision, _ = _look(trainer)
        own = precision[latents]
        with trainer.fixed_noise():
            steps = min(STEPS, trainer.spec.steps)
            found = coordinates(loc[:, latents], own, size, steps, trainer.heed)
            found = trainer.team.agreed(found)
            # The linear change of coordinates that is nearest, from which the lesson begins.
            centred = loc[:, latents] - loc[:, latents].mean(0)
            change = trainer.team.agreed(torch.linalg.lstsq(centred, found).solution.T)
            guide.recombine(trainer.model.decoder, latents, change, own)
            codes = loc.index_fill(1, latents, 0.0).index_copy(1, latents[:size], found)
            data = trainer.batches.data
            teach(trainer, data.images[: len(loc)], codes, data.covariates)


@dataclass(frozen=True)
class Grow(Fork):
    """Let a latent begin with what the reconstructions miss, and the next one as long as that pays.

    Its codes are the scores of the principal component of the residuals, if that is worth half of
    what an informative latent costs; see :mod:`ngvae_pyro.training.lessons`.
    """

    kind: MoveKind = "growth"

    needs = SwitchableLatents

    def apply(self, trainer: "Trainer") -> None:
        while self.length(trainer, trainer.step) > 0:
            worth, direction = missing(trainer)
            codes = trainer.codes(trainer.monitor_images)
            silent = (~codes.informative).nonzero().flatten().tolist()
            if not (silent and worth >= WORTH_A_BEGINNING):
                return
            k = min(silent, key=lambda k: codes.loc[:, k].var().item())
            jump = partial(self.jump, trainer, k, worth, direction)
            move = MoveRecord(self.kind, k, trainer.step, *UNKNOWN)
            if not self.fork(trainer, jump, move).accepted:
                return

    def lesson(self, trainer: "Trainer") -> int:
        return lesson_steps(trainer.spec)

    @torch.no_grad()
    def jump(self, trainer: "Trainer", latent: int, worth: float, direction: Tensor) -> None:
        """Teach latent k the scores (N,) of a direction of the residuals."""
        loc, _, _ = _look(trainer)
        data = trainer.batches.data
        parts = data.in_parts(LOOK_IMAGES, trainer.device, len(loc))
        scores = torch.cat([residuals(trainer, x)[0] @ direction for x in parts])
        scores = trainer.team.agreed((scores - scores.mean()) / scores.std())
        _switch(trainer, latent, False, loc[:, latent])
        # As if it had leaked what it is worth: (1 + v)^2 = 2 worth.
        _switch(trainer, latent, True, scores * math.sqrt(math.sqrt(2.0 * worth) - 1.0))
        with trainer.fixed_noise():
            loc[:, latent] = scores
            teach(trainer, data.images[: len(loc)], loc, data.covariates)


def resolve(trainer: "Trainer", least: float) -> None:
    """Make each latent that leaks informative or the prior, whichever has the higher ELBO.

    An uninformative latent can carry information through a wide loc, and that is cheap: variance v
    costs v / 2 nats, and leaves the share 1 / (1 + v) of what the factor is worth. A factor would
    have to be worth 55 nats before an informative latent, at about 10, is the better buy. So a leak
    is never what a latent is left with: either it pays the price or it falls silent.

    Args:
        trainer: The training.
        least: Variance of loc from which a latent leaks.
    """
    codes = trainer.codes(trainer.monitor_images)
    variance = codes.loc.var(0)
    leaks = (~codes.informative & (variance > least)).nonzero().flatten().tolist()
    for k in sorted(leaks, key=lambda k: -variance[k].item()):
        loc, before = codes.loc[:, k], trainer.state()
        _switch(trainer, k, False, loc)
        if variance[k] <= WORTH_A_TRIAL:
            continue
        off, silent = trainer.loss(), trainer.state()
        trainer.set_state(before)
        _switch(trainer, k, True, loc)
        if off <= trainer.loss():
            trainer.set_state(silent)


@dataclass(frozen=True)
class Resolve(Action):
    """End all leaks: each latent is informative from now on, for all images, or is the prior."""

    needs = SwitchableLatents

    @torch.no_grad()
    def apply(self, trainer: "Trainer") -> None:
        guide = trainer.guide
        assert isinstance(guide, SwitchableLatents)
        codes = trainer.codes(trainer.monitor_images)
        # On data that hardly vary, no more of them would be tried than there are moves. Variance
        # times precision is the signal-to-noise ratio.
        faint = codes.informative & (codes.loc.var(0) * codes.precision.mean(0) < LEAK)
        for k in faint.nonzero().flatten().tolist():
            _switch(trainer, k, False, codes.loc[:, k])
        resolve(trainer, least=0.0)
        codes = trainer.codes(trainer.monitor_images)
        latents = codes.informative.nonzero().flatten()
        same = torch.eye(len(latents), device=trainer.device)
        precision = codes.precision.mean(0)[latents]
        trainer.forget(guide.recombine(trainer.model.decoder, latents, same, precision))
        # Where a decoder cannot draw the images, leaks would grow anew.
        guide.seal()


@dataclass(frozen=True)
class Rescale(Action):
    """Set a scale of the likelihood that comes from the data to the noise that is left.

    It is that of x - decoder(loc), or the resolution of the data where that is larger
    (:func:`ngvae_pyro.likelihoods.resolution`): without the floor, what a decoder cannot draw of
    noiseless images would be worth more and more nats, and latents. What it is is said by the
    likelihood's ``rescale``, for the gaussian the root mean square. With validation images it is
    theirs (where each value has a scale, if there are FEWEST of them): of few training images the
    reconstructions leave less than of others, and at a scale that is too fine what does not hold
    for others is worth learning.
    """

    @torch.no_grad()
    def apply(self, trainer: "Trainer") -> None:
        likelihood = trainer.model.likelihood
        if not isinstance(likelihood, GaussianLikelihood):
            return
        x, design = trainer.monitor_images, trainer.monitor_design
        others = trainer.validation_images
        if others is not None and (likelihood.log_scale.numel() == 1 or len(others) >= FEWEST):
            x, design = others, trainer.validation_design
        with given(design):
            codes = trainer.codes(x)
            with evaluating(trainer.model):
                residuals = x - trainer.model.decoder(codes.loc)
        if (scale := likelihood.rescale(residuals)) is not None:
            likelihood.log_scale.copy_(trainer.team.agreed(scale).log())


@dataclass(frozen=True)
class Rotate(Action):
    """Rotate the informative latents to independent components, where that is free.

    Their precisions do not depend on the image, so a rotation, with the precisions that it leads
    to, hardly changes the ELBO. If it costs more than FREE nats they are only made uncorrelated,
    and if that does too they stay as they are; Gaussian latents can only be made uncorrelated.
    """

    needs = SwitchableLatents

    @torch.no_grad()
    def apply(self, trainer: "Trainer") -> None:
        guide = trainer.guide
        assert isinstance(guide, SwitchableLatents)
        codes, precisions, latents = _look(trainer)
        if not 2 <= len(latents) <= axes.MOST:
            return
        loc, precision = codes[:, latents].double().cpu().numpy(), precisions[latents]
        if (found := axes.find(loc)) is None:
            return
        changes: dict[axes.Attempt, np.ndarray] = {"uncorrelated": found.uncorrelated}
        if found.found:
            changes = {"independent": found.change, **changes}
        before, loss = trainer.state(), trainer.loss()
        costs: dict[axes.Attempt, float] = {}
        outcome: axes.Outcome
        for outcome, change in changes.items():
            matrix = trainer.team.agreed(torch.tensor(change).to(codes))
            trainer.forget(guide.recombine(trainer.model.decoder, latents, matrix, precision))
            costs[outcome] = trainer.loss() - loss
            if costs[outcome] <= FREE:
                break
            trainer.set_state(before)
        else:
            outcome, change = "kept", np.eye(len(latents))
        tried, cost = next(iter(costs.items()))
        trainer.fit.rotation = axes.Rotation.of(
            loc @ change.T, trainer.step, latents.tolist(), outcome, tried, cost
        )


@dataclass(frozen=True)
class FitPrecisions(Action):
    """Fit the precisions of the informative latents to the ELBO, with all else as it is.

    While latents are selected, a low precision is dear under the prior's slab, and those of strong
    and of weak latents end near 6,000. Now that the slab is flat each gets what its images tell, by
    Adam on the K numbers, of which the ELBO is a smooth function.
    """

    def apply(self, trainer: "Trainer") -> None:
        guide = trainer.guide
        if not isinstance(guide, OwnPrecisions):
            return
        own, x = guide.log_factor, trainer.monitor_images
        latents = trainer.codes(x).informative
        optimizer = torch.optim.Adam([found := own.detach().clone()], PRECISION_RATE)
        with trainer.fixed_noise(), evaluating(trainer.model, guide):
            for step in range(PRECISION_STEPS):
                trainer.heed()
                index = torch.randperm(len(x))[:PRECISION_IMAGES].to(x.device)
                few = x[index]
                with given_rows(index), torch.enable_grad():
                    loss = trainer.elbo.differentiable_loss(trainer.model, guide, few) / len(few)
                (gradient,) = torch.autograd.grad(loss, own, allow_unused=True)
                if gradient is None:
                    # A guide of another posterior, which has the numbers and does not use them.
                    return
                optimizer.param_groups[0]["lr"] = PRECISION_RATE * (1.0 - step / PRECISION_STEPS)
                found.grad = trainer.team.agreed(gradient * latents)
                optimizer.step()
                own.detach().copy_(found)
        trainer.forget([(own, ...)])


@dataclass(frozen=True)
class BecomeExact(Action):
    """Let a guide leave the relaxation with which its training began."""

    needs = Relaxable

    @torch.no_grad()
    def apply(self, trainer: "Trainer") -> None:
        assert isinstance(trainer.guide, Relaxable)
        trainer.forget(trainer.guide.become_exact())


def actions_of(schedule: ScheduleSpec) -> list[Action]:
    """The actions of a schedule, in the order in which it declares them."""
    actions: list[Action] = [Rescale(at) for at in schedule.rescale]
    actions += map(_action_of, schedule.moves)
    if schedule.silence < 1.0:
        actions.append(Resolve(schedule.silence))
    if schedule.independent < 1.0:
        actions += [Rotate(schedule.independent), FitPrecisions(schedule.independent)]
    if schedule.exact > 0.0:
        actions.append(BecomeExact(schedule.exact))
    return actions


def _action_of(move: Move) -> Fork:
    if move.kind == "unfolding":
        return Unfold(move.at, steps=move.steps)
    if move.kind == "growth":
        return Grow(move.at, steps=move.steps)
    return Propose(move.at, move.kind, move.steps)


def check_actions(actions: Iterable[Any], guide: Guide) -> None:
    """Refuse objects that are not actions, are never due, or need a capability the guide lacks.

    Raises:
        UserError: For the first of them.
    """
    actions = list(actions)
    for action in actions:
        expect("actions", action, Action, "objects of subclasses of ngvae_pyro.actions.Action")
        if not (isinstance(action.at, int | float) and 0.0 <= action.at <= 1.0):
            raise UserError(
                f"actions: at: expected a fraction in [0, 1], got {described(action.at)}"
            )
        if not isinstance(guide, action.needs):
            raise UserError(
                f"actions: a {type(action).__name__} needs a guide that is "
                f"{action.needs.__name__}, got {type(guide).__name__}"
            )
    silences = [a.at for a in actions if isinstance(a, Resolve)]
    for action in actions:
        if isinstance(action, Grow) and silences and action.at >= min(silences):
            raise UserError(
                f"schedule.moves: a growth at {action.at:g} comes when silent latents are sealed; "
                f"expected it before schedule.silence, {min(silences):g}"
            )


@torch.no_grad()
def _look(trainer: "Trainer", count: int = LOOK_AT) -> tuple[Tensor, Tensor, Tensor]:
    """Posterior means (N, K), mean precisions (K,) and the indices (M,) of informative latents."""
    parts = trainer.batches.data.in_parts(LOOK_IMAGES, trainer.device, count)
    codes = [trainer.codes(x) for x in parts]
    probs = torch.cat([code.probs for code in codes]).mean(0)
    latents = is_informative(probs).nonzero().flatten()
    precision = torch.cat([code.precision for code in codes]).mean(0)
    return torch.cat([code.loc for code in codes]), precision, latents


def _dimension(trainer: "Trainer") -> tuple[float | None, Tensor]:
    """Dimension of the informative latents' codes, if that can be told, and their indices (M,)."""
    # Imported only when needed, because importing scikit-learn takes a second.
    from ngvae_pyro.dimension import CODES, of_codes

    loc, _, latents = _look(trainer, CODES)
    return trainer.team.agreed(of_codes(loc[:, latents])), latents


def _are_folded(trainer: "Trainer") -> bool:
    found, latents = _dimension(trainer)
    return found is not None and len(latents) - found > FOLDED


def _switch(trainer: "Trainer", latent: int, on: bool, loc: Tensor) -> None:
    guide = trainer.guide
    assert isinstance(guide, SwitchableLatents)
    trainer.forget(guide.switch(trainer.model.decoder, latent, on, loc))
