"""`tlkit drift RUN FOLDER`: how the images of a folder differ from those that a run's model knows.

They are compared with the run's validation images. Those of training are fitted: held-out images of the same kind differ from them, too.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from tlkit.data.dataset import ImageDataset, make_loader
from tlkit.data.decode import image_size
from tlkit.data.preprocess import Preprocessing
from tlkit.data.samples import Sample, evenly_spread
from tlkit.deploy.predict.inputs import check_paths, file_names
from tlkit.deploy.predict.stream import batches
from tlkit.errors import DataError
from tlkit.evaluation.answers import Answers, logits_and_features
from tlkit.evaluation.evaluate import OpenSplit, open_split
from tlkit.evaluation.two_samples import feature_test, holm, share_test, value_test
from tlkit.evaluation.unknown import NEIGHBOURS, scores
from tlkit.models.classifier import Classifier
from tlkit.models.inference.trust import Trust
from tlkit.models.inference.unknown import UnknownScore
from tlkit.terminal import counted

FALSE_ALARMS = 0.05
FEWEST, MOST = 10, 1000
"""Images of a side. Of more, so many are drawn."""
NAMED = 10
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """Of N images. brightness: of the image as the network sees it, 0 to 255. size: the root of its pixels, as the file has them."""

    names: tuple[str, ...]
    answers: Answers
    brightness: Numbers
    size: Numbers


def drift(run: Path, folder: Path, *, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Compare a folder's images with the validation images of a run. Returns plain JSON values.

    Raises DataError if one of the two has fewer than FEWEST images, RunError if this is no finished run.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} {'is no folder' if folder.exists() else 'does not exist'}.\n  Expected a folder of images.")
    check_paths([str(folder)])
    opened = open_split(run, "val", overrides=overrides)
    known = _see_known(opened)
    new, unreadable = _see_folder(opened, folder)
    for what, seen in ((f"{run}'s validation split", known), (str(folder), new)):
        if len(seen.names) < FEWEST:
            fix = "Train with more validation images: data.validation." if seen is known else "Add images to the folder."
            raise DataError(f"{what} has {counted(len(seen.names), 'readable image')}, and a comparison needs {FEWEST} at least.\n  {fix}")
    p_values = _p_values(known, new, len(opened.card.classes))
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    differing = [name for name, p in adjusted.items() if p < FALSE_ALARMS]
    return {
        "pictures": len(new.names),
        "compared_with": len(known.names),
        "unreadable": unreadable,
        "false_alarm_rate": FALSE_ALARMS,
        "differs": bool(differing),
        "differs_in": differing,
        "tests": {name: {"p": p_values[name], "p_adjusted": adjusted[name], **_facts(name, known, new, opened)} for name in p_values},
        "most_different": _most_different(opened.card.trust, known, new),
    }


def _see_known(opened: OpenSplit) -> Seen:
    samples = evenly_spread(opened.samples.of("val"), MOST)
    images = ImageDataset(samples, opened.preprocessing, multi_hot=opened.samples.multi_hot)
    loader = make_loader(images, batch_size=opened.recipe.data.known_batch_size)
    answers, brightness = _look(opened.classifier, opened.preprocessing, (pixels for pixels, _ in loader))
    return Seen(tuple(sample.id for sample in samples), answers, brightness, _sizes(samples))


def _see_folder(opened: OpenSplit, folder: Path) -> tuple[Seen, int]:
    names = evenly_spread(tuple(file_names([str(folder)], BytesIO())), MOST)
    readable: list[str] = []

    def pixels() -> Iterator[Tensor]:
        for batch in batches(opened.preprocessing, names):
            readable.extend(batch.readable)
            if batch.images is not None:
                yield torch.from_numpy(batch.images).permute(0, 3, 1, 2)

    answers, brightness = _look(opened.classifier, opened.preprocessing, pixels())
    samples = [Sample(name, Path(name), (), "test") for name in readable]
    return Seen(tuple(readable), answers, brightness, _sizes(samples)), len(names) - len(readable)


@torch.inference_mode()
def _look(classifier: Classifier, preprocessing: Preprocessing, images: Iterable[Tensor]) -> tuple[Answers, Numbers]:
    """Return answers without labels, and the mean of each image. images: uint8 [B, C, S, S]."""
    device, k = next(classifier.parameters()).device, len(classifier.classes)
    normalizer = preprocessing.normalizer().to(device)
    both, brightness = [torch.empty(0, k)], [torch.empty(0)]
    for pixels in images:
        both.append(logits_and_features(classifier, normalizer(pixels.to(device))).cpu())
        brightness.append(pixels.float().mean((1, 2, 3)))
    found = torch.cat(both[1:] or both)
    return Answers(found[:, :k], torch.empty(0), found[:, k:]), torch.cat(brightness).double().numpy()


def _sizes(samples: Sequence[Sample]) -> Numbers:
    return np.array([float(np.prod(image_size(sample.image)) ** 0.5) for sample in samples], np.float64)


def _p_values(known: Seen, new: Seen, classes: int) -> dict[str, float]:
    first, second = (normalize(seen.answers.features).double().numpy() for seen in (known, new))
    predicted_known, predicted_new = (seen.answers.logits.argmax(1).numpy() for seen in (known, new))
    return {
        "features": feature_test(first, second),
        "class shares": share_test(predicted_known, predicted_new, classes),
        "sizes": value_test(known.size, new.size),
        "brightness": value_test(known.brightness, new.brightness),
    }


def _facts(name: str, known: Seen, new: Seen, opened: OpenSplit) -> dict[str, Any]:
    """Return what a test compares: medians, or the classes whose shares differ most."""
    if name == "features":
        return {}
    if name == "class shares":
        shares = [
            np.bincount(seen.answers.logits.argmax(1).numpy(), minlength=len(opened.card.classes)) / len(seen.names)
            for seen in (known, new)
        ]
        most = np.argsort(-np.abs(shares[1] - shares[0]), kind="stable")[:3].tolist()
        return {"shares": {opened.card.classes[i]: {"known": float(shares[0][i]), "new": float(shares[1][i])} for i in most}}
    values = (known.size, new.size) if name == "sizes" else (known.brightness, new.brightness)
    return {"median": {"known": float(np.median(values[0])), "new": float(np.median(values[1]))}}


def _most_different(trust: Trust, known: Seen, new: Seen) -> list[dict[str, Any]]:
    """Return the images least like the nearest ones of training, or of validation where no sample of training has shipped."""
    score = UnknownScore.of(trust) if trust.training_sample is not None else None
    score = score or UnknownScore(normalize(known.answers.features), NEIGHBOURS)
    found = scores(score, new.answers)
    limit = trust.unknown.threshold if trust.unknown and trust.training_sample is not None else None
    return [
        {"path": new.names[i], "score": float(found[i]), **({"unknown": bool(found[i] > limit)} if limit is not None else {})}
        for i in np.argsort(-found, kind="stable")[:NAMED].tolist()
    ]
