"""The runtime of an artifact: image files -> probabilities, with only onnxruntime, numpy and Pillow."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlkit.data.preprocess import Preprocessing
from tlkit.deploy.export.artifact import Artifact, read_artifact
from tlkit.errors import ArtifactError, MissingExtraError

BATCH_SIZE = 32

Outputs = Mapping[str, NDArray[np.float32]]
"""Output by name: `probabilities` [B, K], and `features` [B, F] of an artifact that was exported with --features."""


@dataclass(frozen=True)
class Runtime:
    """network: what the artifact's network says of its own input, see Artifact.raw."""

    artifact: Artifact
    preprocessing: Preprocessing
    network: Callable[[NDArray[Any]], Outputs]

    def decode(self, file: Path) -> NDArray[np.uint8]:
        """Decode a file to [H, W, C]. Raises DataError if it isn't an image."""
        return self.preprocessing.decode(file)

    def image(self, file: Path) -> NDArray[np.uint8]:
        """Decode and fit a file to the network's raw input, [S, S, C] uint8. Raises DataError if it isn't an image."""
        return self.preprocessing.fit(self.decode(file))

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Run the network on images [B, S, S, C]."""
        return self.network(images if self.artifact.raw else self.preprocessing.normalize_arrays(images))

    def probabilities(self, files: Sequence[Path]) -> NDArray[np.float32]:
        """Return the probabilities of files, [N, K]. Raises DataError with the first file that isn't an image."""
        batches = (files[start : start + BATCH_SIZE] for start in range(0, len(files), BATCH_SIZE))
        return np.concatenate([self.run(np.stack([self.image(file) for file in batch]))["probabilities"] for batch in batches])


def load_runtime(artifact: Artifact | Path, threads: int | None = None) -> Runtime:
    """Load the runtime of an artifact. threads: of the network; None leaves it to the runtime, which takes all processors.

    Raises ArtifactError if the network can't be read or doesn't fit its classes, MissingExtraError without its runtime.
    """
    if isinstance(artifact, Path):
        artifact = read_artifact(artifact)
    loaders = {"onnx": _onnx, "openvino": _openvino}
    if artifact.format not in loaders:
        raise ArtifactError(
            f"{artifact.folder} is of format {artifact.format}, which answers in its own library only.\n"
            f"  Expected one of: {', '.join(loaders)}. Export one with: tlkit export RUN --format onnx"
        )
    return Runtime(artifact, artifact.preprocessing, loaders[artifact.format](artifact, threads))


def _onnx(artifact: Artifact, threads: int | None) -> Callable[[NDArray[Any]], Outputs]:
    session = onnx_session(artifact.network, threads, spin=False)
    names = [output.name for output in session.get_outputs()]
    check_classes(artifact, session.get_outputs()[0].shape[-1])
    (entrance,) = session.get_inputs()

    def network(images: NDArray[Any]) -> Outputs:
        return dict(zip(names, session.run(names, {entrance.name: images}), strict=True))

    return network


def _openvino(artifact: Artifact, threads: int | None) -> Callable[[NDArray[Any]], Outputs]:
    openvino = import_openvino()
    options = {"INFERENCE_PRECISION_HINT": "f32", **({"INFERENCE_NUM_THREADS": threads} if threads is not None else {})}
    try:
        compiled = openvino.Core().compile_model(str(artifact.network), "CPU", options)
    except RuntimeError as error:
        raise ArtifactError(f"{artifact.network} can't be read by OpenVINO: {error}") from error
    names = [output.get_any_name() for output in compiled.outputs]
    check_classes(artifact, compiled.outputs[0].partial_shape[-1].get_length())

    def network(images: NDArray[Any]) -> Outputs:
        found = compiled([images])
        return {name: found[i] for i, name in enumerate(names)}

    return network


def import_openvino() -> Any:
    """Import openvino without the package that reports every import to its vendor unless a file in the home folder forbids it."""
    missing = "openvino_telemetry" not in sys.modules
    if missing:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # for import: there is no such package
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("openvino", "openvino", "OpenVINO's format") from error
    finally:
        if missing:
            del sys.modules["openvino_telemetry"]
    return openvino


def import_onnxruntime() -> Any:
    """Import onnxruntime without its telemetry, which its official builds switch on: an id in the home folder, and events to their vendor.

    Source: Privacy.md in its wheel, 1.31. It reads the variable once, when it is imported.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "export", "Running an ONNX network") from error
    return onnxruntime


def onnx_session(network: Path | bytes, threads: int | None = None, *, spin: bool = True) -> Any:
    """Open an onnxruntime.InferenceSession on the CPU.

    spin: whether its threads keep a processor busy while they wait, which answers a lone image sooner. Where images are decoded
    beside it, they take the decoders' time: an image of the quickstart then costs 4.7 to 4.9 ms of processor time, else 2.9 to 3.1.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    if threads is not None:
        options.intra_op_num_threads = threads
    if not spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        source = network if isinstance(network, bytes) else str(network)
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own kinds have no common parent
        name = "The network" if isinstance(network, bytes) else network
        raise ArtifactError(f"{name} can't be read by onnxruntime {onnxruntime.__version__}: {error}") from error


def check_classes(artifact: Artifact, found: object) -> None:
    if found != len(artifact.classes):
        raise ArtifactError(
            f"{artifact.network} answers for {found} classes, but artifact.json names {len(artifact.classes)}.\n"
            "  Its files don't belong together: export the run again."
        )
