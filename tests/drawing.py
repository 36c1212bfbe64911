"""Charts in tests are built as ever, but what is written of them is blank: drawing takes a fifth of a small run.

Tests that look at charts take the fixture `draws`. PNGs are written with little effort.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

SAVEFIG = Figure.savefig
SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"></svg>'


def draw_nothing() -> None:
    """Leave the charts of this process blank."""
    Figure.savefig = _blank  # type: ignore[method-assign]


def encode_quickly() -> None:
    """Write PNGs of this process larger and sooner, with the same pixels: they took a twentieth of a small run."""
    Image.init()
    Image.SAVE["PNG"] = partial(_encode, Image.SAVE["PNG"])


def _encode(save: Callable[..., None], image: Image.Image, *file: Any) -> None:
    image.encoderinfo.setdefault("compress_level", 1)
    save(image, *file)


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
