"""What a fit says of data, and of itself."""

import inspect
import shutil
import typing

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import undrawn

import ngvae_pyro as ng
from ngvae_pyro import runs
from ngvae_pyro.data.forms import Form
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.errors import UserError
from ngvae_pyro.evaluation import diagnostics
from ngvae_pyro.guide import load_guide
from ngvae_pyro.model import load_model
from ngvae_pyro.specs import MLPSpec
from ngvae_pyro.training.trainer import fit

SMALL = MLPSpec(width=16, depth=1)
BYTES = np.random.default_rng(0).integers(0, 256, (60, 8, 9)).astype(np.uint8)
VECTORS = np.random.default_rng(1).normal(size=(60, 5)) * 30 + 100


def trained(data, steps=20):
    torch.manual_seed(0)
    # At a finer scale it would take more steps until images are drawn at all.
    size = {"latent_size": 3, "decoder": SMALL, "likelihood": {"scale": 0.1}}
    model = load_model("normal_gamma", data, **size)
    guide = load_guide("relaxed", model, encoder=SMALL, schedule={"moves": ()})
    options = {"steps": steps, "batch_size": 16, "device": "cpu", "monitor_every": 10}
    return fit(model, guide, data, progress=False, **options)


@pytest.fixture(scope="module")
def of_vectors():
    return trained(VECTORS)


@pytest.fixture(scope="module")
def of_images():
    return trained(BYTES, steps=60)


def test_the_form_of_the_data_is_that_of_the_fit(of_vectors, of_images):
    assert of_vectors.form.layout == "vectors" and of_images.form.layout == "grey"
    assert np.allclose(of_vectors.form.loc, VECTORS.mean(0))
    assert np.allclose(of_vectors.form.scale, VECTORS.std(0))


def test_codes_and_reconstructions_of_vectors(of_vectors):
    z = of_vectors.encode(VECTORS[:7])
    assert z.shape == (7, 3) and z.dtype == np.float32
    data = ImageData("v", VECTORS[:7], form=of_vectors.form)
    assert np.array_equal(z, diagnostics.codes(of_vectors, data).loc.numpy())
    assert np.array_equal(z, of_vectors.encode(data))
    again = of_vectors.reconstruct(VECTORS[:7])
    assert again.shape == (7, 5) and again.dtype == np.float64
    assert np.array_equal(again, of_vectors.decode(z))
    # Of a training that short they are about the columns' means.
    assert np.abs(again - VECTORS.mean(0)).max() < 4 * 30
    assert of_vectors.decode(np.zeros((0, 3))).shape == (0, 5)


def test_tensors_in_tensors_out(of_vectors, of_images):
    x = torch.from_numpy(VECTORS[:4])
    z = of_vectors.encode(x)
    assert isinstance(z, torch.Tensor) and z.device == x.device
    assert torch.equal(of_vectors.decode(z), of_vectors.reconstruct(x))
    images = torch.from_numpy(BYTES[:4])
    again = of_images.reconstruct(images)
    assert isinstance(again, torch.Tensor) and again.shape == (4, 8, 9)
    assert np.array_equal(again.numpy(), of_images.reconstruct(BYTES[:4]))


def test_images_are_in_the_unit_interval_in_their_layout(of_images):
    again = of_images.reconstruct(BYTES)
    assert again.dtype == np.float32 and again.shape == BYTES.shape
    assert 0.3 < again.mean() < 0.7
    # Any layout of images is read; what comes back has that of the fit.
    assert np.array_equal(of_images.encode(BYTES[:, None]), of_images.encode(BYTES))
    assert np.array_equal(of_images.encode(BYTES / 255), of_images.encode(BYTES))
    assert np.array_equal(of_images.encode(ImageData("b", BYTES)), of_images.encode(BYTES))


def test_draws_are_those_of_the_prior(of_vectors):
    means = of_vectors.sample(4, seed=1)
    assert means.shape == (4, 5) and np.array_equal(means, of_vectors.sample(4, seed=1))
    assert not np.array_equal(means, of_vectors.sample(4, seed=2))
    before = torch.random.get_rng_state()
    of_vectors.sample(2)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda f: f.encode(VECTORS[:, :4]),
            "^images: expected 5 columns, as what was fitted, got 4",
        ),
        (lambda f: f.encode(BYTES), r"^images: expected shape \(N, D\), as what was fitted"),
        (lambda f: f.encode(VECTORS * np.nan), "^images: expected finite numbers"),
        (lambda f: f.encode(VECTORS.astype(str)), "^images: expected numbers, got dtype <U"),
        (lambda f: f.decode(np.zeros((2, 4))), r"^z: expected shape \(N, 3\), got \(2, 4\)"),
        (lambda f: f.decode([[0.0]]), "^z: expected an array or a tensor, got list"),
        (lambda f: f.sample(0), "^n: expected a whole number, at least 1, got 0"),
        (lambda f: f.sample(2, seed="a"), "^seed: expected a whole number"),
        (
            lambda f: f.sample(2, seed=-1),
            r"^seed: expected a whole number in \[0, 2\*\*32\), got -1",
        ),
        (lambda f: f.sample(2, seed=2**40), "^seed: expected a whole number in"),
        (lambda f: f.decode(np.full((1, 3), np.nan)), "^z: expected finite numbers, as float32"),
        (lambda f: f.decode(np.full((1, 3), 1e300)), "^z: expected finite numbers, as float32"),
        (lambda f: f.decode(np.zeros((1, 3)) * 1j), "^z: expected numbers, got dtype complex128"),
        (
            lambda f: f.encode(VECTORS[:0]),
            r"^images: expected at least one row, got shape \(0, 5\)",
        ),
        (lambda f: f.save("", VECTORS), "^folder: expected the name of a folder, got ''"),
        (
            lambda f: f.encode(ImageData("o", BYTES)),
            "^data 'o': expected the u",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(of_vectors, call, match):
    with pytest.raises(UserError, match=match) as raised:
        call(of_vectors)
    assert "\n" not in str(raised.value)


def test_far_from_the_training_data_is_one_line():
    """A gaussian guide, whose scale float32 soon does not hold."""
    model = load_model("gaussian", VECTORS, latent_size=2, decoder=SMALL)
    guide = load_guide("gaussian", model, encoder=SMALL)
    result = ng.Fit(model, guide, ng.FitSpec(), form=ng.ImageData("v", VECTORS).form)
    with torch.no_grad():
        guide.encoder.head.weight.mul_(100)
        model.decoder.stem.weight.mul_(100)
    far = "too far from the training data for float32: the networks give NaN or infinity$"
    for z in (np.full((1, 2), 3e38), torch.full((1, 2), 3e38)):
        with pytest.raises(UserError, match=f"^z: {far}"):
            result.decode(z)
    for x in (VECTORS[:4] * 1e4, VECTORS[:4] * 1e25):
        for call in (result.encode, result.reconstruct, result.latents, result.to_arviz):
            with pytest.raises(UserError, match=f"^images: {far}"):
                call(x)
        with pytest.raises(UserError, match=f"^images: {far}"):
            result.traverse(x)
        with pytest.raises(UserError, match=f"^a or b: {far}"):
            result.interpolate(x[0], x[1])


def test_vectors_that_were_read_otherwise_are_turned(of_vectors):
    others = ImageData("others", VECTORS[:9] * 1.0)
    assert not others.form.same_units(of_vectors.form)
    found = of_vectors.encode(others)
    assert np.allclose(found, of_vectors.encode(VECTORS[:9]), atol=1e-5)


def test_the_table_of_the_latents(of_vectors):
    table = of_vectors.latents(VECTORS)
    assert table.shape == (3, 11) and sorted(table["latent"]) == [0, 1, 2]
    metrics = ng.evaluate(of_vectors, of_vectors.as_images(VECTORS))
    for row in table.to_dict("records"):
        k = row["latent"]
        assert row["p"] == metrics["probs"][k] and row["informative"] == (row["p"] > 0.5)
        assert row["KL z"] == metrics["kl"]["z"]["per_latent"][k]
        assert row["paid"] == row["KL precision"] + row["KL z"]
        assert row["earned"] == metrics["earned"][k]
        assert row["precision 5%"] <= row["precision"] <= row["precision 95%"]
    order = list(zip(~table["informative"], -table["KL z"], strict=True))
    assert order == sorted(order)


@pytest.mark.parametrize("discrete", [False, True])
def test_informative_ones_come_first_and_then_those_that_tell_more(discrete):
    numbers = [0.1, 0.9, 0.8, 0.2]
    metrics = {
        "discrete": discrete,
        "probs": numbers,
        "precision": {key: [9.0, 1.0, 5.0, 8.0] for key in ("mean", "5%", "95%")},
        "variance_of_loc": numbers,
        "kl": {"z": {"total": 10.0, "per_latent": [3.0, 4.0, 2.0, 1.0]}},
    }
    rows = diagnostics.most_informative_first(metrics)
    assert [row["latent"] for row in rows] == [1, 2, 0, 3]


def test_the_table_of_the_history(of_vectors):
    table = of_vectors.history_table()
    assert isinstance(table, pd.DataFrame) and table["step"].tolist() == [0, 10, 20]
    assert table["loss"].iloc[-1] == of_vectors.history[-1]["loss"]
    wanted = ["step", "loss", "KL precision", "KL z", "informative", "p 0", "p 1", "p 2"]
    assert list(table.columns)[:8] == wanted and "variance of loc 2" in table


def test_a_fit_in_three_lines(of_vectors):
    lines = repr(of_vectors).split("\n")
    assert len(lines) == 3 and max(map(len, lines)) < 100
    assert lines[0] == "Fit: NormalGammaVAE with RelaxedGuide on cpu"
    assert lines[1].strip() == str(of_vectors.verdict) and "of 3 latents" in lines[1]
    assert lines[2].strip().startswith("20 steps, ELBO -")
    page = of_vectors._repr_html_()
    assert page.startswith("<table>") and "of 3 latents" in page and "http" not in page
    bare = ng.Fit(of_vectors.model, of_vectors.guide, of_vectors.spec)
    assert repr(bare).split("\n")[1:] == ["  3 latents", "  not trained here"]


@pytest.fixture(scope="module")
def folders(of_vectors, of_images, tmp_path_factory):
    """Run folders of both."""
    place = tmp_path_factory.mktemp("runs")
    for name, result, x in (("of_vectors", of_vectors, VECTORS), ("of_images", of_images, BYTES)):
        with undrawn():
            metrics = result.save(place / name, x[:20])
        assert metrics == runs.load_metrics(place / name)
    return {name: place / name for name in ("of_vectors", "of_images")}


@pytest.mark.parametrize("name", ["of_vectors", "of_images"])
def test_a_saved_fit_keeps_its_form(name, folders, request, tmp_path):
    result = request.getfixturevalue(name)
    x = {"of_vectors": VECTORS, "of_images": BYTES}[name][:20]
    shutil.copytree(folders[name], tmp_path / "run")
    again, spec = ng.load_run(tmp_path / "run", device="cpu")
    assert again.form.layout == result.form.layout == spec.form.layout
    assert again.form.in_bytes == result.form.in_bytes
    assert again.form.same_units(result.form)
    assert np.array_equal(again.reconstruct(x), result.reconstruct(x))
    assert repr(again) == repr(result)
    # One of an older version has images, channels first.
    config = (tmp_path / "run" / "config.toml").read_text()
    head, _, rest = config.partition("[form]\n")
    (tmp_path / "run" / "config.toml").write_text(head + rest.partition("\n\n")[2])
    old, _ = ng.load_run(tmp_path / "run", device="cpu")
    assert old.form.layout == Form().layout == "channels_first"


def test_damaged_forms_are_one_line(folders, tmp_path):
    shutil.copytree(folders["of_vectors"], tmp_path / "run")
    path = tmp_path / "run" / "weights.safetensors"
    tensors = load_file(path)
    for name, value, match in [
        ("form.scale", torch.zeros(5, dtype=torch.float64), "form.scale: expected numbers above 0"),
        ("form.scale", torch.ones(4, dtype=torch.float64), "form: expected loc and scale, float64"),
        ("form.loc", torch.full((5,), np.nan, dtype=torch.float64), "form.loc: expected finite"),
        ("form.loc", None, "form: expected loc and scale"),
    ]:
        changed = {k: v for k, v in {**tensors, name: value}.items() if v is not None}
        save_file(changed, path)
        with pytest.raises(UserError, match=match):
            ng.load_run(tmp_path / "run", device="cpu")


def test_posterior_draws_of_arrays(of_images):
    posterior = of_images.to_arviz(BYTES[:5], draws_per_chain=9)
    assert posterior["posterior"]["z"].shape == (1, 9, 5, 3)
    none = of_images.to_arviz(BYTES[:5], chains=2, draws_per_chain=9, predictive=0)
    assert none["posterior"]["z"].shape == (2, 9, 5, 3) and not hasattr(none, "prior_predictive")


# Types ---------------------------------------------------------------------------------------


def returns():
    """Every function, method and property that is exported, and what it says to return."""
    for name in ng.__all__:
        value = getattr(ng, name)
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            for method, member in vars(value).items():
                if isinstance(member, property):
                    member = member.fget
                elif isinstance(member, (classmethod, staticmethod)):
                    member = member.__func__
                if inspect.isfunction(member) and not method.startswith("_"):
                    yield f"{name}.{method}", member


@pytest.mark.parametrize(("name", "function"), list(returns()), ids=[n for n, _ in returns()])
def test_no_public_return_is_any(name, function):
    found = inspect.signature(function).return_annotation
    assert found is not inspect.Signature.empty, f"{name} does not say what it returns"
    assert found is not typing.Any and "Any" not in str(found), f"{name} returns {found}"
