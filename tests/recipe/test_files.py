"""A file that is no recipe, or is not there, is one fault with its place and the fix."""

from pathlib import Path

import pytest

from tests.recipe.trial import SOUND, faults_of, only_fault, write


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("", None, "is empty."),
        ("# nothing\n", None, "is empty."),
        ("- a\n", 1, "= [a] is a list."),
        ("3\n", 1, "= 3 is a whole number."),
        ("a: b: c\n", 1, "is not valid YAML: mapping values are not allowed here."),
        ("a: 1\nb: [1,\n", 3, "is not valid YAML"),
        ("a:\n\tb: 1\n", 2, "is not valid YAML"),
        ("a: 'b\n", 2, "is not valid YAML"),
        ("a: \x07\n", 1, "is not valid YAML"),
        ("a: 1\n---\nb: 2\n", 2, "a second document begins here"),
        ("a: " + "[" * 30 + "]" * 30, 1, "is nested deeper than 20 levels."),
        ("a: " + "{a: " * 5000, 1, "is nested deeper than 20 levels."),
        (b"a: 1\nb: caf\xe9\n", 2, "is not UTF-8 text."),
        (b"\xff\xfea\x00", 1, "is not UTF-8 text."),
        (b"# " + b"x" * 200_001, None, "is larger than 200 kB."),
        ("a: [" + "1," * 4000 + "]", 1, "has more than 4,000 keys and values."),
    ],
)
def test_a_file_that_is_no_recipe_is_reported_in_one_fault(text: str | bytes, line: int | None, problem: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    fault = only_fault(path)
    assert problem in fault.problem
    assert fault.place == (f"{path}:{line}" if line else "")
    assert str(path) in str(fault)


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("search: {a.b: 1, phases[0].lr: {log: [1, 2]}}\n", "Within braces, put a key such as phases[0].lr into quotes"),
        ("# of name, phases[0] and others\nphases: [{train: head\nseed: 0\n", "Check the indentation, and that brackets,"),
    ],
)
def test_quotes_are_asked_for_where_a_key_within_braces_lacks_them_alone(text: str, fix: str, tmp_path: Path) -> None:
    assert only_fault(write(tmp_path, text)).fix.startswith(fix)


def test_a_key_given_twice_is_refused_with_both_lines_and_hides_no_other_fault(tmp_path: Path) -> None:
    path = write(tmp_path, SOUND + "seed: -1\nname: other\n")
    seed, name = faults_of(path)
    assert seed.key == "seed"
    assert str(name) == f"{path}:12: name is given twice; the first is at {path}:1.\n  Keep one of the two."


@pytest.mark.parametrize("value", ["!!python/object/apply:os.system [ls]", "!!python/name:os.system", "!thing 3", "!!set {a, b}"])
def test_tags_are_refused_and_nothing_is_made_of_them(value: str, tmp_path: Path) -> None:
    fault = only_fault(write(tmp_path, SOUND + f"trainer:\n  accelerator: {value}\n"))
    assert fault.key == "trainer.accelerator"
    assert "has the YAML tag !" in fault.problem


def test_aliases_are_refused_so_that_they_cannot_multiply(tmp_path: Path) -> None:
    bomb = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghijklm", "bcdefghijklmn", strict=True))
    faults = faults_of(write(tmp_path, SOUND + bomb))
    assert "b[0] = *a is a YAML alias." in {f"{fault.key} {fault.problem}" for fault in faults}


def test_a_missing_file_names_the_nearest_recipe(tmp_path: Path) -> None:
    write(tmp_path, SOUND)
    assert f"Did you mean '{tmp_path / 'trial.yaml'}'?" in only_fault(tmp_path / "tral.yaml").fix
    assert str(only_fault("recipes/cifar_resnt.yaml")).startswith(
        "recipes/cifar_resnt.yaml does not exist.\n  Did you mean 'cifar_resnet'?"
    )


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    write(tmp_path, SOUND)
    assert str(only_fault(tmp_path)) == f"{tmp_path} is a folder, not a recipe.\n  It holds trial.yaml."


@pytest.mark.parametrize("name", ["images.csv", "labels.TSV", "set.npz"])
def test_data_is_no_recipe_and_the_message_writes_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"path\tlabel\n\xff")
    message = str(only_fault(tmp_path / name))
    assert message.startswith(f"{tmp_path / name} holds images or labels, and is not a recipe.\n  Write a recipe for them:\n    ")
    assert message.endswith(f"tlkit init {tmp_path / name}")


def test_a_missing_folder_in_place_of_a_recipe_names_the_nearest_folder_and_init(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    fault = str(only_fault(tmp_path / "photo"))
    assert f"{tmp_path / 'photo'} does not exist.\n  Did you mean the folder {tmp_path / 'photos'}? If it holds a folder" in fault
    assert f"init {tmp_path / 'photos'}" in fault
    assert "tlkit ships these" not in fault
