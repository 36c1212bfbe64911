"""An index finds every pair of vectors that comparing all with all finds, and looks at few others."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from tlkit.data.quality.candidate_pairs import candidate_pairs

COSINE = 0.985


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9), np.float32)


def pairs(vectors: NDArray[np.float32], others: NDArray[np.float32]) -> set[tuple[int, int]]:
    found = candidate_pairs(vectors, others, COSINE)
    return {pair for rows, columns in found for pair in zip(rows.tolist(), columns.tolist(), strict=True)}


def spread(draws: np.random.Generator) -> NDArray[np.float64]:
    return draws.normal(size=(600, 64))


def in_few_directions(draws: np.random.Generator) -> NDArray[np.float64]:
    """As real images: most of what tells them apart is in a few coordinates, and the last ones hardly differ."""
    turn = np.linalg.qr(draws.normal(size=(64, 64)))[0]
    return draws.normal(size=(600, 64)) * 0.8 ** np.arange(64) @ turn


def in_clusters(draws: np.random.Generator) -> NDArray[np.float64]:
    return draws.normal(size=(60, 64))[draws.integers(0, 60, 600)] + 0.1 * draws.normal(size=(600, 64))


@pytest.mark.parametrize("made", [spread, in_few_directions, in_clusters])
def test_no_pair_above_the_threshold_is_missed(made: Callable[[np.random.Generator], NDArray[np.float64]]) -> None:
    draws = np.random.default_rng(0)
    vectors = unit(made(draws))
    # A third of them once more, at angles up to twice the threshold's.
    away = unit(draws.normal(size=(200, 64))) * draws.uniform(0, 0.35, (200, 1))
    vectors = unit(np.concatenate([vectors, vectors[:200] + away]))
    mirrored = unit(vectors[::-1] + 0.01 * draws.normal(size=vectors.shape))
    for others in (vectors, mirrored):
        expected = set(zip(*np.nonzero(vectors @ others.T > COSINE), strict=True))
        found = pairs(vectors, others)
        if others is vectors:  # then a pair comes in one order or the other
            found |= {(column, row) for row, column in found}
        assert len(expected) > len(vectors)
        assert expected <= found


@pytest.mark.parametrize("vectors", [np.zeros((0, 64)), np.ones((1, 64)), np.ones((3, 64)), np.eye(64)])
def test_sets_that_are_empty_tiny_or_all_alike_are_compared_too(vectors: NDArray[np.float64]) -> None:
    vectors = unit(vectors)
    assert set(zip(*np.nonzero(vectors @ vectors.T > COSINE), strict=True)) <= pairs(vectors, vectors)


def test_few_pairs_are_looked_at_and_their_share_falls_as_the_set_grows() -> None:
    """Counted, not timed. All with all is a share of 1."""
    draws = np.random.default_rng(0)
    shares = []
    for number in (2_000, 16_000):
        vectors = unit(draws.normal(size=(number, 64)))
        looked_at = sum(len(rows) for rows, _ in candidate_pairs(vectors, vectors, COSINE))
        shares.append(looked_at / (number * (number - 1) / 2))
    assert shares[0] < 1 / 10
    assert shares[1] < shares[0] / 2
