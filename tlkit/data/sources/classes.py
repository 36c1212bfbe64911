"""Labels as a source has them, numbers or words -> classes, the same for every split. A label is the text that is there."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from unicodedata import normalize

from tlkit.data.samples import composed, is_printable
from tlkit.data.sources.kind import Finding
from tlkit.errors import DataError, did_you_mean
from tlkit.recipe.schema import Task

Label = int | str
NO_VALUE = frozenset({"nan", "null", "none", "n/a", "na", "#n/a", "<na>", "nat", "?", "-", "--"})
"""What programs write into a cell that has no value."""
_BLANKS = " _-.\t\u00a0\u200c\u200d\ufe0f"
_NUMBER = re.compile(r"[+-]?\d{1,300}(\.\d*)?", re.ASCII)


def odd_classes(classes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (class, another that looks like it) or (class, "") for one that programs write where there is no label.

    Words look alike if they differ only in case, spaces, dots or hyphens, and numbers if their values are equal: 7, 007 and 7.0.
    """
    seen: dict[str | float, str] = {}
    numbers = [number for name in classes if (number := _number(name)) is not None]
    for name in classes:
        number = _number(name)
        word = normalize("NFKC", name).casefold()  # wide and superscript signs as the plain ones
        plain = "".join(sign for sign in word if sign not in _BLANKS) if number is None else number
        if plain in seen:
            yield name, seen[plain]
        elif name.strip().casefold() in NO_VALUE or (number == -1 and sum(value < 0 for value in numbers) == 1):
            yield name, ""
        seen.setdefault(plain, name)


def _number(name: str) -> float | None:
    """Parse a number. 1e5, nan and 1_000 are words here, although Python would accept them as numbers."""
    return float(name) if _NUMBER.fullmatch(name.strip()) else None


def odd_class_findings(classes: Sequence[str], where: Callable[[str], str] = "class '{}'".format) -> Iterator[Finding]:
    for name, other in odd_classes(classes):
        if other:
            yield Finding("warning", where(name), f"'{name}' and '{other}' count as two classes", "Join them if they are the same.")
        else:
            fix = "If it means that there is no label, remove these images."
            yield Finding("warning", where(name), f"'{name}' is a class like others", fix)


def number_classes(
    place: str, labels: Mapping[str, Sequence[tuple[Label, ...]]], names: Sequence[str], task: Task
) -> tuple[tuple[str, ...], dict[Label, int]]:
    """Return the classes, and for each label the index of its class. Numbers stay in their order; words are sorted by code point.

    place: what messages begin with. labels: split -> the labels of each image. names: of the labels 0, 1, 2 ..; those that no image has
    are left out. Raises DataError for labels without a name, fewer than two classes, and classes that only a held-out split has.
    """
    there = {split: set().union(*found) if found else set() for split, found in labels.items()}
    known = set().union(*there.values())
    _check_names(place, known, names)
    training = there.get("train", set()) | there.get("", set())
    word = {label: names[label] if names and isinstance(label, int) else composed(str(label)) for label in known}
    if odd := sorted(name for name in word.values() if not is_printable(name)):
        raise DataError(f"{place}: the label {odd[0]!r} has unprintable characters.\n  Write it again.")
    for split, found in there.items():
        if unknown := [word[label] for label in _in_order(found - training, word)]:
            hint = did_you_mean(unknown[0], [word[label] for label in training])
            raise DataError(
                f"{place}: the {split} split has classes that training lacks: {', '.join(unknown[:10])}. {hint}".rstrip()
                + "\n  Give them training images, or remove them there."
            )
    if len(training) < 2:
        what = f"one class only, '{word[next(iter(training))]}'" if training else "no labels" if task == "multilabel" else "no images"
        raise DataError(f"{place}: has {what}.\n  A classifier needs at least two classes.")
    ordered = _in_order(training, word)
    classes = tuple(dict.fromkeys(word[label] for label in ordered))
    number = {name: index for index, name in enumerate(classes)}
    return classes, {label: number[word[label]] for label in known}


def _in_order(labels: Iterable[Label], word: Mapping[Label, str]) -> list[Label]:
    """Sort numbers by value, then words by code point."""
    return sorted(labels, key=lambda label: (isinstance(label, str), label if isinstance(label, int) else 0, word[label]))


def _check_names(place: str, known: set[Label], names: Sequence[str]) -> None:
    if not names:
        return
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{place}: two classes are named '{twice}' in data.source.classes.\n  Each label needs a name of its own.")
    if words := [label for label in known if isinstance(label, str)]:
        raise DataError(f"{place}: its labels are words already ('{words[0]}').\n  Remove data.source.classes, which names numbers.")
    if beyond := sorted(label for label in known if isinstance(label, int) and not 0 <= label < len(names)):
        raise DataError(
            f"{place}: has the label {beyond[0]}, and data.source.classes names {len(names)}: 0 to {len(names) - 1}.\n"
            "  Name every label, in the order of their numbers."
        )
