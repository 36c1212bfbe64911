"""The leak report: whether held-out images are in another split too, for the log, metrics.json and the report of a run."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tlkit.data.preprocess import Preprocessing
from tlkit.data.quality.audit import RANKS, Duplicates, described, find_duplicates
from tlkit.data.quality.near_duplicates import DCT_SIZE, cached_dct
from tlkit.data.samples import Samples
from tlkit.recipe.fields.data import LeakCheck

EXAMPLES = 3
_METHODS = {"full": "exactly by sha256, nearly by perceptual hash", "exact": "exactly by sha256 (data.leak_check: exact)"}


def compare_splits(
    samples: Samples, hashes: Mapping[str, str], preprocessing: Preprocessing, on_image: Callable[[int], None], *, how: LeakCheck = "full"
) -> dict[str, Any]:
    """Return the leak report by hashes only: cheap enough for every run. hashes: an image's id -> its sha256; not needed with `off`."""
    images = samples.samples
    if how == "off":
        return leak_report(samples, None, how=how)
    if how == "full":
        dct = cached_dct(images, hashes, preprocessing, on_image)
    else:
        dct = np.full((len(images), DCT_SIZE * DCT_SIZE), np.nan, np.float32)  # near to nothing
    found = find_duplicates(images, [hashes[sample.id] for sample in images], dct)
    return leak_report(samples, found, how=how, unreadable=int(np.isnan(dct[:, 0]).sum()) if how == "full" else 0)


def leak_report(samples: Samples, found: Duplicates | None, *, how: LeakCheck = "full", unreadable: int = 0) -> dict[str, Any]:
    """Return what a run reports about its splits. found: None with `off`; figures that were not looked for are None."""
    counts = Counter(sample.split for sample in samples.samples)
    compared = ", ".join(f"{counts[split]:,} {split}".rstrip() for split in RANKS if counts[split])
    grave = [finding for finding in found.findings if finding.across or finding.two_labels] if found else []
    return {
        "verdict": _summary(found, counts),
        "compared": f"{compared} images " + (f"compared with each other: {_METHODS[how]}" if found else "(data.leak_check: off)"),
        "pictures": dict(counts),
        "unreadable": unreadable,
        "leaked_exact": found.leaked_exact if found else None,
        "leaked_near": found.leaked_near if found and how == "full" else None,
        "held_out": _held_out(counts),
        "two_labels": sum(finding.two_labels for finding in found.findings) if found else None,
        "examples": [
            {"kind": finding.kind, "pictures": [described(samples, row) for row in finding.rows[:4]]} for finding in grave[:EXAMPLES]
        ],
    }


def _held_out(counts: Mapping[str, int]) -> int:
    return counts.get("val", 0) + counts.get("test", 0)


def _summary(found: Duplicates | None, counts: Mapping[str, int]) -> str:
    if found is None:
        return "the splits were not compared"
    kinds = ((found.leaked_exact, "exactly"), (found.leaked_near, "nearly"))
    if leaks := [f"{number} {kind}" for number, kind in kinds if number]:
        leaked, held_out = found.leaked_exact + found.leaked_near, _held_out(counts)
        are = "is" if leaked == 1 else "are"
        return (
            f"{leaked:,} of {held_out:,} held-out images {are} in another split too ({', '.join(leaks)}): "
            # At most: if each of them were right for no other reason.
            f"accuracy can look up to {100 * leaked / held_out:.1f} points better than it is"
        )
    return "no leak found between splits" if len(counts) > 1 else "there are no splits that could leak"
