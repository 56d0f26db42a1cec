"""One training in several processes, with the result of one process at the same batch.

``torchrun`` starts the processes, on one machine or on many. Each of them has the whole state
(weights, optimizer, schedule, generators) and a part of every batch: its rows. What they tell each
other in a step is

- the parameters of the posteriors of their rows, so that each draws the latents of the whole batch
  and keeps those of its rows (:class:`SharedNoise`): the very draws that one process would make;
- where a penalty is of the whole batch, its z, so that each computes that penalty
  (:class:`~ngvae_pyro.objectives.PenalisedELBO`);
- the gradients, averaged by DistributedDataParallel (:class:`SharedLoss`).

All else, looks and moves and annealing, each does for itself, and what is decided by a number is
decided by the number of the first process (:meth:`Team.agreed`)::

    with distributed.joined() as team:
        result = fit(model, guide, data, spec, team=team)

The two differ by rounding: a matrix product of fewer rows may be summed in another order, and as in
any long training rounding grows with the steps.
"""

import copy
import gc
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.utils import lazy_property
from torch.nn.parallel import DistributedDataParallel

from ngvae_pyro.errors import UserError

# How long a process waits for another, which may be downloading the data or writing the report.
# One that has died is noticed at once.
PATIENCE = timedelta(hours=3)


class _Gather(torch.autograd.Function):
    """Rows of all processes along an axis; gradients go to the own rows alone, times a weight."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, axis: int, team: "Team", weight: float) -> Tensor:
        ctx.axis, ctx.team, ctx.weight = axis, team, weight
        rows = own.movedim(axis, 0).contiguous()
        whole = rows.new_empty((team.size * len(rows), *rows.shape[1:]))
        dist.all_gather_into_tensor(whole, rows)
        # Contiguous, because a generator may fill a tensor in the order of its memory.
        return whole.movedim(0, axis).contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return ctx.weight * ctx.team.rows(gradients[0], ctx.axis), None, None, None


@dataclass(frozen=True)
class Team:
    """The processes of a training, as one of them sees them; by default it is alone.

    ``rank`` is its number among ``size``, ``local_rank`` that on its machine. Alone, nothing is
    communicated. What communicates has to be called by all processes, in the same order.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def check_device(self, name: str) -> None:
        """A device of its own for every process.

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
        """As many rows for every process: only then is the mean of their means that of the batch.

        Raises:
            UserError: If that cannot be.
        """
        if size % self.size:
            raise UserError(
                f"fit.batch_size: expected a multiple of the {self.size} processes, got {size}"
            )

    def rows(self, whole: Tensor, axis: int = 0) -> Tensor:
        """This process's part of a batch."""
        share = whole.shape[axis] // self.size
        return whole.narrow(axis, self.rank * share, share)

    def whole(self, own: Any, axis: int = 0, weight: float = 1.0) -> Any:
        """A tensor or a distribution of the whole batch, from that of each process's rows.

        Its gradient goes to this process's rows alone and is multiplied by ``weight``: 1 where
        only these rows of what is made of it are used, ``size`` where all processes compute the
        same of the whole and weigh it by 1 / ``size``. So a backward pass communicates nothing.

        Args:
            own: Of the rows of this process. A distribution's batch shape has them at ``axis``.
            axis: Counted from the left.
            weight: Of the gradient.
        """
        if self.size == 1:
            return own
        if isinstance(own, Tensor):
            return _Gather.apply(own, axis, self, weight)
        new = copy.copy(own)
        for name, value in vars(own).items():
            cached = isinstance(inspect.getattr_static(type(own), name, None), lazy_property)
            if cached and name not in own.arg_constraints:
                # It is computed again from the parameters where it is asked for.
                del new.__dict__[name]
            elif isinstance(value, Tensor | Distribution):
                new.__dict__[name] = self.whole(value, axis, weight)
        shape = list(own.batch_shape)
        shape[axis] *= self.size
        new._batch_shape = torch.Size(shape)
        return new

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a number over the processes, without gradient."""
        if self.size == 1:
            return value.detach()
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.size

    def agreed(self, value: Any) -> Any:
        """The first process's value, a tensor or anything that can be pickled."""
        if self.size == 1:
            return value
        if isinstance(value, Tensor):
            value = value.detach().clone(memory_format=torch.contiguous_format)
            dist.broadcast(value, 0)
            return value
        return self._told(value, 0)

    def _told(self, value: Any, rank: int) -> Any:
        """What one process says, by way of the CPU: its GPU may not be there, or not its own."""
        values = [value]
        dist.broadcast_object_list(values, rank, device=torch.device("cpu"))
        return values[0]

    def most(self, value: int) -> int:
        """The largest of the processes' values."""
        if self.size == 1:
            return value
        # Of the CPU, so that no process waits for its GPU.
        values = torch.tensor(value)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return int(values)

    def wait(self) -> None:
        """Return when all processes are here."""
        if self.size > 1:
            # Not `barrier`, which would take a GPU where there is one.
            dist.all_reduce(torch.zeros(()))

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that ends when all have ended it; one's UserError is raised by all."""
        if self.size == 1:
            yield
            return
        said = None
        try:
            yield
        except UserError as error:
            said = str(error)
        for line in [self._told(said, rank) for rank in range(self.size)]:
            if line is not None:
                raise UserError(line)


ALONE = Team()


def started() -> Team:
    """This process among those that torchrun has started, :data:`ALONE` without it.

    Raises:
        UserError: If the environment has a part of what torchrun sets, or something else.
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
    """A number that torchrun sets in the environment."""
    text = os.environ.get(name, "nothing")
    if not (text.isascii() and text.isdecimal() and low <= int(text[:9]) <= high):
        raise UserError(
            f"{name}: expected a whole number from {low} to {high:,} as torchrun sets it, "
            f"got {text}{_HINT}"
        )
    return int(text)


@contextmanager
def joined() -> Iterator[Team]:
    """The team of the processes that torchrun has started; :data:`ALONE` where it has not.

    Where there are GPUs, each process has its own for ``device`` auto and cuda. A block that ends
    well ends in all processes at once.

    Raises:
        UserError: As :func:`started`, or if the processes do not find each other.
    """
    team = started()
    if team.size == 1:
        yield ALONE
        return
    if team.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(team.local_rank)
    try:
        # Named, because of none torch 2.11 makes NCCL alone where there is a GPU.
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
        # A reducer that is left over would end after the group that it works in, and abort.
        gc.collect()
        dist.destroy_process_group()


class SharedNoise(Messenger):
    """Gives the rows of a process the draws that one process would make for the whole batch.

    At each latent site in the plate ``data`` the distribution of the whole batch is gathered,
    drawn from by all processes alike, their generators being in the same state, and cut to the
    rows. That alone takes parameters from the others: how many random numbers a Gamma asks for
    depends on its value. Sites know of it by ``infer["team"]``.
    """

    def __init__(self, team: Team) -> None:
        super().__init__()
        self.team = team

    def _pyro_sample(self, msg: Message) -> None:
        frames: Any = msg["cond_indep_stack"]
        plate = next((frame for frame in frames if frame.name == "data"), None)
        # In the model a latent has its value already, from the guide.
        if plate is None or msg["is_observed"] or msg["value"] is not None:
            return
        fn: Any = msg["fn"]
        axis = len(fn.batch_shape) + plate.dim
        msg["value"] = self.team.rows(self.team.whole(fn, axis)(), axis)
        infer: Any = {**(msg["infer"] or {}), "team": self.team}
        msg["infer"] = infer


class _LossModule(nn.Module):
    """The loss as a module, which is what DistributedDataParallel takes."""

    def __init__(self, elbo: Any, model: nn.Module, guide: nn.Module, own: list[Any]) -> None:
        super().__init__()
        self.elbo, self.model, self.guide = elbo, model, guide
        # With one that no step uses: DDP warns where it looks for such parameters and finds none.
        self.own = nn.ParameterList([*own, nn.Parameter(torch.zeros(()))] if own else [])

    def forward(self, x: Tensor) -> Tensor:
        return self.elbo.differentiable_loss(self.model, self.guide, x) / len(x)


class SharedLoss:
    """-ELBO per image of a batch that is shared, from the rows of each process.

    Its value is the mean over the processes, and so is the gradient that ``backward`` leaves in the
    parameters.

    Args:
        team: More than one process.
        elbo: The objective.
        model: What is trained.
        guide: What is trained with it.
        own: Parameters of the objective itself.
    """

    def __init__(
        self, team: Team, elbo: Any, model: nn.Module, guide: nn.Module, own: list[Tensor]
    ) -> None:
        self.team = team
        self.module = DistributedDataParallel(
            _LossModule(elbo, model, guide, own),
            # Those of the objective may have no part in a step, as an adversary's before it begins.
            find_unused_parameters=bool(own),
        )

    def __call__(self, x: Tensor) -> Tensor:
        """The loss at the rows ``x`` of this process."""
        with SharedNoise(self.team):
            loss = self.module(x)
        return loss + (self.team.mean(loss) - loss.detach())
