"""Trainings that are cut short go on as if nothing had happened, and what is damaged is refused."""

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from input_cases import once
from support import CONV, PATCHED, SHORT, SMALL, cut, in_a_child, load, ngvae

import ngvae_pyro as ng
from ngvae_pyro import _arviz, axes, files, runs
from ngvae_pyro._arviz import to_netcdf
from ngvae_pyro.errors import Notice, UserError
from ngvae_pyro.evaluation.diagnostics import to_arviz
from ngvae_pyro.interrupts import Interrupted
from ngvae_pyro.specs import (
    AdversarialSpec,
    ArdPriorSpec,
    FactorSpec,
    FitSpec,
    GaussianGuideSpec,
    ModelSpec,
    Move,
    RelaxedGuideSpec,
)
from ngvae_pyro.training import checkpoints as module
from ngvae_pyro.training import steps
from ngvae_pyro.training import trainer as svi
from ngvae_pyro.training.checkpoints import OPTIMIZER, STATE, WEIGHTS, Checkpoints, Snapshot

pytestmark = pytest.mark.usefixtures("no_drawing", "deaths")

FACTOR = GaussianGuideSpec(objective=FactorSpec(width=16, depth=2))
MOVES = (
    Move(kind="birth", at=0.2, steps=2),
    Move(kind="growth", at=0.3, steps=2),
    Move(kind="death", at=0.4, steps=2),
    Move(kind="unfolding", at=0.6, steps=2),
)


@pytest.fixture
def recorded_soon(monkeypatch):
    monkeypatch.setattr(steps, "WARM_UP", 2)
    monkeypatch.setattr(steps, "PAYS_FROM", 10)


@pytest.fixture(scope="module")
def data():
    return ng.sprites(n=64, seed=0)


def train(data, folder, pair, network, resume=False, **settings):
    """A training of 40 steps from the start or from its checkpoints."""
    model, guide = load(data, *pair, network=network)
    schedule = guide.spec.schedule
    if schedule.moves:
        schedule = schedule.model_copy(update={"moves": MOVES})
    values = {"steps": 40, "batch_size": 16, "device": "cpu", "monitor_every": 6, **settings}
    keep = Checkpoints(folder, every=7)
    how = {"schedule": schedule, "progress": False, "checkpoints": keep, "resume": resume}
    return ng.fit(model, guide, data, FitSpec(**values), **how)


def contents(folder):
    """The tensors of the newest checkpoint, and what changes in a training besides."""
    newest = folder / Checkpoints(folder).names()[-1]
    position = json.loads((newest / STATE).read_text())["position"]
    for key in ("seconds", "starts"):
        del position[key]
    # It is kept as it was before the last look, or after it.
    position["history"] = position["history"][:-1]
    return [(newest / name).read_bytes() for name in (WEIGHTS, OPTIMIZER)], position


RESUMED = {
    "relaxed": (("normal_gamma", "relaxed"), SMALL, {}),
    "conv": (("normal_gamma", "relaxed"), CONV, {}),
    "residual_conv": (("normal_gamma", "relaxed"), PATCHED, {}),
    "mixture": (("normal_gamma", "mixture"), SMALL, {}),
    "streamed": (("normal_gamma", "score"), SMALL, {"resident_bytes": 1, "workers": 1}),
    "capacity": (("gaussian", "capacity"), SMALL, {}),
    "factor": (("gaussian", FACTOR), SMALL, {}),
    "adversarial": (
        ("gaussian", "gaussian"),
        CONV,
        {"adversarial": AdversarialSpec(channels=4, begin=0.5)},
    ),
    "poisson": (("poisson", "poisson"), SMALL, {}),
    "ard": ((ModelSpec(prior=ArdPriorSpec(codes=100)), "ard"), SMALL, {}),
}
# Recording a step takes a second or more, and these trainings record it about ten times. What of
# a training is kept is told by its literal steps, and that recordings are by two of them.
RECORDED = {"relaxed", "poisson"}
# Networks that take seconds.
COSTLY = {"conv", "residual_conv", "streamed"}


@pytest.mark.parametrize(
    ("case", "fast"),
    [
        *(
            pytest.param(case, False, marks=pytest.mark.slow if case in COSTLY else ())
            for case in RESUMED
        ),
        *(
            pytest.param(case, True, marks=() if case in RECORDED else pytest.mark.slow)
            for case in RESUMED
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:training goes step by step:ngvae_pyro.errors.Notice")
def test_a_resumed_training_is_the_uninterrupted_one(
    data, tmp_path, monkeypatch, recorded_soon, case, fast
):
    pair, network, settings = RESUMED[case]
    settings = {**settings, "fast": fast}
    cut(monkeypatch)
    whole = train(data, tmp_path / "whole", pair, network, **settings)
    resumed, steps_until = False, [3, 16, 19, None]
    for after in steps_until:
        cut(monkeypatch, after)
        try:
            parts = train(data, tmp_path / "parts", pair, network, resume=resumed, **settings)
        except Interrupted:
            resumed = True
    assert parts.history == whole.history and parts.moves == whole.moves
    assert parts.extra_steps == whole.extra_steps and parts.steps == whole.steps == 40
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    for name in ("model", "guide"):
        left, right = getattr(parts, name).state_dict(), getattr(whole, name).state_dict()
        assert all(left[key].equal(right[key]) for key in right)


@pytest.mark.parametrize(
    "after", [*(pytest.param(n, marks=pytest.mark.slow) for n in (14, 18, 30)), 22]
)
def test_a_training_goes_on_after_overtime(data, tmp_path, monkeypatch, after):
    """Cut before a move, inside of the fork and of its overtime, and after it."""
    pair, close = ("normal_gamma", "relaxed"), "ngvae_pyro.training.actions.CLOSE"
    cut(monkeypatch)
    monkeypatch.setattr(close, 0.0)
    least = train(data, tmp_path / "least", pair, SMALL, fast=False)
    monkeypatch.setattr(close, float("inf"))
    whole = train(data, tmp_path / "whole", pair, SMALL, fast=False)
    assert least.moves and whole.extra_steps > least.extra_steps
    cut(monkeypatch, after)
    with pytest.raises(Interrupted):
        train(data, tmp_path / "parts", pair, SMALL, fast=False)
    cut(monkeypatch)
    parts = train(data, tmp_path / "parts", pair, SMALL, resume=True, fast=False)
    assert parts.moves == whole.moves and parts.extra_steps == whole.extra_steps
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


@pytest.mark.parametrize("fast", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_rotation_is_resumed_to_the_bit(data, tmp_path, monkeypatch, recorded_soon, fast):
    """Cut before it and after it; of so short a training it would not be free."""
    monkeypatch.setattr("ngvae_pyro.training.actions.FREE", float("inf"))
    monkeypatch.setattr(axes, "gaussian", lambda codes: np.zeros(codes.shape[1], bool))
    pair = ("normal_gamma", RelaxedGuideSpec(schedule={"independent": 0.45, "moves": ()}))
    cut(monkeypatch)
    whole = train(data, tmp_path / "whole", pair, SMALL, fast=fast)
    assert whole.rotation.outcome == "independent" and whole.rotation.step < 40
    resumed = False
    for after in (13, 13, 9, None):
        cut(monkeypatch, after)
        try:
            parts = train(data, tmp_path / "parts", pair, SMALL, resume=resumed, fast=fast)
        except Interrupted:
            resumed = True
    assert parts.rotation == whole.rotation and parts.history == whole.history
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_latents_that_fell_silent_are_silent_when_resumed(data, tmp_path, monkeypatch):
    """Cut before they do and after it; here all fall silent, whatever they tell."""
    monkeypatch.setattr("ngvae_pyro.training.actions.LEAK", float("inf"))
    pair = ("normal_gamma", RelaxedGuideSpec(schedule={"moves": (), "silence": 0.5}))
    cut(monkeypatch)
    whole = train(data, tmp_path / "whole", pair, SMALL, fast=False)
    silent = whole.guide.open == 0.0
    assert silent.any()
    resumed = False
    for after in (15, 10, 5, None):
        cut(monkeypatch, after)
        try:
            parts = train(data, tmp_path / "parts", pair, SMALL, resume=resumed, fast=False)
        except Interrupted:
            resumed = True
    assert parts.guide.open.equal(whole.guide.open) and parts.history == whole.history
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert (parts.guide.codes(ng.ImageData.to_unit(data.images)).loc[:, silent] == 0.0).all()


def test_forks_and_recordings_were_among_them(data, tmp_path, monkeypatch, recorded_soon):
    """What the test above is to be of: cuts inside of a fork, before and after a recording."""
    seen = []
    step = svi.Trainer.train_step

    def watched(trainer):
        seen.append((trainer.acted, trainer.steps.program is not None))
        step(trainer)

    monkeypatch.setattr(svi.Trainer, "train_step", watched)
    fit = train(data, tmp_path / "run", ("normal_gamma", "mixture"), SMALL)
    assert fit.moves and {recorded for _, recorded in seen} == {False, True}
    assert len({acted for acted, _ in seen}) >= 5 and fit.extra_steps > 0


def test_a_training_goes_on_only_where_it_may(data, tmp_path, monkeypatch):
    pair = ("gaussian", "gaussian")
    with pytest.raises(UserError, match="holds no checkpoint to go on from"):
        train(data, tmp_path / "run", pair, SMALL, resume=True)
    train(data, tmp_path / "run", pair, SMALL)
    with pytest.raises(UserError, match="holds checkpoints already"):
        train(data, tmp_path / "run", pair, SMALL)
    model, guide = load(data, *pair)
    with pytest.raises(UserError, match="expected checkpoints to go on from, got none"):
        ng.fit(model, guide, data, resume=True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    with pytest.warns(Notice, match="continues with 3 threads instead of 1"):
        train(data, tmp_path / "run", pair, SMALL, resume=True)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"pair": ("gaussian", "beta_27")}, r"guide.objective.beta = nothing, not 27.0"),
        ({"network": {"width": 17, "depth": 2}}, "guide.encoder.width = 16, not 17"),
        ({"learning_rate": 0.01}, "fit.learning_rate = 0.003, not 0.01"),
        ({"data": ng.sprites(n=64, seed=1)}, r"images.SHA-256 = '\w+', not '\w+'"),
        ({"data": ng.sprites(n=65, seed=0)}, r"images.SHA-256|images.shape"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(data, tmp_path, change, line):
    how = {"data": data, "pair": ("gaussian", "gaussian"), "network": SMALL}
    train(folder=tmp_path / "run", **how)
    before = contents(tmp_path / "run")
    with pytest.raises(UserError, match=f"is a checkpoint of a training with .*{line}"):
        train(folder=tmp_path / "run", resume=True, **{**how, **change})
    assert contents(tmp_path / "run") == before


def test_a_checkpoint_of_another_version_is_refused(data, tmp_path, monkeypatch):
    how = (data, tmp_path / "run", ("gaussian", "gaussian"), SMALL)
    train(*how)
    newest = tmp_path / "run" / Checkpoints(tmp_path / "run").names()[-1]
    state = json.loads((newest / STATE).read_text())
    (newest / STATE).write_text(json.dumps({**state, "format": 2}))
    with pytest.raises(UserError, match="is of another version of ngvae_pyro .format 2, here 1."):
        train(*how, resume=True)
    (newest / STATE).write_text(json.dumps(state))
    monkeypatch.setattr("ngvae_pyro.provenance.version", lambda name: "0.0")
    with pytest.raises(UserError, match="versions.pyro-ppl = '[^']+', not '0.0'"):
        train(*how, resume=True)


# Damage --------------------------------------------------------------------------------------


def snapshot(step):
    """A training that has nothing but its step."""
    tensors = {"a": torch.full((40,), float(step))}
    return Snapshot(tensors, {"b": torch.arange(step)}, {"step": step, "acted": 0}, {"who": "me"})


def same(one, other):
    return (
        one.position == other.position
        and all(one.weights[key].equal(other.weights[key]) for key in other.weights)
        and all(one.optimizer[key].equal(other.optimizer[key]) for key in other.optimizer)
    )


def test_the_newest_checkpoint_is_kept_alone(tmp_path):
    keep = Checkpoints(tmp_path / "c")
    (tmp_path / "c" / "mine").mkdir(parents=True)
    for step in (9, 10, 100):
        keep.save(snapshot(step))
        assert {path.name for path in (tmp_path / "c").iterdir()} == {"mine", *keep.names()}
        assert len(keep.names()) == 1
        assert same(keep.load({"who": "me"}), snapshot(step))
    with pytest.raises(UserError, match="with who = 'me', not 'you'"):
        keep.load({"who": "you"})
    with pytest.raises(UserError, match="with more = nothing, not 1"):
        keep.load({"who": "me", "more": 1})


@pytest.mark.parametrize("name", [STATE, WEIGHTS, OPTIMIZER])
def test_any_damage_is_one_line(tmp_path, name):
    keep = Checkpoints(tmp_path / "c")
    keep.save(snapshot(30))
    path = tmp_path / "c" / keep.names()[-1] / name
    content = path.read_bytes()
    cuts = [content[:end] for end in range(0, len(content) - 1, 7)]
    flips = [
        content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] for at in range(len(content))
    ]
    other = Checkpoints(tmp_path / "other")
    other.save(snapshot(31))
    foreign = (tmp_path / "other" / other.names()[-1] / name).read_bytes()
    deep = b"[" * 100_000
    for damaged in (*cuts, *flips, b"", b"null", b"[]", b'{"format": 1}', deep, foreign):
        path.write_bytes(damaged)
        try:
            found = keep.load({"who": "me"})
        except UserError as error:
            # A whole state of another checkpoint shows in the first of the tensors.
            blamed = WEIGHTS if name == STATE and damaged == foreign else name
            assert "\n" not in str(error) and str(path.with_name(blamed)) in str(error)
        else:
            # White space in JSON may be other white space, and then nothing is damaged.
            assert name == STATE and same(found, snapshot(30))
    path.unlink()
    with pytest.raises(UserError, match=f"{name}: cannot read the file: No such file"):
        keep.load({"who": "me"})


def dies_at(count):
    """From here on the process dies before its n-th call that changes the disk."""
    left = [count]

    def dying(call):
        def done(*words, **settings):
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
            return call(*words, **settings)

        return done

    for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
        setattr(os, name, dying(getattr(os, name)))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_death_at_any_moment_of_the_writing_leaves_a_whole_checkpoint(tmp_path):
    keep = Checkpoints(tmp_path / "c")
    found = []
    for moment in range(100):
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        keep.save(snapshot(10))
        # What an earlier death has left is there as well.
        (tmp_path / "c" / ".step-000000005-0.partial").mkdir()

        def work(moment=moment):
            dies_at(moment)
            keep.save(snapshot(20))

        code = in_a_child(work)
        assert code in (0, 9)
        kept = keep.load({"who": "me"})
        assert same(kept, snapshot(10)) or same(kept, snapshot(20))
        found.append(kept.step)
        keep.save(snapshot(30))
        assert same(keep.load({"who": "me"}), snapshot(30))
        assert [path.name for path in (tmp_path / "c").iterdir()] == keep.names()
        if code == 0:
            break
    # Some of them were before the one moment that counts, and some after it.
    assert len(found) > 10 and found == sorted(found) and set(found) == {10, 20}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "mkdir", "rename"])
def test_a_disk_that_refuses_leaves_the_last_checkpoint(tmp_path, monkeypatch, call, number):
    keep = Checkpoints(tmp_path / "c")
    keep.save(snapshot(10))

    def refuse(*words, **settings):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(UserError) as caught:
            keep.save(snapshot(20))
    assert str(caught.value) == (
        f"{tmp_path / 'c'}: cannot write there: {os.strerror(number)}; "
        "the checkpoint step-000000010-0 is kept"
    )
    assert [path.name for path in (tmp_path / "c").iterdir()] == keep.names()
    assert same(keep.load({"who": "me"}), snapshot(10))


# Run folders ---------------------------------------------------------------------------------

PAIR = ["normal_gamma", "relaxed"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing has interrupted, of 60 steps."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    ngvae("train", *PAIR, "--out", folder, *SHORT, "--steps", 60)
    return folder


def results(folder):
    """What a run has found out, byte for byte."""
    names = ("weights.safetensors", "metrics.json", "history.json", "config.toml")
    return {name: sha256((folder / name).read_bytes()).hexdigest() for name in names}


@pytest.fixture(scope="module")
def cut_short(tmp_path_factory):
    """A run that a signal has ended after 25 steps."""
    folder = tmp_path_factory.mktemp("cut") / "run"
    with pytest.MonkeyPatch.context() as patch:
        cut(patch, 25)
        said = ngvae("train", *PAIR, "--out", folder, *SHORT, "--steps", 60, code=143)
    assert f"interrupted; ngvae train --resume {folder} goes on" in said
    return folder


@pytest.fixture
def begun(cut_short, tmp_path):
    """A copy of that, to go on with."""
    return Path(shutil.copytree(cut_short, tmp_path / "run"))


def test_a_resumed_run_is_the_uninterrupted_one(begun, whole):
    assert {path.name for path in begun.iterdir()} == {"config.toml", "run.json", "checkpoints"}
    said = ngvae("train", "--resume", begun)
    assert " informative: " in said
    assert results(begun) == results(whole)
    record = json.loads((begun / "run.json").read_text())
    assert record["seed"] == 0 and len(record["starts"]) == 2 and record["seconds"] > 0
    for start in record["starts"]:
        assert start["command"] and start["device"].startswith("cpu (")
        assert start["threads"] == 1 and set(start["versions"]) > {"torch"}
    # Nothing is left to do, and nothing is done.
    before = {path: path.stat().st_mtime_ns for path in begun.rglob("*")}
    said = ngvae("train", "--resume", begun)
    assert f"{begun}: was finished already" in said and " informative: " in said
    assert {path: path.stat().st_mtime_ns for path in begun.rglob("*")} == before


@pytest.mark.parametrize("command", ["inspect", "evaluate", "score"])
def test_an_unfinished_run_says_so(begun, command):
    assert ngvae(command, begun, code=2) == (
        f"{begun}: its training is not finished; ngvae train --resume {begun} goes on with it"
    )


def test_a_run_is_only_overwritten_when_asked_to(begun, whole):
    before = sorted(path.name for path in begun.rglob("*"))
    words = ["train", *PAIR, "--out", begun, *SHORT, "--steps", 60]
    assert ngvae(*words, code=2) == (
        f"{begun}: already exists; choose another --out or pass --overwrite; "
        f"ngvae train --resume {begun} goes on with it"
    )
    assert sorted(path.name for path in begun.rglob("*")) == before
    ngvae(*words, "--overwrite")
    assert results(begun) == results(whole)
    assert [path.name for path in begun.parent.iterdir()] == ["run"]


def test_what_is_not_of_a_run_is_never_replaced(begun, tmp_path, monkeypatch):
    words = ["train", *PAIR, *SHORT, "--overwrite", "--out"]
    (begun / "notes.txt").write_text("mine")
    assert "notes.txt: is not of a run; move it" in ngvae(*words, begun, code=2)
    (begun / "notes.txt").unlink()
    (tmp_path / "link").symlink_to(begun)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("link", "dangling"):
        said = ngvae(*words, tmp_path / name, code=2)
        assert said == f"{tmp_path / name}: is a link; nothing is written through it"
    monkeypatch.chdir(begun / "checkpoints")
    for name in (".", "..", begun):
        assert "holds the current folder" in ngvae(*words, name, code=2)
    # Folders on the way to it are not left behind either.
    out = tmp_path / "a" / "b" / "run"
    ngvae("train", *PAIR, "--data", "no.npz", "--out", out, code=2)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "link", "dangling"}
    assert runs.unfinished(begun)


def test_an_edited_configuration_is_named(begun):
    config = (begun / "config.toml").read_text()
    (begun / "config.toml").write_text(config.replace("batch_size = 8", "batch_size = 9"))
    before = {path: path.stat().st_mtime_ns for path in begun.rglob("*")}
    assert "with fit.batch_size = 8, not 9" in ngvae("train", "--resume", begun, code=2)
    (begun / "config.toml").write_text(config + "\n[modle]\n")
    assert "unknown key 'modle'" in ngvae("train", "--resume", begun, code=2)
    (begun / "config.toml").write_text(config)
    left = {path: path.stat().st_mtime_ns for path in begun.rglob("*")}
    assert left.keys() == before.keys()
    assert all(left[path] == before[path] for path in left if path.name != "config.toml")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["gaussian"], "leave out model"),
        (["--out", "x", "--steps", "7"], "leave out out, steps"),
        (["--device", "gpu"], "device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        (["--set", "fit.steps=8"], "leave out settings"),
    ],
)
def test_a_run_that_goes_on_takes_nothing_else(begun, words, line):
    assert line in ngvae("train", "--resume", begun, *words, code=2)


def test_where_the_data_are_may_change(begun, monkeypatch):
    seen = []

    def missing(spec, *words):
        seen.append((spec.root, spec.download))
        raise UserError("not there")

    monkeypatch.setattr("ngvae_pyro.data.declared.load_images", missing)
    for words in ([], ["--data-root", "elsewhere", "--download"]):
        assert ngvae("train", "--resume", begun, *words, code=2) == "not there"
    assert seen == [("data", False), ("elsewhere", True)]


def test_resume_needs_a_run(tmp_path):
    said = ngvae("train", "--resume", tmp_path / "no", code=2)
    assert said == f"{tmp_path / 'no'}: no such run folder"
    said = ngvae("train", code=2)
    assert said == "train: expected a model, a guide and --out, or --resume alone"


def test_a_full_disk_leaves_a_run_that_goes_on(tmp_path, whole, monkeypatch):
    folder, write = tmp_path / "run", module.files.write
    room = [12]

    def full(path, content):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write", full)
        words = ["--set", "fit.checkpoint_every=10"]
        said = ngvae("train", *PAIR, "--out", folder, *SHORT, "--steps", 60, *words, code=2)
    assert "No space left on device; the checkpoint step-000000" in said and "\n" not in said
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.toml", "run.json", "checkpoints"}
    ngvae("train", "--resume", folder)
    ours, theirs = results(folder), results(whole)
    assert {k: ours[k] for k in ours if k != "config.toml"} == {
        k: theirs[k] for k in theirs if k != "config.toml"
    }


def test_a_disk_that_is_full_at_the_report_keeps_the_training(begun, whole, monkeypatch):
    def full(*words):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("ngvae_pyro.report.plots.save_all", full)
        said = ngvae("train", "--resume", begun, code=2)
    assert said == (
        f"{begun / 'metrics.json'}: cannot write there: No space left on device; "
        f"ngvae train --resume {begun} writes them again"
    )
    assert {path.name for path in begun.iterdir()} == {"config.toml", "run.json", "checkpoints"}
    ngvae("train", "--resume", begun)
    assert results(begun) == results(whole)


@pytest.mark.slow
def test_a_disk_too_full_for_the_posterior_is_noticed_before(begun, monkeypatch):
    """HDF5 would end the process."""
    monkeypatch.setattr("ngvae_pyro.evaluation.diagnostics.to_arviz", to_arviz)
    monkeypatch.setattr(_arviz, "to_netcdf", to_netcdf)
    write = _arviz.files.reserve

    def full(path, size):
        assert size > 2**20
        write(path, 10)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(_arviz.files, "reserve", full)
    said = ngvae("train", "--resume", begun, code=2)
    assert said.startswith(f"{begun / 'metrics.json'}: cannot write there: No space left on device")


def test_reserving_leaves_nothing(tmp_path):
    files.reserve(tmp_path / "x", 3 * 2**20 + 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    said = ngvae("train", *PAIR, "--out", tmp_path / "run", *SHORT, code=2)
    assert said == f"{tmp_path / 'run'}: cannot write there: Permission denied"


def test_a_diverged_run_has_no_checkpoint_to_go_on_from(tmp_path):
    folder = tmp_path / "run"
    words = [*PAIR, "--out", folder, *SHORT, "--steps", 40, "--set", "fit.learning_rate=1e30"]
    ngvae("train", *words, code=1)
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.toml", "run.json", "weights.safetensors"}
    assert "holds no checkpoint to go on from" in ngvae("train", "--resume", folder, code=2)
    assert not runs.finished(folder) and not runs.unfinished(folder)


def start(*words):
    command = [sys.executable, "-m", "ngvae_pyro", *once(words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(condition, process):
    while process.poll() is None and not condition():
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it could be stopped"


def test_signals_and_kills(tmp_path, whole):
    """Real ones, one after the other, on one run; benchmarks/faults.py has many."""
    folder = tmp_path / "run"
    kept = Checkpoints(folder / "checkpoints")
    words = ["train", *PAIR, "--out", folder, *SHORT, "--steps", 60]
    process = start(*words, "--set", "fit.checkpoint_every=1")
    wait_for(kept.names, process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 143
    assert said == f"ngvae: interrupted; ngvae train --resume {folder} goes on\n"
    before = kept.names()
    process = start("train", "--resume", folder)
    wait_for(lambda: kept.names() > before, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and runs.unfinished(folder)
    ngvae("train", "--resume", folder)
    ours, theirs = results(folder), results(whole)
    for name in ("weights.safetensors", "metrics.json", "history.json"):
        assert ours[name] == theirs[name]
