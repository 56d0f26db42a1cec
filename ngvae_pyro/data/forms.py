"""How arrays of users become images of a model, and how what the model says becomes theirs again.

A model sees images (N, C, H, W) of about the range of [0, 1]. Users have grey pictures (N, H, W),
channels last, intensities up to 16, or vectors (N, D) in units of their own. A `Form` is the map
between the two, kept with the images, with the fit, and in the run folder.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ngvae_pyro.errors import UserError

Layout = Literal["vectors", "grey", "channels_last", "channels_first"]
# Shapes in words, and where their channels are.
SHAPES: dict[Layout, str] = {
    "vectors": "(N, D)",
    "grey": "(N, H, W)",
    "channels_last": "(N, H, W, C)",
    "channels_first": "(N, C, H, W)",
}


@dataclass(frozen=True, eq=False)
class Form:
    """The map from arrays of a user to images of a model, and back.

        image = (array - loc) / scale

    Attributes:
        layout: The axes of the arrays, one of `SHAPES`. Vectors (N, D) are images (N, 1, 1, D).
        in_bytes: Whether the arrays were uint8 of 0..255, of which images in [0, 1] are made.
        loc, scale: float64; of vectors the mean and the standard deviation of each column, (D,), of
            images one number each, (): the lowest value, and how far the highest lies above it.
            None for images that are bytes, or in [0, 1] already.
    """

    layout: Layout = "channels_first"
    in_bytes: bool = False
    loc: np.ndarray | None = None
    scale: np.ndarray | None = None

    def __repr__(self) -> str:
        units = "bytes" if self.in_bytes else "[0, 1]"
        if self.loc is not None and self.scale is not None:
            units = f"{self.loc:g} to {self.loc + self.scale:g}" if self.loc.ndim == 0 else "own"
        return f"Form({SHAPES[self.layout]}, units: {units})"

    @property
    def dimensions(self) -> int:
        """How many axes the arrays have."""
        return SHAPES[self.layout].count(",") + 1

    @property
    def unit(self) -> bool:
        """Whether values are those of the model already, images in [0, 1] or bytes of 255ths."""
        return self.loc is None

    def same_units(self, other: "Form") -> bool:
        """Whether both make the same numbers of an array."""
        pairs = (self.loc, other.loc), (self.scale, other.scale)
        # None is equal to None alone.
        return all(np.array_equal(np.asarray(one), np.asarray(two)) for one, two in pairs)

    def shape_of(self, images: Sequence[int]) -> tuple[int, ...]:
        """The shape of an array without its first axis, of images (C, H, W).

        >>> Form("channels_last").shape_of((3, 8, 9))
        (8, 9, 3)
        """
        channels, height, width = images
        shapes = {
            "vectors": (channels * height * width,),
            "grey": (height, width),
            "channels_last": (height, width, channels),
        }
        return shapes.get(self.layout, (channels, height, width))

    def images(self, array: np.ndarray, where: str) -> np.ndarray:
        """An array as images (N, C, H, W): uint8 and what is in [0, 1] as it is, else float32.

        Args:
            array: In this layout and in these units.
            where: What it is, for the message.

        Raises:
            UserError: For another number of axes, for what are no numbers, and for NaN and inf.
        """
        if array.ndim != self.dimensions:
            raise UserError(
                f"{where}: expected shape {SHAPES[self.layout]}, as what was fitted, "
                f"got {tuple(array.shape)}"
            )
        if array.dtype.kind not in "biuf":
            raise UserError(f"{where}: expected numbers, got dtype {array.dtype}")
        if self.loc is not None and self.scale is not None:
            if self.loc.ndim and array.shape[1:] != self.loc.shape:
                raise UserError(
                    f"{where}: expected {len(self.loc)} columns, as what was fitted, "
                    f"got {array.shape[1]}"
                )
            # What float32 does not hold is inf, and refused.
            with np.errstate(over="ignore", invalid="ignore"):
                values = (array.astype(np.float64) - self.loc) / self.scale
                array = values.astype(np.float32)
        elif array.dtype.kind in "iu" and array.dtype != np.uint8:
            array = array.astype(np.float32)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UserError(f"{where}: expected finite numbers, got NaN or inf")
        if self.layout == "vectors":
            return array[:, None, None, :]
        if self.layout == "grey":
            return array[:, None]
        return np.moveaxis(array, 3, 1) if self.layout == "channels_last" else array

    def arrays(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), as the model has them, in the layout and the units of the arrays.

        Returns:
            float32 for images in [0, 1], also where the arrays were bytes; float64 for units of
            one's own, on the same device.
        """
        if self.layout == "vectors":
            images = images.flatten(1)
        elif self.layout == "grey":
            images = images.squeeze(1)
        elif self.layout == "channels_last":
            images = images.movedim(1, 3)
        if self.loc is None or self.scale is None:
            return images
        loc, scale = (torch.from_numpy(v).to(images.device) for v in (self.loc, self.scale))
        return images.double() * scale + loc

    def log_volume(self, numbers: int) -> float:
        """Log of the volume that a unit of the model's volume has in the units of the arrays.

        A density by the model's numbers, less this, is one by those of the arrays:
        log p(array) = log p(image) - sum log scale.

        Args:
            numbers: How many an image has.
        """
        if self.scale is None:
            return numbers * math.log(255) if self.in_bytes else 0.0
        logs = np.log(self.scale)
        return float(logs.sum() if logs.ndim else numbers * logs)


def standardising(vectors: np.ndarray, where: str) -> Form:
    """The form of vectors (N, D): each column less its mean, by its standard deviation.

    A column that never varies keeps the scale 1.

    Raises:
        UserError: For an empty array, for what are no numbers, and for those that are not finite,
            or so large that their standard deviation is not.
    """
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise UserError(f"{where}: expected shape (N, D) without a 0, got {tuple(vectors.shape)}")
    low, span = _range(vectors, where, axis=0)
    # Within [0, 1] nothing overflows, and nothing that differs is the same.
    part = (vectors.astype(np.float64) - low) / np.where(span > 0, span, 1.0)
    # A span of the last bits of float64 has a standard deviation that it does not hold.
    scale = np.where(span > 0, np.maximum(span * part.std(0), np.finfo(np.float64).tiny), 1.0)
    return Form("vectors", loc=low + span * part.mean(0), scale=scale)


def ranging(images: np.ndarray, layout: Layout, where: str) -> Form:
    """The form of images of any range: the lowest value becomes 0 and the highest 1."""
    low, span = _range(images, where, axis=None)
    return Form(layout, loc=low, scale=np.where(span > 0, span, 1.0))


def _range(array: np.ndarray, where: str, axis: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The lowest values, and how far the highest lie above them, in float64."""
    if array.dtype.kind not in "biuf":
        raise UserError(f"{where}: expected numbers, got dtype {array.dtype}")
    low = np.asarray(array.min(axis), np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        span = np.asarray(array.max(axis), np.float64) - low
    if not (np.isfinite(low).all() and np.isfinite(span).all()):
        raise UserError(f"{where}: expected finite numbers, got NaN or inf")
    return low, span
