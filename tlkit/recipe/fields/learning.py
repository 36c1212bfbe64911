"""optimizer, schedule, loss, mix, ema and early_stopping: how what trains learns, in every phase."""

from typing import Literal, Self

from pydantic import Field, model_validator

from tlkit.recipe.fields.phases import Train
from tlkit.recipe.fields.strict import Strict, rule_broken

DEFAULT_WARMUP = 0.1


class Optimizer(Strict):
    name: str = Field(
        "adamw",
        min_length=1,
        examples=["momentum"],
        description="sgd | momentum | nesterov | adagrad | rmsprop | adam | adamw | one of timm's: lion, lamb, ...",
    )
    weight_decay: float = Field(0.05, ge=0, examples=[0.01], description="weight decay; not applied to biases and normalisation layers")
    momentum: float = Field(0.9, ge=0, lt=1, examples=[0.95], description="momentum of momentum, nesterov and rmsprop")
    gradient_clip: float | None = Field(None, gt=0, examples=[1.0], description="largest gradient norm, over all parameters")
    accumulate: int = Field(1, ge=1, examples=[4], description="number of batches whose gradients are accumulated for one step")


class Schedule(Strict):
    name: Literal["cosine", "constant", "linear", "step", "one_cycle", "plateau"] = Field(
        "cosine", description="how lr changes within a phase"
    )
    warmup: float | None = Field(
        None,
        ge=0,
        lt=1,
        examples=[0.05],
        description="share of a phase's steps in which lr rises from zero; by default 0.1 where more than the head trains,"
        " but not for one_cycle and plateau",
    )
    factor: float = Field(0.1, gt=0, lt=1, examples=[0.5], description="for step and plateau: factor by which lr is multiplied")
    every: float = Field(0.34, gt=0, lt=1, examples=[0.5], description="for step: share of a phase between two drops")
    patience: int = Field(2, ge=0, examples=[3], description="for plateau: epochs without a lower validation loss before lr drops")

    def of_phase(self, train: Train) -> Self:
        """Return the schedule with the warm-up that a phase has by default, where none is given."""
        if self.warmup is not None or train == "head" or self.name in ("one_cycle", "plateau"):
            return self
        return self.model_copy(update={"warmup": DEFAULT_WARMUP})

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if self.warmup and self.name in ("one_cycle", "plateau"):
            why = "one_cycle rises by itself" if self.name == "one_cycle" else "plateau changes lr between epochs only"
            raise rule_broken("warmup", "name", f"= {self.warmup} has no place here: {why}.", "Remove it, or choose another schedule.")
        return self


class Loss(Strict):
    label_smoothing: float = Field(0.0, ge=0, lt=1, examples=[0.1], description="share of the target that is spread over all classes")
    l2_sp: float = Field(
        0.0, ge=0, examples=[0.01], description="pull of the backbone towards its initial weights (L2-SP), instead of its weight decay"
    )


class Mix(Strict):
    mixup: float = Field(0.0, ge=0, examples=[0.2], description="alpha of mixup: two images and their labels blended; 0 is none")
    cutmix: float = Field(0.0, ge=0, examples=[1.0], description="alpha of cutmix: a piece of another image pasted in; 0 is none")


class Ema(Strict):
    decay: float = Field(0.999, gt=0, lt=1, examples=[0.9999], description="decay of the moving average of the weights, after warm-up")


class EarlyStopping(Strict):
    patience: int = Field(
        ge=1, examples=[3], description="epochs without a better validation score (an equal one is not better) before a phase ends"
    )
    min_delta: float = Field(0.0, ge=0, examples=[0.001], description="smallest improvement that counts")
