"""`tlkit data preview RECIPE`, and the run folder's augmentations.png: what training will see."""

from collections.abc import Sequence
from pathlib import Path

from tlkit.data.augment import build_augmentation
from tlkit.data.folds import split_by_recipe
from tlkit.data.on_bad import read_pictures
from tlkit.data.pictures import Pictures
from tlkit.data.preview import Row, draw_sheet, preview_rows, readable
from tlkit.errors import DataError, RunError
from tlkit.models.backbones import check_backbone_name
from tlkit.models.weights import Weights, find_weights
from tlkit.recipe.explain import shown
from tlkit.recipe.fields.learning import Mix
from tlkit.recipe.fields.model import RunWeights
from tlkit.recipe.schema import Recipe
from tlkit.training.ready import preprocessing_of

ROWS, COLUMNS = 8, 6
"""COLUMNS: with the one as validation sees it."""
MOST_CELLS = 2000


def preview_command(recipe: Recipe, out: Path, *, rows: int, columns: int) -> int:
    """Writes the sheet. Needs the pictures, but neither weights nor a network."""
    if out.suffix.lower() != ".png":
        raise RunError(f"--out {out} is not a .png file.\n  Name one, such as preview.png.")
    if not out.absolute().parent.is_dir():
        raise RunError(f"--out {out}: the folder {out.parent} does not exist.\n  Make it, or name another place.")
    if rows * columns > MOST_CELLS:
        raise RunError(f"{rows} rows of {columns} columns are more than {MOST_CELLS} pictures.\n  Use fewer --rows or --columns.")
    with recipe.located():
        check_backbone_name(recipe.model.backbone)
        samples = read_pictures(recipe.data, recipe.task)
        samples = split_by_recipe(samples, recipe.data, recipe.seed)
        # The mean colour matters to nothing here but the edges of padded pictures.
        fitting = recipe if recipe.data.resize == "pad" else _normalized_by_weights(recipe)
        weights = find_weights(recipe.model) if isinstance(recipe.model.weights, RunWeights) else Weights("none")
        preprocessing = preprocessing_of(fitting, samples, weights)
        augmentation = build_augmentation(recipe.augment, recipe.data.image_size, recipe.data.channels)
    pictures = Pictures(samples.of("train"), preprocessing, augmentation=augmentation, seed=recipe.seed)
    found = draw_preview(pictures, samples.classes, recipe, out, rows=rows, columns=columns)
    print(f"{out}: {len(found)} of {len(pictures)} training pictures, {_columns_in_words(recipe, columns)}")
    for name in dict.fromkeys(row.name for row in found):
        if readable(name) != name:
            print(f"  □ in {readable(name)!r} stands for what the sheet's font lacks: {name}")
    return 0


def draw_preview(
    pictures: Pictures, classes: Sequence[str], recipe: Recipe, file: Path, *, rows: int = ROWS, columns: int = COLUMNS
) -> list[Row]:
    """Draws the sheet of pictures of the training split, with their augmentation, and returns what is on it.

    columns: with the first, which shows a picture as it would be in validation. Raises DataError where no picture can be read.
    """
    numbers = range(columns - 1) if pictures.augmentation is not None else range(0)
    # Views of which the activations are kept come in turns.
    epochs = [number % recipe.cache.views if recipe.cache.views else number for number in numbers]
    found = list(preview_rows(pictures, classes, rows=rows, epochs=epochs))
    if not found:
        raise DataError(f"none of the {len(pictures)} training pictures can be read.\n  See: tlkit data check")
    size, channels = recipe.data.image_size, recipe.data.channels
    kind = recipe.data.channels_in_words
    if channels not in (1, 3):
        kind += f", of which the first {'is' if channels == 2 else 'three are'} shown"
    draw_sheet(
        found,
        ["validation", *(f"epoch {number + 1}" for number in numbers)],
        file,
        title=f"{recipe.name}: training pictures, {size} px, {kind}",
        notes=_notes(recipe, len(numbers)),
    )
    return found


def _notes(recipe: Recipe, epochs_shown: int) -> list[str]:
    items = [
        f"{item.name}: {', '.join(f'{name} {shown(value)}' for name, value in item.arguments.items())}".removesuffix(": ")
        for item in recipe.augment
    ]
    notes = [f"augment[{number}]  {item}" for number, item in enumerate(items)] or ["augment is empty: nothing changes."]
    epochs = sum(phase.epochs for phase in recipe.gradient_phases.values())
    if items and not epochs:
        notes.append("No phase of this recipe trains by gradients, so none of this happens: pictures are taken as they are.")
    elif items and epochs_shown > epochs:
        notes.append(f"The recipe has {epochs} epoch{'s' if epochs > 1 else ''}; later columns show what more of them would look like.")
    if recipe.mix != Mix():
        notes.append("mix blends pictures of a batch after this, which isn't shown.")
    return notes


def _columns_in_words(recipe: Recipe, columns: int) -> str:
    if not recipe.augment:
        return "as training and validation see them: augment is empty"
    return f"as validation sees them and as epochs 1 to {columns - 1} of training do" if columns > 1 else "as validation sees them"


def _normalized_by_weights(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"normalize": "weights"})})
