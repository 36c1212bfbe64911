"""Images that are the same to the eye: found by a perceptual hash, confirmed by the numbers that the hash was made of."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tlkit.data.decode import NeededSize, decode
from tlkit.data.preprocess import Preprocessing
from tlkit.data.quality.candidate_pairs import candidate_pairs
from tlkit.data.quality.look_alikes import SAME, Ball, Pairs, find_balls, pairs_with_balls
from tlkit.data.samples import ImageSource, Sample
from tlkit.errors import DataError
from tlkit.files import atomic_file, key_of
from tlkit.system import cache_folder

SIDE_PX, DCT_SIZE = 32, 8
HAMMING_RADIUS = 10
"""Largest Hamming distance of 64 bits: of Fashion-MNIST's 2.4 billion pairs of images, every one above SAME differs in 9 bits or fewer."""
FLAT = 2.0
"""Contrast up to which an image has nothing to be compared by: blank ones are equal or they aren't."""
PRIOR_IMAGES = 64
"""A small set's own mean and spread count for little, so these many images with a photograph's spectrum are mixed in."""
PAIRS_AT_ONCE = 1_000_000
THREADS = 4

Dct = NDArray[np.float32]
"""[N, 64]: the slowest cosine waves of each image's brightness, by frequency down and across; NaN where it can't be read."""


class Decode(Protocol):
    """`tlkit.data.decode.decode` with its settings."""

    def __call__(self, image: ImageSource, *, needed: NeededSize | None = None) -> NDArray[np.uint8]: ...


def dct_of(samples: Sequence[Sample], decoded: Decode = decode, on_image: Callable[[int], None] = lambda images: None) -> Dct:
    """Return the DCT coefficients of the images. decoded: the decoder with its settings; its result is converted to grey.

    Uses scipy's DCT on the decoder's pixels: imagehash (BSD-2) gives such bits too, but opens files in its own way and hides the
    coefficients behind the bits. Without them, most pairs that the bits find in Fashion-MNIST are different pairs of trousers.
    """
    found = np.empty((len(samples), DCT_SIZE * DCT_SIZE), np.float32)
    with ThreadPoolExecutor(THREADS) as threads:
        for row, small in enumerate(threads.map(lambda sample: _thumbnail(sample, decoded), samples)):
            found[row] = np.nan if small is None else dctn(small, norm="ortho")[:DCT_SIZE, :DCT_SIZE].ravel()
            on_image(1)
    return found


def _thumbnail(sample: Sample, decoded: Decode) -> NDArray[np.float32] | None:
    """Return the brightness, [32, 32] in 0..255; None for an image that can't be read, which other checks report."""
    try:
        image = decoded(sample.image, needed=thumbnail_size)
    except DataError:
        return None
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.shape[2] == 3 else image.mean(2)  # of other channels than three the mean
    way = cv2.INTER_AREA if min(grey.shape) > SIDE_PX else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(grey.astype(np.float32), (SIDE_PX, SIDE_PX), interpolation=way), np.float32)


def thumbnail_size(width: int, height: int) -> tuple[int, int]:
    """Return the size at which a larger JPEG may be decoded: many times faster, and enough for a thumbnail."""
    return 128, 128


def directions(dct: Dct, of: Dct | None = None) -> NDArray[np.float32]:
    """Return unit vectors, [N, 64]: how each image differs from the set's mean, each coefficient divided by its spread.

    So what all images share (a white ground, the shape of a shirt) doesn't make them similar; only their differences count.
    of: the set, if it is another than these images.
    """
    of = dct if of is None else of
    spectrum, number = _spectrum(), len(of)
    readable = of[~np.isnan(of[:, 0])]
    mean, variance = (readable.mean(0), readable.var(0)) if len(readable) else (np.zeros(64), np.ones(64))
    prior = spectrum * max(1.0, float(variance.sum())) / spectrum.sum()
    spread = np.sqrt((number * variance + PRIOR_IMAGES * prior) / (number + PRIOR_IMAGES))
    away = (dct - mean * number / (number + PRIOR_IMAGES)) / spread
    return np.asarray(away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-6), np.float32)


def _spectrum() -> NDArray[np.float64]:
    """Return the spectrum, [64]: the variance of photographs falls with the square of the frequency."""
    down, across = np.mgrid[:DCT_SIZE, :DCT_SIZE]
    return np.asarray((1 / (1 + np.hypot(down, across)) ** 2).ravel(), np.float64)


def _without_crowds(dct: Dct) -> Dct:
    """Leave out all but one of each crowd of look-alikes: else what is said of a set that is mostly one scene is noise alone, in which
    no frame is near to another."""
    rows = np.flatnonzero(_contrast(dct) > FLAT)
    shapes = dct[rows, 1:] / np.sqrt(_spectrum()[1:], dtype=np.float32)
    crowds = find_balls(shapes / np.linalg.norm(shapes, axis=1, keepdims=True))
    return np.delete(dct, np.concatenate([rows[ball.rows[1:]] for ball in crowds]), axis=0) if crowds else dct


def mirrored(dct: Dct) -> Dct:
    """Return the coefficients of the mirrored images: those with an odd number of half periods across change sign."""
    return dct * np.where(np.arange(DCT_SIZE * DCT_SIZE) % DCT_SIZE % 2, -1, 1).astype(np.float32)


@dataclass(frozen=True)
class Near:
    """What is near to each image, [N]. group: images linked by any chain have the same number. score: the highest cosine, 0 if none.

    later: the nearest one in a later split (train, val, test), or -1. across: whether one is in any other split.
    An image that is near to hundreds is compared with a few of them: its score and `later` are then those of one of these.
    """

    group: NDArray[np.int64]
    score: NDArray[np.float32]
    later: NDArray[np.int64]
    across: NDArray[np.bool_]


def find_near(dct: Dct, known: NDArray[np.int64], ranks: NDArray[np.int64]) -> Near:
    """Find near duplicates.

    known: images with the same number are known to be equal and not reported again. ranks: of their splits, train first.
    The first of equal images in one split stands for all, so that ten thousand black images are not fifty million pairs.
    Memory grows with the number of images, not of pairs.
    """
    number = len(dct)
    near = Near(np.arange(number), np.zeros(number, np.float32), np.full(number, -1), np.zeros(number, bool))
    best_later = np.zeros(number, np.float32)
    group = near.group
    _, first, stands_for = np.unique(np.stack([known, ranks]), axis=1, return_index=True, return_inverse=True)
    representative = first[stands_for.ravel()]
    first = np.sort(first[_contrast(dct[first]) > FLAT])
    distinct = _without_crowds(dct)
    vectors, turned = directions(dct[first], of=distinct), directions(mirrored(dct[first]), of=distinct)
    balls = find_balls(vectors)
    in_balls = (pairs_with_balls(balls, vectors, others, ranks[first]) for others in (vectors, turned))
    for rows, columns, cosines in _many_at_once(chain(*in_balls, _pairs(vectors, vectors, balls), _pairs(vectors, turned, balls))):
        one, other = first[rows], first[columns]
        new = known[one] != known[other]
        one, other, cosines = one[new], other[new], cosines[new]
        group = joined(group, one, other)
        for here, there in ((one, other), (other, one)):
            np.maximum.at(near.score, here, cosines)
            near.across[here[ranks[here] != ranks[there]]] = True
            better = (ranks[there] > ranks[here]) & (cosines > best_later[here])
            order = np.argsort(cosines[better])  # of several for one image the last, the nearest, stays
            best_later[here[better][order]] = cosines[better][order]
            near.later[here[better][order]] = there[better][order]
    return Near(group[representative], near.score[representative], near.later[representative], near.across[representative])


def _many_at_once(parts: Iterable[Pairs]) -> Iterator[Pairs]:
    """Yield the same pairs in few parts: each costs its user a look at every image."""
    gathered: list[Pairs] = []
    for part in parts:
        gathered.append(part)
        if sum(len(rows) for rows, _, _ in gathered) >= PAIRS_AT_ONCE:
            yield _one(gathered)
            gathered = []
    if gathered:
        yield _one(gathered)


def _one(parts: list[Pairs]) -> Pairs:
    rows, columns, cosines = (np.concatenate(part) for part in zip(*parts, strict=True))
    return rows, columns, cosines


def _pairs(vectors: NDArray[np.float32], others: NDArray[np.float32], balls: Sequence[Ball]) -> Iterator[Pairs]:
    """Yield rows in no ball, larger rows of the others, and cosines of all pairs above SAME, some at a time and some pairs several times.

    Where the others are the vectors, both are in no ball.
    """
    loose = np.setdiff1d(np.arange(len(vectors)), np.concatenate([np.zeros(0, np.int64), *(ball.rows for ball in balls)]))
    own = vectors[loose] if balls else vectors
    theirs, places = (own, loose) if others is vectors else (others, np.arange(len(others)))
    bits, other_bits = (np.packbits(of > 0, axis=1).view(np.uint64).ravel() for of in (vectors, others))
    for rows, columns in candidate_pairs(own, theirs, SAME):
        one, other = loose[rows], places[columns]
        if others is vectors:
            one, other = np.minimum(one, other), np.maximum(one, other)
        alike = np.flatnonzero((np.bitwise_count(bits[one] ^ other_bits[other]) <= HAMMING_RADIUS) & (one < other))
        one, other = one[alike], other[alike]
        cosines = np.einsum("ij,ij->i", vectors[one], others[other])
        same = cosines > SAME
        if same.any():
            yield one[same], other[same], cosines[same]


def _contrast(dct: Dct) -> NDArray[np.float32]:
    """Return the standard deviation of brightness, in levels of 0..255; NaN for an image that can't be read."""
    return np.asarray(np.linalg.norm(dct[:, 1:], axis=1) / SIDE_PX, np.float32)


def joined(group: NDArray[np.int64], one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the groups after merging those of each pair."""
    if not len(one):
        return group
    links = coo_array((np.ones(len(one), bool), (group[one], group[other])), shape=(len(group), len(group)))
    _, number = connected_components(links, directed=False)
    return np.asarray(number[group], np.int64)


FORMAT = 2
FOLDER = "dct"


def cached_dct(samples: Sequence[Sample], hashes: Mapping[str, str], preprocessing: Preprocessing, on_image: Callable[[int], None]) -> Dct:
    """Return what dct_of gives, 256 bytes per image, from the cache where it is. hashes: an image's id -> its sha256, part of the key."""
    facts = [FORMAT, preprocessing.to_json(), [hashes[sample.id] for sample in samples]]
    file = cache_folder() / FOLDER / f"{key_of(facts)}.npy"
    with suppress(OSError, ValueError):
        found = np.load(file, allow_pickle=False)
        if found.shape == (len(samples), DCT_SIZE * DCT_SIZE) and found.dtype == np.float32:
            on_image(len(samples))
            return np.asarray(found, np.float32)
    dct = dct_of(samples, preprocessing.decode, on_image)
    if not np.isnan(dct).any():  # else one may become readable under the same hash: a disk, permissions
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(file, durable=False) as writing, writing.open("wb") as opened:
                np.save(opened, dct)
    return dct
