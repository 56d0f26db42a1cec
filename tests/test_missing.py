"""NaN as missing: nothing is said of what is not there, and everything of the rest."""

import math
import tomllib

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from support import SMALL, cut, ngvae
from torch import nn

import ngvae_pyro as ng
from ngvae_pyro.data import as_images
from ngvae_pyro.distributions.pixels import ObservedPixels
from ngvae_pyro.errors import UserError
from ngvae_pyro.interrupts import Interrupted
from ngvae_pyro.likelihoods import (
    LIKELIHOODS,
    Likelihood,
    load_likelihood,
    own_noise,
    resolution,
    units,
)
from ngvae_pyro.report import plots
from ngvae_pyro.runs import counting
from ngvae_pyro.specs import LikelihoodSpec

RNG = np.random.default_rng(0)
# Two factors in eight columns of different units.
CODES = RNG.normal(size=(300, 2))
WHOLE = CODES @ RNG.normal(size=(2, 8)) + 0.1 * RNG.normal(size=(300, 8))
WHOLE = WHOLE * np.logspace(-2, 2, 8) + 5.0
ABSENT = RNG.random(WHOLE.shape) < 0.3
TABLE = np.where(ABSENT, np.nan, WHOLE)
COUNTS = np.where(ABSENT, np.nan, RNG.poisson(5.0 * np.exp(0.3 * CODES[:, :1]), WHOLE.shape))


def pair(data, **changes):
    torch.manual_seed(0)
    model = ng.load_model("normal_gamma", data, latent_size=3, decoder=SMALL, **changes)
    return model, ng.load_guide("relaxed", model, encoder=SMALL)


# Reading ----------------------------------------------------------------------------------------


def test_the_moments_are_those_of_what_is_there():
    data = ng.ImageData("x", TABLE, missing=True)
    assert data.form.missing and np.array_equal(data.images[:, 0, 0].isnan(), ABSENT)
    assert np.allclose(data.form.loc, np.nanmean(TABLE, 0))
    assert np.allclose(data.form.scale, np.nanstd(TABLE, 0))
    back = data.form.arrays(data.images).numpy()
    assert np.allclose(back, TABLE, equal_nan=True, rtol=1e-5)
    assert data.varies and not data.binary and data.subset([3]).form.missing
    same = np.where(ABSENT, np.nan, 7.0)
    assert not ng.ImageData("x", same, missing=True).varies


def test_images_keep_their_range_and_sequences_their_channels():
    pictures = np.where(RNG.random((20, 6, 7)) < 0.3, np.nan, RNG.random((20, 6, 7)))
    data = ng.ImageData("x", pictures, missing=True)
    assert data.form.unit and np.array_equal(data.images[:, 0], pictures.astype("f4"), True)
    ranged = as_images(100 * pictures, missing=True)
    assert ranged.form.loc == 100 * np.nanmin(pictures)
    assert ranged.images.nan_to_num().max() == 1
    curves = as_images(pictures, layout="sequences", missing=True)
    assert curves.form.loc.shape == (6, 1)
    assert np.allclose(curves.form.loc[:, 0], np.nanmean(pictures, (0, 2)))
    white = ng.ImageData("x", np.where(pictures > 0.5, 1.0, 0.0 * pictures), missing=True)
    assert white.binary


def test_files_are_read_as_arrays_are(tmp_path):
    import h5py

    expected = ng.from_numpy(TABLE, missing=True)
    np.save(tmp_path / "x.npy", TABLE)
    np.savez(tmp_path / "x.npz", x=TABLE)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = TABLE
    frame = pd.DataFrame(TABLE, columns=list("abcdefgh"))
    frame.to_csv(tmp_path / "x.csv", index=False)
    for name in ("x.npy", "x.npz", "x.h5", "x.csv"):
        data = ng.load_data(tmp_path / name, missing=True)
        assert torch.equal(data.images.nan_to_num(), expected.images.nan_to_num()), name
        assert data.form.missing and data.form.same_units(expected.form)
    found = as_images(frame.astype("Float64"), missing=True)
    assert np.allclose(found.images, expected.images, equal_nan=True)
    grey = np.where(RNG.random((9, 4, 5)) < 0.2, np.nan, RNG.random((9, 4, 5))).astype("f4")
    np.save(tmp_path / "grey.npy", grey)
    data = ng.load_data(tmp_path / "grey.npy", missing=True)
    assert np.array_equal(data.images[:, 0], grey, equal_nan=True)


def test_counts_are_kept():
    data = as_images(COUNTS, counts=True, missing=True)
    assert data.form.raw and data.form.missing
    assert np.array_equal(data.images[:, 0, 0], COUNTS, equal_nan=True)
    standardised = as_images(COUNTS, missing=True).as_counts()
    assert torch.equal(standardised.images.nan_to_num(), data.images.nan_to_num())
    assert standardised.form.missing
    with pytest.raises(UserError, match="expected counts, whole numbers from 0 on, got 0.5"):
        ng.ImageData.counts("x", HALF, missing=True)


HALF = np.array([[0.5, np.nan], [1.0, 2.0]])
ROW, COLUMN = TABLE.copy(), TABLE.copy()
ROW[3], COLUMN[:, 2] = np.nan, np.nan
HINT = "data.missing = true, in Python missing=True, takes NaN as missing$"


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: as_images(TABLE), f"images: .* got NaN or inf; {HINT}"),
        (lambda: ng.ImageData("x", RNG.random((9, 4, 4)) * np.nan), f"got nan to nan; {HINT}"),
        (lambda: as_images(pd.DataFrame(TABLE)), f"column '0': expected a value .*; {HINT}"),
        (
            lambda: as_images(TABLE * np.inf, missing=True),
            "expected finite numbers, got NaN or inf$",
        ),
        (
            lambda: as_images(COLUMN, missing=True),
            r"in at least one of 300 rows, the value at \[2\] is missing in all",
        ),
        (
            lambda: as_images(pd.DataFrame(COLUMN, columns=list("abcdefgh")), missing=True),
            "in at least one of 300 rows, column 'c' is missing in all",
        ),
        (
            lambda: as_images(ROW, missing=True),
            "images: expected a value in each row, all of row 3",
        ),
        (
            lambda: ng.ImageData("x", np.full((4, 3, 3), np.nan), missing=True),
            r"the value at \[0, 0\] is missing in all",
        ),
        (lambda: ng.load_data("sprites", missing=True), "sprites: missing: only arrays"),
        (
            lambda: as_images(as_images(WHOLE), missing=True),
            "data 'images': missing: expected an array, got ImageData",
        ),
        (
            lambda: ng.ImageData(
                "x", TABLE, form=as_images(TABLE, missing=True).form, missing=True
            ),
            "x: expected a form or missing, got both",
        ),
        (
            lambda: ng.fit(*pair(as_images(WHOLE)), as_images(TABLE, missing=True), steps=1),
            "model.likelihood.missing: expected true for 'images'",
        ),
        (
            lambda: ng.load_model(
                "normal_gamma",
                as_images(TABLE, missing=True),
                likelihood=lambda output: dist.Laplace(output, 0.1),
            ),
            "model.likelihood.factory: .*: expected a class with handles_missing = True",
        ),
        (
            lambda: ng.fit(
                *pair(PICTURES), PICTURES, steps=1, adversarial={"weight": 1.0}, progress=False
            ),
            "fit.adversarial: expected images of which no value may be missing",
        ),
        (
            lambda: ng.NGVAE(2, missing=1).fit(TABLE),
            "NGVAE: missing: expected true or false, got 1",
        ),
        (lambda: ng.NGVAE(2).fit(PICTURES.images[:, 0]), "got NaN; missing=True takes it as"),
    ],
)
def test_what_cannot_be_read_is_one_line(call, match):
    with pytest.raises(UserError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


GREY = RNG.random((30, 16, 16))
PICTURES = ng.ImageData("x", np.where(GREY < 0.2, np.nan, GREY), missing=True)


# Likelihoods ------------------------------------------------------------------------------------

SHAPE = (3, 2, 4)
VALUES = {"poisson": 3.0, "negative_binomial": 5.0, "gaussian": 0.4, "student_t": 0.4}
SPECS = [
    *({"family": name} for name in LIKELIHOODS if name not in ("categorical", "gaussian")),
    *({"family": "gaussian", "per": per} for per in ("all", "channel", "value")),
    {"family": "poisson", "exposure": "total"},
]


def images_of(family, rows=5):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(rows, *SHAPE, generator=generator)
    if family == "bernoulli":
        x = x.round()
    if family in ("poisson", "negative_binomial"):
        x = (6 * x).floor()
    if family == "categorical":
        classes = torch.randint(3, (rows, 2, 4), generator=generator)
        x = nn.functional.one_hot(classes, 3).movedim(-1, 1).float()
    absent = torch.rand(x.shape, generator=generator) < 0.4
    if family == "categorical":
        absent = absent[:, :1].expand_as(x)
    return x, absent


def value_by_value(likelihood, output, x):
    """Of each value log p(x | z), with the others as they are."""
    fn = likelihood(output, x)
    return fn.fn.base_dist.log_prob(x.nan_to_num())


@pytest.mark.parametrize("keys", SPECS, ids=lambda keys: "-".join(keys.values()))
def test_the_density_is_that_of_what_is_there(keys):
    x, absent = images_of(keys["family"])
    likelihood = load_likelihood(LikelihoodSpec(**keys, missing=True), SHAPE)
    output = torch.randn(5, *SHAPE, requires_grad=True)
    seen = x.masked_fill(absent, math.nan)
    fn = likelihood(output, seen)
    assert isinstance(fn, ObservedPixels) and fn.batch_shape == (5,) and fn.event_dim == 3
    found = fn.log_prob(seen)
    each = value_by_value(likelihood, output, seen)
    expected = torch.stack([row[~gone].sum() for row, gone in zip(each, absent, strict=True)])
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), output)
    assert gradient.isfinite().all() and (gradient[absent] == 0).all()
    assert (gradient[~absent] != 0).float().mean() > 0.9
    score, information = likelihood.about(output, seen)
    assert (score[absent] == 0).all() and (information[absent] == 0).all()
    torch.testing.assert_close(score, gradient)
    assert information.isfinite().all() and math.isfinite(likelihood.signal(seen))
    # Where nothing is missing, it is the other likelihood but for rounding.
    complete = load_likelihood(LikelihoodSpec(**keys), SHAPE)
    if "total" not in keys.values() and keys["family"] != "negative_binomial":
        torch.testing.assert_close(
            likelihood(output, x).log_prob(x), complete(output, x).log_prob(x)
        )
        torch.testing.assert_close(likelihood.signal(x), complete.signal(x))
    drawn = fn.expand((2, 5)).sample()
    assert drawn.shape == (2, 5, *SHAPE) and drawn.isfinite().all()


def test_a_class_is_missing_with_all_its_channels():
    x, absent = images_of("categorical")
    likelihood = load_likelihood(LikelihoodSpec(family="categorical", missing=True), SHAPE)
    output = torch.randn(5, *SHAPE)
    found = likelihood(output).log_prob(x.masked_fill(absent, math.nan))
    each = output.log_softmax(1) * x * ~absent
    torch.testing.assert_close(found, each.sum((1, 2, 3)))
    data = ng.ImageData.counts("x", x.masked_fill(absent, math.nan).numpy(), missing=True)
    ng.load_model("normal_gamma", data, likelihood={"family": "categorical"})
    broken = x.masked_fill(absent, math.nan)
    broken[0, 0, 0, 0] = math.nan
    broken[0, 1:, 0, 0] = torch.tensor([1.0, 0.0])
    with pytest.raises(UserError, match="or all are missing"):
        data = ng.ImageData.counts("x", broken.numpy(), missing=True)
        ng.load_model("normal_gamma", data, likelihood={"family": "categorical"})


def test_the_exposure_does_not_depend_on_which_counts_are_missing():
    rates = np.array([1.0, 10.0, 100.0, 1000.0])
    depth = RNG.gamma(20.0, 0.05, (500, 1))
    counts = RNG.poisson(depth * rates).astype(float)
    gone = RNG.random(counts.shape) < 0.4
    gone[gone.all(1), 3] = False
    seen = ng.ImageData.counts("x", np.where(gone, np.nan, counts), missing=True)
    spec = LikelihoodSpec(family="negative_binomial", missing=True)
    likelihood = load_likelihood(spec, seen.image_shape)
    likelihood.learn(seen)
    assert torch.allclose(
        likelihood.shares.flatten(), torch.tensor(rates / rates.sum()).float(), 0.1
    )
    found = likelihood.exposure(seen.images).flatten().numpy()
    # Rows of which the largest counts are there tell it best.
    told = ~gone[:, 3]
    assert np.median(np.abs(found / (depth[:, 0] * rates.sum()) - 1)[told]) < 0.05
    assert np.corrcoef(found, depth[:, 0])[0, 1] > 0.6
    assert likelihood.typical.item() == pytest.approx(1111, rel=0.1)
    _, (loc, _) = likelihood.units(seen)
    assert np.allclose(loc.flatten(), np.log(rates / rates.sum()), atol=0.1)


def test_the_units_are_those_of_what_is_there():
    x = RNG.random((400, 6, 5))
    gone = RNG.random(x.shape) < 0.3
    data = ng.ImageData("x", np.where(gone, np.nan, x), missing=True)
    loc, unit = units(data)
    mean = np.nanmean(np.where(gone, np.nan, x), 0)
    assert np.allclose(loc[0], mean, atol=1e-6)
    squares = np.where(gone, 0.0, (x - mean) ** 2).sum() / 400
    assert resolution(data) == pytest.approx(math.sqrt(squares / 10400), rel=1e-5)
    assert unit == pytest.approx(10 * resolution(data))


def test_the_noise_of_a_column_is_found_where_values_are_missing():
    shared = RNG.normal(size=(3000, 1)) * np.linspace(0.5, 1.5, 10)
    noise = np.linspace(0.1, 0.8, 10)
    residuals = torch.tensor(shared + noise * RNG.normal(size=(3000, 10)))
    gone = torch.from_numpy(RNG.random((3000, 10)) < 0.3)
    found = own_noise(residuals.masked_fill(gone, math.nan)).sqrt()
    assert np.allclose(found, noise, atol=0.04)


class Laplace(Likelihood):
    """Values that may be missing, of one's own."""

    in_units = True
    handles_missing = True

    def forward(self, output, x=None):
        return self.observed(dist.Laplace(output, 0.1).to_event(3))


def test_a_likelihood_of_ones_own_may_say_that_it_can():
    data = as_images(TABLE, missing=True)
    model, guide = pair(data, likelihood=Laplace)
    fit = ng.fit(model, guide, data, steps=3, progress=False)
    assert math.isfinite(ng.evaluate(fit, data)["elbo"])


# Fits -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    data = as_images(TABLE, missing=True)
    train, held_out = data.split(60, 0)
    torch.manual_seed(0)
    fit = ng.fit(*pair(train), train, steps=200, progress=False, monitor_every=100)
    return fit, held_out


def test_the_encoder_is_told_what_is_missing_and_has_the_mean_there(trained):
    fit, held_out = trained
    encoder, x = fit.guide.encoder, held_out.images
    seen = []
    with encoder.trunk.register_forward_pre_hook(lambda module, inputs: seen.append(*inputs)):
        fit.guide.codes(x)
    values, absent = seen[0].chunk(2, 1)
    assert torch.equal(absent, x.isnan().float())
    assert torch.equal(values, ((x - encoder.loc) / encoder.unit).nan_to_num())


def test_missing_values_are_told_by_the_others(trained):
    fit, _ = trained
    made = fit.impute(TABLE)
    assert np.array_equal(made[~ABSENT], WHOLE[~ABSENT])
    scale = np.nanstd(TABLE, 0)
    error = np.square((made - WHOLE) / scale)[ABSENT].mean()
    mean = np.square((np.nanmean(TABLE, 0) - WHOLE) / scale)[ABSENT].mean()
    assert error < 0.5 * mean
    again = fit.impute(as_images(TABLE, form=fit.form))
    assert np.allclose(again, made, rtol=1e-4)
    assert isinstance(fit.impute(torch.from_numpy(TABLE[:3])), torch.Tensor)


def test_numbers_are_of_what_is_there(trained):
    fit, held_out = trained
    metrics = ng.evaluate(fit, held_out)
    assert math.isfinite(metrics["elbo"]) and all(map(math.isfinite, metrics["earned"]))
    x = held_out.images
    error = (x - fit.means(fit.guide.codes(x).loc, held_out)).square()
    assert metrics["reconstruction_mse"] == pytest.approx(error.nanmean().item(), rel=1e-5)
    found = ng.log_likelihood(fit, held_out)
    assert np.isfinite(found.values).all() and found.values.mean() > metrics["elbo"] - 1.0
    # A value that is not there, with any other in its place, changes nothing.
    model = fit.model
    z = torch.randn(len(x), 3)
    fn = model.likelihood(model.decoder(z), x)
    each = fn.fn.base_dist.log_prob(x.nan_to_num()).masked_fill(x.isnan(), 0.0)
    torch.testing.assert_close(fn.log_prob(x), each.sum((1, 2, 3)))
    known = ng.scores.reference(fit, held_out)
    for values in ng.scores.scores(fit, held_out, known).values():
        assert np.isfinite(values).all()
    assert counting.estimates(held_out)["rows"] < len(held_out)


def test_arviz_has_the_gaps(trained):
    fit, held_out = trained
    found = fit.to_arviz(held_out, observations=4, draws_per_chain=10)
    assert np.isnan(found.observed_data["x"].values).any()
    assert np.isfinite(found.log_likelihood["x"].values).all()
    assert np.isfinite(found.posterior_predictive["x"].values).all()


def test_whole_data_of_another_source_are_taken_too(trained):
    fit, _ = trained
    assert fit.encode(WHOLE[:5]).shape == (5, 3)
    whole = as_images(WHOLE)
    other = ng.fit(*pair(whole), whole, steps=2, progress=False)
    with pytest.raises(UserError, match="got NaN or inf; data.missing = true"):
        other.encode(TABLE)
    grey = ng.ImageData("x", GREY)
    other = ng.fit(*pair(grey), grey, steps=2, progress=False)
    with pytest.raises(UserError, match="values may be missing, and those of the training"):
        other.encode(PICTURES)


def test_gaps_are_drawn():
    fit = ng.fit(*pair(PICTURES), PICTURES, steps=2, progress=False)
    ax = plots.reconstructions(fit, PICTURES, 4, ax=Figure().add_subplot())
    assert ax.get_yticklabels()[0].get_text() == "image\n(grey: missing)"
    assert np.isfinite(np.asarray(ax.images[0].get_array())).all()
    assert fit.impute(PICTURES).shape == (30, 16, 16)


@pytest.mark.parametrize("family", ["poisson", "negative_binomial"])
def test_counts_are_trained_on(family):
    data = as_images(COUNTS, counts=True, missing=True)
    model, guide = pair(data, likelihood={"family": family})
    fit = ng.fit(model, guide, data, steps=20, progress=False)
    metrics = ng.evaluate(fit, data)
    assert math.isfinite(metrics["elbo"]) and math.isfinite(metrics["reconstruction_mse"])
    assert np.isfinite(ng.log_likelihood(fit, data.subset([0, 1, 2])).values).all()
    made = fit.impute(COUNTS)
    assert np.array_equal(made[~ABSENT], COUNTS[~ABSENT]) and (made > 0).any()
    fit.to_arviz(data, observations=2, draws_per_chain=4)


@pytest.mark.parametrize("keys", [{"per": "all"}, {"per": "channel"}, {"per": "value"}, {}])
def test_the_scale_follows_the_noise_of_what_is_there(keys):
    family = "gaussian" if keys else "student_t"
    spec = LikelihoodSpec(family=family, missing=True, **keys).resolved()
    likelihood = load_likelihood(spec, (1, 1, 8))
    noise = 0.5 * torch.randn(2000, 1, 1, 8)
    gone = torch.from_numpy(RNG.random(noise.shape) < 0.3)
    found = likelihood.rescale(noise.masked_fill(gone, math.nan))
    normal = 0.6745 / likelihood.median if family == "student_t" else 1.0
    assert np.allclose(found, 0.5 * normal, rtol=0.06)


def test_data_without_nan_train_as_before():
    """Bit for bit, with the likelihood that knows of no missing values."""
    model, guide = pair(as_images(WHOLE))
    assert not model.likelihood.spec.missing and not guide.encoder.missing
    assert "missing" not in model.spec.likelihood.model_dump()
    assert not isinstance(model.likelihood(torch.zeros(1, 1, 1, 8)), ObservedPixels)


# The estimator, runs ----------------------------------------------------------------------------


def test_the_estimator(tmp_path, no_drawing):
    vae = ng.NGVAE(
        3, model=ng.ModelSpec(decoder=SMALL), steps=30, random_state=0, missing=True
    ).fit(TABLE)
    assert vae.transform(TABLE).shape[0] == 300
    made = vae.impute(TABLE)
    assert np.array_equal(made[~ABSENT], WHOLE[~ABSENT]) and np.isfinite(made).all()
    assert np.isfinite(vae.score_samples(TABLE[:3])).all()
    # In the units of the table, each column of which has its own.
    form, row = vae.fit_.form, ~ABSENT[:3]
    images = vae.fit_.as_images(TABLE[:3]).images
    assert np.allclose(form.log_volumes(images), (row * np.log(form.scale)).sum(1))
    vae.save(tmp_path / "run")
    loaded = ng.NGVAE.load(tmp_path / "run")
    assert loaded.missing and np.array_equal(loaded.impute(TABLE), made)


WORDS = ["--steps", "6", "--latents", "3", "--set", "fit.batch_size=8", "--device", "cpu"]
WORDS += ["--set", "model.decoder.width=8", "--set", "guide.encoder.width=8"]
WORDS += ["--set", "fit.checkpoint_every=2", "--set", "fit.monitor_every=3"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("missing") / "x.csv"
    pd.DataFrame(TABLE, columns=list("abcdefgh")).to_csv(path, index=False)
    return path


def test_the_command_line_says_what_would_take_empty_cells(table, tmp_path):
    words = ["--data", table, *WORDS, "--out", tmp_path / "r"]
    said = ngvae("train", "normal_gamma", "relaxed", *words, code=2)
    assert said.startswith(f"{table}: column 'a': expected a value in each row, got NaN or none in")
    assert "data.missing = true" in said and not (tmp_path / "r").exists()


def test_a_run_of_a_table_with_empty_cells(table, tmp_path, monkeypatch, no_drawing):
    words = ["--data", table, "--set", "data.missing=true", *WORDS]
    ngvae("train", "normal_gamma", "relaxed", *words, "--out", tmp_path / "r")
    config = tomllib.loads((tmp_path / "r" / "config.toml").read_text())
    assert config["data"]["missing"] and config["form"]["missing"]
    assert config["model"]["likelihood"]["missing"]
    ngvae("inspect", tmp_path / "r")
    ngvae("evaluate", tmp_path / "r")
    ngvae("score", tmp_path / "r", "--data", table, "--size", "20")
    fit, _ = ng.load_run(tmp_path / "r", "cpu")
    assert fit.form.missing and np.isfinite(fit.impute(TABLE)).all()
    # A training that was cut short ends with the same bytes.
    with monkeypatch.context() as patch:
        cut(patch, 5)
        with pytest.raises(Interrupted):
            ng.runs.train(ng.runs.load_spec(tmp_path / "r"), tmp_path / "s", progress=False)
    ngvae("train", "--resume", tmp_path / "s")
    one, other = ((tmp_path / name / "weights.safetensors").read_bytes() for name in "rs")
    assert one == other


def test_data_that_stay_on_the_disk_have_no_gaps(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((9, 3), np.float32))
    held = np.load(tmp_path / "x.npy", mmap_mode="r")
    items = torch.utils.data.TensorDataset(torch.ones(9, 4, 4))
    for data, options in (
        (held, {}),
        (items, {"stream": True}),
        (np.ones((9, 3)), {"stream": True}),
    ):
        with pytest.raises(ng.UserError, match="missing: data that stay on the disk have no NaN"):
            as_images(data, missing=True, **options)
    with pytest.raises(ng.UserError, match="x.npy: expected missing or stream, got both"):
        ng.load_data(tmp_path / "x.npy", missing=True, stream=True)
