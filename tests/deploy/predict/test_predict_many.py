"""`tlkit predict` on folders, globs and lists, into files that are gone on with, and the features of images."""

import csv
import importlib
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.processes import read_until
from tlkit.cli import main
from tlkit.deploy.predict import feature_files
from tlkit.models.backbones import create_backbone
from tlkit.models.classifier import Classifier
from tlkit.models.inference.trust import UNLIKE, Trust, Unknown
from tlkit.models.model_folder import ModelCard, load_with_card, write_model_folder
from tlkit.recipe.fields.model import Head

CLASSES = ("cat", "dog", "owl")
PREPROCESSING = {"image_size": 32, "resize": "stretch", "crop_pct": 1.0, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}

A_LINE_A_BATCH = """
import sys
from tlkit.cli import main
from tlkit.data import progress
progress.LINE_EVERY_S = -1.0
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, another one as `other`, and 100 images in `photos`, most of them in `photos/b`."""
    folder = tmp_path_factory.mktemp("many")
    for seed, name in enumerate(("model", "other", "tags")):
        torch.manual_seed(seed)
        classifier = Classifier(create_backbone("test_resnet", 32), Head(), 3, 32)
        task = {"task": "multilabel", "thresholds": (0.4, 0.5, 0.6)} if name == "tags" else {}
        write_model_folder(folder / name, classifier, ModelCard("test_resnet", Head(), CLASSES, PREPROCESSING, {}, {}, {}, **task))
    draws = np.random.default_rng(0)
    for i in range(100):
        file = folder / f"photos/{'b' if i else 'a/deep'}/{i:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (24, 40, 3), dtype=np.uint8)).save(file)
    (folder / "photos/notes.txt").write_text("no image by its name")
    (folder / "photos/.hidden.png").write_text("hidden")
    return folder


@pytest.fixture(autouse=True)
def _in_workplace(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def paths(text: str) -> list[str]:
    return [row["path"] for row in rows(text)]


def give(monkeypatch: pytest.MonkeyPatch, listed: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(listed)))


def test_a_folder_is_walked_in_the_order_of_its_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "model", "photos", "--format", "csv"]) == 0
    assert paths(capsys.readouterr().out) == ["photos/a/deep/000.png", *(f"photos/b/{i:03d}.png" for i in range(1, 100))]


def test_all_that_pillow_reads_is_predicted_and_what_is_left_out_or_empty_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, kind in {"1.png": "PNG", "2.jfif": "JPEG", "3.avif": "AVIF", "4": "WEBP"}.items():
        Image.new("RGB", (8, 8), (9, 99, 199)).save(tmp_path / name, kind)
    for name in ("5.heic", "6.heic", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "none").mkdir()
    assert main(["predict", "model", str(tmp_path), str(tmp_path / "none"), "--format", "csv"]) == 0
    out, error = capsys.readouterr()
    assert [Path(path).name for path in paths(out)] == ["1.png", "2.jfif", "3.avif", "4"]
    assert f"2 files look like images and are not used: 2 .heic, such as {tmp_path / '5.heic'}" in error
    assert f"{tmp_path / 'none'}: there is no image in this folder; the others are predicted." in error


def test_a_quoted_glob_is_expanded_and_a_file_with_such_a_name_is_taken_as_it_is(
    workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "model", "photos/**/00[0-2].png", "--format", "csv"]) == 0
    assert paths(capsys.readouterr().out) == ["photos/a/deep/000.png", "photos/b/001.png", "photos/b/002.png"]
    odd = tmp_path / "a[1].png"
    odd.write_bytes((workplace / "photos/b/001.png").read_bytes())
    assert main(["predict", "model", str(odd), "--format", "csv"]) == 0
    assert paths(capsys.readouterr().out) == [str(odd)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing*.png"], "no file matches"),
        (["empty"], "empty: there is no image in this folder"),
        (["-", "-"], "read only once"),
        (["photos", "--resume"], "Add --out"),
        (["photos", "--out", "x.txt"], "says no format"),
        (["photos", "--out", "x.csv", "--format", "json"], "a row at a time"),
        (["photos", "--features"], "--features needs --out.\n  Add --out FILE.npz"),
        (["photos", "--features", "--out", "x.csv", "--format", "csv"], "--features takes no --format: features"),
        (["photos", "--features", "--out", "x.csv", "--threshold", "0", "--top-k", "3"], "--features takes no --threshold and no --top-k:"),
        (["photos", "--features", "--out", "x.csv"], "Expected FILE.npz or FILE.parquet"),
        (["photos", "--threshold", "1.5"], "is not a number from 0 to 1"),
    ],
)
def test_what_cannot_be_done_is_reported(words: list[str], message: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workplace / "empty").mkdir(exist_ok=True)
    assert main(["predict", "model", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (workplace / "x.csv").exists()


def test_a_list_on_stdin_ends_its_names_with_newlines_or_nul(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, b"photos/b/001.png\r\n\nphotos/b/002.png")
    assert main(["predict", "model", "-", "--format", "csv"]) == 0
    assert paths(capsys.readouterr().out) == ["photos/b/001.png", "photos/b/002.png"]
    give(monkeypatch, b"photos/b/003.png\0new\nline.png\0")
    assert main(["predict", "model", "-", "-0", "--format", "csv"]) == 2
    assert paths(capsys.readouterr().out) == ["photos/b/003.png", "new\nline.png"]


def test_an_empty_list_is_reported(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, b"\n")
    assert main(["predict", "model", "-", "--format", "csv"]) == 2
    assert "No image was named on standard input" in capsys.readouterr().err


def test_json_lines_say_the_same_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    main(["predict", "model", "photos/a", "photos/b/00*", "--format", "json"])
    whole = json.loads(capsys.readouterr().out)
    main(["predict", "model", "photos/a", "photos/b/00*", "--format", "jsonl"])
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == whole
    assert len(whole) == 10


def test_a_model_abstains_below_the_threshold(capsys: pytest.CaptureFixture[str]) -> None:
    main(["predict", "model", "photos", "--format", "json"])
    sure = [row["probability"] for row in json.loads(capsys.readouterr().out)]
    middle = float(np.median(sure))
    main(["predict", "model", "photos", "--threshold", str(middle), "--format", "json"])
    answers = json.loads(capsys.readouterr().out)
    assert [answer["abstains"] for answer in answers] == [probability < middle for probability in sure]
    assert all((answer["class"] is None) == answer["abstains"] for answer in answers)
    main(["predict", "model", "photos", "--threshold", str(middle), "--format", "csv"])
    assert [row["answer"] or None for row in rows(capsys.readouterr().out)] == [answer["class"] for answer in answers]
    main(["predict", "model", "photos", "--threshold", "1"])
    assert capsys.readouterr().out.count("abstains") == 100


def test_a_threshold_takes_the_place_of_a_multilabel_models_own(capsys: pytest.CaptureFixture[str]) -> None:
    main(["predict", "tags", "photos", "--threshold", "0", "--format", "csv"])
    assert all(sorted(row["label"].split("|")) == list(CLASSES) for row in rows(capsys.readouterr().out))
    main(["predict", "tags", "photos", "--threshold", "1", "--format", "csv"])
    assert all(row["label"] == "" for row in rows(capsys.readouterr().out))
    main(["predict", "tags", "photos", "--threshold", "0.9"])
    assert "classes above 0.9" in capsys.readouterr().out
    main(["predict", "tags", "photos"])
    assert "classes above their thresholds" in capsys.readouterr().out


def test_a_killed_call_is_gone_on_with_and_every_file_has_one_row(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The list comes through a pipe that stays open, so that the kill comes while it works; then the last row is torn as well."""
    out = tmp_path / "out.csv"
    names = [str(file) for file in sorted((workplace / "photos").rglob("0*.png"))]
    names += [f"nowhere/{i}.png" for i in range(300)]  # these have a row with an error
    words = [sys.executable, "-c", A_LINE_A_BATCH, "predict", "model", "-", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=workplace, env=environment)
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write("\n".join(names[:170]) + "\n")
    process.stdin.flush()
    for _ in range(2):
        read_until(process.stderr, "predict  ")
    process.kill()
    process.wait()
    process.stdin.close()
    process.stderr.close()
    out.write_bytes(out.read_bytes()[:-9])
    give(monkeypatch, "\n".join(names).encode())
    assert main([*words[3:], "--resume"]) == 2
    assert "300 of 400 files could not be read" in capsys.readouterr().err
    assert paths(out.read_text()) == names
    assert all(bool(row["error"]) == row["path"].startswith("nowhere") for row in rows(out.read_text()))


def numbers_apart(content: bytes) -> tuple[list[bytes], list[float]]:
    """Return what is between the numbers with a decimal point, and those."""
    number = rb"\d+\.\d+(?:e-?\d+)?"
    return re.split(number, content), [float(found) for found in re.findall(number, content)]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_going_on_after_any_tear_gives_the_same_rows(ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = tmp_path / 'a,"b"\r\n.png'
    odd.write_bytes(Path("photos/b/001.png").read_bytes())
    words = ["predict", "model", str(odd), str(tmp_path / "no\rsuch.png"), "photos/b/00*", "--out", str(tmp_path / f"out.{ending}")]
    out = tmp_path / f"out.{ending}"
    assert main(words) == 2
    whole = out.read_bytes()
    text, numbers = numbers_apart(whole)
    for size in {0, 1, 3, 60, 200, len(whole) // 2, len(whole) - 1, len(whole)}:
        out.write_bytes(whole[:size])
        assert main([*words, "--resume"]) == 2
        assert out.read_bytes().startswith(whole[: whole[:size].rfind(b"\n") + 1] if ending == "jsonl" else b""), size
        found_text, found_numbers = numbers_apart(out.read_bytes())
        assert found_text == text, size
        assert found_numbers == pytest.approx(numbers, abs=1e-6), size  # other batches round otherwise
    assert "11 images" in capsys.readouterr().err


def test_a_file_is_not_written_over_nor_gone_on_with_by_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.csv"
    assert main(["predict", "model", "photos/a", "--out", str(out)]) == 0
    assert main(["predict", "model", "photos/a", "--out", str(out)]) == 2
    assert "the file exists" in capsys.readouterr().err
    assert main(["predict", "other", "photos", "--out", str(out), "--resume"]) == 2
    assert "another model" in capsys.readouterr().err
    assert main(["predict", "model", "photos", "--out", str(out), "--resume", "--top-k", "1"]) == 2
    assert "another top_k" in capsys.readouterr().err
    assert main(["predict", "model", "photos", "--out", str(out), "--resume"]) == 0
    assert len(rows(out.read_text())) == 100
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_note_on_a_good_image_is_no_error_when_a_file_is_gone_on_with(
    ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The note is in the last column, which was read as the error."""
    everything = Trust(unknown=Unknown("energy", -1e6, 9))
    classifier, card = load_with_card(Path("model"))
    write_model_folder(tmp_path / "model", classifier, replace(card, trust=everything))
    for name, code in (("photos/b/001.png", 0), ("nowhere.png", 2)):
        out = tmp_path / f"{Path(name).stem}.{ending}"
        words = ["predict", str(tmp_path / "model"), name, "--out", str(out)]
        assert main(words) == main([*words, "--resume"]) == code
        assert (UNLIKE in out.read_text()) == (code == 0)
    assert capsys.readouterr().err.count("1 of 1 files could not be read") == 2


def test_features_are_what_the_head_sees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", "model", "photos", "nowhere.png", "--features", "--out"]
    assert main([*words, str(tmp_path / "f.npz")]) == 2
    assert "1 of 101 files could not be read" in capsys.readouterr().err
    main(["predict", "model", "photos", "--format", "json"])
    answers = json.loads(capsys.readouterr().out)
    classifier, _ = load_with_card(Path("model"))
    with np.load(tmp_path / "f.npz", allow_pickle=False) as found:
        assert list(found["paths"]) == [answer["path"] for answer in answers]
        assert list(found["unreadable"]) == ["nowhere.png"]
        logits = classifier.head(torch.from_numpy(found["features"])).detach().numpy()
        assert logits == pytest.approx(np.array([answer["logits"] for answer in answers]), abs=1e-5)
        features = found["features"]
    parquet = pytest.importorskip("pyarrow.parquet")
    assert main([*words, str(tmp_path / "f.parquet")]) == 2
    table = parquet.read_table(tmp_path / "f.parquet").to_pydict()
    assert table["path"] == [answer["path"] for answer in answers] + ["nowhere.png"]
    assert table["features"][-1] is None
    assert np.array(table["features"][:-1], np.float32) == pytest.approx(features)


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_features_go_on_after_any_tear(ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    odd = tmp_path / "a\n\udcff.png"
    odd.write_bytes(Path("photos/b/001.png").read_bytes())
    words = ["predict", "model", "photos", str(odd), "nowhere.png", "--features", "--out"]
    file, parts = tmp_path / f"out.{ending}", tmp_path / f"out.{ending}.parts"
    assert main([*words, str(tmp_path / f"whole.{ending}")]) == 2
    names, features = _features(tmp_path / f"whole.{ending}")

    stopped = ["predict", "model", "photos/a", "photos/b/00*", "--features", "--out", str(file)]
    for features_lost, names_lost in ((0, 0), (1, 0), (0, 1), (4 * 70, 3), (0, 10**6), (10**6, 10**6)):
        _stop_before_the_end(stopped)
        for part, lost in (("features", features_lost), ("names", names_lost)):
            size = (parts / part).stat().st_size
            os.truncate(parts / part, max(0, size - lost))
        assert main([*words, str(file), "--resume"]) == 2
        found_names, found_features = _features(file)
        assert found_names == names, (features_lost, names_lost)
        assert found_features == pytest.approx(features, abs=1e-6), (features_lost, names_lost)  # other batches round otherwise
        assert not parts.exists()
        file.unlink()
    assert "1 of 102 files could not be read" in capsys.readouterr().err


def _features(file: Path) -> tuple[list[str], np.ndarray]:
    """Names, those of unreadable files at the end, and the features of the others."""
    if file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as found:
            return [*found["paths"], *found["unreadable"]], found["features"]
    table = importlib.import_module("pyarrow.parquet").read_table(file).to_pydict()
    return table["path"], np.array([row for row in table["features"] if row is not None], np.float32)


def _stop_before_the_end(words: list[str]) -> None:
    """What Ctrl-C leaves, just before the parts are put together."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_files, "_writer_of", lambda _: stop)
        assert main(words) == 130


def test_features_of_another_model_are_not_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--features", "--out", str(tmp_path / "f.npz")]
    (tmp_path / "f.npz.parts").mkdir()
    assert main(["predict", "model", "photos", *words]) == 2
    assert "an earlier call for it was stopped" in capsys.readouterr().err
    (tmp_path / "f.npz.parts").rmdir()
    assert main(["predict", "model", "photos", *words]) == 0
    assert main(["predict", "model", "photos", *words, "--resume"]) == 2
    assert "f.npz is complete" in capsys.readouterr().err
    _stop_before_the_end(["predict", "model", "photos", "--features", "--out", str(tmp_path / "g.npz")])
    assert main(["predict", "other", "photos", "--features", "--out", str(tmp_path / "g.npz"), "--resume"]) == 2
    assert "g.npz was begun with another model" in capsys.readouterr().err
    assert main(["predict", "model", "photos", "--features", "--out", str(tmp_path / "g.npz"), "--resume"]) == 0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["f.npz", "g.npz"]
