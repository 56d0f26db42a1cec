"""Images in memory, with the factors that made them where these are known."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ngvae_pyro.errors import UserError


def generator(seed: int) -> torch.Generator:
    """A seeded CPU generator; a seed that torch cannot take is a `UserError`."""
    if not 0 <= seed < 2**63:
        raise UserError(f"seed: expected an integer in [0, 2**63), got {seed}")
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True, eq=False, repr=False)
class ImageData(Dataset[Tensor]):
    """Images, with the factors that made them where these are known.

    Arguments:
        name: a short name for reports.
        images: (N, C, H, W). uint8 stays in 0..255, bool becomes 0 and 255, and floating
            point, which must lie in [0, 1], becomes float32.
        factors: (N, F), stored as float32 in the factors' own units, or None. A factor that
            never varies keeps its column.
        factor_names: the F names.

    Raises `UserError` for a wrong shape, type or range.

    >>> data = ImageData("dots", torch.zeros(4, 1, 8, 8, dtype=torch.uint8))
    >>> data
    ImageData('dots', 4 images of 1x8x8, no factors)
    """

    name: str
    images: Tensor
    factors: Tensor | None = None
    factor_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        images, factors, names = self.images, self.factors, tuple(self.factor_names)
        if images.ndim != 4 or 0 in images.shape:
            raise UserError(
                f"{self.name}: images: expected a non-empty shape (N, C, H, W), "
                f"got {tuple(images.shape)}"
            )
        if images.dtype == torch.bool:
            images = images.to(torch.uint8) * 255
        elif images.is_floating_point():
            low, high = images.aminmax()
            # Written so that NaN, which fails every comparison, is refused too.
            if not (low >= 0 and high <= 1):
                raise UserError(
                    f"{self.name}: images: expected values in [0, 1], "
                    f"got {low.item():g} to {high.item():g}"
                )
            images = images.to(torch.float32)
        elif images.dtype != torch.uint8:
            raise UserError(
                f"{self.name}: images: expected uint8, bool or floating point, got {images.dtype}"
            )
        if factors is None:
            if names:
                raise UserError(f"{self.name}: factor names without factors: {', '.join(names)}")
        else:
            factors = factors.to(torch.float32)
            if factors.shape != (len(images), len(names)):
                raise UserError(
                    f"{self.name}: factors: expected shape {(len(images), len(names))} for "
                    f"{len(images)} images and {len(names)} names, got {tuple(factors.shape)}"
                )
            if len(set(names)) < len(names):
                raise UserError(
                    f"{self.name}: factor names: expected no name twice, got {', '.join(names)}"
                )
            if not factors.isfinite().all():
                raise UserError(f"{self.name}: factors: expected finite values, got NaN or inf")
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "factors", factors)
        object.__setattr__(self, "factor_names", names)

    def __repr__(self) -> str:
        size = "x".join(map(str, self.image_shape))
        factors = ", ".join(self.factor_names) if self.factor_names else "no factors"
        return f"ImageData({self.name!r}, {len(self)} images of {size}, {factors})"

    def __len__(self) -> int:
        """The number of images, N."""
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        """One stored image (C, H, W), so that a `DataLoader` can stream the data."""
        return self.images[index]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def nbytes(self) -> int:
        """The size of the stored images in bytes (not that of their float32 form)."""
        return self.images.nbytes

    @property
    def digest(self) -> str:
        """SHA-256 of the stored images, their type and shape."""
        images = self.images.contiguous().numpy()
        return hashlib.sha256(f"{images.dtype} {images.shape} ".encode() + images.data).hexdigest()

    @property
    def binary(self) -> bool:
        """Whether every pixel is 0 or 1 (as stored, 0 or 255 where uint8)."""
        white = 255 if self.images.dtype == torch.uint8 else 1
        return bool(((self.images == 0) | (self.images == white)).all())

    @property
    def varies(self) -> bool:
        """Whether any image differs from another."""
        # In parts, most of which are not looked at where images differ.
        return any(bool((part != self.images[:1]).any()) for part in self.images.split(1024))

    @staticmethod
    def to_unit(images: Tensor) -> Tensor:
        """Stored images as float32 in [0, 1], on the device where they are.

        >>> ImageData.to_unit(torch.tensor([0, 51, 255], dtype=torch.uint8))
        tensor([0.0000, 0.2000, 1.0000])
        """
        if images.dtype == torch.uint8:
            # In place: at large batches, room for a second copy takes longer than the division.
            return images.to(torch.float32).div_(255)
        if images.is_floating_point():
            return images.to(torch.float32)
        raise TypeError(f"expected uint8 or floating point images, got {images.dtype}")

    def subset(self, index: Tensor | Sequence[int] | slice) -> "ImageData":
        """The images, and their factors, at `index`."""
        if not isinstance(index, (slice, Tensor)):
            index = torch.as_tensor(index, dtype=torch.long)
        factors = None if self.factors is None else self.factors[index]
        return ImageData(self.name, self.images[index], factors, self.factor_names)

    def fitted(self, image_shape: tuple[int, int, int]) -> tuple["ImageData", str]:
        """The images in another shape, and what was done to them in words ("" for nothing).

        Images that are nowhere larger are padded with black on all sides, others resized
        (bilinear, antialiased). Grey is repeated over the channels, and colours are averaged to
        grey.

        Arguments:
            image_shape: (C, H, W).

        Raises `UserError` for any other change of the number of channels.

        >>> data = ImageData("dots", torch.zeros(4, 1, 8, 8, dtype=torch.uint8))
        >>> data.fitted((3, 8, 8))
        (ImageData('dots', 4 images of 3x8x8, no factors), 'grey repeated over 3 channels')
        """
        (channels, *size), (wanted, height, width) = self.image_shape, image_shape
        images, done = self.images, []
        if size != [height, width]:
            way = "padded with black"
            down, across = height - size[0], width - size[1]
            if down >= 0 and across >= 0:
                edges = (across // 2, across - across // 2, down // 2, down - down // 2)
                images = torch.nn.functional.pad(images, edges)
            else:
                way = "resized"
                images = torch.nn.functional.interpolate(
                    self.to_unit(images), (height, width), mode="bilinear", antialias=True
                ).clamp(0, 1)
            done.append(f"{size[0]}x{size[1]} {way} to {height}x{width}")
        if channels == 1 < wanted:
            images = images.expand(-1, wanted, -1, -1)
            done.append(f"grey repeated over {wanted} channels")
        elif wanted == 1 < channels:
            images = self.to_unit(images).mean(1, keepdim=True)
            done.append("colours averaged to grey")
        elif channels != wanted:
            raise UserError(f"{self.name}: cannot make {wanted} channels of {channels}")
        return ImageData(self.name, images, self.factors, self.factor_names), ", ".join(done)

    def split(self, held_out: float, seed: int) -> tuple["ImageData", "ImageData"]:
        """Two disjoint parts, (train, held out), that together hold every image once.

        Arguments:
            held_out: a number of images (int) or a fraction in (0, 1) (float).
            seed: the permutation's seed; the same seed gives the same parts.

        Raises `UserError` where one part would be empty.

        >>> data = ImageData("dots", torch.zeros(10, 1, 8, 8, dtype=torch.uint8))
        >>> [len(part) for part in data.split(0.2, seed=0)]
        [8, 2]
        """
        if isinstance(held_out, int):
            count = held_out
        else:
            count = round(held_out * len(self)) if 0 < held_out < 1 else 0
        if not 0 < count < len(self):
            raise UserError(
                f"{self.name}: expected to hold out 1 to {len(self) - 1} of {len(self)} images "
                f"or a fraction in (0, 1) that leaves both parts some, got {held_out}"
            )
        order = torch.randperm(len(self), generator=generator(seed))
        return self.subset(order[count:]), self.subset(order[:count])


def check_images(data: Any, image_shape: Sequence[int]) -> None:
    """Refuses what are no images of the shape (C, H, W) that a model is of.

    Raises `UserError`. Other shapes may pass a network, and be compared pixel by pixel with what
    they are not.
    """
    if not isinstance(data, ImageData):
        raise UserError(
            f"expected images as ngvae_pyro.ImageData(name, images), got {type(data).__name__}"
        )
    if data.image_shape != tuple(image_shape):
        raise UserError(
            f"data '{data.name}' has images of shape {data.image_shape}, "
            f"the model expects {tuple(image_shape)}"
        )
