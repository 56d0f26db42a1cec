"""What a run says of itself: its images, its settings, its scores; and what is not taken for it."""

import copy
import json
import math
import shutil
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt
from safetensors.torch import load_file, save
from support import cut
from support import literally as ngvae

import ngvae_pyro as ng
from ngvae_pyro import evaluation, runs
from ngvae_pyro.data import sources as data
from ngvae_pyro.errors import Notice, UserError
from ngvae_pyro.guide import GUIDES
from ngvae_pyro.report import pages as report
from ngvae_pyro.report import table
from ngvae_pyro.runs import comparison
from ngvae_pyro.specs import SavedRun, parse
from ngvae_pyro.training import actions, checkpoints
from ngvae_pyro.training.checkpoints import OPTIMIZER, STATE, WEIGHTS, Checkpoints

SMALL = ["--latents", "2", "--device", "cpu", "--set", "fit.batch_size=8"]
SMALL += ["--set", "model.decoder.width=4", "--set", "model.decoder.depth=1"]
SMALL += ["--set", "guide.encoder.width=4"]
GAUSSIAN = ["train", "gaussian", "gaussian", *SMALL]


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    for name in ("plots.save_all", "comparison_plots.save_all", "_arviz.to_netcdf"):
        monkeypatch.setattr(f"ngvae_pyro.{name}", lambda *words: None)
    monkeypatch.setattr("ngvae_pyro.report.plots.scores", lambda *_: None)
    # Nor draws of which they would be made.
    monkeypatch.setattr(
        "ngvae_pyro.evaluation.diagnostics.to_arviz", lambda *words, **options: None
    )


def blobs(path, seed=0, **more):
    images = np.random.default_rng(seed).integers(0, 255, (60, 8, 8)).astype(np.uint8)
    np.savez(path, imgs=images, **more)
    return images


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with images in it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    blobs("blobs.npz")
    return tmp_path


# Images --------------------------------------------------------------------------------------


def test_other_images_are_refused(here, monkeypatch):
    ngvae(*GAUSSIAN, "--data", "blobs.npz", "--steps", 2, "--out", "r")
    known = runs.load_record("r")["images"]
    train, held_out = runs.load_data(runs.load_spec("r"))
    assert known == {"train": train.digest, "held_out": held_out.digest, "renderer": None}
    ngvae("score", "r", "--device", "cpu", "--size", "4")
    images = np.load("blobs.npz")["imgs"]
    np.savez("blobs.npz", imgs=images[::-1])
    for command in ("evaluate", "score"):
        said = ngvae(command, "r", "--device", "cpu", code=2)
        assert said.startswith("r: its training images are not those that blobs.npz holds now")
        assert "put back the file" in said and "\n" not in said
    assert not Path("r/evaluation.json").exists()
    # In another working folder, another file of that name.
    np.savez("blobs.npz", imgs=images)
    (here / "there").mkdir()
    monkeypatch.chdir(here / "there")
    blobs("blobs.npz", seed=1)
    monkeypatch.setattr("ngvae_pyro.runs.evaluating.assess", lambda *words: {"source": "x"})
    ngvae("evaluate", here / "here" / "r", "--device", "cpu")
    (here / "here" / "blobs.npz").unlink()
    said = ngvae("evaluate", here / "here" / "r", "--device", "cpu", code=2)
    assert "its training images are not those that blobs.npz holds now" in said
    np.savez("blobs.npz", imgs=images)
    ngvae("evaluate", here / "here" / "r", "--device", "cpu")
    Path("blobs.npz").unlink()
    said = ngvae("evaluate", here / "here" / "r", "--device", "cpu", code=2)
    assert f"{here}/here/blobs.npz: expected an .npz file, found no such file" in said


def test_a_run_that_does_not_say_its_images_is_a_notice(here, monkeypatch):
    ngvae(*GAUSSIAN, "--data", "blobs.npz", "--steps", 2, "--out", "r")
    record = json.loads(Path("r/run.json").read_text())
    del record["images"]
    Path("r/run.json").write_text(json.dumps(record))
    config = Path("r/config.toml").read_text()
    Path("r/config.toml").write_text(config.replace(f'folder = "{Path.cwd()}"\n', ""))
    assert Path("r/config.toml").read_text() != config
    monkeypatch.setattr("ngvae_pyro.runs.evaluating.assess", lambda *words: {"source": "x"})
    with pytest.warns(Notice, match="r: does not say what its images were, .* is not checked"):
        ngvae("evaluate", "r", "--device", "cpu")


def test_sprites_that_were_rendered_elsewhere_are_a_notice(tmp_path):
    spec = parse(SavedRun, {"image_shape": [3, 32, 32]}, "test")
    images = ng.sprites(20).split(0.5, 0)
    other = ng.sprites(20, seed=1).split(0.5, 0)
    runs.save_record(tmp_path, spec, [], images[1], torch.device("cpu"), images[0].digest)
    runs.check_recorded(tmp_path, spec, images, "cpu")
    with pytest.raises(UserError, match="its training images are not those that sprites holds"):
        runs.check_recorded(tmp_path, spec, other, "cpu")
    with pytest.warns(Notice, match="rendered by cpu .*, and here by cuda, .* but for rounding"):
        runs.check_recorded(tmp_path, spec, other, "cuda")


def test_resume_knows_the_held_out_images(here, monkeypatch):
    words = [*GAUSSIAN, "--data", "blobs.npz", "--steps", 9, "--out", "r"]
    with monkeypatch.context() as patch:
        cut(patch, 3)
        ngvae(*words, code=143)
    images = np.load("blobs.npz")["imgs"]
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    changed = images.copy()
    changed[order[0]] = 0  # one of the first tenth, which is held out
    np.savez("blobs.npz", imgs=changed)
    said = ngvae("train", "--resume", "r", code=2)
    assert said.startswith("r: its held-out images are not those that blobs.npz holds now")
    np.savez("blobs.npz", imgs=images)
    ngvae("train", "--resume", "r")
    assert runs.load_record("r")["images"]["train"] is not None


def test_only_runs_on_the_same_images_are_compared(here, monkeypatch):
    words = ["compare", *SMALL, "--data", "blobs.npz", "--jobs", "1", "--out", "c", "--steps", "2"]
    ngvae(*words, "--pairs", "gaussian+gaussian")
    before = sorted(Path("c").rglob("*"))
    blobs("blobs.npz", seed=1)
    for more in ("gaussian+gaussian", "gaussian+gaussian,gaussian+beta_27"):
        said = ngvae(*words, "--pairs", more, "--seeds", "2", code=2)
        assert "seed-0: its training images are not those that blobs.npz holds now" in said
    assert sorted(Path("c").rglob("*")) == before
    # A run that was trained elsewhere and copied here.
    blobs("blobs.npz")
    other = Path(shutil.copytree("c/gaussian+gaussian", "c/gaussian+beta_27")) / "seed-0"
    text = (other / "config.toml").read_text().replace('guide_name = "gaussian"', "")
    (other / "config.toml").write_text(f'guide_name = "beta_27"\n{text}')
    record = json.loads((other / "run.json").read_text())
    record["images"]["held_out"] = "0" * 64
    (other / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="runs of seed 0 have different held-out images"):
        comparison.elpds("c", 0)
    monkeypatch.setattr(comparison, "check_same", lambda *_: None)
    said = ngvae(*words, "--pairs", "gaussian+gaussian,gaussian+beta_27", code=2)
    assert "its held-out images are not those of c/gaussian+gaussian/seed-0, so the two" in said


def test_one_file_by_two_names(here, monkeypatch):
    words = ["compare", *SMALL, "--jobs", "1", "--steps", "2", "--pairs", "gaussian+gaussian"]
    ngvae(*words, "--data", "blobs.npz", "--out", "c")
    monkeypatch.chdir(here)
    said = ngvae(*words, "--data", "here/blobs.npz", "--out", "here/c")
    assert "1 of 1 runs are there already" in said


def test_a_key_of_an_npz_that_is_not_used_is_named(tmp_path):
    blobs(tmp_path / "a.npz", labels=np.arange(60), latents_names=np.array(["x"]))
    with pytest.warns(Notice, match=r"a.npz: not used: labels, latents_names; factors are read"):
        assert data.load_npz(tmp_path / "a.npz").factors is None
    # Those of dSprites are as expected.
    ones = np.arange(60)[:, None]
    blobs(tmp_path / "b.npz", metadata=ones, latents_values=ones, latents_classes=ones)
    assert data.load_npz(tmp_path / "b.npz").factor_names == ("factor_0",)


# Runs that are written from Python -----------------------------------------------------------


def fitted(pair=("gaussian", "gaussian"), steps=2, images=None, **how):
    images = images or ng.ImageData("mine", torch.rand(40, 1, 8, 8))
    train, held_out = images.split(0.25, seed=3)
    model = ng.load_model(pair[0], images, latent_size=2, decoder={"width": 4, "depth": 1})
    guide = ng.load_guide(pair[1], model, encoder={"width": 4})
    spec = ng.FitSpec(steps=steps, batch_size=8, device="cpu")
    return ng.fit(model, guide, train, spec, progress=False, **how), held_out


def test_what_is_written_is_what_was_done(tmp_path):
    schedule = ng.load_guide("gaussian", ng.load_model("gaussian")).spec.schedule
    schedule = schedule.model_copy(update={"z": schedule.z.model_copy(update={"initial": 5.0})})
    fit, held_out = fitted(schedule=schedule)
    ng.save_run(tmp_path / "new" / "run", fit, ng.RunSpec(), held_out)
    written = tomllib.loads((tmp_path / "new" / "run" / "config.toml").read_text())
    assert written["data"]["name"] == "mine" and written["images"] == "given in Python"
    assert (written["data"]["size"], written["data"]["held_out"]) == (40, 0.25)
    assert written["fit"]["steps"] == 2 and written["fit"]["batch_size"] == 8
    assert (written["model_name"], written["guide_name"]) == ("gaussian", "gaussian")
    assert written["model"]["prior"]["family"] == written["guide"]["family"] == "gaussian"
    assert written["guide"]["schedule"]["z"]["initial"] == 5.0
    assert "gaussian + gaussian on mine" in ngvae("inspect", tmp_path / "new" / "run")
    again, _ = ng.load_run(tmp_path / "new" / "run", "cpu")
    assert again.steps == 2 and again.guide.spec.schedule == schedule
    for command in ("evaluate", "score"):
        said = ngvae(command, tmp_path / "new" / "run", code=2)
        assert said == (
            "data 'mine': the images of this run were given in Python, and the command line does "
            "not know them; evaluate them there: ng.evaluate(fit, images)"
        )


def test_images_that_a_spec_leads_to_are_known(here, monkeypatch):
    monkeypatch.setattr("ngvae_pyro.runs.evaluating.assess", lambda *words: {"source": "x"})
    images = ng.load_data("blobs.npz")
    fit, held_out = fitted(images=images)
    spec = ng.RunSpec(data={"name": "blobs.npz", "held_out": 0.25, "seed": 3})
    ng.save_run("r", fit, spec, held_out)
    assert "images" not in tomllib.loads(Path("r/config.toml").read_text())
    monkeypatch.chdir(here)
    ngvae("evaluate", "here/r", "--device", "cpu")
    # Of another seed others are held out.
    ng.save_run("other", fit, spec.model_copy(update={"data": spec.data.model_copy()}), held_out)
    said = ngvae("evaluate", "other", code=2)
    assert "blobs': the images of this run were given in Python" in said


def test_an_evaluation_of_other_weights_does_not_stay(tmp_path):
    fit, held_out = fitted()
    ng.save_run(tmp_path, fit, ng.RunSpec(), held_out)
    runs.claim(tmp_path, ["evaluation.json"])
    (tmp_path / "evaluation.json").write_text("{}")
    ng.save_run(tmp_path, fit, ng.RunSpec(), held_out)
    assert not (tmp_path / "evaluation.json").exists()


def test_a_class_of_ones_own_is_not_written_as_another(tmp_path):
    fit, held_out = fitted()

    class Mine(type(fit.guide)):
        pass

    fit.guide.__class__ = Mine
    with pytest.raises(UserError, match="expected a GaussianGuide, which .* got a Mine"):
        ng.save_run(tmp_path / "r", fit, ng.RunSpec(), held_out)
    assert list(tmp_path.iterdir()) == []


def test_images_from_elsewhere_are_not_measured_on_sprites():
    _, held_out = fitted()
    images, source = evaluation.evaluation_images(ng.RunSpec(), held_out)
    assert source == "10 held-out images" and images.image_shape == (1, 8, 8)


# Contradictions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--seed 3 --set fit.seed=7", "--set fit.seed=7: fit.seed is set to 3 already"),
        ("--latents 4 --set model.latent_size=5", "model.latent_size is set to 4 already"),
        ("--steps 5 --set fit.steps=6", "fit.steps is set to 5 already"),
        ("--device cpu --set fit.device=cuda", "fit.device is set to 'cpu' already"),
        ("--data sprites --set data.name=mnist", "data.name is set to 'sprites' already"),
        ("--data-root a --set data.root=b", "data.root is set to 'a' already"),
        ("--download --set data.download=false", "data.download is set to True already"),
        ("--set fit.seed=1 --set fit.seed=2", "--set fit.seed=2: fit.seed is set to 1 already"),
        ("--set model.prior.price=1 --set model.prior={price=2}", "model.prior.price is set to 1"),
        ("--set model.prior={price=1} --set model.prior=2", "model.prior is set to {'price': 1}"),
        ("--set model.prior=2 --set model.prior.price=1", "model.prior is set to 2 already"),
        ("--steps 5 --steps 6", "--steps: is given as '5' and '6'; pass one of them"),
        ("--out b", "--out: is given as 'a' and 'b'; pass one of them"),
    ],
)
def test_a_contradiction_is_one_line(tmp_path, monkeypatch, words, line):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "train", lambda *words, **options: pytest.fail("it was trained"))
    said = ngvae("train", "gaussian", "gaussian", "--out", "a", *words.split(" "), code=2)
    assert line in said and "\n" not in said and list(tmp_path.iterdir()) == []


def test_the_same_value_twice_is_no_contradiction(here):
    words = ["--seed", "3", "--seed", "3", "--set", "fit.seed=3", "--set", "fit.steps=2"]
    ngvae(*GAUSSIAN, "--data", "blobs.npz", "--out", "r", *words, "--set", "data.name=blobs.npz")
    assert runs.load_spec("r").fit.seed == 3


def test_the_seeds_of_a_comparison_are_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "compare", lambda *words, **options: pytest.fail("it was done"))
    said = ngvae("compare", "--out", tmp_path / "c", "--set", "fit.seed=7", code=2)
    assert said == (
        "fit.seed: the runs of a comparison have a seed each; pass the first of them with "
        "--first-seed 7, and their number with --seeds"
    )


# Scores --------------------------------------------------------------------------------------

LEAST = ("dci_disentanglement", "factor_vae_score", "beta_vae_score", "modularity")


def test_scores_of_a_single_factor_are_no_numbers(here):
    """Labels that have nothing to do with the images had four scores of 1.00."""
    label = np.random.default_rng(3).integers(0, 3, 60)
    blobs("blobs.npz", latents_values=label, latents_names=np.array(["label"]))
    words = ["compare", *SMALL, "--data", "blobs.npz", "--jobs", "1", "--out", "c", "--steps", "2"]
    words += ["--set", "data.held_out=0.5", "--pairs", "gaussian+gaussian"]
    words += ["--set", "model.decoder.kind=mlp"]
    said = ngvae(*words)
    note = "– Disentanglement: needs at least two known factors that vary."
    notes = "– DCI disentanglement, beta-VAE score, Modularity: needs at least two known factors"
    assert note in said and notes in said
    folder = Path("c/gaussian+gaussian/seed-0")
    found = evaluation.load_evaluation(folder)
    assert [key for key, value in found["scores"].items() if value is None] == list(LEAST)
    assert found["slides"]["disentanglement"] is None and found["scores"]["mig"] >= 0.0
    assert note in Path("c/table.md").read_text() and notes in Path("c/table.md").read_text()
    compared = json.loads(Path("c/comparison.json").read_text())
    assert compared["values"]["modularity"]["gaussian+gaussian"]["shown"] == "–"
    # A label is not what the images are made from.
    assert compared["factors"] is None
    said = " ".join(ngvae("evaluate", folder, "--device", "cpu").split())
    assert "│ Modularity ↑ │ – │" in said and notes.removeprefix("– ") in said
    page = (folder / "report.html").read_text()
    assert "no number: needs at least two known factors that vary" in page
    assert "The images have a label." in page and "are made from" not in page
    # What an older version has written.
    found["scores"]["modularity"] = 1.0
    (row,) = [metric for metric in table.METRICS if metric.key == "modularity"]
    assert row.of({"evaluation": found}) is None


# What p is -----------------------------------------------------------------------------------


def test_each_guide_says_what_p_is(tmp_path):
    said = {}
    metrics = {
        **{"informative": 1, "elbo": 1.0, "reconstruction_mse": 1.0, "probs": [1.0]},
        **{"kl": {"z": {"total": 1.0, "per_latent": [1.0]}}, "variance_of_loc": [1.0]},
        **{"precision": {"mean": [1.0], "5%": [1.0], "95%": [1.0]}, "steps": 1, "extra_steps": 0},
    }
    for spec, guide in GUIDES.items():
        values = {"image_shape": [1, 8, 8], "guide": {"family": spec().family}}
        page = report.write_run_report(tmp_path, parse(SavedRun, values, "x"), metrics).read_text()
        assert f"where p exceeds one half: {guide.p_is}." in page
        said[spec().family] = guide.p_is
    variance = "whose inferred variance is below one half"
    for family, text in said.items():
        in_family = family in ("gaussian", "gaussian_mixture", "epanechnikov")
        assert (variance in text) == in_family
        assert ("weight of the informative component" in text) == (
            not in_family and family not in ("poisson", "ard")
        )
    assert "rate varies over the images by more than the counts do" in said["poisson"]
    assert "the declared share of the relevance" in said["ard"]


# Tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "label", ["a|b", r"a\|b", "*a* _b_ `c`", "<b>&amp;</b> [x](y)", "$a$ ~~b~~ # !", "beta (27)"]
)
def test_a_label_stays_text_in_every_table(tmp_path, label):
    metric = {"key": "m", "title": "M", "heading": "M", "group": "G", "needs": ""}
    cells = {pair: {"mean": 1.0, "values": [1.0], "shown": "1.0", "best": False} for pair in "pq"}
    compared = {
        "command": f"ngvae compare --set 'guide.label={label}' `x`",
        "models": [
            {"pair": "p", "label": label, "seeds": [0]},
            {"pair": "q", "label": "q", "seeds": []},
        ],
        "metrics": [metric],
        "values": {"m": cells},
    }
    tokens = (
        MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(table.markdown(compared))
    )
    first = next(token for token in tokens if token.type == "inline")
    assert [child.content for child in first.children] == [compared["command"]]
    (head,) = [i for i, token in enumerate(tokens) if token.type == "thead_open"]
    shown = [
        "".join(child.content for child in token.children)
        for token in tokens[head:]
        if token.type == "inline"
    ]
    assert shown[:3] == ["G", label, "q"] and len(shown) == 6
    table.write_csv(tmp_path / "table.csv", compared)
    assert np.genfromtxt(tmp_path / "table.csv", dtype=str, delimiter="\x01").size == 2


# Checkpoints ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run that a signal has ended after 12 steps of 40, its moves at 8."""
    folder = tmp_path_factory.mktemp("begun")
    blobs(folder / "blobs.npz")
    words = ["train", "normal_gamma", "mixture", *SMALL, "--data", folder / "blobs.npz"]
    words += ["--set", "fit.monitor_every=5", "--steps", 40, "--out", folder / "r"]
    words += ["--set", 'guide.schedule.moves=[{kind = "death", at = 0.2, steps = 2}]']
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(actions, "_are_folded", lambda trainer: True)
        cut(patch, 17)
        ngvae(*words, code=143)
    return folder / "r"


def forge(folder, edit):
    """Change a checkpoint and make its hashes good again."""
    (path,) = (folder / "checkpoints").iterdir()
    state = json.loads((path / STATE).read_text())
    files = {name: load_file(path / name) for name in (WEIGHTS, OPTIMIZER)}
    edit(state, files)
    for name, tensors in files.items():
        (path / name).write_bytes(content := save(tensors))
        if isinstance(state["sha256"], dict):
            state["sha256"][name] = checkpoints._sha256(content)
    if isinstance(state["sha256"], dict):
        state["sha256"].pop(STATE, None)
        state["sha256"][STATE] = checkpoints._sha256(checkpoints._canonical(state))
    (path / STATE).write_text(json.dumps(state))
    if isinstance(state["position"], dict) and isinstance(state["position"].get("step"), int):
        position = state["position"]
        path.rename(path.with_name(f"step-{position['step']:09d}-{position['acted']}"))


def put(where, value):
    """An edit of state.json: a dotted key, or a function of what is there."""

    def edit(state, files):
        *path, last = where.split(".")
        for key in path:
            state = state[int(key) if key.lstrip("-").isdigit() else key]
        last = int(last) if last.lstrip("-").isdigit() else last
        state[last] = value(state[last]) if callable(value) else value

    return edit


def ahead(state, files):
    """A last row that says that all is done."""
    row = copy.deepcopy(state["position"]["history"][-1])
    state["position"]["history"].append({**row, "step": 40})


def done(state, files):
    ahead(state, files)
    state["position"] |= {"step": 40}


def tensor(name, key, change):
    def edit(state, files):
        files[name][key] = change(files[name][key])

    return edit


FORGED = {
    "history of nothing": put("position.history", []),
    "history of empty rows": put("position.history", [{}]),
    "history that is a text": put("position.history", "x"),
    "a last row ahead": ahead,
    "a last row ahead, and the step": done,
    "rows in another order": put("position.history", lambda rows: rows[::-1]),
    "a row twice": put("position.history", lambda rows: [*rows, rows[-1]]),
    "no first row": put("position.history", lambda rows: rows[1:]),
    "probs of other latents": put("position.history.0.probs", [0.5]),
    "probs beyond 1": put("position.history.0.probs.0", 2.0),
    "a count that is not that of p": put("position.history.0.informative", 77),
    "other sites": put("position.history.0.kl", {"z": 1.0}),
    "a loss that is a text": put("position.history.0.loss", "1"),
    "starts of numbers": put("position.starts", [1]),
    "no starts": put("position.starts", []),
    "a start without threads": put("position.starts", [{"command": "x", "device": "cpu"}]),
    "a step beyond the last": put("position.step", 10**6),
    "a negative step": put("position.step", -1),
    "a step that is a text": put("position.step", "12"),
    "an earlier step": put("position.step", 1),
    "more actions than there are": put("position.acted", 99),
    "actions that are not due": put("position.acted", 4),
    "an action undone": put("position.acted", 0),
    "exact too early": put("position.exact", True),
    "moves that are none": put("position.moves", [{}]),
    "a move of another kind": put("position.moves.0.kind", "birth"),
    "a move of a latent that is not there": put("position.moves.0.latent", 9),
    "a move that is to come": put("position.moves.0.step", 39),
    "no moves, but their steps": put("position.moves", []),
    "more steps than those of the moves": put("position.extra_steps", 10**9),
    "negative seconds": put("position.seconds", -1.0),
    "recorded, but not fast": put("position.steps", {"fast": False, "recorded": True, "since": 0}),
    "steps that are none": put("position.steps", {}),
    "more steps than were": put("position.steps.since", 10**9),
    "position of nothing": put("position", {}),
    "position that is an array": put("position", []),
    "identity that is an array": put("identity", []),
    "hashes of numbers": put("sha256", lambda table: {**table, "x": 1}),
    "weights that are not finite": tensor(WEIGHTS, "guide.encoder.head.bias", lambda t: t / 0),
    "weights of another shape": tensor(WEIGHTS, "guide.encoder.head.bias", lambda t: t[:1]),
    "weights of another type": tensor(WEIGHTS, "guide.encoder.head.bias", lambda t: t.double()),
    "a weight more": lambda state, files: files[WEIGHTS].update(x=torch.zeros(1)),
    "a weight less": lambda state, files: files[WEIGHTS].popitem(),
    "moments that are not finite": tensor(OPTIMIZER, "0.exp_avg", lambda t: t * math.inf),
    "a negative square": tensor(OPTIMIZER, "0.exp_avg_sq", lambda t: -t - 1),
    "moments of another shape": tensor(OPTIMIZER, "0.exp_avg", lambda t: t[None]),
    "a count of many steps": tensor(OPTIMIZER, "0.step", lambda t: t + 1e6),
    "no moments": lambda state, files: [
        files[OPTIMIZER].pop(k) for k in list(files[OPTIMIZER]) if k != "rng"
    ],
    "half of the moments": lambda state, files: files[OPTIMIZER].pop("0.exp_avg"),
    "moments of no parameter": lambda state, files: files[OPTIMIZER].update(
        {"9999.step": torch.zeros(())}
    ),
    "no generator": lambda state, files: files[OPTIMIZER].pop("rng"),
    "a generator that is none": tensor(OPTIMIZER, "rng", lambda t: t[:100]),
    "a generator of another type": tensor(OPTIMIZER, "rng", lambda t: t.float()),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_checkpoint_is_one_line(begun, tmp_path, monkeypatch, name):
    folder = Path(shutil.copytree(begun, tmp_path / "r"))
    forge(folder, FORGED[name])
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    taken = []
    monkeypatch.setattr(
        "ngvae_pyro.training.trainer.Trainer._restore", lambda *words: taken.append(1)
    )
    said = ngvae("train", "--resume", folder, code=2)
    assert "\n" not in said and said.startswith(str(folder)) and not taken
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_what_was_not_forged_goes_on(begun, tmp_path):
    folder = Path(shutil.copytree(begun, tmp_path / "r"))
    forge(folder, lambda state, files: None)
    state = json.loads(
        (
            folder / "checkpoints" / Checkpoints(folder / "checkpoints").names()[-1] / STATE
        ).read_text()
    )
    assert state["position"]["moves"] and state["position"]["acted"] >= 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        ngvae("train", "--resume", folder)
    assert runs.load_metrics(folder)["steps"] == 40
