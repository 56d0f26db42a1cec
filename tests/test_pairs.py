"""Every model with every guide: sites, shapes, gradients, and agreement of the ELBOs."""

import pyro
import pytest
import torch
from conftest import PAIRS
from pyro.infer import Predictive, Trace_ELBO, TraceMeanField_ELBO

from ngvae_pyro.data.images import ImageData
from ngvae_pyro.errors import UserError
from ngvae_pyro.fitted import site_terms
from ngvae_pyro.guide import load_guide
from ngvae_pyro.model import load_model
from ngvae_pyro.nn import Products
from ngvae_pyro.specs import (
    ConvSpec,
    LikelihoodSpec,
    MLPSpec,
    ResidualConvSpec,
    ResNetV2Spec,
    SeparableSpec,
)
from ngvae_pyro.training.trainer import SiteWeights

# Guides whose gradient has a part by its score, which TraceMeanField_ELBO refuses.
SCORED = ("mixture", "generalized", "score")
NETWORKS = {
    "mlp": MLPSpec(width=16, depth=2),
    "conv": ConvSpec(channels=4, width=16),
    "resnet_v2": ResNetV2Spec(channels=4, width=16, blocks=2),
    "residual_conv": ResidualConvSpec(channels=4, width=16),
    "separable": SeparableSpec(rank=4, channels=3, width=16, depth=2),
}
LATENT_SITES = {"normal_gamma": ["precision", "z"], "normal_gamma_joint": ["precision", "z"]}


def latent_sites(trace):
    return [n for n in trace.stochastic_nodes if n != "data"]


@pytest.mark.parametrize("names", PAIRS, ids="+".join)
def test_sites_and_shapes(small_pair, x, names):
    model, guide = small_pair(*names)
    expected = LATENT_SITES.get(names[0], ["z"])
    guide_trace = pyro.poutine.trace(guide).get_trace(x)
    model_trace = pyro.poutine.trace(model).get_trace(x)
    assert latent_sites(model_trace) == expected
    assert sorted(latent_sites(guide_trace)) == expected
    for trace in (guide_trace, model_trace):
        for name in expected:
            site = trace.nodes[name]
            assert site["fn"].batch_shape == (8,) and site["fn"].event_shape == (5,)
    assert model_trace.nodes["x"]["fn"].event_shape == (3, 32, 32)


@pytest.mark.parametrize("names", PAIRS, ids="+".join)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_parameter_receives_a_gradient(x, names, network):
    spec = NETWORKS[network]
    likelihood = LikelihoodSpec(learned=True)
    model = load_model(names[0], decoder=spec, likelihood=likelihood, latent_size=5)
    encoder = NETWORKS["mlp"] if network == "separable" else spec
    guide = load_guide(names[1], model, encoder=encoder)
    for part in model.decoder.modules():
        if isinstance(part, Products):
            # It begins at nothing, and passes no gradient on in the first step.
            assert not part.out.weight.any()
            torch.nn.init.normal_(part.out.weight)
    Trace_ELBO().differentiable_loss(model, guide, x).backward()
    for module in (model, guide):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("names", [names for names in PAIRS if names[1] not in SCORED])
def test_trace_elbo_agrees_with_mean_field_elbo(small_pair, x, names):
    model, guide = small_pair(*names)
    draws = {}
    # Eight draws of each image in each call.
    x = x.repeat(8, 1, 1, 1)
    for elbo in (Trace_ELBO, TraceMeanField_ELBO):
        losses = [elbo().loss(model, guide, x) / len(x) for _ in range(50)]
        values = torch.tensor(losses, dtype=torch.float64)
        draws[elbo] = values.mean(), values.std() / len(values) ** 0.5
    (a, sa), (b, sb) = draws.values()
    # The KL of a mixture is that of the draws in both.
    assert sb < sa or names != ("gaussian", "gaussian")
    assert (a - b).abs() < 4.0 * (sa**2 + sb**2).sqrt()


@pytest.mark.parametrize("names", PAIRS, ids="+".join)
def test_site_terms_add_up_to_the_elbo(small_pair, x, names):
    model, guide = small_pair(*names)
    torch.manual_seed(1)
    log_likelihood, kl = site_terms(model, guide, x)
    torch.manual_seed(1)
    with torch.no_grad():  # as site_terms, where counts are exact
        loss = Trace_ELBO().loss(model, guide, x)
    total = log_likelihood.sum() - sum(term.sum() for term in kl.values())
    assert -total.item() == pytest.approx(loss, rel=1e-5)
    assert all(term.shape == (8, 5) for term in kl.values())


def test_site_weights_scale_one_kl_term(small_pair, x):
    model, guide = small_pair()
    torch.manual_seed(1)
    log_likelihood, kl = site_terms(model, guide, x)
    torch.manual_seed(1)
    with SiteWeights({"z": 3.0, "precision": 0.0}):
        loss = Trace_ELBO().loss(model, guide, x)
    expected = -log_likelihood.sum() + 3.0 * kl["z"].sum()
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_sites_can_be_conditioned_blocked_and_replayed(small_pair, x):
    model, guide = small_pair()
    precision = torch.full((8, 5), 3.0)
    conditioned = pyro.poutine.condition(model, {"precision": precision})
    blocked = pyro.poutine.block(guide, hide=["precision"])
    trace = pyro.poutine.trace(conditioned).get_trace(x)
    assert trace.nodes["precision"]["is_observed"]
    assert latent_sites(pyro.poutine.trace(blocked).get_trace(x)) == ["z"]
    loss = Trace_ELBO().loss(conditioned, blocked, x)
    assert torch.isfinite(torch.tensor(loss))


def test_joint_prior_scales_z_by_the_precision(small_pair):
    model, _ = small_pair("normal_gamma_joint", image_shape=(1, 2, 2))
    trace = pyro.poutine.trace(model).get_trace(None, size=20_000)
    z, precision = trace.nodes["z"]["value"], trace.nodes["precision"]["value"]
    assert (z * precision.sqrt()).std().item() == pytest.approx(1.0, abs=0.02)
    independent, _ = small_pair("normal_gamma", image_shape=(1, 2, 2))
    trace = pyro.poutine.trace(independent).get_trace(None, size=20_000)
    assert trace.nodes["z"]["value"].std().item() == pytest.approx(1.0, abs=0.02)


def test_prior_and_posterior_predictive(small_pair, x):
    model, guide = small_pair()
    draws = Predictive(model, num_samples=3)(None, size=4)
    assert draws["x"].shape == (3, 4, 3, 32, 32)
    posterior = Predictive(model, guide=guide, num_samples=2, return_sites=["z"])(x)
    assert posterior["z"].shape == (2, 8, 5)


@pytest.mark.parametrize("family", ["bernoulli", "continuous_bernoulli", "gaussian"])
@pytest.mark.parametrize("image_shape", [(1, 28, 28), (3, 32, 32), (1, 64, 64), (2, 9, 13)])
def test_likelihoods_and_sizes(family, image_shape):
    first = MLPSpec(width=8, depth=1)
    kinds = [first, SeparableSpec(rank=2, width=8), ResidualConvSpec(channels=2, width=8)]
    if image_shape[1] in (28, 32, 64):
        kinds += [ConvSpec(channels=2, width=8), ResNetV2Spec(channels=2, width=8)]
    x = torch.rand(3, *image_shape)
    for spec in kinds:
        likelihood = LikelihoodSpec(family=family)
        model = load_model("normal_gamma", image_shape, decoder=spec, likelihood=likelihood)
        encoder = first if spec.kind == "separable" else spec
        guide = load_guide("relaxed", model, encoder=encoder)
        assert torch.isfinite(torch.tensor(Trace_ELBO().loss(model, guide, x)))
        assert model.decoder(torch.zeros(4, 2, 15)).shape == (4, 2, *image_shape)
        assert model.likelihood.signal(x) > 0


def test_auto_likelihood_follows_the_images():
    bits = torch.randint(0, 2, (6, 1, 8, 8), dtype=torch.uint8)
    grey = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8)
    cases = {
        "bernoulli": [bits, bits.bool(), bits * 255, bits.float()],
        "gaussian": [grey, ImageData.stored("dark", bits), bits * 254, bits.float() / 2, (1, 8, 8)],
    }
    for family, all_images in cases.items():
        for images in all_images:
            if isinstance(images, torch.Tensor):
                images = ImageData("bits", images)
            model = load_model("normal_gamma", images)
            assert model.likelihood.family == model.spec.likelihood.family == family
    data = ImageData("bits", bits * 255)
    for likelihood in ({"scale": 0.2}, {"learned": True}, {"family": "gaussian"}):
        model = load_model("normal_gamma", data, likelihood=likelihood)
        assert model.likelihood.family == "gaussian"


@pytest.mark.parametrize("spec", [ConvSpec(), ResNetV2Spec()])
def test_convolutions_refuse_other_sizes(spec):
    line = f"the {spec.kind} network takes 28x28, 32x32, 64x64 images, got 30x32"
    with pytest.raises(UserError, match=line):
        load_model("normal_gamma", (1, 30, 32), decoder=spec)


def test_burgess_network_at_64():
    model = load_model("normal_gamma", (1, 64, 64), decoder=ConvSpec())
    guide = load_guide("relaxed", model, encoder=ConvSpec())
    convs = [m for m in guide.encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size[0], c.stride[0]) for c in convs] == [(32, 4, 2)] * 4


def test_signal_of_a_gaussian_is_the_variance_in_nats(x):
    model = load_model("normal_gamma")
    assert model.likelihood.signal(x) == pytest.approx(x.var(0).sum().item() / 0.02, rel=1e-4)
