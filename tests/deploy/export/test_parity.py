"""A wrong export is refused, and the part that is wrong is named."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from tlkit.data.preprocess import Preprocessing
from tlkit.deploy.export import export
from tlkit.deploy.export.artifact import MANIFEST, write_manifest
from tlkit.deploy.export.export import ExportOptions, export_run, make_artifact, runtime_of
from tlkit.deploy.export.formats import Network, write_onnx_format, write_openvino_format, write_torch_format
from tlkit.deploy.export.parity import prove
from tlkit.deploy.export.proof import Proof, proof_of_files
from tlkit.deploy.export.runtime import Runtime
from tlkit.errors import ArtifactError
from tlkit.models.backbones import create_backbone
from tlkit.models.classifier import Classifier
from tlkit.models.model_folder import ModelCard, load_with_card, write_model_folder
from tlkit.recipe.fields.model import Head

SPEC = {"image_size": 32, "resize": "crop", "crop_pct": 1.0, "interpolation": "bicubic", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Proof:
    folder = tmp_path_factory.mktemp("parity")
    draws = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for i in range(12):
        image = Image.fromarray(draws.integers(0, 256, (30 + i, 50 - i, 3), dtype=np.uint8))
        if i == 5:
            image.putalpha(128)
        image.save(folder / "pictures" / f"{i:02d}.png")
    torch.manual_seed(0)
    classifier = Classifier(create_backbone("lenet5", 32), Head(), 3, 32)
    # Larger numbers than a new head's, so that answers differ from image to image.
    with torch.no_grad():
        classifier.head[1].weight.mul_(50)
    write_model_folder(folder / "model", classifier, ModelCard("lenet5", Head(), ("cat", "dog", "owl"), SPEC, {}, {}, {}))
    classifier, card = load_with_card(folder)
    return proof_of_files(sorted((folder / "pictures").iterdir()), classifier, card, None, folder)


@pytest.fixture(scope="module")
def run(proof: Proof, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model has been exported: with raw images as its input, and with normalised ones into float/."""
    folder = tmp_path_factory.mktemp("run")
    write_model_folder(folder / "model", proof.classifier, proof.card)
    export_run(folder, ExportOptions(image_folder=proof.files[0].parent, zipped=True))
    export_run(folder, ExportOptions(image_folder=proof.files[0].parent, raw=False, out=folder / "float"))
    return folder


@pytest.fixture(params=["raw", "float"])
def artifact(request: pytest.FixtureRequest, run: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(run / {"raw": "export", "float": "float"}[request.param] / "onnx", tmp_path / "onnx"))


def change_facts(artifact: Path, preprocessing: dict[str, object]) -> None:
    facts = json.loads((artifact / MANIFEST).read_text())
    write_manifest(artifact, {**facts, "preprocessing": {**facts["preprocessing"], **preprocessing}})


def refusal(artifact: Path, proof: Proof) -> str:
    with pytest.raises(ArtifactError) as raised:
        prove(runtime_of(artifact), proof, 1e-4)
    return str(raised.value)


def reverse_channels(file: Path) -> None:
    """The network takes BGR for RGB."""
    model = onnx.load(file)
    reverse = onnx.helper.make_node("Gather", ["pictures", "order"], ["reversed"], axis=3)
    for node in model.graph.node:
        node.input[:] = ["reversed" if name == "pictures" else name for name in node.input]
    model.graph.node.insert(0, reverse)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 1, 0]), "order"))
    onnx.save(model, file)


def multiply_the_last_weights(file: Path, factor: float) -> None:
    model = onnx.load(file)
    for weight in (tensor for tensor in model.graph.initializer if len(tensor.dims) == 2):
        weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(factor), weight.name))
    onnx.save(model, file)


def test_the_export_as_it_is_passes(artifact: Path, proof: Proof) -> None:
    measured = prove(runtime_of(artifact), proof, 1e-4)
    assert measured["agreement"] == 1
    assert measured["max_difference"] < 1e-5


@pytest.mark.parametrize("wrong", [{"resize": "stretch"}, {"resize": "pad"}, {"interpolation": "bilinear"}, {"crop_pct": 0.8}])
def test_a_wrong_resize_is_named(artifact: Path, proof: Proof, wrong: dict[str, object]) -> None:
    change_facts(artifact, wrong)
    assert "What differs first is: resize (" in (said := refusal(artifact, proof))
    assert "Equal before it: decode." in said


def test_another_ground_under_transparent_images_is_named(artifact: Path, proof: Proof) -> None:
    change_facts(artifact, {"background": [0, 0, 0]})
    assert "What differs first is: decode (" in (said := refusal(artifact, proof))
    assert "05.png" in said


def test_a_decoder_with_its_channels_in_reverse_is_named(artifact: Path, proof: Proof, monkeypatch: pytest.MonkeyPatch) -> None:
    # OpenCV's reader gives BGR: the most frequent of such mistakes.
    monkeypatch.setattr(Runtime, "decode", lambda runtime, file: cv2.imread(str(file)))
    assert "What differs first is: decode (the channels are in reverse order, BGR for RGB; image" in refusal(artifact, proof)


@pytest.mark.parametrize("artifact", ["raw"], indirect=True)
def test_a_network_that_takes_its_channels_in_reverse_is_named(artifact: Path, proof: Proof) -> None:
    reverse_channels(artifact / "model.onnx")
    change_facts(artifact, {})
    assert "What differs first is: normalise (the channels are in reverse order" in (said := refusal(artifact, proof))
    assert "Equal before it: decode, resize." in said


def test_a_wrong_std_in_the_network_is_named(proof: Proof, tmp_path: Path) -> None:
    network = Network(proof.classifier, proof.card, replace(proof.preprocessing, std=(1.0, 1.0, 1.0)))
    with pytest.raises(ArtifactError, match=r"What differs first is: normalise .*\n?.*Equal before it: decode, resize\."):
        make_artifact(tmp_path / "onnx", write_onnx_format, network, proof, ExportOptions())


@pytest.mark.parametrize("artifact", ["float"], indirect=True)
@pytest.mark.parametrize("wrong", [{"std": [1.0, 1.0, 1.0]}, {"mean": [0.485, 0.456, 0.406]}])
def test_a_wrong_mean_or_std_of_a_runtime_that_normalises_itself_is_named(artifact: Path, proof: Proof, wrong: dict[str, object]) -> None:
    change_facts(artifact, wrong)
    assert "What differs first is: normalise (" in (said := refusal(artifact, proof))
    assert "Equal before it: decode, resize." in said


def test_wrong_weights_are_named(artifact: Path, proof: Proof) -> None:
    multiply_the_last_weights(artifact / "model.onnx", 1.5)
    change_facts(artifact, {})
    assert "What differs first is: network (" in (said := refusal(artifact, proof))
    assert "Equal before it: decode, resize, normalise." in said


def spoil(patch: pytest.MonkeyPatch, what: str, right: Path) -> None:
    """One thing goes wrong in an export from now on. right: an artifact that is as it should be."""

    def write(folder: Path, network: Network) -> dict[str, object]:
        if what == "mean":
            return write_onnx_format(folder, replace(network, spec=replace(network.spec, mean=(0.485, 0.456, 0.406))))
        shutil.copy(right / "model.onnx", folder)
        facts = json.loads((right / MANIFEST).read_text())
        if what == "channels":
            reverse_channels(folder / "model.onnx")
        if what == "weights":
            multiply_the_last_weights(folder / "model.onnx", 1.5)
        return {name: facts[name] for name in ("format", "network", "opset", "input", "outputs")}

    if what == "decode":
        patch.setattr(Runtime, "decode", lambda runtime, file: cv2.imread(str(file)))
    if what == "resize":
        patch.setattr(export, "_preprocessing", lambda spec: {**spec.to_json(), "resize": "stretch"})
    patch.setitem(export.FORMATS, "onnx", write)


@pytest.mark.parametrize(
    ("what", "part"),
    [("decode", "decode"), ("resize", "resize"), ("mean", "normalise"), ("channels", "normalise"), ("weights", "network")],
)
def test_nothing_is_left_behind_and_an_earlier_export_stays(
    proof: Proof, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, part: str
) -> None:
    wanted = ExportOptions(image_folder=proof.files[0].parent, zipped=True)
    before = {file: file.read_bytes() for file in (run / "export").rglob("*") if file.is_file()}
    spoil(monkeypatch, what, run / "export/onnx")
    with pytest.raises(ArtifactError, match=rf"so nothing was exported(.|\n)*What differs first is: {part} \("):
        export_run(run, wanted)
    assert {file: file.read_bytes() for file in (run / "export").rglob("*") if file.is_file()} == before
    with pytest.raises(ArtifactError):
        export_run(run, replace(wanted, out=tmp_path / "new"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("write", [write_openvino_format, write_torch_format])
def test_where_a_network_cannot_be_looked_into_both_parts_are_named(
    proof: Proof, tmp_path: Path, write: Callable[[Path, Network], dict[str, object]]
) -> None:
    if write is write_openvino_format:
        pytest.importorskip("openvino")
    network = Network(proof.classifier, proof.card, replace(proof.preprocessing, mean=(0.485, 0.456, 0.406)))
    with pytest.raises(ArtifactError, match=r"What differs first is: normalise or network \(.*Equal before it: decode, resize\."):
        make_artifact(tmp_path / "it", write, network, proof, ExportOptions())


def test_the_spec_that_is_tampered_with_is_the_one_that_the_runtime_uses(artifact: Path) -> None:
    change_facts(artifact, {"resize": "stretch"})
    assert runtime_of(artifact).preprocessing == replace(Preprocessing.from_json(SPEC), resize="stretch")


def test_a_difference_that_may_be_rounding_says_how_to_allow_it(artifact: Path, proof: Proof) -> None:
    multiply_the_last_weights(artifact / "model.onnx", 1.0003)
    change_facts(artifact, {})
    with pytest.raises(ArtifactError, match="If it may: --tolerance 1e-3"):
        prove(runtime_of(artifact), proof, 1e-6)
