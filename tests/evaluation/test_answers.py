"""Logits and features of a split are those of the classifier, and what the head makes of the features are the logits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tlkit.data.preprocess import Preprocessing
from tlkit.data.samples import Sample, Samples
from tlkit.evaluation.answers import split_answers
from tlkit.models.create import create_classifier

PREPROCESSING = Preprocessing(32, "stretch", 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("head", [{"kind": "linear"}, {"kind": "locally_connected", "filters": 2}])
def test_logits_and_features_come_from_one_pass(tmp_path: Path, head: dict[str, Any]) -> None:
    torch.manual_seed(0)
    draws = np.random.default_rng(0)
    files = [tmp_path / f"{i}.png" for i in range(5)]
    for file in files:
        Image.fromarray(draws.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)
    samples = Samples(("a", "b"), tuple(Sample(file.name, file, (i % 2,), "test") for i, file in enumerate(files)))
    classifier = create_classifier("test_resnet", ("a", "b"), PREPROCESSING, weights="random", head=head).eval()
    found = split_answers(classifier, samples, "test", PREPROCESSING, batch_size=2)
    with torch.inference_mode():
        images = classifier.preprocess(files)
        features = classifier.features(images)
        torch.testing.assert_close(found.logits, classifier(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.features, features.mean((2, 3)) if features.ndim == 4 else features, rtol=1e-4, atol=1e-5)
    assert found.labels.tolist() == [0, 1, 0, 1, 0]
    bare = split_answers(classifier, samples, "test", PREPROCESSING, batch_size=2, features=False)
    assert torch.equal(bare.logits, found.logits)
    assert bare.features.shape == (5, 0)
