"""What answers: the network of a run under torch, or an artifact under onnxruntime. Both take and give the same."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tlkit.data.preprocess import Preprocessing
from tlkit.deploy.export.artifact import artifact_in, is_artifact, read_artifact, refuse_pickle
from tlkit.deploy.export.runtime import load_runtime
from tlkit.errors import ArtifactError
from tlkit.models.inference.trust import Trust

Pixels = NDArray[np.uint8]
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Answer:
    """Of a batch. probabilities: [B, K], calibrated. logits: [B, K] as the network gives them; None of an artifact.

    unknown: [B], the higher, the less an image is like those of training; None where the model has no such score.
    """

    probabilities: Numbers
    logits: Numbers | None = None
    unknown: Numbers | None = None


@dataclass(frozen=True)
class Predictor:
    """answer: images [B, S, S, C] uint8 -> what the model says of them.

    features: images -> [B, F] float32, what the head sees; None where the model doesn't give them.
    thresholds: of a multilabel model, one a class. fingerprint: sha256 of the weights.
    """

    name: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    answer: Callable[[Pixels], Answer]
    features: Callable[[Pixels], NDArray[np.float32]] | None
    thresholds: tuple[float, ...]
    fingerprint: str
    trust: Trust = field(default_factory=Trust)


def open_predictor(model: Path, threads: int | None = None, *, device: str = "auto") -> Predictor:
    """Open a run folder, the model folder in it, or an artifact.

    threads: of an artifact's network, see load_runtime. device: of a run's network, see find_device.
    Raises RunError or ArtifactError if it holds none of these, or is damaged.
    """
    if model.is_file() and not is_artifact(model):
        refuse_pickle(model)
        nearest = model.parent if is_artifact(model.parent) else "a run folder, or the folder or .zip that `tlkit export` made"
        raise ArtifactError(f"{model} is a file that tlkit can't use by itself.\n  Expected {nearest}.")
    if is_artifact(model) and not (model / "tlkit.json").is_file():
        return _of_artifact(model, threads)
    if not any((model / name).exists() for name in ("model", "tlkit.json")) and (meant := artifact_in(model)):
        raise ArtifactError(f"{model} holds no model and no artifact.json.\n {meant}")
    return _of_run(model, device)  # which the safetensors format is, too


def _of_artifact(path: Path, threads: int | None) -> Predictor:
    artifact = read_artifact(path)
    runtime = load_runtime(artifact, threads)

    def answer(images: Pixels) -> Answer:
        found = runtime.run(images)
        unknown = found["unknown"][:, 0].astype(np.float64) if "unknown" in found else None
        return Answer(found["probabilities"].astype(np.float64), None, unknown)

    def features(images: Pixels) -> NDArray[np.float32]:
        return runtime.run(images)["features"].reshape(len(images), -1)

    has_features = "features" in [output.get("name") for output in artifact.facts.get("outputs", [])]
    fingerprint = str(artifact.facts["sha256"][artifact.facts["network"]])
    return Predictor(
        str(artifact.facts.get("name", path.stem)),
        artifact.classes,
        runtime.preprocessing,
        answer,
        features if has_features else None,
        artifact.thresholds,
        fingerprint,
        artifact.trust,
    )


def _of_run(run: Path, device_name: str) -> Predictor:
    import torch

    from tlkit.models.inference.devices import find_device
    from tlkit.models.inference.unknown import UnknownScore
    from tlkit.models.model_folder import find_model_folder, load_with_card

    device = find_device(device_name)
    classifier, card = load_with_card(run)
    preprocessing = card.spec
    classifier.to(device)
    normalize = preprocessing.normalizer().to(device)

    def normalized(images: Pixels) -> torch.Tensor:
        found: torch.Tensor = normalize(torch.from_numpy(images).to(device).permute(0, 3, 1, 2))
        return found

    score = UnknownScore.of(card.trust)
    score = score.to(device) if score is not None else None

    @torch.inference_mode()
    def answer(images: Pixels) -> Answer:
        features = classifier.features(normalized(images))
        output = classifier.head(features)
        logits = output.double().cpu()
        probabilities = logits.sigmoid() if card.thresholds else (logits / card.trust.temperature).softmax(1)
        unknown = None if score is None else score(features.float(), output.float())[:, 0].double().cpu().numpy()
        return Answer(probabilities.numpy(), logits.numpy(), unknown)

    @torch.inference_mode()
    def features(images: Pixels) -> NDArray[np.float32]:
        found: NDArray[np.float32] = classifier.features(normalized(images)).flatten(1).float().cpu().numpy()
        return found

    name, fingerprint = str(card.recipe.get("name", run.name)), _fingerprint(find_model_folder(run))
    return Predictor(name, card.classes, preprocessing, answer, features, card.thresholds, fingerprint, card.trust)


def _fingerprint(folder: Path) -> str:
    """Identify the model: tlkit.json has the sha256 of every weights file, and load_with_card has compared them."""
    import json

    sha256 = json.loads((folder / "tlkit.json").read_text(encoding="utf-8"))["sha256"]
    return " ".join(sha256[name] for name in sorted(sha256))
