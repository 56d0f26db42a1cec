"""How a user's arrays become images for a model, and how the model's output becomes arrays again.

A model sees images (N, C, H, W) roughly in the range [0, 1]. Users have grey pictures (N, H, W),
channels last, intensities up to 16, or vectors (N, D) in units of their own. A :class:`Form` is the
map between the two; it is kept with the images, with the fit, and in the run folder.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ngvae_pyro.errors import UserError, described

Layout = Literal[
    "vectors",
    "curves",
    "sequences",
    "grey",
    "channels_last",
    "channels_first",
    "grey_volumes",
    "volumes_last",
    "volumes",
]
# The layouts in words, for messages.
SHAPES: dict[Layout, str] = {
    "vectors": "(N, D)",
    "curves": "(N, L)",
    "sequences": "(N, C, L)",
    "grey": "(N, H, W)",
    "channels_last": "(N, H, W, C)",
    "channels_first": "(N, C, H, W)",
    "grey_volumes": "(N, D, H, W)",
    "volumes_last": "(N, D, H, W, C)",
    "volumes": "(N, C, D, H, W)",
}
VOLUMES: tuple[Layout, ...] = ("grey_volumes", "volumes_last", "volumes")
# What to do about NaN, for messages.
MISSING_HINT = "data.missing = true, in Python missing=True, takes NaN as missing"
# Numbers converted at once, because a copy of all of them in float64 may not fit.
_BLOCK = 2**17


@dataclass(frozen=True)
class Covariate:
    """What is known of an image besides its latents, and how it becomes columns of a design.

    Classes become as many columns, 1 for the class that is there and 0 for the others; numbers
    become one column, (value - mean) / sd.

    Attributes:
        name: Of the column that holds it.
        classes: The classes, in the order of their columns; none for numbers.
        mean: Of the numbers, in their units.
        sd: Their standard deviation.
    """

    name: str
    classes: tuple[str, ...] = ()
    mean: float = 0.0
    sd: float = 1.0

    @classmethod
    def of(cls, name: str, values: np.ndarray, where: str) -> "Covariate":
        """The coding of values: text (N,) is classes, in alphabetical order, and others numbers.

        Raises:
            UserError: For values that are neither, and for NaN and infinity.
        """
        values = _values(values, f"{where}: covariate {name!r}")
        if values.dtype.kind == "U":
            return cls(name, tuple(np.unique(values).tolist()))
        return cls(name, mean=float(values.mean()), sd=float(values.std()) or 1.0)

    @property
    def size(self) -> int:
        """How many columns it has."""
        return len(self.classes) or 1

    def coded(self, values: np.ndarray, where: str) -> np.ndarray:
        """Values (N,) as columns (N, size), float32.

        Raises:
            UserError: For a class that is not known, and for numbers in place of classes or classes
                in place of numbers.
        """
        where = f"{where}: covariate {self.name!r}"
        values = _values(values, where)
        if not self.classes:
            if values.dtype.kind == "U":
                raise UserError(f"{where}: expected numbers, got text, such as {values[0]!r}")
            return ((values - self.mean) / self.sd).astype(np.float32)[:, None]
        if values.dtype.kind != "U":
            raise UserError(f"{where}: expected one of {self._shown}, got {values[0]:g}")
        columns = values[:, None] == np.array(self.classes)
        if unknown := values[~columns.any(1)].tolist():
            raise UserError(f"{where}: expected one of {self._shown}, got {unknown[0]!r}")
        return columns.astype(np.float32)

    def values(self, columns: np.ndarray) -> np.ndarray:
        """The values (N,) of columns (N, size): text or float64."""
        if self.classes:
            return np.array(self.classes)[columns.argmax(1)]
        return columns[:, 0].astype(np.float64) * self.sd + self.mean

    @property
    def _shown(self) -> str:
        few = ", ".join(map(repr, self.classes[:10]))
        return few if len(self.classes) <= 10 else f"{few}, ..."


def _values(values: np.ndarray, where: str) -> np.ndarray:
    """The values of a covariate: text, or finite float64."""
    if values.dtype.kind == "O" and all(isinstance(value, str) for value in values.flat):
        values = values.astype(str)
    if values.ndim != 1 or not len(values) or values.dtype.kind not in "biufU":
        raise UserError(
            f"{where}: expected numbers or text of shape (N,), got {values.dtype} of shape "
            f"{values.shape}"
        )
    if values.dtype.kind == "U":
        return values
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise UserError(f"{where}: expected finite numbers, got NaN or inf")
    return values


def named(covariates: Sequence[Covariate]) -> str:
    """Covariates in words."""
    return ", ".join(covariate.name for covariate in covariates) or "none"


def declarations(covariates: Sequence[Covariate]) -> list[str]:
    """The names by which covariates are declared: C(name) for classes."""
    return [f"C({one.name})" if one.classes else one.name for one in covariates]


def design(covariates: Sequence[Covariate], values: Mapping[str, np.ndarray], where: str) -> Tensor:
    """The design matrix (N, Q) of values (N,) by name.

    Raises:
        UserError: As :meth:`Covariate.coded`, and for values under other names.
    """
    expected = [covariate.name for covariate in covariates]
    if sorted(values) != sorted(expected):
        raise UserError(
            f"{where}: expected the covariates {named(covariates)}, as what was fitted, got "
            f"{', '.join(values) or 'none'}"
        )
    if not covariates:
        raise UserError(f"{where}: expected none, as in what was fitted, got a table of none")
    columns = [covariate.coded(values[covariate.name], where) for covariate in covariates]
    if len({len(column) for column in columns}) > 1:
        raise UserError(f"{where}: expected covariates of one length, got others")
    return torch.from_numpy(np.concatenate(columns, 1))


def undesign(covariates: Sequence[Covariate], design: Tensor) -> dict[str, np.ndarray]:
    """The values (N,) by name of a design matrix (N, Q)."""
    parts = design.split([covariate.size for covariate in covariates], 1)
    pairs = zip(covariates, parts, strict=True)
    return {covariate.name: covariate.values(part.numpy()) for covariate, part in pairs}


@dataclass(frozen=True, eq=False)
class Form:
    """The map from a user's arrays to a model's images, and back.

        image = (array - loc) / scale

    Attributes:
        layout: The axes of the arrays, one of :data:`SHAPES`. Vectors (N, D) become images
            (N, 1, 1, D), sequences (N, C, L) images (N, C, 1, L), and curves (N, L), which are
            sequences of one channel, images (N, 1, 1, L). Volumes (N, C, D, H, W) become images
            (N, C, D H, W): their D slices one below the other.
        in_bytes: Whether the arrays were uint8 in 0..255, from which images in [0, 1] are made.
        loc: float64. For vectors the mean of each column, (D,); for sequences that of each channel,
            (C, 1) or (1,); for images the lowest value, (). None for images that are bytes, or
            already in [0, 1].
        scale: Likewise. For vectors the standard deviation of each column, (D,); for sequences that
            of each channel; for images the range of the values, ().
        columns: The names of the columns of vectors or curves, if they have names.
        covariates: What comes with each entry besides the array, and how it is coded.
        missing: Whether NaN in the arrays stands for a value that is missing.
        depth: D of volumes; 0 of all else.
    """

    layout: Layout = "channels_first"
    in_bytes: bool = False
    loc: np.ndarray | None = None
    scale: np.ndarray | None = None
    columns: tuple[str, ...] = ()
    covariates: tuple[Covariate, ...] = ()
    missing: bool = False
    depth: int = 0

    def __repr__(self) -> str:
        units = "bytes" if self.in_bytes else "[0, 1]"
        if self.loc is not None and self.scale is not None:
            units = f"{self.loc:g} to {self.loc + self.scale:g}" if self.loc.ndim == 0 else "own"
            units = "counts" if self.raw else units
        return f"Form({SHAPES[self.layout]}, units: {units})"

    @property
    def dimensions(self) -> int:
        """How many axes the arrays have."""
        return SHAPES[self.layout].count(",") + 1

    @property
    def unit(self) -> bool:
        """Whether values need no map: images in [0, 1], or bytes that count in 255ths."""
        return self.loc is None

    @property
    def raw(self) -> bool:
        """Whether the model has the values as they are, in units of their own: counts."""
        own = self.loc is not None and self.scale is not None
        return own and not np.any(self.loc) and bool(np.all(self.scale == 1.0))

    @property
    def sequential(self) -> bool:
        """Whether the arrays are sequences, of one channel or of several."""
        return self.layout in ("curves", "sequences")

    @property
    def standardised(self) -> bool:
        """Whether the arrays are vectors or sequences, which are no intensities."""
        return self.layout == "vectors" or self.sequential

    def same_units(self, other: "Form") -> bool:
        """Whether both map an array to the same numbers."""
        pairs = (self.loc, other.loc), (self.scale, other.scale)
        # None equals only None.
        return all(np.array_equal(np.asarray(one), np.asarray(two)) for one, two in pairs)

    def check_columns(self, columns: Sequence[str], where: str) -> None:
        """Refuse vectors whose columns have other names than those of this form.

        Args:
            columns: The names; like those of this form, none if there are none.
            where: What the vectors are, for the message.

        Raises:
            UserError: Naming the first column that differs.
        """
        if self.columns and columns:
            for i, (own, other) in enumerate(zip(self.columns, columns, strict=False)):
                if own != other:
                    raise UserError(
                        f"{where}: expected column {own!r} as number {i}, as what was fitted, "
                        f"got {other!r}"
                    )

    def shape_of(self, images: Sequence[int]) -> tuple[int, ...]:
        """The shape of one entry of the arrays, for images of shape (C, H, W).

        >>> Form("channels_last").shape_of((3, 8, 9))
        (8, 9, 3)
        >>> Form("volumes", depth=4).shape_of((1, 32, 9))
        (1, 4, 8, 9)
        """
        channels, height, width = images
        if self.depth:
            volume = (self.depth, height // self.depth, width)
            of_volumes = {"grey_volumes": volume, "volumes_last": (*volume, channels)}
            return of_volumes.get(self.layout, (channels, *volume))
        shapes = {
            "vectors": (channels * height * width,),
            "curves": (width,),
            "sequences": (channels, width),
            "grey": (height, width),
            "channels_last": (height, width, channels),
        }
        return shapes.get(self.layout, (channels, height, width))

    def images(self, array: np.ndarray, where: str) -> np.ndarray:
        """Convert an array to images (N, C, H, W).

        Args:
            array: An array in this layout and these units.
            where: What it is, for the message.

        Returns:
            uint8, and values in [0, 1], unchanged; anything else as float32.

        Raises:
            UserError: For another number of axes, for values that are not numbers, and for infinity
                and, unless values may be missing, NaN.
        """
        if array.ndim != self.dimensions:
            raise UserError(
                f"{where}: expected shape {SHAPES[self.layout]}, as what was fitted, "
                f"got {tuple(array.shape)}"
            )
        if array.dtype.kind not in "biuf":
            raise UserError(f"{where}: expected numbers, got dtype {array.dtype}")
        if self.loc is not None and self.scale is not None:
            if self.layout in ("vectors", "sequences") and array.shape[1] != len(self.loc):
                what = "columns" if self.layout == "vectors" else "channels"
                raise UserError(
                    f"{where}: expected {len(self.loc)} {what}, as what was fitted, "
                    f"got {array.shape[1]}"
                )
            values = np.empty(array.shape, np.float32)
            rows = max(1, _BLOCK // max(1, array[:1].size))
            # Values too large for float32 become inf, which is refused.
            with np.errstate(over="ignore", invalid="ignore"):
                for start in range(0, len(array), rows):
                    part = array[start : start + rows].astype(np.float64)
                    values[start : start + rows] = (part - self.loc) / self.scale
            array = values
        elif array.dtype.kind in "iu" and array.dtype != np.uint8:
            array = array.astype(np.float32)
        check_finite(array, where, self.missing)
        if self.layout in ("vectors", "curves"):
            return array[:, None, None, :]
        if self.layout == "sequences":
            return array[:, :, None, :]
        if self.layout == "grey":
            return array[:, None]
        if self.depth:
            return flattened(array, self, where)
        return np.moveaxis(array, 3, 1) if self.layout == "channels_last" else array

    def arrays(self, images: Tensor) -> Tensor:
        """Convert the model's images (N, C, H, W) to the layout and units of the arrays.

        Returns:
            A tensor on the same device: float32 in [0, 1] if the arrays were in [0, 1] or bytes,
            and float64 if they have units of their own.
        """
        if self.layout in ("vectors", "curves"):
            images = images.flatten(1)
        elif self.layout == "sequences":
            images = images.squeeze(2)
        elif self.layout == "grey":
            images = images.squeeze(1)
        elif self.layout == "channels_last":
            images = images.movedim(1, 3)
        elif self.depth:
            images = images.unflatten(2, (self.depth, -1))
            if self.layout == "grey_volumes":
                images = images.squeeze(1)
            elif self.layout == "volumes_last":
                images = images.movedim(1, 4)
        if self.loc is None or self.scale is None:
            return images
        loc, scale = (torch.from_numpy(v).to(images.device) for v in (self.loc, self.scale))
        return images.double() * scale + loc

    def log_volume(self, numbers: int) -> float:
        """The log volume, in the units of the arrays, of a unit volume of the model.

        Subtracting it converts a log density over images to one over arrays:
        log p(array) = log p(image) - sum log scale.

        Args:
            numbers: How many numbers an image has.
        """
        if self.scale is None:
            return numbers * math.log(255) if self.in_bytes else 0.0
        # Each scale is that of as many numbers as any other.
        return float(np.log(self.scale).sum() * (numbers // self.scale.size))

    def log_volumes(self, images: Tensor) -> np.ndarray:
        """As :meth:`log_volume` of the values that are there, for images (N, C, H, W), (N,)."""
        if self.scale is None:
            each = np.full(images.shape[1:], math.log(255) if self.in_bytes else 0.0)
        else:
            # The scale of sequences has no axis for their one row.
            scale = self.scale[:, None] if self.scale.ndim == 2 else self.scale
            each = np.broadcast_to(np.log(scale), images.shape[1:])
        seen: np.ndarray = ~images.isnan().numpy()
        return (seen * each).sum((1, 2, 3))


def check_finite(array: np.ndarray, where: str, missing: bool) -> None:
    """Refuse infinity and, unless values may be missing, NaN.

    Raises:
        UserError: With what would take NaN.
    """
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    infinite = np.isinf(array).any()
    if missing and not infinite:
        return
    hint = "" if infinite else f"; {MISSING_HINT}"
    raise UserError(f"{where}: expected finite numbers, got NaN or inf{hint}")


def check_observed(array: np.ndarray, where: str, columns: Sequence[str] = ()) -> None:
    """Refuse arrays (N, ...) of which a value is missing in all N entries.

    Raises:
        UserError: With the place of the first such value, or the name of its column.
    """
    if array.dtype.kind != "f" or not (nowhere := np.isnan(array).all(0)).any():
        return
    place = tuple(np.argwhere(nowhere)[0].tolist())
    what = f"column {columns[place[0]]!r}" if columns else f"the value at {list(place)}"
    raise UserError(
        f"{where}: expected a value in at least one of {len(array)} rows, {what} is missing in all"
    )


def counting(counts: np.ndarray, layout: Layout, where: str, missing: bool = False) -> Form:
    """The form of counts, which a model has as they are.

    Raises:
        UserError: For anything but whole numbers from 0 on.
    """
    low = _range(counts, where, tuple(range(counts.ndim)), missing)[0].item()
    broken = counts != np.floor(counts)
    if missing:
        broken &= ~np.isnan(counts)
    if low < 0 or broken.any():
        got = f"{low:g}" if low < 0 else f"{counts[broken].flat[0]:g}"
        raise UserError(f"{where}: expected counts, whole numbers from 0 on, got {got}")
    shapes = {"vectors": counts.shape[1:], "sequences": (counts.shape[1], 1), "curves": (1,)}
    shape = shapes.get(layout, ())
    return Form(layout, loc=np.zeros(shape), scale=np.ones(shape), missing=missing)


def units_shape(layout: Layout, image_shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of ``loc`` and ``scale`` of a form, for images of shape (C, H, W).

    >>> units_shape("sequences", (3, 1, 90))
    (3, 1)
    """
    channels, _, width = image_shape
    shapes = {"vectors": (width,), "sequences": (channels, 1), "curves": (1,)}
    return shapes.get(layout, ())


def standardising(
    array: np.ndarray,
    where: str,
    layout: Layout = "vectors",
    missing: bool = False,
) -> Form:
    """The form that standardises vectors or sequences: (value - mean) / standard deviation.

    Each column of vectors is standardised on its own, and each channel of sequences. What never
    varies gets the scale 1.

    Args:
        array: Vectors (N, D), curves (N, L) or sequences (N, C, L).
        where: What it is, for the message.
        layout: Which of these.
        missing: Whether NaN stands for a missing value; the moments are those of the others.

    Raises:
        UserError: For an empty array, and for values that are not numbers, are not finite, or are
            so large that their standard deviation is not finite.
    """
    if array.ndim != SHAPES[layout].count(",") + 1 or 0 in array.shape:
        raise UserError(
            f"{where}: expected shape {SHAPES[layout]} without a 0, got {tuple(array.shape)}"
        )
    axis = {"vectors": (0,), "curves": (0, 1), "sequences": (0, 2)}[layout]
    low, span = _range(array, where, axis, missing)
    # Scaled to [0, 1] nothing overflows, and values that differ stay different.
    part = (array.astype(np.float64) - low) / np.where(span > 0, span, 1.0)
    moments = (np.nanmean, np.nanstd) if missing else (np.mean, np.std)
    mean, deviation = (of(part, axis=axis, keepdims=True)[0] for of in moments)
    # If the span is only a few of the last bits of float64, the standard deviation underflows.
    scale = np.where(span > 0, np.maximum(span * deviation, np.finfo(np.float64).tiny), 1.0)
    return Form(layout, loc=low + span * mean, scale=scale, missing=missing)


def sequential(layout: str, shape: Sequence[int], where: str) -> Literal["curves", "sequences"]:
    """The layout of an array that is said to hold sequences.

    Raises:
        UserError: For anything but ``sequences``, and for arrays that are neither (N, L) nor
            (N, C, L).
    """
    if layout != "sequences":
        raise UserError(
            f"{where}: layout: expected sequences, volumes or None, got {described(layout)}"
        )
    if len(shape) not in (2, 3):
        raise UserError(
            f"{where}: expected sequences (N, L) or (N, C, L), got shape {tuple(shape)}"
        )
    return "curves" if len(shape) == 2 else "sequences"


def declared(layout: str | None, shape: Sequence[int], where: str) -> Layout | None:
    """The layout of an array that is said to hold sequences or volumes, or has the axes of volumes.

    Raises:
        UserError: For any other layout, and for arrays that do not have its axes.
    """
    if layout is None:
        return _of_volumes(shape, where) if len(shape) == 5 and 0 not in shape else None
    if layout == "volumes":
        if len(shape) not in (4, 5) or 0 in shape:
            raise UserError(
                f"{where}: expected volumes (N, D, H, W), (N, C, D, H, W) or (N, D, H, W, C) "
                f"without a 0, got shape {tuple(shape)}"
            )
        return "grey_volumes" if len(shape) == 4 else _of_volumes(shape, where)
    return sequential(layout, shape, where)


def _of_volumes(shape: Sequence[int], where: str) -> Layout:
    """Which axis of volumes with five of them holds the channels, by the rule for images.

    Raises:
        UserError: If it could be both or neither.
    """
    _, first, *sides, last = shape
    if first == last == 1:
        return "volumes"
    found = [first in (1, 3), last in (1, 3)]
    if not any(found):
        found = [first < min(*sides, last), last < min(first, *sides)]
    if found[0] == found[1]:
        raise UserError(
            f"{where}: expected (N, C, D, H, W) or (N, D, H, W, C) with C 1, 3 or below D, H and "
            f"W, got {tuple(shape)}, which {'could be both' if found[0] else 'is neither'}"
        )
    return "volumes" if found[0] else "volumes_last"


def depth_of(layout: Layout, shape: Sequence[int]) -> int:
    """D of arrays of volumes; 0 for all else."""
    axis = {"grey_volumes": 1, "volumes_last": 1, "volumes": 2}.get(layout)
    return 0 if axis is None else shape[axis]


def flattened(array: np.ndarray, form: Form, where: str) -> np.ndarray:
    """Volumes as images (N, C, D H, W).

    Raises:
        UserError: For another depth than that of the form.
    """
    if (depth := depth_of(form.layout, array.shape)) != form.depth:
        raise UserError(
            f"{where}: expected a depth of {form.depth}, as what was fitted, got {depth}"
        )
    if form.layout == "grey_volumes":
        array = array[:, None]
    elif form.layout == "volumes_last":
        array = np.moveaxis(array, 4, 1)
    count, channels, _, height, width = array.shape
    return array.reshape(count, channels, depth * height, width)


def ranging(images: np.ndarray, layout: Layout, where: str, missing: bool = False) -> Form:
    """The form of images with any range: the lowest value becomes 0 and the highest 1."""
    found = _range(images, where, tuple(range(images.ndim)), missing)
    low, span = (part.reshape(()) for part in found)
    return Form(layout, loc=low, scale=np.where(span > 0, span, 1.0), missing=missing)


def _range(
    array: np.ndarray, where: str, axis: tuple[int, ...], missing: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The lowest values over some axes, N among them, and their distances to the highest ones.

    Of the axes only N is dropped. They are float64. Missing values are left out.
    """
    if array.dtype.kind not in "biuf":
        raise UserError(f"{where}: expected numbers, got dtype {array.dtype}")
    if missing:
        check_observed(array, where)
    # The second two leave NaN out, the first two do not.
    least, most = (np.fmin, np.fmax) if missing else (np.minimum, np.maximum)
    low = np.asarray(least.reduce(array, axis, keepdims=True)[0], np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        span = np.asarray(most.reduce(array, axis, keepdims=True)[0], np.float64) - low
    if not (np.isfinite(low).all() and np.isfinite(span).all()):
        check_finite(array, where, missing)
        raise UserError(f"{where}: expected finite numbers, got NaN or inf")
    return low, span
