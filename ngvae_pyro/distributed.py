"""One training in several processes, with the result of one process at the same batch.

``torchrun`` starts the processes, on one machine or on many. Each of them has the whole state
(weights, optimizer, schedule, generators) and a part of every batch: its rows. In a step they
exchange

- the parameters of the posteriors of their rows, so that each draws the latents of the whole batch
  and keeps those of its rows (:class:`SharedNoise`): exactly the draws that one process would make;
- the draws of z, if a penalty depends on the whole batch, so that each computes that penalty
  (:class:`~ngvae_pyro.objectives.PenalisedELBO`);
- the gradients, averaged by DistributedDataParallel (:class:`SharedLoss`).

Each process does everything else for itself, evaluations, moves and annealing, and a decision that
depends on a number uses the number of the first process (:meth:`Team.agreed`)::

    with distributed.joined() as team:
        result = fit(model, guide, data, spec, team=team)

The result differs from that of one process by rounding: a matrix product of fewer rows may be
summed in another order, and as in any long training rounding errors grow with the steps.
"""

import copy
import gc
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.utils import lazy_property
from torch.nn.parallel import DistributedDataParallel

from ngvae_pyro.errors import UserError

if TYPE_CHECKING:
    from ngvae_pyro.objectives.base import TraceELBO

T = TypeVar("T")

# How long a process waits for another, which may be downloading the data or writing the report.
# A process that has died is noticed at once.
PATIENCE = timedelta(hours=3)


class _Context(Protocol):
    """The attributes that :class:`_Gather` keeps for its backward pass."""

    axis: int
    team: "Team"
    weight: float


class _Gather(torch.autograd.Function):
    """Gather the rows of all processes; the gradient goes to the own rows only, times a weight."""

    @staticmethod
    def forward(ctx: "_Context", own: Tensor, axis: int, team: "Team", weight: float) -> Tensor:
        ctx.axis, ctx.team, ctx.weight = axis, team, weight
        rows = own.movedim(axis, 0).contiguous()
        whole = rows.new_empty((team.size * len(rows), *rows.shape[1:]))
        dist.all_gather_into_tensor(whole, rows)
        # Contiguous, because a generator may fill a tensor in the order of its memory.
        return whole.movedim(0, axis).contiguous()

    @staticmethod
    def backward(ctx: "_Context", *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.weight * ctx.team.rows(gradients[0], ctx.axis), None, None, None


@dataclass(frozen=True)
class Team:
    """The processes of a training, as seen by one of them; by default there is only that one.

    ``rank`` is its number among ``size`` processes, ``local_rank`` its number on its machine. A
    single process communicates nothing. All processes must call the methods that communicate, in
    the same order: :meth:`whole` (elsewhere called ``all_gather``), :meth:`mean` and :meth:`most`
    (``all_reduce``), :meth:`agreed` (``broadcast``), :meth:`wait` (``barrier``) and
    :meth:`together`.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and prints (``is_global_zero`` elsewhere)."""
        return self.rank == 0

    def check_device(self, name: str) -> None:
        """Check that every process can have a device of its own.

        Raises:
            UserError: If there are fewer GPUs than processes on this machine, or all are to share
                a numbered one.
        """
        if self.size == 1 or name == "cpu" or not (found := torch.cuda.device_count()):
            return
        if name.startswith("cuda:"):
            raise UserError(
                f"fit.device: expected auto, cpu or cuda with {self.size} processes, which take "
                f"one GPU each, got '{name}'"
            )
        if self.local_rank >= found:
            raise UserError(
                f"device '{name}' asked for by process {self.local_rank + 1} of this machine, but "
                f"torch sees {found} CUDA devices; start fewer processes or pass --device cpu"
            )

    def check_batch(self, size: int) -> None:
        """Check that the rows of a batch divide evenly among the processes.

        Otherwise the mean of their means would not be the mean of the batch.

        Raises:
            UserError: If they do not.
        """
        if size % self.size:
            raise UserError(
                f"fit.batch_size: expected a multiple of the {self.size} processes, got {size}"
            )

    def rows(self, whole: Tensor, axis: int = 0) -> Tensor:
        """The rows of this process in a batch."""
        share = whole.shape[axis] // self.size
        return whole.narrow(axis, self.rank * share, share)

    def whole(self, own: T, axis: int = 0, weight: float = 1.0) -> T:
        """The tensor or distribution of the whole batch, gathered from the rows of each process.

        The gradient goes to this process's rows only and is multiplied by ``weight``: 1 if only
        these rows of a result are used, ``size`` if all processes compute the same function of the
        whole batch and weight it by 1 / ``size``. So a backward pass communicates nothing. Others
        call this ``all_gather``.

        Args:
            own: The rows of this process. A distribution's batch shape has them at ``axis``.
            axis: Axis of the rows, counted from the left.
            weight: Factor on the gradient.
        """
        if self.size == 1:
            return own
        if isinstance(own, Tensor):
            gathered: T = _Gather.apply(own, axis, self, weight)
            return gathered
        new: Any = copy.copy(own)
        for name, value in vars(own).items():
            cached = isinstance(inspect.getattr_static(type(own), name, None), lazy_property)
            if cached and name not in new.arg_constraints:
                # It is computed again from the parameters when it is needed.
                del new.__dict__[name]
            elif isinstance(value, Tensor | Distribution):
                new.__dict__[name] = self.whole(value, axis, weight)
        shape = list(new.batch_shape)
        shape[axis] *= self.size
        new._batch_shape = torch.Size(shape)
        found: T = new
        return found

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a number over the processes, without gradient (an ``all_reduce``)."""
        if self.size == 1:
            return value.detach()
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.size

    def agreed(self, value: T | None) -> T:
        """The first process's value, a tensor or anything that can be pickled.

        Others call this ``broadcast``. The value of the other processes may be None, unless it is a
        tensor.
        """
        agreed: Any = value
        if self.size == 1:
            pass
        elif isinstance(value, Tensor):
            agreed = value.detach().clone(memory_format=torch.contiguous_format)
            dist.broadcast(agreed, 0)
        else:
            agreed = self._told(value, 0)
        found: T = agreed
        return found

    def _told(self, value: T, rank: int) -> T:
        """Broadcast one process's value over the CPU: it may have no GPU, or share one."""
        values = [value]
        dist.broadcast_object_list(values, rank, device=torch.device("cpu"))
        return values[0]

    def most(self, value: int) -> int:
        """The largest of the processes' values (an ``all_reduce``)."""
        if self.size == 1:
            return value
        # On the CPU, so that no process waits for its GPU.
        values = torch.tensor(value)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return int(values)

    def wait(self) -> None:
        """Return when all processes have called this (a ``barrier``)."""
        if self.size > 1:
            # Not torch's `barrier`, which would use a GPU if there is one.
            dist.all_reduce(torch.zeros(()))

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that ends when all processes have ended it; if one raises a UserError, all do."""
        if self.size == 1:
            yield
            return
        said: str | None = None
        try:
            yield
        except UserError as error:
            said = str(error)
        for line in [self._told(said, rank) for rank in range(self.size)]:
            if line is not None:
                raise UserError(line)


ALONE = Team()


def started() -> Team:
    """This process among those that torchrun has started; :data:`ALONE` without torchrun.

    Raises:
        UserError: If the environment has only some of the variables that torchrun sets, or other
            values.
    """
    size = _variable("WORLD_SIZE", 1) if "WORLD_SIZE" in os.environ else 1
    if size == 1:
        return ALONE
    rank, local_rank = _variable("RANK", 0, size - 1), _variable("LOCAL_RANK", 0, size - 1)
    _variable("MASTER_PORT", 1, 65_535)
    if not os.environ.get("MASTER_ADDR"):
        raise UserError(f"MASTER_ADDR: expected the name of a machine{_HINT}")
    return Team(rank, size, local_rank)


_HINT = "; start with torchrun, or unset WORLD_SIZE"


def _variable(name: str, low: int, high: int = 10**6) -> int:
    """Read a number that torchrun sets in the environment."""
    text = os.environ.get(name, "nothing")
    if not (text.isascii() and text.isdecimal() and low <= int(text[:9]) <= high):
        raise UserError(
            f"{name}: expected a whole number from {low} to {high:,} as torchrun sets it, "
            f"got {text}{_HINT}"
        )
    return int(text)


@contextmanager
def joined() -> Iterator[Team]:
    """Join the processes that torchrun has started; gives :data:`ALONE` without torchrun.

    If there are GPUs, each process has its own for ``device`` auto and cuda. A block that ends
    without an error ends in all processes at once.

    Raises:
        UserError: As for :func:`started`, or if the processes do not find each other.
    """
    team = started()
    if team.size == 1:
        yield ALONE
        return
    if team.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(team.local_rank)
    try:
        # Explicit, because without a name torch 2.11 sets up only NCCL if there is a GPU.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
    except (dist.DistError, ValueError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = str(error).splitlines()[0]
        raise UserError(f"the {team.size} processes do not meet at {place}: {reason}") from None
    try:
        yield team
        team.wait()
    finally:
        # A leftover reducer would be destroyed after the process group that it uses, and abort.
        gc.collect()
        dist.destroy_process_group()


class SharedNoise(Messenger):
    """Gives the rows of a process the draws that one process would make for the whole batch.

    At each latent site in the plate ``data`` the distribution of the whole batch is gathered. All
    processes draw the same from it, because their generators are in the same state, and keep their
    own rows. The parameters of the others are needed because the number of random numbers that a
    Gamma consumes depends on its value. The team is passed to the sites in ``infer["team"]``.

    Args:
        team: The processes.
    """

    def __init__(self, team: Team) -> None:
        super().__init__()
        self.team = team

    def _pyro_sample(self, msg: "Message[..., Any]") -> None:
        frames: Any = msg["cond_indep_stack"]
        plate = next((frame for frame in frames if frame.name == "data"), None)
        # In the model, a latent already has its value from the guide.
        if plate is None or msg["is_observed"] or msg["value"] is not None:
            return
        fn: Any = msg["fn"]
        axis = len(fn.batch_shape) + plate.dim
        msg["value"] = self.team.rows(self.team.whole(fn, axis)(), axis)
        infer: Any = {**(msg["infer"] or {}), "team": self.team}
        msg["infer"] = infer


class _LossModule(nn.Module):
    """The loss as a module, because DistributedDataParallel takes a module."""

    def __init__(
        self, elbo: "TraceELBO", model: nn.Module, guide: nn.Module, own: list[Tensor]
    ) -> None:
        super().__init__()
        self.elbo, self.model, self.guide = elbo, model, guide
        # One more that no step uses: DDP warns if it searches for unused parameters in vain.
        self.own = nn.ParameterList([*own, nn.Parameter(torch.zeros(()))] if own else [])

    def forward(self, x: Tensor) -> Tensor:
        return self.elbo.differentiable_loss(self.model, self.guide, x) / len(x)


class SharedLoss:
    """-ELBO per image of a shared batch, from the rows of each process.

    Its value is the mean over the processes, and so is the gradient that ``backward`` leaves in the
    parameters.

    Args:
        team: More than one process.
        elbo: The objective.
        model: The model that is trained.
        guide: The guide that is trained with it.
        own: Parameters of the objective itself.
    """

    def __init__(
        self, team: Team, elbo: "TraceELBO", model: nn.Module, guide: nn.Module, own: list[Tensor]
    ) -> None:
        self.team = team
        self.module = DistributedDataParallel(
            _LossModule(elbo, model, guide, own),
            # A step may not use the objective's parameters, as an adversary's before it begins.
            find_unused_parameters=bool(own),
        )

    def __call__(self, x: Tensor) -> Tensor:
        """The loss at the rows ``x`` of this process."""
        with SharedNoise(self.team):
            loss = self.module(x)
        shared: Tensor = loss + (self.team.mean(loss) - loss.detach())
        return shared
