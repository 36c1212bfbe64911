"""Images that a small network can tell apart within an epoch or two, but not all of them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

Colours = Mapping[str, tuple[int, int, int]]


def draw_shades(
    folder: Path, *, dark: int = 60, light: int = 180, noise: float = 40, size: int = 24, colours: Colours | None = None
) -> None:
    """20 images each of two grey levels, as folder/dark/00.png and so on, or of colours. noise: its standard deviation, of 255."""
    draws = np.random.default_rng(0)
    for name, shade in (colours or {"dark": (dark,) * 3, "light": (light,) * 3}).items():
        (folder / name).mkdir(parents=True)
        for i in range(20):
            noisy = np.clip(shade + draws.normal(0, noise, (size, size, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / name / f"{i:02d}.png")
