"""Classifier: a backbone, a head, and the part of them that is frozen."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from tlkit.data.preprocess import Preprocessing
from tlkit.errors import BackboneError, DataError, Fault, RecipeError
from tlkit.models.adapters import add_adapters, merge_adapters, plain_name, plain_state
from tlkit.models.backbones import Stage, stages
from tlkit.models.freeze import set_trainable
from tlkit.models.heads import build_head
from tlkit.recipe.fields.model import Features, Head
from tlkit.recipe.fields.phases import Adapter, BatchNorm
from tlkit.recipe.schema import Task


@dataclass(frozen=True)
class Origin:
    """What a classifier was built from, for its model folder. weights: `origin` and `sha256` of those that training began with."""

    backbone: str
    head: Head
    weights: Mapping[str, Any]
    features: Features = "all"
    task: Task = "multiclass"


class Classifier(nn.Module):
    """Map normalised images [B, C, S, S] to logits [B, K].

    Memory format is channels_last, which is what convolutions on CPUs and tensor cores want.

    Args:
        backbone: A timm model without its classifier.
        head: What turns its features into logits.
        classes: Their names, in the order of the logits; a number K names them 0 to K - 1.
        image_size: S, in pixels.
        preprocessing: How image files become what the network sees, for `preprocess`.
        origin: What it is built from, for `save_model`.

    Attributes:
        classes: Names of the K classes, in the order of the logits.
        stages: The stages of the backbone in forward order, as `train: {from: STAGE}` names them.
        preprocessing: None where none was given.
        adapter: What the backbone's linear layers are adapted by in this phase; None where it is a plain network.
        called: The names of the backbone's modules that run.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: Head,
        classes: Sequence[str] | int,
        image_size: int,
        preprocessing: Preprocessing | None = None,
        origin: Origin | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.stages: tuple[Stage, ...] = stages(backbone)
        self.classes: tuple[str, ...] = tuple(map(str, range(classes)) if isinstance(classes, int) else classes)
        self.preprocessing = preprocessing
        self.origin = origin
        self.adapter: Adapter | None = None
        self.called: frozenset[str] = frozenset()
        self._head_sees_map = head.kind == "locally_connected"
        self.head = build_head(head, self._feature_shape(image_size), len(self.classes))
        self._frozen: frozenset[str] = frozenset()
        self.to(memory_format=torch.channels_last)

    def features(self, images: Tensor) -> Tensor:
        """Map images [B, C, H, W] to features [B, F], as timm's classifier would see them; a locally connected head gets [B, C, h, w]."""
        maps: Tensor = self.backbone.forward_features(images)  # type: ignore[operator]
        if self._head_sees_map:
            return maps.permute(0, 3, 1, 2) if getattr(self.backbone, "output_fmt", "NCHW") == "NHWC" else maps
        features: Tensor = self.backbone.forward_head(maps, pre_logits=True)  # type: ignore[operator]
        return features

    def forward(self, images: Tensor) -> Tensor:
        # Without this a frozen backbone would keep every activation for a backward pass that never comes.
        with torch.set_grad_enabled(torch.is_grad_enabled() and "" not in self._frozen):
            features = self.features(images)
        logits: Tensor = self.head(features)  # [B, K]
        return logits

    def preprocess(self, files: str | PathLike[str] | Sequence[str | PathLike[str]]) -> Tensor:
        """Read image files as the network wants to see them.

        Args:
            files: Image files, or one of them.

        Returns:
            [B, C, S, S] float32, normalised, in the order of the files and on the classifier's device: what `forward` takes.

        Raises:
            DataError: A file is missing or can't be decoded, or none was named.
            BackboneError: The classifier was made without preprocessing.
        """
        preprocessing = self.given_preprocessing()
        paths = [Path(files)] if isinstance(files, str | PathLike) else [Path(file) for file in files]
        if not paths:
            raise DataError("No image file was named.\n  Expected one or more.")
        images = torch.stack([torch.from_numpy(preprocessing.read(path)) for path in paths])  # [B, S, S, C] uint8
        return preprocessing.normalize(images.to(next(self.parameters()).device).permute(0, 3, 1, 2))

    def from_head_to_stem(self) -> Iterator[tuple[str, list[nn.Parameter]]]:
        """Yield the name and the parameters of the head, then of each stage down to the first."""
        yield "head", list(self.head.parameters())
        named = dict(self.backbone.named_parameters())
        for stage in reversed(self.stages):
            yield stage.name, [named[name] for name in stage.parameters]

    def given_preprocessing(self) -> Preprocessing:
        """Return the preprocessing. Raises BackboneError where none was given."""
        if self.preprocessing is None:
            raise BackboneError("This classifier was made without preprocessing.\n  Give it one: Classifier(.., preprocessing=..).")
        return self.preprocessing

    def train_only(self, parameters: frozenset[str], batchnorm: BatchNorm = "adapt", adapter: Adapter | None = None) -> None:
        """Go into train mode with the head and these parameters of the backbone training.

        All else is frozen: no gradients, and in eval mode for good. batchnorm: see `set_trainable`.
        adapter: trains in place of these parameters, which stay as they are until `merge_adapters`.
        """
        if adapter is not None and self.adapter is None:
            self.adapt(parameters, adapter)
        self._frozen = set_trainable(self.backbone, parameters, batchnorm)
        self.train()

    def adapt(self, weights: Collection[str], adapter: Adapter) -> None:
        """Put adapters on these weights of the backbone."""
        device = next(self.backbone.parameters()).device
        add_adapters(self.backbone, weights, adapter)
        self.backbone.to(device)
        self.adapter, self.stages = adapter, stages(self.backbone)

    def merge_adapters(self) -> None:
        """Add what adapters have learned to the weights of their layers, so that the backbone is a plain network again."""
        if self.adapter is not None:
            merge_adapters(self.backbone)
            self.adapter, self.stages = None, stages(self.backbone)
            # What was frozen had names that are gone. Nothing of the backbone trains before the next `train_only`.
            self._frozen = set_trainable(self.backbone, frozenset(), "frozen")
            self.train(self.training)

    def plain_state(self) -> dict[str, Tensor]:
        """Return the state dict, with adapters merged if there are any."""
        return self.state_dict() if self.adapter is None else plain_state(self)

    @property
    def trains_whole_backbone(self) -> bool:
        return all(parameter.requires_grad for parameter in self.backbone.parameters())

    @property
    def changing(self) -> frozenset[str]:
        """Return the names in `plain_state` of all that training may change: what has gradients, and statistics of batches."""
        trained = {name for name, parameter in self.named_parameters(remove_duplicate=False) if parameter.requires_grad}
        moving = (
            f"{path}.{name}" for path, module in self.named_modules() if module.training for name, _ in module.named_buffers(recurse=False)
        )
        return frozenset(map(plain_name, trained.union(moving)))

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for name in self._frozen:
            self.backbone.get_submodule(name).eval()
        return self

    @torch.inference_mode()
    def _feature_shape(self, image_size: int) -> torch.Size:
        """Measure [F] or [C, h, w] with one empty image: timm's num_features is not what every family's forward_head gives."""
        training = self.backbone.training
        self.backbone.eval()
        with _called(self.backbone) as called:
            shape = self.features(torch.zeros(1, int(self.backbone.in_chans), image_size, image_size)).shape[1:]  # type: ignore[arg-type]
        self.backbone.train(training)
        self.called = frozenset(path for path, module in self.backbone.named_modules() if module in called)
        if self._head_sees_map:
            _check_map(self.backbone, shape, called)
        return shape


@contextmanager
def _called(backbone: nn.Module) -> Iterator[set[nn.Module]]:
    """Collect the modules that run inside the `with`."""
    called: set[nn.Module] = set()
    hooks = [module.register_forward_hook(lambda module, *_: called.add(module)) for module in backbone.modules()]
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()


def _check_map(backbone: nn.Module, shape: torch.Size, called: set[nn.Module]) -> None:
    """Raise RecipeError if there is no feature map for a locally connected head, or if it would cut off layers behind the map."""
    after = [name for name, module in backbone.named_modules() if module not in called and any(True for _ in module.parameters(False))]
    why = "its features have no places" if len(shape) != 3 else f"its layers {', '.join(after)} come after the map" if after else ""
    if why:
        problem = f"= 'locally_connected' can't be put on {type(backbone).__name__}: {why}."
        raise RecipeError([Fault("model.head.kind", problem, "Use linear or mlp, or a backbone that ends in a map, such as resnet18.")])
