"""The pages' templates, each compiled once in a process."""

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template

TENTHS_FROM = 1000
"""Images from which a share is given to a tenth of a percent: of fewer, one image is more than that."""


@cache
def template(name: str) -> "Template":
    """Return a template of this folder, which escapes what it shows and refuses what it isn't given."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(loader=PackageLoader("tlkit", "report"), autoescape=select_autoescape(), undefined=StrictUndefined)
    environment.filters["percent"] = percent
    return environment.get_template(name)


def percent(share: float, images: int) -> str:
    """Format a share of so many images with no more digits than they carry: `88.6`, or `89` of less than TENTHS_FROM images."""
    return f"{100 * share:.{1 if images >= TENTHS_FROM else 0}f}"
