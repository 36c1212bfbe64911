"""The model folder: what ships. Safetensors and JSON only, readable without Lightning, and by timm's own local-dir loader."""

import json
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models._hub import save_config_for_hf  # what timm's own push_to_hf_hub writes config.json with
from timm.models.vgg import VGG
from torch import Tensor, nn

import tlkit
from tlkit.data.preprocess import Preprocessing
from tlkit.data.splits.run_source import check_single, not_a_run
from tlkit.errors import BackboneError, RecipeError, RunError, as_written, expected_one_of
from tlkit.files import atomic_folder, sha256_of, write_json
from tlkit.models.backbones import build_options, classifier_names, create_backbone
from tlkit.models.classifier import Classifier, Origin
from tlkit.models.heads import LINEAR_HEADS, last_linear
from tlkit.models.inference.devices import find_device
from tlkit.models.inference.trust import TRAINING_SAMPLE, Trust
from tlkit.models.weights.state_files import not_finite, write_tensors
from tlkit.recipe.fields.model import Features, Head
from tlkit.recipe.schema import Task
from tlkit.recipe.validate import document_of, validated

FORMAT = 1
"""Version of tlkit.json. A reader refuses a newer one."""

MEAN_IMAGE = "mean_picture"
"""Key of the preprocessing, and name of the tensor in the file that it names."""


@dataclass(frozen=True)
class ModelCard:
    """What tlkit.json says beside the weights. preprocessing, recipe, weights and metrics are plain JSON values."""

    backbone: str
    head: Head
    classes: tuple[str, ...]
    preprocessing: Mapping[str, Any]
    recipe: Mapping[str, Any]
    weights: Mapping[str, Any]
    metrics: Mapping[str, Any]
    task: Task = "multiclass"
    thresholds: tuple[float, ...] = ()
    """For multilabel: the probability of each class above which an image is said to have it."""
    mean_picture: NDArray[np.float32] | None = None
    """[S, S, C], if preprocessing names one; it is in a file of its own."""
    features: Features = "all"
    trust: Trust = field(default_factory=Trust)

    @property
    def spec(self) -> Preprocessing:
        """Return what `preprocessing` and the mean image describe."""
        return Preprocessing.from_json(self.preprocessing, self.mean_picture)

    @property
    def is_timms(self) -> bool:
        """Whether the classifier is timm's own model of this name, so that plain timm gives the same logits."""
        return is_timms(self.head.kind, self.features)


def is_timms(head_kind: str, features: Features) -> bool:
    """Return whether timm's own model has such a head: one linear layer on all that comes before its classifier."""
    return head_kind in LINEAR_HEADS and features == "all"


def write_model_folder(folder: Path, classifier: Classifier, card: ModelCard) -> None:
    """Write the model folder, whole or not at all; one that is there already stays until the new one is whole.

    With one of LINEAR_HEADS `model.safetensors` holds timm's whole model, so that plain timm gives the same logits. Other heads are in
    `head.safetensors`, and plain timm gives the features. So is every head with `features: conv`, where timm gives of VGG the last map.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as writing:
        backbone_state = _on_cpu(classifier.backbone)
        skeleton, model_args = _skeleton_of(card)
        if card.is_timms:
            state = {**backbone_state, **_as_timm_classifier(classifier, card.backbone, skeleton)}
        else:
            state = backbone_state
            write_tensors(_on_cpu(classifier.head), writing / "head.safetensors")
        write_tensors(state, writing / "model.safetensors")
        if card.mean_picture is not None:
            write_tensors({MEAN_IMAGE: torch.from_numpy(card.mean_picture)}, writing / card.preprocessing[MEAN_IMAGE]["file"])
        if card.trust.training_sample is not None:
            write_training_sample(writing, card.trust)
        _write_timm_config(writing / "config.json", card, skeleton, model_args)
        write_json(writing / "tlkit.json", _facts(card, writing))


def update_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Write what was measured on the shipped model into its tlkit.json."""
    facts = json.loads((folder / "tlkit.json").read_text(encoding="utf-8"))
    write_json(folder / "tlkit.json", {**facts, "metrics": metrics})


def update_trust(folder: Path, trust: Trust) -> None:
    """Write how far answers can be trusted into a model folder, in place of what it said before."""
    facts = json.loads((folder / "tlkit.json").read_text(encoding="utf-8"))
    sums = {name: value for name, value in facts["sha256"].items() if name != TRAINING_SAMPLE}
    if trust.training_sample is not None:
        sums[TRAINING_SAMPLE] = write_training_sample(folder, trust)
    kept = {name: value for name, value in facts.items() if name not in ("calibration", "abstain", "conformal", "unknown")}
    write_json(folder / "tlkit.json", {**kept, **trust.to_json(), "sha256": sums})


def write_training_sample(folder: Path, trust: Trust) -> str:
    """Write the features that new images are compared with, and return the sha256 of the file."""
    if trust.training_sample is None:
        raise AssertionError("a model without a training sample has no file of it")
    write_tensors({"features": torch.from_numpy(trust.training_sample)}, folder / TRAINING_SAMPLE)
    return sha256_of(folder / TRAINING_SAMPLE)


def load_model(folder: str | PathLike[str], *, device: str = "cpu") -> Classifier:
    """Load the classifier of a finished run. Never asks the network for anything.

    Args:
        folder: A run folder, the model folder in it, or one that `export` made in the safetensors format.
        device: Where to put it: cpu, cuda, cuda:1, mps, or auto for an accelerator where there is one.

    Returns:
        The classifier in eval mode, with its `classes` and the preprocessing that it was trained with.

    Raises:
        RunError: It is no model folder, or files in it are missing, damaged, or not what tlkit.json says they are.
        DeviceError: This machine doesn't have the device.
    """
    place = find_device(device)
    return load_with_card(Path(folder))[0].to(place)


def load_with_card(folder: Path) -> tuple[Classifier, ModelCard]:
    """Return the classifier of a model folder, or of the run folder that holds one, in eval mode, and what tlkit.json says.

    Raises RunError if files are missing, damaged, or not what tlkit.json says they are.
    """
    folder = find_model_folder(folder)
    card = read_card(folder)
    # timm takes `hf-hub:OWNER/NAME` and `local-dir:FOLDER` for names too, and would ask the network or read what a stranger names.
    if not timm.is_model(card.backbone.partition(".")[0]):
        raise RunError(f"{folder / 'tlkit.json'} names the backbone '{card.backbone}', which timm {timm.__version__} doesn't have.")
    image_size = int(card.preprocessing["image_size"])
    backbone = create_backbone(card.backbone, image_size, channels=_channels(card), pool=card.head.pool, features=card.features)
    origin = Origin(card.backbone, card.head, card.weights, card.features, card.task)
    classifier = Classifier(backbone, card.head, card.classes, image_size, card.spec, origin)
    state = _read_state(folder / "model.safetensors")
    try:
        if card.is_timms:
            names = classifier_names(card.backbone)
            linear = last_linear(classifier.head)
            head_state = {key.rpartition(".")[2]: state[key] for key in state if key.rpartition(".")[0] == names[0]}
            linear.load_state_dict({key: tensor.reshape(getattr(linear, key).shape) for key, tensor in head_state.items()})
            state = {key: tensor for key, tensor in state.items() if key.rpartition(".")[0] not in names}
        else:
            classifier.head.load_state_dict(_read_state(folder / "head.safetensors"))
        classifier.backbone.load_state_dict(state)
    except RuntimeError as error:
        raise RunError(
            f"{folder / 'model.safetensors'} doesn't fit {card.backbone} with {len(card.classes)} classes.\n  {error}"
        ) from error
    return classifier.eval(), card


def find_model_folder(folder: Path) -> Path:
    """Return `folder` or `folder/model`, whichever holds a tlkit.json. Raises RunError if neither does."""
    for candidate in (folder, folder / "model"):
        if (candidate / "tlkit.json").is_file():
            return candidate
    check_single(folder, "a model of its own")
    here = "holds no model: neither tlkit.json nor model/tlkit.json is there"
    raise not_a_run(folder, here if folder.exists() else "does not exist")


def check_can_ship(
    backbone_name: str, head: Head, classifier: Classifier, classes: int, image_size: int, *, features: Features = "all"
) -> None:
    """Raise BackboneError if timm's model with `classes` classes is not this backbone plus a classifier: found before training.

    Only heads in LINEAR_HEADS take the classifier's place in timm's model; all others pass, and with `features: conv` every head.
    """
    if not is_timms(head.kind, features):
        return
    expected = _skeleton(backbone_name, head, classes, image_size).state_dict()
    names = classifier_names(backbone_name)
    without_head = {key for key in expected if key.rpartition(".")[0] not in names}
    if not names or without_head != set(classifier.backbone.state_dict()):
        raise BackboneError(
            f"model.backbone = '{backbone_name}' has a classifier of its own kind, which a linear head can't take the place of.\n"
            "  Use `head: {kind: mlp}`, or another backbone."
        )


def _channels(card: ModelCard) -> int:
    return len(card.preprocessing["mean"])


def _skeleton(backbone_name: str, head: Head, classes: int, image_size: int, channels: int = 3) -> nn.Module:
    """Create timm's model with its own classifier on the meta device: for names, shapes and config.json."""
    with torch.device("meta"):
        options = build_options(backbone_name, image_size, head.pool, channels)
        model: nn.Module = timm.create_model(backbone_name, num_classes=classes, **options)
    return model


def _as_timm_classifier(classifier: Classifier, backbone_name: str, skeleton: nn.Module) -> dict[str, Tensor]:
    """Return the linear head under timm's names. A distilled transformer averages two heads over two tokens: both get the same weights."""
    expected = skeleton.state_dict()
    linear = _on_cpu(last_linear(classifier.head))
    return {
        f"{name}.{key}": tensor.reshape(expected[f"{name}.{key}"].shape).clone()
        for name in classifier_names(backbone_name)
        for key, tensor in linear.items()
    }


def _on_cpu(module: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.detach().cpu().contiguous() for key, tensor in module.state_dict().items()}


def _write_timm_config(file: Path, card: ModelCard, skeleton: nn.Module, model_args: dict[str, Any] | None) -> None:
    size = int(card.preprocessing["image_size"])
    save_config_for_hf(
        skeleton,
        str(file),
        model_config={"label_names": list(card.classes)} if card.is_timms else None,
        model_args=model_args,
        data_config={
            "input_size": (_channels(card), size, size),
            # timm has no words for a mean image: what it normalises must leave images as they are.
            "mean": tuple(card.preprocessing["mean"]) if card.mean_picture is None else (0.0,) * _channels(card),
            "std": tuple(card.preprocessing["std"]) if card.mean_picture is None else (1.0,) * _channels(card),
            "interpolation": card.preprocessing["interpolation"],
            "crop_pct": card.preprocessing["crop_pct"],
            "crop_mode": {"crop": "center", "pad": "border", "stretch": "squash"}[card.preprocessing["resize"]],
        },
    )


def _skeleton_of(card: ModelCard) -> tuple[nn.Module, dict[str, Any] | None]:
    """Return the model that timm builds from config.json, and what of its arguments the model itself doesn't say."""
    image_size = int(card.preprocessing["image_size"])
    if card.features == "all":
        classes = len(card.classes) if card.is_timms else 0
        return _skeleton(card.backbone, card.head, classes, image_size, _channels(card)), None
    with torch.device("meta"):
        skeleton = create_backbone(card.backbone, image_size, channels=_channels(card), pool=card.head.pool, features=card.features)
    if not isinstance(skeleton, VGG):
        return skeleton, None
    # timm can't build a VGG without its dense layers, but it can take the maps of one, and then asks for no other weights: with a number
    # of classes that isn't 0 it takes what is there.
    skeleton.num_classes = len(card.classes)
    last = len(skeleton.feature_info) - 1
    return skeleton, {"features_only": True, "out_indices": [last], "mlp_ratio": 1.0}


def _facts(card: ModelCard, folder: Path) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "backbone": card.backbone,
        "features": card.features,
        "head": card.head.model_dump(),
        "task": card.task,
        "classes": list(card.classes),
        "thresholds": list(card.thresholds),
        "preprocessing": dict(card.preprocessing),
        "weights": dict(card.weights),
        "metrics": dict(card.metrics),
        "recipe": dict(card.recipe),
        **card.trust.to_json(),
        "sha256": {file.name: sha256_of(file) for file in sorted(folder.glob("*.safetensors"))},
        "versions": {
            "python": platform.python_version(),
            "tlkit": tlkit.__version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
        },
    }


def read_card(folder: Path) -> ModelCard:
    """Read tlkit.json of a model folder. Raises RunError if a file isn't the one that it describes, by its sha256."""
    with as_written(folder / "tlkit.json", OSError):
        facts = json.loads((folder / "tlkit.json").read_text(encoding="utf-8"))
        if facts["format"] > FORMAT:
            raise RunError(f"{folder / 'tlkit.json'} has format {facts['format']}; this tlkit reads up to {FORMAT}. Update tlkit.")
        for name, expected in facts["sha256"].items():
            if Path(name).name == name and not (folder / name).is_file():
                raise RunError(f"{folder / name} is missing, which tlkit.json describes.\n  Copy the whole folder again.")
            if Path(name).name != name or sha256_of(folder / name) != expected:
                raise RunError(
                    f"{folder / name} is not the file that tlkit.json describes (sha256 differs).\n  Copy the whole folder again."
                )
        card = ModelCard(
            str(facts["backbone"]), _head(facts["head"]), tuple(facts["classes"]), facts["preprocessing"], dict(facts["recipe"]),
            facts["weights"], facts["metrics"], facts.get("task", "multiclass"), tuple(map(float, facts.get("thresholds", ()))),
            _mean_picture(folder, facts), facts.get("features", "all"), _trust(folder, facts),
        )  # fmt: skip
        _ = card.spec  # raises what a value of another type raises
        _check_labels(card)
        return card


def _check_labels(card: ModelCard) -> None:
    """Raise ValueError unless the task is one, each class is there once, and thresholds are there as the task has them."""
    if card.task not in get_args(Task):
        raise ValueError(f"task = {card.task!r}. {expected_one_of(str(card.task), get_args(Task))}")
    if twice := [name for name, number in Counter(card.classes).items() if number > 1]:
        raise ValueError(f"classes has {twice[0]!r} twice. Expected each class once.")
    expected = len(card.classes) if card.task == "multilabel" else 0
    if len(card.thresholds) != expected:
        raise ValueError(f"task = {card.task!r} goes with {expected} thresholds, and thresholds has {len(card.thresholds)}.")


def _head(values: Any) -> Head:
    """Return the head. Raises ValueError with every fault."""
    try:
        return validated(Head, document_of(dict(values)), "head")
    except RecipeError as error:
        raise ValueError("\n".join(f"head.{fault}" for fault in error.faults)) from error


def _mean_picture(folder: Path, facts: Mapping[str, Any]) -> NDArray[np.float32] | None:
    """Read the mean image. Raises RunError if it isn't the one that belongs to the preprocessing."""
    if MEAN_IMAGE not in facts["preprocessing"]:
        return None
    named = facts["preprocessing"][MEAN_IMAGE]
    if named["file"] not in facts["sha256"]:
        raise RunError(f"{folder / 'tlkit.json'} has no sha256 of {named['file']}.\n  Copy the whole model folder again.")
    image = _read_state(folder / named["file"])[MEAN_IMAGE].numpy()
    if sha256(image.tobytes()).hexdigest() != named["values_sha256"]:
        raise RunError(f"{folder / named['file']} holds another image than tlkit.json describes.\n  Copy the whole model folder again.")
    return image


def _trust(folder: Path, facts: Mapping[str, Any]) -> Trust:
    sample = _read_state(folder / TRAINING_SAMPLE)["features"].numpy() if TRAINING_SAMPLE in facts["sha256"] else None
    return Trust.from_json(facts, sample)


def _read_state(file: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise RunError(f"{file} can't be read: {error}\n  Copy the whole model folder again.") from error
    if found := not_finite(tensors):
        raise RunError(f"{file}: {found}.\n  This model answers NaN, and has to be trained again.")
    return tensors
