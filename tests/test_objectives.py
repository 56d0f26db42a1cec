"""The baselines' objectives: each loss against its formula, gradients, and use with SVI."""

import math

import pyro
import pytest
import torch
from conftest import PAIRS
from pyro.distributions import Normal
from pyro.infer import SVI, TraceMeanField_ELBO
from torch.distributions import MultivariateNormal, kl_divergence

from ngvae_pyro import variants
from ngvae_pyro.errors import UserError
from ngvae_pyro.guide import GUIDES, load_guide
from ngvae_pyro.model import load_model
from ngvae_pyro.objectives import (
    DIPELBO,
    BetaELBO,
    BetaTCELBO,
    CapacityELBO,
    FactorELBO,
    GamixELBO,
    PenalisedELBO,
    load_objective,
)
from ngvae_pyro.specs import (
    EpanechnikovGuideSpec,
    FitSpec,
    GaussianGuideSpec,
    MLPSpec,
    PoissonGuideSpec,
    ScheduleSpec,
)
from ngvae_pyro.training.trainer import Trainer, fit
from ngvae_pyro.variants import spec_of

K = 5
OBJECTIVES = {
    "beta": lambda: BetaELBO(7.0),
    "capacity": lambda: CapacityELBO(100.0, 3.0),
    "beta_tc": lambda: BetaTCELBO(6.0, data_size=200),
    "factor": lambda: FactorELBO(35.0, K, width=8, depth=2),
    "dip_i": lambda: DIPELBO("i", 10.0, 100.0),
    "dip_ii": lambda: DIPELBO("ii", 10.0, 10.0),
    "gamix": lambda: GamixELBO(0.2),
}


@pytest.fixture
def pair(small_pair):
    return small_pair("gaussian", "gaussian")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_is_the_negative_elbo_plus_the_penalty(pair, x, name):
    objective = OBJECTIVES[name]()
    torch.manual_seed(1)
    loss = objective.differentiable_loss(*pair, x)
    torch.manual_seed(1)
    elbo = TraceMeanField_ELBO().differentiable_loss(*pair, x)
    torch.manual_seed(1)
    q = pair[1].posterior(x)
    z = q.rsample()
    penalty = objective.penalty(z, q, Normal(torch.zeros(K), 1.0))
    assert (loss - elbo).item() == pytest.approx(penalty.item(), rel=1e-4, abs=1e-2)


def test_beta_weighs_the_kl(pair, x):
    q, p = pair[1].posterior(x), Normal(torch.zeros(K), 1.0)
    kl = kl_divergence(q, p).sum().item()
    z = q.rsample()
    assert BetaELBO(1.0).penalty(z, q, p).item() == 0.0
    assert BetaELBO(27.0).penalty(z, q, p).item() == pytest.approx(26.0 * kl, rel=1e-6)


@pytest.mark.parametrize(("fraction", "target"), [(0.0, 0.0), (0.25, 1.5), (0.5, 3.0), (1.0, 3.0)])
def test_capacity_pulls_the_kl_to_its_target(fraction, target):
    objective = CapacityELBO(100.0, capacity=3.0, end=0.5)
    objective.fraction = fraction
    q, p = Normal(torch.full((4, K), 2.0), 1.0), Normal(torch.zeros(K), 1.0)
    kl = 0.5 * 4.0 * K  # of one image: K latents at loc 2
    penalty = objective.penalty(q.rsample(), q, p).item()
    assert penalty == pytest.approx(4 * (100.0 * abs(kl - target) - kl), rel=1e-6)


def test_total_correlation_by_minibatch_weighting():
    """On a full batch, log q(z) is that of the mixture, up to the constant log N."""
    loc, scale = torch.randn(6, 2, dtype=torch.float64), torch.rand(6, 2, dtype=torch.float64) + 0.1
    q = Normal(loc, scale)
    z = q.sample()
    joint, product = [], []
    for point in z:
        densities = torch.exp(Normal(loc, scale).log_prob(point))
        joint.append(math.log(densities.prod(1).mean()))
        product.append(sum(math.log(densities[:, k].mean()) for k in range(2)))
    expected = torch.tensor(joint, dtype=z.dtype) - torch.tensor(product, dtype=z.dtype)
    # Each of the log densities is divided by N B where the mean divides by B.
    offset = (2 - 1) * math.log(50)
    total_correlation = BetaTCELBO(6.0, data_size=50).total_correlation(z, q) - offset
    torch.testing.assert_close(total_correlation, expected)
    # N is a constant of the loss.
    penalties = [BetaTCELBO(6.0, data_size=n).penalty(z, q, q) for n in (50, 5000)]
    difference = (penalties[1] - penalties[0]).item()
    assert difference == pytest.approx(5.0 * 6 * math.log(100), rel=1e-6)


def test_the_discriminator_learns_the_total_correlation():
    """On Gaussian codes with correlation 0.8, TC = -1/2 log(1 - 0.64) = 0.51 nats."""
    objective = FactorELBO(1.0, latent_size=2, width=64, depth=2)
    cov = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    joint = MultivariateNormal(torch.zeros(2), cov)
    optimizer = torch.optim.Adam(objective.discriminator.parameters(), lr=3e-3)
    prior = Normal(torch.zeros(2), 1.0)
    for _ in range(400):
        optimizer.zero_grad()
        objective.penalty(joint.sample((512,)), prior, prior).backward()
        optimizer.step()
    logits = objective.discriminator(joint.sample((20_000,)))
    estimate = (logits[:, 0] - logits[:, 1]).mean().item()
    assert estimate == pytest.approx(-0.5 * math.log(1 - 0.64), abs=0.12)


def test_discriminator_and_encoder_are_trained_by_their_own_terms(pair, x):
    for gamma in (0.0, 35.0):
        objective = FactorELBO(gamma, K, width=8, depth=2)
        torch.manual_seed(2)
        for p in objective.discriminator.parameters():
            torch.nn.init.normal_(p, std=0.5)
        q = pair[1].posterior(x)
        torch.manual_seed(3)
        z = q.rsample()
        z.retain_grad()
        objective.penalty(z, q, q).backward()
        if gamma == 0.0:
            alone = [p.grad.clone() for p in objective.discriminator.parameters()]
            assert z.grad.abs().max() == 0.0
            assert all(g.abs().sum() > 0 for g in alone[-2:])
        else:
            # The total correlation moves the encoder and leaves the discriminator as it was.
            assert z.grad.abs().sum() > 0
            for p, g in zip(objective.discriminator.parameters(), alone, strict=True):
                torch.testing.assert_close(p.grad, g)


def test_dip_penalises_the_covariance():
    loc = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
    unit = Normal(loc, 1e-3)  # covariance of the means: the identity
    assert DIPELBO("i", 10.0, 100.0).penalty(loc, unit, unit).item() == pytest.approx(0.0, abs=1e-6)
    copied = Normal(loc[:, :1].expand(4, 2), 0.5)
    assert DIPELBO("i", 10.0, 100.0).penalty(loc, copied, unit).item() == pytest.approx(4 * 10 * 2)
    # The draws add 1/4 to each variance: 2 (1/4)^2 on the diagonal.
    expected = 4 * (10 * 2 + 100 * 2 * 0.25**2)
    assert DIPELBO("ii", 10.0, 100.0).penalty(loc, copied, unit).item() == pytest.approx(expected)


def test_gamix_asks_the_prior_of_the_batch_and_the_variance_of_each_image():
    p = Normal(torch.zeros(2), 1.0)
    # Means of mean 1 and variance 4.
    loc = torch.tensor([3.0, -1.0, 3.0, -1.0]).unsqueeze(1).expand(4, 2)
    q = Normal(loc, 0.5)
    batch = 2 * 4 * 0.5 * (1.0 + 4.0 - 1.0 - math.log(4.0))
    alone = kl_divergence(q, p).sum().item()
    penalty = GamixELBO(0.0).penalty(loc, q, p).item()
    assert penalty + alone == pytest.approx(batch, rel=1e-6)
    regulariser = 8 * 0.5 * (0.25 - 1.0 - math.log(0.25))
    difference = GamixELBO(3.0).penalty(loc, q, p).item() - penalty
    assert difference == pytest.approx(3.0 * regulariser, rel=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_literal_svi_trains_with_it(pair, x, name):
    objective = OBJECTIVES[name]()
    svi = SVI(*pair, pyro.optim.Adam({"lr": 1e-3}), loss=objective)
    before = [p.detach().clone() for p in pair[1].parameters()]
    assert all(math.isfinite(svi.step(x)) for _ in range(2))
    assert all((a != b).any() for a, b in zip(before, pair[1].parameters(), strict=True))
    if isinstance(objective, FactorELBO):
        names = [n for n in pyro.get_param_store() if n.startswith("discriminator")]
        assert len(names) == len(list(objective.discriminator.parameters()))


def test_the_base_says_what_is_missing(pair, x):
    with pytest.raises(NotImplementedError, match="PenalisedELBO does not say"):
        PenalisedELBO().differentiable_loss(*pair, x)


def trainer(data, **objective):
    spec = GaussianGuideSpec(objective=objective, encoder=MLPSpec(width=16, depth=2))
    model = load_model("gaussian", data, latent_size=K, decoder=MLPSpec(width=16, depth=2))
    settings = FitSpec(steps=4, batch_size=16, device="cpu", monitor_every=4)
    return Trainer(model, load_guide(spec, model), data, settings, spec.schedule)


def test_the_discriminator_has_an_optimizer_of_its_own(data):
    own = trainer(data, kind="factor", width=8, depth=1, learning_rate=1e-5)
    assert [group["betas"] for group in own.optimizer.param_groups] == [(0.9, 0.999), (0.5, 0.9)]
    before = [p.detach().clone() for p in own.elbo.discriminator.parameters()]
    own.step = 3  # deep in the decay of the learning rate
    own.train_step()
    rates = [group["lr"] for group in own.optimizer.param_groups]
    assert rates[0] / rates[1] == pytest.approx(3e-3 / 1e-5) and rates[1] < 1e-5
    assert any(
        (a != b).any() for a, b in zip(before, own.elbo.discriminator.parameters(), strict=True)
    )


def test_the_fit_tells_the_objective_how_far_it_is(data):
    own = trainer(data, kind="capacity", capacity=2.0)
    own.step = 2
    own.train_step()
    assert own.elbo.fraction == 0.5


def test_capacity_is_reached(data):
    objective = {"kind": "capacity", "gamma": 1000.0, "capacity": 4.0, "end": 0.5}
    spec = GaussianGuideSpec(objective=objective, encoder=MLPSpec(width=32, depth=2))
    model = load_model("gaussian", data, latent_size=K, decoder=MLPSpec(width=32, depth=2))
    settings = FitSpec(steps=300, batch_size=32, device="cpu", monitor_every=100)
    result = fit(model, load_guide(spec, model), data, settings, progress=False)
    assert result.history[-1]["kl"]["z"] == pytest.approx(4.0, abs=0.6)


@pytest.mark.parametrize("name", variants.names("guides"))
def test_every_declared_guide_trains(data, name):
    families = {s.model_fields["family"].default: g for s, g in GUIDES.items()}
    small = MLPSpec(width=16, depth=2)
    guide_class = families[spec_of("guides", name, {}).family]
    fits = [names for names in PAIRS if families[names[1]] is guide_class]
    model = load_model(fits[0][0], data, latent_size=K, decoder=small)
    guide = load_guide(name, model, encoder=small)
    settings = FitSpec(steps=20, batch_size=16, device="cpu", monitor_every=10)
    options = {"schedule": ScheduleSpec()} if hasattr(guide.spec, "concentration") else {}
    result = fit(model, guide, data, settings, progress=False, **options)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert guide.spec.label


@pytest.mark.parametrize("name", ["score", "generalized"])
def test_a_gradient_with_a_score_needs_trace_elbo(data, name):
    model = load_model("normal_gamma", data, latent_size=K)
    settings = FitSpec(steps=20, device="cpu", elbo="TraceMeanField_ELBO")
    with pytest.raises(UserError, match=f"fit.elbo: expected Trace_ELBO with the guide '{name}'"):
        fit(model, load_guide(name, model), data, settings, progress=False)


def test_counts_are_trained_with_the_closed_kl():
    model = load_model("poisson")
    for elbo in ("Trace_ELBO", "TraceMeanField_ELBO"):
        fit_spec = FitSpec(elbo=elbo)
        counts = load_objective(PoissonGuideSpec(), fit_spec, model, data_size=200)
        assert isinstance(counts, TraceMeanField_ELBO)
        kernel = load_objective(EpanechnikovGuideSpec(), fit_spec, model, data_size=200)
        assert isinstance(kernel, TraceMeanField_ELBO) == (elbo == "TraceMeanField_ELBO")


@pytest.mark.parametrize("name", ["factor", "gamix"])
def test_one_image_is_no_batch(pair, x, name):
    with pytest.raises(UserError, match="batches of at least 2 images, got 1"):
        OBJECTIVES[name]().differentiable_loss(*pair, x[:1])
