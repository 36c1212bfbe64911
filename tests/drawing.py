"""Charts in tests are built as ever, but what is written of them is blank: drawing takes a fifth of a small run.

Tests that look at charts take the fixture `draws`. Images are written as ever, with the least effort of their encoders.
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
    """Write PNGs, which hold the same pixels, and WebPs of this process larger and sooner: they took a tenth of a small run."""
    Image.init()
    for kind, effort in (("PNG", "compress_level"), ("WEBP", "method")):
        Image.SAVE[kind] = partial(_encode, Image.SAVE[kind], effort)


def _encode(save: Callable[..., None], effort: str, image: Image.Image, *file: Any) -> None:
    image.encoderinfo.setdefault(effort, 1 if effort == "compress_level" else 0)
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
