"""A discriminator of images on top of any other objective."""

from collections.abc import Hashable, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import softplus

from ngvae_pyro.model import VAE
from ngvae_pyro.nn import PatchDiscriminator
from ngvae_pyro.objectives.base import Objective, TraceELBO
from ngvae_pyro.specs import (
    FitSpec,
)


class AdversarialELBO(TraceELBO):
    """Any of the objectives, or a plain ELBO, against a discriminator of images.

    To the loss is added what a discriminator D with one logit for each patch says of the
    reconstructions E[x | z] at draws of q(z | x),

        w E[-log D(E[x | z])],

    averaged over the patches, and D learns by cross-entropy to tell them from the images. Both in
    one backward pass: the first term sees D's weights as constants, the second sees the
    reconstructions as constant. The cross-entropy does not saturate where D is sure, as a hinge
    does, and reads in nats like the rest. ``loss`` and the value of a step are those of the inner
    objective: D is only in the gradient. Larsen, Sonderby, Larochelle and Winther (2016),
    "Autoencoding beyond pixels using a learned similarity metric", arXiv:1512.09300, for VAE and
    GAN together; Rivera (2024), arXiv:2309.13160, for the PatchGAN.

    Args:
        elbo: The inner objective.
        image_shape: (C, H, W).
        weight: w, nats per image.
        channels: Of the discriminator's first layer.
        layers: How many of its layers have stride 2.
        learning_rate: Its own, for ``fit``.
        begin: Fraction of training from which it acts and learns.

    Raises:
        UserError: If the images are too small for the patches.
    """

    def __init__(
        self,
        elbo: Any,
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
    def elbo(self) -> Any:
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

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        return self.elbo.loss(model, guide, *args, **kwargs)

    def _get_trace(self, *args: Any) -> Any:
        # The inner one's, which may draw some sites more than once.
        return self.elbo._get_trace(*args)

    def _differentiable_loss_particle(self, model_trace: Any, guide_trace: Any) -> Any:
        loss, surrogate = self.elbo._differentiable_loss_particle(model_trace, guide_trace)
        if not self.acts:
            return loss, surrogate
        site = model_trace.nodes["x"]
        return loss, surrogate + self.contest(site["value"], site["fn"].mean)

    def contest(self, x: Tensor, mean: Tensor) -> Tensor:
        """Both sides' loss, summed over the batch.

        Args:
            x: Images (B, C, H, W).
            mean: E[x | z], the same shape, or with further axes in front for the particles.
        """
        # Known to Pyro, so that a literal SVI trains it too.
        pyro.module("image_discriminator", self.discriminator)
        mean = mean.reshape(-1, *x.shape[-3:])
        frozen = {name: w.detach() for name, w in self.discriminator.named_parameters()}
        # softplus(-logit) is -log D, softplus(logit) is -log(1 - D).
        recognised = softplus(-functional_call(self.discriminator, frozen, (mean,))).mean()
        logits_real, logits_made = self.discriminator(x), self.discriminator(mean.detach())
        learned = softplus(-logits_real).mean() + softplus(logits_made).mean()
        return len(x) * (self.weight * recognised + learned)


def with_adversary(elbo: TraceELBO, fit: FitSpec, model: VAE) -> TraceELBO:
    """An objective, against a discriminator of images where ``fit.adversarial`` asks for one."""
    if (spec := fit.adversarial) is None:
        return elbo
    return AdversarialELBO(elbo, model.image_shape, **spec.model_dump())
