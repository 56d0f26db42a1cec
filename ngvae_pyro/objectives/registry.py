"""The objective of a declared guide."""

from ngvae_pyro.guide import GUIDES
from ngvae_pyro.model import VAE
from ngvae_pyro.objectives.adversarial import with_adversary
from ngvae_pyro.objectives.base import TraceELBO
from ngvae_pyro.specs import (
    FitSpec,
    Spec,
)


def load_objective(guide: Spec, fit: FitSpec, model: VAE, data_size: int) -> TraceELBO:
    """The Pyro ELBO that a declared guide is trained with, and its adversary if there is one.

    Args:
        guide: Spec of the guide.
        fit: The estimator of a plain ELBO, the number of particles, the adversary.
        model: The model that is trained.
        data_size: Number of training images.
    """
    elbo = GUIDES[type(guide)].objective(guide, fit, model, data_size)
    return with_adversary(elbo, fit, model)
