"""`tlkit runs` on a run of an earlier version, copies of it with other figures, and folders as a crash leaves them."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

from tlkit.cli import main
from tlkit.files import write_json
from tlkit.workflows.runs import list_runs

BEFORE = Path(__file__).parents[1] / "fixtures" / "before_layout"


def copy_of_run(to: Path, *, test: float, when: int, lr: float = 0.003) -> None:
    """Make a finished run. when: it began, in seconds since 1970."""
    shutil.copytree(BEFORE / "run", to)
    metrics, card = (json.loads((to / name).read_text()) for name in ("metrics.json", "model/tlkit.json"))
    metrics["test"]["accuracy"] = test
    card["recipe"]["phases"][0]["lr"] = lr
    write_json(to / "metrics.json", metrics)
    write_json(to / "model/tlkit.json", card)
    os.utime(to / "recipe.yaml", (when, when))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    copy_of_run(Path("runs/old/002"), test=0.5, when=2_000_000, lr=0.01)
    copy_of_run(Path("runs/old/010"), test=0.9, when=3_000_000)
    copy_of_run(Path("runs/old/001"), test=0.7, when=1_000_000)
    shutil.copytree(BEFORE / "unfinished", "runs/unfinished")
    copy_of_run(Path("runs/damaged"), test=0.7, when=1_000_000)
    Path("runs/damaged/metrics.json").write_text('{"test"')
    shutil.copytree("runs/old/001", "runs/seeds/seed_0")
    shutil.copy("runs/old/001/recipe.yaml", "runs/seeds/recipe.yaml")
    over = {"test": {"accuracy": {"mean": 0.8, "interval": [0.75, 0.85]}}}
    means = {"val": {"accuracy": 0.6}, "test": {"accuracy": 0.8}, "seconds": {"total": 9}, "primary_metric": "accuracy"}
    write_json(Path("runs/seeds/metrics.json"), {**means, "seeds": 3, "over_seeds": over})
    return tmp_path / "runs"


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    assert main(["runs", *words, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def test_every_run_is_a_row_and_seeds_are_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row for row in listed(capsys)}
    assert list(rows) == ["damaged", "old/001", "old/002", "old/010", "seeds", "unfinished"]
    first, seeds = rows["old/001"], rows["seeds"]
    assert (first["backbone"], first["phases"], first["test"], first["n"]) == ("lenet5", "all 3, head 2", 0.7, 12)
    assert (first["low"], first["high"]) == pytest.approx((0.4677, 0.9111), abs=1e-4)
    assert (seeds["repeats"], seeds["test"], seeds["low"], seeds["high"], seeds["backbone"]) == ("3 seeds", 0.8, 0.75, 0.85, "lenet5")
    assert (rows["unfinished"]["state"], rows["unfinished"]["phases"]) == ("unfinished", "head 10")
    assert "8 epochs" in rows["unfinished"]["note"]
    assert rows["damaged"]["state"] == "damaged"
    assert "metrics.json" in rows["damaged"]["note"]


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("metrics.json", {"val": {"accuracy": "high"}}),
        ("metrics.json", {"seconds": {"total": []}}),
        ("metrics.json", {"lead": "acuracy"}),
        ("model/tlkit.json", {"recipe": []}),
    ],
)
def test_a_run_that_was_damaged_by_hand_is_a_row_too(
    folder: Path, capsys: pytest.CaptureFixture[str], file: str, change: dict[str, object]
) -> None:
    write_json(folder / "old/001" / file, {**json.loads((folder / "old/001" / file).read_text()), **change})
    assert {row["name"]: row["state"] for row in listed(capsys)}["old/001"] == "damaged"
    assert main(["runs"]) == 0
    assert "damaged: old/001: metrics.json or model/tlkit.json can't be read" in capsys.readouterr().out


def test_runs_of_one_recipe_say_what_was_changed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {row["name"]: row["changes"] for row in listed(capsys)}
    assert changes["old/002"] == "phases[0].lr=0.01"
    assert changes["old/001"] == changes["old/010"] == ""


@pytest.mark.parametrize(
    ("sort", "names"),
    [
        ("test", ["old/010", "seeds", "old/001", "old/002", "damaged", "unfinished"]),
        ("seconds", ["seeds", "old/001", "old/002", "old/010", "damaged", "unfinished"]),
    ],
)
def test_the_best_and_the_quickest_come_first(folder: Path, capsys: pytest.CaptureFixture[str], sort: str, names: list[str]) -> None:
    assert [row["name"] for row in listed(capsys, "--sort", sort)] == names
    rows = listed(capsys, "runs/old", "--sort", "when")
    assert [row["name"] for row in rows] == ["010", "002", "001"]


def test_a_run_that_is_calibrated_again_stays_the_oldest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = listed(capsys, "runs/old", "--sort", "when")
    os.utime("runs/old/001/metrics.json", (9_000_000, 9_000_000))
    assert listed(capsys, "runs/old", "--sort", "when") == before


def test_the_table_has_what_fits(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 0
    wide = capsys.readouterr().out
    for text in (
        "0.900",
        "0.750 to 0.850 (3 seeds)",
        "head 10",
        "phases[0].lr=0.01",
        "unfinished: unfinished: 8 epochs",
        "damaged: damaged: ",
    ):
        assert text in wide
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["runs"]) == 0
    narrow = Text.from_ansi(capsys.readouterr().out).plain
    table = narrow.partition("damaged: damaged")[0].splitlines()
    assert max(map(len, table)) <= 60
    assert "0.900" in narrow
    assert main(["runs", "--format", "csv"]) == 0
    assert [row["name"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))][1] == "old/001"


def test_a_folder_without_runs_and_none_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 2
    assert "runs is not there.\n  A run makes one: tlkit finetune quickstart." in capsys.readouterr().err
    Path("runs").mkdir()
    assert main(["runs"]) == 0
    assert "no run is there yet" in capsys.readouterr().out
    assert listed(capsys) == []


def test_the_list_needs_no_torch(folder: Path) -> None:
    code = "import sys; from tlkit.cli import main; main(['runs']); sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_a_recipe_beside_the_folder_of_runs_does_not_hide_them(tmp_path: Path) -> None:
    """`tlkit init` writes recipe.yaml where one works, and `tlkit runs .` is asked there."""
    for folder in (tmp_path, tmp_path / "runs/photos/001"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text("name: photos\n")
    (tmp_path / "notes.txt").touch()
    assert [row.name for row in list_runs(tmp_path)] == ["runs/photos/001"]
