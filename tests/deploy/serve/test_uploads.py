"""Uploads are what files may be: the formats of cameras and browsers that the installed Pillow reads."""

from io import BytesIO

import pytest
from PIL import Image

from tlkit.data.decode import decode
from tlkit.deploy.serve.uploads import Upload
from tlkit.errors import DataError


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM"])
def test_an_upload_is_decoded_as_a_file_of_its_format_is(kind: str) -> None:
    content = BytesIO()
    Image.new("RGB", (8, 6), (200, 100, 50)).save(content, kind)
    assert decode(Upload(content.getvalue(), "The image")).shape == (6, 8, 3)


def test_what_another_program_would_have_to_draw_is_refused() -> None:
    content = BytesIO()
    Image.new("RGB", (8, 6)).save(content, "EPS")
    with pytest.raises(DataError, match="The image: "):
        decode(Upload(content.getvalue(), "The image"))
