import gc
import io
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image, JpegImagePlugin

from tests.data.made_images import BLUE, GREEN, RED, WHITE, array, pixels, saved
from tlkit.data.decode import MAX_PIXELS, Decoding, decode, decoded_size, header, image_size, range_of_16bit
from tlkit.data.quality.value_range import range_warning
from tlkit.errors import DataError
from tlkit.recipe.fields.data import Data
from tlkit.recipe.fields.source import BundledSource


def test_rgb_stays_as_it_is(tmp_path: Path) -> None:
    assert decode(saved(tmp_path, "a.png", pixels(RED, BLUE))).tolist() == [[[*RED], [*BLUE]]]


def test_a_function_is_decoded_like_a_file() -> None:
    assert decode(lambda: pixels(RED, BLUE)).tolist() == [[[*RED], [*BLUE]]]


def test_result_is_writable_contiguous_uint8(tmp_path: Path) -> None:
    decoded = decode(saved(tmp_path, "a.png", pixels(RED, BLUE)))
    assert decoded.dtype == np.uint8
    assert decoded.flags.writeable
    assert decoded.flags.c_contiguous


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [(1, [[RED, BLUE]]), (2, [[BLUE, RED]]), (3, [[BLUE, RED]]), (6, [[RED], [BLUE]]), (8, [[BLUE], [RED]])],
)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, expected: list[list[tuple[int, int, int]]]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, "a.png", pixels(RED, BLUE), exif=exif)
    assert decode(path).tolist() == [[list(colour) for colour in row] for row in expected]


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    assert decode(saved(tmp_path, "a.png", pixels(7, 200))).tolist() == [[[7, 7, 7], [200, 200, 200]]]


def test_black_and_white_becomes_0_and_255(tmp_path: Path) -> None:
    assert decode(saved(tmp_path, "a.png", pixels(0, 255).convert("1"))).tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_palette_colours_are_looked_up(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*GREEN, *BLUE])
    image.putpixel((1, 0), 1)
    assert decode(saved(tmp_path, "a.png", image)).tolist() == [[[*GREEN], [*BLUE]]]


def test_a_transparent_palette_entry_becomes_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*GREEN, *BLUE])
    image.putpixel((1, 0), 1)
    assert decode(saved(tmp_path, "a.png", image, transparency=0)).tolist() == [[[*WHITE], [*BLUE]]]


def test_alpha_is_laid_over_white(tmp_path: Path) -> None:
    # 100 * 51/255 + 255 * 204/255 = 20 + 204 = 224; 0 * 0.2 + 204 = 204; a fully transparent black is white.
    path = saved(tmp_path, "a.png", pixels((100, 0, 255, 51), (0, 0, 0, 0), (1, 2, 3, 255)))
    assert decode(path).tolist() == [[[224, 204, 255], [255, 255, 255], [1, 2, 3]]]


def test_grey_with_alpha_is_laid_over_white(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.png", Image.merge("LA", (pixels(100, 0), pixels(51, 0))))
    assert decode(path).tolist() == [[[224, 224, 224], [255, 255, 255]]]


def test_cmyk_is_converted(tmp_path: Path) -> None:
    # No ink is white, all black ink is black, full cyan takes away red.
    path = saved(tmp_path, "a.tiff", Image.frombytes("CMYK", (3, 1), bytes([0, 0, 0, 0, 0, 0, 0, 255, 255, 0, 0, 0])))
    assert decode(path).tolist() == [[[255, 255, 255], [0, 0, 0], [0, 255, 255]]]


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_16_bit_grey_is_scaled_and_never_clipped(tmp_path: Path, name: str) -> None:
    # v / 257 rounded: 0, 128/257 -> 0, 129/257 -> 1, 257 -> 1, 32768/257 = 127.5019 -> 128, 65535 -> 255.
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    decoded = decode(saved(tmp_path, name, Image.fromarray(values)))
    assert decoded[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]
    assert (decoded[..., 0:1] == decoded).all()


def test_gif_gives_its_first_frame(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.gif", pixels(RED, RED), save_all=True, append_images=[pixels(BLUE, BLUE)])
    assert decode(path).tolist() == [[[*RED], [*RED]]]


def test_jpeg_webp_and_bmp_are_read(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16), (40, 90, 200))
    for name in ("a.jpg", "a.webp", "a.bmp"):
        assert np.abs(decode(saved(tmp_path, name, image)).astype(int) - (40, 90, 200)).max() <= 6, name


def test_the_limit_of_the_recipe_is_that_of_the_decoder_and_of_pillow() -> None:
    assert MAX_PIXELS == Data(source=BundledSource(bundled="fashion_mnist_mini")).max_pixels == 2 * Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(("mode", "kind"), [("L", np.uint8), ("I;16", np.uint16), ("RGB", np.uint8)])
@pytest.mark.parametrize("name", ["a.tiff", "a.png"])
def test_every_kind_of_image_is_turned_once(tmp_path: Path, mode: str, kind: type, name: str) -> None:
    values = np.arange(12).reshape(2, 6).astype(kind) * (257 if kind == np.uint16 else 1)
    image = Image.fromarray(np.stack([values] * 3, axis=2) if mode == "RGB" else values)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter clockwise: the first column is the last row, reversed
    assert (
        decode(saved(tmp_path, name, image, exif=exif), Decoding(1))[:, :, 0].tolist() == np.rot90(np.arange(12).reshape(2, 6), -1).tolist()
    )


def test_transparency_is_laid_over_the_background_that_is_asked_for(tmp_path: Path) -> None:
    # 100 * 51/255 + (10, 20, 250) * 204/255 = 20 + 8, 0 + 16, 51 + 200.
    path = saved(tmp_path, "a.png", pixels((100, 0, 255, 51), (0, 0, 0, 0), (1, 2, 3, 255)))
    assert decode(path, Decoding(background=(10, 20, 250))).tolist() == [[[28, 16, 251], [10, 20, 250], [1, 2, 3]]]
    # Grey is made of the colours: 0.299 * 10 + 0.587 * 20 + 0.114 * 250 = 43.2.
    assert decode(path, Decoding(1, background=(10, 20, 250)))[0, 1].tolist() == [43]


def test_a_palette_with_graded_transparency_is_laid_over_the_background(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*GREEN, *BLUE])
    image.putpixel((1, 0), 1)
    path = saved(tmp_path, "a.png", image, transparency=bytes([51, 255]))  # green at a fifth over white: 204, 255, 204
    assert decode(path).tolist() == [[[204, 255, 204], [*BLUE]]]


def test_a_jpeg_with_inverted_inks_as_photoshop_writes_it_has_its_colours(tmp_path: Path) -> None:
    inks = Image.frombytes("CMYK", (16, 16), bytes([0, 255, 255, 0]) * 256)  # magenta and yellow: red
    path = saved(tmp_path, "a.jpg", inks, quality=95)
    assert b"Adobe" in path.read_bytes()  # the mark with which the values of the file are inverted
    assert np.abs(decode(path).astype(int) - RED).max() <= 3


def test_16_bit_values_are_scaled_from_the_range_that_is_stated(tmp_path: Path) -> None:
    # (v - 1000) / 3000 * 255, rounded: 0, 85, 127.5 -> 128, 255.
    path = saved(tmp_path, "a.png", Image.fromarray(np.array([[1000, 2000, 2500, 4000]], np.uint16)))
    assert decode(path, Decoding(1, range_16bit=(1000, 4000))).ravel().tolist() == [0, 85, 128, 255]
    with pytest.raises(DataError, match=r"go from 1000 to 4000, and data\.range_16bit is \[0, 3999\]") as raised:
        decode(path, Decoding(range_16bit=(0, 3999)))
    assert "such as [0, 4000]: nothing is clipped" in str(raised.value)
    with pytest.raises(DataError, match="go from 1000 to 4000"):
        decode(array(tmp_path, np.array([[1000, 4000]], np.uint16)), Decoding(1, range_16bit=(1001, 65535)))


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_16_bit_colour_keeps_its_low_bytes(tmp_path: Path, name: str) -> None:
    """Pillow gives the high bytes alone: 0 for all of these."""
    values = np.array([[[0, 51, 102], [153, 204, 255]]], np.uint16)
    cv2.imwrite(str(tmp_path / name), values[:, :, ::-1])
    assert decode(tmp_path / name, Decoding(range_16bit=(0, 255))).tolist() == values.tolist()
    # v / 257 rounded.
    cv2.imwrite(str(tmp_path / name), (values * 257)[:, :, ::-1])
    assert decode(tmp_path / name).tolist() == values.tolist()
    with pytest.raises(DataError, match="go from 0 to 65535"):
        decode(tmp_path / name, Decoding(range_16bit=(0, 4095)))


def test_16_bit_colour_with_alpha_is_laid_over_white(tmp_path: Path) -> None:
    # 100/257 of full red at a fifth: 100 * 0.2 + 204 = 224.
    cv2.imwrite(str(tmp_path / "a.png"), np.array([[[0, 0, 100 * 257, 51 * 257]]], np.uint16))
    assert decode(tmp_path / "a.png").tolist() == [[[224, 204, 204]]]


def test_16_bit_colour_from_memory_and_cut_off(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (40, 40, 3), dtype=np.uint16)
    content = cv2.imencode(".png", values[:, :, ::-1])[1].tobytes()
    assert np.array_equal(decode(lambda: Image.open(io.BytesIO(content))), np.rint(values / 257))
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="damaged or cut off"):
        decode(tmp_path / "a.png")


def test_the_first_frame_is_taken_and_the_number_of_frames_is_known(tmp_path: Path) -> None:
    for name in ("a.gif", "a.tiff", "a.webp", "a.png"):
        options = {"lossless": True} if name == "a.webp" else {}
        path = saved(tmp_path, name, pixels(RED, RED), save_all=True, append_images=[pixels(BLUE, BLUE), pixels(GREEN, RED)], **options)
        assert decode(path).tolist() == [[[*RED], [*RED]]], name
        assert header(path) == (2, 3), name
    assert header(saved(tmp_path, "b.png", pixels(RED))) == (1, 1)
    assert header(tmp_path / "nowhere.gif") == (0, 1)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_jpeg_is_checked_at_an_eighth_of_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: int) -> None:
    """A photograph of 12 megapixels is so checked in a fifth of the time."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = saved(tmp_path, "a.jpg", Image.effect_noise((163, 95), 60), exif=exif)
    sizes = []
    load = JpegImagePlugin.JpegImageFile.load
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", lambda image: (sizes.append(image.size), load(image))[1])
    assert decoded_size(file) == ((95, 163) if orientation > 4 else (163, 95))
    assert set(sizes) == {(21, 12)}


def test_a_jpeg_that_is_nearly_square_is_not_taken_for_turned(tmp_path: Path) -> None:
    """An eighth of 41 and 42 pixels is 6 of both."""
    assert decoded_size(saved(tmp_path, "a.jpg", Image.effect_noise((41, 42), 60))) == (41, 42)


# --- other numbers of channels ---


def test_one_channel_is_grey_by_the_weights_of_itu_601(tmp_path: Path) -> None:
    # 0.299 R + 0.587 G + 0.114 B, rounded: 76.245, 149.685, 29.07, 255, and 7 of three equal values.
    path = saved(tmp_path, "a.png", pixels(RED, GREEN, BLUE, WHITE, (7, 7, 7)))
    assert decode(path, Decoding(1)).tolist() == [[[76], [150], [29], [255], [7]]]


def test_grey_stays_as_it_is_in_one_channel(tmp_path: Path) -> None:
    assert decode(saved(tmp_path, "a.png", pixels(7, 200)), Decoding(1)).tolist() == [[[7], [200]]]
    assert decode(lambda: pixels(7, 200), Decoding(1)).tolist() == [[[7], [200]]]
    assert decode(saved(tmp_path, "b.png", Image.fromarray(np.array([[0, 32768]], np.uint16))), Decoding(1)).tolist() == [[[0], [128]]]
    # 100 * 51/255 + 255 * 204/255 = 224; a fully transparent black is white.
    assert decode(saved(tmp_path, "c.png", Image.merge("LA", (pixels(100, 0), pixels(51, 0)))), Decoding(1)).tolist() == [[[224], [255]]]


def test_four_channels_are_the_images_own(tmp_path: Path) -> None:
    values = ((100, 0, 255, 51), (0, 0, 0, 0))
    decoded = decode(saved(tmp_path, "a.png", pixels(*values)), Decoding(4))
    assert decoded.tolist() == [list(map(list, values))]
    assert decoded.flags.writeable
    assert decode(saved(tmp_path, "b.tiff", Image.frombytes("CMYK", (1, 1), bytes([1, 2, 3, 4]))), Decoding(4)).tolist() == [[[1, 2, 3, 4]]]


def test_an_npy_file_is_taken_as_it_is_and_16_bit_is_scaled(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (4, 5, 6), dtype=np.uint8)
    decoded = decode(array(tmp_path, values), Decoding(6))
    assert np.array_equal(decoded, values)
    assert decoded.flags.writeable
    assert decoded.flags.c_contiguous
    assert type(decoded) is np.ndarray
    # v / 257 rounded, as for 16-bit grey.
    assert decode(array(tmp_path, np.array([[[0, 128, 129, 65535, 32768]]], np.uint16)), Decoding(5)).tolist() == [[[0, 0, 1, 255, 128]]]
    assert decode(array(tmp_path, np.array([[3, 4]], np.uint8)), Decoding(1)).tolist() == [[[3], [4]]]
    assert decode(array(tmp_path, np.asfortranarray(values[..., :3])), Decoding(3)).flags.c_contiguous


def test_another_number_of_channels_is_reported_with_the_fix(tmp_path: Path) -> None:
    colour = saved(tmp_path, "a.png", pixels(RED, BLUE))
    with pytest.raises(
        DataError, match=r"a\.png: the number of its channels is 3 \(R, G, B\), but data\.channels is 4\.\n  Set data\.channels=3"
    ):
        decode(colour, Decoding(4))
    for shape, channels, found in (((4, 5, 6), 3, 6), ((6, 4, 5), 6, 5), ((4, 5), 3, 1), ((4, 5, 3), 1, 3)):
        with pytest.raises(DataError, match=rf"is {found} \(.* {' x '.join(map(str, shape))}\), but data\.channels is {channels}\.\n"):
            decode(array(tmp_path, np.zeros(shape, np.uint8)), Decoding(channels))


# --- ranges that are hardly used ---


def test_16_bit_pgm_is_read_with_its_largest_value_as_white(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 4095\n" + np.array([0, 2048, 4095], ">u2").tobytes())
    assert decode(tmp_path / "a.pgm", Decoding(1)).ravel().tolist() == [0, 128, 255]


def test_the_range_that_fits_16_bit_images_is_named(tmp_path: Path) -> None:
    grey, colour = np.array([[7, 4000]], np.uint16), np.array([[[9, 300, 3000]] * 2], np.uint16)
    np.save(tmp_path / "array.npy", grey[:, :, None])
    files = [saved(tmp_path, "a.png", Image.fromarray(grey)), saved(tmp_path, "b.tif", Image.fromarray(grey)), tmp_path / "array.npy"]
    for file in files:
        assert range_of_16bit(file) == (7, 4000)
    import cv2

    cv2.imwrite(str(tmp_path / "colour.png"), colour)
    assert range_of_16bit(tmp_path / "colour.png") == (9, 3000)
    eight = saved(tmp_path, "eight.png", Image.new("L", (2, 2), 3))
    assert range_of_16bit(eight) is None
    source = BundledSource(bundled="fashion_mnist_mini")
    warning = range_warning([eight, *files], Data(source=source))
    assert "3 16-bit images looked at go from 7 to 4000" in warning
    assert "data.range_16bit=[0, 4095] fits." in warning  # 2 ** 12 - 1
    assert range_warning(files, Data(source=source, range_16bit=(0, 4095))) == ""
    assert range_warning([eight], Data(source=source)) == ""


def test_threads_read_npy_files_at_the_same_time(tmp_path: Path) -> None:
    """Before Python 3.13 `ast.parse` fails where another thread parses in the midst of it, as happens where the collection of garbage,
    here at random times, runs Python.
    """
    np.save(tmp_path / "image.npy", np.zeros((30, 40, 3), np.uint8))
    times = random.Random(0)

    def other_threads_run(phase: str, info: dict[str, int]) -> None:
        gc.set_threshold(times.randint(2, 100))
        time.sleep(1e-6)

    before = gc.get_threshold()
    gc.callbacks.append(other_threads_run)
    gc.set_threshold(2)
    try:
        with ThreadPoolExecutor(4) as pool:
            sizes = list(pool.map(image_size, [tmp_path / "image.npy"] * 3000))
    finally:
        gc.callbacks.remove(other_threads_run)
        gc.set_threshold(*before)
    assert sizes == [(40, 30)] * 3000
