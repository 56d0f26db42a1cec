"""The parts of the predictive variance against closed forms."""

from types import SimpleNamespace

import pytest
import torch

from ngvae_pyro.data.forms import Form
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.distributions import NormalGamma
from ngvae_pyro.errors import UserError
from ngvae_pyro.evaluation.uncertainty import uncertainty
from ngvae_pyro.fitted import Fit
from ngvae_pyro.guide import NormalGammaGuide
from ngvae_pyro.likelihoods import GaussianLikelihood
from ngvae_pyro.specs import FitSpec, LikelihoodSpec

K, SCALE, A, B = 2, 0.3, 12.0, 6.0
WEIGHT = torch.tensor([[0.5, 0.0], [0.2, 0.4], [0.0, 1.0], [1.0, -1.0]])
LOC = torch.tensor([[0.3, -0.7], [1.0, 0.0]])
IMAGES = ImageData("two", torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2))

# Of a stub that has neither parts nor buffers.
NO_MODULE = {"modules": list, "buffers": list, "train": lambda mode: None}


def known(power):
    """A fit of which x = WEIGHT z^power, with the posterior NormalGamma(LOC, A, B)."""
    guide = SimpleNamespace(
        **NO_MODULE, posterior=lambda x: NormalGamma(LOC[x[:, 0, 0, 0].long()], A, B)
    )
    guide.nested_draws = lambda *args: NormalGammaGuide.nested_draws(guide, *args)

    def decoder(z):
        return (z**power @ WEIGHT.T).reshape(*z.shape[:-1], 1, 2, 2)

    likelihood = GaussianLikelihood(LikelihoodSpec(scale=SCALE), (1, 2, 2))
    model = SimpleNamespace(
        **NO_MODULE, decoder=decoder, likelihood=likelihood, image_shape=(1, 2, 2)
    )
    return SimpleNamespace(model=model, guide=guide, device=torch.device("cpu"), form=Form())


def per_pixel(variance):
    """What the variances (2, K) of the independent z^power make of the pixels."""
    return (variance @ WEIGHT.square().T).reshape(2, 1, 2, 2)


# Moments of 1 / precision, which is inverse Gamma.
INVERSE, SQUARE = B / (A - 1), B**2 / ((A - 1) * (A - 2))


@pytest.mark.parametrize(("precisions", "draws"), [(4000, 5), (1000, 20)])
@pytest.mark.parametrize("power", [1, 2])
def test_the_parts_are_those_of_the_formulas(power, precisions, draws):
    found = uncertainty(known(power), IMAGES, precisions=precisions, draws=draws)
    if power == 1:
        z, precision = torch.full((2, K), INVERSE), torch.zeros(2, K)
    else:  # Var[z^2] = 4 loc^2 / precision + 2 / precision^2, E[z^2] = loc^2 + 1 / precision
        z = 4 * LOC.square() * INVERSE + 2 * SQUARE
        precision = torch.full((2, K), SQUARE - INVERSE**2)
    torch.testing.assert_close(found.noise, torch.full((2, 1, 2, 2), SCALE**2))
    torch.testing.assert_close(found.z, per_pixel(z), rtol=0.1, atol=0.0)
    torch.testing.assert_close(found.precision, per_pixel(precision), rtol=0.3, atol=0.02)
    summed = found.per_image()
    assert summed.total.shape == (2,)
    torch.testing.assert_close(summed.total, found.total.sum((1, 2, 3)))


def test_the_part_of_the_precision_has_no_bias():
    """With two draws a precision the plain variance of the means would be half that of z."""
    parts = [uncertainty(known(1), IMAGES, precisions=20, draws=2, seed=s) for s in range(200)]
    found = torch.stack([part.precision for part in parts]).flatten(1)
    error = found.std(0) / len(parts) ** 0.5
    assert (found.mean(0).abs() < 4 * error).all()
    too_much = torch.stack([part.z for part in parts]).mean(0).flatten() / 2
    assert (too_much > 10 * error).all() and (found < 0).any()


@pytest.mark.parametrize("names", [("normal_gamma", "relaxed"), ("gaussian", "gaussian")])
def test_every_guide_has_the_parts(small_pair, data, names):
    fit, images = Fit(*small_pair(*names), FitSpec()), data.subset(slice(0, 40))
    found, again = (uncertainty(fit, images, precisions=4, draws=4) for _ in range(2))
    assert found.z.shape == (40, 3, 32, 32) and (found.z > 0).all()
    assert torch.equal(found.total, again.total)
    assert bool((found.precision == 0).all()) == (names[1] == "gaussian")
    torch.testing.assert_close(found.noise, torch.full((40, 3, 32, 32), 0.01))


@pytest.mark.parametrize("name", ["precisions", "draws"])
def test_one_draw_has_no_variance(small_pair, data, name):
    fit = Fit(*small_pair(), FitSpec())
    with pytest.raises(UserError, match=f"{name}: expected at least 2, got 1"):
        uncertainty(fit, data, **{name: 1})
