"""A recipe from a dict is checked as one from a file, and its faults name the key where those of a file name the line."""

from copy import deepcopy
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tlkit.errors import Fault, RecipeError
from tlkit.recipe.load import load_recipe
from tlkit.recipe.schema import Recipe
from tlkit.recipe.yaml12 import read_yaml

SOUND = """\
name: trial
data: {source: {folder: photos}, image_size: 64, background: [1, 2, 3]}
augment: [HorizontalFlip: {p: 0.5}, randaugment]
model: {backbone: resnet18, head: {kind: mlp, hidden: 16}}
phases:
  - {train: head, epochs: 2, lr: 1e-3}
  - {train: {from: layer4}, epochs: 3, lr: 3e-4}
"""


def values_of(text: str) -> Any:
    return read_yaml(text, str).value


def changed(key: str, value: Any) -> Any:
    """The sound recipe's values with one of them changed; key: `phases[0].lr`."""
    values = deepcopy(values_of(SOUND))
    *above, last = [int(word) if word.isdigit() else word for word in key.replace("[", ".").replace("]", "").split(".")]
    holder = values
    for word in above:
        holder = holder[word]
    holder[last] = value
    return values


def faults_of(values: Any) -> list[Fault]:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(values)
    return list(caught.value.faults)


def test_the_same_values_are_the_same_recipe(tmp_path: Path) -> None:
    (tmp_path / "trial.yaml").write_text(SOUND)
    assert Recipe.from_dict(values_of(SOUND)).model_dump() == load_recipe(tmp_path / "trial.yaml").model_dump()


@pytest.mark.parametrize(
    "text",
    [
        SOUND.replace("train: head", "trian: head"),
        SOUND.replace("name: trial", "name: 3"),
        SOUND.replace("lr: 1e-3", "lr: '1e-3'").replace("epochs: 3", "epochs: 2.5"),
        SOUND.replace("{from: layer4}", "body").replace("image_size: 64", "image_size: 4"),
        SOUND.replace("HorizontalFlip", "HorizontalFlop"),
        SOUND.replace("kind: mlp", "kind: svm") + "wise_ft: true\n",
        "name: trial\n",
        "{}",
        "[1, 2]",
        "trial",
    ],
)
def test_the_faults_are_those_of_the_same_text_without_its_lines(text: str, tmp_path: Path) -> None:
    (tmp_path / "trial.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "trial.yaml")
    assert sorted(map(str, faults_of(values_of(text)))) == sorted(str(replace(fault, place="")) for fault in caught.value.faults)


def test_the_message_begins_with_the_key() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(changed("phases[0].train", "haed"))
    assert str(caught.value).startswith("phases[0].train = 'haed' can't be used.\n  Expected head, all")
    assert "Did you mean 'head'?" in str(caught.value)


class Optimizers(StrEnum):
    SGD = "sgd"


def test_what_programs_write_for_lists_numbers_and_text_is_taken() -> None:
    recipe = Recipe.from_dict(
        {
            **changed("data.background", (0, 128, 255)),
            "data": {"source": {"folder": Path("my/photos")}, "image_size": np.int64(64), "background": (0, 128, 255)},
            "optimizer": {"name": Optimizers.SGD, "weight_decay": np.float32(0.5)},
            "ema": None,
        }
    )
    assert (recipe.data.source.model_dump(), recipe.data.image_size) == ({"folder": "my/photos", "layout": "auto"}, 64)
    assert (recipe.data.background, recipe.optimizer.name, recipe.optimizer.weight_decay) == ((0, 128, 255), "sgd", 0.5)
    assert type(recipe.optimizer.name) is str
    assert type(recipe.optimizer.weight_decay) is float


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "phases[1].lr",
            np.zeros(2),
            "phases[1].lr is a value of type ndarray.\n  Expected text, a number, True, False, None, a list or a",
        ),
        ("data.source", {"folder", "photos"}, "data.source is a value of type set."),
        ("seed", 10**500, "seed is a value of type int."),
        ("data.source", {1: "photos"}, "data.source has the key 1, which is not text.\n  Write every key as text."),
        ("model.backbone", print, "model.backbone is a value of type builtin_function_or_method."),
        ("phases[0].lr", float("nan"), "phases[0].lr = .nan"),
    ],
)
def test_a_value_that_yaml_could_not_hold_is_one_fault_at_its_key(key: str, value: Any, message: str) -> None:
    faults = faults_of(changed(key, value))
    assert str(faults[0]).startswith(message)
    assert all(fault.key.startswith(key) for fault in faults)


def test_values_that_hold_themselves_are_refused() -> None:
    values = changed("seed", 0)
    values["augment"] = {"again": values}
    (fault,) = faults_of(values)
    assert fault.problem == "is nested deeper than 20 levels."
    (fault,) = faults_of(changed("augment", ["HorizontalFlip"] * 5000))
    assert fault.problem == "has more than 4,000 keys and values."


def test_a_fault_that_is_found_later_names_the_key() -> None:
    recipe = Recipe.from_dict(values_of(SOUND))
    with pytest.raises(RecipeError) as caught, recipe.located():
        raise RecipeError([Fault("phases[1].train.from", "= 'layr4' is not a stage of resnet18.", "Did you mean 'layer4'?")])
    assert str(caught.value) == "phases[1].train.from = 'layr4' is not a stage of resnet18.\n  Did you mean 'layer4'?"


def test_the_values_stay_as_they_are() -> None:
    values = values_of(SOUND)
    before = deepcopy(values)
    Recipe.from_dict(values)
    assert values == before
