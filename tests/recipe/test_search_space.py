"""`tlkit check` and `tlkit tune` find what can't be tried of a `search:` block, at its line."""

from pathlib import Path

import pytest

from tlkit.cli import main

RECIPE = """name: shades
data: {source: {folder: photos}, image_size: 32}
model: {backbone: resnet18, weights: random}
phases: [{train: head, epochs: 2, lr: 1e-2}]
search:
"""
FAULTS = [
    ("phases[0].rate: {uniform: [0, 1]}", "search.phases[0].rate can't be tried: phases[0].rate is not a key of phases[0]."),
    ("phases[3].lr: {uniform: [0, 1]}", "search.phases[3].lr can't be tried: phases[3].lr can't be set: phases has 1 item"),
    ("model.head.dropout: {uniform: [0, 3]}", "search.model.head.dropout can't be tried: model.head.dropout = 3.0 is out of range."),
    (
        "optimizer.name: {choice: [adamw, momentun]}",
        "search.optimizer.name can't be tried: optimizer.name = 'momentun' is not an optimizer.",
    ),
    ("phases[0].lr: {log: [1e-1, 1e-3]}", "search.phases[0].lr.log = [0.1, 0.001] is empty or reversed."),
    ("optimizer.weight_decay: {uniform: [0.1, 0.1]}", "search.optimizer.weight_decay.uniform = [0.1, 0.1] is empty or reversed."),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("line", "problem"), FAULTS)
def test_check_finds_what_cannot_be_tried_at_its_line(folder: Path, capsys: pytest.CaptureFixture[str], line: str, problem: str) -> None:
    (folder / "recipe.yaml").write_text(f"{RECIPE}  seed: {{int: [0, 3]}}\n  {line}\n")
    assert main(["check", "recipe.yaml"]) == 2
    error = capsys.readouterr().err
    assert f"recipe.yaml:7: {problem}" in error
    assert error.count("can't be tried") <= 1


def test_a_key_that_is_none_is_one_fault_and_all_keys_are_looked_at(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "recipe.yaml").write_text(RECIPE + "".join(f"  {line}\n" for line, _ in FAULTS[:4]))
    assert main(["check", "recipe.yaml"]) == 2
    error = capsys.readouterr().err
    assert [error.count(f"recipe.yaml:{number}: {problem}") for number, (_, problem) in enumerate(FAULTS[:4], 6)] == [1, 1, 1, 1]
    assert "Did you mean 'momentum'?" in error


def test_the_summary_lists_what_varies(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ranges = ["phases[0].lr: {log: [1e-4, 1e-2]}", "phases[0].epochs: {int: [1, 4]}", "augment: {choice: [[], [HorizontalFlip]]}"]
    (folder / "recipe.yaml").write_text(RECIPE + "".join(f"  {line}\n" for line in ranges))
    assert main(["check", "recipe.yaml"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "search phases[0].lr: 0.0001 to 0.01, by order of magnitude" in printed
    assert "search phases[0].epochs: whole numbers from 1 to 4" in printed
    assert "search augment: one of [], [HorizontalFlip]" in printed
