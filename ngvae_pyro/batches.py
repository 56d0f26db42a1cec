"""Shuffled batches of images, resident on the device or streamed to it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ngvae_pyro.distributed import ALONE, Team
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
        team: The processes that share the batches; each has its rows of them.

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
        team: Team = ALONE,
    ) -> None:
        self.data, self.seed, self.device, self.team = data, seed, device, team
        self.batch_size = min(batch_size, len(data))
        team.check_batch(self.batch_size)
        self.per_epoch = len(data) // self.batch_size
        self.resident = data.images.to(device) if data.nbytes <= resident_bytes else None
        self._epoch: tuple[int, Tensor] = (-1, torch.empty(0))
        self._stream: tuple[int, Iterator[Tensor]] | None = None

    def index(self, step: int) -> Tensor:
        """Indices of the images of a step, this process's rows of ``batch_size``."""
        epoch, position = divmod(step, self.per_epoch)
        if self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch = (epoch, torch.randperm(len(self.data), generator=generator))
        start = position * self.batch_size
        return self.team.rows(self._epoch[1][start : start + self.batch_size])

    def __getitem__(self, step: int) -> Tensor:
        """Images of a step, float in [0, 1], on the device."""
        if self.resident is not None:
            return ImageData.to_unit(self.resident[self.index(step).to(self.device)])
        if self._stream is None or self._stream[0] != step:
            self._stream = (step, iter(self._loader(step)))
        images = next(self._stream[1])
        self._stream = (step + 1, self._stream[1])
        return ImageData.to_unit(images.to(self.device, non_blocking=True))

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
