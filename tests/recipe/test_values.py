"""Values are read as YAML 1.2 writes them, know their lines, and survive the round trip."""

from pathlib import Path

import pytest

from tests.recipe.trial import SOUND, with_override, write
from tlkit.recipe.fields.phases import FromStage
from tlkit.recipe.load import load_recipe, recipe_yaml
from tlkit.recipe.schema import Recipe


def test_a_sound_recipe_has_its_values_and_the_defaults(tmp_path: Path) -> None:
    recipe = with_override(tmp_path)
    assert [phase.lr for phase in recipe.phases] == [0.001, 0.0003]
    assert recipe.phases[1].train == FromStage.model_validate({"from": "layer4"})
    assert (recipe.seed, recipe.data.batch_size, recipe.optimizer.name, recipe.early_stopping) == (0, 64, "adamw", None)


@pytest.mark.parametrize("word", ["off", "no", "on", "yes", "2024-01-01", "1_000", "0777x", "12:30:00"])
def test_words_that_yaml_1_1_would_convert_stay_text(word: str, tmp_path: Path) -> None:
    assert with_override(tmp_path, f"data.root={word}").data.root == word


@pytest.mark.parametrize(("text", "number"), [("1e-3", 1e-3), ("1E+2", 100.0), (".5", 0.5), ("1.", 1.0), ("+2.5e0", 2.5), ("3", 3.0)])
def test_numbers_are_read_as_yaml_1_2_writes_them(text: str, number: float, tmp_path: Path) -> None:
    assert with_override(tmp_path, f"phases[0].lr={text}").phases[0].lr == number


TRICKY = [
    "off",
    "null",
    "~",
    "1e-3",
    "0o17",
    "0x1F",
    "1.",
    ".5",
    "+.inf",
    ".nan",
    "true",
    "",
    " a ",
    "a: b",
    "# c",
    "ü",
    "a\nb",
    "*a",
    "!b",
    "1_0",
    "-",
]


def test_text_that_looks_like_something_else_survives_the_round_trip(tmp_path: Path) -> None:
    values = load_recipe(write(tmp_path, SOUND)).model_dump(by_alias=True)
    values["augment"] = [{"name": "Rotate", "arguments": {"limit": [1, -2.5e-7, None, True, *TRICKY]}}, {"name": "D4", "arguments": {}}]
    recipe = Recipe.model_validate(values)
    assert load_recipe(write(tmp_path, recipe_yaml(recipe))).model_dump() == recipe.model_dump()


def test_settings_of_the_decoder_survive_yaml(tmp_path: Path) -> None:
    recipe = with_override(tmp_path, "data.background=[1, 2, 3]", "data.range_16bit=[0, 4095]", "data.on_bad=skip")
    assert recipe.data.background == (1, 2, 3)
    (tmp_path / "again.yaml").write_text(recipe_yaml(recipe))
    assert load_recipe(tmp_path / "again.yaml").data == recipe.data


def test_every_key_knows_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, SOUND)
    recipe = load_recipe(path, ["data.image_size=64"])
    lines = {key: recipe.place_of(key) for key in ("name", "data.source.folder", "phases[0].train", "phases[1].train.from", "phases[1].lr")}
    assert lines == {
        "name": f"{path}:1",
        "data.source.folder": f"{path}:3",
        "phases[0].train": f"{path}:7",
        "phases[1].train.from": f"{path}:8",
        "phases[1].lr": f"{path}:10",
    }
    assert recipe.place_of("data.image_size") == "override data.image_size=64"
    assert recipe.place_of("model.head.dropout") == f"{path}:4", "a default has the place of the part it belongs to"
