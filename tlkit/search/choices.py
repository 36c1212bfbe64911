"""The table that `tlkit init` chooses by: data size, image size, device and minutes -> backbone, image size, phases and rates.

docs/choosing.md has the same table with its sources; a test compares the two. `basis` says of every row whether it was measured with
tlkit, and where, or is published practice that nobody has checked here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True)
class Backbone:
    """gmacs: thousand million multiplications and additions an image of 224 px. lr: of a phase that trains all, with LAYER_DECAY."""

    name: str
    gmacs: float
    lr: float
    basis: str
    package: str = ""


BACKBONES = (
    Backbone("convnext_tiny.fb_in22k_ft_in1k", 4.5, 1e-4, "prior: timm's ImageNet results"),
    Backbone("resnet50.a1_in1k", 4.1, 3e-4, "prior: timm's ImageNet results"),
    Backbone("resnet18.a1_in1k", 1.8, 3e-4, "prior: timm's ImageNet results"),
    Backbone(
        "tf_efficientnet_lite0",
        0.41,
        5e-4,
        "measured: the quickstart's images, 0.881 over five seeds (experiments.md)",
        "efficientnet-lite0",
    ),
)
"""The best first."""
LAYER_DECAY = 0.75
"""Measured: four of five searches on 400 images chose it; five seeds of the quickstart were as good with it as without (experiments.md)."""


@dataclass(frozen=True)
class Size:
    """Of a set of small images, and others. sides: what is tried, the best first, until it fits the minutes."""

    below: int
    sides: tuple[int, ...]
    basis: str


SIZES = (
    Size(64, (128, 96), "measured: 28 px images at 128 px (quickstart.yaml) and at 96 px (ways_to_transfer.md)"),
    Size(160, (160, 128), "prior: at least about the size of the images themselves"),
    Size(
        10**9, (224, 160, 128), "prior: the size that the weights were made at; smaller ones cost a half and a third (Touvron et al. 2019)"
    ),
)
"""By the median shorter side of the images in pixels."""


@dataclass(frozen=True)
class Way:
    """What trains, by the number of training images. second: what trains after the solved head. share: its lr, as a share of all's."""

    below: int
    second: str
    share: float
    augment: str
    why: str
    basis: str
    batchnorm: str = "frozen"


WAYS = (
    Way(
        200,
        "",
        0.0,
        "",
        "so few images train a head and no more",
        "prior: a linear probe is the safer half (Kumar et al. 2022); not measured",
    ),
    Way(
        1_000,
        "{last: 2}",
        0.2,
        "light",
        "the head is solved first, then the last two stages train at a fifth of the rate",
        "measured: 400 images of five sets, level with the best of 40 trials (experiments.md)",
    ),
    Way(
        20_000,
        "all",
        1.0,
        "light",
        "the head is solved first, then the whole network trains",
        "measured: 1,800 images at 128 px, 0.881, level with a higher rate and adapted statistics (experiments.md)",
    ),
    Way(
        10**12,
        "all",
        1.0,
        "light",
        "the head is solved first, then the whole network trains",
        "prior: images enough to learn the batch-norm statistics, too",
        batchnorm="adapt",
    ),
)
"""By the number of training images."""


@dataclass(frozen=True)
class Steps:
    """How many steps of a batch the second phase takes at most, by the number of training images."""

    below: int
    steps: int
    basis: str


STEPS = (
    Steps(20_000, 500, "prior: BiT-HyperRule (Kolesnikov et al. 2020)"),
    Steps(500_000, 10_000, "prior: BiT-HyperRule"),
    Steps(10**12, 20_000, "prior: BiT-HyperRule"),
)
LEAST_EPOCHS, MOST_EPOCHS = 3, 15
"""Of the second phase. What doesn't have the time for three trains only the head."""
FEW_A_CLASS = 10
"""Images of the smallest class: with fewer, only the head trains."""
SMALL_BATCH_BELOW = 1_000
"""Training images: with fewer, batches of 32 and not 64, so that an epoch has steps enough."""

CPU_GMACS_S = 4.0
"""A second and processor. Source: quickstart.yaml's epochs took one to five minutes on two cores, 7 to 36 in all."""
GPU_GMACS_S = 1_500.0
"""Prior, for one that is a few years old; `tlkit plan` measures."""
DECODED_S = 60.0
"""Images a second and processor, at 224 px: what a GPU waits for. Prior."""
SOLVE_MINUTES_AN_IMAGE = 3 / 2_000
"""Of finding the head once the features are there, on one processor. Measured: 2 minutes for 1,800 images beside other work."""


@dataclass(frozen=True)
class Wanted:
    """What the choice depends on. smallest: images of the smallest class. backbones: those whose weights are available."""

    training: int
    smallest: int
    short_side: int
    device: str
    processors: int
    minutes: float
    backbones: Sequence[Backbone]


@dataclass(frozen=True)
class Choice:
    """epochs: of the second phase, 0 where there is none. minutes: an estimate. fits: whether that is within what was wanted."""

    backbone: Backbone
    image_size: int
    size: Size
    way: Way
    steps: Steps
    epochs: int
    batch_size: int
    minutes: float
    fits: bool

    @property
    def lr(self) -> float:
        return self.backbone.lr * self.way.share


def choose(wanted: Wanted) -> Choice:
    """Return the first backbone, image size and way of the table that fit the minutes; or else the cheapest, with only the head."""
    tried = list(_tried(wanted))
    return next((choice for choice in tried if choice.fits), min(tried, key=lambda choice: choice.minutes))


def _tried(wanted: Wanted) -> Iterator[Choice]:
    """Yield what can be chosen, the best first: the way that the data asks for, then only the head."""
    size = next(row for row in SIZES if wanted.short_side < row.below)
    few = wanted.smallest < FEW_A_CLASS
    way = WAYS[0] if few else next(row for row in WAYS if wanted.training < row.below)
    for tried in dict.fromkeys((way, WAYS[0])):
        for backbone in wanted.backbones:
            for side in size.sides:
                yield _choice(wanted, backbone, (size, side), tried)


def _choice(wanted: Wanted, backbone: Backbone, sized: tuple[Size, int], way: Way) -> Choice:
    size, side = sized
    batch_size = 32 if wanted.training < SMALL_BATCH_BELOW else 64
    steps = next(row for row in STEPS if wanted.training < row.below)
    one = _epoch_minutes(wanted, backbone, side)
    solved = one + SOLVE_MINUTES_AN_IMAGE * wanted.training / wanted.processors
    epochs = 0
    if way.second:
        wished = max(LEAST_EPOCHS, min(MOST_EPOCHS, ceil(steps.steps * batch_size / wanted.training)))
        # The backward pass costs twice the forward pass; of the last stages alone it is cheap.
        per_epoch = one * (3.0 if way.second == "all" else 1.6)
        epochs = max(LEAST_EPOCHS, min(wished, int((wanted.minutes - solved) / per_epoch)))
        solved += epochs * per_epoch
    return Choice(backbone, side, size, way, steps, epochs, batch_size, solved, fits=solved <= wanted.minutes)


def _epoch_minutes(wanted: Wanted, backbone: Backbone, side: int) -> float:
    """Return the minutes in which the network runs once over the images."""
    scale = (side / 224) ** 2
    compute = backbone.gmacs * scale / (CPU_GMACS_S * wanted.processors if wanted.device == "cpu" else GPU_GMACS_S)
    return wanted.training * max(compute, 1 / (DECODED_S * wanted.processors)) / 60
