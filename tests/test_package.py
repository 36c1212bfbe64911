"""The wheel alone, in an empty environment and an empty folder, does what the README promises."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output. Fails the test with both outputs if the exit code isn't 0."""
    # Without what would let the checkout shine through.
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV", "OMP_NUM_THREADS"}}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, f"{command} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, so that both are tested. Without isolation: hatchling is one of the dev packages."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, CHECKOUT, cwd=out)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The `tlkit` command of an environment with nothing but the wheel, its dependencies and the offline weights."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home)
    scripts = home / ("Scripts" if sys.platform == "win32" else "bin")
    # uv takes 18 s, or 2 s when it can link from its cache; pip takes 84 s.
    install = (sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", scripts / "python")
    run(*install, "--constraint", CHECKOUT / "constraints.txt", f"tlkit[offline] @ {wheel.as_uri()}", cwd=home)
    yield scripts / "tlkit"
    # Several gigabytes, where files could not be hard-linked.
    shutil.rmtree(home)


def test_wheel_carries_the_recipes_and_the_images(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    recipes = {f"tlkit/shipped_files/{path.relative_to(CHECKOUT).as_posix()}" for path in (CHECKOUT / "recipes").rglob("*.yaml")}
    assert len(recipes) >= 7
    assert recipes <= set(names)
    assert sum(name.endswith(".png") for name in names) == 3000
    assert "tlkit/shipped_files/data/README.md" in names
    assert not [name for name in names if name.startswith(("tests/", "docs/", "data/", "recipes/"))]


def test_quickstart_runs_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    run(installed, "check", "quickstart", cwd=tmp_path)
    # A part of the images, smaller, and the solved head alone: an accuracy of 0.74 on 133 images.
    shorter = ("data.limit=400", "data.image_size=64", "augment=[]", "phases=[{train: head, solver: lbfgs}]")
    run(installed, "finetune", "recipes/quickstart.yaml", *shorter, "--out", "run", cwd=tmp_path)
    assert (tmp_path / "run/model/model.safetensors").is_file()
    metrics = json.loads((tmp_path / "run/metrics.json").read_text(encoding="utf-8"))
    assert metrics["test"]["accuracy"] >= 0.6
