"""Charts in tests are built as ever, but what is written of them is blank: drawing takes a fifth of a small run.

Tests that look at charts take the fixture `draws`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

SAVEFIG = Figure.savefig
SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"></svg>'


def draw_nothing() -> None:
    """Leave the charts of this process blank."""
    Figure.savefig = _blank  # type: ignore[method-assign]


@contextmanager
def drawn() -> Iterator[None]:
    """Draw the charts of this process."""
    Figure.savefig = SAVEFIG  # type: ignore[method-assign]
    yield
    draw_nothing()


def _blank(figure: Figure, file: Any, *, format: str, **_: Any) -> None:
    if format == "svg":
        file.write(SVG)
    else:
        Image.new("L", (1, 1), 255).save(file, format)
