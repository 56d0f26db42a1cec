"""Images of which nothing, or next to nothing, varies: training goes on and ends, and counts 0."""

import numpy as np
import pytest
import torch
from support import SMALL, ngvae

from ngvae_pyro import evaluation, runs
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.errors import Notice
from ngvae_pyro.evaluation import diagnostics, scores
from ngvae_pyro.guide import load_guide
from ngvae_pyro.model import load_model
from ngvae_pyro.specs import FitSpec, RunSpec
from ngvae_pyro.training.actions import Rotate
from ngvae_pyro.training.steps import NonFiniteLoss
from ngvae_pyro.training.trainer import Trainer, fit

pytestmark = pytest.mark.usefixtures("deaths")

# All actions of the schedule, in few steps.
MOVES = [{"kind": kind, "at": at, "steps": 2} for kind, at in (("birth", 0.3), ("death", 0.4))]
SCHEDULE = {"moves": MOVES, "silence": 0.8, "independent": 0.9}
NORMAL_GAMMA = [
    *(("normal_gamma", guide) for guide in ("relaxed", "flat", "generalized", "mixture", "score")),
    ("normal_gamma_joint", "mixture"),
]
SIDE, COUNT, STEPS = 8, 24, 10
quietly = pytest.mark.filterwarnings("ignore:data .* are the same:ngvae_pyro.errors.Notice")


def images(kind):
    noise = (torch.rand(3, 1, SIDE, SIDE, generator=torch.manual_seed(0)) * 255).to(torch.uint8)
    alike = noise[:1].repeat(COUNT, 1, 1, 1)
    if kind == "one pixel":
        alike[:, 0, 3, 3] = torch.arange(COUNT, dtype=torch.uint8)
    return {
        "grey": torch.full_like(alike, 77),
        "black": torch.zeros_like(alike),
        "one pixel": alike,
        # Fewer than there are latents, whose posterior means are then linearly dependent.
        "three": noise.repeat(COUNT // 3, 1, 1, 1),
    }[kind]


def trained(model, guide, kind):
    """A short training, in which all latents of a Normal-Gamma guide begin as informative ones."""
    torch.manual_seed(0)
    data = ImageData(kind, images(kind))
    network = load_model(model, data, latent_size=4, decoder=SMALL)
    mixture = model.startswith("normal_gamma")
    schedule = {"schedule": SCHEDULE} if mixture else {}
    posterior = load_guide(guide, network, encoder=SMALL, **schedule)
    if mixture:
        head = posterior.encoder.head
        with torch.no_grad():
            head.weight[4:], head.bias[4:] = 0.0, 2.5
    spec = FitSpec(steps=STEPS, batch_size=8, monitor_every=5, device="cpu", fast=False)
    return fit(network, posterior, data, spec, progress=False), data


@pytest.mark.parametrize("guide", ["mixture", "score"])
def test_more_latents_than_images_are_left_as_they_are(small_pair, guide):
    data = ImageData("three", images("three"))
    model, posterior = small_pair("normal_gamma", guide, data.image_shape, 4)
    own = Trainer(model, posterior, data, FitSpec(steps=4, device="cpu"), posterior.spec.schedule)
    if guide == "mixture":
        posterior.become_exact()
    head = posterior.encoder.head
    with torch.no_grad():
        head.weight[4:], head.bias[4:] = 0.0, 2.5
    before = head.weight.detach().clone()
    Rotate(1.0).apply(own)
    assert torch.equal(head.weight, before)


@quietly
@pytest.mark.parametrize(
    ("model", "guide", "kind"),
    [
        *((*pair, "grey") for pair in NORMAL_GAMMA),
        *(("normal_gamma", "relaxed", kind) for kind in ("black", "one pixel")),
        *(("gaussian", guide, "grey") for guide in ("gaussian", "gamix")),
        ("poisson", "poisson", "black"),
    ],
)
def test_a_training_on_images_that_hardly_vary_ends_and_is_measured(model, guide, kind):
    result, data = trained(model, guide, kind)
    assert result.steps == STEPS
    numbers = diagnostics.evaluate(result, data)
    if kind == "one pixel":
        # A factor, however faint; in so few steps some latents are switched off.
        assert 0 < numbers["informative"] < 4
    elif model != "gaussian":
        assert numbers["informative"] == 0
    spec = RunSpec(data={"name": "x.npz"})
    measured = evaluation.assess(result, spec, data, numbers["kl"]["z"]["per_latent"])
    assert measured["slides"]["informative"] == numbers["informative"]
    found = scores.scores(result, data, scores.reference(result, data))
    assert all(np.isfinite(values).all() for values in found.values())


@pytest.mark.parametrize("kind", ["grey", "one pixel"])
def test_images_that_are_all_the_same_are_one_notice(small_pair, kind):
    data = ImageData(kind, images(kind))
    assert data.varies == (kind == "one pixel")
    pair = small_pair("gaussian", "gaussian", data.image_shape)
    spec = FitSpec(steps=1, batch_size=8, device="cpu")
    if data.varies:
        fit(*pair, data, spec, progress=False)
        return
    with pytest.warns(Notice, match="'grey': all 24 images are the same, .* 0 informative") as seen:
        fit(*pair, data, spec, progress=False)
    assert len(seen) == 1


@quietly
@pytest.mark.slow
def test_a_run_on_one_grey_goes_through_all_commands(tmp_path):
    for name, kind in (("c", "grey"), ("other", "three")):
        np.savez(tmp_path / f"{name}.npz", imgs=images(kind)[:, 0].numpy())
    small = {"model.decoder": SMALL, "guide.encoder": SMALL}
    network = [
        f"--set={key}.{k}={v}" for key, n in small.items() for k, v in n.model_dump().items()
    ]
    words = [*("--latents", "3", "--steps", "6", "--set", "fit.batch_size=8"), *network]
    words += ["--set", "guide.schedule.moves=[]", "--device", "cpu"]

    run = tmp_path / "run"
    said = ngvae(
        "train", "normal_gamma", "relaxed", "--data", tmp_path / "c.npz", *words, "--out", run
    )
    assert "0 of 3 latents are informative" in said
    assert "0 of 3 latents are informative" in ngvae("inspect", run)
    assert "log likelihood" in ngvae("evaluate", run)
    assert "AUROC" in ngvae("score", run, "--data", tmp_path / "other.npz")
    assert runs.load_posterior(run) is not None
    assert len(list((run / "figures").glob("*.png"))) == 7


def test_weights_that_cannot_be_drawn_from_are_a_diverged_training(small_pair):
    data = ImageData("three", images("three"))
    model, guide = small_pair("normal_gamma", "mixture", data.image_shape)
    own = Trainer(model, guide, data, FitSpec(steps=4, device="cpu"), guide.spec.schedule)
    guide.become_exact()
    with torch.no_grad():
        guide.encoder.head.bias[:] = float("nan")
    with pytest.raises(NonFiniteLoss):
        own.loss()
