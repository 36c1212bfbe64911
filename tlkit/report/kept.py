"""report.json: what report.html shows and no other file of the run keeps, so that the page is written again without the network."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from tlkit.evaluation.predictions import PREDICTIONS
from tlkit.files import sha256_of, write_atomically
from tlkit.report.images import Drawn, PageImages

FILE = "report.json"
DATA_URL = re.compile(r"data:image/webp;base64,[A-Za-z0-9+/]*={0,2}")
"""As `data_url` writes it. Another one in the page's style sheet could load something from elsewhere."""


def keep(run: Path, split: str, facts: Mapping[str, str], images: PageImages) -> None:
    """Write it, unless an image is missing, which may be there the next time. split: of the images that are shown."""
    drawn = Drawn(images.pictures, images.heat, images.no_heat)
    if not (images.missing or images.unreadable) and (files := _files(run, split)):
        write_atomically(run / FILE, json.dumps({"sha256": files, "facts": facts, "images": asdict(drawn)}))


def read_kept(run: Path, split: str) -> tuple[dict[str, str], Drawn] | None:
    """Return the facts and the images; None where the run has none, or none of the answers and weights that it has now."""
    try:
        kept = json.loads((run / FILE).read_text(encoding="utf-8"))
        if not (files := _files(run, split)) or kept["sha256"] != files:
            return None
        places = {name: {int(place): url for place, url in kept["images"][name].items()} for name in ("pictures", "heat")}
        if not all(DATA_URL.fullmatch(url) for urls in places.values() for url in urls.values()):
            return None
        return dict(kept["facts"]), Drawn(**{**kept["images"], **places})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        # Damaged, or of another version: it is only a shortcut.
        return None


def _files(run: Path, split: str) -> dict[str, str]:
    """Return the sha256 of what the images depend on; empty where some of it isn't there."""
    files = [run / PREDICTIONS[split], *sorted((run / "model").glob("*.safetensors"))]
    return {file.name: sha256_of(file) for file in files} if len(files) > 1 and files[0].is_file() else {}
