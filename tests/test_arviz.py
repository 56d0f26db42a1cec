"""What ArviZ finds in the object of a fit, under whichever of its generations is installed."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import PAIRS
from support import SMALL

import ngvae_pyro as ng
from ngvae_pyro import _arviz, runs
from ngvae_pyro._arviz import FIRST_GENERATION, az, xr
from ngvae_pyro.data.forms import Form
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.evaluation import diagnostics

# ArviZ 0.23 uses what later versions of its own dependencies deprecate.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SCHEMA = ["posterior", "log_likelihood", "sample_stats", "prior", "posterior_predictive"]
SCHEMA += ["prior_predictive", "observed_data", "constant_data"]
FEW = {"observations": 6, "draws_per_chain": 60}


def trained(data, seed, steps):
    torch.manual_seed(seed)
    model = ng.load_model("normal_gamma", data, latent_size=3, decoder=SMALL)
    guide = ng.load_guide("relaxed", model, encoder=SMALL)
    spec = ng.FitSpec(steps=steps, seed=seed, device="cpu", monitor_every=20)
    return ng.fit(model, guide, data, spec, progress=False)


@pytest.fixture(scope="module")
def images():
    return ng.sprites(80, vary=("x", "red"))


@pytest.fixture(scope="module")
def of_images(images):
    return trained(images, 0, 40)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return 3.0 + rng.uniform(-1, 1, (200, 2)) @ rng.normal(size=(2, 4)) * [[1.0, 5.0, 0.1, 2.0]]


@pytest.fixture(scope="module")
def of_rows(rows):
    return [trained(rows, seed, 60) for seed in (0, 1)]


@pytest.fixture(scope="module", params=["images", "rows"])
def posterior(request, images, of_images, rows, of_rows):
    if request.param == "images":
        return ng.to_arviz(of_images, images, **FEW)
    return ng.to_arviz(of_rows[0], rows, **FEW)


def groups(found):
    return list(found.groups()) if FIRST_GENERATION else list(found.children)


# What is in it --------------------------------------------------------------------------------


def test_groups_share_names_and_dimensions(posterior):
    assert sorted(groups(posterior)) == sorted([*SCHEMA, "training"])
    latent = ("chain", "draw", "image", "latent")
    for group in ("posterior", "prior"):
        assert {name: value.dims for name, value in posterior[group].data_vars.items()} == {
            "precision": latent,
            "z": latent,
        }
        assert posterior[group].sizes == {"chain": 1, "draw": 60, "image": 6, "latent": 3}
        assert list(posterior[group]["latent"].values) == ["z0", "z1", "z2"]
    assert posterior["sample_stats"]["lp"].dims == latent[:3]
    x = {group: posterior[group]["x"] for group in SCHEMA if "x" in posterior[group].data_vars}
    vectors = "column" in x["observed_data"].dims
    of_image = ("column",) if vectors else ("channel", "height", "width")
    assert {group: value.dims for group, value in x.items()} == {
        "log_likelihood": latent[:3],
        "posterior_predictive": (*latent[:3], *of_image),
        "prior_predictive": (*latent[:3], *of_image),
        "observed_data": ("image", *of_image),
    }
    assert posterior.attrs["inference_library"] == "ngvae_pyro"
    assert posterior["posterior"].attrs["inference_library_version"] == ng.__version__


def test_values_are_those_of_the_model(of_images, images):
    found = ng.to_arviz(of_images, images, **FEW)
    model = of_images.model
    x = ng.ImageData.to_unit(images.images[:6])
    assert np.array_equal(found["observed_data"]["x"], x)
    z = torch.tensor(found["posterior"]["z"].values)[0]
    with torch.no_grad():
        mean = torch.stack([model.decoder(part) for part in z])
    pixels = torch.distributions.Normal(mean, model.likelihood.scale)
    expected = pixels.log_prob(x).double().sum((-3, -2, -1))
    log_likelihood = found["log_likelihood"]["x"].values[0]
    assert np.allclose(log_likelihood, expected, rtol=1e-4)
    log_prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).double().sum(-1)
    lp = found["sample_stats"]["lp"].values[0]
    assert np.allclose(lp - log_likelihood, log_prior, rtol=1e-4, atol=1e-3)
    noise = (found["posterior_predictive"]["x"].values[0] - mean.numpy()) / model.likelihood.scale
    assert abs(noise.mean()) < 0.01 and noise.std() == pytest.approx(1.0, abs=0.01)
    factors = found["constant_data"]["factors"]
    assert list(factors["factor"].values) == list(images.factor_names)
    assert np.array_equal(factors, images.factors[:6])


def test_the_prior_is_that_of_the_model(of_rows, rows):
    found = ng.to_arviz(of_rows[0], rows)["prior"]
    z = found["z"].values
    assert abs(z.mean()) < 0.02 and z.std() == pytest.approx(1.0, abs=0.02)
    prior = of_rows[0].model.prior
    slab = (found["precision"] > 10.0).mean()
    expected = (prior.precision.sample((100_000,)) > 10.0).float().mean()
    assert float(slab) == pytest.approx(float(expected), abs=0.02)


def test_the_looks_of_the_training(of_images, images):
    found = ng.to_arviz(of_images, images, observations=1, draws_per_chain=2)["training"]
    history = of_images.history
    for name in ("step", "loss", "informative", "probs"):
        assert np.array_equal(found[name], [row[name] for row in history])
    assert found["probs"].dims == ("look", "latent") and len(history) > 2
    untrained = ng.Fit(of_images.model, of_images.guide, ng.FitSpec(device="cpu"))
    found = ng.to_arviz(untrained, images, observations=1, draws_per_chain=2)
    assert sorted(groups(found)) == sorted(SCHEMA)


def test_chains_are_pieces_of_one(of_rows, rows, caplog):
    # More chains than draws, of which ArviZ would say that they are swapped.
    whole = ng.to_arviz(of_rows[0], rows, observations=3, draws_per_chain=8, seed=5)
    pieces = ng.to_arviz(of_rows[0], rows, observations=3, chains=4, draws_per_chain=2, seed=5)
    for group, name in (("posterior", "z"), ("log_likelihood", "x"), ("prior", "z")):
        assert pieces[group][name].sizes["chain"] == 4
        flat = pieces[group][name].values.reshape(1, 8, *pieces[group][name].shape[2:])
        assert np.array_equal(flat, whole[group][name])
    again = ng.to_arviz(of_rows[0], rows, observations=3, draws_per_chain=8, seed=5)
    assert np.array_equal(again["posterior_predictive"]["x"], whole["posterior_predictive"]["x"])
    assert not caplog.records


def test_as_many_images_are_drawn_as_take_little_room(of_images, images, monkeypatch):
    def drawn(**options):
        found = ng.to_arviz(of_images, images, observations=2, draws_per_chain=9, **options)
        if "posterior_predictive" not in groups(found):
            assert "prior_predictive" not in groups(found)
            return 0
        assert found["prior_predictive"].sizes == found["posterior_predictive"].sizes
        return found["posterior_predictive"].sizes["draw"]

    assert (drawn(), drawn(predictive=4), drawn(predictive=0)) == (9, 4, 0)
    pixels = 3 * 32 * 32
    monkeypatch.setattr(diagnostics, "MOST_NUMBERS", 2 * 5 * pixels)
    assert (drawn(), drawn(predictive=9), drawn(chains=2)) == (5, 9, 2)
    monkeypatch.setattr(diagnostics, "MOST_NUMBERS", 2 * pixels - 1)
    assert drawn() == 0


@pytest.mark.parametrize(("model", "guide"), PAIRS)
def test_every_pair_has_them(small_pair, data, model, guide):
    fit = ng.Fit(*small_pair(model, guide), ng.FitSpec(device="cpu"))
    found = ng.to_arviz(fit, data, observations=2, draws_per_chain=3)
    assert sorted(groups(found)) == sorted(SCHEMA)
    sites = {"z", "precision"} if model.startswith("normal_gamma") else {"z"}
    assert set(found["prior"].data_vars) == sites
    for group in SCHEMA:
        for name, values in found[group].data_vars.items():
            assert np.isfinite(values).all(), (group, name)


@pytest.mark.parametrize(
    ("layout", "shape", "dims"),
    [
        ("curves", (1, 1, 9), ("image", "position")),
        ("sequences", (2, 1, 9), ("image", "channel", "position")),
        ("grey", (1, 5, 9), ("image", "channel", "height", "width")),
    ],
)
def test_dimensions_are_those_of_the_layout(layout, shape, dims):
    form = Form(layout)
    data = ImageData.stored("some", torch.rand(4, *shape), None, (), form)
    model = ng.load_model("normal_gamma", shape, latent_size=2, decoder=SMALL)
    guide = ng.load_guide("relaxed", model, encoder=SMALL)
    fit = ng.Fit(model, guide, ng.FitSpec(device="cpu"), form=form)
    found = ng.to_arviz(fit, data, draws_per_chain=2)
    assert found["observed_data"]["x"].dims == dims
    assert found["posterior_predictive"]["x"].dims == ("chain", "draw", *dims)
    assert np.array_equal(found["observed_data"]["x"].values.ravel(), data.images.ravel())


def test_counts_are_whole_and_have_the_exposure_of_each_image():
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.permuted(np.repeat([2.0, 400.0], 3))[:, None] * np.ones(5))
    likelihood = {"family": "poisson", "exposure": "total"}
    data = ImageData.counts("cells", counts)
    model = ng.load_model("normal_gamma", data, likelihood=likelihood, latent_size=2, decoder=SMALL)
    guide = ng.load_guide("relaxed", model, encoder=SMALL)
    found = ng.to_arviz(ng.Fit(model, guide, ng.FitSpec(device="cpu"), form=data.form), data)
    assert np.array_equal(found["observed_data"]["x"], counts)
    for group in ("posterior_predictive", "prior_predictive"):
        x = found[group]["x"]
        assert x.dtype.kind == "i" and x.dims[2:] == ("image", "column")
        totals = x.sum("column").mean(("chain", "draw"))
        assert np.allclose(totals, counts.sum(1), rtol=1.0)


# Files ----------------------------------------------------------------------------------------


def test_a_file_has_all_of_it(posterior, tmp_path):
    _arviz.to_netcdf(posterior, tmp_path / "posterior.nc")
    read = runs.load_posterior(tmp_path)
    assert sorted(groups(read)) == sorted(groups(posterior))
    for group in groups(posterior):
        for name, values in posterior[group].data_vars.items():
            assert values.identical(read[group][name]), (group, name)


def test_a_file_of_before_is_read(tmp_path):
    dims = ["chain", "draw", "observation", "latent"]
    found = {
        "posterior": {"z": (dims, np.zeros((4, 5, 3, 2)))},
        "log_likelihood": {"x": (dims[:3], np.zeros((4, 5, 3)))},
        "observed_data": {"images": (["observation", "channel"], np.zeros((3, 1)))},
    }
    _arviz.to_netcdf(_arviz.from_groups(found, {}, {}), tmp_path / "posterior.nc")
    read = runs.load_posterior(tmp_path)
    assert groups(read) == list(found) and read["posterior"]["z"].dims == tuple(dims)


# What ArviZ makes of it -----------------------------------------------------------------------


@pytest.fixture
def figures():
    with mpl.rc_context({"backend": "Agg"}):
        yield
        plt.close("all")


def of_one(posterior):
    """The same with one number of each image."""
    observed = posterior["observed_data"]["x"]
    where = {"column": 2} if "column" in observed.dims else {"channel": 0, "height": 9, "width": 9}
    return posterior.sel(**where)


LATENTS = {"var_names": ["z"], "coords": {"image": [0, 1], "latent": ["z0", "z2"]}}
PLOTS = {
    "forest": lambda found: az.plot_forest(found, **LATENTS),
    "trace": lambda found: az.plot_trace(found, **LATENTS),
    "pair": lambda found: az.plot_pair(found, **LATENTS),
}
if FIRST_GENERATION:
    PLOTS |= {
        "posterior": lambda found: az.plot_posterior(found, **LATENTS),
        "prior": lambda found: az.plot_dist_comparison(found, **LATENTS),
        "predictive": lambda found: az.plot_ppc(found),
        "prior predictive": lambda found: az.plot_ppc(found, group="prior"),
        "predictive of an image": lambda found: az.plot_ppc(found, coords={"image": [0]}),
        "loo pit": lambda found: az.plot_loo_pit(of_one(found), y="x"),
    }
else:
    PLOTS |= {
        "posterior": lambda found: az.plot_dist(found, **LATENTS),
        "prior": lambda found: az.plot_prior_posterior(found, **LATENTS),
        "predictive": lambda found: az.plot_ppc_dist(found),
        "prior predictive": lambda found: az.plot_ppc_dist(found, group="prior_predictive"),
        "predictive of an image": lambda found: az.plot_ppc_dist(found, coords={"image": [0]}),
        "loo pit": lambda found: az.plot_loo_pit(of_one(found), var_names="x"),
    }


@pytest.mark.parametrize("name", PLOTS)
def test_arviz_draws(figures, posterior, name):
    PLOTS[name](posterior)
    assert any(ax.has_data() for ax in plt.gcf().axes)


def test_a_summary_of_what_is_known(posterior, caplog):
    table = az.summary(posterior, var_names=["z", "precision"], kind="stats")
    assert "r_hat" not in table and not caplog.records
    assert len(table) == 2 * 6 * 3 and "z[0, z0]" in table.index


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
def test_loo_has_an_entry_for_each_image(posterior):
    loo = az.loo(posterior, pointwise=True)
    assert loo.n_data_points == 6
    pointwise = loo.loo_i if FIRST_GENERATION else loo.elpd_i
    assert pointwise.dims == loo.pareto_k.dims == ("image",) and np.isfinite(pointwise).all()


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
def test_loo_is_a_poor_estimate_of_the_marginal_likelihood(of_images, images):
    loo = az.loo(ng.to_arviz(of_images, images, observations=8), pointwise=True)
    good = ng.log_likelihood(of_images, images.subset(slice(0, 8)))
    assert np.median(good.pareto_k) < 0.3 and (loo.pareto_k > _arviz.GOOD_K).all()
    pointwise = loo.loo_i if FIRST_GENERATION else loo.elpd_i
    assert np.abs(pointwise.values - good.values).mean() > 5.0


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
def test_compare_finds_two_fits_by_name(of_rows, rows):
    both = {name: ng.to_arviz(fit, rows) for name, fit in zip("ab", of_rows, strict=True)}
    ranked = az.compare(both)
    assert sorted(ranked.index) == ["a", "b"]
    assert float(ranked["weight"].sum()) == pytest.approx(1.0, abs=0.02)


def test_xarray_is_what_it_is_made_of(posterior):
    values = posterior["posterior"]["z"].sel(latent="z1", image=3)
    assert isinstance(values, xr.DataArray) and values.dims == ("chain", "draw")
