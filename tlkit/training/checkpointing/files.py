"""Checkpoint files: written atomically, verified by checksum, the last two kept.

`checkpoints/0007.ckpt` is the state, `0007.best.safetensors` the best weights that were known then, and `0007.json`, which is written
last, the sha256 of both. A checkpoint without its json isn't one.
"""

import errno
import json
import logging
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from tlkit.errors import RunError
from tlkit.files import atomic_file, format_bytes, is_disk_full, sha256_of, write_json

LOG = logging.getLogger("tlkit")

AFTER_FULL = "  Earlier ones are whole: free some space, then resume with the same command and --resume."
KEPT = 2
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """file: NNNN.ckpt. best: NNNN.best.safetensors, None where no epoch was validated before. about: the content of NNNN.json."""

    file: Path
    best: Path | None
    about: Mapping[str, Any]

    @property
    def number(self) -> int:
        return int(self.file.stem)

    def load(self) -> dict[str, Any]:
        """Load tensors and plain values without running code. Raises RunError if the file contains more than those."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # torch's words on what is refused below
                state: dict[str, Any] = torch.load(self.file, map_location="cpu", weights_only=True)
        except Exception as error:  # its checksum is right, so it was made so: an unpickler can raise nearly anything
            raise RunError(
                f"{self.file} is no checkpoint that tlkit has written: it holds more than tensors and plain values, and nothing in it"
                " was run.\n  Remove it, and the run resumes from the previous one."
            ) from error
        return state


def write_checkpoint(folder: Path, number: int, state: Mapping[str, Any], best: Path, about: Mapping[str, Any]) -> Checkpoint:
    """Write a checkpoint. best: the best weights, if there are any yet. about: what can be read without loading the state.

    Raises RunError if the disk is full; earlier checkpoints are then as they were.
    """
    checkpoint = folder / f"{number:04d}.ckpt"
    linked = folder / f"{number:04d}.best.safetensors"
    hashed = _Hashed()
    try:
        with atomic_file(checkpoint) as writing:
            hashed.save(state, writing)
        facts: dict[str, Any] = {"format": FORMAT, "sha256": hashed.sha256.hexdigest()}
        if best.is_file():
            _link(best, linked)
            facts["best_sha256"] = sha256_of(linked)
        facts |= about
        write_json(folder / f"{number:04d}.json", facts)
    except OSError as error:
        for unfinished in (checkpoint, linked):
            unfinished.unlink(missing_ok=True)
        if not is_disk_full(error) and error.errno != errno.EFBIG:
            raise
        needed = format_bytes(max(hashed.size, _bytes_of(state)))
        raise RunError(f"The disk of {folder} is full: a checkpoint of {needed} can't be written.\n{AFTER_FULL}") from error
    return Checkpoint(checkpoint, linked if "best_sha256" in facts else None, facts)


class _Hashed:
    """A file that counts and hashes what torch.save writes, without a second copy in memory or reading it again."""

    def __init__(self) -> None:
        self.size = 0
        self.sha256 = sha256()
        self._error: OSError | None = None

    def save(self, state: Mapping[str, Any], file: Path) -> None:
        """Save the state. Raises OSError as the system reports it: torch only says that something failed."""
        with file.open("wb") as self._file:
            try:
                torch.save(state, self)  # type: ignore[arg-type]  # it needs no more of a file than this
            except RuntimeError:
                if self._error is not None:
                    raise self._error from None
                raise

    def write(self, content: bytes | memoryview) -> int:
        try:
            written = self._file.write(content)
        except OSError as error:
            self._error = error
            raise
        self.size += written
        self.sha256.update(content)
        return written

    def flush(self) -> None:
        self._file.flush()


def _bytes_of(state: Any) -> int:
    """Return the bytes of all tensors in a state."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    inner = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    return sum(map(_bytes_of, inner))


def good_checkpoints(folder: Path) -> list[Checkpoint]:
    """Return the valid checkpoints, from the oldest to the newest. Damaged ones are logged."""
    good = []
    for described in sorted(folder.glob("[0-9]*.json")):
        try:
            good.append(_checked(described))
        except _Damaged as why:
            LOG.warning("checkpoint %s is damaged and not used: %s", described.with_suffix(".ckpt"), why)
    return good


def next_number(folder: Path) -> int:
    return max((int(file.name[:4]) for file in folder.glob("[0-9]*.*") if file.name[:4].isdecimal()), default=0) + 1


def remove_others(folder: Path, kept: list[Checkpoint]) -> None:
    """Remove every checkpoint but these, complete or not."""
    stems = {checkpoint.file.stem for checkpoint in kept}
    for file in folder.glob("[0-9]*.*"):
        if file.name.partition(".")[0] not in stems:
            file.unlink(missing_ok=True)


def put_back(best: Path, where: Path) -> None:
    """Restore the best weights of a checkpoint as the best weights of the run."""
    with atomic_file(where) as writing:
        _link(best, writing)


class _Damaged(Exception):
    """Says what is wrong with a checkpoint."""


def _checked(described: Path) -> Checkpoint:
    try:
        about = json.loads(described.read_text(encoding="utf-8"))
        expected, expected_best = about["sha256"], about.get("best_sha256")
        known = about["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Damaged(f"{described.name} can't be read") from error
    if not known:
        raise _Damaged(f"its format is {about['format']}, and this tlkit reads {FORMAT}")
    files = [(described.with_suffix(".ckpt"), expected), (described.with_suffix(".best.safetensors"), expected_best)]
    for file, digest in files:
        if digest is None:
            continue
        if not file.is_file():
            raise _Damaged(f"{file.name} is missing")
        if sha256_of(file) != digest:
            raise _Damaged(f"{file.name} isn't as it was written ({file.stat().st_size} bytes)")
    return Checkpoint(files[0][0], files[1][0] if expected_best else None, about)


def _link(file: Path, name: Path) -> None:
    """Link a second name to the file's content, which stays when the first gets another content; copy it if the disk has no links."""
    name.unlink(missing_ok=True)
    try:
        os.link(file, name)
    except OSError as error:
        if is_disk_full(error):
            raise
        shutil.copyfile(file, name)
    with name.open("rb") as opened:
        os.fsync(opened.fileno())
