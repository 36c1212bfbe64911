"""The recipes that come with tlkit: each is sound, and is found by its name from any folder."""

from pathlib import Path

import pytest

from tests.recipe.trial import SOUND, write
from tlkit.recipe.load import find_recipe, load_recipe, recipe_yaml
from tlkit.system import shipped

SHIPPED = sorted(shipped("recipes").rglob("*.yaml"))


def test_the_degradation_pair_differs_in_name_and_backbone_alone() -> None:
    plain, residual = (load_recipe(f"degradation_{name}").model_dump() for name in ("plain34", "residual34"))
    assert (plain.pop("name"), residual.pop("name")) == ("degradation_plain34", "degradation_residual34")
    assert (plain["model"].pop("backbone"), residual["model"].pop("backbone")) == ("plain34", "resnet34")
    assert plain == residual


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_loads_is_named_as_its_file_and_survives_the_round_trip(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert f"tlkit finetune recipes/{path.name}" in path.read_text()
    again = load_recipe(write(tmp_path, recipe_yaml(recipe)))
    assert again.model_dump() == recipe.model_dump()


def test_the_cifar_recipe_says_what_the_design_says() -> None:
    recipe = load_recipe("recipes/cifar_resnet.yaml")
    assert (recipe.data.source.model_dump(), recipe.data.image_size) == ({"torchvision": "CIFAR10"}, 224)
    assert (recipe.model.backbone, recipe.model.weights, recipe.model.head.dropout) == ("resnet18", "pretrained", 0.2)
    assert [transform.name for transform in recipe.augment] == ["HorizontalFlip", "Rotate", "Affine"]
    assert recipe.augment[2].arguments == {"scale": [0.9, 1.1], "translate_percent": 0.1}
    assert [phase.train for phase in recipe.phases] == ["head", "all"]


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml", "recipes/quickstart.yaml"])
def test_a_shipped_recipe_is_found_by_name_from_any_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe(name) == shipped("recipes/quickstart.yaml")


def test_a_file_of_the_user_comes_before_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart.yaml").write_text(SOUND)
    assert load_recipe("quickstart.yaml").name == "trial"
