"""metrics.json and metrics.csv: what a run measured. No torch, so that what is no run is reported at once."""

import csv
import json
from math import nan
from pathlib import Path
from typing import Any

from tlkit.errors import RunError, as_written


def read_metrics(run: Path) -> dict[str, Any]:
    """Return metrics.json of a run, of folds, of seeds or of a soup. Raises RunError if there is none, or if it is damaged."""
    file = run / "metrics.json"
    with as_written(file, OSError):
        try:
            metrics: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            fix = f"Resume it with the same command, --out {run} and --resume; in Python with finetune(.., resume=True)."
            raise RunError(f"{run} has no metrics.json: the run was interrupted, or is still going on.\n  {fix}") from error
        if not isinstance(metrics["val"], dict):
            raise ValueError("val is no mapping")
    return metrics


def read_epochs(run: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv, with phases and epochs counted from 1. Raises RunError if it can't be read."""
    file = run / "metrics.csv"
    with as_written(file, OSError, csv.Error):
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        before = int(any(row["epoch"] == "0" for row in rows))  # earlier versions counted from 0
        return [{**row, **{key: str(int(row[key]) + before) for key in ("phase", "epoch")}} for row in rows]


def epoch_rows(run: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.csv as numbers, phases and epochs counted from 1."""
    if not (run / "metrics.csv").exists():
        return []
    rows = read_epochs(run)
    with as_written(run / "metrics.csv"):
        numbers = [{key: float(value) if value else nan for key, value in row.items()} for row in rows]
        return [{**row, "phase": int(row["phase"]), "epoch": int(row["epoch"])} for row in numbers]
