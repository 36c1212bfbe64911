"""Small images for tests of decoding."""

from pathlib import Path

import numpy as np
from PIL import Image

# 2 wide, 1 high: red, blue.
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def saved(folder: Path, name: str, image: Image.Image, **options: object) -> Path:
    image.save(folder / name, **options)
    return folder / name


def pixels(*colours: object) -> Image.Image:
    return Image.fromarray(np.array([colours], np.uint8))


def array(folder: Path, values: np.ndarray, name: str = "a.npy") -> Path:
    np.save(folder / name, values)
    return folder / name
