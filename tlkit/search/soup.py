"""`tlkit soup RUN RUN...`: one model whose weights are the average of those runs that validate best together."""

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from torch import Tensor

from tlkit.data.progress import progress, progress_console
from tlkit.data.quality.on_bad import without_bad_of
from tlkit.data.samples import Sample, groups_of
from tlkit.data.splits.holdout import read_manifest
from tlkit.data.splits.manifest import check_run_folder
from tlkit.data.splits.run_source import ORIGIN, inner_runs
from tlkit.errors import RunError
from tlkit.evaluation.answers import Answers, split_answers
from tlkit.evaluation.evaluate import OpenSplit, measure_logits, open_split
from tlkit.evaluation.fit_trust import TrustOptions, fit_trust, measure_trust
from tlkit.evaluation.metrics import best_thresholds
from tlkit.evaluation.predictions import prediction_rows, write_predictions
from tlkit.evaluation.primary_metric import named_primary_metric, recorded_primary_metric
from tlkit.evaluation.unknown import training_sample
from tlkit.files import atomic_folder, write_json
from tlkit.models.classifier import Classifier
from tlkit.models.inference.trust import Trust
from tlkit.models.model_folder import (
    ModelCard,
    find_model_folder,
    load_with_card,
    read_card,
    update_metrics,
    update_trust,
    write_model_folder,
)
from tlkit.recipe.fields.model import CLASSICAL_HEADS
from tlkit.report.images import SplitImages
from tlkit.report.report import write_run_report
from tlkit.search.compare import check_same_images
from tlkit.training.objective.losses import plain_loss
from tlkit.training.objective.metrics import score
from tlkit.training.outputs.finished import Run
from tlkit.training.results import log_trust, run_facts, unknown_facts
from tlkit.training.wise_ft import blend

LOG = logging.getLogger("tlkit")

State = dict[str, Tensor]


class Figures(NamedTuple):
    """What a network validates to; the larger one is better: by the primary metric, and of equals by the loss."""

    score: float
    minus_loss: float

    def __str__(self) -> str:
        return f"{self.score:.4f} (loss {-self.minus_loss:.4f})"


@dataclass(frozen=True)
class Step:
    """A run that was tried. alone: its own figures. with_it: those of the average with it. added: whether it is in the soup."""

    run: Path
    alone: Figures
    with_it: Figures
    added: bool


@dataclass(frozen=True)
class Soup:
    """The average. steps: in the order of validation. metrics: the content of metrics.json. samples: that it was measured on."""

    steps: list[Step]
    metrics: dict[str, Any]
    samples: Sequence[Sample]

    @property
    def members(self) -> list[Path]:
        return [step.run for step in self.steps if step.added]


def make_soup(runs: Sequence[Path], out: Path, *, device: str = "auto", overrides: Sequence[str] = ()) -> Soup:
    """Write the greedy soup of finished runs into `out`, a run folder of its own.

    The runs are ordered by their primary metric on validation. The average begins with the best one, and each next run is added if the
    average with it validates no worse. Batch-norm statistics are averaged like weights: what is measured is what ships. Temperature,
    promises and the score of unknown images are fitted as for a run. The test split is looked at once, by the result. A folder of
    several seeds stands for its seeds.
    overrides: where the images are now, as for `tlkit evaluate`.
    Raises RunError unless the runs have one architecture, the same classes, preprocessing, validation and test images.

    Source: Wortsman et al. 2022, recipe 1, https://arxiv.org/abs/2203.05482
    """
    began = perf_counter()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise RunError(f"--out {out} is there already, and is never overwritten.\n  Choose another folder.")
    runs = [inner for run in runs for inner in inner_runs(run) or [run]]
    check_can_average(runs)
    opened = open_split(runs[0], "val", device=device, overrides=overrides)
    images = len(opened.samples.of("val")) * (2 * len(runs) - 1)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(out) as writing:
        with progress(progress_console(), "averages on the validation images", images) as advance:
            validate = partial(_validate, opened, advance)
            alone = {run: validate(_state(run)) for run in runs}
            steps, average = greedy(alone, validate)
        opened.classifier.load_state_dict(average)
        metrics, seen = _write(writing, opened.classifier, steps, device=device, overrides=overrides)
        metrics["seconds"] = {"total": round(perf_counter() - began, 3)}
        write_json(writing / "metrics.json", metrics)
        recipe, origin = opened.recipe, opened.card.weights["origin"]
        write_run_report(writing, recipe, metrics, facts=run_facts(recipe, opened.samples, metrics, origin), seen=seen)
    return Soup(steps, metrics, opened.samples.of("test") or opened.samples.of("val"))


def greedy(alone: Mapping[Path, Figures], validate: Callable[[State], Figures]) -> tuple[list[Step], State]:
    """Return a step for each run, the best first, and the average of the weights of those that were added."""
    best, *others = sorted(alone, key=lambda run: alone[run], reverse=True)
    average, reached, members = _state(best), alone[best], 1
    steps = [Step(best, reached, reached, added=True)]
    LOG.info("%s  %s: the average begins with it", best, reached)
    for run in others:
        candidate = blend(average, _state(run), 1 / (members + 1))
        with_it = validate(candidate)
        if added := with_it >= reached:
            average, reached, members = candidate, with_it, members + 1
        steps.append(Step(run, alone[run], with_it, added))
        LOG.info("%s  %s; the average with it %s: %s", run, alone[run], with_it, "added" if added else "left out")
    return steps, average


def _validate(opened: OpenSplit, advance: Callable[[int], None], state: State) -> Figures:
    """Return what the network validates to with these weights."""
    opened.classifier.load_state_dict(state)
    found = _answers(opened, "val", features=False, on_batch=advance)
    if not found.logits.isfinite().all():  # between two good networks there may be one that overflows
        return Figures(float("-inf"), float("-inf"))
    return Figures(score(opened.samples, found.logits, found.labels), -float(plain_loss(found.logits, found.labels)))


def _state(run: Path) -> State:
    return load_with_card(run)[0].state_dict()


def _write(
    folder: Path, classifier: Classifier, steps: Sequence[Step], *, device: str, overrides: Sequence[str]
) -> tuple[dict[str, Any], SplitImages]:
    """Write the run folder but for metrics.json and the report.

    Returns the content of metrics.json, measured on the model as it is read back, and what it answered on test, or on validation.
    """
    best = steps[0].run
    for name in ("recipe.yaml", "split.csv", ORIGIN):
        if (best / name).is_file():  # a run of an earlier version has no origin
            shutil.copyfile(best / name, folder / name)
    card = replace(read_card(find_model_folder(best)), trust=Trust())  # that of its runs was fitted to their own answers
    write_model_folder(folder / "model", classifier, card)
    opened = open_split(folder, "val", device=device, overrides=overrides)
    seen, split, recipe = _answers(opened, "val"), "val", opened.recipe
    if card.task == "multilabel":
        card = replace(card, thresholds=best_thresholds(seen.logits, seen.labels))
        write_model_folder(folder / "model", classifier, card)
    metrics: dict[str, Any] = {"val": _measured(seen, opened, split, card)}
    options, groups = TrustOptions(recipe.abstain, recipe.unknown), groups_of(opened.samples.of("val"))
    fitted = fit_trust(card, seen, options, training=partial(_training_answers, opened), groups=groups)
    log_trust(fitted)
    update_trust(folder / "model", fitted.trust)
    splits = Counter(row["split"] for row in read_manifest(folder / "split.csv"))
    if splits["test"]:
        opened, split = open_split(folder, "test", device=device, overrides=overrides), "test"
        seen = _answers(opened, split)
        metrics["test"] = _measured(seen, opened, split, card) | measure_trust(fitted, seen)
    metrics["unknown"] = unknown_facts(fitted)
    rows = prediction_rows(seen.logits / fitted.trust.temperature, opened.samples.of(split), card.classes, card.thresholds)
    write_predictions(folder, rows, split)
    metrics |= named_primary_metric(recorded_primary_metric(metrics["val"]))
    metrics["pictures"] = dict(splits)
    metrics["soup"] = [
        {"run": str(step.run), "alone": step.alone.score, "with_it": step.with_it.score, "added": step.added} for step in steps
    ]
    update_metrics(folder / "model", metrics)
    return metrics, SplitImages(rows, opened)


def _answers(opened: OpenSplit, split: str, *, features: bool = True, on_batch: Callable[[int], None] = lambda images: None) -> Answers:
    how: Any = {"batch_size": opened.recipe.data.known_batch_size, "features": features, "on_batch": on_batch}
    return split_answers(opened.classifier, opened.samples, split, opened.preprocessing, **how)


def _training_answers(opened: OpenSplit) -> Answers:
    sample = training_sample(opened.samples, seed=opened.recipe.seed)
    if opened.recipe.data.on_bad == "skip":
        sample = without_bad_of(sample, "train", opened.recipe.data)
    return _answers(replace(opened, samples=sample), "train")


def _measured(answers: Answers, opened: OpenSplit, split: str, card: ModelCard) -> dict[str, Any]:
    return measure_logits(answers.logits, answers.labels, samples=opened.samples, split=split, thresholds=card.thresholds)


def check_can_average(runs: Sequence[Path]) -> None:
    """Raise RunError unless these are two finished runs or more of one architecture, chosen and tested on the same images."""
    for run in runs:
        check_run_folder(run)
        _ = Run(run).metrics  # a run that hasn't ended says so
    if len({run.resolve() for run in runs}) < max(2, len(runs)):
        given = "one run" if len(runs) < 2 else "a run twice"
        raise RunError(f"tlkit soup got {given}, and averages two or more.\n  Write: tlkit soup runs/NAME/001 runs/NAME/002 --out DIR")
    first = runs[0]
    expected, *others = (_architecture(run, read_card(find_model_folder(run))) for run in runs)
    for run, found in zip(runs[1:], others, strict=True):
        if differs := [what for what in expected if found[what] != expected[what]]:
            values = "" if differs[0] == "preprocessing" else f": {_shortened(expected[differs[0]])} and {_shortened(found[differs[0]])}"
            fix = "Average runs that differ in rates, epochs, augmentation or seed alone."
            raise RunError(f"{first} and {run} can't be averaged, they differ in their {differs[0]}{values}.\n  {fix}")
        for split in ("val", "test"):
            ours, theirs = ({row["id"]: row for row in read_manifest(of / "split.csv") if row["split"] == split} for of in (first, run))
            check_same_images(split, first, ours, run, theirs)


def _architecture(run: Path, card: ModelCard) -> dict[str, Any]:
    """Return what two networks must have in common to be averaged. Raises RunError for a head that has no weights to average."""
    if card.head.kind in CLASSICAL_HEADS:
        raise RunError(f"{run} has the head {card.head.kind}, which can't be averaged.\n  Average runs whose heads are trained or solved.")
    return {
        "backbone": card.backbone,
        "features": card.features,
        "head": card.head.model_dump(include={"kind", "pool", "hidden", "filters"}),
        "task": card.task,
        "classes": list(card.classes),
        "preprocessing": dict(card.preprocessing),
        "initial weights": card.weights.get("sha256"),
    }


def _shortened(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 80 else f"{text[:80]} ..."
