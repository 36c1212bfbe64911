"""docs/choosing.md has the table that `tlkit init` chooses by."""

from pathlib import Path

from tlkit.recipe.fields.phases import Phase
from tlkit.search.choices import BACKBONES, LAYER_DECAY, SIZES, STEPS, WAYS
from tlkit.training.specs import ENOUGH_FOR_STATISTICS

DOCS = Path(__file__).parents[2] / "docs"


def test_docs_have_the_table_that_is_used() -> None:
    assert choices_table() in (DOCS / "choosing.md").read_text(encoding="utf-8")


def test_auto_keeps_statistics_below_as_many_images_as_init_does_and_its_description_says() -> None:
    assert max(way.below for way in WAYS if way.batchnorm == "frozen") == ENOUGH_FOR_STATISTICS
    assert f"below {ENOUGH_FOR_STATISTICS:,} training images" in str(Phase.model_fields["batchnorm"].description)


def choices_table() -> str:
    """Return the table of docs/choosing.md, in Markdown."""
    lines = ["| training images | phase after the solved head | lr | layer decay | batch-norm | augment | basis |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for way in WAYS:
        rate = f"{way.share:g} of the backbone's" if way.second else ""
        second = f"`{way.second}`" if way.second else "none"
        decay, batchnorm = (LAYER_DECAY, way.batchnorm) if way.second else ("", "")
        lines.append(f"| {_below(way.below)} | {second} | {rate} | {decay} | {batchnorm} | {way.augment or 'none'} | {way.basis} |")
    lines += ["", "| training images | steps of the second phase, at most | basis |", "|---|---|---|"]
    lines += [f"| {_below(row.below)} | {row.steps:,} | {row.basis} |" for row in STEPS]
    lines += ["", "| median shorter side | image size, the first that fits | basis |", "|---|---|---|"]
    lines += [
        f"| {_below(row.below)}{' px' if row.below < 10**6 else ''} | {', '.join(map(str, row.sides))} | {row.basis} |" for row in SIZES
    ]
    lines += ["", "| backbone, the first that fits | GMACs at 224 px | lr | basis |", "|---|---|---|---|"]
    lines += [f"| `{row.name}` | {row.gmacs:g} | {row.lr:g} | {row.basis} |" for row in BACKBONES]
    return "\n".join(lines)


def _below(number: int) -> str:
    return f"below {number:,}" if number < 10**9 else "more"
