"""Images of which nothing, or next to nothing, varies: training goes on and ends, and counts 0."""

import pytest
import torch
from conftest import SMALL

from ngvae_pyro import diagnostics, evaluation, scores
from ngvae_pyro.guide import load_guide
from ngvae_pyro.images import ImageData
from ngvae_pyro.model import load_model
from ngvae_pyro.specs import FitSpec, RunSpec
from ngvae_pyro.svi import fit

# All actions of the schedule, in few steps.
MOVES = [{"kind": kind, "at": at, "steps": 2} for kind, at in (("birth", 0.3), ("death", 0.4))]
SCHEDULE = {"moves": MOVES, "silence": 0.8, "decorrelate": 0.9}
NORMAL_GAMMA = ["relaxed", "flat", "generalized", "mixture", "score"]
PAIRS = [
    *(("normal_gamma", guide) for guide in NORMAL_GAMMA),
    ("normal_gamma_joint", "mixture"),
    *(("gaussian", guide) for guide in ("gaussian", "gaussian_mixture", "epanechnikov")),
    ("gaussian", "beta_27"),
    ("gaussian", "beta_tc"),
    ("gaussian", "capacity"),
    ("gaussian", "factor"),
    ("gaussian", "dip_i"),
    ("gaussian", "dip_ii"),
    ("gaussian", "gamix"),
    ("poisson", "poisson"),
]
SIDE, COUNT = 8, 24


def images(kind):
    noise = (torch.rand(3, 1, SIDE, SIDE, generator=torch.manual_seed(0)) * 255).to(torch.uint8)
    alike = noise[:1].repeat(COUNT, 1, 1, 1)
    if kind == "one pixel":
        alike[:, 0, 3, 3] = torch.arange(COUNT, dtype=torch.uint8)
    return {
        "grey": torch.full_like(alike, 77),
        "black": torch.zeros_like(alike),
        "alike": alike,
        "one pixel": alike,
        # Fewer than there are latents, whose posterior means are then linearly dependent.
        "three": noise.repeat(COUNT // 3, 1, 1, 1),
    }[kind]


def trained(model, guide, kind, steps=10):
    torch.manual_seed(0)
    data = ImageData(kind, images(kind))
    network = load_model(model, data, latent_size=4, decoder=SMALL)
    schedule = {"schedule": SCHEDULE} if model.startswith("normal_gamma") else {}
    posterior = load_guide(guide, network, encoder=SMALL, **schedule)
    spec = FitSpec(steps=steps, batch_size=8, monitor_every=5, device="cpu", fast=False)
    return fit(network, posterior, data, spec, progress=False), data


@pytest.mark.filterwarnings("ignore:data .* are the same:ngvae_pyro.errors.Notice")
@pytest.mark.parametrize(
    ("model", "guide", "kind"),
    [
        *((model, guide, "grey") for model, guide in PAIRS),
        *(("normal_gamma", guide, "three") for guide in NORMAL_GAMMA),
        *((*pair, kind) for pair in PAIRS[::9] for kind in ("black", "alike", "one pixel")),
    ],
)
def test_a_training_on_images_that_hardly_vary_ends_and_is_measured(model, guide, kind):
    result, data = trained(model, guide, kind)
    assert result.steps == 10
    numbers = diagnostics.evaluate(result, data)
    if model.startswith("normal_gamma") and kind != "three":
        assert numbers["informative"] == 0
    spec = RunSpec(data={"name": "x.npz"})
    measured = evaluation.assess(result, spec, data, numbers["kl"]["z"]["per_latent"])
    assert measured["slides"]["informative"] == numbers["informative"]
    found = scores.scores(result, data, scores.reference(result, data))
    assert all(torch.as_tensor(values).isfinite().all() for values in found.values())
