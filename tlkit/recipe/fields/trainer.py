"""trainer and cache: what the run runs on, and what it keeps."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tlkit.recipe.fields.strict import Strict, rule_broken


class Cache(Strict):
    """Activations of what is frozen, kept between epochs, phases and runs; and within a run, images as the network sees them."""

    use: bool = Field(True, description="run the frozen part once, and decode images once, instead of in every epoch")
    budget_gb: float = Field(
        10.0,
        gt=0,
        examples=[20.0],
        description="largest size on disk, over all runs; the least recently used goes first. As much again for decoded images",
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", description="dtype of cached activations")
    half_over_budget: bool = Field(False, description="over budget, cache float16 rather than nothing")
    views: int = Field(
        0, ge=0, le=1000, examples=[8], description="cached augmented versions of each training image, used in turn; 0 is none"
    )


class CheckpointEvery(Strict):
    minutes: float = Field(10.0, gt=0, examples=[5.0], description="minutes between checkpoints within an epoch")


LoggerName = Literal["csv", "tensorboard", "mlflow", "wandb"]
LOGGER_PACKAGES = {"mlflow": "mlflow", "wandb": "wandb"}
"""Loggers of an extra of the same name -> the package that they need."""
OnNan = Literal["stop", "skip"]
ScaleLr = Literal["linear", "sqrt"]
SPLIT_PRECISIONS = ("32-true", "bf16-mixed")
SPLIT_OPTIMIZERS = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw")
"""Optimizers for `strategy: fsdp`: their steps are elementwise and can be sharded; some of timm's use the norm of a layer."""


class Trainer(Strict):
    """Mostly handed to Lightning's Trainer as it is."""

    accelerator: str = Field("auto", examples=["gpu"], description="auto | cpu | gpu | cuda | mps | tpu")
    devices: Annotated[int, Field(ge=-1)] | list[int] | str = Field(
        "auto", examples=[2], description="auto, a number of devices, or a list of them"
    )
    num_nodes: int = Field(1, ge=1, examples=[2], description="machines")
    strategy: str = Field(
        "auto", examples=["ddp"], description="auto | ddp: the network on every device | fsdp: split over a machine's devices | ..."
    )
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true"] = Field(
        "32-true", description="precision of the computation; weights stay in 32 bits"
    )
    deterministic: bool = Field(True, description="deterministic algorithms: same recipe, same kind of machine, same results")
    on_nan: OnNan = Field("stop", description="at a loss of NaN or infinity: stop, or skip the batch; its images are listed either way")
    scale_lr: ScaleLr | Literal[False] = Field(
        False,
        description="take batch_size and lr per device: n devices process n times the images, at lr times n or its root",
    )
    log_gradients: bool = Field(
        False, description="record the norms of gradients and weights of every layer and epoch: gradients.csv and gradients.png"
    )
    logger: tuple[LoggerName, ...] = Field(
        ("tensorboard",),
        strict=False,
        examples=[["csv", "tensorboard"]],
        description="where Lightning logs to, beside metrics.csv; [] for none",
    )
    checkpoint_every: CheckpointEvery = Field(
        default_factory=CheckpointEvery,
        description="checkpoints within an epoch; between epochs, at most every 5 seconds",
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
