"""One function for each format: writes the network into a folder, and returns what artifact.json says about it."""

import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tlkit.data.preprocess import Preprocessing
from tlkit.deploy.export.model_card import model_card
from tlkit.deploy.export.onnx_export import DEFAULT_OPSET, onnx_model, write_onnx
from tlkit.deploy.export.runtime import import_openvino
from tlkit.deploy.export.torch_program import NORMALIZED, Shipped, exported_program
from tlkit.models.classifier import Classifier
from tlkit.models.model_folder import ModelCard, write_model_folder

Facts = dict[str, Any]


@dataclass(frozen=True)
class Network:
    """What is exported, and how. spec is the card's own, but in tests that make a wrong one."""

    classifier: Classifier
    card: ModelCard
    spec: Preprocessing
    raw: bool = True
    features: bool = False
    opset: int = DEFAULT_OPSET

    @property
    def outputs(self) -> tuple[str, ...]:
        unknown = ("unknown",) if self.card.trust.unknown is not None else ()
        return ("probabilities", *(("features",) if self.features else ()), *unknown)

    def program(self, outputs: Sequence[str]) -> torch.export.ExportedProgram:
        multilabel, normalize = self.card.task == "multilabel", self.spec.normalizer() if self.raw else None
        shipped = Shipped(self.classifier, normalize, outputs, multilabel=multilabel, trust=self.card.trust)
        return exported_program(shipped, self.spec.image_size, self.spec.channels)

    @property
    def entrance(self) -> dict[str, Any]:
        """Return `input` of artifact.json."""
        size, channels = self.spec.image_size, self.spec.channels
        if self.raw:
            return {"name": "pictures", "dtype": "uint8", "layout": "NHWC", "shape": ["batch", size, size, channels]}
        return {"name": "pictures", "dtype": "float32", "layout": "NCHW", "shape": ["batch", channels, size, size]}


def write_onnx_format(folder: Path, network: Network) -> Facts:
    outputs = (*network.outputs, *((NORMALIZED,) if network.raw else ()))
    model = onnx_model(network.program(outputs), outputs, network.opset)
    write_onnx(model, folder / "model.onnx")
    described = [_output(value.name, value.type.tensor_type.shape.dim[-1].dim_value) for value in model.graph.output]
    return {"format": "onnx", "network": "model.onnx", "opset": network.opset, "input": network.entrance, "outputs": described}


def write_openvino_format(folder: Path, network: Network) -> Facts:
    """Write model.xml and model.bin from the ONNX network with OpenVINO's reader; its converter tool would report to its vendor."""
    openvino = import_openvino()
    facts = write_onnx_format(folder, network)
    model = openvino.Core().read_model(str(folder / "model.onnx"))
    openvino.save_model(model, str(folder / "model.xml"), compress_to_fp16=False)
    for file in folder.glob("model.onnx*"):
        file.unlink()
    return {**facts, "format": "openvino", "network": "model.xml"}


def write_torch_format(folder: Path, network: Network) -> Facts:
    """Write model.pt2, which torch.export.load reads: a tuple of the outputs."""
    program = network.program(network.outputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch 2.15 on tensors that share memory, as all of a batch-norm's do
        torch.export.save(program, folder / "model.pt2")
    widths = [int(value.meta["val"].shape[-1]) for value in next(n for n in program.graph.nodes if n.op == "output").args[0]]
    described = [_output(name, width) for name, width in zip(network.outputs, widths, strict=True)]
    return {"format": "torch", "network": "model.pt2", "input": network.entrance, "outputs": described}


def write_safetensors_format(folder: Path, network: Network) -> Facts:
    """Write the model folder itself, as timm, the Hugging Face hub and tlkit read it."""
    write_model_folder(folder / "model", network.classifier, network.card)
    for file in (folder / "model").iterdir():
        shutil.move(file, folder / file.name)
    (folder / "model").rmdir()
    (folder / "README.md").write_text(model_card(network.card), encoding="utf-8")
    entrance = Network(network.classifier, network.card, network.spec, raw=False).entrance
    logits = {"name": "logits", "dtype": "float32", "shape": ["batch", len(network.card.classes)]}
    return {"format": "safetensors", "network": "model.safetensors", "input": entrance, "outputs": [logits]}


def _output(name: str, width: int) -> Mapping[str, Any]:
    return {"name": name, "dtype": "float32", "shape": ["batch", width]}
