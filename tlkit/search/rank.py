"""`tlkit rank RECIPE`: backbones compared by their frozen features, before anything is fine-tuned."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import one_hot

from tlkit.data.progress import progress_console
from tlkit.data.samples import Samples
from tlkit.data.splits.holdout import hash_images
from tlkit.errors import RunError, TlkitError, WeightsError
from tlkit.evaluation.evaluate import measure_logits
from tlkit.evaluation.primary_metric import PrimaryMetric, metric_label, primary_metric_of
from tlkit.explain.sheet import figure_file
from tlkit.files import write_atomically, write_csv, write_json
from tlkit.models.backbones import pretrained_cfg
from tlkit.models.catalog import list_models, published
from tlkit.models.classifier import Classifier
from tlkit.models.weights.sources import weights_here
from tlkit.recipe.edit import edited_recipe
from tlkit.recipe.fields.data import Data, FindBatchSize
from tlkit.recipe.fields.model import DENSE_BACKBONES, Features
from tlkit.recipe.load import load_recipe, recipe_yaml
from tlkit.recipe.schema import Recipe
from tlkit.search.logme import logme
from tlkit.training.closed_form.features import features_of
from tlkit.training.closed_form.solve import Regression
from tlkit.training.objective.metrics import score
from tlkit.training.setup import Setup, prepare, read_and_split

LOG = logging.getLogger("tlkit")

FOLDS = 5
WEIGHT_DECAYS = (1.0, 0.1, 0.01, 0.001)
"""Of the solved head, from strong to weak: the one that is best over all folds counts."""
PATH_TOLERANCE = 1e-4
NEIGHBOURS = 5
MOST_PARAMETERS = 60e6
"""Of the backbones that --budget chooses among."""
TIMED_BATCH, TIMED_BATCHES = 32, 5


@dataclass(frozen=True)
class Candidate:
    """A backbone and its weights. name: as results have it, `resnet18`, `resnet18@random` or `resnet18@FILE.safetensors`.

    features: the recipe's where the backbone has dense layers to leave out, else `all`.
    """

    name: str
    backbone: str
    weights: Any
    features: Features = "all"


@dataclass(frozen=True)
class Ranked:
    """A row of rank.csv, which names the score by its metric, the recipe's primary one.

    score: of the solved head, each image being answered by one that wasn't fitted on it. low, high: its 95 % interval, over the n images or
    the groups in which they come. knn: the score of the nearest neighbours. logme: larger is better. images_per_s: forward on this machine,
    after a warm-up. timed: when that was measured. megabytes: of the weights. pareto: no other backbone is both quicker and more accurate.
    note: why a backbone could not be measured.
    """

    backbone: str
    score: float | None = None
    low: float | None = None
    high: float | None = None
    images_per_s: float | None = None
    timed: str = ""
    parameters: int | None = None
    knn: float | None = None
    logme: float | None = None
    megabytes: float | None = None
    n: int | None = None
    groups: int | None = None
    metric: PrimaryMetric = "accuracy"
    pareto: bool = False
    note: str = ""


@dataclass(frozen=True)
class Measuring:
    """How candidates are measured. images: at most so many, by class. time_again: measure images/s of what was measured before, too."""

    images: int
    time_again: bool = False


def candidates_of(recipe: Recipe, wanted: Sequence[str], budget: int | None, *, offline: bool) -> list[Candidate]:
    """Return the backbones to measure. Raises TlkitError for a name or a pattern that no backbone has.

    budget: where none is wanted by name, so many with published accuracies, those that nobody beats in both accuracy and size first.
    """
    found: list[Candidate] = []
    for word in wanted:
        name, _, weights = word.partition("@")
        names = list_models(name) if "*" in name else [name]
        if not names:
            raise TlkitError(f"--backbones: no backbone's name matches '{name}'.\n  List them: tlkit models '{name}'")
        found += [_candidate(recipe, each, weights) for each in names]
    if budget is not None:
        found += [_candidate(recipe, name, "") for name in _by_budget(budget, offline=offline)]
    return list({candidate.name: candidate for candidate in found}.values())


def _candidate(recipe: Recipe, backbone: str, weights: str) -> Candidate:
    """Return the candidate. weights: as written behind @, or empty."""
    features = recipe.model.features if backbone.partition(".")[0] in DENSE_BACKBONES else "all"
    return Candidate(f"{backbone}@{weights}" if weights else backbone, backbone, _weights(recipe, backbone, weights), features)


def _weights(recipe: Recipe, backbone: str, word: str) -> Any:
    if word in ("random", "pretrained"):
        return word
    if word:
        return {"file": word}
    if backbone == recipe.model.backbone:
        return recipe.model_dump(mode="json", by_alias=True)["model"]["weights"]
    return {"package": "efficientnet-lite0"} if weights_here(backbone) == "package" else "pretrained"


def _by_budget(budget: int, *, offline: bool) -> list[str]:
    """Return names by fronts: those that no smaller backbone beats in published ImageNet accuracy, then those of the rest, and so on.

    Of a front that is too long, small and large ones alike. Raises TlkitError if there are none, which needs `offline`.
    """
    top1 = published("top1")
    sizes = {name: int(count) for name, count in published("parameters").items() if int(count) <= MOST_PARAMETERS}
    names = [name for name in list_models(pretrained=True) if name in sizes and (not offline or weights_here(name))]
    accuracy = {name: float(top1[tagged]) for name in names if (tagged := f"{name}.{pretrained_cfg(name)['tag']}") in top1}
    left = list(accuracy)
    if not left:
        raise TlkitError(
            "--budget: no backbone with a published accuracy has its weights on this machine.\n  Leave out --offline, or name --backbones."
        )
    chosen: list[str] = []
    while left and len(chosen) < budget:
        best, front = 0.0, []
        for name in sorted(left, key=lambda name: (sizes[name], -accuracy[name])):
            if accuracy[name] > best:
                best = accuracy[name]
                front.append(name)
        room = min(budget - len(chosen), len(front))
        chosen += [front[(2 * i + 1) * len(front) // (2 * room)] for i in range(room)]  # the middle of each of so many equal parts
        left = [name for name in left if name not in front]
    return chosen


def check_rank_folder(out: Path) -> None:
    """Raise RunError for a file, and for a folder that has something else than ranked backbones: it may be that of the images."""
    if out.is_file():
        raise RunError(f"--out {out} is a file.\n  Expected a folder that is empty or isn't there yet, or that of an earlier rank.")
    if out.is_dir() and any(out.iterdir()) and not (out / "candidates").is_dir():
        raise RunError(f"--out {out} is not empty, and no earlier `tlkit rank` has written it.\n  Choose another folder.")


def rank(recipe_file: str, overrides: Sequence[str], candidates: Sequence[Candidate], out: Path, how: Measuring) -> list[Ranked]:
    """Measure each candidate, keep each result in `out` as it comes, and write rank.csv and rank.png there. Returns the best first.

    Training and validation images are used; the test split is not touched. What `out` has of the same recipe, images and weights is not
    measured again. Raises RunError if `out` has anything else, and DataError for a fault of the images, which is no backbone's.
    """
    check_rank_folder(out)
    recipe = load_recipe(recipe_file, overrides)
    own = variant(recipe_file, overrides, _candidate(recipe, recipe.model.backbone, ""), how.images)
    with own.located():
        divided = read_and_split(own.data, own.task, own.seed)
    hashes = hash_images(divided)
    if whole := [candidate.name for candidate in candidates if candidate.features != recipe.model.features]:
        LOG.info("model.features = '%s' is for VGG and AlexNet; measured with `all`: %s", recipe.model.features, ", ".join(whole))
    console = progress_console()
    (out / "candidates").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, candidate in enumerate(candidates, 1):
        LOG.info("%d of %d: %s", number, len(candidates), candidate.name)
        try:
            changed = variant(recipe_file, overrides, candidate, how.images)
            setup = prepare(changed, divided=divided)
            setup.data.hashes = hashes
            rows.append(_measured(changed, setup, (candidate, how), out, console))
        except TlkitError as error:
            hint = "\n  In --backbones, weights are written as NAME@random or NAME@FILE." if isinstance(error, WeightsError) else ""
            LOG.warning("%s is left out: %s%s", candidate.name, error, hint)
            rows.append(Ranked(candidate.name, note=str(error).splitlines()[0]))
    rows = with_pareto(sorted(rows, key=lambda row: (-1 if row.score is None else row.score, row.logme or 0), reverse=True))
    table = [_cells(row, rows[0].metric) for row in rows]
    write_csv(out / "rank.csv", list(table[0]), table)
    if any(row.score is not None for row in rows):
        draw_rank(rows, out / "rank.png")
    return rows


def variant(recipe_file: str, overrides: Sequence[str], candidate: Candidate, images: int) -> Recipe:
    """Return the recipe with the candidate's backbone frozen under a solved head, and its images as they are."""
    recipe = load_recipe(recipe_file, overrides)
    limit = [] if recipe.data.limit else [f"data.limit={images}"]
    limit += ["data.batch_size=64"] if isinstance(recipe.data.batch_size, FindBatchSize) else []  # features are the same by any
    head = ["phases=[{train: head, solver: lbfgs}]", "model.head={kind: linear}", "augment=[]", "data.folds=null", "imbalance=none"]
    model = [f"model.{key}={json.dumps(value)}" for key, value in _model_values(recipe, candidate).items()]
    return load_recipe(recipe_file, [*overrides, *limit, *head, *model])


def _model_values(recipe: Recipe, candidate: Candidate) -> dict[str, Any]:
    """Return the keys of `model` that make the recipe the candidate's."""
    features = {"features": candidate.features} if candidate.features != recipe.model.features else {}
    return {"backbone": candidate.backbone, "weights": candidate.weights, **features}


def _measured(recipe: Recipe, setup: Setup, wanted: tuple[Candidate, Measuring], out: Path, console: Any) -> Ranked:
    """Return the candidate's row: of an earlier run of the command if it is there, or else measured and kept."""
    candidate, how = wanted
    parts = (
        primary_metric_of(setup.samples),
        recipe_yaml(recipe),
        str(setup.weights.sha256),
        *(f"{setup.data.hashes[sample.id]} {sample.labels} {sample.group}" for sample in _used(setup.samples)),
    )
    key = sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()
    file = out / "candidates" / f"{candidate.name.replace('/', '_')}.json"
    setup.classifier.to(setup.devices.here)
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if kept.get("key") == key:
        LOG.info("%s was measured before%s", candidate.name, ", and is timed again" if how.time_again else "")
        row = Ranked(**kept["row"])
        if how.time_again:
            row = replace(row, images_per_s=images_per_s(setup.classifier, recipe.data), timed=_now())
            write_json(file, {"key": key, "row": asdict(row)})
        return row
    before = images_per_s(setup.classifier, recipe.data)
    parameters = sum(tensor.numel() for tensor in setup.classifier.backbone.parameters())
    size = sum(tensor.numel() * tensor.element_size() for tensor in setup.classifier.backbone.state_dict().values())
    splits = features_of(setup.classifier, setup.data, ("train", "val"), recipe.cache, console)
    features, labels = (torch.cat(parts).cpu() for parts in zip(*splits, strict=True))
    figures = score_features(features, labels, setup.samples)
    # The best of two times far apart: other work on the machine makes a network only slower.
    speed = max(before, images_per_s(setup.classifier, recipe.data))
    row = Ranked(candidate.name, images_per_s=speed, timed=_now(), parameters=parameters, megabytes=size / 1e6, n=len(labels), **figures)
    write_json(file, {"key": key, "row": asdict(row)})
    return row


def _now() -> str:
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")


def _used(samples: Samples) -> list[Any]:
    return [*samples.of("train"), *samples.of("val")]


def score_features(features: Tensor, labels: Tensor, samples: Samples) -> dict[str, Any]:
    """Return score, its interval and metric, knn and logme of features [N, F] and labels, [N] or for multilabel [N, K] of 0 and 1.

    Every image is answered by heads that were fitted on the other folds; images of a group are in one fold.
    """
    targets = labels if labels.ndim == 2 else one_hot(labels, len(samples.classes))
    criterion = nn.CrossEntropyLoss() if labels.ndim == 1 else nn.BCEWithLogitsLoss()
    solved = {decay: torch.zeros(targets.shape) for decay in WEIGHT_DECAYS}
    neighbours = torch.zeros(targets.shape)
    for train, held in _folds(labels, samples):
        regression = Regression((features[train], labels[train]), criterion, len(samples.classes))
        point = regression.zeros()
        for decay, logits in solved.items():
            point = regression.minimum(point, decay, PATH_TOLERANCE)
            with torch.no_grad():
                logits[held] = regression.layer(point)(features[held])
        neighbours[held] = _of_neighbours(features[train], targets[train], features[held])
    best = max(solved.values(), key=lambda logits: score(samples, logits, labels))
    metric, used = primary_metric_of(samples), tuple(replace(sample, split="train") for sample in _used(samples))
    thresholds = [0.5] * len(samples.classes)
    measured = measure_logits(best, labels, samples=replace(samples, samples=used), split="train", thresholds=thresholds)
    low, high = measured["intervals"][metric]
    return {
        "score": measured[metric],
        "low": low,
        "high": high,
        "groups": measured.get("groups"),
        "metric": metric,
        "knn": score(samples, neighbours, labels),
        "logme": logme(features.double().numpy(), targets.double().numpy()),
    }


def _of_neighbours(features: Tensor, targets: Tensor, held: Tensor) -> Tensor:
    """Return for each held image the shares of the classes among its nearest neighbours, [H, K]. features: [N, F]. targets: [N, K]."""
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(features)), metric="cosine").fit(features.numpy())
    return targets[nearest.kneighbors(held.numpy(), return_distance=False)].float().mean(1)


def _folds(labels: Tensor, samples: Samples) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the rows to fit on and the rows to answer, of each fold."""
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    used = _used(samples)
    rarest = min(np.bincount(labels.numpy())[np.unique(labels.numpy())]) if labels.ndim == 1 else FOLDS
    folds = max(2, min(FOLDS, int(rarest), len({sample.unit for sample in used})))
    shuffled: dict[str, Any] = {"n_splits": folds, "shuffle": True, "random_state": 0}
    if any(sample.group is not None for sample in used):
        groups = [sample.unit for sample in used]
        splitter = StratifiedGroupKFold(**shuffled) if labels.ndim == 1 else GroupKFold(folds)
        yield from splitter.split(used, labels.numpy(), groups)
        return
    splitter = StratifiedKFold(**shuffled) if labels.ndim == 1 and rarest > 1 else KFold(**shuffled)
    yield from splitter.split(used, labels.numpy())


@torch.inference_mode()
def images_per_s(classifier: Classifier, data: Data) -> float:
    """Return how many images the network classifies in a second, by the quickest of a few batches after a warm-up."""
    classifier.eval()
    device = next(classifier.parameters()).device
    images = torch.zeros(TIMED_BATCH, data.channels, data.image_size, data.image_size, device=device).contiguous(
        memory_format=torch.channels_last
    )
    seconds = []
    for _ in range(1 + TIMED_BATCHES):
        began = perf_counter()
        classifier(images).sum().item()  # which waits for the device
        seconds.append(perf_counter() - began)
    return TIMED_BATCH / min(seconds[1:])


def with_pareto(rows: Sequence[Ranked]) -> list[Ranked]:
    """Mark the rows of which no other is at least as quick and as accurate, and better in one of the two."""
    known = [row for row in rows if row.score is not None]

    def beaten(row: Ranked) -> bool:
        mine = (row.score, row.images_per_s)
        others = ((other.score, other.images_per_s) for other in known)
        return any(theirs != mine and all(a >= b for a, b in zip(theirs, mine, strict=True)) for theirs in others)  # type: ignore[operator]

    return [replace(row, pareto=row.score is not None and not beaten(row)) for row in rows]


def _cells(row: Ranked, metric: str) -> dict[str, object]:
    digits = {"score": 4, "low": 4, "high": 4, "knn": 4, "logme": 4, "images_per_s": 1, "megabytes": 1}
    values = {name: value for name, value in asdict(row).items() if name != "metric"} | {"pareto": "yes" if row.pareto else ""}
    cells = {name: round(value, digits[name]) if name in digits and value is not None else value for name, value in values.items()}
    return {metric if name == "score" else name: "" if value is None else value for name, value in cells.items()}


def draw_rank(rows: Sequence[Ranked], file: Path) -> None:
    """Draw the score with its interval against images a second; the Pareto front is joined by a line."""
    from matplotlib.ticker import LogLocator, NullFormatter

    front = []
    with figure_file(file, 8, 5, dpi=120) as figure:
        figure.set_layout_engine("constrained")
        axis = figure.subplots()
        for row in rows:
            if row.score is None or row.images_per_s is None or row.low is None or row.high is None:
                continue
            color, place = "#0b5cad" if row.pareto else "#8a8a8a", (row.images_per_s, row.score)
            axis.plot([row.images_per_s] * 2, [row.low, row.high], color=color, lw=1.5)
            axis.plot(*place, "o", ms=6, color=color)
            axis.annotate(row.backbone, place, (6, 4), textcoords="offset points", fontsize=8.5)
            front += [place] if row.pareto else []
        if front:
            axis.plot(*zip(*sorted(front), strict=True), "-", color="#0b5cad", lw=1, alpha=0.6)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set(xlabel="images per second on this machine", ylabel=f"{metric_label(rows[0].metric)} of a solved head on frozen features")
        axis.set_title("blue: no other backbone is both quicker and more accurate", fontsize=10)
        axis.grid(alpha=0.25, which="both")
        axis.margins(x=0.25)
        axis.spines[["top", "right"]].set_visible(False)


def write_winner(recipe_file: str, overrides: Sequence[str], winner: Candidate, file: Path) -> None:
    """Write the recipe with the winner's backbone and weights."""
    values = _model_values(load_recipe(recipe_file, overrides), winner)
    model = {f"model.{key}": value for key, value in values.items()}
    write_atomically(file, edited_recipe(recipe_file, overrides, model, by="tlkit rank"))
