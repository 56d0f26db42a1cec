"""The flat hierarchical posterior: one precision, several draws of z."""

import math

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from ngvae_pyro.errors import UserError
from ngvae_pyro.guide import load_guide
from ngvae_pyro.model import load_model
from ngvae_pyro.objectives import FlatELBO, Repeated, load_objective
from ngvae_pyro.specs import FitSpec, FlatGuideSpec
from ngvae_pyro.training.trainer import SiteWeights, fit


@pytest.fixture
def x():
    return torch.rand(8, 1, 6, 6)


@pytest.fixture
def pair(small_pair):
    return small_pair("normal_gamma", "flat", image_shape=(1, 6, 6))


def gradient(pair, objective, x):
    """Of all parameters, as one vector."""
    parameters = [p for module in pair for p in module.parameters()]
    loss = objective.differentiable_loss(*pair, x)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


def test_one_draw_is_the_elbo(pair, x):
    # Two formulas of one gradient, in float64, where their rounding is no difference.
    pair, x = [module.double() for module in pair], x.double()
    for weights in ({}, {"z": 3.0, "precision": 0.5}):
        found = []
        for objective in (Trace_ELBO(), FlatELBO(1)):
            torch.manual_seed(1)
            with SiteWeights(weights):
                loss = objective.loss(*pair, x)
                found.append((loss, gradient(pair, objective, x)))
        (loss, slope), (flat_loss, flat_slope) = found
        assert flat_loss == pytest.approx(loss, rel=1e-12)
        torch.testing.assert_close(flat_slope, slope)


def test_the_precision_is_drawn_once_and_the_mean_is_over_the_draws(pair, x):
    model, guide = pair
    objective = FlatELBO(3)
    torch.manual_seed(1)
    model_trace, guide_trace = objective._get_trace(model, guide, (x,), {})
    precision, z = (guide_trace.nodes[name]["value"] for name in ("precision", "z"))
    assert precision.shape == (8, 5) and z.shape == (3, 8, 5)
    assert model_trace.nodes["x"]["log_prob"].shape == (3, 8)
    q, p = guide.posterior(x), model.prior
    terms = [
        model.likelihood(model.decoder(part)).log_prob(x).sum()
        + (p.conditional(precision).log_prob(part) - q.conditional(precision).log_prob(part)).sum()
        for part in z
    ]
    kl = (q.precision.log_prob(precision) - p.precision.log_prob(precision)).sum()
    torch.manual_seed(1)
    loss = objective.loss(model, guide, x)
    assert loss == pytest.approx((kl - sum(terms) / 3).item(), rel=1e-5)


def test_its_expectation_is_the_elbo(pair, x):
    found, count = [], 100
    for objective in (Trace_ELBO(), FlatELBO(5)):
        losses = torch.tensor([objective.loss(*pair, x) for _ in range(count)]).double() / len(x)
        found.append((losses.mean(), losses.std() / count**0.5))
    (a, sa), (b, sb) = found
    assert (a - b).abs() < 4.0 * (sa**2 + sb**2).sqrt()


def test_the_variance_of_the_gradient_falls_with_the_draws(pair, x):
    """As 1 / M, if the precision is held."""
    model, guide = pair
    precision = guide.posterior(x).precision.sample()
    held = (
        pyro.poutine.condition(model, {"precision": precision}),
        pyro.poutine.block(
            pyro.poutine.condition(guide, {"precision": precision}), hide=["precision"]
        ),
    )
    parameters = [p for module in pair for p in module.parameters()]
    variances = {}
    for draws in (1, 8):
        slopes = []
        for _ in range(60):
            loss = FlatELBO(draws).differentiable_loss(*held, x)
            slope = torch.autograd.grad(loss, parameters, allow_unused=True)
            slopes.append(torch.cat([g.flatten() for g in slope if g is not None]))
        variances[draws] = torch.stack(slopes).var(0).sum().item()
    assert variances[1] / variances[8] == pytest.approx(8.0, rel=0.3)


def test_draws_are_a_plate_of_their_own(pair, x):
    """Pyro's checks of shapes and plates pass, and so does a literal SVI."""
    model, guide = pair
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss=FlatELBO(4))
    before = [p.detach().clone() for p in guide.parameters()]
    with pyro.validation_enabled(True):
        assert all(math.isfinite(svi.step(x)) for _ in range(2))
    assert all((a != b).any() for a, b in zip(before, guide.parameters(), strict=True))
    trace = pyro.poutine.trace(Repeated(4)(guide)).get_trace(x)
    frames = [(f.name, f.dim, f.size) for f in trace.nodes["z"]["cond_indep_stack"]]
    assert frames == [("draws", -2, 4), ("data", -1, 8)]


def test_several_particles_draw_several_precisions(pair, x):
    objective = load_objective(pair[1].spec, FitSpec(particles=3), 5, 100)
    assert isinstance(objective, FlatELBO) and (objective.draws, objective.num_particles) == (4, 3)
    assert math.isfinite(objective.loss(*pair, x))


def test_it_trains_with_the_schedule_of_the_relaxed_guide(small_pair, data):
    model, guide = small_pair("normal_gamma", "flat")
    assert guide.spec.schedule == load_guide("relaxed", model).spec.schedule
    settings = FitSpec(steps=20, batch_size=16, device="cpu", monitor_every=10)
    result = fit(model, guide, data, settings, progress=False)
    assert result.history[-1]["loss"] < result.history[0]["loss"]


def test_mistakes_are_one_line():
    model = load_model("normal_gamma", (1, 4, 4))
    with pytest.raises(UserError, match="draws: expected a number > 0, got 0"):
        load_guide("flat", model, draws=0)
    with pytest.raises(UserError, match=r"unknown key 'drows'; did you mean 'draws'\? \(known:"):
        load_guide("flat", model, drows=2)
    with pytest.raises(UserError, match="unknown key 'draws'"):
        load_guide("relaxed", model, draws=2)
    with pytest.raises(UserError, match="expected guide family gaussian"):
        load_guide(FlatGuideSpec(), load_model("gaussian", (1, 4, 4)))
