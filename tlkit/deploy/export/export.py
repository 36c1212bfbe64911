"""`tlkit export RUN`: a model folder -> artifacts that were proved to give the same answers."""

import json
import logging
import platform
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tlkit
from tlkit.data.preprocess import Preprocessing
from tlkit.data.splits.run_source import inner_runs
from tlkit.deploy.export.artifact import MEAN_IMAGE, is_packed, pack, read_artifact, write_manifest
from tlkit.deploy.export.compare import score_label
from tlkit.deploy.export.consumer import CONSUMER, consumer_script
from tlkit.deploy.export.formats import (
    Facts,
    Network,
    write_onnx_format,
    write_openvino_format,
    write_safetensors_format,
    write_torch_format,
)
from tlkit.deploy.export.model_card import push_to_hub
from tlkit.deploy.export.onnx_export import DEFAULT_OPSET, check_onnx_is_installed, check_opset
from tlkit.deploy.export.parity import TOLERANCE, prove
from tlkit.deploy.export.proof import Proof, generated_answers, proof_of_files, proof_of_run, rounded
from tlkit.deploy.export.quantize import KINDS, calibration_images, promises_of, prove_quantized, write_quantized
from tlkit.deploy.export.runtime import Runtime, import_openvino, load_runtime
from tlkit.deploy.export.torch_runtime import trusted_runtime
from tlkit.deploy.export.verify import PROOF, PROVED_FACTS, SAMPLES, answers_to_generated, image_files
from tlkit.errors import ArtifactError, expected_one_of
from tlkit.files import atomic_folder, sha256_of
from tlkit.models.inference.trust import Trust
from tlkit.models.model_folder import ModelCard, find_model_folder, load_with_card, read_card
from tlkit.system import package_version
from tlkit.terminal import print_text

LOG = logging.getLogger("tlkit")

FORMATS: dict[str, Callable[[Path, Network], Facts]] = {
    "onnx": write_onnx_format,
    "torch": write_torch_format,
    "safetensors": write_safetensors_format,
    "openvino": write_openvino_format,
}
RECORDED = 200
"""Images whose probabilities an artifact brings along, so that `tlkit verify` can repeat the comparison."""


@dataclass(frozen=True)
class ExportOptions:
    """raw: the network takes uint8 images and normalises them. out: the parent of a folder per format; by default RUN/export.

    image_folder: images for the proof instead of the run's own. proof_images: how many of them, None for all.
    samples: how many of them are put into the artifact as files.
    push_to_hub: the repository OWNER/NAME for the safetensors folder. overrides: of the run's data, if it has moved.
    quantize: int8 or float16, for onnx; accuracy on the whole validation split may drop by max_drop, in 0..1.
    """

    formats: tuple[str, ...] = ("onnx",)
    raw: bool = True
    features: bool = False
    opset: int = DEFAULT_OPSET
    out: Path | None = None
    zipped: bool = False
    image_folder: Path | None = None
    proof_images: int | None = 200
    tolerance: float = TOLERANCE
    samples: int = 0
    quantize: str | None = None
    max_drop: float = 0.01
    push_to_hub: str | None = None
    overrides: tuple[str, ...] = ()


def export(
    run: str | PathLike[str],
    *,
    formats: Sequence[str] = ("onnx",),
    out: str | PathLike[str] | None = None,
    raw: bool = True,
    features: bool = False,
    quantize: str | None = None,
    images: str | PathLike[str] | None = None,
) -> list[Path]:
    """Export the model of a finished run, and prove with real image files that the export answers as the model does.

    Args:
        run: The run folder, or a model folder with `images`.
        formats: One or more of onnx, torch, safetensors, openvino.
        out: Gets a folder a format; None is RUN/export.
        raw: The network takes uint8 images [B, S, S, C] and normalises them itself; False takes float32 [B, C, S, S], normalised.
        features: The network gives what its head sees, too.
        quantize: int8 or float16, of onnx, with its accuracy measured on the validation split; None is float32.
        images: Prove it with the images of this folder, in place of the run's own validation images.

    Returns:
        The artifacts' folders, one a format. `predict`, `tlkit verify` and `tlkit serve` take them.

    Raises:
        ArtifactError: A format can't be made, or doesn't answer as the model does; nothing is left then.
        RunError: It is no run folder, or its model is damaged.
        MissingExtraError: The packages of a format aren't installed.
    """
    options = ExportOptions(
        formats=tuple(formats),
        raw=raw,
        features=features,
        out=Path(out) if out is not None else None,
        image_folder=Path(images) if images is not None else None,
        quantize=quantize,
    )
    return export_run(Path(run), options)


def export_run(run: Path, options: ExportOptions) -> list[Path]:
    """Export a run and return the artifacts' folders, one per format. All are written and proved before the first is moved to its place.

    Raises ArtifactError if one of them can't be made or doesn't give the same answers as the run's model.
    """
    _check_options(options)
    _check_head(read_card(find_model_folder(run)))
    classifier, card = load_with_card(run)
    if options.quantize and card.trust.unknown:
        LOG.warning("onnx-%s: unknown is left out: rounding moves its score against the threshold", options.quantize)
        card = replace(card, trust=replace(card.trust, unknown=None, training_sample=None))
    network = Network(classifier, card, card.spec, options.raw, options.features, options.opset)
    out = options.out or run / "export"
    new = next((folder for folder in (*reversed(out.parents), out) if not folder.exists()), None)
    try:
        return _export_into(run, network, options, out)
    except BaseException:
        if new is not None and not any(path.is_file() for path in new.rglob("*")):
            shutil.rmtree(new, ignore_errors=True)
        raise


def _export_into(run: Path, network: Network, options: ExportOptions, out: Path) -> list[Path]:
    """Make the artifacts, prove them, and put all of them in their place."""
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".export-", dir=out) as images, ExitStack() as finished:
        proof = _proof(run, network, options, Path(images))
        made = {}
        for name, write in _writers(run, network, options).items():
            LOG.info("%s: exporting, then proving it with %s", name, proof.what)
            made[out / name] = finished.enter_context(atomic_folder(out / name))
            make_artifact(made[out / name], write, network, proof, options)
        for folder, writing in made.items():
            zipped = folder.with_name(f"{folder.name}.zip")
            if options.zipped:
                pack(writing, zipped)
            elif is_packed(zipped):  # an older one, which would be taken for this export
                pack(writing, zipped)
                LOG.info("%s: written again, as an earlier export was packed into it", zipped)
    return list(made)


def _writers(run: Path, network: Network, options: ExportOptions) -> dict[str, Callable[[Path, Network], Facts]]:
    """Return the function that writes each artifact, by the name of its folder."""
    if options.quantize is None:
        return {name: FORMATS[name] for name in options.formats}
    calibration = calibration_images(run, network, options.overrides)
    return {f"onnx-{options.quantize}": partial(write_quantized, kind=options.quantize, calibration=calibration)}


def make_artifact(folder: Path, write: Callable[[Path, Network], Facts], network: Network, proof: Proof, options: ExportOptions) -> Facts:
    """Write the whole artifact into a new or empty folder and prove it. Returns its facts."""
    folder.mkdir(exist_ok=True)
    facts = {**_facts(network, proof.card), **write(folder, network)}
    if network.spec.mean_picture is not None:
        np.save(folder / MEAN_IMAGE, network.spec.mean_picture)
    write_manifest(folder, facts)
    runtime = runtime_of(folder)
    if options.quantize:
        facts["parity"], recorded = prove_quantized(runtime, proof, options.max_drop)
        trust = _promises_again(facts, proof, recorded)
        generated = answers_to_generated(runtime)
    else:
        facts["parity"], trust = prove(runtime, proof, options.tolerance), proof.card.trust
        recorded, generated = proof.probabilities, generated_answers(proof)
    if facts["format"] == "onnx" and (
        script := consumer_script(network.spec, raw=network.raw, multilabel=bool(facts["thresholds"]), trust=trust)
    ):
        (folder / CONSUMER).write_text(script, encoding="utf-8")
    _write_record(folder, proof, recorded, generated, facts)
    _write_samples(folder, proof, options.samples)
    write_manifest(folder, facts)
    return facts


def _promises_again(facts: Facts, proof: Proof, found: NDArray[np.float32]) -> Trust:
    """Put the promises of a quantized network into its facts in place of those of float32, and log what it has no longer."""
    promised = promises_of(proof, found)
    name = f"onnx-{facts['precision']}"
    for part in ("abstain", "conformal"):
        if facts.pop(part, None) and part not in promised.reasons:
            LOG.info("%s: %s is chosen again, on the network's own answers to %s", name, part, proof.what)
    for part, reason in promised.reasons.items():
        LOG.warning("%s: %s is left out: %s", name, part, reason)
    facts |= promised.trust.to_json()
    return promised.trust


def runtime_of(folder: Path) -> Runtime:
    """Load the runtime of an artifact that was just written here."""
    artifact = read_artifact(folder)
    return trusted_runtime(artifact) if artifact.format in ("torch", "safetensors") else load_runtime(artifact)


def _check_options(options: ExportOptions) -> None:
    for name in options.formats:
        if name not in FORMATS:
            raise ArtifactError(f"--format {name} is unknown.\n  {expected_one_of(name, tuple(FORMATS))}")
    if not 0 < options.tolerance <= 1:  # false for nan
        raise ArtifactError(f"--tolerance {options.tolerance:g} is no difference of probabilities.\n  Expected above 0, up to 1.")
    if options.samples < 0:
        raise ArtifactError("--with-samples must be 0 or more.")
    if options.quantize not in (None, *KINDS):
        raise ArtifactError(f"--quantize {options.quantize} is unknown.\n  {expected_one_of(str(options.quantize), KINDS)}")
    if options.quantize and options.formats != ("onnx",):
        raise ArtifactError("--quantize works only with --format onnx.\n  Export the other formats by a command of their own.")
    if options.quantize and options.image_folder:
        raise ArtifactError("--quantize measures accuracy on the run's own validation images.\n  Leave --images out.")
    if not 0 <= options.max_drop <= 1:
        raise ArtifactError(f"--max-drop {options.max_drop:g} is no share.\n  Expected 0 to 1: 0.01 is one percentage point.")
    if options.push_to_hub and "safetensors" not in options.formats:
        raise ArtifactError("--push-to-hub uploads the safetensors folder, which isn't exported.\n  Add: --format safetensors")
    check_opset(options.opset)
    if {"onnx", "openvino"} & set(options.formats):
        check_onnx_is_installed()
    if "openvino" in options.formats:
        import_openvino()


def _check_head(card: ModelCard) -> None:
    if card.head.kind == "knn":
        raise ArtifactError(
            "A knn head can't be exported: it looks its neighbours up in the training images' features, by scikit-learn.\n"
            "  Fine-tune with `head: {kind: logistic}` or `{kind: svm}`, which become one linear layer, or use `tlkit predict RUN`."
        )


def _proof(run: Path, network: Network, options: ExportOptions, folder: Path) -> Proof:
    if options.image_folder:
        return proof_of_files(image_files(options.image_folder), network.classifier, network.card, options.proof_images, folder)
    if not (run / "split.csv").is_file() and not inner_runs(run):
        raise ArtifactError(
            f"{run} has no split.csv, so there are no validation images to prove the export with.\n"
            "  Name the whole run folder, or a folder of images: --images DIR"
        )
    number = None if options.quantize else options.proof_images  # accuracy is measured on the whole split
    return proof_of_run(run, network.classifier, network.card, number, folder, options.overrides)


def _write_record(folder: Path, proof: Proof, probabilities: NDArray[np.float32], generated: NDArray[np.float32], facts: Facts) -> None:
    """Write proof.json: the probabilities of images by their sha256, so that no image is included unasked.

    They are those of the training code; of a quantized network, its own. facts: of artifact.json, which has no sha256 of itself.
    """
    files, rows = proof.files[:RECORDED], rounded(probabilities[:RECORDED])
    images = [{"sha256": sha256_of(file), "probabilities": row} for file, row in zip(files, rows, strict=True)]
    content = {"pictures": images, "generated": rounded(generated), "facts": {name: facts[name] for name in PROVED_FACTS if name in facts}}
    (folder / PROOF).write_text(json.dumps(content) + "\n", encoding="utf-8")


def _write_samples(folder: Path, proof: Proof, samples: int) -> None:
    for number, file in enumerate(proof.files[: min(samples, RECORDED)]):
        (folder / SAMPLES).mkdir(exist_ok=True)
        shutil.copyfile(file, folder / SAMPLES / f"{number:04d}{file.suffix}")


def _facts(network: Network, card: ModelCard) -> Facts:
    return {
        "name": card.recipe.get("name", card.backbone),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "task": card.task,
        "classes": list(card.classes),
        "thresholds": list(card.thresholds),
        "precision": "float32",
        "preprocessing": _preprocessing(network.spec),
        "backbone": card.backbone,
        "head": card.head.kind,
        "features": card.features,
        "weights": dict(card.weights),
        "metrics": dict(card.metrics),
        **card.trust.to_json(),
        "versions": _versions(),
    }


def _preprocessing(spec: Preprocessing) -> dict[str, Any]:
    """Return the preprocessing as in artifact.json, where a mean image is a file that numpy reads."""
    values = spec.to_json()
    if spec.mean_picture is not None:
        values["mean_picture"]["file"] = MEAN_IMAGE
    return values


def _versions() -> dict[str, str]:
    packages = ("torch", "timm", "onnx", "onnxruntime", "openvino", "numpy", "pillow")
    return {
        "python": platform.python_version(),
        "tlkit": tlkit.__version__,
        **{name: found for name in packages if (found := package_version(name))},
    }


def export_command(run: Path, options: ExportOptions) -> int:
    for folder in export_run(run, options):
        print_text(summary(folder))
        if options.push_to_hub and folder.name == "safetensors":
            print_text(f"  uploaded: {push_to_hub(folder, options.push_to_hub)}")
    return 0


def summary(folder: Path) -> str:
    """Return `runs/x/export/onnx  13.7 MB  200 validation images: same answer for 100 %, a probability differs by 3e-07 at most`."""
    facts: dict[str, Any] = read_artifact(folder).facts  # type: ignore[assignment]
    parity = facts["parity"]
    lines = [
        f"{folder}  {_size(sorted(folder.rglob('*')))}",
        f"  {parity['of']}: the same answer for {parity['agreement']:.2%}, a probability differs by {parity['max_difference']:.1e} at most",
    ]
    if quantization := facts.get("quantization"):
        kind = quantization["kind"]
        sizes, times = quantization["megabytes"], quantization["milliseconds_a_picture"]
        lines.append(
            f"  float32 -> {kind}: {score_label(facts['task'])} {parity['accuracy_in_training_code']:.4f} -> {parity['accuracy']:.4f}, "
            f"{sizes['float32']} -> {sizes[kind]} MB, {times['float32']} -> {times[kind]} ms an image"
        )
    return "\n".join(lines)


def _size(files: Sequence[Path]) -> str:
    return f"{sum(file.stat().st_size for file in files if file.is_file()) / 1e6:.1f} MB"
