"""The sections of the page: each draws its images and says what they show."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tlkit.data.dataset import ImageDataset, make_loader
from tlkit.data.samples import Samples, evenly_spread
from tlkit.errors import BackboneError, DataError, TlkitError, expected_one_of
from tlkit.explain.feature_maps import draw_feature_maps, feature_maps
from tlkit.explain.feature_space import draw_feature_space
from tlkit.explain.filters import draw_filters
from tlkit.explain.grad_cam import check_explainable, grad_cam
from tlkit.explain.gradient_flow import GRADIENTS, draw_gradients, read_gradients
from tlkit.explain.maximisation import Objective, maximise
from tlkit.explain.neighbours import nearest_images
from tlkit.explain.sanity_check import randomised_maps, sanity_note
from tlkit.explain.sheet import Cell, draw_sheet, shown
from tlkit.explain.stage_maps import check_stage, last_map_size
from tlkit.explain.subject import Shown, Subject
from tlkit.explain.token_map import has_token_map
from tlkit.explain.weight_drift import draw_drift, weight_drift
from tlkit.models.classifier import Classifier
from tlkit.models.heads import NearestNeighbours
from tlkit.models.inference.batches import infer
from tlkit.models.inference.unknown import as_vectors

MOST_TRAINING, MOST_VALIDATION, MOST_DRIFT = 2000, 1000, 256
"""Images whose features are computed: the command ends within minutes on large data too."""
MOST_PREDICTED, CLASSES, UNITS, MAXIMISED_STAGES = 3, 4, 4, (0.35, 0.55, 0.75, 0.95)
BATCH = 32
FEWEST_PLACES = 12
"""Of a heat map, below which the page says how coarse it is."""

Advance = Callable[[int], None]
Progress = Callable[[str, int, str], AbstractContextManager[Advance]]
"""(what, total, unit) -> a bar whose value is called with what was done."""


@dataclass(frozen=True)
class Picture:
    """alt: what is on it, for people who don't see it."""

    file: str
    alt: str
    width: int
    height: int
    caption: str = ""


@dataclass
class Section:
    key: str
    title: str
    meaning: str
    images: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Request:
    """units: `STAGE:CHANNEL` each, classes: names, to maximise. runs: others whose gradients are drawn beside."""

    only: tuple[str, ...]
    units: tuple[str, ...]
    classes: tuple[str, ...]
    runs: tuple[Path, ...]
    steps: int


@dataclass(frozen=True)
class Work:
    subject: Subject
    request: Request
    out: Path
    progress: Progress

    def picture(self, file: str, alt: str, caption: str = "") -> Picture:
        with Image.open(self.out / file) as image:
            return Picture(file, alt, *image.size, caption)


def add_filters(work: Work, section: Section) -> None:
    subject = work.subject
    caption = draw_filters(work.out / "filters.png", subject.classifier.backbone, subject.before and subject.before.backbone)
    section.images.append(work.picture("filters.png", "Filters of the first layer as small squares", caption))
    if subject.no_before:
        section.notes.append(subject.no_before)


def add_feature_maps(work: Work, section: Section) -> None:
    for number, image in enumerate(_images(work)[:2], 1):
        file = f"feature_maps_{number}.png"
        draw_feature_maps(work.out / file, work.subject.classifier, image.pixels, work.subject.normalised([image]))
        alt = f"Maps of eight channels of each stage for the image {image.name}"
        section.images.append(work.picture(file, alt, f"{image.name}. Each map is scaled by itself, from black to white."))


def add_heat_maps(work: Work, section: Section) -> None:
    subject, images = work.subject, _images(work)
    check_explainable(subject.classifier)
    method = "Token maps (Chefer et al. 2021)" if has_token_map(subject.classifier.backbone) else "Grad-CAM (Selvaraju et al. 2017)"
    section.meaning = f"{method}: bright places speak for the class. {section.meaning}"
    inputs = subject.normalised(images)
    with torch.inference_mode():
        logits = subject.classifier.eval()(inputs).float().cpu()
    predicted = [_predicted(subject, row) for row in logits]
    columns = max(len(targets) for targets in predicted) + 1
    rows = []
    for n, image in enumerate(images):
        wrong = [label for label in image.labels if label not in [target for target, _ in predicted[n]]]
        targets = [*predicted[n], *((label, _probability(subject, logits[n], label)) for label in wrong)][:columns]
        numbers = torch.tensor([target for target, _ in targets])
        maps = grad_cam(subject.classifier, inputs[n].expand(len(targets), -1, -1, -1), numbers, relative=subject.has_softmax)
        cells = [Cell(shown(image.pixels), _label_text(subject, image.labels))]
        for (target, probability), heat in zip(targets, maps.cpu().numpy(), strict=True):
            cells.append(Cell(shown(image.pixels), f"{subject.card.classes[target]} {probability:.2f}", heat))
        rows.append((str(n + 1), cells))
    draw_sheet(work.out / "heat_maps.png", rows, "where the answer comes from", scale="speaks for the class")
    listed = "; ".join(f"{n}: {image.name}, {_answer_text(subject, image.labels, predicted[n - 1])}" for n, image in enumerate(images, 1))
    section.images.append(work.picture("heat_maps.png", "Images beside their heat maps, one row each", listed))
    with torch.inference_mode():
        height, width = last_map_size(subject.classifier, inputs[:1])
    if height * width < FEWEST_PLACES and not has_token_map(subject.classifier.backbone):
        px = subject.card.preprocessing["image_size"]
        section.notes.append(
            f"At {px} px the last stage has {height} x {width} places: its maps say little about where. Larger images have more."
        )
    _add_sanity_check(work, section, inputs, torch.tensor([targets[0][0] for targets in predicted]))


def _add_sanity_check(work: Work, section: Section, inputs: Tensor, target: Tensor) -> None:
    subject, most = work.subject, 4
    with work.progress("randomising weights", 1 + len(subject.classifier.stages), "stages") as advance:
        found = randomised_maps(subject.classifier, inputs[:most], target[:most], relative=subject.has_softmax, on_step=advance)
    chosen = evenly_spread([step.down_to for step in found], 7)
    steps = [step for step in found if step.down_to in chosen]
    rows = []
    for n, image in enumerate(subject.images[:most]):
        trained = grad_cam(subject.classifier, inputs[n : n + 1], target[n : n + 1], relative=subject.has_softmax)[0]
        pixels = shown(image.pixels)
        cells = [Cell(pixels, "trained", trained.cpu().numpy())]
        rows.append(
            (
                str(n + 1),
                [*cells, *(Cell(pixels, f"to {step.down_to}: {step.correlation:.2f}", step.maps[n].cpu().numpy()) for step in steps)],
            )
        )
    draw_sheet(work.out / "sanity_check.png", rows, "the same maps with random weights", scale="speaks for the class")
    caption = "From left to right more of the network is random, from the head down to the stage named, with the mean rank correlation."
    section.images.append(work.picture("sanity_check.png", "Heat maps of networks with ever more random weights", caption))
    section.notes.append(sanity_note(found))


def add_maximisation(work: Work, section: Section) -> None:
    subject = work.subject
    objectives = asked_objectives(subject, work.request) or _default_objectives(work)
    with work.progress("maximising activations", work.request.steps, "steps") as advance:
        images = maximise(subject.classifier, objectives, steps=work.request.steps, on_step=advance)
    pixels = [_contrasted(image.permute(1, 2, 0) if image.shape[0] == 3 else image[0]) for image in images]
    cells = [Cell(one, objective.title) for one, objective in zip(pixels, objectives, strict=True)]
    columns = max(4, min(6, len(cells)))
    rows = [("", cells[i : i + columns]) for i in range(0, len(cells), columns)]
    draw_sheet(work.out / "maximisation.png", rows, "what excites a channel or class most")
    alt = f"Images made to excite {', '.join(objective.title for objective in objectives)}"
    section.images.append(work.picture("maximisation.png", alt, f"{work.request.steps} steps each; contrast stretched."))
    for one, objective in zip(pixels, objectives, strict=True):
        name = f"maximised_{''.join(c if c.isalnum() and c.isascii() else '-' for c in objective.title)[:60]}.png"
        Image.fromarray((255 * one).round().astype(np.uint8)).resize((384, 384), Image.Resampling.BICUBIC).save(work.out / name)


def add_neighbours(work: Work, section: Section) -> None:
    subject, images = work.subject, _images(work)
    training = subject.part("train", MOST_TRAINING)
    if training is None:
        raise DataError(subject.no_samples or "The run has no training images.")
    of_training = _features(work, subject.classifier, training, "train", "training images")
    with torch.inference_mode():
        features = as_vectors(subject.classifier.eval().features(subject.normalised(images))).float().cpu()
    nearest = nearest_images(features, of_training)
    found = training.of("train")
    rows = []
    for n, image in enumerate(images):
        near = [
            Cell(shown(subject.preprocessing.read(found[row].image)), f"{training.label_text(found[row])}, {distance:.2f}")
            for row, distance in zip(nearest.rows[n].tolist(), nearest.distances[n].tolist(), strict=True)
        ]
        rows.append(("", [Cell(shown(image.pixels), f"{n + 1}: {_label_text(subject, image.labels)}".rstrip(": ")), *near]))
    draw_sheet(work.out / "neighbours.png", rows, "the nearest training images")
    total = len(subject.samples.of("train")) if subject.samples else 0
    among = f"Among {len(found)} of {total} training images, spread evenly. " if len(found) < total else ""
    alt = "Each image beside the training images nearest to it, with label and distance"
    section.images.append(
        work.picture("neighbours.png", alt, f"{among}Beside each its label and its distance, 1 - cosine of the features.")
    )


def add_feature_space(work: Work, section: Section) -> None:
    subject = work.subject
    part = subject.part("val", MOST_VALIDATION)
    if part is None or len(part.samples) < 4:
        raise DataError(subject.no_samples or "The run has fewer than four validation images.")
    sides = [("after", _features(work, subject.classifier, part, "val", "validation images"))]
    if subject.before is not None:
        sides.insert(0, ("before fine-tuning", _features(work, subject.before, part, "val", "validation images, before")))
    else:
        section.notes.append(subject.no_before)
    labels = [sample.labels[0] if sample.labels else 0 for sample in part.samples]
    if part.task == "multilabel":
        section.notes.append("Images have several labels: the colour is the first one's.")
    draw_feature_space(work.out / "feature_space.png", sides, labels, part.classes)
    alt = f"{len(labels)} validation images as points, coloured by class, by PCA and t-SNE"
    section.images.append(work.picture("feature_space.png", alt))


def add_drift(work: Work, section: Section) -> None:
    subject = work.subject
    if subject.before is None:
        raise TlkitError(subject.no_before)
    part = subject.part("val", MOST_DRIFT)
    pixels = [subject.preprocessing.read(sample.image) for sample in part.samples] if part else []
    batches = [_normalised(subject, pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH)]
    with work.progress("comparing stages", max(1, len(batches)), "batches") as advance:
        drift = weight_drift(subject.before, subject.classifier, _counted(batches, advance))
    draw_drift(work.out / "drift.png", drift)
    said = "; ".join(f"{one.stage} {one.relative_l2:.1%}" + (f", CKA {one.cka:.2f}" if one.cka is not None else "") for one in drift)
    section.images.append(work.picture("drift.png", "Change of the weights and of the outputs, stage by stage", said))
    if not pixels:
        section.notes.append(f"Without images there is no CKA. {subject.no_samples}")
    elif any(one.cka is not None for one in drift):
        section.notes.append(f"CKA is of {len(pixels)} validation images; with few of them it is too high for stages with many channels.")


def add_gradients(work: Work, section: Section) -> None:
    places = [work.subject.place, *work.request.runs]
    runs = [(place.name if len(places) == 1 else str(place), read_gradients(place / GRADIENTS)) for place in places]
    draw_gradients(runs, work.out / "gradients.png")
    section.images.append(work.picture("gradients.png", "Gradient norms by layer on a logarithmic scale, a line for each epoch"))


SECTIONS: dict[str, tuple[str, str, Callable[[Work, Section], None]]] = {
    "filters": (
        "The first filters",
        "What the network looks for in the pixels: edges, spots and colours. Grey is zero; each filter is scaled by its largest weight.",
        add_filters,
    ),
    "maps": (
        "Feature maps",
        "What the stages make of an image, from fine edges to coarse parts.",
        add_feature_maps,
    ),
    "cam": (
        "What the network looks at",
        "Places that speak against a class, or for others, stay dark. The map is as coarse as the last stage's.",
        add_heat_maps,
    ),
    "maximise": (
        "What excites it",
        "Images made from noise to raise one channel or one class's logit as far as possible. They show what a unit responds to, not what "
        "photos of it look like.",
        add_maximisation,
    ),
    "neighbours": (
        "The nearest training images",
        "What the network finds alike. A wrong answer between images of another label often shows why it came, or a wrong label.",
        add_neighbours,
    ),
    "space": (
        "Feature space",
        "Each point is a validation image. PCA keeps large distances, t-SNE neighbourhoods; its gaps and cluster sizes mean nothing.",
        add_feature_space,
    ),
    "drift": (
        "What fine-tuning changed",
        "Above, how far each stage's weights moved; below, how alike its outputs still are. 1 is the same up to rotation and scale.",
        add_drift,
    ),
    "gradients": (
        "Gradient flow",
        "The norm of each layer's gradient. A line that falls towards the image shows gradients that vanish on their way to the first "
        "layers, one that rises those that blow up.",
        add_gradients,
    ),
}


def _contrasted(image: Tensor) -> NDArray[np.float32]:
    """Stretch an image, [H, W, 3] or [H, W], so that its 1st and 99th percentiles become 0 and 1."""
    low, high = np.percentile(image.numpy(), (1, 99))
    stretched: NDArray[np.float32] = np.clip((image.numpy() - low) / max(high - low, 1e-6), 0, 1)
    return stretched


def _images(work: Work) -> tuple[Shown, ...]:
    if not work.subject.images:
        raise DataError(f"No image is at hand: name some. {work.subject.no_samples}".strip())
    return work.subject.images


def _features(work: Work, classifier: Classifier, part: Samples, split: str, what: str) -> Tensor:
    """Return features [N, F]. Without logits, since the network before fine-tuning has a head that knows nothing."""
    samples, preprocessing = part.of(split), work.subject.preprocessing
    loader = make_loader(ImageDataset(samples, preprocessing, multi_hot=part.multi_hot), batch_size=BATCH)
    with work.progress(what, len(samples), "images") as advance:
        return infer(classifier, loader, preprocessing, outputs=lambda images: as_vectors(classifier.features(images)), on_batch=advance)[0]


def _normalised(subject: Subject, pixels: Sequence[NDArray[np.uint8]]) -> Tensor:
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    return subject.preprocessing.normalize(images.to(next(subject.classifier.parameters()).device))


def _counted(batches: Sequence[Tensor], advance: Advance) -> Iterator[Tensor]:
    for batch in batches:
        yield batch
        advance(1)


def _predicted(subject: Subject, logits: Tensor) -> list[tuple[int, float]]:
    """Return the predicted classes with their probabilities, the surest first; the likeliest one where none is above its threshold."""
    if subject.card.task == "multiclass":
        answer = int(logits.argmax())
        return [(answer, _probability(subject, logits, answer))]
    each = logits.sigmoid()
    above = [i for i, bound in enumerate(subject.card.thresholds) if each[i] > bound] or [int(each.argmax())]
    return [(i, float(each[i])) for i in sorted(above, key=lambda i: -float(each[i]))[:MOST_PREDICTED]]


def _probability(subject: Subject, logits: Tensor, label: int) -> float:
    each = logits.softmax(0) if subject.card.task == "multiclass" else logits.sigmoid()
    return float(each[label])


def _label_text(subject: Subject, labels: Sequence[int]) -> str:
    return f"is {', '.join(subject.card.classes[label] for label in labels)}" if labels else ""


def _answer_text(subject: Subject, labels: Sequence[int], predicted: Sequence[tuple[int, float]]) -> str:
    answers = ", ".join(f"{subject.card.classes[target]} ({probability:.2f})" for target, probability in predicted)
    return f"called {answers}{', ' if labels else ''}{_label_text(subject, labels)}"


def asked_objectives(subject: Subject, request: Request) -> list[Objective]:
    """Return what the user asked to maximise. Raises BackboneError for a stage or a class that the model doesn't have."""
    return [_unit(subject, unit) for unit in request.units] + [_class(subject, name) for name in request.classes]


def _unit(subject: Subject, unit: str) -> Objective:
    stage, _, channel = unit.rpartition(":")
    if not channel.isdigit() or not stage:
        raise BackboneError(f"--unit {unit} can't be read.\n  Expected STAGE:CHANNEL, such as {subject.classifier.stages[-1].name}:0.")
    check_stage(subject.classifier, stage)
    return Objective(unit, stage, int(channel))


def _class(subject: Subject, name: str) -> Objective:
    if name not in subject.card.classes:
        raise BackboneError(f"--class {name} is not one of the model's classes.\n  {expected_one_of(name, subject.card.classes)}")
    return Objective(name, "", subject.card.classes.index(name))


def _default_objectives(work: Work) -> list[Objective]:
    """Return channels of four stages along the depth, those that the images excite most against others, and a few classes."""
    subject, units = work.subject, []
    if subject.images:
        maps = feature_maps(subject.classifier, subject.normalised(subject.images))
        names = list(maps)
        for share in MAXIMISED_STAGES[:UNITS]:
            stage = names[min(len(names) - 1, int(share * len(names)))]
            means = maps[stage].mean((0, 2, 3))
            units.append(Objective(f"{stage}:{int(means.argmax())}", stage, int(means.argmax())))
    has_gradient = not isinstance(subject.classifier.head, NearestNeighbours)
    classes = evenly_spread(subject.card.classes, CLASSES) if has_gradient else ()
    found = [*dict.fromkeys(units), *(_class(subject, name) for name in classes)]
    if not found:
        check_explainable(subject.classifier)
    return found
