"""Run folders, the ArviZ object, the figures and the command line."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version

import numpy as np
import pytest
import tomli_w
import torch
from conftest import PAIRS
from support import SHORT, ngvae, undrawn

import ngvae_pyro
from ngvae_pyro import runs
from ngvae_pyro._arviz import FIRST_GENERATION, az
from ngvae_pyro.cli import main
from ngvae_pyro.evaluation import diagnostics
from ngvae_pyro.nn import SumOfProducts
from ngvae_pyro.training.checkpoints import OPTIMIZER, STATE, WEIGHTS


def flat(value, path=""):
    """Nested tables and arrays as one mapping from path to number."""
    if not isinstance(value, dict | list):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {k: v for key, inner in items for k, v in flat(inner, f"{path}/{key}").items()}


# A run takes seconds: these have each kind of latent, and the others are a slow test.
DRAWN = {("normal_gamma", "relaxed"), ("gaussian", "gaussian"), ("poisson", "poisson")}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(names, id="-".join(names), marks=() if names in DRAWN else pytest.mark.slow)
        for names in PAIRS
    ],
)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    # A wide likelihood, because six steps fit nothing: log likelihoods go with 1 / scale**2, and
    # `az.loo` needs draws within the range of a double (see there).
    ngvae("train", *request.param, "--out", path, *SHORT, "--set", "model.likelihood.scale=16.0")
    return path


@pytest.fixture
def no_drawing():
    """Of a single test; those of the runs above are drawn."""
    with undrawn():
        yield


@pytest.mark.parametrize("family", ["auto", "bernoulli", "continuous_bernoulli"])
def test_a_run_of_any_likelihood_can_be_read_again(no_drawing, tmp_path, family):
    bits = np.random.default_rng(0).integers(0, 2, (60, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "bits.npz", imgs=bits)
    words = ["normal_gamma", "relaxed", "--data", tmp_path / "bits.npz", *SHORT]
    words += ["--set", "data.size=60", "--set", f"model.likelihood.family={family}"]
    said = ngvae("train", *words, "--out", tmp_path / "run")
    assert ("hold only 0 and 1: likelihood bernoulli" in said) == (family == "auto")
    written = tomllib.loads((tmp_path / "run" / "config.toml").read_text())["model"]["likelihood"]
    assert written == {"family": "bernoulli" if family == "auto" else family}
    fit, spec = runs.load_run(tmp_path / "run")
    assert fit.model.likelihood.family == spec.model.likelihood.family == written["family"]
    assert "4 latents " in ngvae("inspect", tmp_path / "run")


def fit_of(folder):
    return runs.load_run(folder, device="cpu")[0]


def test_a_run_folder_holds_the_evidence(folder):
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    (checkpoint,) = (folder / "checkpoints").iterdir()
    checkpointed = {f"checkpoints/{checkpoint.name}/{name}" for name in (STATE, WEIGHTS, OPTIMIZER)}
    figures = [
        "selection",
        "precisions",
        "variances",
        "covariance",
        "reconstructions",
        "traversals",
    ]
    assert names == {
        *("config.toml", "weights.safetensors", "metrics.json", "history.json", "posterior.nc"),
        *("report.html", "run.json"),
        *(f"figures/{name}.png" for name in figures),
        *checkpointed,
    }
    modes = {p.stat().st_mode for p in folder.iterdir() if p.is_file()}
    assert len(modes) == 1  # what the umask says, for every file
    for name in figures:
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((folder / "metrics.json").read_text())
    # Only where informative latents were looked at together.
    assert (metrics.pop("rotation", None) is None) == (fit_of(folder).rotation is None)
    # A count has no mean at which to hold it.
    assert ("earned" in metrics) != metrics["discrete"]
    assert set(metrics) - {"earned"} == {
        *("informative", "active_units", "elbo", "reconstruction_mse", "kl", "precision"),
        *("probs", "variance_of_loc", "discrete", "dimension"),
        *("steps", "extra_steps", "verdict"),
    }
    assert metrics["steps"] == 6 and len(metrics["probs"]) == 4
    for kl in metrics["kl"].values():
        assert len(kl["per_latent"]) == 4
        assert kl["total"] == pytest.approx(sum(kl["per_latent"]), rel=1e-6)
    config = tomllib.loads((folder / "config.toml").read_text())
    low, mean, high = (metrics["precision"][key] for key in ("5%", "mean", "95%"))
    assert all(a <= c for a, c in zip(low, high, strict=True))
    # The mean of a mixture of far precisions may lie beyond most of its draws.
    if config["guide_name"] not in ("mixture", "score"):
        assert all(a <= b <= c for a, b, c in zip(low, mean, high, strict=True))
    assert config["model"]["latent_size"] == 4 and "torch" in config["versions"]


def test_a_run_can_be_read_again(folder):
    fit, spec = runs.load_run(folder, device="cpu")
    _, held_out = runs.load_data(spec)
    again = diagnostics.evaluate(fit, held_out, seed=spec.fit.seed)
    # Not to the last bit: the sums of a matrix product may be taken in another order.
    before = runs.load_metrics(folder)
    for name in ("verdict", "rotation"):
        assert again.pop(name, None) == before.pop(name, None)
    # None where too few images or latents are left for one.
    if before["dimension"] is None:
        assert again.pop("dimension") is before.pop("dimension")
    assert flat(again) == pytest.approx(flat(before), rel=1e-4, abs=1e-4)


def test_the_same_seed_gives_the_same_metrics(folder, tmp_path, monkeypatch, no_drawing):
    """To the last byte; benchmarks/reproducibility.py has longer trainings, in two processes."""
    spec = runs.load_spec(folder)
    monkeypatch.setattr("ngvae_pyro.report.pages.write_run_report", lambda *words: None)
    # Whatever happened in between.
    torch.manual_seed(1)
    torch.rand(7)
    runs.train(spec, tmp_path / "again", progress=False)
    for name in ("metrics.json", "weights.safetensors", "history.json"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


@pytest.mark.parametrize("guide", ["fixed", "mixture"])
def test_a_run_of_an_older_version_keeps_its_precisions(no_drawing, tmp_path, guide):
    """Its config knows no freedom and no rescale, and its scale is a number."""
    out = tmp_path / "run"
    ngvae(
        *("train", "normal_gamma", guide, "--out", out, *SHORT),
        *("--set", "guide.freedom=0", "--set", "model.likelihood.scale=0.1"),
    )
    config = tomllib.loads((out / "config.toml").read_text())
    assert config["guide"].pop("freedom") == 0.0
    for key in ("freedom", "rescale", "slab", "sharpening"):
        del config["guide"]["schedule"][key]
    (out / "config.toml").write_text(tomli_w.dumps(config))
    fit, spec = runs.load_run(out, device="cpu")
    rate = {"fixed": (0.1, 100.0), "mixture": (1e-3, 100.0)}[guide]
    assert spec.guide.freedom == 0.0 and fit.guide.rate == rate
    assert spec.guide.schedule.slab.constant and spec.guide.schedule.sharpening.constant
    assert not {"freedom", "log_factor"} & set(fit.guide.state_dict())
    assert fit.model.likelihood.scale == pytest.approx(0.1) and not fit.model.likelihood.auto
    assert "informative" in ngvae("inspect", out)


def test_a_decoder_of_before_patches_has_none(no_drawing, tmp_path):
    out = tmp_path / "run"
    words = ["gaussian", "gaussian", "--out", out, *SHORT, "--set", "model.decoder.channels=0"]
    ngvae("train", *words)
    config = tomllib.loads((out / "config.toml").read_text())
    assert config["model"]["decoder"].pop("channels") == 0
    (out / "config.toml").write_text(tomli_w.dumps(config))
    fit, spec = runs.load_run(out, device="cpu")
    assert spec.model.decoder.channels == 0 and isinstance(
        fit.model.decoder.trunk[-1], SumOfProducts
    )


def test_brackets_in_a_path_are_shown(no_drawing, tmp_path):
    data, out = tmp_path / "[red]bits.npz", tmp_path / "[red]run"
    np.savez(data, imgs=np.eye(60, 64, dtype=np.uint8).reshape(60, 8, 8))
    words = ["gaussian", "gaussian", "--data", data, "--out", out, *SHORT, "--set", "data.size=60"]
    said = ngvae("train", *words)
    assert f"written to {out}\n" in said
    said = ngvae("inspect", out)
    # Longer than a line, a path is folded.
    unfolded = "".join(line.rstrip() for line in said.splitlines())
    assert f"  {out}/figures/precisions.png\n" in said and "[red]bits.npz" in unfolded


def test_inspect_shows_the_latents_in_order(folder):
    output = ngvae("inspect", folder)
    metrics = runs.load_metrics(folder)
    order = [f"z{row['latent']}" for row in diagnostics.most_informative_first(metrics)]
    places = [output.index(f" {name} ") for name in order]
    assert places == sorted(places)
    assert "figures" in output and "informative" in output


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
def test_arviz_runs_on_the_posterior(folder):
    posterior = runs.load_posterior(folder)
    precision = posterior["posterior"]["precision"]
    assert precision.dims == ("chain", "draw", "image", "latent")
    assert precision.shape == (1, 1000, 12, 4) and (precision > 0).all()
    assert posterior["posterior"]["z"].shape == precision.shape
    assert posterior["log_likelihood"]["x"].dims == ("chain", "draw", "image")
    assert posterior["observed_data"]["x"].shape == (12, 3, 32, 32)
    assert posterior["constant_data"]["factors"].dims == ("image", "factor")
    looks = posterior["training"]
    rows = json.loads((folder / "history.json").read_text(encoding="utf-8"))["rows"]
    assert looks["loss"].values.tolist() == [row["loss"] for row in rows]
    assert set(posterior["constant_data"].data_vars) == {"loc", "probs", "factors"}
    attrs = posterior["posterior"].attrs
    assert attrs["seed"] == 0 and attrs["version torch"] == version("torch")
    few = {"var_names": ["z"], "coords": {"image": [0, 1]}}
    assert len(az.summary(posterior, kind="stats", **few)) == 8
    # ArviZ 1.x divides by the lower quartile of the tail of weights 1 / p(x | z), relative to the
    # greatest; where that is below the smallest normal double, at -708 nats, elpd is NaN.
    draws = posterior["log_likelihood"]["x"]
    assert (np.ptp(draws.values, axis=(0, 1)) < 708).all()
    loo = az.loo(posterior)
    assert np.isfinite(loo.elpd_loo if FIRST_GENERATION else loo.elpd)
    import matplotlib

    matplotlib.use("Agg")
    az.plot_forest(posterior, **few)


@pytest.mark.slow
def test_python_in_twelve_lines(tmp_path):
    """The README's example, at a small size."""
    data = ngvae_pyro.sprites(300, vary=("x", "red"))
    train, held_out = data.split(0.1, seed=0)
    model = ngvae_pyro.load_model("normal_gamma", data, latent_size=6)
    guide = ngvae_pyro.load_guide("relaxed", model)
    fit = ngvae_pyro.fit(model, guide, train, ngvae_pyro.FitSpec(steps=3), progress=False)
    posterior = ngvae_pyro.to_arviz(fit, held_out, observations=2)
    assert len(az.summary(posterior, var_names=["precision"], kind="stats")) == 12


# Command line --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["gausian", "relaxed"], "unknown model 'gausian'; did you mean 'gaussian'?"),
        (["normal_gamma", "relaxd"], "unknown guide 'relaxd'; did you mean 'relaxed'?"),
        (["normal_gamma", "gaussian"], "guide family 'gaussian' does not fit"),
        (["normal_gamma", "relaxed", "--data", "spritez"], "unknown data 'spritez'"),
        (["normal_gamma", "relaxed", "--data", "sprites:q"], "q"),
        (["normal_gamma", "relaxed", "--data", "no.npz"], "no.npz"),
        (["normal_gamma", "relaxed", "--data", "mnist", "--data-root", "nowhere"], "nowhere"),
        (["normal_gamma", "relaxed", "--latents", "0"], "latent_size: expected a number > 0"),
        (["normal_gamma", "relaxed", "--steps", "-5"], "fit.steps: expected a number > 0"),
        (["normal_gamma", "relaxed", "--device", "gpu"], "fit.device: expected"),
        (["normal_gamma", "relaxed", "--set", "guide.sharpnes=3"], "did you mean 'sharpness'?"),
        (["normal_gamma", "relaxed", "--set", "fit.learning_rate=nan"], "a finite number"),
        (["normal_gamma", "relaxed", "--set", "sharpness=3"], "expected part.key=value"),
        (["no/such.toml", "relaxed"], "no/such.toml: cannot read the file"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(words, line, tmp_path):
    message = ngvae("train", *words, "--out", tmp_path / "run", code=2)
    assert line in message and "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_main_prints_one_line_and_exits_with_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ngvae", "train", "gausian", "relaxed", "--out", "x"])
    with pytest.raises(SystemExit) as caught:
        main()
    captured = capsys.readouterr()
    assert caught.value.code == 2 and captured.out == ""
    assert captured.err.startswith("ngvae: unknown model") and captured.err.count("\n") == 1


def test_an_existing_folder_is_kept(folder, tmp_path):
    before = (folder / "metrics.json").read_bytes()
    message = ngvae("train", "gaussian", "gaussian", "--out", folder, *SHORT, code=2)
    assert "already exists" in message and (folder / "metrics.json").read_bytes() == before
    (tmp_path / "mine.txt").write_text("not a run")
    words = ["train", "gaussian", "gaussian", "--out", tmp_path, "--overwrite"]
    assert "is not a run folder" in ngvae(*words, *SHORT, code=2)
    assert (tmp_path / "mine.txt").exists()


def test_very_few_images(no_drawing, tmp_path):
    out = tmp_path / "run"
    words = ["normal_gamma", "relaxed", "--out", out, *SHORT]
    # 9 of them are trained on and one is held out.
    assert "4 latents " in ngvae("train", *words, "--set", "data.size=10")
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["variance_of_loc"] == [0.0] * 4 and metrics["active_units"] == 0
    message = ngvae(
        *("train", *words, "--overwrite", "--set", "data.size=2", "--set", "data.held_out=0.5"),
        code=2,
    )
    assert message == "data 'sprites': expected at least 2 images to train on, got 1"
    assert json.loads((out / "metrics.json").read_text()) == metrics


def test_a_non_finite_loss_keeps_the_weights(tmp_path):
    out = tmp_path / "run"
    words = ["normal_gamma", "relaxed", "--out", out, *SHORT, "--steps", "40"]
    output = ngvae("train", *words, "--set", "fit.learning_rate=1e30", code=1)
    assert "non-finite loss at step" in output
    names = {p.name for p in out.iterdir()}
    assert names == {"config.toml", "run.json", "weights.safetensors"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run of which nobody looks at the figures."""
    path = tmp_path_factory.mktemp("plain") / "run"
    with undrawn():
        ngvae("train", "gaussian", "gaussian", "--out", path, *SHORT)
    return path


@pytest.mark.parametrize(
    ("name", "damage", "line"),
    [
        ("config.toml", b"[model", "config.toml: damaged"),
        (
            "config.toml",
            b"image_shape = [3, 32, 32]\n[modle]\n",
            "unknown key 'modle'; did you mean 'model'?",
        ),
        ("config.toml", b"", "config.toml: image_shape: expected a value, got none"),
        ("config.toml", b"image_shape = [3, 32, 0]", "image_shape.2: expected a number > 0, got 0"),
        ("weights.safetensors", b"\x00" * 20, "weights.safetensors: cannot be loaded"),
        ("metrics.json", b"{", "metrics.json: damaged"),
        (
            "metrics.json",
            b"{}",
            "metrics.json: damaged or of another version: no key 'informative'",
        ),
        ("history.json", b"[]", "history.json: damaged or of another version: no key 'rows'"),
        ("history.json", None, "history.json: cannot read the file"),
    ],
)
def test_a_damaged_run_is_one_line(plain, tmp_path, name, damage, line):
    out = shutil.copytree(plain, tmp_path / "run")
    if damage is None:
        (out / name).unlink()
    else:
        (out / name).write_bytes(damage)
    message = ngvae("inspect", out, code=2)
    assert line in message and "\n" not in message


def test_variants_shows_and_checks_one(tmp_path):
    shown = ngvae("variants", "beta_27")
    assert "objective.beta" in shown and "27" in shown and '"elbo"' in shown
    assert "model gaussian" in (both := ngvae("variants", "gaussian")) and "guide gaussian" in both
    own = tmp_path / "own.toml"
    own.write_text("# Twice as wide. For faces.\n[decoder]\nwidth = 512\n")
    assert "512" in ngvae("variants", own)
    assert "Twice as wide." in ngvae("variants", tmp_path)
    own.write_text("[decoder]\nwidth = 0\n")
    assert "own.toml: decoder.width: expected a number > 0, got 0" in ngvae("variants", own, code=2)
    own.unlink()
    assert "own.toml: cannot read the file" in ngvae("variants", own, code=2)
    assert "holds no .toml file" in ngvae("variants", tmp_path, code=2)


def test_the_shell_completes_names_of_variants():
    words = {"_NGVAE_COMPLETE": "complete_bash", "COMP_WORDS": "ngvae train nor", "COMP_CWORD": "2"}
    said = subprocess.run(
        [sys.executable, "-c", "from ngvae_pyro.cli import app; app(prog_name='ngvae')"],
        env={**os.environ, **words},
        capture_output=True,
        text=True,
    )
    assert said.stdout.split() == ["normal_gamma", "normal_gamma_joint"], said.stderr


def test_variants_and_version():
    output = ngvae("variants")
    for word in ("normal_gamma_joint", "relaxed", "gaussian"):
        assert word in output
    assert ngvae("--version").strip() == f"ngvae {ngvae_pyro.__version__}"


@pytest.mark.parametrize("word", ["--help", "variants"])
def test_a_quick_command_imports_nothing_heavy(word):
    # Not pydantic itself: some versions of typer import it to run a command.
    heavy = {"torch", "pyro", "arviz", "numpy", "matplotlib", "ngvae_pyro.specs"}
    code = (
        "import sys, atexit, ngvae_pyro.cli as cli\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        "cli.main()"
    )
    command = [sys.executable, "-c", code, word]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    imported = set(done.stderr.split())
    assert "typer" in imported and not heavy & imported


def test_the_example_of_optuna_runs(tmp_path):
    pytest.importorskip("optuna")
    path = os.path.join(os.path.dirname(os.path.dirname(__file__)), "examples", "optuna_pruning.py")
    words = ["--trials", "1", "--steps", "2", "--images", "40"]
    command = [sys.executable, path, *words]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.startswith("best: {'width': ")
    with open(path) as file:
        assert len(file.readlines()) <= 40


def test_examples_run(tmp_path):
    root = os.path.dirname(os.path.dirname(__file__))
    commands = {"train_svi.py": ["--steps", "5"], "own_pair.py": ["--steps", "5"]}
    latents = {"train_svi.py": 15, "own_pair.py": 5}
    files = {f for f in os.listdir(os.path.join(root, "examples")) if f.endswith(".py")}
    # This one has a test of its own, because it needs what no extra brings.
    assert files - {"optuna_pruning.py"} == set(commands), "every example is run here"
    for name, words in commands.items():
        path = os.path.join(root, "examples", name)
        command = [sys.executable, "-W", "error", path, *words]
        done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        assert "nats per image" in done.stdout
        found = done.stdout.partition("precision of each latent: ")[2].splitlines()[0].split()
        assert len(found) == latents[name]
        with open(path) as file:
            assert len(file.readlines()) <= 60
