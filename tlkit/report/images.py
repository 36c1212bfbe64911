"""Images on the page: which of a split are shown, once each, and what a heat map says of the mistakes."""

import base64
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlkit.data.samples import Sample
from tlkit.errors import BackboneError, DataError

if TYPE_CHECKING:
    from tlkit.evaluation.evaluate import OpenSplit

THUMBNAIL_PX, HEAT_PX = 96, 128
MOST_IMAGES, MOST_BYTES = 400, 2_500_000
"""Of all thumbnails: the page stays below 5 MB."""
LISTED, OF_A_CONFUSION, OF_A_CLASS, LOOKED_AT = 12, 24, 6, 8
HEAT_AT_ONCE = 4

Row = Mapping[str, str]


@dataclass(frozen=True)
class Drawn:
    """pictures, heat: place of an image (its row in the answers, from 0) -> data URL. no_heat: why there are no heat maps.

    unreadable: how many of the chosen images are gone or can't be read any more.
    """

    pictures: Mapping[int, str] = field(default_factory=dict)
    heat: Mapping[int, str] = field(default_factory=dict)
    no_heat: str = ""
    unreadable: int = 0


@dataclass(frozen=True)
class SplitImages:
    """What a run's model answered for the images that are measured. answers: rows as of predictions.csv.

    opened: the model and the images; None where they are missing, and missing says why, or where they aren't needed: drawn has the images.
    """

    answers: Sequence[Row]
    opened: "OpenSplit | None"
    missing: str = ""
    drawn: Drawn | None = None


@dataclass(frozen=True)
class PageImages(Drawn):
    """What the page shows. Places are rows of the answers. cells: (class, answer) -> places of all its images, shown ones first.

    missing: why there are no images.
    """

    answers: Sequence[Row] = ()
    worst: Sequence[int] = ()
    unsure: Sequence[int] = ()
    looked_at: Sequence[int] = ()
    cells: Mapping[tuple[str, str], Sequence[int]] = field(default_factory=dict)
    missing: str = ""


def page_images(seen: SplitImages) -> PageImages:
    """Choose and read the images."""
    answers, opened = seen.answers, seen.opened
    wrong = [place for place, row in enumerate(answers) if row["label"] != row["answer"]]
    right = [place for place, row in enumerate(answers) if row["label"] == row["answer"]]
    worst = sorted(wrong, key=lambda place: (-_surest(answers[place]), place))
    unsure = sorted(right, key=lambda place: (_surest(answers[place]), place))
    cells: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place in [*worst, *unsure]:
        cells[answers[place]["label"], answers[place]["answer"]].append(place)
    listed: dict[str, Any] = {"worst": worst[:LISTED], "unsure": unsure[:LISTED], "looked_at": list(_one_of_each(answers, unsure[::-1]))}
    drawn = seen.drawn
    if drawn is None:
        if opened is None or not answers:
            return PageImages(answers=answers, **listed, cells=cells, missing=seen.missing or "the run has kept no answers.")
        samples = {sample.id: sample for sample in opened.samples.samples}
        order = dict.fromkeys([*listed["worst"], *listed["unsure"], *listed["looked_at"], *_of_cells(cells)])
        pictures, unreadable = _thumbnails([(place, samples.get(answers[place]["id"])) for place in order], opened)
        drawn = Drawn(pictures, *_heat_maps([*listed["worst"], *listed["looked_at"]], answers, samples, opened), unreadable)
    first = {cell: sorted(places, key=lambda place: place not in drawn.pictures) for cell, places in cells.items()}
    return PageImages(answers=answers, **listed, cells=first, **vars(drawn))


def _surest(row: Row) -> float:
    """Return the probability of the answer, of several the highest; 0 where none was given."""
    return max(map(float, filter(None, row["probability"].split("|"))), default=0.0)


def _one_of_each(answers: Sequence[Row], places: Iterable[int]) -> Iterator[int]:
    """Yield the first place of each class, LOOKED_AT at most."""
    seen: set[str] = set()
    for place in places:
        if len(seen) < LOOKED_AT and answers[place]["label"] not in seen:
            seen.add(answers[place]["label"])
            yield place


def _of_cells(cells: Mapping[tuple[str, str], Sequence[int]]) -> Iterator[int]:
    """Yield the places of confusions, the most frequent first, then of right answers."""
    for (label, answer), places in sorted(cells.items(), key=lambda cell: (cell[0][0] == cell[0][1], -len(cell[1]))):
        yield from places[: OF_A_CLASS if label == answer else OF_A_CONFUSION]


def _thumbnails(wanted: Iterable[tuple[int, Sample | None]], opened: "OpenSplit") -> tuple[dict[int, str], int]:
    """Return the thumbnails of the first images that MOST_IMAGES and MOST_BYTES allow, and how many of them can't be read."""
    found: dict[int, str] = {}
    written = unreadable = 0
    preprocessing = opened.preprocessing
    for place, sample in wanted:
        if len(found) == MOST_IMAGES or written > MOST_BYTES:
            break
        try:
            found[place] = data_url(shrunk(preprocessing.decode(sample.image, _needed))) if sample is not None else ""
        except DataError:
            found[place] = ""
        unreadable += not found[place]
        written += len(found[place])
    return {place: url for place, url in found.items() if url}, unreadable


def _needed(width: int, height: int) -> tuple[int, int]:
    """Return the size at which a larger JPEG may be decoded: its thumbnail is as sharp."""
    return 2 * THUMBNAIL_PX, 2 * THUMBNAIL_PX


def shrunk(pixels: NDArray[np.uint8], size: int = THUMBNAIL_PX) -> Image.Image:
    """Return the image with a longer side of this size; of other channels than one or three, the first is shown."""
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).convert("RGB")
    factor = size / max(image.size)
    shape = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(shape, Image.Resampling.NEAREST if factor >= 2 else Image.Resampling.LANCZOS)


def data_url(image: Image.Image, quality: int = 75) -> str:
    written = BytesIO()
    image.save(written, "WEBP", quality=quality)
    return f"data:image/webp;base64,{base64.b64encode(written.getvalue()).decode()}"


def _heat_maps(
    places: Sequence[int], answers: Sequence[Row], samples: Mapping[str, Sample], opened: "OpenSplit"
) -> tuple[dict[int, str], str]:
    """Return place -> what speaks for the answer, over the image as the network sees it; and why there is none."""
    import torch

    from tlkit.explain.grad_cam import grad_cam

    classes = {name: number for number, name in enumerate(opened.card.classes)}
    wanted = [place for place in dict.fromkeys(places) if answers[place]["answer"] in classes and answers[place]["id"] in samples]
    if opened.samples.task == "multilabel":
        return {}, "an image has any number of answers here, and a heat map explains one."
    device, normalize = next(opened.classifier.parameters()).device, opened.preprocessing.normalizer()
    found: dict[int, str] = {}
    for start in range(0, len(wanted), HEAT_AT_ONCE):
        some, pixels = [], []
        for place in wanted[start : start + HEAT_AT_ONCE]:
            try:
                pixels.append(opened.preprocessing.read(samples[answers[place]["id"]].image))
                some.append(place)
            except DataError:
                continue
        if not some:
            continue
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous().to(device)
        target = torch.tensor([classes[answers[place]["answer"]] for place in some], device=device)
        try:
            maps = grad_cam(opened.classifier, normalize.to(device)(images), target, relative=True).cpu().numpy()
        except BackboneError as error:
            return {}, " ".join(str(error).split())
        found |= {place: data_url(_warmed(image, heat)) for place, image, heat in zip(some, pixels, maps, strict=True)}
    return found, ""


def _warmed(pixels: NDArray[np.uint8], heat: Any) -> Image.Image:
    """Return the image in grey with the heat over it in colours; where nothing is hot it stays grey."""
    from matplotlib import colormaps

    grey = np.asarray(shrunk(pixels, HEAT_PX).convert("L"), float)[:, :, None]
    hot = np.asarray(Image.fromarray((255 * heat).astype(np.uint8)).resize(grey.shape[1::-1]), float) / 255
    colour = colormaps["inferno"](0.25 + 0.75 * hot)[:, :, :3] * 255
    share = 0.75 * hot[:, :, None]
    return Image.fromarray(((1 - share) * grey + share * colour).clip(0, 255).astype(np.uint8))
