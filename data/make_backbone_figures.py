"""Writes tlkit/models/parameters.csv and tlkit/models/imagenet_top1.csv, what `tlkit models` says of every backbone.

    python data/make_backbone_figures.py parameters      # no network; some minutes
    python data/make_backbone_figures.py top1            # downloads timm's results file of one commit

Parameters are counted on torch's meta device, which needs no memory for weights. Top-1 is what timm and torchvision have published;
of timm's file the rows are taken whose name the installed timm has weights for.
"""

import argparse
import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.request import urlopen

import timm
import torch
import torchvision

import tlkit.models.backbones  # registers tlkit's own networks with timm
from tlkit.models.catalog import list_models

FOLDER = Path(tlkit.models.backbones.__file__).parent
COMMIT = "0173a139a2c66db3a41ebfe1d8ac4fb02483642e"
RESULTS = f"https://raw.githubusercontent.com/huggingface/pytorch-image-models/{COMMIT}/results/results-imagenet.csv"


def parameters(names: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Name -> parameters with 1000 classes; the auxiliary heads of googlenet, which training alone has, are not counted."""
    for name in names:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=1000)
        yield name, sum(parameter.numel() for key, parameter in model.named_parameters() if not key.startswith("aux"))


def top1(results: str, known: Iterable[str]) -> dict[str, str]:
    """Backbone with its tag -> top-1 in percent. results: timm's results-imagenet.csv. known: names of weights."""
    published = {row["model"]: row["top1"] for row in csv.DictReader(io.StringIO(results))}
    googlenet = torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    published["googlenet.tv_in1k"] = f"{googlenet:.3f}"
    return {name: published[name] for name in known if name in published}


def write(file: Path, notes: list[str], figure: str, rows: Mapping[str, object]) -> None:
    lines = [*(f"# {note}" for note in notes), f"backbone,{figure}", *(f"{name},{rows[name]}" for name in sorted(rows))]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{file}: {len(rows)} rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=["parameters", "top1"])
    by = "Written by data/make_backbone_figures.py."
    if parser.parse_args().figure == "parameters":
        notes = [f"Parameters with 1000 classes, timm {timm.__version__}. {by}"]
        write(FOLDER / "parameters.csv", notes, "parameters", dict(parameters(list_models())))
        return
    with urlopen(RESULTS, timeout=30) as response:  # https, above
        results = response.read().decode()
    notes = [
        f"ImageNet-1k top-1 in percent: timm's results/results-imagenet.csv (Apache-2.0) at commit {COMMIT},",
        f"for the names of timm {timm.__version__}; googlenet from torchvision {torchvision.__version__.partition('+')[0]} (BSD-3-Clause).",
        by,
    ]
    write(FOLDER / "imagenet_top1.csv", notes, "top1", top1(results, timm.list_pretrained()))


if __name__ == "__main__":
    main()
