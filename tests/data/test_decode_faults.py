"""What can't be decoded is refused with its reason, and never crashes."""

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.data.made_images import RED, array, pixels, saved
from tlkit.data.decode import Decoding, decode, decoded_size, header, image_size, range_of_16bit
from tlkit.errors import DataError


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_32_bit_pixels_are_refused_because_their_range_is_unknown(tmp_path: Path, kind: type) -> None:
    path = saved(tmp_path, "a.tiff", Image.fromarray(np.array([[1, 70000]], kind)))
    with pytest.raises(DataError, match="no known range") as raised:
        decode(path)
    assert str(path) in str(raised.value)
    assert "Save the image as 8-bit or 16-bit" in str(raised.value)


def test_an_image_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.png", Image.new("L", (11, 10)))
    with pytest.raises(DataError, match=r"too large \(11 x 10 pixels; data.max_pixels is 100\)"):
        decode(path, Decoding(max_pixels=100))
    assert decode(path, Decoding(max_pixels=110)).shape == (10, 11, 3)


def test_a_decompression_bomb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    # A header that promises 20,000 x 20,000 pixels.
    path = saved(tmp_path, "a.bmp", Image.new("1", (8, 8)))
    content = bytearray(path.read_bytes())
    content[18:26] = (20_000).to_bytes(4, "little") * 2
    path.write_bytes(content)
    with pytest.raises(DataError, match="too large"):
        decode(path)


def test_an_image_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    path = tmp_path / "a.jpg"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(DataError, match="damaged or cut off") as raised:
        decode(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "Replace or remove it" in str(raised.value)


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "the file is empty"), (b"hello", "not an image"), (b"\x89PNG\r\n\x1a\n", "not an image|damaged")]
)
def test_what_is_no_image_is_refused_with_its_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as raised:
        decode(path)
    assert str(path) in str(raised.value)


def test_folders_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a folder, not an image"):
        decode(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        decode(tmp_path / "no.png")


def test_a_1_bit_bomb_is_refused_by_its_header_alone(tmp_path: Path) -> None:
    # 400 million pixels in 50 kB: 1.2 GB as RGB. Without the pixels it would be called cut off, had they been looked for.
    path = saved(tmp_path, "bomb.png", Image.new("1", (20_000, 20_000)), compress_level=9)
    assert path.stat().st_size < 100_000
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"too large .*data\.max_pixels is 178,956,970"):
        decode(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer to a file in Git LFS.*\n  .*git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "a drawing \\(SVG\\)"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "an HEIC photograph.*\n  Save it as JPEG"),
        (b"PK\x03\x04....", "an archive"),
        (b"%PDF-1.7", "a PDF"),
        (bytes(400), "a file of zeros"),
        (b"hello, I am text\n", "this is not an image that can be read but text"),
    ],
)
def test_what_is_in_place_of_an_image_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=reason):
        decode(tmp_path / "a.jpg")


def outcome(call: Callable[[Path], tuple[int, ...]], file: Path) -> tuple[int, ...] | str:
    try:
        return call(file)
    except DataError as error:
        return str(error)


def test_damaged_files_are_refused_and_never_crash(tmp_path: Path) -> None:
    """A few hundred of those that were tried once; `TokenError` of numpy was found so. Checking an image finds the same as decoding it."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8))
    contents = {"a.npy": b"\x93NUMPY\x01\0v\0{'descr': '|u1', 'fortran_order': False, 'shape': (20, 24, 3".ljust(128) + bytes(1440)}
    for name, options in (
        ("a.jpg", {}),
        ("b.jpg", {"progressive": True}),
        ("a.png", {}),
        ("a.webp", {}),
        ("a.gif", {}),
        ("a.bmp", {}),
        ("a.tiff", {"compression": "tiff_lzw"}),
    ):
        contents[name] = saved(tmp_path, name, image, **options).read_bytes()
    draws = np.random.default_rng(1)
    refused = 0
    for name, content in contents.items():
        for _ in range(60):
            damaged = bytearray(content[: draws.integers(len(content) // 2, len(content))])
            for place in draws.integers(0, min(len(damaged), 150), 3):
                damaged[place] = draws.integers(256)
            (tmp_path / name).write_bytes(damaged)
            header(tmp_path / name)
            found = outcome(lambda file: decode(file).shape[1::-1], tmp_path / name)
            assert outcome(decoded_size, tmp_path / name) == found
            refused += isinstance(found, str)
    assert refused > 350


def test_links_pipes_and_files_without_permission_are_refused_and_never_waited_for(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "self.png").symlink_to("self.png")
    os.mkfifo(tmp_path / "pipe.png")
    for name, reason in (("gone", "a link to nowhere.png, where there is no file"), ("self", "symbolic links"), ("pipe", "a pipe")):
        with pytest.raises(DataError, match=reason):
            decode(tmp_path / f"{name}.png")
        assert range_of_16bit(tmp_path / f"{name}.png") is None
        assert image_size(tmp_path / f"{name}.png") == (0, 0)


def test_a_file_that_may_not_be_read_says_so() -> None:
    with TemporaryDirectory() as folder:  # pytest's own folder is closed to other users
        path = saved(Path(folder), "a.png", pixels(RED))
        Path(folder).chmod(0o755)
        path.chmod(0)
        root = os.geteuid() == 0
        if root:  # for whom permissions don't hold
            os.seteuid(65534)
        try:
            with pytest.raises(DataError, match="may not be read"):
                decode(path)
        finally:
            if root:
                os.seteuid(0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((2, 2, 3), np.float32), "type float32 have no known range"),
        (np.zeros((2, 2, 3), np.int16), "type int16 have no known range"),
        (np.zeros((2, 2, 3, 1), np.uint8), "its shape, 2 x 2 x 3 x 1, is not that of an image"),
        (np.zeros((0, 2, 3), np.uint8), "its shape, 0 x 2 x 3, is not that of an image"),
        (np.array(3, np.uint8), "its shape, one number, is not that of an image"),
    ],
)
def test_an_npy_file_that_is_no_image_says_why(tmp_path: Path, values: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        decode(array(tmp_path, values))


def test_an_npy_file_never_runs_code(tmp_path: Path) -> None:
    trap = tmp_path / "trap"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (trap,)

    np.save(tmp_path / "a.npy", np.array([Trap()], object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Trap()))
    np.savez(tmp_path / "c.npz", np.array([Trap()], object))
    (tmp_path / "c.npz").rename(tmp_path / "c.npy")
    for name in ("a.npy", "b.npy", "c.npy"):
        with pytest.raises(DataError, match=name):
            decode(tmp_path / name)
    assert not trap.exists()


def test_an_npy_file_that_promises_too_much_or_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = array(tmp_path, np.zeros((40, 40, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="damaged or cut off"):
        decode(path)
    (tmp_path / "empty.npy").write_bytes(b"")
    with pytest.raises(DataError, match="the file is empty"):
        decode(tmp_path / "empty.npy")
    with pytest.raises(DataError, match="no such file"):
        decode(tmp_path / "nowhere.npy")
    with pytest.raises(DataError, match=r"too large \(11 x 10 x 3"):
        decode(array(tmp_path, np.zeros((11, 10, 3), np.uint8)), Decoding(max_pixels=100))


@pytest.mark.parametrize("kind", ["float", "uint32"])
def test_a_tiff_of_32_bit_colours_is_named_as_what_it_is(tmp_path: Path, kind: str) -> None:

    values = np.full((4, 4, 3), 0.5, np.float32)
    file = tmp_path / "a.tiff"
    assert cv2.imwrite(str(file), values)
    if kind == "uint32":
        content = file.read_bytes()
        tag = b"\x53\x01\x03\x00\x03\x00\x00\x00"  # SampleFormat, three shorts at an offset
        place = int.from_bytes(content[content.index(tag) + 8 :][:4], "little")
        file.write_bytes(content[:place] + b"\x01\x00" * 3 + content[place + 6 :])
    with pytest.raises(DataError) as raised:
        decode(file)
    words = "floating-point numbers" if kind == "float" else "whole numbers"
    assert f"a TIFF of 3 channels of 32-bit {words}, which have no known range" in str(raised.value)
    assert "Save the image as 8-bit or 16-bit PNG or TIFF." in str(raised.value)
