"""A sheet of training images: a row per image, as validation would see it and then as each epoch of training does."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import wrap

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tlkit.data.dataset import ImageDataset
from tlkit.errors import DataError
from tlkit.files import atomic_file
from tlkit.recipe.explain import format_value
from tlkit.recipe.fields.learning import Mix
from tlkit.recipe.schema import Recipe

CELL_PX = 128
"""Smaller images are enlarged to about this by a whole factor, pixel for pixel; larger ones are shown at most this much larger."""
LARGEST_CELL_PX = 160
GAP_PX, MARGIN_PX, NAMES_PX, LINE_PX, FONT_PX = 6, 16, 150, 18, 13
INK, SOFT, PAPER = "#1c1c1c", "#5b5b5b", "#ffffff"

ImageArray = NDArray[np.uint8]

ROWS, COLUMNS = 8, 6
"""COLUMNS: with the one as validation sees it."""

log = logging.getLogger("tlkit")


@dataclass(frozen=True)
class Row:
    """name: of the class or classes. views: as validation sees it, then an epoch each; [S, S, C]."""

    id: str
    name: str
    views: tuple[ImageArray, ...]


def draw_preview(
    images: ImageDataset, classes: Sequence[str], recipe: Recipe, file: Path, *, rows: int = ROWS, columns: int = COLUMNS
) -> list[Row]:
    """Draw the sheet of training images with their augmentation, and return what is on it.

    columns: with the first, which shows an image as it would be in validation. Raises DataError if no image can be read.
    """
    numbers = range(columns - 1) if images.augmentation is not None else range(0)
    # Views of which the activations are kept come in turns.
    epochs = [number % recipe.cache.views if recipe.cache.views else number for number in numbers]
    found = list(preview_rows(images, classes, rows=rows, epochs=epochs))
    if not found:
        raise DataError(f"none of the {len(images)} training images can be read.\n  See: tlkit data check")
    size, channels = recipe.data.image_size, recipe.data.channels
    kind = recipe.data.channels_label
    if channels not in (1, 3):
        kind += f", of which the first {'is' if channels == 2 else 'three are'} shown"
    draw_sheet(
        found,
        ["validation", *(f"epoch {number + 1}" for number in numbers)],
        file,
        title=f"{recipe.name}: training images, {size} px, {kind}",
        notes=_notes(recipe, len(numbers)),
    )
    return found


def _notes(recipe: Recipe, epochs_shown: int) -> list[str]:
    items = [
        f"{item.name}: {', '.join(f'{name} {format_value(value)}' for name, value in item.arguments.items())}".removesuffix(": ")
        for item in recipe.augment
    ]
    margin = f"data.margin {recipe.data.margin:g}: applied to the whole image at that size, of which a square is cropped"
    notes = [f"augment[{number}]  {item}" for number, item in enumerate(items)] or ["augment is empty: nothing changes."]
    if items and recipe.data.margin > 1:
        notes.append(margin)
    epochs = sum(phase.epochs for phase in recipe.gradient_phases.values())
    if items and not epochs:
        notes.append("No phase of this recipe trains by gradients, so this augmentation is not used.")
    elif items and epochs_shown > epochs:
        notes.append(f"The recipe has {epochs} epoch{'s' if epochs > 1 else ''}; later columns show further epochs.")
    if recipe.mix != Mix():
        notes.append("mix blends images of a batch after this, which isn't shown.")
    return notes


def preview_rows(images: ImageDataset, classes: Sequence[str], *, rows: int, epochs: Sequence[int]) -> Iterator[Row]:
    """Yield up to `rows` images, drawn by the seed from as many classes as there are. Unreadable ones are left out and logged.

    images: of the training split, with their augmentation; what training takes from them is what is returned.
    """
    given = 0
    for index in _by_turns(images):
        if given == rows:
            return
        try:
            loaded = images.loaded(index)
            is_fitted = loaded.shape[:2] == 2 * (images.preprocessing.image_size,)
            fitted = loaded if is_fitted else images.fitted(index)
        except DataError as error:
            log.warning("left out of the sheet: %s", error)
            continue
        views = (fitted, *(images.augmented(loaded, epoch, index) for epoch in epochs))
        sample = images.samples[index]
        given += 1
        yield Row(sample.id, ", ".join(classes[label] for label in sample.labels) or "no class", views)


def _by_turns(images: ImageDataset) -> list[int]:
    """Return every index once: one of each class in turn, the images of a class in a seeded order."""
    order = np.random.default_rng(images.seed).permutation(len(images)).tolist()
    met: dict[int, int] = {}
    turns = []
    for index in order:
        label = min(images.samples[index].labels, default=-1)
        met[label] = met.get(label, -1) + 1
        turns.append((met[label], label, index))
    return [index for _, _, index in sorted(turns)]


def draw_sheet(rows: Sequence[Row], headings: Sequence[str], file: Path, *, title: str, notes: Sequence[str]) -> None:
    """Draw the rows into a PNG. headings: one per column. notes: printed below the rows, wrapped if they are long."""
    shown = [[_drawable(view) for view in row.views] for row in rows]
    side = shown[0][0].width
    left = MARGIN_PX + NAMES_PX
    width = max(left + len(headings) * (side + GAP_PX) + MARGIN_PX, 640)
    folded = [line for note in notes for line in wrap(note, max(40, (width - 2 * MARGIN_PX) // 7), subsequent_indent="    ")]
    heading_lines = [wrap(heading, max(8, side // 7)) for heading in headings]
    head = MARGIN_PX + 2 * LINE_PX + max(map(len, heading_lines)) * LINE_PX
    body = len(rows) * (side + GAP_PX)
    sheet = Image.new("RGB", (width, head + body + GAP_PX + len(folded) * LINE_PX + MARGIN_PX), PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (MARGIN_PX, MARGIN_PX - 2), title, size=FONT_PX + 3)
    for column, lines in enumerate(heading_lines):
        for number, line in enumerate(lines):
            y = head - (len(lines) - number) * LINE_PX
            _write(draw, (left + column * (side + GAP_PX), y), line, colour=SOFT)
    for number, (row, views) in enumerate(zip(rows, shown, strict=True)):
        y = head + number * (side + GAP_PX)
        _write_name(draw, (MARGIN_PX, y), row.name, height=side)
        for column, view in enumerate(views):
            sheet.paste(view, (left + column * (side + GAP_PX), y))
    for number, line in enumerate(folded):
        _write(draw, (MARGIN_PX, head + body + GAP_PX + number * LINE_PX), line, colour=SOFT)
    with atomic_file(file) as writing:
        sheet.save(writing, format="PNG")


def _drawable(view: ImageArray) -> Image.Image:
    """Return a view that can be drawn: grey or RGB as it is, two channels as grey, the first three of more channels as RGB."""
    channels = view.shape[2]
    image = Image.fromarray(np.ascontiguousarray(view[:, :, :3]) if channels >= 3 else np.repeat(view[:, :, :1], 3, axis=2))
    side = image.width
    if side > LARGEST_CELL_PX:
        return image.resize((LARGEST_CELL_PX, LARGEST_CELL_PX), Image.Resampling.LANCZOS)
    factor = max(1, round(CELL_PX / side))
    return image.resize((side * factor, side * factor), Image.Resampling.NEAREST)


def _write_name(draw: ImageDraw.ImageDraw, place: tuple[int, int], name: str, *, height: int) -> None:
    """Draw a name wrapped to the width of the column and cut to the height of a row."""
    lines = _folded(readable(name), NAMES_PX - 2 * GAP_PX)
    most = max(1, height // LINE_PX)
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1][:-1] + "…"]
    for number, line in enumerate(lines):
        _write(draw, (place[0], place[1] + number * LINE_PX), line)


def _folded(text: str, width: int) -> list[str]:
    """Wrap a text to lines of at most `width` pixels; longer words are cut."""
    lines = [""]
    for word in text.split():
        if _font().getlength(f"{lines[-1]} {word}") <= width and lines[-1]:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for sign in word:
            if lines[-1] and _font().getlength(lines[-1] + sign) > width:
                lines.append("")
            lines[-1] += sign
    return [line for line in lines if line] or [""]


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, *, colour: str = INK, size: int = FONT_PX) -> None:
    draw.text(place, readable(text), fill=colour, font=_font(size))


def readable(text: str) -> str:
    """Replace every character that the sheet's font lacks, such as Chinese and most emoji, by □."""
    known = _signs()
    return "".join(sign if sign.isspace() or ord(sign) in known else "□" for sign in text if sign not in "\ufe0e\ufe0f\u200d")


@cache
def _font(size: int = FONT_PX) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_font_file(), size)


@cache
def _signs() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(_font_file()).get_charmap())


@cache
def _font_file() -> str:
    """Return matplotlib's own font: the same on every machine, with Latin, Greek, Cyrillic, Arabic, Hebrew and some emoji."""
    from matplotlib import get_data_path

    return str(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf")
