"""Images that are no files are written without loss."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlkit.data.preprocess import Preprocessing
from tlkit.data.samples import Sample
from tlkit.deploy.export.proof import image_file

SPEC = Preprocessing(8, "stretch", 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_an_image_from_memory_decodes_the_same_from_its_file(tmp_path: Path, mode: str) -> None:
    draws = np.random.default_rng(0)
    if mode == "I;16":
        image = Image.fromarray(draws.integers(0, 65536, (20, 30), dtype=np.uint16))
    else:
        image = Image.fromarray(draws.integers(0, 256, (20, 30, 3), dtype=np.uint8)).convert(mode)
    sample = Sample("one", lambda: image, (0,), "val")
    file = image_file(sample, 0, tmp_path)
    np.testing.assert_array_equal(SPEC.decode(file), SPEC.decode(sample.image))


def test_an_image_from_an_archive_keeps_its_bytes(tmp_path: Path) -> None:
    turned = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned on its side
    content = io.BytesIO()
    turned.save(content, "JPEG", exif=exif)
    sample = Sample("one", lambda: Image.open(io.BytesIO(content.getvalue())), (0,), "val")
    file = image_file(sample, 0, tmp_path)
    assert file.read_bytes() == content.getvalue()
    np.testing.assert_array_equal(SPEC.decode(file), SPEC.decode(sample.image))
    assert SPEC.decode(file).shape == (30, 20, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_numbers_from_an_array_stay_as_they_are(tmp_path: Path, dtype: type[np.unsignedinteger]) -> None:
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (20, 30, 3), dtype=dtype)
    sample = Sample("one", lambda: pixels, (0,), "val")
    np.testing.assert_array_equal(SPEC.decode(image_file(sample, 0, tmp_path)), SPEC.decode(sample.image))
