"""Arrays that a user passes, checked and converted to numpy."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ngvae_pyro.errors import UserError

Array = NDArray[Any]

# Squares of larger values would overflow in float32.
LARGEST = 1e15


def checked(name: str, values: Array | Tensor, axes: str) -> Array:
    """Check that values are finite numbers with the given axes, and convert them to numpy.

    float32 stays float32, so that its bins keep their edges; everything else becomes float64.

    Args:
        name: What the values are called in an error message.
        values: Array or tensor.
        axes: One letter for each expected axis, such as "NK".

    Raises:
        UserError: If they are not; the message begins with ``name``.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # numpy has no bfloat16.
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    values = np.asarray(values)
    if values.ndim != len(axes) or 0 in values.shape:
        raise UserError(
            f"{name}: expected a non-empty shape ({', '.join(axes)}), got {values.shape}"
        )
    if values.dtype.kind not in "biuf":
        raise UserError(f"{name}: expected numbers, got {values.dtype}")
    if values.dtype != np.float32:
        values = values.astype(np.float64)
    # Written so that NaN, which fails every comparison, is refused too.
    wrong = ~(np.abs(values) <= LARGEST)
    if wrong.any():
        index = tuple(np.argwhere(wrong)[0].tolist())
        raise UserError(
            f"{name}: expected finite values of at most {LARGEST:g}, "
            f"got {values[index]:g} at {list(index)}"
        )
    return values
