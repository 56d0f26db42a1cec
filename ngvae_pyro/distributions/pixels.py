"""Likelihood of images with Gaussian pixels, in few passes over them."""

import math
from typing import Self

import torch
from pyro.distributions import Independent, Normal
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.types import _size

__all__ = ["GaussianPixels"]


class GaussianPixels(Independent):
    r"""Images whose pixels are independent and share one standard deviation.

    .. math::
        \log p(x) = -\frac{\lVert x - \mu \rVert^2}{2 \sigma^2} - N \log \sigma
        - \frac{N}{2} \log 2 \pi,

    where N is the number of pixels times channels. The distribution is that of
    ``Normal(loc, scale).to_event(3)``, whose density takes ten passes over the pixels, with a
    logarithm and a division for each; this one takes two, and one more for its gradient.

    Args:
        loc: Means mu, shape (..., C, H, W).
        scale: Standard deviation sigma, positive, a tensor of one number, in units of x.

    Raises:
        ValueError: If scale is not positive, or is more than one number.

    Example:
        >>> d = GaussianPixels(torch.zeros(5, 3, 8, 8), torch.tensor(0.1))
        >>> d.batch_shape, d.event_shape
        (torch.Size([5]), torch.Size([3, 8, 8]))
        >>> d.log_prob(torch.zeros(3, 8, 8))[0]
        tensor(265.6602)
    """

    def __init__(self, loc: Tensor, scale: Tensor, *, validate_args: bool | None = None) -> None:
        if scale.numel() != 1:
            raise ValueError(f"Expected scale to be one number, got shape {tuple(scale.shape)}")
        self.scale = scale
        super().__init__(Normal(loc, scale, validate_args=validate_args), 3)

    def expand(self, batch_shape: _size, _instance: Self | None = None) -> Self:
        new = self._get_checked_instance(type(self), _instance)
        new.scale = self.scale
        expanded: Self = super().expand(batch_shape, _instance=new)
        return expanded

    def log_prob(self, value: Tensor) -> Tensor:
        if self.base_dist._validate_args:
            self.base_dist._validate_sample(value)
        loc, value = torch.broadcast_tensors(self.base_dist.loc, value)
        # The kernel of mse_loss subtracts and squares in one pass, forwards and backwards.
        squares = mse_loss(loc, value, reduction="none").sum((-3, -2, -1))
        log_norm = self.scale.log() + 0.5 * math.log(2 * math.pi)
        return -0.5 * squares / self.scale.square() - self.event_shape.numel() * log_norm
