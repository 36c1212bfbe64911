"""How long would a step take on more devices? A model to put your own figures into; it measures nothing.

    python -m tlkit.bench.scaling

prints the tables of docs/scaling.md. For other figures, call `step` with your own.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

Way = Literal["ring", "tree"]
WAYS: tuple[Way, ...] = get_args(Way)
BYTES_A_GRADIENT = 4
"""DDP and FSDP average gradients in float32, in mixed precision too."""
PIECE_BYTES = 25e6
"""DDP sends gradients in pieces of this size as they become known, so that sending overlaps with the backward pass."""
BACKWARD = 2 / 3
"""Share of a step's computing time: a backward pass has twice the multiply-adds of a forward pass, for the input and for the weights."""


@dataclass(frozen=True)
class Training:
    """images_s: images a second of one device that trains alone. batch_size: images a step of each device.

    parameters: that train. image_bytes: size of a file.
    """

    name: str
    parameters: float
    images_s: float
    batch_size: int
    image_bytes: float


@dataclass(frozen=True)
class Cluster:
    """devices: of one machine. inside, between: bytes a second that a ring of all devices moves within a machine, and from one to the next.

    latency_s: of one message. read: bytes a second that a machine reads. decoded: images a second that all cores of a machine decode.
    shared_read: bytes a second that one disk gives to all machines together; infinity where each has its own.
    """

    devices: int
    inside: float
    between: float
    latency_s: float
    read: float
    decoded: float
    shared_read: float = math.inf


@dataclass(frozen=True)
class Step:
    """One step on n devices. images_s: of all of them. efficiency: of n times what one device alone does, 0 to 1."""

    compute_s: float
    allreduce_s: float
    input_s: float
    step_s: float
    images_s: float
    efficiency: float


def allreduce_s(size: float, n: int, bandwidth: float, latency_s: float, way: Way = "ring") -> float:
    """Return the seconds that an all-reduce of `size` bytes over n devices takes. bandwidth: bytes per second, of the slowest link.

    A ring moves 2 (n - 1) / n of the bytes over each link, the least possible, in 2 (n - 1) messages, one after another, for each
    piece. A double binary tree moves as much, in 2 log2(n) messages: NCCL uses it where a ring would need too many.

    Sources: Patarasuk and Yuan 2009, https://doi.org/10.1016/j.jpdc.2008.09.002; Sanders et al. 2009,
    https://doi.org/10.1016/j.parco.2009.09.001
    """
    if n == 1:
        return 0.0
    messages = 2 * (n - 1) if way == "ring" else 2 * math.log2(n)
    pieces = max(1, math.ceil(size / PIECE_BYTES))
    return 2 * (n - 1) / n * size / bandwidth + pieces * messages * latency_s


def step(training: Training, cluster: Cluster, n: int, way: Way = "ring") -> Step:
    """Model a training step on n devices; machines are filled one after another.

    Gradients are sent during the backward pass, and only the time beyond it counts; images are read ahead, so a step takes as long as the
    slower of the two: t = max(compute + max(0, allreduce - backward), input).
    """
    compute_s = training.batch_size / training.images_s
    bandwidth = cluster.inside if n <= cluster.devices else min(cluster.inside, cluster.between)
    exchange_s = allreduce_s(BYTES_A_GRADIENT * training.parameters, n, bandwidth, cluster.latency_s, way)
    images_of_machine = training.batch_size * min(n, cluster.devices)
    read_s = images_of_machine * training.image_bytes / cluster.read
    shared_s = training.batch_size * n * training.image_bytes / cluster.shared_read
    input_s = max(read_s, shared_s, images_of_machine / cluster.decoded)
    step_s = max(compute_s + max(0.0, exchange_s - BACKWARD * compute_s), input_s)
    images_s = training.batch_size * n / step_s
    return Step(compute_s, exchange_s, input_s, step_s, images_s, images_s / (n * training.images_s))


RESNET50 = Training("resnet50", parameters=25.6e6, images_s=2470, batch_size=256, image_bytes=110e3)
VIT_LARGE = Training("vit_large_patch16_224", parameters=304e6, images_s=348, batch_size=64, image_bytes=110e3)
LINKS = 0.8
"""Share of a link's nominal bandwidth: assumed."""
DGX_A100 = Cluster(8, inside=LINKS * 300e9, between=LINKS * 200e9, latency_s=5e-6, read=5e9, decoded=128 * 250)
ETHERNET = Cluster(8, inside=LINKS * 300e9, between=LINKS * 25e9 / 8, latency_s=30e-6, read=5e9, decoded=128 * 250)
NUMBERS = (1, 2, 8, 64, 1000)
CASES = {
    "resnet50, InfiniBand": (RESNET50, DGX_A100),
    "vit_large_patch16_224, InfiniBand": (VIT_LARGE, DGX_A100),
    "resnet50, Ethernet": (RESNET50, ETHERNET),
    "vit_large_patch16_224, Ethernet": (VIT_LARGE, ETHERNET),
}


def tables() -> Iterator[str]:
    """Yield the tables of docs/scaling.md as Markdown."""
    for title, (training, cluster) in CASES.items():
        size = BYTES_A_GRADIENT * training.parameters / 1e6
        yield f"**{title}**: {training.batch_size} images a step on each GPU, {size:,.0f} MB of gradients."
        yield ""
        yield "| GPUs | each sends, MB a step | all read, GB/s | compute, ms | all-reduce, ms | input, ms | images/s | efficiency |"
        yield "|---|---|---|---|---|---|---|---|"
        yield from (_row(training, cluster, n) for n in NUMBERS)
        yield ""


def _row(training: Training, cluster: Cluster, n: int) -> str:
    """Format a row; cells with two figures are by ring and by tree."""
    ring, tree = (step(training, cluster, n, way) for way in WAYS)
    cells = (
        f"{n:,}",
        f"{2 * (n - 1) / n * BYTES_A_GRADIENT * training.parameters / 1e6:,.0f}",
        f"{tree.images_s * training.image_bytes / 1e9:,.1f}",
        f"{1e3 * tree.compute_s:.0f}",
        f"{1e3 * ring.allreduce_s:,.1f}, {1e3 * tree.allreduce_s:,.1f}",
        f"{1e3 * tree.input_s:.0f}",
        f"{ring.images_s:,.0f}, {tree.images_s:,.0f}",
        f"{ring.efficiency:.0%}, {tree.efficiency:.0%}",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print("\n".join(tables()))
