"""A folder with everything in it that people really have: three classes of 60 good images, and one of each fault."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("plain", "two words 🐈", 'say "hi"')
GOOD = 60
JPEG, PNG = b"\xff\xd8\xff\xe0\0\x10JFIF\0", b"\x89PNG\r\n\x1a\n"


def make_image(seed: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """A block of the colour of its class on noise: learnable, and no two alike. size: width and height."""
    draws = np.random.default_rng(seed)
    pixels = draws.integers(0, 120, (size[1], size[0], 3), dtype=np.uint8)
    pixels[8:24, 8:24, seed % 3] = 255
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def good_files(folder: Path, label: int) -> set[str]:
    """60 of every form that can be read; returns their names."""
    modes: list[tuple[str, Callable[[Image.Image], bytes]]] = [
        ("jpg", lambda image: encoded(image, "JPEG")),
        ("png", lambda image: encoded(image, "PNG")),
        ("webp", lambda image: encoded(image, "WEBP", lossless=True)),
        ("bmp", lambda image: encoded(image, "BMP")),
        ("tiff", lambda image: encoded(image, "TIFF")),
        ("gif", lambda image: encoded(image, "GIF")),
        ("JPEG", lambda image: encoded(image.convert("CMYK"), "JPEG")),
        ("la.png", lambda image: encoded(image.convert("LA"), "PNG")),
        ("palette.png", lambda image: encoded(image.convert("P"), "PNG", transparency=0)),
        ("one_bit.png", lambda image: encoded(image.convert("1"), "PNG")),
        ("deep.png", lambda image: encoded(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "PNG")),
        ("misnamed.png", lambda image: encoded(image, "JPEG")),  # read by its content
    ]
    folder.mkdir(parents=True)
    names = set()
    for number in range(GOOD):
        ending, encode = modes[number % len(modes)]
        name = f"{number:02d}.{ending}"
        (folder / name).write_bytes(encode(make_image(3 * number + label)))
        names.add(name)
    return names


def bad_files(folder: Path) -> set[str]:
    """One file of each kind that can't be read; returns their names."""
    jpeg, png = encoded(make_image(900, (200, 200)), "JPEG"), encoded(make_image(901, (200, 200)), "PNG")
    contents = {
        "empty.jpg": b"",
        "one_byte.png": b"\x89",
        "cut_off.jpg": jpeg[: len(jpeg) // 2],
        "cut_off.png": png[: len(png) // 2],
        "cut_off.webp": (webp := encoded(make_image(902, (200, 200)), "WEBP"))[: len(webp) // 2],
        "cut_off.bmp": (bmp := encoded(make_image(903), "BMP"))[: len(bmp) // 2],
        "cut_off.tiff": (tiff := encoded(make_image(904), "TIFF"))[: len(tiff) // 2],
        "cut_off.gif": (gif := encoded(make_image(905), "GIF"))[: len(gif) // 2],
        "header_alone.jpg": JPEG,
        "broken_inside.png": png[:200] + bytes(200) + png[400:],
        "text.png": b"this is no image, but a line of text\n",
        "web_page.jpg": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "git_lfs.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "drawing.png": b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>",
        "iphone.jpg": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
        "document.png": b"%PDF-1.7\n",
        "archive.jpg": b"PK\x03\x04" + bytes(40),
        "zeros.jpg": bytes(1000),
        "bomb.png": encoded(Image.new("1", (20_000, 20_000)), "PNG"),
        "thirty_two_bit.tiff": encoded(Image.fromarray(np.full((8, 8), 0.5, np.float32)), "TIFF"),
        "pickle.npy": b"\x93NUMPY\x01\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(128) + b"\x80\x04N.",
        "floats.npy": _npy(np.zeros((8, 8, 3), np.float32)),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "circle.png").symlink_to("circle.png")
    return {*contents, "dangling.jpg", "circle.png"}


def make_faulty_folder(root: Path) -> tuple[set[str], set[str]]:
    """Returns the ids of the good and of the bad images."""
    good = {f"{name}/{file}" for label, name in enumerate(CLASSES) for file in good_files(root / name, label)}
    bad = {f"{CLASSES[1]}/{file}" for file in bad_files(root / CLASSES[1])}
    place = root / CLASSES[0]
    frames = [make_image(seed) for seed in (910, 911, 912)]
    frames[0].save(place / "animated.gif", save_all=True, append_images=frames[1:])
    frames[0].save(place / "pages.tiff", save_all=True, append_images=frames[1:])
    make_image(913, (1, 1)).save(place / "dot.png")
    make_image(914, (1, 5000)).save(place / "hair.png")
    good |= {f"{CLASSES[0]}/{name}" for name in ("animated.gif", "pages.tiff", "dot.png", "hair.png", "photo.jfif")}
    (place / "folder.jpg").mkdir()
    os.mkfifo(place / "pipe.png")
    bad |= {f"{CLASSES[0]}/folder.jpg/", f"{CLASSES[0]}/pipe.png"}
    (place / "loop").symlink_to(root, target_is_directory=True)
    for name in (".DS_Store", "Thumbs.db", "._01.png", "notes.txt", "labels.csv"):
        (place / name).write_bytes(b"\0\0\0\x01Bud1")
    (place / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    for name in ("photo.jfif", "photo.jpg_large"):
        (place / name).write_bytes(encoded(make_image(915), "JPEG"))
    make_image(916).save(root / "loose.png")
    (root / "empty class").mkdir()
    return good, bad


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()
