"""pydantic's validation errors -> faults in plain words, one for each thing that is wrong."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from tlkit.errors import Fault, did_you_mean, expected_one_of
from tlkit.recipe.yaml12 import WHOLE, join, nearest_place, scalar

MOST_FAULTS = 100
"""Largest number of faults that are explained: finding the nearest word for thousands would take seconds."""


class Context(NamedTuple):
    """The model of the whole recipe, and dotted key -> place."""

    recipe: type[BaseModel]
    places: Mapping[str, str]


def schema_faults(
    value: Any, places: Mapping[str, str], *, model: type[BaseModel], key: str = "", recipe: type[BaseModel] | None = None
) -> list[Fault]:
    """Return what keeps a value from being the model; empty if nothing does.

    places: dotted key -> place. Where two keys clash, and one of them was set by an override, the fault has the override's place;
    all others are left without one. key: where the value stands in the recipe. recipe: the model of the whole recipe, whose other keys
    may be the ones that were meant; `model` by default.
    """
    try:
        model.model_validate(value)
    except ValidationError as error:
        return list(islice(_explain(error, model, value, key, Context(recipe or model, places)), MOST_FAULTS + 1))
    return []


def _explain(error: ValidationError, model: type[BaseModel], whole: Any, whole_key: str, context: Context) -> Iterator[Fault]:
    reported: set[str] = set()
    for detail in error.errors(include_url=False):
        key, value, current, field = whole_key, whole, model, None
        kinds: Mapping[str, Any] = {}
        path = list(detail["loc"])
        while path and not _is_union(field) and not _is_plain_list(field):
            part = path.pop(0)
            if isinstance(part, int):
                kinds = _item_models(field)
                key, value, field = f"{key}[{part}]", value[part], None
                # Where items are of several kinds, pydantic says next which one it took this for.
                current = kinds[str(path.pop(0))] if len(kinds) > 1 else next(iter(kinds.values()))
                continue
            if is_model(entries := _entry_model(field)):
                key, value, current, field = join(key, part), value[part], entries, None
                continue
            key, parent, field = join(key, part), current, fields_of(current).get(part)
            if detail["type"] == "extra_forbidden" and not path:
                yield _unknown_key(key, part, parent, [kind for kind in kinds.values() if kind is not parent], context.recipe)
                break
            if detail["type"] == "missing" and not path:
                if not any(spaced(str(word), (part,)) for word in value):  # which is a fault of its own
                    yield Fault(key, "is missing.", _expected(field))
                break
            value, current = value[part], _only_model(field, current)
        else:
            if detail["type"] == "rule":
                rule = detail["ctx"]
                clashing = (nearest_place(context.places, join(key, word)) for word in (rule["key"], rule["with_key"]))
                place = next((place for place in clashing if place.startswith("override ")), "")
                yield Fault(join(key, rule["key"]), rule["problem"], rule["fix"], place)
            elif key not in reported:
                reported.add(key)
                yield from _wrong_union(key, value, field, context) if _is_union(field) else [_wrong_value(key, value, field, current)]


# --- the schema, as a tree to walk ---


def fields_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields by their key in the recipe: `from`, not `from_`."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def alternatives(annotation: Any) -> list[Any]:
    """Return the members of a union without None, or the annotation itself."""
    if get_origin(annotation) in (Union, UnionType):
        return [inner for member in get_args(annotation) if member is not NoneType for inner in alternatives(member)]
    return [annotation]


def _is_union(field: FieldInfo | None) -> bool:
    return field is not None and len(alternatives(field.annotation)) > 1


def _is_plain_list(field: FieldInfo | None) -> bool:
    """Check for a list of numbers or words, which gets one fault as a whole."""
    return field is not None and get_origin(field.annotation) is tuple and not any(map(is_model, _item_models(field).values()))


def is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _only_model(field: FieldInfo | None, otherwise: Any) -> Any:
    only: Any = alternatives(field.annotation)[0] if field else None
    return only if is_model(only) else otherwise


def _entry_model(field: FieldInfo | None) -> Any:
    """Return what the values of a mapping with free keys are."""
    only: Any = alternatives(field.annotation)[0] if field else None
    return get_args(only)[1] if get_origin(only) is dict else None


def _item_models(field: FieldInfo | None) -> dict[str, Any]:
    """Return what the items of a list can be, by name."""
    items = alternatives(_without_annotated(get_args(field.annotation)[0])) if field else []
    return {_without_annotated(item).__name__: _without_annotated(item) for item in items}


# --- faults ---


def _unknown_key(key: str, word: str, model: type[BaseModel], others: Sequence[type[BaseModel]], recipe: type[BaseModel]) -> Fault:
    """Explain an unknown key. others: other models for this part. recipe: the whole, where the key may belong elsewhere."""
    parent = key[: -len(word)].rstrip(".")
    names = list(fields_of(model))
    for other in others:
        if word in fields_of(other) and fields_of(other)[word].is_required():
            decisive = next(name for name, field in fields_of(model).items() if field.is_required() and name not in fields_of(other))
            fix = f"Remove one of the two. With {decisive}, expected {_mapping_words(model)}."
            return Fault(key, f"can't stand beside {join(parent, decisive)}.", fix)
    fix = spaced(word, names) or expected_one_of(word, names)
    if not spaced(word, names) and not did_you_mean(word, names):
        own = re.sub(r"\[\d+\]", "[0]", key)
        elsewhere = [place for place in _places_of_keys(recipe) if place.split(".")[-1] == word and place != own]
        near = did_you_mean(word, [name for other in others for name in fields_of(other)])
        places = [place if "." in place else f"{place}, at the top level" for place in dict.fromkeys(elsewhere)]
        fix = f"{fix} Did you mean {' or '.join(places)}?" if places else f"{fix} {near}".rstrip()
    return Fault(key, f"is not a key of {parent or 'a recipe'}.", fix)


def _places_of_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in fields_of(model).items():
        yield join(prefix, name)
        for alternative in alternatives(field.annotation):
            many = get_origin(alternative) is tuple
            for inner in _item_models(field).values() if many else [alternative]:
                if is_model(inner) and name != "augment":
                    yield from _places_of_keys(inner, join(prefix, name) + ("[0]" if many else ""))


def _wrong_value(key: str, value: Any, field: FieldInfo | None, model: type[BaseModel]) -> Fault:
    if field is None:  # the whole recipe, or an item of a list
        return Fault(key or WHOLE, f"{_type_problem(value)}.", f"Expected {_mapping_words(model)}.")
    choices = [choice for alternative in alternatives(field.annotation) for choice in _choices(alternative)]
    if choices and isinstance(value, str):
        return Fault(key, f"= {format_value(value)} can't be used.", expected_one_of(value, choices))
    return Fault(key, _problem(value, field), f"{_expected(field)} {_nearest(value, field)}".rstrip())


def spaced(word: str, forms: Collection[str]) -> str:
    """Return the fix for {folder:photos}, which YAML reads as one key without a value."""
    key, colon, value = word.partition(":")
    return f"YAML needs a blank after the colon: {{{key}: {value}}}." if colon and key in forms else ""


def _wrong_union(key: str, value: Any, field: FieldInfo | None, context: Context) -> list[Fault]:
    """Return one fault for the whole union; or, if the keys belong to only one alternative, what is wrong with that one."""
    members = alternatives(field.annotation) if field else []
    models = [member for member in members if is_model(member)]
    forms = {next(iter(fields_of(model))): model for model in models}  # each is known by its first key
    if isinstance(value, Mapping):
        given = [word for word in value if word in forms]
        if len(given) == 1:
            return schema_faults(value, context.places, model=forms[given[0]], key=key, recipe=context.recipe)
        if given:
            fix = f"Keep one of them; an override replaces both: '{key}={_form(forms[given[-1]])}'."
            return [Fault(join(key, given[-1]), f"can't stand beside {join(key, given[0])}.", fix)]
        problem = f"= {format_value(value)} can't be used." if models else f"{_type_problem(value)}."
        hint = next(filter(None, (spaced(str(word), forms) or did_you_mean(word, forms) for word in value)), "")
        return [Fault(key, problem, f"{_expected(field)} {hint}".rstrip())]
    choices = [choice for member in members for choice in _choices(member)]
    hint = did_you_mean(value, choices) if isinstance(value, str) else ""
    if isinstance(value, str) and value in forms:
        hint = f"Did you mean {_form(forms[value])}?"
    problem = f"= {format_value(value)} can't be used." if isinstance(value, str) else _problem(value, field)
    return [Fault(key, problem, f"{_expected(field)} {hint}".rstrip())]


def _problem(value: Any, field: FieldInfo | None) -> str:
    """Say that a value is out of bounds if its type is right, otherwise which type came."""
    wanted = (
        {get_origin(_without_annotated(alternative)) or _without_annotated(alternative) for alternative in alternatives(field.annotation)}
        if field
        else set()
    )
    if float in wanted:
        wanted.add(int)
    if tuple in wanted:
        wanted.add(list)
    if type(value) not in wanted:
        return f"{_type_problem(value)}."
    if value in ("", []):
        return "is empty."
    return f"= {format_value(value)} can't be used." if isinstance(value, (str, list)) else f"= {format_value(value)} is out of range."


def _nearest(value: Any, field: FieldInfo) -> str:
    """Return a way to write the value that would be accepted, if only its type is wrong."""
    wanted = field.annotation
    if isinstance(value, str) and wanted in (int, float) and isinstance(scalar(value), (int, float)):
        return f"Write it without quotes: {value}"
    if wanted is int and isinstance(value, float) and value.is_integer():
        return f"Did you mean {int(value)}?"
    if wanted is bool and isinstance(value, str) and value.lower() in ("yes", "on", "no", "off"):
        return f"Did you mean {'true' if value.lower() in ('yes', 'on') else 'false'}?"
    if wanted is str and isinstance(value, (int, float)):
        return f"Write it in quotes: '{format_value(value)}'"
    return ""


# --- words ---


def format_value(value: Any) -> str:
    """Format a value as in a recipe, cut to one short line."""
    if isinstance(value, str):
        text = f"'{value}'"
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{word}: {format_value(inner).strip(chr(39))}" for word, inner in list(value.items())[:9]) + "}"
    elif isinstance(value, list):
        text = "[" + ", ".join(format_value(inner).strip("'") for inner in value[:9]) + "]"
    else:
        text = "null" if value is None else str(value).replace("inf", ".inf").replace("nan", ".nan")
    text = text.replace("\n", " ")
    return text if len(text) <= 80 else text[:76] + " ..."


def _type_problem(value: Any) -> str:
    if value is None:
        return "is empty"
    kinds = {bool: "a truth value", int: "a whole number", float: "a number with a point", str: "text", list: "a list"}
    return f"= {format_value(value)} is {kinds.get(type(value), 'a mapping')}"


def _expected(field: FieldInfo | None) -> str:
    """Return `Expected a whole number from 8 to 4096: side of the square input image, in pixels.`"""
    if field is None:
        return ""
    return f"Expected {values_of(field)}: {field.description}." if field.description else f"Expected {values_of(field)}."


def values_of(field: FieldInfo) -> str:
    """Return what a field can be: `a whole number from 8 to 4096`, `batch_size or {find: SHARE}`."""
    words = [_words(alternative, field) for alternative in alternatives(field.annotation)]
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _words(annotation: Any, field: FieldInfo) -> str:
    bare = _without_annotated(annotation)
    bounds = [*field.metadata, *(inner for item in getattr(annotation, "__metadata__", ()) for inner in getattr(item, "metadata", ()))]
    if choices := _choices(bare):
        only_these = len(alternatives(field.annotation)) == 1 and len(choices) > 1
        return ("one of " if only_these else "") + ", ".join(choices)
    if is_model(bare):
        return _form(bare) if len(alternatives(field.annotation)) > 1 else _mapping_words(bare)
    if get_origin(bare) is tuple:
        return _list_words(bare)
    if get_origin(bare) is list:
        return "a list of whole numbers"
    if get_origin(bare) is dict:
        return "a mapping of keys to ranges"
    names: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names[bare] + _bound_words(bounds)


def _list_words(annotation: Any) -> str:
    """Describe a tuple: `a list of 3 whole numbers from 0 to 255`."""
    first, *others = get_args(annotation)
    items: dict[Any, str] = {int: "whole numbers", float: "numbers", str: "text", Any: "values"}
    words = ", ".join(_choices(_without_annotated(first))) or items.get(_without_annotated(first), "mappings")
    if Ellipsis in others or words in ("text", "mappings"):
        return f"a list of {words}"
    bounds = [inner for item in getattr(first, "__metadata__", ()) for inner in item.metadata]
    return f"a list of {len(others) + 1} {words}{_bound_words(bounds)}"


def _bound_words(bounds: list[Any]) -> str:
    found = {name: getattr(item, name) for item in bounds for name in ("ge", "gt", "le", "lt") if getattr(item, name, None) is not None}
    if "ge" in found and "le" in found:
        return f" from {found['ge']} to {found['le']}"
    words = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
    return "".join(f"{' and' if i else ''} {words[name]} {value}" for i, (name, value) in enumerate(found.items()))


def _mapping_words(model: type[BaseModel]) -> str:
    fields = fields_of(model)
    required = [name for name, field in fields.items() if field.is_required()]
    optional = [name for name, field in fields.items() if not field.is_required()]
    parts = [f"{', '.join(required)}"] if required else []
    parts += [f"{'if needed ' if required else ''}{', '.join(optional)}"] if optional else []
    return f"a mapping with the keys {' and '.join(parts)}"


def _form(model: type[BaseModel]) -> str:
    """Return `{from: STAGE}`, without optional keys."""
    required = {name: field for name, field in fields_of(model).items() if field.is_required()}
    return "{" + ", ".join(f"{name}: {field.title or ', '.join(_choices(field.annotation))}" for name, field in required.items()) + "}"


def _choices(annotation: Any) -> list[str]:
    return [str(choice) for choice in get_args(annotation)] if get_origin(annotation) is Literal else []


def _without_annotated(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
