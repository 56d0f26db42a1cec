"""Shared small pairs: every declared model with every guide that fits it."""

import sys
from types import SimpleNamespace

import pyro
import pytest
import torch
from support import SMALL, RayError, undrawn

from ngvae_pyro.data.images import ImageData
from ngvae_pyro.data.rendering import sprites
from ngvae_pyro.guide import GUIDES, load_guide
from ngvae_pyro.model import MODELS, load_model
from ngvae_pyro.training import actions
from ngvae_pyro.variants import names, spec_of


def pairs():
    """Every declared guide with the first variant of a model that it fits, by their names."""
    models = {name: MODELS[type(spec_of("models", name, {}).prior)] for name in names("models")}
    for spec, guide in GUIDES.items():
        fitting = [name for name, model in models.items() if issubclass(model, guide.fits)]
        yield min(fitting, key=len), spec.model_fields["family"].default


PAIRS = [*pairs(), *(("normal_gamma_joint", guide) for guide in ("relaxed", "mixture"))]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """For the fixtures of whole files too, whose runs are resumed with as many threads."""
    torch.set_num_threads(1)


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


@pytest.fixture
def deaths(monkeypatch):
    """Deaths are tried whatever the dimension of the codes, which of hardly trained ones is any."""
    monkeypatch.setattr(actions, "_are_folded", lambda trainer: True)


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


@pytest.fixture
def ray_that_raises(monkeypatch):
    """What stands for Ray, with the error that its ``init`` raises, and whether it was ended."""
    for name in ("RAY_NUM_REDIS_GET_RETRIES", "RAY_USAGE_STATS_ENABLED"):
        # Set first, so that they are taken away again.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def ray(error):
        def init(**_):
            raise error

        fake = SimpleNamespace(init=init, ended=0, exceptions=SimpleNamespace(RayError=RayError))
        fake.shutdown = lambda: setattr(fake, "ended", fake.ended + 1)
        monkeypatch.setitem(sys.modules, "ray", fake)
        return fake

    return ray
