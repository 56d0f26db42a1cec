"""The generative story p(x, z, precision), in the paper's notation.

Jouffroy, Giremus, Berthoumieu and Bach (2022), "Inducing selective posterior-collapse in
variational autoencoders by modelling the latent space as a mixture of normal-gamma
distributions", AI and physics conference.
"""

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
from ngvae_pyro.errors import UserError, described, expect
from ngvae_pyro.likelihoods import Units, check_likelihood, load_likelihood
from ngvae_pyro.nn import Decoder
from ngvae_pyro.specs import (
    ArdPriorSpec,
    GaussianPriorSpec,
    ModelSpec,
    NormalGammaPriorSpec,
    PoissonPriorSpec,
    Spec,
)
from ngvae_pyro.variants import spec_of


class VAE(PyroModule):
    """Base of the models: latents from ``sample_latents``, then x | z through the decoder.

    Args:
        spec: Model spec.
        image_shape: (C, H, W).
    """

    # Whether z is a count.
    discrete = False
    # In what units an encoder has the training data, once these are known.
    seen: Units | None = None

    def __init__(self, spec: ModelSpec, image_shape: Sequence[int]) -> None:
        super().__init__()
        self.spec = spec
        self.image_shape = tuple(image_shape)
        self.latent_size = spec.latent_size
        self.decoder = Decoder(spec.decoder, image_shape, spec.latent_size, spec.depth)
        self.likelihood = load_likelihood(spec.likelihood, image_shape)
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
            return pyro.sample("x", self.likelihood(self.decoder(z), x), obs=x)

    @torch.no_grad()
    def drawn(self, size: int) -> dict[str, Tensor]:
        """Draws (size, K) from the prior of the latent sites."""
        with pyro.poutine.trace() as tracer, pyro.plate("data", size):
            self.sample_latents()
        nodes: Any = tracer.trace.nodes
        names = [name for name in ("precision", "z") if name in nodes]
        return {name: nodes[name]["value"] for name in names}

    def condition(self, reference: Tensor) -> None:
        """Take covariates from now on, and so do the guides that are made for this model.

            x | z, c ~ likelihood(decoder(z, c)),  z | x, c ~ guide(x, c),

        with c the rows of the design matrix of the data (:attr:`ngvae_pyro.ImageData.covariates`).
        A conditional VAE: Sohn, Lee and Yan (2015), "Learning structured output representation
        using deep conditional generative models", NeurIPS; here the prior does not depend on c, so
        that z is pushed to carry what c does not.

        Args:
            reference: The mean design (Q,) of the training data, which stands for c where no
                covariates are given.
        """
        self.decoder.condition(reference, self.decoder.stem.out_features)

    @property
    def reference(self) -> Tensor | None:
        """What stands for the covariates where none are given, (Q,); None without covariates."""
        # A decoder may be any module.
        conditioning = getattr(self.decoder, "conditioning", None)
        return None if conditioning is None else conditioning.reference

    def learn_units(self, data: ImageData) -> None:
        """Take the units of the networks from the training data, unless they are known."""
        own, output = self.likelihood.units(data)
        self.seen = own
        if not self.decoder.has_units:
            self.decoder.set_units(*output)


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
        super().__init__(spec.decoder, image_shape, spec.latent_size, spec.depth)
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


def _of_images(images: Any, counts: bool) -> tuple[tuple[int, ...], ImageData | None]:
    """Shape (C, H, W) of images, and the images, if they are more than a shape."""
    if not isinstance(images, (tuple, list)):
        found = as_images(images, counts=counts)
        return found.image_shape, found
    sizes = list(images)
    if len(sizes) != 3 or not all(isinstance(size, Integral) and int(size) > 0 for size in sizes):
        got = images if 0 < len(sizes) < 10 else described(images)
        raise UserError(f"images: expected ngvae_pyro.ImageData or a shape (C, H, W), got {got}")
    return tuple(sizes), None


def _columns(data: ImageData | None) -> int:
    vectors = data is not None and data.form.layout == "vectors"
    return data.image_shape[-1] if data is not None and vectors else 0


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
            So do the units of the networks (:meth:`ngvae_pyro.likelihoods.Likelihood.units`): of a
            shape they have data as they are, until :func:`ngvae_pyro.fit` is given some. In a loop
            of one's own, data that vary
            little are slow to train then, and a ``fit`` after it begins with other units than the
            weights have learned.
        changes: Keys of the spec to change, e.g. ``latent_size=30``, or ``decoder=MyDecoder``, a
            class of ``torch.nn.Module`` (:class:`ngvae_pyro.specs.OwnSpec`).

    Raises:
        UserError: If the variant does not exist, its spec is not valid, ``images`` are none of
            these, or the decoder cannot make such images.
    """
    spec = spec_of("models", variant, changes)
    expect("variant", spec, ModelSpec, "an ngvae_pyro.ModelSpec")
    image_shape, data = _of_images(images, counts=spec.likelihood.whole)
    if data is not None:
        spec = spec.of_data(missing=data.form.missing, depth=data.form.depth)
    likelihood = spec.likelihood.resolved(
        binary=data is not None and data.binary,
        columns=_columns(data),
    )
    spec = spec.model_copy(update={"likelihood": likelihood})
    if (kind := MODELS.get(type(spec.prior))) is None:
        raise UserError(
            f"prior family '{spec.prior.family}': expected a model of your own as it is, as the "
            "first argument of ngvae_pyro.fit"
        )
    model = kind(spec, image_shape)
    model.decoder.of_logits = not model.likelihood.in_units
    if data is not None and data.covariates is not None:
        model.condition(data.covariates.mean(0))
    if data is not None:
        check_likelihood(model.likelihood, data)
        model.likelihood.learn(data)
        model.learn_units(data)
    return model
