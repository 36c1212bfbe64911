"""`tlkit data audit`: the same image twice, leaks between splits, labels that the others contradict; a table, a CSV and a gallery."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tlkit.data.datamodule import ImageDataModule
from tlkit.data.decode import Decoding, decode
from tlkit.data.progress import progress, progress_console
from tlkit.data.quality.audit import (
    Audit,
    Duplicates,
    Finding,
    check_can_clean,
    check_left,
    closest_pairs,
    find_duplicates,
    label_findings,
    pixel_hashes,
    place_of,
    write_audit,
    write_cleaned,
)
from tlkit.data.quality.label_errors import FOLDS, doubt_labels, predict_unseen
from tlkit.data.quality.leak_report import leak_report
from tlkit.data.quality.near_duplicates import dct_of, joined
from tlkit.data.quality.on_bad import log_warnings, without_bad, write_skipped
from tlkit.data.samples import Sample, Samples
from tlkit.data.sources.read import read_source
from tlkit.data.splits.folds import split_by_recipe
from tlkit.data.splits.holdout import hash_images, shortened
from tlkit.errors import WeightsError
from tlkit.files import expanded
from tlkit.models.weights.sources import find_weights
from tlkit.recipe.schema import Recipe
from tlkit.report.gallery import write_gallery
from tlkit.terminal import counted, output_console, print_line
from tlkit.training.closed_form.features import features_of
from tlkit.training.outputs.log import log_to_file
from tlkit.training.outputs.run_folder import check_out, make_run_folder
from tlkit.training.setup import build
from tlkit.training.trainer import check_devices

WORST = 5
BATCH_SIZE = 64
KINDS = {
    "exact": "the same image twice",
    "near": "nearly the same",
    "similar": "similar to the backbone",
    "label": "label doubted",
}


def audit_command(recipe: Recipe, *, drawn: bool, out: Path | None, fix: bool, strict: bool) -> int:
    """Audit a recipe's images. drawn: whether splits that the source lacks are drawn as the recipe's run would draw them.

    Returns 0, or 2 with `strict` if an image is in two splits or under two labels, or a label is doubted.
    """
    check_out(out)
    with recipe.located():
        samples = read_source(recipe.data.source, expanded(recipe.data.root), recipe.task, keep_missing=True)
        samples = without_bad(samples, recipe.data)
        if drawn:
            samples = split_by_recipe(samples, recipe.data, recipe.seed)
    if fix:
        check_can_clean(samples)
    run = make_run_folder(f"{recipe.name}-audit", out)
    console = progress_console()
    with log_to_file(run / "log.txt"):
        log_warnings(samples)
        decoded = partial(decode, how=Decoding.of(recipe.data))
        images = samples.samples
        hashes = hash_images(samples)
        with progress(console, "hashing images", 2 * len(images)) as advance:
            pixels = pixel_hashes(images, decoded, advance)
            dct = dct_of(images, decoded, advance)
        found = find_duplicates(images, [pixel or hashes[sample.id] for pixel, sample in zip(pixels, images, strict=True)], dct)
        seen, kinds, note = look(recipe, samples, found, hashes, console)
        findings = [*found.findings, *seen]
        report = leak_report(samples, found, unreadable=len(samples.skipped))
        audit = Audit(samples, findings, report, ("exact", "near", *kinds), note)
        write_audit(samples, findings, run / "audit.csv")
        if samples.skipped:
            write_skipped(samples, run / "skipped.csv")
        write_gallery(run / "gallery.html", recipe.name, audit, decoded)
        print_audit(audit, run)
        if fix:
            check_left(samples, found.dropped)
            print_cleaned(samples, found, write_cleaned(samples, found.dropped, _of_kind(findings, "label"), run), run)
        grave = [finding for finding in findings if finding.kind == "label" or (finding.kind != "similar" and is_grave(finding))]
        return 2 if strict and grave else 0


def is_grave(finding: Finding) -> bool:
    return finding.across or finding.two_labels


def look(
    recipe: Recipe, samples: Samples, found: Duplicates, hashes: dict[str, str], console: Console
) -> tuple[list[Finding], list[str], str]:
    """Return similar pairs and doubted labels by the features of the recipe's backbone, which of both were looked for, and why not."""
    why = _cannot_look(recipe)
    if why:
        return [], [], f"labels and similar images were not looked at: {why}"
    features = _features(recipe, samples, hashes, console)
    findings, kinds = closest_pairs(samples.samples, features, found.alike), ["similar"]
    if samples.task == "multilabel":
        note = "labels were not looked at: confident learning is for one label per image"
    else:
        doubted, note = _doubted(recipe, samples, features, found.alike, console)
        findings, kinds = [*doubted, *findings], ["label", *kinds]
    return findings, kinds, note


def _doubted(
    recipe: Recipe, samples: Samples, features: NDArray[np.float32], alike: NDArray[np.int64], console: Console
) -> tuple[list[Finding], str]:
    """Return the findings, and which classes couldn't be judged."""
    labels = np.array([sample.label for sample in samples.samples])
    with progress(console, "labels, each fold by the others", FOLDS) as advance:
        units = whole_units(samples.samples, alike)
        probabilities = predict_unseen(features, labels, units, classes=len(samples.classes), seed=recipe.seed, on_fold=advance)
    unjudged = sorted({samples.classes[label] for label in labels[np.isnan(probabilities).any(axis=1)]})
    note = f"too few images to judge the labels of: {shortened(unjudged)}" if unjudged else ""
    return label_findings(samples, doubt_labels(probabilities, labels)), note


def _cannot_look(recipe: Recipe) -> str:
    """Return why there are no features; empty if there are."""
    if recipe.model.weights == "random":
        return "the recipe's weights are random, and see nothing"
    try:
        find_weights(recipe.model)
    except WeightsError as error:
        return str(error).splitlines()[0]
    return ""


def _features(recipe: Recipe, samples: Samples, hashes: dict[str, str], console: Console) -> NDArray[np.float32]:
    """Compute the features, [N, F]; they are cached for the next audit and for runs, within the recipe's budget."""
    with recipe.located():
        device = check_devices(recipe.trainer).here
        # One split: every image as it is, and under the same key as those of a run.
        whole = replace(samples, samples=tuple(replace(sample, split="train") for sample in samples.samples))
        classifier, preprocessing = build(recipe.data, recipe.model, whole, find_weights(recipe.model))
    data = ImageDataModule(whole, preprocessing, batch_size=BATCH_SIZE, workers=recipe.data.workers)
    data.hashes = hashes
    ((features, _),) = features_of(classifier.to(device), data, ["train"], recipe.cache, console)
    return features.numpy()


def whole_units(samples: Sequence[Sample], alike: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number what must stay in one fold: images that are nearly the same, and images of one group."""
    _, first, unit = np.unique([sample.unit for sample in samples], return_index=True, return_inverse=True)
    return joined(alike, np.arange(len(samples)), first[unit])


def _of_kind(findings: Sequence[Finding], kind: str) -> list[Finding]:
    return [finding for finding in findings if finding.kind == kind]


def print_audit(audit: Audit, run: Path) -> None:
    """Print counts, the gravest examples, and where to find the others."""
    console = output_console()
    counts = Table("what", "findings", "images", "across splits", "two labels", box=None, header_style="bold")
    for kind, words in KINDS.items():
        if kind not in audit.kinds:
            counts.add_row(words, "not looked at", "", "", "")
            continue
        of_kind = _of_kind(audit.findings, kind)
        across, two = (str(sum(flags) or "") for flags in ([f.across for f in of_kind], [f.two_labels for f in of_kind]))
        counts.add_row(words, str(len(of_kind)), str(len({row for finding in of_kind for row in finding.rows})), across, two)
    console.print(counts)
    for kind, words in KINDS.items():
        of_kind = _of_kind(audit.findings, kind)
        if of_kind:
            console.print(f"\n[bold]{words}[/bold]" + (f", the first {WORST} of {len(of_kind)}" if len(of_kind) > WORST else ""))
        for finding in of_kind[:WORST]:
            print_line(console, f"  {_label(audit.samples, finding)}")
    print_line(console, f"\n{audit.report['verdict']} ({audit.report['compared']})")
    if skipped := audit.samples.skipped:
        number = counted(len(skipped), "image can't be read and was", "images can't be read and were")
        reported = f"{number} left out: {run / 'skipped.csv'}"
        print_line(console, reported, "yellow")
    if audit.note:
        print_line(console, audit.note, "yellow")
    print_line(console, f"all of it in {run / 'audit.csv'}; to look at: {run / 'gallery.html'}")


def _label(samples: Samples, finding: Finding) -> str:
    """Return `1.000  val/hat/3.png = train/hat/7.png  (hat)` or `0.002  train/hat/9.png  labelled hat, the others say bag`."""
    images = [samples.samples[row] for row in finding.rows]
    if finding.kind == "label":
        said = f"labelled {samples.label_text(images[0])}, the others say {finding.called}"
        return f"{finding.scores[0]:.3f}  {place_of(images[0])}  {said}"
    more = f" and {len(images) - 2} more" if len(images) > 2 else ""
    labels = " and ".join(dict.fromkeys(samples.label_text(sample) or "no label" for sample in images[:2]))
    sign = "=" if finding.kind == "exact" else "~"
    return f"{max(finding.scores):.3f}  {f' {sign} '.join(map(place_of, images[:2]))}{more}  ({labels})"


def print_cleaned(samples: Samples, found: Duplicates, source: dict[str, str], run: Path) -> None:
    console = output_console()
    marked = "labels that are doubted are marked in it, not removed"
    removed = f"{len(found.dropped)} of {len(samples.samples)} images left out, listed in {run / 'removed.csv'}; {marked}"
    use = shlex.quote(f"data.source={json.dumps(source, ensure_ascii=False)}")
    print_line(console, f"{source['csv']}: {removed}.\nTrain on it with: {use}")
