"""Pairs of vectors that may be near to each other, from an index over cells instead of by comparing all with all."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import log2

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
BANDS = 2
CELLS = 3.0
"""Width of a cell, in units of the distance that two vectors may have within a band. More than 1, so that only neighbours are reached."""
SPARE_BITS = 3
"""A key distinguishes 8 times as many cells as there are vectors. With two bands of such cells 70,000 real images (Fashion-MNIST) had 820
cells and candidates each, and 200,000 made-up ones 1,150: of 40 combinations that were tried nearly the fewest for both."""
ROWS_AT_ONCE = 1024
CANDIDATES_AT_ONCE = 250_000
"""Bounds of the memory beside the vectors: some tens of megabytes."""
ENOUGH_FOR_AXES = 10_000
_ROUNDING = 1e-5


def candidate_pairs(vectors: NDArray[np.float32], others: NDArray[np.float32], cosine: float) -> Iterator[tuple[Rows, Rows]]:
    """Yield rows of `vectors` and rows of `others`: every pair whose cosine is above `cosine`, some several times, and other pairs too.

    vectors, others: [N, F] of length 1, the same array to compare a set with itself; then each pair comes in one order or the other.
    No such pair is missed. Where most vectors have few others near to them, the time grows little faster than the set.

    The space is turned so that few coordinates separate most vectors, its coordinates are divided into bands, and each band is cut into
    cells. Two unit vectors above the cosine c are at most sqrt(2 - 2c) apart, so in at least one of B bands the squares of their
    differences sum to (2 - 2c) / B or less. Where they are in different cells there, both are no further from the walls between than
    they are from each other, so that for one of the two the squares of its distances from these walls sum to half of that or less.
    Looking into all cells that each vector reaches by so much therefore finds the pair. Source of the idea: multi-index hashing
    (Norouzi, Punjani and Fleet 2012, https://arxiv.org/abs/1307.2982), with distances in place of a number of bits.
    """
    if not len(vectors):
        return
    square = (2 - 2 * cosine + _ROUNDING) / BANDS
    turned, turned_others = _along_main_axes(vectors, others)
    for band in range(BANDS):
        grid = _grid(turned[:, band::BANDS], CELLS * square**0.5)
        one, other = (_Cells(of[:, band::BANDS], grid) for of in (turned, turned_others))
        yield from _found(one, other, square / 2)
        if others is not vectors:
            yield from ((rows, columns) for columns, rows in _found(other, one, square / 2))


def crowded_cells(vectors: NDArray[np.float32], cosine: float, crowd: int) -> Iterator[Rows]:
    """Yield the rows of each cell that holds more than `crowd` vectors."""
    if len(vectors) <= crowd:
        return
    band = _along_main_axes(vectors, vectors)[0][:, ::BANDS]
    grid = _grid(band, CELLS * ((2 - 2 * cosine) / BANDS) ** 0.5)
    keys = _Cells(band + grid.width / 2, grid).keys  # a crowd that most vectors are in is around the median, where the walls would be
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order]))
    yield from (rows for rows in np.split(order, starts + 1) if len(rows) > crowd)


def _along_main_axes(vectors: NDArray[np.float32], others: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rotate both to the principal axes of `vectors`, longest first, centred at the medians. Distances don't change."""
    some = vectors[:: 1 + len(vectors) // ENOUGH_FOR_AXES]
    axes = np.linalg.eigh(some.T @ some)[1][:, ::-1]
    turned = vectors @ axes
    middle = np.median(turned, axis=0)
    return turned - middle, (turned if others is vectors else others @ axes) - middle


@dataclass(frozen=True)
class _Grid:
    """width: of a cell. steps: what a step along each coordinate adds to a key. shift: bits of a key that no bucket's number has."""

    width: float
    steps: NDArray[np.uint64]
    shift: np.uint64


def _grid(vectors: NDArray[np.float32], width: float) -> _Grid:
    """Choose as many coordinates, the most spread first, as separate enough cells: where all vectors are alike, cells only cost time."""
    spread = vectors.std(axis=0)
    bits = np.cumsum(np.log2(1 + 4 * spread / width))
    enough = 1 + int(np.searchsorted(bits, log2(len(vectors)) + SPARE_BITS))
    number = max(1, min(enough, int(np.count_nonzero(spread > width / 4))))
    steps = np.random.default_rng(0).integers(0, 2**64, number, dtype=np.uint64) | np.uint64(1)
    return _Grid(width, steps, np.uint64(64 - round(log2(len(vectors)) + SPARE_BITS)))


class _Cells:
    """The cells of vectors in a grid. keys: [N] of their cells, by multiplicative hashing: cells may share a bucket, none has two."""

    def __init__(self, vectors: NDArray[np.float32], grid: _Grid) -> None:
        used = vectors[:, : len(grid.steps)]
        cells = np.floor(used / grid.width)
        self.grid = grid
        self.above = used - cells * grid.width
        self.keys = (cells.astype(np.int64).view(np.uint64) * grid.steps).sum(axis=1, dtype=np.uint64)

    def reached(self, start: int, reach: float) -> tuple[Rows, NDArray[np.uint64]]:
        """Return rows from `start` on, and the keys of all cells that each reaches across walls whose squared distances sum to at most
        `reach`.
        """
        above = self.above[start : start + ROWS_AT_ONCE]
        rows, keys, spent = np.arange(len(above)), self.keys[start : start + ROWS_AT_ONCE], np.zeros(len(above), np.float32)
        for down, step in zip(np.square(above).T, self.grid.steps, strict=True):
            up = np.square(self.grid.width - np.sqrt(down))
            found = [(rows, keys, spent)]
            for cost, stepped in ((down, keys - step), (up, keys + step)):
                after = spent + cost[rows]
                more = np.flatnonzero(after <= reach)
                found.append((rows[more], stepped[more], after[more]))
            rows, keys, spent = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return start + rows, keys


def _found(one: _Cells, other: _Cells, reach: float) -> Iterator[tuple[Rows, Rows]]:
    """Yield rows of one set, and the rows of the other in cells that they reach, about CANDIDATES_AT_ONCE at a time."""
    shift = one.grid.shift
    buckets = other.keys >> shift
    order = np.argsort(buckets, kind="stable")
    starts = np.searchsorted(buckets[order], np.arange((1 << (64 - int(shift))) + 1, dtype=np.uint64))
    for start in range(0, len(one.keys), ROWS_AT_ONCE):
        rows, keys = one.reached(start, reach)
        reached = (keys >> shift).astype(np.int64)
        first = starts[reached]
        found = starts[reached + 1] - first
        some = np.flatnonzero(found)
        ends = np.cumsum(found[some])
        cuts = np.searchsorted(ends, np.arange(CANDIDATES_AT_ONCE, ends[-1] if len(ends) else 0, CANDIDATES_AT_ONCE))
        for part in np.split(some, cuts):
            number = found[part]
            nth = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
            yield np.repeat(rows[part], number), order[np.repeat(first[part], number) + nth]
