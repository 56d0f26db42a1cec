"""Objectives other than the plain ELBO: the flat guide's, and the baselines'.

Every class is a :class:`pyro.infer.ELBO`, so it goes where ``Trace_ELBO()`` does::

    svi = SVI(model, guide, optimizer, loss=FlatELBO(draws=4))
    svi = SVI(model, guide, optimizer, loss=BetaELBO(beta=4.0))

Losses are summed over the batch, in nats. :class:`AdversarialELBO` adds a discriminator of images
to any of them, or to a plain ELBO.
"""

from typing import TYPE_CHECKING

from ngvae_pyro._doors import lazily
from ngvae_pyro.objectives.adversarial import AdversarialELBO, with_adversary
from ngvae_pyro.objectives.base import MeanFieldELBO, Objective, PenalisedELBO, TraceELBO
from ngvae_pyro.objectives.baselines import (
    DIPELBO,
    ELBOS,
    LEAST_VARIANCE,
    ArdELBO,
    BetaELBO,
    BetaTCELBO,
    CapacityELBO,
    FactorELBO,
    GamixELBO,
    GaussianMixtureELBO,
    baseline,
    collapse,
    plain_elbo,
)
from ngvae_pyro.objectives.normal_gamma import FlatELBO, MixtureELBO, Repeated

if TYPE_CHECKING:
    from ngvae_pyro.objectives.registry import load_objective

__all__ = [
    "DIPELBO",
    "ELBOS",
    "LEAST_VARIANCE",
    "AdversarialELBO",
    "ArdELBO",
    "BetaELBO",
    "BetaTCELBO",
    "CapacityELBO",
    "FactorELBO",
    "FlatELBO",
    "GamixELBO",
    "GaussianMixtureELBO",
    "MeanFieldELBO",
    "MixtureELBO",
    "Objective",
    "PenalisedELBO",
    "Repeated",
    "TraceELBO",
    "baseline",
    "collapse",
    "load_objective",
    "plain_elbo",
    "with_adversary",
]

# It knows the guides, which know their objectives.
__getattr__ = lazily(__name__, {"load_objective": "objectives.registry"})
