"""What docs/python.md and the notebook show is run as it stands there; every page is in the index, and every link leads to something."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PHOTOS = Path(__file__).parent / "fixtures" / "before_layout" / "photos"


@pytest.mark.slow
def test_every_block_of_the_python_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", (DOCS / "python.md").read_text(encoding="utf-8"), flags=re.M | re.S)
    assert len(blocks) >= 7
    shutil.copytree(PHOTOS, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "python.md"}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    out = capsys.readouterr().out
    assert "phases[0].train = 'haed' can't be used." in out
    assert "missing.png" in out
    assert names["images"].shape == (1, 3, 64, 64)
    assert names["classes"] == names["model"].classes == ("ankle-boot", "bag", "dress")
    assert names["probabilities"].shape == (12, 3)
    assert names["measured"]["tta"]["views"] == 2


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(DOCS / "notebooks" / "quickstart.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # kept without outputs, so that nothing in it is old
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    accuracy = next(cell for cell in notebook.cells if "run.metrics" in cell.source).outputs[-1]["data"]["text/plain"]
    assert float(accuracy.strip("(").split(",")[0]) > 0.5  # of ten classes
    assert "report.html" in next(cell for cell in notebook.cells if "iterdir" in cell.source).outputs[-1]["data"]["text/plain"]


def links(page: Path) -> list[str]:
    """Return the relative links of a page, without their anchors; code is no link."""
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [link.partition("#")[0] for link in found if not re.match(r"[a-z]+:|#", link)]


def test_every_page_is_in_the_index() -> None:
    pages = {page.relative_to(DOCS).as_posix() for page in (*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb"))}
    assert len(pages) > 30
    assert pages - {"README.md"} == set(links(DOCS / "README.md")) - {"../README.md"}


def test_every_relative_link_leads_to_a_file() -> None:
    pages = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "data" / "README.md"]
    broken = [f"{page.relative_to(ROOT)}: {link}" for page in pages for link in links(page) if not (page.parent / link).exists()]
    assert sum(map(len, map(links, pages))) > 60
    assert broken == []
