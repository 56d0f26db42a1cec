"""Covariates: how columns become a design, and that decoder and encoder use it."""

import json
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from support import SHORT, SMALL, load, ngvae
from torch.func import jvp, vmap

import ngvae_pyro as ng
from ngvae_pyro import contexts, machine
from ngvae_pyro.contexts import given
from ngvae_pyro.data import as_images
from ngvae_pyro.data.batches import Batches
from ngvae_pyro.data.forms import Covariate
from ngvae_pyro.distributed import ALONE, Team
from ngvae_pyro.errors import UserError
from ngvae_pyro.evaluation import diagnostics, evidence, uncertainty
from ngvae_pyro.specs import FitSpec, Move
from ngvae_pyro.training import steps
from ngvae_pyro.training import trainer as svi
from ngvae_pyro.training.checkpoints import Checkpoints

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(60, 5))
SITE = RNG.choice(["berlin", "paris", "oslo"], 60)
DOSE = RNG.gamma(2.0, size=60)
TABLE = pd.DataFrame({"mass": VECTORS[:, 0], "width": VECTORS[:, 1], "site": SITE, "dose": DOSE})
MOVES = (
    Move(kind="birth", at=0.2, steps=2),
    Move(kind="growth", at=0.3, steps=2),
    Move(kind="unfolding", at=0.6, steps=2),
)


def fresh():
    return ng.from_numpy(VECTORS, covariates={"site": SITE, "dose": DOSE})


@pytest.fixture(scope="module")
def data():
    return fresh()


@pytest.fixture(scope="module")
def trained(data):
    pair = load(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = ng.fit(*pair, data, steps=30, batch_size=16, device="cpu", progress=False)
    # After so few steps they would be nearly 0.
    with torch.no_grad():
        for network in (fit.model.decoder, fit.guide.encoder):
            network.conditioning.weight.normal_()
    return fit


# The design --------------------------------------------------------------------------------------


def test_text_is_classes_and_numbers_are_standardised(data):
    site, dose = data.form.covariates
    assert site == Covariate("site", ("berlin", "oslo", "paris"))
    assert (dose.name, dose.mean, dose.sd) == ("dose", DOSE.mean(), DOSE.std())
    assert repr(data) == "ImageData('data', 60 vectors of 5, no factors; covariates site, dose)"
    assert data.covariates.shape == (60, 4) and data.covariates.dtype is torch.float32
    for column, name in enumerate(site.classes):
        assert data.covariates[:, column].tolist() == (name == SITE).tolist()
    assert np.allclose(data.covariates[:, 3], (DOSE - DOSE.mean()) / DOSE.std(), atol=1e-6)
    assert Covariate.of("same", np.ones(3), "x").coded(np.ones(3), "x").tolist() == [[0.0]] * 3


def test_all_that_takes_some_of_the_data_takes_their_covariates(data):
    order = torch.randperm(60)
    # These reuse the memory of theirs.
    again, copied = fresh().reordered(order), fresh().split(0.2, 0, in_place=True)
    assert torch.equal(again.covariates, data.covariates[order])
    assert torch.equal(again.images, data.images[order])
    assert torch.equal(data.subset([3, 1]).covariates, data.covariates[[3, 1]])
    train, held_out = data.split(0.2, 0)
    for part, same in zip((train, held_out), copied, strict=True):
        assert torch.equal(part.covariates, same.covariates)
        assert part.form.covariates == data.form.covariates
    images = ng.ImageData("i", np.zeros((3, 8, 8)), covariates={"dose": np.arange(3)})
    assert torch.equal(images.fitted((3, 16, 16))[0].covariates, images.covariates)
    counts = ng.from_numpy(np.arange(6.0).reshape(3, 2), covariates={"dose": np.arange(3)})
    assert torch.equal(counts.as_counts().covariates, counts.covariates)


def test_the_digest_is_of_the_covariates_too(data):
    plain = ng.from_numpy(VECTORS)
    other = ng.from_numpy(VECTORS, covariates={"site": SITE, "dose": DOSE[::-1]})
    assert len({plain.digest, other.digest, data.digest}) == 3
    assert data.subset(slice(None)).digest == data.digest


@pytest.mark.parametrize(
    ("covariates", "match"),
    [
        ({"dose": DOSE[:9]}, r"data: covariates: expected 60 values of each, .* got \(9, 1\)"),
        ({"dose": DOSE[:, None]}, r"covariate 'dose': expected .* of shape \(N,\), got .*60, 1"),
        ({"dose": np.full(60, np.nan)}, "covariate 'dose': expected finite numbers, got NaN"),
        ({"dose": DOSE, "site": SITE[:9]}, "expected covariates of one length"),
        ([DOSE], "covariates: expected a table of names and arrays"),
    ],
)
def test_refused_covariates_are_one_line(covariates, match):
    with pytest.raises(UserError, match=match) as caught:
        ng.from_numpy(VECTORS, covariates=covariates)
    assert "\n" not in str(caught.value)


# Files -------------------------------------------------------------------------------------------


def cells(path):
    with h5py.File(path, "w") as file:
        file["X"] = VECTORS
        for name, index in (("obs", np.arange(60)), ("var", np.arange(5))):
            group = file.create_group(name)
            group.attrs["_index"] = "_index"
            group["_index"] = [str(i) for i in index]
        file["obs"].attrs["column-order"] = ["site", "dose"]
        file["obs/site"], file["obs/dose"] = SITE.astype(object), DOSE


def hdf5(path):
    with h5py.File(path, "w") as file:
        file["x"], file["dose"] = VECTORS, DOSE
        file["factors"] = np.stack([SITE, SITE], 1).astype(object)
        file["factor_names"] = ["a", "site"]


WRITERS = {
    "t.csv": lambda path: TABLE.to_csv(path, index=False),
    "t.tsv": lambda path: TABLE.to_csv(path, index=False, sep="\t"),
    "a.h5ad": cells,
    "a.npz": lambda path: np.savez(
        path, x=VECTORS, factors=np.stack([SITE, SITE], 1), factor_names=["a", "site"], dose=DOSE
    ),
    "a.h5": hdf5,
}


@pytest.mark.parametrize("name", WRITERS)
def test_files_have_them_by_the_names_of_columns(data, tmp_path, name):
    WRITERS[name](path := tmp_path / name)
    read = ng.load_data(path, covariates=["site", "dose"])
    assert torch.equal(read.covariates, data.covariates)
    assert read.form.covariates == data.form.covariates
    assert "site" not in read.factor_names and "dose" not in read.form.columns
    assert read.factor_names == (("a",) if name in ("a.npz", "a.h5") else ())
    numbers = ng.load_data(path, covariates="dose") if name[0] == "a" else None
    assert numbers is None or numbers.form.covariates == data.form.covariates[1:]
    with pytest.raises(UserError, match="covariates: found no column 'sit'; did you mean 'site'"):
        ng.load_data(path, covariates=["sit", "dose"])


def test_numbers_may_be_classes(tmp_path):
    TABLE.assign(batch=np.arange(60) % 2).to_csv(path := tmp_path / "t.csv", index=False)
    data = ng.load_data(path, covariates=["C(batch)"], factors=["site"])
    assert data.form.covariates == (Covariate("batch", ("0", "1")),)
    assert data.covariates[:, 1].tolist() == [0.0, 1.0] * 30
    with pytest.raises(UserError, match="expected 'site' as a factor or a covariate, got both"):
        ng.load_data(path, covariates=["site"], factors=["site"])
    # As the kind of a sprite.
    shapes = ng.load_data("sprites", n=20, covariates=["C(size)", "x"])
    assert shapes.form.covariates[1].name == "x"
    assert shapes.factor_names == ("y", "red", "green", "blue", "background")


def test_annotated_matrices_and_categories_have_them(data):
    obs = pd.DataFrame({"site": pd.Categorical(SITE), "dose": DOSE, "lane": np.arange(60) % 2})
    adata = SimpleNamespace(X=VECTORS, layers={}, obs=obs, var_names=list("abcde"))
    read = ng.from_anndata(adata, covariates=["site", "dose"])
    assert torch.equal(read.covariates, data.covariates) and read.factors is None
    table = obs.assign(lane=pd.Categorical(obs.lane))
    lanes = ng.from_anndata(SimpleNamespace(**{**vars(adata), "obs": table}), covariates=["lane"])
    assert lanes.form.covariates == (Covariate("lane", ("0", "1")),)


def test_further_data_have_the_coding_of_the_training(data, tmp_path):
    few = ng.from_numpy(VECTORS[:9], covariates={"dose": DOSE[:9], "site": SITE[:9]})
    assert few.form.covariates != data.form.covariates
    again = as_images(few, form=data.form)
    assert np.allclose(again.covariates, data.covariates[:9], atol=1e-6)
    assert np.allclose(again.images, data.images[:9], atol=1e-6)
    TABLE.to_csv(path := tmp_path / "t.csv", index=False)
    table = ng.load_data(path, covariates=["site", "dose"])
    for same in (TABLE[:9], path):
        read = as_images(same, form=table.form)
        assert torch.equal(read.covariates, table.covariates[: len(read)])
    line = "covariate 'site': expected one of 'berlin', 'oslo', 'paris', got 'rome'$"
    new = ng.from_numpy(VECTORS[:2], covariates={"site": ["rome", "oslo"], "dose": DOSE[:2]})
    with pytest.raises(UserError, match=line):
        as_images(new, form=data.form)
    for other in (ng.from_numpy(VECTORS), VECTORS):
        with pytest.raises(UserError, match="expected the covariates site, dose, .*, got none"):
            as_images(other, form=data.form)
    with pytest.raises(UserError, match="expected the covariates none, .*, got site, dose$"):
        as_images(data, form=ng.from_numpy(VECTORS).form)


# The networks ------------------------------------------------------------------------------------


def test_without_covariates_nothing_is_different(data):
    plain, own = load(ng.from_numpy(VECTORS)), load(data)
    for before, after in zip(plain, own, strict=True):
        weights = after.state_dict()
        assert set(weights) - set(before.state_dict()) == {
            name for name in weights if ".conditioning." in name
        }
        # Covariates take no random numbers either.
        assert all(torch.equal(value, weights[name]) for name, value in before.state_dict().items())
        assert all(".conditioning." not in name for name in before.state_dict())
    x = torch.randn(3, 1, 1, 5)
    assert torch.equal(own[1].codes(x).loc, plain[1].codes(x).loc)
    with given(torch.zeros(9, 9)):
        plain[1].codes(x), plain[0].decoder(torch.zeros(2, 4))
    assert contexts.covariates() is None


def test_other_covariates_are_other_codes_and_images(trained, data):
    other = ng.ImageData.stored(
        "o", data.images, form=data.form, covariates={"site": SITE[::-1], "dose": DOSE}
    )
    codes = [diagnostics.codes(trained, part).loc for part in (data, other)]
    same = torch.from_numpy(SITE[::-1] == SITE)
    apart = (codes[0] - codes[1]).abs().amax(1)
    assert (apart[same] == 0).all() and (apart[~same] > 0).all()
    means = [trained.means(codes[0], part) for part in (data, other)]
    apart = (means[0] - means[1]).abs().flatten(1).amax(1)
    assert (apart[same] == 0).all() and (apart[~same] > 0).all()


def test_the_reference_stands_where_nothing_is_given(trained, data):
    reference = data.covariates.mean(0)
    for network in (trained.model.decoder, trained.guide.encoder):
        assert torch.allclose(network.conditioning.reference, reference)
    z = torch.randn(600, 4)
    with given(reference):
        expected = trained.means(z)
    assert torch.equal(trained.means(z), expected)
    decoded = trained.decode(z.numpy(), {"site": "oslo", "dose": DOSE.mean()})
    with given(torch.tensor([0.0, 1.0, 0.0, 0.0])):
        assert np.allclose(decoded, trained.decode(z.numpy()), atol=1e-5)
    sites = np.resize(["oslo", "paris"], 600)
    mixed = trained.decode(z.numpy(), {"site": sites, "dose": np.full(600, DOSE.mean())})
    assert np.allclose(mixed[::2], decoded[::2], atol=1e-5)
    assert np.abs(mixed[1::2] - decoded[1::2]).max(1).min() > 0
    with pytest.raises(UserError, match="'site': expected one of .*, got 'rome'"):
        trained.decode(z.numpy(), {"site": "rome", "dose": 1.0})


def test_rows_that_do_not_match_are_refused(trained, data):
    decoder = trained.model.decoder
    with given(data.covariates[:6]):
        assert decoder(torch.zeros(6, 4)).shape == (6, 1, 1, 5)
        many = decoder(torch.zeros(2, 3, 6, 4))
        assert torch.equal(many[1, 2], decoder(torch.zeros(6, 4)))
        for call in (
            lambda: decoder(torch.zeros(5, 4)),
            lambda: decoder(torch.zeros(6, 1, 4)),
            lambda: trained.guide.codes(torch.zeros(5, 1, 1, 5)),
        ):
            with pytest.raises(UserError, match=r"covariates: expected shape \(., 4\), got \(6, 4"):
                call()
    with given(torch.zeros(6, 3)), pytest.raises(UserError, match="expected shape"):
        decoder(torch.zeros(6, 4))
    with contexts.forward_mode():
        slopes = vmap(lambda v: jvp(decoder, (torch.zeros(4),), (v,))[1])(torch.eye(4))
    assert slopes.shape[0] == 4


def test_a_pair_for_other_covariates_is_refused(data):
    plain = ng.from_numpy(VECTORS)
    with pytest.raises(UserError, match="expected 4 columns of covariates, .*, got none; load_mod"):
        ng.fit(*load(data), plain, steps=2, progress=False)
    with pytest.raises(UserError, match="expected no columns of covariates, .*, got 4; load_model"):
        ng.fit(*load(plain), data, steps=2, progress=False)


# Training ----------------------------------------------------------------------------------------


@pytest.fixture
def recorded_soon(monkeypatch):
    monkeypatch.setattr(steps, "WARM_UP", 2)
    monkeypatch.setattr(steps, "PAYS_FROM", 0)


def trainer_of(data, count, guide="relaxed", **settings):
    """A trainer after some steps of many."""
    model, guide = load(data, guide=guide)
    spec = FitSpec(**{"steps": 30, "batch_size": 16, "device": "cpu", **settings})
    with machine.seeded(0, CPU), pyro.get_param_store().scope():
        trainer = svi.Trainer(model, guide, data, spec, guide.spec.schedule)
        for _ in range(count):
            trainer.train_step()
    return trainer


@pytest.mark.parametrize("resident_bytes", [1, 2**30])
def test_recorded_steps_are_the_literal_ones(data, recorded_soon, resident_bytes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recorded, literal = (
            trainer_of(data, 8, fast=fast, resident_bytes=resident_bytes) for fast in (True, False)
        )
    assert recorded.steps.program is not None and literal.steps.program is None
    pairs = zip(recorded.parameters, literal.parameters, strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    for network in (recorded.model.decoder, recorded.guide.encoder):
        weight = network.conditioning.weight.detach()
        assert (weight != 0).any(0).all()  # of every column


def test_batches_have_the_rows_of_their_images(data):
    # The second of two processes, which have half of each batch.
    for resident_bytes, team in ((1, ALONE), (2**30, ALONE), (1, Team(1, 2)), (2**30, Team(1, 2))):
        batches = Batches(data, 16, 0, CPU, resident_bytes, team=team)
        for step in (0, 1, 5):
            batches.prepare(step)
            x, rows = batches.take(torch.tensor([step]))
            index = batches.index(step)
            assert len(index) == 16 // team.size
            assert torch.equal(x, data.images[index])
            assert torch.equal(rows, data.covariates[index])


@pytest.mark.usefixtures("deaths")
def test_moves_and_a_resumed_training_have_them(data, tmp_path, monkeypatch):
    def train(folder, resume=False):
        model, guide = load(data)
        schedule = guide.spec.schedule.model_copy(update={"moves": MOVES})
        spec = FitSpec(steps=20, batch_size=16, device="cpu", monitor_every=6, validation=0.2)
        keep = Checkpoints(folder, every=7)
        how = {"schedule": schedule, "progress": False, "checkpoints": keep, "resume": resume}
        return ng.fit(model, guide, data, spec, **how)

    whole = train(tmp_path / "whole")
    stop = svi.Trainer.train_step
    monkeypatch.setattr(
        svi.Trainer, "train_step", lambda own: stop(own) if own.step < 16 else 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "cut")
    monkeypatch.undo()
    resumed = train(tmp_path / "cut", resume=True)
    for part in ("model", "guide"):
        weights = getattr(resumed, part).state_dict()
        for name, value in getattr(whole, part).state_dict().items():
            assert torch.equal(value, weights[name]), name
    assert resumed.history == whole.history


@pytest.mark.parametrize("guide", ["flat", "mixture"])
def test_other_guides_train_with_them(data, guide):
    trainer = trainer_of(data, 3, guide=guide)
    assert trainer.guide.encoder.conditioning.weight.abs().sum() > 0


def test_the_poisson_and_ard_pairs_train_with_them(data):
    for pair in (("poisson", "poisson"), ("ard", "ard"), ("gaussian", "epanechnikov")):
        fit = ng.fit(*load(data, *pair), data, steps=3, device="cpu", progress=False)
        assert np.isfinite(fit.encode(data)).all()


# What is computed of a fit -----------------------------------------------------------------------


def test_the_log_likelihood_is_of_the_covariates(trained, data):
    few = data.subset(slice(0, 12))
    found = evidence.log_likelihood(trained, few, draws=50).values
    other = ng.ImageData.stored(
        "o", few.images, form=data.form, covariates={"site": SITE[12:24], "dose": DOSE[12:24]}
    )
    assert np.abs(found - evidence.log_likelihood(trained, other, draws=50).values).max() > 0.1
    # Each row alone, with covariates that are the same for all.
    for i in (0, 7):
        z = torch.randn(2000, 1, 4, generator=torch.Generator().manual_seed(0))
        with few.given(slice(i, i + 1)) as x, torch.no_grad():
            q = trained.guide.posterior(x)
            z = q.loc + 2.0 * q.variance[..., 0].sqrt() * z
            r = torch.distributions.Normal(q.loc, 2.0 * q.variance[..., 0].sqrt())
            weights = evidence.log_joint(trained.model, x, z) - r.log_prob(z).sum(-1)
        assert abs((weights.logsumexp(0) - np.log(2000)).item() - found[i]) < 0.5


def test_everything_else_takes_them(trained, data):
    metrics = ng.evaluate(trained, data)
    assert np.isfinite(metrics["elbo"]) and len(metrics["earned"]) == 4
    assert trained.reconstruct(data).shape == (60, 5)
    assert trained.traverse(data, [0]).shape == (1, 11, 5)
    drawn = ng.to_arviz(trained, data, observations=3, draws_per_chain=5)
    assert drawn.posterior["z"].shape == (1, 5, 3, 4)
    parts = uncertainty.uncertainty(trained, data.subset(slice(0, 3)), precisions=2, draws=2)
    assert parts.total.shape == (3, 1, 1, 5)


@pytest.mark.slow
def test_latents_of_cells_do_not_tell_the_batch_that_networks_are_told():
    text = (Path(__file__).parent.parent / "docs" / "covariates.md").read_text()
    cells = re.findall(r"^```{code-cell}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    page = {}
    exec(compile("\n".join(cells), "covariates.md", "exec"), page)
    assert page["told"] > 0.5 > 0.05 > page["left"]
    assert page["plain"].n_components_ == 4 and page["vae"].n_components_ == 3
    assert np.corrcoef(page["fold"], page["decoded"])[0, 1] > 0.9


# Run folders and the estimator -------------------------------------------------------------------


def test_the_command_line_trains_resumes_and_evaluates_with_them(tmp_path):
    TABLE.to_csv(path := tmp_path / "t.csv", index=False)
    at = SHORT.index("data.size=120")
    words = [*SHORT[: at - 1], *SHORT[at + 1 :]]
    run = tmp_path / "run"
    named = ["--set", 'data.covariates=["site", "dose"]', "--data", path, "--out", run]
    ngvae("train", "normal_gamma", "relaxed", *words, *named)
    config = (run / "config.toml").read_text()
    assert 'covariates = [\n    "site",\n    "dose",\n]' in config
    fit, spec = ng.load_run(run)
    data = ng.load_data(path, covariates=spec.data.covariates)
    assert fit.form.covariates == data.form.covariates
    assert torch.equal(fit.model.reference, fit.guide.encoder.conditioning.reference)
    assert "z0" in ngvae("inspect", run)
    ngvae("evaluate", run)
    assert "log_likelihood" in json.loads((run / "evaluation.json").read_text())
    (run / "metrics.json").unlink()
    before = {name: value.clone() for name, value in fit.model.state_dict().items()}
    ngvae("train", "--resume", run)
    again = ng.load_run(run)[0].model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in before.items())
    ngvae("score", run, "--data", path)
    # Another file, which has a class that the training had not.
    TABLE.assign(site="rome").to_csv(other := tmp_path / "other.csv", index=False)
    assert "'site': expected one of 'berlin'" in ngvae("score", run, "--data", other, code=2)


def test_the_estimator_keeps_them_in_its_folder(data, tmp_path):
    vae = ng.NGVAE(3, model=ng.ModelSpec(decoder=SMALL), steps=3, random_state=0).fit(data)
    vae.save(tmp_path / "run")
    again = ng.NGVAE.load(tmp_path / "run")
    assert np.array_equal(again.fit_.encode(data), vae.fit_.encode(data))
    assert again.fit_.form.covariates == data.form.covariates
    few = ng.from_numpy(VECTORS[:9], covariates={"site": SITE[:9], "dose": DOSE[:9]})
    assert again.transform(few).shape == (9, again.n_components_)
    assert np.isfinite(again.score(few))
    with pytest.raises(UserError, match="expected the covariates site, dose, .*, got none"):
        vae.transform(VECTORS)


def test_log_likelihoods_do_not_depend_on_how_many_images_are_searched_at_once(
    trained, data, monkeypatch
):
    whole = evidence.log_likelihood(trained, data, draws=25).values
    monkeypatch.setattr(evidence, "MODES", 20_000)
    few = evidence.ROOM // (32 * evidence.MODES * 4 * 6)
    assert 1 <= few < 30
    assert evidence.log_likelihood(trained, data, draws=25).values == pytest.approx(whole, abs=1e-3)


def test_imputed_values_are_those_given_the_covariates():
    gaps = np.where(RNG.random(VECTORS.shape) < 0.2, np.nan, VECTORS)
    gaps[:, 0] = VECTORS[:, 0]
    data = ng.from_numpy(gaps, covariates={"dose": DOSE}, missing=True)
    fit = ng.fit(*load(data), data, steps=5, batch_size=16, device="cpu", progress=False)
    # After so few steps the reconstruction would hardly depend on either.
    with torch.no_grad():
        fit.model.decoder.conditioning.weight.normal_()
        fit.model.decoder.stem.weight.normal_()
    with data.given() as x, torch.no_grad():
        modes = evidence.climb(fit.model, x, fit.guide.codes(x).loc).loc
        means = fit.model.likelihood(fit.model.decoder(modes.float()), x).mean
    absent, expected = np.isnan(gaps), fit.form.arrays(means).numpy()
    assert fit.impute(data)[absent] == pytest.approx(expected[absent], abs=1e-3)


def test_counts_that_stay_on_the_disk_keep_their_covariates(tmp_path):
    np.save(tmp_path / "counts.npy", RNG.poisson(2.0, (60, 3)))
    counts = np.load(tmp_path / "counts.npy", mmap_mode="r")
    data = ng.ImageData.counts("cells", counts, covariates={"site": SITE})
    assert [one.name for one in data.form.covariates] == ["site"]
    with pytest.raises(UserError, match="missing: data that stay on the disk have no NaN"):
        ng.ImageData.counts("cells", counts, missing=True)


def test_numbers_are_classes_where_that_is_said():
    batch = RNG.integers(3, size=60)
    data = ng.from_numpy(VECTORS, covariates={"C(batch)": batch})
    assert data.form.covariates == (Covariate("batch", ("0", "1", "2")),)


def test_an_empty_table_of_covariates(trained, data):
    assert trained.decode(np.zeros((0, 4)), {"site": "oslo", "dose": 1.0}).shape == (0, 5)
    plain = ng.from_numpy(VECTORS)
    fit = ng.fit(*load(plain), plain, steps=2, batch_size=16, device="cpu", progress=False)
    with pytest.raises(UserError, match="covariates: expected none, as in what was fitted"):
        fit.decode(np.zeros((2, 4)), {})
