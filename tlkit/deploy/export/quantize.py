"""Smaller numbers for the ONNX network: int8 (static, calibrated on training images) or float16, held to the accuracy that they keep."""

import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlkit.data.samples import evenly_spread, groups_of
from tlkit.data.splits.manifest import samples_of_run
from tlkit.deploy.export.compare import score_label
from tlkit.deploy.export.formats import Facts, Network, write_onnx_format
from tlkit.deploy.export.onnx_export import write_onnx
from tlkit.deploy.export.parity import measure_parity
from tlkit.deploy.export.proof import Proof
from tlkit.deploy.export.runtime import Runtime, onnx_session
from tlkit.errors import ArtifactError
from tlkit.evaluation.fit_trust import FittedTrust, choose_promises
from tlkit.terminal import counted

KINDS = ("int8", "float16")
CALIBRATION_IMAGES = 256
# Between two machines with the same file: processors add int8 products up differently, and round float16 differently.
TOLERANCES = {"int8": 0.05, "float16": 0.01}
_LATENCY_RUNS = 50


def calibration_images(run: Path, network: Network, overrides: Sequence[str] = ()) -> NDArray[np.uint8]:
    """Return images of the run's training split, [N, S, S, C], spread evenly over it."""
    training = samples_of_run(run, network.card.classes, overrides).of("train")
    return np.stack([network.spec.read(sample.image) for sample in evenly_spread(training, CALIBRATION_IMAGES)])


def write_quantized(folder: Path, network: Network, kind: str, calibration: NDArray[np.uint8]) -> Facts:
    """Write model.onnx in a smaller dtype. `quantization` of the facts has its size and latency beside those of the float32 model."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        facts = write_onnx_format(Path(name), network)
        before = Path(name) / "model.onnx"
        after = folder / "model.onnx"
        entrances = calibration if network.raw else network.spec.normalize_arrays(calibration)
        with _quiet():
            if kind == "int8":
                _to_int8(before, after, entrances)
            else:
                _to_float16(before, after)
        measured = {
            "kind": kind,
            **({"calibrated_on": counted(len(calibration), "training image")} if kind == "int8" else {}),
            "megabytes": {"float32": _megabytes(before), kind: _megabytes(after)},
            "milliseconds_a_picture": {"float32": _latency_ms(before, entrances[:1]), kind: _latency_ms(after, entrances[:1])},
        }
    return {**facts, "precision": kind, "quantization": measured}


def prove_quantized(runtime: Runtime, proof: Proof, max_drop: float) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Return the parity and the network's own answers. Raises ArtifactError if its score drops by more than max_drop, in 0..1."""
    measured, found = measure_parity(runtime, proof)
    kind = str(runtime.artifact.facts["precision"])
    score, before, after = score_label(proof.card.task), measured["accuracy_in_training_code"], measured["accuracy"]
    if not before - after <= max_drop + 1e-12:
        raise ArtifactError(
            f"{kind} costs too much, so nothing was exported: over {proof.what}, {score} falls from {before:.4f} to {after:.4f}, "
            f"by {100 * (before - after):.1f} points (allowed: {100 * max_drop:g}).\n"
            f"  Allow more with --max-drop (a share: 0.02 is 2 points), use --quantize {KINDS[kind == 'int8']}, or ship float32."
        )
    return {**measured, "tolerance": TOLERANCES[kind], "max_drop": max_drop}, found


def promises_of(proof: Proof, found: NDArray[np.float32]) -> FittedTrust:
    """Choose abstain and conformal again by the network's own answers, [N, K], to the validation images: those of float32 are others'."""
    trust = proof.card.trust
    if trust.abstain is None and trust.conformal is None:
        return FittedTrust(trust, {})
    if proof.labels is None or any(sample.split != "val" for sample in proof.samples):
        reason = "There are no validation images to choose it on."
        kept = replace(trust, abstain=None, conformal=None)
        return FittedTrust(kept, {name: reason for name in trust.to_json() if name not in kept.to_json()})
    error = trust.abstain.error if trust.abstain else None
    coverage = trust.conformal.coverage if trust.conformal else None
    labels, groups = proof.labels.astype(np.int64), groups_of(proof.samples)
    return choose_promises(trust, found.astype(np.float64), labels, error=error, coverage=coverage, groups=groups)


def _to_int8(before: Path, after: Path, entrances: NDArray[Any]) -> None:
    """Quantize and dequantize nodes around each operation, weights per output channel.

    Activations as uint8 and weights as int8: onnxruntime's own advice for processors without a faster pair.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(np.array_split(entrances, max(1, len(entrances) // 16)))

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"pictures": batch}

    prepared = before.with_name("prepared.onnx")
    quant_pre_process(str(before), str(prepared), skip_symbolic_shape=True)
    written = before.with_name("int8.onnx")
    quantize_static(
        str(prepared), str(written), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    write_onnx(onnx.load(str(written)), after)


def _to_float16(before: Path, after: Path) -> None:
    """Convert weights and arithmetic; the network's input and output stay as they are."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = convert_float_to_float16(onnx.load(str(before)), keep_io_types=True)
    OnnxModel.graph_topological_sort(model.graph)  # the cast of a float input is appended at the end, behind what needs it
    write_onnx(model, after)


def _latency_ms(file: Path, images: NDArray[Any]) -> float:
    """Measure the median time of single images, on all processors."""
    session = onnx_session(file)
    times = []
    for _ in range(_LATENCY_RUNS):
        began = time.perf_counter()
        session.run(["probabilities"], {"pictures": images})
        times.append(1000 * (time.perf_counter() - began))
    return round(statistics.median(times), 2)


def _megabytes(file: Path) -> float:
    return round(sum(part.stat().st_size for part in file.parent.glob(f"{file.name}*")) / 1e6, 2)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence onnxruntime's tools, which log to the root logger and ask for a step that was done already."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
