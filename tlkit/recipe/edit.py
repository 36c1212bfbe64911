"""A recipe file with some values changed and its comments, order and spelling kept: what `tlkit tune` and `tlkit rank --write` write."""

import json
from collections.abc import Mapping, Sequence
from io import StringIO
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from tlkit.recipe.load import find_recipe, steps_of


def edited_recipe(path: str | PathLike[str], overrides: Sequence[str], values: Mapping[str, Any], *, by: str) -> str:
    """Return the text of a recipe file with overrides and values set, and without its `search:`.

    overrides: as for `load_recipe`, which takes the recipe with them and the values. values: dotted key -> plain value.
    by: the command, for the first line, which says what was changed. A comment behind a value that was changed is left out.
    """
    yaml = YAML()  # ruamel's round trip
    yaml.width = 140
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(find_recipe(path).read_text(encoding="utf-8-sig"))
    document.pop("search", None)
    pairs = (override.partition("=") for override in overrides)
    changes = {key.strip(): text for key, _, text in pairs if not key.strip().startswith("search")}
    changes |= {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}
    for key, written in changes.items():
        _set(document, key, YAML().load(written))
    text = StringIO()
    yaml.dump(document, text)
    return f"# Written by {by}: {', '.join(changes)}. Everything else is as it was in {Path(path).name}.\n{text.getvalue()}"


def _set(document: Any, key: str, value: Any) -> None:
    """Set the value of a dotted key, with mappings above it as needed."""
    steps = list(steps_of(key))
    for step, below in pairwise(steps):
        if isinstance(step, str) and document.get(step) is None:
            document[step] = [] if isinstance(below, int) else {}
        document = document[step]
    document[steps[-1]] = value
    comments = document.ca.items.get(steps[-1]) if isinstance(document, CommentedMap) else None
    if comments and (behind := comments[2]):  # with the lines that follow it, which stay
        behind.value = "\n" + behind.value.partition("\n")[2]
