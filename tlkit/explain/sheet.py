"""Sheets of small images with a title, and how figures become files."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlkit.files import atomic_file

INCHES = 1.35
"""Side of a small image."""


@dataclass(frozen=True)
class Cell:
    """pixels: [H, W] or [H, W, 3], in 0..1 or uint8. heat: [H, W] in 0..1, laid over them. pixelated: each pixel stays a square."""

    pixels: NDArray[Any]
    title: str = ""
    heat: NDArray[np.float32] | None = None
    pixelated: bool = False


@contextmanager
def figure_file(file: Path, width: float, height: float, *, dpi: int = 100) -> Iterator[Any]:
    """Yield a matplotlib figure of this size in inches, and write it to the file as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))  # without pyplot, whose backend is the caller's
    yield figure
    with atomic_file(file) as writing, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)  # the page has the names in letters
        figure.savefig(writing, format="png", dpi=dpi)


def draw_sheet(file: Path, rows: Sequence[tuple[str, Sequence[Cell | None]]], title: str, *, scale: str = "") -> None:
    """Draw rows of cells, each row with a name on its left. scale: what the colours of heat maps mean, for the bar beside them."""
    columns = max(len(cells) for _, cells in rows)
    left = 0.12 + 0.085 * max(len(name) for name, _ in rows)
    step = INCHES + 0.36
    width = max(left + columns * (INCHES + 0.08) + (0.75 if scale else 0.1), 0.105 * len(title) + 0.3)
    height = 0.5 + len(rows) * step + 0.05
    with figure_file(file, width, height) as figure:
        figure.text(0.12 / width, 1 - 0.3 / height, title, fontsize=12, fontweight="bold", va="center")
        for row, (name, cells) in enumerate(rows):
            top = height - 0.5 - row * step - 0.26
            figure.text(0.12 / width, (top - INCHES / 2) / height, name, fontsize=9, va="center")
            for column, cell in enumerate(cells):
                if cell is not None:
                    x = left + column * (INCHES + 0.08)
                    _draw_cell(figure.add_axes((x / width, (top - INCHES) / height, INCHES / width, INCHES / height)), cell)
        if scale:
            _draw_scale(figure, scale, width, height)


def _draw_cell(axis: Any, cell: Cell) -> None:
    axis.imshow(cell.pixels, cmap="gray", interpolation="nearest" if cell.pixelated else "bilinear", aspect="auto")
    if cell.heat is not None:
        # Where nothing speaks for the class the image stays as it is.
        axis.imshow(cell.heat, cmap="inferno", vmin=0, vmax=1, alpha=0.25 + 0.5 * cell.heat, aspect="auto")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(shortened(cell.title, 24), fontsize=7.5, pad=2)


def _draw_scale(figure: Any, label: str, width: float, height: float) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    side = min(2 * INCHES, height - 1.0)
    axis = figure.add_axes((1 - 0.62 / width, (height - 0.76 - side) / height, 0.12 / width, side / height))
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), "inferno"), cax=axis, ticks=[0, 1])
    bar.ax.tick_params(labelsize=7)
    bar.set_label(label, fontsize=7)


def shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 2]}.."


def shown(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image [S, S, C] as it can be drawn: of other channels than one or three, the first."""
    return image if image.shape[2] == 3 else image[:, :, 0]
