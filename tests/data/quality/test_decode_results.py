"""What decoding an image has shown is kept for as long as its file stays the same."""

import os
import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.data.faulty_folder import make_image
from tests.data.quality.checking import checked, data, good_members, of_shard, shard, small_folder
from tlkit.data import file_facts
from tlkit.data.quality import decode_results as results_module
from tlkit.data.quality.decode_results import decode_results
from tlkit.system import cache_folder

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_file_is_decoded_again_only_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small_folder(tmp_path / "photos")
    (folder / "cat" / "0.png").write_bytes(b"")
    decoded: list[Path] = []
    size = results_module.decoded_size
    monkeypatch.setattr(
        results_module, "decoded_size", lambda image, *rest, **named: (decoded.append(image), size(image, *rest, **named))[1]
    )
    first = checked(folder)
    assert len(decoded) == 24
    assert checked(folder) == first
    assert len(decoded) == 24
    make_image(5).save(folder / "cat" / "0.png")
    os.utime(folder / "dog" / "1.png", ns=(1, 1))
    assert checked(folder).count("fault") == 0
    assert sorted(decoded[24:]) == [folder / "cat" / "0.png", folder / "dog" / "1.png"]
    checked(folder, channels=1)  # other settings find other faults
    assert len(decoded) == 26 + 24


def test_permissions_are_looked_at_each_time(tmp_path: Path) -> None:
    """They change without the file's size or time."""
    with TemporaryDirectory() as place:
        path = Path(place) / "a.png"
        make_image(1).save(path)
        Path(place).chmod(0o755)
        path.chmod(0)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
            os.environ["TLKIT_CACHE"] = f"{place}/nowhere"
        try:
            (result,) = decode_results([path], data(Path(place)), lambda number: None)
            assert "may not be read" in result.problem
            assert not result.lasts
        finally:
            if root:
                os.seteuid(0)


@pytest.mark.parametrize("state", ["damaged", "a folder", "locked", "nowhere"])
def test_a_cache_that_cannot_be_used_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    folder = small_folder(tmp_path / "photos")
    file = cache_folder() / file_facts.FILE
    file.parent.mkdir(parents=True)
    locking = None
    if state == "damaged":
        file.write_bytes(b"no table" * 1000)
    elif state == "a folder":
        file.mkdir()
    elif state == "locked":
        checked(folder)
        monkeypatch.setattr(file_facts, "WAIT_S", 0.1)
        locking = sqlite3.connect(file)
        locking.execute("BEGIN EXCLUSIVE")
    else:
        (tmp_path / "file").touch()
        monkeypatch.setenv("TLKIT_CACHE", str(tmp_path / "file"))
    assert checked(folder).images == 24
    if locking:
        locking.close()


def test_an_image_of_a_shard_is_decoded_again_only_when_the_shard_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = shard(tmp_path / "a.tar", dict(sorted(good_members().items())))
    decoded: list[str] = []
    size = results_module.decoded_size
    monkeypatch.setattr(
        results_module, "decoded_size", lambda image, *rest, **named: (decoded.append(str(image)), size(image, *rest, **named))[1]
    )
    first = of_shard(file)
    assert (len(decoded), len(set(decoded))) == (12, 12)
    assert of_shard(file) == first
    assert len(decoded) == 12
    os.utime(file, ns=(1, 1))
    of_shard(file)
    assert len(decoded) == 24
