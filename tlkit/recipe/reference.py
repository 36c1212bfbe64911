"""docs/recipe_reference.md: every key of a recipe, from the schema that checks them."""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tlkit.recipe.explain import alternatives, fields_of, is_model, shown, values_of
from tlkit.recipe.fields.augment import RandAugment, TrivialAugment
from tlkit.recipe.schema import Recipe
from tlkit.recipe.yaml12 import join

HEAD = """# Every key of a recipe

Written by `python docs/make_recipe_reference.py` from the schema that `tlkit check` goes by. A key without a default is required. Keys of
one table can be set on the command line too: `tlkit finetune RECIPE data.image_size=128`. `tlkit check RECIPE --resolved` prints a recipe
with every value. The transforms of `augment` and their arguments are albumentations' own: [augmentation](augmentation.md).
"""


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
    return "\n".join([f"## {title}", "", "| key | value | default | |", "|---|---|---|---|", *rows, ""])


def _row(key: str, field: FieldInfo) -> str:
    default = "" if field.is_required() or field.default_factory is not None else _default(field.default)
    return "| " + " | ".join([f"`{key}`", *(_in_table(text) for text in (_values(field), default, field.description or ""))]) + " |"


def _values(field: FieldInfo) -> str:
    models = [part for part in alternatives(field.annotation) if is_model(part)]
    return "see below" if models == alternatives(field.annotation) and len(models) == 1 else values_of(field)


def _default(value: Any) -> str:
    return "none" if value is None else f"`{shown(list(value) if isinstance(value, tuple) else value)}`"


def _in_table(text: str) -> str:
    return text.replace("|", "\\|")


def _parts(path: str, model: type[BaseModel]) -> Iterator[tuple[str, str, type[BaseModel]]]:
    """Path, title and model of all that a field can be beside plain values."""
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
    """The members of a union, a list, and of lists of unions."""
    for part in alternatives(annotation):
        if is_model(part) or not get_args(part):
            yield part
        else:
            for inner in get_args(part):
                yield from _members(inner) if inner is not Ellipsis else ()
