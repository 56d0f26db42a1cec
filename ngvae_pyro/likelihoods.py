"""Likelihoods p(x | z): what the decoder's output says of the values of an image.

A likelihood turns the decoder's output, an array of the images' shape, into a Pyro distribution of
one event for each image. :data:`LIKELIHOODS` has those that can be declared; one's own is a
subclass of :class:`Likelihood`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ngvae_pyro.data.images import ImageData
from ngvae_pyro.distributions.pixels import GaussianPixels, ObservedPixels, OneHotPixels
from ngvae_pyro.errors import UserError
from ngvae_pyro.extras import needed
from ngvae_pyro.nn import MISTAKES, first_line, imported
from ngvae_pyro.specs import LEAST_SCALE, LikelihoodSpec

with needed("train"):
    from scipy.special import stdtrit

# What the data carry above their mean image, in nats per image, at their resolution: an informative
# latent, which costs about 12, then has to account for a four-hundredth of their variance. On the
# default sprites, where the price was chosen, the resolution is 0.1.
SIGNAL = 5200.0
# Images from which the resolution is computed; its error is below one percent.
RESOLUTION_IMAGES = 20_000
# Standard deviation of a pixel where nothing is known of the data but their shape.
UNKNOWN_SCALE = 0.1
# How often the noise of columns is estimated anew, in units of the estimate before.
ROUNDS = 10
# Likewise, where values are missing and are filled in.
GAP_ROUNDS = 30

Units = tuple[Tensor, float]


def resolution(data: ImageData) -> float:
    """The finest standard deviation of a pixel at which data are read, in the units of images.

    scale = sqrt(sum over pixels of Var(x) / (2 SIGNAL)), at which images carry 5,200 nats above
    their mean, whatever their size, contrast and units: what accounts for less than about 0.2 % of
    their variance is not looked for. It is the floor of an ``auto`` scale, which is the standard
    deviation of the noise where that is larger.

    Where values are missing, an image carries what is there.

    Args:
        data: The training images.
    """
    return _mean_and_resolution(data)[1]


def units(data: ImageData) -> Units:
    """The loc (C, H, W) and the unit in which networks have data: (x - loc) / unit.

    loc is the mean image, and unit is resolution / 0.1, so that images vary as much, in their
    units, as the default sprites do, and are read at 0.1. That makes a training the same for x and
    a x + b, with any number a > 0 and any image b, but for rounding. Vectors, whose columns are
    standardised, are taken as they are. Sequences are not: their channels are standardised as a
    whole, so that most of what they hold may be their mean curve.

    Args:
        data: The training images.
    """
    if data.form.layout == "vectors":
        return torch.zeros(data.image_shape), 1.0
    mean, finest = _mean_and_resolution(data)
    return mean, finest / UNKNOWN_SCALE


def _mean_and_resolution(data: ImageData, logs: bool = False) -> Units:
    """The mean image (C, H, W), and the resolution, of x or of log(1 + x)."""

    def read(part: Tensor) -> Tensor:
        x = ImageData.to_unit(part).double()
        return x.log1p() if logs else x

    parts = data.images[:RESOLUTION_IMAGES].split(1024)
    count = sum(map(len, parts))
    if data.form.missing:
        # What is nowhere there has the mean 0, and counts for nothing.
        seen = torch.stack([(~part.isnan()).sum(0) for part in parts]).sum(0).clamp_min(1)
        mean = torch.stack([read(part).nansum(0) for part in parts]).sum(0) / seen
        squares = sum((read(part) - mean).square().nansum().item() for part in parts)
    else:
        # In float64 and in two passes, because images may hardly differ from their mean.
        mean = torch.stack([read(part).sum(0) for part in parts]).sum(0) / count
        squares = sum((read(part) - mean).square().sum().item() for part in parts)
    finest = max(math.sqrt(squares / count / (2.0 * SIGNAL)), LEAST_SCALE)
    return mean.float(), finest


def own_noise(residuals: Tensor) -> Tensor:
    """The variance of each column of residuals (N, D) that it does not share with others, (D,).

    What the columns share, which may be a factor that is still to be found, is along principal
    components of their correlation matrix whose eigenvalues exceed those of noise,
    (1 + sqrt(D / N))^2 at most (Marchenko and Pastur, 1967). The rest is the column's own, as the
    uniquenesses of a factor analysis; it is estimated anew in units of itself, so that quiet
    columns beside noisy ones are not taken to be noise.

    A missing residual is NaN. :func:`_own_noise_of_observed` then fills it in.

    Args:
        residuals: Of N > 1 images.
    """
    if residuals.isnan().any():
        return _own_noise_of_observed(residuals)
    centred = residuals.double() - residuals.double().mean(0)
    count = len(centred)
    total = centred.square().mean(0)
    # A column without residuals has no noise either.
    varies = total > 0
    centred = centred[:, varies]
    edge = (1.0 + math.sqrt(centred.shape[1] / count)) ** 2
    own = total[varies]
    for _ in range(ROUNDS if centred.shape[1] > 1 else 0):
        values, vectors = _principal(centred / own.sqrt())
        shared = values > edge
        # In units of the estimate before, in which noise has the variance 1.
        common = own * (vectors[:, shared].square() @ (values[shared] - 1.0))
        # At least a thousandth: a column that others tell completely still has some.
        own = (total[varies] - common).clamp_min(1e-3 * total[varies])
    found = torch.zeros_like(total)
    found[varies] = own
    return found.to(residuals.dtype)


def _own_noise_of_observed(residuals: Tensor) -> Tensor:
    """As :func:`own_noise`, where some residuals are missing.

    In each round a missing residual becomes what the shared components say of it, and a draw of the
    column's own noise (data augmentation; Tanner and Wong, 1987, "The calculation of posterior
    distributions by data augmentation", JASA 82). Without the draw it would look too quiet. There
    are GAP_ROUNDS of them, and the result is the mean of the second half.
    """
    absent = residuals.isnan()
    rows = (~absent).sum(0).clamp_min(1)
    filled = residuals.double() - residuals.double().nansum(0) / rows
    filled = filled.masked_fill(absent, 0.0)
    varies = (filled.square().sum(0) > 0).nonzero().flatten()
    absent, filled = absent[:, varies], filled[:, varies]
    own = filled.square().sum(0) / rows[varies]
    # Of noise that is filled in, which keeps what it was filled in with, eigenvalues are larger: as
    # with the rows alone in which two columns are there.
    together = (1.0 - absent.double().mean().item()) ** 2 * len(filled)
    edge = (1.0 + math.sqrt(filled.shape[1] / together)) ** 2
    # The same draws each time, and on every device.
    generator, estimates = torch.Generator().manual_seed(0), []
    for _ in range(GAP_ROUNDS):
        scaled = (filled - filled.mean(0)) / own.sqrt()
        values, vectors = _principal(scaled)
        vectors, values = vectors[:, values > edge], values[values > edge]
        told = (scaled @ vectors * (1.0 - 1.0 / values)) @ vectors.T * own.sqrt()
        total = own * scaled.square().mean(0)
        common = own * (vectors.square() @ (values - 1.0))
        own = (total - common).clamp_min(1e-3 * total)
        draws = torch.randn(filled.shape, generator=generator, dtype=filled.dtype).to(filled)
        filled = torch.where(absent, told + own.sqrt() * draws, filled)
        estimates.append(own)
    found = residuals.new_zeros(residuals.shape[1])
    found[varies] = torch.stack(estimates[GAP_ROUNDS // 2 :]).mean(0).to(found)
    return found


def _principal(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors (D, M) of the covariance of centred columns (N, D)."""
    count, size = columns.shape
    if size <= count:
        values, vectors = torch.linalg.eigh(columns.T @ columns / count)
        return values, vectors
    values, scores = torch.linalg.eigh(columns @ columns.T / count)
    values, scores = values[1:], scores[:, 1:]  # the mean has been subtracted
    return values, columns.T @ scores / (count * values.clamp_min(1e-300)).sqrt()


class Likelihood(nn.Module, ABC):
    """p(x | decoder output): one event per image.

    A subclass says by :meth:`forward` which distribution it is, with a mean and a variance. Its
    parameters are trained with the model's, and saved with them.

    Args:
        spec: Family, scale and the like.
        image_shape: (C, H, W).
    """

    # Whether x are counts: whole numbers from 0 on, which are never standardised.
    counts = False
    # Whether p(x | z) is a probability rather than a density.
    discrete = False
    # Whether the decoder's output is in units of the data, so that it is made as a difference from
    # the mean image, in units in which all data vary alike.
    in_units = False
    # Whether x have to be in [0, 1].
    intensities = False
    # Whether values of x may be NaN where the spec says so, and are left out then.
    handles_missing = False

    def __init__(self, spec: LikelihoodSpec, image_shape: Sequence[int]) -> None:
        super().__init__()
        self.spec, self.family = spec, spec.family
        self.image_shape = tuple(image_shape)

    @abstractmethod
    def forward(self, output: Tensor, x: Tensor | None = None) -> TorchDistribution:
        """The distribution of images.

        Args:
            output: Of the decoder, (..., B, C, H, W).
            x: The images (B, C, H, W) that it is asked about, for what is known of each besides z:
                its exposure. Without them the exposure is a typical one.
        """

    def observed(self, fn: TorchDistribution) -> TorchDistribution:
        """A distribution of independent values, of those alone that are there if some may not be.

        See :class:`ngvae_pyro.distributions.pixels.ObservedPixels`.
        """
        return ObservedPixels(fn) if self.spec.missing else fn

    def filled(self, x: Tensor) -> Tensor:
        """Images x (N, C, H, W) with their mean where a value is missing."""
        return x.where(~x.isnan(), x.nanmean(0).nan_to_num()) if self.spec.missing else x

    @property
    def scale(self) -> float | None:
        """Standard deviation of a pixel, in units of the images; None for families without."""
        return None

    def learn(self, data: ImageData) -> None:
        """Take from the training data what is known before the training, such as their scale."""

    def units(self, data: ImageData) -> tuple[Units, Units]:
        """The units of the encoder, (x - loc) / unit, and of the decoder, loc + unit y.

        Both are those of :func:`units`, of which a decoder makes no use whose output is not in
        units of the data.
        """
        own = units(data)
        return own, own

    @torch.no_grad()
    def signal(self, x: Tensor) -> float:
        """Information in images x (N, C, H, W) beyond their mean image, in nats per image.

        Of it comes the weight of the KL at the beginning of the training, which falls to 1. It is
        the log likelihood of each image for the output that suits it best, value by value, less
        that for the output that suits all of them best. By default what images carry at their
        resolution. Missing values carry nothing.
        """
        return SIGNAL

    def about(self, output: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The score and the Fisher information of images x in each value of the output.

        score = d log p(x) / d output, and information = (d E[x] / d output)^2 / Var(x), which is
        that of every exponential family, and a lower bound for others. Both have the shape of x,
        and are 0 where it is missing.
        """
        with torch.enable_grad():
            at = output.detach().requires_grad_()
            fn = self(at, x)
            (slope,) = torch.autograd.grad(fn.mean.sum(), at, retain_graph=True)
            (score,) = torch.autograd.grad(fn.log_prob(x).sum(), at)
        return score, self._of_observed(slope.square() / fn.variance.detach(), x)

    def _of_observed(self, values: Tensor, x: Tensor) -> Tensor:
        """Values of x's shape, with 0 where x is missing."""
        return values.masked_fill(x.isnan(), 0.0) if self.spec.missing else values


class GaussianLikelihood(Likelihood):
    """Normal(output, scale): the slides' Normal(x; mu(z), sigma).

    The standard deviation is one for all values, or one for each channel or each value (``per``);
    from the data, fixed, or learned.
    """

    in_units = True
    handles_missing = True

    def __init__(self, spec: LikelihoodSpec, image_shape: Sequence[int]) -> None:
        super().__init__(spec, image_shape)
        # Whether the scale comes from the data.
        self.auto = spec.scale == "auto"
        # The finest scale, in the units of the data.
        self.floor = UNKNOWN_SCALE if spec.scale == "auto" else spec.scale
        log_scale = torch.full(self._scale_shape(), self.floor).log()
        if spec.learned:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def _scale_shape(self) -> tuple[int, ...]:
        channels = self.image_shape[0]
        shapes = {"channel": (channels, 1, 1), "value": self.image_shape}
        return shapes.get(self.spec.per, ())

    def _load_from_state_dict(self, weights: Any, prefix: str, *rest: Any) -> None:
        # Older versions had one scale for all values.
        if (own := weights.get(f"{prefix}log_scale")) is not None and own.dim() == 0:
            weights[f"{prefix}log_scale"] = own.expand_as(self.log_scale)
        super()._load_from_state_dict(weights, prefix, *rest)

    def forward(self, output: Tensor, x: Tensor | None = None) -> TorchDistribution:
        return self.observed(GaussianPixels(output, self.log_scale.exp()))

    @property
    def scale(self) -> float:
        """The root mean square of the standard deviations, in units of the images."""
        return (2.0 * self.log_scale).exp().mean().sqrt().item()

    @torch.no_grad()
    def learn(self, data: ImageData) -> None:
        """Set an ``auto`` scale to the resolution of the data."""
        if self.auto:
            self.floor = resolution(data)
            self.log_scale.fill_(math.log(self.floor))

    def rescale(self, residuals: Tensor) -> Tensor | None:
        """The standard deviation of the noise in residuals x - E[x | z] (N, C, H, W).

        Where the floor is more, it is that; None stands for no change. One for all is their root
        mean square, one for each channel that of the channel. One for each value is
        sqrt(m + n - mean of n), with m the mean square of all and n the :func:`own_noise` of the
        value: what is not drawn yet counts for all alike. A scale that is learned is left to the
        training, and a given one is the floor of those of channels and values. Residuals of missing
        values are NaN.
        """
        if self.spec.learned or not (self.auto or self.log_scale.dim()):
            return None
        squares = residuals.square()
        mean = torch.nanmean if self.spec.missing else torch.mean
        if self.spec.per == "channel":
            variance = mean(squares, (0, 2, 3)).view(-1, 1, 1)
        elif self.spec.per == "value":
            own = own_noise(residuals.flatten(1)).view(self.image_shape)
            shared = mean(squares) - own.mean() if self.auto else 0.0
            variance = own + shared
        else:
            variance = mean(squares)
        return variance.clamp_min(0.0).sqrt().double().clamp_min(self.floor)

    @torch.no_grad()
    def signal(self, x: Tensor) -> float:
        """The sum over pixels of Var(x) / (2 scale^2), in nats per image, of x (N, C, H, W)."""
        return (self.filled(x).var(0) / (2.0 * (2.0 * self.log_scale).exp())).sum().item()


class BernoulliLikelihood(Likelihood):
    """Bernoulli(logits=output), of values in [0, 1].

    Grey values are not Bernoulli outcomes; their log probability is the cross-entropy that VAEs are
    commonly trained with.
    """

    discrete = True
    intensities = True
    handles_missing = True

    def forward(self, output: Tensor, x: Tensor | None = None) -> TorchDistribution:
        return self.observed(dist.Bernoulli(logits=output, validate_args=False).to_event(3))

    @torch.no_grad()
    def signal(self, x: Tensor) -> float:
        """The drop in cross-entropy from the mean image to the image itself, nats per image."""
        x = self.filled(x)
        mean, entropy = x.mean(0).expand_as(x), nn.functional.binary_cross_entropy
        drop = entropy(mean, x, reduction="sum") - entropy(x, x, reduction="sum")
        return (drop / len(x)).item()

    def about(self, output: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The score and the Fisher information, of which classes have only the diagonal.

        The output is the natural parameter, so they are x - E[x] and Var(x).
        """
        fn = self(output, x)
        return self._of_observed(x - fn.mean, x), self._of_observed(fn.variance, x)


class ContinuousBernoulliLikelihood(BernoulliLikelihood):
    """ContinuousBernoulli(logits=output), normalised over [0, 1].

    Loaiza-Ganem and Cunningham (2019), "The continuous Bernoulli", NeurIPS.
    """

    discrete = False

    def forward(self, output: Tensor, x: Tensor | None = None) -> TorchDistribution:
        return self.observed(dist.ContinuousBernoulli(logits=output).to_event(3))


class CategoricalLikelihood(BernoulliLikelihood):
    """One of C classes at each place, p = softmax(output) over the channels.

    Images have a channel for each class, 1 for the class that is there and 0 for the others.
    """

    intensities = False

    def forward(self, output: Tensor, x: Tensor | None = None) -> TorchDistribution:
        return self.observed(OneHotPixels(output))

    @torch.no_grad()
    def signal(self, x: Tensor) -> float:
        """The entropy of the classes at each place, summed, in nats per image."""
        mean = self.filled(x).mean(0)
        entropy = -torch.xlogy(mean, mean)
        if self.spec.missing:
            entropy = entropy * (~x.isnan()).float().mean(0)
        return entropy.sum().item()


class StudentTLikelihood(GaussianLikelihood):
    """StudentT(df, output, scale), for values of which some are far off.

    An ``auto`` scale is that of the noise, by the median of the absolute residuals, which outliers
    hardly move, and at least the resolution.
    """

    def __init__(self, spec: LikelihoodSpec, image_shape: Sequence[int]) -> None:
        super().__init__(spec, image_shape)
        # The median of |t|.
        self.median = float(stdtrit(spec.df, 0.75))

    def forward(self, output: Tensor, x: Tensor | None = None) -> TorchDistribution:
        scale, df = self.log_scale.exp(), torch.full_like(self.log_scale, self.spec.df)
        return self.observed(dist.StudentT(df, output, scale, validate_args=False).to_event(3))

    def rescale(self, residuals: Tensor) -> Tensor | None:
        """The scale whose median is that of the residuals, and the floor where that is more."""
        if self.spec.learned or not self.auto:
            return None
        median = torch.nanmedian if self.spec.missing else torch.median
        return (median(residuals.abs()).double() / self.median).clamp_min(self.floor)

    @torch.no_grad()
    def signal(self, x: Tensor) -> float:
        """Log density of images at themselves less that at their mean image, nats per image."""
        x = self.filled(x)
        mean = x.mean(0).expand_as(x)
        return (self(x).log_prob(x) - self(mean).log_prob(x)).mean().item()


class CountsLikelihood(Likelihood):
    """Base of the likelihoods of counts: E[x | z] = exposure * exp(output).

    The exposure is 1, or the total of an image's counts, such as the size of a cell's library
    (``total``), which is then taken as known: z does not have to tell it. Without an image, as in
    draws from the prior, it is the median total of the training data.

    Where counts are missing, the total is that of the others, divided by their share in the mean
    counts of the training data: an estimate of what the total would be if all were there. So the
    rate of a value does not depend on which others are missing.
    """

    counts = True
    discrete = True
    in_units = True
    handles_missing = True
    typical: Tensor
    shares: Tensor

    def __init__(self, spec: LikelihoodSpec, image_shape: Sequence[int]) -> None:
        super().__init__(spec, image_shape)
        self.of_total = spec.exposure == "total"
        self.register_buffer("typical", torch.ones(()))
        if spec.missing:
            # Of each value in the mean total.
            even = torch.full(self.image_shape, 1.0 / math.prod(self.image_shape))
            self.register_buffer("shares", even)

    def exposure(self, x: Tensor | None) -> Tensor:
        """The exposure of images x (B, C, H, W), shape (B, 1, 1, 1), or of none, ()."""
        if x is None or not self.of_total:
            return self.typical
        axes = (-3, -2, -1)
        if self.spec.missing:
            there = (~x.isnan() * self.shares).sum(axes, keepdim=True).clamp_min(1e-6)
            return (x.nansum(axes, keepdim=True) / there).clamp_min(1e-6)
        # The total 0 has no logarithm, and no gradient.
        return x.sum(axes, keepdim=True).clamp_min(1e-6)

    @torch.no_grad()
    def learn(self, data: ImageData) -> None:
        """Take the median total of the training data."""
        if self.spec.missing:
            total, seen = _totals(data)
            mean = total / seen.clamp_min(1.0)
            # Not 0 of what was never seen, because only that may be there.
            self.shares.copy_(mean.clamp_min(1e-6 * mean.sum()) / mean.sum())
        if self.of_total:
            if self.spec.missing:
                parts = [self.exposure(ImageData.to_unit(p)) for p in data.images.split(1024)]
                totals = torch.cat(parts).flatten()
            else:
                totals = torch.cat([p.flatten(1).sum(1) for p in data.images.split(1024)])
            self.typical.copy_(totals.float().median().clamp_min(1.0))

    def units(self, data: ImageData) -> tuple[Units, Units]:
        """Of the encoder, which has log(1 + x), and of the decoder, whose loc is log mean rates."""
        mean, finest = _mean_and_resolution(data, logs=True)
        exposure: float | Tensor
        if self.spec.missing:
            weigh = self.exposure if self.of_total else None
            total, exposure = _totals(data, weigh)
            exposure = exposure.clamp_min(1.0)
        else:
            sums = (part.double().sum(0) for part in data.images.split(1024))
            total = sum(sums, torch.zeros((), dtype=torch.float64))
            exposure = max(total.sum().item() if self.of_total else float(len(data)), 1.0)
        # Half a count for what was never seen.
        rates = ((total + 0.5) / exposure).log().float()
        return (mean, finest / UNKNOWN_SCALE), (rates, 1.0)

    @torch.no_grad()
    def signal(self, x: Tensor) -> float:
        """Half the deviance of images x (N, C, H, W) from their mean rates, in nats per image."""
        exposure = self.exposure(x)
        if self.spec.missing:
            mean = exposure * x.nansum(0) / (exposure * ~x.isnan()).sum(0).clamp_min(1e-6)
        else:
            mean = exposure * x.sum(0) / exposure.expand(len(x), 1, 1, 1).sum()
        return (self._log_prob_at(x, x) - self._log_prob_at(mean, x)).mean().item()

    def _log_prob_at(self, mean: Tensor, x: Tensor) -> Tensor:
        # A mean of 0 has no logarithm.
        output = (mean.clamp_min(1e-8) / self.exposure(x).clamp_min(1e-8)).log()
        log_prob: Tensor = self(output, x).log_prob(x)
        return log_prob


def _totals(
    data: ImageData, weigh: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Of each value the sum over the data, and that of the weights where it is there, float64."""
    total = torch.zeros(data.image_shape, dtype=torch.float64)
    weights = torch.zeros_like(total)
    for part in data.images.split(1024):
        total += part.double().nansum(0)
        own = torch.ones(()) if weigh is None else weigh(ImageData.to_unit(part))
        weights += (own * ~part.isnan()).double().sum(0)
    return total, weights


class PoissonLikelihood(CountsLikelihood):
    """Poisson(exposure * exp(output))."""

    def forward(self, output: Tensor, x: Tensor | None = None) -> TorchDistribution:
        rate = self.exposure(x) * output.exp()
        return self.observed(dist.Poisson(rate, validate_args=False).to_event(3))


class NegativeBinomialLikelihood(CountsLikelihood):
    """Counts that vary more than Poisson's: x ~ Poisson(g), g ~ Gamma(r, r / mean).

    mean = exposure * exp(output), and Var(x) = mean + mean^2 / r, with a learned concentration r of
    each value, as in models of gene expression (Lopez, Regier, Cole, Jordan and Yosef, 2018, "Deep
    generative modeling for single-cell transcriptomics", Nature Methods 15).
    """

    def __init__(self, spec: LikelihoodSpec, image_shape: Sequence[int]) -> None:
        super().__init__(spec, image_shape)
        self.log_concentration = nn.Parameter(torch.zeros(self.image_shape))

    def forward(self, output: Tensor, x: Tensor | None = None) -> TorchDistribution:
        # In logarithms, where neither a rare nor a frequent value loses digits.
        logits = self.exposure(x).log() + output - self.log_concentration
        fn = dist.NegativeBinomial(self.log_concentration.exp(), logits=logits, validate_args=False)
        return self.observed(fn.to_event(3))


class FunctionLikelihood(Likelihood):
    """p(x | z) by a function from the decoder's output (..., C, H, W) to a Pyro distribution.

    Its batch and event shapes are together that of the output. The decoder's output begins near 0.
    """

    def __init__(
        self,
        spec: LikelihoodSpec,
        image_shape: Sequence[int],
        function: Callable[[Tensor], TorchDistribution],
    ) -> None:
        super().__init__(spec, image_shape)
        self.function = function

    def forward(self, output: Tensor, x: Tensor | None = None) -> TorchDistribution:
        fn = self.function(output)
        return fn.to_event(3 - fn.event_dim)


def load_likelihood(spec: LikelihoodSpec, image_shape: Sequence[int]) -> Likelihood:
    """The likelihood that a spec declares, tried on two images if it is one's own.

    Args:
        spec: Of a model.
        image_shape: (C, H, W).

    Raises:
        UserError: If a class of one's own is not there, is none of :class:`Likelihood`, or gives
            anything but a distribution of images with a mean and a variance.
    """
    spec = spec.resolved()
    if spec.family != "own":
        return LIKELIHOODS[spec.family](spec, image_shape)
    where = "model.likelihood.factory"
    factory = imported(spec.factory, where)
    if isinstance(factory, type) and not issubclass(factory, Likelihood):
        raise UserError(
            f"{where}: expected a class of ngvae_pyro.likelihoods.Likelihood, or a function, got "
            f"{factory.__qualname__}"
        )
    try:
        if isinstance(factory, type):
            likelihood: Likelihood = factory(spec, image_shape, **spec.options)
        else:
            likelihood = FunctionLikelihood(spec, image_shape, factory)
    except MISTAKES as error:
        raise UserError(f"{where}: {first_line(error)}") from error
    if spec.missing and not likelihood.handles_missing:
        raise UserError(
            f"{where}: {factory.__qualname__}: expected a class with handles_missing = True, "
            "because values of the data may be missing"
        )
    _try_out(likelihood, f"{where}: {factory.__qualname__}")
    return likelihood


@torch.no_grad()
def _try_out(likelihood: Likelihood, where: str) -> None:
    x = torch.zeros(2, *likelihood.image_shape)
    if x.is_meta:  # only what a model takes is asked for
        return
    try:
        fn = likelihood(x, x)
        mean, variance = fn.mean, fn.variance
    except MISTAKES as error:
        raise UserError(f"{where}: {first_line(error)}") from error
    shapes = fn.batch_shape + fn.event_shape, mean.shape, variance.shape
    finite = bool(mean.isfinite().all() and variance.isfinite().all())
    if fn.event_dim != 3 or any(shape != x.shape for shape in shapes) or not finite:
        raise UserError(
            f"{where}: expected a distribution of batch shape (2,) and event shape "
            f"{likelihood.image_shape}, with a mean and a variance, for two images, got "
            f"{tuple(fn.batch_shape)} and {tuple(fn.event_shape)}"
        )


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "gaussian": GaussianLikelihood,
    "student_t": StudentTLikelihood,
    "bernoulli": BernoulliLikelihood,
    "continuous_bernoulli": ContinuousBernoulliLikelihood,
    "categorical": CategoricalLikelihood,
    "poisson": PoissonLikelihood,
    "negative_binomial": NegativeBinomialLikelihood,
}


def check_likelihood(likelihood: Likelihood, data: ImageData) -> None:
    """Refuse data of which a likelihood does not speak.

    Raises:
        UserError: If they do not fit; the message names what does.
    """
    family = likelihood.family
    if data.form.missing and not likelihood.spec.missing:
        raise UserError(
            f"model.likelihood.missing: expected true for '{data.name}', of which values may be "
            "missing, got false; ngvae_pyro.load_model(variant, data) sets it"
        )
    if likelihood.counts and not data.form.raw:
        raise UserError(
            "model.likelihood.whole_numbers: expected true for a likelihood of counts, got false"
        )
    if likelihood.intensities and data.form.standardised:
        what = "sequences" if data.form.sequential else "vectors"
        raise UserError(
            f"model.likelihood.family: expected gaussian for the {what} of '{data.name}', "
            f"got {family}, which is of values in [0, 1]"
        )
    if isinstance(likelihood, CategoricalLikelihood) and not _one_hot(data):
        raise UserError(
            f"model.likelihood.family: {family}: expected '{data.name}' to have a channel for each "
            "class, of which one is 1 at each place and the others are 0, or all are missing"
        )


def _one_hot(data: ImageData) -> bool:
    parts = (ImageData.to_unit(part) for part in data.images.split(1024))
    return all(map(_is_one_hot, parts))


def _is_one_hot(x: Tensor) -> bool:
    absent = x.isnan().all(1)
    classes = ((x == 0) | (x == 1)).all(1) & (x.sum(1) == 1)
    return bool((classes | absent).all())
