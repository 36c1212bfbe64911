"""trainer and cache: what the run runs on, and what it keeps."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tlkit.recipe.fields.strict import Strict, rule_broken


class Cache(Strict):
    """Activations of what is frozen, kept between epochs, phases and runs; and within a run, images as the network sees them."""

    use: bool = Field(True, description="whether the frozen part runs once, and images are decoded once, instead of in every epoch")
    budget_gb: float = Field(
        10.0,
        gt=0,
        examples=[20.0],
        description="most that is kept on disk, over all runs; the longest unused goes first. As much for a run's images",
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", description="dtype of cached activations")
    half_over_budget: bool = Field(False, description="over budget, keep float16 rather than nothing")
    views: int = Field(
        0, ge=0, le=1000, examples=[8], description="augmented versions kept of each training image, taken in turns; 0 is none"
    )


class CheckpointEvery(Strict):
    minutes: float = Field(10.0, gt=0, examples=[5.0], description="at most this much of an epoch is lost when a run is killed")


OnNan = Literal["stop", "skip"]
ScaleLr = Literal["linear", "sqrt"]
SPLIT_PRECISIONS = ("32-true", "bf16-mixed")
SPLIT_OPTIMIZERS = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw")
"""For `strategy: fsdp`: their steps go by each weight alone, and can be done in pieces; some of timm's take the norm of a layer."""


class Trainer(Strict):
    """Mostly handed to Lightning's Trainer as it is."""

    accelerator: str = Field("auto", examples=["gpu"], description="auto | cpu | gpu | cuda | mps | tpu")
    devices: Annotated[int, Field(ge=-1)] | list[int] | str = Field("auto", examples=[2], description="auto, how many, or which")
    num_nodes: int = Field(1, ge=1, examples=[2], description="machines")
    strategy: str = Field(
        "auto", examples=["ddp"], description="auto | ddp: the network on every device | fsdp: split over a machine's devices | ..."
    )
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true"] = Field(
        "32-true", description="32-true | bf16-mixed | 16-mixed: what the network computes in; the weights stay in 32 bits"
    )
    deterministic: bool = Field(True, description="same recipe, same machine kind, same numbers")
    on_nan: OnNan = Field("stop", description="at a loss that is NaN or infinite: stop, or skip the batch; its images are named either way")
    scale_lr: ScaleLr | Literal[False] = Field(
        False, description="batch_size and lr are one device's: n devices take n times as many images, and lr times n or its root"
    )
    checkpoint_every: CheckpointEvery = Field(
        default_factory=CheckpointEvery, description="within an epoch; between two epochs one is written too, at most every 5 seconds"
    )

    @model_validator(mode="after")
    def _weights_stay_in_32_bits(self) -> Self:
        if self.precision.endswith("-true") and self.precision != "32-true":
            problem = f"= '{self.precision}' would keep the weights themselves in that format, and tlkit trains and ships them in 32 bits."
            fix = "Set it to 32-true, bf16-mixed or 16-mixed, which compute in 16 bits where that is safe."
            raise rule_broken("precision", "precision", problem, fix)
        return self

    @model_validator(mode="after")
    def _has_a_device(self) -> Self:
        if self.devices in (0, "0", "", []):
            raise rule_broken(
                "devices",
                "devices",
                f"= {self.devices!r} leaves no device to train on.",
                "Expected auto, a count such as 1, or a list such as [0, 1].",
            )
        return self
