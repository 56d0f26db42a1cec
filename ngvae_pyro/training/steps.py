"""How an optimizer step is carried out: gradients, clipping, Adam, and where they are recorded.

All that changes from step to step is a tensor on the device: the position, a row of a table with
the learning rates and the weights of the schedule, and the batch that the position points to. So a
step is the same tensor operations every time, and after some literal ones it is recorded: on a CPU
as a :class:`~ngvae_pyro.program.Program`, on CUDA as a graph of that program, which is launched by
one call. Nothing is read back from a GPU unless it is asked for.

Whether a step is the same operations every time depends on model and guide, which may be anybody's.
So two literal steps are recorded and compared, and from then on a replayed step is compared with a
literal one now and then. Every recording is one of the training's steps, so a model that counts its
calls counts them as it does without recordings until it is found out.
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
from ngvae_pyro.training.program import Program, Recording, difference, same_values

# Literal steps before a recording, enough for optimizer and kernels to have what they allocate on
# first use.
WARM_UP = 10
# Two recordings take a second or two, and pay after some hundred steps.
PAYS_FROM = 300
# A replayed step is compared with a literal one at 1, 2, 4, ... steps after a recording and then
# every so many, for which a training takes less than 1 % longer.
COMPARED_EVERY = 512
# Steps of a recorded program on the stream of a CUDA graph before its capture, as torch asks for.
CAPTURE_AFTER = 3
# Rows of the schedule that are on the device at a time.
ROWS = 4096

# A loss and its gradients by the parameters.
Gradients = tuple[Tensor | None, ...]
# States of generators, and tensors with their values.
State = tuple[list[Tensor], list[tuple[Tensor, Tensor]]]


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient became NaN or infinite; parameters are those before that step."""

    def __init__(self, step: int, loss: float, norm: float) -> None:
        super().__init__(
            f"non-finite loss at step {step}: loss {loss:g}, gradient norm {norm:g}; "
            "the state before that step is kept "
            "(try a smaller fit.learning_rate, such as a tenth of it)"
        )
        self.step, self.loss, self.norm = step, loss, norm

    def __reduce__(self) -> tuple[Any, ...]:
        # By default an exception is unpickled from its message, which is not what it is made of;
        # a worker process could not report it.
        return type(self), (self.step, self.loss, self.norm)


class Steps:
    """The optimizer steps of one training.

    Args:
        gradients: From a batch (B, C, H, W), -ELBO per image and its gradients by the parameters.
            Whatever it needs of the schedule it reads from ``row``.
        parameters: What is trained.
        optimizer: A fused Adam over them, whose learning rates are in ``row``.
        batches: Of images.
        count: How many steps there are.
        numbers: Learning rates and weights of a step, N numbers.
        row: Where those of the present step are put, shape (1, N).
        clip_norm: Largest norm of the gradient.
        modules: By their names, what the gradients come from.
        key: What a recording holds for, besides the tensors: it is made anew when that changes.
        fast: Whether there are recordings at all.
    """

    def __init__(
        self,
        gradients: Callable[[Tensor], Gradients],
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
        # 1 once they were not finite; then nothing is changed any more.
        self.failed = torch.zeros((), dtype=torch.float32, device=self.device)
        self.next = 0
        self.program: Program | None = None
        # What the program is of, until it is compared with a second one.
        self.recording: Recording | None = None
        # Whether replayed steps have been literal ones to the last bit.
        self.exact = self.device.type == "cpu"
        self.graph: torch.cuda.CUDAGraph | None = None
        self.recorded_for: Hashable = None
        self.since = 0
        # Whether a recording was there in the training that goes on here.
        self.had_recording = False

    def state(self) -> dict[str, Any]:
        """What decides over recordings, for :meth:`set_state`."""
        holds = self.key() == self.recorded_for
        recorded = holds and self.program is not None
        # It counts towards a recording, and towards nothing where there is one or none is to be.
        since = self.since if self.fast and holds and not recorded else 0
        return {"fast": self.fast, "recorded": recorded, "since": since}

    def set_state(self, state: Mapping[str, Any], step: int) -> None:
        """Go on before a step as the steps did that were in this state there.

        What was replayed is replayed: on a GPU it may differ from literal steps by rounding.
        """
        self.fast, self.had_recording = state["fast"], state["recorded"]
        self.recorded_for, self.since = self.key(), state["since"]
        if step > 0:
            # What looks and objectives read until the next step is that of the one before.
            self.row.copy_(self.row.new_tensor([self.numbers(step - 1)]))

    def _forget(self) -> None:
        self.program = self.recording = self.graph = self.recorded_for = None
        self.since, self.exact = 0, self.device.type == "cpu"

    def __call__(self, step: int) -> None:
        """Carry out a step.

        Raises:
            NonFiniteLoss: On a CPU at once; on CUDA it is for :meth:`check` to say.
        """
        if step != self.next:
            self.position.fill_(step)
        self.batches.prepare(step)
        self._tabulate(step)
        # Asked for in any case, because the answer also switches the objective.
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
            NonFiniteLoss: With the first of them.
        """
        if self.failed.item():
            raise NonFiniteLoss(int(self.position.item()), *self.latest.tolist())

    def _tabulate(self, step: int) -> None:
        """Have the schedule of a step on the device, and that of those around it."""
        part, rows = step // len(self.table), len(self.table)
        if part != self.tabled:
            steps = range(part * rows, min((part + 1) * rows, self.count))
            numbers = [self.numbers(step) for step in steps]
            self.table[: len(steps)].copy_(self.row.new_tensor(numbers))
            self.tabled = part

    # What a step is --------------------------------------------------------------------------

    def _step(self, gradients: Callable[[Tensor], Gradients]) -> None:
        self._read_row()
        self._update(*gradients(self.batches.take(self.position)))
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
        # The kernel of a fused Adam divides gradients and skips steps, as it does for mixed
        # precision, so that clipping takes no pass over the gradients of its own.
        optimizer: Any = self.optimizer
        optimizer.grad_scale = (both[1] / self.clip_norm).clamp(min=1.0)
        optimizer.found_inf = self.failed
        optimizer.step()

    # Recording -------------------------------------------------------------------------------

    def _is_due(self, step: int) -> bool:
        """Whether to record now."""
        pays = self.since >= WARM_UP and self.count - step >= PAYS_FROM
        return pays or self.had_recording

    def _record(self, x: Tensor) -> Gradients:
        """A literal step, recorded."""
        goes_on, self.had_recording = self.had_recording, False
        before = self._state()
        if goes_on:
            # On the first call of a process Pyro registers the parameters, which is not a step's.
            self.gradients(x)
            self._set_state(before)
        plain = self._plain()
        recording = Recording(self.gradients, x)
        if reason := recording.obstacle or _change(plain, self._plain()):
            self.fall_back(reason)
            return recording.results
        self.recording, self.program, self.since = recording, Program(recording), 0
        if self.device.type == "cuda":
            self._stream = torch.cuda.Stream(self.device)
            if transfers := self.program.transfers:
                self._do_without_graph(f"{transfers[0]} copies between devices")
        if goes_on:
            # In the training that goes on here this step was replayed.
            self._set_state(before)
            return self.program(x)
        return recording.results

    @property
    def _compares(self) -> bool:
        """Whether the next step is compared with a literal one: at 1, 2, 4, ... and then rarely."""
        return self.since & (self.since - 1) == 0 or self.since % COMPARED_EVERY == 0

    def _compare(self, x: Tensor) -> Gradients:
        """A literal step and its replay; where the two are not the same, recordings end with it.

        The first literal step after a recording is recorded as well, and compared with that.
        """
        assert self.program is not None
        first, self.recording = self.recording, None
        before, plain = self._state(), self._plain()
        reason = None
        if first is None:
            literal = self.gradients(x)
        else:
            second = Recording(self.gradients, x)
            literal = second.results
            reason = second.obstacle or difference(first, second)
        reason = reason or _change(plain, self._plain())
        if reason is None:
            after = self._state()
            self._set_state(before)
            replayed = self.program(x)
            reason = self._unlike(literal, after, replayed, self._state(), x.numel())
            if reason is None:
                return replayed
            self._set_state(after)
        if self.since > 1:
            steps = min(self.since // 2, COMPARED_EVERY)
            reason += f"; {steps} steps ago that was not yet so"
        self.fall_back(reason)
        return literal

    def _state(self) -> State:
        """What gradients change besides their results: generators, and tensors written to."""
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
        """How a replayed step differs from the literal one, if it does.

        On a CPU they are the same to the last bit. A GPU may choose other kernels, and older
        versions of torch record some gradients as the formulas that they are: then they may differ
        as sums of ``summands`` numbers in another order do, by the square root of that times the
        resolution of a number, in the norm.
        """
        assert self.program is not None
        names = {
            id(parameter): f"the gradient of {part}.{name}"
            for part, module in self.modules.items()
            for name, parameter in module.named_parameters()
        }
        of = [names.get(id(p), "a gradient of the objective") for p in self.parameters]
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
            what = f"{name} is another as recorded than now"
        return f"{what}; model, guide or objective have changed in something that is no tensor"

    def _plain(self) -> dict[str, Hashable]:
        """What model and guide have in their attributes that is no tensor."""
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
        # What CUDA refuses to capture; the step is then as it was, recorded.
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
        """Go on without recordings, and say so."""
        warnings.warn(f"training goes step by step, unrecorded: {reason}", Notice, stacklevel=2)
        self._forget()
        self.fast = False


def _close(a: Tensor | None, b: Tensor | None, tolerance: float) -> bool:
    """Whether the norm of the difference is small beside that of one of them."""
    if a is None or b is None or a.shape != b.shape:
        return a is b
    a, b = a.double(), b.double()
    # A loss of nearly 0 is a difference of terms of some nats.
    return bool((a - b).norm() <= tolerance * (b.norm() if b.dim() else b.abs().clamp(min=1.0)))


def _change(before: Mapping[str, Hashable], after: Mapping[str, Hashable]) -> str | None:
    """Which attribute a step has changed that no recording would."""
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            return f"{name} changes in a step and is no tensor (a buffer would be recorded)"
    return None


def _plain(value: object, holders: tuple[int, ...] = ()) -> Hashable:
    """Numbers, texts and arrays, and tables of them; None of all else, which is not looked into."""
    if isinstance(value, bool | int | float | complex | str | bytes):
        # As texts, because NaN is not equal to itself.
        return repr(value)
    if isinstance(value, np.ndarray | np.generic):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, Mapping | list | tuple | set | frozenset) and id(value) not in holders:
        holders = (*holders, id(value))
        items = value.items() if isinstance(value, Mapping) else value
        return tuple(_plain(item, holders) for item in items)
    return None
