"""A file from the network, with a time limit and a progress bar."""

from pathlib import Path
from urllib.request import Request, urlopen

import tlkit
from tlkit.data.progress import progress, progress_console

SILENT_S = 20.0
"""Longest time without data from a host."""
PIECE_BYTES = 1 << 20


def download(url: str, file: Path) -> None:
    """Write what the address gives into the file. Raises OSError if it can't be reached, refuses, or falls silent."""
    request = Request(url, headers={"User-Agent": f"tlkit/{tlkit.__version__}"})  # noqa: S310  # the addresses are in our own table
    with (
        urlopen(request, timeout=SILENT_S) as response,  # noqa: S310
        file.open("wb") as opened,
        progress(progress_console(), f"downloading {file.name}", response.length, unit="bytes") as advance,
    ):
        while piece := response.read(PIECE_BYTES):
            opened.write(piece)
            advance(len(piece))
