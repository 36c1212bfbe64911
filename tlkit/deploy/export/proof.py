"""Real image files, and what training code makes of them: what an export is held against."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tlkit.data.dataset import ImageDataset, make_loader
from tlkit.data.decode import encoded
from tlkit.data.preprocess import Preprocessing
from tlkit.data.samples import Sample, Samples, evenly_spread
from tlkit.data.splits.manifest import samples_of_run
from tlkit.deploy.export.compare import generated_images
from tlkit.errors import ArtifactError
from tlkit.models.classifier import Classifier
from tlkit.models.inference.batches import infer
from tlkit.models.model_folder import ModelCard
from tlkit.terminal import counted

BATCH_SIZE = 32
# What Pillow can write to PNG without a change; anything else becomes TIFF.
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


@dataclass(frozen=True)
class Proof:
    """samples: what training code reads. files: what the exported runtime reads, in the same order; None for generated images.

    labels: [N], for multilabel [N, K] of 0 and 1; None if they are unknown. what: which images these are, as a phrase.
    """

    classifier: Classifier
    card: ModelCard
    samples: tuple[Sample, ...]
    files: tuple[Path, ...]
    probabilities: NDArray[np.float32]
    labels: NDArray[np.float32] | None
    what: str

    @property
    def preprocessing(self) -> Preprocessing:
        return self.card.spec


def proof_of_run(
    run: Path, classifier: Classifier, card: ModelCard, number: int | None, folder: Path, overrides: Sequence[str] = ()
) -> Proof:
    """Take the run's validation images, spread evenly over the split; without a validation split, its test or training images.

    number: how many; None is all. folder: where images are written that the data source doesn't have as files.
    overrides: of the run's recipe, if its data is elsewhere now.
    """
    samples = samples_of_run(run, card.classes, overrides)
    split = next((split for split in ("val", "test", "train") if samples.of(split)), "train")
    of_split = samples.of(split)
    picked = evenly_spread(of_split, number or len(of_split))
    name = {"val": "validation", "test": "test", "train": "training"}[split]
    written = sum(not isinstance(sample.image, Path) for sample in picked)
    what = counted(len(picked), f"{name} image") + (
        f", {written} of them written to PNG for it: the data source has no files" if written else ""
    )
    labels = _labels(picked, samples)
    return _proof(classifier, card, picked, labels, what, folder)


def proof_of_files(files: Sequence[Path], classifier: Classifier, card: ModelCard, number: int | None, folder: Path) -> Proof:
    """Take image files without labels. Raises ArtifactError if there are none."""
    if not files:
        raise ArtifactError("No images to prove the export with.\n  Name a folder that has some: --images DIR")
    picked = tuple(Sample(str(file), file, (), "val") for file in evenly_spread(files, number or len(files)))
    return _proof(classifier, card, picked, None, f"{counted(len(picked), 'image')} without labels", folder)


def generated_answers(proof: Proof) -> NDArray[np.float32]:
    """Return the training code's probabilities, [G, K], of the generated images."""
    spec = proof.preprocessing
    fitted = [spec.fit(image) for image in generated_images(spec.image_size, spec.channels)]
    images = torch.from_numpy(np.stack(fitted)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        logits = proof.classifier.eval()(spec.normalize(images))
    return probabilities_of(logits, proof.card)


def probabilities_of(logits: Tensor, card: ModelCard) -> NDArray[np.float32]:
    """Convert logits to calibrated probabilities, [N, K]."""
    values = logits.double() / card.trust.temperature
    found: NDArray[np.float32] = (values.sigmoid() if card.task == "multilabel" else values.softmax(1)).float().numpy()
    return found


def rounded(probabilities: NDArray[Any]) -> list[list[float]]:
    return [[round(float(value), 7) for value in row] for row in probabilities]


def _proof(
    classifier: Classifier, card: ModelCard, samples: tuple[Sample, ...], labels: NDArray[np.float32] | None, what: str, folder: Path
) -> Proof:
    spec = card.spec
    # Labels play no part here, and some images have none.
    images = ImageDataset([replace(sample, labels=()) for sample in samples], spec, multi_hot=len(card.classes))
    logits, _ = infer(classifier, make_loader(images, batch_size=BATCH_SIZE), spec)
    files = tuple(image_file(sample, number, folder) for number, sample in enumerate(samples))
    return Proof(classifier, card, samples, files, probabilities_of(logits, card), labels, what)


def image_file(sample: Sample, number: int, folder: Path) -> Path:
    """Return the image as a file. An encoded image of an archive or a table is written byte by byte, plain pixels without loss."""
    if isinstance(sample.image, Path):
        return sample.image
    folder.mkdir(parents=True, exist_ok=True)
    image = sample.image()
    if not isinstance(image, Image.Image):
        np.save(folder / f"{number:06d}.npy", image)
        return folder / f"{number:06d}.npy"
    if getattr(image, "fp", None) is not None:
        file = folder / f"{number:06d}.{str(image.format).lower()}"
        file.write_bytes(encoded(image))
        return file
    file = folder / f"{number:06d}{'.png' if image.mode in _PNG_MODES else '.tiff'}"
    image.save(file, exif=image.getexif())
    return file


def _labels(picked: Sequence[Sample], samples: Samples) -> NDArray[np.float32]:
    if not samples.multi_hot:
        return np.array([sample.label for sample in picked], np.float32)
    labels = np.zeros((len(picked), samples.multi_hot), np.float32)
    for row, sample in enumerate(picked):
        labels[row, list(sample.labels)] = 1
    return labels
