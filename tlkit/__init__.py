"""Fine-tune pretrained image backbones from one recipe file.

The functions and classes below are the Python API; docs/python.md shows them at work. Each is imported when it is first used, so that
`import tlkit` takes no time, while torch, timm and lightning take seconds. As a library tlkit installs no signal handlers, configures no
loggers but writes to the one called "tlkit", and never ends the process.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tlkit.data.datamodule import ImageDataModule
    from tlkit.deploy.export.export import export
    from tlkit.deploy.predict.predict import predict
    from tlkit.errors import TlkitError
    from tlkit.evaluation.evaluate import evaluate
    from tlkit.evaluation.save import save_model
    from tlkit.models.catalog import list_models
    from tlkit.models.classifier import Classifier
    from tlkit.models.create import create_classifier
    from tlkit.models.model_folder import load_model
    from tlkit.recipe.load import load_recipe
    from tlkit.recipe.schema import Recipe
    from tlkit.training.finetune import finetune
    from tlkit.training.module import PhaseModule
    from tlkit.training.outputs.finished import Run

__version__ = "0.1.0"
__all__ = [
    "Classifier",
    "ImageDataModule",
    "PhaseModule",
    "Recipe",
    "Run",
    "TlkitError",
    "__version__",
    "create_classifier",
    "evaluate",
    "export",
    "finetune",
    "list_models",
    "load_model",
    "load_recipe",
    "predict",
    "save_model",
]

# The module of each name. No sub-package has one of these names: importing it would put it in the place of the function.
_HOMES = {
    "Classifier": "tlkit.models.classifier",
    "ImageDataModule": "tlkit.data.datamodule",
    "PhaseModule": "tlkit.training.module",
    "Recipe": "tlkit.recipe.schema",
    "Run": "tlkit.training.outputs.finished",
    "TlkitError": "tlkit.errors",
    "create_classifier": "tlkit.models.create",
    "evaluate": "tlkit.evaluation.evaluate",
    "export": "tlkit.deploy.export.export",
    "finetune": "tlkit.training.finetune",
    "list_models": "tlkit.models.catalog",
    "load_model": "tlkit.models.model_folder",
    "load_recipe": "tlkit.recipe.load",
    "predict": "tlkit.deploy.predict.predict",
    "save_model": "tlkit.evaluation.save",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tlkit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
