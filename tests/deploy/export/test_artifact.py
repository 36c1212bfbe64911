"""An artifact is read whole and unchanged, from a folder or a .zip, or not at all."""

import json
import stat
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tlkit.cli import main
from tlkit.deploy.export.artifact import MANIFEST, pack, read_artifact, write_manifest
from tlkit.errors import ArtifactError

FACTS = {
    "format": "onnx",
    "network": "model.onnx",
    "input": {"name": "pictures", "dtype": "uint8"},
    "task": "multiclass",
    "classes": ["cat", "dog"],
    "thresholds": [],
    "preprocessing": {
        "image_size": 8,
        "resize": "stretch",
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    },
}


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"a network" * 100)
    write_manifest(folder, FACTS)
    return folder


def zip_of(tmp_path: Path, **entries: bytes) -> Path:
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return tmp_path / "made.zip"


def test_a_folder_and_its_zip_say_the_same(artifact: Path, tmp_path: Path) -> None:
    pack(artifact, tmp_path / "packed.zip")
    for path in (artifact, tmp_path / "packed.zip"):
        read = read_artifact(path)
        assert read.classes == ("cat", "dog")
        assert read.raw
        assert read.network.read_bytes() == b"a network" * 100


@pytest.mark.parametrize("command", ["predict", "verify", "serve"])
def test_the_folder_above_an_artifact_names_the_artifact_that_was_meant(
    artifact: Path, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "cat.png")
    images = [str(tmp_path / "cat.png")] if command == "predict" else []
    assert main([command, str(artifact.parent), *images]) == 2
    assert f"Did you mean {artifact}?" in capsys.readouterr().err


def test_a_changed_byte_is_found(artifact: Path) -> None:
    network = artifact / "model.onnx"
    network.write_bytes(network.read_bytes()[:-1] + b"X")
    with pytest.raises(ArtifactError, match=r"model\.onnx is not the file that artifact\.json describes \(its sha256 differs\)"):
        read_artifact(artifact)


def test_a_missing_file_is_named(artifact: Path) -> None:
    (artifact / "model.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"model\.onnx is missing"):
        read_artifact(artifact)


def test_a_zip_that_was_cut_off_is_refused(artifact: Path, tmp_path: Path) -> None:
    pack(artifact, tmp_path / "packed.zip")
    whole = (tmp_path / "packed.zip").read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.zip").write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=r"cut\.zip can't be read as a \.zip"):
            read_artifact(tmp_path / "cut.zip")


def test_a_byte_changed_inside_a_zip_is_found(artifact: Path, tmp_path: Path) -> None:
    pack(artifact, tmp_path / "packed.zip")
    whole = (tmp_path / "packed.zip").read_bytes()
    (tmp_path / "packed.zip").write_bytes(whole.replace(b"a network", b"b network", 1))
    with pytest.raises(ArtifactError):
        read_artifact(tmp_path / "packed.zip")


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/outside.txt", "a/../../outside.txt", "..\\outside.txt", "C:\\outside.txt"])
def test_an_entry_that_would_leave_the_folder_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    made = zip_of(tmp_path, **{MANIFEST: b"{}", name: b"x"})
    with pytest.raises(ArtifactError, match="outside the artifact"):
        read_artifact(made)
    assert not list(tmp_path.rglob("outside.txt"))


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("model.onnx")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ArtifactError, match=r"'model\.onnx' is a link"):
        read_artifact(tmp_path / "made.zip")


def test_a_zip_that_would_grow_a_thousandfold_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.onnx", b"\0" * 50_000_000)
    with pytest.raises(ArtifactError, match="would grow 200-fold or more"):
        read_artifact(tmp_path / "bomb.zip")


@pytest.mark.parametrize("name", ["model.pkl", "model.pth", "model.pt", "pytorch_model.bin", "last.ckpt"])
def test_a_pickle_is_refused_by_name(artifact: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="is a pickle by its name"):
        read_artifact(tmp_path / name)
    (artifact / name).write_bytes(b"x")
    write_manifest(artifact, {**FACTS, "network": name})
    with pytest.raises(ArtifactError, match="is a pickle by its name"):
        read_artifact(artifact)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"artifact": 2}, "is of version 2; this tlkit reads up to 1"),
        ({"sha256": {"../model.onnx": "0"}}, "names a file outside the artifact"),
        ({"sha256": {}}, "has no sha256 of its network"),
        ({"thresholds": [0.5]}, "has 1 thresholds for 2 classes"),
        ({"classes": 3}, "can't be used: 'int' object is not iterable"),
        ({"preprocessing": {}}, "can't be used: it has no 'mean'"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(artifact: Path, change: dict[str, object], message: str) -> None:
    facts = json.loads((artifact / MANIFEST).read_text())
    (artifact / MANIFEST).write_text(json.dumps({**facts, **change}))
    with pytest.raises(ArtifactError, match=message):
        read_artifact(artifact)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"artifact": "one"}', "\udcff"])
def test_a_manifest_that_is_no_json_object_is_refused(artifact: Path, text: str) -> None:
    (artifact / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ArtifactError, match=r"artifact\.json can't be used"):
        read_artifact(artifact)
