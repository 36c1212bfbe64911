import csv
import json
from pathlib import Path

import pytest

from tests.data.faulty_folder import CLASSES, GOOD, make_faulty_folder, make_image
from tlkit.cli import main
from tlkit.recipe.load import load_recipe
from tlkit.training.finetune import run_recipe

RECIPE = """
name: trial
data: {source: {folder: photos}, image_size: 32, batch_size: 32, workers: 0}
model: {backbone: simple_cnn, weights: random}
phases: [{train: all, epochs: 1, lr: 1e-3}]
trainer: {accelerator: cpu, devices: 1}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TLKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def folder_of_two(place: Path) -> Path:
    for label, name in enumerate(("cat", "dog")):
        (place / "photos" / name).mkdir(parents=True)
        for number in range(12):
            make_image(100 * label + number).save(place / "photos" / name / f"{number}.png")
    return place / "photos"


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def run(*words: str) -> int:
    return main(["finetune", "recipe.yaml", *words])


def test_skip_trains_on_every_good_image_and_lists_every_bad_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = make_faulty_folder(place / "photos")
    assert run("data.on_bad=skip", "--out", "run") == 2  # an empty class is no bad image: somebody has to decide
    assert "empty class: the class folder is empty" in capsys.readouterr().err
    assert not (place / "run").exists()
    (place / "photos" / "empty class").rmdir()
    assert run("data.on_bad=skip", "--out", "run") == 0
    output = "".join(capsys.readouterr())
    assert {row["id"] for row in rows(place / "run" / "split.csv")} == good
    skipped = rows(place / "run" / "skipped.csv")
    # A folder and a pipe are no images that could be left out.
    assert {row["id"] for row in skipped} == {name for name in bad if name.startswith(CLASSES[1])}
    assert all(row["reason"] and row["class"] == CLASSES[1] for row in skipped)
    assert json.loads((place / "run" / "metrics.json").read_text())["skipped"] == len(skipped)
    assert f"{len(skipped)} of {len(good) + len(skipped)} images can't be read and are left out" in output
    assert "the first frame or page is taken of 2 files that have several, such as plain/animated.gif" in output
    assert f"{len(skipped)} images that can&#39;t be read" in (place / "run" / "report.html").read_text()
    assert len(good) == 3 * GOOD + 5


def test_error_ends_with_the_image_and_what_can_be_done(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder_of_two(place) / "cat" / "5.png").write_bytes(b"")
    assert run("--out", "run") == 2
    error = capsys.readouterr().err
    assert "1 of 24 images can't be read (" in error
    assert "    cat/5.png: the file is empty (0 bytes).\n" in error
    assert "`tlkit data check RECIPE` names every such image, and data.on_bad=skip leaves them out of a run." in error
    assert not (place / "run" / "skipped.csv").exists()


def test_bad_images_of_any_split_end_a_run_before_it_trains_and_are_not_decoded_again(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """40 in each split: the first unreadable test image used to end the run after training."""
    from tlkit.data.quality import decode_results as module

    for split in ("train", "val", "test"):
        for label, name in enumerate(("cat", "dog")):
            (place / "photos" / split / name).mkdir(parents=True)
            for number in range(24):
                file = place / "photos" / split / name / f"{number:02}.png"
                make_image(100 * label + number).save(file)
                if number < 20:
                    file.write_bytes(file.read_bytes()[:60])
    monkeypatch.setattr("tlkit.data.file_facts.NEW_NS", 0)
    decoded: list[Path] = []
    size = module.decoded_size
    monkeypatch.setattr(module, "decoded_size", lambda image, *rest, **named: (decoded.append(image), size(image, *rest, **named))[1])
    assert run("--out", "run") == 2
    error = capsys.readouterr().err
    assert "120 of 144 images can't be read (40 train, 40 val, 40 test), so nothing is trained:" in error
    assert len([line for line in error.splitlines() if "cat/0" in line]) == 5
    assert "and 115 more" in error
    assert "`tlkit data check RECIPE` names every such image" in error
    assert not (place / "run").exists()
    assert len(decoded) == 144
    assert run("--out", "run") == 2
    assert capsys.readouterr().err == error
    assert len(decoded) == 144


def test_a_run_that_lacks_only_its_measuring_goes_on_without_test_images_that_have_gone(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tlkit.training import run as run_module

    folder = folder_of_two(place)
    measure = run_module.measure_shipped

    def lose_a_test_image_first(*arguments: object, **named: object) -> object:
        (lost,) = [row["id"] for row in rows(place / "run" / "split.csv") if row["split"] == "test"][:1]
        (folder / lost).write_bytes(b"")
        return measure(*arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "measure_shipped", lose_a_test_image_first)
        assert run("--out", "run") == 2
    weights = (place / "run" / "model" / "model.safetensors").read_bytes()
    before = rows(place / "run" / "split.csv")
    assert run("--out", "run", "--resume") == 2
    assert "1 of 24 images can't be read (1 test)" in capsys.readouterr().err
    assert run("--out", "run", "--resume", "data.on_bad=skip", "seed=1") == 2
    refused = capsys.readouterr().err
    assert "    seed: 0 -> 1\n" in refused
    assert "data.on_bad, data.leak_check" in refused
    assert run("--out", "run", "--resume", "data.on_bad=skip") == 0
    assert "1 test image can't be read any more and is not measured" in capsys.readouterr().err
    assert (place / "run" / "model" / "model.safetensors").read_bytes() == weights
    after = rows(place / "run" / "split.csv")
    assert len(after) == 23
    assert [row for row in before if row in after] == after
    tested = sum(row["split"] == "test" for row in after)
    assert json.loads((place / "run" / "metrics.json").read_text())["test"]["pictures"] == tested


def test_a_run_does_not_go_on_without_an_image_that_it_trains_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tlkit.errors import DataError

    folder = folder_of_two(place)

    def stop(*arguments: object, **named: object) -> object:
        raise DataError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr("tlkit.training.run.measure_shipped", stop)
        assert run("--out", "run") == 2
    (lost,) = [row["id"] for row in rows(place / "run" / "split.csv") if row["split"] == "train"][:1]
    (folder / lost).write_bytes(b"")
    assert run("--out", "run", "--resume", "data.on_bad=skip") == 2
    assert f"    1 gone: {lost}" in capsys.readouterr().err


def test_nothing_bad_leaves_an_empty_list_and_the_same_model(place: Path) -> None:
    folder_of_two(place)
    assert run("--out", "plain") == run("data.on_bad=skip", "--out", "skip") == 0
    assert (place / "skip" / "skipped.csv").read_text() == "id,class,split,reason\n"
    plain, skip = (json.loads((place / name / "metrics.json").read_text()) for name in ("plain", "skip"))
    assert skip["skipped"] == 0
    assert "skipped" not in plain
    assert plain["test"]["loss"] == skip["test"]["loss"]


def test_a_class_or_a_split_that_would_lose_all_its_images_is_an_error(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of_two(place)
    for file in (folder / "cat").iterdir():
        file.write_bytes(b"")
    assert run("data.on_bad=skip", "--out", "run") == 2
    assert "class 'cat': none of its 12 images can be read." in capsys.readouterr().err
    folder.rename(place / "train")
    folder.mkdir()
    (place / "train").rename(folder / "train")
    for number, file in enumerate((folder / "train" / "cat").iterdir()):
        make_image(number).save(file)
    for name in ("cat", "dog"):
        (folder / "val" / name).mkdir(parents=True)
        (folder / "val" / name / "1.png").write_bytes(b"")
    assert run("data.on_bad=skip", "--out", "run") == 2
    assert "the val split: none of its images can be read." in capsys.readouterr().err
    assert not (place / "run").exists()


def test_a_second_run_decodes_nothing_again_to_know_what_is_bad(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tlkit.data.quality import decode_results as verdicts

    monkeypatch.setattr("tlkit.data.file_facts.NEW_NS", 0)
    (folder_of_two(place) / "cat" / "5.png").write_bytes(b"")
    decoded: list[Path] = []
    size = verdicts.decoded_size
    monkeypatch.setattr(verdicts, "decoded_size", lambda image, *rest, **named: (decoded.append(image), size(image, *rest, **named))[1])
    assert run("data.on_bad=skip", "--out", "first") == 0
    assert len(decoded) == 24
    assert run("data.on_bad=skip", "seed=1", "--out", "second") == 0
    assert len(decoded) == 24


def test_missing_files_of_a_table_are_left_out_and_listed(place: Path) -> None:
    folder_of_two(place)
    lines = [f"photos/{name}/{number}.png,{name}" for name in ("cat", "dog") for number in range(13)]
    (place / "table.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    assert run("data.source={csv: table.csv}", "--out", "run") == 2
    assert run("data.source={csv: table.csv}", "data.on_bad=skip", "--out", "run") == 0
    assert [(row["id"], row["reason"]) for row in rows(place / "run" / "skipped.csv")] == [
        (f"photos/{name}/12.png", "there is no such file") for name in ("cat", "dog")
    ]


def test_evaluate_reports_what_can_no_longer_be_read_and_never_replaces_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of_two(place)
    assert run("data.on_bad=skip", "data.test=0.3", "--out", "skip") == run("data.test=0.3", "--out", "error") == 0
    damaged, gone, *rest = (row["id"] for row in rows(place / "skip" / "split.csv") if row["split"] == "test")
    (folder / damaged).write_bytes(b"")
    (folder / gone).unlink()
    capsys.readouterr()
    assert main(["evaluate", "skip", "--format", "json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["skipped"] == {gone: "it is no longer in the data source", damaged: "the file is empty (0 bytes)"}
    assert metrics["pictures"] == len(rest) == 5
    assert main(["evaluate", "skip"]) == 0
    out = capsys.readouterr().out
    assert "5  (2 left out, since they can't be read)" in out
    assert f"left out: {damaged}: the file is empty (0 bytes)" in out
    assert main(["evaluate", "error"]) == 2
    assert f"no longer in the data source. The first: {gone}" in capsys.readouterr().err
    make_image(1).save(folder / gone)
    assert main(["evaluate", "error"]) == 2
    assert f"photos/{damaged}: the file is empty" in capsys.readouterr().err


@pytest.mark.parametrize("settings", [(), ("data.on_bad=skip",), ("data.workers=1",)])
def test_an_image_that_goes_while_a_run_goes_on_ends_it_clearly(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], settings: tuple[str, ...]
) -> None:
    from tlkit.training import phases

    folder = folder_of_two(place)
    train_phases = phases.train_phases

    def lose_images_first(*arguments: object, **named: object) -> object:
        for file in (folder / "cat").iterdir():
            file.unlink()
        return train_phases(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(phases, "train_phases", lose_images_first)
    assert run(*settings, "--out", "run") == 2
    error = capsys.readouterr().err
    assert "there is no such file" in error
    assert "/cat/" in error
    assert "Traceback" not in error
    assert not (place / "run" / "model").exists()


def test_the_settings_of_the_decoder_ship_and_old_models_have_the_defaults(place: Path) -> None:
    from tlkit.data.preprocess import Preprocessing
    from tlkit.models.model_folder import read_card

    folder_of_two(place)
    settings = ["data.background=[0, 0, 0]", "data.range_16bit=[0, 4095]", "data.max_pixels=2000"]
    out = run_recipe(load_recipe("recipe.yaml", settings), out=place / "run")
    shipped = read_card(out / "model").preprocessing
    read = Preprocessing.from_json(shipped)
    assert (read.background, read.range_16bit, read.max_pixels) == ((0, 0, 0), (0, 4095), 2000)
    old = {key: value for key, value in shipped.items() if key not in ("background", "range_16bit", "max_pixels")}
    assert Preprocessing.from_json(old).range_16bit == (0, 65535)
    make_image(1, (64, 64)).save(place / "large.png")
    assert main(["predict", str(out), "large.png", "photos/cat/1.png"]) == 2
