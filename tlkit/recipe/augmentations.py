"""`augment:` checked by name and argument against a table of albumentations, whose import would take 2.4 s; and its presets."""

import json
from functools import cache
from importlib.resources import files
from typing import Any

from tlkit.errors import Fault, did_you_mean, expected_one_of
from tlkit.recipe.explain import MOST_FAULTS, format_value, schema_faults, spaced
from tlkit.recipe.fields.augment import AUTO_AUGMENT

TABLE = "albumentations_2_0_8.json"

_NORMALISES = "tlkit normalises after augmentation, with the same mean and std in training, evaluation and prediction"
_NEEDS_MORE = "it needs masks, boxes or other images, and a classifier's sample is one image"
_ANY_SIZE = "it makes images of random sizes, which may be below data.image_size"
REFUSED = {
    **dict.fromkeys(("Normalize", "ToFloat", "FromFloat"), (_NORMALISES, "Remove it, and set data.normalize.")),
    **dict.fromkeys(("ToTensorV2", "ToTensor3D"), ("tlkit makes tensors itself, after augmentation", "Remove it.")),
    "ToRGB": ("every image has as many channels as data.channels says already", "Remove it, or set data.channels."),
    "NoOp": ("it changes nothing", "Remove it."),
    "RandomScale": (_ANY_SIZE, "Use Affine: {scale: [0.9, 1.1]}, which zooms and keeps the size."),
    "RandomCropFromBorders": (_ANY_SIZE, "Use RandomResizedCrop: {scale: [0.8, 1.0]}."),
    "Lambda": ("it takes Python functions, which a recipe can't hold", "Use another transform."),
    **dict.fromkeys(
        (
            "AtLeastOneBBoxRandomCrop",
            "BBoxSafeRandomCrop",
            "ConstrainedCoarseDropout",
            "CropNonEmptyMaskIfExists",
            "FDA",
            "HistogramMatching",
            "MaskDropout",
            "Mosaic",
            "OverlayElements",
            "PixelDistributionAdaptation",
            "RandomCropNearBBox",
            "RandomSizedBBoxSafeCrop",
            "TextImage",
        ),
        (_NEEDS_MORE, "Use another transform."),
    ),
}
"""Transforms that albumentations has and a recipe can't use: name -> (why, what to do)."""

NEEDS_RGB = frozenset(
    {
        "ChromaticAberration",
        "HEStain",
        "HueSaturationValue",
        "ISONoise",
        "PlanckianJitter",
        "RandomFog",
        "RandomGravel",
        "RandomRain",
        "RandomSnow",
        "RandomSunFlare",
        "Spatter",
        "ToGray",
        "ToSepia",
    }
)
"""Transforms of colours: with other channels albumentations refuses them, or on grey images lets them do nothing."""
NEEDS_MORE_THAN_GREY = frozenset({"ChannelDropout", "ChannelShuffle"})
NEEDS_RGB_OR_GREY = frozenset({"CLAHE", "ColorJitter", "Equalize", "RGBShift", *AUTO_AUGMENT})


ONE_OF = {"CropAndPad": ("px", "percent"), **dict.fromkeys(("LongestMaxSize", "SmallestMaxSize"), ("max_size", "max_size_hw"))}
"""Transforms of which one argument of several must be given."""
GIVEN = frozenset({"size"})
"""Arguments that tlkit gives: see RandomResizedCrop in docs/augmentation.md."""

PRESETS = ("light", "medium", "heavy")

_FLIP = {"HorizontalFlip": {"p": 0.5}}
_COLOURS = {"brightness": [0.8, 1.2], "contrast": [0.8, 1.2], "saturation": [0.8, 1.2], "hue": [-0.02, 0.02], "p": 0.8}
_HOLE = {"num_holes_range": [1, 1], "hole_height_range": [0.1, 0.35], "hole_width_range": [0.1, 0.35], "p": 0.25}


def preset(name: str, channels: int = 3) -> list[dict[str, Any]]:
    """Return the list that a preset stands for, as it would be written in a recipe. docs/augmentation.md gives the reasons.

    RGB and grey images get colour changes; images of other channels get brightness and contrast instead.
    """
    has_colours = channels in (1, 3)
    colours = {"ColorJitter": _COLOURS} if has_colours else {"RandomBrightnessContrast": {"p": 0.8}}
    if name == "light":
        return [_moved(0.05, 10), _FLIP]
    if name == "medium":
        return [_cropped(0.5), _FLIP, _moved(0.0, 15), colours]
    random = {"randaugment": {"num_ops": 2, "magnitude": 9}}
    return [_cropped(0.25), _FLIP, *([random] if has_colours else [_moved(0.1, 30), colours]), {"CoarseDropout": _HOLE}]


def _cropped(smallest: float) -> dict[str, Any]:
    """Return a random resized crop. smallest: share of the image's area."""
    return {"RandomResizedCrop": {"scale": [smallest, 1.0], "ratio": [0.75, 1.3333]}}


def _moved(share: float, degrees: int) -> dict[str, Any]:
    """Return a shift by up to this share of the side, with a zoom of twice as much; edges are reflected (border mode 4), not black."""
    moves = {"scale": [1 - 2 * share, 1 + 2 * share], "translate_percent": [-share, share]} if share else {}
    return {"Affine": {**moves, "rotate": [-degrees, degrees], "border_mode": 4, "p": 0.5}}


def read_augment(value: Any, channels: int = 3) -> tuple[list[dict[str, Any]], list[Fault]]:
    """Return the items of `augment:` as the schema takes them, name and arguments; and what is wrong with the others.

    A preset becomes the items that it stands for. channels: of the images.
    """
    if isinstance(value, str) and value in PRESETS:
        value = preset(value, channels)
    if not isinstance(value, list):
        hint = did_you_mean(value, PRESETS) if isinstance(value, str) else ""
        fix = f"Expected light, medium, heavy, or a list of transforms, such as [HorizontalFlip: {{p: 0.5}}]. {hint}".rstrip()
        return [], [Fault("augment", f"= {format_value(value)} is not a list.", fix)]
    items: list[dict[str, Any]] = []
    faults: list[Fault] = []
    for index, item in enumerate(value):
        found = _item_faults(f"augment[{index}]", item, channels)
        faults += found
        if len(faults) > MOST_FAULTS:
            break
        if not found:
            ((name, arguments),) = item.items() if isinstance(item, dict) else [(item, {})]
            items.append({"name": name, "arguments": _in_full(name, arguments or {})})
    return items, faults


def _in_full(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return AUTO_AUGMENT[name].model_validate(arguments).model_dump() if name in AUTO_AUGMENT else arguments


@cache
def transforms() -> dict[str, dict[str, bool]]:
    """Name -> its arguments -> whether they must be given, for every transform that a recipe can use."""
    table: dict[str, dict[str, bool]] = json.loads(files("tlkit.recipe").joinpath(TABLE).read_text())
    return table


def _item_faults(key: str, item: Any, channels: int) -> list[Fault]:
    form = "Expected a name, or a name with its arguments: `- Rotate: {limit: 15}`."
    if isinstance(item, dict) and len(item) > 1:
        return [
            Fault(
                key, f"= {format_value(item)} has {len(item)} keys.", "Expected one transform an item. Indent its arguments below its name."
            )
        ]
    if not (isinstance(item, str) or (isinstance(item, dict) and item)):
        return [Fault(key, f"= {format_value(item)} is not a transform.", form)]
    ((name, arguments),) = item.items() if isinstance(item, dict) else [(item, None)]
    if name in REFUSED:
        why, fix = REFUSED[name]
        return [Fault(f"{key}.{name}", f"can't be used: {why}.", fix)]
    if name in PRESETS:
        fix = f"Write `augment: {name}` alone; `tlkit check RECIPE --resolved` prints what it stands for, to be copied and changed."
        return [Fault(f"{key}.{name}", "is a whole list, not a transform.", fix)]
    if name not in transforms() and name not in AUTO_AUGMENT:
        hint = did_you_mean(name, [*transforms(), *AUTO_AUGMENT]) or "The names are those of https://explore.albumentations.ai."
        return [Fault(f"{key}.{name}", "is not a transform of albumentations 2.0.8.", hint)]
    if problem := _channel_problem(name, channels):
        return [Fault(f"{key}.{name}", f"{problem}, and data.channels is {channels}.", "Remove it, or set data.channels=3.")]
    if name in AUTO_AUGMENT:
        return schema_faults({} if arguments is None else arguments, {}, model=AUTO_AUGMENT[name], key=f"{key}.{name}")
    if not isinstance(arguments, dict | None):
        return [
            Fault(
                f"{key}.{name}", f"= {format_value(arguments)} is not a mapping.", f"Expected arguments: {', '.join(transforms()[name])}."
            )
        ]
    return _argument_faults(f"{key}.{name}", name, arguments or {})


def _channel_problem(name: str, channels: int) -> str:
    if name in NEEDS_RGB and channels != 3:
        return "changes the colours of RGB images"
    if name in NEEDS_MORE_THAN_GREY and channels == 1:
        return "needs more than one channel"
    return "knows RGB and grey images" if name in NEEDS_RGB_OR_GREY and channels not in (1, 3) else ""


def _argument_faults(key: str, name: str, arguments: dict[str, Any]) -> list[Fault]:
    accepted = transforms()[name]
    names = list(accepted)
    unknown = [word for word in arguments if word not in accepted]
    fixes = {word: spaced(word, names) or expected_one_of(word, names) for word in unknown[: MOST_FAULTS + 1]}
    faults = [Fault(f"{key}.{word}", f"is not an argument of {name}.", fix) for word, fix in fixes.items()]
    if missing := [word for word, needed in accepted.items() if needed and word not in (*arguments, *GIVEN)]:
        faults.append(Fault(key, f"lacks {' and '.join(missing)}.", f"Write `{name}: {{{', '.join(f'{word}: ..' for word in missing)}}}`."))
    if name in ONE_OF and not set(ONE_OF[name]) & set(arguments):
        faults.append(Fault(key, f"lacks {' or '.join(ONE_OF[name])}.", f"Write `{name}: {{{ONE_OF[name][0]}: ..}}`."))
    p = arguments.get("p", 0.5)
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:
        faults.append(Fault(f"{key}.p", f"= {format_value(p)} is no probability.", "Expected a number from 0 to 1."))
    return faults


def table_of_installed() -> dict[str, dict[str, bool]]:
    """Build the table from the installed albumentations. To write the file: python -m tlkit.recipe.augmentations"""
    from inspect import signature

    import albumentations

    kinds = (albumentations.ImageOnlyTransform, albumentations.DualTransform)
    return {
        name: {word: found.default is found.empty for word, found in signature(item).parameters.items() if word != "strict"}
        for name, item in sorted(vars(albumentations).items())
        if isinstance(item, type)
        and issubclass(item, kinds)
        and not issubclass(item, albumentations.Transform3D)
        and item not in kinds
        and name not in REFUSED
    }


if __name__ == "__main__":
    from pathlib import Path

    rows = (f"  {json.dumps(name)}: {json.dumps(arguments)}" for name, arguments in table_of_installed().items())
    Path(__file__).with_name(TABLE).write_text("{\n" + ",\n".join(rows) + "\n}\n")
