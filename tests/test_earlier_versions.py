"""What tlkit wrote before its packages got today's layout is read by today's code: see fixtures/README.md."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

import tlkit
from tlkit.cli import main
from tlkit.errors import DataError, DeviceError, RunError

BEFORE = Path(__file__).parent / "fixtures" / "before_layout"


def recorded() -> dict[str, float]:
    found: dict[str, float] = json.loads((BEFORE / "run/metrics.json").read_text())["test"]
    return found


def test_a_run_is_measured_as_it_was(place: Path) -> None:
    measured = tlkit.evaluate("run")
    assert (measured["accuracy"], measured["pictures"]) == (recorded()["accuracy"], recorded()["pictures"])
    assert measured["loss"] == pytest.approx(recorded()["loss"], abs=1e-5)
    assert tlkit.Run(Path("run")).metrics["test"]["accuracy"] == recorded()["accuracy"]


def test_images_of_the_same_name_with_another_content_are_reported(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.move("photos", "moved")
    first, second, *_ = sorted(Path("moved/test").rglob("*.png"))
    shutil.copy(second, first)
    measured = tlkit.evaluate("run", overrides=["data.source.folder=moved"])
    name = first.relative_to("moved").as_posix()
    assert measured["changed"] == [name]
    warning = f"1 of {recorded()['pictures']} test images have another content than in the run, such as {name}"
    assert warning in caplog.text
    assert "changed" not in tlkit.evaluate("run", split="val", overrides=["data.source.folder=moved"])


def test_its_model_and_its_artifact_answer_alike(place: Path) -> None:
    model = tlkit.load_model("run")
    assert (model.classes, [stage.name for stage in model.stages][:1]) == (("ankle-boot", "bag", "dress"), ["conv1"])
    files = sorted(place.glob("photos/test/*/*.png"))
    with torch.inference_mode():
        expected = model(model.preprocess(files)).softmax(1)
    for name in ("run", "artifact.zip"):
        classes, predictions = tlkit.predict(name, files)
        assert classes == model.classes
        found = torch.tensor([prediction.probabilities.tolist() for prediction in predictions], dtype=torch.float64)
        torch.testing.assert_close(found, expected.double(), atol=1e-5, rtol=0)


def test_its_artifact_is_verified_as_a_folder_and_as_a_zip(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zipfile.ZipFile("artifact.zip").extractall("artifact")
    assert main(["verify", "artifact.zip", "--images", "photos"]) == 0
    assert main(["verify", "artifact", "--images", "photos"]) == 0
    assert "are those that artifact.json describes" in capsys.readouterr().out


def test_it_is_exported_and_nothing_is_printed(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder,) = tlkit.export("run", formats=["safetensors"], out="out")
    assert capfd.readouterr() == ("", "")
    assert tlkit.load_model(folder).classes == ("ankle-boot", "bag", "dress")


def test_a_finished_run_is_left_alone_and_never_overwritten(place: Path) -> None:
    before = (place / "run/metrics.json").read_bytes()
    assert tlkit.finetune("run/recipe.yaml", out="run", resume=True).folder == Path("run")
    assert (place / "run/metrics.json").read_bytes() == before
    with pytest.raises(RunError, match="is not empty, and a run never overwrites one"):
        tlkit.finetune("run/recipe.yaml", out="run")


@pytest.mark.usefixtures("place")
def test_an_unfinished_run_does_not_go_on_with_another_recipe() -> None:
    changed = tlkit.load_recipe("unfinished/recipe.yaml", ["phases[0].lr=1e-3"])
    with pytest.raises(RunError, match=r"phases\[0\]\.lr"):
        tlkit.finetune(changed, out="unfinished", resume=True)


@pytest.mark.usefixtures("place")
def test_where_a_default_has_changed_since_the_runs_own_recipe_is_named() -> None:
    today = tlkit.load_recipe("unfinished/recipe.yaml", ["phases[0].batchnorm=auto", "schedule.warmup=null"])
    with pytest.raises(RunError) as raised:
        tlkit.finetune(today, out="unfinished", resume=True)
    assert "    schedule.warmup: 0.0 -> null\n  Resume with the recipe as it was, unfinished/recipe.yaml;" in str(raised.value)


@pytest.mark.skipif("AVX" not in torch.backends.cpu.get_cpu_capability(), reason="torch draws other random weights without AVX2")
def test_an_unfinished_run_goes_on(place: Path) -> None:
    run = tlkit.finetune("unfinished/recipe.yaml", out="unfinished", resume=True)
    rows = (place / "unfinished/metrics.csv").read_text().splitlines()
    assert len(rows) == 11
    header, *before = (BEFORE / "unfinished/metrics.csv").read_text().splitlines()[:8]
    assert rows[:8] == [header, *map(counted_from_1, before)]
    assert run.metrics["test"]["pictures"] == 12


def counted_from_1(row: str) -> str:
    """A row of metrics.csv as it is now: phases and epochs counted from 0 before."""
    phase, epoch, rest = row.split(",", maxsplit=2)
    return f"{int(phase) + 1},{int(epoch) + 1},{rest}"


def test_what_is_no_model_or_no_device_or_has_moved_is_one_message(place: Path) -> None:
    with pytest.raises(RunError, match=r"^photos holds no model: neither tlkit.json nor model/tlkit.json is there"):
        tlkit.load_model("photos")
    with pytest.raises(RunError, match=r"^nowhere does not exist"):
        tlkit.load_model("nowhere")
    with pytest.raises(DeviceError, match=r"^device = 'cuda:9' is not available on this machine.\n  Expected auto, or one of: cpu"):
        tlkit.load_model("run", device="cuda:9")
    with pytest.raises(DataError, match=r"photos/nowhere.png: "):
        tlkit.load_model("run").preprocess("photos/nowhere.png")
    shutil.move("photos", "moved")
    with pytest.raises(DataError, match="photos"):
        tlkit.evaluate("run")
