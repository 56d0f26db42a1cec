"""What a training shows on a terminal, in a notebook and in a log file."""

import io
import re
from itertools import pairwise

import pytest
from rich.console import Console

from ngvae_pyro.fitted import MoveRecord
from ngvae_pyro.specs import FitSpec, Move, ScheduleSpec
from ngvae_pyro.training import progress
from ngvae_pyro.training import trainer as svi
from ngvae_pyro.training.progress import TrainingBar
from ngvae_pyro.training.trainer import fit

ROW = {"step": 1500, "loss": -4210.3, "kl": {"precision": 35.9, "z": 36.5}, "informative": 12}
COUNTS = "informative 12, leaking 0"


def terminal(columns, **how):
    return Console(file=io.StringIO(), width=columns, **{"force_terminal": True, **how})


def line(bar):
    """The bar as it would be drawn now."""
    console = Console(file=io.StringIO(), width=bar.console.width, color_system=None)
    console.print(bar.progress.get_renderable())
    # What it says of the time depends on the machine.
    return re.sub(r" (--:--|\d\d:\d\d) ", " --:-- ", console.file.getvalue().rstrip("\n"))


def shown(columns):
    bar = TrainingBar(4400, True, terminal(columns))
    bar.begin(0)
    bar.show(ROW, 0)
    bar.advance(1500)
    return bar


@pytest.mark.parametrize("columns", [60, 80, 99, 100, 140])
def test_bar_counter_and_time_keep_their_width(columns):
    bar = shown(columns)
    for branch in (0, 1):
        bar.trying("death of z10", 1672, 800, branch)
        bar.advance(2270)
        drawn = line(bar)
        assert "\n" not in drawn and len(drawn) <= columns
        width = 20 if columns >= 100 else 10
        pattern = rf"[━╸╺ ]{{{width}}} {1672 + 400 * branch + 299}/4400 --:-- {COUNTS}"
        assert re.match(pattern, drawn), drawn


def test_a_lesson_is_shown_before_the_branch_that_it_begins():
    bar = shown(140)
    bar.trying("growth of z10", 2200, 400, 1)
    bar.lesson(100, 400)
    assert "growth of z10, lesson 100 of 400" in line(bar)
    bar.advance(2201)
    assert "growth of z10, 401 of 800" in line(bar)


@pytest.mark.parametrize(
    ("columns", "state"),
    [
        (52, COUNTS),
        (65, COUNTS),
        (66, f"{COUNTS}  loss -4210.3"),
        (80, f"{COUNTS}  loss -4210.3"),
        (90, f"{COUNTS}  loss -4210.3  KL precision 35.9"),
        (140, f"{COUNTS}  loss -4210.3  KL precision 35.9  KL z 36.5"),
    ],
)
def test_the_counts_are_kept_longest_and_then_the_loss(columns, state):
    drawn = line(shown(columns))
    assert drawn.partition("--:-- ")[2].rstrip() == state


def test_a_move_is_named_and_has_its_own_progress():
    bar = shown(80)
    bar.trying("death of z10", 1672, 800, 0)
    bar.advance(1680)
    assert f"1676/4400 --:-- {COUNTS}  death of z10, 8 of 1600" in line(bar)
    bar.trying("death of z10", 1672, 800, 1)
    assert f"2072/4400 --:-- {COUNTS}  death of z10, 800 of 1600" in line(bar)
    bar.advance(2472)
    assert f"2472/4400 --:-- {COUNTS}  death of z10, 1600 of 1600" in line(bar)
    bar.decided(MoveRecord("death", 10, 1672, 1.0, 2.0), 2472)
    assert f"2472/4400 --:-- {COUNTS}  loss" in line(bar)
    assert bar.console.file.getvalue() == ""


def test_a_move_that_does_not_fit_is_cut():
    bar = shown(70)
    bar.trying("death of z10", 1672, 800, 0)
    assert line(bar).endswith(f"{COUNTS}  death of z10, 0…")


def test_counts_cannot_leak():
    bar = TrainingBar(4400, True, terminal(80))
    bar.begin(0)
    bar.show(ROW, None)
    bar.advance(1500)
    assert "informative 12  loss" in line(bar)


def test_the_clock_starts_where_a_training_goes_on():
    bar = TrainingBar(4400, True, terminal(80))
    bar.begin(4000)
    bar.advance(4010)
    (task,) = bar.progress.tasks
    # 4000 steps in no time would make the time left 0.
    assert task.completed == 4010 and task.time_remaining is None


@pytest.mark.parametrize("widgets", [None, "there"])
def test_a_notebook_has_the_bar_where_it_can_be_drawn(monkeypatch, widgets):
    monkeypatch.setattr(progress, "find_spec", lambda name: widgets)
    notebook = Console(file=io.StringIO(), force_jupyter=True, width=115)
    bar = TrainingBar(4400, True, notebook)
    assert (bar.live, bar.lines) == ((True, False) if widgets else (False, True))
    assert not TrainingBar(4400, False, notebook).live
    bar.begin(0)
    bar.show(ROW, 0)
    bar.advance(300)
    if widgets:
        assert f"300/4400 --:-- {COUNTS}  loss -4210.3  KL precision 35.9" in line(bar)


def train(small_pair, data, console, monkeypatch, moves=(), **settings):
    bars = []

    def bar(steps, enabled):
        bars.append(TrainingBar(steps, enabled, console))
        return bars[-1]

    monkeypatch.setattr(svi, "TrainingBar", bar)
    spec = FitSpec(steps=60, batch_size=16, monitor_every=5, device="cpu", **settings)
    result = fit(*small_pair(), data, spec, schedule=ScheduleSpec(moves=moves), progress=True)
    return result, bars[-1]


@pytest.mark.usefixtures("deaths")
def test_a_log_file_has_a_line_a_tenth_and_one_for_each_move(small_pair, data, monkeypatch):
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    # Untrained, every latent is half informative, and each of them may be tried.
    moves = (Move(kind="death", at=0.2, steps=15),)
    result, _ = train(small_pair, data, console, monkeypatch, moves)
    lines = console.file.getvalue().splitlines()
    assert "\x1b" not in console.file.getvalue()
    outcomes = [text for text in lines if " of z" in text]
    assert len(outcomes) == len(result.moves) >= 1
    for move, text in zip(result.moves, outcomes, strict=True):
        end = min(move.step + 15, 60)
        word = "kept" if move.accepted else "refused"
        assert text == (
            f"step {end}/60  death of z{move.latent} {word}: loss {move.loss_with:.1f} with it, "
            f"{move.loss_without:.1f} without"
        )
    tenths = [text for text in lines if text not in outcomes]
    # A move is longer than two tenths, which have no lines of their own.
    assert 10 - 2 * len(result.moves) <= len(tenths) <= 10
    assert tenths[-1].startswith("step 60/60  informative ")
    steps = [int(re.match(r"step (\d+)/60", text)[1]) for text in lines]
    assert steps == sorted(steps)


@pytest.mark.usefixtures("deaths")
def test_the_counter_goes_on_every_ten_steps_in_moves_too(small_pair, data, monkeypatch):
    seen = []
    update = TrainingBar.advance

    def advance(bar, step):
        update(bar, step)
        if bar.live:
            (task,) = bar.progress.tasks
            seen.append((task.completed, bar.trial))

    monkeypatch.setattr(TrainingBar, "advance", advance)
    moves = (Move(kind="death", at=0.5, steps=20),)
    _, bar = train(small_pair, data, terminal(80), monkeypatch, moves)
    places = [place for place, _ in seen]
    assert {10, 20, 30} <= set(places) and places[-1] == 60
    assert len({place for place, trial in seen if trial is not None}) >= 4
    assert all(0 <= b - a <= 10 for a, b in pairwise(places))
    assert "60/60" in bar.console.file.getvalue()
