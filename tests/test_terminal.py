"""Output fits a narrow terminal, and what its encoding lacks is escaped: no command ends half-way for a class called 日本."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from rich.text import Text

from tlkit import __version__, terminal
from tlkit.cli import COMMANDS, main
from tlkit.recipe.load import load_recipe
from tlkit.terminal import columns_of, escape, print_line, print_panel, printable, tlkit_command, wrap

CLASSES = ("日本", "café", "smile😀")
RECIPE = """
name: photos
data: {source: {folder: 写真}, validation: 0.25, test: 0.25, image_size: 32, batch_size: 8, workers: 0}
model: {backbone: resnet10t, weights: random}
phases: [{train: head, epochs: 1, lr: 1e-3}]
"""
WORDS = {
    "check": "check 写真.yaml",
    "models": "models show resnet10t",
    "data check": "data check 写真 --out findings.csv",
    "data stats": "data stats 写真 --out statistics",
    "data audit": "data audit 写真.yaml --out audit",
    "data preview": "data preview 写真.yaml --out preview.png",
    "data fetch": "data fetch 写真.yaml --to fetched",
    "plan": "plan 写真.yaml",
    "lr": "lr 写真.yaml --steps 50 --out lr",
    "evaluate": "evaluate run",
    "report": "report run --out 頁.html",
    "calibrate": "calibrate run --error 0.5",
    "drift": "drift run 写真",
    "explain": "explain run 写真/日本/0.png --only filters,maps,cam --out 説明",
    "reproduce": "reproduce run --out again",
    "compare": "compare run run --curves 曲線.png",
    "runs": "runs .",
    "rank": "rank 写真.yaml --backbones lenet5@random --out 順位",
    "tune": 'tune 写真.yaml search={"seed":{"int":[0,1]}} --trials 1 --out 探索',
    "init": "init 写真 --yes --offline --out 新.yaml",
    "recipes ls": "recipes ls",
    "recipes show": "recipes show quickstart",
    "recipes cp": "recipes cp quickstart 写し.yaml",
    "recipes help": "recipes help phases.train",
    "schema": "schema",
    "completion": "completion bash",
    "predict": "predict run 写真/日本/0.png",
    "export": "export run",
    "verify": "verify run/export/onnx",
    "cache": "cache list",
    # Those have no end of their own, or none within seconds, or need a second run: an error of theirs is printed.
    "serve": "serve 写真",
    "bench": "bench curve --stage 日本",
    "soup": "soup 日本 run --out 平均",
}


@contextmanager
def printing_in(encoding: str) -> Iterator[tuple[io.TextIOWrapper, io.TextIOWrapper]]:
    """Replace stdout and stderr by streams as Python opens them for a terminal or a file in this encoding."""
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace", write_through=True)
    with redirect_stdout(out), redirect_stderr(err):
        yield out, err


def printed(*words: str, encoding: str = "ascii", code: int = 0) -> bytes:
    """Return what a command that ends with `code` has written: to stdout if that is 0, else to stderr."""
    with printing_in(encoding) as streams:
        ended = main(words)
    out, err = (stream.buffer.getvalue() for stream in streams)  # type: ignore[attr-defined]  # BytesIO
    assert ended == code, err
    return out if code == 0 else err  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, a recipe and a finished run, whose own output was in ASCII."""
    folder = tmp_path_factory.mktemp("encoding")
    for number, name in enumerate(CLASSES):
        (folder / "写真" / name).mkdir(parents=True)
        for image in range(8):
            pixels = np.random.default_rng([number, image]).integers(60 * number, 60 * number + 90, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "写真" / name / f"{image}.png")
    (folder / "写真.yaml").write_text(RECIPE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert b"test accuracy" in printed("finetune", "写真.yaml", "--out", "run")
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def test_every_command_is_tried() -> None:
    assert {"finetune", *WORDS} == set(COMMANDS)


@pytest.mark.parametrize("name", WORDS)
def test_a_command_ends_as_in_utf8_where_output_is_ascii(name: str, here: Path) -> None:
    text = printed(*WORDS[name].split(), code=2 if name in ("serve", "bench", "soup", "calibrate", "drift") else 0)
    assert text
    assert b"internal error" not in text
    assert b"a bug in tlkit" not in text


@pytest.mark.parametrize("words", ["data stats 写真", "data check 写真", "models show resnet10t", "models resnet10t"])
def test_what_goes_to_a_file_is_not_folded(words: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = printed(*words.split(), encoding="utf-8")
    monkeypatch.setenv("COLUMNS", "30")
    assert printed(*words.split(), encoding="utf-8") == whole


def test_all_output_goes_through_one_console_for_each_stream() -> None:
    package = Path(terminal.__file__).parent
    makers = {file.relative_to(package).as_posix() for file in package.rglob("*.py") if re.search(r"\bConsole\(", file.read_text("utf-8"))}
    assert makers == {"terminal.py", "data/progress.py"}


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_json_and_yaml_are_ascii_and_read_back_as_they_are(encoding: str, here: Path) -> None:
    answers = json.loads(printed("predict", "run", "写真/*/0.png", "--format", "json", encoding=encoding))
    assert {answer["path"].split("/")[1] for answer in answers} == set(CLASSES)
    lines = printed("predict", "run", "写真/日本/0.png", "--format", "jsonl", encoding=encoding).splitlines()
    assert [json.loads(line)["path"] for line in lines] == ["写真/日本/0.png"]
    assert set(json.loads(printed("evaluate", "run", "--format", "json", encoding=encoding))["per_class"]) == set(CLASSES)
    assert set(json.loads(printed("data", "stats", "写真", "--format", "json", encoding=encoding))["classes"]) == set(CLASSES)
    assert json.loads(printed("data", "check", "写真", "--format", "json", encoding=encoding))["findings"]
    (here / "again.yaml").write_bytes(printed("check", "写真.yaml", "--resolved", encoding=encoding))
    assert load_recipe("again.yaml", []).data.source.folder == "写真"


def test_csv_has_the_characters_that_there_are_and_escapes_the_others(here: Path) -> None:
    text = printed("predict", "run", "写真/café/0.png", "--format", "csv", encoding="cp1252").decode("cp1252")
    assert text.splitlines()[1].startswith(r"\u5199\u771f/café/0.png,")


def test_columns_are_below_each_other_where_names_are_escaped(here: Path) -> None:
    lines = printed("evaluate", "run").decode("ascii").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("class"))
    assert len({len(line) for line in lines[start : start + 1 + len(CLASSES)]}) == 1


def test_tables_are_straight_where_names_are_escaped(here: Path) -> None:
    """Rich measures a cell before the stream escapes what is in it."""
    header, *rows = printed("predict", "run", "写真/*/0.png").decode("ascii").splitlines()
    column = header.index("probability")
    assert len(rows) == len(CLASSES)
    assert all(re.fullmatch(r"  [01]\.\d{3} ", row[column - 2 : column + 6]) for row in rows)
    classes = printed("data", "stats", "写真").decode("ascii").split("\n\n")[0].splitlines()
    assert len({len(line.rstrip()) for line in classes}) == 1
    header, *rows = printed("data", "check", "写真").decode("ascii").split("\n\n")[1].splitlines()
    column = header.index("what is wrong")
    assert rows
    assert all(row[column - 2 : column] == "  " and row[column] != " " for row in rows)


def test_a_files_name_cannot_colour_the_terminal() -> None:
    assert printable("a\x1b[31m\x9b2J\r.jpg\n") == "a\\x1b[31m\\x9b2J\\r.jpg\n"


def test_a_panel_is_straight_where_names_are_escaped() -> None:
    with printing_in("ascii") as (out, _):
        terminal.escape_unencodable_output()
        print_panel("runs/写真", [("report", "runs/写真/report.html"), ("accuracy", "[bold]0.8[/bold]")])
    assert len({len(line) for line in out.buffer.getvalue().splitlines()}) == 1  # type: ignore[attr-defined]  # BytesIO


def test_utf8_output_has_the_characters_themselves(here: Path) -> None:
    assert "日本" in printed("evaluate", "run", "--format", "json", encoding="utf-8").decode()


def test_an_escape_is_one_that_json_reads() -> None:
    error = UnicodeEncodeError("ascii", "é日😀", 0, 3, "ordinal not in range")
    text, end = escape(error)
    assert (json.loads(f'"{text}"'), end) == ("é日😀", 3)


@pytest.mark.parametrize("columns", [44, 60, 80])
@pytest.mark.parametrize("name", ["", "data", *COMMANDS])
def test_help_fits_a_narrow_terminal(name: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main([*name.split(), "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 3
    # A command to copy stays whole.
    assert not [line for line in lines if len(line) > columns and not line.startswith("  tlkit ")]


def test_lines_are_broken_between_words_and_commands_are_not() -> None:
    text = (
        "photos is a folder, not a recipe.\n  Train on them by:\n    tlkit finetune quickstart name=photos\n  data       a folder of photos"
    )
    assert wrap(text, 24).splitlines() == [
        "photos is a folder, not",
        "a recipe.",
        "  Train on them by:",
        "    tlkit finetune quickstart name=photos",
        "  data       a folder of",
        "  photos",
    ]
    assert wrap("  data       a folder of photos", 40).splitlines() == ["  data       a folder of photos"]
    assert wrap("  data  a folder of photos", 24).splitlines() == ["  data  a folder of", "        photos"]
    assert wrap("see /a/very/long/path-that-is/one/word", 20).splitlines() == ["see", "/a/very/long/path-that-is/one/word"]


def test_a_log_line_is_broken_on_a_terminal_alone() -> None:
    text = "no leak found between splits (12 train, 6 val, 6 test images)"
    shown = {}
    for is_terminal in (True, False):
        console = Console(file=io.StringIO(), width=30, force_terminal=is_terminal, color_system=None)
        print_line(console, text)
        shown[is_terminal] = console.file.getvalue()  # type: ignore[attr-defined]  # StringIO
    assert shown[True].splitlines() == ["no leak found between splits", "(12 train, 6 val, 6 test", "images)"]
    assert shown[False] == f"{text}\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")
def test_a_terminal_without_a_size_has_eighty_columns_or_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(ours), os.fdopen(theirs, "w") as stream:
        monkeypatch.delenv("COLUMNS", raising=False)
        monkeypatch.setattr(sys, "__stdout__", None)
        assert columns_of(stream) == 80
        monkeypatch.setenv("COLUMNS", "60")
        assert columns_of(stream) == 60


def test_a_panel_is_as_wide_as_the_terminal_and_its_command_stands_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    command = f"tlkit predict runs/001 'my images/{'long-' * 20}.png'"
    print_panel("runs/001", [("report", "deep/" * 20 + "report.html"), ("accuracy", "[bold]0.8[/bold]")], [command])
    lines = Text.from_ansi(capsys.readouterr().out).plain.splitlines()
    assert lines[-2:] == ["next:", f"  {command}"]
    assert {len(line) for line in lines[:-2]} == {60}


def test_the_command_that_is_printed_runs_where_tlkit_is_not_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    command = tlkit_command("--version")
    assert command.endswith(" --version")
    assert subprocess.run(shlex.split(command), capture_output=True, text=True, check=True).stdout == f"tlkit {__version__}\n"


def test_rows_of_a_list_hang_beside_their_label_and_commands_stay_whole() -> None:
    """`tlkit recipes help` and `recipes ls` on 60 columns: keys are indented as commands are, names take up to half the width."""
    row = "    name            up to 100 letters, digits and . _ -; names the run folder"
    text = f"{row}\n    tlkit finetune recipe.yaml data.source.folder=/photos"
    assert wrap(text, 60).splitlines() == [
        "    name            up to 100 letters, digits and . _ -;",
        "                    names the run folder",
        "    tlkit finetune recipe.yaml data.source.folder=/photos",
    ]
    lines = wrap(f"{'folder_gradual_unfreeze':<25}A folder of your own images, from the head down", 60).splitlines()
    assert lines == [f"{'folder_gradual_unfreeze':<25}A folder of your own images, from", " " * 25 + "the head down"]
