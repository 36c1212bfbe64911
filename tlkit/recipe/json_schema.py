"""The JSON Schema of a recipe: pydantic's own, with the spellings that are read before it and the names that `tlkit check` knows."""

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from tlkit.recipe.augmentations import GIVEN, PRESETS, transforms
from tlkit.recipe.fields.augment import AUTO_AUGMENT
from tlkit.recipe.names import known_names
from tlkit.recipe.schema import Recipe

DRAFT = "http://json-schema.org/draft-07/schema#"
"""The newest that every editor's YAML plug-in reads."""

_PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1, "description": "probability that an image is changed"}


class _Schema(GenerateJsonSchema):
    """pydantic's own, without titles, which editors would show in place of the descriptions."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe as it is written in YAML 1.2, where 1e-3 is a number.

    It accepts everything that `tlkit check` accepts, but not conflicts between keys, which only `tlkit check` finds.
    """
    schema = Recipe.model_json_schema(schema_generator=_Schema)
    definitions = schema["$defs"]
    del definitions["Transform"]  # the form that `augment` is brought into, not the one that is written
    for name, model in AUTO_AUGMENT.items():
        definitions[name] = model.model_json_schema(schema_generator=_Schema)
    schema["properties"]["augment"] |= _augment()
    del schema["properties"]["augment"]["items"], schema["properties"]["augment"]["type"]
    names = known_names()
    tagged = {"type": "string", "pattern": r"^[^.]+\..+$", "description": "with the tag of its weights, such as resnet18.a1_in1k"}
    backbone, optimizer = definitions["Model"]["properties"]["backbone"], definitions["Optimizer"]["properties"]["name"]
    backbone |= {"anyOf": [{"enum": names["backbones"]}, tagged], "description": f"any model of timm {names['timm']} or tlkit"}
    optimizer |= {"enum": names["optimizers"]}
    head = {"$schema": DRAFT, "title": "A recipe of tlkit"}
    whole: dict[str, Any] = _for_draft_07({word: value for word, value in schema.items() if word != "title"})
    return head | whole


def _augment() -> dict[str, Any]:
    named = {name: _arguments(arguments) for name, arguments in transforms().items()}
    named |= {name: {"anyOf": [{"$ref": f"#/$defs/{name}"}, {"type": "null"}]} for name in AUTO_AUGMENT}
    one_key = {"type": "object", "properties": named, "additionalProperties": False, "minProperties": 1, "maxProperties": 1}
    needs_none = [*(name for name, arguments in transforms().items() if not _required(arguments)), *AUTO_AUGMENT]
    return {"anyOf": [{"enum": list(PRESETS)}, {"type": "array", "items": {"anyOf": [{"enum": needs_none}, one_key]}}]}


def _arguments(arguments: dict[str, bool]) -> dict[str, Any]:
    """Return the schema of a transform's arguments: their names, and which must be given. Their values albumentations itself checks."""
    accepted: dict[str, Any] = {name: _PROBABILITY if name == "p" else {} for name in arguments}
    needed = _required(arguments)
    return {
        "type": "object" if needed else ["object", "null"],
        "properties": accepted,
        "additionalProperties": False,
        **({"required": needed} if needed else {}),
    }


def _required(arguments: dict[str, bool]) -> list[str]:
    return [name for name, needed in arguments.items() if needed and name not in GIVEN]


def _for_draft_07(node: Any) -> Any:
    """Return the schema without the models' titles, which are Python's, and with tuples as lists of one kind of item, as ours all are."""
    if isinstance(node, list):
        return [_for_draft_07(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {word: _for_draft_07(value) for word, value in node.items() if not (word == "title" and isinstance(value, str))}
    if items := node.pop("prefixItems", None):
        node["items"] = items[0]
    return node
