"""A network that doesn't belong to its artifact.json, or isn't one, is refused with a clear message."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.deploy.export.test_artifact import FACTS
from tlkit.cli import main
from tlkit.deploy.export.artifact import MANIFEST, write_manifest
from tlkit.deploy.export.runtime import load_runtime
from tlkit.deploy.export.verify import PROVED_FACTS
from tlkit.errors import ArtifactError

FACTS_8 = {**FACTS, "parity": {"tolerance": 1e-4}, "outputs": [{"name": "probabilities"}]}


def network(classes: int = 2) -> onnx.ModelProto:
    """uint8 [B, 8, 8, 3] -> the same probabilities for every image."""
    weights = onnx.numpy_helper.from_array(np.zeros((192, classes), np.float32), "weights")
    shape = onnx.numpy_helper.from_array(np.array([-1, 192]), "shape")
    nodes = [
        helper.make_node("Cast", ["pictures"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["numbers", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    entrance = helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["batch", 8, 8, 3])
    answer = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", classes])
    graph = helper.make_graph(nodes, "g", [entrance], [answer], [weights, shape])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def artifact(folder: Path, content: bytes, **facts: object) -> Path:
    folder.mkdir()
    (folder / "model.onnx").write_bytes(content)
    (folder / "proof.json").write_text(json.dumps({"pictures": [], "generated": [[0.5, 0.5]] * 3}))
    write_manifest(folder, {**FACTS_8, **facts})
    return folder


def test_a_network_that_fits_answers(tmp_path: Path) -> None:
    made = artifact(tmp_path / "a", network().SerializeToString())
    answers = load_runtime(made).run(np.zeros((3, 8, 8, 3), np.uint8))["probabilities"]
    np.testing.assert_allclose(answers, 0.5)
    assert main(["verify", str(made)]) == 0


def test_classes_that_do_not_match_the_weights_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = artifact(tmp_path / "a", network(classes=5).SerializeToString())
    assert main(["verify", str(made)]) == 2
    assert "answers for 5 classes, but artifact.json names 2" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"no network", network().SerializeToString()[:-100]])
def test_a_file_that_is_no_network_is_reported(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(artifact(tmp_path / "a", content))]) == 2
    assert "model.onnx can't be read by onnxruntime" in capsys.readouterr().err


def test_weights_outside_the_artifact_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(192 * 2 * 4))
    model = network()
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../secret.bin"), ("length", str(192 * 2 * 4))):
        weights.external_data.add(key=key, value=value)
    made = artifact(tmp_path / "a", model.SerializeToString())
    with pytest.raises(ArtifactError, match=r"can't be read by onnxruntime"):
        load_runtime(made)


def test_a_network_that_answers_otherwise_fails_verification(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = artifact(tmp_path / "a", network().SerializeToString())
    (made / "proof.json").write_text(json.dumps({"pictures": [], "generated": [[0.9, 0.1]] * 3}))
    write_manifest(made, FACTS_8)
    assert main(["verify", str(made)]) == 2
    assert "doesn't answer as the model that it was made from" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "value"), [("classes", ["dog", "cat"]), ("abstain", None), ("thresholds", [0.1, 0.2])])
def test_a_manifest_that_was_changed_after_the_export_fails_verification(
    tmp_path: Path, name: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = {**FACTS_8, "abstain": {"threshold": 0.7, "error": 0.1, "coverage": 0.8, "pictures": 100}}
    made = artifact(tmp_path / "a", network().SerializeToString(), **facts)
    assert main(["verify", str(made)]) == 0
    assert "can't be compared: an earlier version wrote proof.json" in capsys.readouterr().out
    record = {"pictures": [], "generated": [[0.5, 0.5]] * 3, "facts": {name: facts[name] for name in PROVED_FACTS if name in facts}}
    (made / "proof.json").write_text(json.dumps(record))
    write_manifest(made, facts)
    assert main(["verify", str(made)]) == 0
    changed = {key: content for key, content in {**facts, name: value}.items() if content is not None}
    write_manifest(made, changed)
    assert main(["verify", str(made)]) == 2
    assert f"artifact.json was changed after the export: {name} differ" in capsys.readouterr().err


@pytest.mark.parametrize(
    "proof",
    [
        "",
        "[]",
        '{"pictures": [], "generated": [[0.5, 0.5]], "facts": 1}',
        '{"pictures": [], "generated": []}',
        '{"pictures": [], "generated": [[1.0]]}',
    ],
)
def test_a_record_that_makes_no_sense_is_reported(tmp_path: Path, proof: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = artifact(tmp_path / "a", network().SerializeToString())
    (made / "proof.json").write_text(proof)
    write_manifest(made, FACTS_8)
    assert main(["verify", str(made)]) == 2
    assert "proof.json" in capsys.readouterr().err


def test_a_missing_runtime_is_named_with_its_extra(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = artifact(tmp_path / "a", network().SerializeToString())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        assert main(["verify", str(made)]) == 2
    assert "pip install 'tlkit[export]'" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["openvino", "onnxruntime"])
def test_a_runtime_is_imported_without_the_part_that_reports(package: str, tmp_path: Path) -> None:
    code = (
        "import socket, sys\n"
        "def refuse(*arguments, **options): print('network'); raise OSError('no network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        f"from tlkit.deploy.export.runtime import import_{package}\n"
        f"import_{package}()\n"
        "print(sorted(name for name in sys.modules if name.startswith('openvino_telemetry')))"
    )
    home = {"HOME": str(tmp_path), "PATH": "/usr/bin", "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=home)
    assert done.stdout == "[]\n"
    assert not list(tmp_path.iterdir())  # where it would keep who we are


def test_a_manifest_without_parity_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = artifact(tmp_path / "a", network().SerializeToString())
    facts = json.loads((made / MANIFEST).read_text())
    del facts["parity"]
    (made / MANIFEST).write_text(json.dumps(facts))
    assert main(["verify", str(made)]) == 2
    assert "artifact.json doesn't say how it was proved" in capsys.readouterr().err
