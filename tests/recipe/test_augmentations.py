"""`augment:` is checked against a table of albumentations, and the table is true."""

import json
from pathlib import Path

import pytest

from tlkit.errors import RecipeError
from tlkit.recipe.augmentations import PRESETS, REFUSED, TABLE, preset, table_of_installed, transforms
from tlkit.recipe.load import load_recipe, recipe_yaml


def augment(value: str) -> list[tuple[str, dict[str, object]]]:
    return [(item.name, item.arguments) for item in load_recipe("quickstart", [f"augment={value}"]).augment]


def test_the_table_is_that_of_the_installed_albumentations() -> None:
    import albumentations

    assert albumentations.__version__ == "2.0.8", f"{TABLE} is of another version: python -m tlkit.recipe.augmentations"
    assert transforms() == table_of_installed()


def test_every_transform_that_is_refused_exists_and_none_is_both() -> None:
    import albumentations

    assert [name for name in REFUSED if not hasattr(albumentations, name)] == []
    assert not set(REFUSED) & set(transforms())


def test_the_table_is_written_one_transform_a_line() -> None:
    text = (Path(__file__).parents[2] / "tlkit" / "recipe" / TABLE).read_text()
    assert len(text.splitlines()) == len(json.loads(text)) + 2


def test_a_transform_may_stand_alone_or_with_arguments() -> None:
    assert augment("[HorizontalFlip, Rotate: {limit: 15}, {D4: {}}, Transpose: ]") == [
        ("HorizontalFlip", {}),
        ("Rotate", {"limit": 15}),
        ("D4", {}),
        ("Transpose", {}),
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[HorizontlFlip]", "augment[0].HorizontlFlip is not a transform of albumentations 2.0.8.\n  Did you mean 'HorizontalFlip'?"),
        ("[D4, rotate: {limit: 3}]", "augment[1].rotate is not a transform of albumentations 2.0.8.\n  Did you mean 'Rotate'?"),
        ("[Rotate: {limt: 3}]", "augment[0].Rotate.limt is not an argument of Rotate.\n  Expected one of: limit, interpolation"),
        ("[Rotate: 3]", "augment[0].Rotate = 3 is not a mapping.\n  Expected arguments: limit, "),
        ("[Rotate: {p: 1.5}]", "augment[0].Rotate.p = 1.5 is no probability.\n  Expected a number from 0 to 1."),
        ("[RandomCrop]", "augment[0].RandomCrop lacks height and width.\n  Write `RandomCrop: {height: .., width: ..}`."),
        ("[Resize: {height: 9}]", "augment[0].Resize lacks width.\n  Write `Resize: {width: ..}`."),
        ("[RandomSizedCrop: {}]", "augment[0].RandomSizedCrop lacks min_max_height."),
        ("[CropAndPad]", "augment[0].CropAndPad lacks px or percent.\n  Write `CropAndPad: {px: ..}`."),
        (
            "[RandomScale]",
            "RandomScale can't be used: it makes images of random sizes, which may be below data.image_size.\n  Use ",
        ),
        ("[RandomCropFromBorders]", "RandomCropFromBorders can't be used: it makes images of random sizes"),
        ("[Normalize]", "augment[0].Normalize can't be used: tlkit normalises after augmentation"),
        ("[ToFloat: {max_value: 255}]", "augment[0].ToFloat can't be used: tlkit normalises after augmentation"),
        ("[ToTensorV2]", "augment[0].ToTensorV2 can't be used: tlkit makes tensors itself"),
        ("[MaskDropout]", "augment[0].MaskDropout can't be used: it needs masks, boxes or other images"),
        ("[{Rotate: {limit: 3}, p: 0.5}]", "augment[0] = {Rotate: {limit: 3}, p: 0.5} has 2 keys.\n  Expected one transform an item."),
        ("[3]", "augment[0] = 3 is not a transform.\n  Expected a name"),
        ("[{}]", "augment[0] = {} is not a transform."),
        ("{Rotate: {}}", "augment = {Rotate: {}} is not a list.\n  Expected light, medium, heavy, or a list of transforms"),
        ("Rotate", "augment = 'Rotate' is not a list."),
        ("hevy", "augment = 'hevy' is not a list.\n  Expected light, medium, heavy, or a list of transforms"),
        ("[light]", "augment[0].light is a whole list, not a transform.\n  Write `augment: light` alone"),
        ("[randaugmnt]", "augment[0].randaugmnt is not a transform of albumentations 2.0.8.\n  Did you mean 'randaugment'?"),
        ("[randaugment: {magnitud: 3}]", "augment[0].randaugment.magnitud is not a key of augment[0].randaugment."),
        ("[randaugment: {magnitude: 31}]", "augment[0].randaugment.magnitude = 31 is none of 31 steps"),
        ("[randaugment: {num_ops: 0}]", "augment[0].randaugment.num_ops = 0 is out of range."),
        ("[trivialaugment: 3]", "augment[0].trivialaugment = 3 is a whole number.\n  Expected a mapping with the keys num_magnitude_bins"),
    ],
)
def test_an_item_that_is_no_transform_is_reported_with_the_nearest_fix(value: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        augment(value)
    assert len(caught.value.faults) == 1
    assert message in str(caught.value)


def test_the_place_of_a_transform_is_its_own_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("augment:\n  - D4\n  - Rotate:\n      limt: 3\n  - Rotat\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    places = {fault.key: fault.place for fault in caught.value.faults}
    assert places["augment[1].Rotate.limt"] == f"{path}:4"
    assert places["augment[2].Rotat"] == f"{path}:5"


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_written_out_in_full_and_reads_back_the_same(name: str, channels: int, tmp_path: Path) -> None:
    recipe = load_recipe("quickstart", [f"augment={name}", f"data.channels={channels}"])
    assert [item.name for item in recipe.augment] == [key for item in preset(name, channels) for key in item]
    assert len(recipe.augment) >= 2
    (tmp_path / "resolved.yaml").write_text(recipe_yaml(recipe))
    assert name not in (tmp_path / "resolved.yaml").read_text()
    assert load_recipe(tmp_path / "resolved.yaml").augment == recipe.augment


def test_randaugment_and_trivialaugment_have_torchvisions_defaults() -> None:
    import inspect

    from torchvision.transforms import v2

    for (_, arguments), kind in zip(augment("[randaugment, {trivialaugment: {}}]"), (v2.RandAugment, v2.TrivialAugmentWide), strict=True):
        theirs = {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items() if name != "fill"}
        assert arguments == {**theirs, "p": 1.0}
