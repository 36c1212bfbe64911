"""`tlkit export` as a user runs it: what it writes answers as the run's model does, and without torch."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tlkit.cli import main
from tlkit.commands.deploy import export_arguments
from tlkit.data.preprocess import Preprocessing
from tlkit.data.splits.manifest import samples_of_run
from tlkit.deploy.export.export import ExportOptions
from tlkit.deploy.export.onnx_export import OPSETS
from tlkit.deploy.export.runtime import load_runtime
from tlkit.models.backbones import create_backbone
from tlkit.models.classifier import Classifier
from tlkit.models.inference.trust import Abstain, Conformal
from tlkit.models.model_folder import ModelCard, load_with_card, update_trust, write_model_folder
from tlkit.recipe.fields.model import Head
from tlkit.recipe.load import load_recipe
from tlkit.training.finetune import run_recipe

SPEC = {"image_size": 32, "resize": "crop", "crop_pct": 0.9, "interpolation": "bicubic", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}

# Blocks what a machine that only serves doesn't have, then runs tlkit.
WITHOUT_TORCH = """
import sys
for name in ("torch", "timm", "lightning", "torchvision", "pydantic", "safetensors", "sklearn", "scipy", "onnx", "onnxscript"):
    sys.modules[name] = None
from tlkit.cli import main
sys.exit(main(sys.argv[1:]))
"""

RECIPE = """
name: colours
data: {{source: {{{source}}}, image_size: 32, resize: {resize}, normalize: dataset, batch_size: 8, validation: 0.4, test: 0.2}}
model: {{backbone: lenet5, weights: random}}
phases:
  - {{train: all, epochs: 1, lr: 1e-2}}
"""


def noisy(draws: np.random.Generator, colour: tuple[int, int, int]) -> np.ndarray:
    height, width = draws.integers(20, 70, 2)
    return np.clip(np.array(colour) + draws.normal(0, 60, (height, width, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was fine-tuned on 30 noisy files of each of three colours."""
    folder = tmp_path_factory.mktemp("colours")
    draws = np.random.default_rng(0)
    for name, colour in {"blue": (40, 60, 200), "green": (30, 180, 60), "red": (210, 40, 50)}.items():
        (folder / "pictures" / name).mkdir(parents=True)
        for i in range(30):
            Image.fromarray(noisy(draws, colour)).save(folder / "pictures" / name / f"{i:02d}.png")
    (folder / "recipe.yaml").write_text(RECIPE.format(source=f"folder: {folder / 'pictures'}", resize="crop"))
    with umask(0o027):
        return run_recipe(load_recipe(str(folder / "recipe.yaml")), out=folder / "run")


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in every format."""
    out = tmp_path_factory.mktemp("exported")
    words = ["--format", "onnx", "torch,safetensors", "openvino", "--out", str(out), "--features", "--zip", "--with-samples", "2"]
    with umask(0o027):
        assert main(["export", str(run), *words]) == 0
    return out


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def test_all_that_a_run_and_an_export_write_follows_the_umask(run: Path, exported: Path) -> None:
    """model.safetensors had mode 0600 beside files of 0644, so that another user could not serve it."""
    written = [path for folder in (run, exported) for path in folder.rglob("*")]
    assert {oct(path.stat().st_mode & 0o777) for path in written if path.is_dir()} == {"0o750"}
    assert [path for path in written if path.is_file() and path.stat().st_mode & 0o777 != 0o640] == []
    assert {"model.safetensors", "metrics.json", "report.html", "model.onnx", "model.xml", "onnx.zip"} <= {path.name for path in written}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of several sizes and modes."""
    folder = tmp_path_factory.mktemp("pictures")
    draws = np.random.default_rng(0)
    files = []
    for i, mode in enumerate(("RGB", "L", "RGBA", "P", "CMYK", "RGB")):
        files.append(folder / f"{i}.{'jpg' if mode == 'CMYK' else 'png'}")
        Image.fromarray(noisy(draws, (120, 120, 120))).convert(mode).save(files[-1])
    return files


def model_folder(folder: Path, head: Head, spec: dict[str, object] | None = None) -> Path:
    """Save a network that is traced in a moment, for tests of what comes before and after it."""
    torch.manual_seed(0)
    backbone = "test_resnet" if head.kind == "locally_connected" else "lenet5"  # which has no map to connect to
    spec = {**SPEC, **(spec or {})}
    channels = len(spec["mean"])  # type: ignore[arg-type]
    classifier = Classifier(create_backbone(backbone, 32, channels=channels), head, 3, 32)
    write_model_folder(folder / "model", classifier, ModelCard(backbone, head, ("cat", "dog", "owl"), spec, {}, {}, {}))
    return folder


def by_torch(folder: Path, files: list[Path]) -> np.ndarray:
    """Probabilities by the model folder, [N, K]."""
    classifier, card = load_with_card(folder)
    spec = Preprocessing.from_json(card.preprocessing, card.mean_picture)
    images = torch.from_numpy(np.stack([spec.read(file) for file in files])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        probabilities: np.ndarray = classifier(spec.normalize(images)).softmax(1).numpy()
    return probabilities


def facts_of(artifact: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((artifact / "artifact.json").read_text())
    return found


# A head and what comes before the network don't know of each other. A linear one is exported both ways below.
@pytest.mark.parametrize(
    ("kind", "entrance"), [("mlp", "--raw"), ("cosine", "--float"), ("locally_connected", "--raw"), ("svm", "--float")]
)
def test_an_exported_head_answers_as_torch_does(tmp_path: Path, images: list[Path], kind: str, entrance: str) -> None:
    folder = model_folder(tmp_path, Head(kind=kind))
    assert main(["export", str(folder), entrance, "--images", str(images[0].parent)]) == 0
    np.testing.assert_allclose(load_runtime(folder / "export/onnx").probabilities(images), by_torch(folder, images), atol=1e-5)


def test_the_convolutions_alone_answer_as_torch_does_in_every_format(tmp_path: Path, images: list[Path]) -> None:
    torch.manual_seed(0)
    classifier = Classifier(create_backbone("vgg11", 32, features="conv"), Head(), 3, 32)
    card = ModelCard("vgg11", Head(), ("cat", "dog", "owl"), SPEC, {}, {}, {}, features="conv")
    write_model_folder(tmp_path / "model", classifier, card)
    formats = ("onnx", "openvino", "torch", "safetensors")
    assert main(["export", str(tmp_path), "--format", *formats, "--images", str(images[0].parent)]) == 0
    for name in formats:
        assert facts_of(tmp_path / "export" / name)["parity"]["max_difference"] < 1e-5
    assert "`tlkit.load_model('FOLDER')`" in (tmp_path / "export/safetensors/README.md").read_text()


def test_an_export_for_grey_images_answers_as_torch_does(tmp_path: Path, images: list[Path]) -> None:
    folder = model_folder(tmp_path, Head(), spec={"mean": [0.5], "std": [0.25], "resize": "stretch"})
    assert main(["export", str(folder), "--images", str(images[0].parent)]) == 0
    np.testing.assert_allclose(load_runtime(folder / "export/onnx").probabilities(images), by_torch(folder, images), atol=1e-5)


def test_every_format_of_a_run_is_proved_with_its_validation_files(run: Path, exported: Path) -> None:
    formats = ("onnx", "openvino", "safetensors", "torch")
    assert sorted(entry.name for entry in exported.iterdir()) == sorted([*formats, *(f"{name}.zip" for name in formats)])
    for name in formats:
        facts = facts_of(exported / name)
        parity = facts["parity"]
        assert parity["of"] == "36 validation images"
        assert parity["agreement"] == 1
        assert parity["max_difference"] < 1e-5
        assert parity["accuracy_difference"] == 0
        assert facts["classes"] == ["blue", "green", "red"]
        with zipfile.ZipFile(exported / f"{name}.zip") as archive:
            assert set(archive.namelist()) == {"artifact.json", *facts["sha256"]}
    assert [output["name"] for output in facts_of(exported / "onnx")["outputs"]] == ["probabilities", "features", "unknown"]
    for name in ("onnx", "openvino", "safetensors"):
        assert main(["predict", str(exported / name), str(run.parent / "pictures/red"), "--format", "csv"]) == 0


def test_an_older_zip_beside_the_folder_is_written_again_and_another_file_of_its_name_is_left(
    tmp_path: Path, images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model_folder(tmp_path, Head())
    zipped = folder / "export/onnx.zip"
    words = ["export", str(folder), "--images", str(images[0].parent)]
    assert main([*words, "--zip"]) == 0
    assert main([*words, "--features"]) == 0
    assert f"{zipped}: written again" in capsys.readouterr().err
    with zipfile.ZipFile(zipped) as archive:
        assert archive.read("artifact.json") == (folder / "export/onnx/artifact.json").read_bytes()
    zipped.write_bytes(b"mine")
    assert main(words) == 0
    assert zipped.read_bytes() == b"mine"


def test_a_program_of_torch_takes_any_number_of_images(exported: Path) -> None:
    program = torch.export.load(exported / "torch/model.pt2").module()
    for number in (1, 5):
        probabilities, features, unknown = program(torch.zeros(number, 32, 32, 3, dtype=torch.uint8))
        assert probabilities.shape == (number, 3)
        assert features.shape == (number, 84)
        assert unknown.shape == (number, 1)


def test_verify_repeats_the_comparison_where_torch_is_not_installed(run: Path, exported: Path) -> None:
    for artifact, name in ((exported / "onnx.zip", "zip"), (exported / "onnx", "folder")):
        words = ["verify", str(artifact), "--images", str(run.parent / "pictures")]
        done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{name}: {done.stderr}"
        assert "generated images: the same answer for 100.00%" in done.stdout
        assert "artifact.json: the classes, thresholds and preprocessing of the export" in done.stdout
        assert "2 of the 36 recorded images" in done.stdout
        assert "36 of the 36 recorded images" in done.stdout


def test_verify_of_other_images_says_so(exported: Path, images: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(exported / "onnx"), "--images", str(images[0].parent)]) == 2
    assert "has none of the 36 images that the export was proved with" in capsys.readouterr().err


def test_a_mean_image_goes_along(tmp_path: Path, images: list[Path]) -> None:
    mean_picture = np.random.default_rng(0).random((32, 32, 3), np.float32)
    spec = Preprocessing.from_json({**SPEC, "resize": "stretch", "crop_pct": 1.0}).with_mean_picture(mean_picture)
    classifier = Classifier(create_backbone("lenet5", 32), Head(), 3, 32)
    card = ModelCard("lenet5", Head(), ("cat", "dog", "owl"), spec.to_json(), {}, {}, {}, mean_picture=mean_picture)
    write_model_folder(tmp_path / "model", classifier, card)
    plain = [file for file in images if Image.open(file).mode == "RGB"]
    expected = by_torch(tmp_path, plain)
    for entrance in ("--raw", "--float"):
        words = ["export", str(tmp_path), entrance, "--format", "onnx,safetensors", "--images", str(images[0].parent)]
        assert main(words) == 0
        np.testing.assert_allclose(load_runtime(tmp_path / "export/onnx").probabilities(plain), expected, atol=1e-5)
        script = [sys.executable, str(tmp_path / "export/onnx/predict.py"), *map(str, plain)]
        said = subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()
        for line, row in zip(said, expected, strict=True):
            assert float(line.rsplit(" ", 1)[1]) == pytest.approx(row.max(), abs=1e-4)
    (tmp_path / "export/onnx/mean_picture.npy").write_bytes(b"x")
    assert main(["verify", str(tmp_path / "export/onnx")]) == 2


@pytest.mark.parametrize("entrance", ["--raw", "--float"])
@pytest.mark.parametrize("spec", [{}, {"resize": "pad", "crop_pct": 1.0}, {"resize": "stretch", "crop_pct": 1.0}])
def test_an_export_and_its_script_without_tlkit_answer_as_torch_does(
    tmp_path: Path, images: list[Path], entrance: str, spec: dict[str, object]
) -> None:
    folder = model_folder(tmp_path, Head(), spec=spec)
    assert main(["export", str(folder), entrance, "--images", str(images[0].parent)]) == 0
    np.testing.assert_allclose(load_runtime(folder / "export/onnx").probabilities(images), by_torch(folder, images), atol=1e-5)
    script = folder / "export/onnx/predict.py"
    assert len(script.read_text().splitlines()) <= 17
    plain = [file for file in images if Image.open(file).mode in ("RGB", "L", "P")]
    code = "import runpy, sys\nfor name in ('torch', 'tlkit', 'timm'): sys.modules[name] = None\n"
    code += f"sys.path[0] = {str(script.parent)!r}\nrunpy.run_path({str(script)!r})"
    done = subprocess.run([sys.executable, "-c", code, *map(str, plain)], capture_output=True, text=True, check=True, cwd=tmp_path)
    expected = by_torch(folder, plain)
    for line, row in zip(done.stdout.splitlines(), expected, strict=True):
        _, name, probability = line.rsplit(" ", 2)
        assert name == ("cat", "dog", "owl")[row.argmax()]
        assert float(probability) == pytest.approx(row.max(), abs=1e-4)
    if entrance == "--raw" and not spec:
        check_other_encodings_and_missing_facts(script, plain[0])


def check_other_encodings_and_missing_facts(script: Path, image: Path) -> None:
    """Run the script where output is ASCII, for an image that isn't there, for none, and without the file of its facts."""
    copied = script.parent / "日本.png"
    Image.open(image).save(copied)
    command, ascii_only = [sys.executable, str(script), str(copied)], {**os.environ, "PYTHONIOENCODING": "ascii"}
    assert rb"\u65e5" in subprocess.run(command, capture_output=True, check=True, env=ascii_only).stdout
    done = subprocess.run([*command, "nowhere.png"], capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stdout.splitlines()), len(done.stderr.splitlines())) == (1, 1, 1)
    assert done.stderr.startswith("FileNotFoundError: ")
    assert "nowhere.png" in done.stderr
    assert subprocess.run(command[:2], capture_output=True, text=True, check=False).stderr == "usage: python predict.py IMAGE...\n"
    (script.parent / "artifact.json").unlink()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "predict.py has no artifact.json beside it: copy the whole folder.\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "onx"], "--format onx is unknown.\n  Expected one of: onnx, torch, safetensors, openvino. Did you mean 'onnx'?"),
        (["--opset", "12"], "--opset 12 can't be written.\n  Expected 18 to 23"),
        (["--opset", "99"], "--opset 99 can't be written.\n  Expected 18 to 23"),
        *((["--tolerance", value], f"--tolerance {value} is no difference of probabilities") for value in ("0", "nan", "inf", "5")),
        (["--images", "nowhere"], "--images nowhere is no folder"),
        (["--quantize", "int4"], "--quantize int4 is unknown.\n  Expected one of: int8, float16. Did you mean 'int8'?"),
        (["--quantize", "int8", "--format", "torch"], "--quantize works only with --format onnx"),
        (["--quantize", "int8", "--max-drop", "2"], "--max-drop 2 is no share.\n  Expected 0 to 1: 0.01 is one percentage point."),
        (["--push-to-hub", "me/it"], "--push-to-hub uploads the safetensors folder, which isn't exported"),
        (["--pictures", "0"], "'0' is not a whole number of at least 1"),
    ],
)
def test_what_cannot_be_exported_is_reported(
    run: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--out", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_int8_and_float16_keep_to_the_accuracy_that_is_allowed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("int8", "float16"):
        assert main(["export", str(run), "--quantize", kind, "--out", str(tmp_path), "--max-drop", "0.1"]) == 0
        facts = facts_of(tmp_path / f"onnx-{kind}")
        assert facts["precision"] == kind
        assert facts["parity"]["accuracy"] >= facts["parity"]["accuracy_in_training_code"] - 0.1
        assert facts["quantization"]["megabytes"][kind] < facts["quantization"]["megabytes"]["float32"]
        assert f"float32 -> {kind}: accuracy" in capsys.readouterr().out
        assert main(["verify", str(tmp_path / f"onnx-{kind}"), "--images", str(run.parent / "pictures")]) == 0


def test_float16_of_normalised_images_puts_its_cast_before_what_needs_it(run: Path, tmp_path: Path) -> None:
    """onnxruntime appends the cast of a float input at the end of the graph, which onnx's checker refuses."""
    assert main(["export", str(run), "--float", "--quantize", "float16", "--out", str(tmp_path), "--max-drop", "0.1"]) == 0
    assert main(["verify", str(tmp_path / "onnx-float16"), "--images", str(run.parent / "pictures")]) == 0


def test_promises_of_a_quantized_network_are_kept_by_its_own_answers_or_left_out_and_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """36 validation images show no error below 0.01; 0.9 of 37 is the 34th smallest score."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    _, card = load_with_card(copy)
    of_float32 = replace(card.trust, abstain=Abstain(0.9, 0.01, 0.5, 36), conformal=Conformal(0.9, 0.123, 36))
    update_trust(copy / "model", of_float32)
    assert main(["export", str(copy), "--quantize", "int8", "--out", str(tmp_path), "--max-drop", "1"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "onnx-int8: unknown is left out: rounding moves its score against the threshold" in said
    assert "onnx-int8: abstain is left out: No threshold keeps the error below 0.01" in said
    assert "onnx-int8: conformal is chosen again, on the network's own answers to 36 validation images" in said
    facts = facts_of(tmp_path / "onnx-int8")
    assert not {"abstain", "unknown"} & set(facts)
    validation = samples_of_run(copy, card.classes).of("val")
    found = load_runtime(tmp_path / "onnx-int8").probabilities([Path(str(sample.image)) for sample in validation])
    scores = sorted(1 - float(row[sample.label]) for row, sample in zip(found, validation, strict=True))
    assert facts["conformal"]["quantile"] == pytest.approx(scores[33], abs=1e-6)
    assert main(["verify", str(tmp_path / "onnx-int8")]) == 0
    script = [sys.executable, str(tmp_path / "onnx-int8/predict.py"), str(validation[0].image)]
    assert "not sure" not in subprocess.run(script, capture_output=True, text=True, check=True).stdout


def test_a_knn_head_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model_folder(tmp_path, Head(kind="knn"))
    assert main(["export", str(folder)]) == 2
    assert "A knn head can't be exported" in capsys.readouterr().err


def test_a_model_folder_alone_asks_for_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(model_folder(tmp_path, Head()))]) == 2
    assert "Name the whole run folder, or a folder of images: --images DIR" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_with_its_extra(run: Path, package: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, package, None)
        assert main(["export", str(run)]) == 2
    said = capsys.readouterr().err
    assert f"needs the package {package}" in said
    assert "pip install 'tlkit[export]'" in said


def test_an_export_without_its_images_leaves_no_folder_and_says_how(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = run.parent / "moved"
    (run.parent / "pictures").rename(moved)
    try:
        assert main(["export", str(run), "--out", str(tmp_path / "new/out")]) == 2
        assert "add data.source.folder=PATH to the command" in capsys.readouterr().err
        assert not (tmp_path / "new").exists()
        words = ["export", str(run), "--format", "safetensors", f"data.source.folder={moved}", "--out", str(tmp_path / "new/out")]
        assert main(words) == 0
        assert (tmp_path / "new/out/safetensors/artifact.json").is_file()
    finally:
        moved.rename(run.parent / "pictures")


def test_the_command_has_the_defaults_of_the_options() -> None:
    parser, options = ArgumentParser(), ExportOptions()
    export_arguments(parser)
    arguments = parser.parse_args(["runs/colours/001"])
    names = ("raw", "features", "opset", "out", "zipped", "proof_images", "tolerance", "quantize", "max_drop", "push_to_hub")
    assert {name: getattr(arguments, name) for name in names} == {name: getattr(options, name) for name in names}
    assert f"ONNX opset, {OPSETS[0]} to {OPSETS[-1]}; default: {options.opset}" in " ".join(parser.format_help().split())
