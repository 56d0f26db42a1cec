"""How an optimizer step is carried out: gradients, clipping, Adam, and where they are recorded.

All that changes from step to step is a tensor on the device: the position, a row of a table with
the learning rates and the weights of the schedule, and the batch that the position points to. So a
step is the same tensor operations every time, and after some literal ones it is recorded: on a CPU
as a :class:`~ngvae_pyro.program.Program`, on CUDA as a graph of that program, which is launched by
one call. Nothing is read back from a GPU unless it is asked for.
"""

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor

from ngvae_pyro.batches import Batches
from ngvae_pyro.errors import Notice
from ngvae_pyro.program import NotRecordable, Program

# Literal steps before a recording, enough for optimizer and kernels to have what they allocate on
# first use.
WARM_UP = 10
# Recording takes a second or two, and pays after some hundred steps.
PAYS_FROM = 300
# Steps of a recorded program on the stream of a CUDA graph before its capture, as torch asks for.
CAPTURE_AFTER = 3
# Rows of the schedule that are on the device at a time.
ROWS = 4096
# Of the loss, between a recording and the literal step with the same noise.
TOLERANCE = 1e-3


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient became NaN or infinite; parameters are those before that step."""

    def __init__(self, step: int, loss: float, norm: float) -> None:
        super().__init__(
            f"non-finite loss at step {step}: loss {loss:g}, gradient norm {norm:g}; "
            "the state before that step is kept (try a smaller fit.learning_rate)"
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
        key: What a recording holds for, besides the tensors: it is made anew when that changes.
        fast: Whether there are recordings at all.
    """

    def __init__(
        self,
        gradients: Callable[[Tensor], tuple[Tensor | None, ...]],
        parameters: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        batches: Batches,
        count: int,
        numbers: Callable[[int], Sequence[float]],
        row: Tensor,
        *,
        clip_norm: float,
        key: Callable[[], Hashable],
        fast: bool,
    ) -> None:
        self.gradients, self.parameters, self.optimizer = gradients, parameters, optimizer
        self.batches, self.count, self.numbers, self.row = batches, count, numbers, row
        self.clip_norm, self.key, self.fast = clip_norm, key, fast
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

        Recordings are made at the same steps then: with convolutions they may differ from literal
        steps by rounding.
        """
        self.fast, self.had_recording = state["fast"], state["recorded"]
        self.recorded_for, self.since = self.key(), state["since"]
        if step > 0:
            # What looks and objectives read until the next step is that of the one before.
            self.row.copy_(self.row.new_tensor([self.numbers(step - 1)]))

    def _forget(self) -> None:
        self.program = self.graph = self.recorded_for = None
        self.since = 0

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
        if self.fast:
            self._record(step, key)
        if self.graph is not None:
            self.graph.replay()
        elif self.program is not None and self.device.type == "cuda":
            self._on_side_stream(self._step)
        else:
            # Shapes and supports are checked on the first step; they do not change afterwards.
            with pyro.validation_enabled(step == 0 and self.program is None):
                self._step()
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

    def _step(self) -> None:
        self._read_row()
        x = self.batches.take(self.position)
        gradients: Any = self.gradients if self.program is None else self.program
        self._update(*gradients(x))
        self.position += self.failed == 0.0

    def _read_row(self) -> None:
        torch.index_select(self.table, 0, self.position % len(self.table), out=self.row)

    def _update(self, loss: Tensor, *gradients: Tensor | None) -> None:
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

    def _record(self, step: int, key: Hashable) -> None:
        """Record where that is due."""
        if key != self.recorded_for:
            self._forget()
            self.recorded_for = key
        if self.program is None:
            pays = self.since >= WARM_UP and self.count - step >= PAYS_FROM
            if pays or self.had_recording:
                self._make_program()
        elif self.graph is None and self.capturable and self.since >= CAPTURE_AFTER:
            self._capture()

    def _make_program(self) -> None:
        self.had_recording = False
        self._read_row()
        try:
            # It draws as a step does, and is not one.
            with torch.random.fork_rng(self._devices), pyro.validation_enabled(False):
                self.program = Program(self.gradients, self.batches.take(self.position))
        except NotRecordable as error:
            self.fall_back(str(error))
            return
        self.since = 0
        if self.device.type == "cuda":
            self._stream = torch.cuda.Stream(self.device)
            if transfers := self.program.transfers:
                self._do_without_graph(f"{transfers[0]} copies between devices")

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._step()
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

    @property
    def _devices(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []

    def fall_back(self, reason: str) -> None:
        """Go on without recordings, and say so."""
        warnings.warn(f"training goes step by step, unrecorded: {reason}", Notice, stacklevel=2)
        self._forget()
        self.fast = False

    def verify(self) -> None:
        """Compare a recording with a literal step of the same noise, and fall back if they differ.

        They differ where a model has changed in something that is no tensor, such as a count of
        its calls.
        """
        if self.program is None or self.key() != self.recorded_for:
            return
        x = self.batches.take(self.position)
        losses = []
        for gradients in (self.program, self.gradients):
            with torch.random.fork_rng(self._devices), pyro.validation_enabled(False):
                loss = gradients(x)[0]
            assert loss is not None
            losses.append(loss.item())
        recorded, literal = losses
        if not abs(recorded - literal) <= TOLERANCE * max(1.0, abs(literal)):
            self.fall_back(
                f"the loss of a batch is {recorded:g} as recorded, and {literal:g} now; "
                "model, guide or objective have changed in something that is no tensor"
            )
