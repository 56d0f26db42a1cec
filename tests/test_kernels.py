"""The Epanechnikov posterior: integrals, samples, derivatives and its KL to a Normal."""

import math

import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch.distributions import kl_divergence

from ngvae_pyro.distributions.location_scale import Epanechnikov
from ngvae_pyro.guide import load_guide
from ngvae_pyro.model import load_model

CASES = {
    "unit": {"loc": 0.0, "scale": 1.0},
    "wide": {"loc": -1.5, "scale": 3.0},
    "narrow": {"loc": 2.0, "scale": 0.02},
}
ALL = sorted(CASES)


def make(name, dtype=torch.float64, shape=(), **options):
    parameters = {k: torch.full(shape, x, dtype=dtype) for k, x in CASES[name].items()}
    return Epanechnikov(**parameters, **options)


def inside(d, count=4001):
    """Points of the support, with the distance between them."""
    u = torch.linspace(-1, 1, count, dtype=torch.float64)
    return d.loc + d.scale * u, 2 * d.scale / (count - 1)


@pytest.mark.parametrize("name", ALL)
def test_density_moments_and_entropy_by_quadrature(name):
    d = make(name)
    z, step = inside(d)
    density = d.log_prob(z).exp()
    log_density = d.log_prob(z)

    def mean(values):
        return (density * values).sum() * step

    torch.testing.assert_close(mean(torch.ones_like(z)), torch.ones(()).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(mean(z), d.mean, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(mean((z - d.mean).square()), d.variance, atol=0, rtol=1e-5)
    torch.testing.assert_close(-mean(log_density), d.entropy(), atol=1e-5, rtol=1e-5)
    # Of scipy: u is 2 Beta(2, 2) - 1.
    loc, scale = CASES[name].values()
    beta = stats.beta(2, 2, loc=loc - scale, scale=2 * scale)
    torch.testing.assert_close(d.cdf(z), torch.from_numpy(beta.cdf(z.numpy())))
    expected = torch.from_numpy(beta.logpdf(z[1:-1].numpy()))
    torch.testing.assert_close(log_density[1:-1], expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ALL)
def test_samples_fit_the_cdf(name, dtype):
    value = make(name, dtype).sample((50_000,))
    assert value.dtype == dtype
    assert stats.kstest(make(name).cdf(value.double()).numpy(), "uniform").pvalue > 1e-3
    assert make(name, dtype).log_prob(value).isfinite().all()


def test_icdf_is_the_inverse_of_the_cdf():
    d = make("wide")
    p = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(d.cdf(d.icdf(p)), p, atol=1e-12, rtol=0)
    torch.testing.assert_close(d.icdf(p[[0, -1]]), torch.tensor([-4.5, 1.5]).double())


def test_the_density_ends_without_nan():
    loc = torch.zeros(4, requires_grad=True)
    scale = torch.ones(4, requires_grad=True)
    d = Epanechnikov(loc, scale, validate_args=False)
    log_prob = d.log_prob(torch.tensor([-2.0, -1.0, 0.5, 1.5]))
    assert log_prob.isneginf().tolist() == [True, False, False, True]
    log_prob[1:3].sum().backward()
    assert loc.grad.isfinite().all() and scale.grad.isfinite().all()
    loc.grad = None
    d.log_prob(torch.full((4,), 3.0)).sum().backward()
    assert (loc.grad == 0).all()


def test_rounding_leaves_no_draw_outside():
    """A narrow posterior far out, whose edges are few roundings from its draws."""
    d = Epanechnikov(torch.full((100_000,), 1000.0), 1e-3)
    value = d.sample()
    assert d.log_prob(value).isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_gradients_agree_with_finite_differences(name):
    loc, scale = CASES[name].values()
    value = loc + scale * torch.tensor([-0.9, 0.1, 0.7]).double()
    inputs = [value, torch.tensor(loc).double(), torch.tensor(scale).double()]
    inputs = [x.requires_grad_() for x in inputs]
    for function in ("log_prob", "cdf"):
        assert torch.autograd.gradcheck(
            lambda v, m, s, f=function: getattr(Epanechnikov(m, s), f)(v), inputs
        )


def test_pathwise_gradients():
    """d E[z^2] = 2 loc and 2 scale / 5."""
    loc = torch.full((100_000,), 0.5, dtype=torch.float64, requires_grad=True)
    scale = torch.full((100_000,), 2.0, dtype=torch.float64, requires_grad=True)
    Epanechnikov(loc, scale).rsample().square().sum().backward()
    for gradient, expected in ((loc.grad, 1.0), (scale.grad, 0.8)):
        error = gradient.std() / len(gradient) ** 0.5
        assert (gradient.mean() - expected).abs() < 4.5 * error


def test_expand_keeps_the_type():
    d = make("wide", shape=(3, 1)).expand((2, 3, 4))
    assert type(d) is Epanechnikov and d.batch_shape == d.rsample().shape == (2, 3, 4)
    assert d.rsample((5,)).shape == (5, 2, 3, 4)


@pytest.mark.parametrize("prior", [(0.0, 1.0), (0.5, 2.0)])
@pytest.mark.parametrize("name", ALL)
def test_kl_to_a_normal_by_quadrature(name, prior):
    d, normal = make(name), dist.Normal(*torch.tensor(prior).double())
    z, step = inside(d)
    log_density = d.log_prob(z)
    expected = (log_density.exp() * (log_density - normal.log_prob(z))).sum() * step
    torch.testing.assert_close(kl_divergence(d, normal), expected, atol=1e-5, rtol=1e-5)


def test_the_least_kl_to_the_prior_is_not_zero():
    scale = torch.linspace(1, 4, 3001, dtype=torch.float64)
    kl = kl_divergence(Epanechnikov(0.0 * scale, scale), dist.Normal(0.0, 1.0))
    assert kl.min().item() == pytest.approx(0.046, abs=5e-4)
    assert scale[kl.argmin()].item() == pytest.approx(math.sqrt(5), abs=1e-3)


@pytest.mark.parametrize(
    ("parameters", "line"),
    [({"loc": 0.0, "scale": 0.0}, "scale"), ({"loc": math.nan, "scale": 1.0}, "loc")],
)
def test_bad_parameters(parameters, line):
    with pytest.raises(ValueError, match=f"Expected parameter {line}"):
        Epanechnikov(**parameters)


def test_a_value_outside_the_support():
    with pytest.raises(ValueError, match="Expected value argument .* within the support"):
        Epanechnikov(0.0, 1.0, validate_args=True).log_prob(torch.tensor(1.5))


def test_codes_are_mean_and_variance():
    model = load_model("gaussian", (1, 8, 8), latent_size=3)
    guide = load_guide("epanechnikov", model)
    x = torch.rand(4, 1, 8, 8)
    codes, q = guide.codes(x), guide.posterior(x)
    torch.testing.assert_close(codes.variance, q.scale.square() / 5)
    torch.testing.assert_close(codes.precision, 1 / codes.variance)
    assert ((codes.variance < 0.5) == (codes.probs == 1)).all()
