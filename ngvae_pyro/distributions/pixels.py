"""Likelihood of images with Gaussian pixels, in few passes over them."""

import math

import torch
from pyro.distributions import Independent, Normal
from torch.nn.functional import mse_loss

__all__ = ["GaussianPixels"]


class GaussianPixels(Independent):
    r"""Images whose pixels are independent and have one standard deviation.

    .. math::
        \log p(x) = -\frac{\lVert x - \mu \rVert^2}{2 \sigma^2} - N \log \sigma
        - \frac{N}{2} \log 2 \pi,

    N being the number of pixels times channels. It is ``Normal(loc, scale).to_event(3)``, whose
    density takes ten passes over the pixels, with a logarithm and a division for each; this one
    takes two, and one for its gradient.

    Arguments:
        loc: mu, shape (..., C, H, W).
        scale: sigma, positive, one number.

    Raises:
        ValueError: a scale that is not positive, or of more than one number.

    Example:
        >>> d = GaussianPixels(torch.zeros(5, 3, 8, 8), torch.tensor(0.1))
        >>> d.batch_shape, d.event_shape
        (torch.Size([5]), torch.Size([3, 8, 8]))
        >>> d.log_prob(torch.zeros(3, 8, 8))[0]
        tensor(265.6602)
    """

    def __init__(self, loc, scale, *, validate_args=None):
        if scale.numel() != 1:
            raise ValueError(f"Expected scale to be one number, got shape {tuple(scale.shape)}")
        self.scale = scale
        super().__init__(Normal(loc, scale, validate_args=validate_args), 3)

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(type(self), _instance)
        new.scale = self.scale
        return super().expand(batch_shape, _instance=new)

    def log_prob(self, value):
        if self.base_dist._validate_args:
            self.base_dist._validate_sample(value)
        loc, value = torch.broadcast_tensors(self.base_dist.loc, value)
        # Its kernel subtracts and squares at once, forwards and backwards.
        squares = mse_loss(loc, value, reduction="none").sum((-3, -2, -1))
        log_norm = self.scale.log() + 0.5 * math.log(2 * math.pi)
        return -0.5 * squares / self.scale.square() - self.event_shape.numel() * log_norm
