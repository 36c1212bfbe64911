"""The Python API: small, lazy, documented, and never hidden by a module."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import tlkit

PACKAGE = Path(tlkit.__file__).parent
HEAVY = ("torch", "timm", "lightning", "pydantic", "numpy", "PIL", "albumentations")


def test_importing_tlkit_imports_nothing_heavy() -> None:
    code = f"import sys, tlkit; dir(tlkit); print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_name_is_there_and_no_other() -> None:
    assert {name for name in dir(tlkit) if getattr(tlkit, name)} == set(tlkit.__all__)
    assert set(tlkit.__all__) == {*tlkit._HOMES, "__version__"}
    with pytest.raises(AttributeError, match="has no attribute 'fine_tune'"):
        _ = tlkit.fine_tune


def test_no_module_of_tlkit_has_the_name_of_a_function() -> None:
    """`import tlkit.predict` would put the module in the place of the function."""
    assert not {path.stem for path in PACKAGE.iterdir()} & set(tlkit.__all__)


@pytest.mark.parametrize("name", sorted(tlkit._HOMES))
def test_importing_its_module_hides_no_name(name: str) -> None:
    module = importlib.import_module(tlkit._HOMES[name])
    assert getattr(tlkit, name) is getattr(module, name)
    assert callable(getattr(tlkit, name))


@pytest.mark.parametrize("name", sorted(name for name in tlkit._HOMES if inspect.isfunction(getattr(tlkit, name))))
def test_a_function_says_what_it_takes_returns_and_raises(name: str) -> None:
    function = getattr(tlkit, name)
    text = inspect.getdoc(function) or ""
    assert text[0].isupper()
    assert text.split("\n")[0].endswith(".")
    parts = text.split("\n\n")
    titles = [part.split("\n")[0] for part in parts]
    assert [title for title in titles if title in ("Args:", "Returns:", "Raises:")][:2] == ["Args:", "Returns:"]
    described = next(part for part in parts if part.startswith("Args:"))
    assert [word for word in inspect.signature(function).parameters if f"    {word}: " not in described] == []


def test_the_models_that_there_are() -> None:
    names = tlkit.list_models("resnet1*")
    assert {"resnet18", "resnet10t", "resnet152"} <= set(names)
    assert all(name.startswith("resnet1") for name in names)
    assert "lenet5" in tlkit.list_models()
    assert "lenet5" not in tlkit.list_models(pretrained=True)
    assert {"resnet18", "googlenet"} <= set(tlkit.list_models(pretrained=True)) < set(tlkit.list_models())
    assert "resnet18.a1_in1k" in tlkit.list_models("resnet18.*")
    assert tlkit.list_models("no such model") == []
