"""`tlkit init`: what was seen of the data, and the table of choices, become a recipe with the reason for every value."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from textwrap import wrap
from typing import Any

from tlkit.data.samples import LARGEST_FOLD, Samples
from tlkit.data.splits.holdout import split_samples
from tlkit.errors import DataError, RecipeError, WeightsError
from tlkit.files import expanded
from tlkit.models.weights.sources import cached_backbones, hub_is_reachable, weights_here
from tlkit.recipe.augmentations import preset
from tlkit.recipe.names import name_faults, path_faults
from tlkit.recipe.reference import in_yaml
from tlkit.recipe.schema import Recipe
from tlkit.recipe.validate import validated
from tlkit.recipe.yaml12 import read_yaml
from tlkit.search.choices import BACKBONES, FEW_A_CLASS, LAYER_DECAY, Backbone, Choice
from tlkit.search.look import Facts, with_groups
from tlkit.terminal import counted

COLUMN, WIDTH = 42, 138
"""Where reasons begin, and where lines end."""
SMALL_SET = 300
"""Training images: below, a fifth and not a tenth of them validates."""
SEVERAL = 0.1
"""Share of images that are more than twice as long as wide, from which on nothing is cut off."""
DOCS = "docs/choosing.md"


@dataclass(frozen=True)
class Answers:
    """What the user was asked, or what is assumed where nobody is.

    groups: whether images whose names begin alike belong together. rare: whether rare classes are to count as much as common ones.
    mirror: whether an image can be mirrored without another class.
    """

    groups: bool = False
    rare: bool = True
    mirror: bool = True


@dataclass(frozen=True)
class Available:
    """Backbones whose weights are available, the best first, and in words from where."""

    backbones: tuple[Backbone, ...]
    note: str


@dataclass(frozen=True)
class Written:
    """What `tlkit init` writes: the recipe, and where groups are used a table of the images with the group of each."""

    recipe: str
    table: str = ""


def find_available(*, offline: bool) -> Available:
    """Return the backbones to choose among: all of the table, or without a hub those whose weights are on this machine.

    Raises WeightsError if there is none.
    """
    if not offline and hub_is_reachable():
        return Available(BACKBONES, "weights: the hub answers, and is asked for them when the run begins")
    why = "the hub was not asked" if offline else "the hub can't be reached"
    here = tuple(backbone for backbone in BACKBONES if weights_here(backbone.name))
    if not here:  # another one then, at the cost of a resnet50 and by what is usual for one
        basis = "prior: it is here, and none of the table is"
        here = tuple(Backbone(name, 4.1, 3e-4, basis) for name in cached_backbones()[:1])
    if not here:
        raise WeightsError(
            f"There are no pretrained weights on this machine ({why}).\n"
            "  Install some: pip install 'tlkit[offline]' (17 MB); or connect to the hub once."
        )
    return Available(here, f"weights: {why}, so the choice was among those on this machine: {', '.join(one.name for one in here)}")


def write_recipe(facts: Facts, choice: Choice, answers: Answers, *, name: str, available: Available, out: Path) -> Written:
    """Return the text of a recipe that `tlkit check` passes and that can run as it is, and of the table that it names.

    out: the file that the recipe will be. Raises DataError if the data can't be split, RecipeError for a mistake of this module.
    """
    uses_groups = answers.groups and facts.groups is not None
    source = dict(facts.source)
    if uses_groups:
        source = {"csv": str(out.with_suffix(".csv")), "root": facts.source["folder"]}
    notes = [available.note, *_notes(facts, uses_groups=uses_groups)]
    text = "\n".join([*_header(facts, choice, notes, out), *_body(facts, choice, answers, source, name)]) + "\n"
    recipe = validated(Recipe, read_yaml(text, lambda line: f"{out}:{line}"), str(out))
    if faults := [*name_faults(recipe), *(fault for fault in path_faults(recipe) if not (uses_groups and fault.key == "data.source.csv"))]:
        raise RecipeError(faults)
    samples = with_groups(facts.samples, facts.groups) if uses_groups and facts.groups else facts.samples
    split_samples(samples, recipe.data.validation, recipe.data.test, recipe.seed)
    return Written(text, _table(samples) if uses_groups else "")


def check_enough(facts: Facts, name: str) -> None:
    """Raise DataError for classes of too few images to be in every split."""
    missing = [word for word, split in (("to validate", "val"), ("to test", "test")) if split not in facts.splits]
    short = [f"{label} ({number})" for label, number in facts.counts.items() if number < 1 + len(missing)]
    if short and facts.task == "multiclass":
        some = f"{', '.join(short[:8])}{' and others' if len(short) > 8 else ''}"
        needs = f"{1 + len(missing)}: one to train on, and one each {' and '.join(missing)}" if missing else "1"
        raise DataError(f"{name}: too few images of {some}.\n  Each class needs at least {needs}. Add images, or remove these classes.")


def recipe_name(place: str) -> str:
    """Return a name for runs, from that of a folder or file."""
    stem = Path(place).expanduser().resolve().stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:100] or "images"


# --- the text ---


def _header(facts: Facts, choice: Choice, notes: Sequence[str], out: Path) -> Iterator[str]:
    largest = max(facts.counts, key=facts.counts.__getitem__)
    smallest = min(facts.counts, key=facts.counts.__getitem__)
    spread = f"{largest} has most ({facts.counts[largest]:,}), {smallest} fewest ({facts.counts[smallest]:,})"
    spread = spread if facts.counts[largest] > facts.counts[smallest] else f"{facts.counts[largest]:,} of each"
    where = "" if facts.training == facts.images else " in the training split"
    yield from _comment(f"{counted(facts.images, 'image')} in {counted(len(facts.counts), 'class', 'classes')}; {spread}{where}.")
    yield "#"
    file = quote(str(out))
    yield f"#   tlkit finetune {file}"
    yield "#"
    why = choice.way.why if choice.epochs or facts.smallest >= FEW_A_CLASS else "with so few images of a class only the head trains"
    if not choice.way.second and facts.training >= 200 and facts.smallest >= FEW_A_CLASS:
        why = "more than the head doesn't fit into the minutes"
    held = " and ".join(name for name, split in (("validation", "val"), ("test", "test")) if split not in facts.splits)
    before = f", before {held} {'are' if ' and ' in held else 'is'} held out" if held else ""
    yield from _comment(f"Written by `tlkit init`. {counted(facts.training, 'training image')}{before}: {why}.")
    fits = "" if choice.fits else ", more than was asked for: nothing in the table is quicker"
    minutes = f"about {max(1, round(choice.minutes)):,} min by a rough estimate{fits}; `tlkit plan {file}` measures it"
    yield from _comment(f"Expected accuracy: not measured. Time: {minutes}. {DOCS} has the table that the values are from.")
    yield "#"
    for note in notes:
        yield from _comment(f"- {note}", "  ")
    yield ""


def _notes(facts: Facts, *, uses_groups: bool) -> Iterator[str]:
    """Yield what the user should know."""
    if facts.groups is not None:
        of = facts.images / facts.groups.count
        groups = f"{facts.groups.count:,} groups of {of:.1f} images: {facts.groups.example}, ..."
        if uses_groups:
            yield f"files whose names begin alike belong together, {groups} A group is never in two splits"
        else:
            yield (
                f"names of files begin alike, as if they were {groups} Nothing is assumed: if those are images of one patient, animal or "
                "place, they must not be in two splits, or the test is too easy. `tlkit init` asks without --yes, and "
                "recipes/groups_and_folds.yaml shows how"
            )
    if facts.duplicates:
        yield f"{counted(facts.duplicates, 'image is', 'images are')} there twice, byte by byte: `tlkit data audit` names them"
    if facts.unreadable:
        bad = counted(len(facts.unreadable), "image")
        yield f"{bad} of those that were tried can't be read, {facts.unreadable[0]} for one: `tlkit data check` names all"
    if facts.short_side > 1_000:
        yield f"the images are large ({facts.short_side:,} px): reading them takes most of the first epoch; later ones find them decoded"
    yield from (warning.replace("\n", " ") for warning in facts.warnings)


def _body(facts: Facts, choice: Choice, answers: Answers, source: Mapping[str, Any], name: str) -> Iterator[str]:
    yield f"name: {in_yaml(name)}"
    yield "seed: 0"
    if facts.task == "multilabel":
        yield from _line("task: multilabel", "the table has images with several labels")
    uneven = facts.imbalance > LARGEST_FOLD
    if uneven:
        how = "loss_weights" if facts.task == "multilabel" else "logit_adjust"
        reason = f"classes differ {facts.imbalance:.0f}-fold" + (
            ", and rare ones are to count as much" if answers.rare else ", as is wanted"
        )
        yield from _line(f"imbalance: {how if answers.rare else 'none'}", reason)
    yield ""
    yield from _data(facts, choice, source)
    yield from _augment(choice, answers, facts)
    yield ""
    yield from _model(choice)
    yield ""
    yield "phases:"
    yield from _line(
        "  - {train: head, solver: lbfgs}", "no epochs and no rate to guess; and a good head spoils no backbone (Kumar et al. 2022)"
    )
    if choice.epochs:
        values = f"epochs: {choice.epochs}, lr: {choice.lr:g}, layer_decay: {LAYER_DECAY}, batchnorm: {choice.way.batchnorm}"
        phase = f"  - {{train: {choice.way.second}, {values}}}"
        yield from _line(phase, f"{choice.steps.steps:,} steps at most ({choice.steps.basis}), and what the minutes allow")
        yield ""
        yield "optimizer: {name: adamw, weight_decay: 0.05}"
        yield "schedule: {name: cosine, warmup: 0.1}"


def _data(facts: Facts, choice: Choice, source: Mapping[str, Any]) -> Iterator[str]:
    yield "data:"
    text = f"  source: {in_yaml(source)}"
    stays = {"bundled", "torchvision"} & set(source) or expanded(str(next(iter(source.values())))).is_absolute()
    yield from [text] if stays else _line(text, "relative to where tlkit is run")
    share = 0.2 if facts.training < SMALL_SET else 0.1
    if "val" not in facts.splits:
        chooses = "the best epoch" if choice.epochs else "the head's weight decay"
        yield from _line(f"  validation: {share}", f"chooses {chooses}; as large a share of each class")
    if "test" not in facts.splits:
        yield from _line("  test: 0.2", "the source has no test split: a fifth is set aside, and looked at once, at the end")
    yield from _line(f"  image_size: {choice.image_size}", f"the median shorter side is {facts.short_side:,} px ({choice.size.basis})")
    if facts.is_square:
        yield from _line("  resize: stretch", "the images are square: nothing is cut off")
    elif facts.long > SEVERAL:
        yield from _line(
            "  resize: pad", f"{facts.long:.0%} are more than twice as long as wide: cropping would show less than half of them"
        )
    else:
        yield from _line("  resize: crop", "the middle square; pad shows all where objects are at the border")
    if facts.channels not in (1, 3):
        yield from _line(f"  channels: {facts.channels}", "as many as the images have; the first layer's weights are adapted")
    elif facts.channels == 1:
        yield from _line("  channels: 3", "the images are grey: the same in all three, which is what the weights know")
    if facts.unreadable:
        yield from _line("  on_bad: skip", "some can't be read: they are left out and listed in skipped.csv")
    yield from _line("  normalize: weights", "with the mean and std that the weights were trained with")
    yield f"  batch_size: {choice.batch_size}"
    yield ""


def _augment(choice: Choice, answers: Answers, facts: Facts) -> Iterator[str]:
    if not choice.epochs:
        yield from _line("augment: []", "the head is solved on the images as they are")
        return
    channels = facts.channels if facts.channels not in (1, 3) else 3
    if answers.mirror:
        yield from _line(
            f"augment: {choice.way.augment}", "mirrors too: where left and right matter (text), write the list without the flip"
        )
        return
    yield from _line("augment:", f"{choice.way.augment} without the flip: an image can't be mirrored")
    for transform in preset(choice.way.augment, channels):
        if "HorizontalFlip" not in transform:
            yield f"  - {in_yaml(transform)[1:-1]}"


def _model(choice: Choice) -> Iterator[str]:
    yield "model:"
    yield from _line(f"  backbone: {choice.backbone.name}", choice.backbone.basis)
    is_package = choice.backbone.package and weights_here(choice.backbone.name) == "package"
    yield f"  weights: {in_yaml({'package': choice.backbone.package}) if is_package else 'pretrained'}"


def _line(text: str, reason: str) -> Iterator[str]:
    """Yield a line with its reason: beside it, continued below in the same column, or above a long line."""
    at = max(COLUMN, len(text) + 2)
    if at > WIDTH // 2:
        indent = " " * (len(text) - len(text.lstrip(" ")))
        yield from (indent + line for line in _comment(reason))
        yield text
        return
    first, *rest = wrap(reason, max(40, WIDTH - at - 2), break_on_hyphens=False)
    yield f"{text:<{at}}# {first}"
    yield from (f"{'':<{at}}# {more}" for more in rest)


def _comment(text: str, indent: str = "") -> list[str]:
    return [f"# {line}" for line in wrap(text, WIDTH - 2, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)]


def _table(samples: Samples) -> str:
    """Return a csv table with the path, label, split and group of each image."""
    import csv
    from io import StringIO

    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "split", "group"))
    writer.writerows((s.id, samples.label_text(s), s.split, s.group or s.id) for s in samples.samples)
    return text.getvalue()
