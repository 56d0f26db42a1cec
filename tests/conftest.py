"""Shared small pairs: every declared model with every guide that fits it."""

import pyro
import pytest
import torch
from support import SMALL, undrawn

from ngvae_pyro.data.images import ImageData
from ngvae_pyro.data.rendering import sprites
from ngvae_pyro.guide import load_guide
from ngvae_pyro.model import load_model

PAIRS = [
    ("normal_gamma", "relaxed"),
    ("normal_gamma", "flat"),
    ("normal_gamma_joint", "relaxed"),
    ("normal_gamma", "mixture"),
    ("normal_gamma_joint", "mixture"),
    ("normal_gamma", "generalized"),
    ("normal_gamma", "score"),
    ("gaussian", "gaussian"),
    ("gaussian", "epanechnikov"),
    ("poisson", "poisson"),
    ("gaussian", "gaussian_mixture"),
]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    # Pyro names parameters by their path, which is the same in every pair.
    with pyro.get_param_store().scope():
        yield


@pytest.fixture(scope="module")
def no_drawing():
    """The runs of a file of tests are :func:`support.undrawn`."""
    with undrawn():
        yield


@pytest.fixture(scope="session")
def data():
    return sprites(200)


@pytest.fixture
def x(data):
    return ImageData.to_unit(data.images[:8])


@pytest.fixture
def small_pair():
    """Builds a small model and guide by name."""

    def build(model="normal_gamma", guide="relaxed", image_shape=(3, 32, 32), latent_size=5):
        network = load_model(model, image_shape, latent_size=latent_size, decoder=SMALL)
        return network, load_guide(guide, network, encoder=SMALL)

    return build
