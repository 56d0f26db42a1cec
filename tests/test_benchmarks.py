"""A step is timed with the package's loss, and curved axes are found where there are any."""

import numpy as np
import pytest
import torch
from support import script

from ngvae_pyro.data.images import ImageData
from ngvae_pyro.evaluation import metrics


@pytest.fixture
def step():
    """benchmarks/step.py, which imports its neighbour as a script does."""
    with script("step", "measuring") as step:
        yield step


@pytest.fixture(params=["mlp", "conv64"])
def small(step, monkeypatch, request):
    """The pair of the benchmark with small perceptrons or its own convolutions, and images."""
    monkeypatch.setitem(step.NETWORKS, "mlp", (step.MLPSpec(width=16, depth=2), 1))
    shape = {"mlp": (4, 1, 8, 8), "conv64": (4, 3, 64, 64)}[request.param]
    images = (torch.rand(shape) * 255).to(torch.uint8)
    return *step.Cell(request.param, 4, "cpu", images).pair(), ImageData.to_unit(images)


def test_the_loss_by_hand_is_the_packages(step, small):
    before = [p.clone() for p in small[1].parameters()]
    step.check_loss(*small)
    # The check computes with copies, in float64.
    for parameter, was in zip(small[1].parameters(), before, strict=True):
        assert parameter.dtype == torch.float32 and torch.equal(parameter, was)


@pytest.mark.parametrize(
    "name, value",
    # The last two are off by a millionth, and by a thousandth.
    [("SHARPNESS", 10.0), ("PIXEL_SCALE", 0.1000001), ("RATE", (0.1001, 100.0))],
)
def test_another_loss_is_told(step, small, monkeypatch, name, value):
    monkeypatch.setattr(step, name, value)
    with pytest.raises(RuntimeError, match="the hand-written loss is not the package's"):
        step.check_loss(*small)


def test_a_wrong_gradient_of_the_right_value_is_told(step, small, monkeypatch):
    """Where a thousandth of one term is missing, of which the loss itself shows nothing."""
    by_hand = step.handwritten_loss

    def wrong(encoder, decoder, prior, x, validate=None):
        loc, _ = encoder(x)
        kl = 1e-3 * loc.square().sum(-1).mean() / 2
        return by_hand(encoder, decoder, prior, x, validate) - kl + kl.detach()

    monkeypatch.setattr(step, "handwritten_loss", wrong)
    with pytest.raises(RuntimeError, match="the hand-written loss is not the package's"):
        step.check_loss(*small)


@pytest.fixture
def curved(monkeypatch):
    """benchmarks/curved.py, with batches that take less time."""
    with script("curved") as curved:
        monkeypatch.setattr(curved, "BATCH", 1000)
        monkeypatch.setattr(curved, "LAYERS", 1)
        yield curved


def test_the_jacobian_of_curved_axes_is_that_of_autograd(curved):
    z = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    axes = curved.Curved()
    for seed in range(2):
        axes.grow(z, torch.eye(3, dtype=z.dtype) + 0.1)
        random = torch.Generator().manual_seed(seed)
        for matrix in (axes.layers[-1].linear, axes.layers[-1].shift, axes.layers[-1].gain):
            matrix.data = 0.2 * torch.randn(3, 3, dtype=z.dtype, generator=random)
    u, jacobian = axes(z)
    for row in range(len(z)):
        told = torch.autograd.functional.jacobian(lambda x: axes(x[None])[0][0], z[row])
        torch.testing.assert_close(jacobian[row], told)
    assert u.shape == (5, 3)


def test_a_fan_is_straightened(curved):
    """Polar coordinates: the angle's arc grows with the radius, and the two stay orthogonal."""
    radius, angle = sources = np.random.default_rng(0).uniform((1, -0.8), (3, 0.8), (4000, 2)).T
    codes = radius * np.stack([np.cos(angle), np.sin(angle)])
    axes, found = curved.straighten(codes.T, np.eye(2), seed=0)
    assert found["reading"] == "accepted"
    assert metrics.mcc(codes.T, sources.T) < 0.96
    assert metrics.mcc(axes.apply(codes.T), sources.T) > 0.99


def test_axes_that_are_dependent_are_refused(curved):
    """A disc has no coordinates without edges."""
    codes = np.random.default_rng(0).uniform(-1, 1, (6000, 2))
    codes = codes[np.square(codes).sum(1) < 1]
    axes, found = curved.straighten(codes, np.eye(2), seed=0)
    assert found["reading"] == "refused"
    np.testing.assert_allclose(metrics.mcc(axes.apply(codes), codes), 1.0)


def test_a_decoder_learns_from_the_factors():
    """From those of a blob, the last of two trainings being the longer; angles are circles."""
    with script("decoders", "sets") as decoders:
        found = decoders.numbers({"x": np.array([1.0, 2.0, 3.0]), "angle": np.array([0.0, 1, 2])})
        assert found.shape == (3, 3) and found.mean(0).abs().max() < 1e-6
        drawn, factors = decoders.sets.find("grey_blob").render(2000)
        images = ImageData.to_unit(decoders.as_images(drawn, "grey_blob").images)
        spec, told = decoders.SeparableSpec(rank=8, channels=4, width=32), decoders.numbers(factors)
        short, long = (decoders.trained(spec, images, told, steps)[0] for steps in (1, 300))
    # Of the last tenth, which it has not seen.
    assert long < 0.5 * images[1800:].var(0, correction=0).mean() < short
