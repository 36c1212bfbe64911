"""A program -> model.onnx, by torch's current exporter."""

import contextlib
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tlkit.deploy.export.runtime import import_onnxruntime
from tlkit.deploy.export.torch_program import NORMALIZED
from tlkit.errors import ArtifactError, MissingExtraError

OPSETS = range(18, 24)
"""torch's exporter is written in opset 18 and goes up to 23; older ones it would have to rewrite."""
DEFAULT_OPSET = 20
"""Has GELU as one operation. Of the pieces that opset 18 makes of it OpenCV 5.0's reader falls over, with a segmentation fault.
`commands/deploy.py` repeats it, since the command line doesn't import torch for its help."""
# A protobuf message ends at 2 GB; above, weights are in a separate file, and some room is left for the graph.
MAX_ONE_FILE = 1_900_000_000


def check_opset(opset: int) -> None:
    if opset not in OPSETS:
        raise ArtifactError(f"--opset {opset} can't be written.\n  Expected {OPSETS[0]} to {OPSETS[-1]}; the default is {DEFAULT_OPSET}.")


def check_onnx_is_installed() -> None:
    try:
        import onnx  # noqa: F401

        import_onnxruntime()
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(str(error.name), "export", "Exporting to ONNX") from error


def onnx_model(program: torch.export.ExportedProgram, outputs: Sequence[str], opset: int) -> Any:
    """Convert a program to an onnx.ModelProto with outputs of these names; the batch dimension is named `batch`.

    `normalized` is no output of the shipped model, but the value keeps its name in the graph.
    """
    with _quiet():
        made = torch.onnx.export(program, dynamo=True, opset_version=opset, input_names=["pictures"], output_names=list(outputs))
    if made is None:
        raise AssertionError("torch.onnx.export gives a program unless it is handed a file")
    model = made.model_proto
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    kept = [output for output in model.graph.output if output.name != NORMALIZED]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    return model


def write_onnx(model: Any, file: Path) -> None:
    """Write one file, and model.onnx.data beside it if the weights are too large for one. Checked by onnx's own checker."""
    import onnx

    onnx.save_model(model, str(file), save_as_external_data=model.ByteSize() > MAX_ONE_FILE, location=f"{file.name}.data")
    onnx.checker.check_model(str(file), full_check=True)


@contextlib.contextmanager
def _quiet() -> Any:
    """Silence torch's exporter, which prints its progress and warns about its own internals."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
