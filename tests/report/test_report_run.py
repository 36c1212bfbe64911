"""`tlkit report` of a run by an earlier version: what its folder lacks is computed again."""

import base64
import json
import operator
import re
import shutil
from functools import reduce
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.report.browser import browser, dom_after
from tlkit.cli import main
from tlkit.evaluation.evaluate import answers_on
from tlkit.evaluation.predictions import write_predictions

pytestmark = pytest.mark.usefixtures("draws")

BEFORE = Path(__file__).parents[1] / "fixtures" / "before_layout"
OUTSIDE = re.compile(r"""(?:src|href)\s*=\s*["']?(?!data:|#)[^"'\s>]|url\((?!data:|#)|@import""")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reported") / "before"
    shutil.copytree(BEFORE, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["report", "run", "--out", "page.html"]) == 0
    return folder / "page.html"


def test_the_page_of_an_old_run_has_intervals_and_images_and_nothing_from_outside(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    assert not OUTSIDE.search(html)
    assert "of 12 test images are classified correctly" in html
    assert re.search(r"weakest class is .*images\)", html)
    assert "Best epoch: 1 of phase 1," in html  # which the run had counted from 0
    assert html.count("<svg") == 3  # accuracy, loss, learning rate
    assert 'alt="What spoke for' in html  # a heat map
    thumbnails = re.findall(r"url\(data:image/webp;base64,([^)]+)\)", html)
    assert len(thumbnails) == 12  # each test image once
    assert max(Image.open(BytesIO(base64.b64decode(thumbnails[0]))).size) == 96


def test_every_cell_of_the_confusion_table_has_exactly_its_images(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(page.parent)
    answers = answers_on(Path("run"), "test")
    html = page.read_text(encoding="utf-8").replace("<wbr>", "")
    cells = re.findall(r'<section class="cell" id="[^"]*" aria-label="(\S+) called (\S+)">(.*?)</section>', html, re.DOTALL)
    found = {(label, answer): set(re.findall(r"<small[^>]*>(.*?)</small>", images)) for label, answer, images in cells}
    expected: dict[tuple[str, str], set[str]] = {}
    for row in answers:
        expected.setdefault((row["label"], row["answer"]), set()).add(row["id"])
    assert found == expected


def change_answer(row: dict[str, str], classes: list[str]) -> dict[str, str]:
    return {**row, "answer": next(name for name in classes if name != row["label"]), "probability": "0.990000"}


def test_what_the_folder_keeps_is_not_answered_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = answers_on(Path("run"), "test")
    assert main(["report", "run", "--out", "page.html"]) == 0
    assert "run has no predictions.csv: 12 test images answered again" in capsys.readouterr().err
    classes = sorted({row["label"] for row in rows})
    write_predictions(Path("run"), [change_answer(row, classes) for row in rows], "test")
    assert main(["report", "run", "--out", "page.html"]) == 0
    said = capsys.readouterr().err
    assert "answered again" not in said
    assert "the answers are those of run/predictions.csv" in said
    assert (place / "page.html").read_text().count("</b>, 99") == 24  # as the file says, in the list and in the cells


def test_what_a_run_of_an_earlier_version_keeps_from_now_on_gives_the_same_page(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = answers_on(Path("run"), "test")
    write_predictions(Path("run"), answers, "test")
    assert "intervals" not in json.loads((place / "run/metrics.json").read_text())["test"]
    assert main(["report", "run"]) == 0
    page = (place / "run/report.html").read_text()
    assert main(["report", "run"]) == 0
    assert "heat maps are those that the run has kept" in capsys.readouterr().err
    assert (place / "run/report.html").read_text() == page


def test_validation_answers_are_read_where_there_is_no_test_split(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = json.loads(Path("run/metrics.json").read_text())
    del metrics["test"]
    Path("run/metrics.json").write_text(json.dumps(metrics))
    lines = Path("run/split.csv").read_text().splitlines(keepends=True)
    Path("run/split.csv").write_text("".join(line for line in lines if ",test," not in line))
    write_predictions(Path("run"), answers_on(Path("run"), "val"), "val")
    assert main(["report", "run", "--out", "page.html"]) == 0
    assert "the answers are those of run/predictions_val.csv" in capsys.readouterr().err


def test_images_that_cannot_be_read_any_more_are_counted(place: Path) -> None:
    rows = answers_on(Path("run"), "test")
    write_predictions(Path("run"), rows, "test")
    for row in rows[:2]:
        (place / "photos" / row["id"]).write_bytes(b"no image")
    assert main(["report", "run", "--out", "page.html"]) == 0
    html = (place / "page.html").read_text()
    assert "2 images of those chosen for this page can't be read any more, and have no thumbnail." in html
    assert html.count("url(data:image/webp") == len(rows) - 2


def test_thumbnails_have_the_range_of_the_models_preprocessing(place: Path) -> None:
    rows = answers_on(Path("run"), "test")
    write_predictions(Path("run"), rows, "test")
    card = json.loads(Path("run/model/tlkit.json").read_text())
    card["preprocessing"]["range_16bit"] = [0, 4095]  # of a 12-bit sensor
    Path("run/model/tlkit.json").write_text(json.dumps(card))
    for row in rows:
        Image.fromarray(np.full((28, 28), 2048, np.uint16)).save(place / "photos" / row["id"])
    assert main(["report", "run", "--out", "page.html"]) == 0
    found = re.findall(r"url\(data:image/webp;base64,([^)]+)\)", (place / "page.html").read_text())
    assert len(found) == len(rows)
    assert np.asarray(Image.open(BytesIO(base64.b64decode(found[0])))).mean() == pytest.approx(127.5, abs=2)  # 2048 of 4095


def test_without_its_images_the_page_says_so(place: Path) -> None:
    shutil.move("photos", "moved")
    assert main(["report", "run", "--out", "page.html"]) == 0
    html = (place / "page.html").read_text(encoding="utf-8")
    assert "No images are shown: " in html
    assert "photos" in html.partition("No images are shown: ")[2][:200]
    assert main(["report", "run", "data.source.folder=moved", "--out", "page.html"]) == 0
    assert "No images are shown" not in (place / "page.html").read_text(encoding="utf-8")


def test_interrupted_runs_are_refused_with_a_fix(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "run/metrics.json").unlink()
    assert main(["report", "run"]) == 2
    fix = "Resume it with the same command, --out run and --resume; in Python with finetune(.., resume=True)."
    assert f"run has no metrics.json: the run was interrupted, or is still going on.\n  {fix}" in capsys.readouterr().err
    (place / "folds/fold_1").mkdir(parents=True)
    assert main(["report", "folds"]) == 2
    assert "folds has no metrics.json: the run was interrupted, or is still going on." in capsys.readouterr().err


@pytest.mark.parametrize(("words", "shown"), [((), "measuring on test"), (("--tta", "flip"), "measuring on test, 2 views of each")])
def test_evaluate_shows_how_far_it_is(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], shown: str
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes any stream for a terminal then
    assert main(["evaluate", "run", *words]) == 0
    assert shown in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("metrics.json", "test", []),
        ("metrics.json", "test.lead", "acuracy"),
        ("metrics.json", "test.accuracy", "high"),
        ("metrics.json", "test.per_class.bag.f1", None),
        ("metrics.json", "test.confusion", None),
        ("metrics.json", "best", "first"),
        ("model/tlkit.json", "preprocessing.mean", "grey"),
        ("model/tlkit.json", "sha256", []),
    ],
)
def test_a_file_that_was_damaged_by_hand_is_named(
    place: Path, capsys: pytest.CaptureFixture[str], file: str, key: str, value: object
) -> None:
    facts = json.loads((place / "run" / file).read_text())
    *above, last = key.split(".")
    reduce(operator.getitem, above, facts)[last] = value
    (place / "run" / file).write_text(json.dumps(facts))
    assert main(["report", "run", "--out", "page.html"]) == 2
    assert f"run/{file}" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["metrics.json", "split.csv", "model/tlkit.json"])
def test_a_file_that_is_cut_off_is_named(place: Path, capsys: pytest.CaptureFixture[str], file: str) -> None:
    whole = (place / "run" / file).read_bytes()
    (place / "run" / file).write_bytes(whole[: whole.rindex(b",", 0, 2 * len(whole) // 3)])
    assert main(["report", "run", "--out", "page.html"]) == 2
    assert f"run/{file}" in capsys.readouterr().err


def test_answers_that_were_damaged_are_named_with_their_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = answers_on(Path("run"), "test")
    write_predictions(place / "run", [*rows[:3], {**rows[3], "probability": "high"}, *rows[4:]], "test")
    assert main(["report", "run", "--out", "page.html"]) == 2
    assert "run/predictions.csv can't be read: could not convert string to float: 'high'" in capsys.readouterr().err
    write_predictions(place / "run", rows, "test")
    text = (place / "run/predictions.csv").read_text()
    (place / "run/predictions.csv").write_text(text[: text.rindex(",")])
    assert main(["report", "run", "--out", "page.html"]) == 2
    assert f"run/predictions.csv can't be read: line {len(rows) + 1} is no id,label,answer,probability." in capsys.readouterr().err


SCRIPT = """
const shown = () => [...document.querySelectorAll(".cell")].filter(cell => getComputedStyle(cell).display !== "none");
const link = [...document.querySelectorAll(".confusion a")].find(link => link.getAttribute("href") !== "#");
link.click();
await new Promise(done => setTimeout(done));
const [cell] = shown(), head = document.querySelectorAll("table.sorts thead button")[4];
const column = () => [...document.querySelectorAll("table.sorts tbody tr")].map(row => Number(row.cells[4].dataset.v));
head.click(); const up = column(); head.click(); const down = column();
return {
  clicked: link.getAttribute("aria-label"), cells: shown().length, title: cell.getAttribute("aria-label"),
  images: cell.querySelectorAll(".im").length, up, down,
  requests: performance.getEntriesByType("resource").filter(entry => !entry.name.startsWith("data:")).length,
  wide: document.documentElement.scrollWidth - innerWidth,
};
"""


@pytest.mark.skipif(browser() is None, reason="needs Chromium")
def test_in_a_browser_a_cell_opens_its_images_the_table_sorts_and_nothing_is_requested(page: Path) -> None:
    found = json.loads(dom_after(page, SCRIPT))
    number, rest = found["clicked"].split(" of ")
    assert (found["cells"], found["title"], found["images"]) == (1, rest, int(number))
    assert found["up"] == sorted(found["up"])
    assert found["down"] == found["up"][::-1]
    assert (found["requests"], found["errors"]) == (0, [])
    assert found["wide"] <= 0
