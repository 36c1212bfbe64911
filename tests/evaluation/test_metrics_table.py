"""The table of `tlkit evaluate`."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.stats import norm
from scipy.stats import t as student_t

from tlkit.commands.evaluate import metrics_table
from tlkit.data.samples import Sample, Samples
from tlkit.evaluation.evaluate import measure_logits
from tlkit.evaluation.intervals import wilson


def test_metrics_are_shown_with_the_intervals_of_groups_where_there_are_groups() -> None:
    shades, labels = torch.eye(2)[[0, 0, 1, 1, 0, 0, 1, 1]], (0, 0, 0, 0, 1, 1, 1, 1)
    images = [Sample(f"{i}.png", Path(f"{i}.png"), (label,), "test", group=f"patient {i // 2}") for i, label in enumerate(labels)]
    samples = Samples(("dark", "light"), (*images, *(replace(image, id=f"t{image.id}", split="train") for image in images)))
    measured = measure_logits(shades, torch.tensor(labels), samples=samples, split="test", thresholds=())
    # Of the others, what is printed is compared with numbers that nothing else has.
    measured["intervals"]["per_class"]["dark"]["recall"], measured["intervals"]["macro"]["recall"] = [0.123, 0.876], [0.234, 0.765]
    table = metrics_table(measured)
    accuracy = re.search(r"^accuracy {15}0\.5000  \(95 % interval (0\.\d{3}) to (0\.\d{3}), 8 images in 4 groups\)$", table, re.MULTILINE)
    assert accuracy is not None
    # Two of four groups, each right or wrong as a whole: four images, less by 3 / 4 and by the t of three degrees of freedom.
    number = 4 * 3 / 4 * (norm.ppf(0.975) / student_t.ppf(0.975, 3)) ** 2
    assert [float(bound) for bound in accuracy.groups()] == pytest.approx(wilson(0.5, number).tolist(), abs=0.01)
    assert re.search(r"^dark +4 .* 0\.500 \(0\.12-0\.88\)", table, re.MULTILINE)
    assert re.search(r"^mean  .* 0\.500 \(0\.23-0\.77\)", table, re.MULTILINE)
