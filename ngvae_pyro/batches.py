"""Shuffled batches of images, resident on the device or streamed to it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ngvae_pyro.images import ImageData


class Batches:
    """Shuffled batches of images as a pure function of the step.

    Step s of a given seed always gives the same images, in whatever order steps are asked for, so
    a fork or a resumed run sees what the uninterrupted one saw.

    Args:
        data: Images; moved to ``device`` once if they take at most ``resident_bytes`` there,
            else streamed through a DataLoader.
        batch_size: Images per step, at most ``len(data)``.
        seed: Of the shuffles.
        device: Where batches are wanted.
    """

    def __init__(
        self,
        data: ImageData,
        batch_size: int,
        seed: int,
        device: torch.device,
        resident_bytes: int,
    ) -> None:
        self.data, self.seed, self.device = data, seed, device
        self.batch_size = min(batch_size, len(data))
        self.per_epoch = len(data) // self.batch_size
        self.resident = data.images.to(device) if data.nbytes <= resident_bytes else None
        self._epoch = -1
        # Indices of the images of each step of the present epoch.
        self._order = torch.empty(self.per_epoch, self.batch_size, dtype=torch.long)
        # What is on the device of it: all of the order, or the images of one step. Always the same
        # memory, so that a recording of `take` holds for every step.
        if self.resident is not None:
            self._ready = self._order.to(device)
        else:
            shape = (self.batch_size, *data.image_shape)
            self._ready = torch.empty(shape, dtype=data.images.dtype, device=device)
        self._stream: tuple[int, Iterator[Tensor]] | None = None

    def index(self, step: int) -> Tensor:
        """Indices of the images of a step, shape (batch_size,)."""
        epoch, position = divmod(step, self.per_epoch)
        if self._epoch != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self.data), generator=generator)
            self._order = order[: self._order.numel()].view_as(self._order)
            self._epoch = epoch
            if self.resident is not None:
                self._ready.copy_(self._order)
        return self._order[position]

    def prepare(self, step: int) -> None:
        """Have on the device what :meth:`take` needs for a step."""
        if self.resident is not None:
            self.index(step)
            return
        if self._stream is None or self._stream[0] != step:
            self._stream = (step, iter(self._loader(step)))
        self._ready.copy_(next(self._stream[1]), non_blocking=True)
        self._stream = (step + 1, self._stream[1])

    def take(self, position: Tensor) -> Tensor:
        """Images of a step that is prepared, float in [0, 1], on the device.

        Args:
            position: The step, a tensor of shape (1,) on the device.
        """
        if self.resident is None:
            return ImageData.to_unit(self._ready)
        index = self._ready.index_select(0, position % self.per_epoch).flatten()
        return ImageData.to_unit(self.resident.index_select(0, index))

    def __getitem__(self, step: int) -> Tensor:
        """Images of a step, float in [0, 1], on the device."""
        self.prepare(step)
        return self.take(torch.tensor([step], device=self.device))

    def _loader(self, first: int) -> "torch.utils.data.DataLoader[Tensor]":
        def indices() -> Iterator[list[int]]:
            step = first
            while True:
                yield self.index(step).tolist()
                step += 1

        # A loader draws from the global generator when it is given none, and so from the noise
        # of the training.
        return torch.utils.data.DataLoader(
            self.data,
            batch_sampler=indices(),
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),
        )
