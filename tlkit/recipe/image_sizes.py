"""What `tlkit check` says of an image size without torch, by image_sizes.csv, which data/make_image_sizes.py writes.

The table is of one version of timm. What isn't in it takes all sizes, or `tlkit plan` finds out by building it.
"""

import csv
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from importlib.resources import files

from tlkit.errors import Fault
from tlkit.recipe.schema import Recipe

TABLE = "image_sizes.csv"


@cache
def _rows() -> dict[str, dict[str, str]]:
    """Return the table by backbone; empty where another version of timm is installed."""
    comment, *lines = files("tlkit.recipe").joinpath(TABLE).read_text(encoding="utf-8").splitlines()
    if f"timm {version('timm')} " not in comment:
        return {}
    return {row["backbone"]: row for row in csv.DictReader(line for line in lines if line[0] != "#")}


def size_faults(recipe: Recipe) -> Iterator[Fault]:
    """Yield the image size that the backbone can't take."""
    row = _rows().get(recipe.model.backbone.partition(".")[0])
    if row is None or recipe.model.features != "all":
        return
    size, smallest, multiple = recipe.data.image_size, int(row["smallest"]), int(row["multiple"])
    below = size // multiple * multiple
    if size != below or size < smallest:
        near = sorted({max(smallest, below), max(smallest, below + multiple)} if size != below else {smallest})
        problem = f"= {size} is a size that {recipe.model.backbone} can't take."
        yield Fault("data.image_size", problem, f"Sizes near it that work: {' or '.join(map(str, near))}.")


def border_warnings(recipe: Recipe) -> list[str]:
    """Return the warning of a border that the backbone's patches leave unseen, as `tlkit plan` finds it by the gradient."""
    row = _rows().get(recipe.model.backbone.partition(".")[0])
    unseen = recipe.data.image_size % int(row["patch"]) if row else 0
    return [border_message(recipe.model.backbone, recipe.data.image_size, unseen, int(row["patch"]))] if row and unseen else []


def border_message(backbone: str, image_size: int, unseen: int, patch: int) -> str:
    """Return a sentence on the pixels at the right and the bottom that no feature depends on."""
    lower = image_size - unseen
    unseen_part = f"leaves {unseen} px at the right and the bottom of every image unseen"
    return f"data.image_size = {image_size} {unseen_part}: {backbone} looks at patches of {patch} px. Use {lower} or {lower + patch}."
