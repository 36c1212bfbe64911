"""A run is used from elsewhere: its data is where the run found it, or where the user says."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlkit.data.splits.manifest import check_run_folder, samples_of_run
from tlkit.data.splits.run_source import from_start_where_missing, write_origin
from tlkit.errors import DataError, RunError
from tlkit.models.model_folder import find_model_folder

RECIPE = """
name: pets
data: {source: {folder: photos}, image_size: 32}
model: {backbone: test_resnet, weights: random}
phases: [{train: head, epochs: 1, lr: 1e-3}]
"""


def draw(folder: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.full((32, 32, 3), 100 * number, np.uint8)).save(folder / name / "0.png")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a run on `photos` leaves, started in `project`; the current folder is another."""
    project = tmp_path / "project"
    draw(project / "photos")
    run = project / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(RECIPE)
    (run / "split.csv").write_text("id,class,split,group,sha256\ncat/0.png,cat,train,,\ndog/0.png,dog,test,,\n")
    monkeypatch.chdir(project)
    write_origin(run, {})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return project


def test_the_data_is_found_where_the_run_was_started(project: Path) -> None:
    (image,) = samples_of_run(project / "run", ("cat", "dog")).of("test")
    assert image.image == project / "photos/dog/0.png"
    (override,) = from_start_where_missing(project / "run")
    assert override.startswith(f'data.source={{"folder": "{project / "photos"}"')


def test_what_the_current_folder_has_goes_first(project: Path) -> None:
    draw(Path("photos"))
    (image,) = samples_of_run(project / "run", ("cat", "dog")).of("test")
    assert image.image == Path("photos/dog/0.png")
    assert from_start_where_missing(project / "run") == []


def test_data_that_has_moved_is_named_by_an_override_and_the_message_says_so(project: Path) -> None:
    (project / "photos").rename(project / "moved")
    with pytest.raises(DataError) as raised:
        samples_of_run(project / "run", ("cat", "dog"))
    assert f"The run was started in {project}: run the command there" in str(raised.value)
    assert "add data.source.folder=PATH to the command" in str(raised.value)
    found = samples_of_run(project / "run", ("cat", "dog"), [f"data.source.folder={project / 'moved'}"])
    assert found.of("test")[0].image == project / "moved/dog/0.png"


def test_what_was_trained_cannot_be_changed_afterwards(project: Path) -> None:
    with pytest.raises(RunError, match=r"model\.backbone can't be changed for a run that has ended"):
        samples_of_run(project / "run", ("cat", "dog"), ["model.backbone=resnet18"])


@pytest.mark.parametrize("asked", ["runs", "runs/pets", "runs/pets/1", "runs/pets/001/model"])
def test_the_run_that_may_be_meant_is_named(tmp_path: Path, asked: str) -> None:
    (tmp_path / "runs/pets/001/model").mkdir(parents=True)
    (tmp_path / "runs/pets/001/split.csv").write_text("id,class,split,group,sha256\n")
    with pytest.raises(RunError) as raised:
        check_run_folder(tmp_path / asked)
    assert str(raised.value).endswith(f" Did you mean {tmp_path / 'runs/pets/001'}?")


def test_a_run_that_has_not_ended_says_how_to_resume_it(project: Path) -> None:
    (project / "run/checkpoints").mkdir()
    with pytest.raises(RunError, match=r"\n  Its run has not ended: resume it with the same command, --out .* and --resume\.$"):
        find_model_folder(project / "run")


def test_a_fold_that_has_not_ended_is_resumed_with_all_folds(project: Path) -> None:
    (project / "run/fold_2/checkpoints").mkdir(parents=True)
    (project / "run/fold_2/recipe.yaml").write_text("name: pets\n")
    with pytest.raises(RunError, match=f"--out {project / 'run'} and --resume"):
        find_model_folder(project / "run/fold_2")
