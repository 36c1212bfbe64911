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
    (
        "data.batch_size: {choise: [16, 32]}",
        "search.data.batch_size.choise is not a key of search.data.batch_size.\n"
        "  Expected one of: log, uniform, int, choice. Did you mean 'choice'?",
    ),
    ("data.batch_size: {values: []}", "search.data.batch_size.values is not a key of search.data.batch_size."),
    ("ema: {low: false, high: true}", "search.ema.low is not a key of search.ema."),
    (
        "data.batch_size: 16",
        "search.data.batch_size = 16 is a whole number.\n  Expected a mapping with the keys log, uniform, int, choice.",
    ),
]
SPELLINGS = [
    ("{low: 1e-5, high: 1e-1, log: true}", "{log: [1e-05, 0.1]}"),  # Optuna's suggest_float
    ("{distribution: log_uniform_values, min: 1e-5, max: 1e-1}", "{log: [1e-05, 0.1]}"),  # a sweep of Weights & Biases
    ("{min_value: 1e-5, max_value: 1e-1, sampling: LOG}", "{log: [1e-05, 0.1]}"),  # Keras Tuner
    ("{loguniform: [1e-5, 1e-1]}", "{log: [1e-05, 0.1]}"),  # Ray Tune
    ("{lower: 0.0, upper: 0.5}", "{uniform: [0.0, 0.5]}"),
    ("{low: 1, high: 8, step: 1}", "{int: [1, 8]}, or {uniform: [1, 8]} for any number between them"),
    ("{values: [16, 32]}", "{choice: [16, 32]}"),
    ("{type: categorical, choices: [adamw, momentum]}", "{choice: [adamw, momentum]}"),
    ("[16, 32]", "{choice: [16, 32]}"),
    ("{quniform: [0.0, 0.5, 0.1]}", "{uniform: [0.0, 0.5]}"),  # Ray Tune, with a step
]
"""A range as other tools spell it, and as tlkit does."""


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


@pytest.mark.parametrize(("spelled", "expected"), SPELLINGS)
def test_a_range_that_is_spelled_as_in_other_tools_is_named_as_tlkit_spells_it(
    folder: Path, capsys: pytest.CaptureFixture[str], spelled: str, expected: str
) -> None:
    (folder / "recipe.yaml").write_text(f"{RECIPE}  seed: {{int: [0, 3]}}\n  phases[0].lr: {spelled}\n")
    assert main(["check", "recipe.yaml"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("recipe.yaml:7: search.phases[0].lr = ")
    assert error.endswith(f"Write it as {expected}.\n")


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
