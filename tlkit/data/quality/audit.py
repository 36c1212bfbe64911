"""What is wrong with a set of images as a set: the same one twice, on two sides of a split, under two labels, or labelled wrongly."""

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tlkit.data.quality.label_errors import Doubts
from tlkit.data.quality.near_duplicates import Dct, Decode, find_near, joined
from tlkit.data.samples import Sample, Samples
from tlkit.errors import DataError
from tlkit.files import write_csv

Kind = Literal["exact", "near", "similar", "label"]
RANKS = {"": 0, "train": 0, "val": 1, "test": 2}
"""Order of splits: of two copies the one in the later split stays, so that held-out images are kept."""
COLUMNS = ("finding", "kind", "id", "split", "label", "score", "across_splits", "two_labels", "suggestion")
PAIRS = 50
ROWS_AT_ONCE = 1024
THREADS = 4


@dataclass(frozen=True)
class Finding:
    """rows: of the set's samples, what stays first. scores: of each row a cosine, 1 for equal images; of a label its probability.

    called: of a doubted label, the class that speaks against it.
    """

    kind: Kind
    rows: tuple[int, ...]
    scores: tuple[float, ...]
    suggestion: str
    across: bool = False
    two_labels: bool = False
    called: str = ""


@dataclass(frozen=True)
class Duplicates:
    """findings: the gravest first. alike: [N], the same number for equal and near images. dropped: row -> why, for a cleaned list."""

    findings: tuple[Finding, ...]
    alike: NDArray[np.int64]
    dropped: Mapping[int, str]
    leaked_exact: int
    leaked_near: int
    """Held-out images that another split has too."""


@dataclass(frozen=True)
class Audit:
    """All that an audit found. report: the leak report. kinds: what was looked for. note: what was not, and why."""

    samples: Samples
    findings: Sequence[Finding]
    report: Mapping[str, Any]
    kinds: Collection[str]
    note: str = ""


def pixel_hashes(samples: Sequence[Sample], decoded: Decode, on_image: Callable[[int], None] = lambda images: None) -> list[str]:
    """Return the sha256 of each decoded image; empty for one that can't be read. decoded: the decoder with its settings."""
    found = []
    with ThreadPoolExecutor(THREADS) as threads:
        for digest in threads.map(lambda sample: _pixel_hash(sample, decoded), samples):
            found.append(digest)
            on_image(1)
    return found


def _pixel_hash(sample: Sample, decoded: Decode) -> str:
    try:
        pixels = decoded(sample.image)
    except DataError:
        return ""
    return sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()


def find_duplicates(samples: Sequence[Sample], equal: Sequence[str], dct: Dct) -> Duplicates:
    """Find equal and nearly equal images. equal: a hash of each image; images with the same hash are equal."""
    _, known = np.unique(np.array(equal), return_inverse=True)
    ranks = np.array([RANKS[sample.split] for sample in samples])
    near = find_near(dct, known, ranks)
    dropped: dict[int, str] = {}
    findings = [_exact(samples, rows, dropped) for rows in _groups(known)]
    # A group of near ones holds at least two different images; of equal ones in it the first is shown.
    for rows in _groups(near.group):
        if len(set(known[rows].tolist())) > 1:
            findings.append(_near(samples, _first_of_each(rows, known, ranks), near.score, bool(near.across[rows].any())))
    # Only of what is in another split: near ones in the same split do no harm.
    for row in np.flatnonzero(near.later >= 0).tolist():
        dropped.setdefault(row, f"nearly the same as {place_of(samples[near.later[row]])}")
    across = {row for finding in findings if finding.kind == "exact" and finding.across for row in finding.rows}
    held_out = ranks > 0
    _, first = np.unique(known, return_index=True)
    return Duplicates(
        tuple(sorted(findings, key=lambda finding: (not finding.across, not finding.two_labels, finding.kind, -max(finding.scores)))),
        joined(near.group, np.arange(len(samples)), first[known]),
        dropped,
        leaked_exact=sum(bool(held_out[row]) for row in across),
        leaked_near=int((near.across & held_out & ~np.isin(np.arange(len(samples)), list(across))).sum()),
    )


def _groups(numbers: NDArray[np.int64]) -> Iterable[list[int]]:
    """Yield the rows of each number that occurs more than once."""
    order = np.argsort(numbers, kind="stable")
    starts = np.flatnonzero(np.diff(numbers[order], prepend=-1))
    return [rows.tolist() for rows in np.split(order, starts[1:]) if len(rows) > 1]


def _exact(samples: Sequence[Sample], rows: list[int], dropped: dict[int, str]) -> Finding:
    rows = sorted(rows, key=lambda row: (-RANKS[samples[row].split], samples[row].id))
    stays = samples[rows[0]]
    across, two_labels = _across(samples, rows), _two_labels(samples, rows)
    if two_labels:
        suggestion = "the same image has two labels: keep the right one"
        dropped.update((row, "the same image has another label elsewhere") for row in rows)
    else:
        suggestion = f"keep {place_of(stays)}" + (", or the figures will look too good" if across else "")
        dropped.update((row, f"the same as {place_of(stays)}") for row in rows[1:])
    return Finding("exact", tuple(rows), (1.0,) * len(rows), suggestion, across, two_labels)


def _near(samples: Sequence[Sample], rows: list[int], score: NDArray[np.float32], across: bool) -> Finding:
    rows = sorted(rows, key=lambda row: (-RANKS[samples[row].split], samples[row].id))
    two_labels = _two_labels(samples, rows)
    if two_labels:
        suggestion = "nearly the same image has two labels: one may be wrong"
    elif across:
        suggestion = "remove the training copy, or the figures will look too good"
    else:
        suggestion = "harmless within one split; give them one group, so that they stay in one split"
    return Finding("near", tuple(rows), tuple(round(float(score[row]), 4) for row in rows), suggestion, across, two_labels)


def _first_of_each(rows: list[int], known: NDArray[np.int64], ranks: NDArray[np.int64]) -> list[int]:
    return list({(int(known[row]), int(ranks[row])): row for row in reversed(rows)}.values())


def _across(samples: Sequence[Sample], rows: Iterable[int]) -> bool:
    return len({samples[row].split for row in rows}) > 1


def _two_labels(samples: Sequence[Sample], rows: Iterable[int]) -> bool:
    return len({samples[row].labels for row in rows}) > 1


def place_of(sample: Sample) -> str:
    """Return `val: 12.png`, or the id alone if it names the split."""
    return sample.id if not sample.split or sample.id.startswith(f"{sample.split}/") else f"{sample.split}: {sample.id}"


def label_findings(samples: Samples, doubts: Doubts) -> list[Finding]:
    """Return a finding for each doubted label, the least likely first."""
    names = samples.classes
    return [
        Finding("label", (row,), (round(confidence, 4),), f"look at it: the others say {names[called]}", called=names[called])
        for row, called, confidence in zip(doubts.rows.tolist(), doubts.called.tolist(), doubts.confidences.tolist(), strict=True)
    ]


def closest_pairs(samples: Sequence[Sample], features: NDArray[np.float32], alike: NDArray[np.int64]) -> list[Finding]:
    """Find the most similar pairs of different images by the backbone's features, across splits if there are splits.

    features: [N, F]. alike: images with the same number are known to be nearly the same already.
    """
    ranks = np.array([RANKS[sample.split] for sample in samples])
    away = features - features.mean(0)
    away /= np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-12)
    several = len(set(ranks.tolist())) > 1
    found: list[tuple[float, int, int]] = []
    for start in range(0, len(away), ROWS_AT_ONCE):
        block = slice(start, start + ROWS_AT_ONCE)
        cosines = away[block] @ away[start:].T
        known_pairs = alike[block, None] == alike[None, start:]
        cosines[known_pairs | (ranks[block, None] == ranks[None, start:]) if several else known_pairs] = -1
        best = cosines.argmax(axis=1)
        found += [(float(cosines[i, j]), start + i, start + int(j)) for i, j in enumerate(best) if cosines[i, j] > 0]
    nearest: dict[int, tuple[float, int, int]] = {}
    for cosine, one, other in sorted(found, reverse=True):  # each image in one pair, its nearest
        if one not in nearest and other not in nearest:
            nearest[one] = nearest[other] = (cosine, one, other)
    return [_similar(samples, (one, other), cosine) for cosine, one, other in list(dict.fromkeys(nearest.values()))[:PAIRS]]


def _similar(samples: Sequence[Sample], rows: tuple[int, int], cosine: float) -> Finding:
    two_labels = _two_labels(samples, rows)
    suggestion = "look at it: very similar, but labelled differently" if two_labels else "look at it: the same thing twice?"
    return Finding("similar", rows, (round(cosine, 4),) * 2, suggestion, _across(samples, rows), two_labels)


def described(samples: Samples, row: int) -> dict[str, str]:
    """Return id, split and label of an image."""
    sample = samples.samples[row]
    return {"id": sample.id, "split": sample.split, "label": samples.label_text(sample)}


def write_audit(samples: Samples, findings: Sequence[Finding], file: Path) -> None:
    """Write audit.csv: a row for each image of each finding."""
    rows: list[dict[str, object]] = []
    for number, finding in enumerate(findings, start=1):
        facts = {"finding": number, "kind": finding.kind, "suggestion": finding.suggestion}
        facts |= {"across_splits": _yes(finding.across), "two_labels": _yes(finding.two_labels)}
        scored = zip(finding.rows, finding.scores, strict=True)
        rows += ({**facts, **described(samples, row), "score": score} for row, score in scored)
    write_csv(file, COLUMNS, rows)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def write_cleaned(samples: Samples, dropped: Mapping[int, str], doubts: Iterable[Finding], folder: Path) -> dict[str, str]:
    """Write cleaned.csv, and removed.csv with the reason for each image that cleaned.csv lacks; return the `data.source` that reads the
    former.

    Doubted labels are marked in the column `doubt`, which isn't read: people decide whether they are wrong.
    """
    files = [Path(os.path.abspath(str(sample.image))) for sample in samples.samples]
    root = Path(os.path.commonpath([file.parent for file in files]))
    doubted = {finding.rows[0]: finding.called for finding in doubts}
    kept: list[dict[str, str]] = []
    removed: list[dict[str, str]] = []
    for row, (sample, file) in enumerate(zip(samples.samples, files, strict=True)):
        path = file.relative_to(root).as_posix()
        entry = {"path": path, "label": samples.label_text(sample), "split": sample.split, "group": sample.group or ""}
        if row in dropped:
            removed.append({**entry, "reason": dropped[row]})
        else:
            kept.append({**entry, "doubt": f"{doubted[row]}?" if row in doubted else ""})
    for skipped in samples.skipped:
        sample = skipped.sample
        entry = {"path": sample.id, "label": samples.label_text(sample), "split": sample.split, "group": sample.group or ""}
        removed.append({**entry, "reason": skipped.reason.partition("\n")[0]})
    for name, entries, last in (("cleaned.csv", kept, "doubt"), ("removed.csv", removed, "reason")):
        write_csv(folder / name, ("path", "label", "split", "group", last), entries)
    return {"csv": (folder / "cleaned.csv").as_posix(), "root": root.as_posix()}


def check_can_clean(samples: Samples) -> None:
    """Raise DataError if images aren't files, which a list could name."""
    if not all(isinstance(sample.image, Path) for sample in samples.samples):
        raise DataError("--fix writes a list of image files, and this source's images aren't files of their own.\n  Leave --fix out.")


def check_left(samples: Samples, dropped: Mapping[int, str]) -> None:
    """Raise DataError if a class would have no training image any more."""
    left = {
        label for row, sample in enumerate(samples.samples) if row not in dropped and RANKS[sample.split] == 0 for label in sample.labels
    }
    lost = [name for label, name in enumerate(samples.classes) if label not in left]
    if lost:
        raise DataError(
            f"--fix would leave no training image of {', '.join(lost[:10])}: each is in another split too, or has two labels.\n"
            "  Add images, or take duplicates out by hand; audit.csv has them all."
        )
