"""Precisions of the informative latents: the slab that flattens, and their fit at the end."""

import math

import pytest
import torch
from scipy.optimize import brentq
from torch import nn

from ngvae_pyro.data.images import ImageData
from ngvae_pyro.errors import UserError
from ngvae_pyro.guide import load_guide
from ngvae_pyro.model import load_model
from ngvae_pyro.specs import (
    SELECT,
    FitSpec,
    LikelihoodSpec,
    MLPSpec,
    NormalGammaPriorSpec,
    Ramp,
    RelaxedGuideSpec,
    ScheduleSpec,
    parse,
)
from ngvae_pyro.training.actions import FitPrecisions, actions_of
from ngvae_pyro.training.trainer import Trainer

# Lengths of the decoder's columns over the scale: what the images tell of each latent.
LENGTHS = torch.tensor([20.0, 60.0, 35.0])
SCALE = 0.1


class Linear(nn.Module):
    """Images W z, with orthogonal columns."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 16, bias=False)
        columns = torch.linalg.qr(torch.randn(16, 3)).Q
        self.stem.weight.data.copy_(columns * LENGTHS * SCALE)

    def forward(self, z):
        return self.stem(z).unflatten(-1, (1, 4, 4))


def trainer(schedule=None, steps=100, guide="relaxed", **prior):
    torch.manual_seed(0)
    data = ImageData("dark", torch.randint(3, (300, 1, 4, 4)).byte())
    network = MLPSpec(width=8, depth=1)
    likelihood = LikelihoodSpec(scale=SCALE)
    model = load_model(
        "normal_gamma",
        data,
        latent_size=3,
        decoder=network,
        likelihood=likelihood,
        prior=NormalGammaPriorSpec(**prior),
    )
    model.decoder = Linear()
    pair = model, load_guide(guide, model, encoder=network)
    spec = FitSpec(steps=steps, batch_size=32, device="cpu")
    return Trainer(*pair, data, spec, schedule or ScheduleSpec())


def settled(own, probs):
    """The training with latents that are informative or not, for all images."""
    head = own.guide.encoder.head
    with torch.no_grad():
        head.weight.zero_()
        head.bias[3:] = torch.tensor([2.5 if p else -4.0 for p in probs])
    return own


def best(length, slab):
    """The mean m of a precision's Gamma that maximises the ELBO, if the decoder is linear.

    Its terms with m are, of the Gamma, (a - 1) log m - b m and the entropy log m, and of z
    -log(m) / 2 - (length^2 + 1) E[1 / precision] / 2.
    """
    (a, b), (shape, _) = slab, RelaxedGuideSpec().concentration
    slope = lambda m: 0.5 - a + b * m - (length**2 + 1) * shape / (shape - 1) / (2 * m)  # noqa: E731
    return brentq(slope, 1e-3, 1e9)


@pytest.mark.parametrize("slab", [(0.1, 1e-5), (1.0, 1e-4)])
def test_precisions_are_those_of_the_best_elbo(slab):
    own = settled(trainer(slab=slab), [True, True, False])
    before = own.guide.codes(own.monitor_images).precision.mean(0)[2]
    FitPrecisions(0.5).apply(own)
    for _ in range(3):
        FitPrecisions(0.5).apply(own)
    found = own.guide.codes(own.monitor_images).precision.mean(0)
    for k in (0, 1):
        assert found[k].item() == pytest.approx(best(LENGTHS[k].item(), slab), rel=0.1)
    # Of an uninformative one nothing changes, and nothing but the precisions does.
    assert found[2] == before
    assert own.guide.log_factor[2] == 0.0


def test_with_the_flat_slab_they_are_what_the_images_tell():
    """Under the steep one they are four times too high, whatever the images tell."""
    told, shape = 40.0**2 + 1, RelaxedGuideSpec().concentration[0]
    # The precision of z, of which the Gamma's mean is the larger.
    own = best(40.0, (0.1, 1e-5)) * (shape - 1) / shape
    assert own == pytest.approx(told, rel=0.25)
    assert best(40.0, (1.0, 1e-4)) > 3.5 * told


def test_the_fit_leaves_all_else_and_the_noise_as_they_were():
    own = settled(trainer(), [True, True, True])
    own.train_step()
    before, state = own.state(), torch.get_rng_state()
    FitPrecisions(0.5).apply(own)
    after = own.state()
    for part in ("model", "guide"):
        for name, value in after[part].items():
            assert torch.equal(value, before[part][name]) == (name != "log_factor"), name
    assert torch.equal(state, torch.get_rng_state())
    again = settled(trainer(), [True, True, True])
    again.set_state(before)
    FitPrecisions(0.5).apply(again)
    assert torch.equal(again.guide.log_factor, own.guide.log_factor)


@pytest.mark.parametrize(("guide", "end"), [("relaxed", 40.0), ("fixed", 20.0)])
def test_the_sharpness_bounds_precisions_until_the_end(guide, end):
    own = trainer(guide=guide)
    declared, schedule = own.guide.spec.sharpness, own.guide.spec.schedule
    times = 0.0, 0.15, 0.26, 0.96, 0.98, 1.0
    found = [declared * schedule.factor("sharpness", time) for time in times]
    assert found == [10.0, 10.0, 20.0, 20.0, end, end]
    (a1, a2), (b1, b2) = own.guide.spec.concentration, own.guide.spec.rate
    with torch.no_grad():
        own.guide.encoder.head.weight.zero_()
        own.guide.encoder.head.bias[3:] = 20.0
        reached = []
        for sharpness in (20.0, 40.0):
            own.guide.sharpness.fill_(sharpness)
            q = own.guide.posterior(own.monitor_images)
            reached.append(q.precision.mean[0, 0].item())
    rest = math.exp(-10.0)
    assert reached[0] == pytest.approx((a1 + rest * a2) / (b1 + rest * b2), rel=1e-3)
    assert reached[1] == pytest.approx(10_000.0, rel=1e-3)


def test_a_guide_with_fixed_precisions_keeps_them():
    own = trainer(guide="fixed")
    before = own.state()
    FitPrecisions(0.5).apply(own)
    after = own.state()
    assert all(torch.equal(after["guide"][name], v) for name, v in before["guide"].items())


def test_the_slab_flattens_by_its_schedule():
    ramp = Ramp(initial=10.0, begin=0.5, end=0.6, shape="geometric")
    own = trainer(ScheduleSpec(slab=ramp))
    declared = torch.tensor([0.1, 1e-5])
    for step in range(100):
        # What an action sees is the slab of the last step.
        last = torch.tensor(ramp(max(step - 1, 0) / 100))
        torch.testing.assert_close(own.model.slab, declared * last, rtol=0.0, atol=0.0)
        if step == 55:
            half = own.state()
        own.train_step()
    torch.testing.assert_close(own.model.slab, declared, rtol=0.0, atol=0.0)
    own.set_state(half)
    torch.testing.assert_close(own.model.slab, declared * torch.tensor(ramp(0.54)), rtol=0, atol=0)
    # The prior is that of the slab, and a mean of 10,000 is kept.
    torch.testing.assert_close(own.model.prior.slab[0], own.model.slab)
    torch.testing.assert_close(own.model.slab[0] / own.model.slab[1], torch.tensor(1e4))


def test_a_break_in_the_ramp_changes_no_bit():
    ramp = Ramp(initial=10.0, begin=0.2, end=0.9, shape="geometric")
    whole = trainer(ScheduleSpec(slab=ramp), steps=20)
    for _ in range(10):
        whole.train_step()
    state = whole.state()
    for _ in range(10):
        whole.train_step()
    other = trainer(ScheduleSpec(slab=ramp), steps=20)
    other.set_state(state)
    for _ in range(10):
        other.train_step()
    for part in ("model", "guide"):
        for name, value in whole.state()[part].items():
            assert torch.equal(value, other.state()[part][name]), name


def test_the_default_ends_with_the_declared_slab():
    assert SELECT.slab(0.95) == 10.0 and SELECT.slab(SELECT.independent) == 1.0
    assert NormalGammaPriorSpec().slab == (0.1, 1e-5)
    kinds = [type(action).__name__ for action in actions_of(SELECT)]
    assert kinds.index("FitPrecisions") == kinds.index("Rotate") + 1


def test_a_short_training_ends_with_the_declared_slab():
    """It has no step after the end of the ramp."""
    own = trainer(ScheduleSpec(slab=SELECT.slab), steps=5)
    for _ in range(5):
        before = own.model.slab.clone()
        own.train_step()
    torch.testing.assert_close(before, torch.tensor([1.0, 1e-4]))
    assert torch.equal(own.model.slab, torch.tensor([0.1, 1e-5]))
    state = own.state()
    own.model.slab.fill_(7.0)
    own.set_state(state)
    assert torch.equal(own.model.slab, torch.tensor([0.1, 1e-5]))


def test_numbers_that_a_posterior_does_not_use_are_left_alone(monkeypatch):
    own = settled(trainer(), [True, True, True])
    monkeypatch.setattr(type(own.guide), "rate", (0.1, 100.0))
    before = own.guide.log_factor.clone()
    FitPrecisions(0.5).apply(own)
    assert torch.equal(own.guide.log_factor, before)


@pytest.mark.parametrize("initial", [0.0, 0.001, 2000.0])
def test_the_slab_stays_a_gamma(initial):
    with pytest.raises(UserError, match=r"slab\.initial: expected a number >= 0\.01 and <= 1000"):
        parse(ScheduleSpec, {"slab": {"initial": initial}}, "x")


def test_the_buffer_is_not_among_the_weights():
    """So that runs of older versions load."""
    own = trainer()
    assert "slab" not in own.model.state_dict()
    assert math.isclose(own.model.slab[0].item(), 0.1, rel_tol=1e-6)
    assert own.model.double().prior.slab.dtype is torch.float64
