"""Every field of a recipe: its type, default, unit, bounds and one line on what it does.

Nothing here imports torch, so that `tlkit check` answers at once.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PrivateAttr, Tag, model_validator
from pydantic_core import PydanticCustomError

from tlkit.errors import RecipeError


class Strict(BaseModel):
    """A part of the recipe: unknown keys are faults, nothing is converted ("3" is no number), and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, strict=True, allow_inf_nan=False)


def rule_broken(key: str, with_key: str, problem: str, fix: str) -> PydanticCustomError:
    """A clash of two keys of one part, told at the first. Both are relative to the part."""
    return PydanticCustomError("rule", "{key} {problem} {fix}", {"key": key, "with_key": with_key, "problem": problem, "fix": fix})


# --- data: where pictures come from and how they reach the network ---


class FolderSource(Strict):
    folder: str = Field(min_length=1, title="FOLDER", description="train/val/test folders of classes, or classes to be split")


class TorchvisionSource(Strict):
    torchvision: str = Field(min_length=1, title="NAME", description="a torchvision data set by its class name: CIFAR10, MNIST, ...")


class CsvSource(Strict):
    csv: str = Field(
        min_length=1,
        title="FILE",
        description="a table with the columns path, label and, if needed, split and group; several labels are parted by |",
    )
    root: str | None = Field(None, min_length=1, title="DIR", description="folder that the paths are relative to; by default the table's")


class ParquetSource(Strict):
    parquet: str = Field(min_length=1, title="FILE", description="a table as for csv; a list in the column label is several labels")
    root: str | None = Field(None, min_length=1, title="DIR", description="folder that the paths are relative to; by default the table's")


_CLASSES = "names of the labels 0, 1, 2 ..., in this order"


class IdxSource(Strict):
    idx: str = Field(min_length=1, title="DIR", description="folder with MNIST's files: train-images-idx3-ubyte and so on, .gz or not")
    classes: tuple[str, ...] = Field((), strict=False, description=_CLASSES)


class NpzSource(Strict):
    npz: str = Field(
        min_length=1, title="FILE", description="arrays named x_train and y_train, train_images and train_labels, or images and labels"
    )
    classes: tuple[str, ...] = Field((), strict=False, description=_CLASSES)


class NpySource(Strict):
    npy: str = Field(min_length=1, title="FILE", description="pictures [N, H, W] or [N, H, W, C], uint8 or uint16")
    labels: str = Field(min_length=1, title="FILE", description="an .npy file with a label for each picture")
    classes: tuple[str, ...] = Field((), strict=False, description=_CLASSES)


class HuggingFaceSource(Strict):
    huggingface: str = Field(min_length=1, title="NAME", description="a data set of the hub, or a folder that has one")
    image: str | None = Field(None, min_length=1, description="the column with pictures; by default the only one that has some")
    label: str | None = Field(None, min_length=1, description="the column with labels; by default the only one with named classes")
    config: str | None = Field(None, min_length=1, description="which of the data set's configurations")
    revision: str | None = Field(None, min_length=1, description="branch, tag or commit on the hub")


class WebDatasetSource(Strict):
    webdataset: str = Field(min_length=1, title="SHARDS", description="tar files: shards/train-{000..009}.tar, or with * and ?")
    val: str | None = Field(None, min_length=1, description="tar files of the validation split")
    test: str | None = Field(None, min_length=1, description="tar files of the test split")
    classes: tuple[str, ...] = Field((), strict=False, description=_CLASSES)


class BundledSource(Strict):
    bundled: Literal["fashion_mnist_mini"] = Field(description="a small real sample that ships with tlkit")


Source = (
    FolderSource
    | CsvSource
    | ParquetSource
    | TorchvisionSource
    | IdxSource
    | NpzSource
    | NpySource
    | HuggingFaceSource
    | WebDatasetSource
    | BundledSource
)
Byte = Annotated[int, Field(ge=0, le=255)]
TwoBytes = Annotated[int, Field(ge=0, le=65535)]


class FindBatchSize(Strict):
    find: float = Field(gt=0, lt=1, title="SHARE", description="of the largest batch that fits into memory, found by trying")


class Data(Strict):
    source: Source = Field(description="where the pictures and labels come from")
    root: str = Field("data", description="folder for downloads")
    validation: float = Field(0.1, gt=0, lt=1, description="share of the training split kept for validation, if the source has none")
    test: float = Field(0.1, ge=0, lt=1, description="share of the training split kept for the test, if the source has none")
    folds: Annotated[int, Field(ge=2, le=100)] | None = Field(
        None, description="k of k-fold cross-validation: a run for each fold, which validates on it; the test split stays outside"
    )
    limit: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="pictures for a quick trial, or a share of them: stratified, from every split; by default all"
    )
    image_size: int = Field(224, ge=8, le=4096, description="side of the square picture that the network sees, in pixels")
    channels: int = Field(3, ge=1, le=256, description="1 for grey, 3 for colour, or as many as the pictures have")
    resize: Literal["crop", "pad", "stretch"] = Field("crop", description="how a picture becomes square")
    normalize: Literal["weights", "dataset", "pixelwise", "none"] = Field(
        "weights", description="whose mean and std the pictures are normalised with; pixelwise subtracts the mean picture of training"
    )
    on_bad: Literal["error", "skip"] = Field(
        "error", description="pictures that can't be read end the run, or are left out of it and listed in skipped.csv"
    )
    max_pixels: int = Field(178_956_970, ge=1, le=178_956_970, description="of one picture, width times height; more is never read")
    background: tuple[Byte, Byte, Byte] = Field((255, 255, 255), strict=False, description="R G B under transparent pictures")
    range_16bit: tuple[TwoBytes, TwoBytes] = Field(
        (0, 65535), strict=False, description="of 16-bit values, which becomes 0 to 255; values outside of it are an error"
    )
    batch_size: Annotated[int, Field(ge=1)] | FindBatchSize = Field(64, description="pictures a step, over all devices")
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field("auto", description="processes that load pictures")

    @model_validator(mode="after")
    def _leaves_pictures_to_train_on(self) -> Self:
        if self.validation + self.test >= 1:
            problem = f"= {self.test} and validation = {self.validation} leave no pictures to train on."
            raise rule_broken("test", "validation", problem, "Expected shares whose sum is below 1.")
        return self

    @model_validator(mode="after")
    def _folds_validate(self) -> Self:
        if self.folds is not None and self.validation != Data.model_fields["validation"].default:
            problem = f"= {self.validation} does nothing: with folds = {self.folds}, each fold validates in turn."
            raise rule_broken("validation", "folds", problem, "Remove one of the two.")
        return self

    @model_validator(mode="after")
    def _decodes(self) -> Self:
        low, high = self.range_16bit
        if low >= high:
            problem = f"= [{low}, {high}] is no range."
            raise rule_broken("range_16bit", "range_16bit", problem, "Expected the lowest value and then the highest, such as [0, 4095].")
        if self.background != (255, 255, 255) and self.channels not in (1, 3):
            problem = f"= {list(self.background)} does nothing: with channels = {self.channels} a picture is taken as it is."
            raise rule_broken("background", "channels", problem, "Remove it, or set channels to 3 or 1.")
        return self

    @property
    def known_batch_size(self) -> int:
        """For everything after the batch size was found."""
        if isinstance(self.batch_size, FindBatchSize):
            raise ValueError("data.batch_size is still to be found")
        return self.batch_size

    @property
    def channels_in_words(self) -> str:
        return {1: "grey", 3: "RGB"}.get(self.channels, f"{self.channels} channels")


# --- augment: albumentations by their own names and arguments, and two of torchvision ---


class Transform(Strict):
    """`Rotate: {limit: 15}`: a one-key mapping in the recipe, a name and its arguments here."""

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


Interpolation = Literal["nearest", "bilinear"]


class RandAugment(Strict):
    num_ops: int = Field(2, ge=1, le=14, description="changes that are drawn for a picture, one after the other")
    magnitude: int = Field(9, ge=0, description="how strong each of them is, below num_magnitude_bins")
    num_magnitude_bins: int = Field(31, ge=2, le=1000, description="steps from nothing to the strongest")
    interpolation: Interpolation = Field("nearest", description="of what is turned or moved")
    p: float = Field(1.0, ge=0, le=1, description="share of pictures that are changed")

    @model_validator(mode="after")
    def _magnitude_is_a_step(self) -> Self:
        if self.magnitude >= self.num_magnitude_bins:
            problem = f"= {self.magnitude} is none of {self.num_magnitude_bins} steps, which count from 0."
            raise rule_broken("magnitude", "num_magnitude_bins", problem, f"Expected at most {self.num_magnitude_bins - 1}.")
        return self


class TrivialAugment(Strict):
    num_magnitude_bins: int = Field(31, ge=2, le=1000, description="steps from nothing to the strongest, of which one is drawn")
    interpolation: Interpolation = Field("nearest", description="of what is turned or moved")
    p: float = Field(1.0, ge=0, le=1, description="share of pictures that are changed")


AUTO_AUGMENT: dict[str, type[RandAugment] | type[TrivialAugment]] = {"randaugment": RandAugment, "trivialaugment": TrivialAugment}
"""torchvision's, by name beside albumentations' transforms."""


# --- model ---


class FileWeights(Strict):
    file: str = Field(min_length=1, title="FILE", description="a .safetensors or .pth file with the backbone's state dict")


class RunWeights(Strict):
    run: str = Field(min_length=1, title="DIR", description="the run folder, or the model folder, of an earlier run")


class PackageWeights(Strict):
    package: Literal["efficientnet-lite0"] = Field(description="weights from an installed pip package")


PACKAGE_BACKBONES = {"efficientnet-lite0": "tf_efficientnet_lite0"}


CLASSICAL_HEADS = ("svm", "logistic", "knn")
"""Heads that scikit-learn fits on the features, after the phases."""


class Head(Strict):
    kind: Literal["linear", "mlp", "cosine", "locally_connected", "svm", "logistic", "knn"] = Field(
        "linear", description="what turns features into class scores"
    )
    pool: Literal["avg", "max", "avgmax"] | None = Field(None, description="how maps become features; by default as the backbone does")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of features zeroed in training")
    hidden: int = Field(512, ge=1, description="of mlp: width of the hidden layer")
    filters: int = Field(32, ge=1, description="of locally_connected: filters at each place of the map")
    c: float | None = Field(None, gt=0, description="of svm and logistic: scikit-learn's C; by default the best on validation")
    neighbours: int = Field(5, ge=1, description="of knn: training pictures that vote")

    @model_validator(mode="after")
    def _has_what_it_names(self) -> Self:
        for key, kinds in (("hidden", ("mlp",)), ("filters", ("locally_connected",)), ("c", ("svm", "logistic")), ("neighbours", ("knn",))):
            if key in self.model_fields_set and self.kind not in kinds and getattr(self, key) != Head.model_fields[key].default:
                problem = f"= {getattr(self, key)} does nothing: it is of {' and '.join(kinds)}, and kind is {self.kind}."
                raise rule_broken(key, "kind", problem, f"Remove it, or set kind to {' or '.join(kinds)}.")
        if self.kind == "locally_connected" and self.pool is not None:
            raise rule_broken("pool", "kind", f"= '{self.pool}', but a locally_connected head sees the map itself.", "Remove it.")
        if self.kind in CLASSICAL_HEADS and self.dropout:
            raise rule_broken("dropout", "kind", f"= {self.dropout}, but {self.kind} is fitted without.", "Remove it.")
        return self


class Model(Strict):
    backbone: str = Field(min_length=1, description="any timm model name")
    weights: Literal["pretrained", "random"] | FileWeights | PackageWeights | RunWeights = Field(
        "pretrained", description="where the backbone starts"
    )
    head: Head = Field(default_factory=Head, description="what is put on the backbone")
    drop_path: float = Field(0.0, ge=0, lt=1, description="share of residual branches skipped in training, where the backbone has it")
    auxiliary_loss: float = Field(0.3, ge=0, description="weight of the loss of each auxiliary head; only googlenet has some")

    @model_validator(mode="after")
    def _package_fits_backbone(self) -> Self:
        # A tag, as in tf_efficientnet_lite0.in1k, names the same architecture.
        if isinstance(self.weights, PackageWeights) and self.backbone.partition(".")[0] != PACKAGE_BACKBONES[self.weights.package]:
            problem = f"= '{self.weights.package}' holds no weights for backbone '{self.backbone}'."
            fitting = PACKAGE_BACKBONES[self.weights.package]
            fix = f"Set model.backbone to {fitting}, or model.weights to pretrained, random or {{file: FILE}}."
            raise rule_broken("weights.package", "backbone", problem, fix)
        return self


# --- phases ---


class FromStage(Strict):
    from_: str = Field(alias="from", min_length=1, title="STAGE", description="the first stage that trains; everything after it trains too")


class LastStages(Strict):
    last: int = Field(ge=1, title="N", description="how many stages train, counted from the head")


Train = Literal["head", "all", "norm", "bias"] | FromStage | LastStages
BatchNorm = Literal["frozen", "adapt"]
MasterPrecision = Literal["32-true", "16-mixed", "bf16-mixed"]
"""Those that leave the weights in 32 bits, so that one phase can hand them to another."""


class Phase(Strict):
    train: Train = Field(description="what trains; all else is frozen, gradients and modes")
    epochs: int = Field(ge=1, description="passes over the training split")
    lr: float = Field(gt=0, description="highest learning rate")
    batchnorm: BatchNorm = Field("adapt", description="statistics of batch-norm layers that train; of frozen layers they never move")
    backbone_lr: float | None = Field(None, gt=0, le=1, description="the backbone's lr as a share of the head's")
    layer_decay: float | None = Field(None, gt=0, le=1, description="factor on lr for every stage further from the head")
    precision: MasterPrecision | None = Field(None, description="number format; by default trainer.precision")
    compile: bool = Field(False, description="torch.compile: a minute or so before the first step, and quicker steps after it")

    @model_validator(mode="after")
    def _rates_have_stages(self) -> Self:
        for key in ("backbone_lr", "layer_decay"):
            if self.train == "head" and getattr(self, key) is not None:
                problem = f"= {getattr(self, key)} does nothing: this phase trains the head alone."
                raise rule_broken(key, "train", problem, "Remove it, or set train to all or {from: STAGE}.")
        if self.backbone_lr is not None and self.layer_decay is not None:
            problem = f"= {self.backbone_lr} and layer_decay = {self.layer_decay} both set the backbone's rates."
            raise rule_broken("backbone_lr", "layer_decay", problem, "Keep one of them.")
        return self


class SolvedPhase(Strict):
    """The linear head found by logistic regression on the frozen network's features: no epochs, and no learning rate to guess."""

    train: Train = Field(description="what is solved: head, which alone can be")
    solver: Literal["lbfgs"] = Field(description="in place of epochs and lr: solves to convergence, on training pictures as they are")
    weight_decay: float | None = Field(
        None, gt=0, description="times half the squared weights on standardised features; by default the best on validation"
    )

    @model_validator(mode="after")
    def _head_alone_is_solved(self) -> Self:
        if self.train != "head":
            problem = "can't be solved: only the head is one linear layer on features that stay as they are."
            raise rule_broken("train", "solver", problem, "Set it to head, or give epochs and lr in place of solver.")
        return self


def _kind_of_phase(value: Any) -> str:
    solved = "solver" in value if isinstance(value, Mapping) else isinstance(value, SolvedPhase)
    return "SolvedPhase" if solved else "Phase"


AnyPhase = Annotated[Annotated[Phase, Tag("Phase")] | Annotated[SolvedPhase, Tag("SolvedPhase")], Discriminator(_kind_of_phase)]
"""Tags are class names: faults are explained by them."""


class Optimizer(Strict):
    name: str = Field(
        "adamw", min_length=1, description="sgd | momentum | nesterov | adagrad | rmsprop | adam | adamw | one of timm's: lion, lamb, ..."
    )
    weight_decay: float = Field(0.05, ge=0, description="not applied to biases and normalisation layers")
    momentum: float = Field(0.9, ge=0, lt=1, description="of momentum, nesterov and rmsprop")
    gradient_clip: float | None = Field(None, gt=0, description="longest gradient, as the norm over all parameters")
    accumulate: int = Field(1, ge=1, description="batches whose gradients make one step")


class Schedule(Strict):
    name: Literal["cosine", "constant", "linear", "step", "one_cycle", "plateau"] = Field(
        "cosine", description="how lr moves within a phase"
    )
    warmup: float = Field(0.0, ge=0, lt=1, description="share of a phase's steps in which lr rises from zero")
    factor: float = Field(0.1, gt=0, lt=1, description="of step and plateau: what lr is multiplied with each time")
    every: float = Field(0.34, gt=0, lt=1, description="of step: share of a phase between two drops")
    patience: int = Field(2, ge=0, description="of plateau: epochs without a lower validation loss before lr drops")

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if self.warmup and self.name in ("one_cycle", "plateau"):
            why = "one_cycle rises by itself" if self.name == "one_cycle" else "plateau changes lr between epochs only"
            raise rule_broken("warmup", "name", f"= {self.warmup} has no place here: {why}.", "Remove it, or choose another schedule.")
        return self


class Loss(Strict):
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target that is spread over all classes")
    l2_sp: float = Field(0.0, ge=0, description="pull of the backbone towards where it started (L2-SP), instead of its weight decay")


class Mix(Strict):
    mixup: float = Field(0.0, ge=0, description="alpha of mixup: two pictures and their labels blended; 0 is none")
    cutmix: float = Field(0.0, ge=0, description="alpha of cutmix: a piece of another picture pasted in; 0 is none")


class Ema(Strict):
    decay: float = Field(0.999, gt=0, lt=1, description="weight of the past in the moving average of the weights, after warm-up")


class Cache(Strict):
    """Activations of what is frozen, kept between epochs, phases and runs; and within a run, pictures as the network sees them."""

    use: bool = Field(True, description="whether the frozen part runs once, and pictures are decoded once, instead of in every epoch")
    budget_gb: float = Field(
        10.0, gt=0, description="most that is kept on disk, over all runs; the longest unused goes first. As much for a run's pictures"
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", description="number format of what is kept")
    half_over_budget: bool = Field(False, description="over budget, keep float16 rather than nothing")
    views: int = Field(0, ge=0, le=1000, description="augmented versions kept of each training picture, taken in turns; 0 is none")


class EarlyStopping(Strict):
    patience: int = Field(ge=1, description="epochs without a better validation score before a phase ends")
    min_delta: float = Field(0.0, ge=0, description="what counts as better")


class CheckpointEvery(Strict):
    minutes: float = Field(10.0, gt=0, description="at most this much of an epoch is lost when a run is killed")


OnNan = Literal["stop", "skip"]


class Trainer(Strict):
    """Mostly handed to Lightning's Trainer as it is."""

    accelerator: str = Field("auto", description="auto | cpu | gpu | cuda | mps | tpu")
    devices: Annotated[int, Field(ge=-1)] | list[int] | str = Field("auto", description="auto, how many, or which")
    num_nodes: int = Field(1, ge=1, description="machines")
    strategy: str = Field("auto", description="auto | ddp | fsdp | ...")
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true"] = Field(
        "32-true", description="number format"
    )
    deterministic: bool = Field(True, description="same recipe, same machine kind, same numbers")
    on_nan: OnNan = Field("stop", description="at a loss that is no number: stop, or skip the batch; its pictures are named either way")
    checkpoint_every: CheckpointEvery = Field(
        default_factory=CheckpointEvery, description="within an epoch; between two epochs one is written too, at most every 5 seconds"
    )

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


Task = Literal["multiclass", "multilabel"]
Imbalance = Literal["none", "loss_weights", "sampler", "logit_adjust"]


class Recipe(Strict):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="letters, digits and . _ -; names the run folder runs/NAME/NNN")
    seed: int = Field(0, ge=0, lt=2**32, description="decides splits, initial weights, order and augmentation")
    task: Task = Field("multiclass", description="one label for each picture, or any number of them")
    data: Data = Field(description="where pictures come from and how they reach the network")
    imbalance: Imbalance = Field("none", description="what makes up for classes with few training pictures")
    augment: tuple[Transform, ...] = Field(
        (),
        strict=False,
        description="of training pictures: light, medium, heavy, or a list of albumentations, randaugment and trivialaugment",
    )
    model: Model = Field(description="the backbone and the head on it")
    phases: tuple[AnyPhase, ...] = Field(strict=False, description="what trains, for how long, at what rate, one after another")
    optimizer: Optimizer = Field(default_factory=Optimizer, description="a new one for every phase")
    schedule: Schedule = Field(default_factory=Schedule, description="of lr, anew for every phase")
    loss: Loss = Field(default_factory=Loss, description="what training makes small: cross-entropy, or binary cross-entropy for multilabel")
    mix: Mix = Field(default_factory=Mix, description="training batches; with both, each batch gets one of them by chance")
    ema: Ema | None = Field(None, description="validate and ship a moving average of the weights")
    wise_ft: bool = Field(False, description="ship the blend of the weights before and after fine-tuning that validates best (WiSE-FT)")
    cache: Cache = Field(default_factory=Cache, description="activations of what is frozen, kept between epochs, phases and runs")
    early_stopping: EarlyStopping | None = Field(None, description="ends a phase that no longer gets better")
    trainer: Trainer = Field(default_factory=Trainer, description="handed to Lightning")

    @model_validator(mode="after")
    def _head_and_phases_agree(self) -> Self:
        kind = self.model.head.kind
        if not self.phases and kind not in CLASSICAL_HEADS:
            fix = "Write at least one, such as {train: head, epochs: 5, lr: 1e-3}."
            raise rule_broken("phases", "model.head.kind", f"is empty, and a {kind} head learns in a phase.", fix)
        if kind in CLASSICAL_HEADS:
            for key, given in (("mix", self.mix != Mix()), ("wise_ft", self.wise_ft), ("imbalance", self.imbalance != "none")):
                if given:
                    problem = f"has no place here: scikit-learn fits a {kind} head, on pictures and labels as they are."
                    raise rule_broken(key, "model.head.kind", problem, "Remove it, or set model.head.kind to linear.")
        if self.wise_ft and not ([phase.train for phase in self.phases][:1] == ["head"] and self.fine_tunes):
            problem = "= true needs weights to blend with: a first phase with train: head, and one after it that trains more."
            raise rule_broken("wise_ft", "phases", problem, "Add such a phase, or remove it.")
        return self

    @model_validator(mode="after")
    def _can_be_solved(self) -> Self:
        solved = [i for i, phase in enumerate(self.phases) if isinstance(phase, SolvedPhase)]
        if solved and self.model.head.kind != "linear":
            problem = f"= '{self.model.head.kind}', but phases[{solved[0]}].solver finds a linear head."
            raise rule_broken("model.head.kind", "phases", problem, "Set it to linear, or give the phase epochs and lr in place of solver.")
        if solved and self.imbalance == "sampler":
            problem = f"= 'sampler' draws pictures by chance, and phases[{solved[0]}].solver sees each of them once."
            raise rule_broken("imbalance", "phases", problem, "Set it to loss_weights or logit_adjust.")
        return self

    @model_validator(mode="after")
    def _task_fits(self) -> Self:
        if self.task == "multiclass":
            return self
        if self.model.head.kind in CLASSICAL_HEADS:
            problem = f"= '{self.model.head.kind}' chooses one class for each picture, and task is multilabel."
            raise rule_broken("model.head.kind", "task", problem, "Set it to linear, mlp, cosine or locally_connected.")
        if self.imbalance in ("sampler", "logit_adjust"):
            problem = f"= '{self.imbalance}' is for one label for each picture, and task is multilabel."
            raise rule_broken("imbalance", "task", problem, "Set it to loss_weights or none.")
        if isinstance(self.data.source, FolderSource | TorchvisionSource | IdxSource | BundledSource):
            kind = next(iter(type(self.data.source).model_fields))
            problem = f"= 'multilabel', but a {kind} source gives a picture one label."
            raise rule_broken("task", "data.source", problem, "Set data.source to {csv: FILE}, or task to multiclass.")
        return self

    @model_validator(mode="after")
    def _precisions_agree(self) -> Self:
        whole = self.trainer.precision
        for i, phase in self.gradient_phases.items():
            if phase.precision is not None and whole not in get_args(MasterPrecision):
                problem = f"= '{phase.precision}', but trainer.precision = '{whole}' turns the weights themselves into another format."
                fix = "Remove it, or set trainer.precision to 32-true or bf16-mixed."
                raise rule_broken(f"phases[{i}].precision", "trainer.precision", problem, fix)
        return self

    def trainer_of(self, phase: Phase) -> Trainer:
        """The trainer with the phase's own precision."""
        return self.trainer.model_copy(update={"precision": phase.precision}) if phase.precision else self.trainer

    @property
    def fine_tunes(self) -> bool:
        """Whether a phase trains more than the head."""
        return any(phase.train != "head" for phase in self.phases)

    @property
    def gradient_phases(self) -> dict[int, Phase]:
        """Index -> phase, of those that are run and have epochs and a learning rate."""
        return {i: phase for i, phase in self.run_phases.items() if isinstance(phase, Phase)}

    @property
    def run_phases(self) -> dict[int, Phase | SolvedPhase]:
        """Index -> phase; for a classical head up to the last one that trains more than the head, which scikit-learn fits then."""
        last = max((i for i, phase in enumerate(self.phases) if phase.train != "head"), default=-1)
        classical = self.model.head.kind in CLASSICAL_HEADS
        return {i: phase for i, phase in enumerate(self.phases) if i <= last or not classical}

    _places: dict[str, str] = PrivateAttr(default_factory=dict)
    """Dotted key -> `file:line`, filled in by the loader."""

    def place_of(self, key: str) -> str:
        """`file:line` of a key, or of the nearest part above it that was written down."""
        return nearest_place(self._places, key)

    def at_places_of(self, other: "Recipe") -> Self:
        """Itself, with faults told at the places of the recipe that it was made from."""
        self._places.update(other._places)
        return self

    @contextmanager
    def located(self) -> Iterator[None]:
        """Gives every recipe fault that is raised inside its `file:line`."""
        try:
            yield
        except RecipeError as error:
            raise RecipeError(fault.at(self.place_of(fault.key)) for fault in error.faults) from error


def nearest_place(places: Mapping[str, str], key: str) -> str:
    """The place of a key, or of the nearest part above it: phases[0].train, phases[0], phases, the whole."""
    while key and key not in places:
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    return places.get(key, "")
