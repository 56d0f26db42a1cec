"""The mixture posterior: its distribution, what the guide says, and its objective."""

import pytest
import torch
from pyro.distributions import Normal
from pyro.infer import Trace_ELBO
from scipy import stats

from ngvae_pyro.data.images import ImageData
from ngvae_pyro.distributions.location_scale import GaussianMixture
from ngvae_pyro.guide import load_guide
from ngvae_pyro.model import load_model
from ngvae_pyro.objectives import GaussianMixtureELBO, collapse
from ngvae_pyro.specs import FitSpec, MLPSpec
from ngvae_pyro.training.trainer import fit

LOC, SCALE, LOGITS = [-1.0, 0.5, 2.0], [0.5, 0.3, 1.0], [0.1, -0.5, 0.3]
GRID = torch.linspace(-12.0, 12.0, 100_001, dtype=torch.float64)
STEP = GRID[1] - GRID[0]


def parameters(dtype=torch.float64):
    return [torch.tensor(p, dtype=dtype, requires_grad=True) for p in (LOC, SCALE, LOGITS)]


@pytest.fixture
def x(data):
    return ImageData.to_unit(data.images[:8])


def test_density_integrates_to_one_and_has_the_moments():
    q = GaussianMixture(*parameters())
    density = q.log_prob(GRID).exp()
    assert (density.sum() * STEP).item() == pytest.approx(1.0, abs=1e-9)
    mean = (density * GRID).sum() * STEP
    assert q.mean.item() == pytest.approx(mean.item(), rel=1e-9)
    variance = (density * (GRID - mean).square()).sum() * STEP
    assert q.variance.item() == pytest.approx(variance.item(), rel=1e-9)


def test_draws_follow_the_distribution_function():
    q = GaussianMixture(*parameters())
    draws = q.rsample((20_000,)).detach()
    uniform = q.cdf(draws).detach().numpy()
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3


def test_pathwise_gradients_are_those_of_the_integral():
    """d E[f(z)] of every parameter, the weights among them, against the integral's."""

    def f(z):
        return (2.0 * z).sin() + z.square()

    own = parameters()
    exact = torch.autograd.grad((GaussianMixture(*own).log_prob(GRID).exp() * f(GRID)).sum(), own)
    draws, parts = 40_000, []
    for _ in range(10):
        values = f(GaussianMixture(*own).rsample((draws,))).mean()
        parts.append(torch.cat(torch.autograd.grad(values, own)))
    parts = torch.stack(parts)
    error = parts.std(0) / len(parts) ** 0.5
    assert ((parts.mean(0) - torch.cat(exact) * STEP).abs() < 4.5 * error).all()
    assert (error < 0.02).all()


def test_the_gradient_of_a_draw_keeps_its_probability():
    """With u = F(z) fixed, z moves as the inverse distribution function does."""
    own = parameters()
    draws = GaussianMixture(*own).rsample((3,))
    for z in draws:
        gradients = torch.autograd.grad(z, own, retain_graph=True)
        for k, gradient in enumerate(gradients):
            for m in range(3):
                ends = []
                for sign in (-1.0, 1.0):
                    moved = [p.detach().clone() for p in own]
                    moved[k][m] += sign * 1e-5
                    q = GaussianMixture(*moved)
                    end = z.detach().clone()
                    for _ in range(20):  # Newton, from very near
                        u = GaussianMixture(*own).cdf(z.detach()).detach()
                        end = end - (q.cdf(end) - u) / q.log_prob(end).exp()
                    ends.append(end.item())
                numerical = (ends[1] - ends[0]) / 2e-5
                assert gradient[m].item() == pytest.approx(numerical, rel=1e-4, abs=1e-6)


def test_gradients_are_finite_in_float32_for_narrow_and_wide_components():
    loc = torch.tensor([-3.0, 0.0, 0.01], requires_grad=True)
    scale = torch.tensor([1e-3, 2.0, 1e-2], requires_grad=True)
    logits = torch.tensor([0.0, -4.0, 3.0], requires_grad=True)
    GaussianMixture(loc, scale, logits).rsample((50_000,)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in (loc, scale, logits))


def test_one_component_is_a_normal_and_expand_keeps_the_type():
    loc, scale = torch.tensor([0.3]), torch.tensor([0.7])
    q = GaussianMixture(loc, scale, torch.zeros(1))
    z = torch.linspace(-2.0, 2.0, 9)
    torch.testing.assert_close(q.log_prob(z), Normal(0.3, 0.7).log_prob(z))
    wide = q.expand((4, 2))
    assert type(wide) is GaussianMixture and wide.has_rsample
    assert wide.batch_shape == wide.rsample().shape == wide.mean.shape == (4, 2)
    assert wide.rsample((3,)).shape == (3, 4, 2)


def test_collapse_is_zero_at_one_and_averages_the_components():
    scale = torch.tensor([1.0, 0.5])
    torch.testing.assert_close(
        collapse(Normal(torch.zeros(2), scale)),
        torch.tensor([0.0, 0.5 * (0.25 - 1.0 + 1.3862944)]),
    )
    q = GaussianMixture(torch.zeros(1, 2), scale.unsqueeze(0), torch.tensor([[0.0, 1.0986123]]))
    assert collapse(q).item() == pytest.approx(0.75 * 0.5 * (0.25 - 1.0 + 1.3862944))


def gradients(pair, objective, x):
    torch.manual_seed(1)
    loss = objective.differentiable_loss(*pair, x)
    parameters = [p for module in pair for p in module.parameters()]
    return loss.item(), torch.autograd.grad(loss, parameters)


def test_without_the_regulariser_it_is_the_elbo(small_pair, x):
    # Two formulas of one gradient, in float64, where their rounding is no difference.
    pair = [module.double() for module in small_pair("gaussian", "gaussian_mixture")]
    x = x.double()
    elbo, own = (gradients(pair, e, x) for e in (Trace_ELBO(), GaussianMixtureELBO(0.0)))
    assert own[0] == pytest.approx(elbo[0], rel=1e-12)
    for a, b in zip(own[1], elbo[1], strict=True):
        torch.testing.assert_close(a, b)
    regularised, _ = gradients(pair, GaussianMixtureELBO(2.0), x)
    expected = elbo[0] + 2.0 * collapse(pair[1].posterior(x)).sum().item()
    assert regularised == pytest.approx(expected, rel=1e-12)


def test_codes_are_the_moments_of_the_mixture(small_pair, x):
    _, guide = small_pair("gaussian", "gaussian_mixture")
    codes, draws = guide.codes(x), guide.posterior(x).sample((20_000,))
    torch.testing.assert_close(codes.loc, draws.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(codes.variance, draws.var(0), atol=0.1, rtol=0.05)
    torch.testing.assert_close(codes.precision, 1.0 / codes.variance)
    assert ((codes.variance < 0.5) == codes.probs.bool()).all()


def test_components_stay_in_reach_of_each_other(small_pair, x):
    """Whatever the encoder says, or the gradient of the weights has no bound."""
    _, guide = small_pair("gaussian", "gaussian_mixture")
    with torch.no_grad():
        guide.encoder.head.weight.mul_(100.0)
        _, log_variance, *_ = guide.encoder(x)
    q, scale = guide.posterior(x), (0.5 * log_variance).exp()
    gap = (q.loc.amax(-1) - q.loc.amin(-1)) / scale
    assert gap.max() <= 4.01 and gap.max() > 2.0
    assert (q.scale.amin(-1) / scale).min() >= 0.6 and q.probs.min() > 1e-3


@pytest.mark.parametrize("components", [1, 4])
def test_it_trains_with_any_number_of_components(data, components):
    model = load_model("gaussian", data, latent_size=5, decoder=MLPSpec(width=16, depth=2))
    encoder = MLPSpec(width=16, depth=2)
    guide = load_guide("gaussian_mixture", model, components=components, encoder=encoder)
    settings = FitSpec(steps=40, batch_size=16, device="cpu", monitor_every=40)
    result = fit(model, guide, data, settings, progress=False)
    assert result.history[-1]["loss"] < 0.7 * result.history[0]["loss"]
