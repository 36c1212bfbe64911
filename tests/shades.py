"""Images that a small network can tell apart within an epoch or two, but not all of them."""

from pathlib import Path

import numpy as np
from PIL import Image


def draw_shades(folder: Path, *, dark: int = 60, light: int = 180, noise: float = 40, size: int = 24) -> None:
    """20 images each of two grey levels, as folder/dark/00.png and so on. noise: its standard deviation, of 255."""
    draws = np.random.default_rng(0)
    for name, shade in (("dark", dark), ("light", light)):
        (folder / name).mkdir(parents=True)
        for i in range(20):
            noisy = np.clip(shade + draws.normal(0, noise, (size, size, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / name / f"{i:02d}.png")
