"""Plain values -> a recipe's model, or everything that is wrong with them at once; the values are those of a text or of a program."""

import re
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from os import PathLike, fspath
from typing import Any, TypeVar

from pydantic import BaseModel

from tlkit.errors import Fault, RecipeError
from tlkit.recipe.augmentations import read_augment
from tlkit.recipe.explain import MOST_FAULTS, format_value, schema_faults
from tlkit.recipe.fields.augment import Transform
from tlkit.recipe.yaml12 import MAX_DEPTH, MAX_VALUES, WHOLE, Document, join, nearest_place

R = TypeVar("R", bound=BaseModel)

MOST_DIGITS = 400
"""Largest number of digits of an integer."""

_BELOW = re.compile(r"[.\[]")


def validated(model: type[R], document: Document, name: str) -> R:
    """Return the model of a document's values. name: of the whole, for the message where there are none.

    Raises RecipeError with all faults, each with its place where the document knows it.
    """
    if document.value is None and not document.faults:
        raise RecipeError([Fault(name, "is empty.", "A recipe has at least the keys name, data, model and phases.")])
    values = document.value
    faults: list[Fault] = []
    if isinstance(values, dict) and "augment" in values:
        augment, found = read_augment(values["augment"], _channels(values.get("data")))
        values = {**values, "augment": augment}
        faults += found
    faults += schema_faults(values, document.places, model=model)
    # What could not be read has been named already, and so has what stands below it.
    remaining = [*document.faults, *(fault for fault in faults if not _within(fault.key, document.broken))]
    if remaining:
        raise RecipeError(_in_order(fault.at(nearest_place(document.places, fault.key)) for fault in remaining))
    return model.model_validate(values)


def transforms_of(augment: Any) -> tuple[Transform, ...]:
    """Return the transforms of what `augment` may be in a recipe for RGB images. Raises RecipeError with all faults."""
    document = document_of(augment)
    items, faults = read_augment(document.value)
    if document.faults or faults:
        raise RecipeError([*document.faults, *faults])
    return tuple(Transform.model_validate(item) for item in items)


def document_of(values: Any) -> Document:
    """Return the document that a program's values are: what YAML would give for them. Tuples are lists, paths are text.

    Raises RecipeError if reading can't go on: nesting deeper than 20, more than 4,000 keys and values.
    """
    document = Document()
    document.value = _Reader(document).read(values, "", 0)
    return document


class _Reader:
    def __init__(self, document: Document) -> None:
        self.document = document
        self._values = 0

    def read(self, value: Any, key: str, depth: int) -> Any:
        self._values += 1
        if self._values > MAX_VALUES:
            raise RecipeError([Fault(WHOLE, f"has more than {MAX_VALUES:,} keys and values.", "Is it a recipe? Those have a few dozen.")])
        if depth > MAX_DEPTH:
            raise RecipeError([Fault(key[:80], f"is nested deeper than {MAX_DEPTH} levels.", "No recipe needs that: write it flatter.")])
        if isinstance(value, Mapping):
            return self._read_mapping(value, key, depth)
        if isinstance(value, list | tuple):
            return [self.read(item, f"{key}[{i}]", depth + 1) for i, item in enumerate(value)]
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, Integral) and abs(int(value)) < 10**MOST_DIGITS:
            return int(value)
        if isinstance(value, Real) and not isinstance(value, Integral):
            return float(value)
        if isinstance(value, PathLike):
            return str(fspath(value))
        fix = "Expected text, a number, True, False, None, a list or a dict."
        self.document.faults.append(Fault(key or WHOLE, f"is a value of type {type(value).__name__}.", fix))
        self.document.broken.add(key)
        return None

    def _read_mapping(self, values: Mapping[Any, Any], key: str, depth: int) -> dict[str, Any]:
        found = {}
        for word, value in values.items():
            if isinstance(word, str):
                found[word] = self.read(value, join(key, word), depth + 1)
            else:
                problem = f"has the key {format_value(word) if isinstance(word, int | float) else repr(word)[:80]}, which is not text."
                self.document.faults.append(Fault(key or WHOLE, problem, "Write every key as text."))
        return found


def _channels(data: Any) -> int:
    """Return `data.channels`, or the default where what is written is not a number, which is reported elsewhere."""
    channels = data.get("channels") if isinstance(data, dict) else None
    return channels if isinstance(channels, int) else 3


def _within(key: str, keys: set[str]) -> bool:
    """Return whether it is one of the keys or below one."""
    return key in keys or any(key[: below.start()] in keys for below in _BELOW.finditer(key))


def _in_order(faults: Iterable[Fault]) -> list[Fault]:
    """Sort the faults; of very many keep the first ones, and add that there are more."""
    in_order = sorted(faults, key=_by_line)
    if len(in_order) <= MOST_FAULTS:
        return in_order
    return [*in_order[:MOST_FAULTS], Fault(WHOLE, f"has more than these {MOST_FAULTS} faults.", "Fix them first.")]


def _by_line(fault: Fault) -> tuple[bool, int]:
    """Return the sort key that puts faults of the file in its order, then those of overrides."""
    line = fault.place.rpartition(":")[2]
    return (fault.place.startswith("override "), int(line) if line.isdigit() else 0)
