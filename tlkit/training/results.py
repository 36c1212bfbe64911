"""The results of a run: thresholds, metrics of the shipped model, curves, report and panel."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlkit.data.samples import Sample, Samples, groups_of
from tlkit.errors import CacheUnavailable
from tlkit.evaluation.answers import Answers, loader_answers, split_answers
from tlkit.evaluation.evaluate import OpenSplit, measure_logits
from tlkit.evaluation.fit_trust import FittedTrust, TrustOptions, fit_trust, measure_trust
from tlkit.evaluation.metrics import best_thresholds
from tlkit.evaluation.predictions import prediction_rows, write_predictions
from tlkit.evaluation.primary_metric import (
    images_of,
    intervals_of,
    metric_label,
    named_primary_metric,
    primary_metric_of,
    recorded_primary_metric,
)
from tlkit.evaluation.unknown import training_sample
from tlkit.explain.gradient_flow import GRADIENTS, draw_gradients, read_gradients
from tlkit.files import write_json
from tlkit.models.classifier import Classifier
from tlkit.models.inference.batches import infer
from tlkit.models.model_folder import load_with_card, update_metrics, update_trust
from tlkit.recipe.fields.learning import Mix
from tlkit.recipe.fields.model import CLASSICAL_HEADS, Head, Model
from tlkit.recipe.fields.phases import Phase, SolvedPhase
from tlkit.recipe.schema import Imbalance, Recipe
from tlkit.report.curves import draw_curves
from tlkit.report.images import SplitImages
from tlkit.report.report import write_run_report
from tlkit.system import is_command_line
from tlkit.terminal import can_print, counted, print_panel, tlkit_command
from tlkit.training.setup import Setup
from tlkit.training.specs import PhaseSpec, phase_name

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from tlkit.data.datamodule import ImageDataModule
    from tlkit.training.phases import Trained

LOG = logging.getLogger("tlkit")

IMBALANCE_WORDS = {
    "loss_weights": "a rare class's images count more in the training loss",
    "sampler": "each class is drawn as often as any other, with replacement",
    "logit_adjust": "the classes' log priors are added to the logits in the training loss",
}


def metric_notes(imbalance: Imbalance, samples: Samples) -> dict[str, str]:
    """Describe how the best epoch is chosen if not by accuracy, and the compensation for rare classes, for the log and the report."""
    said: dict[str, str] = {}
    primary_metric, counts = primary_metric_of(samples), samples.training_counts()
    smallest, largest = (samples.classes[counts.index(count)] for count in (min(counts), max(counts)))
    spread = f"the largest class has {counted(max(counts), 'training image')} ({largest}), the smallest {min(counts)} ({smallest})"
    if primary_metric != "accuracy":
        why = f"{spread}, so " if primary_metric == "balanced_accuracy" else "an image may have any number of labels, so "
        said["best epoch"] = f"{why}{metric_label(primary_metric)} chooses the best epoch and leads the results"
    if imbalance != "none":
        known = primary_metric == "balanced_accuracy"  # said in the line above
        said["imbalance"] = f"{imbalance}: {IMBALANCE_WORDS[imbalance]}{'' if known else f'; {spread}'}"
    return said


def split_summary(samples: Samples) -> str:
    """Return `fold 1 of 5: 1800 training, 200 validation, 1000 test images in 10 classes (of 70000, by data.limit)`."""
    counts = Counter(sample.split for sample in samples.samples)
    words = (("train", "training"), ("val", "validation"), ("test", "test"))
    fold = f"fold {samples.fold[0]} of {samples.fold[1]}: " if samples.fold else ""
    numbers = ", ".join(f"{counts[split]} {word}" for split, word in words if counts[split])
    limited = f" (of {samples.source_size}, by data.limit)" if samples.source_size else ""
    return f"{fold}{numbers} images in {len(samples.classes)} classes{limited}"


def choose_thresholds(classifier: Classifier, data: "ImageDataModule", device: "torch.device") -> tuple[float, ...]:
    """Return each class's threshold, the best by F1 on validation."""
    logits, labels = infer(classifier.to(device), data.whole("val"), data.preprocessing)
    unseen = [name for name, number in zip(data.samples.classes, labels.sum(0).tolist(), strict=True) if not number]
    if unseen:
        LOG.warning("no validation image of %s: the threshold stays at 0.5", ", ".join(unseen))
    return best_thresholds(logits, labels)


def measure_shipped(
    folder: Path, setup: Setup, trained: "Trained", *, recipe: Recipe, options: TrustOptions, console: "Console"
) -> tuple[dict[str, Any], SplitImages]:
    """Return validation and test metrics of the saved model, read back from its folder, and what it answered, for the report.

    The test split is used only here, from its files on; validation uses what training has cached of it.
    folder: the model's, which gets what says how far its answers can be trusted.
    """
    model, skips = recipe.model, recipe.data.on_bad == "skip"
    classifier, card = load_with_card(folder)
    classifier.to(trained.device)
    preprocessing, samples, batch_size = card.spec, setup.samples, setup.data.batch_size
    spec = setup.phase(trained.best_phase)
    metrics: dict[str, Any] = {}

    def cached(images: Sequence[Sample]) -> Answers | None:
        return answers_from_cache(classifier, setup, spec, images=images, device=trained.device, console=console)

    def training() -> Answers:
        sample = training_sample(samples, seed=setup.data.seed)
        return cached(sample.samples) or split_answers(classifier, sample, "train", preprocessing, batch_size=batch_size)

    val = cached(samples.of("val")) or loader_answers(classifier, setup.data.whole("val"), preprocessing)
    fitted = fit_trust(card, val, options, training=training, groups=groups_of(samples.of("val")))
    log_trust(fitted)
    update_trust(folder, fitted.trust)
    if samples.of("test"):
        test = split_answers(classifier, samples, "test", preprocessing, batch_size=batch_size)
        metrics["test"] = measure_logits(test.logits, test.labels, samples=samples, split="test", thresholds=card.thresholds)
        metrics["test"] |= measure_trust(fitted, test)
    metrics["unknown"] = unknown_facts(fitted)
    metrics["val"] = measure_logits(val.logits, val.labels, samples=samples, split="val", thresholds=card.thresholds)
    best = next(row for row in trained.rows if (row["phase"], row["epoch"]) == (trained.best_phase, trained.best_epoch))
    metrics["best"] = {"phase": trained.best_phase, "epoch": trained.best_epoch, "train_accuracy": best["train/accuracy"]}
    metrics["best"]["fitted_by"] = fitted_by(spec, model.head)
    metrics["best"]["train_conditions"] = train_conditions(spec, setup, model)
    metrics |= named_primary_metric(recorded_primary_metric(metrics["val"]))
    if trained.wise_ft is not None:
        metrics["wise_ft"] = dict(trained.wise_ft)
    metrics["pictures"] = dict(Counter(sample.split for sample in samples.samples))
    if skips:
        metrics["skipped"] = len(samples.skipped)
    if samples.source_size:
        metrics["limited_from"] = samples.source_size
    if samples.fold:
        metrics["fold"] = dict(zip(("number", "of"), samples.fold, strict=True))
    update_metrics(folder, metrics)
    split, seen = ("test", test) if samples.of("test") else ("val", val)
    rows = prediction_rows(seen.logits / fitted.trust.temperature, samples.of(split), card.classes, card.thresholds)
    write_predictions(folder.parent, rows, split)
    return metrics, SplitImages(rows, OpenSplit(classifier, card, recipe, samples, []))


def fitted_by(best: PhaseSpec | None, head: Head) -> str:
    """Return what found the head without epochs; empty for epochs. best: the best phase, None where scikit-learn has fitted the head."""
    if best is None:
        return "nearest neighbours" if head.kind == "knn" else "scikit-learn"
    return "L-BFGS" if isinstance(best.phase, SolvedPhase) else ""


def train_conditions(best: PhaseSpec | None, setup: Setup, model: Model) -> list[str]:
    """Return how training images, and the network that saw them, differed from those of validation. best: see `fitted_by`."""
    if best is None or isinstance(best.phase, SolvedPhase):
        return []
    conditions = {
        "augmented": setup.data.augmentation is not None,
        "blended": setup.learning.mix != Mix(),
        "with dropout": model.head.dropout > 0 or (model.drop_path > 0 and best.phase.train != "head"),
        "drawn class by class": setup.data.balanced,
    }
    return [condition for condition, holds in conditions.items() if holds]


def answers_from_cache(
    classifier: Classifier,
    setup: Setup,
    best: PhaseSpec | None,
    *,
    images: Sequence[Sample],
    device: "torch.device",
    console: "Console",
) -> Answers | None:
    """Return the answers on training or validation images from the best phase's cache, if the classifier's frozen part is unchanged."""
    from tlkit.training.cache.activations import ActivationCache

    if not setup.cache.use or best is None:
        return None
    phase = best.phase
    if isinstance(phase, Phase) and best.trainer.precision != "32-true":
        return None  # the shipped model is measured in 32 bits
    classifier.train_only(best.trained, best.batchnorm)
    try:
        return ActivationCache(classifier, setup.data, setup.cache, device=device, precision="32-true", console=console).answers(images)
    except CacheUnavailable:
        return None
    finally:
        classifier.eval()


def log_trust(fitted: FittedTrust) -> None:
    """Log what ships of how far answers can be trusted, and why something that was asked for doesn't."""
    trust = fitted.trust
    if trust.calibration is not None:
        if trust.calibration.reason:
            LOG.info("the temperature stays 1: %s", trust.calibration.reason)
        else:
            images = counted(trust.calibration.pictures, "validation image")
            LOG.info("temperature %.3g, fitted on %s", trust.calibration.temperature, images)
    if trust.abstain is not None:
        groups = f", in new groups as in these {trust.abstain.groups}" if trust.abstain.groups else ""
        most = f"{trust.abstain.error:g} with {trust.abstain.confidence:.0%} confidence{groups}"
        answered = f"below {trust.abstain.threshold:.3f} no class is named ({1 - trust.abstain.coverage:.0%} of validation)"
        if trust.abstain.threshold:
            LOG.info("%s: the error of the others stays below %s", answered, most)
        else:
            LOG.info("every image gets an answer: without abstaining the error stays below %s", most)
    for name, reason in fitted.reasons.items():
        LOG.log(logging.INFO if name in ("unknown", "calibration") else logging.WARNING, "%s", reason)


def unknown_facts(fitted: FittedTrust) -> dict[str, Any]:
    """Return `unknown` of metrics.json: score and threshold, or why there are none; empty where it is switched off."""
    unknown = fitted.trust.unknown
    return asdict(unknown) if unknown else {"reason": fitted.reasons["unknown"]} if "unknown" in fitted.reasons else {}


def write_results(run: Path, recipe: Recipe, setup: Setup, trained: "Trained", metrics: Mapping[str, Any], seen: SplitImages) -> None:
    """Write metrics.json, curves.png and report.html, and for a command the panel that a person reads."""
    from tlkit.training.outputs.loggers import log_results

    write_json(run / "metrics.json", metrics)
    names = [*(phase_name(phase.train) for phase in recipe.phases), recipe.model.head.kind]
    draw_curves(trained.rows, names, run / "curves.png", primary_metric=metrics["primary_metric"])
    if (run / GRADIENTS).is_file():
        draw_gradients([(recipe.name, read_gradients(run / GRADIENTS))], run / "gradients.png")
    write_run_report(run, recipe, metrics, facts=run_facts(recipe, setup.samples, metrics, setup.weights.origin), seen=seen)
    log_results(recipe.trainer.logger, run, recipe.model_dump(mode="json", by_alias=True), metrics)
    LOG.info("done in %.0f s", metrics["seconds"]["total"])
    if is_command_line():
        print_run(run, setup.samples, metrics)


def run_facts(recipe: Recipe, samples: Samples, metrics: Mapping[str, Any], weights_origin: str) -> dict[str, str]:
    """Return what was trained on what, label -> text, in the order of the report."""
    head, names = recipe.model.head, [*(phase_name(phase.train) for phase in recipe.phases), recipe.model.head.kind]
    share = metrics.get("wise_ft", {}).get("share")
    return {
        "images": split_summary(samples),
        **({"left out": f"{counted(len(samples.skipped), 'image')} that can't be read; skipped.csv names each"} if samples.skipped else {}),
        **({"about the data": "\n".join(samples.warnings)} if samples.warnings else {}),
        "classes": f"{len(samples.classes)}: {', '.join(samples.classes[:20])}{' ...' if len(samples.classes) > 20 else ''}",
        "backbone": f"{recipe.model.backbone}, weights from {weights_origin}",
        "head": f"{head.kind}, fitted by scikit-learn" if head.kind in CLASSICAL_HEADS else f"{head.kind}, dropout {head.dropout}",
        "phases": "; ".join(f"{names[i]}, {how_trained(phase)}" for i, phase in recipe.run_phases.items()) or "none",
        **({"shipped": f"{share:g} of the way to the fine-tuned weights (WiSE-FT)"} if share is not None else {}),
        "image size": f"{recipe.data.image_size} px, {recipe.data.resize}, {recipe.data.channels_label}",
        **({"kept": f"{counted(recipe.cache.views, 'augmented view')} of each training image, in turns"} if recipe.cache.views else {}),
        **metric_notes(recipe.imbalance, samples),
        "time": f"{metrics['seconds']['total']:.0f} s",
    }


def how_trained(phase: Phase | SolvedPhase) -> str:
    return "solved by L-BFGS" if isinstance(phase, SolvedPhase) else f"{counted(phase.epochs, 'epoch')} at {phase.lr:g}"


def print_run(run: Path, samples: Samples, metrics: Mapping[str, Any]) -> None:
    """Print the end of a run on one screen: how good it is, where everything is, what to try next."""
    from rich.markup import escape

    split = "test" if "test" in metrics else "val"
    places = {"model": run / "model", "curves": run / "curves.png", "report": run / "report.html"}
    rows = [*panel_figures(split, metrics[split])]
    if samples.skipped:
        rows.append(("left out", escape(f"{counted(len(samples.skipped), 'image')} that can't be read: {run / 'skipped.csv'}")))
    rows += [(label, escape(str(place))) for label, place in places.items()]
    print_panel(str(run), rows, [predict_command(run, samples.of(split))])


def predict_command(run: Path, samples: Sequence[Sample]) -> str:
    """Return the command that predicts one of the images, to copy and to change."""
    images = (os.path.relpath(sample.image) for sample in samples if isinstance(sample.image, Path))
    return tlkit_command("predict", str(run), next(filter(can_print, images), "IMAGE.jpg"))


def panel_figures(split: str, measured: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the primary metric first, and the figures to read it with."""
    images = images_of(measured)
    bounds, metric = intervals_of(measured), measured["primary_metric"]

    def span(name: str) -> str:
        return f"{bounds[name][0]:.3f} to {bounds[name][1]:.3f}"

    yield f"{split} {metric_label(metric)}", f"[bold]{measured[metric]:.3f}[/bold]  ({span(metric)}, {images})"
    if metric == "mean_average_precision":
        yield "macro F1", f"{measured['macro']['f1']:.3f}  ({span('macro_f1')}, at each class's own threshold)"
        yield "all labels right", f"{measured['exact_match']:.3f}  ({span('exact_match')})"
    elif metric == "balanced_accuracy":
        yield "macro F1", f"{measured['macro']['f1']:.3f}  ({span('macro_f1')})"
        yield "accuracy", f"{measured['accuracy']:.3f}  ({span('accuracy')})"
