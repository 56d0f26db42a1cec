"""Relaxed counts and the Poisson VAE: what is exact, what is biased, and a run from end to end."""

import json
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from input_cases import few_figures
from pyro.infer import Trace_ELBO
from scipy import integrate, stats
from support import ngvae
from torch.distributions import kl_divergence

from ngvae_pyro import runs
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.distributions.poisson import RelaxedPoisson
from ngvae_pyro.evaluation import diagnostics
from ngvae_pyro.fitted import site_terms
from ngvae_pyro.specs import FitSpec
from ngvae_pyro.training.trainer import Trainer

RATES = [0.3, 2.0, 40.0]


@pytest.mark.parametrize("rate", RATES)
def test_the_pmf_is_that_of_scipy(rate):
    k = torch.arange(200, dtype=torch.float64)
    d = RelaxedPoisson(torch.tensor(rate, dtype=torch.float64), 0.0)
    expected = torch.from_numpy(stats.poisson(rate).logpmf(k.numpy()))
    torch.testing.assert_close(d.log_prob(k), expected)
    assert d.log_prob(k).exp().sum().item() == pytest.approx(1.0)
    assert d.mean == d.variance == rate


@pytest.mark.parametrize("rate", RATES)
def test_counts_fit_the_pmf(rate):
    """Those of `sample` at any temperature, and soft ones when they are rounded."""
    for temperature, draw in ((0.5, "sample"), (1e-6, "rsample")):
        d = RelaxedPoisson(torch.full((20_000,), rate).double(), temperature)
        value = getattr(d, draw)()
        if draw == "sample":
            assert (value == value.round()).all()
        observed = torch.bincount(value.round().long()).numpy()
        expected = stats.poisson(rate).pmf(np.arange(len(observed))) * len(value)
        enough = expected > 10
        cells = [np.append(a[enough], len(value) - a[enough].sum()) for a in (observed, expected)]
        assert stats.chisquare(*cells).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.05])
def test_moments_of_a_soft_count(temperature):
    """Campbell: mean and variance are rate times the integrals of the sigmoid and its square."""
    t = np.linspace(0, 1 + 40 * temperature, 400_001)
    soft = 1 / (1 + np.exp((t - 1) / temperature))
    z = RelaxedPoisson(torch.full((50_000,), 2.0).double(), temperature).rsample()
    error = z.std().item() / len(z) ** 0.5
    mean = 2.0 * temperature * math.log1p(math.exp(1 / temperature))
    assert z.mean().item() == pytest.approx(mean, abs=4.5 * error + 2e-3 * temperature)
    square = integrate.trapezoid(soft**2, t)
    assert z.var().item() == pytest.approx(2.0 * square, rel=0.04)


def test_enough_events_are_drawn():
    for mean in np.geomspace(1e-4, 3000, 50):
        events = RelaxedPoisson(torch.tensor(mean), 1e-12)._events()
        assert stats.poisson(mean).sf(events) < 1e-5


def test_the_bias_of_the_gradient_goes_with_the_temperature():
    """Of E[(z - 3)^2] at rate 2, which is 2 * 2 + 1 - 6 = -1."""
    found = []
    for temperature in (1.0, 0.1, 0.02):
        rate = torch.full((50_000,), 2.0, dtype=torch.float64, requires_grad=True)
        (RelaxedPoisson(rate, temperature).rsample() - 3).square().sum().backward()
        found.append(rate.grad.mean().item())
    errors = [abs(gradient + 1) for gradient in found]
    assert errors[0] > 0.5 > errors[1] > 0.04 and errors[2] < 0.1


def test_the_soft_count_is_smooth_in_the_rate():
    def count(rate):
        torch.manual_seed(5)
        return RelaxedPoisson(rate, 0.3).rsample()

    rate = torch.tensor([0.5, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(count, rate)


@pytest.mark.parametrize("factor", [1e-6, 0.5, 1.0, 4.0])
def test_the_kl_is_that_of_the_residual(factor):
    r = torch.tensor([0.1, 2.0, 30.0]).double()
    q, p = RelaxedPoisson(factor * r, 0.05), dist.Poisson(r)
    closed = r * (1 - factor + factor * math.log(factor))
    torch.testing.assert_close(kl_divergence(q, p), closed)
    k = torch.arange(400.0).double().unsqueeze(-1)
    summed = (q.log_prob(k).exp() * (q.log_prob(k) - p.log_prob(k))).sum(0)
    torch.testing.assert_close(kl_divergence(q, p), summed, atol=1e-9, rtol=1e-6)


def test_expand_keeps_type_and_temperature():
    for temperature in (0.0, 0.3):
        d = RelaxedPoisson(torch.ones(3, 1), temperature).expand((2, 3, 4))
        assert type(d) is RelaxedPoisson and d.batch_shape == d.sample().shape == (2, 3, 4)
        assert d.temperature == temperature and d.has_rsample == (temperature > 0)
    assert d.rsample((5,)).shape == (5, 2, 3, 4)


@pytest.mark.parametrize("temperature", [-0.1, math.nan, torch.ones(2)])
def test_a_bad_temperature(temperature):
    with pytest.raises(ValueError, match="Expected temperature to be one number >= 0, got"):
        RelaxedPoisson(1.0, temperature)


def test_bad_rates_and_values():
    with pytest.raises(ValueError, match="Expected parameter rate"):
        RelaxedPoisson(-1.0, 0.1)
    with pytest.raises(ValueError, match="within the support"):
        RelaxedPoisson(1.0, 0.0, validate_args=True).log_prob(torch.tensor(0.5))
    with pytest.raises(NotImplementedError, match="temperature 0 have no pathwise gradient"):
        RelaxedPoisson(1.0, 0.0).rsample()
    assert RelaxedPoisson(1.0, 0.1, validate_args=True).log_prob(torch.tensor(0.5)).isfinite()


# The pair ------------------------------------------------------------------------------------


@pytest.fixture
def pair(small_pair):
    return small_pair("poisson", "poisson")


@pytest.fixture
def x(data):
    return ImageData.to_unit(data.images[:8])


def test_the_rates_of_the_prior_are_the_models_alone(pair):
    model, guide = pair
    assert model.log_rate.requires_grad and len(model.log_rate) == 5
    assert not any(p is model.log_rate for p in guide.parameters())
    assert set(guide.state_dict()) & set(model.state_dict()) == set()
    assert ((model.log_rate >= 0) & (model.log_rate <= 2)).all()


def test_without_a_residual_the_posterior_is_the_prior(pair, x):
    model, guide = pair
    with torch.no_grad():
        guide.encoder.head.weight.zero_()
        guide.encoder.head.bias.zero_()
        # The bound on the rates is felt a little.
        torch.testing.assert_close(
            guide.posterior(x).rate, model.log_rate.exp().expand(8, 5), rtol=0.06, atol=0
        )
        guide.encoder.head.bias.fill_(1e4)
        assert (guide.posterior(x).rate <= math.exp(5) * 1.001).all()
        guide.encoder.head.bias.fill_(-1e4)
        terms = kl_divergence(guide.posterior(x), model.marginal)
        torch.testing.assert_close(terms, model.log_rate.exp().expand(8, 5), rtol=1e-4, atol=0)


def test_counts_are_exact_wherever_no_gradient_is_taken(pair, x):
    model, guide = pair
    assert guide.posterior(x).has_rsample
    with torch.no_grad():
        assert not guide.posterior(x).has_rsample
    _, z = guide.draws(x, 3)
    assert (z == z.round()).all()
    for term in site_terms(model, guide, x)[1].values():
        assert term.isfinite().all()


def test_a_latent_is_informative_where_its_rate_varies(pair, x):
    _, guide = pair
    head = guide.encoder.head
    with torch.no_grad():
        # Of log rates, a standard deviation of 2 for the first two; none for the others, of which
        # one is silent, and so far from its prior.
        head.weight[:2] *= (20.0 / guide.encoder(x)[0][:, :2].std(0)).unsqueeze(1)
        head.weight[2:] = 0.0
        head.bias[:2] -= guide.encoder(x)[0][:, :2].mean(0)
        head.bias[2] = -1e3
    codes = guide.codes(x)
    informative = codes.loc.var(0, correction=0) > codes.loc.mean(0)
    assert informative[:2].all() and not informative[2:].any()
    assert (codes.probs == informative).all() and codes.probs.shape == (8, 5)
    assert (guide.codes(x[:1]).probs == 0).all()
    torch.testing.assert_close(codes.loc, codes.variance)
    torch.testing.assert_close(codes.precision, 1 / codes.loc)


def test_the_temperature_is_annealed_to_its_declared_value(pair, data):
    spec = FitSpec(steps=4, batch_size=16, device="cpu")
    trainer = Trainer(*pair, data, spec, pair[1].spec.schedule)
    seen = []
    for _ in range(4):
        trainer.train_step()
        seen.append(trainer.guide.temperature.item())
    assert seen == pytest.approx([1.0, 0.525, 0.05, 0.05])


def test_at_temperature_0_pyro_takes_the_score_function(pair, x):
    model, guide = pair
    guide.temperature.fill_(0.0)
    loss = Trace_ELBO(num_particles=2).differentiable_loss(model, guide, x)
    loss.backward()
    assert guide.encoder.head.weight.grad.abs().sum() > 0


@pytest.mark.slow
def test_a_run_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr("ngvae_pyro.report.plots.save_all", few_figures)
    # Images without known factors: their scores would take most of the time.
    images = np.random.default_rng(0).integers(0, 256, (200, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "grey.npz", imgs=images)
    out = tmp_path / "run"
    words = ["train", "poisson", "poisson", "--out", out, "--steps", "60", "--latents", "4"]
    words += ["--device", "cpu", "--set", "fit.batch_size=16", "--data", tmp_path / "grey.npz"]
    words += ["--set", "model.decoder.width=16", "--set", "guide.encoder.width=16"]
    for command in (words, ["inspect", out], ["evaluate", out]):
        ngvae(*command)
    metrics = runs.load_metrics(out)
    assert metrics["discrete"] and math.isfinite(metrics["elbo"])
    rows = diagnostics.most_informative_first(metrics)
    order = [(row["probs"] > 0.5, row["kl"]["z"]) for row in rows]
    assert order == sorted(order, reverse=True)
    z = runs.load_posterior(out)["posterior"]["z"].values
    assert (z == z.round()).all() and (z >= 0).all()
    found = json.loads((out / "evaluation.json").read_text())
    assert math.isfinite(found["log_likelihood"]["mean"])
    # Nothing there is compared with Normal(0, 1).
    assert not {"aggregate", "ks_statistic", "variance_law"} & set(found)
    assert "One over the posterior rate" in (out / "report.html").read_text()
    fit, _ = runs.load_run(out, device="cpu")
    assert fit.guide.temperature.item() == pytest.approx(0.05)
