"""Float32 against mpmath, and finite gradients, at the ends of what a user can set."""

import itertools
import math

import mpmath
import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from support import script
from torch.distributions import kl_divergence

from ngvae_pyro.distributions import (
    GammaMixture,
    GeneralizedGamma,
    IndependentNormalGamma,
    NormalGamma,
    NormalGammaMixture,
    NormalGammaPrior,
    RelaxedNormalGammaMixture,
    SpikeSlabPrior,
    conditional_kl,
    kl_bound,
    kl_monte_carlo,
)
from ngvae_pyro.objectives import MixtureELBO

DTYPES = [torch.float32, torch.float64]
GAMMAS = list(itertools.product((1e-2, 1.0, 1e6), (1e-6, 1.0, 1e6)))
SHARPNESS = [0.1, 20.0, 1e3]
LOGITS = [-math.inf, -100.0, -17.0, 0.0, 17.0, 100.0, math.inf]
# Of float32, relative to at least a nat. What the relaxation adds is the rounding of its two
# parameters.
RELAXED_ERROR, ERROR = 3e-4, 5e-6


@pytest.fixture
def numerics():
    with script("numerics") as numerics, mpmath.workdps(numerics.DIGITS):
        yield numerics


def test_float32_agrees_with_mpmath(numerics):
    found = {name: numerics.row(name, 200, seed=1) for name in numerics.ROWS}
    for name, row in found.items():
        bound = RELAXED_ERROR if name.startswith("RelaxedNormal") else ERROR
        assert row["float32"]["error"] < bound, row
        assert row["float64"]["error"] < 1e-8, row


def test_the_error_of_a_wrong_density_is_told(numerics, monkeypatch):
    points, _, reference = numerics.ROWS["KL of Gammas"]

    def of_torch(c):
        pairs = ((c["a"], c["b"]), (c["c"], c["d"]))
        return kl_divergence(*(torch.distributions.Gamma(*pair) for pair in pairs))

    monkeypatch.setitem(numerics.ROWS, "KL of Gammas", (points, of_torch, reference))
    assert numerics.row("KL of Gammas", 200, seed=1)["float32"]["error"] > 1e-2


def columns(dtype, *values):
    """Every combination of the values as leaves (N,)."""
    rows = torch.tensor(list(itertools.product(*values)), dtype=dtype)
    return [column.clone().requires_grad_() for column in rows.unbind(-1)]


def pairs(dtype, weights):
    """Leaves for every weight with every two Gammas."""
    rows = [(w, *one, *two) for w in weights for one in GAMMAS for two in GAMMAS]
    weight, a1, b1, a2, b2 = (
        column.clone().requires_grad_() for column in torch.tensor(rows, dtype=dtype).unbind(-1)
    )
    return weight, {"concentration": (a1, a2), "rate": (b1, b2)}


def ends(dtype):
    """Probabilities at and next to 0 and 1."""
    info = torch.finfo(dtype)
    return [0.0, info.tiny, 0.5, 1.0 - info.eps / 2, 1.0]


def assert_finite(result, *leaves):
    """The result is no NaN, and its gradient by each leaf is finite."""
    assert not result.isnan().any()
    # Distributions compute some of their parameters once, for several results.
    slopes = torch.autograd.grad(result.sum(), leaves, allow_unused=True, retain_graph=True)
    for n, slope in enumerate(slopes):
        if slope is not None:
            at = (~slope.isfinite()).nonzero()
            assert len(at) == 0, (n, at[0], [leaf.flatten()[at[0, 0]].item() for leaf in leaves])


def assert_all_finite(d, prior, leaves):
    """Of a distribution of pairs: densities, draws with a gradient, KLs."""
    value = d.sample().requires_grad_()
    assert_finite(d.log_prob(value), value, *leaves)
    assert_finite(d.marginal.log_prob(value[..., 0].detach()), *leaves)
    if d.has_rsample:
        draw = d.rsample()
        assert_finite(draw[..., 0].square() + draw[..., 0] + draw[..., 1], *leaves)
        draw = d.rsample()
        assert_finite(d.log_prob(draw) - prior.log_prob(draw), *leaves)
    assert_finite(conditional_kl(d, prior), *leaves)


PRIORS = [
    lambda: SpikeSlabPrior(0.02, slab=(1.0, 1e-4), spike=(100.0, 100.0)),
    lambda: NormalGammaPrior(0.02, slab=(1.0, 1e-4), spike=(100.0, 100.0)),
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_a_normal_gamma_are_finite(dtype):
    loc, a, b = columns(dtype, (0.0, 3.0), (1e-2, 0.5, 1.0, 1.0 + 1e-6, 1e6), (1e-6, 1.0, 1e6))
    for prior in PRIORS:
        assert_all_finite(NormalGamma(loc, a, b), prior(), (loc, a, b))
    d = GeneralizedGamma(a, b)
    draw = d.rsample()
    assert_finite(draw, a, b)
    assert_finite(sum(d.score_parts(draw.detach())[:2]), a, b)
    assert_finite(NormalGamma(loc, a, b).entropy(), a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_the_kl_of_gammas_are_finite(dtype):
    rows = torch.tensor([(*one, *two) for one in GAMMAS for two in GAMMAS], dtype=dtype)
    a, b, c, d = (column.clone().requires_grad_() for column in rows.unbind(-1))
    one, two = NormalGamma(1.0, a, b), NormalGamma(-1.0, c, d)
    assert_finite(kl_divergence(one, two), a, b, c, d)
    kl = kl_divergence(one, IndependentNormalGamma(c, d))
    # Of z the KL is infinite where the mean of 1 / precision is, up to a concentration of 1.
    assert kl.isinf().equal(a <= 1)
    assert_finite(kl, a, b, c, d)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["probs", "logits"])
@pytest.mark.parametrize("exact", [True, False])
def test_gradients_of_mixtures_are_finite(dtype, name, exact):
    weight, gammas = pairs(dtype, ends(dtype) if name == "probs" else LOGITS)
    loc = torch.zeros_like(weight).requires_grad_()
    leaves = [weight, loc, *gammas["concentration"], *gammas["rate"]]
    for prior in PRIORS:
        if exact:
            d = NormalGammaMixture(loc, **{name: weight}, **gammas)
            assert_all_finite(d, prior(), leaves)
            assert_all_finite(d.has_rsample_(True), prior(), leaves)
            assert_finite(d.marginal.rsample(), *leaves)
            assert_finite(kl_bound(d.precision, prior().precision), *leaves)
            assert_finite(kl_monte_carlo(d.precision, prior().precision), *leaves)
            continue
        for sharpness in SHARPNESS:
            r = torch.full_like(loc, sharpness).requires_grad_()
            d = RelaxedNormalGammaMixture(loc, **{name: weight}, **gammas, sharpness=r)
            assert_all_finite(d, prior(), [*leaves, r])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", [GammaMixture, NormalGammaPrior, SpikeSlabPrior])
def test_gradients_of_priors_are_finite(dtype, family):
    weight, gammas = pairs(dtype, ends(dtype))
    (a1, a2), (b1, b2) = gammas["concentration"], gammas["rate"]
    if family is GammaMixture:
        d = family(weight, **gammas)
    else:
        d = family(weight, slab=(a1, b1), spike=(a2, b2))
    value = d.sample().requires_grad_()
    assert_finite(d.log_prob(value), value, weight, a1, a2, b1, b2)
    q = NormalGamma(0.5, torch.full((), 50.0, dtype=dtype), 2.0)
    assert_finite(d.log_prob(q.sample(d.batch_shape)) if family is not GammaMixture else d.mean, a1)


@pytest.mark.parametrize("logit", [0.0, 100.0, -100.0, 1e4, -1e4])
@pytest.mark.parametrize("sharpness", [0.1, 1e3])
@pytest.mark.parametrize("guide", ["relaxed", "mixture", "flat", "generalized", "score"])
@pytest.mark.parametrize("model", ["normal_gamma", "normal_gamma_joint"])
def test_gradients_of_the_loss_are_finite_at_saturated_logits(
    small_pair, x, model, guide, sharpness, logit
):
    model, guide = small_pair(model, guide)
    if "sharpness" in guide.annealed:
        guide.sharpness.fill_(sharpness)
    with torch.no_grad():
        # The second half of the head's outputs are the logits.
        guide.encoder.head.bias.chunk(2)[1].fill_(logit)
    if logit:
        assert guide.codes(x).probs.eq(float(logit > 0)).all()
    losses = [Trace_ELBO()]
    if hasattr(guide, "exact"):
        losses.append(MixtureELBO(lambda: model.prior))
    for loss in losses:
        with pyro.validation_enabled(False):
            value = loss.differentiable_loss(model, guide, x)
        parameters = [*model.parameters(), *guide.parameters()]
        slopes = torch.autograd.grad(value, parameters, allow_unused=True)
        assert value.isfinite()
        assert all(s is None or s.isfinite().all() for s in slopes)
