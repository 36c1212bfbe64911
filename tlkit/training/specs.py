"""The resolved sections that are passed on: those of all phases, and those of each phase."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from tlkit.recipe.fields.learning import EarlyStopping, Ema, Loss, Mix, Optimizer, Schedule
from tlkit.recipe.fields.model import Model
from tlkit.recipe.fields.phases import BatchNorm, Dora, FromStage, Lora, Phase, SolvedPhase, Train
from tlkit.recipe.fields.trainer import Trainer
from tlkit.recipe.schema import Imbalance, Recipe

ENOUGH_FOR_STATISTICS = 20_000
"""Training images from which `batchnorm: auto` adapts the statistics of pretrained weights, as `tlkit init` does."""


@dataclass(frozen=True)
class Learning:
    """The sections of a recipe that hold for every phase alike."""

    optimizer: Optimizer
    schedule: Schedule
    loss: Loss
    imbalance: Imbalance
    mix: Mix
    auxiliary_loss: float
    ema: Ema | None = None
    early_stopping: EarlyStopping | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        return cls(
            optimizer=recipe.optimizer,
            schedule=recipe.schedule,
            loss=recipe.loss,
            imbalance=recipe.imbalance,
            mix=recipe.mix,
            auxiliary_loss=recipe.model.auxiliary_loss,
            ema=recipe.ema,
            early_stopping=recipe.early_stopping,
        )


@dataclass(frozen=True)
class PhaseSpec:
    """One phase of a run.

    index: in the recipe's list of `count` phases. trained: the backbone's parameters that train besides the head.
    trainer: with the phase's own precision and strategy. batchnorm: what `auto` stands for. epochs_before: of earlier phases.
    epochs_left: its own, and those of later phases. keeps_start: whether its initial weights are kept, to be blended.
    """

    index: int
    count: int
    phase: Phase | SolvedPhase
    trained: frozenset[str]
    trainer: Trainer
    batchnorm: BatchNorm = "frozen"
    epochs_before: int = 0
    epochs_left: int = 0
    keeps_start: bool = False

    @property
    def number(self) -> int:
        """Return the number of the phase, counted from 1."""
        return self.index + 1

    @property
    def epochs(self) -> int:
        """Return how many epochs it has; 0 for a phase that is solved."""
        return self.phase.epochs if isinstance(self.phase, Phase) else 0

    @property
    def key(self) -> str:
        """Return its key in the recipe, where lists count from 0."""
        return f"phases[{self.index}]"

    @property
    def name(self) -> str:
        return f"phase {self.number} {phase_name(self.phase.train)}"

    @property
    def title(self) -> str:
        return f"phase {self.number}/{self.count} {phase_name(self.phase.train)}"


def phase_name(train: Train) -> str:
    if isinstance(train, str):
        return train
    if isinstance(train, Lora | Dora):
        return f"{train.kind} rank {train.settings.rank}"
    return f"from {train.from_}" if isinstance(train, FromStage) else f"last {train.last}"


def phase_specs(recipe: Recipe, trained: Sequence[frozenset[str]], images: int) -> list[PhaseSpec]:
    """Return the phases that are run.

    trained: for each phase of the recipe the backbone's parameters that train besides the head. images: of the training split.
    """
    epochs = {index: phase.epochs for index, phase in recipe.gradient_phases.items()}
    first_beyond_head = next((index for index, phase in recipe.gradient_phases.items() if phase.train != "head"), None)
    return [
        PhaseSpec(
            index=index,
            count=len(recipe.phases),
            phase=phase,
            trained=trained[index],
            trainer=recipe.trainer_of(phase) if isinstance(phase, Phase) else recipe.trainer,
            batchnorm=batchnorm_of(phase, recipe.model, images) if isinstance(phase, Phase) else "frozen",
            epochs_before=sum(number for i, number in epochs.items() if i < index),
            epochs_left=sum(number for i, number in epochs.items() if i >= index),
            keeps_start=recipe.wise_ft and index == first_beyond_head,
        )
        for index, phase in recipe.run_phases.items()
    ]


def batchnorm_of(phase: Phase, model: Model, images: int) -> BatchNorm:
    """Return what `batchnorm` is for so many training images. Random weights have no statistics worth keeping."""
    if phase.batchnorm != "auto":
        return phase.batchnorm
    return "adapt" if model.weights == "random" or images >= ENOUGH_FOR_STATISTICS else "frozen"
