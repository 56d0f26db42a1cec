"""Whose files are whose, who may write a folder, and what happens when the outside interferes."""

import errno
import fcntl
import io
import json
import os
import pty
import shutil
import signal
import socket
import stat
import sys
from contextlib import suppress
from hashlib import sha256
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import worker_cases
from support import cut, in_a_child, ngvae

from ngvae_pyro import cli, distributed, files, runs
from ngvae_pyro.errors import Notice, UserError
from ngvae_pyro.runs import comparison, pool
from ngvae_pyro.training import trainer
from ngvae_pyro.training.checkpoints import Checkpoints
from ngvae_pyro.training.steps import NonFiniteLoss

PAIR = ["gaussian", "gaussian", "--latents", "2", "--device", "cpu", "--steps", "4"]
for key in ("fit.batch_size=8", "model.decoder.width=8", "guide.encoder.width=8"):
    PAIR += ["--set", key]


@pytest.fixture(scope="module", autouse=True)
def light():
    """One figure that is none, and nothing that takes seconds."""

    def one_figure(folder, *_):
        folder.mkdir()
        with files.whole(folder / "selection.png") as path:
            path.write_bytes(b"a figure")

    def page(folder, *_):
        files.write(folder / "report.html", b"a page")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ngvae_pyro.report.plots.save_all", one_figure)
        patch.setattr("ngvae_pyro.report.plots.scores", lambda *_: None)
        patch.setattr("ngvae_pyro.report.pages.write_run_report", page)
        patch.setattr("ngvae_pyro.evaluation.diagnostics.to_arviz", lambda *_, **options: None)
        patch.setattr("ngvae_pyro._arviz.to_netcdf", lambda *_: None)
        patch.setattr("ngvae_pyro.runs.evaluating.assess", lambda *_: {"source": "no images"})
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "blobs.npz"
    np.savez(path, imgs=np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8))
    return path


@pytest.fixture(scope="module")
def train(images):
    """Words of a command that trains into a folder."""
    return lambda out, *more: ["train", *PAIR, "--data", images, "--out", out, *more]


@pytest.fixture(scope="module")
def folders(train, light, tmp_path_factory):
    """A finished run, and one that was interrupted after its second step."""
    path = tmp_path_factory.mktemp("folders")
    ngvae(*train(path / "run"))
    with pytest.MonkeyPatch.context() as patch:
        cut(patch, 2)
        ngvae(*train(path / "begun"), code=143)
    return path


@pytest.fixture
def run(folders, tmp_path):
    return shutil.copytree(folders / "run", tmp_path / "run")


@pytest.fixture
def begun(folders, tmp_path):
    return shutil.copytree(folders / "begun", tmp_path / "begun")


def state(folder):
    """Everything in a folder: names, kinds and contents."""
    return {
        path.relative_to(folder).as_posix(): os.readlink(path)
        if path.is_symlink()
        else sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }


def put(folder, name):
    """Somebody's file, or folder if the name ends with a slash."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if name.endswith("/") else path.write_text("mine")
    return path


def said_by_main(monkeypatch, capsys, code, *words):
    """What ``main`` prints on stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["ngvae", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    found = capsys.readouterr()
    assert caught.value.code == code, found.err
    return found.out, found.err


# Somebody's files ----------------------------------------------------------------------------


@pytest.mark.parametrize("recorded", [True, False])
def test_overwriting_deletes_nothing_that_is_not_of_the_run(run, train, recorded):
    if not recorded:
        # As an earlier version has written it.
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({k: v for k, v in record.items() if k != "files"}))
    (step,) = (run / "checkpoints").iterdir()
    for name, foreign in {
        "thesis.csv": "thesis.csv",
        "notes.json": "notes.json",
        "score_mine.csv": "score_mine.csv",
        "backup.json/data": "backup.json",
        "figures/paper.pdf": "figures/paper.pdf",
        "figures/mine/": "figures/mine",
        "checkpoints/keep/": "checkpoints/keep",
        f"checkpoints/{step.name}/notes.txt": f"checkpoints/{step.name}/notes.txt",
    }.items():
        path = put(run, name)
        before = state(run)
        said = ngvae(*train(run, "--overwrite"), code=2)
        assert said == f"{run / foreign}: is not of a run; move it, or choose another --out"
        assert state(run) == before and os.listdir(run.parent) == ["run"]
        shutil.rmtree(run / foreign) if (run / foreign).is_dir() else path.unlink()
    (run / "weights.safetensors").rename(run.parent / "weights")
    (run / "weights.safetensors").symlink_to(run.parent / "weights")
    assert "weights.safetensors: is not of a run" in ngvae(*train(run, "--overwrite"), code=2)


@pytest.mark.parametrize("recorded", [True, False])
def test_overwriting_replaces_all_that_is_of_the_run(run, train, recorded):
    before = state(run)
    ngvae("evaluate", run)
    ngvae("score", run, "--size", "4")
    # What a process that was killed leaves, and a Mac.
    for name in (
        *(".evaluation.partial.json", ".results.partial/figures/.selection.partial.png"),
        *("checkpoints/.step-000000009-0.partial/.state.partial.json", "figures/.DS_Store"),
    ):
        put(run, name)
    if not recorded:
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({k: v for k, v in record.items() if k != "files"}))
    ngvae(*train(run, "--overwrite"))
    assert state(run).keys() == before.keys() and os.listdir(run.parent) == ["run"]


def test_a_record_names_every_file(run):
    def named():
        return runs.load_record(run)["files"]

    def there():
        found = [name for name, kind in state(run).items() if kind != "folder"]
        return [name for name in found if not name.startswith("checkpoints/")]

    assert named() == there()
    ngvae("evaluate", run)
    ngvae("score", run, "--size", "4")
    assert named() == there()
    assert {"evaluation.json", "score_held_out.csv", "figures/score_held_out.png"} <= {*named()}


def test_a_file_that_appears_during_the_training_is_kept(run, train, monkeypatch):
    fit = trainer.fit

    def beside(*words, **options):
        put(run, "thesis.csv")
        return fit(*words, **options)

    monkeypatch.setattr("ngvae_pyro.runs.start.fit", beside)
    before = state(run)
    said = ngvae(*train(run, "--overwrite"), code=2)
    assert said.startswith(f"{run / 'thesis.csv'}: is not of a run; move it")
    (run / "thesis.csv").unlink()
    assert state(run) == before and os.listdir(run.parent) == ["run"]


def test_a_file_that_appears_in_the_last_moment_is_kept(run, train, monkeypatch):
    flush, old = files.flush, run.with_name(".run.old")

    def late(path):
        if old.is_dir():
            put(old, "figures/thesis.csv")
        flush(path)

    monkeypatch.setattr(files, "flush", late)
    with pytest.warns(Notice, match=r"\.run\.old/figures/thesis\.csv: is left there, because"):
        ngvae(*train(run, "--overwrite"))
    assert set(state(old)) == {"figures", "figures/thesis.csv"}
    # It is not lost to the next one either.
    assert "figures/thesis.csv: is not of a run" in ngvae(*train(run, "--overwrite"), code=2)


@pytest.mark.parametrize("name", [".run.partial", ".run.old"])
def test_what_is_beside_a_run_folder_is_somebodys_too(train, tmp_path, name):
    put(tmp_path / name, "mine.txt")
    said = ngvae(*train(tmp_path / "run"), code=2)
    assert said.startswith(f"{tmp_path / name / 'mine.txt'}: is not of a run; move it")
    assert set(state(tmp_path)) == {name, f"{name}/mine.txt"}


def test_a_run_comes_back_that_a_death_has_left_between_two_names(run, train):
    before = state(run)
    run.rename(run.with_name(".run.old"))
    assert f"{run}: already exists" in ngvae(*train(run), code=2)
    assert state(run) == before and os.listdir(run.parent) == ["run"]


def test_a_resumed_run_keeps_somebodys_files(begun):
    put(begun, "figures/paper.pdf")
    put(begun, "report.html")
    before = state(begun)
    said = ngvae("train", "--resume", begun, code=2)
    assert said == f"{begun / 'report.html'}: is not of the run, and is not replaced; move it"
    assert state(begun) == before
    (begun / "report.html").unlink()
    ngvae("train", "--resume", begun)
    assert {"metrics.json", "figures/paper.pdf", "figures/selection.png"} <= set(state(begun))


def test_a_diverged_training_keeps_somebodys_files(train, tmp_path, monkeypatch):
    fit, run = trainer.fit, tmp_path / "run"

    def diverging(*words, **options):
        fit(*words, **options)
        put(run, "checkpoints/mine.txt")
        raise NonFiniteLoss(3, float("nan"), 1.0)

    monkeypatch.setattr("ngvae_pyro.runs.start.fit", diverging)
    with pytest.warns(Notice, match=r"checkpoints/mine\.txt: is left there, because it is not of"):
        ngvae(*train(run), code=1)
    names = {"config.toml", "run.json", "weights.safetensors", "checkpoints"}
    assert set(state(run)) == {*names, "checkpoints/mine.txt"}
    assert not runs.unfinished(run)
    assert runs.load_record(run)["files"] == sorted(names - {"checkpoints"})


def test_results_replace_nothing_of_somebodys(run, images, tmp_path):
    before = put(run, "evaluation.json").read_text()
    said = ngvae("evaluate", run, code=2)
    assert said == f"{run / 'evaluation.json'}: is not of the run, and is not replaced; move it"
    assert (run / "evaluation.json").read_text() == before
    put(run, "score_held_out.csv")
    assert "score_held_out.csv: is not of the run" in ngvae("score", run, code=2)
    for name in ("x.csv", "x.png", "x.json"):
        put(tmp_path, name)
        said = ngvae("score", run, "--out", tmp_path / "x.json", code=2)
        assert f"{name}: is not of a score, and is not replaced; move it" in said
        (tmp_path / name).unlink()
    said = ngvae("score", run, "--out", run / "metrics.json", code=2)
    assert "metrics.json: is not of a score" in said
    for _ in range(2):
        ngvae("score", run, "--out", tmp_path / "x.json", "--size", "4")
    assert {"x.csv", "x.json", "x.png"} < set(os.listdir(tmp_path))
    words = ["compare", "--data", images, "--pairs", "gaussian+gaussian", "--out", tmp_path / "c"]
    for name in ("table.csv", "comparison.json"):
        path = put(tmp_path / "c", name)
        assert f"{path}: " in ngvae(*words, code=2)
        assert set(state(tmp_path / "c")) == {name} and path.read_text() == "mine"
        path.unlink()


# Links ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["checkpoints", "checkpoints/step", "figures", "report.html", ".results.partial"]
)
def test_nothing_happens_through_a_link(begun, name):
    """As in a folder from elsewhere, which leads to a run of one's own."""
    (step,) = (begun / "checkpoints").iterdir()
    mine, link = begun.with_name("mine"), begun / name.replace("step", step.name)
    if name.startswith("checkpoints"):
        link.rename(mine)
    else:
        put(mine, "selection.png")
    link.symlink_to(mine)
    before = state(begun.parent)
    said = ngvae("train", "--resume", begun, code=2)
    assert said == f"{link}: is a link; nothing is written or deleted through it"
    assert state(begun.parent) == before


def test_a_comparison_trains_nothing_through_a_link(images, tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "c" / "gaussian+gaussian").symlink_to(tmp_path / "elsewhere")
    words = ["compare", "--data", images, "--pairs", "gaussian+gaussian", "--out", tmp_path / "c"]
    said = ngvae(*words, "--steps", "2", code=2)
    assert "gaussian+gaussian: is a link; nothing is written or deleted through it" in said
    assert not list((tmp_path / "elsewhere").iterdir())


# One process at a time -----------------------------------------------------------------------


def fit_is_not_reached(*words, **options):
    raise AssertionError("two processes train into one folder")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("overwrite", "overwrite"),
        ("resume", "resume"),
        ("overwrite", "resume"),
        ("resume", "overwrite"),
        ("start", "start"),
    ],
)
def test_of_two_processes_one_writes(begun, train, tmp_path, monkeypatch, first, second):
    fit, folder, refused = trainer.fit, begun, tmp_path / "refused"
    if first == "start":
        folder = tmp_path / "new" / "run"
    words = {
        "overwrite": train(folder, "--overwrite"),
        "resume": ["train", "--resume", folder],
        "start": train(folder),
    }

    def two(*arguments, **options):
        before = state(tmp_path)
        # Where it is not refused it trains nothing.
        monkeypatch.setattr("ngvae_pyro.runs.start.fit", fit_is_not_reached)
        seed = [] if second == "resume" else ["--seed", "2"]
        work = lambda: refused.write_text(ngvae(*words[second], *seed, code=2))  # noqa: E731
        assert in_a_child(work) == 0
        after = state(tmp_path)
        said = after.pop("refused")
        assert said and after == before
        return fit(*arguments, **options)

    monkeypatch.setattr("ngvae_pyro.runs.start.fit", two)
    ngvae(*words[first])
    holder = f"process {os.getpid()} on {socket.gethostname()} ("
    assert refused.read_text().startswith(f"{folder}: is being written by {holder}")
    assert runs.finished(folder) and runs.load_spec(folder).fit.seed == 0
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_killed_process_hinders_nobody(train, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            "ngvae_pyro.runs.start.fit", lambda *_, **options: os.kill(os.getpid(), signal.SIGKILL)
        )
        assert in_a_child(lambda: ngvae(*train(tmp_path / "run"))) == -signal.SIGKILL
    assert set(os.listdir(tmp_path)) == {".run.partial", ".run.lock"}
    ngvae(*train(tmp_path / "run"))
    assert os.listdir(tmp_path) == ["run"]


def test_who_writes_waits_and_who_reads_does_not(run, images, tmp_path):
    from ngvae_pyro import locks

    with locks.held(run):
        for word in ("evaluate", "score"):
            assert f"{run}: is being written by process" in ngvae(word, run, code=2)
        (tmp_path / "link").symlink_to(run)
        assert "is being written by" in ngvae("evaluate", tmp_path / "link", code=2)
        ngvae("score", run, "--size", "4", "--out", tmp_path / "x.json")
        assert "informative" in ngvae("inspect", run)
        assert "was finished already" in ngvae("train", "--resume", run)
    words = ["compare", "--data", images, "--pairs", "gaussian+gaussian", "--out", tmp_path / "c"]
    with locks.held(tmp_path / "c"):
        assert f"{tmp_path / 'c'}: is being written by" in ngvae(*words, code=2)
    assert not (tmp_path / "c").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_a_notice(train, tmp_path, monkeypatch, number):
    def refuse(*words):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(Notice, match=r"run: cannot be locked \(.+\); let no other process write"):
        ngvae(*train(tmp_path / "run"))
    assert os.listdir(tmp_path) == ["run"]


def test_the_lock_is_the_file_of_that_name(tmp_path, monkeypatch):
    from ngvae_pyro import locks

    path, lock = tmp_path / ".run.lock", fcntl.flock
    for content in ("mine", '{"host": 1}'):
        path.write_text(content)
        with pytest.raises(UserError, match=r"\.run\.lock: is not a lock of ngvae; move it"):
            locks.held(tmp_path / "run").__enter__()
        assert path.read_text() == content
    path.unlink()
    path.symlink_to(put(tmp_path, "mine.txt"))
    with pytest.raises(UserError, match=r"\.run\.lock: is a link"):
        locks.held(tmp_path / "run").__enter__()
    path.unlink()
    # What a power failure leaves.
    path.write_bytes(bytes(50))
    times = []

    def slow(handle, how):
        # The one who held it ends between the opening and the locking.
        if not times:
            path.unlink()
        times.append(how)
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    with locks.held(tmp_path / "run"):
        assert len(times) == 2 and json.loads(path.read_text())["pid"] == os.getpid()
        with pytest.raises(UserError, match="is being written by process"):
            locks.held(tmp_path / "run").__enter__()
        # Somebody removes it, and another takes its place: that one is not to be removed.
        path.unlink()
        path.write_text('{"pid": 1')
    assert path.read_text() == '{"pid": 1'


# The outside ---------------------------------------------------------------------------------


@pytest.fixture
def hang_up():
    """Sends SIGHUP; nothing happens where nobody listens."""
    before = signal.signal(signal.SIGHUP, lambda *_: None)
    yield lambda: os.kill(os.getpid(), signal.SIGHUP)
    signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_ends_a_training_as_sigterm_does(
    train, tmp_path, monkeypatch, capsys, hang_up
):
    fit, load = trainer.fit, runs.load_data

    def heard(*words, **options):
        save = Checkpoints.save

        def saved(keep, snapshot):
            save(keep, snapshot)
            hang_up()
            hang_up()

        with mock.patch("ngvae_pyro.training.checkpoints.Checkpoints.save", saved):
            return fit(*words, **options)

    with monkeypatch.context() as patch:
        patch.setattr("ngvae_pyro.runs.start.fit", heard)
        _, said = said_by_main(patch, capsys, 129, *train(tmp_path / "run"))
    line = f"ngvae: interrupted; ngvae train --resume {tmp_path / 'run'} goes on\n"
    assert said.endswith(line) and runs.unfinished(tmp_path / "run")
    with monkeypatch.context() as patch:
        # Before the first step.
        patch.setattr(
            "ngvae_pyro.runs.start.load_data", lambda *words: (load(*words), hang_up())[0]
        )
        _, said = said_by_main(patch, capsys, 129, *train(tmp_path / "other"))
    assert said == "ngvae: interrupted\n" and os.listdir(tmp_path) == ["run"]
    # As under nohup.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with monkeypatch.context() as patch:
        patch.setattr("ngvae_pyro.runs.start.fit", heard)
        said_by_main(patch, capsys, 0, *train(tmp_path / "other"))


def test_what_cannot_be_shown_any_more_ends_nothing(run, monkeypatch):
    terminal, handle = pty.openpty()
    with open(handle, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "argv", ["ngvae", "inspect", str(run)])
        monkeypatch.setattr(runs, "load_metrics", closes(runs.load_metrics, terminal))
        with pytest.raises(SystemExit) as caught:
            cli.main()
    assert caught.value.code == 0


def closes(call, handle):
    def closing(*words):
        with suppress(OSError):
            os.close(handle)
        return call(*words)

    return closing


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_folders_that_cannot_be_flushed_are_one_notice(train, tmp_path, monkeypatch, number):
    fsync = os.fsync

    def refuse(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(handle)

    files._warn_not_flushed.cache_clear()
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.warns(Notice, match="the file system cannot flush a folder to the disk") as said:
        ngvae(*train(tmp_path / "run"))
    assert len(said) == 1
    monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=OSError(number, "no")))
    with pytest.raises(OSError, match="no"):
        files.write(tmp_path / "file", b"")


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"WORLD_SIZE": "2"}, "RANK: expected a whole number from 0 to 1 as torchrun sets it, got"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE: expected a whole number from 1 to 1,000,000"),
        ({"WORLD_SIZE": "-1"}, "got -1; start with torchrun, or unset WORLD_SIZE"),
        ({"WORLD_SIZE": "abc"}, "got abc"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE: expected"),
        ({"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"}, "RANK: expected"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "LOCAL_RANK: expected"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "MASTER_PORT: expected"),
    ],
)
@pytest.mark.parametrize("word", ["inspect", "train"])
def test_half_of_what_torchrun_sets_is_one_line(
    monkeypatch, capsys, tmp_path, variables, line, word
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    words = {"inspect": ["inspect", tmp_path], "train": ["train", *PAIR, "--out", tmp_path / "r"]}
    _, said = said_by_main(monkeypatch, capsys, 2, *words[word])
    assert line in said and said.count("\n") == 1 and os.listdir(tmp_path) == []


def test_torchrun_is_for_train_alone(monkeypatch, capsys, tmp_path):
    place = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    join = mock.Mock(side_effect=distributed.dist.DistNetworkError("no such host\nand more"))
    monkeypatch.setattr(distributed.dist, "init_process_group", join)
    for rank, line in (("0", "ngvae: torchrun is for train, not for inspect\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        assert said_by_main(monkeypatch, capsys, 2, "inspect", tmp_path)[1] == line
    assert not join.called
    _, said = said_by_main(monkeypatch, capsys, 2, "train", *PAIR, "--out", tmp_path / "r")
    assert said == "ngvae: the 2 processes do not meet at localhost:1: no such host\n"


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_any_encoding_of_the_terminal_will_do(run, monkeypatch, encoding):
    for words in (["evaluate", run], ["inspect", run]):
        # A process has what is printed there as bytes.
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        monkeypatch.setattr(sys, "argv", ["ngvae", *map(str, words)])
        monkeypatch.setattr(cli, "_titled", lambda title: cli.Table(title="metric ↑ ± \u2013"))
        with pytest.raises(SystemExit) as caught:
            cli.main()
        sys.stdout.seek(0)
        assert caught.value.code == 0 and "metric ? " in sys.stdout.read()


@pytest.mark.parametrize(
    "words",
    [
        ["train", *PAIR, "--out", "r\udcff"],
        ["train", *PAIR, "--data", "x\udcff.npz", "--out", "r"],
        ["train", *PAIR, "--out", "r", "--set", "data.root=\udcff"],
        ["score", "r", "--out", "x\udcff.json"],
        ["compare", "--out", "c\udcff"],
        ["train", "--resume", "r\udcff"],
    ],
)
def test_a_name_that_cannot_be_written_down_is_one_line(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # Where it is not refused it trains nothing.
    monkeypatch.setattr(runs, "train", fit_is_not_reached)
    monkeypatch.setattr(comparison, "compare", fit_is_not_reached)
    _, said = said_by_main(monkeypatch, capsys, 2, *words)
    assert r"\udcff" in said and "cannot be written down as UTF-8; expected another name" in said
    assert said.count("\n") == 1 and os.listdir(tmp_path) == []


def test_a_killed_worker_loses_its_own_run_alone(monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", int)
    todo = [SimpleNamespace(label="VAE", seed=seed) for seed in range(4)]
    seconds, lines = {}, []
    ended = pool.run_all(todo, worker_cases.do, 2)
    lost = comparison._work(ended, 4, seconds, lines.append)
    assert lost == [
        "VAE, seed 1: its process was killed, or out of memory; the same command goes on with it"
    ]
    assert seconds == {"training": 3.0} and len(lines) == 4
    assert sum(line.endswith("1 s") for line in lines) == 3


def test_a_comparison_with_a_lost_run_is_written(images, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "_work", lambda *_: ["VAE, seed 0: lost"])
    words = ["compare", "--data", images, "--pairs", "gaussian+gaussian", "--out", tmp_path / "c"]
    said = ngvae(*words, "--latents", 2, code=1)
    assert "ngvae: VAE, seed 0: lost\n" in said
    names = {"comparison.json", "table.md", "table.csv", "report.html"}
    assert set(os.listdir(tmp_path / "c")) == names
    assert json.loads((tmp_path / "c" / "comparison.json").read_text())["failed"] == [
        "VAE, seed 0: lost"
    ]


@pytest.mark.parametrize("name", ["", ".", "..", "../thesis.csv", "/thesis.csv", "a//b", "a/../b"])
def test_a_record_names_only_what_is_in_its_folder(run, train, name):
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "files": [*record["files"], name]}))
    before = state(run)
    said = ngvae(*train(run, "--overwrite"), code=2)
    assert f"expected the name of a file in the folder, got {name!r}" in said
    assert state(run) == before


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_before_there_is_anything_to_keep_has_its_exit_code(monkeypatch, signum):
    """Typer by itself says 130 of any."""
    monkeypatch.setattr(sys, "argv", ["ngvae", "variants"])
    monkeypatch.setattr(cli.variants, "folder", lambda kind: os.kill(os.getpid(), signum))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 128 + signum
