"""What `--resume` resumes from, and whether it may: recipe and images must be those that the run began with."""

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlkit.data.samples import Samples
from tlkit.data.splits.holdout import read_manifest
from tlkit.errors import RecipeError, RunError
from tlkit.recipe.differences import flat_values
from tlkit.recipe.fields.data import FindBatchSize
from tlkit.recipe.load import load_recipe
from tlkit.recipe.schema import Recipe
from tlkit.terminal import counted
from tlkit.training.outputs.run_folder import RECIPE_FILE

if TYPE_CHECKING:
    from tlkit.training.checkpointing.files import Checkpoint

LOG = logging.getLogger("tlkit")

MAY_CHANGE = ("data.workers", "data.on_bad", "data.leak_check", "trainer.checkpoint_every.minutes")
"""Keys that don't affect training: a job that is queued again may run on another machine, and a test image may have become
unreadable since. split.csv shows whether a training image has."""
SHOWN = 12


@dataclass(frozen=True)
class Resumed:
    """state: the content of the checkpoint."""

    checkpoint: "Checkpoint"
    state: Mapping[str, Any]

    @property
    def seconds(self) -> float:
        """Return the seconds that the run has taken up to here."""
        return float(self.state["run"]["run_seconds"])


def recipe_as_begun(run: Path, recipe: Recipe) -> Recipe:
    """Return the recipe, with the batch size that was found for it when the run began.

    Raises RunError, with every key that differs, if the run began with another recipe.
    """
    try:
        before = load_recipe(run / RECIPE_FILE)
    except RecipeError as error:
        raise RunError(f"{run / RECIPE_FILE} can't be read by this tlkit, so the run can't be resumed:\n{error}") from error
    if isinstance(recipe.data.batch_size, FindBatchSize):
        found = recipe.data.model_copy(update={"batch_size": before.data.batch_size})
        recipe = recipe.model_copy(update={"data": found}).at_places_of(recipe)
    was, now = (dict(flat_values("", each.model_dump(mode="json", by_alias=True))) for each in (before, recipe))
    changed = [key for key in {**was, **now} if was.get(key, "") != now.get(key, "") and key not in MAY_CHANGE]
    if changed:
        lines = [f"    {key}: {_format_value(was, key)} -> {_format_value(now, key)}" for key in changed[:SHOWN]]
        if len(changed) > SHOWN:
            lines.append(f"    and {len(changed) - SHOWN} more")
        reported = "\n".join(lines)
        raise RunError(
            f"{run} began with another recipe (was -> is):\n{reported}\n"
            f"  Resume with the recipe as it was, {run / RECIPE_FILE}; {', '.join(MAY_CHANGE)} may change.\n"
            "  Or start again in another --out, by --init-from with the weights of a finished run."
        )
    return recipe


def in_splits_as_begun(samples: Samples, manifest: Path) -> Samples:
    """Return the samples in the splits of split.csv, from which drawing them without those left out since would differ.

    Those that the run doesn't have stay as they are, for `check_same_images` to refuse.
    """
    splits = {row["id"]: row["split"] for row in read_manifest(manifest)}
    drawn = {splits[sample.id] for sample in samples.samples if sample.split in ("", "train") and sample.id in splits} - {"train"}
    placed = tuple(replace(sample, split=splits.get(sample.id, sample.split)) for sample in samples.samples)
    return replace(samples, samples=placed, drawn=frozenset(drawn))


def check_same_images(manifest: Path, rows: Sequence[Mapping[str, str]], *, left_out: Collection[str] = ()) -> None:
    """Raise RunError, with the number and the first ids, if images, labels or splits aren't those that the run began with.

    manifest: split.csv; nothing is compared if the run hadn't come so far. rows: those of now. left_out: ids of images that can't be
    read, which the test split may lack: nothing was trained on it.
    """
    if not manifest.is_file():
        return
    before = read_manifest(manifest)
    lost = [row["id"] for row in before if row["id"] in left_out and row["split"] == "test"]
    if lost:
        words = counted(len(lost), "test image can't be read any more and is", "test images can't be read any more and are")
        LOG.warning("%s not measured, such as %s", words, lost[0])
    reported = image_changes([row for row in before if row["id"] not in set(lost)], rows)
    if reported:
        raise RunError(
            "The images are not those that the run began with ({}):\n{}\n  Restore them, or start again in another --out.".format(
                manifest, "\n".join(reported)
            )
        )


def image_changes(was: Sequence[Mapping[str, str]], now: Sequence[Mapping[str, str]]) -> list[str]:
    """Describe the changes between two splits, one line per kind, with the number and the first ids; none if they are equal."""
    before, after = ({row["id"]: dict(row) for row in each} for each in (was, now))
    kinds = {
        "changed": [name for name in before if name in after and before[name]["sha256"] != after[name]["sha256"]],
        "gone": [name for name in before if name not in after],
        "new": [name for name in after if name not in before],
        "with another label, split or group": [
            name for name in before if name in after and {**before[name], "sha256": ""} != {**after[name], "sha256": ""}
        ],
    }
    return [f"    {len(names)} {kind}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}" for kind, names in kinds.items() if names]


def newest_state(run: Path, phases: int) -> Resumed | None:
    """Return the last complete checkpoint, logged; None if the run starts from the beginning. phases: of the recipe."""
    from tlkit.training.checkpointing.files import good_checkpoints

    good = good_checkpoints(run / "checkpoints")
    if not good:
        LOG.info("resumed: there is no checkpoint to resume from, so the run starts from the beginning")
        return None
    checkpoint, about = good[-1], good[-1].about
    where = f"epoch {about['epoch'] + 1}" + (f", after batch {about['batch']}" if about["batch"] else "")
    trained = about["phase"] >= phases
    LOG.info("resumed from %s: %s", checkpoint.file, "all phases are done" if trained else f"phase {about['phase'] + 1}, {where}")
    for name, was in about["versions"].items():
        if (now := version(name)) != was:
            LOG.warning("the run began with %s %s and is resumed with %s: the last digits may differ", name, was, now)
    return Resumed(checkpoint, checkpoint.load())


def _format_value(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "(not there)"
