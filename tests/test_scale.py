"""The scale of the likelihood, from the data and from what a reconstruction leaves."""

import math

import pytest
import torch
from support import SMALL
from torch import nn

import ngvae_pyro as ng
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.data.rendering import sprites
from ngvae_pyro.guide import load_guide
from ngvae_pyro.likelihoods import SIGNAL, resolution
from ngvae_pyro.model import load_model
from ngvae_pyro.specs import LEAST_SCALE, FitSpec, ScheduleSpec
from ngvae_pyro.training.actions import Rescale
from ngvae_pyro.training.trainer import Trainer, fit

SPEC = FitSpec(steps=12, batch_size=16, monitor_every=4, device="cpu")
NOISE = 0.2


def noise():
    """Grey images that are nothing but the noise of their pixels."""
    grey = 0.5 + NOISE * torch.randn(2000, 1, 8, 8).clamp(-2.4, 2.4)
    return ImageData("noise", grey)


class Drawing(nn.Module):
    """A decoder that draws the same images whatever the codes are."""

    def __init__(self, images):
        super().__init__()
        self.images = images

    def forward(self, z):
        return self.images


def pair(data, guide="relaxed", **likelihood):
    model = load_model("normal_gamma", data, latent_size=3, decoder=SMALL, likelihood=likelihood)
    return model, load_guide(guide, model, encoder=SMALL)


def untold(network):
    """Whether a network has images as they are."""
    return not network.loc.any() and network.unit == 1.0


def test_the_resolution_is_that_at_which_the_data_carry_the_signal():
    images = torch.rand(3000, 3, 4, 4)
    scale = resolution(ImageData("any", images))
    nats = (images - images.mean(0)).square().sum((1, 2, 3)).mean() / (2.0 * scale**2)
    assert nats.item() == pytest.approx(SIGNAL, rel=1e-4)
    # In the units of the images, whatever these are and wherever their zero is.
    other = ImageData("any", 0.3 + 0.25 * images)
    assert resolution(other) == pytest.approx(0.25 * scale, rel=1e-5)
    # Bytes are the same images.
    levels = (255 * images).round().to(torch.uint8)
    assert resolution(ImageData("any", levels)) == pytest.approx(scale, rel=1e-3)
    assert resolution(ImageData("any", torch.full((20, 1, 4, 4), 0.5))) == LEAST_SCALE


def test_on_the_default_sprites_it_is_a_tenth():
    assert resolution(sprites(2000)) == pytest.approx(0.1, abs=0.005)


def test_a_model_of_images_starts_there_unless_a_scale_is_declared(data):
    def scale(**likelihood):
        model = load_model("normal_gamma", data, decoder=SMALL, likelihood=likelihood)
        return model.likelihood.scale

    assert scale() == pytest.approx(resolution(data), rel=1e-6)
    assert scale(learned=True) == scale()
    assert scale(scale=0.3) == pytest.approx(0.3)
    assert scale(family="bernoulli") is None
    # Of a shape nothing is known before the training.
    model, guide = pair(data.image_shape)
    assert model.likelihood.scale == pytest.approx(0.1)
    Trainer(model, guide, data, SPEC, ScheduleSpec())
    assert model.likelihood.scale == pytest.approx(resolution(data), rel=1e-6)


def test_the_scale_rises_to_the_noise_and_falls_to_the_resolution():
    data = noise()
    trainer = Trainer(*pair(data), data, SPEC, ScheduleSpec())
    finest = resolution(data)
    assert finest < 0.1 * NOISE
    grey = torch.full((1, 8, 8), 0.5)
    drawn = [(grey, NOISE), (trainer.monitor_images, finest)]
    drawn += [(trainer.monitor_images + 0.5 * finest, finest), (grey, NOISE)]
    for images, expected in drawn:
        trainer.model.decoder = Drawing(images)
        Rescale(0.0).apply(trainer)
        assert trainer.model.likelihood.scale == pytest.approx(expected, rel=0.03)


def test_the_noise_is_that_of_validation_images_where_there_are_some():
    data, others = noise(), ImageData("others", torch.full((300, 1, 8, 8), 0.9))
    trainer = Trainer(*pair(data), data, SPEC, ScheduleSpec(), validation=others)
    trainer.model.decoder = Drawing(torch.full((1, 8, 8), 0.5))
    Rescale(0.0).apply(trainer)
    assert trainer.model.likelihood.scale == pytest.approx(0.4)


def test_a_training_ends_at_the_noise_of_its_images():
    data = noise()
    spec = SPEC.model_copy(update={"steps": 120, "monitor_every": 40})
    model = fit(*pair(data), data, spec, progress=False).model
    assert model.likelihood.scale == pytest.approx(NOISE, rel=0.1)


@pytest.mark.parametrize("likelihood", [{"scale": 0.3}, {"learned": True}])
def test_scales_that_are_declared_or_learned_are_left_alone(likelihood):
    data = noise()
    trainer = Trainer(*pair(data, **likelihood), data, SPEC, ScheduleSpec())
    before = trainer.model.likelihood.scale
    trainer.model.decoder = Drawing(torch.full((1, 8, 8), 0.5))
    Rescale(0.0).apply(trainer)
    assert trainer.model.likelihood.scale == before


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 20)])
def test_data_of_another_contrast_train_alike(shape):
    """x and a x + b, b any image, have the same posterior and ELBO, but for log a a value."""
    background = torch.rand(shape)
    where = torch.rand(400, 1, 1, 1)
    plain = 0.8 * torch.rand(shape) * where + 0.2 * torch.rand(400, *shape)
    spec = SPEC.model_copy(update={"steps": 30, "monitor_every": 30})
    codes, losses = [], []
    for contrast, offset in ((1.0, 0.0), (0.125, 0.5), (0.25, 0.75 * background)):
        data = ImageData("any", offset + contrast * plain)
        torch.manual_seed(1)
        model, guide = pair(data)
        # Networks have values around 0, ten times as far from it as the scale.
        seen = (data.images - guide.encoder.loc) / guide.encoder.unit
        assert seen.mean(0).abs().max() < 1e-4
        assert seen.var(0).sum().item() == pytest.approx(2 * SIGNAL * 0.1**2, rel=0.01)
        result = fit(model, guide, data, spec, progress=False)
        codes.append(guide.codes(data.images[:8]).loc)
        losses.append(result.history[-1]["loss"] - plain[0].numel() * math.log(contrast))
    for other in (1, 2):
        assert torch.allclose(codes[0], codes[other], atol=1e-3)
        assert losses[0] == pytest.approx(losses[other], rel=1e-4)


def test_logits_have_no_units_and_images_of_a_shape_have_those_of_the_unit_interval(data):
    model, guide = pair(data, family="bernoulli")
    assert guide.encoder.unit == pytest.approx(resolution(data) / 0.1)
    z = torch.randn(4, 3)
    logits = model.decoder(z)
    model.decoder.set_units(torch.zeros(data.image_shape), 1.0)
    assert torch.equal(model.decoder(z), logits)
    model, guide = pair(data.image_shape)
    for network in (model.decoder, guide.encoder):
        assert untold(network)


def test_a_model_that_is_read_back_keeps_its_units(data):
    model, _ = pair(data)
    again, _ = pair(data.image_shape)
    again.load_state_dict(model.state_dict())
    guide = load_guide("relaxed", again, encoder=SMALL)
    assert model.decoder.loc.all() and model.decoder.unit != 1.0
    for network in (again.decoder, guide.encoder):
        assert torch.equal(network.loc, model.decoder.loc)
        assert network.unit == model.decoder.unit


def test_a_model_of_a_shape_gets_the_units_of_the_first_data_it_is_trained_on(data):
    model, guide = pair(data.image_shape)
    told, _ = pair(data)
    Trainer(model, guide, data, SPEC, ScheduleSpec())
    for network in (model.decoder, guide.encoder):
        assert torch.equal(network.loc, told.decoder.loc)
        assert network.unit == told.decoder.unit
    # Its weights mean nothing with other units.
    others = ImageData("others", 0.1 * torch.rand(60, *data.image_shape))
    for again in (model, told):
        Trainer(again, load_guide("relaxed", again, encoder=SMALL), others, SPEC, ScheduleSpec())
        assert torch.equal(again.decoder.loc, pair(data)[0].decoder.loc)


def test_weights_that_are_read_back_keep_having_no_units(data):
    again, _ = pair(data.image_shape)
    again.load_state_dict(pair(data.image_shape)[0].state_dict())
    guide = load_guide("relaxed", again, encoder=SMALL)
    Trainer(again, guide, data, SPEC, ScheduleSpec())
    assert untold(again.decoder) and untold(guide.encoder)


def test_vectors_have_units_of_their_own():
    rows = ng.data.as_images(torch.randn(300, 4).numpy() * 7.0 + 3.0)
    model, guide = pair(rows)
    for network in (model.decoder, guide.encoder):
        assert untold(network)


def test_weights_of_before_there_were_units_are_loaded(data):
    model, guide = pair(data)
    for module, name in ((model, "decoder"), (guide, "encoder")):
        weights = module.state_dict()
        old = {k: v for k, v in weights.items() if k not in (f"{name}.loc", f"{name}.unit")}
        assert len(old) == len(weights) - 2
        module.load_state_dict(old)
        network = getattr(module, name)
        assert untold(network)


# The precisions of the latents ---------------------------------------------------------------


def precisions(guide):
    return (guide.spec.concentration[0] / guide.rate[0]).detach()


@pytest.mark.parametrize("freedom", [6.0, 0.5])
def test_a_rate_stays_within_its_freedom(data, freedom):
    model, _ = pair(data)
    guide = load_guide("relaxed", model, encoder=SMALL, freedom=freedom)
    # 10,000, as float32 has it.
    declared = 10.0 / torch.full((3,), 1e-3)
    assert torch.equal(precisions(guide), declared)
    with torch.no_grad():
        guide.log_factor.copy_(torch.tensor([-1e9, 0.0, 1e9]))
    ends = torch.tensor([math.exp(freedom), 1.0, math.exp(-freedom)])
    torch.testing.assert_close(precisions(guide), 10_000.0 * ends, rtol=1e-3, atol=0.0)
    assert guide.rate[1] == guide.spec.rate[1]
    # While latents are selected they all have the declared one.
    guide.freedom.zero_()
    assert torch.equal(precisions(guide), declared)


@pytest.mark.parametrize("family", ["relaxed", "mixture", "flat", "generalized", "score"])
def test_without_freedom_there_is_nothing_to_learn(data, family):
    """A guide as it was before precisions were learned, so that its weights can be read."""
    model, free = pair(data, family)
    fixed = load_guide(family, model, encoder=SMALL, freedom=0.0)
    assert set(free.state_dict()) - set(fixed.state_dict()) == {"freedom", "log_factor"}
    assert fixed.rate == fixed.spec.rate == (1e-3, 100.0)
    fixed.load_state_dict(
        {k: v for k, v in free.state_dict().items() if k not in {"freedom", "log_factor"}}
    )
    # It begins where one that learns begins.
    x = ImageData.to_unit(data.images[:8])
    for name in ("loc", "variance", "precision", "probs"):
        assert torch.equal(getattr(fixed.codes(x), name), getattr(free.codes(x), name))


def test_every_free_rate_has_a_gradient(data):
    model, guide = pair(data)
    trainer = Trainer(model, guide, data, SPEC, ScheduleSpec())
    trainer.train_step()
    assert (guide.log_factor != 0.0).all()


def test_another_training_may_use_all_latents_again():
    data = noise()
    model, guide = pair(data)
    fit(model, guide, data, SPEC, progress=False)
    guide.open.zero_()
    Trainer(model, guide, data, SPEC, guide.spec.schedule)
    assert guide.open.tolist() == [1.0, 1.0, 1.0]
