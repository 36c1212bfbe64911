"""Decoded and resized images kept within a run, so that no epoch decodes and resizes again what an earlier one has."""

import mmap
import os
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlkit.errors import CacheUnavailable
from tlkit.files import format_bytes


class DecodedCache:
    """[H, W, C] uint8 images by row, in a file that has no name: it is gone with the last process that has it open, even a killed one.

    Forked worker processes fill and read the same rows. Read and written, not mapped: so a full disk is an error and kills no process, and
    images don't count as this process's memory.
    """

    def __init__(self, bytes_per_row: NDArray[np.int64], channels: int, folder: Path) -> None:
        """Create the file in `folder`, which must have room for all rows. bytes_per_row: [N], the most of each.

        Raises CacheUnavailable if it hasn't.
        """
        if not hasattr(os, "pread"):
            raise CacheUnavailable("this system can't read and write at an offset of a file")
        self._ends, self._channels = np.cumsum(bytes_per_row), channels
        rows, needed = len(bytes_per_row), int(bytes_per_row.sum())
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: Any = TemporaryFile(dir=folder)  # noqa: SIM115 (open as long as this lives)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), 0, max(1, needed))
        except OSError as error:
            raise CacheUnavailable(f"{folder} has no room for {format_bytes(needed)}: {error.strerror}") from error
        # Shared with forked processes: height and width of each row, and a byte that says whether it is there.
        self._shapes = np.frombuffer(mmap.mmap(-1, max(1, rows) * 8), np.int32).reshape(-1, 2)
        self._there = mmap.mmap(-1, max(1, rows))

    def get(self, row: int) -> NDArray[np.uint8] | None:
        """Return the image, read-only, or None."""
        if not self._there[row]:
            return None
        height, width = self._shapes[row].tolist()
        start, _ = self._place(row)
        stored = os.pread(self._file.fileno(), height * width * self._channels, start)
        return np.frombuffer(stored, np.uint8).reshape(height, width, self._channels)

    def put(self, row: int, image: NDArray[np.uint8]) -> None:
        """Store an image, unless the disk has become full or the image is larger than its row."""
        start, end = self._place(row)
        if start + image.nbytes > end:
            return
        try:
            written = os.pwrite(self._file.fileno(), np.ascontiguousarray(image).data, start)
        except OSError:  # only where space can't be reserved, as on macOS
            return
        if written == image.nbytes:
            self._shapes[row] = image.shape[:2]
            self._there[row] = 1  # after the image itself: who sees the mark finds the whole of it

    def _place(self, row: int) -> tuple[int, int]:
        return int(self._ends[row - 1]) if row else 0, int(self._ends[row])
