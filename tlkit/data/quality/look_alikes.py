"""Thousands of vectors that are nearly the same, gathered in balls, so that each is compared with a ball and not with all that is in it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlkit.data.quality.candidate_pairs import Rows, crowded_cells

Pairs = tuple[Rows, Rows, NDArray[np.float32]]
"""Rows of one set, rows of another, and the cosine of each pair."""
SAME = 0.985
"""Cosine from which on two images are called near duplicates. Of images resized to 18..56 px and saved as JPEG of quality 50..95,
99 % are above it; of all pairs in Fashion-MNIST 159 do, nearly all of which are the same thing photographed once."""
APART = (2 - 2 * SAME) ** 0.5
"""How far apart vectors of length 1 are at this cosine."""
CROWD = 256
"""Vectors in one cell of the index up to which comparing all of them with each other costs little."""
FEWEST = 64
"""Vectors that are worth a ball."""
TRIES = 16
"""Vectors of one cell around which fewer are found, before the rest of the cell is left as it is."""
FIRST = 2
"""Members of each split that stand for a ball: two, since one may be an exact copy of what is compared, which isn't reported again."""
ROWS_AT_ONCE = 1024
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Ball:
    """rows: of the vectors in it, none of them further than `radius` from the center, which is half of what look-alikes may be apart."""

    rows: Rows
    center: NDArray[np.float32]
    radius: float


def find_balls(vectors: NDArray[np.float32]) -> list[Ball]:
    """Return balls of vectors [N, F] of length 1, disjoint, in each of which every pair is above SAME. Most sets have none."""
    balls = []
    for cell in crowded_cells(vectors, SAME, CROWD):
        left, tries = cell, 0
        while len(left) >= FEWEST and tries < TRIES:
            around = vectors[left[_distances(vectors[left], vectors[left[0]]) <= APART]]
            center = around.mean(axis=0)
            distances = _distances(vectors[left], center)
            inside = distances <= APART / 2 - _ROUNDING
            if inside.sum() >= FEWEST:
                balls.append(Ball(left[inside], center, float(distances[inside].max()) + _ROUNDING))
                left = left[~inside]
            else:
                left, tries = left[1:], tries + 1
    return balls


def pairs_with_balls(balls: list[Ball], vectors: NDArray[np.float32], others: NDArray[np.float32], ranks: Rows) -> Iterator[Pairs]:
    """Yield pairs above SAME of vectors in balls and any of the others: not all of them, but for each of both, where there are any,
    one in each split. ranks: of the splits that vectors, and the others in the same order, are in.

    What is so near to the center that it must be near to all of a ball is compared with a few of it, and what is so far that it can't be
    near to any with none. The others are compared with all of it, by products of matrices.
    """
    for ball in balls:
        distances = _distances(others, ball.center)
        is_near = distances <= APART - ball.radius
        of_each = [ball.rows[ranks[ball.rows] == rank][:FIRST] for rank in np.unique(ranks[ball.rows])]
        for one in np.concatenate(of_each):
            yield _above(np.full(int(is_near.sum()), one), np.flatnonzero(is_near), vectors, others)
        between = np.flatnonzero(~is_near & (distances <= APART + ball.radius))
        for start in range(0, len(between), ROWS_AT_ONCE):
            yield from _nearest(ball.rows, between[start : start + ROWS_AT_ONCE], vectors, others, ranks)


def _nearest(members: Rows, rows: Rows, vectors: NDArray[np.float32], others: NDArray[np.float32], ranks: Rows) -> Iterator[Pairs]:
    """Yield for each row its nearest member in each split, and for each member its nearest row in each split, if it is above SAME."""
    cosines = vectors[members] @ others[rows].T
    cosines[members[:, None] == rows[None]] = -1
    for rank in np.unique(ranks[members]):
        own = np.flatnonzero(ranks[members] == rank)
        yield _above(members[own[cosines[own].argmax(axis=0)]], rows, vectors, others)
    for rank in np.unique(ranks[rows]):
        own = np.flatnonzero(ranks[rows] == rank)
        yield _above(members, rows[own[cosines[:, own].argmax(axis=1)]], vectors, others)


def _above(one: Rows, other: Rows, vectors: NDArray[np.float32], others: NDArray[np.float32]) -> Pairs:
    cosines = np.einsum("ij,ij->i", vectors[one], others[other])
    found = (cosines > SAME) & (one != other)
    return one[found], other[found], cosines[found]


def _distances(vectors: NDArray[np.float32], center: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the distances, [N], of vectors of length 1 from a center."""
    return np.asarray(np.sqrt(np.maximum(1 + center @ center - 2 * (vectors @ center), 0)), np.float32)
