"""Arguments from Python that are swapped or of a wrong kind: what they mean, or one line."""

import runpy
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from support import SMALL, ngvae
from torch.distributions import Gamma

import ngvae_pyro as ng
from ngvae_pyro import runs
from ngvae_pyro.distributions import GammaMixture, SpikeSlabPrior, kl_bound, kl_monte_carlo
from ngvae_pyro.errors import UserError
from ngvae_pyro.evaluation import diagnostics, metrics, scores
from ngvae_pyro.guide import RelaxedGuide
from ngvae_pyro.model import VAE, NormalGammaVAE
from ngvae_pyro.report import plots
from ngvae_pyro.specs import FitSpec, ModelSpec, RelaxedGuideSpec, RunSpec, ScheduleSpec
from ngvae_pyro.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
GAMMAS = {"concentration": (1000.0, 100.0), "rate": (0.1, 100.0)}
IMAGES = (torch.rand(12, 1, 8, 8, generator=torch.manual_seed(0)) * 255).to(torch.uint8)


class Kit:
    """A trained pair, and what goes with it."""

    def __init__(self):
        torch.manual_seed(0)
        self.data = ng.ImageData("twelve", IMAGES)
        self.model, self.guide = self.pair()
        self.fit = ng.fit(self.model, self.guide, self.data, FitSpec(steps=1), progress=False)
        self.numbers = diagnostics.evaluate(self.fit, self.data)
        self.rows = diagnostics.most_informative_first(self.numbers)
        self.code = diagnostics.codes(self.fit, self.data)
        self.other = ng.load_guide("gaussian", ng.load_model("gaussian", self.data, decoder=SMALL))

    def pair(self, shape=(1, 8, 8), latents=3):
        model = ng.load_model("normal_gamma", shape, latent_size=latents, decoder=SMALL)
        return model, ng.load_guide("relaxed", model, encoder=SMALL)


@pytest.fixture(scope="module")
def kit():
    return Kit()


def table(values):
    """One parameter for each line that an expression has to end in."""
    return pytest.mark.parametrize(("call", "line"), values, ids=[line for _, line in values])


@table(
    [
        # load_model and load_guide.
        (lambda k: ng.load_model(k.data, "normal_gamma"), "variant: expected a name, a path"),
        (lambda k: ng.load_model(None), "variant: expected a name, .* got None"),
        (lambda k: ng.load_model("relaxed"), "unknown model 'relaxed', which is a guide"),
        (lambda k: ng.load_model(RelaxedGuideSpec()), "variant: expected an ngvae_pyro.ModelSpec"),
        (lambda k: ng.load_model("gaussian", "sprite"), "unknown data 'sprite'.* mean 'sprites'"),
        (lambda k: ng.load_model("gaussian", (8, 8)), r"shape \(C, H, W\), got \(8, 8\)"),
        (lambda k: ng.load_model("gaussian", (1.0, 8, 8)), r"got \(1.0, 8, 8\)"),
        (lambda k: ng.load_model("gaussian", 32), "images: .* got 32"),
        (lambda k: ng.load_guide(k.model, "relaxed"), "model: expected a model .* got 'relaxed'"),
        (lambda k: ng.load_guide("relaxed", k.guide), "model: expected .* got a RelaxedGuide"),
        (lambda k: ng.load_guide("relaxed", k.data), "model: expected .* got an ImageData"),
        (lambda k: ng.load_guide(k.data, k.model), "variant: .* spec of a guide, got an ImageData"),
        (lambda k: ng.load_guide(ModelSpec(), k.model), "variant: expected the spec of a guide"),
        (lambda k: ng.load_guide("relaxed", VAE(ModelSpec(), (1, 8, 8))), "or of a subclass, got"),
        # fit.
        (
            lambda k: ng.fit(k.guide, k.model, k.data),
            "model: .* then the guide, got a Relaxed",
        ),
        (lambda k: ng.fit(k.data, k.model, k.guide), "model: expected .* got an ImageData"),
        (lambda k: ng.fit(k.model, k.data, k.guide), "guide: .* then the data, got an ImageData"),
        (lambda k: ng.fit("normal_gamma", "relaxed", k.data), "model: .* got 'normal_gamma'"),
        (lambda k: ng.fit(k.model, k.other, k.data), "a GaussianGuide does not fit a NormalGamma"),
        (lambda k: ng.fit(k.model, k.pair(latents=4)[1], k.data), "with latent_size 4, not 3"),
        (lambda k: ng.fit(k.model, k.pair((1, 4, 4))[1], k.data), r"with image_shape \(1, 4, 4\)"),
        (lambda k: ng.fit(k.model, k.guide, None), "^images: expected an array, .* got None"),
        (lambda k: ng.fit(k.model, k.guide, "sprite"), "unknown data 'sprite'"),
        (lambda k: ng.fit(k.model, k.guide, k.data, 600), "spec: .* e.g. steps=600, got 600"),
        (lambda k: ng.fit(k.model, k.guide, k.data, {"steps": 6}), "spec: .* got a dict"),
        (lambda k: ng.fit(k.model, k.guide, k.data, step=6), "unknown key 'step'; did you mean 's"),
        (lambda k: ng.fit(k.model, k.guide, k.data, steps="6"), "fit: steps: expected a whole"),
        (lambda k: ng.fit(k.model, k.guide, k.data, schedule="relaxed"), "schedule: expected a S"),
        (lambda k: ng.fit(k.model, k.guide, k.data, checkpoints="x"), r"Checkpoints\(folder\)"),
        (lambda k: ng.fit(k.model, k.guide, k.data, device=0), "device: expected a string"),
        # What takes a fit.
        (lambda k: ng.evaluate(k.data, k.fit), "fit: expected a trained pair .* got an ImageData"),
        (lambda k: ng.evaluate(k.model, k.data), "fit: expected a trained pair .* got a NormalGam"),
        (lambda k: ng.to_arviz(k.data, k.fit), "fit: expected a trained pair"),
        (lambda k: ng.log_likelihood(k.data, k.fit), "fit: expected a trained pair"),
        (lambda k: ng.log_likelihood(k.fit, k.data, draws="many"), "draws: .* got 'many'"),
        (lambda k: ng.uncertainty.uncertainty(k.data, k.fit), "fit: expected a trained pair"),
        (lambda k: ng.uncertainty.uncertainty(k.fit, k.data, draws=2.5), "draws: .* got 2.5"),
        (lambda k: scores.reference(k.data, k.fit), "fit: expected a trained pair"),
        (lambda k: scores.scores(k.data, k.fit, None), "fit: expected a trained pair"),
        (lambda k: scores.scores(k.fit, k.data, k.data), "known: .* got an ImageData"),
        (lambda k: ng.save_run(k.fit, "run", RunSpec(), k.data), "folder: .* got a Fit"),
        (lambda k: ng.save_run("run", k.model, RunSpec(), k.data), "fit: expected a trained pair"),
        (lambda k: ng.save_run("run", k.fit, k.data, RunSpec()), "spec: .* got an ImageData"),
        (lambda k: ng.load_run(k.fit), "folder: expected the name of a run folder, got a Fit"),
        (lambda k: ng.load_run("x", device=0), "x: no such run folder"),
        # Figures.
        (lambda k: plots.selection(k.fit, "a.png"), "ax: expected .* Axes or None, got 'a.png'"),
        (lambda k: plots.selection(k.model), "fit: expected a trained pair"),
        (lambda k: ng.FitSpec(stepz=1), "FitSpec: unknown key 'stepz'; did you mean 'steps'?"),
        (lambda k: ng.ModelSpec(decoder={"wdth": 4}), "ModelSpec: unknown key 'decoder.wdth'"),
        (lambda k: ng.load_run("r", device=k.model), "no such run folder|device: expected auto"),
        (lambda k: ng.log_likelihood(k.fit, k.data, widen="2"), "widen: expected a factor above 0"),
        (
            lambda k: ng.fit(k.model, k.guide, np.ones((4, 1, 8, 8)).astype(object)),
            "^images: expected numbers, got dtype object",
        ),
        (
            lambda k: ng.load_model("gaussian", memoryview(np.ones((4, 8, 8, 1), "u1"))),
            "^images: expected an array, a tensor, .* got a memoryview",
        ),
        (lambda k: plots.save(Figure(), "a.txt"), "a.txt: expected a name that ends in .png"),
        (lambda k: plots.save(Figure(), "a"), "a: expected a name that ends in .png"),
        (lambda k: plots.save("a.png", Figure()), "drawn: expected .* Axes, or a figure, got 'a.p"),
        (lambda k: plots.save(Figure(), None), "path: .* got None"),
        (lambda k: plots.selection(ng.Fit(k.model, k.guide, FitSpec())), "history"),
        (lambda k: plots.precisions(k.fit), "rows: .* got a Fit"),
        (lambda k: plots.precisions([]), "rows: expected the metrics"),
        (lambda k: plots.variances(k.code, k.code, k.numbers), "variance: .* got a Codes"),
        (lambda k: plots.covariance(k.numbers, k.code.loc), "loc: .* got a dict"),
        (lambda k: plots.reconstructions(k.data, k.fit), "fit: expected a trained pair"),
        (lambda k: plots.reconstructions(k.fit, k.data, 0), "columns: expected 1 to 1,000, got 0"),
        (lambda k: plots.traversals(k.fit, k.numbers, k.data), r"ngvae_pyro.ImageData\("),
        (lambda k: plots.traversals(k.fit, k.data, k.rows[:1]), "rows: expected the 3 latents of"),
        (lambda k: k.fit.plot.traversals(k.data, [9]), "latents: expected 0 to 2, got 9"),
        (lambda k: k.fit.plot.traversals(k.data, []), "latents: expected numbers of .*, got none"),
        (lambda k: k.fit.plot.traversals(k.data, 1), "latents: expected numbers of latents, e.g. "),
        (lambda k: k.fit.plot.traversals(k.data, bases=0), "bases: expected 1 to [0-9]+, got 0"),
        (lambda k: k.fit.plot.traversals(k.data, bases=[-1]), "bases: expected 0 to .*, got -1"),
        (lambda k: k.fit.plot.traversals(k.data, bases=True), "bases: expected numbers of images"),
        (lambda k: k.fit.plot.precisions("data"), "unknown data .data.; expected one of"),
        (lambda k: k.fit.traverse(k.data, steps=1), "steps: expected 2 to 1,000, got 1"),
        (lambda k: k.fit.traverse(k.data, base=10**6), "base: expected 0 to .*, got 1000000"),
        (lambda k: k.fit.interpolate(IMAGES[0], IMAGES[:2]), "b: expected one image, got 2"),
        (lambda k: k.fit.interpolate(IMAGES[0], None), "b: expected an array, .* got None"),
        (lambda k: plots.save_all(k.fit, k.data, k.numbers, "x"), "folder: .* got a Fit"),
        # Distributions and metrics.
        (lambda k: kl_bound(Gamma(1.0, 1.0), Gamma(1.0, 1.0)), "expected two GammaMixture, got G"),
        (lambda k: kl_bound(*[SpikeSlabPrior(0.1, slab=(1, 1), spike=(1, 1))] * 2), "p.precision"),
        (lambda k: kl_monte_carlo(Gamma(1.0, 1.0), Gamma(1.0, 1.0)), "expected a GammaMixture, "),
        (lambda k: kl_monte_carlo(GammaMixture(0.1, **GAMMAS), k.data), "got GammaMixture and Im"),
        (lambda k: metrics.active_units(k.fit), r"codes: expected a non-empty shape \(N, K\)"),
    ]
)
def test_a_wrong_argument_is_one_line(kit, call, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=line) as caught:
        call(kit)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert list(tmp_path.iterdir()) == []


def test_fit_takes_arrays_and_keys_of_its_spec(kit):
    kept = kit.fit.spec
    for images in (IMAGES, IMAGES.numpy()):
        result = ng.fit(*kit.pair(), images, steps=2, seed=3, progress=False)
        assert (result.steps, result.spec.seed) == (2, 3)
    result = ng.fit(*kit.pair(), IMAGES, kept, batch_size=5, progress=False)
    assert result.spec == kept.model_copy(update={"batch_size": 5})
    assert ng.load_model("gaussian", IMAGES > 100, decoder=SMALL).likelihood.family == "bernoulli"


def test_a_guide_fits_a_subclass_of_a_model(kit):
    class Own(NormalGammaVAE):
        pass

    model = Own(kit.model.spec, kit.model.image_shape)
    guide = ng.load_guide("relaxed", model, encoder=SMALL)
    assert isinstance(guide, RelaxedGuide)
    assert ng.fit(model, guide, kit.data, steps=1, progress=False).steps == 1


def test_figures_take_names_and_metrics(kit, tmp_path):
    plots.save(plots.precisions(kit.numbers, Figure().add_subplot()), str(tmp_path / "a.pdf"))
    ax = plots.covariance(kit.code.loc.numpy(), kit.numbers, Figure().add_subplot())
    plots.save(ax.figure, tmp_path / "b.svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pdf", "b.svg"]


def test_save_run_makes_its_folder(kit, tmp_path, no_drawing):
    spec = RunSpec(model=kit.model.spec, guide=kit.guide.spec, fit=kit.fit.spec)
    ng.save_run(tmp_path / "new" / "run", kit.fit, spec, kit.data)
    assert ng.load_run(tmp_path / "new" / "run", "cpu")[0].model.latent_size == 3
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: cannot write there: "):
        ng.save_run(tmp_path / "file", kit.fit, spec, kit.data)


def test_weights_of_very_many_inputs_have_a_smaller_rate():
    for side, share in ((8, None), (64, None), (128, 0.75), (256, 0.1875)):
        images = torch.zeros(2, 1, side, side, dtype=torch.uint8)
        data = ng.ImageData("a", images)
        model = ng.load_model("gaussian", data, decoder=SMALL)
        guide = ng.load_guide("gaussian", model, encoder=SMALL)
        own = Trainer(model, guide, data, FitSpec(device="cpu"), ScheduleSpec())
        rates = [
            group["initial_lr"] / own.spec.learning_rate for group in own.optimizer.param_groups
        ]
        assert rates == pytest.approx([1.0] if share is None else [1.0, share])
        weight = guide.encoder.trunk[1].weight
        assert share is None or own.optimizer.param_groups[1]["params"] == [weight]
        # In the order in which checkpoints have their moments.
        pair = [*model.parameters(), *guide.parameters()]
        assert [id(p) for p in own.parameters] == [id(p) for p in pair]


# The command line ----------------------------------------------------------------------------


said = partial(ngvae, code=2)


def test_a_mistyped_variant_comes_before_a_missing_option():
    assert "unknown model 'normal_gama'; did you mean 'normal_gamma'?" in said(
        "train", "normal_gama", "relaxed"
    )
    assert "unknown guide 'relaxd'; did you mean 'relaxed'?" in said(
        "train", "normal_gamma", "relaxd"
    )
    assert "unknown model 'nrmal_gamma'" in said("train", "nrmal_gamma")
    assert "unknown model 'relaxed', which is a guide" in said("train", "relaxed", "normal_gamma")
    assert said("train", "gaussian", "gaussian").startswith("train: expected a model, a guide and")


@pytest.mark.parametrize("command", ["inspect", "evaluate", "score"])
def test_a_mistyped_run_folder_is_named(tmp_path, monkeypatch, command):
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demos").mkdir()
    (tmp_path / "runs" / "demo" / "config.toml").touch()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert said(command, "runs/dmo") == ("runs/dmo: no such run folder; did you mean 'runs/demo'?")
    assert said(command, "runs/other") == "runs/other: no such run folder"
    assert said(command, "no/demo") == "no/demo: no such run folder"
    assert said(command, "file") == "file: is not a folder"
    assert said(command, "runs") == (
        "runs: is not a run folder (no config.toml); did you mean 'runs/demo'?"
    )
    monkeypatch.chdir("runs")
    assert said(command, "dmo") == "dmo: no such run folder; did you mean 'demo'?"
    assert said("train", "--resume", "dmo") == "dmo: no such run folder; did you mean 'demo'?"
    with pytest.raises(UserError, match="did you mean 'demo'"):
        runs.load_run("dmo")


SCRIPTS = sorted([*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "examples").glob("*.py")])
# The others are what scripts import.
SCRIPTS = [path for path in SCRIPTS if "__main__" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", SCRIPTS, ids=[path.name for path in SCRIPTS])
def test_help_needs_no_extras(path, monkeypatch, capsys):
    before = set(sys.modules)
    for extra in ("torchmetrics", "mpmath", "hypothesis", "optuna"):
        monkeypatch.setitem(sys.modules, extra, None)
    monkeypatch.delitem(sys.modules, "input_cases", raising=False)
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(path), run_name="__main__")
    assert caught.value.code == 0 and "usage" in capsys.readouterr().out
    for name in set(sys.modules) - before:
        if name in ("step", "measuring", "input_cases"):
            del sys.modules[name]


@pytest.mark.parametrize("call", [ng.load_run, ng.load_data])
def test_a_name_that_is_too_long_for_the_disk_is_unknown(call):
    with pytest.raises(UserError, match="a: no such run folder|unknown data"):
        call("a" * 300)
