"""What every key of a recipe means, from the schema that checks them: docs/recipe_reference.md, and `tlkit recipes help KEY`."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tlkit.errors import Fault, RecipeError, did_you_mean, expected_one_of
from tlkit.recipe.augmentations import GIVEN, PRESETS, transforms
from tlkit.recipe.explain import alternatives, fields_of, format_value, is_model, values_of
from tlkit.recipe.fields.augment import AUTO_AUGMENT, RandAugment, TrivialAugment
from tlkit.recipe.names import known_names
from tlkit.recipe.schema import Recipe
from tlkit.recipe.yaml12 import join, scalar

HEAD = """# Every key of a recipe

Written by `python docs/make_recipe_reference.py` from the schema that `tlkit check` goes by; `tlkit recipes help KEY` prints a part of it,
and [recipe.schema.json](recipe.schema.json) is the same for editors ([how](recipes.md)). A key without a default is required. Keys of one
table can be set on the command line too: `tlkit finetune RECIPE data.image_size=128`. `tlkit check RECIPE --resolved` prints a recipe with
every value. The transforms of `augment` and their arguments are albumentations' own: [augmentation](augmentation.md).
"""
LISTS = {"augment": "light, medium, heavy, or a list of transforms: names, or names with their arguments", "phases": "a list of phases"}
"""What the lists of the recipe hold."""


def recipe_reference() -> str:
    """Return the page: a table of keys for the recipe, then one for each part of it, in the order in which they are named."""
    sections: dict[str, str] = {}
    parts: list[tuple[str, str, type[BaseModel]]] = [("", "The recipe", Recipe)]
    while parts:
        path, title, model = parts.pop(0)
        sections.setdefault(title, _section(title, model))
        parts[:0] = list(_parts(path, model))
    return "\n".join([HEAD, *sections.values()])


def _section(title: str, model: type[BaseModel]) -> str:
    rows = [_row(key, field) for key, field in fields_of(model).items()]
    return "\n".join([f"## {title}", "", "| key | value | default | example | |", "|---|---|---|---|---|", *rows, ""])


def _row(key: str, field: FieldInfo) -> str:
    default = "" if field.is_required() or field.default_factory is not None else _default(field.default)
    cells = (_values(field), default, f"`{example_of(key, field)}`", field.description or "")
    return "| " + " | ".join([f"`{key}`", *map(_in_table, cells)]) + " |"


def _values(field: FieldInfo) -> str:
    models = [part for part in alternatives(field.annotation) if is_model(part)]
    return "see below" if models == alternatives(field.annotation) and len(models) == 1 else values_of(field)


def _default(value: Any) -> str:
    return "none" if value is None else f"`{format_value(list(value) if isinstance(value, tuple) else value)}`"


def _in_table(text: str) -> str:
    return text.replace("|", "\\|")


def _parts(path: str, model: type[BaseModel]) -> Iterator[tuple[str, str, type[BaseModel]]]:
    """Yield path, title and model of all that a field can be besides plain values."""
    for key, field in fields_of(model).items():
        place = join(path, key)
        if place == "augment":
            yield place, "`augment`: `randaugment`", RandAugment
            yield place, "`augment`: `trivialaugment`", TrivialAugment
            continue
        models = [part for part in _members(field.annotation) if is_model(part)]
        for part in models:
            form = f"{{{next(iter(fields_of(part)))}: ..}}"
            yield place, f"`{place}`" if len(models) == 1 else f"`{place}`: {_title(part, form)}", part


def _title(part: type[BaseModel], form: str) -> str:
    return "a solved head" if part.__name__ == "SolvedPhase" else "a phase" if part.__name__ == "Phase" else f"`{form}`"


def _members(annotation: Any) -> Iterator[Any]:
    """Yield the members of a union, a list, and of lists of unions."""
    for part in alternatives(annotation):
        if is_model(part) or not get_args(part):
            yield part
        else:
            for inner in get_args(part):
                yield from _members(inner) if inner is not Ellipsis else ()


# --- one key ---


def key_help(key: str) -> str:
    """Return what a dotted key means, its values, its default and an example; for a part of the recipe its keys too.

    Raises RecipeError for a key that no recipe has, with the nearest.
    """
    words = [word for word in re.sub(r"\[\d*\]", "", key).split(".") if word]
    path, field, models = "", FieldInfo(description="all that a run needs to know"), [Recipe]
    for number, word in enumerate(words):
        if path == "augment":
            return _transform_help(words[number:])
        found = [model for model in models if word in fields_of(model)]
        if not found:
            raise RecipeError([Fault(key, f"is not a key of {path or 'a recipe'}.", _nearest_key(path, word, models))])
        path, field = join(path, word), fields_of(found[0])[word]  # where several forms have it, it means the same in all
        models = [part for part in _members(field.annotation) if is_model(part)]
    return "\n".join([*_field_help(path, field), *_keys_help(path, models)])


def all_keys(path: str = "", model: type[BaseModel] = Recipe) -> Iterator[str]:
    """Yield the dotted key of everything that an override can set, below a part that stands at the path: `phases[0].train.from`."""
    for key, field in fields_of(model).items():
        place = join(path, key)
        yield place
        below = f"{place}[0]" if place == "phases" else place
        parts = [part for part in _members(field.annotation) if is_model(part) and place != "augment"]
        yield from dict.fromkeys(inner for part in parts for inner in all_keys(below, part))


def choices_of(key: str) -> list[str]:
    """Return the words that a key can be; empty for numbers, free text and keys that there aren't."""
    if names := {"model.backbone": "backbones", "optimizer.name": "optimizers"}.get(key):
        return list(known_names()[names])
    models: list[Any] = [Recipe]
    parts: list[Any] = []
    for word in re.sub(r"\[\d*\]", "", key).split("."):
        parts = [part for model in models if word in fields_of(model) for part in _members(fields_of(model)[word].annotation)]
        models = [part for part in parts if is_model(part)]
    words = [word for part in parts for word in (["true", "false"] if part is bool else [part] if isinstance(part, str) else [])]
    return [*(PRESETS if key == "augment" else ()), *dict.fromkeys(words)]


def example_of(key: str, field: FieldInfo) -> str:
    """Return a line as it could stand in a recipe: `lr: 0.001`, `{from: layer4}` as the value of `train`."""
    return f"{key}: {in_yaml(_example(field))}"


def _field_help(path: str, field: FieldInfo) -> Iterator[str]:
    yield f"{path or 'a recipe'}: {field.description}"
    if not path:
        return
    if not all(is_model(part) for part in alternatives(field.annotation)):
        yield f"  values   {LISTS[path] if path in LISTS else values_of(field)}"
    if field.is_required():
        yield "  default  none: it must be given"
    elif field.default_factory is None:
        yield f"  default  {_default(field.default).strip('`')}"
    yield f"  example  {example_of(path.split('.')[-1], field)}"


def _keys_help(path: str, models: Sequence[type[BaseModel]]) -> Iterator[str]:
    if path == "augment":
        names = [*AUTO_AUGMENT, *transforms()]
        yield f"  transforms ({len(names)}; `tlkit recipes help augment.Rotate` lists the arguments of one)"
        yield f"    {', '.join(names)}"
        return
    for model in models:
        fields = fields_of(model)
        of = f" of {_title(model, f'{{{next(iter(fields))}: ..}}')}" if len(models) > 1 else ""
        yield f"  keys{of}".replace("`", "")
        width = max(map(len, fields))
        yield from (f"    {key:<{width}}  {field.description}" for key, field in fields.items())


def _transform_help(words: Sequence[str]) -> str:
    name = words[0]
    if name in AUTO_AUGMENT:
        fields = fields_of(AUTO_AUGMENT[name])
        if len(words) > 1 and words[1] in fields:
            return "\n".join(_field_help(f"augment.{name}.{words[1]}", fields[words[1]]))
        keys = _keys_help(f"augment.{name}", [AUTO_AUGMENT[name]])
        return "\n".join([f"augment.{name}: torchvision's, as a transform", f"  example  augment: [{name}: {{p: 0.5}}]", *keys])
    if name not in transforms():
        nearest = did_you_mean(name, [*transforms(), *AUTO_AUGMENT]) or "`tlkit recipes help augment` lists them."
        raise RecipeError([Fault(f"augment.{name}", "is not a transform of albumentations 2.0.8.", nearest)])
    arguments = transforms()[name]
    needed = [word for word, is_needed in arguments.items() if is_needed and word not in GIVEN]
    lines = [f"augment.{name}: a transform of albumentations, whose documentation says what its arguments do"]
    lines += [f"  arguments  {', '.join(arguments)}"]
    lines += [f"  required   {', '.join(needed)}"] if needed else []
    return "\n".join(lines)


def _nearest_key(path: str, word: str, models: Sequence[type[BaseModel]]) -> str:
    names = list(dict.fromkeys(key for model in models for key in fields_of(model)))
    if not names:
        return f"{path} has no keys of its own. See: tlkit recipes help {path}"
    elsewhere = [place for place in all_keys() if place.rpartition(".")[2] == word]
    return f"{expected_one_of(word, names)} {f'Did you mean {elsewhere[0]}?' if elsewhere else ''}".rstrip()


def _example(field: FieldInfo) -> Any:
    """Return the field's own example, or another value than its default."""
    if field.examples:
        return field.examples[0]
    parts = list(_members(field.annotation))
    if field.annotation is bool:
        return not field.default
    if choices := [part for part in parts if isinstance(part, str)]:
        return next((choice for choice in choices if choice != field.default), choices[0])
    model = next((part for part in parts if is_model(part)), None)
    if model is None:
        raise ValueError(f"a field of numbers or text has examples=[..]: {field.description}")
    example = _example_of_part(model)
    return [example] if get_origin(alternatives(field.annotation)[0]) is tuple else example


def _example_of_part(model: type[BaseModel]) -> dict[str, Any]:
    fields = fields_of(model)
    given = [key for key, field in fields.items() if field.is_required()] or [next(iter(fields))]
    return {key: _example(fields[key]) for key in given}


def in_yaml(value: Any) -> str:
    """Return a value as it stands in a recipe, in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{in_yaml(key)}: {in_yaml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(in_yaml, value)) + "]"
    if isinstance(value, str):
        is_plain = re.fullmatch(r"[A-Za-z./~][\w./~-]*", value) and isinstance(scalar(value), str)
        return value if is_plain else "'" + value.replace("'", "''") + "'"
    return format_value(value)
