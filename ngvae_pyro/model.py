"""The generative story p(x, z, precision), in the paper's notation.

Jouffroy, Giremus, Berthoumieu and Bach (2022), "Inducing selective posterior-collapse in
variational autoencoders by modelling the latent space as a mixture of normal-gamma
distributions", AI and physics conference.
"""

import math
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor, nn

from ngvae_pyro.contexts import float32
from ngvae_pyro.data import Images, as_images
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.distributions import NormalGammaPrior, SpikeSlabPrior
from ngvae_pyro.distributions.pixels import GaussianPixels
from ngvae_pyro.errors import UserError, described, expect
from ngvae_pyro.nn import Decoder
from ngvae_pyro.specs import (
    LEAST_SCALE,
    ArdPriorSpec,
    GaussianPriorSpec,
    LikelihoodSpec,
    ModelSpec,
    NormalGammaPriorSpec,
    PoissonPriorSpec,
    Spec,
)
from ngvae_pyro.variants import spec_of

# What the data carry above their mean image, in nats per image, at their resolution: an informative
# latent, which costs about 12, then has to account for a four-hundredth of their variance. On the
# default sprites, where the price was chosen, the resolution is 0.1.
SIGNAL = 5200.0
# Images from which the resolution is computed; its error is below one percent.
RESOLUTION_IMAGES = 20_000
# Standard deviation of a pixel where nothing is known of the data but their shape.
UNKNOWN_SCALE = 0.1


def resolution(data: ImageData) -> float:
    """The finest standard deviation of a pixel at which data are read, in the units of images.

    scale = sqrt(sum over pixels of Var(x) / (2 SIGNAL)), at which images carry 5,200 nats above
    their mean, whatever their size, contrast and units: what accounts for less than about 0.2 % of
    their variance is not looked for. It is the floor of an ``auto`` scale, which is the standard
    deviation of the noise where that is larger.

    Args:
        data: The training images.
    """
    return _mean_and_resolution(data)[1]


def units(data: ImageData) -> tuple[Tensor, float]:
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


def _mean_and_resolution(data: ImageData) -> tuple[Tensor, float]:
    """The mean image (C, H, W), and the resolution."""
    parts = data.images[:RESOLUTION_IMAGES].split(1024)
    count = sum(map(len, parts))
    # In float64 and in two passes, because images may hardly differ from their mean.
    mean = torch.stack([ImageData.to_unit(part).double().sum(0) for part in parts]).sum(0) / count
    squares = sum((ImageData.to_unit(part).double() - mean).square().sum().item() for part in parts)
    finest = max(math.sqrt(squares / count / (2.0 * SIGNAL)), LEAST_SCALE)
    return mean.float(), finest


class Likelihood(nn.Module):
    """p(x | decoder output): one event per image, pixels independent.

    ``gaussian``: Normal(output, scale), with one standard deviation for all pixels (the slides'
    Normal(x; mu(z), sigma)), from the data, fixed or learned. ``bernoulli`` and
    ``continuous_bernoulli``: the output is the logit; both accept intensities in [0, 1], though
    only the second is normalised over them (Loaiza-Ganem and Cunningham, 2019). The family ``auto``
    is resolved by :func:`load_model`, which may know the images; here it is gaussian.

    Args:
        spec: Family and scale.
    """

    def __init__(self, spec: LikelihoodSpec) -> None:
        super().__init__()
        spec = spec.resolved(binary=False)
        self.family = spec.family
        # Whether the scale comes from the data.
        self.auto = False
        if spec.family == "gaussian":
            self.auto = spec.scale == "auto"
            log_scale = torch.tensor(UNKNOWN_SCALE if self.auto else spec.scale).log()
            if spec.learned:
                self.log_scale = nn.Parameter(log_scale)
            else:
                self.register_buffer("log_scale", log_scale)

    def forward(self, output: Tensor) -> TorchDistribution:
        if self.family == "gaussian":
            return GaussianPixels(output, self.log_scale.exp())
        if self.family == "bernoulli":
            # Grey values in [0, 1] are not Bernoulli outcomes; their log_prob is the
            # cross-entropy that VAEs are commonly trained with.
            fn = dist.Bernoulli(logits=output, validate_args=False)
        else:
            fn = dist.ContinuousBernoulli(logits=output)
        pixels: TorchDistribution = fn.to_event(3)
        return pixels

    @property
    def scale(self) -> float | None:
        """Standard deviation of a pixel, in units of the images; None for Bernoulli families."""
        return self.log_scale.exp().item() if self.family == "gaussian" else None

    @torch.no_grad()
    def resolve(self, data: ImageData) -> float:
        """Set an ``auto`` scale to the resolution of the data, and return that."""
        found = resolution(data)
        self.log_scale.fill_(math.log(found))
        return found

    @torch.no_grad()
    def signal(self, x: Tensor) -> float:
        """Information in images x (N, C, H, W) beyond their mean image, in nats per image.

        For the Gaussian it is the sum over pixels of Var(x) / (2 scale^2), for the Bernoulli
        families the drop in cross-entropy from the mean image to the image itself.
        """
        if self.family == "gaussian":
            return (x.var(0).sum() / (2.0 * (2.0 * self.log_scale).exp())).item()
        mean = x.mean(0).expand_as(x)
        entropy = nn.functional.binary_cross_entropy
        return (
            (entropy(mean, x, reduction="sum") - entropy(x, x, reduction="sum")) / len(x)
        ).item()


class VAE(PyroModule):
    """Base of the models: latents from ``sample_latents``, then x | z through the decoder.

    Args:
        spec: Model spec.
        image_shape: (C, H, W).
    """

    # Whether z is a count.
    discrete = False

    def __init__(self, spec: ModelSpec, image_shape: Sequence[int]) -> None:
        super().__init__()
        self.spec = spec
        self.image_shape = tuple(image_shape)
        self.latent_size = spec.latent_size
        self.decoder = Decoder(spec.decoder, image_shape, spec.latent_size)
        self.likelihood = Likelihood(spec.likelihood)
        # A buffer keeps track of the device and dtype that `.to` has moved the model to.
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    def sample_latents(self) -> Tensor:
        """Sample the latent sites from their prior and return z, shape (B, K)."""
        # Not an abstract method: PyroModule has a metaclass of its own, which excludes ABCMeta.
        raise NotImplementedError(f"{type(self).__name__} does not say how to sample its latents")

    @property
    def marginal(self) -> TorchDistribution:
        """The prior p(z), with any other latents integrated out; batch shape (K,)."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its p(z) is")

    def forward(self, x: Tensor | None = None, size: int = 1) -> Tensor:
        """Run p(x, z, precision) on images x (B, C, H, W) in [0, 1], or draw ``size`` of them."""
        with pyro.plate("data", size if x is None else len(x)):
            z = self.sample_latents()
            return pyro.sample("x", self.likelihood(self.decoder(z)), obs=x)


class NormalGammaVAE(VAE):
    """Sites ``precision`` then ``z``, each an event over K latents, from the prior's factors.

    precision_k ~ pi Gamma(slab) + (1 - pi) Gamma(spike),
    z_k ~ Normal(0, 1), or Normal(0, precision_k^-1/2) if the prior is joint,
    x | z ~ likelihood(decoder(z)).
    """

    slab: Tensor

    def __init__(self, spec: ModelSpec, image_shape: Sequence[int]) -> None:
        super().__init__(spec, image_shape)
        assert isinstance(spec.prior, NormalGammaPriorSpec)
        # A buffer, because it changes during training (``schedule.slab``).
        self.register_buffer("slab", torch.tensor(spec.prior.slab), persistent=False)

    @property
    def prior(self) -> SpikeSlabPrior | NormalGammaPrior:
        """Prior on (z_k, precision_k), batch shape (K,)."""
        spec = self.spec.prior
        assert isinstance(spec, NormalGammaPriorSpec)
        family = NormalGammaPrior if spec.joint else SpikeSlabPrior
        probs = self.zero.new_full((self.latent_size,), spec.slab_probs)
        return family(probs, slab=self.slab, spike=spec.spike)

    @property
    def marginal(self) -> TorchDistribution:
        return self.prior.marginal

    def sample_latents(self) -> Tensor:
        prior = self.prior
        precision = pyro.sample("precision", prior.precision.to_event(1))
        return pyro.sample("z", prior.conditional(precision).to_event(1))


class StandardVAE(VAE):
    """Base of the models with z_k ~ Normal(0, 1), one site ``z``."""

    @property
    def marginal(self) -> TorchDistribution:
        loc = self.zero.expand(self.latent_size)
        # Not the number 1, which torch would put into a tensor on the CPU and copy every time.
        return dist.Normal(loc, torch.ones_like(loc))

    def sample_latents(self) -> Tensor:
        return pyro.sample("z", self.marginal.to_event(1))


class GaussianVAE(StandardVAE):
    """The vanilla model (Kingma and Welling, 2013): z_k ~ Normal(0, 1), one site ``z``."""


class AxisPrecision(nn.Module):
    """The precision alpha_k of each latent's prior, given codes of the data.

        y_k | alpha_k ~ Normal(0, alpha_k^-1/2),  alpha_k ~ Gamma(a0, b0),
        alpha_k | y_1k ... y_nk ~ Gamma(a0 + n / 2, b0 + sum_i y_ik^2 / 2),

    so that y_k given the codes is Student's t with 2 a degrees of freedom and the squared scale
    b / a, which is ``variance``. Saha, Joshi and Whitaker (2025), arXiv:2501.10901, equations 8 and
    9, with the mean 0 of their code. It is computed anew whenever as many codes have come as the
    prior declares, from these alone; until then ``variance`` is 1, where their code has that of
    10,000 codes before the first step. All of its state is in buffers: it is saved with the
    weights, and its arithmetic can be recorded.

    Formulas and constants have been checked against their code; the numbers of equations and
    sections, here and below, are those by which others quote the paper.

    Args:
        spec: a0, b0, and how many codes.
        latent_size: K.
    """

    concentration: Tensor
    rate: Tensor
    seen: Tensor
    squares: Tensor

    def __init__(self, spec: ArdPriorSpec, latent_size: int) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("concentration", torch.ones(()))
        self.register_buffer("rate", torch.ones(latent_size))
        # Of the codes since the last time.
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("squares", torch.zeros(latent_size))

    @property
    def variance(self) -> Tensor:
        """Variances b / a, (K,); a new tensor, which :meth:`learn` leaves as it is."""
        return self.rate / self.concentration

    @torch.no_grad()
    def learn(self, codes: Tensor) -> None:
        """Take in codes y of images, shape (..., K), and compute the posterior if it is time."""
        codes = codes.reshape(-1, codes.shape[-1])
        self.seen.add_(len(codes))
        self.squares.add_(codes.square().sum(0))
        due = self.seen >= self.spec.codes
        concentration = self.spec.concentration + self.seen / 2.0
        rate = self.spec.rate + self.squares / 2.0
        # No branch on `due`, whose value would have to be read back from a GPU.
        self.concentration.copy_(torch.where(due, concentration, self.concentration))
        self.rate.copy_(torch.where(due, rate, self.rate))
        self.seen.mul_(~due)
        self.squares.mul_(~due)


class ArdDecoder(Decoder):
    """A decoder of y_k = s_k z_k, s_k the standard deviation of the prior of y_k."""

    def __init__(self, spec: ModelSpec, image_shape: Sequence[int]) -> None:
        super().__init__(spec.decoder, image_shape, spec.latent_size)
        assert isinstance(spec.prior, ArdPriorSpec)
        self.precision = AxisPrecision(spec.prior, spec.latent_size)

    @property
    def scale(self) -> Tensor:
        """The standard deviations s, (K,)."""
        return self.precision.variance.sqrt()

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(self.scale * z)


class ArdVAE(StandardVAE):
    """The ARD-VAE: each latent's prior has a precision that is inferred from the codes.

    Saha, Joshi and Whitaker (2025), "ARD-VAE: A statistical formulation to find the relevant latent
    dimensions of variational autoencoders", WACV, arXiv:2501.10901:

        y_k ~ Normal(0, s_k),  s_k^2 = b_k / a_k,  x | y ~ likelihood(decoder(y)),

    with the Gamma(a, b) of :class:`AxisPrecision`. Given the codes y_k is Student's t with 2 a =
    10,000 degrees of freedom, which the paper takes to be Normal, as we do. Their KL differ by
    1e-4 nats for means within one standard deviation, and by 3e-3 at three.

    The site ``z`` is y_k / s_k, in units of the prior's standard deviation, so that its prior is
    Normal(0, 1): densities, KL and images are those of the paper, and do not depend on the unit,
    which drifts as the s_k do. The decoder multiplies by s_k and the guide divides by it.
    """

    decoder: ArdDecoder

    def __init__(self, spec: ModelSpec, image_shape: Sequence[int]) -> None:
        super().__init__(spec, image_shape)
        self.decoder = ArdDecoder(spec, image_shape)


class PoissonVAE(VAE):
    """Spike counts (Vafaii, Galor and Yates, 2024, arXiv:2405.14473): z_k ~ Poisson(rate_k).

    One site ``z``; the rates are parameters, learned as their logarithms.
    """

    discrete = True

    def __init__(self, spec: ModelSpec, image_shape: Sequence[int]) -> None:
        super().__init__(spec, image_shape)
        assert isinstance(spec.prior, PoissonPriorSpec)
        low, high = spec.prior.log_rate
        self.log_rate = nn.Parameter(low + (high - low) * torch.rand(self.latent_size))

    @property
    def marginal(self) -> TorchDistribution:
        # Not validated, because in training it is evaluated at relaxed counts.
        return dist.Poisson(self.log_rate.exp(), validate_args=False)

    def sample_latents(self) -> Tensor:
        return pyro.sample("z", self.marginal.to_event(1))


MODELS: dict[type[Spec], type[VAE]] = {
    NormalGammaPriorSpec: NormalGammaVAE,
    GaussianPriorSpec: GaussianVAE,
    PoissonPriorSpec: PoissonVAE,
    ArdPriorSpec: ArdVAE,
}


def _of_images(images: Any) -> tuple[tuple[int, ...], ImageData | None]:
    """Shape (C, H, W) of images, and the images, if they are more than a shape."""
    if not isinstance(images, (tuple, list)):
        found = as_images(images)
        return found.image_shape, found
    sizes = list(images)
    if len(sizes) != 3 or not all(isinstance(size, Integral) and int(size) > 0 for size in sizes):
        got = images if 0 < len(sizes) < 10 else described(images)
        raise UserError(f"images: expected ngvae_pyro.ImageData or a shape (C, H, W), got {got}")
    return tuple(sizes), None


def check_likelihood(model: VAE, data: ImageData) -> None:
    """Refuse a likelihood of intensities in [0, 1] for data that are not intensities.

    Raises:
        UserError: If they do not fit; the message names the family that does.
    """
    family = model.likelihood.family
    if data.form.standardised and family != "gaussian":
        what = "sequences" if data.form.sequential else "vectors"
        raise UserError(
            f"model.likelihood.family: expected gaussian for the {what} of '{data.name}', "
            f"got {family}, which is of values in [0, 1]"
        )


@float32()
def load_model(
    variant: str | Path | ModelSpec = "normal_gamma",
    images: Images | Sequence[int] = (3, 32, 32),
    **changes: Any,
) -> VAE:
    """The model p(x, z, precision) that a variant declares.

    Its first weights come from torch's generator: ``torch.manual_seed`` makes them repeatable. They
    are float32, whatever torch's default type is.

    Args:
        variant: Name in ``models/``, path to a TOML file, or a :class:`ModelSpec`.
        images: The data, as :func:`ngvae_pyro.data.as_images` reads them, or their shape (C, H, W).
            The likelihood ``auto`` depends on the data, and is gaussian if only a shape is given.
            So do the units of the networks (:func:`units`): of a shape they have data as they are,
            until :func:`ngvae_pyro.fit` is given some. In a loop of one's own, data that vary
            little are slow to train then, and a ``fit`` after it begins with other units than the
            weights have learned.
        changes: Keys of the spec to change, e.g. ``latent_size=30``.

    Raises:
        UserError: If the variant does not exist, its spec is not valid, or ``images`` are none of
            these.
    """
    spec = spec_of("models", variant, changes)
    expect("variant", spec, ModelSpec, "an ngvae_pyro.ModelSpec")
    image_shape, data = _of_images(images)
    binary = data is not None and data.binary
    spec = spec.model_copy(update={"likelihood": spec.likelihood.resolved(binary)})
    model = MODELS[type(spec.prior)](spec, image_shape)
    if data is not None and model.likelihood.auto:
        model.likelihood.resolve(data)
    if data is not None:
        model.decoder.set_units(*units(data))
    model.decoder.of_logits = model.likelihood.family != "gaussian"
    return model
