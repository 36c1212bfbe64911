"""Fine-tune pretrained image backbones from one recipe file."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tlkit.deploy.predict.predict import predict
    from tlkit.recipe.load import load_recipe
    from tlkit.training.finetune import finetune

__version__ = "0.1.0"
__all__ = ["__version__", "finetune", "load_recipe", "predict"]

# Imported on use: `import tlkit` takes no time, while torch, timm and lightning take seconds.
_HOMES = {"finetune": "tlkit.training.finetune", "load_recipe": "tlkit.recipe.load", "predict": "tlkit.deploy.predict.predict"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tlkit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
