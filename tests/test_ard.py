"""The ARD-VAE: its KL, the precisions inferred from codes, and which latents are relevant."""

import math

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import SVI
from support import SHORT, SMALL, ngvae
from torch import nn

from ngvae_pyro import runs
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.guide import load_guide
from ngvae_pyro.model import ArdDecoder, AxisPrecision, load_model
from ngvae_pyro.objectives import ArdELBO, load_objective
from ngvae_pyro.specs import ArdGuideSpec, ArdPriorSpec, FitSpec, LikelihoodSpec
from ngvae_pyro.training.trainer import Trainer, fit


@pytest.fixture
def pair(small_pair):
    return small_pair("ard", "ard")


def with_variances(decoder, variances):
    """Sets the variances of the prior, as codes have them."""
    decoder.precision.rate.copy_(torch.tensor(variances) * decoder.precision.concentration)


# The precisions ------------------------------------------------------------------------------


def test_the_conjugate_update_by_hand():
    precision = AxisPrecision(ArdPriorSpec(concentration=2.0, rate=3.0, codes=4), 2)
    assert precision.variance.tolist() == [1.0, 1.0]
    precision.learn(torch.tensor([[1.0, 0.0], [2.0, 4.0]]))
    assert precision.variance.tolist() == [1.0, 1.0]
    # Draws of several particles, two more codes of each.
    precision.learn(torch.tensor([[[3.0, 0.0]], [[0.0, 1.0]]]))
    assert precision.concentration == 2 + 4 / 2
    assert precision.rate.tolist() == [3 + (1 + 4 + 9) / 2, 3 + (16 + 1) / 2]
    assert precision.variance.tolist() == [10 / 4, 11.5 / 4]
    # From then on only what comes next counts.
    for _ in range(2):
        precision.learn(torch.ones(2, 2))
    assert precision.rate.tolist() == [3 + 4 / 2, 3 + 4 / 2]


def test_by_default_the_variance_is_the_mean_square_of_10_000_codes():
    spec = load_model("ard", (1, 2, 2)).spec.prior
    precision = AxisPrecision(spec, 3)
    codes = torch.randn(10_000, 3) * torch.tensor([2.0, 1.0, 1e-3])
    precision.learn(codes[:9_999])
    assert (precision.variance == 1.0).all()
    precision.learn(codes[9_999:])
    torch.testing.assert_close(precision.variance, codes.square().mean(0))


def test_the_posterior_is_the_gamma_that_a_grid_finds():
    """Up to a constant, the prior times the likelihood of the codes, as a function of alpha."""
    precision = AxisPrecision(ArdPriorSpec(concentration=1.5, rate=0.5, codes=5), 1)
    codes = torch.tensor([[0.3], [-1.0], [0.7], [1.4], [-0.2]])
    precision.learn(codes)
    alpha = torch.linspace(0.01, 12.0, 4000, dtype=torch.float64)
    log_p = dist.Gamma(1.5, 0.5).log_prob(alpha)
    log_p = log_p + dist.Normal(0.0, alpha.rsqrt()).log_prob(codes.double()).sum(0)
    found = dist.Gamma(precision.concentration.double(), precision.rate.double()).log_prob(alpha)
    offset = found - log_p
    torch.testing.assert_close(offset, offset[0].expand_as(offset), rtol=0, atol=1e-5)


# The objective -------------------------------------------------------------------------------


def test_the_kl_is_that_of_the_paper_and_of_monte_carlo(pair, x):
    model, guide = pair
    variances = torch.tensor([4.0, 1.0, 0.25, 0.01, 9.0])
    with_variances(model.decoder, variances.tolist())
    with torch.no_grad():
        mu, log_variance = guide.encoder(x)
        closed = torch.distributions.kl_divergence(guide.posterior(x), model.marginal)
        # Equation 15, in the unit of the encoder.
        spread = mu.square() + log_variance.exp()
        expected = 0.5 * (variances.log() - log_variance - 1.0 + spread / variances)
        torch.testing.assert_close(closed, expected, rtol=1e-4, atol=1e-5)
        q = dist.Normal(mu.double(), (0.5 * log_variance.double()).exp())
        y = q.sample((20_000,))
        normal = q.log_prob(y) - dist.Normal(0.0, variances.double().sqrt()).log_prob(y)
        error = normal.std(0) / len(y) ** 0.5
        assert ((normal.mean(0) - closed).abs() < 5.0 * error + 1e-5).all()


def test_a_students_t_of_10_000_codes_is_as_good_as_normal():
    """The KL of each from a posterior, by quadrature, for means as far out as codes are."""
    loc = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    for scale in (0.05, 1.0):
        y = loc + scale * torch.linspace(-9, 9, 20_001, dtype=torch.float64).unsqueeze(1)
        weight = dist.Normal(loc, scale).log_prob(y).exp() * 18 * scale / 20_000
        exact = dist.StudentT(torch.tensor(10_000.0).double(), 0.0, 1.0).log_prob(y)
        difference = (weight * (dist.Normal(0.0, 1.0).log_prob(y) - exact)).sum(0).abs()
        # To first order in 1 / n it is E[y^4 - 2 y^2 - 1] / 4 n.
        assert difference[:2].max() < 2e-4 and difference.max() < 4e-3


def test_beta_weighs_the_kl(pair, x):
    model, guide = pair
    with torch.no_grad():
        q = guide.posterior(x)
        kl = torch.distributions.kl_divergence(q, model.marginal).sum().item()
        for beta in (1.0, 3.0):
            elbo = load_objective(ArdGuideSpec(beta=beta), FitSpec(), model, data_size=200)
            assert isinstance(elbo, ArdELBO)
            added = elbo.penalty(q.mean, q, model.marginal).item()
            assert added == pytest.approx((beta - 1.0) * kl, rel=1e-5)


def test_only_a_loss_with_gradients_learns_from_codes(pair, x):
    model, guide = pair
    elbo = ArdELBO(1.0, model, num_particles=2)
    elbo.loss(model, guide, x)
    guide.codes(x)
    assert model.decoder.precision.seen == 0
    with_variances(model.decoder, [4.0] * 5)
    torch.manual_seed(1)
    elbo.differentiable_loss(model, guide, x).backward()
    assert model.decoder.precision.seen == 16
    # In the unit of the encoder: the draws of z are y / 2.
    torch.manual_seed(1)
    drawn = []
    for _ in range(2):
        drawn.append(pyro.poutine.trace(guide).get_trace(x).nodes["z"]["value"])
    expected = (2.0 * torch.cat(drawn)).square().sum(0)
    torch.testing.assert_close(model.decoder.precision.squares, expected)


def test_the_unit_of_a_latent_makes_no_difference(pair, x):
    """A latent, its prior and the decoder's column in other units: the same loss."""
    model, guide = pair
    head, stem = guide.encoder.head, model.decoder.stem
    losses = []
    for factor in (1.0, 10.0):
        with torch.no_grad():
            head.weight[0] *= factor
            head.bias[0] *= factor
            head.bias[5] += 2 * math.log(factor)
            stem.weight[:, 0] /= factor
        with_variances(model.decoder, [factor**2, 1.0, 1.0, 1.0, 1.0])
        torch.manual_seed(1)
        losses.append(ArdELBO(1.0, model).loss(model, guide, x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_plain_svi_infers_the_precisions(pair, x):
    model, guide = pair
    model.decoder.precision.spec = ArdPriorSpec(codes=16)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss=ArdELBO(1.0, model))
    for _ in range(2):
        svi.step(x)
    assert (model.decoder.precision.variance != 1.0).all()


# Which latents are relevant ------------------------------------------------------------------


class LinearDecoder(ArdDecoder):
    """W y, with a Jacobian W at every y."""

    def __init__(self, spec, image_shape, weight):
        super().__init__(spec, image_shape)
        self.stem, self.trunk = nn.Linear(*weight.T.shape), nn.Sequential()
        with torch.no_grad():
            self.stem.weight.copy_(weight)
            self.stem.bias.zero_()


def test_relevance_is_variance_times_squared_slope(pair, x):
    model, guide = pair
    weight = torch.randn(3 * 32 * 32, 5)
    model.decoder = LinearDecoder(model.spec, model.image_shape, weight)
    variances = [4.0, 1.0, 0.5, 1e-4, 0.0625]
    with_variances(model.decoder, variances)
    expected = weight.square().sum(0) * torch.tensor(variances)
    for z in (torch.zeros(1, 5), torch.randn(7, 5)):
        torch.testing.assert_close(guide.relevance(z), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("shares", "relevant"),
    [
        ([0.5, 0.3, 0.15, 0.045, 0.005], [1, 1, 1, 1, 0]),
        ([0.005, 0.995, 0.0, 0.0, 0.0], [0, 1, 0, 0, 0]),
        ([0.2, 0.2, 0.2, 0.2, 0.2], [1, 1, 1, 1, 1]),
        ([0.004, 0.003, 0.99, 0.002, 0.001], [1, 0, 1, 0, 0]),
        ([0.0, 0.0, 0.0, 0.0, 0.0], [0, 0, 0, 0, 0]),
    ],
)
def test_the_relevant_latents_are_the_fewest_that_make_up_the_share(
    pair, x, shares, relevant, monkeypatch
):
    _, guide = pair
    seen = []

    def relevance(z):
        seen.append(len(z))
        return 30.0 * torch.tensor(shares)

    monkeypatch.setattr(guide, "relevance", relevance)
    monkeypatch.setattr("ngvae_pyro.guide.RELEVANCE_IMAGES", 6)
    guide.spec = ArdGuideSpec(encoder=SMALL, share=0.992 if shares[2] == 0.99 else 0.99)
    codes = guide.codes(x)
    assert codes.probs.tolist() == [[float(r) for r in relevant]] * 8 and seen == [6]
    assert codes.informative.tolist() == [bool(r) for r in relevant]
    torch.testing.assert_close(codes.precision, 1 / codes.variance)


@pytest.mark.parametrize("family", ["gaussian", "bernoulli", "continuous_bernoulli"])
def test_relevance_is_the_jacobian_of_the_mean(small_pair, family):
    small_pair("ard", "ard", image_shape=(1, 4, 4), latent_size=3)
    likelihood = LikelihoodSpec(family=family)
    model = load_model("ard", (1, 4, 4), latent_size=3, decoder=SMALL, likelihood=likelihood)
    guide = load_guide("ard", model, encoder=SMALL)
    with_variances(model.decoder, [2.0, 0.5, 1.0])
    z = torch.randn(4, 3)
    jacobian = torch.autograd.functional.jacobian(
        lambda z: model.likelihood(model.decoder(z)).mean.sum(0), z
    )
    torch.testing.assert_close(
        guide.relevance(z), jacobian.square().sum((0, 1, 2, 3)) / 4, rtol=1e-3, atol=1e-9
    )


def sources(count=2_000):
    """Four uniform sources, mapped linearly to 20 columns, and noise: (N, 20)."""
    generator = torch.Generator().manual_seed(0)
    uniform = 2 * torch.rand(count, 4, generator=generator) - 1
    mixed = uniform @ torch.randn(4, 20, generator=generator)
    return (mixed + 0.1 * torch.randn(count, 20, generator=generator)).numpy()


@pytest.mark.slow
def test_four_linear_sources_are_counted():
    vectors = sources()
    # How many are relevant hangs on scale and beta: at the noise's own scale of 0.1 it is seven.
    model = load_model("ard", vectors, latent_size=8, decoder=SMALL, likelihood={"scale": 1.0})
    guide = load_guide("ard", model, encoder=SMALL, beta=1.0)
    found = fit(model, guide, vectors, steps=1500, device="cpu", progress=False)
    assert found.history[-1]["informative"] == 4


# Training and run folders --------------------------------------------------------------------


def test_the_precisions_are_inferred_in_training(pair, data):
    model, guide = pair
    model.decoder.precision.spec = ArdPriorSpec(codes=32)
    spec = FitSpec(steps=4, batch_size=16, device="cpu")
    trainer = Trainer(model, guide, data, spec, guide.spec.schedule)
    seen = []
    for _ in range(4):
        trainer.train_step()
        seen.append(model.decoder.precision.variance.clone())
    assert (seen[0] == 1).all() and (seen[1] != 1).all()
    assert seen[1].equal(seen[2]) and not seen[2].equal(seen[3])
    assert model.decoder.precision.concentration == 16
    before = [buffer.clone() for buffer in model.buffers()]
    trainer.look()
    assert all(a.equal(b) for a, b in zip(before, model.buffers(), strict=True))


@pytest.mark.slow
def test_a_run_from_end_to_end(tmp_path, no_drawing):
    out = tmp_path / "run"
    ngvae("train", "ard", "ard", "--out", out, *SHORT, "--set", "model.prior.codes=16")
    fit, _ = runs.load_run(out, device="cpu")
    assert (fit.model.decoder.precision.variance != 1.0).all()
    metrics = runs.load_metrics(out)
    assert set(metrics["probs"]) <= {0.0, 1.0} and metrics["informative"] >= 1
    said = " ".join(ngvae("inspect", out).split())
    assert "one of the fewest latents that make up the declared share" in said
    images = ImageData.to_unit(fit.as_images(torch.rand(4, 3, 32, 32).numpy()).images)
    assert fit.guide.codes(images).probs.shape == (4, 4)
