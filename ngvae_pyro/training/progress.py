"""The progress bar of a training."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from ngvae_pyro.extras import needed
from ngvae_pyro.fitted import MoveRecord

with needed("train"):
    from rich.cells import cell_len
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.measure import Measurement
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        Task,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column
    from rich.text import Text

# Columns of a terminal from which the bar is wide; with fewer the state needs the room.
WIDE = 100
# Columns that a truncated move needs to be recognisable.
LEAST = 12


class State:
    """Texts in one line, the most important first, as many as there is room for.

    The second one, such as the progress of a move, is truncated if it does not fit; the others are
    shown in full or not at all.

    Args:
        parts: The texts.
    """

    def __init__(self, parts: Sequence[str]) -> None:
        self.parts = parts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line = self.parts[0]
        for number, part in enumerate(self.parts[1:]):
            room, needed = options.max_width - cell_len(line) - 2, cell_len(part)
            if room < (needed if number else min(needed, LEAST)):
                break
            line += f"  {part}"
        yield Text(line, no_wrap=True, overflow="ellipsis")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, max(1, cell_len("  ".join(self.parts))))


class StateColumn(ProgressColumn):
    """The state of a training, in the room that the other columns leave."""

    def __init__(self) -> None:
        super().__init__(table_column=Column(ratio=1, no_wrap=True))

    def render(self, task: Task) -> State:
        return State(task.fields["parts"])


class TrainingBar:
    """Progress on a terminal or in a notebook; elsewhere (a log file) a line for every tenth.

    Bar, counter and time left keep their width, and the state has the rest of the line: how many
    latents were informative and leaking at the last evaluation, the move that is tried, the loss
    and the KLs. The counter is the step of the training. While a move is tried, it advances by one
    for every two steps, because only one of the two branches will be part of the training.

    Args:
        steps: Number of steps of the training.
        enabled: Whether anything is shown.
        console: Where it is shown; by default on stderr.
    """

    def __init__(self, steps: int, enabled: bool, console: Console | None = None) -> None:
        self.console = Console(stderr=True) if console is None else console
        # In a notebook without ipywidgets rich would warn and show nothing.
        notebook = self.console.is_jupyter and find_spec("ipywidgets") is not None
        self.live = enabled and (self.console.is_terminal or notebook)
        self.lines = enabled and not self.live
        self.steps, self.tenth = steps, 0
        # For the move that is tried: name, first step, steps of a branch, number of the branch.
        self.trial: tuple[str, int, int, int] | None = None
        self.counts, self.numbers = "", [""]
        self.progress = Progress(
            BarColumn(bar_width=20 if self.console.width >= WIDE else 10),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(compact=True),
            StateColumn(),
            console=self.console,
            disable=not self.live,
            expand=True,
        )
        self.task = TaskID(0)

    def __enter__(self) -> "TrainingBar":
        # Some versions of rich write an empty line when a disabled bar stops.
        if self.live:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.progress.stop()

    def begin(self, step: int) -> None:
        """Start the clock at a step, which is not the first one in a resumed training."""
        self.tenth = 10 * step // self.steps
        self.task = self.progress.add_task(
            "training", total=self.steps, completed=step, parts=("training",)
        )

    def show(self, row: Mapping[str, Any], leaking: int | None) -> None:
        """Show the results of an evaluation, from the next :meth:`advance` on.

        Args:
            row: Row of the history.
            leaking: How many latents leak; None if none can.
        """
        self.counts = f"informative {row['informative']}"
        if leaking is not None:
            self.counts += f", leaking {leaking}"
        kl = [f"KL {name} {value:.1f}" for name, value in row["kl"].items()]
        self.numbers = [f"loss {row['loss']:.1f}", *kl]
        tenth = 10 * row["step"] // self.steps
        if self.lines and tenth > self.tenth:
            self.tenth = tenth
            self._print(row["step"], "  ".join([self.counts, *self.numbers]))

    def advance(self, step: int) -> None:
        """Show the step that the training, or the branch of a move, has reached."""
        if not self.live:
            return
        parts = [self.counts]
        if self.trial is not None:
            name, begin, steps, branch = self.trial
            tried = branch * steps + step - begin
            step = begin + tried // 2
            parts.append(f"{name}, {tried} of {2 * steps}")
        self.progress.update(self.task, completed=step, parts=[*parts, *self.numbers])

    def trying(self, name: str, step: int, steps: int, branch: int) -> None:
        """Show that a branch of a move begins: 0 without the move, 1 with it."""
        self.trial = name, step, steps, branch
        self.advance(step)

    def lesson(self, step: int, steps: int) -> None:
        """Show how far a lesson has come, which is before the first step of the branch."""
        if self.live and self.trial is not None:
            parts = [self.counts, f"{self.trial[0]}, lesson {step} of {steps}"]
            self.progress.update(self.task, parts=[*parts, *self.numbers])

    def decided(self, record: MoveRecord, step: int) -> None:
        """Show the outcome of a move, at the step where the training continues."""
        self.trial = None
        if self.lines:
            what = "kept" if record.accepted else "refused"
            losses = f"loss {record.loss_with:.1f} with it, {record.loss_without:.1f} without"
            self._print(step, f"{record} {what}: {losses}")
        self.advance(step)

    def _print(self, step: int, text: str) -> None:
        line = f"step {step}/{self.steps}  {text}"
        self.console.print(line, highlight=False, soft_wrap=True)
