"""Fitted images kept within a run, so that no epoch decodes and resizes again what an earlier one has."""

import mmap
import os
from math import prod
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlkit.errors import CacheUnavailable
from tlkit.files import format_bytes


class DecodedCache:
    """[S, S, C] uint8 images by row, in a file that has no name: it is gone with the last process that has it open, even a killed one.

    Forked worker processes fill and read the same rows. Read and written, not mapped: so a full disk is an error and kills no process, and
    images don't count as this process's memory.
    """

    def __init__(self, rows: int, shape: tuple[int, int, int], folder: Path) -> None:
        """Create the file in `folder`, which must have room for all rows. Raises CacheUnavailable if it hasn't."""
        if not hasattr(os, "pread"):
            raise CacheUnavailable("this system can't read and write at an offset of a file")
        self._shape = shape
        self._a_row = prod(shape)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: Any = TemporaryFile(dir=folder)  # noqa: SIM115 (open as long as this lives)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), 0, max(1, rows * self._a_row))
        except OSError as error:
            raise CacheUnavailable(f"{folder} has no room for {format_bytes(rows * self._a_row)}: {error.strerror}") from error
        self._there = mmap.mmap(-1, max(1, rows))  # shared with forked processes: a byte a row

    def get(self, row: int) -> NDArray[np.uint8] | None:
        """Return the image, read-only, or None."""
        if not self._there[row]:
            return None
        kept = os.pread(self._file.fileno(), self._a_row, row * self._a_row)
        return np.frombuffer(kept, np.uint8).reshape(self._shape)

    def put(self, row: int, image: NDArray[np.uint8]) -> None:
        """Store an image, unless the disk has become full."""
        try:
            written = os.pwrite(self._file.fileno(), np.ascontiguousarray(image).data, row * self._a_row)
        except OSError:  # only where space can't be reserved, as on macOS
            return
        if written == self._a_row:
            self._there[row] = 1  # after the image itself: who sees the mark finds the whole of it
