"""The pages' templates, each compiled once in a process."""

from collections.abc import Sequence
from functools import cache
from math import log10, sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template

WIDEST = 0.98
"""Half the width of the 95 % interval of a share of one image: 1.96 standard deviations of 0.5. Of n images, divided by the root of n."""
MOST_DECIMALS = 2


@cache
def template(name: str, folder: str = "report") -> "Template":
    """Return a template of a folder of tlkit, which escapes what it shows and refuses what it isn't given."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(loader=PackageLoader("tlkit", folder), autoescape=select_autoescape(), undefined=StrictUndefined)
    environment.filters["percent"] = percent
    environment.filters["share"] = share_of
    return environment.get_template(name)


def percent(share: float, images: float) -> str:
    """Format a share of so many images with no more digits than they carry: `88.6`, or `89` of less than 961 images.

    The last digit is about a tenth of half the interval's width, at most MOST_DECIMALS; half an interval is WIDEST over the root of n.
    """
    return f"{100 * share:z.{decimals(images)}f}"


def share_of(share: float, images: float) -> str:
    """Format a share of so many images as `percent` does, between 0 and 1: `0.886`."""
    return f"{share:z.{decimals(images) + 2}f}"


def decimals(images: float) -> int:
    """Return how many digits after the point a percentage of so many images carries."""
    return min(max(round(-log10(100 * WIDEST / sqrt(max(images, 1)) / 10)), 0), MOST_DECIMALS)


def images_like(interval: Sequence[float]) -> float:
    """Return how many images would give a share an interval as wide: a mean of several runs carries as many digits."""
    half = (interval[1] - interval[0]) / 2
    return (WIDEST / max(half, 1e-6)) ** 2
