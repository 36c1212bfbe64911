"""`tlkit data stats`: a survey of a folder or of a recipe's images, as people and scripts read it."""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tlkit.data.decode import Decoding, decode
from tlkit.data.progress import progress, progress_console
from tlkit.data.quality.on_bad import read_images
from tlkit.data.quality.survey import Size, Survey, spread, survey
from tlkit.data.quality.value_range import range_warning
from tlkit.data.samples import LARGEST_FOLD, Samples
from tlkit.data.splits.folds import split_by_recipe
from tlkit.errors import TlkitError
from tlkit.files import atomic_file, write_json
from tlkit.recipe.schema import Recipe
from tlkit.terminal import counted, output_console, print_json, print_line, printable

LONG = 2.0
"""Times: of an image that is longer than wide by more, `resize: crop` shows less than half."""
MANY_CLASSES = 40
SPLITS = {"train": "training", "val": "validation", "test": "test", "": "not split"}


def stats_command(recipe: Recipe, *, drawn: bool, mean_px: int | None, out: Path | None, as_json: bool) -> int:
    """Print the statistics. Return 2 if images can't be read, after all others have been counted.

    drawn: whether splits that the source lacks are drawn as the recipe's run would. mean_px: side of the mean image; by default it has
    the size of the first image.
    """
    data = recipe.data
    with recipe.located():
        samples = read_images(data, recipe.task)
        if drawn:
            samples = split_by_recipe(samples, data, recipe.seed)
    if out is not None:
        _create_folder(out)
    read = partial(decode, how=Decoding.of(data))
    with progress(progress_console(), "looking at", len(samples.samples)) as advance:
        found = survey(samples, read=read, mean_size=(mean_px, mean_px) if mean_px else None, on_image=advance)
    facts = statistics(samples, found)
    facts["range_16bit"] = range_warning([sample.image for sample in samples.samples], data)
    if out is not None:
        _write_files(out, found, facts)
    if as_json:
        print_json(facts)
    else:
        print_statistics(facts, output_console())
    return 2 if found.failed else 0


def statistics(samples: Samples, found: Survey) -> dict[str, Any]:
    """Return plain JSON values. mean and std are in units of 0..1, per channel, over all pixels of the images in their original sizes."""
    found.mean_picture()  # raises where no image could be read
    counts = Counter((sample.split, label) for sample in samples.samples for label in sample.labels)
    splits = [split for split in SPLITS if samples.of(split)]
    training = "train" if "train" in splits else ""
    train = {name: counts[training, label] for label, name in enumerate(samples.classes)}
    mean, std = found.mean_and_std()
    by_split = {
        SPLITS[split]: dict(zip(("mean", "std"), map(list, found.mean_and_std(split)), strict=True))
        for split in splits
        if split in found.values
    }
    return {
        "pictures": len(samples.samples),
        "source_size": samples.source_size or len(samples.samples),
        "splits": {SPLITS[split]: len(samples.of(split)) for split in splits},
        "classes": {name: {SPLITS[split]: counts[split, label] for split in splits} for label, name in enumerate(samples.classes)},
        "imbalance": {"largest": max(train, key=train.__getitem__), "smallest": min(train, key=train.__getitem__)}
        | {"ratio": round(max(train.values()) / max(1, min(train.values())), 3)},
        "width": spread(_sides(found.sizes, 0)),
        "height": spread(_sides(found.sizes, 1)),
        "aspect_ratio": spread(_aspects(found.sizes)),
        "longer_than_2_to_1": sum(number for aspect, number in _aspects(found.sizes).items() if max(aspect, 1 / aspect) > LONG),
        "formats": dict(found.formats.most_common()),
        "mean": list(mean),
        "std": list(std),
        "by_split": by_split,
        "unreadable": {"count": found.failed, "first": found.unreadable},
    }


def _sides(sizes: Mapping[Size, int], side: int) -> Counter[float]:
    """Count the images of each width (0) or height (1)."""
    counted: Counter[float] = Counter()
    for size, number in sizes.items():
        counted[size[side]] += number
    return counted


def _aspects(sizes: Mapping[Size, int]) -> Counter[float]:
    counted: Counter[float] = Counter()
    for (width, height), number in sizes.items():
        counted[width / height] += number
    return counted


def _create_folder(out: Path) -> None:
    """Create the output folder before the pass over the images, which may take long."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise TlkitError(f"--out {out} is a file, or is in one.\n  Name a folder; it is created if it doesn't exist.") from error


def _write_files(out: Path, found: Survey, facts: dict[str, Any]) -> None:
    image = np.rint(found.mean_picture() * 255).astype(np.uint8)
    if image.shape[2] in (1, 3):
        facts["mean_picture"] = str(out / "mean_picture.png")
        with atomic_file(out / "mean_picture.png") as writing:
            Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(writing, format="PNG")
    else:
        facts["mean_picture"] = str(out / "mean_picture.npy")
        with atomic_file(out / "mean_picture.npy") as writing, writing.open("wb") as opened:
            np.save(opened, image)
    write_json(out / "statistics.json", facts)


def print_statistics(facts: Mapping[str, Any], console: Console) -> None:
    console.print(_class_table(facts))
    console.print()
    table = Table.grid(padding=(0, 2, 0, 0))
    limited = f" of {facts['source_size']:,}, by data.limit" if facts["source_size"] != facts["pictures"] else ""
    rows = [("images", f"[bold]{facts['pictures']:,}[/bold]{limited} in {counted(len(facts['classes']), 'class', 'classes')}")]
    for side in ("width", "height", "aspect_ratio"):
        values = facts[side]
        form = "{:.2f}" if side == "aspect_ratio" else "{} px"
        low, middle, high = (form.format(values[word]) for word in ("min", "median", "max"))
        same = f"{middle}, all of them"
        rows.append((side.replace("_", " "), same if values["min"] == values["max"] else f"{low} to {high}, half of them up to {middle}"))
    rows.append(("formats", ", ".join(f"{number:,} {escape(kind)}" for kind, number in list(facts["formats"].items())[:8])))
    rows += [(word, " ".join(f"{value:.4f}" for value in facts[word])) for word in ("mean", "std")]
    if len(facts["by_split"]) > 1:
        for split, own in facts["by_split"].items():
            values = ", ".join(f"{word} {' '.join(f'{value:.4f}' for value in own[word])}" for word in ("mean", "std"))
            rows.append((f"  {split}", f"[dim]{values}[/dim]"))
    if "mean_picture" in facts:
        rows.append(("mean image", escape(printable(facts["mean_picture"]))))
    for label, text in rows:
        table.add_row(f"[dim]{label}[/dim]", text)
    console.print(table)
    for hint in hints(facts):
        print_line(console, hint, "yellow")


def _class_table(facts: Mapping[str, Any]) -> Table:
    table = Table("class", box=None, header_style="bold")
    splits = list(facts["splits"])
    for split in splits:
        table.add_column(split, justify="right")
    classes = list(facts["classes"].items())
    for name, counts in classes[:MANY_CLASSES]:
        table.add_row(escape(printable(name)), *(f"{counts[split]:,}" for split in splits))
    if len(classes) > MANY_CLASSES:
        table.add_row(f"and {len(classes) - MANY_CLASSES} more", *("" for _ in splits), style="dim")
    table.add_row("all", *(f"{number:,}" for number in facts["splits"].values()), style="bold")
    return table


def hints(facts: Mapping[str, Any]) -> list[str]:
    """Return advice for the recipe that follows from the statistics."""
    found = []
    uneven = facts["imbalance"]
    if uneven["ratio"] > LARGEST_FOLD:
        found.append(
            f"classes differ {uneven['ratio']:.1f}-fold: {uneven['largest']} has most images to train on, {uneven['smallest']} fewest. "
            "Set `imbalance: loss_weights`, and read the macro figures."
        )
    if facts["longer_than_2_to_1"]:
        found.append(
            f"{counted(facts['longer_than_2_to_1'], 'image is', 'images are')} more than twice as long as wide: `resize: crop` shows "
            "less than half of each, `resize: pad` shows all."
        )
    found += [facts["range_16bit"]] if facts.get("range_16bit") else []
    if facts["unreadable"]["count"]:
        why = next(iter(facts["unreadable"]["first"].values()))  # begins with its path
        count = facts["unreadable"]["count"]
        number = counted(count, "image can't be read, and is", "images can't be read, and are")
        found.append(f"{number} counted by class alone. The first: {why}")
    return found
