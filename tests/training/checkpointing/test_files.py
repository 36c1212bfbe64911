"""Checkpoints as files: whole or not at all, proved by checksum, two kept."""

import errno
import json
import os
import resource
import signal
import tracemalloc
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from tlkit.errors import RunError
from tlkit.training.checkpointing.files import good_checkpoints, put_back, remove_others, write_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three checkpoints, the best weights another each time."""
    for number in (1, 2, 3):
        (tmp_path / "best").write_bytes(bytes([number]) * 10)
        write_checkpoint(tmp_path, number, {"step": number}, tmp_path / "best", {"phase": number})
        (tmp_path / "best").unlink()
    return tmp_path


def numbers(folder: Path) -> list[int]:
    return [checkpoint.number for checkpoint in good_checkpoints(folder)]


def test_a_checkpoint_comes_back_with_the_best_weights_of_its_time(folder: Path) -> None:
    first = good_checkpoints(folder)[0]
    assert first.load() == {"step": 1}
    assert first.about["phase"] == 1
    assert first.about["sha256"] == sha256((folder / "0001.ckpt").read_bytes()).hexdigest()
    assert first.best is not None
    put_back(first.best, folder / "best")
    assert (folder / "best").read_bytes() == bytes([1]) * 10


def test_before_the_first_validation_there_are_no_best_weights(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1, {}, tmp_path / "best", {})
    assert good_checkpoints(tmp_path)[0].best is None


def test_what_is_damaged_is_not_used_and_said_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    newest = folder / "0003.ckpt"
    content = newest.read_bytes()
    for damage, message in (
        (lambda: newest.write_bytes(content[:-1]), f"0003.ckpt isn't as it was written ({len(content) - 1} bytes)"),
        (lambda: newest.write_bytes(bytes(len(content))), f"0003.ckpt isn't as it was written ({len(content)} bytes)"),
        (newest.unlink, "0003.ckpt is missing"),
    ):
        damage()
        caplog.clear()
        assert numbers(folder) == [1, 2]
        assert f"checkpoint {newest} is damaged and not used: {message}" in caplog.text


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 99, "sha256": ""}'])
def test_a_damaged_description_is_a_damaged_checkpoint(folder: Path, text: str) -> None:
    (folder / "0003.json").write_text(text)
    assert numbers(folder) == [1, 2]


def test_damaged_best_weights_are_a_damaged_checkpoint(folder: Path) -> None:
    (folder / "0003.best.safetensors").write_bytes(b"")
    assert numbers(folder) == [1, 2]


def test_without_its_description_a_checkpoint_is_one_that_was_never_finished(folder: Path) -> None:
    (folder / "0003.json").unlink()
    assert numbers(folder) == [1, 2]


def test_nothing_in_a_checkpoint_is_run(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'run'}",)

    torch.save({"state": Runs()}, tmp_path / "0001.ckpt")
    digest = sha256((tmp_path / "0001.ckpt").read_bytes()).hexdigest()
    (tmp_path / "0001.json").write_text(json.dumps({"format": 1, "sha256": digest}))
    with pytest.raises(Exception, match="nothing in it was run"):
        good_checkpoints(tmp_path)[0].load()
    assert not (tmp_path / "run").exists()


def test_others_are_removed_with_all_their_files(folder: Path) -> None:
    (folder / "0004.ckpt").write_bytes(b"")
    remove_others(folder, good_checkpoints(folder)[1:])
    assert sorted(file.name for file in folder.iterdir()) == [
        f"000{i}.{end}" for i in (2, 3) for end in ("best.safetensors", "ckpt", "json")
    ]


def test_a_disk_that_fills_up_while_a_checkpoint_is_written_is_named_with_what_is_needed(folder: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(RunError, match=r"is full: a checkpoint of 400 kB can't be written"):
            write_checkpoint(folder, 4, {"weights": torch.zeros(100_000)}, folder / "best", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert numbers(folder) == [1, 2, 3]
    assert not [file for file in folder.iterdir() if "0004" in file.name]


def test_a_checkpoint_is_not_built_in_memory_first(tmp_path: Path) -> None:
    tensors = {f"{number}": torch.full((250_000,), float(number)) for number in range(8)}  # 1 MB each
    tracemalloc.start()
    checkpoint = write_checkpoint(tmp_path, 1, tensors, tmp_path / "best", {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in checkpoint.load().items())
    assert checkpoint.about["sha256"] == sha256(checkpoint.file.read_bytes()).hexdigest()


def test_on_a_full_disk_earlier_checkpoints_stay_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"The disk of .* is full: a checkpoint of [\d.]+ kB can't be written"):
        write_checkpoint(folder, 4, {}, folder / "best", {})
    assert numbers(folder) == [1, 2, 3]
    assert not list(folder.glob("0004*"))
