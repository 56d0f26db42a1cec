"""The benchmark of counts: its peers' rules, and a runner that goes on where it was ended."""

import json
import signal

import numpy as np
import pytest
import torch
from support import script

from ngvae_pyro.data.images import ImageData
from ngvae_pyro.interrupts import Interrupted
from ngvae_pyro.variants import run_spec

SMALL = ["--images", "300", "--sets", "flat_3", "bump", "--methods", "twonn", "pca95"]


@pytest.fixture
def counting():
    """benchmarks/counting.py, which imports its neighbours as a script does."""
    with script("counting", "sets", "kinds", "peers") as counting:
        yield counting


@pytest.fixture
def peers():
    with script("peers") as peers:
        yield peers


def run(counting, out, *words):
    return counting.main(["--out", str(out), *map(str, words)])


# The peers' rules ------------------------------------------------------------------------------


@pytest.mark.parametrize("needed", [1, 2, 7, 12, 100])
@pytest.mark.parametrize("dimension", [0.3, 4.6, 10.0])
def test_fondue_finds_the_largest_size_without_passive_latents(peers, needed, dimension):
    tried = []

    def gap(size):
        tried.append(size)
        return 0.0 if size <= needed else 3.0

    assert peers.fondue(gap, dimension) == needed
    assert len(tried) == len(set(tried)) and tried[0] == max(1, round(dimension))


def test_fondue_ends_where_nothing_or_everything_agrees(peers):
    assert peers.fondue(lambda size: 9.0, 6.0) == 0
    assert peers.fondue(lambda size: 0.0, 6.0, most=40) == 40
    assert peers.fondue(lambda size: 0.0, np.inf, most=40) == 40
    # A gap of a fifth of the data's dimension is none.
    assert peers.fondue(lambda size: 0.2 * 6.0 if size <= 8 else 1.21, 6.0) == 8


def test_the_rank_counts_singular_values_above_a_hundredth_of_the_largest(peers):
    random = np.random.default_rng(0)
    codes = np.linalg.qr(random.normal(size=(500, 5)) - 0.0)[0]
    codes -= codes.mean(0)
    codes = np.linalg.qr(codes)[0] * np.sqrt([1.0, 0.5, 0.011, 0.009, 0.0])
    assert peers.rank(codes) == 3
    assert peers.rank(codes @ np.linalg.qr(random.normal(size=(5, 5)))[0]) == 3
    assert peers.rank(codes[:, :1]) == 1


def test_an_irmae_learns_and_is_the_same_every_time(peers):
    random = torch.Generator().manual_seed(0)
    data = ImageData("x", torch.rand(64, 1, 1, 6, generator=random))
    values = {"model": {"latent_size": 4, "decoder": {"width": 16, "depth": 1}}}
    values |= {"guide": {"encoder": {"width": 16, "depth": 1}}, "fit": {"device": "cpu"}}

    def found(steps):
        values["fit"]["steps"] = steps
        spec = run_spec("gaussian", "gaussian", values, "test")
        return peers.codes_and_error(peers.trained(spec, data), data)

    codes, error = found(200)
    assert codes.shape == (64, 4) and error < 0.7 * found(1)[1]
    again, same = found(200)
    np.testing.assert_array_equal(again, codes)
    assert same == error


# The runner ------------------------------------------------------------------------------------


def test_it_counts_and_writes_a_table_and_a_figure(counting, tmp_path, capsys):
    assert run(counting, tmp_path / "c", *SMALL, "--seeds", 0, 1) == 0
    said = capsys.readouterr()
    assert "0 of 8 jobs are done already" in said.err and "8/8  bump, pca95, seed 1" in said.err
    files = {path.name for path in (tmp_path / "c").iterdir()}
    jobs = {
        f"{s}+{m}+{i}.json" for s in ("flat_3", "bump") for m in ("twonn", "pca95") for i in (0, 1)
    }
    assert files == jobs | {"table.md", "error.png"}
    found = json.loads((tmp_path / "c" / "flat_3+twonn+1.json").read_text())
    assert found["count"] == found["truth"] == 3 and found["exact"] and found["off"] == 0
    assert found["estimate"] == pytest.approx(3, abs=0.5) and found["mse"] is None
    assert found["kept"] and found["threads"] and found["machine"] and "torch" in found["versions"]
    assert "| flat_3 † | 3 | **3**, **3** | **3**, **3** |" in said.out
    assert "| twonn | kept | 4 | 100% | 100% | 0 |" in said.out
    assert said.out.strip() == (tmp_path / "c" / "table.md").read_text().strip()


def test_it_goes_on_where_it_was_ended(counting, tmp_path, capsys, monkeypatch):
    done = []

    def method(case):
        if len(done) == 2:
            raise Interrupted(signal.SIGTERM)
        done.append(case.train.name)
        return {"count": len(done)}

    monkeypatch.setitem(counting.METHODS, "twonn", method)
    words = ["--images", 60, "--sets", "flat_3", "bump", "curved_2", "--methods", "twonn"]
    assert run(counting, tmp_path / "c", *words) == 143
    assert "the same command goes on from here" in capsys.readouterr().err
    assert len(list((tmp_path / "c").glob("*.json"))) == 2

    monkeypatch.setitem(counting.METHODS, "twonn", lambda case: {"count": 9})
    assert run(counting, tmp_path / "c", *words) == 0
    assert "2 of 3 jobs are done already" in capsys.readouterr().err
    counts = [json.loads(path.read_text())["count"] for path in (tmp_path / "c").glob("*.json")]
    assert sorted(counts) == [1, 2, 9]
    # Other results are not mixed with these.
    assert run(counting, tmp_path / "c", *words, "--steps", 5) == 2
    line = capsys.readouterr().err
    assert "holds a result with steps = None, not 5; choose another --out" in line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--sets", "flat_4"], "unknown set 'flat_4'; did you mean"),
        (["--methods", "twonm"], "unknown method 'twonm'; did you mean 'twonn'?"),
        (["--sets", "flat_3", "--methods", "twonn", "--ray", "x"], "a Ray cluster needs ray: pip"),
    ],
)
def test_a_mistake_is_one_line(counting, tmp_path, capsys, monkeypatch, words, line):
    monkeypatch.setattr("ngvae_pyro.extras.find_spec", lambda name: None)
    assert run(counting, tmp_path / "c", *words) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1 and not (tmp_path / "c").exists()


def test_a_cluster_that_is_not_reached_is_one_line(
    counting, tmp_path, capsys, monkeypatch, ray_that_raises
):
    monkeypatch.setattr("ngvae_pyro.extras.find_spec", lambda name: name)
    ray_that_raises(ConnectionError("Failed to connect to Ray cluster at x:1"))
    words = ["--sets", "flat_3", "--methods", "twonn", "--ray", "x:1"]
    assert run(counting, tmp_path / "c", *words) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == (
        "counting: --ray x:1: no Ray cluster there: Failed to connect to Ray cluster at x:1"
    )


@pytest.mark.parametrize("words", [["--steps", "0"], ["--processes", "0"], ["--seeds", "-1"]])
def test_numbers_out_of_range_are_a_line(counting, tmp_path, capsys, words):
    with pytest.raises(SystemExit) as end:
        run(counting, tmp_path / "c", *words)
    assert end.value.code == 2 and "expected" in capsys.readouterr().err.splitlines()[-1]


def test_a_guide_that_is_not_there_is_left_out_unless_it_is_named(counting, tmp_path, monkeypatch):
    monkeypatch.setattr(counting, "names", lambda kind: ["relaxed", "gaussian"])
    arguments = counting.parsed(["--out", str(tmp_path), "--sets", "flat_3"])
    said = []
    jobs = counting.planned(arguments, said.append)
    assert {job.method for job in jobs} == set(counting.METHODS) - {"ard", "beta"}
    assert "left out: beta: there is no guide 'beta_27' here" in said
    assert run(counting, tmp_path / "c", "--sets", "flat_3", "--methods", "beta") == 2


def test_a_diverged_training_is_a_result(counting, tmp_path, monkeypatch, capsys):
    def method(case):
        raise counting.NonFiniteLoss(3, np.nan, np.nan)

    monkeypatch.setitem(counting.METHODS, "ngvae", method)
    words = ["--images", 60, "--sets", "flat_3", "--methods", "ngvae"]
    assert run(counting, tmp_path / "c", *words) == 0
    assert "| flat_3 † | 3 | diverged |" in capsys.readouterr().out


def test_labels_are_moved_apart_and_stay_in_order(counting):
    assert counting.apart([1.0, 1.0, 5.0], 1.0) == [0.5, 1.5, 5.0]
    assert counting.apart([5.0, 0.0, 4.8], 1.0) == pytest.approx([5.4, 0.0, 4.4])
    heights = np.random.default_rng(0).uniform(0, 6, 9)
    placed = np.array(counting.apart(list(heights), 1.0))
    assert (np.argsort(placed) == np.argsort(heights)).all()
    assert np.diff(np.sort(placed)).min() > 1 - 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flat_3", "speckle"])
def test_every_method_counts(counting, tmp_path, capsys, name):
    words = ["--steps", 4, "--images", 60, "--sets", name]
    methods = [m for m in counting.METHODS if m != "ard"]
    assert run(counting, tmp_path / "c", *words, "--methods", *methods) == 0
    table = capsys.readouterr().out
    assert "–" not in table.splitlines()[2]
    for method in methods:
        found = json.loads((tmp_path / "c" / f"{name}+{method}+0.json").read_text())
        assert found["count"] is not None
        trained = method in ("ngvae", "beta", "vanilla", "irmae")
        assert (found["mse"] is not None) == trained
