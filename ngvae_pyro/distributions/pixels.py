"""Likelihoods of images: Gaussian pixels in few passes, classes as channels, missing values."""

import math
from typing import ClassVar, Self

import torch
from pyro.distributions import Independent, Normal, TorchDistribution, constraints
from torch import Tensor
from torch.nn.functional import mse_loss, one_hot
from torch.types import _size

__all__ = ["GaussianPixels", "ObservedPixels", "OneHotPixels"]


class GaussianPixels(Independent):
    r"""Images whose pixels are independent, with one standard deviation or several.

    .. math::
        \log p(x) = -\sum_i \frac{(x_i - \mu_i)^2}{2 \sigma_i^2} - \sum_i \log \sigma_i
        - \frac{N}{2} \log 2 \pi,

    where N is the number of pixels times channels. The distribution is that of
    ``Normal(loc, scale).to_event(3)``, whose density takes ten passes over the pixels, with a
    logarithm and a division for each; with one standard deviation for all pixels this one takes
    two, and one more for its gradient.

    Args:
        loc: Means mu, shape (..., C, H, W).
        scale: Standard deviations sigma, positive, in units of x: one number, or a tensor that
            broadcasts to (C, H, W).

    Raises:
        ValueError: If scale is not positive, or has another shape.

    Example:
        >>> d = GaussianPixels(torch.zeros(5, 3, 8, 8), torch.tensor(0.1))
        >>> d.batch_shape, d.event_shape
        (torch.Size([5]), torch.Size([3, 8, 8]))
        >>> d.log_prob(torch.zeros(3, 8, 8))[0]
        tensor(265.6602)
    """

    def __init__(self, loc: Tensor, scale: Tensor, *, validate_args: bool | None = None) -> None:
        if scale.numel() != 1 and not _within(scale.shape, loc.shape[-3:]):
            raise ValueError(
                "Expected scale to be one number or to broadcast to the shape of an image, "
                f"{tuple(loc.shape[-3:])}, got shape {tuple(scale.shape)}"
            )
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
        squares = mse_loss(loc, value, reduction="none")
        if self.scale.numel() == 1:
            squares = squares.sum((-3, -2, -1))
            scale = self.scale.reshape(())
            log_norm = scale.log() + 0.5 * math.log(2 * math.pi)
            return -0.5 * squares / scale.square() - self.event_shape.numel() * log_norm
        # One product of matrices in place of a pass over the pixels.
        scale = self.scale.expand(self.event_shape).flatten()
        log_norm = (scale.log() + 0.5 * math.log(2 * math.pi)).sum()
        return -0.5 * squares.flatten(-3) @ scale.pow(-2) - log_norm


def _within(shape: torch.Size, event_shape: torch.Size) -> bool:
    if len(shape) > len(event_shape):
        return False
    pairs = zip(reversed(shape), reversed(event_shape), strict=False)
    return all(own in (1, size) for own, size in pairs)


class OneHotPixels(TorchDistribution):
    r"""Images whose channels are classes: one channel is 1 at each place, and the others are 0.

    .. math::
        \log p(x) = \sum_{chw} x_{chw} \log \mathrm{softmax}_c(l_{chw})

    Args:
        logits: l, shape (..., C, H, W).

    Example:
        >>> d = OneHotPixels(torch.zeros(5, 2, 8, 8))
        >>> d.batch_shape, d.event_shape
        (torch.Size([5]), torch.Size([2, 8, 8]))
        >>> d.log_prob(d.sample())[0]
        tensor(-44.3614)
    """

    arg_constraints: ClassVar = {"logits": constraints.independent(constraints.real, 3)}
    support = constraints.independent(constraints.boolean, 3)
    has_enumerate_support = False

    def __init__(self, logits: Tensor, *, validate_args: bool | None = None) -> None:
        self.logits = logits
        shape = logits.shape
        super().__init__(shape[:-3], shape[-3:], validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: Self | None = None) -> Self:
        return type(self)(self.logits.expand(*batch_shape, *self.event_shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.logits.softmax(-3)

    @property
    def variance(self) -> Tensor:
        return self.mean * (1.0 - self.mean)

    def sample(self, sample_shape: _size = ()) -> Tensor:
        with torch.no_grad():
            probs = self.mean.movedim(-3, -1).expand(*sample_shape, *self._places())
            classes = torch.multinomial(probs.flatten(0, -2), 1).view(probs.shape[:-1])
            return one_hot(classes, probs.shape[-1]).movedim(-1, -3).to(self.logits.dtype)

    def _places(self) -> torch.Size:
        channels, *grid = self.event_shape
        return self.batch_shape + torch.Size((*grid, channels))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return (value * self.logits.log_softmax(-3)).sum((-3, -2, -1))


class ObservedPixels(TorchDistribution):
    r"""Images of which values may be missing: their density is that of the values that are there.

    .. math::
        \log p(x) = \sum_{i: x_i \ne \mathrm{NaN}} \log p_i(x_i)

    Args:
        fn: A distribution of images whose values are independent, such as
            ``Normal(loc, scale).to_event(3)``, or one-hot: there all channels of a place are
            missing, or none.

    Raises:
        TypeError: For a distribution whose event is not that of independent values.

    Example:
        >>> d = ObservedPixels(GaussianPixels(torch.zeros(1, 2, 2), torch.tensor(1.0)))
        >>> d.log_prob(torch.tensor([[[0.0, torch.nan], [0.0, torch.nan]]]))
        tensor(-1.8379)
    """

    arg_constraints: ClassVar = {}

    def __init__(self, fn: TorchDistribution, *, validate_args: bool | None = None) -> None:
        if not isinstance(fn, (Independent, OneHotPixels)) or fn.event_dim != 3:
            raise TypeError(f"Expected independent values of images, got {type(fn).__name__}")
        self.fn = fn
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return self.fn.support

    @property
    def mean(self) -> Tensor:
        return self.fn.mean

    @property
    def variance(self) -> Tensor:
        return self.fn.variance

    def expand(self, batch_shape: _size, _instance: Self | None = None) -> Self:
        return type(self)(self.fn.expand(batch_shape))

    def sample(self, sample_shape: _size = ()) -> Tensor:
        drawn: Tensor = self.fn.sample(sample_shape)
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        absent = value.isnan()
        # Any value of the support will do, of which the density is finite, and so its gradient.
        value = value.masked_fill(absent, 0.0)
        if isinstance(self.fn, OneHotPixels):
            # None of the classes, which adds nothing.
            return self.fn.log_prob(value)
        each: Tensor = self.fn.base_dist.log_prob(value)
        return each.masked_fill(absent, 0.0).sum((-3, -2, -1))
