"""A recipe that a search writes is the user's own: with its comments and order, and nothing that it didn't have."""

from pathlib import Path

from tlkit.recipe.edit import edited_recipe
from tlkit.recipe.load import load_recipe

RECIPE = """# my photos
name: photos          # of 2024
model: {backbone: resnet18, weights: random}
data:
  source: {folder: photos}
  # small ones
  image_size: 32
phases:
  - {train: head, epochs: 2, lr: 1e-2}   # the head
search: {'phases[0].lr': {log: [1e-4, 1e-1]}}
"""


def test_comments_order_and_what_is_left_to_its_default_stay(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(RECIPE)
    values = {"phases[0].lr": 0.0031, "ema.decay": 0.9, "augment": ["HorizontalFlip", {"Rotate": {"limit": 15}}]}
    text = edited_recipe(tmp_path / "mine.yaml", ["data.limit=30", "search.seed={int: [0, 3]}"], values, by="tlkit tune")
    (tmp_path / "best.yaml").write_text(text)
    first, *lines = text.splitlines()
    changed = "data.limit, phases[0].lr, ema.decay, augment"
    assert first == f"# Written by tlkit tune: {changed}. Everything else is as it was in mine.yaml."
    expected = RECIPE.replace("1e-2}  ", "0.0031}").splitlines()[:9]
    assert lines == [*expected[:7], "  limit: 30", *expected[7:], "ema:", "  decay: 0.9", "augment: [HorizontalFlip, Rotate: {limit: 15}]"]
    found = load_recipe(tmp_path / "best.yaml")
    overrides = ["data.limit=30", "search=null", "phases[0].lr=0.0031", "ema.decay=0.9", "augment=[HorizontalFlip, Rotate: {limit: 15}]"]
    assert found.model_dump() == load_recipe(tmp_path / "mine.yaml", overrides).model_dump()
    assert "search" not in text


def test_the_comment_behind_a_value_that_was_changed_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "# mine\nname: a\naugment: light   # mirrors too\n\n# the network\nseed: 1  # drawn\ndata:\n  limit: 9  # few\n"
    )
    text = edited_recipe(tmp_path / "mine.yaml", [], {"augment": ["VerticalFlip"], "data.limit": 3}, by="a test")
    assert text.partition("\n")[2] == "# mine\nname: a\naugment: [VerticalFlip]\n\n# the network\nseed: 1  # drawn\ndata:\n  limit: 3\n"


def test_every_bundled_recipe_can_be_edited(tmp_path: Path) -> None:
    for file in sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml")):
        (tmp_path / "edited.yaml").write_text(edited_recipe(file, [], {"seed": 7}, by="a test"), encoding="utf-8")
        assert load_recipe(tmp_path / "edited.yaml").model_dump() == load_recipe(file, ["seed=7"]).model_dump()
