"""Low-rank adapters on a backbone's linear layers while a phase trains them, through peft; a plain network again when it ends."""

import re
from collections.abc import Collection, Iterator
from copy import deepcopy
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from tlkit.errors import Fault, MissingExtraError, RecipeError
from tlkit.recipe.fields.phases import Adapter

NARROWEST = 16
"""Layers with fewer inputs or outputs have no adapter: they make biases of positions, and are hardly larger than what would adapt them."""

_INSIDE = re.compile(r"\.base_layer(?=\.)|\.lora_(A|B|magnitude_vector)\.default(?=\.)")
"""What peft puts into the names of an adapted layer's tensors."""


def adapted_weights(adapter: Adapter, backbone: nn.Module, called: Collection[str], *, key: str, name: str) -> frozenset[str]:
    """Return the names of the weights that get an adapter: of all linear layers of the backbone that run as layers.

    called: the modules that run. A layer whose weights the network takes out and uses itself has no place for an adapter.
    key: the recipe's dotted path to `train`, name: the backbone's, both for the message.
    Raises MissingExtraError without peft, and RecipeError if there is no such layer or one is smaller than the rank.
    """
    settings = adapter.settings
    if find_spec("peft") is None:
        raise MissingExtraError("peft", "adapters", f"{key} = {{{adapter.kind}: ..}}")
    linear = {path: module for path, module in backbone.named_modules() if isinstance(module, nn.Linear) and path in called}
    widths = {path: min(module.in_features, module.out_features) for path, module in linear.items()}
    widths = {path: width for path, width in widths.items() if width >= NARROWEST}
    if not widths:
        problem = f"= {{{adapter.kind}: ..}}, but {name} has no linear layers below the head to adapt."
        fix = "Set it to {from: STAGE}, or model.backbone to one that has some: vit_tiny_patch16_224, convnext_tiny."
        raise RecipeError([Fault(key, problem, fix)])
    narrowest = min(widths, key=widths.__getitem__)
    if settings.rank > widths[narrowest]:
        layer = linear[narrowest]
        problem = f"= {settings.rank} is larger than {name}'s layer {narrowest}, from {layer.in_features} to {layer.out_features} values."
        raise RecipeError([Fault(f"{key}.{adapter.kind}.rank", problem, f"Expected at most {widths[narrowest]}; 4 to 16 is usual.")])
    return frozenset(f"{path}.weight" for path in widths)


def add_adapters(backbone: nn.Module, weights: Collection[str], adapter: Adapter) -> None:
    """Put an adapter, which changes nothing yet, on the layers of these weights.

    Sources: LoRA, Hu et al. 2022, https://arxiv.org/abs/2106.09685; DoRA, Liu et al. 2024, https://arxiv.org/abs/2402.09353.
    """
    # It imports transformers, which takes seconds: only where a phase has adapters.
    from peft import LoraConfig, inject_adapter_in_model

    rank = adapter.settings.rank
    # An expression, because peft takes a name in a list for the end of longer ones too.
    layers = "|".join(re.escape(weight.removesuffix(".weight")) for weight in sorted(weights))
    alpha: Any = adapter.settings.alpha or rank  # a whole number by its type, but no more than a factor
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=layers, use_dora=adapter.kind == "dora"), backbone)


def merge_adapters(backbone: nn.Module) -> None:
    """Add what the adapters have learned to the weights, and leave the network as it was built."""
    for path, layer in list(_adapted_layers(backbone)):
        backbone.set_submodule(path, _merged(layer))
    del backbone.peft_config


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict that the module would have with its adapters merged."""
    adapted = dict(_adapted_layers(module))
    below = tuple(f"{path}." for path in adapted)
    state = {name: tensor for name, tensor in module.state_dict().items() if not name.startswith(below)}
    for path, layer in adapted.items():
        state |= {f"{path}.{name}": tensor for name, tensor in _merged(deepcopy(layer)).state_dict().items()}
    return state


def plain_name(name: str) -> str:
    """Return a tensor's name without adapters: of an adapter's own tensors, that of the weight that they change."""
    return _INSIDE.sub("", name)


def is_adapters(name: str) -> bool:
    """Return whether a tensor is an adapter's own."""
    return ".lora_" in name


def is_adapted(module: nn.Module) -> bool:
    """Return whether a module is a layer with its adapter, as peft makes it."""
    return hasattr(module, "base_layer")


def _adapted_layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield each adapted layer under all of its names: CoaT's parallel blocks share their mlp."""
    yield from ((path, layer) for path, layer in module.named_modules(remove_duplicate=False) if is_adapted(layer))


def _merged(layer: Any) -> nn.Module:
    if not layer.merged:
        layer.merge()
    merged: nn.Module = layer.get_base_layer()
    return merged
