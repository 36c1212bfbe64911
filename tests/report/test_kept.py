"""report.json is a shortcut: what isn't as a run wrote it, or is of other answers or weights, is not used."""

import json
from pathlib import Path
from typing import Any

import pytest

from tlkit.report.images import Drawn, PageImages
from tlkit.report.kept import FILE, keep, read_kept

URL = "data:image/webp;base64,UklGRg=="


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.safetensors").write_bytes(b"weights")
    (tmp_path / "predictions.csv").write_text("id,label,answer,probability\na.png,cat,dog,0.9\n")
    keep(tmp_path, "test", {"classes": "2: cat, dog"}, PageImages(pictures={0: URL}, heat={0: URL}))
    return tmp_path


def test_what_is_kept_is_read_back(run: Path) -> None:
    assert read_kept(run, "test") == ({"classes": "2: cat, dog"}, Drawn({0: URL}, {0: URL}))


@pytest.mark.parametrize("images", [PageImages(missing="data are gone."), PageImages(unreadable=1)])
def test_a_page_without_some_of_its_images_is_not_kept(run: Path, images: PageImages) -> None:
    before = (run / FILE).read_bytes()
    keep(run, "test", {}, images)
    assert (run / FILE).read_bytes() == before


@pytest.mark.parametrize("file", ["predictions.csv", "model/model.safetensors"])
def test_it_is_not_used_with_other_answers_or_weights_or_without_them(run: Path, file: str) -> None:
    (run / file).write_bytes(b"other")
    assert read_kept(run, "test") is None
    (run / file).unlink()
    (run / FILE).write_text(json.dumps({**json.loads((run / FILE).read_text()), "sha256": {}}))
    assert read_kept(run, "test") is None
    assert read_kept(run, "val") is None


@pytest.mark.parametrize(
    "change",
    [
        {"facts": "text"},
        {"images": []},
        {"images": {"pictures": {"first": URL}, "heat": {}}},
        {"images": {"pictures": {}, "heat": {}, "of_another_version": 1}},
        {"images": {"pictures": {"0": "https://example.org/seen.png"}, "heat": {}}},
        {"images": {"pictures": {}, "heat": {"0": "data:image/webp;base64,AA==); } @import url(https://example.org/a.css"}}},
    ],
)
def test_what_a_run_does_not_write_is_not_used(run: Path, change: dict[str, Any]) -> None:
    (run / FILE).write_text(json.dumps({**json.loads((run / FILE).read_text()), **change}))
    assert read_kept(run, "test") is None


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 200_000])
def test_a_damaged_file_is_not_used(run: Path, content: bytes) -> None:
    (run / FILE).write_bytes(content)
    assert read_kept(run, "test") is None
