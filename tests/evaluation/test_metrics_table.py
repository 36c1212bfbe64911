"""The table of `tlkit evaluate`."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tlkit.commands.evaluate import metrics_table
from tlkit.data.samples import Sample, Samples
from tlkit.evaluation.evaluate import measure_logits


def test_metrics_are_shown_with_the_intervals_of_groups_where_there_are_groups() -> None:
    shades, labels = torch.eye(2)[[0, 0, 1, 1, 0, 0, 1, 1]], (0, 0, 0, 0, 1, 1, 1, 1)
    images = [Sample(f"{i}.png", Path(f"{i}.png"), (label,), "test", group=f"patient {i // 2}") for i, label in enumerate(labels)]
    samples = Samples(("dark", "light"), (*images, *(replace(image, id=f"t{image.id}", split="train") for image in images)))
    measured = measure_logits(shades, torch.tensor(labels), samples=samples, split="test", thresholds=())
    table = metrics_table(measured).splitlines()
    low, high = measured["intervals"]["accuracy"]
    assert [low, high] == pytest.approx([0.15, 0.85], abs=0.01)  # Wilson of 2 in 4 groups, each right or wrong as a whole
    assert f"accuracy               0.5000  (95 % interval {low:.3f} to {high:.3f}, 8 images in 4 groups)" in table
    span = [measured["intervals"]["per_class"]["dark"]["recall"], measured["intervals"]["macro"]["recall"]]
    assert re.search(rf"^dark +4 .* 0.500 \({span[0][0]:.2f}-{span[0][1]:.2f}\)", "\n".join(table), re.MULTILINE)
    assert re.search(rf"^mean  .* 0.500 \({span[1][0]:.2f}-{span[1][1]:.2f}\)", "\n".join(table), re.MULTILINE)
