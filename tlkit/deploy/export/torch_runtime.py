"""The exports that torch itself reads, for the gate: those that this process has just made, and no stranger's."""

from collections.abc import Callable
from typing import Any

import timm
import torch
from numpy.typing import NDArray

from tlkit.deploy.export.artifact import Artifact
from tlkit.deploy.export.runtime import Outputs, Runtime
from tlkit.models.model_folder import is_timms, load_with_card


def trusted_runtime(artifact: Artifact) -> Runtime:
    """Load an artifact of format torch or safetensors. A torch.export program can contain pickles: it must not come from anybody else."""
    network = _program(artifact) if artifact.format == "torch" else _model_folder(artifact)
    return Runtime(artifact, artifact.preprocessing, network)


def _program(artifact: Artifact) -> Callable[[NDArray[Any]], Outputs]:
    program = torch.export.load(artifact.network).module()
    names = [output["name"] for output in artifact.facts["outputs"]]

    def network(images: NDArray[Any]) -> Outputs:
        with torch.inference_mode():
            found = program(torch.from_numpy(images))
        return {name: value.numpy() for name, value in zip(names, found, strict=True)}

    return network


def _model_folder(artifact: Artifact) -> Callable[[NDArray[Any]], Outputs]:
    """Load the model as plain timm does if the classifier is timm's own, otherwise as tlkit does."""
    if is_timms(artifact.facts["head"], artifact.facts.get("features", "all")):
        model = timm.create_model(f"local-dir:{artifact.folder}", pretrained=True).eval()
    else:
        model, _ = load_with_card(artifact.folder)

    def network(images: NDArray[Any]) -> Outputs:
        with torch.inference_mode():
            logits = model(torch.from_numpy(images))
        return {"probabilities": (logits.sigmoid() if artifact.multilabel else (logits / artifact.trust.temperature).softmax(1)).numpy()}

    return network
