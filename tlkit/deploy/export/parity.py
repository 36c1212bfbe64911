"""The gate: an export ships only if real files get the same answers through it as through training code."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tlkit.data.samples import Sample
from tlkit.deploy.export.compare import accuracy, compare
from tlkit.deploy.export.proof import Proof
from tlkit.deploy.export.runtime import Runtime, onnx_session
from tlkit.deploy.export.torch_program import NORMALIZED
from tlkit.errors import ArtifactError

TOLERANCE = 1e-4
"""Largest difference of a probability, in float32."""
# Of normalised images, whose values are a few units: float32 rounds to 1e-7 of them.
NORMALIZED_TOLERANCE = 1e-4
MAYBE_ROUNDING = 1e-3
ROUNDING = "\n  So little can come from rounding alone, which adds up in deep networks. If it may: --tolerance 1e-3."
PARTS = ("decode", "resize", "normalise", "network")
REVERSED = "the channels are in reverse order, BGR for RGB"
LOOKED_AT = 8
"""Images with the largest differences that are followed step by step."""


@dataclass(frozen=True)
class Difference:
    """part: of PARTS, or the last two where a network can't be looked into. how: a sentence. sample: the image that shows it."""

    part: str
    how: str
    sample: Sample


def measure_parity(runtime: Runtime, proof: Proof) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Return `parity` of artifact.json, and the runtime's probabilities [N, K], from the bytes of the files on."""
    found = runtime.probabilities(proof.files)
    thresholds = proof.card.thresholds
    measured: dict[str, Any] = {"pictures": len(proof.files), "of": proof.what, **compare(proof.probabilities, found, thresholds)}
    if proof.labels is not None:
        before, after = (accuracy(values, proof.labels, thresholds) for values in (proof.probabilities, found))
        measured |= {"accuracy_in_training_code": before, "accuracy": after, "accuracy_difference": after - before}
    return measured, found


def prove(runtime: Runtime, proof: Proof, tolerance: float) -> dict[str, Any]:
    """Return the measured parity. Raises ArtifactError beyond the tolerance, naming the first step that differs."""
    measured, found = measure_parity(runtime, proof)
    if measured["max_difference"] <= tolerance:  # false for nan, so that it fails
        return {**measured, "tolerance": tolerance}
    worst = np.argsort(-np.abs(proof.probabilities - found).max(1), kind="stable")[:LOOKED_AT]
    difference = first_difference(runtime, proof, worst.tolist())
    equal = PARTS[: PARTS.index(difference.part.split()[0])]
    raise ArtifactError(
        f"The {runtime.artifact.format} export doesn't answer as the model does, so nothing was exported: of {proof.what}, "
        f"{1 - measured['agreement']:.1%} get another answer, and a probability differs by up to {measured['max_difference']:.2g} "
        f"(allowed: {tolerance:.2g}).\n"
        f"  What differs first is: {difference.part} ({difference.how}; image {difference.sample.id})."
        + (f" Equal before it: {', '.join(equal)}." if equal else "")
        + (ROUNDING if difference.part.endswith("network") and measured["max_difference"] <= MAYBE_ROUNDING else "")
    )


def first_difference(runtime: Runtime, proof: Proof, numbers: list[int]) -> Difference:
    """Return the first step, over all these images, at which runtime and training code differ."""
    steps: tuple[tuple[str, Callable[[int], str]], ...] = (
        ("decode", lambda i: _images_differ(_decoded(runtime, proof, i)[0], _decoded(runtime, proof, i)[1])),
        ("resize", lambda i: _images_differ(*_fitted(runtime, proof, i))),
        ("normalise", lambda i: _normalized_differ(runtime, proof, i)),
    )
    for part, differs in steps:
        found = {i: how for i in numbers if (how := differs(i))}
        if found:
            (most_frequent, _), *_ = Counter(found.values()).most_common(1)
            return Difference(part, most_frequent, proof.samples[next(i for i in found if found[i] == most_frequent)])
    if normalized_by(runtime, _fitted(runtime, proof, numbers[0])[0][None]) is None:
        return Difference("normalise or network", "the same resized images get other probabilities", proof.samples[numbers[0]])
    return Difference("network", "the same normalised images get other probabilities", proof.samples[numbers[0]])


def _decoded(runtime: Runtime, proof: Proof, i: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Decode an image by training code and by the runtime, [H, W, C]."""
    return proof.preprocessing.decode(proof.samples[i].image), runtime.decode(proof.files[i])


def _fitted(runtime: Runtime, proof: Proof, i: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Fit an image by training code and by the runtime, [S, S, C]."""
    return proof.preprocessing.fit(_decoded(runtime, proof, i)[0]), runtime.image(proof.files[i])


def _normalized_differ(runtime: Runtime, proof: Proof, i: int) -> str:
    images = _fitted(runtime, proof, i)[0][None]
    expected = _normalized(images, proof)
    found = normalized_by(runtime, images)
    if found is None:
        return ""
    if expected.shape != found.shape:
        return f"shape {found.shape} for {expected.shape}"
    largest = float(np.abs(expected - found).max())
    if largest <= NORMALIZED_TOLERANCE:
        return ""
    swapped = (expected[:, ::-1], _normalized(images[..., ::-1], proof))
    reverse = any(np.allclose(other, found, atol=NORMALIZED_TOLERANCE) for other in swapped)
    offsets = ", ".join(f"{value:+.3g}" for value in (found - expected).mean((0, 2, 3)))
    return REVERSED if reverse else f"by up to {largest:.3g}; on average by {offsets} in its channels"


def _normalized(images: NDArray[np.uint8], proof: Proof) -> NDArray[np.float32]:
    """Normalise by training code: [B, S, S, C] -> [B, C, S, S]."""
    pixels = torch.from_numpy(images.copy()).permute(0, 3, 1, 2)
    normalized: NDArray[np.float32] = proof.preprocessing.normalize(pixels).numpy()
    return normalized


def normalized_by(runtime: Runtime, images: NDArray[np.uint8]) -> NDArray[np.float32] | None:
    """Return the images as the runtime's network normalises them, [B, C, S, S]; None if the format doesn't show them."""
    if not runtime.artifact.raw:
        return runtime.preprocessing.normalize_arrays(images)
    if runtime.artifact.format != "onnx":
        return None
    import onnx

    model = onnx.load(str(runtime.artifact.network))
    if NORMALIZED not in {name for node in model.graph.node for name in node.output}:
        return None
    model.graph.output.append(onnx.helper.make_tensor_value_info(NORMALIZED, onnx.TensorProto.FLOAT, None))
    session = onnx_session(model.SerializeToString(), 1)
    found: NDArray[np.float32] = session.run([NORMALIZED], {"pictures": images})[0]
    return found


def _images_differ(expected: NDArray[np.uint8], found: NDArray[np.uint8]) -> str:
    if expected.shape != found.shape:
        sizes = (" x ".join(map(str, shape)) for shape in (found.shape, expected.shape))
        return "{} values for {}".format(*sizes)
    if np.array_equal(expected, found):
        return ""
    if np.array_equal(expected[:, :, ::-1], found):
        return REVERSED
    differences = np.abs(expected.astype(int) - found.astype(int))
    return f"{(differences > 0).mean():.0%} of the values differ, by up to {differences.max()} of 255"
