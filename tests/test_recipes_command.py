"""`tlkit recipes` lists, prints and copies what ships, and overwrites nothing."""

import re
from pathlib import Path

import pytest

from tlkit.cli import main
from tlkit.recipe.load import load_recipe
from tlkit.system import shipped

SHIPPED = sorted(shipped("recipes").glob("*.yaml"))


def test_ls_has_a_line_for_every_recipe_with_its_name_and_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [path.stem for path in SHIPPED]
    assert all(len(line.split()) > 3 for line in lines)


def test_show_prints_the_file_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "show", "quickstart"]) == 0
    assert capsys.readouterr().out == shipped("recipes/quickstart.yaml").read_text(encoding="utf-8")


def test_cp_copies_to_a_file_or_into_a_folder_and_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "cp", "quickstart", str(tmp_path / "mine.yaml")]) == 0
    assert load_recipe(tmp_path / "mine.yaml").model_dump() == load_recipe("quickstart").model_dump()
    (tmp_path / "mine.yaml").write_text("mine")
    for file in ("mine.yaml", "mine.yaml/x.yaml", "nowhere/x.yaml"):
        assert main(["recipes", "cp", "quickstart", str(tmp_path / file)]) == 2
    errors = capsys.readouterr().err
    assert f"{tmp_path}/mine.yaml is there already, and is not overwritten.\n  Choose another name" in errors
    assert f"{tmp_path}/nowhere/x.yaml can't be written: {tmp_path}/nowhere is not a folder.\n  Make it first: mkdir -p" in errors
    assert (tmp_path / "mine.yaml").read_text() == "mine"
    assert main(["recipes", "cp", "quickstart.yaml", str(tmp_path)]) == 0
    assert (tmp_path / "quickstart.yaml").is_file()


def test_a_recipe_that_does_not_ship_is_named_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "show", "quickstrat"]) == 2
    assert "tlkit ships no recipe 'quickstrat'." in capsys.readouterr().err
    assert main(["recipes", "list"]) == 2
    assert "Did you mean 'recipes ls'?" in capsys.readouterr().err


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_header_states_the_command_a_result_with_its_interval_or_that_there_is_none_the_date_and_a_time(path: Path) -> None:
    header = path.read_text(encoding="utf-8").partition("\n\nname:")[0]
    assert f"#   tlkit finetune recipes/{path.name}" in header
    assert "not measured" in header or "95 % interval" in header
    assert re.search(r"\b2026-\d\d-\d\d\b", header)
    assert "Time: " in header
