"""Callbacks: what is called in the course of a training, and some that are ready to use.

A callback is a subclass of :class:`Callback` with the methods that it needs::

    class Hour(Callback):
        def on_look(self, view):
            if view.seconds > 3600:
                view.stop()

    ngvae_pyro.fit(model, guide, data, callbacks=[Hour(), CsvLog("log.csv")])

They see the training that is kept, and never the branches of a move while these are tried: a move
trains two branches and keeps one, so the steps of both are passed over in silence. After it the
looks that were due within the kept branch are reported, each with the step at which it was made,
then the move itself, and the next step is that after the branch. So ``view.step`` rises and may
jump.

In a training of several processes callbacks are called in each of them, at the same steps; those
that write do so in the first one alone (``view.leads``). A training that is resumed calls
``on_start`` again, and then only what is new; ``view.fit.history`` has all looks in either case.
The random numbers that a callback draws from torch are not those of the training, which is the
same with and without it, unless it changes the model or the guide.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngvae_pyro import files
from ngvae_pyro.errors import UserError, expect
from ngvae_pyro.extras import needed
from ngvae_pyro.fitted import Fit, MoveRecord

if TYPE_CHECKING:
    from ngvae_pyro.training.trainer import Trainer


class TrainingView:
    """What a callback sees of a training.

    Attributes:
        fit: The model and the guide as they are now, and the record of the training so far
            (:class:`ngvae_pyro.Fit`); its ``spec`` says how it is trained.
        stopping: Whether a callback has called :meth:`stop`.
    """

    def __init__(self, trainer: "Trainer") -> None:
        self.fit: Fit = trainer.fit
        self.stopping = False
        self._trainer = trainer

    @property
    def step(self) -> int:
        """How many steps have been made; those of a kept branch count, and skipped ones."""
        return self._trainer.step

    @property
    def steps(self) -> int:
        """How many there are in all."""
        return self._trainer.spec.steps

    @property
    def row(self) -> Mapping[str, object]:
        """The latest look, the last row of ``fit.history`` (:class:`ngvae_pyro.Fit`).

        It may be of an earlier step, ``row["step"]``. Empty before the first look.
        """
        history = self.fit.history
        return history[-1] if history else {}

    @property
    def seconds(self) -> float:
        """Seconds spent on the training, including those before an interruption."""
        return self._trainer.seconds

    @property
    def batch_loss(self) -> float:
        """The loss of the latest step, nats per image, with the weights of the schedule.

        On a GPU this waits until the step is done, so reading it after every step costs time.
        """
        return float(self._trainer.steps.latest[0])

    @property
    def moves_left(self) -> int:
        """How many of the moves of the schedule are not yet decided."""
        return self._trainer.moves_left

    @property
    def ending(self) -> int:
        """The step at which the last twentieth of the training begins."""
        return self._trainer.ending

    @property
    def validates(self) -> bool:
        """Whether there are images for validation."""
        return self._trainer.validation is not None

    @property
    def kept_at(self) -> int | None:
        """The step of the state that is kept, if there is one."""
        return None if self._trainer.kept is None else int(self._trainer.kept[0]["step"])

    @property
    def finished(self) -> bool:
        """Whether the training has come to its end: False where an error or a signal ended it."""
        return self._trainer.finished

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self._trainer.team.leads

    def keep(self) -> None:
        """Keep the present state, in place of one that is kept already, for :meth:`stop`.

        Checkpoints have it too. For :meth:`Callback.on_look` after the last move, and
        :meth:`Callback.on_step`; within a move the look is of another state.
        """
        self._trainer.keep()

    def stop(self) -> None:
        """Go to the end of the training, in good order.

        The training goes back to the state that is kept, if there is one, and skips to the last
        twentieth of its steps. No move is tried any more and an ``auto`` scale stays as it is;
        leaks end and axes are rotated as the schedule says, and the learning rate falls to 0.
        ``fit.skipped`` is the number of steps that were left out. In the last twentieth itself this
        changes nothing. To end at once, raise an exception.
        """
        self.stopping = True


class Callback:
    """Base of what is called in the course of a training; its own methods do nothing."""

    def on_start(self, view: TrainingView) -> None:
        """Called before the first step, or the first one after a training was resumed.

        The place to refuse what cannot work: nothing is trained yet.
        """

    def on_step(self, view: TrainingView) -> None:
        """Called after every step that is not one of a move's branches."""

    def on_look(self, view: TrainingView) -> None:
        """Called after every evaluation, whose results are ``view.row``."""

    def on_move(self, view: TrainingView, move: MoveRecord) -> None:
        """Called when a move has been decided: kept if ``move.accepted``, otherwise refused."""

    def on_end(self, view: TrainingView) -> None:
        """Called at the end, also where an error or a signal ended the training."""


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Refuse what is no sequence of callbacks.

    Raises:
        UserError: For the first object that is none.
    """
    expect("callbacks", callbacks, (list, tuple), "a list of ngvae_pyro.Callback")
    for callback in callbacks:
        expect("callbacks", callback, Callback, "objects of subclasses of ngvae_pyro.Callback")


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row of the history that are of the whole model, by name.

    ``loss`` and ``validation_loss``, ``kl_z`` and ``kl_precision``, nats per image, and
    ``informative``.
    """
    found = {key: row[key] for key in ("loss", "validation_loss") if key in row}
    kl = {f"kl_{site}": value for site, value in row["kl"].items()}
    return {**found, **kl, "informative": row["informative"]}


class CsvLog(Callback):
    """Writes a table of all looks so far, after each of them.

    Its columns are ``step``, ``loss``, ``validation_loss`` if there are validation images, ``kl_z``
    (and ``kl_precision``), nats per image, and ``informative``. The log of a training that was
    resumed has all of it.

    Args:
        path: The file. One that exists is replaced if it is such a log.

    Raises:
        UserError: Before the first step if the file exists and is something else, and whenever it
            cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        expect("CsvLog: path", path, (str, Path), "a path")
        self.path = Path(path)

    def on_start(self, view: TrainingView) -> None:
        if not view.leads:
            return
        with files.writing(self.path):
            if self.path.exists():
                with self.path.open("rb") as file:
                    if not file.read(len(_BEGINS)) == _BEGINS:
                        raise UserError(
                            f"{self.path}: exists and is no log of a training; choose another path"
                        )
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write(view.fit.history)

    def on_look(self, view: TrainingView) -> None:
        if view.leads:
            with files.writing(self.path):
                self._write(view.fit.history)

    def _write(self, history: Sequence[Mapping[str, Any]]) -> None:
        rows = [{"step": row["step"], **numbers(row)} for row in history]
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0] if rows else ["step", "loss"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        files.write(self.path, text.getvalue().encode())


_BEGINS = b"step,loss"


class EarlyStopping(Callback):
    """Ends a training at the state with the lowest validation loss.

    It waits until the last move has been decided, because before that the number of latents is
    open, and keeps the state of every new best look from then on. After ``patience`` looks without
    one, or where the ending would begin, the training goes back to the best state and from there to
    its ending (:meth:`TrainingView.stop`). So it saves what is lost at the end of a training, not
    what was lost before: if the loss has risen by then, fewer steps are what helps, because all of
    a schedule is in proportion to them.

    Args:
        patience: How many looks without a new best are waited for; they are ``fit.monitor_every``
            steps apart.
        least: By how many nats per image a new best has to be better.

    Raises:
        UserError: For other arguments, and before the first step if there are no images for
            validation.
    """

    def __init__(self, patience: int = 3, least: float = 0.0) -> None:
        expect("EarlyStopping: patience", patience, int, "a whole number of looks from 1 on")
        expect("EarlyStopping: least", least, (int, float), "a number of nats from 0 on")
        if patience < 1 or not 0.0 <= least < math.inf:
            raise UserError(
                "EarlyStopping: expected patience >= 1 and least >= 0, got "
                f"{patience} and {least:g}"
            )
        self.patience, self.least = patience, least
        self.best, self.waited = math.inf, 0

    def on_start(self, view: TrainingView) -> None:
        if not view.validates:
            raise UserError(
                "EarlyStopping: needs images that are not trained on: pass validation to fit, or "
                "set fit.validation"
            )
        # Of a training that was resumed: the best look is the one whose state is kept.
        kept_at = math.inf if view.kept_at is None else view.kept_at
        since = [row for row in view.fit.history if row["step"] >= kept_at]
        self.best = since[0]["validation_loss"] if since else math.inf
        self.waited = max(len(since) - 1, 0)
        self._decide(view)

    def on_look(self, view: TrainingView) -> None:
        if view.moves_left or view.step >= view.ending:
            return
        loss = view.fit.history[-1]["validation_loss"]
        if loss < self.best - self.least:
            self.best, self.waited = loss, 0
            view.keep()
        else:
            self.waited += 1
        self._decide(view)

    def _decide(self, view: TrainingView) -> None:
        last = view.step + view.fit.spec.monitor_every >= view.ending
        if self.waited >= (1 if last else self.patience):
            view.stop()


class TensorBoardLog(Callback):
    """Writes the numbers of every look where TensorBoard reads them.

    They are those of :class:`CsvLog`, as scalars under these names. The log of a training that was
    resumed goes on; what it had written after its checkpoint is replaced.

    Args:
        folder: The folder of the log, one for each training.

    Raises:
        UserError: Before the first step if TensorBoard is not installed (the extra
            ``tensorboard``), and if the folder cannot be written.
    """

    def __init__(self, folder: str | Path) -> None:
        expect("TensorBoardLog: folder", folder, (str, Path), "a path")
        self.folder = Path(folder)
        self._writer: Any = None

    def on_start(self, view: TrainingView) -> None:
        if not view.leads:
            return
        with needed("tensorboard"):
            import tensorboard  # noqa: F401, torch's own message names no extra

        from torch.utils.tensorboard import SummaryWriter

        with files.writing(self.folder):
            self._writer = SummaryWriter(str(self.folder), purge_step=view.step or None)

    def on_look(self, view: TrainingView) -> None:
        if view.leads:
            with files.writing(self.folder):
                for name, value in numbers(view.row).items():
                    self._writer.add_scalar(name, value, view.row["step"])
                self._writer.flush()

    def on_end(self, view: TrainingView) -> None:
        if self._writer is not None:
            self._writer.close()


class MLflowLog(Callback):
    """Logs a training as a run of MLflow: the keys of its spec, and the numbers of every look.

    They are those of :class:`CsvLog`, as metrics under these names. The run is of its own, whatever
    run is active; it ends FINISHED, or FAILED where an error or a signal ended the training. A
    training that is resumed is a run of its own again, with the looks since then.

    Args:
        experiment: Name of the experiment, which is created if there is none.
        run_name: Name of the run; by default MLflow finds one.
        tracking_uri: Where MLflow keeps its runs; by default as MLflow is configured.

    Attributes:
        run_id: The run, from the start of a training on; None before.

    Raises:
        UserError: Before the first step if MLflow is not installed (the extra ``mlflow``), or does
            not take the log.
    """

    def __init__(
        self,
        experiment: str = "Default",
        run_name: str | None = None,
        *,
        tracking_uri: str | None = None,
    ) -> None:
        expect("MLflowLog: experiment", experiment, str, "a name")
        self.experiment, self.run_name, self.tracking_uri = experiment, run_name, tracking_uri
        self.run_id: str | None = None
        self._client: Any = None

    def on_start(self, view: TrainingView) -> None:
        if not view.leads:
            return
        with needed("mlflow"):
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException

        keys = view.fit.spec.model_dump(mode="json", exclude_none=True)
        try:
            self._client = client = MlflowClient(self.tracking_uri)
            found = client.get_experiment_by_name(self.experiment)
            number = found.experiment_id if found else client.create_experiment(self.experiment)
            self.run_id = client.create_run(number, run_name=self.run_name).info.run_id
            for key, value in keys.items():
                client.log_param(self.run_id, f"fit.{key}", value)
        except MlflowException as error:
            raise UserError(f"MLflow does not take the log: {error}") from None

    def on_look(self, view: TrainingView) -> None:
        if view.leads:
            for name, value in numbers(view.row).items():
                self._client.log_metric(self.run_id, name, value, step=view.row["step"])

    def on_end(self, view: TrainingView) -> None:
        if self.run_id is not None:
            self._client.set_terminated(self.run_id, "FINISHED" if view.finished else "FAILED")
