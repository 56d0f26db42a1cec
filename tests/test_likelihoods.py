"""Each likelihood against torch's and scipy's densities, its scale, its units and its signal."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from own_cases import LaplaceLikelihood
from pyro.distributions import Normal
from scipy import stats
from support import SMALL, ngvae
from torch import Tensor

import ngvae_pyro as ng
from ngvae_pyro import runs
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.distributions.pixels import GaussianPixels, OneHotPixels
from ngvae_pyro.errors import UserError
from ngvae_pyro.likelihoods import LIKELIHOODS, Likelihood, own_noise, resolution
from ngvae_pyro.model import load_model
from ngvae_pyro.report.explorer import _png
from ngvae_pyro.specs import FitSpec, LikelihoodSpec, ScheduleSpec
from ngvae_pyro.specs.run import _older
from ngvae_pyro.training.trainer import Trainer, parameter_groups, shrinking

SHAPE = (2, 3, 4)
# Values that each family may see, (5, 2, 3, 4).
FAMILIES = sorted(LIKELIHOODS)


def likelihood_of(family: str, shape: tuple[int, ...] = SHAPE, **keys) -> Likelihood:
    spec = LikelihoodSpec(family=family, **keys).resolved()
    return LIKELIHOODS[family](spec, shape)


def values_of(family: str, count: int = 5, shape: tuple[int, ...] = SHAPE) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, *shape, generator=generator)
    if family in ("poisson", "negative_binomial"):
        return (5 * x).floor()
    if family == "bernoulli":
        return x.round()
    if family == "categorical":
        return torch.nn.functional.one_hot(x.argmax(1), shape[0]).movedim(-1, 1).float()
    return x


@pytest.mark.parametrize("family", FAMILIES)
def test_the_score_and_the_information_are_those_of_the_density(family):
    likelihood = likelihood_of(family)
    # Away from 0, where float32 has too few digits for the variance of a continuous Bernoulli.
    x, output = values_of(family), 0.3 + 0.3 * torch.rand(5, *SHAPE)
    at = output.clone().requires_grad_()
    fn = likelihood(at, x)
    assert fn.batch_shape == (5,) and fn.event_shape == SHAPE
    (slope,) = torch.autograd.grad(fn.log_prob(x).sum(), at)
    score, information = likelihood.about(output, x)
    torch.testing.assert_close(score, slope)
    # The Fisher information is the variance of the score.
    draws = likelihood(output, x).expand((3000, 5)).sample()
    at = output.expand(3000, *output.shape).clone().requires_grad_()
    (scores,) = torch.autograd.grad(likelihood(at, x).log_prob(draws).sum(), at)
    expected = scores.var(0)
    ratio = information / expected
    if family == "student_t":
        assert (ratio < 1.0).all()  # a lower bound
    else:
        assert ((ratio - 1).abs() < 0.3).all() and abs(ratio.mean() - 1) < 0.03


@pytest.mark.parametrize("exposure", ["none", "total"])
def test_counts_have_the_densities_of_scipy(exposure):
    x, output = values_of("poisson").double(), torch.randn(5, *SHAPE).double() - 3.0
    times = x.sum((1, 2, 3), keepdim=True) if exposure == "total" else torch.ones(())
    mean = (times * output.exp()).numpy()
    poisson = likelihood_of("poisson", exposure=exposure)
    expected = stats.poisson(mean).logpmf(x.numpy()).sum((1, 2, 3))
    np.testing.assert_allclose(poisson(output, x).log_prob(x), expected, rtol=1e-6)
    np.testing.assert_allclose(poisson(output, x).mean, mean, rtol=1e-6)
    binomial = likelihood_of("negative_binomial", exposure=exposure).double()
    binomial.log_concentration.data = torch.randn(SHAPE).double()
    r = binomial.log_concentration.detach().exp().numpy()
    expected = stats.nbinom(r, r / (r + mean)).logpmf(x.numpy()).sum((1, 2, 3))
    fn = binomial(output, x)
    np.testing.assert_allclose(fn.log_prob(x).detach(), expected, rtol=1e-6)
    np.testing.assert_allclose(fn.mean.detach(), mean, rtol=1e-6)
    np.testing.assert_allclose(fn.variance.detach(), mean + mean**2 / r, rtol=1e-6)


def test_student_t_and_classes_have_the_densities_of_scipy_and_torch():
    x, output = values_of("student_t").double(), torch.randn(5, *SHAPE).double()
    student = likelihood_of("student_t", scale=0.2, df=3.0).double()
    expected = stats.t(3.0, output, 0.2).logpdf(x).sum((1, 2, 3))
    np.testing.assert_allclose(student(output, x).log_prob(x), expected, rtol=1e-5)
    classes = values_of("categorical")
    sequences = ng.ImageData(
        "bases", np.eye(4)[np.arange(60).reshape(6, 10) % 4].swapaxes(1, 2), layout="sequences"
    )
    model = load_model("normal_gamma", sequences, likelihood={"family": "categorical"})
    assert model.image_shape == (4, 1, 10)
    expected = -torch.nn.functional.cross_entropy(output.float(), classes, reduction="none")
    found = OneHotPixels(output.float()).log_prob(classes)
    torch.testing.assert_close(found, expected.sum((1, 2)))


def test_classes_are_drawn_as_often_as_they_are_probable():
    fn = OneHotPixels(torch.randn(2, *SHAPE)).expand((4, 2))
    draws = fn.sample((4000,))
    assert draws.shape == (4000, 4, 2, *SHAPE) and (draws.sum(-3) == 1).all()
    torch.testing.assert_close(draws.mean((0, 1)), fn.mean[0], atol=0.02, rtol=0)


@pytest.mark.parametrize("shape", [SHAPE, (2, 1, 1), (1, 1, 4)])
def test_several_standard_deviations_are_those_of_a_normal(shape):
    x, loc = torch.rand(5, *SHAPE).double(), torch.rand(3, 5, *SHAPE).double().requires_grad_()
    scale = (0.1 + torch.rand(shape)).double().requires_grad_()
    results = []
    for fn in (GaussianPixels(loc, scale), Normal(loc, scale).to_event(3)):
        log_prob = fn.log_prob(x)
        results.append([log_prob, *torch.autograd.grad(log_prob.sum(), (loc, scale))])
    for own, reference in zip(*results, strict=True):
        torch.testing.assert_close(own, reference)


# The noise of columns ------------------------------------------------------------------------


def test_the_noise_of_columns_is_what_they_do_not_share():
    generator = torch.Generator().manual_seed(0)
    noise = torch.linspace(0.1, 1.0, 40)
    z = torch.randn(1000, 3, generator=generator)
    shared = z @ torch.randn(3, 40, generator=generator)
    own = own_noise(shared + noise * torch.randn(1000, 40, generator=generator))
    assert ((own.sqrt() / noise - 1).abs() < 0.2).all()
    # As many columns as images and more; and one that never differs.
    z = torch.randn(100, 1, generator=generator)
    wide = z + 0.3 * torch.randn(100, 150, generator=generator)
    wide[:, 7] = 2.0
    own = own_noise(wide)
    assert own[7] == 0 and abs(own[own > 0].mean().sqrt() / 0.3 - 1) < 0.1


def test_a_scale_of_each_column_keeps_what_is_shared_for_all():
    generator = torch.Generator().manual_seed(0)
    noise = torch.tensor([0.1] * 30 + [0.5] * 10)
    z = torch.randn(1000, 1, generator=generator)
    x = (z + noise * torch.randn(1000, 40, generator=generator)).view(-1, 1, 1, 40)
    likelihood = likelihood_of("gaussian", (1, 1, 40), per="value")
    scale = likelihood.rescale(x).flatten()
    # What is not drawn yet, variance 1, is in the scale of each; so all are as they would be if one
    # scale were for all, but for their own noise.
    torch.testing.assert_close(scale.square().mean().float(), x.square().mean())
    assert ((scale - (1 + noise.square()).sqrt()).abs() < 0.05).all()
    drawn = likelihood.rescale(x - z.view(-1, 1, 1, 1)).flatten()
    assert ((drawn / noise - 1).abs() < 0.1).all()


def test_a_given_scale_is_the_finest_of_each_column():
    x = torch.cat([0.01 * torch.randn(500, 20), torch.randn(500, 20)], 1).view(-1, 1, 1, 40)
    likelihood = likelihood_of("gaussian", (1, 1, 40), per="value", scale=0.1)
    scale = likelihood.rescale(x).flatten()
    assert (scale[:20] == 0.1).all() and ((scale[20:] - 1).abs() < 0.15).all()
    assert likelihood_of("gaussian", scale=0.1).rescale(torch.randn(5, *SHAPE)) is None
    assert likelihood_of("gaussian", learned=True).rescale(torch.randn(5, *SHAPE)) is None


def test_a_scale_of_each_channel_and_a_robust_one():
    x = torch.tensor([0.1, 0.4]).view(2, 1, 1) * torch.randn(4000, *SHAPE)
    scale = likelihood_of("gaussian", per="channel").rescale(x)
    assert scale.shape == (2, 1, 1)
    torch.testing.assert_close(scale.flatten().float(), torch.tensor([0.1, 0.4]), rtol=0.02, atol=0)
    student = likelihood_of("student_t", df=4.0)
    # The floor of nothing known.
    assert student.rescale(torch.full((9, *SHAPE), 1e-3)) == pytest.approx(0.1)
    t = 0.3 * torch.from_numpy(stats.t(4.0).rvs((4000, *SHAPE), random_state=0))
    t[::50] *= 1000.0
    assert student.rescale(t).item() == pytest.approx(0.3, rel=0.12)


def test_weights_with_one_scale_are_read_as_that_of_each_value():
    old, new = likelihood_of("gaussian", scale=0.3), likelihood_of("gaussian", per="value")
    new.load_state_dict(old.state_dict())
    assert new.log_scale.shape == SHAPE and new.scale == pytest.approx(0.3)


# Signals, units and checks -------------------------------------------------------------------


def test_signals_are_the_gain_over_the_mean_image():
    x = values_of("poisson", 400)
    mean = x.mean(0)
    gain = stats.poisson(x.clamp_min(1e-8)).logpmf(x) - stats.poisson(mean).logpmf(x)
    found = likelihood_of("poisson").signal(x)
    assert found == pytest.approx(gain.sum((1, 2, 3)).mean(), rel=1e-4)
    # Nothing but the depth varies: nothing to tell, if the exposure is the total.
    deep = torch.arange(1.0, 9.0).view(-1, 1, 1, 1) * (1.0 + torch.arange(24.0).view(SHAPE))
    assert likelihood_of("poisson", exposure="total").signal(deep) == pytest.approx(0, abs=1e-3)
    assert likelihood_of("poisson").signal(deep) > 50
    classes = values_of("categorical", 4000)
    assert likelihood_of("categorical").signal(classes) == pytest.approx(12 * np.log(2), rel=1e-2)
    grey = values_of("student_t", 400)
    assert likelihood_of("student_t", scale=0.1).signal(grey) > 0


def test_networks_have_counts_in_logarithms():
    counts = np.random.default_rng(0).poisson([[3.0, 0.2, 50.0, 0.0]], (300, 4))
    model = load_model("normal_gamma", counts, likelihood={"family": "poisson"}, decoder=SMALL)
    guide = ng.load_guide("relaxed", model, encoder=SMALL)
    rates = model.decoder.loc.flatten().exp()
    np.testing.assert_allclose(rates, (counts.sum(0) + 0.5) / 300, rtol=1e-5)
    assert guide.encoder.of_counts
    np.testing.assert_allclose(
        guide.encoder.loc.flatten(), np.log1p(counts).mean(0), rtol=1e-5, atol=1e-7
    )


def test_depth_is_not_encoded_where_the_exposure_is_the_total():
    counts = np.random.default_rng(0).poisson(20.0, (50, 6))
    model = load_model("normal_gamma", counts, likelihood={"family": "negative_binomial"})
    assert model.likelihood.typical == np.median(counts.sum(1))
    output = torch.zeros(50, 1, 1, 6)
    x = torch.from_numpy(counts).float().view(50, 1, 1, 6)
    torch.testing.assert_close(
        model.likelihood(output, x).mean, x.sum(-1, keepdim=True).expand_as(x)
    )


@pytest.mark.parametrize(
    ("family", "images", "line"),
    [
        ("poisson", np.random.rand(5, 3), "expected counts, whole numbers from 0 on, got 0."),
        ("poisson", -np.ones((5, 3)), "expected counts, whole numbers from 0 on, got -1"),
        ("poisson", np.full((5, 3), np.nan), "expected finite numbers, got NaN or inf"),
        ("poisson", np.full((5, 3), "a"), "expected numbers, got dtype"),
        ("poisson", ImageData("own", np.random.rand(5, 3)), "own: expected counts, whole numbers"),
        ("bernoulli", np.random.rand(5, 3), "expected gaussian for the vectors of"),
        ("categorical", np.random.rand(5, 3, 8, 8), "expected counts, whole numbers from 0"),
        ("categorical", np.ones((5, 3, 8, 8), bool), "to have a channel for each class"),
    ],
)
def test_data_of_which_a_likelihood_does_not_speak_are_refused(family, images, line):
    with pytest.raises(UserError) as caught:
        load_model("normal_gamma", images, likelihood={"family": family})
    assert line in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"family": "poisson", "scale": 0.1}, "scale belongs to the gaussian or student_t"),
        ({"family": "bernoulli", "exposure": "total"}, "exposure belongs to the poisson or"),
        ({"family": "student_t", "per": "value"}, "per belongs to the gaussian likelihood"),
        ({"family": "gaussian", "df": 3.0}, "df belongs to the student_t likelihood"),
        ({"family": "own"}, "expected a factory, package.module:Name, got none"),
    ],
)
def test_keys_of_other_families_are_refused(keys, line):
    with pytest.raises(ValueError, match=line):
        LikelihoodSpec(**keys)


def test_specs_are_read_back_as_they_were():
    for family in FAMILIES:
        spec = LikelihoodSpec(family=family).resolved(columns=150)
        again = LikelihoodSpec(**spec.model_dump())
        assert again == spec and again.resolved() == spec
    assert LikelihoodSpec().resolved(columns=99).per == "all"
    assert LikelihoodSpec().resolved(columns=100).per == "value"
    assert LikelihoodSpec(per="channel").resolved(binary=True).family == "gaussian"
    declared = LikelihoodSpec()
    for other in (declared.resolved(binary=True), declared.resolved(columns=150)):
        assert declared.like(other) == other


# Whole trainings -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_trains_decodes_and_is_measured(family):
    shape = (2, 8, 8)
    x = values_of(family, 80, shape)
    data = ImageData.counts("some", x) if "poisson" in family or "binom" in family else x
    model = load_model("normal_gamma", data, likelihood={"family": family}, decoder=SMALL)
    guide = ng.load_guide("relaxed", model, encoder=SMALL)
    fit = ng.fit(model, guide, data, steps=30, progress=False)
    found = ng.evaluate(fit, data)
    assert np.isfinite(found["elbo"]) and found["reconstruction_mse"] >= 0
    again = fit.reconstruct(x)
    assert again.shape == x.shape and torch.isfinite(again).all()
    assert fit.sample(3).shape == (3, *shape)
    assert np.isfinite(ng.log_likelihood(fit, data, draws=25).values).all()


def test_resolution_is_that_of_images():
    assert resolution(ImageData("grey", torch.rand(50, 1, 4, 4))) > 0


# Counts from files ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int16", "uint8", "float32", "bool"])
@pytest.mark.parametrize("shape", [(40, 5), (40, 6, 6)])
def test_counts_are_found_again_in_whatever_was_made_of_them(kind, shape):
    random = np.random.default_rng(0)
    counts = random.poisson(0.4 if kind == "bool" else 30.0, shape).clip(
        0, 1 if kind == "bool" else 255
    )
    data = ng.from_numpy(counts.astype(kind), np.arange(40.0), ["depth"])
    assert not data.form.raw
    again = data.as_counts()
    assert again.form.raw and again.as_counts() is again
    np.testing.assert_array_equal(again.form.arrays(again.images).numpy(), counts)
    assert again.factor_names == ("depth",) and again.form.layout == data.form.layout


@pytest.mark.parametrize("values", [np.random.rand(9, 4), np.full((9, 4), 2.0**21), -np.eye(9)])
def test_what_is_no_count_is_refused(values):
    with pytest.raises(UserError, match="expected counts, whole numbers from 0"):
        ng.from_numpy(values).as_counts()


@pytest.mark.slow
def test_a_run_on_counts_is_trained_inspected_measured_and_scored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counts = np.random.default_rng(0).poisson([[3.0, 0.2, 50.0, 9.0]], (90, 4))
    np.save("cells.npy", counts)
    words = [
        "--steps",
        "4",
        "--latents",
        "3",
        "--set",
        "fit.batch_size=8",
        "--device",
        "cpu",
        "--out",
        "r",
    ]
    words += ["--set", "model.likelihood.family=negative_binomial"]
    ngvae("train", "normal_gamma", "relaxed", "--data", "cells.npy", *words)
    ngvae("inspect", "r")
    ngvae("score", "r", "--data", "cells.npy", "--out", "score.json")
    fit, _ = ng.load_run("r")
    assert fit.form.raw and fit.reconstruct(counts).shape == counts.shape
    np.save("cells.npy", counts + 0.5)
    words[words.index("r")] = "new"
    assert "expected counts" in ngvae(
        "train", "normal_gamma", "relaxed", "--data", "cells.npy", *words, code=2
    )


# One's own -----------------------------------------------------------------------------------


def laplace(output):
    return dist.Laplace(output, 0.1)


@pytest.mark.parametrize("own", [laplace, LaplaceLikelihood])
def test_a_likelihood_of_ones_own_is_trained_and_measured(own):
    data = ImageData("some", torch.rand(60, 1, 8, 8))
    model = load_model("normal_gamma", data, latent_size=3, likelihood=own, decoder=SMALL)
    guide = ng.load_guide("relaxed", model, encoder=SMALL)
    fit = ng.fit(model, guide, data, steps=20, progress=False)
    x = ImageData.to_unit(data.images)
    expected = dist.Laplace(model.decoder(torch.zeros(60, 3)), 0.1).log_prob(x).sum((1, 2, 3))
    if own is laplace:
        found = model.likelihood(model.decoder(torch.zeros(60, 3)), x).log_prob(x)
        torch.testing.assert_close(found, expected)
    else:
        assert model.likelihood.log_scale != np.log(np.float32(0.1))
    assert np.isfinite(ng.evaluate(fit, data)["elbo"])
    assert np.isfinite(ng.log_likelihood(fit, data, draws=25).values).all()
    vae = ng.NGVAE(3, likelihood=own, steps=3, random_state=0).fit(data)
    assert vae.model_.likelihood.family == "own"


def test_a_named_likelihood_is_saved_and_read_again(tmp_path):
    data = ImageData("some", torch.rand(40, 1, 8, 8))
    likelihood = {"family": "own", "factory": "own_cases:LaplaceLikelihood"}
    likelihood["options"] = {"scale": 0.3}
    model = load_model("normal_gamma", data, likelihood=likelihood, decoder=SMALL)
    assert model.likelihood.log_scale == np.log(np.float32(0.3))
    guide = ng.load_guide("relaxed", model, encoder=SMALL)
    fit = ng.fit(model, guide, data, steps=3, progress=False)
    fit.save(tmp_path / "r", data)
    again, _ = ng.load_run(tmp_path / "r")
    assert torch.equal(again.model.likelihood.log_scale, fit.model.likelihood.log_scale)
    text = (tmp_path / "r" / "config.toml").read_text()
    assert 'factory = "own_cases:LaplaceLikelihood"' in text
    with pytest.raises(UserError, match="save_run: likelihood: expected a class"):
        model = load_model("normal_gamma", data, likelihood=laplace, decoder=SMALL)
        guide = ng.load_guide("relaxed", model, encoder=SMALL)
        ng.fit(model, guide, data, steps=1, progress=False).save(tmp_path / "f", data)
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    ("own", "line"),
    [
        ("own_cases:Shapeless", r"expected a distribution of batch shape \(2,\) and event shape"),
        ("own_cases:Meanless", "with a mean and a variance"),
        ("own_cases:Wordless", "Can't instantiate abstract class Wordless"),
        ("own_cases:NoLikelihood", "expected a class of ngvae_pyro.likelihoods.Likelihood, or a"),
        ("own_cases:Nothing", "expected a class of torch.nn.Module as own_cases:Nothing"),
        ("no_such_module:Nothing", "cannot import no_such_module"),
        ("nonsense", "expected package.module:Name"),
        (None, "expected package.module:Name, or a class or function"),
        (3, "expected package.module:Name, or a class or function"),
        (lambda output: output, "AttributeError"),
        (lambda: None, "TypeError"),
        (lambda output: {}["scale"], "KeyError: 'scale'"),
        (lambda output: [output][1], "IndexError: list index out of range"),
        (lambda output: output / (1 / 0), "ZeroDivisionError: division by zero"),
        ("own_cases:Unmade", "ValueError: expected two classes"),
        (LaplaceLikelihood, None),
    ],
)
def test_what_is_no_likelihood_is_one_line(own, line):
    changes = {"likelihood": {"family": "own", "factory": own}}
    if line is None:
        changes["likelihood"]["options"] = {"nothing": 1}
        line = "TypeError: .*nothing"
    with pytest.raises(UserError, match=line) as caught:
        load_model("normal_gamma", (1, 4, 4), decoder=SMALL, **changes)
    assert "\n" not in str(caught.value)


# Where parts meet ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["poisson", "negative_binomial"])
def test_images_without_counts_train(family):
    counts = np.random.default_rng(0).poisson(5.0, (60, 6))
    counts[:3] = 0
    likelihood = {"family": family, "exposure": "total"}
    model = load_model("normal_gamma", counts, likelihood=likelihood, decoder=SMALL)
    guide = ng.load_guide("relaxed", model, encoder=SMALL)
    fit = ng.fit(model, guide, counts, steps=10, progress=False)
    assert np.isfinite(ng.evaluate(fit, counts)["elbo"])
    nothing = load_model("normal_gamma", 0 * counts, likelihood=likelihood, decoder=SMALL)
    assert nothing.likelihood.typical == 1.0


def test_what_is_no_count_is_no_validation_and_has_no_codes():
    random = np.random.default_rng(0)
    counts = random.poisson(5.0, (60, 6))
    model = load_model("normal_gamma", counts, likelihood={"family": "poisson"}, decoder=SMALL)
    guide = ng.load_guide("relaxed", model, encoder=SMALL)
    with pytest.raises(UserError, match="expected counts, whole numbers from 0 on"):
        ng.fit(model, guide, counts, steps=3, progress=False, validation=random.random((9, 6)))
    fit = ng.fit(model, guide, counts, steps=3, progress=False)
    for values in (counts + 0.5, -1.0 - counts):
        with pytest.raises(UserError, match="expected counts, whole numbers from 0 on"):
            fit.encode(values)


def test_standardised_columns_that_are_whole_are_no_counts():
    data = ng.from_numpy(np.tile([[1.0, -1.0], [-1.0, 1.0]], (10, 1)))
    assert data.form.raw  # by chance: mean 0 and standard deviation 1
    with pytest.raises(UserError, match="expected counts"):
        data.as_counts()


def test_one_channel_has_one_scale_of_its_own():
    data = ImageData("grey", torch.rand(40, 1, 8, 8))
    likelihood = {"per": "channel"}
    model = load_model("normal_gamma", data, likelihood=likelihood, decoder=SMALL)
    fn = model.likelihood(torch.zeros(5, 1, 8, 8))
    assert fn.log_prob(torch.rand(5, 1, 8, 8)).shape == (5,)


@pytest.mark.parametrize("channels", [2, 5])
def test_images_of_any_number_of_channels_are_drawn(channels):
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(channels, (40, 8, 8), generator=generator)
    x = torch.nn.functional.one_hot(classes, channels).movedim(-1, 1).bool()
    data = ImageData("classes", x)
    likelihood = {"family": "categorical"}
    model = load_model("normal_gamma", data, likelihood=likelihood, decoder=SMALL)
    guide = ng.load_guide("relaxed", model, encoder=SMALL)
    fit = ng.fit(model, guide, data, steps=3, progress=False)
    for draw in (fit.plot.reconstructions, fit.plot.traversals):
        assert draw(data).get_images()[0].get_array().shape[-1] == 3
    assert _png(torch.rand(4, channels, 8, 8)).startswith("data:image/png")


def test_pictures_of_counts_are_not_all_white():
    counts = np.random.default_rng(0).poisson(50.0, (40, 8, 8))
    model = load_model("normal_gamma", counts, likelihood={"family": "poisson"}, decoder=SMALL)
    guide = ng.load_guide("relaxed", model, encoder=SMALL)
    fit = ng.fit(model, guide, counts, steps=3, progress=False)
    for draw in (fit.plot.reconstructions, fit.plot.traversals):
        picture = np.asarray(draw(counts).get_images()[0].get_array())
        assert 0.2 < np.median(picture) < 0.95


@pytest.mark.slow
def test_the_curve_of_counts_keeps_what_shares_a_scale(tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 110))
    spec = ng.ModelSpec(likelihood=LikelihoodSpec(per="all"), latent_size=2, decoder=SMALL)
    ng.count(x, out=tmp_path / "c", model=spec, factors=[2.0], steps=2)
    for folder in (tmp_path / "c").iterdir():
        if folder.is_dir():
            assert runs.load_spec(folder).model.likelihood.per == "all"


def test_trainings_of_before_there_was_a_choice_have_one_scale():
    data = ng.from_numpy(np.random.default_rng(0).normal(size=(60, 110)))

    def identity(**likelihood):
        model = load_model("normal_gamma", data, likelihood=likelihood, decoder=SMALL)
        guide = ng.load_guide("relaxed", model, encoder=SMALL)
        spec = FitSpec(steps=2, device="cpu")
        trained = Trainer(model, guide, data, spec, ScheduleSpec()).identity["model"]
        # Nor were there volumes, or missing values.
        assert "depth" not in trained and "missing" not in trained["likelihood"]
        return trained["likelihood"]

    assert "per" not in identity(per="all") and identity()["per"] == "value"
    values = {"model": {"likelihood": {"family": "gaussian"}}}
    assert _older(values)["model"]["likelihood"]["per"] == "all"


def test_adamw_leaves_the_likelihood_alone():
    model = load_model("normal_gamma", (1, 4, 4), likelihood={"family": "negative_binomial"})
    own = list(model.likelihood.parameters())
    groups = shrinking(parameter_groups(list(model.parameters()), 0.01), 0.1, own)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert [decay[id(p)] for p in own] == [0.0] and 0.1 in decay.values()
    assert len(decay) == len(list(model.parameters()))


def test_a_function_is_not_recorded():
    data = ImageData("some", torch.rand(40, 1, 8, 8))
    for own, steady in ((laplace, False), (LaplaceLikelihood, True)):
        model = load_model("normal_gamma", data, likelihood=own, decoder=SMALL)
        guide = ng.load_guide("relaxed", model, encoder=SMALL)
        spec = FitSpec(steps=2, device="cpu")
        assert Trainer(model, guide, data, spec, ScheduleSpec()).steady is steady


def test_counts_of_ones_own_are_kept_as_they_are():
    counts = np.random.default_rng(0).poisson(5.0, (40, 6))
    own = {"family": "own", "factory": "own_cases:OwnCounts"}
    with pytest.raises(UserError, match="whole_numbers: expected true"):
        load_model("normal_gamma", counts, likelihood=own, decoder=SMALL)
    own["whole_numbers"] = True
    model = load_model("normal_gamma", counts, likelihood=own, decoder=SMALL)
    assert ng.load_guide("relaxed", model, encoder=SMALL).encoder.of_counts
