"""Models and guides of a user's own: functions, modules and AutoNormal, trained by ``fit``."""

import math
import warnings

import numpy as np
import pair_cases as cases
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from support import SHORT as WORDS
from support import cut, ngvae, undrawn

import ngvae_pyro as ng
from ngvae_pyro import own
from ngvae_pyro.errors import Notice, UserError
from ngvae_pyro.evaluation.diagnostics import codes
from ngvae_pyro.fitted import site_terms
from ngvae_pyro.interrupts import Interrupted
from ngvae_pyro.machine import seeded
from ngvae_pyro.report import explorer
from ngvae_pyro.specs import ScheduleSpec
from ngvae_pyro.training import steps
from ngvae_pyro.training import trainer as svi
from ngvae_pyro.training.steps import NonFiniteLoss

K, D = cases.K, cases.D
SHORT = {"steps": 30, "batch_size": 32, "device": "cpu", "progress": False, "monitor_every": 10}
WITHOUT = "trains without moves"

pytestmark = pytest.mark.filterwarnings("ignore:.*trains without moves")


@pytest.fixture(scope="module")
def rows():
    random = torch.Generator().manual_seed(0)
    sources = torch.rand(120, 2, generator=random) * 2.0 - 1.0
    noise = 0.1 * torch.randn(120, D, generator=random)
    return sources @ torch.randn(2, D, generator=random) + noise


@pytest.fixture(autouse=True)
def fresh():
    """The networks of functions belong to their module, and so to all tests."""
    torch.manual_seed(0)
    cases.decoder.reset_parameters()
    cases.encoder.reset_parameters()


@pytest.fixture
def drawing_nothing():
    with undrawn():
        yield


def functions():
    return cases.model, cases.guide


def modules():
    torch.manual_seed(0)
    return cases.Model(scale=0.3), cases.Guide()


def methods():
    torch.manual_seed(0)
    both = cases.Both(width=4)
    return both.model, both.guide


def auto():
    return cases.model, AutoNormal(cases.model)


def package_guide():
    return cases.model, "gaussian"


def package_model():
    torch.manual_seed(0)
    return ng.load_model("gaussian", (1, 1, D), latent_size=K), cases.guide


PAIRS = [functions, modules, methods, auto, package_guide, package_model]


def values(fit):
    parts = {"model": fit.model, "guide": fit.guide}
    return {
        f"{part}.{name}": value.clone()
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }


@pytest.mark.parametrize("make", PAIRS)
def test_a_pair_trains_is_looked_at_and_read_again(make, rows, tmp_path, drawing_nothing):
    model, guide = make()
    fit = ng.fit(model, guide, rows, **{**SHORT, "steps": 60}, learning_rate=0.02)
    assert fit.history[-1]["loss"] < fit.history[0]["loss"] - 1.0
    table = fit.latents(rows)
    assert len(table) == K and (table["precision"] > 0).all() and (table["KL z"] > 0).all()
    assert fit.encode(rows).shape == (120, K) and fit.reconstruct(rows).shape == (120, D)
    assert fit.sample(4).shape == (4, D)
    assert type(fit.guide).__name__ in repr(fit) or fit.guide.program.name in repr(fit)
    metrics = fit.save(tmp_path / "run", rows[:50])
    before, loc = values(fit), fit.encode(rows)
    cases.decoder.reset_parameters()
    cases.encoder.reset_parameters()
    again, _ = ng.load_run(tmp_path / "run", device="cpu")
    assert ng.evaluate(again, rows[:50])["elbo"] == metrics["elbo"]
    assert torch.equal(again.encode(rows), loc)
    assert before.keys() == values(again).keys()


@pytest.mark.parametrize("make", [functions, lambda: selecting(cases.SelectingGuide)])
def test_its_draws_are_an_arviz_object(make, rows):
    fit = ng.fit(*make(), rows, **SHORT)
    drawn = fit.to_arviz(rows, observations=3, draws_per_chain=5)
    assert drawn.posterior["z"].shape == (1, 5, 3, K)
    assert drawn.posterior_predictive["x"].shape == (1, 5, 3, D)
    assert set(drawn.prior) >= {"z"} and "lp" in drawn.sample_stats


def test_the_elbo_is_that_of_pyro_and_latents_that_depend_on_each_other_share_it(rows):
    for guide in (cases.guide, cases.Correlated()):
        fit = ng.fit(cases.model, guide, rows, **SHORT)
        x = fit.as_images(rows).images
        with seeded(0, x.device):
            log_likelihood, kl = site_terms(fit.model, fit.guide, x)
        with seeded(0, x.device), fit.model.program.store.opened():
            loss = pyro.infer.Trace_ELBO().loss(cases.model, guide, x[:, 0, 0])
        found = log_likelihood.sum() - kl["z"].sum()
        assert found.item() == pytest.approx(-loss, rel=1e-5)
        same = (kl["z"] == kl["z"][:, :1]).all()
        assert bool(same) == isinstance(guide, cases.Correlated)


def test_parameters_of_the_store_are_trained_and_belong_to_one_fit(rows):
    with pyro.get_param_store().scope():
        pyro.param("scale", torch.tensor(7.0))
        first = ng.fit(*functions(), rows, **SHORT)
        name = "_program.kept.scale"
        assert first.model.state_dict()[name].exp().item() != pytest.approx(0.5, abs=1e-3)
        assert [*pyro.get_param_store().keys()] == ["scale"]
        assert pyro.param("scale").item() == 7.0
        before = values(first)[f"model.{name}"]
        second = ng.fit(*functions(), rows, **SHORT, seed=1)
        assert torch.equal(values(first)[f"model.{name}"], before)
        assert not torch.equal(values(second)[f"model.{name}"], before)


def test_layers_of_one_name_in_model_and_guide_are_two(rows):
    fit = ng.fit(*modules(), rows, **SHORT)
    found = [name for name, _ in fit.guide.named_parameters()]
    assert found == ["_program.module.linear.weight", "_program.module.linear.bias"]
    model, guide = fit.model.program.called, fit.guide.program.called
    assert model.linear.weight.shape == (D, K) and guide.linear.weight.shape == (2 * K, D)


def test_a_module_is_in_train_during_steps_and_in_eval_else(rows):
    seen = set()
    model, guide = methods()
    model.__self__.decoder[1].register_forward_hook(lambda part, *_: seen.add(part.training))
    fit = ng.fit(model, guide, rows, **SHORT)
    assert seen == {True, False}
    before = fit.reconstruct(rows)
    assert torch.equal(fit.reconstruct(rows), before)


def test_a_resumed_training_is_the_uninterrupted_one(rows, tmp_path, monkeypatch):
    def train(folder, after=None, resume=False):
        cut(monkeypatch, after)
        cases.decoder.load_state_dict(start[0])
        cases.encoder.load_state_dict(start[1])
        keep = ng.Checkpoints(tmp_path / folder, every=5)
        return ng.fit(*functions(), rows, **SHORT, checkpoints=keep, resume=resume)

    start = [
        {name: value.clone() for name, value in part.state_dict().items()}
        for part in (cases.decoder, cases.encoder)
    ]
    whole = train("whole")
    right = values(whole)
    with pytest.raises(Interrupted):
        train("parts", after=13)
    parts = train("parts", resume=True)
    left = values(parts)
    assert parts.history == whole.history and right.keys() == left.keys()
    assert all(torch.equal(left[name], right[name]) for name in right)


def test_what_is_declared_steady_is_recorded_with_the_same_result(rows, monkeypatch):
    programs = []
    monkeypatch.setattr(steps, "WARM_UP", 2)
    monkeypatch.setattr(steps, "PAYS_FROM", 0)
    monkeypatch.setattr(svi, "PAYS_FROM", 0)
    monkeypatch.setattr(svi.Trainer, "heed", lambda t, now=False: programs.append(t.steps.program))
    with pytest.warns(Notice, match="Model and Guide may do something else in each step"):
        plain = ng.fit(*modules(), rows, **SHORT)
    assert set(programs) == {None}
    pair = modules()
    for part in pair:
        part.recorded = True
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "training goes step by step")
        recorded = ng.fit(*pair, rows, **SHORT)
    assert programs[-1] is not None
    left, right = values(plain), values(recorded)
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, atol=1e-4, rtol=1e-3)


# Selection ------------------------------------------------------------------------------------


def selecting(guide):
    torch.manual_seed(0)
    return cases.SelectingModel(), guide()


def test_a_guide_that_offers_what_moves_need_is_moved(rows, deaths):
    few = own.SELECT_OWN.model_dump(exclude_unset=True)
    few["moves"] = tuple({"kind": kind, "at": 0.2, "steps": 10} for kind in ("death", "growth"))
    pair = selecting(cases.MovableGuide)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", WITHOUT)
        how = {**SHORT, "steps": 100, "learning_rate": 0.005}
        fit = ng.fit(*pair, rows, **how, schedule=ScheduleSpec(**few))
    assert fit.moves and fit.extra_steps > 0
    assert fit.guide.p_is == "the weight of the informative component"
    assert fit.rotation is not None or fit.verdict.informative < 2
    assert set(fit.latents(rows).columns) >= {"KL precision", "p"}


def test_its_default_schedule_moves(rows):
    _, guide = own.paired(*selecting(cases.MovableGuide), ng.ImageData("rows", rows), 0)
    assert [move.kind for move in guide.spec.schedule.moves].count("birth") == 2


def test_one_line_says_why_there_are_no_moves(rows):
    line = (
        "guide: SelectingGuide trains without moves (births, deaths, growths, rotations): it has "
        "no codes, switch, recombine, seal (ngvae_pyro.guide.SwitchableLatents)"
    )
    with pytest.warns(Notice) as caught:
        fit = ng.fit(*selecting(cases.SelectingGuide), rows, **SHORT)
    assert [str(w.message) for w in caught if WITHOUT in str(w.message)] == [line]
    # The ramps of the weights need nothing of the guide.
    assert fit.schedule.moves == () and fit.schedule.precision.initial == 0.0
    with pytest.warns(Notice, match="need a decoder of the package's"):
        fit = ng.fit(cases.SelectingModel(), "relaxed", rows, **SHORT)
    assert fit.verdict is not None and not fit.moves
    with pytest.raises(UserError, match="a Propose needs a guide that is SwitchableLatents"):
        ng.fit(*selecting(cases.SelectingGuide), rows, **SHORT, schedule=own.SELECT_OWN)


# Codes ----------------------------------------------------------------------------------------


def test_codes_without_a_precision_are_exact_where_the_site_knows_them(rows):
    fit = ng.fit(*functions(), rows, **SHORT)
    found = codes(fit, fit.as_images(rows))
    with torch.no_grad():
        loc, log_scale = cases.encoder(fit.as_images(rows).images[:, 0, 0]).chunk(2, -1)
    assert torch.allclose(found.loc, loc, atol=1e-6)
    assert torch.allclose(found.variance, (2 * log_scale).exp(), rtol=1e-5)


def test_codes_of_draws_are_within_their_error_and_repeatable(rows):
    fit = ng.fit(cases.model, cases.squared_guide, rows, **SHORT)
    data = fit.as_images(rows)
    found = codes(fit, data)
    # E = (1 + 0.04) / 2 and Var = (4 * 0.04 + 2 * 0.04^2) / 4.
    variance = (0.16 + 0.0032) / 4
    error = (found.loc - 0.52) / math.sqrt(variance / own.DRAWS)
    assert error.std().item() == pytest.approx(1.0, abs=0.15)
    assert found.variance.mean().item() == pytest.approx(variance, rel=0.05)
    assert torch.equal(codes(fit, data).loc, found.loc)
    state = torch.get_rng_state()
    codes(fit, data)
    assert torch.equal(torch.get_rng_state(), state)


def test_codes_of_a_mixture_are_those_that_it_would_offer(rows):
    fit = ng.fit(*selecting(cases.SelectingGuide), rows, **SHORT)
    data = fit.as_images(rows)
    found = codes(fit, data)
    with torch.no_grad():
        q = fit.guide.program.called.posterior(data.images[:, 0, 0])
    assert torch.allclose(found.loc, q.loc, atol=1e-6)
    ratio = found.precision / q.mean[..., 1]
    assert (ratio.mean() - 1.0).abs() < 0.02


def test_the_marginal_is_the_prior_or_refused(rows):
    joint = cases.SelectingModel()
    fit = ng.fit(joint, cases.SelectingGuide(), rows, **SHORT)
    z = torch.randn(4, K)
    normal = dist.Normal(0.0, 1.0)
    assert torch.allclose(fit.model.marginal.log_prob(z), normal.log_prob(z))
    joint.prior.conditional = lambda precision: dist.Normal(0.0, precision.rsqrt())
    with pytest.raises(UserError, match="SelectingModel: the prior of z depends on its precision"):
        fit.sample(3)
    joint.marginal = normal.expand([K])
    assert fit.sample(3).shape == (3, D)


def test_what_needs_a_decoder_is_refused_in_one_line(rows):
    fit = ng.fit(*functions(), rows, **SHORT)
    with pytest.raises(UserError, match="model: it offers no decoder apart from its likelihood"):
        ng.log_likelihood(fit, rows[:4])


def test_auto_normal_knows_the_rows_that_it_was_trained_on_and_no_others(rows):
    fit = ng.fit(*auto(), rows, **SHORT)
    some = fit.encode(rows)[torch.tensor([5, 3, 5])]
    assert torch.equal(fit.encode(rows[[5, 3, 5]]), some)
    with pytest.raises(UserError, match="of the 120 rows that it was trained on, and of no others"):
        fit.encode(rows + 1.0)
    with pytest.raises(UserError, match="expected an AutoNormal.*got an AutoDiagonalNormal"):
        ng.fit(cases.model, AutoDiagonalNormal(cases.model), rows, **SHORT)


# Images, counts -------------------------------------------------------------------------------


def test_images_keep_their_axes_and_counts_their_values():
    seen = []

    def model(x):
        seen.append(x)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            rate = z.sum(-1).exp()[:, None, None, None].expand(len(x), 1, 4, 3)
            pyro.sample("x", dist.Poisson(rate).to_event(3), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    model.whole_numbers = True
    pictures = torch.poisson(torch.full((40, 4, 3), 2.0), torch.Generator().manual_seed(0))
    fit = ng.fit(model, guide, pictures, **SHORT)
    assert seen[0].shape == (5, 1, 4, 3) and torch.equal(seen[0][:, 0], pictures[:5])
    assert fit.reconstruct(pictures).shape == pictures.shape


@pytest.mark.parametrize("shape", [(6,), (6, 8)])
def test_the_page_of_a_pair_does_not_compute_with_its_decoder(shape):
    torch.manual_seed(0)
    mixing = torch.randn(2, math.prod(shape))
    x = 0.5 + 0.1 * torch.randn(60, 2) @ mixing

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = (z @ pyro.param("mixing", mixing.clone())).view(len(x), *x.shape[1:])
            pyro.sample("x", dist.Normal(loc, 0.1).to_event(x.dim() - 1), obs=x)

    inverse = torch.linalg.pinv(mixing)

    def guide(x):
        with pyro.plate("data", len(x)):
            loc = x.flatten(1) @ pyro.param("inverse", inverse.clone())
            pyro.sample("z", dist.Normal(loc, 0.1).to_event(1))

    data = ng.from_numpy(x.view(60, *shape))
    fit = ng.fit(model, guide, data, **{**SHORT, "steps": 2})
    metrics = ng.evaluate(fit, data)
    # As it is of a file, which says nothing of a decoder.
    changes = {"decoder": ng.ModelSpec().decoder}
    fit.model.spec = fit.model.spec.model_copy(update=changes)
    found = explorer.explore(fit, data, metrics)
    assert metrics["informative"] == 2
    assert "because the decoder is one of your own" in found.texts[-1]
    # Of images there are some that were decoded beforehand.
    assert len(found.sliders) == (2 if len(shape) > 1 else 0)
    assert found.data is None if len(shape) == 1 else "strips" in found.data


# What is refused ------------------------------------------------------------------------------


def named(x, z="z", observed="x", size=K, plate=True, event=1):
    def run():
        normal = dist.Normal(torch.zeros(len(x), size), 1.0)
        latent = pyro.sample(z, normal.to_event(1))
        spread = dist.Normal(torch.zeros(len(x), D), 1.0).to_event(event)
        if observed:
            pyro.sample(observed, spread, obs=x)
        return latent

    if not plate:
        return run()
    with pyro.plate("data", len(x)):
        return run()


def of(**changes):
    return lambda x: named(x, **changes)


def global_latent(x):
    pyro.sample("w", dist.Normal(0.0, 1.0))
    return named(x)


def failing(x):
    return torch.zeros(2, 3) @ x


LAMBDA = "of.<locals>.<lambda>"
REFUSED = {
    "no x": (of(observed=None), None, f"model: {LAMBDA}: expected an observed site x"),
    "name of x": (of(observed="y"), None, "expected an observed site x, pyro.sample"),
    "name of z": (of(z="h"), None, "expected a latent site z, .*, got h"),
    "global": (global_latent, None, "and no others, got w, z"),
    "no plate": (of(plate=False), None, r"expected one plate over the rows of the batch, pyro.pla"),
    "event": (of(event=0), None, "model: .*: "),
    "fails": (failing, None, r"model: failing: fails at a batch of shape \(5, 6\): RuntimeError"),
    "latents": (None, of(observed=None, size=2), "guide: .* expected the 3 latents of the model"),
    "guide's z": (None, of(observed=None, z="h"), "guide: .* expected a latent site z"),
    "class": (cases.Model, None, "model: .* called with a batch, got the class Model"),
    "no function": (3, None, "model: .* called with a batch, got 3"),
    "no guide": (None, 3, "guide: .* called with a batch, got 3"),
    "swapped": (
        cases.Model(),
        ng.load_model("gaussian", (1, 1, D)),
        "guide: .*, got a GaussianVAE",
    ),
    "family": (None, "relaxed", "guide: expected gaussian .* the latent sites z, got relaxed"),
    "name": (None, "gausian", "unknown guide 'gausian'; did you mean 'gaussian'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_one_line_says_what_is_wrong_with_a_pair(case, rows):
    model, guide, line = REFUSED[case]
    with pytest.raises(UserError, match=line):
        ng.fit(model or cases.model, guide or cases.guide, rows, **SHORT)


def test_data_that_a_pair_does_not_take_are_refused(rows):
    gaps = rows.numpy().copy()
    gaps[0, 0] = np.nan
    with pytest.raises(UserError, match=r"of your own takes no missing values \(NaN\)$"):
        ng.fit(*functions(), ng.from_numpy(gaps, missing=True), **SHORT)
    known = ng.from_numpy(rows, covariates={"batch": np.arange(len(rows))})
    with pytest.raises(UserError, match="of your own takes no covariates; they can be columns"):
        ng.fit(*functions(), known, **SHORT)


def test_rows_that_stay_on_the_disk_train_a_pair_alike(rows, tmp_path):
    np.save(tmp_path / "rows.npy", rows.numpy())
    streamed = ng.load_data(tmp_path / "rows.npy", stream=True)
    one, other = (values(ng.fit(*modules(), data, **SHORT)) for data in (rows, streamed))
    assert all(torch.equal(one[name], other[name]) for name in one | other)


def test_a_guide_has_the_latents_of_its_model(rows):
    with pytest.raises(UserError, match="latent sites of the model, precision and z, got z"):
        ng.fit(cases.SelectingModel(), cases.guide, rows, **SHORT)
    model = ng.load_model("gaussian", rows, latent_size=K)
    with pytest.raises(UserError, match="latent sites of the model, z, got precision and z"):
        ng.fit(model, cases.SelectingGuide(), rows, **SHORT)


def test_settings_that_mean_nothing_to_a_pair_are_refused(rows):
    for key, value in {"adversarial": {}, "network_dtype": "bfloat16"}.items():
        with pytest.raises(UserError, match=f"fit.{key}: expected"):
            ng.fit(*functions(), rows, **SHORT, **{key: value})


def test_a_pair_without_parameters_is_refused(rows):
    with pytest.raises(UserError, match="model and guide: expected parameters to train, .*none"):
        ng.fit(of(), of(observed=None), rows, **SHORT)


def test_a_parameter_that_comes_later_is_refused(rows):
    calls = []

    def model(x):
        calls.append(None)
        if len(calls) > 20:
            pyro.param("late", torch.zeros(()))
        return cases.model(x)

    with pytest.raises(UserError, match="has a new parameter late in a later call"):
        ng.fit(model, cases.guide, rows, **SHORT)


def test_a_training_that_diverges_says_what_to_try(rows):
    def model(x):
        return cases.model(x / 0.0 if x.requires_grad or len(x) == 32 else x)

    with pytest.raises(NonFiniteLoss, match="non-finite loss at step 0: .* try"):
        ng.fit(model, cases.guide, rows, **SHORT)


def test_what_has_no_name_is_not_saved(rows, tmp_path, drawing_nothing):
    class Here(cases.Model):
        pass

    class Needy(cases.Guide):
        pass

    Needy.__qualname__ = "Guide"
    lines = {
        (lambda x: cases.model(x), cases.guide): "save_run: model: expected a function, or a class",
        (Here(), cases.guide): "got .*Here of test_own_pairs; put it into a module",
    }
    for pair, line in lines.items():
        fit = ng.fit(*pair, rows, **SHORT)
        with pytest.raises(UserError, match=line):
            fit.save(tmp_path / "run", rows)
        assert not (tmp_path / "run").exists()
    model = cases.Model()
    model.options = {"size": 3}
    fit = ng.fit(model, cases.guide, rows, **SHORT)
    with pytest.raises(UserError, match=r"Model is made again as Model\(\*\*options\).*'size'"):
        fit.save(tmp_path / "run", rows)


@pytest.mark.parametrize(
    ("factory", "line"),
    [
        ("os:system", "expected a function, or a class of torch.nn.Module, as os:system"),
        ("shutil:rmtree", "expected a function, or a class of torch.nn.Module, as shutil:rmtree"),
        ("pair_cases:K", "as pair_cases:K, got 3"),
        ("pair_cases:nothing", "as pair_cases:nothing, got none"),
        ("pair_cases:Codes", "as pair_cases:Codes, got the class Codes"),
        ("no_such_module:model", "cannot import no_such_module"),
    ],
)
def test_a_run_folder_calls_only_programs(factory, line, rows, tmp_path, drawing_nothing):
    ng.fit(*functions(), rows, **SHORT).save(tmp_path / "run", rows[:50])
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text().replace("pair_cases:model", factory))
    with pytest.raises(UserError, match=line):
        ng.load_run(tmp_path / "run")


def test_a_pair_is_trained_from_files(rows, tmp_path, monkeypatch, drawing_nothing):
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", rows.numpy())
    for name, more in (("model", "latent_size = 3\n[prior]\n"), ("guide", "")):
        text = f'{more}family = "own"\nfactory = "pair_cases:{name}"\n'
        (tmp_path / f"{name}.toml").write_text(text)
    words = [*WORDS[:2], "--device", "cpu", "--data", "rows.npy", "--out", "run"]
    ngvae("train", "model.toml", "guide.toml", *words)
    assert "of 3 latents" in ngvae("inspect", "run")
    (tmp_path / "guide.toml").write_text('family = "own"\n')
    line = ngvae("train", "model.toml", "guide.toml", *words[:-1], "other", code=2)
    assert line == "guide.factory: expected package.module:Name, got ''"


def test_a_family_of_ones_own_is_not_loaded_by_itself(rows):
    with pytest.raises(UserError, match="prior family 'own': expected a model of your own as it"):
        ng.load_model(ng.ModelSpec(prior={"family": "own"}), rows)
    with pytest.raises(UserError, match="variant: expected the spec of a guide.*OwnGuideSpec"):
        ng.load_guide(own.OwnGuideSpec(), ng.load_model("gaussian", rows))
