"""Callbacks: what they see and when, that they change nothing, and the ready-made ones."""

import csv
import sys

import pytest
import torch
from support import cut, load

import ngvae_pyro as ng
from ngvae_pyro.errors import UserError
from ngvae_pyro.interrupts import Interrupted
from ngvae_pyro.specs import FitSpec, Move, ScheduleSpec
from ngvae_pyro.training import actions, steps
from ngvae_pyro.training.callbacks import Callback, CsvLog, EarlyStopping, MLflowLog, TensorBoardLog
from ngvae_pyro.training.checkpoints import Checkpoints

pytestmark = pytest.mark.usefixtures("no_drawing", "deaths")

FEW = FitSpec(steps=40, batch_size=16, monitor_every=6, device="cpu", fast=False)
MOVES = ScheduleSpec(
    moves=(Move(kind="growth", at=0.1, steps=2), Move(kind="death", at=0.3, steps=8)),
    silence=0.6,
    independent=0.98,
)


@pytest.fixture(scope="module")
def data():
    return ng.sprites(n=80, seed=0)


def train(data, *callbacks, spec=FEW, schedule=MOVES, guide="relaxed", model="normal_gamma", **how):
    pair = load(data, model, guide)
    how = {"schedule": schedule, "progress": False, **how}
    return ng.fit(*pair, data, spec, callbacks=list(callbacks), **how)


def same(one, other):
    """Whether two fits are the same to the last bit."""
    pairs = (
        (getattr(one, name).state_dict(), getattr(other, name).state_dict())
        for name in ("model", "guide")
    )
    weights = all(a[key].equal(b[key]) for a, b in pairs for key in a)
    return weights and one.history == other.history and one.moves == other.moves


class Diary(Callback):
    """Writes down what it is called for, and draws random numbers."""

    def __init__(self):
        self.lines, self.rows, self.moves = [], [], []

    def note(self, hook, view):
        torch.rand(3)
        self.lines.append((hook, view.step))

    def on_start(self, view):
        assert (view.row, view.steps, view.leads) == ({}, view.fit.spec.steps, True)
        self.note("start", view)

    def on_step(self, view):
        assert view.batch_loss == view._trainer.steps.latest[0].item()
        self.note("step", view)

    def on_look(self, view):
        assert view.row is view.fit.history[-1]
        self.rows.append(view.row)
        self.note("look", view)

    def on_move(self, view, move):
        self.moves.append(move)
        self.note("move", view)

    def on_end(self, view):
        assert view.seconds >= view.fit.seconds > 0.0 and view.fit.steps == view.step
        self.note(f"end, finished {view.finished}", view)


def test_a_training_is_told_from_its_start_to_its_end(data):
    diary = Diary()
    spec = FEW.model_copy(update={"steps": 4, "monitor_every": 3})
    fit = train(data, diary, spec=spec, schedule=ScheduleSpec())
    assert diary.lines == [
        ("start", 0),
        ("look", 0),
        *(("step", step) for step in (1, 2, 3)),
        ("look", 3),
        ("step", 4),
        ("look", 4),
        ("end, finished True", 4),
    ]
    assert diary.rows == fit.history


def test_callbacks_change_nothing(data):
    assert same(train(data, Diary()), train(data))


def test_the_branches_of_a_move_are_not_told(data):
    diary = Diary()
    fit = train(data, diary)
    assert diary.moves == fit.moves and len(fit.moves) > 1
    assert diary.rows == fit.history
    told = [step for hook, step in diary.lines if hook == "step"]
    ends = {line[1] for line in diary.lines if line[0] == "move"}
    assert told == sorted(set(told)) and 0 < len(told) < 40
    # What was passed over ends where a move was decided.
    jumps = [(a, b) for a, b in zip([0, *told], told, strict=False) if b > a + 1]
    assert jumps and all(b - 1 in ends for _, b in jumps)
    assert [step for _, step in diary.lines] == sorted(step for _, step in diary.lines)


@pytest.mark.parametrize("hook", ["on_look", "on_step"])
def test_steps_are_recorded_all_the_same(data, monkeypatch, hook):
    monkeypatch.setattr(steps, "WARM_UP", 2)
    monkeypatch.setattr(steps, "PAYS_FROM", 10)
    found = []

    def see(self, view):
        found.append(view._trainer.steps.program is not None)

    callback = type("Seeing", (Callback,), {hook: see})()
    spec = FEW.model_copy(update={"fast": True})
    train(data, callback, spec=spec, schedule=ScheduleSpec())
    assert found[-1]


def test_without_on_step_nothing_is_called_after_a_step(data):
    trainer = []

    class Looking(Callback):
        def on_start(self, view):
            trainer.append(view._trainer)

    train(data, Looking(), spec=FEW.model_copy(update={"steps": 2}))
    assert trainer[0].callbacks_of_steps == []


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_step(self, view):
        if view.step >= self.step:
            view.stop()


def test_a_training_that_is_stopped_is_finished_in_good_order(data, monkeypatch):
    diary, taken = Diary(), []
    for kind in (actions.Resolve, actions.Rotate, actions.FitPrecisions, actions.Rescale):
        monkeypatch.setattr(kind, "apply", lambda self, _: taken.append(type(self).__name__))
    fit = train(data, diary, StopAt(3))
    assert fit.skipped == 35 and fit.steps == 40 and "35 of them left out" in repr(fit)
    assert [step for hook, step in diary.lines if hook == "step"] == [1, 2, 3, 39, 40]
    assert fit.moves == [] and fit.history[-1]["step"] == 40
    assert taken == ["Resolve", "Rotate", "FitPrecisions"]
    assert ("end, finished True", 40) in diary.lines


def test_a_stop_in_the_ending_changes_nothing(data):
    late = train(data, StopAt(39))
    assert late.skipped == 0 and same(late, train(data))


@pytest.mark.parametrize("after", [2, 5])
def test_a_stopped_training_is_resumed_as_it_would_have_gone_on(data, tmp_path, monkeypatch, after):
    cut(monkeypatch)
    whole = train(data, StopAt(4), checkpoints=Checkpoints(tmp_path / "whole", every=2))
    cut(monkeypatch, after)
    parts = Checkpoints(tmp_path / "parts", every=2)
    with pytest.raises(Interrupted):
        train(data, StopAt(4), checkpoints=parts)
    cut(monkeypatch)
    diary = Diary()
    diary.on_start = lambda view: None
    fit = train(data, StopAt(4), diary, checkpoints=parts, resume=True)
    assert same(fit, whole) and fit.skipped == whole.skipped == 34
    assert diary.rows == fit.history[-len(diary.rows) :]


def test_an_error_of_a_callback_ends_the_training_and_all_are_told(data):
    class Failing(Callback):
        def on_look(self, view):
            raise KeyError("mine")

    diary = Diary()
    with pytest.raises(KeyError, match="mine"):
        train(data, diary, Failing())
    assert diary.lines == [("start", 0), ("look", 0), ("end, finished False", 0)]


def test_a_start_that_fails_leaves_the_pair_as_it_was(data):
    class Refusing(Callback):
        def on_start(self, view):
            raise UserError("not like this")

    diary, pair = Diary(), load(data)
    before = [p.clone() for p in pair[0].parameters()]
    with pytest.raises(UserError, match="not like this"):
        ng.fit(*pair, data, FEW, callbacks=[Refusing(), diary], progress=False)
    assert diary.lines == []
    assert all(p.equal(q) for p, q in zip(pair[0].parameters(), before, strict=True))


@pytest.mark.parametrize("wrong", [Callback(), [object()], [Callback], "log.csv", None])
def test_what_is_no_callback_is_refused(data, wrong):
    with pytest.raises(UserError, match=r"^callbacks: expected .* of .*Callback, got"):
        ng.fit(*load(data), data, FEW, callbacks=wrong, progress=False)


# The table of looks ---------------------------------------------------------------------------


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_log_has_a_line_for_each_look(data, tmp_path):
    path = tmp_path / "logs" / "log.csv"
    fit = train(data, CsvLog(path), validation=0.2)
    rows = table(path)
    names = ["step", "loss", "validation_loss", "kl_precision", "kl_z", "informative"]
    assert sorted(rows[0]) == sorted(names) and len(rows) == len(fit.history)
    for row, look in zip(rows, fit.history, strict=True):
        assert int(row["step"]) == look["step"] and float(row["loss"]) == look["loss"]
        assert float(row["validation_loss"]) == look["validation_loss"]
        assert float(row["kl_z"]) == look["kl"]["z"]
    # Of another training.
    short = train(data, CsvLog(path), spec=FEW.model_copy(update={"steps": 2}))
    assert len(table(path)) == len(short.history)


def test_the_log_of_a_resumed_training_has_all_of_it(data, tmp_path, monkeypatch):
    cut(monkeypatch, 20)
    keep, path = Checkpoints(tmp_path / "checkpoints", every=5), tmp_path / "log.csv"
    with pytest.raises(Interrupted):
        train(data, CsvLog(path), checkpoints=keep)
    assert table(path)
    cut(monkeypatch)
    fit = train(data, CsvLog(path), checkpoints=keep, resume=True)
    assert [int(row["step"]) for row in table(path)] == [row["step"] for row in fit.history]


def test_a_log_replaces_nothing_else(data, tmp_path):
    path = tmp_path / "notes.csv"
    path.write_text("mine\n")
    with pytest.raises(UserError, match=r"notes.csv: exists and is no log of a training"):
        train(data, CsvLog(path))
    assert path.read_text() == "mine\n"
    with pytest.raises(UserError, match="cannot write there"):
        train(data, CsvLog(path / "log.csv"))
    with pytest.raises(UserError, match="CsvLog: path: expected a path, got 3"):
        CsvLog(3)


# Early stopping -------------------------------------------------------------------------------


class Losses(Callback):
    """Puts given numbers in the place of validation losses, and notes what is kept."""

    def __init__(self, *losses):
        self.losses, self.kept = losses, []

    def on_look(self, view):
        number = len(view.fit.history) - 1
        view.fit.history[-1]["validation_loss"] = float(
            self.losses[min(number, len(self.losses) - 1)]
        )

    def on_end(self, view):
        self.kept.append(view.kept_at)


NO_MOVES = ScheduleSpec(silence=0.6)


@pytest.mark.parametrize(
    ("losses", "patience", "skipped"),
    [
        # Looks are at 0, 6, 12, ...; the ending begins at 38.
        ((9, 5, 6, 7, 0), 2, 38 - 18),
        ((9, 5, 6, 4, 5, 6, 7), 2, 38 - 30),
        ((9, 8, 7, 6, 5, 4, 3), 1, 0),
        # Where the ending begins there is no time to wait any more.
        ((9, 8, 7, 6, 5, 4, 4.5), 5, 38 - 36),
        # Better by less than asked for.
        ((9, 8.5, 8.1, 7.9), 1, 38 - 6),
    ],
)
def test_a_training_ends_where_the_validation_loss_rises(data, losses, patience, skipped):
    stop = EarlyStopping(patience, least=0.6 if losses[-1] == 7.9 else 0.0)
    fit = train(data, Losses(*losses), stop, schedule=NO_MOVES, validation=0.2)
    assert fit.skipped == skipped


def test_the_best_state_is_what_a_stopped_training_goes_on_from(data):
    found = []

    class See(Callback):
        def on_step(self, view):
            state = {key: p.clone() for key, p in view.fit.model.state_dict().items()}
            found.append((view.step, state))

    stop = (Losses(9, 5, 6, 7), EarlyStopping(2))
    train(data, See(), *stop, schedule=ScheduleSpec(rescale=()), validation=0.2)
    states = dict(found)
    assert [*states] == [*range(1, 19), 39, 40]

    def distance(a, b):
        return sum((states[a][k] - states[b][k]).abs().sum().item() for k in states[a])

    assert distance(39, 6) < 0.2 * distance(39, 18)


def test_it_waits_for_the_last_move(data):
    stop = EarlyStopping(1)
    fit = train(data, Losses(*range(100)), stop, validation=0.2)
    after = [row["step"] for row in fit.history if row["step"] < 38]
    decided = max(move.step for move in fit.moves)
    assert fit.skipped and len(fit.moves) > 1 and 38 - fit.skipped > decided
    assert after[-1] == 38 - fit.skipped


@pytest.mark.parametrize("guide", ["relaxed", "mixture"])
@pytest.mark.parametrize("after", [9, 14, 20, 23])
def test_an_early_stop_is_resumed_as_it_would_have_gone_on(
    data, tmp_path, monkeypatch, after, guide
):
    """Cut while the best state is kept, or after it has been gone back to."""
    schedule = ScheduleSpec(silence=0.3, exact=0.5 if guide == "mixture" else 0.0)
    words = {"schedule": schedule, "validation": 0.2, "guide": guide}
    rising = Losses(9, 5, 6, 7, 8)
    cut(monkeypatch)
    keep = Checkpoints(tmp_path / "whole", every=2)
    whole = train(data, rising, EarlyStopping(3), checkpoints=keep, **words)
    assert whole.skipped
    cut(monkeypatch, after)
    keep = Checkpoints(tmp_path / "parts", every=2)
    with pytest.raises(Interrupted):
        train(data, rising, EarlyStopping(3), checkpoints=keep, **words)
    cut(monkeypatch)
    parts = train(data, rising, EarlyStopping(3), checkpoints=keep, resume=True, **words)
    assert same(parts, whole) and parts.skipped == whole.skipped


def test_early_stopping_is_a_key_of_the_fit(data):
    spec = FEW.model_copy(update={"validation": 0.2, "early_stopping": 2})
    rising = Losses(9, 5, 6, 7, 8)
    by_key = train(data, rising, spec=spec, schedule=NO_MOVES)
    by_callback = train(data, rising, EarlyStopping(2), schedule=NO_MOVES, validation=0.2)
    assert by_key.skipped and same(by_key, by_callback)


def test_early_stopping_needs_images_for_validation(data):
    with pytest.raises(UserError, match="EarlyStopping: needs images that are not trained on"):
        train(data, EarlyStopping())
    with pytest.raises(UserError, match=r"fit.early_stopping: needs images .* fit.validation"):
        train(data, spec=FEW.model_copy(update={"early_stopping": 2}))
    for wrong in ((0,), (1, -1.0), (1, float("nan")), (1.5,), (True,), ("2",)):
        with pytest.raises(UserError, match="^EarlyStopping: "):
            EarlyStopping(*wrong)


# Logs elsewhere -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_what_was_logged(data, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit = train(data, TensorBoardLog(tmp_path / "log"))
    log = EventAccumulator(str(tmp_path / "log"))
    log.Reload()
    assert set(log.Tags()["scalars"]) == {"loss", "kl_z", "kl_precision", "informative"}
    told = [(one.step, one.value) for one in log.Scalars("loss")]
    assert told == [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in fit.history]


@pytest.mark.filterwarnings("ignore")
def test_a_training_is_a_run_of_mlflow(data, tmp_path):
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    log = MLflowLog("sprites", "first", tracking_uri=uri)
    fit = train(data, log)
    run = MlflowClient(uri).get_run(log.run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == "first"
    assert run.data.params["fit.steps"] == "40"
    assert run.data.metrics["loss"] == pytest.approx(fit.history[-1]["loss"])
    assert len(MlflowClient(uri).get_metric_history(log.run_id, "loss")) == len(fit.history)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_log_that_is_not_installed_is_a_line_before_the_first_step(
    data, tmp_path, monkeypatch, name
):
    monkeypatch.setitem(sys.modules, name, None)
    log = TensorBoardLog(tmp_path / "log") if name == "tensorboard" else MLflowLog()
    with pytest.raises(UserError, match=rf"need {name}.*: pip install 'ngvae-pyro\[{name}\]'"):
        train(data, log)
    assert not list(tmp_path.iterdir())
