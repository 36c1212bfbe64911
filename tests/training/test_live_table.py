"""The table of epochs on a real terminal: rows that stay, one line that moves below them, and nothing of it anywhere else."""

import csv
import io
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from tests.processes import signal_itself_when_written, when_written
from tests.screen import Screen, resize, run_on_terminal
from tests.shades import draw_shades
from tlkit.data.progress import progress_console, shared_console
from tlkit.recipe.fields.phases import Phase
from tlkit.recipe.fields.trainer import Trainer
from tlkit.recipe.load import load_recipe
from tlkit.system import as_command_line
from tlkit.training.callbacks.best_weights import BestWeights
from tlkit.training.finetune import finetune
from tlkit.training.outputs import live_table
from tlkit.training.outputs.live_table import LiveTable, can_redraw, clock
from tlkit.training.specs import PhaseSpec

RECIPE = """
name: shades
data: {source: {folder: photos}, validation: 0.3, image_size: 32, resize: stretch, normalize: none, batch_size: 8, leak_check: off}
augment: [HorizontalFlip]
model: {backbone: test_resnet, weights: random}
phases: [{train: head, epochs: 2, lr: 1e-2}, {train: all, epochs: 3, lr: 1e-3}]
trainer: {accelerator: cpu, devices: 1, logger: []}
"""
WARNINGS = ("logged while an epoch runs, and longer than the sixty columns of a narrow terminal", "warned of by a package")
ROW = re.compile(r"^ +(\d+)/(\d+)(?: +[\d.,:e-]+)+(?: s)?( \*)?$")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live_table")
    draw_shades(folder / "photos", dark=90, light=140, noise=80)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def environment(**more: str) -> Mapping[str, str]:
    left_out = ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_INTERACTIVE", "TTY_COMPATIBLE")
    return {name: value for name, value in os.environ.items() if name not in left_out} | more


def disturb(columns: int) -> None:
    """Make the terminal narrower, and write to it past the table."""
    resize(sys.stderr.fileno(), columns)
    logging.getLogger("tlkit").warning(WARNINGS[0])
    warnings.warn(WARNINGS[1], stacklevel=1)


def when_the_first_row_is_due(act: partial[None]) -> None:
    when_written(lambda path: path.name == "metrics.csv", act)


def fail() -> None:
    raise RuntimeError("made to fail")


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_rows_have_the_figures_of_metrics_csv_fit_the_terminal_and_stay_whole(workplace: Path) -> None:
    narrower = partial(when_the_first_row_is_due, partial(disturb, 60))
    done = run_on_terminal("finetune", "recipe.yaml", "--out", "run", columns=120, cwd=workplace, env=environment(), first=narrower)
    assert done.returncode == 0, done.stdout
    screen = Screen(120)
    screen.write(done.stdout)
    lines = [line.rstrip() for line in screen.lines]
    shown = "\n".join(lines)
    assert screen.shows_cursor

    wide = "  epoch  train loss  train acc  val loss  val acc       lr  images/s     time"
    narrow = "  epoch  train loss  train acc  val loss  val acc     time"
    start = lines.index("phase 1/2 head, 2 epochs")
    headings = [line for line in lines[start:] if line in (wide, narrow) or (line.startswith("phase ") and line.endswith(" epochs"))]
    assert headings == ["phase 1/2 head, 2 epochs", wide, narrow, "phase 2/2 all, 3 epochs", narrow]

    best, expected = (-1.0, 0.0), []
    for row in rows_of(workplace / "run"):
        score = (float(row["val/accuracy"]), -float(row["val/loss"]))
        figures = [f"{float(row[name]):.4f}" for name in ("train/loss", "train/accuracy", "val/loss", "val/accuracy")]
        expected.append([f"{row['epoch']}/{2 if row['phase'] == '1' else 3}", *figures, *(["*"] if score > best else [])])
        best = max(best, score)
    found = [line.replace(" s", "").split() for line in lines if ROW.match(line)]
    assert [[word for number, word in enumerate(words) if number != 5] for words in found] == expected

    first_row = next(number for number, line in enumerate(lines) if ROW.match(line))
    assert max(map(len, lines[first_row : lines.index(narrow, first_row) + 1])) <= 60
    assert "warning: logged while an epoch runs, and longer than the\nsixty columns of a narrow terminal\n" in shown
    assert WARNINGS[1] in shown
    # What moves is gone, and so are the lines of log.txt that rows stand for.
    assert "training 0/3" in done.stdout
    assert "training 0/3" not in shown
    assert "train loss 0." not in shown
    assert len(re.findall(r"phase ./2 \w+  epoch ./.  train loss", (workplace / "run/log.txt").read_text())) == 5


@pytest.mark.parametrize(
    ("name", "happens", "code", "said"),
    [
        ("interrupted", partial(signal_itself_when_written, "metrics.csv", signal.SIGINT), 130, "--resume"),
        ("failed", partial(when_the_first_row_is_due, partial(fail)), 1, "made to fail"),
    ],
)
def test_a_terminal_without_colours_or_unicode_is_left_as_it_was(
    name: str, happens: partial[None], code: int, said: str, workplace: Path
) -> None:
    done = run_on_terminal(
        *("finetune", "recipe.yaml", "--out", name),
        columns=60,
        cwd=workplace,
        env=environment(NO_COLOR="1"),
        encoding="ascii",
        first=happens,
    )
    assert done.returncode == code, done.stdout
    screen = Screen(60)
    screen.write(done.stdout)
    assert "training 0/3" in done.stdout
    assert screen.shows_cursor
    assert not re.search(r"\x1b\[[\d;]*3\d", done.stdout)
    assert not [line for line in screen.lines if re.search(r"training \d/3", line)]
    assert said in "".join(screen.lines)


def shown_on(console: Console, columns: int) -> tuple[str, Screen]:
    """Return what a console has written into a StringIO, and how a terminal shows it, whose driver begins a line after each line feed."""
    written = console.file.getvalue().replace("\n", "\r\n")  # type: ignore[attr-defined]
    screen = Screen(columns)
    screen.write(written)
    return written, screen


def spec_of(epochs: int) -> PhaseSpec:
    return PhaseSpec(1, 3, Phase(train="head", epochs=epochs, lr=1e-3), frozenset(), Trainer(), epochs_left=epochs)


@pytest.mark.parametrize(
    ("metric", "columns", "heading"),
    [
        ("accuracy", 120, "epoch, train loss, train acc, val loss, val acc, lr, images/s, time"),
        ("accuracy", 80, "epoch, train loss, train acc, val loss, val acc, images/s, time"),
        ("accuracy", 60, "epoch, train loss, val loss, val acc, time"),
        ("accuracy", 44, "epoch, train loss, val loss, val acc"),
        ("accuracy", 30, "epoch, val loss, val acc"),
        ("balanced_accuracy", 120, "epoch, train loss, train acc, val loss, val acc, val balanced acc, lr, images/s, time"),
        ("balanced_accuracy", 80, "epoch, train loss, train acc, val loss, val acc, val balanced acc, time"),
        ("balanced_accuracy", 60, "epoch, train loss, val loss, val acc, val balanced acc"),
        ("balanced_accuracy", 44, "epoch, val loss, val balanced acc"),
        ("balanced_accuracy", 30, "epoch, val balanced acc"),
        ("macro_f1", 120, "epoch, train loss, train acc, val loss, val acc, val macro f1, lr, images/s, time"),
        ("macro_f1", 80, "epoch, train loss, train acc, val loss, val acc, val macro f1, time"),
        ("macro_f1", 60, "epoch, train loss, val loss, val acc, val macro f1"),
        ("macro_f1", 44, "epoch, val loss, val acc, val macro f1"),
        ("macro_f1", 30, "epoch, val macro f1"),
    ],
)
def test_every_line_fits_and_the_primary_metric_is_always_there(metric: str, columns: int, heading: str) -> None:
    """By hand: two blanks and a word or seven characters of 100/100 or six of 0.1234 a column, and two for the asterisk."""
    console = Console(file=io.StringIO(), force_terminal=True, width=columns, color_system=None)
    best = BestWeights.__new__(BestWeights)
    best.phase, best.epoch, best.score = 2, 100, 0.75
    logging.getLogger("tlkit").setLevel(logging.INFO)
    table = LiveTable(console, spec_of(100), best, primary_metric=metric)  # type: ignore[arg-type]
    table.draw(100, "validation 1200/1234", done=0.9, loss=1.5, notes=["12,345 images/s", "1:02:03 left, about 4:05:06 in the run"])
    figures = {"train/loss": 1.25, "train/accuracy": 0.5, "val/loss": 1.5, "val/accuracy": 0.25, "val/score": 0.75}
    table.add_row(100, figures, lr="1.2e-05", speed="12,345", seconds="1:02:03")
    table.close()
    _, screen = shown_on(console, 1000)
    assert max(len(line.rstrip()) for line in screen.lines) <= columns
    (row,) = (line for line in screen.lines if line.lstrip().startswith("100/100"))
    assert row.endswith(" *")
    assert "0.7500" in row
    (names,) = (line for line in screen.lines if line.lstrip().startswith("epoch"))
    assert re.split(r"\s{2,}", names.strip()) == heading.split(", ")
    assert ("12,345" in row) == ("images/s" in heading)


def test_a_trial_of_a_search_has_a_line_that_moves_and_no_rows() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    best = BestWeights.__new__(BestWeights)
    best.phase = best.epoch = 0
    logger = logging.getLogger("tlkit")
    level = logger.level
    logger.setLevel(logging.WARNING)
    table = LiveTable(console, spec_of(2), best, primary_metric="accuracy")
    table.draw(1, "training 1/4", done=0.2, loss=1.5, notes=["10 images/s"])
    table.add_row(1, {}, lr="", speed="", seconds="")
    table.close()
    logger.setLevel(level)
    written, screen = shown_on(console, 100)
    assert "phase 2/3 head  epoch 1/2" in written
    assert "".join(screen.lines) == ""


def test_a_plain_line_counts_training_and_validation_apart(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(live_table, "LINE_EVERY_S", 0)
    overrides = [f"data.source.folder={workplace / 'photos'}", "phases=[{train: head, epochs: 1, lr: 1e-2}]"]
    with caplog.at_level(logging.INFO, "tlkit"):
        finetune(load_recipe(workplace / "recipe.yaml", overrides), out=tmp_path / "run")
    lines = re.findall(r"epoch 1/1  (\w+ batch \d+/\d+)", caplog.text)
    assert lines == [*(f"training batch {n}/3" for n in (1, 2, 3)), *(f"validation batch {n}/2" for n in (1, 2))]


def test_nothing_moves_where_nothing_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe is none that FORCE_COLOR makes one; nor is a terminal without control codes; other processes of a run draw nothing."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert Console(file=io.StringIO()).is_terminal
    assert not can_redraw(Console(file=io.StringIO()))
    terminal, theirs = os.openpty()
    with open(theirs, "w") as stream, as_command_line():
        assert can_redraw(Console(file=stream, _environ={"TERM": "xterm"}))
        assert not can_redraw(Console(file=stream, _environ={"TERM": "dumb"}))
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        with shared_console() as shared:
            assert progress_console() is shared
            assert can_redraw(shared)
            assert not can_redraw(progress_console(quiet=True))
        assert progress_console() is not shared
    os.close(terminal)


@pytest.mark.slow
def test_of_two_processes_the_main_one_draws_and_says_that_it_was_interrupted(workplace: Path) -> None:
    words = ("finetune", "recipe.yaml", "--out", "two", "trainer.devices=2", "trainer.strategy=ddp")
    interrupted = partial(signal_itself_when_written, "metrics.csv", signal.SIGINT)
    done = run_on_terminal(*words, columns=100, cwd=workplace, env=environment(), first=interrupted)
    assert done.returncode == 130, done.stdout
    screen = Screen(100)
    screen.write(done.stdout)
    lines = [line.rstrip() for line in screen.lines]
    assert screen.shows_cursor
    assert [line for line in lines if "━" in line] == []
    assert [line.split()[0] for line in lines if ROW.match(line)] == ["1/2"]
    assert lines[-3:] == ["warning: interrupted; resume with the same command, --out two and --resume", "Interrupted.", ""]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "0:10"), (59.6, "1:00"), (3599.7, "1:00:00"), (4000, "1:06:40")]
)
def test_times_are_short(seconds: float, text: str) -> None:
    assert clock(seconds) == text
