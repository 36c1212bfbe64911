"""timm backbones by their checked names: what exists, how it is built, and the stages it is made of."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers.classifier import ClassifierHead
from timm.models.vgg import VGG
from torch import Tensor, nn

from tlkit.errors import BackboneError, Fault, RecipeError, expected_one_of
from tlkit.models.zoo import classic, googlenet  # noqa: F401  # registers their models with timm
from tlkit.recipe.fields.model import DENSE_BACKBONES, Features


@dataclass(frozen=True)
class Stage:
    """A run of layers that is frozen or trained as one. Parameter and module names are the backbone's own."""

    name: str
    parameters: tuple[str, ...]


def check_backbone_name(name: str, key: str = "model.backbone") -> None:
    """Raise RecipeError if timm has no model of this name, or no weights of its tag (`resnet50.a1_in1k`).

    key: where the name was written, for the message.
    """
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        fix = expected_one_of(architecture, timm.list_models()).partition("Did you mean")
        nearest = f"{fix[1]}{fix[2]} " if fix[2] else ""
        raise RecipeError([Fault(key, f"= '{name}' is not a model that timm knows.", f"{nearest}List them with: tlkit models '*resnet*'")])
    tags = [found.partition(".")[2] for found in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise RecipeError([Fault(key, f"= '{name}': {architecture} has no weights '{tag}'.", expected_one_of(tag, tags))])


def pretrained_cfg(name: str) -> dict[str, Any]:
    """Return timm's facts on a model's default or tagged weights: mean, std, input size, crop, interpolation, licence, hub id."""
    cfg = timm.models.get_pretrained_cfg(name)
    return {} if cfg is None else asdict(cfg)


def build_options(name: str, image_size: int, pool: str | None = None, channels: int = 3, *, features: Features = "all") -> dict[str, Any]:
    """Return timm's arguments beside the name: the image size where position embeddings are made for one, pooling, and channels.

    features: conv leaves out the dense layers, or as much of them as timm can.
    Raises RecipeError if the family supports only one pooling.
    """
    options: dict[str, Any] = {"img_size": image_size} if pretrained_cfg(name).get("fixed_input_size") else {}
    if channels != 3:
        options["in_chans"] = channels
    if features == "conv":
        # timm's VGG can't leave them out: it has one dense unit instead of 4,096, which `create_backbone` takes off.
        options |= {"dense": False} if name.startswith("alexnet") else {"mlp_ratio": 1 / 4096}
        return options if pool is None else {**options, "global_pool": pool}
    return options if pool is None else {**options, **_pool_options(name, pool, options)}


def _pool_options(name: str, pool: str, options: dict[str, Any]) -> dict[str, Any]:
    try:
        with torch.device("meta"):
            own = timm.create_model(name, num_classes=0, **options)
            pooled = timm.create_model(name, num_classes=0, global_pool=pool, **options)
            found: dict[str, Any] = {"global_pool": pool}
            if own.state_dict().keys() != pooled.state_dict().keys():
                # A transformer that pools moves its last norm behind the pooling, for which pretrained weights have no tensors.
                found["fc_norm"] = False
                timm.create_model(name, num_classes=0, **options, **found)
        why = "it has dense layers instead of pooling" if has_dense_layers(own) else ""
    except TypeError:
        why = "it has only its own pooling"
    except (RuntimeError, ValueError, AssertionError) as error:
        why = str(error)
    if why:
        fault = Fault("model.head.pool", f"= '{pool}' can't be used with {name}: {why}.", "Remove it: the backbone's own is used then.")
        raise RecipeError([fault])
    return found


def has_dense_layers(backbone: nn.Module) -> bool:
    """Return whether layers with weights come between the last map and the classifier, where others pool: VGG and AlexNet."""
    return any(True for _ in getattr(backbone, "pre_logits", nn.Identity()).parameters())


def classifier_names(name: str) -> tuple[str, ...]:
    """Return the modules that turn features into logits in timm's model: `fc`, or `head` and `head_dist` of a distilled transformer."""
    names = pretrained_cfg(name).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def first_convolutions(backbone: nn.Module) -> tuple[str, ...]:
    """Return the modules that see the image's channels: `conv1`; two of a stem that has branches."""
    names = timm.models.get_model_input_config(backbone)["first_conv"] or ()
    return (names,) if isinstance(names, str) else tuple(names)


def create_backbone(
    name: str,
    image_size: int,
    weights: Path | Mapping[str, Tensor] | None = None,
    *,
    channels: int = 3,
    drop_path: float = 0.0,
    pool: str | None = None,
    features: Features = "all",
) -> nn.Module:
    """Build a timm model without its classifier: [B, channels, H, W] -> features [B, F].

    weights: a state dict in timm's layout for this model, or a file of one, read as data, never as a pickle; None leaves random ones.
    timm resamples its position tables to the image size, and leaves what is missing random.
    pool: avg, max or avgmax in place of the backbone's own. features: conv ends with the pooled last map of VGG and AlexNet.
    Raises BackboneError if timm can't build it.
    """
    options = build_options(name, image_size, pool, channels, features=features)
    if drop_path > 0:
        options["drop_path_rate"] = drop_path
    if weights is not None:
        source = {"file": str(weights)} if isinstance(weights, Path) else {"state_dict": dict(weights)}
        # custom_load asks for the .npz that the authors published; what is here is timm's conversion of it.
        options["pretrained_cfg_overlay"] = {**source, "custom_load": False}
    try:
        backbone: nn.Module = timm.create_model(name, pretrained=weights is not None, num_classes=0, **options)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        if "drop_path_rate" in str(error):
            fault = Fault("model.drop_path", f"= {drop_path}, but {name} has no residual branches to skip.", "Remove it.")
            raise RecipeError([fault]) from error
        also = f" and {channels} channels" if channels != 3 else ""
        raise BackboneError(f"model.backbone = '{name}' can't be built for {image_size} px{also}.\n  timm says: {error}") from error
    if features == "conv" and isinstance(backbone, VGG):
        # As timm 1.0.31's own prune_intermediate_layers does, which older ones lack.
        backbone.pre_logits = nn.Identity()  # type: ignore[assignment]  # a ConvMlp by timm's own annotation
        backbone.head_hidden_size = backbone.num_features
        backbone.head = ClassifierHead(backbone.num_features, 0, pool_type=pool or "avg")
    return backbone


def sizes_by_features(name: str, image_size: int, *, channels: int = 3) -> dict[Features, int]:
    """Return a backbone's parameters, without a classifier, by what `model.features` can be; empty where it can't be chosen."""
    if name.partition(".")[0] not in DENSE_BACKBONES:
        return {}
    both: tuple[Features, ...] = ("all", "conv")
    with torch.device("meta"):
        built = {features: create_backbone(name, image_size, channels=channels, features=features) for features in both}
    return {features: sum(parameter.numel() for parameter in backbone.parameters()) for features, backbone in built.items()}


def stages(backbone: nn.Module) -> tuple[Stage, ...]:
    """Return the stages of a backbone in forward order: `stem, layer1 .. layer4`, `conv1 .. conv5, dense`, `patch_embed, block0 ..`.

    Source: timm's `group_matcher(coarse=True)`; a flat VGG is cut where its `feature_info` says that the size halves.
    """
    found: dict[str, list[str]] = {}
    for position, group in enumerate(_layer_groups(backbone)):
        found.setdefault(_stage_name(group, backbone, first=position == 0), []).extend(group)
    return tuple(Stage(name, tuple(parameters)) for name, parameters in found.items())


def stage_modules(backbone: nn.Module, found: Sequence[Stage]) -> list[tuple[str, nn.Module]]:
    """Return the largest modules that are in one stage each, with its name; an empty name is of one without parameters between them.

    No bare ModuleList is among them, since it is never called.
    """
    return _outermost(backbone, {parameter: stage.name for stage in found for parameter in stage.parameters}, "")


def _outermost(module: nn.Module, stage_of: Mapping[str, str], path: str) -> list[tuple[str, nn.Module]]:
    found = []
    for child_name, child in module.named_children():
        child_path = f"{path}{child_name}."
        inside = {stage_of[f"{child_path}{name}"] for name, _ in child.named_parameters() if f"{child_path}{name}" in stage_of}
        if len(inside) > 1 or isinstance(child, nn.ModuleList | nn.ModuleDict):
            found += _outermost(child, stage_of, child_path)
        else:
            found.append((next(iter(inside), ""), child))
    return found


def _layer_groups(backbone: nn.Module) -> list[list[str]]:
    """Return the parameter names of each group of layers, in forward order: timm's groups, or the children of a network without any."""
    if hasattr(backbone, "group_matcher"):
        try:
            groups = timm.models.group_parameters(backbone, backbone.group_matcher(coarse=True))  # type: ignore[operator]
            return [groups[ordinal] for ordinal in sorted(groups)]
        except AssertionError:  # RDNet of timm 1.0.31 has no coarse groups
            pass
    children: dict[tuple[str, ...], list[str]] = {}
    own = [name for name, _ in backbone.named_parameters(recurse=False)]
    for name, _ in backbone.named_parameters():
        child, *rest = name.split(".")
        children.setdefault((child, rest[0]) if rest and rest[0].isdigit() else (child,), []).append(name)
    groups_of_children = [group for group in children.values() if group[0] not in own]
    groups_of_children[0][:0] = own  # tokens and position embeddings
    return groups_of_children


def _stage_name(parameters: list[str], backbone: nn.Module, *, first: bool) -> str:
    """Name a stage: `layer1.0.conv1.weight` -> layer1, `blocks.3.0.bn1.bias` -> block3, `features.8.weight` -> conv3,
    `pre_logits.fc1.bias` -> dense.
    """
    in_modules = [parameter for parameter in parameters if "." in parameter] or [f"{parameters[0]}."]
    parts = in_modules[0].split(".")[:-1]
    if len(parts) == 2 and parts[0] == "features" and parts[1].isdigit():
        return _vgg_block(int(parts[1]), backbone)
    if first:
        return "patch_embed" if any(parameter.startswith("patch_embed") for parameter in parameters) else "stem"
    if parts[0] == "pre_logits":
        return "dense"
    for depth, part in enumerate(parts):
        if part.isdigit():
            return f"{parts[depth - 1].removesuffix('s')}{part}"
        if re.search(r"\d", part):
            return part
    return parts[-1]


def _vgg_block(index: int, backbone: nn.Module) -> str:
    """Return the block of a flat Sequential that layer `index` belongs to: blocks end where feature_info has a tap."""
    ends = [int(tap["module"].rpartition(".")[2]) for tap in backbone.feature_info[:-1]]  # type: ignore[index]
    return f"conv{1 + sum(end < index for end in ends)}"
