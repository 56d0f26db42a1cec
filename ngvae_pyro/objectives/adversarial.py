"""A discriminator of images on top of any other objective."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import pyro
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import softplus

from ngvae_pyro.errors import UserError
from ngvae_pyro.model import VAE
from ngvae_pyro.nn import PatchDiscriminator
from ngvae_pyro.objectives.base import Objective, TraceELBO, sites
from ngvae_pyro.specs import (
    FitSpec,
)


class AdversarialELBO(TraceELBO):
    """Any of the objectives, or a plain ELBO, plus an adversarial loss on the images.

    A discriminator D with one logit for each patch judges the reconstructions E[x | z] at draws of
    q(z | x), and the loss gains the term

        w E[-log D(E[x | z])],

    averaged over the patches, while D learns by cross-entropy to tell them from the images. Both
    happen in one backward pass: the first term treats D's weights as constants, the second treats
    the reconstructions as constant. The cross-entropy does not saturate where D is sure, as a hinge
    does, and is in nats like the rest. ``loss`` and the value of a step are those of the inner
    objective: D only contributes to the gradient. For the combination of VAE and GAN see Larsen,
    Sonderby, Larochelle and Winther (2016), "Autoencoding beyond pixels using a learned similarity
    metric", arXiv:1512.09300; for the PatchGAN Rivera (2024), arXiv:2309.13160.

    Args:
        elbo: The inner objective.
        image_shape: (C, H, W).
        weight: Weight w of the term, in nats per image.
        channels: Channels of the discriminator's first layer.
        layers: How many of its layers have stride 2.
        learning_rate: Learning rate of the discriminator, for ``fit``.
        begin: Fraction of training from which it acts and learns.

    Raises:
        UserError: If the images are too small for the patches.
    """

    def __init__(
        self,
        elbo: TraceELBO,
        image_shape: Sequence[int],
        weight: float,
        channels: int = 32,
        layers: int = 2,
        learning_rate: float = 1e-3,
        begin: float = 0.0,
    ) -> None:
        super().__init__(
            num_particles=elbo.num_particles, vectorize_particles=elbo.vectorize_particles
        )
        self.max_plate_nesting = elbo.max_plate_nesting
        self.weight, self.learning_rate, self.begin = weight, learning_rate, begin
        self.acts = True
        # A plain ELBO of Pyro's knows nothing of draws, fractions or parameters of its own.
        self.draws = getattr(elbo, "draws", 1)
        self._elbo = elbo
        self.discriminator = PatchDiscriminator(image_shape, channels, layers)

    def numbers_kept(self, rows: int, latents: int) -> int:
        inner = self.elbo
        return inner.numbers_kept(rows, latents) if isinstance(inner, Objective) else 0

    @property
    def elbo(self) -> TraceELBO:
        """The inner objective, at the same fraction of training."""
        if isinstance(self._elbo, Objective):
            self._elbo.fraction = self.fraction
        return self._elbo

    def advance(self, fraction: float) -> Hashable:
        self.acts = fraction >= self.begin
        inner = self.elbo
        return self.acts, inner.advance(fraction) if isinstance(inner, Objective) else None

    def parameter_groups(self, device: torch.device) -> list[dict[str, Any]]:
        own = list(self.discriminator.to(device).parameters())
        # The betas are those of Isola et al. (2017).
        groups = [{"params": own, "initial_lr": self.learning_rate, "betas": (0.5, 0.999)}]
        inner = self.elbo
        return groups + (inner.parameter_groups(device) if isinstance(inner, Objective) else [])

    def loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        return self.elbo.loss(model, guide, *args, **kwargs)

    def _get_trace(self, *args: Any) -> tuple[Trace, Trace]:
        # That of the inner objective, which may draw some sites more than once.
        traces: tuple[Trace, Trace] = self.elbo._get_trace(*args)
        return traces

    def _differentiable_loss_particle(
        self, model_trace: Trace, guide_trace: Trace
    ) -> tuple[Tensor, Tensor]:
        loss, surrogate = self.elbo._differentiable_loss_particle(model_trace, guide_trace)
        if not self.acts:
            return loss, surrogate
        site = sites(model_trace)["x"]
        return loss, surrogate + self.contest(site["value"], site["fn"].mean)

    def contest(self, x: Tensor, mean: Tensor) -> Tensor:
        """Loss of both sides, summed over the batch, in nats.

        Args:
            x: Images (B, C, H, W).
            mean: Reconstructions E[x | z] of the same shape, with further axes in front for
                particles.
        """
        # Registered with Pyro, so that a plain SVI trains it too.
        pyro.module("image_discriminator", self.discriminator)
        mean = mean.reshape(-1, *x.shape[-3:])
        frozen = {name: w.detach() for name, w in self.discriminator.named_parameters()}
        # softplus(-logit) is -log D, softplus(logit) is -log(1 - D).
        recognised = softplus(-functional_call(self.discriminator, frozen, (mean,))).mean()
        logits_real, logits_made = self.discriminator(x), self.discriminator(mean.detach())
        learned = softplus(-logits_real).mean() + softplus(logits_made).mean()
        return len(x) * (self.weight * recognised + learned)


def with_adversary(elbo: TraceELBO, fit: FitSpec, model: VAE) -> TraceELBO:
    """The objective, with an adversarial loss on the images if ``fit.adversarial`` is set."""
    if (spec := fit.adversarial) is None:
        return elbo
    if model.likelihood.spec.missing:
        raise UserError("fit.adversarial: expected images of which no value may be missing")
    return AdversarialELBO(elbo, model.image_shape, **spec.model_dump())
