"""The ELBO against an integrated evidence, and ranks of truths in exact posteriors."""

import math

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from scipy import stats
from scipy.integrate import trapezoid
from scipy.special import logsumexp
from support import script

from ngvae_pyro.distributions import NormalGammaPrior
from ngvae_pyro.guide import load_guide
from ngvae_pyro.model import load_model
from ngvae_pyro.specs import MLPSpec

SMALL = MLPSpec(width=16, depth=2)
SIGMAS = 4.0


class OnePoint:
    """A model of one latent, one image, and its evidence and posterior by integration.

    All densities are scipy's; of the package there is the decoder as a function of z.
    """

    def __init__(self, name):
        self.model = load_model(name, (1, 4, 4), latent_size=1, decoder=SMALL).double()
        self.spec = self.model.spec.prior
        z = torch.tensor([[0.7]]).double()
        noise = torch.randn(1, 1, 4, 4, dtype=torch.float64)
        self.scale = self.model.likelihood(self.model.decoder(z)).scale.mean().item()
        self.x = self.model.decoder(z).detach() + self.scale * noise
        # Of the posterior of z; the slab of the joint prior is 0.01 wide.
        z = np.linspace(-15, 15, 60_001)
        log_joint = self.log_likelihood(z) + self.log_prior_of_z(z)
        self.log_evidence = logsumexp(log_joint) + math.log(z[1] - z[0])
        weight = np.exp(log_joint - self.log_evidence) * (z[1] - z[0])
        self.mean = (weight * z).sum()
        self.variance = (weight * (z - self.mean) ** 2).sum()

    def log_likelihood(self, z):
        with torch.no_grad():
            parts = torch.from_numpy(z.reshape(-1, 1)).split(20_000)
            decoded = torch.cat([self.model.decoder(part).flatten(1) for part in parts]).numpy()
        found = stats.norm(decoded, self.scale).logpdf(self.x.numpy().reshape(1, -1)).sum(-1)
        return found.reshape(z.shape)

    @property
    def components(self):
        """log weight, concentration and rate of the slab and of the spike."""
        pi = math.exp(-self.spec.price)
        return (math.log(pi), *self.spec.slab), (math.log1p(-pi), *self.spec.spike)

    def log_prior_of_z(self, z):
        if not self.spec.joint:
            return stats.norm.logpdf(z)
        parts = [w + stats.t(2 * a, scale=(b / a) ** 0.5).logpdf(z) for w, a, b in self.components]
        return logsumexp(parts, axis=0)

    def log_prior(self, z, precision):
        gammas = [w + stats.gamma(a, scale=1 / b).logpdf(precision) for w, a, b in self.components]
        scale = precision**-0.5 if self.spec.joint else 1.0
        return logsumexp(gammas, axis=0) + stats.norm(0, scale).logpdf(z)

    def guide(self, family):
        """A guide near the posterior, whatever the image, and its Gammas (weight, a, b)."""
        one, two = (50.0, 50.0 * self.variance), (20.0, 8.0 * self.variance)
        pairs = {"concentration": (one[0], two[0]), "rate": (one[1], two[1])}
        sharpness = {} if family == "score" else {"sharpness": 4.0}
        guide = load_guide(family, self.model, encoder=SMALL, **pairs, **sharpness).double()
        with torch.no_grad():
            guide.encoder.head.weight.zero_()
            guide.encoder.head.bias.copy_(torch.tensor([self.mean, 0.5], dtype=torch.float64))
        p = 1 / (1 + math.exp(-0.5))
        if family == "relaxed":
            gate = 1 / (1 + math.exp(-4.0 * (p - 0.5)))
            slid = (gate * v + (1 - gate) * w for v, w in zip(one, two, strict=True))
            return guide, [(1.0, *slid)]
        return guide, [(p, *one), (1 - p, *two)]

    def kl(self, gammas):
        """KL of the guide to the posterior by quadrature over log precision and z."""
        total, u = 0.0, np.linspace(-8.5, 8.5, 301)
        for weight, a, b in gammas:
            gamma = stats.gamma(a, scale=1 / b)
            t = np.linspace(*np.log([gamma.ppf(1e-13), gamma.isf(1e-13)]), 401)[:, None]
            precision = np.exp(t)
            z = self.mean + u / np.sqrt(precision)
            log_q = logsumexp(
                [math.log(w) + stats.gamma(c, scale=1 / d).logpdf(precision) for w, c, d in gammas],
                axis=0,
            ) + stats.norm(self.mean, precision**-0.5).logpdf(z)
            posterior = self.log_likelihood(z) + self.log_prior(z, precision) - self.log_evidence
            mass = gamma.pdf(precision) * precision * stats.norm.pdf(u)
            total += weight * mass_sum(mass * (log_q - posterior), t[:, 0], u)
            assert mass_sum(mass, t[:, 0], u) == pytest.approx(1.0, abs=1e-9)
        return total

    @torch.no_grad()
    def elbo(self, guide, thousands):
        """Mean of Pyro's Trace_ELBO over so many draws, and its standard error."""
        x, loss = self.x.expand(1000, -1, -1, -1), Trace_ELBO()
        with pyro.validation_enabled(False):
            values = np.array([-loss.loss(self.model, guide, x) / len(x) for _ in range(thousands)])
        return values.mean(), values.std(ddof=1) / len(values) ** 0.5


def mass_sum(values, rows, columns):
    return trapezoid(trapezoid(values, columns, axis=1), rows)


@pytest.mark.parametrize("name", ["normal_gamma", "normal_gamma_joint"])
@pytest.mark.parametrize("family", ["relaxed", "mixture", "score"])
def test_the_gap_of_the_bound_is_the_kl(name, family, monkeypatch):
    point = OnePoint(name)
    guide, gammas = point.guide(family)
    kl = point.kl(gammas)
    elbo, error = point.elbo(guide, 60)
    # Or the equality would say nothing.
    assert error < 0.05 < kl
    assert elbo + SIGMAS * error < point.log_evidence
    assert abs(point.log_evidence - elbo - kl) < SIGMAS * error
    # The same with a prior forgotten, to see that it would be told.
    for forgotten in ("precision", "z"):

        def sample_latents(model, forgotten=forgotten):
            def fn(name, d):
                return pyro.sample(name, d.to_event(1).mask(name != forgotten))

            return fn("z", model.prior.conditional(fn("precision", model.prior.precision)))

        with monkeypatch.context() as patched:
            patched.setattr(type(point.model), "sample_latents", sample_latents)
            wrong, error = point.elbo(guide, 15)
        assert abs(point.log_evidence - wrong - kl) > 2 * SIGMAS * error


@pytest.fixture
def calibration():
    with script("calibration") as calibration:
        yield calibration


def test_truths_of_the_prior_are_calibrated_in_the_exact_posterior(calibration):
    """The prior's draws against a posterior by scipy, which half the noise fails."""
    c, generator = calibration, np.random.default_rng(0)
    prior = NormalGammaPrior(torch.full((c.LATENTS,), c.PROBS).double(), slab=c.SLAB, spike=c.SPIKE)
    z, precision = prior.sample((400,)).numpy().transpose(2, 0, 1)
    x = z @ c.W.T + generator.standard_normal((len(z), c.PIXELS))
    truth = {"z": z, "precision": precision}
    for widen, right in ((1.0, True), (0.5, False)):
        draws = c.exact(x, generator, widen)
        rows = [
            c.judged(c.ranks(truth[q][:, k], draws[q][..., k]), generator)
            for q in c.QUANTITIES
            for k in range(c.LATENTS)
        ]
        assert all(row["p"] > 1e-4 for row in rows) == right
        assert all(row["ecdf"] < 1.5 * row["ecdf_99"] for row in rows) or not right


def test_ranks_of_draws_given_z_are_calibrated(calibration):
    """What ``precision_given`` says, on z drawn with the precision."""
    probs = torch.full((4000,), 0.3).double()
    prior = NormalGammaPrior(probs, slab=(2.0, 4.0), spike=(100.0, 25.0))
    z, precision = prior.sample().unbind(-1)
    draws = prior.precision_given(z).sample((calibration.DRAWS,))
    rank = calibration.ranks(precision.numpy(), draws.numpy())
    assert calibration.judged(rank, np.random.default_rng(0))["p"] > 1e-4
    wrong = prior.precision_given(0.5 * z).sample((calibration.DRAWS,))
    rank = calibration.ranks(precision.numpy(), wrong.numpy())
    assert calibration.judged(rank, np.random.default_rng(0))["p"] < 1e-4
