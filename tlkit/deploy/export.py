"""`tlkit export RUN`: a model folder -> artifacts that have been shown to answer as it does."""

import os
import platform
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tlkit
from tlkit.data.preprocess import Preprocessing
from tlkit.deploy.artifact import pack, write_manifest
from tlkit.deploy.onnx_export import DEFAULT_OPSET, check_onnx_is_installed, check_opset, onnx_model, with_outputs, write_onnx
from tlkit.deploy.program import Shipped, exported_program
from tlkit.errors import ArtifactError, expected_one_of
from tlkit.models.checkpoint import ModelCard, find_model_folder, load_model, read_card
from tlkit.models.classifier import Classifier

FORMATS = ("onnx",)


@dataclass(frozen=True)
class Wanted:
    """raw: the network takes uint8 pictures, normalised inside. out: the folder that gets a folder a format; by default RUN/export."""

    formats: tuple[str, ...] = ("onnx",)
    raw: bool = True
    features: bool = False
    opset: int = DEFAULT_OPSET
    out: Path | None = None
    zipped: bool = False


def export_run(run: Path, wanted: Wanted) -> list[Path]:
    """The artifacts' folders, one a format. All are made and proved before the first is put in its place.

    Raises ArtifactError if one of them can't be made or doesn't answer as the run's model does.
    """
    _check_wanted(wanted)
    _check_head(read_card(find_model_folder(run)))
    classifier, card = load_model(run)
    if card.mean_picture is not None and not wanted.raw:
        raise ArtifactError(
            f"{run} was trained with normalize: pixelwise, and its mean picture goes into the network alone.\n"
            "  Export it with the normalisation inside, as it is by default."
        )
    out = wanted.out or run / "export"
    out.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".export-", dir=out))
    try:
        for name in wanted.formats:
            (staging / name).mkdir()
            facts = {**_facts(run, card, wanted), **_write_onnx(staging / name, classifier, card, wanted)}
            write_manifest(staging / name, facts)
        return [_put_in_place(staging / name, out / name, zipped=wanted.zipped) for name in wanted.formats]
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_wanted(wanted: Wanted) -> None:
    for name in wanted.formats:
        if name not in FORMATS:
            raise ArtifactError(f"--format {name} is unknown.\n  {expected_one_of(name, FORMATS)}")
    check_opset(wanted.opset)
    check_onnx_is_installed()


def _check_head(card: ModelCard) -> None:
    if card.head.kind == "knn":
        raise ArtifactError(
            "A knn head can't be exported: it looks its neighbours up in the training pictures' features, by scikit-learn.\n"
            "  Fine-tune with `head: {kind: logistic}` or `{kind: svm}`, which become one linear layer, or use `tlkit predict RUN`."
        )


def _write_onnx(folder: Path, classifier: Classifier, card: ModelCard, wanted: Wanted) -> dict[str, Any]:
    """Writes model.onnx, and returns what artifact.json says about it."""
    spec = Preprocessing.from_json(card.preprocessing, card.mean_picture)
    shipped = Shipped(classifier, spec.normalize if wanted.raw else None, multilabel=card.task == "multilabel")
    model = onnx_model(exported_program(shipped, spec.image_size, spec.channels), wanted.opset)
    model = with_outputs(model, ("probabilities", *(("features",) if wanted.features else ())))
    write_onnx(model, folder / "model.onnx")
    return {"format": "onnx", "network": "model.onnx", "opset": wanted.opset, "outputs": [_output(value) for value in model.graph.output]}


def _output(value: Any) -> dict[str, Any]:
    dims = value.type.tensor_type.shape.dim
    return {"name": value.name, "dtype": "float32", "shape": [dim.dim_param or dim.dim_value for dim in dims]}


def _facts(run: Path, card: ModelCard, wanted: Wanted) -> dict[str, Any]:
    spec = Preprocessing.from_json(card.preprocessing, card.mean_picture)
    size, channels = spec.image_size, spec.channels
    entrance = (
        {"name": "pictures", "dtype": "uint8", "layout": "NHWC", "shape": ["batch", size, size, channels]}
        if wanted.raw
        else {"name": "pictures", "dtype": "float32", "layout": "NCHW", "shape": ["batch", channels, size, size]}
    )
    return {
        "name": card.recipe.get("name", run.name),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "task": card.task,
        "classes": list(card.classes),
        "thresholds": list(card.thresholds),
        "precision": "float32",
        "input": entrance,
        "preprocessing": dict(card.preprocessing),
        "backbone": card.backbone,
        "head": card.head.kind,
        "weights": dict(card.weights),
        "metrics": dict(card.metrics),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    import onnx
    import onnxruntime
    import PIL
    import torch

    return {
        "python": platform.python_version(),
        "tlkit": tlkit.__version__,
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "pillow": PIL.__version__,
    }


def _put_in_place(made: Path, target: Path, *, zipped: bool) -> Path:
    """Renames `made` to `target`, in place of what an earlier export put there."""
    made.chmod(0o755)
    if zipped:
        pack(made, target.with_suffix(".zip"))
    if target.exists():
        shutil.rmtree(target)
    os.replace(made, target)
    return target


def export_command(run: Path, wanted: Wanted) -> int:
    for folder in export_run(run, wanted):
        print(f"{folder}  {_size(sorted(folder.iterdir()))}")
    return 0


def _size(files: Sequence[Path]) -> str:
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"
