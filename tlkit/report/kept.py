"""report.json: what report.html shows and no other file of the run keeps, so that the page is written again without the network."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from tlkit.evaluation.predictions import PREDICTIONS
from tlkit.files import sha256_of, write_atomically
from tlkit.report.images import Drawn, PageImages

FILE = "report.json"


def keep(run: Path, split: str, facts: Mapping[str, str], images: PageImages) -> None:
    """Write it. split: of the images that are shown."""
    drawn = Drawn(images.pictures, images.heat, images.no_heat, images.unreadable)
    if not images.missing and (files := _files(run, split)):
        write_atomically(run / FILE, json.dumps({"sha256": files, "facts": facts, "images": asdict(drawn)}))


def read_kept(run: Path, split: str) -> tuple[dict[str, str], Drawn] | None:
    """Return the facts and the images; None where the run has none, or none of the answers and weights that it has now."""
    try:
        kept = json.loads((run / FILE).read_text(encoding="utf-8"))
        if kept["sha256"] != _files(run, split):
            return None
        places = {name: {int(place): url for place, url in kept["images"][name].items()} for name in ("pictures", "heat")}
        return dict(kept["facts"]), Drawn(**{**kept["images"], **places})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # damaged, or of another version: it is only a shortcut
        return None


def _files(run: Path, split: str) -> dict[str, str]:
    """Return the sha256 of what the images depend on; empty where some of it isn't there."""
    files = [run / PREDICTIONS[split], *sorted((run / "model").glob("*.safetensors"))]
    return {file.name: sha256_of(file) for file in files} if len(files) > 1 and files[0].is_file() else {}
