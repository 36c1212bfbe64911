"""docs/recipe_reference.md has every key, and is the one that its script writes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tlkit.cli import main
from tlkit.recipe.explain import fields_of
from tlkit.recipe.fields.phases import Phase
from tlkit.recipe.load import load_recipe, recipe_yaml
from tlkit.recipe.reference import example_of, key_help, recipe_reference
from tlkit.recipe.schema import Recipe
from tlkit.recipe.yaml12 import read_yaml

PAGE = Path(__file__).parents[2] / "docs/recipe_reference.md"


def keys_of(value: Any, *, above: str = "") -> Iterator[str]:
    if isinstance(value, dict) and above != "augment":
        for key, inner in value.items():
            yield key
            yield from keys_of(inner, above=key)
    elif isinstance(value, list) and above != "augment":
        for inner in value:
            yield from keys_of(inner)


def test_the_page_is_what_its_script_writes() -> None:
    assert PAGE.read_text(encoding="utf-8") == recipe_reference(), "run: python docs/make_recipe_reference.py"


def test_every_key_of_a_resolved_recipe_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    recipe = load_recipe("quickstart", ["data.batch_size={find: 0.8}", "ema={decay: 0.9}", "early_stopping={patience: 2}"])
    keys = set(keys_of(YAML(typ="safe").load(recipe_yaml(recipe))))
    assert len(keys) > 60
    assert [key for key in keys if f"| `{key}` |" not in page] == []


def test_help_of_a_key_says_what_it_means_its_values_default_and_an_example() -> None:
    description = Phase.model_fields["train"].description
    assert description
    for key in ("phases.train", "phases[0].train", "phases[].train"):
        lines = key_help(key).splitlines()
        assert lines[0] == f"phases.train: {description}"
        assert "  values   head, all, norm, bias, {from: STAGE}, {last: N}, {lora: {rank: R}} or {dora: {rank: R}}" in lines
        assert "  default  none: it must be given" in lines
        assert "  example  train: head" in lines
    assert "  default  64" in key_help("data.batch_size").splitlines()


def test_help_of_a_part_lists_its_keys_and_of_a_transform_its_arguments() -> None:
    assert [line.split()[0] for line in key_help("").splitlines()[2:4]] == ["name", "seed"]
    assert "    csv " in key_help("data.source")
    assert "arguments  limit, " in key_help("augment.Rotate")
    assert "required   height, width" in key_help("augment.CenterCrop")
    assert "    num_ops " in key_help("augment.randaugment")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("phases.trian", "phases.trian is not a key of phases.\n  Expected one of: train, epochs, lr, "),
        ("phases.trian", "Did you mean 'train'?"),
        ("lr", "lr is not a key of a recipe.\n  Expected one of: name, "),
        ("lr", "Did you mean phases[0].lr?"),
        ("seed.x", "seed.x is not a key of seed.\n  seed has no keys of its own. See: tlkit recipes help seed"),
        ("augment.Rotat", "augment.Rotat is not a transform of albumentations 2.0.8.\n  Did you mean 'Rotate'?"),
    ],
)
def test_help_of_what_is_no_key_exits_2_with_the_nearest(key: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "help", key]) == 2
    assert message in capsys.readouterr().err


def test_an_example_reads_back_as_one_key_of_yaml() -> None:
    for key, field in [*fields_of(Phase).items(), *fields_of(Recipe).items()]:
        document = read_yaml(example_of(key, field), str)
        assert (list(document.value), document.faults) == ([key], [])
