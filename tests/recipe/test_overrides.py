"""Overrides set values in the order given, and their faults name the override."""

from pathlib import Path

import pytest

from tests.recipe.trial import SOUND, only_fault, with_override, write
from tlkit.recipe.fields.model import PackageWeights
from tlkit.recipe.load import load_recipe


def test_overrides_set_values_lists_and_mappings_in_the_order_given(tmp_path: Path) -> None:
    recipe = with_override(
        tmp_path,
        "phases=[{train: head, epochs: 2, lr: 1e-3}]",
        "phases[0].epochs=5",
        "early_stopping.patience=3",
        "trainer={devices: [0, 1]}",
        "trainer.precision=bf16-mixed",
        "data.source={bundled: fashion_mnist_mini}",
        "augment=[HorizontalFlip, Rotate: {limit: 3}]",
        "augment[1].Rotate.limit=20",
        "name=a=b".replace("a=b", "a-b"),
    )
    assert [(phase.train, phase.epochs, phase.lr) for phase in recipe.phases] == [("head", 5, 1e-3)]
    assert recipe.early_stopping is not None
    assert (recipe.early_stopping.patience, recipe.trainer.devices, recipe.trainer.precision) == (3, [0, 1], "bf16-mixed")
    assert [(item.name, item.arguments) for item in recipe.augment] == [("HorizontalFlip", {}), ("Rotate", {"limit": 20})]


def test_random_weights_take_the_place_of_a_mapping() -> None:
    assert load_recipe("quickstart").model.weights == PackageWeights(package="efficientnet-lite0")
    assert load_recipe("quickstart", ["model.weights=random"]).model.weights == "random"


def test_an_override_mends_a_fault_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, SOUND.replace("epochs: 3", "epochs: &a [1, *a]") + "seed: !!x 3\n")
    assert load_recipe(path, ["phases[1].epochs=4", "seed=1"]).phases[1].epochs == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("phases[9].epochs=1", "phases[9].epochs can't be set: phases has 2 items, counted from 0.\n  To add one, set the list whole"),
        ("phases[-1].epochs=1", "override = 'phases[-1].epochs' is not the path of a key."),
        ("phases.epochs=1", "phases.epochs can't be set: phases is [{train: head"),
        ("data[0]=1", "data[0] can't be set: data is not a list."),
        ("augment[0]=D4", "augment[0] can't be set: augment has 0 items"),
        ("model.backbone", "override has no '='.\n  Write it as phases[0].epochs=1"),
        ("=3", "override = '' is not the path of a key."),
        ("a b=3", "override = 'a b' is not the path of a key."),
        ("seed={", "seed is not valid YAML"),
        ("seed=*a", "seed = *a is a YAML alias."),
        ("modle.backbone=x", "modle is not a key of a recipe.\n  Expected one of: name,"),
        ("phases[1].train.frm=x", "phases[1].train.frm is not a key of phases[1].train."),
        ("model.backbone.name=x", "model.backbone.name can't be set: model.backbone is 'resnet18', which has no keys."),
        ("phases[0].train.from=x", "phases[0].train is 'head', which has no keys.\n  Set it whole: 'phases[0].train={from: x}'."),
    ],
)
def test_an_override_that_leads_nowhere_is_reported_with_the_override(override: str, message: str, tmp_path: Path) -> None:
    text = str(only_fault(write(tmp_path, SOUND), override))
    assert text.startswith(f"override {override}: ")
    assert message in text


def test_a_faulty_override_is_reported_though_a_later_one_replaces_it(tmp_path: Path) -> None:
    assert only_fault(write(tmp_path, SOUND), "phases[9].lr=1", "phases=[{train: all, epochs: 1, lr: 1}]").key == "phases[9].lr"


def test_a_clash_that_an_override_made_has_the_place_of_the_override(tmp_path: Path) -> None:
    path = write(tmp_path, SOUND.replace("lr: 3e-4", "lr: 3e-4\n    layer_decay: 0.7"))
    fault = only_fault(path, "phases[1].train=head")
    assert (fault.key, fault.place) == ("phases[1].layer_decay", "override phases[1].train=head")
