"""`tlkit verify ARTIFACT`: the comparison that let it ship, repeated where it is used. Without torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlkit.deploy.export.artifact import MANIFEST, Artifact, read_artifact
from tlkit.deploy.export.compare import compare, generated_images
from tlkit.deploy.export.runtime import Runtime, load_runtime
from tlkit.errors import ArtifactError
from tlkit.files import sha256_of
from tlkit.terminal import print_text

PROOF = "proof.json"
SAMPLES = "samples"
PROVED_FACTS = ("task", "classes", "thresholds", "preprocessing", "calibration", "abstain", "conformal", "unknown", "parity")
"""Keys of artifact.json that decide what an answer means, and how much it may differ; there is none for what the model hasn't."""


@dataclass(frozen=True)
class Recorded:
    """The results of training code in proof.json. images: by sha256 of the file, [K] each. generated: [G, K].

    facts: PROVED_FACTS as the export wrote them; None in an artifact of an earlier version.
    """

    images: dict[str, list[float]]
    generated: NDArray[np.float64]
    facts: Mapping[str, Any] | None = None


def verify_command(path: Path, images: Path | None) -> int:
    """Verify an artifact, printing a line for each check. Raises ArtifactError at the first that fails."""
    artifact = read_artifact(path)
    print_text(f"{path}: {len(artifact.facts['sha256'])} files are those that artifact.json describes")
    recorded = read_recorded(artifact)
    _check_facts(artifact, recorded.facts)
    if artifact.format in ("torch", "safetensors"):
        print_text(f"  The format {artifact.format} answers under torch only: its answers were compared when it was exported, not here.")
        return 0
    runtime = load_runtime(artifact)
    tolerance = _tolerance(artifact)
    _check_answers("generated images", recorded.generated, answers_to_generated(runtime), artifact, tolerance)
    folders = [folder for folder in (artifact.folder / SAMPLES, images) if folder and (folder == images or folder.is_dir())]
    for folder in folders:
        files = [(file, row) for file in image_files(folder) if (row := recorded.images.get(sha256_of(file)))]
        if not files:
            raise ArtifactError(
                f"{folder} has none of the {len(recorded.images)} images that the export was proved with (they are known by sha256).\n"
                "  Name the folder of the run's own images, unchanged, or leave --images out."
            )
        what = f"{len(files)} of the {len(recorded.images)} recorded images, found in {folder}"
        found = runtime.probabilities([file for file, _ in files])
        _check_answers(what, np.array([row for _, row in files]), found, artifact, tolerance)
    return 0


def _tolerance(artifact: Artifact) -> float:
    try:
        return float(artifact.facts["parity"]["tolerance"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{artifact.folder / MANIFEST} doesn't say how it was proved.\n  Export the run again.") from error


def read_recorded(artifact: Artifact) -> Recorded:
    try:
        content = json.loads((artifact.folder / PROOF).read_text(encoding="utf-8"))
        generated = np.array(content["generated"], np.float64)
        facts = dict(content["facts"]) if "facts" in content else None
        images = {str(image["sha256"]): [float(value) for value in image["probabilities"]] for image in content["pictures"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{artifact.folder / PROOF} can't be used: {error}\n  Export the run again.") from error
    widths = {generated.shape[-1] if generated.ndim == 2 else 0, *map(len, images.values())}
    if widths != {len(artifact.classes)}:
        raise ArtifactError(f"{artifact.folder / PROOF} isn't for {len(artifact.classes)} classes.\n  Export the run again.")
    return Recorded(images, generated, facts)


def _check_facts(artifact: Artifact, proved: Mapping[str, Any] | None) -> None:
    """Print whether artifact.json says the same of the answers as at the export; raise ArtifactError if it doesn't."""
    if proved is None:
        print_text(f"  {MANIFEST}: its classes, thresholds and preprocessing can't be compared: an earlier version wrote {PROOF}")
        return
    if changed := [name for name in PROVED_FACTS if artifact.facts.get(name) != proved.get(name)]:
        raise ArtifactError(
            f"{artifact.folder / MANIFEST} was changed after the export: {', '.join(changed)} differ from what {PROOF} has.\n"
            "  Copy the whole artifact again, or export it again."
        )
    print_text(f"  {MANIFEST}: the classes, thresholds and preprocessing of the export")


def image_files(folder: Path) -> list[Path]:
    """Return all files under the folder, sorted, without hidden ones. Raises ArtifactError if it is no folder."""
    if not folder.is_dir():
        raise ArtifactError(f"--images {folder} is no folder.\n  Name a folder of image files.")
    return sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))


def answers_to_generated(runtime: Runtime) -> NDArray[np.float32]:
    """Return the probabilities, [G, K], of the generated images."""
    spec = runtime.preprocessing
    return runtime.run(np.stack([spec.fit(image) for image in generated_images(spec.image_size, spec.channels)]))["probabilities"]


def _check_answers(what: str, expected: NDArray[np.float64], found: NDArray[np.float32], artifact: Artifact, tolerance: float) -> None:
    """Print how far the probabilities [N, K] differ; raise ArtifactError if by more than the tolerance. what: the images, in words."""
    measured = compare(expected, found, artifact.thresholds)
    if not measured["max_difference"] <= tolerance:  # so that nan fails too
        raise ArtifactError(
            f"{artifact.folder} doesn't answer as the model that it was made from: over {what}, "
            f"{1 - measured['agreement']:.1%} get another answer, and a probability differs by up to {measured['max_difference']:.2g} "
            f"(allowed: {tolerance:.2g}).\n"
            "  Export the run again; if it differs still, this machine's libraries resize or calculate otherwise: compare `versions`."
        )
    print_text(
        f"  {what}: the same answer for {measured['agreement']:.2%}, a probability differs by {measured['max_difference']:.1e} "
        f"at most (allowed: {tolerance:.1e})"
    )
