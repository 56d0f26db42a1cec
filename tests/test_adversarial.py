"""The PatchGAN term of the fit: who learns from what, and with which objectives."""

import math

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from ngvae_pyro.data.images import ImageData
from ngvae_pyro.errors import UserError
from ngvae_pyro.guide import load_guide
from ngvae_pyro.model import load_model
from ngvae_pyro.objectives import (
    AdversarialELBO,
    BetaELBO,
    CapacityELBO,
    FactorELBO,
    FlatELBO,
)
from ngvae_pyro.specs import AdversarialSpec, FitSpec, GaussianGuideSpec, MLPSpec
from ngvae_pyro.training.trainer import Trainer, fit

SHAPE = (3, 32, 32)
SMALL = MLPSpec(width=16, depth=2)


@pytest.fixture
def pair(small_pair):
    return small_pair("gaussian", "gaussian")


def against(elbo=None, weight=5.0, **options):
    return AdversarialELBO(elbo or Trace_ELBO(), SHAPE, weight, channels=4, **options)


def gradients(pair, objective, x):
    parameters = [p for module in pair for p in module.parameters()]
    for p in parameters:
        p.grad = None
    torch.manual_seed(1)
    loss = objective.differentiable_loss(*pair, x)
    loss.backward()
    return loss.item(), [p.grad.clone() for p in parameters]


def own_gradients(objective):
    return [p.grad.clone() for p in objective.discriminator.parameters()]


def test_weight_zero_leaves_the_pair_as_it_is(pair, x):
    plain, zero = Trace_ELBO(), against(weight=0.0)
    (loss, expected), (own_loss, own) = (gradients(pair, e, x) for e in (plain, zero))
    assert own_loss == pytest.approx(loss, rel=1e-6)
    for a, b in zip(own, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_each_side_learns_from_its_own_term(pair, x):
    objective = against(weight=0.0)
    _, alone = gradients(pair, objective, x)
    discriminator = own_gradients(objective)
    assert all(g.abs().sum() > 0 for g in discriminator)
    objective.weight = 1000.0
    objective.discriminator.zero_grad()
    _, together = gradients(pair, objective, x)
    # The reconstructions move, and the discriminator's gradient is the same.
    decoder = len(list(pair[0].parameters()))
    assert any((a != b).any() for a, b in zip(alone[:decoder], together[:decoder], strict=True))
    assert any((a != b).any() for a, b in zip(alone[decoder:], together[decoder:], strict=True))
    for a, b in zip(own_gradients(objective), discriminator, strict=True):
        torch.testing.assert_close(a, b)


def test_the_contest_is_two_cross_entropies(x):
    objective, made = against(weight=3.0), torch.rand_like(x)
    real, fake = objective.discriminator(x).sigmoid(), objective.discriminator(made).sigmoid()
    own = -(real.log().mean() + (1 - fake).log().mean())
    expected = len(x) * (own - 3.0 * fake.log().mean())
    assert objective.contest(x, made).item() == pytest.approx(expected.item(), rel=1e-5)
    # Several particles are a mean, and not a sum.
    twice = objective.contest(x, torch.stack([made, made])).item()
    assert twice == pytest.approx(expected.item(), rel=1e-5)


def test_the_discriminator_learns_to_tell_sharp_from_blurred(data):
    objective = against(weight=0.0)
    optimizer = torch.optim.Adam(objective.discriminator.parameters(), lr=1e-2)
    x = ImageData.to_unit(data.images[:32])
    blurred = torch.nn.functional.avg_pool2d(x, 5, stride=1, padding=2, count_include_pad=False)
    for _ in range(40):
        optimizer.zero_grad()
        objective.contest(x, blurred).backward()
        optimizer.step()
    real, made = (objective.discriminator(images).mean((1, 2, 3)) for images in (x, blurred))
    assert (real > made).float().mean() > 0.95
    # What it says of blurred images draws them to the sharp ones.
    images = blurred.clone().requires_grad_()
    objective.weight = 1.0
    objective.contest(x, images).backward()
    assert ((x - blurred) * -images.grad).sum() > 0


def test_loss_is_that_of_the_inner_objective(pair, x):
    for inner in (Trace_ELBO(), BetaELBO(4.0)):
        objective = against(inner)
        losses = []
        for elbo in (inner, objective):
            torch.manual_seed(1)
            losses.append(elbo.loss(*pair, x))
            losses.append(gradients(pair, elbo, x)[0])
        assert losses[2:] == pytest.approx(losses[:2], rel=1e-6)


def test_it_waits_for_its_beginning_and_passes_the_time_on(pair, x):
    inner = CapacityELBO(100.0, 3.0)
    objective = against(inner, begin=0.5)
    objective.fraction = torch.tensor(0.25)
    assert objective.advance(0.25) == (False, None)
    (loss, early), (_, expected) = (gradients(pair, e, x) for e in (objective, inner))
    assert inner.fraction == 0.25 and math.isfinite(loss)
    assert all(p.grad is None for p in objective.discriminator.parameters())
    for a, b in zip(early, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert objective.advance(0.5) == (True, None)
    gradients(pair, objective, x)
    assert all(p.grad is not None for p in objective.discriminator.parameters())


@pytest.mark.parametrize("particles", [1, 2])
def test_a_literal_svi_trains_both(pair, x, particles):
    objective = against(Trace_ELBO(num_particles=particles, vectorize_particles=particles > 1))
    svi = SVI(*pair, pyro.optim.Adam({"lr": 1e-3}), loss=objective)
    own = list(objective.discriminator.parameters())
    before = [p.detach().clone() for p in (*own, *pair[1].parameters())]
    assert all(math.isfinite(svi.step(x)) for _ in range(2))
    after = (*own, *pair[1].parameters())
    assert all((a != b).any() for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("model", "guide"),
    [
        ("normal_gamma", "relaxed"),
        ("gaussian", "gaussian"),
        ("gaussian", "gaussian_mixture"),
        ("gaussian", "gamix"),
        ("gaussian", "factor"),
    ],
)
def test_it_goes_with_every_objective(data, small_pair, model, guide):
    model, guide = small_pair(model, guide)
    if guide.spec.family == "gaussian" and guide.spec.objective.kind == "factor":
        objective = guide.spec.objective.model_copy(update={"width": 8, "depth": 1})
        guide.spec = guide.spec.model_copy(update={"objective": objective})
    adversary = AdversarialSpec(channels=4, learning_rate=1e-4, begin=0.5)
    spec = FitSpec(steps=4, batch_size=16, device="cpu", adversarial=adversary)
    trainer = Trainer(model, guide, data, spec, guide.spec.schedule)
    groups = trainer.optimizer.param_groups
    assert groups[1]["betas"] == (0.5, 0.999) and groups[1]["initial_lr"] == 1e-4
    assert len(groups) == 2 + isinstance(trainer.elbo.elbo, FactorELBO)
    before = [p.detach().clone() for p in trainer.own_parameters]
    start = trainer.state()
    for _ in range(4):
        trainer.train_step()
    own = trainer.own_parameters
    assert all((a != b).any() for a, b in zip(before[:2], own[:2], strict=True))
    # A fork that is not kept leaves no trace in the discriminator either.
    trainer.set_state(start)
    assert all((a == b).all() for a, b in zip(before, own, strict=True))


@pytest.mark.parametrize("shape", [(1, 28, 28), (2, 9, 13)])
def test_grey_images_and_images_too_small(shape):
    data = ImageData("noise", torch.randint(0, 256, (32, *shape), dtype=torch.uint8))
    model = load_model("gaussian", data, latent_size=2, decoder=SMALL)
    guide = load_guide(GaussianGuideSpec(encoder=SMALL), model)
    adversary = AdversarialSpec(channels=4, layers=3, begin=0.0)
    settings = FitSpec(steps=2, batch_size=8, device="cpu", adversarial=adversary)
    if shape[1] == 9:
        with pytest.raises(UserError, match="need images of at least 16x16, got 9x13"):
            fit(model, guide, data, settings, progress=False)
    else:
        assert fit(model, guide, data, settings, progress=False).steps == 2


def test_a_flat_objective_keeps_its_repeated_draws(data):
    model = load_model("normal_gamma", data, latent_size=3, decoder=SMALL)
    guide = load_guide("flat", model, encoder=SMALL)
    elbo = AdversarialELBO(FlatELBO(draws=3), data.image_shape, weight=1.0)
    x = ImageData.to_unit(data.images[:4])
    _, guide_trace = elbo._get_trace(model, guide, (x,), {})
    assert guide_trace.nodes["z"]["value"].shape == (3, 4, 3)
    assert elbo.differentiable_loss(model, guide, x).isfinite()
