"""YAML 1.2 text -> plain Python values, and the place of every key.

Built on ruamel.yaml's events, not on its objects: so nothing but text, numbers, truth values, lists and mappings can come out,
every key has its line, and a fault doesn't hide the next one.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf, nan
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, DocumentStartEvent, Event, MappingEndEvent, MappingStartEvent, ScalarEvent, SequenceEndEvent

from tlkit.errors import Fault, RecipeError

MAX_DEPTH = 20
MAX_VALUES = 4_000
"""Keys and values of one text: ten times what the longest recipe has, and read in less than a second."""
WHOLE = "the recipe"

# The core schema, so that 1e-3 is a number, and off and no are words: https://yaml.org/spec/1.2.2/#1032-tag-resolution
_NULL = re.compile(r"null|Null|NULL|~|")
_TRUTH = re.compile(r"(true|True|TRUE)|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]{1,400}")
_OTHER_INT = re.compile(r"0o[0-7]{1,400}|0x[0-9a-fA-F]{1,400}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INF = re.compile(r"([-+]?)\.(inf|Inf|INF)")
_NAN = re.compile(r"\.(nan|NaN|NAN)")


@dataclass
class Document:
    """places: dotted key -> `file:line`; the whole has the key "". broken: keys whose value could not be read."""

    value: Any = None
    places: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)


def read_yaml(text: str, place: Callable[[int], str], *, root: str = "") -> Document:
    """Read the one document of a text; None if it is empty.

    place: line number from 1 -> `file:line`. root: the dotted key of the whole.
    Raises RecipeError if reading can't go on: broken syntax, nesting deeper than 20, more than 4,000 keys and values.
    """
    reader = _Reader(_limited(YAML(typ="safe", pure=True).parse(text), place, root), place)
    line = 1
    try:
        for event in reader.events:
            if not isinstance(event, DocumentStartEvent):
                continue
            if reader.document.places:
                line = _line(event)
                raise YAMLError("a second document begins here, and a recipe is one document")
            reader.document.value = reader.read(next(reader.events), root, 0)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = mark.line + 1 if mark else line
        raise RecipeError([_syntax_fault(error, text, place(line), root)]) from error
    reader.document.places.setdefault(root, place(1))
    return reader.document


def _limited(events: Iterable[Event], place: Callable[[int], str], root: str) -> Iterator[Event]:
    for number, event in enumerate(events):
        if number > MAX_VALUES:
            fault = Fault(root or WHOLE, f"has more than {MAX_VALUES:,} keys and values.", "Is it a recipe? Those are a few dozen lines.")
            raise RecipeError([fault.at(place(_line(event)))])
        yield event


def join(key: str, word: str) -> str:
    return ".".join(filter(None, (key, word)))


def nearest_place(places: Mapping[str, str], key: str) -> str:
    """Return the place of a key, or of the nearest part above it: phases[0].train, phases[0], phases, the whole."""
    while key and key not in places:
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    return places.get(key, "")


def scalar(text: str) -> str | int | float | bool | None:
    """Return the value of an unquoted word."""
    if _NULL.fullmatch(text):
        return None
    if truth := _TRUTH.fullmatch(text):
        return bool(truth[1])
    if _INT.fullmatch(text):
        return int(text)
    if _OTHER_INT.fullmatch(text):
        return int(text, base=0)
    if _FLOAT.fullmatch(text):
        return float(text)
    if infinite := _INF.fullmatch(text):
        return -inf if infinite[1] == "-" else inf
    return nan if _NAN.fullmatch(text) else text


@dataclass
class _Reader:
    events: Iterator[Event]
    place: Callable[[int], str]
    document: Document = field(default_factory=Document)

    def read(self, event: Event, key: str, depth: int) -> Any:
        """Read the value that begins with this event."""
        self.document.places.setdefault(key, self.place(_line(event)))
        if depth > MAX_DEPTH:
            fault = Fault(key[:80], f"is nested deeper than {MAX_DEPTH} levels.", "No recipe needs that: write it flatter.")
            raise RecipeError([fault.at(self.place(_line(event)))])
        if isinstance(event, AliasEvent):
            return self._refuse(event, key, f"= *{event.anchor} is a YAML alias.", "Write the value itself: a recipe has no aliases.")
        if isinstance(event, ScalarEvent):
            if event.tag is not None:
                return self._refuse_tag(event, key)
            return scalar(event.value) if event.implicit[0] else event.value
        value = self._read_mapping(key, depth) if isinstance(event, MappingStartEvent) else self._read_list(key, depth)
        return value if getattr(event, "tag", None) is None else self._refuse_tag(event, key)

    def _read_list(self, key: str, depth: int) -> list[Any]:
        values: list[Any] = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            values.append(self.read(event, f"{key}[{len(values)}]", depth + 1))
        return values

    def _read_mapping(self, key: str, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            if not isinstance(event, ScalarEvent):
                self._refuse(event, key or WHOLE, "has a key that is not a word.", "Write `key: value` with a plain word as the key.")
                self._skip(event, depth)
                self._skip(next(self.events), depth)
                continue
            inner = join(key, event.value)
            if event.value in values:
                first = self.document.places[inner]
                problem = f"is given twice; the first is at {first}."
                self.document.faults.append(Fault(inner, problem, "Keep one of the two.", self.place(_line(event))))
                self._skip(next(self.events), depth)
                continue
            self.document.places[inner] = self.place(_line(event))
            values[event.value] = self.read(next(self.events), inner, depth + 1)
        return values

    def _skip(self, event: Event, depth: int) -> None:
        """Skip a value whose faults and places don't count."""
        _Reader(self.events, self.place).read(event, "", depth + 1)

    def _refuse_tag(self, event: Any, key: str) -> None:
        tag = str(event.tag).replace("tag:yaml.org,2002:", "!!")
        self._refuse(
            event, key, f"has the YAML tag {tag}.", "Remove the tag: a recipe holds text, numbers, true, false, lists and mappings."
        )

    def _refuse(self, event: Event, key: str, problem: str, fix: str) -> None:
        self.document.faults.append(Fault(key, problem, fix, self.place(_line(event))))
        self.document.broken.add(key)


def _line(event: Event) -> int:
    return int(event.start_mark.line) + 1


def _syntax_fault(error: YAMLError, text: str, place: str, root: str) -> Fault:
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    fix = "Check the indentation, and that brackets, quotes and colons come in pairs."
    if "expected ',' or '}', but got '['" in what:
        fix = "Within braces, put a key such as phases[0].lr into quotes: {'phases[0].lr': ..}."
    if "\t" in text:
        fix = "YAML indents with spaces: replace the tabs."
    return Fault(root or WHOLE, f"is not valid YAML: {what.splitlines()[0]}.", fix, place)
