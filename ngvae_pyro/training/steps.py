"""How an optimizer step is carried out: gradients, clipping, Adam, and how they are recorded.

Everything that changes from step to step is a tensor on the device: the position, a row of a table
with the learning rates and the weights of the schedule, and the batch at that position. So a step
consists of the same tensor operations every time, and after some ordinary ("literal") steps it is
recorded: on a CPU as a :class:`~ngvae_pyro.training.program.Program`, on CUDA as a graph of that
program, which is launched by one call. Nothing is read back from a GPU unless it is requested.

Whether the operations really are the same every time depends on model and guide, which may be the
user's own. So two literal steps are recorded and compared, and from then on a replayed step is
compared with a literal one now and then. Every recording is one of the training's steps, so a model
that counts its calls counts them as without recordings, until the comparison detects it.
"""

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from ngvae_pyro.data.batches import Batches
from ngvae_pyro.errors import Notice
from ngvae_pyro.specs import FitSpec
from ngvae_pyro.training.program import Program, Recording, difference, same_values

# Literal steps before a recording, enough for optimizer and kernels to allocate what they need on
# first use.
WARM_UP = 10
# Two recordings take a second or two, which pays off after some hundred steps.
PAYS_FROM = 300
# A replayed step is compared with a literal one at 1, 2, 4, ... steps after a recording and then at
# this interval, which makes a training less than 1 % longer.
COMPARED_EVERY = 512
# Steps of a recorded program on the stream of a CUDA graph before its capture, as torch requires.
CAPTURE_AFTER = 3
# Number of rows of the schedule that are on the device at a time.
ROWS = 4096

# What a parameter is called that belongs to neither model nor guide.
OF_THE_OBJECTIVE = "the objective"

# A loss and its gradients with respect to the parameters.
Gradients = tuple[Tensor | None, ...]
# States of generators, and tensors with their values.
State = tuple[list[Tensor], list[tuple[Tensor, Tensor]]]


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient became NaN or infinite; parameters are those before that step.

    Args:
        step: The step.
        loss: Its loss.
        norm: Norm of its gradient.
        where: The first parameter whose gradient is not finite, if that is known.
        hint: What to try.
    """

    def __init__(
        self,
        step: int,
        loss: float,
        norm: float,
        where: str | None = None,
        hint: str = "try a smaller fit.learning_rate, such as a tenth of it",
    ) -> None:
        first = f", first that of {where}" if where else ""
        super().__init__(
            f"non-finite loss at step {step}: loss {loss:g}, gradient norm {norm:g}{first}; "
            f"the state before that step is kept ({hint})"
        )
        self.step, self.loss, self.norm, self.where, self.hint = step, loss, norm, where, hint

    def advised(self, spec: FitSpec) -> "NonFiniteLoss":
        """The same with what to try, by what was seen, in a training of this spec."""
        if self.step == 0:
            hint = (
                "nothing was learned yet: look for extreme values in the data, or try a larger "
                "model.likelihood.scale"
            )
        else:
            ways = [f"fit.learning_rate={spec.learning_rate / 10:g}"]
            if self.where == OF_THE_OBJECTIVE and spec.adversarial is not None:
                ways = [f"fit.adversarial.learning_rate={spec.adversarial.learning_rate / 10:g}"]
            if spec.network_dtype != "float32":
                ways.insert(0, "fit.network_dtype=float32")
            hint = f"try {', or '.join([*ways, f'fit.clip_norm={spec.clip_norm / 10:g}'])}"
        return type(self)(self.step, self.loss, self.norm, self.where, hint)

    def __reduce__(self) -> tuple[Any, ...]:
        # By default an exception is unpickled with its message as the only argument, which would
        # fail, and a worker process could not report it.
        return type(self), (self.step, self.loss, self.norm, self.where, self.hint)


class Steps:
    """The optimizer steps of one training.

    Args:
        gradients: Gives -ELBO per image of a batch, which is what :meth:`Batches.take` returns, and
            its gradients with respect to the parameters. It reads what it needs of the schedule
            from ``row``.
        parameters: Parameters that are trained.
        optimizer: A fused Adam over them, whose learning rates are in ``row``.
        batches: Batches of images.
        count: Number of steps of the training.
        numbers: Gives the learning rates and weights of a step, N numbers.
        row: Where those of the current step are written, shape (1, N).
        clip_norm: Largest norm of the gradient.
        modules: The modules that the gradients come from, by name.
        key: Gives a value that a recording is valid for: when it changes, a new recording is made.
        fast: Whether to record at all.
    """

    def __init__(
        self,
        gradients: Callable[..., Gradients],
        parameters: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        batches: Batches,
        count: int,
        numbers: Callable[[int], Sequence[float]],
        row: Tensor,
        *,
        clip_norm: float,
        modules: Mapping[str, nn.Module],
        key: Callable[[], Hashable],
        fast: bool,
    ) -> None:
        self.gradients, self.parameters, self.optimizer = gradients, parameters, optimizer
        self.batches, self.count, self.numbers, self.row = batches, count, numbers, row
        self.clip_norm, self.modules, self.key, self.fast = clip_norm, modules, key, fast
        self.device = row.device
        self.capturable = self.device.type == "cuda"
        self.position = torch.zeros(1, dtype=torch.long, device=self.device)
        self.table = row.new_empty(min(ROWS, count), row.shape[1])
        self.tabled = -1
        # Loss and norm of the gradient of the latest step.
        self.latest = torch.zeros(2, dtype=torch.float32, device=self.device)
        # 1 once they were not finite; from then on nothing changes any more.
        self.failed = torch.zeros((), dtype=torch.float32, device=self.device)
        self.next = 0
        self.program: Program | None = None
        # The recording of the program, until it is compared with a second one.
        self.recording: Recording | None = None
        # Whether replayed steps have equalled literal ones to the last bit.
        self.exact = self.device.type == "cpu"
        self.graph: torch.cuda.CUDAGraph | None = None
        self.recorded_for: Hashable = None
        self.since = 0
        # Whether the training that is resumed here had a recording.
        self.had_recording = False

    def state(self) -> dict[str, Any]:
        """The state that determines when to record, for :meth:`set_state`."""
        holds = self.key() == self.recorded_for
        recorded = holds and self.program is not None
        # The count is only of use while a recording is still to be made.
        since = self.since if self.fast and holds and not recorded else 0
        return {"fast": self.fast, "recorded": recorded, "since": since}

    def set_state(self, state: Mapping[str, Any], step: int) -> None:
        """Continue before a step from a state that was saved there.

        Steps that were replayed are replayed again: on a GPU they may differ from literal ones by
        rounding.
        """
        # The code of a network of one's own may be another now.
        self.had_recording = self.fast and state["recorded"]
        self.fast = self.fast and state["fast"]
        self.recorded_for, self.since = self.key(), state["since"]
        if step > 0:
            # Until the next step, evaluations and objectives read the row of the previous one.
            self.row.copy_(self.row.new_tensor([self.numbers(step - 1)]))

    def _forget(self) -> None:
        self.program = self.recording = self.graph = self.recorded_for = None
        self.since, self.exact = 0, self.device.type == "cpu"

    def __call__(self, step: int) -> None:
        """Carry out a step.

        Raises:
            NonFiniteLoss: On a CPU at once; on CUDA it is raised by :meth:`check`.
        """
        if step != self.next:
            self.position.fill_(step)
        self.batches.prepare(step)
        self._tabulate(step)
        # Called in any case, because the call also switches the objective.
        key = self.key()
        if self.fast and key != self.recorded_for:
            self._forget()
            self.recorded_for = key
        # Shapes and supports are checked on the first step; they do not change afterwards.
        with pyro.validation_enabled(step == 0 and not self.had_recording):
            if self.program is None:
                due = self.fast and self._is_due(step)
                self._step(self._record if due else self.gradients)
            elif self.device.type == "cuda":
                self._step_on_cuda(self.program)
            else:
                self._step(self._compare if self._compares else self.program)
        self.since += 1
        self.next = step + 1
        if self.device.type == "cpu":
            self.check()

    def check(self) -> None:
        """Raise if a loss or gradient so far was not finite.

        Raises:
            NonFiniteLoss: For the first of them.
        """
        if self.failed.item():
            loss, norm = self.latest.tolist()
            raise NonFiniteLoss(int(self.position.item()), loss, norm, self._where())

    def _where(self) -> str | None:
        """The first parameter whose gradient is not finite, or None if there is none."""
        for parameter, name in zip(self.parameters, self._names(), strict=True):
            if parameter.grad is not None and not parameter.grad.isfinite().all():
                return name
        return None

    def _names(self) -> list[str]:
        """What the parameters are called."""
        names = {
            id(parameter): f"{part}.{name}"
            for part, module in self.modules.items()
            for name, parameter in module.named_parameters()
        }
        return [names.get(id(parameter), OF_THE_OBJECTIVE) for parameter in self.parameters]

    def _tabulate(self, step: int) -> None:
        """Make sure that the rows of the schedule around a step are on the device."""
        part, rows = step // len(self.table), len(self.table)
        if part != self.tabled:
            steps = range(part * rows, min((part + 1) * rows, self.count))
            numbers = [self.numbers(step) for step in steps]
            self.table[: len(steps)].copy_(self.row.new_tensor(numbers))
            self.tabled = part

    # What a step is --------------------------------------------------------------------------

    def _step(self, gradients: Callable[..., Gradients]) -> None:
        self._read_row()
        self._update(*gradients(*self.batches.take(self.position)))
        self.position += self.failed == 0.0

    def _read_row(self) -> None:
        torch.index_select(self.table, 0, self.position % len(self.table), out=self.row)

    def _update(self, loss: Tensor | None, *gradients: Tensor | None) -> None:
        assert loss is not None
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = torch.nn.utils.get_total_norm([g for g in gradients if g is not None])
        both = torch.stack((loss, norm)).to(self.latest.dtype)
        self.latest.copy_(torch.where(self.failed == 0.0, both, self.latest))
        self.failed.copy_(~self.latest.isfinite().all())
        # The kernel of a fused Adam can divide gradients and skip steps, as for mixed precision, so
        # that clipping needs no separate pass over the gradients.
        optimizer: Any = self.optimizer
        optimizer.grad_scale = (both[1] / self.clip_norm).clamp(min=1.0)
        optimizer.found_inf = self.failed
        optimizer.step()

    # Recording -------------------------------------------------------------------------------

    def _is_due(self, step: int) -> bool:
        """Whether to record now."""
        pays = self.since >= WARM_UP and self.count - step >= PAYS_FROM
        return pays or self.had_recording

    def _record(self, *batch: Tensor) -> Gradients:
        """A literal step, recorded."""
        goes_on, self.had_recording = self.had_recording, False
        before = self._state()
        if goes_on:
            # On the first call in a process Pyro registers the parameters, which must not be
            # recorded as part of a step.
            self.gradients(*batch)
            self._set_state(before)
        plain = self._plain()
        recording = Recording(self.gradients, *batch)
        if reason := recording.obstacle or _change(plain, self._plain()):
            self.fall_back(reason)
            return recording.results
        self.recording, self.program, self.since = recording, Program(recording), 0
        if self.device.type == "cuda":
            self._stream = torch.cuda.Stream(self.device)
            if transfers := self.program.transfers:
                self._do_without_graph(f"{transfers[0]} copies between devices")
        if goes_on:
            # In the training that is resumed here this step was replayed.
            self._set_state(before)
            return self.program(*batch)
        return recording.results

    @property
    def _compares(self) -> bool:
        """Whether the next step is compared with a literal one: at 1, 2, 4, ... and then rarely."""
        return self.since & (self.since - 1) == 0 or self.since % COMPARED_EVERY == 0

    def _compare(self, *batch: Tensor) -> Gradients:
        """A literal step and its replay; if the two differ, this is the end of recordings.

        The first literal step after a recording is recorded as well, and the recordings compared.
        """
        assert self.program is not None
        first, self.recording = self.recording, None
        before, plain = self._state(), self._plain()
        reason = None
        if first is None:
            literal = self.gradients(*batch)
        else:
            second = Recording(self.gradients, *batch)
            literal = second.results
            reason = second.obstacle or difference(first, second)
        reason = reason or _change(plain, self._plain())
        if reason is None:
            after = self._state()
            self._set_state(before)
            replayed = self.program(*batch)
            summands = batch[0].numel()
            reason = self._unlike(literal, after, replayed, self._state(), summands)
            if reason is None:
                return replayed
            self._set_state(after)
        if self.since > 1:
            steps = min(self.since // 2, COMPARED_EVERY)
            reason += f"; {steps} steps ago that was not yet so"
        self.fall_back(reason)
        return literal

    def _state(self) -> State:
        """The side effects of computing gradients: generators, and tensors that are written to."""
        generators = [torch.get_rng_state()]
        if self.device.type == "cuda":
            generators.append(torch.cuda.get_rng_state(self.device))
        tensors = [buffer for module in self.modules.values() for buffer in module.buffers()]
        if self.program is not None:
            tensors += self.program.written
        return generators, [(tensor, tensor.detach().clone()) for tensor in tensors]

    def _set_state(self, state: State) -> None:
        generators, tensors = state
        torch.set_rng_state(generators[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(generators[1], self.device)
        with torch.no_grad():
            for tensor, value in tensors:
                tensor.copy_(value)

    def _unlike(
        self, literal: Gradients, after: State, replayed: Gradients, now: State, summands: int
    ) -> str | None:
        """How a replayed step differs from the literal one, or None if it does not.

        On a CPU they are the same to the last bit. A GPU may choose other kernels, and older
        versions of torch record some gradients as explicit formulas: then they may differ as much
        as sums of ``summands`` numbers in another order, in the norm by the square root of
        ``summands`` times the resolution of a number.
        """
        assert self.program is not None
        of = [f"the gradient of {name}" for name in self._names()]
        pairs = list(zip(["the loss", *of], replayed, literal, strict=True))
        pairs += [("a buffer", a[1], b[1]) for a, b in zip(now[1], after[1], strict=True)]
        noise = [("the noise", a, b) for a, b in zip(now[0], after[0], strict=True)]
        unlike = [pair for pair in pairs + noise if not same_values(pair[1], pair[2])]
        if unlike and (self.since == 1 or not self.exact):
            self.exact = False
            tolerance = self.program.eps * summands**0.5
            unlike = [pair for pair in pairs if not _close(pair[1], pair[2], tolerance)]
        if not unlike:
            return None
        name, recorded, now_ = unlike[0]
        if name == "the loss" and recorded is not None and now_ is not None:
            what = f"the loss of a batch is {recorded:.9g} as recorded, and {now_:.9g} now"
        else:
            what = f"{name} is not the same as recorded"
        return f"{what}; model, guide or objective have changed in something that is not a tensor"

    def _plain(self) -> dict[str, Hashable]:
        """The attributes of model and guide that are not tensors."""
        return {
            f"{part}.{name}.{key}".replace("..", "."): _plain(value)
            for part, module in self.modules.items()
            for name, owner in module.named_modules()
            for key, value in vars(owner).items()
        }

    def _step_on_cuda(self, program: Program) -> None:
        """A recorded step on the stream of its graph, or that graph."""
        if self._compares:
            self._on_side_stream(partial(self._step, self._compare))
            return
        if self.graph is None and self.capturable and self.since > CAPTURE_AFTER:
            self._capture(program)
        if self.graph is not None:
            self.graph.replay()
        else:
            self._on_side_stream(partial(self._step, program))

    def _capture(self, program: Program) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._step(program)
        # CUDA refuses to capture the step; it continues as a recorded program.
        except RuntimeError as error:
            self._do_without_graph(str(error).splitlines()[0])
        else:
            self.graph = graph

    def _do_without_graph(self, reason: str) -> None:
        warnings.warn(f"the training step is no CUDA graph: {reason}", Notice, stacklevel=2)
        self.capturable = False

    def _on_side_stream(self, step: Callable[[], None]) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            step()
        torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def fall_back(self, reason: str) -> None:
        """Continue without recordings, and warn about it."""
        warnings.warn(f"training goes step by step, unrecorded: {reason}", Notice, stacklevel=2)
        self._forget()
        self.fast = False


def _close(a: Tensor | None, b: Tensor | None, tolerance: float) -> bool:
    """Whether the norm of the difference is small relative to the norm of ``b``."""
    if a is None or b is None or a.shape != b.shape:
        return a is b
    a, b = a.double(), b.double()
    # A loss of nearly 0 is a difference of terms of some nats.
    return bool((a - b).norm() <= tolerance * (b.norm() if b.dim() else b.abs().clamp(min=1.0)))


def _change(before: Mapping[str, Hashable], after: Mapping[str, Hashable]) -> str | None:
    """An attribute that a literal step has changed and that a recording would not change."""
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            return f"{name} changes in a step and is not a tensor (a buffer would be recorded)"
    return None


def _plain(value: object, holders: tuple[int, ...] = ()) -> Hashable:
    """Hashable form of numbers, texts, arrays and containers of them; None for anything else."""
    if isinstance(value, bool | int | float | complex | str | bytes):
        # As text, because NaN is not equal to itself.
        return repr(value)
    if isinstance(value, np.ndarray | np.generic):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, Mapping | list | tuple | set | frozenset) and id(value) not in holders:
        holders = (*holders, id(value))
        items = value.items() if isinstance(value, Mapping) else value
        return tuple(_plain(item, holders) for item in items)
    return None
