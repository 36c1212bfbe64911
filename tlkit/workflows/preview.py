"""`tlkit data preview RECIPE`: what training will see."""

from pathlib import Path

from tlkit.data.augment import build_augmentation
from tlkit.data.dataset import ImageDataset
from tlkit.data.preview import draw_preview, readable
from tlkit.data.quality.on_bad import read_images
from tlkit.data.splits.folds import split_by_recipe
from tlkit.errors import RunError
from tlkit.models.backbones import check_backbone_name
from tlkit.models.weights.sources import Weights, find_weights
from tlkit.recipe.fields.model import RunWeights
from tlkit.recipe.schema import Recipe
from tlkit.terminal import print_text
from tlkit.training.setup import preprocessing_of

MOST_CELLS = 2000


def preview_command(recipe: Recipe, out: Path, *, rows: int, columns: int) -> int:
    """Write the sheet. Needs the images, but neither weights nor a network."""
    if out.suffix.lower() != ".png":
        raise RunError(f"--out {out} is not a .png file.\n  Name one, such as preview.png.")
    if rows * columns > MOST_CELLS:
        raise RunError(f"{rows} rows of {columns} columns are more than {MOST_CELLS} images.\n  Use fewer --rows or --columns.")
    with recipe.located():
        check_backbone_name(recipe.model.backbone)
        samples = read_images(recipe.data, recipe.task)
        samples = split_by_recipe(samples, recipe.data, recipe.seed)
        # The mean colour matters to nothing here but the edges of padded images.
        fitting = recipe.data if recipe.data.resize == "pad" else recipe.data.model_copy(update={"normalize": "weights"})
        weights = find_weights(recipe.model) if isinstance(recipe.model.weights, RunWeights) else Weights("none")
        preprocessing = preprocessing_of(fitting, recipe.model.backbone, samples, weights)
        augmentation = build_augmentation(recipe.augment, recipe.data.image_size, recipe.data.channels, margin=recipe.data.margin)
    images = ImageDataset(samples.of("train"), preprocessing, augmentation=augmentation, seed=recipe.seed)
    found = draw_preview(images, samples.classes, recipe, out, rows=rows, columns=columns)
    print_text(f"{out}: {len(found)} of {len(images)} training images, {_columns_label(recipe, columns)}")
    if lacking := [name for name in dict.fromkeys(row.name for row in found) if readable(name) != name]:
        print_text(f"  □ stands for what the sheet's font lacks: {', '.join(f'{readable(name)} is {name}' for name in lacking)}")
    return 0


def _columns_label(recipe: Recipe, columns: int) -> str:
    if not recipe.augment:
        return "as training and validation see them: augment is empty"
    return f"as validation sees them and as epochs 1 to {columns - 1} of training do" if columns > 1 else "as validation sees them"
