"""Checkpoints of a training, from which it resumes as if it had never been interrupted.

A checkpoint is a folder, ``checkpoints/step-000002000-3``, named by the step and by the number of
actions taken so far, with three files:

- ``weights.safetensors``: model and guide, and the parameters of the objective if it has any;
- ``optimizer.safetensors``: Adam's moments and step counts, and the states of the generators;
- ``state.json``: the position in the data and in the schedule, the history, a description of the
  training (specs, a digest of the images, versions) and the SHA-256 of all of it.

A training that may go back to an earlier state has that too, under names that begin with ``kept.``.
Nothing in it is a pickle, and reading a checkpoint runs no code. It is written under another name,
flushed to the disk and renamed; then the one before it is removed. So the newest checkpoint is
complete at every moment. Only these files are removed, and no link is followed.

The hashes reveal damage and mix-ups. They are not a signature: whoever can write to the folder can
change its contents and recompute them. Such a checkpoint is refused if its training could not be in
that state (:mod:`ngvae_pyro.training.restoring`), and accepted otherwise; so trust a checkpoint
only as far as its folder.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ngvae_pyro import files
from ngvae_pyro.errors import UserError
from ngvae_pyro.extras import needed
from ngvae_pyro.records import State
from ngvae_pyro.specs import parse

with needed("train"):
    from safetensors import SafetensorError
    from safetensors.torch import load, save

# Version of the layout of the files.
FORMAT = 1
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
# What the tensors of a state begin with that a training may go back to.
KEPT = "kept."
_NAME = re.compile(r"step-(\d{9,})-(\d+)")
_PARTIAL = re.compile(r"\.step-\d{9,}-\d+\.partial")
_FILES = {str(path) for name in (WEIGHTS, OPTIMIZER, STATE) for path in files.with_partial(name)}


@dataclass(frozen=True)
class Snapshot:
    """A training between two steps.

    ``weights`` and ``optimizer`` are tensors by name. ``position`` holds everything else that
    changes during a training and ``identity`` what does not, both as plain JSON values. ``source``
    is the folder that it was read from, for messages.
    """

    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    position: Mapping[str, Any]
    identity: Mapping[str, Any]
    source: Path = Path()

    @property
    def step(self) -> int:
        """The step that the training has reached."""
        return int(self.position["step"])

    @property
    def kept(self) -> "Snapshot | None":
        """The state that the training may go back to, if there is one; its position is a place."""
        if self.position.get("kept") is None:
            return None
        weights, optimizer = (
            {name.removeprefix(KEPT): t for name, t in tensors.items() if name.startswith(KEPT)}
            for tensors in (self.weights, self.optimizer)
        )
        return replace(self, weights=weights, optimizer=optimizer, position=self.position["kept"])

    @property
    def own(self) -> "Snapshot":
        """The same without the state that the training may go back to."""
        weights, optimizer = (
            {name: t for name, t in tensors.items() if not name.startswith(KEPT)}
            for tensors in (self.weights, self.optimizer)
        )
        return replace(self, weights=weights, optimizer=optimizer)

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"step-{self.step:09d}-{self.position['acted']}"


def _copy(tensor: Tensor) -> Tensor:
    # Two names may have one tensor, which the format does not know.
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _canonical(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True, allow_nan=False).encode()


def first_difference(one: object, other: object, key: str = "") -> tuple[str, Any, Any] | None:
    """The first dotted key in which nested tables differ, with both values, or None if equal.

    A value is None if a table has no such key.
    """
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return None if one == other else (key, one, other)
    for name in sorted({*one, *other}):
        dotted = f"{key}.{name}" if key else str(name)
        if found := first_difference(one.get(name), other.get(name), dotted):
            return found
    return None


def is_own(name: str) -> bool:
    """Whether a path in a folder of checkpoints belongs to one; folders end with a slash."""
    folder, slash, file = name.partition("/")
    of_one = _NAME.fullmatch(folder) or _PARTIAL.fullmatch(folder)
    return bool(of_one and slash) and (not file or file in _FILES)


def _contents(folder: Path) -> files.Contents:
    """The contents of the folder of a checkpoint, its own files told from others."""
    return files.contents(folder, lambda name: is_own(f"{folder.name}/{name}"))


class Checkpoints:
    """The checkpoints of one training; the newest one is kept.

    Args:
        folder: Folder of the checkpoints, created when the first is saved.
        every: Number of steps from one to the next.
        appear: Called once, after the first has been saved; returns where the folder is from then
            on.
    """

    def __init__(
        self, folder: str | Path, every: int = 500, appear: Callable[[], Path] | None = None
    ) -> None:
        self.folder, self.every, self.appear = Path(folder), every, appear

    def names(self) -> list[str]:
        """Names of the existing checkpoints, the newest last."""
        if not self.folder.is_dir():
            return []
        found = {path.name: _NAME.fullmatch(path.name) for path in self.folder.iterdir()}
        # A folder that only holds files of others is not a checkpoint.
        whole = {
            name: match.groups()
            for name, match in found.items()
            if match and any((self.folder / name / file).exists() for file in _FILES)
        }
        return sorted(whole, key=lambda name: tuple(map(int, whole[name])))

    def check_links(self) -> None:
        """Make sure that nothing here is a link to another place.

        Raises:
            UserError: If the folder or a part of a checkpoint is a link.
        """
        files.check_no_link(self.folder.parent, self.folder.name)
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if is_own(f"{path.name}/"):
                    for name in ("", *_FILES):
                        files.check_no_link(self.folder, f"{path.name}/{name}")

    def clear(self, keep: str | None = None) -> None:
        """Remove all checkpoints but one, and the folder if nothing is left in it."""
        if not self.folder.is_dir():
            return
        for path in sorted(self.folder.iterdir()):
            if path.name != keep and is_own(f"{path.name}/"):
                files.remove(path, _contents)
        if keep is None:
            files.remove(self.folder, lambda folder: files.contents(folder, is_own))

    def save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint and remove the earlier ones.

        Raises:
            UserError: If it cannot be written, or there is a link to another place; the previous
                checkpoint is then still there.
        """
        self.check_links()
        before = self.names()
        consequence = f"; the checkpoint {before[-1]} is kept" if before else ""
        name = snapshot.name
        if name in before:
            # The training resumes from there to this same state: at most an evaluation is between.
            return
        partial = self.folder / f".{name}.partial"
        with files.writing(self.folder, consequence):
            try:
                files.remove(partial, _contents)
                partial.mkdir(parents=True)
                self._write(partial, snapshot)
                partial.rename(self.folder / name)
                files.flush(self.folder)
            finally:
                files.remove(partial, _contents)
        # Earlier ones, and the remains of any that were being written when a process was killed.
        self.clear(keep=name)
        if self.appear is not None:
            self.folder, self.appear = self.appear(), None

    @staticmethod
    def _write(folder: Path, snapshot: Snapshot) -> None:
        contents = {
            name: save({key: _copy(tensor) for key, tensor in tensors.items()})
            for name, tensors in ((WEIGHTS, snapshot.weights), (OPTIMIZER, snapshot.optimizer))
        }
        state: dict[str, Any] = {
            "format": FORMAT,
            "position": snapshot.position,
            "identity": snapshot.identity,
            "sha256": {name: _sha256(content) for name, content in contents.items()},
        }
        state["sha256"][STATE] = _sha256(_canonical(state))
        contents[STATE] = (json.dumps(state, indent=1, allow_nan=False) + "\n").encode()
        for name, content in contents.items():
            files.write(folder / name, content)

    def load(self, identity: Mapping[str, Any]) -> Snapshot:
        """Read the newest checkpoint.

        Args:
            identity: Identity of the training that resumes, which the checkpoint must have.

        Raises:
            UserError: If there is none, it is damaged, it belongs to another training, or there is
                a link to another place. Nothing is changed then.
        """
        self.check_links()
        names = self.names()
        if not names:
            raise UserError(f"{self.folder}: holds no checkpoint to go on from")
        folder = self.folder / names[-1]
        contents = {}
        for name in (STATE, WEIGHTS, OPTIMIZER):
            try:
                if name == STATE:
                    files.check_text(folder / name)
                contents[name] = (folder / name).read_bytes()
            except OSError as error:
                raise UserError(
                    f"{folder / name}: cannot read the file: {error.strerror}"
                ) from None
        state = self._state(folder / STATE, contents[STATE])
        tensors = {}
        for name in (WEIGHTS, OPTIMIZER):
            if _sha256(contents[name]) != state["sha256"].get(name):
                raise UserError(
                    f"{folder / name}: damaged: its SHA-256 is not the one in {STATE}; "
                    "it was cut short, edited or is of another checkpoint"
                )
            try:
                tensors[name] = load(contents[name])
            except SafetensorError as error:
                raise UserError(f"{folder / name}: damaged: {error}") from None
        plain = state["position"], state["identity"]
        found = Snapshot(tensors[WEIGHTS], tensors[OPTIMIZER], *plain, folder)
        if found.name != folder.name:
            raise UserError(f"{folder}: its {STATE} is that of {found.name}")
        if difference := first_difference(found.identity, identity):
            key, there, wanted = difference
            raise UserError(
                f"{folder}: is a checkpoint of a training with {key} = {_shown(there)}, "
                f"not {_shown(wanted)}"
            )
        return found

    @staticmethod
    def _state(path: Path, content: bytes) -> dict[str, Any]:
        """Parse ``state.json``, if it is unchanged since it was written."""
        try:
            state = json.loads(content)
            known = state["format"]
            if known == FORMAT:
                said = state["sha256"].pop(STATE)
                intact = said == _sha256(_canonical(state))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f"{path}: damaged: it is not what was written") from None
        if known != FORMAT:
            raise UserError(
                f"{path}: is of another version of ngvae_pyro (format {known!r}, here {FORMAT})"
            )
        if not intact:
            raise UserError(f"{path}: damaged: its SHA-256 is not the one it states")
        parse(State, state, str(path))
        return dict(state)


def _shown(value: object) -> str:
    return "nothing" if value is None else repr(value)
