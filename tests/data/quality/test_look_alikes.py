"""Thousands of look-alikes are compared with a few of them each, and none that has one in another split is lost."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tlkit.data.quality import candidate_pairs, look_alikes
from tlkit.data.quality.look_alikes import SAME, find_balls
from tlkit.data.quality.near_duplicates import _without_crowds, directions, find_near, mirrored

Dct = NDArray[np.float32]


def frames(number: int, scenes: int, noise: float, *, distinct: int, seed: int = 0) -> Dct:
    """Distinct images, then frames of a few scenes, each with noise of up to so many times the scene's own contrast."""
    draws = np.random.default_rng(seed)
    scene = draws.normal(0, 100, (scenes, 64))
    amount = noise * draws.uniform(0, 1, (number, 1))
    shots = scene[draws.integers(0, scenes, number)] + amount * draws.normal(0, 100, (number, 64))
    return np.concatenate([draws.normal(0, 100, (distinct, 64)), shots]).astype(np.float32)


def near_by_all_with_all(dct: Dct, *, both: bool) -> NDArray[np.bool_]:
    """[N, N]: by products of matrices, of images as they are or mirrored: the second of a pair, or with `both` either of the two."""
    distinct = _without_crowds(dct)
    vectors, turned = directions(dct, of=distinct), directions(mirrored(dct), of=distinct)
    cosines = vectors @ turned.T if both else np.triu(vectors @ turned.T)
    near = np.maximum(vectors @ vectors.T, np.maximum(cosines, cosines.T)) > SAME
    np.fill_diagonal(near, False)
    return near


@pytest.fixture
def small_crowds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts as a crowd, and as a ball, scaled down to sets that all with all can be tried on."""
    monkeypatch.setattr(look_alikes, "CROWD", 16)
    monkeypatch.setattr(look_alikes, "FEWEST", 8)


@pytest.mark.usefixtures("small_crowds")
@pytest.mark.parametrize("noise", [0.02, 0.1, 0.15, 0.3])  # most pairs are near, some are, few are, hardly any
@pytest.mark.parametrize("scenes", [1, 12])
def test_every_look_alike_in_another_split_is_found_and_every_group(scenes: int, noise: float) -> None:
    dct = frames(900, scenes, noise, distinct=300)
    dct[1000:1100] = mirrored(dct[900:1000])
    ranks = np.random.default_rng(1).choice(3, len(dct), p=[0.9, 0.05, 0.05])
    found = find_near(dct, np.arange(len(dct)), ranks)
    needed, allowed = (near_by_all_with_all(dct, both=both) for both in (False, True))
    across = ranks[:, None] != ranks[None]
    assert found.across[(needed & across).any(1)].all()
    assert not found.across[~(allowed & across).any(1)].any()
    assert all(set(found.group[needed[row]].tolist()) <= {found.group[row]} for row in range(len(dct)))
    later = np.flatnonzero(found.later >= 0)
    assert (ranks[found.later[later]] > ranks[later]).all()
    assert allowed[later, found.later[later]].all()


@pytest.mark.usefixtures("small_crowds")
def test_look_alikes_are_in_balls() -> None:
    assert len(find_balls(directions(frames(900, 12, 0.1, distinct=300)))) >= 12


def test_a_crowd_is_compared_in_far_fewer_pairs_than_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: pairs that are looked at, by an image each."""
    looked_at: list[int] = []

    def counted(*arguments: object) -> object:
        for rows, columns in candidate_pairs.candidate_pairs(*arguments):  # type: ignore[arg-type]
            looked_at.append(len(rows))
            yield rows, columns

    above = look_alikes._above

    def counted_above(*arguments: object) -> object:
        looked_at.append(len(arguments[0]))  # type: ignore[arg-type]
        return above(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("tlkit.data.quality.near_duplicates.candidate_pairs", counted)
    monkeypatch.setattr(look_alikes, "_above", counted_above)
    each = []
    for number in (1_000, 4_000):
        looked_at.clear()
        dct = frames(number, 1, 0.02, distinct=500)
        find_near(dct, np.arange(len(dct)), np.arange(len(dct)) % 3)
        each.append(sum(looked_at) / len(dct))
    assert each[0] < 150
    assert each[1] < 1.5 * each[0]


@pytest.mark.parametrize("distinct", [0, 50])
def test_a_set_that_is_nearly_all_one_scene_is_near_duplicates(distinct: int) -> None:
    """Relative to a mean over all of them they would differ by noise alone."""
    dct = frames(1_000, 1, 0.02, distinct=distinct)
    found = find_near(dct, np.arange(len(dct)), np.arange(len(dct)) % 3)
    assert found.across[distinct:].all()
    assert not found.across[:distinct].any()


def test_what_stands_for_a_crowd_may_be_an_exact_copy() -> None:
    """The first of the crowd in train is the held-out image itself; another of the crowd is still found for it."""
    dct = frames(600, 1, 0.02, distinct=300)
    dct[300] = dct[899]
    known, ranks = np.arange(len(dct)), np.zeros(len(dct), int)
    known[899], ranks[899] = known[300], 1
    found = find_near(dct, known, ranks)
    assert found.across[899]
