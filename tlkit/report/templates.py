"""The pages' templates, each compiled once in a process."""

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template


@cache
def template(name: str) -> "Template":
    """Return a template of this folder, which escapes what it shows and refuses what it isn't given."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(loader=PackageLoader("tlkit", "report"), autoescape=select_autoescape(), undefined=StrictUndefined)
    return environment.get_template(name)
