"""Read by schemathesis (SCHEMATHESIS_HOOKS): binary data that is to be valid are the bytes of an image."""

from io import BytesIO

import schemathesis
from hypothesis import strategies
from PIL import Image


def encoded(kind: str, size: tuple[int, int]) -> bytes:
    file = BytesIO()
    Image.linear_gradient("L").resize(size).save(file, kind)
    return file.getvalue()


IMAGES = strategies.sampled_from([encoded(kind, size) for kind in ("PNG", "JPEG", "WEBP", "GIF") for size in ((1, 1), (40, 56))])
schemathesis.openapi.format("binary", IMAGES)
for media_type in ("image/*", "application/octet-stream"):
    schemathesis.openapi.media_type(media_type, IMAGES)
