"""The amortized posterior q(z, precision | x), in the paper's notation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor

from ngvae_pyro.distributions import GaussianMixture, RelaxedNormalGammaMixture
from ngvae_pyro.errors import UserError
from ngvae_pyro.model import VAE, GaussianVAE, NormalGammaVAE
from ngvae_pyro.nn import Encoder
from ngvae_pyro.specs import GaussianGuideSpec, GaussianMixtureGuideSpec, RelaxedGuideSpec, Spec
from ngvae_pyro.variants import spec_of


@dataclass(frozen=True)
class Codes:
    """What a guide says of a batch, each (B, K).

    ``loc`` is the posterior mean of z, ``variance`` the inferred variance of z given x,
    ``precision`` the posterior mean of its precision, ``probs`` the posterior weight of the
    informative component.
    """

    loc: Tensor
    variance: Tensor
    precision: Tensor
    probs: Tensor


class Guide(PyroModule):
    """Base of the guides: an encoder, and the posterior that its outputs are parameters of.

    Args:
        spec: Guide spec.
        model: The model whose latents are inferred; gives K and the image shape.
        outputs: How many numbers the encoder gives for each latent.
    """

    def __init__(self, spec: Any, model: VAE, outputs: int = 2) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = Encoder(spec.encoder, model.image_shape, model.latent_size, outputs)

    def posterior(self, x: Tensor) -> Any:
        """q(z | x) or q(z, precision | x) for images (B, C, H, W), batch shape (B, K)."""
        # As in nn.Module.forward: PyroModule's metaclass leaves no room for an abstract class's.
        raise NotImplementedError(f"{type(self).__name__} does not say what its posterior is")

    def codes(self, x: Tensor) -> Codes:
        """What is said of images (B, C, H, W)."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its codes are")

    @torch.no_grad()
    def draws(self, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Posterior draws (count, B, K) of the precision and of z.

        Without a precision site the precision is 1 / variance, the same in all draws.
        """
        z = self.posterior(x).sample((count,))
        return self.codes(x).precision.expand_as(z), z


class NormalGammaGuide(Guide):
    """Sites ``precision`` then ``z``, from the factors of a relaxed Normal-Gamma mixture.

    precision_k | x ~ Gamma(alpha(p_k), beta(p_k)),  z_k | precision_k, x ~ Normal(mu_k,
    precision_k^-1/2), where mu and logit p are the encoder's outputs.
    """

    def __init__(self, spec: RelaxedGuideSpec, model: VAE) -> None:
        super().__init__(spec, model)
        # A buffer, because the sharpness is annealed in training and saved with the weights.
        self.register_buffer("sharpness", torch.tensor(spec.sharpness))

    def posterior(self, x: Tensor) -> RelaxedNormalGammaMixture:
        loc, logits = self.encoder(x)
        return RelaxedNormalGammaMixture(
            loc,
            logits=logits,
            concentration=self.spec.concentration,
            rate=self.spec.rate,
            sharpness=self.sharpness,
        )

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


class GaussianGuide(Guide):
    """The vanilla posterior z_k | x ~ Normal(mu_k(x), sigma_k(x)) (Kingma and Welling, 2013)."""

    def posterior(self, x: Tensor) -> TorchDistribution:
        loc, log_variance = self.encoder(x)
        return dist.Normal(loc, (0.5 * log_variance).exp())

    def forward(self, x: Tensor) -> None:
        q = self.posterior(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", q.to_event(1))

    def codes(self, x: Tensor) -> Codes:
        q = self.posterior(x)
        # No mixture here: a latent counts as informative where its posterior is narrower than
        # half the prior in variance.
        return Codes(q.mean, q.variance, 1.0 / q.variance, (q.variance < 0.5).to(q.mean))


class GaussianMixtureGuide(GaussianGuide):
    """Several Gaussians for each latent: z_k | x ~ sum_m pi_km(x) Normal(mu_km(x), sigma_km(x)).

    Rivera (2024), "How to train your VAE", arXiv:2309.13160, whose abstract redefines the ELBO
    with a mixture of Gaussians for the posterior; the paper's text was not available to us. The
    author's code (github.com/marianorivera/How2TrainUrVAE) has one Gaussian for each image and the
    mixture over the images: that is the objective ``gamix`` of the gaussian guide. This one is the
    abstract taken at its word, a mixture for each image, and its ELBO is a lower bound of log p(x).

    From the encoder come mu, log sigma^2 and, for each component, a, b and c:

        mu_m = mu + 2 sigma tanh(a_m),  sigma_m = sigma exp(tanh(b_m) / 2),  log pi_m ~ 3 tanh(c_m).

    Free parameters diverge within some steps of Adam: the gradient of the weights grows without
    bound with the gap between components, and one whose weight has gone to 0 is held by nothing.
    """

    def __init__(self, spec: GaussianMixtureGuideSpec, model: VAE) -> None:
        super().__init__(spec, model, outputs=2 + 3 * spec.components)

    def posterior(self, x: Tensor) -> GaussianMixture:
        loc, log_variance, *others = self.encoder(x)
        scale = (0.5 * log_variance).exp().unsqueeze(-1)
        a, b, c = torch.stack(others, -1).tanh().chunk(3, -1)
        loc = loc.unsqueeze(-1) + 2.0 * scale * a
        return GaussianMixture(loc, scale * (0.5 * b).exp(), 3.0 * c)


GUIDES: dict[type[Spec], type[Guide]] = {
    RelaxedGuideSpec: NormalGammaGuide,
    GaussianGuideSpec: GaussianGuide,
    GaussianMixtureGuideSpec: GaussianMixtureGuide,
}

# Which posterior fits which model: a guide must have the latent sites of its model.
PAIRS: dict[type[VAE], tuple[type[Guide], ...]] = {
    NormalGammaVAE: (NormalGammaGuide,),
    GaussianVAE: (GaussianGuide, GaussianMixtureGuide),
}


def load_guide(variant: str | Path | Spec, model: VAE, **changes: Any) -> Guide:
    """The guide q(z, precision | x) that a variant declares, for a model.

    Its first weights come from torch's generator: ``torch.manual_seed`` makes them repeatable.

    Args:
        variant: Name in ``guides/``, path to a TOML file, or a guide spec.
        model: The model whose latents are inferred.
        changes: Keys of the spec to change, e.g. ``sharpness=10.0``.

    Raises:
        UserError: If the variant does not exist, is not valid, or does not fit the model.
    """
    spec = spec_of("guides", variant, changes)
    guide, fits = GUIDES[type(spec)], PAIRS[type(model)]
    if guide not in fits:
        families = [s.model_fields["family"].default for s, g in GUIDES.items() if g in fits]
        raise UserError(
            f"guide family '{spec.family}' does not fit a model with prior family "
            f"'{model.spec.prior.family}'; expected guide family {' or '.join(families)}"
        )
    return guide(spec, model)
