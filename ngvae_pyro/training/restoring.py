"""Checks that a checkpoint can belong to the training that resumes from it, before it is restored.

Its hashes reveal damage, but not who wrote them: whoever changes a checkpoint can recompute them.
So a checkpoint has to be a state that the training could be in: positions in range and consistent
with each other, tensors of the right names, shapes and types, finite. A change within these bounds
(of a weight, or of a loss in the history) cannot be told from the training's own state.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ngvae_pyro.errors import UserError
from ngvae_pyro.guide import Relaxable
from ngvae_pyro.latents import is_informative
from ngvae_pyro.records import Position, SavedMove
from ngvae_pyro.specs import parse
from ngvae_pyro.training.actions import BecomeExact, Fork
from ngvae_pyro.training.checkpoints import OPTIMIZER, STATE, WEIGHTS, Snapshot

if TYPE_CHECKING:
    from ngvae_pyro.training.trainer import Trainer

MOMENTS = {"step", "exp_avg", "exp_avg_sq"}
# A mean of numbers in [0, 1] may exceed them by its rounding.
ROUNDING = 1e-3


def check(trainer: "Trainer", snapshot: Snapshot) -> None:
    """Refuse a snapshot that is not a possible state of a training.

    Args:
        trainer: The training, at its beginning.
        snapshot: The contents of a checkpoint.

    Raises:
        UserError: For the first contradiction.
    """
    position: Position = parse(Position, snapshot.position, f"{snapshot.source / STATE}: position")
    own, kept = snapshot.own, snapshot.kept
    if kept is None:
        # Then nothing may be named as if there were.
        own = snapshot
    for name, problems in (
        (STATE, _of_position(trainer, position)),
        (WEIGHTS, _of_weights(trainer, own.weights)),
        (OPTIMIZER, _of_optimizer(trainer, own.optimizer, position.step)),
        (WEIGHTS, _of_weights(trainer, kept.weights) if kept else ()),
        (OPTIMIZER, _of_optimizer(trainer, kept.optimizer, kept.step) if kept else ()),
    ):
        for problem in problems:
            raise UserError(f"{snapshot.source / name}: {problem}")


def _of_position(trainer: "Trainer", position: Position) -> Iterator[str]:
    """The contradictions in a position."""
    last, actions = trainer.spec.steps, trainer.actions
    if position.step > last:
        yield f"position.step: expected at most fit.steps = {last}, got {position.step}"
    if position.acted > len(actions):
        yield f"position.acted: expected at most {len(actions)} actions, got {position.acted}"
    for number, action in enumerate(actions):
        due = min(action.at * last, last)
        if number < position.acted and position.step < due:
            yield f"position.acted: action {number} is done, but not due until step {due:g}"
        # Only forks, which count as extra steps, skip the step at which an action is due, and a
        # training that was stopped does.
        late = position.extra_steps + position.skipped
        if number >= position.acted and position.step - due >= 1 + late:
            yield f"position.acted: action {number} was due at step {due:g}, and is not done"
    if position.skipped > position.step:
        yield f"position.skipped: expected at most {position.step}, got {position.skipped}"
    if position.exact != _exact(trainer, position.acted):
        yield f"position.exact: is {position.exact} after {position.acted} actions"
    if (kept := position.kept) is not None:
        if kept.step > position.step:
            yield f"position.kept.step: expected at most {position.step}, got {kept.step}"
        if kept.acted > position.acted:
            yield f"position.kept.acted: expected at most {position.acted}, got {kept.acted}"
        if kept.exact != _exact(trainer, kept.acted):
            yield f"position.kept.exact: is {kept.exact} after {kept.acted} actions"
    steps = position.steps
    if (steps.fast and not trainer.spec.fast) or (not steps.fast and steps.recorded):
        yield f"position.steps: is fast = {steps.fast} and recorded = {steps.recorded}"
    if steps.since > position.step + position.extra_steps:
        yield f"position.steps.since: expected at most {position.step}, got {steps.since}"
    yield from _of_history(trainer, position, len(actions))
    yield from _of_moves(trainer, position.moves, position)
    if (rotation := position.rotation) is not None:
        if (step := rotation["step"]) > position.step:
            yield f"position.rotation.step: expected at most {position.step}, got {step}"
        if max(rotation["latents"]) >= trainer.model.latent_size:
            yield f"position.rotation.latents: expected below {trainer.model.latent_size}"


def _exact(trainer: "Trainer", acted: int) -> bool:
    """Whether the guide is exact once so many actions are done."""
    relaxed = any(isinstance(action, BecomeExact) for action in trainer.actions[acted:])
    return isinstance(trainer.guide, Relaxable) and not relaxed


def _of_history(trainer: "Trainer", position: Position, actions: int) -> Iterator[str]:
    rows, size = position.history, trainer.model.latent_size
    steps = [row.step for row in rows]
    if steps != sorted(set(steps)) or steps[0] != 0:
        yield f"position.history: expected steps that rise from 0, got {steps}"
    if steps[-1] > position.step:
        yield f"position.history: ends at step {steps[-1]}, the training at {position.step}"
    if steps[-1] == trainer.spec.steps and position.acted < actions:
        yield f"position.history: ends before {actions - position.acted} actions are done"
    for number, row in enumerate(rows):
        key = f"position.history.{number}"
        if len(row.probs) != size:
            yield f"{key}.probs: expected {size} numbers, got {len(row.probs)}"
        if not all(-ROUNDING <= p <= 1 + ROUNDING for p in row.probs):
            yield f"{key}.probs: expected numbers in [0, 1]"
        if row.informative != sum(map(is_informative, row.probs)):
            yield f"{key}.informative: expected as many as have p above 0.5, got {row.informative}"
        if (row.validation_loss is None) != (trainer.validation is None):
            expected = "none" if trainer.validation is None else "a number"
            yield f"{key}.validation_loss: expected {expected}, got {row.validation_loss}"
        if row.kl.keys() != rows[0].kl.keys() or "z" not in row.kl:
            yield f"{key}.kl: expected the same sites in all rows, z among them, got {[*row.kl]}"


def _of_moves(trainer: "Trainer", moves: Sequence[SavedMove], position: Position) -> Iterator[str]:
    declared: dict[str, list[Fork]] = {"birth": [], "death": [], "growth": [], "unfolding": []}
    for action in trainer.actions:
        if isinstance(action, Fork):
            declared[action.kind].append(action)
    least = most = 0
    for number, record in enumerate(moves):
        key = f"position.moves.{number}"
        if not declared[record.kind]:
            yield f"{key}.kind: the schedule has no {record.kind}"
            return
        missing = "size" if record.kind == "unfolding" else "latent"
        if getattr(record, missing) is None:
            yield f"{key}.{missing}: expected a number for a {record.kind}, got none"
        for name in ("latent", "size"):
            if (number := getattr(record, name) or 0) >= trainer.model.latent_size:
                yield f"{key}.{name}: expected below {trainer.model.latent_size}, got {number}"
        if record.step > position.step:
            yield f"{key}.step: expected at most {position.step}, got {record.step}"
        spent = [m.spent(trainer, record.step) for m in declared[record.kind]]
        # A close decision has overtime, after as many steps as the fork has.
        ends = [(m, record.step + m.length(trainer, record.step)) for m in declared[record.kind]]
        again = [max(0, m.spent(trainer, end, overtime=True)) for m, end in ends]
        least, most = least + min(spent), most + max(map(sum, zip(spent, again, strict=True)))
    if not least <= position.extra_steps <= most:
        expected = f"{least}" if least == most else f"{least} to {most}"
        yield (
            f"position.extra_steps: expected {expected} for {len(moves)} moves, "
            f"got {position.extra_steps}"
        )


def _of_weights(trainer: "Trainer", found: Mapping[str, Tensor]) -> Iterator[str]:
    expected = {
        f"{part}.{name}": value
        for part, module in (("model", trainer.model), ("guide", trainer.guide))
        for name, value in module.state_dict().items()
    }
    expected |= {f"objective.{i}": value for i, value in enumerate(trainer.own_parameters)}
    yield from _of_names(found, set(expected))
    for name, value in expected.items():
        yield from _of_tensor(name, found[name], value)


def _of_optimizer(trainer: "Trainer", found: Mapping[str, Tensor], step: int) -> Iterator[str]:
    generators = {"rng": torch.device("cpu")}
    if trainer.on_cuda:
        generators["cuda_rng"] = trainer.device
    moments = found.keys() - generators.keys()
    # A parameter that has had no gradient yet has no moments.
    begun = {int(name.partition(".")[0]) for name in moments if name.partition(".")[0].isdecimal()}
    begun &= set(range(len(trainer.parameters)))
    yield from _of_names(found, {*generators, *(f"{i}.{name}" for i in begun for name in MOMENTS)})
    if not begun and step > 0:
        yield f"holds no moments of the optimizer, after {step} steps"
    for i in sorted(begun):
        count = found[f"{i}.step"]
        for name in ("exp_avg", "exp_avg_sq"):
            yield from _of_tensor(f"{i}.{name}", found[f"{i}.{name}"], trainer.parameters[i])
        if (found[f"{i}.exp_avg_sq"] < 0).any():
            yield f"{i}.exp_avg_sq: expected numbers >= 0"
        if count.dim() or not count.is_floating_point() or not 0 <= count.item() <= step:
            yield f"{i}.step: expected one number of 0 to {step}"
    for name, device in generators.items():
        try:
            torch.Generator(device).set_state(found[name])
        except (RuntimeError, TypeError):
            yield f"{name}: is no state of a generator of random numbers"


def _of_names(found: Mapping[str, Tensor], expected: set[str]) -> Iterator[str]:
    for name in sorted(expected - found.keys()):
        yield f"expected a tensor {name}, got none"
    for name in sorted(found.keys() - expected):
        yield f"expected no tensor {name}"


def _of_tensor(name: str, found: Tensor, expected: Tensor) -> Iterator[str]:
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        yield (
            f"{name}: expected {expected.dtype} of shape {tuple(expected.shape)}, got "
            f"{found.dtype} of {tuple(found.shape)}"
        )
    elif not found.isfinite().all():
        yield f"{name}: expected finite numbers; the training has diverged, or it was edited"
