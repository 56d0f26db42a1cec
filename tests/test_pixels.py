"""Gaussian pixels against torch's Normal, pixel by pixel."""

import pytest
import torch
from pyro.distributions import Normal

from ngvae_pyro.distributions.pixels import GaussianPixels


@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (2, 4, 3, 8, 8)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_density_and_gradients_are_those_of_a_normal(shape, memory_format):
    x = torch.rand(4, 3, 8, 8).contiguous(memory_format=memory_format).double()
    loc = torch.rand(shape).double().requires_grad_()
    scale = torch.tensor(0.3).double().requires_grad_()
    results = []
    for fn in (GaussianPixels(loc, scale), Normal(loc, scale).to_event(3)):
        log_prob = fn.log_prob(x)
        assert log_prob.shape == fn.batch_shape == shape[:-3]
        results.append([log_prob, *torch.autograd.grad(log_prob.sum(), (loc, scale))])
    for own, reference in zip(*results, strict=True):
        torch.testing.assert_close(own, reference)


def test_expanded_it_is_the_same_density():
    fn = GaussianPixels(torch.rand(4, 3, 8, 8), torch.tensor(0.3))
    x = torch.rand(4, 3, 8, 8)
    expanded = fn.expand((2, 4))
    assert type(expanded) is GaussianPixels and expanded.sample().shape == (2, 4, 3, 8, 8)
    torch.testing.assert_close(expanded.log_prob(x), fn.log_prob(x).expand(2, 4))


def test_values_and_scales_are_checked():
    with pytest.raises(ValueError, match="Expected scale to be one number or to broad"):
        GaussianPixels(torch.zeros(1, 8, 8), torch.ones(7))
    with pytest.raises(ValueError, match="Expected scale to be one number or to broad"):
        GaussianPixels(torch.zeros(4, 1, 8, 8), torch.ones(4, 1, 8, 8))
    with pytest.raises(ValueError, match="scale"):
        GaussianPixels(torch.zeros(1, 8, 8), torch.tensor(-1.0), validate_args=True)
    with pytest.raises(ValueError, match="support|constraint"):
        fn = GaussianPixels(torch.zeros(1, 8, 8), torch.tensor(1.0), validate_args=True)
        fn.log_prob(torch.full((1, 8, 8), float("nan")))
