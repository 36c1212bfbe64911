"""TensorBoard logs besides the curves: the metrics of the shipped model, and the recipe as hyper-parameters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

FOLDER = "tensorboard"


def log_results(run: Path, recipe: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """Write the run `result`. recipe: as plain values. metrics: the content of metrics.json; of each split its plain numbers are taken."""
    logger = TensorBoardLogger(run, name=FOLDER, version="result")
    figures = {
        f"{split}/{name}": float(value)
        for split in ("test", "val")
        for name, value in metrics.get(split, {}).items()
        if isinstance(value, float)
    }
    phases = {f"phases[{number}]": phase for number, phase in enumerate(recipe["phases"])}
    logger.log_hyperparams({**{key: value for key, value in recipe.items() if key != "phases"}, **phases}, figures)
    logger.finalize("success")
