"""What is known about a file is known for as long as it stays the same."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlkit.data import file_facts
from tlkit.data.file_facts import FileFacts, file_key
from tlkit.data.samples import Sample, Samples
from tlkit.data.splits import holdout
from tlkit.data.splits.holdout import hash_images
from tlkit.files import sha256_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_facts, "NEW_NS", 0)
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


def photos(folder: Path, number: int = 6) -> Samples:
    for i in range(number):
        Image.fromarray(np.full((4, 4, 3), 40 * i, np.uint8)).save(folder / f"{i}.bmp")  # all of one size
    return Samples(("a",), tuple(Sample(f"{i}.bmp", folder / f"{i}.bmp", (0,), "train") for i in range(number)))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fills with the names of the files that are read to be hashed."""
    names: list[str] = []
    monkeypatch.setattr(holdout, "sha256_of", lambda file: (names.append(file.name), sha256_of(file))[1])
    return names


def over_it(file: Path) -> None:
    file.write_bytes(Path(file.parent / "5.bmp").read_bytes())


def another_in_its_place(file: Path) -> None:
    """As rsync and `cp -p` do: with the size and the time of the one before."""
    state = file.stat()
    over_it(file.with_name("new"))
    os.utime(file.with_name("new"), ns=(state.st_atime_ns, state.st_mtime_ns))
    file.with_name("new").rename(file)


@pytest.mark.parametrize("change", [over_it, another_in_its_place])
def test_a_file_is_hashed_once_and_again_when_it_has_changed(folder: Path, read: list[str], change: Callable[[Path], None]) -> None:
    samples = photos(folder)
    first = hash_images(samples)
    assert first == {sample.id: sha256_of(folder / sample.id) for sample in samples.samples}
    assert sorted(read) == [f"{i}.bmp" for i in range(6)]
    assert hash_images(samples) == first
    assert len(read) == 6
    size = (folder / "2.bmp").stat().st_size
    change(folder / "2.bmp")
    assert (folder / "2.bmp").stat().st_size == size
    assert hash_images(samples) == {**first, "2.bmp": first["5.bmp"]}
    assert read[6:] == ["2.bmp"]


def test_what_was_written_a_moment_ago_is_read_again(folder: Path, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be written again within one tick of the file system's clock, with the same size."""
    monkeypatch.setattr(file_facts, "NEW_NS", 3_600_000_000_000)
    samples = photos(folder)
    assert hash_images(samples) == hash_images(samples)
    assert len(read) == 12


def test_facts_of_different_kinds_do_not_meet(folder: Path) -> None:
    photos(folder, 1)
    key = file_key(folder / "0.bmp")
    assert key is not None
    one, other = FileFacts("one"), FileFacts("other")
    one.put(key, "1")
    one.close()
    assert other.get(key) is None
    assert FileFacts("one").get(key) == "1"
    assert file_key(folder) is None
    assert file_key(folder / "missing.bmp") is None


def test_a_cache_that_cannot_be_made_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("TLKIT_CACHE", str(tmp_path / "file"))
    for kind in ("sha256", "decoded"):
        facts = FileFacts(kind)
        facts.close()
    (message,) = caplog.messages
    assert message.startswith(f"results of checks of images can't be kept in {tmp_path / 'file/checked/files.sqlite'} (")
