"""Shuffled batches of images, resident on the device or streamed to it."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from ngvae_pyro.data.images import ImageData
from ngvae_pyro.data.rows import Rows
from ngvae_pyro.distributed import ALONE, Team

# How many batches each worker may be ahead: one being gathered and one waiting.
_AHEAD = 2


def _gather(images: Tensor | Rows, index: Tensor, pinned: bool) -> Tensor:
    """Gather the images at an index, optionally in pinned memory, for asynchronous GPU copies."""
    batch = torch.empty((len(index), *images.shape[1:]), dtype=images.dtype, pin_memory=pinned)
    if isinstance(images, Rows):
        rows: Rows = images[index]
        return rows.read(batch)
    return torch.index_select(images, 0, index, out=batch)


class Batches:
    """Shuffled batches of images as a pure function of the step.

    Step s of a given seed always gives the same images, in whatever order the steps are requested,
    so a fork or a resumed run sees the same batches as an uninterrupted one.

    Args:
        data: Images. They are moved to ``device`` once if they take at most ``resident_bytes``;
            otherwise each batch is gathered in main memory and streamed, as it is from data in a
            file, whatever their size.
        batch_size: Images per step, at most ``len(data)``.
        seed: Seed of the shuffles.
        device: The device on which batches are needed.
        resident_bytes: Largest size of images that are kept on the device, in bytes.
        workers: Threads that gather the batches of later steps while this one is computed, if
            the data are streamed. By default 2 for a GPU and none for the CPU, where they would
            compete with the step.
        team: The processes that share each batch; every process gets its rows.

    Raises:
        UserError: If the processes cannot share a batch evenly.
    """

    def __init__(
        self,
        data: ImageData,
        batch_size: int,
        seed: int,
        device: torch.device,
        resident_bytes: int,
        workers: int | None = None,
        team: Team = ALONE,
    ) -> None:
        self.data, self.seed, self.device, self.team = data, seed, device, team
        self.batch_size = min(batch_size, len(data))
        team.check_batch(self.batch_size)
        self.per_epoch = len(data) // self.batch_size
        fits = data.nbytes <= resident_bytes and not isinstance(data.images, Rows)
        self.resident = data.images.to(device) if fits else None
        # Indices of the images of each step of an epoch.
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))
        rows = self.batch_size // team.size
        # What `take` reads: the order of the current epoch, or the images of the current step.
        # The memory stays the same, so that a recorded step can be replayed.
        if self.resident is not None:
            self._ready = torch.empty(self.per_epoch, rows, dtype=torch.long, device=device)
        else:
            shape = (rows, *data.image_shape)
            self._ready = torch.empty(shape, dtype=data.images.dtype, device=device)
        # The design of the data, or where images are streamed that of the current step.
        self._design = self._rows = None
        if (design := data.covariates) is not None and self.resident is not None:
            self._design = design.to(device)
        elif design is not None:
            self._rows = torch.empty(rows, design.shape[1], device=device)
        self._ready_for = -1
        if workers is None:
            workers = 2 if self._to_gpu else 0
        # Threads, because gathering releases the interpreter lock, and processes would have to
        # send what they gathered (benchmarks/data.py has the times). They end with this object.
        self._pool = ThreadPoolExecutor(workers, "batches") if workers else None
        self._depth = _AHEAD * workers
        self._gathered: deque[Future[Tensor]] = deque()
        self._next = 0

    @property
    def _to_gpu(self) -> bool:
        return self.device.type == "cuda"

    def order(self, epoch: int) -> Tensor:
        """Indices of the images of each step of an epoch, (per_epoch, rows of this process)."""
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self.data), generator=generator)
            order = order[: self.per_epoch * self.batch_size].view(self.per_epoch, -1)
            self._order = (epoch, self.team.rows(order, axis=1))
        return self._order[1]

    def index(self, step: int) -> Tensor:
        """Indices of the images of a step, this process's rows of ``batch_size``."""
        epoch, position = divmod(step, self.per_epoch)
        return self.order(epoch)[position]

    def prepare(self, step: int) -> None:
        """Copy to the device what :meth:`take` needs for a step."""
        ready_for = step if self.resident is None else step // self.per_epoch
        if ready_for != self._ready_for:
            ready = self._stored(step) if self.resident is None else self.order(ready_for)
            self._ready.copy_(ready, non_blocking=True)
            if self._rows is not None and self.data.covariates is not None:
                self._rows.copy_(self.data.covariates[self.index(step)])
            self._ready_for = ready_for

    def take(self, position: Tensor) -> tuple[Tensor, ...]:
        """The images of a prepared step, float in [0, 1], on the device, and their covariates.

        Args:
            position: The step, a tensor of shape (1,) on the device.

        Returns:
            The images (B, C, H, W) and, if the data have covariates, their rows (B, Q) of the
            design matrix.
        """
        if self.resident is None:
            x = ImageData.to_unit(self._ready)
            return (x,) if self._rows is None else (x, self._rows)
        index = self._ready.index_select(0, position % self.per_epoch).flatten()
        # Not self.resident[index], which on the CPU copies pixel by pixel.
        x = ImageData.to_unit(self.resident.index_select(0, index))
        return (x,) if self._design is None else (x, self._design.index_select(0, index))

    def __getitem__(self, step: int) -> Tensor:
        """Images of a step, float in [0, 1], on the device."""
        self.prepare(step)
        return self.take(torch.tensor([step], device=self.device))[0]

    def _stored(self, step: int) -> Tensor:
        """The images of a step in stored form, in main memory."""
        if self._pool is not None:
            return self._ahead(self._pool, step)
        return _gather(self.data.images, self.index(step), self._to_gpu)

    def _ahead(self, pool: ThreadPoolExecutor, step: int) -> Tensor:
        """The stored images of a step; the workers meanwhile gather those of later steps."""
        if step != self._next:
            for future in self._gathered:
                future.cancel()
            self._gathered.clear()
        while len(self._gathered) <= self._depth:
            index = self.index(step + len(self._gathered))
            self._gathered.append(pool.submit(_gather, self.data.images, index, self._to_gpu))
        self._next = step + 1
        return self._gathered.popleft().result()
