"""docs/recipe.schema.json accepts what `tlkit check` accepts and flags what it flags, by another library's validator."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft7Validator

from tlkit.errors import RecipeError
from tlkit.recipe.json_schema import recipe_schema
from tlkit.recipe.load import load_recipe, recipe_yaml
from tlkit.recipe.yaml12 import read_yaml
from tlkit.system import shipped

FILE = Path(__file__).parents[2] / "docs/recipe.schema.json"
SCHEMA = recipe_schema()
VALIDATOR = Draft7Validator(SCHEMA)
SHIPPED = sorted(shipped("recipes").rglob("*.yaml"))
PHASES = "phases: [{train: head, epochs: 1, lr: 1e-3}]\n"
START = "name: a\ndata: {source: {folder: photos}}\n"
SOUND = START + "model: {backbone: resnet18}\n" + PHASES

MISTAKES = {
    "no name": SOUND.replace("name: a\n", ""),
    "no source": SOUND.replace("{source: {folder: photos}}", "{image_size: 64}"),
    "a key that is misspelt": SOUND + "sede: 1\n",
    "a key of a part that is misspelt": SOUND.replace("}}\n", "}, imagesize: 64}\n"),
    "a key of a phase that is misspelt": SOUND.replace("train:", "trian:"),
    "two sources": SOUND.replace("folder: photos", "folder: photos, csv: photos.csv"),
    "a source that there isn't": SOUND.replace("folder: photos", "fodler: photos"),
    "a backbone that there isn't": SOUND.replace("resnet18", "renset18"),
    "an optimizer that there isn't": SOUND + "optimizer: {name: adamm}\n",
    "a schedule that there isn't": SOUND + "schedule: {name: cosinus}\n",
    "a head that there isn't": SOUND.replace("resnet18}", "resnet18, head: {kind: lienar}}"),
    "text for a number": SOUND.replace("1e-3", "fast"),
    "a number in quotes": SOUND.replace("1e-3", "'1e-3'"),
    "a number for a truth value": SOUND + "wise_ft: 1\n",
    "half an epoch": SOUND.replace("epochs: 1", "epochs: 1.5"),
    "no epochs": SOUND.replace("epochs: 1", "epochs: 0"),
    "a share above 1": SOUND.replace("}}\n", "}, validation: 1.5}\n"),
    "an image size that is too small": SOUND.replace("}}\n", "}, image_size: 4}\n"),
    "a list that is too short": SOUND.replace("}}\n", "}, background: [0, 0]}\n"),
    "one phase that isn't in a list": SOUND.replace("[", "").replace("]", ""),
    "a transform that there isn't": SOUND + "augment: [HorizontalFilp]\n",
    "an argument that a transform hasn't": SOUND + "augment: [Rotate: {limits: 15}]\n",
    "a transform without what it needs": SOUND + "augment: [CenterCrop: {height: 3}]\n",
    "two transforms in one item": SOUND + "augment: [{HorizontalFlip: {p: 0.5}, Rotate: {limit: 15}}]\n",
    "a probability above 1": SOUND + "augment: [HorizontalFlip: {p: 50}]\n",
    "a preset that there isn't": SOUND + "augment: mild\n",
    "a name with a slash": SOUND.replace("name: a", "name: a/b"),
    "weights that there aren't": SOUND.replace("resnet18}", "resnet18, weights: imagenet}"),
    "an empty part": SOUND + "optimizer:\n",
}
SPELLINGS = (
    "augment: light\n",
    "augment: [HorizontalFlip, Rotate, {Rotate: {limit: 15}}, {Rotate: }, trivialaugment, {randaugment: {num_ops: 1}}]\n",
    "augment: [{RandomResizedCrop: {scale: [0.5, 1]}}]\n",
    "ema: {decay: 0.99}\nearly_stopping:\n",
    "trainer: {devices: [0, 1]}\n",
    "trainer: {devices: 2, scale_lr: sqrt}\n",
    "trainer: {devices: auto, scale_lr: false}\n",
    "optimizer: {weight_decay: 0, gradient_clip: 1}\n",
    "optimizer: {weight_decay: 1e-2, name: lion}\n",
    "seed: 0x10\n",
)
SOUND_PARTS = (
    ("{folder: photos}", "{csv: a.csv, label: [a, b]}"),
    ("{folder: photos}", "{folder: photos}, batch_size: {find: 0.8}, workers: auto, limit: 0.5, background: [0, 0, 0]"),
    ("{folder: photos}", "{folder: photos}, batch_size: 8, workers: 2, limit: 50, folds: 5"),
    ("resnet18", "resnet18.a1_in1k"),
    ("resnet18", "googlenet, weights: {file: a.pth}"),
    ("train: head", "train: {from: layer4}"),
    ("train: head", "train: {last: 2}, layer_decay: 0.75"),
    ("train: head, epochs: 1, lr: 1e-3", "train: head, solver: lbfgs"),
)


def flagged(text: str) -> list[str]:
    return [error.message for error in VALIDATOR.iter_errors(read_yaml(text, str).value)]


def test_the_file_is_what_the_command_prints_and_a_schema() -> None:
    assert json.loads(FILE.read_text(encoding="utf-8")) == SCHEMA, "run: python docs/make_recipe_reference.py"
    Draft7Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_accepted_as_it_is_and_with_every_value(path: Path) -> None:
    assert flagged(path.read_text(encoding="utf-8")) == []
    assert flagged(recipe_yaml(load_recipe(path))) == []


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_flagged_as_by_check(mistake: str, tmp_path: Path) -> None:
    assert flagged(MISTAKES[mistake])
    if mistake not in ("a backbone that there isn't", "an optimizer that there isn't"):  # of which reading alone knows nothing
        (tmp_path / "recipe.yaml").write_text(MISTAKES[mistake])
        with pytest.raises(RecipeError):
            load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("text", [SOUND, *(SOUND + more for more in SPELLINGS), *(SOUND.replace(*pair) for pair in SOUND_PARTS)])
def test_every_spelling_that_tlkit_reads_is_accepted(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    load_recipe(tmp_path / "recipe.yaml")
    assert flagged(text) == []


def test_every_example_of_a_key_is_a_value_that_it_takes() -> None:
    examples = 0
    for part in (SCHEMA, *SCHEMA["$defs"].values()):
        for key, field in part["properties"].items():
            for example in field.get("examples", ()):
                examples += 1
                errors = list(Draft7Validator({**field, "$defs": SCHEMA["$defs"]}).iter_errors(example))
                assert not errors, f"{key}: {errors[0].message}"
    assert examples > 80
