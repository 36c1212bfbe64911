"""The wheel alone, in an empty environment and an empty folder, does what the README promises."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

CHECKOUT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output. Fails the test with both outputs if the exit code isn't 0."""
    # Without what would let the checkout shine through.
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
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
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the `tlkit` command of an environment with nothing but the wheel, its dependencies and the offline weights."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home)
    python = home / "bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=home)
    (metadata,) = home.glob("lib/python*/site-packages/tlkit-*.dist-info")
    # Linked and not installed: what is there already, without gigabytes of downloads and a minute of compiling torch's modules.
    for package in required_by(Distribution.at(metadata), "offline"):
        for name in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            if not (link := metadata.parent / name).exists():  # parts of one namespace, such as nvidia, are in one folder
                link.symlink_to(str(package.locate_file(name)))
    return home / "bin/tlkit"


def required_by(package: Distribution, extra: str = "") -> list[Distribution]:
    """Return the installed packages that one requires, and those that they require, and so on."""
    found: dict[tuple[str, str], Distribution] = {}
    todo = [(package, extra)]
    while todo:
        package, extra = todo.pop()
        for required in map(Requirement, package.requires or ()):
            if required.marker is None or any(required.marker.evaluate({"extra": name}) for name in ("", extra)):
                new = {(required.name, name): distribution(required.name) for name in ("", *required.extras)}
                todo += [(package, extra) for (name, extra), package in new.items() if (name, extra) not in found]
                found |= new
    return list(found.values())


def test_wheel_carries_the_recipes_and_the_images(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    recipes = {f"tlkit/shipped_files/{path.relative_to(CHECKOUT).as_posix()}" for path in (CHECKOUT / "recipes").rglob("*.yaml")}
    assert len(recipes) >= 7
    assert recipes <= set(names)
    assert sum(name.endswith(".png") for name in names) == 3000
    assert "tlkit/shipped_files/data/README.md" in names
    assert not [name for name in names if name.startswith(("tests/", "docs/", "data/", "recipes/"))]


@pytest.mark.slow
def test_quickstart_runs_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    run(installed, "check", "quickstart", cwd=tmp_path)
    # A part of the images, smaller, and only the head, solved: an accuracy of 0.74 on 133 images.
    shorter = ("data.limit=400", "data.image_size=64", "augment=[]", "phases=[{train: head, solver: lbfgs}]")
    run(installed, "finetune", "recipes/quickstart.yaml", *shorter, "--out", "run", cwd=tmp_path)
    assert (tmp_path / "run/model/model.safetensors").is_file()
    metrics = json.loads((tmp_path / "run/metrics.json").read_text(encoding="utf-8"))
    assert metrics["test"]["accuracy"] >= 0.6
