"""The estimator: scikit-learn's contract, units, and that it trains what `ngvae` trains."""

import pickle
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from support import ngvae

import ngvae_pyro as ng
from ngvae_pyro import runs
from ngvae_pyro.errors import UserError, described
from ngvae_pyro.estimator import NGVAE
from ngvae_pyro.specs import (
    GaussianGuideSpec,
    GaussianPriorSpec,
    LikelihoodSpec,
    MLPSpec,
    ModelSpec,
    RelaxedGuideSpec,
)
from ngvae_pyro.variants import run_spec

pytestmark = pytest.mark.usefixtures("no_drawing")

TINY = MLPSpec(width=8, depth=1)
SMALL = MLPSpec(width=32, depth=1)
IMAGES = np.random.default_rng(0).integers(0, 256, (60, 8, 9)).astype(np.uint8)


def tiny(n_components=2, steps=3, network=TINY, **parameters):
    """An estimator of which a fit takes a fraction of a second."""
    return NGVAE(
        n_components,
        **{
            "model": ModelSpec(decoder=network),
            "guide": RelaxedGuideSpec(encoder=network, schedule={"moves": ()}),
            "steps": steps,
            "batch_size": 16,
            "device": "cpu",
            "random_state": 0,
            **parameters,
        },
    )


def gaussian(steps=300, **parameters):
    """A vanilla VAE of vectors that has learned something, and whose latents are informative."""
    model = ModelSpec(prior=GaussianPriorSpec(), decoder=SMALL)
    guide = GaussianGuideSpec(encoder=SMALL)
    return tiny(steps=steps, model=model, guide=guide, **parameters)


def vectors(n=200, seed=0):
    """Two sources in six columns, in units of hundreds, and a column that never varies."""
    rng = np.random.default_rng(seed)
    mixed = rng.uniform(-1, 1, (n, 2)) @ np.random.default_rng(9).normal(size=(2, 6))
    return np.c_[300 + 100 * mixed + rng.normal(size=(n, 6)), np.full(n, 7.0)]


@pytest.fixture(scope="module")
def fitted():
    return gaussian().fit(vectors())


MONTE_CARLO = (
    "score_samples is an importance-sampling estimate: the draws of a row depend on its place, so "
    "rows agree to their Monte Carlo error only"
)


def expected_failures(estimator):
    return {
        "check_methods_subset_invariance": MONTE_CARLO,
        "check_methods_sample_order_invariance": MONTE_CARLO,
    }


@parametrize_with_checks([tiny()], expected_failed_checks=expected_failures)
def test_contract_of_scikit_learn(estimator, check):
    # scikit-learn says of itself what it skips.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


def test_transform_does_not_depend_on_the_other_rows(fitted):
    x = vectors(40, seed=5)
    codes, order = fitted.transform(x), np.random.default_rng(0).permutation(40)
    assert np.allclose(fitted.transform(x[order]), codes[order], atol=1e-5)
    assert np.allclose(np.r_[fitted.transform(x[:7]), fitted.transform(x[7:])], codes, atol=1e-5)


def test_codes_are_those_of_the_informative_latents_in_order(fitted):
    x, metrics = vectors(), fitted.metrics_
    assert fitted.n_components_ == metrics["informative"] == 2
    assert fitted.latents_.tolist() == sorted(
        range(2), key=lambda k: -metrics["kl"]["z"]["per_latent"][k]
    )
    codes = fitted.transform(x)
    assert codes.shape == (200, 2) and codes.dtype == np.float32
    assert np.array_equal(codes, fitted.fit_.encode(x)[:, fitted.latents_])
    assert fitted.precisions_.shape == (2,) and (fitted.precisions_ > 1).all()
    assert fitted.verdict_.informative == 2 and fitted.n_features_in_ == 7
    assert fitted.get_feature_names_out().tolist() == ["ngvae0", "ngvae1"]
    assert fitted.model_ is fitted.fit_.model and fitted.guide_ is fitted.fit_.guide


def test_vectors_come_back_in_their_own_units(fitted):
    x = vectors()
    again = fitted.inverse_transform(fitted.transform(x))
    assert again.shape == x.shape and again.dtype == np.float64
    assert np.abs(again[:, 6] - 7).max() < 0.1
    assert np.mean((again - x) ** 2) < 0.1 * np.mean((x - x.mean(0)) ** 2)
    means = fitted.sample(500, random_state=0)
    assert np.allclose(means.mean(0), x.mean(0), atol=30)
    assert np.array_equal(means, fitted.sample(500, random_state=0))
    assert not np.array_equal(means, fitted.sample(500, random_state=1))


def test_the_score_is_a_density_in_the_units_of_the_data(fitted):
    x = vectors(10, seed=5)
    score = fitted.score_samples(x)
    assert score.shape == (10,) and fitted.score(x) == pytest.approx(score.mean())
    # The same data in units of a tenth have a density of 1/10 for each column that varies; of the
    # one that does not, the scale is 1 in all units.
    other = gaussian().fit(10 * vectors())
    assert np.allclose(other.score_samples(10 * x), score - 6 * np.log(10), atol=0.2)
    unit = ng.log_likelihood(fitted.fit_, fitted.fit_.as_images(x)).values
    assert np.allclose(score, unit - np.log(fitted.fit_.form.scale).sum())
    assert fitted.score(x + 200) < score.mean()


def test_a_bernoulli_score_is_no_density():
    bits = np.random.default_rng(0).integers(0, 2, (60, 6, 6)).astype(bool)
    vae = tiny(model=ModelSpec(decoder=TINY)).fit(bits)
    assert vae.model_.likelihood.family == "bernoulli"
    assert np.isfinite(vae.score(bits[:5])) and vae.score(bits[:5]) < 0
    again = vae.inverse_transform(vae.transform(bits))
    assert again.dtype == np.float32 and 0 <= again.min() <= again.max() <= 1


FORMS = {
    "grey bytes": (IMAGES, "grey", np.uint8, 255),
    "grey of other ranges": (IMAGES / 255 * 16 - 2.0, "grey", np.float64, 14),
    "grey integers": (IMAGES.astype(np.int64) * 3, "grey", np.float64, 765),
    "floats": (np.float32(IMAGES / 255.0), "grey", np.float32, 1),
    "channels last": (np.stack([IMAGES] * 3, -1), "channels_last", np.uint8, 255),
    "channels first": (
        torch.from_numpy(np.stack([IMAGES] * 3, 1)),
        "channels_first",
        np.uint8,
        255,
    ),
    "vectors": (IMAGES.reshape(60, -1) * 1.0, "vectors", np.float64, 255),
}


@pytest.mark.parametrize("case", FORMS)
def test_layout_and_units_come_back(case):
    x, layout, dtype, high = FORMS[case]
    vae = tiny().fit(x)
    form = vae.fit_.form
    assert form.layout == layout and form.in_bytes == (dtype == np.uint8)
    codes = vae.transform(x)
    again = vae.inverse_transform(codes)
    assert again.shape == tuple(x.shape) and again.dtype == dtype
    assert again.max() <= 2 * high and again.max() > 0.2 * high
    assert vae.sample(3).shape == (3, *x.shape[1:]) and vae.sample(3).dtype == dtype
    assert vae.n_features_in_ == np.prod(x.shape[1:])


def test_it_trains_what_the_command_line_trains(tmp_path):
    x = IMAGES
    np.savez(tmp_path / "x.npz", imgs=x)
    words = ["normal_gamma", "relaxed", "--data", tmp_path / "x.npz", "--steps", "20"]
    words += ["--latents", "4", "--seed", "4", "--device", "cpu", "--set", "fit.batch_size=16"]
    words += ["--set", "model.decoder.width=8", "--set", "model.decoder.depth=1"]
    words += ["--set", "guide.encoder.width=8", "--set", "guide.encoder.depth=1"]
    ngvae("train", *words, "--out", tmp_path / "run")
    spec = runs.load_spec(tmp_path / "run")
    parts = {
        "model": ModelSpec(decoder=spec.model.decoder),
        "guide": RelaxedGuideSpec(encoder=spec.guide.encoder),
    }
    vae = NGVAE(4, **parts, steps=20, batch_size=16, device="cpu", random_state=4).fit(x)
    vae.save(tmp_path / "own")
    found, wanted = (load_file(tmp_path / name / "weights.safetensors") for name in ("own", "run"))
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    metrics = runs.load_metrics(tmp_path / "run")
    assert vae.metrics_ == metrics
    # A path is kept, so that the command line finds the data of the estimator again.
    of_path = NGVAE(4, **parts, steps=20, batch_size=16, device="cpu", random_state=4)
    spec = of_path.fit(tmp_path / "x.npz").spec_
    assert runs.load_data(spec)[1].digest == vae.held_out_.digest
    # What the command line has written is an estimator as well.
    read = NGVAE.load(tmp_path / "run", device="cpu")
    assert np.array_equal(read.transform(x), vae.transform(x))
    again = read.inverse_transform(read.transform(x))
    assert again.dtype == np.uint8 and again.shape == x.shape


def test_the_defaults_are_those_of_the_command_line():
    spec = NGVAE(random_state=0)._spec("x.npz")
    declared = run_spec("normal_gamma", "relaxed", {"fit": {"seed": 0}}, "command line")
    assert (spec.model, spec.guide, spec.fit) == (declared.model, declared.guide, declared.fit)
    assert spec.data.held_out == declared.data.held_out
    vae = NGVAE(np.int64(5), scale=0.3, learning_rate=1, random_state=7, validation=0.2)
    changed = vae._spec("x.npz")
    assert changed.model.latent_size == 5 and changed.fit.seed == 7
    assert changed.model.likelihood == LikelihoodSpec(scale=0.3) and changed.fit.learning_rate == 1
    assert changed.fit.validation == 0.2


def test_random_states():
    x = vectors(40)
    codes = {}
    # So short a training would silence all.
    schedule = {"moves": (), "silence": 1.0}
    guide = RelaxedGuideSpec(encoder=TINY, schedule=schedule)
    for name, state in {
        "seed": 3,
        "same": np.int64(3),
        "state": np.random.RandomState(3),
        "generator": np.random.default_rng(3),
        "none": None,
    }.items():
        vae = tiny(random_state=state, guide=guide).fit(x)
        codes[name] = vae.fit_.encode(x)
    assert np.array_equal(codes["seed"], codes["same"])
    others = [codes[name] for name in ("seed", "state", "generator", "none")]
    assert all(not np.array_equal(a, b) for i, a in enumerate(others) for b in others[:i])


def test_saved_and_loaded(fitted, tmp_path):
    x = vectors(30, seed=1)
    fitted.save(tmp_path / "run")
    again = NGVAE.load(tmp_path / "run", device="cpu")
    assert np.array_equal(again.transform(x), fitted.transform(x))
    codes = fitted.transform(x)
    assert np.array_equal(again.inverse_transform(codes), fitted.inverse_transform(codes))
    assert again.verdict_ == fitted.verdict_ and again.n_features_in_ == 7
    assert np.array_equal(again.precisions_, fitted.precisions_)
    with pytest.raises(UserError, match="^save: expected an estimator that was fitted here"):
        again.save(tmp_path / "other")
    assert "given in Python" in (tmp_path / "run" / "config.toml").read_text()


def test_pickles_and_clones(fitted):
    x = vectors(20)
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.transform(x), fitted.transform(x))
    fresh = clone(fitted)
    assert fresh.get_params()["steps"] == 300 and not hasattr(fresh, "fit_")
    with pytest.raises(NotFittedError):
        fresh.transform(x)


def test_in_pipelines_and_cross_validation():
    x = vectors(60)
    y = x[:, 0] / 100
    pipeline = make_pipeline(StandardScaler(), gaussian(steps=100, scale=0.1), LinearRegression())
    assert pipeline.fit(x, y).score(x, y) > 0.5
    scores = cross_val_score(gaussian(steps=20), x[:30], cv=2)
    assert scores.shape == (2,) and np.isfinite(scores).all()


def test_tables_of_pandas():
    table = pd.DataFrame(vectors(60), columns=list("abcdefg"))
    vae = gaussian(steps=30).set_output(transform="pandas").fit(table)
    assert vae.feature_names_in_.tolist() == list("abcdefg")
    codes = vae.transform(table)
    assert list(codes.columns) == [f"ngvae{k}" for k in range(vae.n_components_)]
    assert codes.index.equals(table.index)
    with pytest.raises(ValueError, match="feature names"):
        vae.transform(table.rename(columns={"a": "z"}))


def test_a_short_training_warns_only_of_the_default(monkeypatch):
    monkeypatch.setattr(ng.FitSpec.model_fields["steps"], "default", 40)
    ng.FitSpec.model_rebuild(force=True)
    try:
        with pytest.warns(ConvergenceWarning, match="^NGVAE: the ELBO still rose by .* nats"):
            tiny(steps=None, scale=0.01).fit(vectors())
        tiny(steps=20).fit(vectors())
    finally:
        monkeypatch.undo()
        ng.FitSpec.model_rebuild(force=True)
    assert ng.FitSpec().steps == 4400


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (np.full((10, 3), np.nan), "^X: expected finite numbers, got NaN or inf; .*missing=True"),
        (np.full((10, 4, 4), np.inf), "^X: expected finite numbers, got NaN or inf$"),
        (np.zeros((9, 3, 8, 3)), r"^X: expected .* which could be both"),
        (np.zeros((2, 3)), "^X: expected at least 3 rows, .* got n_samples=2$"),
        (np.array(["a"] * 12).reshape(4, 3, 1), "^X: expected numbers, got dtype <U1$"),
        ("nowhere", "^unknown data 'nowhere'"),
        (np.full((10, 4, 4), np.nan), "^X: expected finite numbers, got NaN; .*missing=True"),
        (None, "^X: expected an array or a tensor, got NoneType$"),
        ({}, "^X: expected an array or a tensor, got dict$"),
        (iter(IMAGES), "^X: expected an array or a tensor, got iterator$"),
        (np.zeros(9), r"^X: expected vectors \(N, D\) or images .*, got shape \(9,\)$"),
        (np.zeros((5, 2, 2, 2, 2)), r"^X: expected \(N, C, D, H, W\) .* \(5, 2, 2, 2, 2\), which"),
        (np.zeros((5, 2, 2, 2, 2, 2)), r"^X: expected vectors .*, got shape \(5, 2, 2, 2, 2, 2\)$"),
        (np.zeros((9, 3)) * 1j, "^X: Complex data not supported: expected numbers, got complex128"),
        (csr_array(np.eye(9)), r"^X: expected a dense array, got a sparse csr_array; pass X.toa"),
        (torch.eye(9).to_sparse(), "^X: expected a dense tensor, got torch.sparse_coo$"),
        ([[1, 2], [3]], "^X: expected rows of numbers, all of one shape, got a list of others$"),
        ([["a"]] * 9, "^X: expected numbers, got dtype <U1$"),
        (np.array([[{}]] * 9), "^X: float.. argument must be a string or a real number, not 'dict"),
        (np.zeros((0, 3)), r"^X: expected at least one row, got shape \(0, 3\)$"),
        (pd.DataFrame(np.zeros((9, 2)), columns=list("aa")), "^X: .* name twice, got 'a' 2 times$"),
        (pd.DataFrame(np.zeros((9, 2)), columns=["a", 0]), "^X: .* all strings or none, got 0"),
        (
            pd.DataFrame({"a": [1.0, 2.0], "b": pd.Timestamp(0)}),
            "^X: .* datetime64.* in column 'b'$",
        ),
    ],
)
def test_refused_in_one_line(x, match):
    with pytest.raises(UserError, match=match) as raised:
        tiny().fit(x)
    assert "\n" not in str(raised.value)


def test_tuples_are_read_as_lists_are():
    codes = tiny().fit(IMAGES).transform(IMAGES)
    for x in (tuple(IMAGES), list(IMAGES), [torch.from_numpy(image) for image in IMAGES]):
        assert np.array_equal(tiny().fit(x).transform(x), codes)
    grad = torch.ones(1, 7, requires_grad=True)
    assert tiny().fit([grad[0] * k for k in range(9)]).n_features_in_ == 7


@pytest.mark.parametrize("rows", [3, 5, 14, 15])
def test_at_least_one_row_is_held_out(rows):
    x = vectors(rows)
    vae = tiny().fit(x)
    assert len(vae.held_out_) == max(1, round(0.1 * rows))
    if rows > 5:
        wanted = ng.data.as_images(x).split(0.1, 0)[1]
        assert torch.equal(vae.held_out_.images, wanted.images)
    with pytest.raises(UserError, match="^NGVAE: held_out: expected a fraction .*, got 0.99 of "):
        tiny(held_out=0.99).fit(x)


def test_what_float32_does_not_hold_is_one_line(fitted):
    x, far = vectors(4), "^X: too far from the training data for float32: the networks give NaN"
    relaxed = tiny(steps=20).fit(vectors())
    for vae, factor in ((fitted, 1e30), (fitted, 1e4), (relaxed, 1e25)):
        with pytest.raises(UserError, match=far) as raised:
            vae.score(x * factor)
        assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=far):
        fitted.transform(x * 1e30)
    with pytest.raises(UserError, match=far):
        fitted.inverse_transform(np.full((1, 2), 3e38))
    for value in (np.nan, np.inf, 1e300):
        with pytest.raises(UserError, match="^X: expected finite numbers, .* got NaN or infinity$"):
            fitted.inverse_transform(np.full((1, 2), value))


def test_codes_are_read_as_arrays_are(fitted):
    codes = np.float32([[0.5, -1.0]])
    images = fitted.inverse_transform(codes)
    tensor = torch.from_numpy(codes)
    for same in ([[0.5, -1.0]], ((0.5, -1.0),), tensor.requires_grad_(), tensor.bfloat16()):
        assert np.array_equal(fitted.inverse_transform(same), images)
    for wrong, match in [
        ({}, "^X: expected an array or a tensor, got dict$"),
        (np.array([["a", "b"]]), "^X: expected numbers, got dtype <U1$"),
        (codes * 1j, "^X: expected numbers, got dtype complex"),
        ([[1.0, 2.0], [3.0]], "^X: expected rows of numbers, all of one shape"),
        (csr_array(codes), "^X: expected a dense array, got a sparse csr_array"),
        (tensor.detach().to_sparse(), "^X: expected a dense tensor, got torch.sparse_coo$"),
    ]:
        with pytest.raises(UserError, match=match):
            fitted.inverse_transform(wrong)


def test_fits_leave_nothing_of_those_before():
    table = pd.DataFrame(vectors(20), columns=list("abcdefg"))
    vae = tiny().set_output(transform="default").fit(table)
    before = dict(vars(vae))
    for x in (np.full((9, 3), np.nan), IMAGES[:2], None):
        with pytest.raises(UserError):
            vae.fit(x)
        assert vars(vae).keys() == before.keys()
        assert all(vars(vae)[name] is value for name, value in before.items())
    # After the data were read, too.
    with pytest.raises(UserError, match="steps"):
        vae.set_params(steps="x").fit(IMAGES)
    assert vae.n_features_in_ == 7 and vae.feature_names_in_.tolist() == list("abcdefg")
    vae.set_params(steps=3).left_over_ = 1
    vae.fit(IMAGES)
    assert vae.n_features_in_ == 72
    assert not hasattr(vae, "feature_names_in_") and not hasattr(vae, "left_over_")


def test_loaded_estimators_have_the_parameters_of_the_run(tmp_path, monkeypatch):
    x = vectors(65)
    for name, given in {
        "default": {"guide": "mixture"},
        "scale": {"scale": 0.3, "held_out": 0.2, "steps": 4},
        "tiny": {"model": ModelSpec(decoder=TINY)},
        "bits": {"model": "gaussian", "guide": "gaussian"},
    }.items():
        data = x if name != "bits" else IMAGES > 127
        # The default networks; of these a step is enough.
        names = {"model": "normal_gamma", "guide": "relaxed", "steps": 1, **given}
        vae = tiny(**{**names, "batch_size": None}).fit(data)
        if name == "default":
            vae.save(tmp_path)
            read = NGVAE.load(tmp_path, device="cpu")
        else:
            # Figures take seconds.
            saved = runs.saved_run(vae.spec_, vae.model_, vae.model_.image_shape, vae.fit_.form)
            with monkeypatch.context() as patch:
                patch.setattr(runs, "load_run", lambda *_, v=vae, s=saved: (v.fit_, s))
                patch.setattr(runs, "load_metrics", lambda _, v=vae: v.metrics_)
                read = NGVAE.load(tmp_path, device="cpu")
        wanted = {"scale": None, **names, "n_components": 2}
        found = read.get_params()
        if name == "tiny":
            assert found.pop("model") == vae.model_.spec and wanted.pop("model")
        assert {key: found[key] for key in wanted if key in found} == wanted
        assert found["held_out"] == given.get("held_out") and found["batch_size"] is None
        assert name == "tiny" or "Spec" not in repr(read)
        again = clone(read).fit(data)
        assert again.metrics_ == vae.metrics_
        assert np.array_equal(again.fit_.encode(data), vae.fit_.encode(data))


def test_no_empty_folder(fitted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in (fitted.save, NGVAE.load, lambda folder: fitted.fit_.save(folder, vectors(9))):
        with pytest.raises(UserError, match="^folder: expected the name of a folder, got ''"):
            call("")
    assert not list(tmp_path.iterdir())


WRONG_SEEDS = (-1, True, 2**32, 2**40, 1.5, [1, 2])


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"n_components": 0}, "^NGVAE: n_components: expected a number > 0, got 0"),
        ({"n_components": 2.5}, "^NGVAE: n_components: expected a whole number, got 2.5"),
        ({"steps": "x"}, "^NGVAE: steps: expected a whole number, got 'x'"),
        ({"held_out": 2.0}, "^NGVAE: held_out: expected a number < 1, got 2.0"),
        ({"model": "normal_gama"}, "unknown model 'normal_gama'; did you mean"),
        ({"guide": "gaussian"}, "guide family 'gaussian' does not fit"),
        ({"scale": 0}, "^NGVAE: scale: expected a number >= 0.0001 or 'auto', got 0"),
        ({"model": 3}, "^NGVAE: model: expected a name, a path .* spec of a model, got 3$"),
        ({"model": RelaxedGuideSpec()}, "^NGVAE: model: expected .*, got a RelaxedGuideSpec$"),
        ({"guide": ModelSpec()}, "^NGVAE: guide: expected .* the spec of a guide, got a ModelSpec"),
        *(
            ({"random_state": s}, f"^NGVAE: random_state: .* got {described(s)}$")
            for s in WRONG_SEEDS
        ),
    ],
)
def test_parameters_out_of_range_are_one_line(parameters, match):
    with pytest.raises(UserError, match=match):
        tiny().set_params(**parameters).fit(vectors(20))


def test_draws_of_no_number_and_of_no_seed(fitted):
    for seed in WRONG_SEEDS:
        with pytest.raises(UserError, match="^NGVAE: random_state: expected a whole number in"):
            fitted.sample(2, random_state=seed)
    with pytest.raises(UserError, match="^n_samples: expected a whole number, at least 1, got 0$"):
        fitted.sample(0)


def test_new_data_of_another_shape_are_refused(fitted):
    with pytest.raises(UserError, match=r"^X: expected shape \(N, 2\), got \(3, 3\)$"):
        fitted.inverse_transform(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="X has 6 features, but NGVAE is expecting 7"):
        fitted.transform(vectors()[:, :6])
    for x in (IMAGES, vectors()[0], np.zeros((2, 3, 4, 5, 6))):
        with pytest.raises(UserError, match=r"^X: expected shape \(N, 7\), as what was fitted"):
            fitted.transform(x)
    with pytest.raises(UserError, match="^X: expected at least one row, got shape"):
        fitted.transform(vectors()[:0])


def test_an_image_without_its_first_axis_is_told_apart():
    vae = tiny().fit(IMAGES)
    shape = r"^X: expected shape \(N, 8, 9\), as what was fitted, got shape"
    with pytest.raises(
        UserError, match=shape + r" \(8, 9\). Reshape your data: one alone is X\[None\]$"
    ):
        vae.transform(IMAGES[0])
    with pytest.raises(UserError, match=shape + r" \(60, 72\)$"):
        vae.transform(IMAGES.reshape(60, -1))
    assert np.array_equal(vae.transform(IMAGES[:1, None]), vae.transform(IMAGES[:1]))


def test_vectors_have_no_bernoulli_likelihood():
    vae = tiny(model=ModelSpec(decoder=TINY, likelihood=LikelihoodSpec(family="bernoulli")))
    with pytest.raises(UserError, match="^model.likelihood.family: expected gaussian for the vec"):
        vae.fit(vectors(20))
    conv = partial(tiny, model=ModelSpec(decoder={"kind": "conv"}))
    with pytest.raises(UserError, match="conv"):
        conv().fit(vectors(20))
