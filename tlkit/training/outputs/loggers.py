"""The loggers of `trainer.logger`: what is logged in each phase and, as `result`, the figures, the recipe and the plots of the run."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from PIL import Image

from tlkit.recipe.fields.trainer import LoggerName

if TYPE_CHECKING:
    from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

RESULT = "result"
IMAGES = ("curves", "augmentations")
"""Those of a run that trackers show, without their ending."""


@contextmanager
def opened_loggers(names: Sequence[LoggerName], run: Path, version: str) -> Iterator[list[Logger]]:
    """Yield Lightning's logger of each name, and end what it began. version: `phase1` and so on, or RESULT."""
    loggers: list[Any] = [_logger(name, run, version) for name in dict.fromkeys(names)]
    try:
        yield loggers
    finally:
        for logger in loggers:
            if type(logger).__name__ == "WandbLogger":
                logger.experiment.finish()  # else the next phase would go on with its run


def _logger(name: LoggerName, run: Path, version: str) -> Logger:
    if name == "csv":
        return CSVLogger(run, name="csv", version=_unused(run / "csv", version))
    if name == "tensorboard":
        return TensorBoardLogger(run, name="tensorboard", version=version)
    return _mlflow(run, version) if name == "mlflow" else _wandb(run, version)


def _unused(folder: Path, version: str) -> str:
    """Return the version, or one beside it for a phase that is resumed: CSVLogger removes what it finds."""
    number = 1
    while (folder / version).exists():
        number += 1
        version = f"{version.partition('_')[0]}_{number}"
    return version


def _mlflow(run: Path, version: str) -> "MLFlowLogger":
    """Return a logger to MLFLOW_TRACKING_URI or, without that, to a database in the run folder."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # no call over the network that nobody asked for
    from lightning.pytorch.loggers import MLFlowLogger

    tracking_uri = os.environ.get("MLFLOW_TRACKING_URI")
    return MLFlowLogger(
        experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", "tlkit"),
        run_name=f"{run} {version}",
        tags={"run": str(run), "version": version},
        tracking_uri=tracking_uri or f"sqlite:///{run.resolve() / 'mlflow.db'}",
        artifact_location=None if tracking_uri else (run / "mlflow").resolve().as_uri(),
    )


def _wandb(run: Path, version: str) -> "WandbLogger":
    """Return a logger into RUN/wandb that asks no network, unless WANDB_MODE says so."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    return WandbLogger(
        project=os.environ.get("WANDB_PROJECT", "tlkit"),
        name=f"{run} {version}",
        group=str(run),
        save_dir=run,
        offline=os.environ.get("WANDB_MODE", "offline") == "offline",
        settings=wandb.Settings(silent=True, console="off"),
    )


def log_results(names: Sequence[LoggerName], run: Path, recipe: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """Log the run `result`: the recipe as hyper-parameters, the plots, and of metrics.json each split's plain numbers.

    recipe: as plain values.
    """
    figures = {
        f"{split}/{name}": float(value)
        for split in ("test", "val")
        for name, value in metrics.get(split, {}).items()
        if isinstance(value, float)
    }
    plain = {key: value for key, value in recipe.items() if key != "phases"}
    phases = dict(enumerate(recipe["phases"]))
    images = {name: run / f"{name}.png" for name in IMAGES if (run / f"{name}.png").is_file()}
    with opened_loggers(names, run, RESULT) as loggers:
        for logger in loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams({**plain, **{f"phases[{number}]": phase for number, phase in phases.items()}}, figures)
            else:
                logger.log_hyperparams({**plain, "phases": {str(number): phase for number, phase in phases.items()}})  # mlflow takes no [0]
                logger.log_metrics(figures)
            _log_images(logger, images)
            logger.finalize("success")


def _log_images(logger: Any, images: Mapping[str, Path]) -> None:
    """Log images to loggers that show some."""
    for name, file in images.items():
        if isinstance(logger, TensorBoardLogger):
            with Image.open(file) as image:
                logger.experiment.add_image(name, np.asarray(image.convert("RGB")), dataformats="HWC")
        elif type(logger).__name__ == "MLFlowLogger":
            logger.experiment.log_artifact(logger.run_id, str(file))
        elif type(logger).__name__ == "WandbLogger":
            logger.log_image(name, [str(file)])
