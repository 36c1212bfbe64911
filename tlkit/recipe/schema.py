"""The recipe that joins the parts of fields/, and the clashes between them.

Every field states its type, default, unit, bounds and one line on what it does. Nothing here or in fields/ imports torch,
so that `tlkit check` answers at once.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from tlkit.errors import RecipeError
from tlkit.recipe.fields.augment import Transform
from tlkit.recipe.fields.data import Data, FindBatchSize
from tlkit.recipe.fields.learning import EarlyStopping, Ema, Loss, Mix, Optimizer, Schedule
from tlkit.recipe.fields.model import CLASSICAL_HEADS, WITHOUT_PROBABILITIES, Model
from tlkit.recipe.fields.phases import AnyPhase, FromStage, Phase, SolvedPhase
from tlkit.recipe.fields.search import Range
from tlkit.recipe.fields.source import ONE_LABEL
from tlkit.recipe.fields.strict import Strict, rule_broken
from tlkit.recipe.fields.trainer import SPLIT_OPTIMIZERS, SPLIT_PRECISIONS, Cache, Trainer
from tlkit.recipe.fields.trust import AbstainOptions, UnknownScoreName
from tlkit.recipe.validate import document_of, validated
from tlkit.recipe.yaml12 import WHOLE, nearest_place

WITHOUT_LINEAR_LAYERS = re.compile(
    r"(wide_|se)?resnet\d+\w?(_\d)?|resnext\d+_\w+|vgg\d+(_bn)?|plain\d+|densenet\d+|googlenet"
    r"|(tf_)?efficientnet_(b\d|lite\d)|mobilenetv[12]_\d+|regnet[xy]_\d+"
)
"""Backbones of convolutions alone that are well known: `tlkit check` doesn't build the others, `tlkit plan` does."""

Task = Literal["multiclass", "multilabel"]
Imbalance = Literal["none", "loss_weights", "sampler", "logit_adjust"]


class Recipe(Strict):
    """Everything that a run needs to know: data, model, phases and what they are trained with.

    Made by `load_recipe` from a file or by `Recipe.from_dict`; frozen, and checked as a whole.
    """

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        examples=["photos"],
        description="up to 100 letters, digits and . _ -; names the run folder runs/NAME/NNN",
    )
    seed: int = Field(0, ge=0, lt=2**32, examples=[1], description="seed of splits, initial weights, order and augmentation")
    task: Task = Field("multiclass", description="one label for each image, or any number of them")
    data: Data = Field(description="where images come from and how they reach the network")
    imbalance: Imbalance = Field("none", description="compensation for classes with few training images")
    augment: tuple[Transform, ...] = Field(
        (),
        strict=False,
        examples=[["HorizontalFlip", {"Rotate": {"limit": 15}}]],
        description="augmentation of training images: light, medium, heavy, or a list of albumentations, randaugment and trivialaugment",
    )
    model: Model = Field(description="the backbone and its head")
    phases: tuple[AnyPhase, ...] = Field(strict=False, description="what trains, for how long, at which rate, one phase after another")
    optimizer: Optimizer = Field(default_factory=Optimizer, description="the optimizer; each phase has a new one")
    schedule: Schedule = Field(default_factory=Schedule, description="learning-rate schedule, restarted in every phase")
    loss: Loss = Field(default_factory=Loss, description="the training loss: cross-entropy, or binary cross-entropy for multilabel")
    mix: Mix = Field(default_factory=Mix, description="mixing of training batches; with both, each batch gets one of them at random")
    ema: Ema | None = Field(None, description="validate and ship a moving average of the weights")
    wise_ft: bool = Field(False, description="ship the blend of the weights before and after fine-tuning that validates best (WiSE-FT)")
    abstain: AbstainOptions | None = Field(None, description="promises of the answers, kept by thresholds that validation chooses")
    unknown: UnknownScoreName = Field(
        "knn", description="score of images unlike any training image: distance to the nearest ones (knn), or energy of the logits"
    )
    cache: Cache = Field(default_factory=Cache, description="cache of the activations of frozen layers, for epochs, phases and runs")
    early_stopping: EarlyStopping | None = Field(None, description="end a phase that no longer improves")
    trainer: Trainer = Field(default_factory=Trainer, description="handed to Lightning")
    search: dict[str, Range] | None = Field(
        None,
        examples=[{"phases[0].lr": {"log": [1e-4, 1e-2]}}],
        description="what tlkit tune varies: a key of the recipe, as an override names it, and its range",
    )

    @model_validator(mode="after")
    def _head_and_phases_agree(self) -> Self:
        kind = self.model.head.kind
        if not self.phases and kind not in CLASSICAL_HEADS:
            fix = "Write at least one, such as {train: head, epochs: 5, lr: 1e-3}."
            raise rule_broken("phases", "model.head.kind", f"is empty, and a {kind} head learns in a phase.", fix)
        if kind in CLASSICAL_HEADS:
            for key, given in (("mix", self.mix != Mix()), ("wise_ft", self.wise_ft), ("imbalance", self.imbalance != "none")):
                if given:
                    problem = f"has no place here: scikit-learn fits a {kind} head, on images and labels as they are."
                    raise rule_broken(key, "model.head.kind", problem, "Remove it, or set model.head.kind to linear.")
        if self.wise_ft and not ([phase.train for phase in self.phases][:1] == ["head"] and self.fine_tunes):
            problem = "= true needs weights to blend with: a first phase with train: head, and one after it that trains more."
            raise rule_broken("wise_ft", "phases", problem, "Add such a phase, or remove it.")
        return self

    @model_validator(mode="after")
    def _a_step_has_images_to_mix(self) -> Self:
        if self.mix != Mix() and self.data.batch_size == 1 and self.gradient_phases:
            problem = "needs two images of a batch to mix, and data.batch_size = 1 has one."
            raise rule_broken("mix", "data.batch_size", problem, "Remove it, or set data.batch_size to 2 or more.")
        return self

    @model_validator(mode="after")
    def _can_be_solved(self) -> Self:
        solved = [i for i, phase in enumerate(self.phases) if isinstance(phase, SolvedPhase)]
        if solved and self.model.head.kind != "linear":
            problem = f"= '{self.model.head.kind}', but phases[{solved[0]}].solver finds a linear head."
            raise rule_broken("model.head.kind", "phases", problem, "Set it to linear, or give the phase epochs and lr in place of solver.")
        if solved and self.imbalance == "sampler":
            problem = f"= 'sampler' draws images by chance, and phases[{solved[0]}].solver sees each of them once."
            raise rule_broken("imbalance", "phases", problem, "Set it to loss_weights or logit_adjust.")
        return self

    @model_validator(mode="after")
    def _task_fits(self) -> Self:
        if self.task == "multiclass":
            return self
        if self.model.head.kind in CLASSICAL_HEADS:
            problem = f"= '{self.model.head.kind}' chooses one class for each image, and task is multilabel."
            raise rule_broken("model.head.kind", "task", problem, "Set it to linear, mlp, cosine or locally_connected.")
        if self.imbalance in ("sampler", "logit_adjust"):
            problem = f"= '{self.imbalance}' is for one label for each image, and task is multilabel."
            raise rule_broken("imbalance", "task", problem, "Set it to loss_weights or none.")
        if isinstance(self.data.source, ONE_LABEL):
            kind = next(iter(type(self.data.source).model_fields))
            problem = f"= 'multilabel', but a {kind} source gives an image one label."
            raise rule_broken("task", "data.source", problem, "Set data.source to {csv: FILE}, or task to multiclass.")
        return self

    @model_validator(mode="after")
    def _promises_have_probabilities(self) -> Self:
        kind = self.model.head.kind
        if self.task == "multiclass" and kind not in WITHOUT_PROBABILITIES:
            return self
        with_key, why = ("task", "task is multilabel") if self.task == "multilabel" else ("model.head.kind", f"a {kind} head gives none")
        if self.abstain is not None:
            raise rule_broken("abstain", with_key, f"needs probabilities of one label for each image, and {why}.", "Remove it.")
        if self.unknown == "energy":
            raise rule_broken(
                "unknown", with_key, f"= 'energy' needs logits of one label for each image, and {why}.", "Set it to knn or off."
            )
        return self

    @model_validator(mode="after")
    def _batch_size_is_one_devices(self) -> Self:
        if self.trainer.scale_lr and isinstance(self.data.batch_size, FindBatchSize):
            problem = "takes batch_size for one device's, and data.batch_size = {find: ..} finds one for all of them."
            raise rule_broken("trainer.scale_lr", "data.batch_size", problem, "Set it to false, or give batch_size a number.")
        return self

    @model_validator(mode="after")
    def _adapters_have_a_place(self) -> Self:
        for i, phase in self.gradient_phases.items():
            if phase.adapter is None:
                continue
            is_conv = self.model.features == "conv"
            if is_conv or WITHOUT_LINEAR_LAYERS.fullmatch(self.model.backbone.partition(".")[0]):
                network = self.model.backbone + (" with features = 'conv'" if is_conv else "")
                problem = f"= {{{phase.adapter.kind}: ..}}, but {network} has no linear layers below the head to adapt."
                fix = "Set it to {from: STAGE}, or model.backbone to one that has some: vit_tiny_patch16_224, convnext_tiny."
                raise rule_broken(f"phases[{i}].train", "model.backbone", problem, fix)
            if self.loss.l2_sp:
                problem = f"= {self.loss.l2_sp} pulls weights back to where they began, and in phases[{i}] adapters leave them there."
                raise rule_broken("loss.l2_sp", f"phases[{i}].train", problem, "Set it to 0, or train to all or {from: STAGE}.")
        return self

    @model_validator(mode="after")
    def _dense_layers_are_there(self) -> Self:
        for i, phase in self.gradient_phases.items():
            if self.model.features == "conv" and isinstance(phase.train, FromStage) and phase.train.from_ == "dense":
                problem = "= {from: dense}, but model.features = 'conv' leaves the dense layers out."
                raise rule_broken(f"phases[{i}].train", "model.features", problem, "Set it to head or {from: conv5}, or features to all.")
        return self

    @model_validator(mode="after")
    def _can_be_split(self) -> Self:
        if self.trainer.strategy != "fsdp":
            return self
        if self.trainer.devices in (1, "1") or (isinstance(self.trainer.devices, list) and len(self.trainer.devices) == 1):
            problem = f"= 'fsdp' splits a network over the devices of a machine, and trainer.devices = {self.trainer.devices!r}."
            raise rule_broken("trainer.strategy", "trainer.devices", problem, "Set it to auto, or trainer.devices to 2 or more.")
        formats = {"trainer.precision": self.trainer.precision}
        formats |= {f"phases[{i}].precision": phase.precision for i, phase in self.gradient_phases.items() if phase.precision}
        clashes = {f"phases[{i}].compile": "Remove it" for i, phase in self.gradient_phases.items() if phase.compile}
        clashes |= {f"phases[{i}].train": "Use all or {from: STAGE}" for i, phase in self.gradient_phases.items() if phase.adapter}
        clashes |= {key: f"Use {' or '.join(SPLIT_PRECISIONS)}" for key, name in formats.items() if name not in SPLIT_PRECISIONS}
        if self.optimizer.name not in SPLIT_OPTIMIZERS:
            clashes["optimizer.name"] = f"Use one of {', '.join(SPLIT_OPTIMIZERS)}"
        if isinstance(self.data.batch_size, FindBatchSize):
            clashes["data.batch_size"] = "Give it a number"
        if self.ema is not None:
            clashes["ema"] = "Remove it"
        if self.trainer.log_gradients:
            clashes["trainer.log_gradients"] = "Set it to false"
        if self.loss.l2_sp:
            clashes["loss.l2_sp"] = "Set it to 0"
        if self.model.auxiliary_loss and self.model.backbone.partition(".")[0] == "googlenet":
            clashes["model.auxiliary_loss"] = "Set it to 0"
        for key, fix in clashes.items():
            problem = "can't be used with trainer.strategy = 'fsdp', which splits the weights over devices."
            raise rule_broken(key, "trainer.strategy", problem, f"{fix}, or set trainer.strategy to ddp.")
        return self

    def trainer_of(self, phase: Phase) -> Trainer:
        """Return the trainer with the phase's own precision; with ddp for a head, which is not worth sharding."""
        changes: dict[str, str] = {"precision": phase.precision} if phase.precision else {}
        if self.trainer.strategy == "fsdp" and phase.train == "head":
            changes["strategy"] = "ddp"
        return self.trainer.model_copy(update=changes)

    @property
    def fine_tunes(self) -> bool:
        """Check whether a phase trains more than the head."""
        return any(phase.train != "head" for phase in self.phases)

    @property
    def gradient_phases(self) -> dict[int, Phase]:
        """Return index -> phase, for the phases of this run that have epochs and a learning rate."""
        return {i: phase for i, phase in self.run_phases.items() if isinstance(phase, Phase)}

    @property
    def run_phases(self) -> dict[int, Phase | SolvedPhase]:
        """Return index -> phase; with a classical head, which scikit-learn fits, up to the last phase that trains more than the head."""
        last = max((i for i, phase in enumerate(self.phases) if phase.train != "head"), default=-1)
        classical = self.model.head.kind in CLASSICAL_HEADS
        return {i: phase for i, phase in enumerate(self.phases) if i <= last or not classical}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make a recipe from a dict that holds what a YAML file would.

        Args:
            values: The keys and values of a recipe, spelled as in YAML: `{"name": "trial", "phases": [{"train": "head", ..}], ..}`.
                Tuples may stand for lists, and paths for text.

        Returns:
            The recipe with every default filled in, checked as one from a file.

        Raises:
            RecipeError: It can't be used. The message holds every fault, each with its key, what came and what was expected.
        """
        return validated(cls, document_of(values), WHOLE)

    _places: dict[str, str] = PrivateAttr(default_factory=dict)
    """Dotted key -> `file:line`, filled in by the loader."""

    def place_of(self, key: str) -> str:
        """Return `file:line` of a key, or of the nearest part above it that is in the file."""
        return nearest_place(self._places, key)

    def origins(self) -> dict[str, str]:
        """Return `file:line`, or the override, of every value that isn't a default."""
        keys = sorted(key for key in self._places if key)
        return {key: self._places[key] for key in keys if not any(other.startswith((f"{key}.", f"{key}[")) for other in keys)}

    def at_places_of(self, other: "Recipe") -> Self:
        """Return the recipe itself, with faults reported at the places of the recipe that it was made from."""
        self._places.update(other._places)
        return self

    @contextmanager
    def located(self) -> Iterator[None]:
        """Add `file:line` to every recipe fault that is raised inside."""
        try:
            yield
        except RecipeError as error:
            raise RecipeError(fault.at(self.place_of(fault.key)) for fault in error.faults) from error
