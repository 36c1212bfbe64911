"""A sound recipe of two phases, and how tests read it and take its faults."""

from pathlib import Path

import pytest

from tlkit.errors import Fault, RecipeError
from tlkit.recipe.load import load_recipe
from tlkit.recipe.schema import Recipe

SOUND = """\
name: trial
data:
  source: {folder: photos}
model:
  backbone: resnet18
phases:
  - {train: head, epochs: 2, lr: 1e-3}
  - train: {from: layer4}
    epochs: 3
    lr: 3e-4
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "trial.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def faults_of(path: Path | str, *overrides: str) -> list[Fault]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return list(caught.value.faults)


def only_fault(path: Path | str, *overrides: str) -> Fault:
    (fault,) = faults_of(path, *overrides)
    return fault


def with_override(tmp_path: Path, *overrides: str) -> Recipe:
    return load_recipe(write(tmp_path, SOUND), overrides)
