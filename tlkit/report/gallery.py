"""gallery.html: what an audit found, as images on one page without outside resources."""

from pathlib import Path
from typing import Any

from tlkit.data.quality.audit import Audit
from tlkit.data.quality.near_duplicates import Decode, thumbnail_size
from tlkit.data.samples import ImageSource
from tlkit.errors import DataError
from tlkit.files import write_atomically
from tlkit.report.images import data_url, shrunk
from tlkit.report.templates import template

THUMBNAIL_PX = 112
MOST_FINDINGS, MOST_IMAGES = 100, 6
"""Shown of each kind, and of each finding: the page stays below some megabytes. audit.csv has all."""
SECTIONS = {
    "exact": ("The same image twice", "Byte for byte, or pixel for pixel after decoding."),
    "near": ("Nearly the same image", "Resized, compressed or edited a little. 1 is no difference that a small copy would show."),
    "label": (
        "Doubted labels",
        "A model that learned from the other images sees another class. The figure is the probability of the label.",
    ),
    "similar": (
        "Similar to the backbone",
        "The nearest pairs that are none of the above. Mostly just similar; look for the same thing taken twice.",
    ),
}


def write_gallery(file: Path, name: str, audit: Audit, decoded: Decode) -> None:
    """Write the page. name: its title. decoded: how an image is read."""

    def shown(row: int, score: float) -> dict[str, Any]:
        sample = audit.samples.samples[row]
        return {
            "image": thumbnail(sample.image, decoded),
            "id": sample.id,
            "split": sample.split,
            "label": audit.samples.label_text(sample),
            "score": score,
        }

    sections = []
    for kind, (title, meaning) in SECTIONS.items():
        if kind not in audit.kinds:
            continue
        of_kind = [finding for finding in audit.findings if finding.kind == kind]
        entries = [
            {
                "finding": finding,
                "pictures": [shown(row, score) for row, score in list(zip(finding.rows, finding.scores, strict=True))[:MOST_IMAGES]],
                "more": max(0, len(finding.rows) - MOST_IMAGES),
            }
            for finding in of_kind[:MOST_FINDINGS]
        ]
        sections.append({"kind": kind, "title": title, "meaning": meaning, "number": len(of_kind), "entries": entries})
    page = template("gallery.html").render(name=name, sections=sections, report=audit.report, note=audit.note)
    write_atomically(file, page.encode("utf-8", "replace"))  # a file name that isn't UTF-8 has no letters to show


def thumbnail(image: ImageSource, decoded: Decode) -> str:
    """Return a data URL; empty for an image that can't be read. Tiny images are enlarged so that their pixels show."""
    try:
        pixels = decoded(image, needed=thumbnail_size)
    except DataError:
        return ""
    return data_url(shrunk(pixels, THUMBNAIL_PX), quality=85)
