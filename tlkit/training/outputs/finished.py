"""A finished run, for programs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlkit.evaluation.run_metrics import read_metrics
from tlkit.models.classifier import Classifier
from tlkit.models.model_folder import load_model


@dataclass(frozen=True)
class Run:
    """A finished run. It can be used wherever a path of a run folder is expected: `tlkit.evaluate(run)`, `tlkit.predict(run, files)`.

    Attributes:
        folder: What the run has written: model, metrics, report, recipe and split.
    """

    folder: Path

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def metrics(self) -> dict[str, Any]:
        """Return metrics.json: `metrics["test"]["accuracy"]`, and the same under `val`.

        Raises:
            RunError: The file doesn't exist, because the run has not ended.
        """
        return read_metrics(self.folder)

    def model(self, *, device: str = "cpu") -> Classifier:
        """Load the trained classifier.

        Args:
            device: cpu, cuda, cuda:1, mps, or auto for an accelerator where there is one.

        Returns:
            The classifier in eval mode, see `load_model`.

        Raises:
            RunError: The run is a cross-validation, which has a model for each fold, or its model is damaged.
            DeviceError: This machine doesn't have the device.
        """
        return load_model(self.folder, device=device)
