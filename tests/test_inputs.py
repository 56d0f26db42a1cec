"""Whatever is put in: success, or one line and exit code 2, with nothing half written.

The long form, with thousands of cases, is ``benchmarks/inputs.py``.
"""

import errno
import json
import random
import shutil
import sys
from itertools import islice
from pathlib import Path
from unittest import mock

import call_cases
import code_cases
import data_cases
import folder_cases
import input_cases
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ngvae_pyro import cli, files, machine, runs, variants
from ngvae_pyro.data import sources as data
from ngvae_pyro.data.rendering import sprites
from ngvae_pyro.errors import LONGEST, UserError, one_line
from ngvae_pyro.evaluation import diagnostics
from ngvae_pyro.report import pages as report
from ngvae_pyro.runs import comparison
from ngvae_pyro.training import memory


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return input_cases.Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def run(bench, tmp_path):
    """A finished run, in a folder of its own with its images."""
    case = input_cases.Case("run", ["inspect", "run"], edits={"run/metrics.json": b"{}"})
    bench(case)
    folder = bench.folder / "case"
    (folder / "run" / "metrics.json").write_bytes((bench.run_folder / "metrics.json").read_bytes())
    return folder / "run"


def ngvae(bench, folder, *words):
    """Exit code, stdout and stderr of the command line in a folder."""
    with input_cases.lightened():
        return bench.main(folder, list(map(str, words)))


def checked(bench, cases):
    outcomes = set()
    for case in cases:
        result = bench(case)
        assert result.outcome != "failure", f"{case}\n{result.why}\n{result.error}"
        outcomes.add(result.outcome)
    # Else the cases would test nothing but messages, or nothing but trainings.
    assert {"success", "exit 2"} <= outcomes


def test_any_key_with_any_value(bench):
    checked(bench, islice(input_cases.key_cases(bench.run_folder, seed=1), 120))


@pytest.mark.parametrize("kind", ["toml", "images", "files", "commands", "edited"])
def test_any_file_and_any_command_line(bench, kind):
    strategies = {
        "toml": input_cases.toml_cases(),
        "images": input_cases.image_cases(),
        "files": input_cases.file_cases(),
        "commands": input_cases.command_cases(),
        "edited": input_cases.folder_cases(bench.inside),
    }
    cases = []

    @settings(
        max_examples=30,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategies[kind])
    def collect(case):
        cases.append(case)

    collect()
    checked(bench, cases)


KINDS = {
    **{"folders": 14, "links": 8, "data": 8, "checkpoints": 12, "environments": 8},
    **{"contradictions": 4, "labels": 4, "degenerate": 2, "arrays": 30, "calls": 25, "types": 10},
    **dict.fromkeys(data_cases.KINDS | code_cases.KINDS, 2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_somebody_has_left_and_whatever_is_called(bench, kind):
    chance = random.Random(f"{kind} 2869")
    kinds = folder_cases.KINDS | call_cases.KINDS | data_cases.KINDS | code_cases.KINDS
    case = kinds[kind]
    found = {}
    for one in (case(chance, bench) for _ in range(KINDS[kind])):
        result = bench(one)
        if result.outcome == "failure":
            found[str(one)] = f"{result.why}\n{result.error}"
    assert not found, "\n\n".join(f"{one}\n    {why}" for one, why in found.items())


def test_a_folder_that_another_process_trains_into(bench):
    case = folder_cases.lock_cases()[0]
    result = bench(case)
    assert result.outcome == "exit 2", f"{case}\n{result.why}\n{result.error}"


def arranged(words, steps, oracle=None, state="finished"):
    return folder_cases.Arranged("x", words, state, steps, oracle)


def edited(path, content):
    return lambda: Path(path).write_bytes(content)


MINE = ("file", "run/deep/thesis.csv", b"years of work")
OTHERS = [("mine", input_cases.IMAGES, folder_cases.changes()["reordered"], "reordered")]
ELSEWHERE = [("other", "elsewhere/run", "run"), ("linked", "run/report.html", "../elsewhere/x")]


@pytest.mark.parametrize(
    ("case", "damage", "why"),
    [
        (arranged(["evaluate", "run"], [MINE]), lambda: Path(MINE[1]).unlink(), "gone or changed"),
        (arranged(["evaluate", "run"], [MINE]), edited(MINE[1], b"work"), "gone or changed"),
        (
            arranged(["evaluate", "run"], ELSEWHERE),
            edited("elsewhere/run/metrics.json", b"{}"),
            "gone or changed",
        ),
        (arranged(["evaluate", "run"], []), edited(".run.partial", b""), "left ['.run.partial']"),
        (
            arranged(["evaluate", "run"], OTHERS, folder_cases._of_its_images),
            edited("run/evaluation.json", b"{}"),
            "success on other images",
        ),
        (
            arranged(["compare"], [], folder_cases._of_its_images, "compared"),
            edited(input_cases.IMAGES, folder_cases.changes()["one pixel"]),
            "success on other images",
        ),
        (arranged(["train"], [], folder_cases._refused), lambda: None, "a contradiction"),
        (
            arranged(["train"], [], folder_cases._trained_to_its_end),
            edited("run/metrics.json", b'{"steps": 1}'),
            "success after 1 of 2 steps",
        ),
        (
            arranged(["train"], [], folder_cases._tables_hold),
            edited("run/table.md", b"| a | b |\n| c|d | e |\n"),
            "rows of [3, 4] bars",
        ),
    ],
)
def test_the_bench_tells_damage(bench, case, damage, why):
    def main():
        damage()
        sys.exit(0)

    folder_cases.prepared(bench)
    with mock.patch.object(input_cases.cli, "main", main):
        result = bench(case)
    assert result.outcome == "failure" and why in result.why


def test_the_bench_tells_a_wrong_call(bench):
    call = call_cases.Call("ng.evaluate", ["fit", "data"])
    assert bench(call).outcome == "success"
    call.options = {"unknown": "1"}
    assert bench(call).outcome == "exit 2"
    for error, why in [
        (KeyError("oh"), "KeyError"),
        (TypeError("oh"), "TypeError"),
    ]:
        wrong = mock.Mock(side_effect=error, __signature__=None)
        with mock.patch.object(call_cases.ng, "evaluate", wrong):
            call.options = {}
            assert why in bench(call).why
    # A message with a name that somebody else chose stays one line of a readable length.
    assert str(UserError("a\nb")) == "a\\nb" and len(str(UserError("a" * 5000))) <= 1200
    # An image shape that is not the fit's, and draws that are fewer than were asked for.
    with mock.patch.object(call_cases.ng, "evaluate", lambda fit, data: {}):
        assert "shapes" in bench(call_cases.Call("ng.evaluate", ["fit", "other"])).why


def test_the_bench_tells_a_mistake_that_is_taken_and_a_refusal_of_what_is_right(bench):
    taken = data_cases.Program("x", ["data.subset([0])"], good=False)
    assert bench(taken).why == "a mistake was taken"
    refused = data_cases.Program("x", ["ng.sprites(-1)"], good=True)
    assert bench(refused).why == "refused, and nothing is wrong"
    assert bench(data_cases.Program("x", ["{}['a']"])).why == "KeyError: 'a'"
    files = {input_cases.IMAGES: b""}
    for changes, good in [([], False), (["fit.steps=0"], True)]:
        case = data_cases.line_case(random.Random(0), "x", files, changes, good)
        case.then = []
        assert bench(case).outcome == "failure"


def test_the_bench_tells_an_array_that_is_read_otherwise(bench):
    use = "ng.ImageData('a', torch.from_numpy(x) // 2)"
    same = call_cases.Images("np.full((10, 1, 28, 28), 8, 'u1')", use.replace(" // 2", ""))
    assert bench(same).outcome == "success"
    same.use = use
    assert "from what a file gives" in bench(same).why
    same.use = "ng.ImageData('a', torch.from_numpy(x[:, :, :20]))"
    assert "from a file (10, 1, 28, 28)" in bench(same).why


def test_the_bench_tells_a_failure(bench):
    case = input_cases.Case("run", input_cases.small_words("gaussian", "gaussian"))
    with mock.patch.object(cli.variants, "run_spec", side_effect=KeyError("oh")):
        assert bench(case).why == "exit KeyError: 'oh'"
    with mock.patch.object(cli.variants, "run_spec", side_effect=UserError("a")):
        assert bench(case).outcome == "exit 2"
    with mock.patch.object(cli, "one_line", lambda message: "a\nb"):
        bad = input_cases.Case("run", ["train", "no", "relaxed", "--out", "run"])
        assert bench(bad).why == "2 lines on stderr"


# Messages ------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.text(max_size=50), st.integers(0, 400))
def test_a_message_is_one_printable_line(text, times):
    line = one_line(text * times)
    assert line.isprintable() and len(line) <= LONGEST + 5
    if text.isprintable() and len(text * times) <= LONGEST:
        assert line == text * times


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["trian"], "no such command 'trian'"),
        (["train"], "expected a model, a guide and --out, or --resume alone"),
        (["inspect"], "missing argument"),
        (["train", "a", "b", "--ot", "x"], "no such option: --ot"),
        (["train", "a", "b", "--out", ""], "'--out': expected a path, got ''"),
        (["compare", "--out", "a\0b"], "'--out': expected a path, got 'a\\x00b'"),
        (["inspect", ""], "expected a path, got ''"),
        (["train", "a", "b", "--out", "x", "--steps", "x"], "invalid value for '--steps'"),
        (["score", "x", "--size", "1"], "invalid value for '--size'"),
        (["train", "a\x1b[2J\n", "b", "--out", "x"], r"unknown model 'a\x1b[2J\n'"),
        (
            ["train", "\udcff.toml", "b", "--out", "x"],
            r"\udcff.toml: cannot be written down as UTF-8",
        ),
        (["train", "a" * 9999, "b", "--out", "x"], "aaa ... "),
        (["inspect", "a" * 300], "no such run folder"),
        (["evaluate", "x", "--device", "gpu"], "x: no such run folder"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(bench, tmp_path, words, line):
    code, out, error = ngvae(bench, tmp_path, *words)
    assert code == 2 and out == "" and error.endswith("\n") and error.count("\n") == 1
    assert error.startswith("ngvae: ") and error[:-1].isprintable() and line in error


def test_help_and_version(bench, tmp_path):
    code, out, error = ngvae(bench, tmp_path, "--version")
    assert (code, error) == (0, "") and out.startswith("ngvae ")
    code, out, error = ngvae(bench, tmp_path, "train", "--help")
    assert (code, error) == (0, "") and "--overwrite" in out
    # Of what typer does without arguments the exit code depends on its version, the help does not.
    code, out, error = ngvae(bench, tmp_path)
    assert code in (0, 2) and error == "" and "compare" in out


@pytest.mark.parametrize("place", [input_cases.IMAGES, f"{input_cases.IMAGES}/x", "a" * 300])
def test_no_place_for_what_is_written(bench, tmp_path, place):
    (tmp_path / input_cases.IMAGES).write_bytes(bench.images)
    words = input_cases.small_words("gaussian", "gaussian", place)
    for command in (words, ["compare", *words[3:], *input_cases._PAIR]):
        code, _, error = ngvae(bench, tmp_path, *command)
        assert code == 2 and error.count("\n") == 1, error
    assert [path.name for path in tmp_path.iterdir()] == [input_cases.IMAGES]


def test_what_the_machine_refuses_is_one_line(bench, tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device", "run/x")
    with mock.patch.object(cli.variants, "run_spec", side_effect=full):
        code, _, error = ngvae(bench, tmp_path, "train", "gaussian", "gaussian", "--out", "x")
    assert (code, error) == (2, "ngvae: run/x: No space left on device\n")


# Memory --------------------------------------------------------------------------------------


def test_what_does_not_fit_into_memory_is_refused(monkeypatch):
    monkeypatch.setattr(machine, "there", lambda device="cpu": 2**26)
    with pytest.raises(UserError, match=r"sprites: 22000 .* the 0.1 GiB of memory .* needs 0.1"):
        sprites()
    images = sprites(20)

    def refused(model, guide, tables):
        with pytest.raises(UserError, match="training .*: expected something that fits"):
            runs.load_pair(variants.run_spec(model, guide, tables, "x"), images)

    small = {"decoder": {"width": 8}}
    runs.load_pair(variants.run_spec("gaussian", "gaussian", {"model": small}, "x"), images)
    refused("normal_gamma", "flat", {"model": small, "guide": {"draws": 1000}})
    refused("gaussian", "factor", {"guide": {"objective": {"width": 3000}}})
    for tables in (
        {"model": {"decoder": {"width": 2000}}},
        {"model": {"latent_size": 10_000}},
        {"fit": {"adversarial": {"channels": 1000}}},
        {"model": small, "fit": {"particles": 1000}},
    ):
        refused("gaussian", "gaussian", tables)
    wide = variants.run_spec("gaussian", "gaussian", {"model": {"decoder": {"width": 3000}}}, "x")
    with pytest.raises(UserError, match="the networks: expected something that fits"):
        runs.load_pair(wide, images.image_shape)


def test_looking_at_memory_draws_no_random_numbers():
    spec = variants.run_spec("normal_gamma", "relaxed", {}, "x")
    torch.manual_seed(0)
    first = torch.rand(3)
    torch.manual_seed(0)
    memory.check_pair(spec, (3, 32, 32), 20)
    assert torch.equal(torch.rand(3), first)


def test_a_zip_bomb_is_not_inflated(tmp_path, monkeypatch):
    path = tmp_path / "bomb.npz"
    path.write_bytes(input_cases.bomb())
    monkeypatch.setattr(machine, "there", lambda device="cpu": input_cases.ROOM)
    read = mock.Mock(side_effect=AssertionError("inflated"))
    monkeypatch.setattr("ngvae_pyro.data.formats._read_into", read)
    with pytest.raises(UserError, match=r"imgs: shape \(172, 1, 1024, 1024\): .* needs 0.3 GiB"):
        data.load_npz(path)
    # A header that claims less than there is: nothing beyond the claim is read.
    lying = input_cases.npy("|u1", (2, 8, 8), bytes(2**20))
    path.write_bytes(input_cases.zipped([("imgs.npy", lying)]))
    with pytest.raises(UserError, match="expected 128 bytes of data for .*, got 1048576"):
        data.load_npz(path)


# Folders of others ---------------------------------------------------------------------------


def test_reading_a_run_fetches_nothing(bench, run):
    path = run / "config.toml"
    text = path.read_text().replace("download = false", "download = true")
    text = text.replace(f'name = "{input_cases.IMAGES}"', 'name = "cifar10"')
    path.write_text(text.replace('root = "data"', 'root = "/etc/x"'))
    assert "download = true" in path.read_text() and '"/etc/x"' in path.read_text()
    assert not runs.load_spec(run).data.download
    for words in (["evaluate", "run"], ["score", "run"]):
        code, _, error = ngvae(bench, run.parent, *words)
        assert code == 2 and "cifar10: found no data in /etc/x" in error and error.count("\n") == 1


@pytest.mark.parametrize("name", ["evaluation.json", "report.html"])
def test_nothing_is_written_through_a_link(bench, run, name):
    mine = run.parent / "mine.txt"
    mine.write_text("mine")
    partial = run / f".{Path(name).stem}.partial{Path(name).suffix}"
    partial.symlink_to(mine)
    assert ngvae(bench, run.parent, "evaluate", "run", "--device", "cpu")[0] == 0
    assert mine.read_text() == "mine" and not partial.is_symlink()
    (run / name).unlink()
    (run / name).symlink_to(mine)
    code, _, error = ngvae(bench, run.parent, "evaluate", "run", "--device", "cpu")
    assert code == 2 and f"{name}: is a link; nothing is written" in error
    assert mine.read_text() == "mine" and (run / name).is_symlink()


def test_no_figures_through_a_link(bench, run):
    shutil.rmtree(run / "figures")
    elsewhere = run.parent / "elsewhere"
    elsewhere.mkdir()
    (run / "figures").symlink_to(elsewhere)
    code, _, error = ngvae(bench, run.parent, "score", "run", "--device", "cpu", "--size", "4")
    assert code == 2 and "figures: is a link" in error and error.count("\n") == 1
    assert list(elsewhere.iterdir()) == []


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("old")
    with pytest.raises(KeyError), files.whole(path) as partial:
        partial.write_text("half")
        raise KeyError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("pair", ["../x.toml+gaussian", "..+gaussian", "/x.toml+gaussian"])
def test_names_of_pairs_stay_in_the_folder(tmp_path, pair, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.npz").write_bytes(input_cases.npz({"imgs": input_cases.GOOD}))
    (tmp_path.parent / "x.toml").write_text('[prior]\nfamily = "gaussian"\n')
    small = {"data": {"name": "x.npz"}, "model": input_cases.SMALL["model"]}
    try:
        planned = comparison.plan(tmp_path / "c", [pair], [0], small)
    except UserError as error:
        assert not pair.startswith("../x"), error
    else:
        assert planned[0].folder == tmp_path / "c" / "x+gaussian" / "seed-0"


def test_weights_that_are_no_numbers_are_refused(bench, run):
    tensors = load_file(run / "weights.safetensors")
    name = next(iter(tensors))
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, run / "weights.safetensors")
    for command in ("inspect", "evaluate", "score"):
        code, _, error = ngvae(bench, run.parent, command, "run")
        assert code == 2 and error.count("\n") == 1
        assert f"weights.safetensors: {name}: expected finite numbers" in error


def test_a_posterior_that_is_none_is_refused(bench, run):
    for content in (b"", b"\x89HDF\r\n\x1a\n" + bytes(100), b"CDF\x01" + bytes(50)):
        (run / "posterior.nc").write_bytes(content)
        with pytest.raises(UserError, match=r"posterior.nc: cannot be loaded"):
            runs.load_posterior(run)


def test_texts_of_others_are_escaped(run):
    html = "<script>alert(1)</script>"
    spec, metrics = runs.load_spec(run), runs.load_metrics(run)
    fields = {"model_name": html, "guide_name": html, "versions": {html: html}}
    fields["data"] = spec.data.model_copy(update={"name": html})
    fields["guide"] = spec.guide.model_copy(update={"label": html})
    (run / "figures").mkdir(exist_ok=True)
    (run / "figures" / f"{html.replace('/', '_')}.png").write_bytes(report.PNG + bytes(20))
    evaluated = {"source": html, "factors": [html], "mig_per_factor": {html: 0.5}}
    path = report.write_run_report(run, spec.model_copy(update=fields), metrics, evaluated)
    page = path.read_text()
    assert "<script" not in page and page.count("&lt;script&gt;") > 5


def test_terminals_are_not_steered(bench, run):
    path = run / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["kl"]["\x1b[2J[/x]"] = metrics["kl"]["z"]
    path.write_text(json.dumps(metrics))
    code, out, error = ngvae(bench, run.parent, "inspect", "run")
    assert (code, error) == (0, "") and "\x1b" not in out and r"\x1b[2J" in out


def test_devices_are_no_files(bench, run):
    (run / "figures").mkdir(exist_ok=True)
    (run / "figures" / "x.png").symlink_to("/dev/zero")
    assert ngvae(bench, run.parent, "evaluate", "run", "--device", "cpu")[0] == 0
    (run / "history.json").unlink()
    (run / "history.json").symlink_to("/dev/zero")
    for words in (["inspect", "run"], ["train", "/dev/zero", "relaxed", "--out", "x"]):
        code, _, error = ngvae(bench, run.parent, *words)
        assert code == 2 and "cannot read the file: not a regular file" in error


@pytest.mark.slow
def test_figures_of_more_latents_than_they_can_show(bench, tmp_path):
    from ngvae_pyro.fitted import Fit
    from ngvae_pyro.report import plots

    spec = variants.run_spec("gaussian", "gaussian", {"model": {"latent_size": 600}}, "x")
    images = sprites(20)
    fit = Fit(*runs.load_pair(spec, images), spec.fit)
    fit.history = [{"step": 0, "loss": 0.0, "kl": {"z": 0.0}, "probs": [0.0] * 600}]
    plots.save_all(tmp_path / "figures", fit, images, diagnostics.evaluate(fit, images))
    assert len(list((tmp_path / "figures").iterdir())) == 6


def test_dollars_in_a_name_are_no_formula(tmp_path):
    from ngvae_pyro.report import plots

    values = np.arange(5.0)
    with plots.sheet(tmp_path / "x.png") as ax:
        plots.scores([("nats", values, values, "score")], r"$\foo$ and $x", ax)
    assert (tmp_path / "x.png").read_bytes().startswith(report.PNG)
