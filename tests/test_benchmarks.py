"""The benchmark of a step times the same loss by hand as the package has."""

import sys
from pathlib import Path

import pytest
import torch

from ngvae_pyro.images import ImageData

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def step(monkeypatch):
    """benchmarks/step.py, which imports its neighbours as a script does."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import step

    yield step
    for name in ("step", "measuring"):
        del sys.modules[name]


@pytest.fixture
def small(step, monkeypatch):
    """The pair of the benchmark with small networks, and images."""
    images = (torch.rand(4, 1, 8, 8) * 255).to(torch.uint8)
    monkeypatch.setitem(step.NETWORKS, "mlp", (step.MLPSpec(width=16, depth=2), 1))
    return *step.Cell("mlp", 4, "cpu", images).pair(), ImageData.to_unit(images)


def test_the_loss_by_hand_is_the_packages(step, small):
    step.check_loss(*small)


def test_another_loss_is_told(step, small, monkeypatch):
    monkeypatch.setattr(step, "SHARPNESS", 10.0)
    with pytest.raises(RuntimeError, match="the hand-written loss is not the package's"):
        step.check_loss(*small)
