"""What is written appears whole or not at all, follows the umask, and its size is reported in the unit that people would use."""

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tlkit.files import (
    UNFINISHED,
    atomic_file,
    atomic_folder,
    expanded,
    format_bytes,
    key_of,
    remove_unfinished,
    sha256_of,
    write_atomically,
    write_csv,
    write_json,
)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def write_half_of(file: Path) -> None:
    file.write_text("half of")
    raise TypeError


def test_a_file_whose_writing_fails_stays_as_it_was_and_nothing_else_is_left(tmp_path: Path) -> None:
    file = tmp_path / "facts.json"
    write_json(file, {"a": "ü"})
    with pytest.raises(TypeError), atomic_file(file) as writing:
        write_half_of(writing)
    assert file.read_bytes() == b'{\n  "a": "\xc3\xbc"\n}\n'
    assert list(tmp_path.iterdir()) == [file]


def test_an_error_names_the_file_that_was_to_be_written_and_not_the_unfinished_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for writing in (atomic_file, atomic_folder):
        with pytest.raises(NotADirectoryError) as raised, writing(tmp_path / "file" / "report.html"):
            pass
        assert raised.value.filename == str(tmp_path / "file" / "report.html")


@pytest.mark.parametrize("name", ["x" * 251 + ".jpg", "🦊" * 62 + ".jpg"])
def test_a_name_as_long_as_a_file_can_have_is_written(tmp_path: Path, name: str) -> None:
    write_atomically(tmp_path / name, b"x")
    with atomic_folder(tmp_path / name[1:]):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {name, name[1:]}
    for writing in (atomic_file, atomic_folder):
        with pytest.raises(OSError, match="too long") as raised, writing(tmp_path / f"{name}{name}"):
            pass
        assert raised.value.filename == str(tmp_path / f"{name}{name}")


def test_a_table_keeps_the_bytes_of_names_that_are_not_utf8(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ("id", "n"), [{"id": os.fsdecode(b"a\xff,b"), "n": 1}])
    assert (tmp_path / "t.csv").read_bytes() == b'id,n\n"a\xff,b",1\n'


def test_json_with_the_name_of_a_file_that_is_not_utf_8_can_be_read(tmp_path: Path) -> None:
    names = {"id": os.fsdecode(b"a\xff.png"), "other": "\u00e9\\"}
    write_json(tmp_path / "t.json", names)
    assert json.loads((tmp_path / "t.json").read_text(encoding="utf-8")) == names
    assert "\u00e9" in (tmp_path / "t.json").read_text(encoding="utf-8")


def test_files_and_folders_follow_the_umask_whatever_writes_them(tmp_path: Path) -> None:
    with umask(0o027):
        with atomic_folder(tmp_path / "model") as writing, atomic_file(writing / "w.safetensors") as file:
            save_file({"w": torch.ones(1)}, file)  # makes it with mode 0600
        write_atomically(tmp_path / "model" / "note.txt", "text")
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in [tmp_path / "model", *(tmp_path / "model").iterdir()]}
    assert modes == {"model": "0o750", "w.safetensors": "0o640", "note.txt": "0o640"}


def test_a_folder_takes_the_place_of_another_and_one_that_fails_does_not(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for content in ("one", "two"):
        with atomic_folder(folder) as writing:
            (writing / "weights").write_text(content)
            (writing / content).mkdir()
    with pytest.raises(FileNotFoundError), atomic_folder(folder) as writing:
        (writing / "weights").rename(writing / "three")
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["model", "model/two", "model/weights"]
    assert (folder / "weights").read_text() == "two"


def replace_often(folder: Path, times: int) -> None:
    for number in range(times):
        with atomic_folder(folder) as writing:
            (writing / "weights").write_text(str(number))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is a moment between two renames")
def test_a_folder_that_is_replaced_is_never_missing(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    replace_often(folder, 1)
    writer = multiprocessing.get_context("spawn").Process(target=replace_often, args=(folder, 50))
    writer.start()
    looks = misses = 0
    while writer.is_alive():
        misses += not folder.exists()
        looks += 1
    writer.join()
    assert (writer.exitcode, misses) == (0, 0)
    assert looks > 50


def test_an_old_folder_stays_where_names_can_not_be_exchanged_and_the_new_one_can_not_be_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_often(tmp_path / "model", 1)
    monkeypatch.setattr("tlkit.files._exchange", lambda one, other: False)  # as on NFS
    rename = os.replace

    def refuse_new(source: Path, target: Path) -> None:
        if target.name == "model" and (Path(source) / "new").exists():
            raise PermissionError
        rename(source, target)

    monkeypatch.setattr("os.replace", refuse_new)
    with pytest.raises(PermissionError), atomic_folder(tmp_path / "model") as writing:
        (writing / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "weights"]
    monkeypatch.undo()
    monkeypatch.setattr("tlkit.files._exchange", lambda one, other: False)
    with atomic_folder(tmp_path / "model") as writing:
        (writing / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "new"]


def test_what_a_killed_process_was_writing_is_removed_and_nothing_else(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from tlkit.files import atomic_file, atomic_folder
with atomic_folder(Path({str(tmp_path)!r}, "model")) as model, atomic_file(Path({str(tmp_path)!r}, "below", "table.csv")) as table:
    (model / "weights").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "below").mkdir()
    (tmp_path / f"mine{UNFINISHED}").touch()
    subprocess.run([sys.executable, "-c", code], check=False)
    assert len(list(tmp_path.rglob(f".*{UNFINISHED}"))) == 2
    remove_unfinished(tmp_path, "table.csv")
    assert len(list(tmp_path.rglob(f".*{UNFINISHED}"))) == 1
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["below", f"mine{UNFINISHED}"]


def test_digests_are_those_of_hashlib(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content" * 100_000)
    assert sha256_of(tmp_path / "file") == sha256(b"content" * 100_000).hexdigest()
    assert key_of({"b": [1, "x"], "a": None}) == sha256(b'{"a": null, "b": [1, "x"]}').hexdigest()[:32]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (20_520, "20.5 kB"),
        (44_765_128, "44.8 MB"),
        (999_400_000, "999 MB"),
        (999_900_000, "1 GB"),
        (1_598_627_388, "1.6 GB"),
        (2.5e12, "2.5 TB"),
    ],
)
def test_sizes_are_in_the_unit_that_people_use(number: float, text: str) -> None:
    assert format_bytes(number) == text


def test_home_and_variables_are_expanded_in_paths_as_users_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("PHOTOS", "/disk/photos")
    monkeypatch.delenv("NOWHERE", raising=False)
    assert expanded("~/runs/x") == Path("/home/ann/runs/x")
    assert expanded("$PHOTOS/cats") == expanded("${PHOTOS}/cats") == Path("/disk/photos/cats")
    assert expanded("$NOWHERE/cats") == Path("$NOWHERE/cats")
    assert expanded(Path("plain")) == Path("plain")
    assert expanded("~no such user/cats") == Path("~no such user/cats")
