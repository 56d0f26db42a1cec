"""Objectives."""

from ngvae_pyro.objectives.base import MeanFieldELBO, Objective, TraceELBO
from ngvae_pyro.objectives.baselines import (
    DIPELBO,
    ELBOS,
    LEAST_VARIANCE,
    AdversarialELBO,
    BetaELBO,
    BetaTCELBO,
    CapacityELBO,
    FactorELBO,
    FlatELBO,
    GamixELBO,
    GaussianMixtureELBO,
    MixtureELBO,
    PenalisedELBO,
    Repeated,
    baseline,
    collapse,
    load_objective,
    plain_elbo,
    with_adversary,
)
