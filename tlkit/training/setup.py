"""Recipe -> images and weights -> classifier: the setup of training, `tlkit plan` and `tlkit lr`."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tlkit.data.augment import build_augmentation
from tlkit.data.preprocess import Preprocessing, preprocessing_for
from tlkit.data.quality.on_bad import leave_out_bad, read_images, refuse_bad
from tlkit.data.samples import Samples
from tlkit.data.sources.read import read_source
from tlkit.data.splits.folds import split_by_recipe
from tlkit.errors import Fault, RecipeError, TlkitError
from tlkit.files import expanded
from tlkit.models.backbones import check_backbone_name, pretrained_cfg
from tlkit.models.classifier import Classifier, Origin
from tlkit.models.freeze import BATCH_NORMS, NORMS_WITH_STATISTICS, trained_parameters
from tlkit.models.heads import trained_head
from tlkit.models.image_sizes import explained_image_size
from tlkit.models.model_folder import check_can_ship
from tlkit.models.weights.load import load_backbone
from tlkit.models.weights.sources import Weights, find_weights
from tlkit.recipe.fields.data import Data
from tlkit.recipe.fields.model import Model
from tlkit.recipe.fields.phases import Phase, SolvedPhase
from tlkit.recipe.fields.trainer import Cache
from tlkit.recipe.names import package_faults
from tlkit.recipe.schema import Recipe, Task
from tlkit.training.checkpointing.resume import in_splits_as_begun
from tlkit.training.objective.auxiliary import has_auxiliary_heads
from tlkit.training.specs import Learning, PhaseSpec, phase_specs

if TYPE_CHECKING:
    from tlkit.data.datamodule import ImageDataModule
    from tlkit.training.trainer import Devices

LOG = logging.getLogger("tlkit")


@dataclass(frozen=True)
class Setup:
    """All that training needs, and what is handed on of the recipe. phases: those that are run. notes: on the weights."""

    samples: Samples
    weights: Weights
    classifier: Classifier
    data: "ImageDataModule"
    phases: list[PhaseSpec]
    learning: Learning
    cache: Cache
    devices: "Devices"
    notes: list[str]

    def phase(self, number: int) -> PhaseSpec | None:
        """Return the phase with this number, counted from 1; None for a head that scikit-learn fits after all phases."""
        return next((spec for spec in self.phases if spec.number == number), None)


def read_and_split(data: Data, task: Task, seed: int) -> Samples:
    """Return the images, checked and in splits, for the setups of several recipes that differ in their model alone."""
    samples = split_by_recipe(read_images(data, task), data, seed)
    if data.on_bad == "error":
        refuse_bad(samples, data)
    return samples


def prepare(recipe: Recipe, *, fold: int = 1, resumed: Path | None = None, divided: Samples | None = None) -> Setup:
    """Find images and weights, check what can be checked, and build; nothing is written.

    fold: with `data.folds`, the one that validates, counted from 1. resumed: the folder of an unfinished run that goes on, if it is one.
    divided: the images, where `read_and_split` has read them already.
    """
    with recipe.located():
        check_backbone_name(recipe.model.backbone)
        if faults := package_faults(recipe):
            raise RecipeError(faults)
        samples, weights = (divided, find_weights(recipe.model)) if divided else gather(recipe.data, recipe.model, recipe.task)
        # Lightning takes seconds to import: what is missing is said before that.
        from tlkit.data.datamodule import ImageDataModule
        from tlkit.training.optimizers import check_optimizer_name
        from tlkit.training.trainer import check_devices, seed_everything

        devices = check_devices(recipe.trainer)
        for trainer in map(recipe.trainer_of, recipe.gradient_phases.values()):
            if trainer != recipe.trainer:  # a Trainer takes a tenth of a second to make
                check_devices(trainer)
        check_optimizer_name(recipe.optimizer.name)
        if divided is None:
            if recipe.data.on_bad == "skip" and resumed and (resumed / "split.csv").is_file():
                samples = in_splits_as_begun(samples, resumed / "split.csv")
            else:
                samples = split_by_recipe(samples, recipe.data, recipe.seed, fold=fold)
            if recipe.data.on_bad == "error":
                refuse_bad(samples, recipe.data)
        seed_everything(recipe.seed)
        notes: list[str] = []  # for the log, which is not there yet
        classifier, preprocessing = build(recipe.data, recipe.model, samples, weights, log=notes.append)
        augmentation = build_augmentation(recipe.augment, recipe.data.image_size, recipe.data.channels, margin=recipe.data.margin)
        trained = trainable_parameters(recipe.phases, classifier, recipe.model.backbone)
        check_compile(recipe.gradient_phases, recipe.model, classifier)
        specs = phase_specs(recipe, trained, len(samples.of("train")))
        check_batch_size(recipe.data.known_batch_size, classifier, specs, devices.total)
    notes += statistics_note(specs, classifier)
    data = ImageDataModule(
        samples,
        preprocessing,
        augmentation,
        batch_size=recipe.data.known_batch_size,
        workers=recipe.data.workers,
        seed=recipe.seed,
        balanced=recipe.imbalance == "sampler",
    )
    if recipe.gradient_phases and devices.total > 1:
        data.check_shares(devices.total)
    return Setup(
        samples=samples,
        weights=weights,
        classifier=classifier,
        data=data,
        phases=specs,
        learning=Learning.of(recipe),
        cache=recipe.cache,
        devices=devices,
        notes=notes,
    )


def statistics_note(specs: Sequence[PhaseSpec], classifier: Classifier) -> list[str]:
    """Return a line that says where `batchnorm: auto` keeps the statistics of layers that train; none where it doesn't."""
    norms = {name for name, module in classifier.backbone.named_modules() if isinstance(module, NORMS_WITH_STATISTICS)}
    phases = [
        str(spec.number)
        for spec in specs
        if isinstance(spec.phase, Phase)
        and (spec.phase.batchnorm, spec.batchnorm) == ("auto", "frozen")
        and any(name.rpartition(".")[0] in norms for name in spec.trained)
    ]
    return (
        [f"batch-norm keeps their statistics in phase {', '.join(phases)}, since images are few; `batchnorm: adapt` learns them"]
        if phases
        else []
    )


def build(
    data: Data, model: Model, samples: Samples, weights: Weights, *, log: Callable[[str], None] = LOG.info
) -> tuple[Classifier, Preprocessing]:
    """Build the classifier with its weights and a new head, and its preprocessing.

    log: called with what was done to the weights.
    """
    size, channels = data.image_size, data.channels
    with explained_image_size(model.backbone, size, channels=channels, pool=model.head.pool, features=model.features):
        backbone = load_backbone(model, weights, size, channels=channels, log=log)
        preprocessing = preprocessing_of(data, model.backbone, samples, weights)
        head = trained_head(model.head)
        origin = Origin(model.backbone, head, {"origin": weights.origin, "sha256": weights.sha256}, model.features, samples.task)
        classifier = Classifier(backbone, head, samples.classes, size, preprocessing, origin)
    check_can_ship(model.backbone, model.head, classifier, len(samples.classes), size, features=model.features)
    if "mean_picture" in weights.normalization and data.normalize == "weights":
        log("they were trained with a mean image subtracted; `normalize: weights` takes the means of its channels")
    return classifier, preprocessing


def preprocessing_of(data: Data, backbone: str, samples: Samples, weights: Weights) -> Preprocessing:
    """Return the preprocessing. weights: only their normalisation is used."""
    cfg = {**pretrained_cfg(backbone), **weights.normalization}
    return preprocessing_for(data, cfg, images=lambda read: (read(sample.image) for sample in samples.of("train")))


def trainable_parameters(phases: Sequence[Phase | SolvedPhase], classifier: Classifier, backbone: str) -> list[frozenset[str]]:
    """Return for each phase the backbone's parameters that train besides the head. Raises RecipeError for stages that it doesn't have."""
    return [
        trained_parameters(
            phase.train,
            classifier.backbone,
            classifier.stages,
            key=f"phases[{i}].train",
            name=backbone,
            called=classifier.called,
        )
        for i, phase in enumerate(phases)
    ]


def check_compile(phases: Mapping[int, Phase], model: Model, classifier: Classifier) -> None:
    """Raise RecipeError for a phase that is to be compiled, although auxiliary heads listen to layers within."""
    if not (model.auxiliary_loss and has_auxiliary_heads(classifier.backbone)):
        return
    for number, phase in phases.items():
        if phase.compile:
            problem = f"= true, but auxiliary heads of {model.backbone} listen to its layers, which compiling merges."
            raise RecipeError([Fault(f"phases[{number}].compile", problem, "Remove it, or set model.auxiliary_loss to 0.")])


def check_batch_size(batch_size: int, classifier: Classifier, specs: Sequence[PhaseSpec], devices: int) -> None:
    """Raise RecipeError for a phase in which batch-norm would have one number to take statistics of."""
    for spec in specs if batch_size // devices < 2 else ():
        classifier.train_only(spec.trained, spec.batchnorm)
        if any(isinstance(module, BATCH_NORMS) and module.training for module in classifier.modules()):
            shared = f", one for each of {devices} devices" if devices > 1 else ""
            problem = f"= {batch_size}{shared}: batch-norm needs two or more images of a step to take their statistics."
            fix = f"Raise it, or set {spec.key}.batchnorm to frozen."
            raise RecipeError([Fault("data.batch_size", problem, fix)])


T = TypeVar("T")


def gather(data: Data, model: Model, task: Task) -> tuple[Samples, Weights]:
    """Return the recipe's images and weights, read concurrently.

    Raises what either raises; if both are missing, one TlkitError with both messages.
    """
    samples, weights = gather_what_there_is(data, model, task)
    if isinstance(samples, TlkitError):
        if isinstance(weights, TlkitError):
            raise TlkitError(f"Neither the images nor the weights of this recipe are available.\n\n{samples}\n\n{weights}")
        raise samples
    if isinstance(weights, TlkitError):
        raise weights
    return samples, weights


def gather_what_there_is(data: Data, model: Model, task: Task) -> tuple[Samples | TlkitError, Weights | TlkitError]:
    """Return images and weights, or the error of each. Raises RecipeError: a fault of the recipe is no missing file."""
    skips = data.on_bad == "skip"
    with ThreadPoolExecutor(2) as pool:
        weights = pool.submit(find_weights, model)
        samples = pool.submit(read_source, data.source, expanded(data.root), task, keep_missing=skips)
    found = _result(samples)
    if skips and isinstance(found, Samples):
        # Here, and not beside the weights: Ctrl-C reaches this thread alone.
        try:
            found = leave_out_bad(found, data)
        except TlkitError as error:
            found = error
    return found, _result(weights)


def _result(future: Future[T]) -> T | TlkitError:
    try:
        return future.result()
    except RecipeError:
        raise
    except TlkitError as error:
        return error
