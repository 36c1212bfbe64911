"""The result of training, saved until the model is measured: a run whose measuring fails isn't trained again."""

import json
import logging
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tlkit.files import write_atomically

if TYPE_CHECKING:
    from tlkit.training.phases import Trained

LOG = logging.getLogger("tlkit")

FILE = "checkpoints/trained.json"


def write_trained(run: Path, trained: "Trained", *, seconds: float) -> None:
    """Mark the run as trained; call it when the model folder is complete. seconds: that the run has taken up to here."""
    facts = {field.name: getattr(trained, field.name) for field in fields(trained) if field.name != "device"}
    write_atomically(run / FILE, json.dumps({**facts, "run_seconds": seconds}))


def read_trained(run: Path, device: torch.device) -> "tuple[Trained, float] | None":
    """Return what was trained, and the seconds that the run had taken; None where the run isn't trained or has no model."""
    from tlkit.training.phases import Trained

    if not (run / FILE).is_file() or not (run / "model" / "tlkit.json").is_file():
        return None
    facts = json.loads((run / FILE).read_text(encoding="utf-8"))
    LOG.info("resumed: the model is trained, and is measured now")
    seconds = float(facts.pop("run_seconds"))
    return Trained(**facts, device=device), seconds


def remove_trained(run: Path) -> None:
    (run / FILE).unlink(missing_ok=True)
