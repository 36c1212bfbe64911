from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.planning.colours import RECIPE
from tlkit.planning.plan import Plan, make_plan
from tlkit.recipe.load import load_recipe


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty grey-noise images of each of three classes, a folder with uneven classes, one of images wider than high, and the recipe."""
    folder = tmp_path_factory.mktemp("plan")
    draws = np.random.default_rng(0)
    numbers = {"pictures": (20, 20, 20), "uneven": (60, 8, 20), "wide": (20, 20, 20)}
    for root, counts in numbers.items():
        for name, count in zip(("blue", "green", "red"), counts, strict=True):
            (folder / root / name).mkdir(parents=True)
            for i in range(count):
                width = 54 if root == "wide" else 40
                Image.fromarray(draws.integers(0, 256, (40, width, 3), dtype=np.uint8)).save(folder / root / name / f"{i:02d}.png")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def there(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workplace)
    return workplace


@pytest.fixture(scope="session")
def plan(workplace: Path) -> Plan:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        return make_plan(load_recipe("recipe.yaml"))
