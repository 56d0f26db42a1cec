"""The distributions of the latents and of the pixels; they need torch, Pyro and numpy alone."""

from ngvae_pyro.distributions.location_scale import Epanechnikov, GaussianMixture
from ngvae_pyro.distributions.normal_gamma import (
    GammaMixture,
    GeneralizedGamma,
    IndependentNormalGamma,
    NormalGamma,
    NormalGammaMarginal,
    NormalGammaMixture,
    NormalGammaPrior,
    RelaxedNormalGammaMixture,
    SpikeSlabPrior,
    conditional_kl,
    kl_bound,
    kl_monte_carlo,
)
from ngvae_pyro.distributions.pixels import GaussianPixels
from ngvae_pyro.distributions.poisson import HORIZON, RelaxedPoisson

__all__ = [
    "HORIZON",
    "Epanechnikov",
    "GammaMixture",
    "GaussianMixture",
    "GaussianPixels",
    "GeneralizedGamma",
    "IndependentNormalGamma",
    "NormalGamma",
    "NormalGammaMarginal",
    "NormalGammaMixture",
    "NormalGammaPrior",
    "RelaxedNormalGammaMixture",
    "RelaxedPoisson",
    "SpikeSlabPrior",
    "conditional_kl",
    "kl_bound",
    "kl_monte_carlo",
]
