"""The amortized posterior q(z, precision | x), in the paper's notation."""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.func import jvp

from ngvae_pyro.contexts import float32, forward_mode, given_rows
from ngvae_pyro.distributions import (
    GeneralizedGamma,
    NormalGammaMixture,
    RelaxedNormalGammaMixture,
)
from ngvae_pyro.distributions.location_scale import Epanechnikov, GaussianMixture
from ngvae_pyro.distributions.poisson import RelaxedPoisson
from ngvae_pyro.errors import UserError, expect
from ngvae_pyro.latents import is_informative
from ngvae_pyro.model import VAE, ArdVAE, GaussianVAE, NormalGammaVAE, PoissonVAE
from ngvae_pyro.nn import Decoder, Encoder
from ngvae_pyro.objectives import (
    ArdELBO,
    FlatELBO,
    GaussianMixtureELBO,
    MixtureELBO,
    baseline,
    plain_elbo,
)
from ngvae_pyro.objectives.base import MeanFieldELBO, TraceELBO
from ngvae_pyro.specs import (
    ArdGuideSpec,
    ElboSpec,
    EpanechnikovGuideSpec,
    FitSpec,
    FlatGuideSpec,
    GaussianGuideSpec,
    GaussianMixtureGuideSpec,
    GeneralizedGuideSpec,
    MixtureGuideSpec,
    PoissonGuideSpec,
    RelaxedGuideSpec,
    ScoreGuideSpec,
    Spec,
)
from ngvae_pyro.variants import spec_of

# Bound on the log rate of a count (148 events), from the code of Vafaii, Galor and Yates (2024).
MAX_LOG_RATE = 5.0
# Factor from the encoder's output to log delta. At 1, Adam's first steps silence every count before
# the decoder can use it, and a silent count has no gradient: on sprites, at the default learning
# rate, all were silent after 50 steps and stayed so.
GAIN = 0.1


@dataclass(frozen=True)
class Codes:
    """Posterior summaries of a batch, each of shape (B, K).

    ``loc`` is the posterior mean of z, ``variance`` the inferred variance of z given x,
    ``precision`` the posterior mean of its precision, and ``probs`` the weight p by which a latent
    is informative, which each guide describes in its ``p_is``.
    """

    loc: Tensor
    variance: Tensor
    precision: Tensor
    probs: Tensor

    @property
    def informative(self) -> Tensor:
        """Which latents are informative: those whose mean p over the batch exceeds 1/2, (K,)."""
        informative: Tensor = is_informative(self.probs.mean(0))
        return informative


# Where a switch of latents has written: a parameter, and an index into it.
Touched = list[tuple[Tensor, Any]]


@runtime_checkable
class SwitchableLatents(Protocol):
    """A guide whose latents can be switched on and off, and rotated among each other.

    The moves, the silencing and the rotation of :mod:`ngvae_pyro.training.actions` require it. Each
    method writes to the guide and to the model's decoder in place, and returns the parts of
    parameters that it has changed, whose optimizer state is then obsolete.
    """

    def switch(self, decoder: Decoder, latent: int, on: bool, loc: Tensor) -> Touched:
        """Make latent k informative or uninformative.

        Args:
            decoder: The model's decoder.
            latent: Index k.
            on: Whether to make it informative.
            loc: Its posterior means over a sample of the data, shape (N,).
        """

    def recombine(
        self, decoder: Decoder, latents: Tensor, change: Tensor, precision: Tensor
    ) -> Touched:
        """Change the coordinates of some latents, loc to A loc, and keep the reconstruction.

        If A has fewer rows than columns, the first d of the latents take the new coordinates and
        the others are switched off; the reconstruction is that from the nearest codes that remain.

        Args:
            decoder: The model's decoder.
            latents: Indices k of informative latents, shape (M,).
            change: Matrix A, shape (d, M), of rank d.
            precision: Their mean posterior precisions before, shape (M,).
        """

    def seal(self, sealed: bool = True) -> None:
        """Keep latents that are switched off as they are from now on, or no longer."""


@runtime_checkable
class OwnPrecisions(Protocol):
    """A guide whose informative latents have learned precisions of their own."""

    # A number for each latent, (K,), on which nothing but its precision depends.
    log_factor: nn.Parameter


@runtime_checkable
class Relaxable(Protocol):
    """A guide that may begin its training as a relaxation of itself."""

    # False as long as it is relaxed.
    exact: bool

    def become_exact(self) -> Touched:
        """Leave the relaxation, and return the parts of parameters that this has changed."""


def recombine(encoder: Encoder, decoder: Decoder, latents: Tensor, change: Tensor) -> Touched:
    """Change the coordinates of some latents in encoder and decoder, in place.

    loc becomes A loc and the decoder's columns W become W A^-1: the reconstruction at the mean is
    unchanged. With fewer rows than columns A^-1 is the pseudoinverse, the latents become the first
    d of them, and the rest silent.

    Args:
        encoder: Its head is a linear layer whose first outputs are loc. The other outputs stay, so
            this is meant for latents whose posteriors have the same precision.
        decoder: Its stem is a linear layer of z.
        latents: Indices k, shape (M,).
        change: Matrix A, shape (d, M), d at most M.

    Returns:
        The parts of parameters that were written to.
    """
    head, stem = encoder.head, decoder.stem
    kept = latents[: len(change)]
    weight, bias = change @ head.weight[latents], change @ head.bias[latents]
    columns = stem.weight[:, latents] @ torch.linalg.pinv(change)
    head.weight[latents], head.bias[latents], stem.weight[:, latents] = 0.0, 0.0, 0.0
    head.weight[kept], head.bias[kept], stem.weight[:, kept] = weight, bias, columns
    return [(head.weight, latents), (head.bias, latents), (stem.weight, (slice(None), latents))]


class Guide(PyroModule):
    """Base of the guides: an encoder, and the posterior that its outputs parameterise.

    Args:
        spec: Guide spec.
        model: The model whose latents are inferred; gives K and the image shape.
        outputs: How many numbers the encoder outputs for each latent.
    """

    # The models that it fits, which have the same latent sites.
    fits: ClassVar[type[VAE]] = VAE
    # A description of p: a latent is informative if its mean over the images exceeds one half.
    p_is = "what the guide says of each latent, mean of the images"
    # Keys of the spec that the schedule multiplies by factors of the same names.
    annealed: tuple[str, ...] = ()
    # Whether it encodes any image, not only those that it was trained on.
    amortized = True

    def __init__(self, spec: Any, model: VAE, outputs: int = 2) -> None:
        super().__init__()
        self.spec = spec
        self.image_shape, self.latent_size = model.image_shape, model.latent_size
        # A number that is 0 stays 0.
        self.annealed = tuple(name for name in self.annealed if getattr(spec, name))
        for name in self.annealed:
            # A buffer, because it changes during training and is saved with the weights.
            self.register_buffer(name, torch.tensor(getattr(spec, name)))
        self.encoder = Encoder(
            spec.encoder,
            model.image_shape,
            model.latent_size,
            outputs,
            missing=model.likelihood.spec.missing,
            depth=model.spec.depth,
        )
        self.encoder.of_counts = model.likelihood.counts
        if model.reference is not None:
            self.encoder.condition(model.reference, math.prod(model.image_shape))
        if model.seen is not None:
            self.encoder.set_units(*model.seen)
        elif (
            # A decoder may be any module.
            isinstance(model.decoder, Decoder)
            and model.decoder.has_units
            and not model.likelihood.counts
        ):
            # The weights were read back, without an encoder.
            self.encoder.set_units(model.decoder.loc, model.decoder.unit)

    @classmethod
    def objective(cls, spec: Any, fit: FitSpec, model: VAE, data_size: int) -> TraceELBO:
        """The loss that ``fit`` minimises for a guide of this class.

        By default it is the ``objective`` of the spec, and if the spec has none, -ELBO with the
        estimator ``fit.elbo``.

        Args:
            spec: Spec of the guide.
            fit: The estimator of a plain ELBO, and the number of particles.
            model: The model that is trained.
            data_size: Number of training images.
        """
        declared = getattr(spec, "objective", None)
        return baseline(declared or ElboSpec(), fit, model, data_size)

    @property
    def phase(self) -> Hashable:
        """The form of the posterior, if training switches it: a recording is for one phase only."""
        return None

    def posterior(self, x: Tensor) -> Any:
        """The posterior q(z | x) or q(z, precision | x) of images (B, C, H, W).

        Its batch shape is (B, K).
        """
        # Not an abstract method: PyroModule has a metaclass of its own, which excludes ABCMeta.
        raise NotImplementedError(f"{type(self).__name__} does not say what its posterior is")

    def forward(self, x: Tensor) -> None:
        q = self.posterior(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", q.to_event(1))

    def codes(self, x: Tensor) -> Codes:
        """Posterior summaries of images (B, C, H, W)."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its codes are")

    @torch.no_grad()
    def draws(self, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Posterior draws (count, B, K) of the precision and of z.

        In a guide without a precision site the precision is 1 / variance in all draws.
        """
        z = self.posterior(x).sample((count,))
        return self.codes(x).precision.expand_as(z), z

    @torch.no_grad()
    def nested_draws(self, x: Tensor, precisions: int, draws: int) -> Tensor:
        """Posterior draws of z (S, M, B, K): M = ``draws`` for each of S = ``precisions``.

        In a guide without a precision site there is one group, (1, S M, B, K).
        """
        z: Tensor = self.posterior(x).sample((1, precisions * draws))
        return z


# Logits of p after a birth and a death if p is the probability of a draw: an informative latent is
# off in one image in 3,000, and an uninformative one is on as rarely.
EXACTLY_SETTLED = 8.0, -8.0
# Factor on the logits: after a birth the relaxation's p is 0.92 and its gate 0.9998; this turns p
# into 0.99995.
SURER = 4.0


class NormalGammaGuide(Guide):
    """Base of the guides with sites ``precision`` and ``z``, whose encoder outputs loc and logit p.

    The precision_k | x has the posterior's own distribution, and
    z_k | precision_k, x ~ Normal(mu_k, precision_k^-1/2).
    """

    fits = NormalGammaVAE
    p_is = "the weight of the informative component, mean of the images"
    # Logits of p after a birth and a death: well inside the flat ends of the relaxation, yet not so
    # far out that the gradient of the sigmoid vanishes.
    settled = 2.5, -4.0

    annealed: tuple[str, ...] = ("freedom",)

    def __init__(self, spec: Any, model: VAE) -> None:
        super().__init__(spec, model)
        if spec.freedom > 0.0:
            self.log_factor = nn.Parameter(torch.zeros(model.latent_size))
        # Which latents may have a loc other than 0. Not saved: that of the others is 0 by their
        # weights too, and this only keeps training from changing those.
        self.register_buffer("open", torch.ones(model.latent_size), persistent=False)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The loc and the logit of p of images (B, C, H, W), each (B, K)."""
        loc, logits = self.encoder(x)
        return self.open * loc, logits

    @torch.no_grad()
    def seal(self, sealed: bool = True) -> None:
        """Keep latents whose loc is 0 for all images as they are from now on, or no longer."""
        if not sealed:
            self.open.fill_(1.0)
            return
        head, size = self.encoder.head, self.latent_size
        rows = torch.cat((head.weight[:size], head.bias[:size, None]), 1)
        self.open.copy_((rows != 0.0).any(1))

    @property
    def rate(self) -> tuple[Tensor | float, float]:
        """Rates (informative, uninformative) of the posterior's two Gammas.

        Each latent has its own informative rate b1_k, of shape (K,) and the same for all images:

            b1_k = b1 exp(freedom tanh(log_factor_k))

        Not a function of x, because a precision that is constant over the images makes the decoder
        an isometry of each latent up to scale, which :mod:`ngvae_pyro.axes` builds on.
        """
        informative, uninformative = self.spec.rate
        if self.spec.freedom > 0.0:
            return informative * (self.freedom * self.log_factor.tanh()).exp(), uninformative
        return informative, uninformative

    def _set_precision(self, latents: Tensor | list[int], precision: Tensor) -> Touched:
        """Give informative latents a mean precision, within the range of their own rates."""
        a1, b1 = self.spec.concentration[0], self.spec.rate[0]
        log_factor = (a1 / (b1 * precision)).log() / self.spec.freedom
        # The ends, where tanh is flat, are out of reach.
        self.log_factor[latents] = log_factor.clamp(-0.99, 0.99).atanh()
        return [(self.log_factor, latents)]

    def forward(self, x: Tensor) -> None:
        q = self.posterior(x)
        with pyro.plate("data", len(x)):
            precision = pyro.sample("precision", q.precision.to_event(1))
            pyro.sample("z", q.conditional(precision).to_event(1))

    def codes(self, x: Tensor) -> Codes:
        q = self.posterior(x)
        return Codes(q.loc, q.variance[..., 0], q.mean[..., 1], q.probs)

    @torch.no_grad()
    def draws(self, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        z, precision = self.posterior(x).sample((count,)).unbind(-1)
        return precision, z

    def exact_posterior(self, x: Tensor) -> NormalGammaMixture:
        """The mixture itself, without a relaxation, for images (B, C, H, W)."""
        loc, logits = self.encode(x)
        return NormalGammaMixture(
            loc, logits=logits, concentration=self.spec.concentration, rate=self.rate
        )

    @torch.no_grad()
    def nested_draws(self, x: Tensor, precisions: int, draws: int) -> Tensor:
        q = self.posterior(x)
        precision = q.precision.sample((precisions,))
        z: Tensor = q.conditional(precision).sample((draws,))
        return z.transpose(0, 1)

    @torch.no_grad()
    def switch(self, decoder: Decoder, latent: int, on: bool, loc: Tensor) -> Touched:
        """Make latent k informative or uninformative, see :class:`SwitchableLatents`.

        To switch it on, loc is divided by its standard deviation and the decoder's column
        multiplied by it, which leaves the reconstruction unchanged, and p is set near 1. To switch
        it off, loc and the column are set to 0 and p near 0. The mean contribution of loc moves
        into the decoder's bias.
        """
        head, stem = self.encoder.head, decoder.stem
        mean, std = loc.mean(), loc.std()
        stem.bias.add_(mean * stem.weight[:, latent])
        if on:
            stem.weight[:, latent] *= std
            head.weight[latent] /= std
            head.bias[latent] = (head.bias[latent] - mean) / std
        else:
            stem.weight[:, latent] = 0.0
            head.weight[latent] = 0.0
            head.bias[latent] = 0.0
        touched = self._settle([latent], on)
        if self.spec.freedom > 0.0:
            # What leaks through a loc of variance v is worth (1 + v)^2 / 2 nats if v is the best
            # one, and what is worth A nats has a precision of 2 A if its loc has variance 1.
            precision = (1.0 + std.square()).square() if on else std.new_tensor(self._declared)
            touched += self._set_precision([latent], precision)
        return [
            *touched,
            (head.weight, latent),
            (head.bias, latent),
            (stem.weight, (slice(None), latent)),
        ]

    @property
    def _declared(self) -> float:
        """Mean precision of the informative component as it is declared."""
        precision: float = self.spec.concentration[0] / self.spec.rate[0]
        return precision

    def _settle(self, latents: list[int], on: bool) -> Touched:
        """Set p of some latents near 1 or 0, for all images."""
        head, rows = self.encoder.head, [self.latent_size + k for k in latents]
        head.weight[rows] = 0.0
        born, dead = self.settled
        head.bias[rows] = born if on else dead
        return [(head.weight, rows), (head.bias, rows)]

    @torch.no_grad()
    def recombine(
        self, decoder: Decoder, latents: Tensor, change: Tensor, precision: Tensor
    ) -> Touched:
        """Change the coordinates of some latents, see :class:`SwitchableLatents`.

        The posterior's precision matrix L becomes A^-T L A^-1, of which each latent's own
        precision is the diagonal.
        """
        touched = recombine(self.encoder, decoder, latents, change)
        kept, gone = latents[: len(change)], latents[len(change) :]
        touched += self._settle(gone.tolist(), False)
        if self.spec.freedom > 0.0:
            inverse = torch.linalg.pinv(change)
            touched += self._settle(kept.tolist(), True)
            touched += self._set_precision(kept, precision @ inverse.square())
            touched += self._set_precision(gone, precision.new_tensor(self._declared))
        return touched


class RelaxedGuide(NormalGammaGuide):
    """precision_k | x ~ Gamma(alpha(p_k), beta(p_k)), the relaxed mixture; pathwise gradients."""

    annealed = ("sharpness", "freedom")

    def posterior(self, x: Tensor) -> RelaxedNormalGammaMixture:
        loc, logits = self.encode(x)
        return RelaxedNormalGammaMixture(
            loc,
            logits=logits,
            concentration=self.spec.concentration,
            rate=self.rate,
            sharpness=self.sharpness,
        )


class FlatGuide(RelaxedGuide):
    """The relaxed posterior, with an objective that draws z several times for each precision."""

    @classmethod
    def objective(cls, spec: Any, fit: FitSpec, model: VAE, data_size: int) -> TraceELBO:
        return FlatELBO(spec.draws, num_particles=fit.particles)


class ScoredGradient(NormalGammaGuide):
    """Base of the guides whose gradient has a score-function term from ``precision``.

    Only ``Trace_ELBO`` includes that term.
    """

    @classmethod
    def objective(cls, spec: Any, fit: FitSpec, model: VAE, data_size: int) -> TraceELBO:
        if fit.elbo != "Trace_ELBO":
            raise UserError(
                f"fit.elbo: expected Trace_ELBO with the guide '{spec.family}', "
                f"whose gradient has a part by its score, got {fit.elbo}"
            )
        return plain_elbo(fit)


class GeneralizedGuide(ScoredGradient, RelaxedGuide):
    """The relaxed posterior with the generalized reparameterization gradient of the slides."""

    def forward(self, x: Tensor) -> None:
        q = self.posterior(x)
        precision_given_x = GeneralizedGamma(q.concentration, q.rate)
        with pyro.plate("data", len(x)):
            precision = pyro.sample("precision", precision_given_x.to_event(1))
            pyro.sample("z", q.conditional(precision).to_event(1))


class ScoreGuide(ScoredGradient):
    """precision_k | x ~ p_k Gamma(a1, b1) + (1 - p_k) Gamma(a2, b2), without a relaxation.

    The site ``precision`` has no pathwise gradient, so Pyro's ELBOs use its score function.
    """

    settled = EXACTLY_SETTLED

    def posterior(self, x: Tensor) -> NormalGammaMixture:
        return self.exact_posterior(x)


class MixtureGuide(RelaxedGuide):
    """The same posterior as :class:`ScoreGuide`, drawn in the other order: z, then its precision.

    First z_k | x ~ p_k StudentT + (1 - p_k) StudentT, whose gradient with respect to p is pathwise
    and unbiased (:class:`ngvae_pyro.distributions.NormalGammaMarginal`), then
    precision_k | z_k, x, which the reconstruction does not need. With
    :class:`ngvae_pyro.objectives.MixtureELBO` its draw does not enter the gradient; with
    ``Trace_ELBO`` it adds a score-function term.

    While ``exact`` is false, as it is at the beginning of its training, it is the relaxed guide.
    """

    exact = True
    settled = EXACTLY_SETTLED

    @classmethod
    def objective(cls, spec: Any, fit: FitSpec, model: VAE, data_size: int) -> TraceELBO:
        assert isinstance(model, NormalGammaVAE)
        return MixtureELBO(lambda: model.prior, num_particles=fit.particles)

    @property
    def phase(self) -> Hashable:
        return self.exact

    def posterior(self, x: Tensor) -> Any:
        return self.exact_posterior(x) if self.exact else super().posterior(x)

    def forward(self, x: Tensor) -> None:
        if not self.exact:
            super().forward(x)
            return
        q = self.exact_posterior(x)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", q.marginal.to_event(1))
            pyro.sample("precision", q.precision_given(z).to_event(1))

    @torch.no_grad()
    def become_exact(self) -> Touched:
        """Leave the relaxation: a p on its flat ends becomes a correspondingly sure probability."""
        self.exact = True
        head, rows = self.encoder.head, slice(self.latent_size, None)
        head.weight[rows] *= SURER
        head.bias[rows] *= SURER
        # The optimizer's moments belong to gradients of another function of these logits.
        return [(head.weight, rows), (head.bias, rows)]


class LocationScaleGuide(Guide):
    """Base of the posteriors with a loc and a variance, whose logarithm the encoder outputs."""

    fits: ClassVar[type[VAE]] = GaussianVAE
    p_is = "the share of images whose inferred variance is below one half, half that of the prior"

    def codes(self, x: Tensor) -> Codes:
        q = self.posterior(x)
        # The sites have no mixture of an informative and an uninformative component.
        return Codes(q.mean, q.variance, 1.0 / q.variance, (q.variance < 0.5).to(q.mean))


class GaussianGuide(LocationScaleGuide):
    """The vanilla posterior z_k | x ~ Normal(mu_k(x), sigma_k(x)) (Kingma and Welling, 2013)."""

    @classmethod
    def objective(
        cls, spec: GaussianGuideSpec, fit: FitSpec, model: VAE, data_size: int
    ) -> TraceELBO:
        return baseline(spec.objective, fit, model, data_size)

    def posterior(self, x: Tensor) -> dist.Normal:
        loc, log_variance = self.encoder(x)
        return dist.Normal(loc, (0.5 * log_variance).exp())


class GaussianMixtureGuide(LocationScaleGuide):
    """Several Gaussians for each latent: z_k | x ~ sum_m pi_km(x) Normal(mu_km(x), sigma_km(x)).

    Rivera (2024), "How to train your VAE", arXiv:2309.13160, whose abstract redefines the ELBO
    with a mixture of Gaussians for the posterior; the paper's text was not available to us. The
    author's code (github.com/marianorivera/How2TrainUrVAE) has one Gaussian for each image and the
    mixture over the images: that is the objective ``gamix`` of the gaussian guide. This guide
    follows the abstract literally, with a mixture for each image, and its ELBO is a lower bound of
    log p(x).

    The encoder outputs mu, log sigma^2 and, for each component, a, b and c:

        mu_m = mu + 2 sigma tanh(a_m),  sigma_m = sigma exp(tanh(b_m) / 2),  log pi_m ~ 3 tanh(c_m).

    Unbounded parameters diverge within some steps of Adam: the gradient of the weights grows
    without bound with the gap between components, and nothing constrains a component whose weight
    has gone to 0.
    """

    def __init__(self, spec: GaussianMixtureGuideSpec, model: VAE) -> None:
        super().__init__(spec, model, outputs=2 + 3 * spec.components)

    @classmethod
    def objective(cls, spec: Any, fit: FitSpec, model: VAE, data_size: int) -> TraceELBO:
        return GaussianMixtureELBO(spec.regulariser, num_particles=fit.particles)

    def posterior(self, x: Tensor) -> GaussianMixture:
        loc, log_variance, *others = self.encoder(x)
        scale = (0.5 * log_variance).exp().unsqueeze(-1)
        a, b, c = torch.stack(others, -1).tanh().chunk(3, -1)
        loc = loc.unsqueeze(-1) + 2.0 * scale * a
        return GaussianMixture(loc, scale * (0.5 * b).exp(), 3.0 * c)


class EpanechnikovGuide(LocationScaleGuide):
    """z_k | x ~ Epanechnikov(mu_k(x), sqrt(5) sigma_k(x)), sigma^2 its variance.

    Qin and Huang (2024), "Epanechnikov variational autoencoder", arXiv:2405.12783, who train it
    with a bound of their own (see :class:`Epanechnikov`); here it is trained with the ELBO.
    """

    def posterior(self, x: Tensor) -> Epanechnikov:
        loc, log_variance = self.encoder(x)
        return Epanechnikov(loc, (5.0 * log_variance.exp()).sqrt())


class PoissonGuide(Guide):
    """Spike counts z_k | x ~ Poisson(rate_k delta_k(x)), with the rate_k of the model's prior.

    The encoder outputs log delta, times 10: the residual of Vafaii, Galor and Yates (2024),
    "Poisson variational autoencoder", arXiv:2405.14473; rates are softly bounded by 148, as in
    their code. Counts are relaxed where gradients are taken, and exact under ``torch.no_grad``, so
    evaluation always uses counts.
    """

    fits = PoissonVAE
    p_is = (
        "1 where the rate varies over the images by more than the counts do about it, and else 0 "
        "(mean of the batches that are looked at)"
    )
    annealed = ("temperature",)

    def __init__(self, spec: PoissonGuideSpec, model: PoissonVAE) -> None:
        super().__init__(spec, model, outputs=1)
        # In a tuple, so that the model's parameters do not become the guide's as well.
        self.models = (model,)

    @classmethod
    def objective(cls, spec: Any, fit: FitSpec, model: VAE, data_size: int) -> TraceELBO:
        # Relaxed counts have no density, but their KL is closed.
        return plain_elbo(fit, MeanFieldELBO)

    def posterior(self, x: Tensor) -> RelaxedPoisson:
        (output,) = self.encoder(x)
        log_rate = self.models[0].log_rate + GAIN * output
        rate = (MAX_LOG_RATE - nn.functional.softplus(MAX_LOG_RATE - log_rate)).exp()
        # At a rate of 0 the KL would be 0 log 0.
        rate = rate + torch.finfo(rate.dtype).eps
        return RelaxedPoisson(rate, self.temperature if torch.is_grad_enabled() else 0.0)

    @torch.no_grad()
    def codes(self, x: Tensor) -> Codes:
        """Posterior summaries of images (B, C, H, W); mean and variance of a count are its rate.

        A latent is informative, for all images of a batch alike, if its rate varies over them by
        more than the counts do about it, Var[rate] > E[rate]. By the law of total variance this is
        the rule of a Gaussian posterior, less than half the variance of the prior. The KL would not
        work as a criterion: a count that is silent for every image may be far from its prior. For
        a single image no latent is informative.
        """
        rate = self.posterior(x).rate
        informative = rate.var(0, correction=0) > rate.mean(0)
        return Codes(rate, rate, 1.0 / rate, informative.to(rate).expand_as(rate))


# Images of a batch at which an ARD-VAE's decoder is differentiated, as many as in the code of Saha,
# Joshi and Whitaker (2025).
RELEVANCE_IMAGES = 100


class ArdGuide(LocationScaleGuide):
    """The Gaussian posterior of an ARD-VAE, y_k | x ~ Normal(mu_k(x), sigma_k(x)), z_k = y_k / s_k.

    Saha, Joshi and Whitaker (2025), arXiv:2501.10901; :class:`~ngvae_pyro.model.ArdVAE` has the
    prior and s, :class:`~ngvae_pyro.objectives.ArdELBO` the objective. Where the decoder has no use
    for a latent its noise only disturbs: sigma falls, s follows it, and the KL stays near 0.
    """

    fits = ArdVAE
    p_is = (
        "1 where it is one of the fewest latents that make up the declared share of the relevance, "
        "variance times squared slope of the decoder, and else 0 (mean of the batches that are "
        "looked at)"
    )

    def __init__(self, spec: ArdGuideSpec, model: ArdVAE) -> None:
        super().__init__(spec, model)
        # In a tuple, so that the model's parameters do not become the guide's as well.
        self.models = (model,)

    @classmethod
    def objective(cls, spec: Any, fit: FitSpec, model: VAE, data_size: int) -> TraceELBO:
        assert isinstance(model, ArdVAE)
        return ArdELBO(spec.beta, model, num_particles=fit.particles)

    def posterior(self, x: Tensor) -> dist.Normal:
        loc, log_variance = self.encoder(x)
        scale = self.models[0].decoder.scale
        return dist.Normal(loc / scale, (0.5 * log_variance).exp() / scale)

    @torch.no_grad()
    def relevance(self, z: Tensor) -> Tensor:
        """How much each latent moves the images, (K,), at codes z (B, K).

        It is ``s_k^2 1/B sum_i |d E[x | y] / d y_k|^2``, the prior's variance times the squared
        norm of a column of the decoder's Jacobian (section 3.4 of the paper, equation 19), hence
        without s where the decoder is differentiated by z. In squared units of x, summed over
        pixels and channels. The Jacobian is that at the posterior mean; the authors' code takes
        it at a draw, and averages before it squares.
        """
        model, columns = self.models[0], []

        def mean(z: Tensor) -> Tensor:
            of_pixels: Tensor = model.likelihood(model.decoder(z)).mean
            return of_pixels

        with forward_mode():
            for axis in torch.eye(self.latent_size).to(z):
                slopes = jvp(mean, (z,), (axis.expand_as(z),))[1]
                columns.append(slopes.square().sum() / len(z))
        return torch.stack(columns)

    @torch.no_grad()
    def codes(self, x: Tensor) -> Codes:
        """Posterior summaries of images (B, C, H, W).

        The relevant latents, for all images of a batch alike, are the fewest whose relevance at the
        first 100 of them makes up the ``share`` of the spec, 99 % in the paper. That is a share of
        whatever there is: unless no latent moves the images at all, at least one is relevant.
        """
        q = self.posterior(x)
        with given_rows(slice(0, RELEVANCE_IMAGES)):
            relevance = self.relevance(q.mean[:RELEVANCE_IMAGES]).double()
        ordered, order = relevance.sort(descending=True)
        before = ordered.cumsum(0) - ordered
        # A latent is needed if those before it fall short of the share.
        relevant = torch.zeros_like(relevance)
        relevant[order] = ((before < self.spec.share * ordered.sum()) & (ordered > 0)).to(relevance)
        return Codes(q.mean, q.variance, 1.0 / q.variance, relevant.to(q.mean).expand_as(q.mean))


# The guides that can be declared; a new one takes a class above, a spec, and a line here.
GUIDES: dict[type[Spec], type[Guide]] = {
    RelaxedGuideSpec: RelaxedGuide,
    FlatGuideSpec: FlatGuide,
    MixtureGuideSpec: MixtureGuide,
    GeneralizedGuideSpec: GeneralizedGuide,
    ScoreGuideSpec: ScoreGuide,
    GaussianGuideSpec: GaussianGuide,
    GaussianMixtureGuideSpec: GaussianMixtureGuide,
    EpanechnikovGuideSpec: EpanechnikovGuide,
    PoissonGuideSpec: PoissonGuide,
    ArdGuideSpec: ArdGuide,
}


def guides_for(model: VAE) -> tuple[type[Guide], ...]:
    """The guides that fit a model of one of the package's classes or of a subclass, else none."""
    return tuple(guide for guide in GUIDES.values() if isinstance(model, guide.fits))


def check_pair(model: VAE, guide: Guide) -> None:
    """Refuse a guide for the latents of another kind of model, or for images of another shape.

    Raises:
        UserError: If they do not fit; the message says what to pass.
    """
    expect("model", model, VAE, "a model from ngvae_pyro.load_model, then the guide")
    expect("guide", guide, Guide, "a guide from ngvae_pyro.load_guide, then the data")
    ours = tuple(GUIDES.values())
    fits = guides_for(model)
    # A user's own guide or model may fit whatever it was written for.
    if fits and isinstance(guide, ours) and not isinstance(guide, fits):
        raise UserError(
            f"a {type(guide).__name__} does not fit a {type(model).__name__}; "
            "expected ngvae_pyro.load_guide(..., model) of this model"
        )
    for name in ("image_shape", "latent_size"):
        own, expected = getattr(guide, name), getattr(model, name)
        if own != expected:
            raise UserError(
                f"the guide is of a model with {name} {own}, not {expected}; "
                "expected ngvae_pyro.load_guide(..., model) of this model"
            )


@float32()
def load_guide(variant: str | Path | Spec, model: VAE, **changes: Any) -> Guide:
    """The guide q(z, precision | x) that a variant declares, for a model.

    Its first weights come from torch's generator: ``torch.manual_seed`` makes them repeatable. They
    are float32, whatever torch's default type is.

    Args:
        variant: Name in ``guides/``, path to a TOML file, or a guide spec.
        model: The model whose latents are inferred.
        changes: Keys of the spec to change, e.g. ``sharpness=10.0``, or ``encoder=MyEncoder``, a
            class of ``torch.nn.Module`` (:class:`ngvae_pyro.specs.OwnSpec`).

    Raises:
        UserError: If the variant does not exist, is not valid, or does not fit the model, or the
            encoder cannot take its images.
    """
    expect("model", model, VAE, "a model from ngvae_pyro.load_model")
    if not (fits := guides_for(model)):
        known = ", ".join(dict.fromkeys(kind.fits.__name__ for kind in GUIDES.values()))
        raise UserError(
            f"model: expected one of {known}, or of a subclass, got a {type(model).__name__}"
        )
    spec = spec_of("guides", variant, changes)
    expect("variant", spec, tuple(GUIDES), "the spec of a guide, e.g. a RelaxedGuideSpec")
    guide = GUIDES[type(spec)]
    if guide not in fits:
        families = [s.model_fields["family"].default for s, g in GUIDES.items() if g in fits]
        raise UserError(
            f"guide family '{spec.family}' does not fit a model with prior family "
            f"'{model.spec.prior.family}'; expected guide family {' or '.join(families)}"
        )
    return guide(spec, model)
