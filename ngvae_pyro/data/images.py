"""Images in memory, with their generating factors if these are known."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ngvae_pyro.contexts import given
from ngvae_pyro.data.forms import (
    MISSING_HINT,
    Covariate,
    Form,
    Layout,
    check_finite,
    check_observed,
    counting,
    declared,
    depth_of,
    design,
    flattened,
    named,
    ranging,
    standardising,
    undesign,
)
from ngvae_pyro.data.rows import Rows, block_rows, written
from ngvae_pyro.errors import UserError, described, expect, nearest

_Rows = TypeVar("_Rows", Tensor, np.ndarray)


def generator(seed: int) -> torch.Generator:
    """A seeded CPU generator.

    Raises:
        UserError: If torch does not accept the seed.
    """
    if not isinstance(seed, Integral) or not 0 <= seed < 2**63:
        raise UserError(f"seed: expected an integer in [0, 2**63), got {described(seed)}")
    return torch.Generator().manual_seed(int(seed))


def known_count(factors: Sequence[str] | None) -> int | None:
    """How many factors the images are made from, if known; a class label does not tell.

    >>> known_count(["x", "y"]), known_count(["label"]), known_count(None)
    (2, None, None)
    """
    return None if not factors or list(factors) == ["label"] else len(factors)


@overload
def parts(images: Rows) -> Iterator[Tensor]: ...
@overload
def parts(images: _Rows) -> Iterator[_Rows]: ...
def parts(images: Any) -> Iterator[Any]:
    """Views of the images in order, ``BLOCK`` bytes at a time; rows of a file are read."""
    rows = block_rows(images[:1].nbytes)
    if isinstance(images, Rows):
        yield from images.split(rows)
        return
    for start in range(0, len(images), rows):
        yield images[start : start + rows]


# Reading arrays ------------------------------------------------------------------------------


def channels_axis(shape: Sequence[int], where: str) -> int | None:
    """The axis of an array of images that holds the channels; None for (N, H, W).

    Between (N, C, H, W) and (N, H, W, C), it is the one whose C is 1 or 3, or, if neither is, the
    one whose C is below both H and W.

    Raises:
        UserError: For other shapes, and for those that could be both or neither.
    """
    if len(shape) not in (3, 4) or 0 in shape:
        raise UserError(
            f"{where}: expected shape (N, H, W), (N, C, H, W) or (N, H, W, C) without a 0, "
            f"got {tuple(shape)}"
        )
    if len(shape) == 3:
        return None
    _, first, side, last = shape
    if first == side == last == 1:
        return 1
    found = [first in (1, 3), last in (1, 3)]
    if not any(found):
        found = [first < min(side, last), last < min(first, side)]
    if found[0] == found[1]:
        problem = "could be both" if found[0] else "is neither"
        raise UserError(
            f"{where}: expected (N, C, H, W) or (N, H, W, C) with C 1, 3 or below H and W, got "
            f"{tuple(shape)}, which {problem}; pass grey images as (N, H, W), and others to "
            "ngvae_pyro.ImageData.stored, which takes (N, C, H, W) as it is"
        )
    return 1 if found[0] else 3


def layout_of(shape: Sequence[int], where: str) -> Layout:
    """The layout of an array of images.

    Raises:
        UserError: As :func:`channels_axis`.
    """
    layouts: dict[int | None, Layout] = {None: "grey", 1: "channels_first", 3: "channels_last"}
    return layouts[channels_axis(shape, where)]


def stored_dtype(dtype: np.dtype, where: str) -> np.dtype:
    """The type in which images of a type are stored: uint8 for bytes and bool, else float32."""
    if dtype.kind not in "biuf":
        raise UserError(f"{where}: expected numbers, got dtype {dtype}")
    return np.dtype(np.uint8 if dtype.kind == "b" or dtype == np.uint8 else np.float32)


def has_range(dtype: np.dtype) -> bool:
    """Whether images of a type have a range of their own: integers that are no bytes."""
    return dtype.kind in "iu" and dtype != np.uint8


def channels_first(array: np.ndarray, axis: int | None) -> np.ndarray:
    """An array of images as a view (N, C, H, W)."""
    return array[:, None] if axis is None else np.moveaxis(array, axis, 1)


def checked_values(
    images: np.ndarray, where: str, boolean: bool, own: bool, missing: bool = False
) -> np.ndarray:
    """Check images (N, C, H, W) of a stored type, and return them as uint8 or float32 in [0, 1].

    uint8 that holds only 0 and 1 means black and white and becomes 0 and 255.

    Args:
        images: uint8 or float32.
        where: What they are, for the message.
        boolean: Whether they were bool.
        own: Whether the array may be changed in place.
        missing: Whether NaN stands for a missing value.

    Raises:
        UserError: For floating point out of range.
    """
    if images.dtype != np.uint8:
        low, high = np.float32(np.inf), np.float32(-np.inf)
        # Unlike Python's min and max the second two propagate NaN, which then fails every
        # comparison; the first two leave it out.
        least, most = (np.fmin, np.fmax) if missing else (np.minimum, np.maximum)
        for part in parts(images):
            low = least(low, least.reduce(part, axis=None))
            high = most(high, most.reduce(part, axis=None))
        if not (low >= 0 and high <= 1):
            hint = f"; {MISSING_HINT}" if np.isnan(low) else ""
            raise UserError(f"{where}: expected floats in [0, 1], got {low:g} to {high:g}{hint}")
        return images
    if not boolean and any(part.max() > 1 for part in parts(images)):
        return images
    white = images if own else np.empty_like(images)
    for part, out in zip(parts(images), parts(white), strict=True):
        # A bool array read from a file can contain any byte.
        np.multiply(np.minimum(part, 1), np.uint8(255), out=out)
    return white


def _on_cpu(tensor: Tensor, where: str) -> Tensor:
    """A tensor on the CPU; one that is sparse or has no values is refused."""
    if tensor.layout != torch.strided or tensor.is_meta:
        kind = "a meta tensor without values" if tensor.is_meta else str(tensor.layout)
        raise UserError(f"{where}: expected a dense tensor, got {kind}")
    return tensor.detach().cpu()


def number_array(values: Any, where: str) -> np.ndarray:
    """Convert an array, a tensor or any object with an array interface to a numpy array.

    Raises:
        UserError: If it is none of these, or a tensor that is sparse or has no values.
    """
    if isinstance(values, Tensor):
        values = _on_cpu(values, where)
        if values.dtype == torch.bfloat16:  # numpy has no bfloat16
            values = values.float()
        return values.numpy()
    # Pillow's pictures have the second of these.
    if hasattr(values, "__array__") or hasattr(values, "__array_interface__"):
        return np.asarray(values)
    raise UserError(f"{where}: expected an array or a tensor, got {type(values).__name__}")


def image_tensor(
    images: Any,
    where: str,
    *,
    layout: str | None = None,
    missing: bool = False,
) -> tuple[Tensor, Form]:
    """Convert images of any accepted layout and type to stored form, (N, C, H, W).

    Args:
        images: An array or a tensor, as for :class:`ImageData`. It is not changed, and shares its
            memory with the result if it already has the stored form.
        where: What it is, for the message.
        layout: ``sequences`` for curves (N, L) and sequences (N, C, L), ``volumes`` for volumes
            (N, D, H, W); those with an axis of channels too need none.
        missing: Whether NaN stands for a missing value.

    Returns:
        The images and their form.
    """
    array = number_array(images, where)
    found = declared(layout, array.shape, where)
    if found is not None and (depth := depth_of(found, array.shape)):
        # As images with as many rows as all slices have.
        known = Form(found, depth=depth)
        stored, form = _of_images(
            flattened(array, known, where), 1, "channels_first", where, missing
        )
        return stored, replace(form, layout=found, depth=depth)
    if found is not None or array.ndim == 2:
        form = standardising(array, where, found or "vectors", missing)
        return tensor_of(array, form, where), form
    axis, of_images = channels_axis(array.shape, where), layout_of(array.shape, where)
    return _of_images(array, axis, of_images, where, missing)


def _of_images(
    array: np.ndarray,
    axis: int | None,
    found_layout: Layout,
    where: str,
    missing: bool,
) -> tuple[Tensor, Form]:
    """Convert images whose channels are at a known axis, as :func:`image_tensor`."""
    if of_another_range(array):
        form = ranging(array, found_layout, where, missing)
        return tensor_of(array, form, where), form
    if missing:
        check_observed(array, where)
    dtype, boolean = stored_dtype(array.dtype, where), array.dtype.kind == "b"
    found = channels_first(array.view(np.uint8) if boolean else array, axis)
    # Torch warns about memory that is not writeable.
    own = found.dtype != dtype or not (found.flags.c_contiguous and found.flags.writeable)
    if own:
        source, found = found, np.empty(found.shape, dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # infinity is refused below
            # Not by their parts, which have other numbers of rows where the types differ in size.
            rows = block_rows(source[:1].nbytes)
            for start in range(0, len(source), rows):
                found[start : start + rows] = source[start : start + rows]
    # Images of only 0 and 1 are black and white, not bytes in 0..255.
    shades = array.dtype == np.uint8 and any(part.max() > 1 for part in parts(array))
    stored = checked_values(found, where, boolean, own, missing)
    return torch.from_numpy(stored), Form(found_layout, in_bytes=shades, missing=missing)


def tensor_of(array: np.ndarray, form: Form, where: str) -> Tensor:
    """Convert further images of a known form to stored form; their bytes are taken literally."""
    found = form.images(array, where)
    boolean = found.dtype.kind == "b"
    if boolean:
        found = found.view(np.uint8)
    elif found.dtype.kind == "f":
        with np.errstate(over="ignore"):  # infinity is refused below
            found = found.astype(np.float32)
    # Torch warns about memory that is not writeable.
    if not (found.flags.c_contiguous and found.flags.writeable):
        found = found.copy("C")
    if form.unit and not (form.in_bytes and found.dtype == np.uint8):
        found = checked_values(found, where, boolean, own=False, missing=form.missing)
    return torch.from_numpy(found)


def of_another_range(array: np.ndarray) -> bool:
    """Whether images are neither bytes, nor black and white, nor in [0, 1]."""
    if array.dtype.kind == "f":
        # Those that leave NaN out, which is refused later if no value may be missing.
        low, high = np.fmin.reduce(array, axis=None), np.fmax.reduce(array, axis=None)
        return bool(low < 0 or high > 1)
    return has_range(array.dtype)


def class_numbers(text: np.ndarray) -> np.ndarray:
    """Text (N, F) or (N,) as classes: each its number in the alphabetical order of its column.

    The order is that of the characters' code points. It depends on which texts there are, and not
    on the order of the rows.

    >>> class_numbers(np.array(["square", "ellipse", "heart", "square"]))
    array([2, 0, 1, 2])
    """
    found = np.empty(text.shape, np.int64)
    for column, out in zip(np.atleast_2d(text.T), np.atleast_2d(found.T), strict=True):
        out[...] = np.unique(column, return_inverse=True)[1]
    return found


def factor_tensor(factors: Any, where: str) -> Tensor:
    """Convert factors (N, F) or (N,) to stored form: (N, F), float32, on the CPU.

    Text becomes classes (:func:`class_numbers`).
    """
    if isinstance(factors, Tensor):
        factors = _on_cpu(factors, where).to(torch.float32).numpy()
    array = np.asarray(factors)
    # Text of a pandas column is an array of objects.
    if array.dtype.kind == "O" and all(isinstance(value, str) for value in array.flat):
        array = array.astype(str)
    if array.dtype.kind == "U" and array.ndim in (1, 2):
        array = class_numbers(array)
    if array.dtype.kind not in "biuf" or array.ndim not in (1, 2):
        raise UserError(
            f"{where}: expected numbers or text of shape (N, F), got {array.dtype} of shape "
            f"{array.shape}"
        )
    with np.errstate(over="ignore", invalid="ignore"):  # infinity is refused below
        array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{where}: expected finite float32 values, got NaN or inf")
    # Copied if it is not writeable, because torch would warn about that.
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    return tensor[:, None] if tensor.ndim == 1 else tensor


@dataclass(frozen=True, eq=False, repr=False, init=False)
class ImageData(Dataset[Tensor]):
    """Images, with their generating factors if these are known.

    Args:
        name: A short name for reports.
        images: An array or a tensor, (N, H, W), (N, C, H, W) or (N, H, W, C), with C 1, 3 or below
            both H and W; stored as (N, C, H, W) on the CPU. uint8 stays in 0..255, unless it holds
            only 0 and 1: these mean black and white, as in bool, and become 0 and 255. Floating
            point becomes float32: in [0, 1] as it is, and in any other range, as other integers,
            so that the lowest value becomes 0 and the highest 1. Arrays that already have the
            stored form are not copied. A ``numpy.memmap`` stays on the disk
            (:class:`ngvae_pyro.data.rows.Rows`). Vectors (N, D) in any units are stored as
            (N, 1, 1, D) after
            subtracting each column's mean and dividing by its standard deviation.
        factors: (N, F) or (N,), stored as float32 in the factors' own units, or None. A factor that
            never varies keeps its column. Text becomes classes: numbers from 0 in the alphabetical
            order of the column's texts.
        factor_names: The F names.
        form: How to read the array, if that is known, such as the form of a fit. By default it
            follows from the array; it maps the array to the stored form.
        layout: ``sequences`` if the array holds sequences (N, C, L), or (N, L) of one channel, such
            as spectra, in any units. They are stored as (N, C, 1, L) after subtracting each
            channel's mean and dividing by its standard deviation. ``volumes`` if it holds volumes
            (N, D, H, W), which like (N, C, D, H, W) and (N, D, H, W, C), which need no layout, have
            the types and ranges of images; they are stored as (N, C, D H, W).
        covariates: What is known of each image besides what its latents are to tell, such as its
            batch or dose: arrays (N,) by name. Text is classes, one column of the design matrix
            each, and so are numbers under C(name); others are standardised. They are coded as
            ``form`` says if it has them. Kept as the design matrix (N, Q), float32, whose columns
            ``form.covariates`` describes.
        missing: Whether NaN stands for a missing value, which is kept as NaN. Moments and ranges
            are those of the values that are there.

    Raises:
        UserError: For a wrong shape, type or range, and for values that are missing in all rows,
            or all of a row.

    >>> ImageData("dots", np.zeros((4, 8, 8, 3), np.uint8))
    ImageData('dots', 4 images of 3x8x8, no factors)
    """

    name: str
    images: Tensor | Rows
    factors: Tensor | None
    factor_names: tuple[str, ...]
    form: Form
    covariates: Tensor | None

    def __init__(
        self,
        name: str,
        images: np.ndarray | Tensor,
        factors: np.ndarray | Tensor | None = None,
        factor_names: Sequence[str] = (),
        form: Form | None = None,
        layout: str | None = None,
        covariates: Mapping[str, Any] | None = None,
        missing: bool = False,
    ) -> None:
        if not isinstance(name, str):
            raise UserError(
                "ImageData: expected a name and then the images, "
                f"got {type(name).__name__} as the name"
            )
        object.__setattr__(self, "name", name)
        where = f"{name}: images"
        stored: Tensor | Rows
        if form is not None and (layout is not None or missing):
            key = "missing" if missing else "a layout"
            raise UserError(f"{name}: expected a form or {key}, got both")
        if form is not None:
            expect("form", form, Form, "an ngvae_pyro.forms.Form, such as fit.form")
        if isinstance(images, np.memmap):
            from ngvae_pyro.data.streams import stream_array

            if missing:
                raise UserError(f"{name}: missing: data that stay on the disk have no NaN")
            stored, form = stream_array(images, where, layout, form=form)
        elif form is None:
            stored, form = image_tensor(images, where, layout=layout, missing=missing)
        else:
            stored = tensor_of(number_array(images, where), form, where)
        self._set(stored, factors, factor_names, form, covariates)

    @classmethod
    def stored(
        cls,
        name: str,
        images: Tensor | Rows,
        factors: np.ndarray | Tensor | None = None,
        factor_names: Sequence[str] = (),
        form: Form | None = None,
        covariates: Mapping[str, Any] | Tensor | None = None,
    ) -> "ImageData":
        """Wrap images that already have the stored form: bytes 0 and 1 are two dark greys.

        Args:
            name: As for the class.
            images: (N, C, H, W), uint8 in 0..255 or float32 in [0, 1], on the CPU; any finite
                float32 if the form has units of its own. Rows of a file have been checked before.
            factors: As for the class.
            factor_names: As for the class.
            form: Their form; by default channels first, in [0, 1] or in bytes.
            covariates: As for the class, or the design matrix (N, Q) of the form's covariates.
        """
        if isinstance(images, Rows):
            return cls._made(name, images, factors, factor_names, form, covariates)
        if (
            not isinstance(images, Tensor)
            or images.ndim != 4
            or 0 in images.shape
            or images.dtype not in (torch.uint8, torch.float32)
            or images.device.type != "cpu"
        ):
            raise UserError(
                f"{name}: images: expected a non-empty tensor (N, C, H, W) of uint8 or float32 on "
                f"the CPU, got {_described(images)}"
            )
        if images.is_floating_point():
            if form is None or form.unit:
                missing = form is not None and form.missing
                found = images.detach().numpy()
                checked_values(found, f"{name}: images", False, own=False, missing=missing)
            else:
                check_finite(images.detach().numpy(), f"{name}: images", form.missing)
            if form is not None and form.missing:
                _check_rows(images, name)
        return cls._made(name, images.detach(), factors, factor_names, form, covariates)

    @classmethod
    def _made(
        cls,
        name: str,
        images: Tensor | Rows,
        factors: Any,
        factor_names: Sequence[str],
        form: Form | None,
        covariates: Any,
    ) -> "ImageData":
        """Wrap images that have been checked."""
        new = object.__new__(cls)
        object.__setattr__(new, "name", name)
        form = Form(in_bytes=images.dtype == torch.uint8) if form is None else form
        new._set(images, factors, factor_names, form, covariates)
        return new

    @classmethod
    def counts(
        cls,
        name: str,
        counts: np.ndarray | Tensor,
        factors: np.ndarray | Tensor | None = None,
        factor_names: Sequence[str] = (),
        layout: str | None = None,
        covariates: Mapping[str, Any] | None = None,
        missing: bool = False,
    ) -> "ImageData":
        """Counts as they are, for a likelihood of counts.

        Args:
            name: As for the class.
            counts: Whole numbers from 0 on, of any type, in one of the shapes of the class.
            factors: As for the class.
            factor_names: As for the class.
            layout: As for the class.
            covariates: As for the class.
            missing: As for the class.

        Raises:
            UserError: As for the class, and for anything but counts.

        >>> ImageData.counts("cells", np.arange(6).reshape(3, 2))
        ImageData('cells', 3 vectors of 2, no factors)
        """
        where = f"{name}: counts"
        if isinstance(counts, np.memmap):
            from ngvae_pyro.data.streams import stream_array

            if missing:
                raise UserError(f"{name}: missing: data that stay on the disk have no NaN")
            rows, form = stream_array(counts, where, layout, counts=True)
            return cls.stored(name, rows, factors, factor_names, form, covariates)
        array = number_array(counts, where)
        if 0 in array.shape:
            raise UserError(f"{where}: expected a shape without a 0, got {array.shape}")
        found = declared(layout, array.shape, where)
        if found is None:
            found = "vectors" if array.ndim == 2 else layout_of(array.shape, where)
        form = counting(array, found, where, missing)
        form = replace(form, depth=depth_of(found, array.shape))
        return cls(name, array, factors, factor_names, form, covariates=covariates)

    def as_counts(self) -> "ImageData":
        """The same data as counts, in the units in which they were given.

        Raises:
            UserError: If they are not whole numbers from 0 on, or too large to be told from their
                standardised values in float32.
        """
        if self.form.raw and self.whole:
            return self
        # Bytes count in 255ths of the model's range.
        unit = 255.0 if self.form.in_bytes else 1.0
        reach = 255.0

        def meant(part: Tensor) -> Tensor:
            return unit * self.form.arrays(self.to_unit(part)).double()

        def counted(part: Tensor) -> Tensor:
            arrays = meant(part)
            whole, there = arrays.round(), arrays.nan_to_num()
            apart = (there - there.round()).abs()
            # A standardised value in float32 has a relative error of 2^-24.
            if reach > 2**20 or not bool((apart <= 2**-22 * reach).all()):
                got = arrays[apart == apart.max()][0].item()
                raise UserError(
                    f"{self.name}: expected counts, whole numbers from 0 to {2**20:,}, got {got:g}"
                )
            form = counting(whole.numpy(), self.form.layout, self.name, self.form.missing)
            form = replace(form, depth=self.form.depth)
            return tensor_of(whole.numpy(), form, self.name)

        if self.form.loc is not None:
            pieces = parts(self.images) if isinstance(self.images, Rows) else [self.images]
            reach = max(meant(part).nan_to_num().abs().max().item() for part in pieces)
        images = self.mapped(counted)
        # It has only the shape of what is counted.
        first = meant(self.images[0][None]).nan_to_num().round()
        form = counting(first.numpy(), self.form.layout, self.name)
        own = {name: getattr(self.form, name) for name in ("columns", "covariates", "depth")}
        form = replace(form, **own, missing=self.form.missing)
        return self._like(images, self.factors, self.covariates, form)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Tensor | Rows:
        """What becomes of the stored images; those in a file go to another, a few at a time.

        Args:
            change: Of images (n, C, H, W), which may be any n of these.
        """
        if not isinstance(self.images, Rows):
            return change(self.images)
        blocks = (change(part).numpy() for part in parts(self.images))
        return Rows(written(blocks, self.name, None))

    def _set(
        self,
        images: Tensor | Rows,
        factors: Any,
        factor_names: Sequence[str],
        form: Form,
        covariates: Any,
    ) -> None:
        # A single name is a string, which would otherwise be split into letters.
        names = (factor_names,) if isinstance(factor_names, str) else tuple(factor_names)
        if factors is None:
            if names:
                raise UserError(f"{self.name}: factor names without factors: {', '.join(names)}")
        else:
            factors = factor_tensor(factors, f"{self.name}: factors")
            if factors.shape != (len(images), len(names)):
                raise UserError(
                    f"{self.name}: factors: expected shape {(len(images), len(names))} for "
                    f"{len(images)} images and {len(names)} names, got {tuple(factors.shape)}"
                )
            if len(set(names)) < len(names):
                raise UserError(
                    f"{self.name}: factor names: expected no name twice, got {', '.join(names)}"
                )
        if isinstance(covariates, Mapping):
            where = f"{self.name}: covariates"
            values = {}
            for key, value in covariates.items():
                column, classes = split_covariate(str(key), ())
                found = _column(value, where)
                values[column] = as_classes(found) if classes else found
            if not form.covariates:
                coding = tuple(Covariate.of(*one, self.name) for one in values.items())
                form = replace(form, covariates=coding)
            covariates = design(form.covariates, values, self.name) if values else None
        expect("covariates", covariates, (Tensor, type(None)), "a table of names and arrays (N,)")
        shape = (len(images), sum(covariate.size for covariate in form.covariates))
        if covariates is None and form.covariates:
            raise UserError(
                f"{self.name}: expected the covariates {named(form.covariates)}, as what was "
                "fitted, got none; ngvae_pyro.from_numpy(x, covariates=...) has them"
            )
        if covariates is not None and covariates.shape != shape:
            raise UserError(
                f"{self.name}: covariates: expected {shape[0]} values of each, and {shape[1]} "
                f"columns, got {tuple(covariates.shape)}"
            )
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "factors", factors)
        object.__setattr__(self, "factor_names", names)
        object.__setattr__(self, "form", form)
        object.__setattr__(self, "covariates", covariates)

    def _like(
        self,
        images: Tensor | Rows,
        factors: Tensor | None,
        covariates: Tensor | None,
        form: Form | None = None,
    ) -> "ImageData":
        """Other images in stored form, under the same name."""
        form = self.form if form is None else form
        return type(self).stored(self.name, images, factors, self.factor_names, form, covariates)

    def conditioned(self, names: Sequence[str]) -> "ImageData":
        """The same images with some of their factors as covariates.

        Args:
            names: Names of factors, numbers that are standardised; or C(name), whose values are
                classes.

        Raises:
            UserError: For a factor that is not there.
        """
        if not names:
            return self
        known: dict[str, np.ndarray] = {}
        if self.factors is not None:
            known = dict(zip(self.factor_names, self.factors.T.numpy(), strict=True))
        found = {}
        for text in names:
            name, classes = of_covariate(text, known, self.name)
            found[name] = as_classes(known[name]) if classes else known[name]
        return self.moved(found)

    def moved(self, covariates: Mapping[str, np.ndarray]) -> "ImageData":
        """The same images with covariates, which are no factors any more.

        Args:
            covariates: Arrays (N,) by name.
        """
        left = [i for i, name in enumerate(self.factor_names) if name not in covariates]
        factors = None if self.factors is None or not left else self.factors[:, left]
        names = [self.factor_names[i] for i in left]
        form = replace(self.form, covariates=())
        return type(self).stored(self.name, self.images, factors, names, form, covariates)

    def coded(self, coding: Sequence[Covariate]) -> "ImageData":
        """The same data, whose covariates are coded as those of other data.

        Raises:
            UserError: For other covariates, and for classes that those do not have.
        """
        if self.form.covariates == tuple(coding):
            return self
        form = replace(self.form, covariates=tuple(coding))
        values = {}
        if self.covariates is not None:
            values = undesign(self.form.covariates, self.covariates)
        matrix = design(coding, values, f"data '{self.name}'")
        return self._like(self.images, self.factors, matrix, form)

    @contextmanager
    def given(
        self, rows: slice = slice(None), device: torch.device | str = "cpu"
    ) -> Iterator[Tensor]:
        """Some images, float in [0, 1], on a device; networks are given their covariates inside.

        with data.given(slice(0, 64)) as x:
            svi.step(x)
        """
        matrix = self.covariates
        with given(None if matrix is None else matrix[rows].to(device)):
            yield self.to_unit(self.images[rows].to(device))

    def in_parts(
        self, size: int, device: torch.device | str, count: int | None = None
    ) -> Iterator[Tensor]:
        """All images in order, or the first ``count``, so many at a time, as :meth:`given`.

        The covariates of a part are given until the next one is asked for.
        """
        last = len(self) if count is None else min(count, len(self))
        for start in range(0, last, size):
            with self.given(slice(start, min(start + size, last)), device) as x:
                yield x

    def __repr__(self) -> str:
        size = "x".join(map(str, self.image_shape))
        what = f"images of {size}"
        if self.form.layout == "vectors":
            what = f"vectors of {self.image_shape[-1]}"
        elif self.form.sequential or self.form.depth:
            kind = "volumes" if self.form.depth else "sequences"
            what = f"{kind} of {'x'.join(map(str, self.form.shape_of(self.image_shape)))}"
        factors = ", ".join(self.factor_names) if self.factor_names else "no factors"
        given = f"; covariates {named(self.form.covariates)}" if self.form.covariates else ""
        return f"ImageData({self.name!r}, {len(self)} {what}, {factors}{given})"

    def __len__(self) -> int:
        """The number of images, N."""
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        """One stored image (C, H, W), so that a ``DataLoader`` can stream the data."""
        found: Tensor = self.images[index]
        return found

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def nbytes(self) -> int:
        """The size of the stored images in bytes (not the size that they have as float32)."""
        return self.images.nbytes

    @property
    def digest(self) -> str:
        """SHA-256 of the stored images, their type and shape, and the units of the form, if any.

        And of the covariates, if there are any.
        """
        kind, shape = str(self.images.dtype).removeprefix("torch."), tuple(self.images.shape)
        digest = hashlib.sha256(f"{kind} {shape} ".encode())
        for units in (self.form.loc, self.form.scale):
            if units is not None:
                digest.update(units.tobytes())
        for part in parts(self.images):
            digest.update(part.contiguous().numpy().data)
        if self.covariates is not None:
            digest.update(repr(self.form.covariates).encode())
            digest.update(self.covariates.contiguous().numpy().data)
        return digest.hexdigest()

    @property
    def binary(self) -> bool:
        """Whether every pixel is 0 or 1 (as stored, 0 or 255 where uint8)."""
        white = 255 if self.images.dtype == torch.uint8 else 1
        # Standardised columns that happen to hold only 0 and 1 are not pixels.
        return not self.form.standardised and all(
            bool(((p == 0) | (p == white) | (p != p)).all()) for p in parts(self.images)
        )

    @property
    def whole(self) -> bool:
        """Whether the stored values that are there are whole numbers from 0 on."""
        blocks = self.images.split(1024)
        return all(bool((((p >= 0) & (p == p.floor())) | (p != p)).all()) for p in blocks)

    @property
    def varies(self) -> bool:
        """Whether any image differs from another."""
        # In parts, so that the search stops early if images differ.
        first = self.images[:1]
        first = first.read() if isinstance(first, Rows) else first
        if not self.form.missing:
            return any(bool((part != first).any()) for part in self.images.split(1024))
        for part in self.images.split(1024):
            # The first value that is there, of each place.
            first = first.where(~first.isnan(), _first_seen(part))
            if bool(((part != first) & ~part.isnan()).any()):
                return True
        return False

    @staticmethod
    def to_unit(images: Tensor | Rows) -> Tensor:
        """Stored images as float32, with bytes scaled to [0, 1], on their own device.

        >>> ImageData.to_unit(torch.tensor([0, 51, 255], dtype=torch.uint8))
        tensor([0.0000, 0.2000, 1.0000])
        """
        if images.dtype == torch.uint8:
            # In place: for large batches, allocating a second copy takes longer than dividing.
            return images.to(torch.float32).div_(255)
        if images.dtype.is_floating_point:
            return images.to(torch.float32)
        raise TypeError(f"expected uint8 or floating point images, got {images.dtype}")

    def subset(self, index: Tensor | Sequence[int] | slice) -> "ImageData":
        """The images and their factors at ``index``: numbers, a mask (N,) of bool, or a slice."""
        at: Any = index if isinstance(index, slice) else np.asarray(index)
        if not isinstance(at, slice) and not at.size:
            at = at.astype(int)  # an empty list is one of floats
        images = self.images
        # Numpy copies whole images, where torch would copy pixel by pixel.
        images = images[at] if isinstance(images, Rows) else torch.from_numpy(images.numpy()[at])
        factors = None if self.factors is None else torch.from_numpy(self.factors.numpy()[at])
        matrix = self.covariates
        matrix = None if matrix is None else torch.from_numpy(matrix.numpy()[at])
        return self._like(images, factors, matrix)

    def reordered(self, order: Tensor) -> "ImageData":
        """Like :meth:`subset`, but reuses the memory of these images, whose order changes.

        Images in a file stay as they are.

        Args:
            order: Numbers of images, without repetition.
        """
        if isinstance(self.images, Rows):
            return self.subset(order)
        found = _move(self.images.numpy(), order.numpy())
        if self.factors is not None:
            object.__setattr__(self, "factors", self.factors[found])
        if self.covariates is not None:
            object.__setattr__(self, "covariates", self.covariates[found])
        return self.subset(slice(0, len(order)))

    def fitted(self, image_shape: tuple[int, int, int]) -> tuple["ImageData", str]:
        """Pad or resize the images to another shape.

        Images that are no larger in either direction are padded with black on all sides, others are
        resized (bilinear, antialiased). Grey is repeated over the channels, and colours are
        averaged to grey.

        Args:
            image_shape: (C, H, W).

        Returns:
            The images in that shape, and what was done to them in words ("" for nothing).

        Raises:
            UserError: For any other change of the number of channels.

        >>> data = ImageData("dots", torch.zeros(4, 1, 8, 8, dtype=torch.uint8))
        >>> data.fitted((3, 8, 8))
        (ImageData('dots', 4 images of 3x8x8, no factors), 'grey repeated over 3 channels')
        """
        (channels, *size), (wanted, height, width) = self.image_shape, image_shape
        images, done, form = self.images, [], self.form
        if self.image_shape == tuple(image_shape):
            return self._like(images, self.factors, self.covariates), ""
        if form.standardised or form.depth:
            raise UserError(f"{self.name}: cannot make images {image_shape} of {self!r}")
        # Those whose shape is another are few.
        images = images.to("cpu")
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
                )
                images = images.clamp(0, 1) if form.unit else images
            done.append(f"{size[0]}x{size[1]} {way} to {height}x{width}")
        if channels == 1 < wanted:
            images = images.expand(-1, wanted, -1, -1)
            done.append(f"grey repeated over {wanted} channels")
            if form.layout == "grey":
                form = replace(form, layout="channels_first")
        elif wanted == 1 < channels:
            images = self.to_unit(images).mean(1, keepdim=True)
            done.append("colours averaged to grey")
        elif channels != wanted:
            raise UserError(f"{self.name}: cannot make {wanted} channels of {channels}")
        return self._like(images, self.factors, self.covariates, form), ", ".join(done)

    def split(
        self, held_out: float, seed: int, *, in_place: bool = False
    ) -> tuple["ImageData", "ImageData"]:
        """Split the images into two disjoint parts, (train, held out).

        Args:
            held_out: A number of images (int) or a fraction in (0, 1) (float).
            seed: The permutation's seed; the same seed gives the same parts.
            in_place: Whether the parts reuse the memory of these images, whose order then changes,
                instead of taking as much again.

        Raises:
            UserError: If one part would be empty.

        >>> data = ImageData("dots", torch.zeros(10, 1, 8, 8, dtype=torch.uint8))
        >>> [len(part) for part in data.split(0.2, seed=0)]
        [8, 2]
        """
        expect("held_out", held_out, Real, "a number of images or a fraction of them")
        if isinstance(held_out, Integral):
            count = int(held_out)
        else:
            count = round(held_out * len(self)) if 0 < held_out < 1 else 0
        if not 0 < count < len(self):
            raise UserError(
                f"{self.name}: expected to hold out 1 to {len(self) - 1} of {len(self)} images "
                f"or a fraction in (0, 1) that leaves both parts some, got {held_out}"
            )
        order = torch.randperm(len(self), generator=generator(seed))
        if in_place:
            whole = self.reordered(order)
            return whole.subset(slice(count, None)), whole.subset(slice(0, count))
        return self.subset(order[count:]), self.subset(order[:count])


def _column(values: Any, where: str) -> np.ndarray:
    """The values of a covariate as an array."""
    return number_array(values, where) if isinstance(values, Tensor) else np.asarray(values)


def split_covariate(declared: str, known: Collection[str]) -> tuple[str, bool]:
    """The column that a declared covariate names, and whether its values are classes.

    C(name), the notation of formulas in statistics, says that numbers are classes.

    >>> split_covariate("C(batch)", ["batch", "dose"])
    ('batch', True)
    """
    classes = declared.startswith("C(") and declared.endswith(")") and declared not in known
    return (declared[2:-1].strip(), True) if classes else (declared, False)


def of_covariate(declared: str, known: Collection[str], where: str) -> tuple[str, bool]:
    """The same, of a column that is there.

    Raises:
        UserError: If it is not.
    """
    name, classes = split_covariate(declared, known)
    if name not in known:
        raise UserError(f"{where}: covariates: found no column {name!r}" + nearest(name, known))
    return name, classes


def as_classes(values: np.ndarray) -> np.ndarray:
    """Values as the text of classes; whole numbers without a decimal point."""
    if values.dtype.kind == "f" and bool((values == np.floor(values)).all()):
        values = values.astype(np.int64)
    return values.astype(str)


def _check_rows(images: Tensor, name: str) -> None:
    """Refuse images of which one has no value at all."""
    if (empty := images.isnan().flatten(1).all(1)).any():
        raise UserError(
            f"{name}: images: expected a value in each row, all of row "
            f"{int(empty.nonzero()[0])} are missing"
        )


def _first_seen(images: Tensor) -> Tensor:
    """The first value that is not missing at each place of images (N, C, H, W), (1, C, H, W)."""
    return images.gather(0, (~images.isnan()).byte().argmax(0, keepdim=True))


def _described(images: Any) -> str:
    if not isinstance(images, Tensor):
        return type(images).__name__
    return f"{tuple(images.shape)} of {images.dtype} on {images.device}"


def _move(images: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Move ``images[order]`` to the front of the images; return which image is now where."""
    rows = block_rows(images[:1].nbytes)
    image, place = np.arange(len(images)), np.arange(len(images))
    for start in range(0, len(order), rows):
        sources = place[order[start : start + rows]]
        stop = start + len(sources)
        wanted = images[sources]
        # The images in the way move to the places that the wanted ones vacate.
        vacated = sources[sources >= stop]
        stays = np.zeros(stop - start, bool)
        stays[sources[sources < stop] - start] = True
        moved = np.arange(start, stop)[~stays]
        images[vacated] = images[moved]
        image[vacated] = image[moved]
        place[image[vacated]] = vacated
        images[start:stop] = wanted
        image[start:stop] = order[start:stop]
    return image


def check_images(data: Any, image_shape: Sequence[int]) -> None:
    """Refuse images that do not have the shape (C, H, W) of a model.

    Other shapes could pass through a network and be broadcast, giving meaningless results.

    Raises:
        UserError: If they are not :class:`ImageData` of this shape.
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
