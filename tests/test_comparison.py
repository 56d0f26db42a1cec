"""Comparisons: what is trained, what is not trained again, and what is written."""

import csv
import json
import math
import os
import warnings

import numpy as np
import pytest
from support import cut, ngvae, undrawn

from ngvae_pyro import evaluation, runs
from ngvae_pyro._arviz import az
from ngvae_pyro.errors import UserError
from ngvae_pyro.report import table
from ngvae_pyro.runs import comparison

PAIRS = "gaussian+beta_27,normal_gamma+relaxed"
SMALL = ["--steps", "8", "--latents", "4", "--device", "cpu", "--jobs", "1"]
for key in ("fit.batch_size=8", "fit.monitor_every=4", "data.held_out=0.5"):
    SMALL += ["--set", key]
for key in ("model.decoder.width=8", "model.decoder.depth=2", "guide.encoder.width=8"):
    SMALL += ["--set", key]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Bars whose place and brightness vary, with these factors; 100 are held out."""
    rng = np.random.default_rng(0)
    place, light = rng.integers(1, 7, 200), rng.uniform(0.3, 1.0, 200)
    pictures = np.zeros((200, 8, 8))
    for i, (p, b) in enumerate(zip(place, light, strict=True)):
        pictures[i, :, p - 1 : p + 1] = b
    path = tmp_path_factory.mktemp("data") / "bars.npz"
    factors = np.stack([place, light], 1)
    np.savez(
        path,
        imgs=(255 * pictures).astype(np.uint8),
        latents_values=factors,
        latents_names=np.array(["place", "light"]),
    )
    return path


@pytest.fixture(scope="module")
def done(images, tmp_path_factory):
    """A comparison of two seeds and what the command said."""
    out = tmp_path_factory.mktemp("comparisons") / "one"
    words = ["compare", "--pairs", PAIRS, "--data", images, "--seeds", "2", *SMALL]
    with undrawn():
        return out, words, ngvae(*words, "--out", out)


@pytest.fixture(scope="module")
def written(done):
    return json.loads((done[0] / "comparison.json").read_text())


def test_the_folder_holds_runs_tables_figures_and_a_report(done):
    out, _, said = done
    assert {p.name for p in out.iterdir()} == {
        *PAIRS.split(","),
        *("comparison.json", "table.md", "table.csv", "figures", "report.html"),
    }
    assert {p.stem for p in (out / "figures").iterdir()} == {
        *("variances", "covariances", "traversals", "reconstruction", "page"),
    }
    assert "0 of 4 runs are there already" in said and "4/4  NG-VAE, seed" in said
    groups = ("Table of Jouffroy et al. (2022)", "Fit and cost", "Disentanglement")
    for group in (*groups, "Aggregate posterior"):
        assert group in said


def test_the_table_has_every_metric_of_every_run(done, written):
    out = done[0]
    assert [m["label"] for m in written["models"]] == ["beta-VAE (27)", "NG-VAE"]
    assert written["factors"] == 2 and written["latent_size"] == 4 and written["failed"] == []
    with (out / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["0", "1"] * 2
    for row in rows:
        folder = out / row["pair"] / f"seed-{row['seed']}"
        run = {
            "metrics": runs.load_metrics(folder),
            "run": runs.load_record(folder),
            "evaluation": evaluation.load_evaluation(folder),
        }
        for metric in table.METRICS:
            value = metric.of(run)
            if value is None:
                # What a single active unit leaves without meaning.
                assert row[metric.key] == "" and run["evaluation"]["scored"] == 1, metric.key
            else:
                assert float(row[metric.key]) == pytest.approx(value), metric.key
    for metric in table.METRICS:
        for pair, cell in written["values"][metric.key].items():
            found = [row[metric.key] for row in rows if row["pair"] == pair]
            if "" in found:
                assert cell["mean"] is None or found != ["", ""]
                continue
            values = [float(text) for text in found]
            assert cell["mean"] == pytest.approx(np.mean(values))
            assert cell["std"] == pytest.approx(np.std(values, ddof=1))
    text = (out / "table.md").read_text()
    assert "| Table of Jouffroy et al. (2022) | beta-VAE (27) | NG-VAE |" in text
    assert text.count("\n| ") == len(table.METRICS) + 4


def test_seeds_share_their_data_and_nothing_else(done):
    out = done[0]
    for seed in (0, 1):
        specs = [runs.load_spec(out / pair / f"seed-{seed}") for pair in PAIRS.split(",")]
        assert {spec.fit.seed for spec in specs} == {seed}
        held_out = [runs.load_data(spec)[1] for spec in specs]
        assert all((h.images == held_out[0].images).all() for h in held_out)


@pytest.fixture
def no_figures(monkeypatch):
    """Comparisons are not drawn; that of ``done`` is."""
    monkeypatch.setattr("ngvae_pyro.runs.comparison.look", lambda run: None)
    monkeypatch.setattr("ngvae_pyro.report.comparison_plots.save_all", lambda *_: None)


def test_what_is_there_is_not_done_again(done, no_figures):
    out, words, _ = done
    weights = out / "gaussian+beta_27" / "seed-1" / "weights.safetensors"
    missing = out / "normal_gamma+relaxed" / "seed-0" / "evaluation.json"
    before, old = weights.stat().st_mtime_ns, json.loads(missing.read_text())
    # As an interruption between training and evaluating leaves it.
    missing.unlink()
    said = ngvae(*words, "--out", out)
    assert "3 of 4 runs are there already" in said and "1/1  NG-VAE, seed 0" in said
    assert weights.stat().st_mtime_ns == before
    new = json.loads(missing.read_text())
    for name in ("slides", "scores", "aggregate", "per_image"):
        assert new[name] == old[name]
    said = ngvae(*words, "--out", out)
    assert "4 of 4 runs are there already" in said


def test_a_run_that_was_cut_short_goes_on(images, tmp_path, monkeypatch, no_figures):
    pair = tmp_path / "c" / "gaussian+gaussian"
    # What a death before the first step leaves.
    left = pair / ".seed-9.partial"
    left.mkdir(parents=True)
    (left / "config.toml").write_text("half")
    words = ["compare", "--pairs", "gaussian+gaussian", "--data", images, "--first-seed", "9"]
    words += [*SMALL, "--out", tmp_path / "c"]
    with monkeypatch.context() as patch:
        cut(patch, 5)
        assert "the same command goes on from here" in ngvae(*words, code=143)
    assert runs.unfinished(pair / "seed-9") and not left.exists()
    # In a process of its own.
    assert "1/1" in ngvae(*words, "--jobs", "2")
    assert (pair / "seed-9" / "evaluation.json").exists()
    assert len(runs.load_record(pair / "seed-9")["starts"]) == 2


def test_another_run_in_its_place_is_one_line(done, no_figures):
    out, words, _ = done
    message = ngvae(*words, "--out", out, "--steps", "9", code=2)
    assert "holds a run with fit.steps = 8, not 9; choose another --out" in message
    message = ngvae(*words, "--out", out, "--set", "model.likelihood.scale=0.2", code=2)
    assert "holds a run with model.likelihood" in message
    # Where a run is done and what it is called are no difference.
    assert "4 of 4" in ngvae(
        *words, "--out", out, "--set", "fit.resident_bytes=1000", "--set", "guide.label=NG"
    )


@pytest.mark.parametrize(
    ("pairs", "line"),
    [
        ("gaussian", "expected model+guide, e.g. gaussian+beta_27, got 'gaussian'"),
        ("gaussian+", "expected model+guide"),
        ("gaussian+beta_26", "unknown guide 'beta_26'; did you mean 'beta_27'?"),
        ("normal_gamma+beta_27", "guide family 'gaussian' does not fit"),
        ("gaussian+gaussian,gaussian+gaussian", "'gaussian+gaussian' is named twice"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_trained(tmp_path, pairs, line):
    words = ["compare", "--pairs", pairs, "--out", tmp_path / "c", *SMALL]
    assert line in ngvae(*words, code=2) and not (tmp_path / "c").exists()


def test_data_that_are_not_there_are_one_line(tmp_path):
    words = ["compare", "--data", "no.npz", "--out", tmp_path / "c", *SMALL]
    assert "no.npz: expected an .npz file" in ngvae(*words, code=2)
    assert not (tmp_path / "c").exists()


@pytest.mark.slow
def test_a_diverged_run_is_left_out_and_said(images, tmp_path, no_figures):
    words = ["compare", "--pairs", "gaussian+gaussian,gaussian+dip_i", "--data", images, *SMALL]
    words += ["--set", "fit.learning_rate=1e30", "--steps", "40", "--out", tmp_path / "c"]
    # In processes of their own, which have to hand the error over.
    words += ["--jobs", "2"]
    said = ngvae(*words, code=1)
    assert "non-finite loss" in said and "the training diverged" in said
    result = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert len(result["failed"]) == 2 and [m["runs"] for m in result["models"]] == [0, 0]
    # It would diverge again.
    assert "2 of 2 runs are there already" in ngvae(*words, code=1)


@pytest.mark.slow
def test_a_cluster_gives_the_runs_of_this_machine(done, tmp_path):
    pytest.importorskip("ray")
    out, words, _ = done
    # As many at once as there are cores, so that each has one thread, as in these tests.
    ngvae(*words, "--out", tmp_path / "c", "--jobs", os.cpu_count(), "--ray", "local")
    for pair in PAIRS.split(","):
        for name in ("weights.safetensors", "metrics.json"):
            there = tmp_path / "c" / pair / "seed-1" / name
            assert there.read_bytes() == (out / pair / "seed-1" / name).read_bytes()


def test_a_cluster_without_ray_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("ngvae_pyro.extras.find_spec", lambda name: None)
    words = ["compare", "--pairs", "gaussian+gaussian", "--out", tmp_path / "c", *SMALL]
    message = ngvae(*words, "--ray", "local", code=2)
    assert message == "a Ray cluster needs ray: pip install 'ngvae-pyro[ray]'"
    assert not (tmp_path / "c").exists()


def test_a_cluster_that_does_not_start_is_one_line(tmp_path, monkeypatch, ray_that_raises):
    monkeypatch.setattr("ngvae_pyro.extras.find_spec", lambda name: name)
    ray_that_raises(Exception("The current node timed out during startup."))
    words = ["compare", "--pairs", "gaussian+gaussian", "--out", tmp_path / "c", *SMALL]
    message = ngvae(*words, "--ray", "local", code=2)
    assert message.endswith(
        "--ray local: Ray does not start: The current node timed out during startup."
    )


def test_evaluate_adds_the_metrics_to_a_run(done, images, tmp_path):
    jobs = SMALL.index("--jobs")
    own = SMALL[:jobs] + SMALL[jobs + 2 :]
    with undrawn():
        ngvae("train", "gaussian", "beta_27", "--data", images, "--out", tmp_path / "run", *own)
    before = (tmp_path / "run" / "report.html").read_text()
    said = ngvae("evaluate", tmp_path / "run")
    assert "Disentanglement" in said and "MIG" in said and "evaluation.json" in said
    after = (tmp_path / "run" / "report.html").read_text()
    assert "Held-out" in after and "MIG" in after and "MIG" not in before
    # The same run within a comparison has the same numbers.
    inside = evaluation.load_evaluation(done[0] / "gaussian+beta_27" / "seed-0")
    assert evaluation.load_evaluation(tmp_path / "run")["scores"] == inside["scores"]
    message = ngvae("evaluate", tmp_path, code=2)
    assert f"{tmp_path}: is not a run folder (no config.toml); did you mean" in message


def test_images_without_factors_have_no_scores(tmp_path, no_figures):
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "noise.npz", imgs=rng.integers(0, 255, (40, 8, 8)).astype(np.uint8))
    words = ["compare", "--pairs", "gaussian+gaussian", "--data", tmp_path / "noise.npz", *SMALL]
    with undrawn():
        said = ngvae(*words, "--out", tmp_path / "c")
    assert "Disentanglement ↑" in said and "MIG" not in said and "–" in said
    result = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert result["factors"] is None
    assert not any(cell["best"] for row in result["values"].values() for cell in row.values())


def test_two_models_under_one_guide_go_by_their_pairs(tmp_path):
    pairs = ["normal_gamma+relaxed", "normal_gamma_joint+relaxed", "gaussian+gaussian"]
    planned = comparison.plan(tmp_path, pairs, [0], {})
    assert [run.label for run in planned] == [*pairs[:2], "vanilla VAE"]


def test_az_compare_ranks_the_runs(done):
    out = done[0]
    elpds = comparison.elpds(out, seed=0)
    assert set(elpds) == set(PAIRS.split(","))
    with warnings.catch_warnings():
        # ArviZ says that eight steps leave weights that hang on few draws.
        warnings.simplefilter("ignore", UserWarning)
        # Of ArviZ 0.23 with pandas 3.
        warnings.filterwarnings("ignore", "The inplace keyword", Warning)
        ranked = az.compare(elpds)
    means = {
        pair: evaluation.load_evaluation(out / pair / "seed-0")["log_likelihood"]["mean"]
        for pair in elpds
    }
    assert list(ranked.index) == sorted(means, key=means.__getitem__, reverse=True)
    difference = abs(float(ranked["elpd_diff"].iloc[-1]))
    # ArviZ 1.x rounds to the digits that the standard error leaves.
    assert difference == pytest.approx(100 * (max(means.values()) - min(means.values())), rel=0.25)
    assert math.isclose(float(ranked["weight"].sum()), 1.0, abs_tol=0.02)
    with pytest.raises(UserError, match="no evaluated runs of seed 77"):
        comparison.elpds(out, seed=77)


# Tables --------------------------------------------------------------------------------------


def cell(better, digits, values, factors=None):
    metric = table.Metric("m", "M", "", "G", "metrics.m", better, digits, "")
    cells = {str(i): {"mean": np.mean(v), "values": v, "best": False} for i, v in enumerate(values)}
    table._mark_best(metric, {"m": cells}, factors)
    return [c["best"] for c in cells.values()]


@pytest.mark.parametrize(
    ("better", "values", "factors", "best"),
    [
        ("higher", [[1.0], [2.0], [0.5]], None, [False, True, False]),
        ("lower", [[1.0], [2.0], [0.5]], None, [False, False, True]),
        # What looks equal is equal.
        ("higher", [[1.004], [1.001], [0.5]], None, [True, True, False]),
        (None, [[1.0], [2.0]], None, [False, False]),
        ("factors", [[15.0], [8.0], [7.0]], 7, [False, False, True]),
        # Near in every seed, not on average.
        ("factors", [[5.0, 9.0], [8.0, 8.0]], 7, [False, True]),
        ("factors", [[15.0], [7.0]], None, [False, False]),
        # One model alone is not the best of any.
        ("higher", [[1.0]], None, [False]),
    ],
)
def test_the_best_of_a_row(better, values, factors, best):
    assert cell(better, ".2f", values, factors) == best


def test_a_low_entropy_that_lost_factors_is_not_the_best():
    """Of seven factors the first model keeps four, which lowers the entropy of its latents."""

    def run(entropy, informative):
        return {"evaluation": {"slides": {"entropy": entropy, "informative": informative}}}

    runs = {"few": [run(1.4, 4)], "all": [run(1.9, 7)], "many": [run(2.7, 15)]}
    best = {pair: cell["best"] for pair, cell in table.summarise(runs, 7)["entropy"].items()}
    assert best == {"few": False, "all": True, "many": False}
    assert not any(cell["best"] for cell in table.summarise(runs, None)["entropy"].values())
    assert not any(cell["best"] for cell in table.summarise(runs, 20)["entropy"].values())


def test_metrics_are_described():
    keys = [metric.key for metric in table.METRICS]
    assert len(set(keys)) == len(keys)
    for metric in table.METRICS:
        assert metric.text and metric.title and metric.show(0.5)
        assert (metric.better in ("higher", "lower")) == metric.heading.endswith(("↑", "↓"))
