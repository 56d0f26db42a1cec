"""Shuffled batches of images, resident on the device or streamed to it."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from ngvae_pyro.images import ImageData

# Batches that each worker may be ahead: one that it gathers and one that waits.
_AHEAD = 2


def _gather(images: Tensor, index: Tensor, pinned: bool) -> Tensor:
    """The images at an index, in memory from which a GPU copies by itself if it is pinned."""
    batch = torch.empty((len(index), *images.shape[1:]), dtype=images.dtype, pin_memory=pinned)
    return torch.index_select(images, 0, index, out=batch)


class Batches:
    """Shuffled batches of images as a pure function of the step.

    Step s of a given seed always gives the same images, in whatever order steps are asked for, so
    a fork or a resumed run sees what the uninterrupted one saw.

    Args:
        data: Images; moved to ``device`` once if they take at most ``resident_bytes`` there,
            else each batch is gathered in main memory and streamed.
        batch_size: Images per step, at most ``len(data)``.
        seed: Of the shuffles.
        device: Where batches are wanted.
        workers: Threads that gather the batches of the next steps while this one is computed, if
            the data are streamed. By default 2 for a GPU, and none for the CPU, which they would
            take from the step.
    """

    def __init__(
        self,
        data: ImageData,
        batch_size: int,
        seed: int,
        device: torch.device,
        resident_bytes: int,
        workers: int | None = None,
    ) -> None:
        self.data, self.seed, self.device = data, seed, device
        self.batch_size = min(batch_size, len(data))
        self.per_epoch = len(data) // self.batch_size
        self.resident = data.images.to(device) if data.nbytes <= resident_bytes else None
        self._epoch: tuple[int, Tensor] = (-1, torch.empty(0))
        if workers is None:
            workers = 2 if self._to_gpu else 0
        # Threads, because a gather leaves the interpreter to others, and processes would have to
        # send what they gathered (benchmarks/data.py has the times). They end with this object.
        self._pool = ThreadPoolExecutor(workers, "batches") if workers else None
        self._depth = _AHEAD * workers
        self._gathered: deque[Future[Tensor]] = deque()
        self._next = 0

    @property
    def _to_gpu(self) -> bool:
        return self.device.type == "cuda"

    def index(self, step: int) -> Tensor:
        """Indices of the images of a step, shape (batch_size,)."""
        epoch, position = divmod(step, self.per_epoch)
        if self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch = (epoch, torch.randperm(len(self.data), generator=generator))
        start = position * self.batch_size
        return self._epoch[1][start : start + self.batch_size]

    def __getitem__(self, step: int) -> Tensor:
        """Images of a step, float in [0, 1], on the device."""
        if self.resident is not None:
            # Not self.resident[index], which on the CPU goes pixel by pixel.
            images = self.resident.index_select(0, self.index(step).to(self.device))
        elif self._pool is not None:
            images = self._ahead(self._pool, step)
        else:
            images = _gather(self.data.images, self.index(step), self._to_gpu)
        return ImageData.to_unit(images.to(self.device, non_blocking=True))

    def _ahead(self, pool: ThreadPoolExecutor, step: int) -> Tensor:
        """The stored images of a step; the workers go on with those of the next ones."""
        if step != self._next:
            for future in self._gathered:
                future.cancel()
            self._gathered.clear()
        while len(self._gathered) <= self._depth:
            index = self.index(step + len(self._gathered))
            self._gathered.append(pool.submit(_gather, self.data.images, index, self._to_gpu))
        self._next = step + 1
        return self._gathered.popleft().result()
