"""What trains: gradients and modes, set in one place."""

from torch import nn

from tlkit.errors import Fault, RecipeError, expected_one_of
from tlkit.models.backbones import Stage
from tlkit.recipe.schema import FromStage, Train


def trained_stages(train: Train, stages: tuple[Stage, ...], *, key: str, backbone: str) -> tuple[Stage, ...]:
    """The stages of the backbone that a phase trains; the head trains in every phase.

    key: the recipe's dotted path to `train`, for the message.
    Raises RecipeError for a stage that the backbone doesn't have.
    """
    if train == "head":
        return ()
    if not isinstance(train, FromStage):
        return stages
    names = [stage.name for stage in stages]
    if train.from_ not in names:
        raise RecipeError([Fault(f"{key}.from", f"= '{train.from_}' is not a stage of {backbone}.", expected_one_of(train.from_, names))])
    return stages[names.index(train.from_) :]


def set_trainable(backbone: nn.Module, stages: tuple[Stage, ...]) -> frozenset[str]:
    """Lets the parameters of these stages have gradients and no others.

    Returns the names of the modules that have to stay in eval mode (see `frozen_modules`).
    """
    trainable = {parameter for stage in stages for parameter in stage.parameters}
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(name in trainable)
    return frozen_modules(backbone)


def frozen_modules(backbone: nn.Module) -> frozenset[str]:
    """Names of the modules that must not see train mode, the outermost ones only; "" is the backbone itself.

    A module is frozen if none of its parameters trains. Batch-norm would move its statistics, and dropout and drop path would
    make what should be constant random. A module without parameters (an activation, a dropout) is frozen if it is registered
    before the first sibling that trains: timm registers in forward order. Its parent's own parameters come before all children.
    """
    if not any(parameter.requires_grad for parameter in backbone.parameters()):
        return frozenset({""})
    frozen: set[str] = set()
    _collect_frozen(backbone, "", frozen)
    return frozenset(frozen)


def _collect_frozen(module: nn.Module, path: str, frozen: set[str]) -> None:
    before_first_trained = not any(parameter.requires_grad for parameter in module.parameters(recurse=False))
    for name, child in module.named_children():
        child_path = f"{path}.{name}" if path else name
        parameters = list(child.parameters())
        if any(parameter.requires_grad for parameter in parameters):
            before_first_trained = False
            _collect_frozen(child, child_path, frozen)
        elif parameters or before_first_trained:
            frozen.add(child_path)
