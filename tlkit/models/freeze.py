"""What trains: gradients and modes, set in one place."""

from collections.abc import Collection

from torch import nn

from tlkit.errors import Fault, RecipeError, expected_one_of
from tlkit.models.adapters import adapted_weights, is_adapters, plain_name
from tlkit.models.backbones import Stage
from tlkit.recipe.fields.phases import BatchNorm, Dora, FromStage, LastStages, Lora, Train

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""timm's are subclasses of them."""
NORMS_WITH_STATISTICS = (*BATCH_NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def trained_parameters(
    train: Train, backbone: nn.Module, stages: tuple[Stage, ...], *, key: str, name: str, called: Collection[str] = ()
) -> frozenset[str]:
    """Return the names of the backbone's parameters that a phase trains; the head trains in every phase.

    `norm`: scales and shifts of the normalisation layers. `bias`: every bias (BitFit, Ben Zaken et al. 2022,
    https://arxiv.org/abs/2106.10199).
    lora, dora: the weights that adapters are put on.
    key: the recipe's dotted path to `train`, name: the backbone's, both for the message.
    Raises RecipeError for what the backbone doesn't have.
    """
    if train == "head":
        return frozenset()
    if isinstance(train, Lora | Dora):
        return adapted_weights(train, backbone, called, key=key, name=name)
    if train == "norm":
        norms = [(path, module) for path, module in backbone.named_modules() if _is_norm(module)]
        found = {f"{path}.{parameter}" for path, module in norms for parameter, _ in module.named_parameters(recurse=False)}
        return _not_empty(found, key, f"= 'norm', but {name} has no normalisation layers.")
    if train == "bias":
        found = {parameter for parameter, _ in backbone.named_parameters() if parameter.endswith("bias")}
        return _not_empty(found, key, f"= 'bias', but {name} has no biases.")
    return frozenset(parameter for stage in _trained_stages(train, stages, key, name) for parameter in stage.parameters)


def _trained_stages(train: Train, stages: tuple[Stage, ...], key: str, name: str) -> tuple[Stage, ...]:
    names = [stage.name for stage in stages]
    if isinstance(train, FromStage):
        if train.from_ not in names:
            raise RecipeError([Fault(f"{key}.from", f"= '{train.from_}' is not a stage of {name}.", expected_one_of(train.from_, names))])
        return stages[names.index(train.from_) :]
    if isinstance(train, LastStages):
        if train.last > len(stages):
            problem = f"= {train.last}, but {name} has {len(stages)} stages."
            raise RecipeError([Fault(f"{key}.last", problem, f"In forward order: {', '.join(names)}.")])
        return stages[-train.last :]
    return stages


def _not_empty(parameters: set[str], key: str, problem: str) -> frozenset[str]:
    if not parameters:
        raise RecipeError([Fault(key, problem, "Expected one of: head, all, {from: STAGE}, {last: N}.")])
    return frozenset(parameters)


def _is_norm(module: nn.Module) -> bool:
    """Check for a normalisation layer: timm's subclass torch's, but a few, such as RmsNorm, only have it in their name."""
    return isinstance(module, (*NORMS_WITH_STATISTICS, nn.LayerNorm, nn.GroupNorm)) or "norm" in type(module).__name__.lower()


def set_trainable(backbone: nn.Module, parameters: frozenset[str], batchnorm: BatchNorm) -> frozenset[str]:
    """Let these parameters have gradients and no others.

    batchnorm: `frozen` keeps the statistics of all batch-norm layers as they are, `adapt` only those that don't train.
    Returns the names of the modules that have to stay in eval mode (see `frozen_modules`).
    """
    for name, parameter in backbone.named_parameters():
        # An adapter trains in place of the weight that it is on.
        parameter.requires_grad_((plain_name(name) if is_adapters(name) else name) in parameters)
    norms = {name for name, module in backbone.named_modules() if isinstance(module, NORMS_WITH_STATISTICS)}
    return frozen_modules(backbone) | (norms if batchnorm == "frozen" else frozenset())


def frozen_modules(backbone: nn.Module) -> frozenset[str]:
    """Return the names of the modules that must not see train mode, the outermost ones only; "" is the backbone itself.

    A module is frozen if none of its parameters trains. Batch-norm would move its statistics, and dropout and drop path would
    make what should be constant random. A module without parameters (an activation, a dropout) is frozen if it is registered
    before anything that trains: timm registers in forward order. A module's own parameters come before all its children.
    """
    if not any(parameter.requires_grad for parameter in backbone.parameters()):
        return frozenset({""})
    if all(parameter.requires_grad for parameter in backbone.parameters()):
        return frozenset()
    frozen: set[str] = set()
    _collect_frozen(backbone, "", frozen, before_first_trained=True)
    return frozenset(frozen)


def _collect_frozen(module: nn.Module, path: str, frozen: set[str], *, before_first_trained: bool) -> None:
    before_first_trained &= not any(parameter.requires_grad for parameter in module.parameters(recurse=False))
    for name, child in module.named_children():
        child_path = f"{path}.{name}" if path else name
        parameters = list(child.parameters())
        if any(parameter.requires_grad for parameter in parameters):
            _collect_frozen(child, child_path, frozen, before_first_trained=before_first_trained)
            before_first_trained = False
        elif parameters or before_first_trained:
            frozen.add(child_path)
