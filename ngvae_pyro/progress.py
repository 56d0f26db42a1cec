"""What a person sees of a training while it runs."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class TrainingBar:
    """Progress on a terminal; elsewhere (a log file, a cluster) a line for every tenth."""

    def __init__(self, steps: int, enabled: bool) -> None:
        self.console = Console(stderr=True)
        self.live = enabled and self.console.is_terminal
        self.lines = enabled and not self.live
        self.steps, self.tenth = steps, 0
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[state]}"),
            console=self.console,
            disable=not self.live,
        )
        self.task = self.progress.add_task("training", total=steps, state="")

    def __enter__(self) -> "TrainingBar":
        # Some versions of rich write an empty line where a disabled one stops.
        if self.live:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.progress.stop()

    def show(self, row: Mapping[str, Any]) -> None:
        kl = "  ".join(f"KL {name} {value:.1f}" for name, value in row["kl"].items())
        state = f"loss {row['loss']:.1f}  {kl}  informative {row['informative']}"
        self.progress.update(self.task, completed=row["step"], state=state)
        tenth = 10 * row["step"] // self.steps
        if self.lines and tenth > self.tenth:
            self.tenth = tenth
            self.console.print(f"step {row['step']}/{self.steps}  {state}", highlight=False)
