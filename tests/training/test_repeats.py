"""Cross-validation and quick trials from end to end, on real image files."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.shades import draw_shades
from tlkit.cli import main
from tlkit.deploy.predict.predict import predict
from tlkit.errors import DataError, RecipeError, RunError
from tlkit.evaluation.evaluate import evaluate
from tlkit.models.model_folder import load_with_card
from tlkit.planning.plan import make_plan
from tlkit.planning.plan_table import print_plan
from tlkit.recipe.load import load_recipe
from tlkit.recipe.schema import Recipe
from tlkit.recipe.summary import recipe_summary
from tlkit.training.finetune import run_recipe
from tlkit.training.repeats import print_repeats, repeats_of, summarize

RECIPE = """
name: shades
data: {source: {folder: pictures}, image_size: 32, resize: stretch, normalize: none, batch_size: 8, test: 0.25, folds: 3}
model: {backbone: test_resnet, weights: random}
phases: [{train: head, epochs: 2, lr: 1e-2}]
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 noisy images each of light and dark."""
    folder = tmp_path_factory.mktemp("shades")
    draw_shades(folder / "pictures")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def recipe(workplace: Path, *overrides: str) -> Recipe:
    return load_recipe(workplace / "recipe.yaml", [f"data.source={{folder: {workplace / 'pictures'}}}", *overrides])


@pytest.fixture(scope="module")
def run(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return run_recipe(recipe(workplace), out=workplace / "run")


def test_each_fold_is_a_whole_run(run: Path, workplace: Path) -> None:
    assert sorted(path.name for path in run.iterdir()) == [
        *("fold_1", "fold_2", "fold_3", "log.txt", "metrics.json", "recipe.yaml", "report.html")
    ]
    image = workplace / "pictures/dark/00.png"
    for fold in (1, 2, 3):
        folder = run / f"fold_{fold}"
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["fold"] == {"number": fold, "of": 3}
        assert metrics["pictures"] == {"train": 20, "val": 10, "test": 10}
        assert evaluate(folder, split="val") == metrics["val"]
        assert predict(folder, [image])[1][0].error is None
        assert f"fold {fold} of 3: 20 training" in (folder / "log.txt").read_text()
        assert f"fold {fold} of 3" in (folder / "report.html").read_text()


def test_the_summary_is_the_mean_and_the_range_of_the_folds(run: Path) -> None:
    each = [json.loads((run / f"fold_{fold}" / "metrics.json").read_text()) for fold in (1, 2, 3)]
    summary = json.loads((run / "metrics.json").read_text())
    for split in ("val", "test"):
        values = [metrics[split]["accuracy"] for metrics in each]
        found = summary["over_folds"][split]["accuracy"]
        assert found == {"mean": pytest.approx(np.mean(values)), "min": min(values), "max": max(values), "folds": values}
        assert summary[split]["accuracy"] == found["mean"]
    assert "mean of 3 folds" in (run / "report.html").read_text()
    assert "3 folds done" in (run / "log.txt").read_text()


def test_the_page_of_folds_is_written_again_as_it_was(run: Path) -> None:
    assert main(["report", str(run), "--out", str(run / "again.html")]) == 0
    assert (run / "again.html").read_text() == (run / "report.html").read_text()


def test_folds_find_the_activations_of_the_first(run: Path) -> None:
    said = [(run / f"fold_{fold}" / "log.txt").read_text() for fold in (1, 2, 3)]
    assert "frozen part run once, up to the features: 40 images" in said[0]
    for text in said[1:]:
        assert "activations of 40 images found" in text


def test_the_folder_of_a_cross_validation_names_its_folds_where_a_model_is_wanted(run: Path, workplace: Path) -> None:
    with pytest.raises(RunError, match=r"Name one of them: .*fold_1, .*fold_2, .*fold_3. All of them together: tlkit report "):
        predict(run, [workplace / "pictures/dark/00.png"])
    with pytest.raises(RunError, match=r"Name one of them: .*fold_1, .*fold_2, .*fold_3. All of them together: tlkit report "):
        evaluate(run, split="test")


def test_a_split_that_names_a_class_that_the_model_lacks_is_refused(run: Path, workplace: Path) -> None:
    split = run / "fold_3" / "split.csv"
    before = split.read_text()
    try:
        split.write_text(before.replace(",dark,", ",drak,", 1))
        with pytest.raises(DataError, match=r"class 'drak' is not one of the model's.*Did you mean 'dark'"):
            evaluate(run / "fold_3", split="test")
    finally:
        split.write_text(before)


def test_the_plan_and_the_summary_say_how_many_folds_and_how_few_images(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    limited = recipe(workplace, "data.limit=24")
    print_plan(make_plan(limited), Console(width=100))
    said = " ".join(capsys.readouterr().out.split())
    assert "fold 1 of 3: 12 training, 6 validation, 6 test images in 2 classes (of 40, by data.limit)" in said
    assert "3 runs of what follows, each validated on its own fold" in said
    assert ", 3 times: " in said
    assert "24 images" in recipe_summary(limited)
    assert "3 runs" in recipe_summary(limited)


def test_a_limited_run_says_so_in_its_log_and_metrics(workplace: Path, tmp_path: Path) -> None:
    folder = run_recipe(recipe(workplace, "data.folds=null", "data.limit=0.5"), out=tmp_path / "run")
    assert json.loads((folder / "metrics.json").read_text())["limited_from"] == 40
    for file in ("log.txt", "report.html"):
        assert "(of 40, by data.limit)" in (folder / file).read_text()


@pytest.fixture(scope="module")
def seeds(workplace: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLKIT_CACHE", str(workplace / "cache of seeds"))
        return run_recipe(recipe(workplace, "data.folds=null", "seed=4", "phases[0].epochs=1"), out=workplace / "seeds", seeds=3)


def test_each_seed_is_a_whole_run(seeds: Path) -> None:
    assert sorted(path.name for path in seeds.iterdir()) == [
        *("log.txt", "metrics.json", "recipe.yaml", "report.html", "seed_4", "seed_5", "seed_6")
    ]
    assert [load_recipe(seeds / f"seed_{seed}" / "recipe.yaml").seed for seed in (4, 5, 6)] == [4, 5, 6]
    weights = {(seeds / f"seed_{seed}" / "model/model.safetensors").read_bytes() for seed in (4, 5, 6)}
    assert len(weights) == 3


def test_the_summary_of_seeds_has_mean_range_and_interval(seeds: Path) -> None:
    each = [json.loads((seeds / f"seed_{seed}" / "metrics.json").read_text())["test"]["accuracy"] for seed in (4, 5, 6)]
    summary = json.loads((seeds / "metrics.json").read_text())
    found = summary["over_seeds"]["test"]["accuracy"]
    assert (found["mean"], found["range"], found["seeds"]) == (pytest.approx(np.mean(each)), [min(each), max(each)], each)
    reach = 4.302653 * np.std(each, ddof=1) / 3**0.5  # t of 0.975 with two degrees of freedom, from its table
    assert found["interval"] == pytest.approx(np.clip([np.mean(each) - reach, np.mean(each) + reach], 0, 1), abs=1e-6)
    assert summary["test"]["accuracy"] == found["mean"]
    html = (seeds / "report.html").read_text().replace("&nbsp;", " ").replace("\xa0", " ")
    half = max(found["interval"][1] - found["interval"][0], 1e-6) / 2
    digits = np.clip(round(1 - np.log10(100 * half)), 0, 2)  # of percent: the last is about a tenth of half the interval
    assert f"<b>{100 * found['mean']:.{digits}f} %</b> test accuracy, the mean of 3 seeds" in html
    assert 'href="seed_6/report.html"' in html


def test_the_page_of_seeds_has_curves_and_the_mean_and_range_of_each_class(seeds: Path) -> None:
    each = [json.loads((seeds / f"seed_{seed}" / "metrics.json").read_text())["test"]["per_class"]["light"]["recall"] for seed in (4, 5, 6)]
    html = (seeds / "report.html").read_text().replace("\xa0", " ")
    assert html.count("<svg") == 2  # accuracy and loss
    row = html.partition('<th scope="row" data-v="light"')[2].partition("</tr>")[0]
    mean, low, high = (f"{100 * share:.0f}" for share in (np.mean(each), min(each), max(each)))
    assert f"{mean} %<small>{low} to {high} %</small></td>" in row.replace("&nbsp;", " ")
    assert "<code>tlkit finetune recipe.yaml --seeds 3</code>" in html
    again = seeds / "again.html"
    assert main(["report", str(seeds), "--out", str(again)]) == 0
    assert again.read_text().replace("\xa0", " ") == html


def test_seeds_that_are_all_right_have_no_weakest_class(seeds: Path, tmp_path: Path) -> None:
    shutil.copytree(seeds, tmp_path / "seeds")
    for file in (tmp_path / "seeds").glob("seed_*/metrics.json"):
        metrics = json.loads(file.read_text())
        for row in metrics["test"]["per_class"].values():
            row["f1"] = 1.0
        file.write_text(json.dumps(metrics))
    assert "The weakest class is" in (seeds / "report.html").read_text()
    assert main(["report", str(tmp_path / "seeds")]) == 0
    assert "weakest" not in (tmp_path / "seeds/report.html").read_text()


def test_the_page_of_seeds_takes_no_overrides_since_it_needs_no_images(seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (seeds / "report.html").read_bytes()
    assert main(["report", str(seeds), "data.source.folder=elsewhere"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "is about its seeds together, and needs no images. Leave data.source.folder=elsewhere out." in said
    assert f"tlkit report {seeds / 'seed_4'} data.source.folder=elsewhere" in said
    assert (seeds / "report.html").read_bytes() == before


def test_a_resume_with_fewer_seeds_is_of_those_alone(seeds: Path, workplace: Path, tmp_path: Path) -> None:
    shutil.copytree(seeds, tmp_path / "fewer")
    for name in ("report.html", "metrics.json", "seed_6/report.html", "seed_6/metrics.json"):
        (tmp_path / "fewer" / name).unlink()
    fewer = run_recipe(recipe(workplace, "data.folds=null", "seed=4", "phases[0].epochs=1"), out=tmp_path / "fewer", resume=True, seeds=2)
    html = (fewer / "report.html").read_text()
    assert "the mean of 2 seeds" in html
    assert "seed_6" not in html


def test_a_resume_with_more_seeds_trains_those_that_lack(seeds: Path, workplace: Path, tmp_path: Path) -> None:
    shutil.copytree(seeds, tmp_path / "more")
    more = run_recipe(recipe(workplace, "data.folds=null", "seed=4", "phases[0].epochs=1"), out=tmp_path / "more", resume=True, seeds=4)
    assert "the mean of 4 seeds" in (more / "report.html").read_text()
    assert (more / "seed_4/metrics.json").read_bytes() == (seeds / "seed_4/metrics.json").read_bytes()


def test_what_needs_one_run_names_a_seed(seeds: Path) -> None:
    with pytest.raises(
        RunError, match=r"several seeds: each seed has its own run folder.\n  Name one of them: .*seed_4, .*seed_5, .*seed_6. All"
    ):
        evaluate(seeds, split="val")
    with pytest.raises(RunError, match=r"several seeds: each seed has a model of its own"):
        load_with_card(seeds)


def test_the_next_command_of_folds_trains_on_all_images_and_that_of_seeds_predicts(
    run: Path, seeds: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_folds, of_seeds = recipe(workplace), recipe(workplace, "data.folds=null", "seed=4")
    commands = []
    for folder, repeats in ((run, repeats_of(of_folds, None)), (seeds, repeats_of(of_seeds, 3))):
        print_repeats(folder, repeats, json.loads((folder / "metrics.json").read_text()), repeats[0].prepare().samples)
        *_, label, command = capsys.readouterr().out.splitlines()
        assert label == "next:"
        commands.append(shlex.split(command)[1:])
    (finetune, file, *overrides), (predict, *words) = commands
    assert (finetune, load_recipe(file, overrides).data.folds) == ("finetune", None)
    assert (predict, words[0]) == ("predict", str(seeds / "seed_4"))
    assert main(commands[1]) == 0


def test_finished_seeds_are_left_alone_when_it_resumes(seeds: Path, workplace: Path) -> None:
    before = (seeds / "seed_4/metrics.json").stat().st_mtime_ns
    (seeds / "report.html").unlink()
    again = run_recipe(recipe(workplace, "data.folds=null", "seed=4", "phases[0].epochs=1"), out=seeds, resume=True, seeds=3)
    assert (again / "report.html").is_file()
    assert (seeds / "seed_4/metrics.json").stat().st_mtime_ns == before


def test_the_seconds_of_seeds_are_those_of_all_also_after_a_resume(seeds: Path, workplace: Path) -> None:
    each = [json.loads((seeds / f"seed_{seed}/metrics.json").read_text())["seconds"]["total"] for seed in (4, 5, 6)]
    (seeds / "report.html").unlink()
    run_recipe(recipe(workplace, "data.folds=null", "seed=4", "phases[0].epochs=1"), out=seeds, resume=True, seeds=3)
    assert json.loads((seeds / "metrics.json").read_text())["seconds"]["total"] > sum(each) - 0.01


def test_seeds_that_gave_the_same_say_so_in_place_of_an_interval(seeds: Path, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    each = json.loads((seeds / "seed_4/metrics.json").read_text())
    summary = summarize([each, each, each], "seed")
    found = summary["over_seeds"]["test"]["accuracy"]
    assert found["interval"] == found["range"] == [each["test"]["accuracy"]] * 2
    repeats = repeats_of(recipe(workplace, "data.folds=null", "seed=4"), 3)
    print_repeats(seeds, repeats, summary, repeats[0].prepare().samples)
    assert f"{each['test']['accuracy']:.3f}  (all 3 seeds gave the same)" in capsys.readouterr().out


def test_a_folder_above_seeds_names_theirs_and_not_the_last_seed(seeds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs/shades").mkdir(parents=True)
    (tmp_path / "runs/shades/001").symlink_to(seeds)
    for wrong in ("runs/shades", "runs/shades/1"):
        assert main(["report", str(tmp_path / wrong)]) == 2
        assert capsys.readouterr().err.endswith(f"Did you mean {tmp_path}/runs/shades/001?\n")


def test_folds_and_seeds_are_one_or_the_other(workplace: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe.yaml:3: data.folds = 3 can't be combined with --seeds 2"):
        run_recipe(recipe(workplace), out=workplace / "both", seeds=2)
    assert not (workplace / "both").exists()
