"""`tlkit models show NAME`: the stages of one backbone, what each costs, and what its head is."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tlkit.errors import BackboneError
from tlkit.models.backbones import (
    Stage,
    check_backbone_name,
    create_backbone,
    has_dense_layers,
    pretrained_cfg,
    sizes_by_features,
    stage_modules,
    stages,
)
from tlkit.models.catalog import published
from tlkit.models.image_sizes import own_size
from tlkit.models.weights.sources import weights_here
from tlkit.terminal import output_console, print_fitting


@dataclass(frozen=True)
class StageCost:
    """output: shape for one image, as the network lays it out: [C, H, W], [tokens, F] or [H, W, C]; empty if it is several.

    multiply_adds: of matrix products, convolutions and attention, for one image; sums and activations aren't counted.
    behind_features: the stage runs in timm's forward_head, behind the last map of features.
    """

    name: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int
    behind_features: bool


@dataclass(frozen=True)
class BackboneCost:
    """other_multiply_adds: of layers that belong to no single stage. features: F, what the head sees. pool: timm's word for its pooling."""

    stages: tuple[StageCost, ...]
    other_multiply_adds: int
    features: int
    pool: str


def measure(name: str, image_size: int) -> BackboneCost:
    """Measure what each stage of a backbone costs, on one image without memory or numbers (torch's meta device).

    Raises BackboneError if the backbone can't be built for, or can't take, images of this size.
    """
    with torch.device("meta"):
        backbone = create_backbone(name, image_size).eval().requires_grad_(False)
        found = stages(backbone)
        meter = _Meter(found)
        for stage_name, module in stage_modules(backbone, found):
            if stage_name:
                meter.watch(module, stage_name)
        try:
            with torch.inference_mode(), meter.flops:
                maps = backbone.forward_features(torch.zeros(1, 3, image_size, image_size))  # type: ignore[operator]
                meter.behind_features = True
                features = backbone.forward_head(maps, pre_logits=True)  # type: ignore[operator]
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            raise BackboneError(
                f"{name} can't take images of {image_size} px.\n  timm says: {error}\n  Its weights were made for {own_size(name)} px."
            ) from error
    sizes = {parameter: tensor.numel() for parameter, tensor in backbone.named_parameters()}
    return BackboneCost(
        tuple(meter.cost(stage, sum(sizes[parameter] for parameter in stage.parameters)) for stage in found),
        meter.flops.get_total_flops() // 2 - sum(meter.multiply_adds.values()),
        features.shape[1],
        _pool(backbone),
    )


def _pool(backbone: nn.Module) -> str:
    """Return `avg`, `token`, ..; empty if dense layers follow the map, or the family pools elsewhere."""
    pool = getattr(backbone, "global_pool", None) or getattr(getattr(backbone, "head", None), "global_pool", "")
    word = pool if isinstance(pool, str) else getattr(pool, "pool_type", "")
    return "" if has_dense_layers(backbone) else str(word or "")


class _Meter:
    """Watches the modules of stages while one image goes through the network."""

    def __init__(self, found: tuple[Stage, ...]) -> None:
        self.flops = FlopCounterMode(display=False)
        self.multiply_adds: dict[str, int] = defaultdict(int)
        self.outputs: dict[str, tuple[int, ...]] = {stage.name: () for stage in found}
        self.behind_features = False
        self.behind: set[str] = set()

    def watch(self, module: nn.Module, stage: str) -> None:
        started: list[int] = []

        def before(module: nn.Module, inputs: object) -> None:
            started.append(self.flops.get_total_flops())

        def after(module: nn.Module, inputs: object, output: object) -> None:
            self.multiply_adds[stage] += (self.flops.get_total_flops() - started.pop()) // 2
            tensors = [part for part in (output if isinstance(output, tuple | list) else (output,)) if isinstance(part, Tensor)]
            if len(tensors) == 1:
                self.outputs[stage] = tuple(tensors[0].shape[1:])
            if self.behind_features:
                self.behind.add(stage)

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)

    def cost(self, stage: Stage, parameters: int) -> StageCost:
        return StageCost(stage.name, self.outputs[stage.name], parameters, self.multiply_adds[stage.name], stage.name in self.behind)


def print_backbone(name: str, image_size: int | None) -> int:
    """Print the stages of a backbone in forward order, its head, its weights and its input. Downloads nothing.

    image_size: in pixels; None takes the size that the weights were made for.
    Raises RecipeError for a name that timm doesn't have, with the nearest.
    """
    check_backbone_name(name, "NAME")
    cfg = pretrained_cfg(name)
    size = image_size or own_size(name)
    cost = measure(name, size)
    classes = int(cfg.get("num_classes") or 1000)
    console = output_console()
    console.print(f"[bold]{name}[/bold], one image of {size} x {size} px\n")
    print_fitting(console, [_table(cost, classes, shares=shares) for shares in (True, False)])
    console.print("", _notes(name, size, cfg, cost, classes), sep="\n")
    return 0


def _table(cost: BackboneCost, classes: int, *, shares: bool = True) -> Table:
    """Return the table of stages. shares: with each stage's part of the whole, in percent."""
    head = cost.features * classes
    parameters = sum(stage.parameters for stage in cost.stages) + head + classes
    multiply_adds = sum(stage.multiply_adds for stage in cost.stages) + cost.other_multiply_adds + head
    table = Table(box=None, header_style="bold", pad_edge=False)
    headings = ("stage", "output", "parameters", "share", "multiply-\nadds", "share")
    for heading in headings:
        if shares or heading != "share":
            is_text = heading in ("stage", "output")
            table.add_column(heading, justify="left" if is_text else "right", no_wrap=heading != "output", overflow="fold")

    def add(name: str, output: tuple[int, ...], own_parameters: int, own_multiply_adds: int, style: str = "") -> None:
        percent = (f"{100 * own_parameters / parameters:.1f} %", f"{100 * own_multiply_adds / multiply_adds:.1f} %")
        cells = (name, "x".join(map(str, output)), f"{own_parameters:,}", percent[0], _short(own_multiply_adds), percent[1])
        table.add_row(*(cell for cell, heading in zip(cells, headings, strict=True) if shares or heading != "share"), style=style)

    for stage in cost.stages:
        add(stage.name, stage.output, stage.parameters, stage.multiply_adds)
    if cost.other_multiply_adds > 0:
        add("between stages", (), 0, cost.other_multiply_adds)
    add("head", (classes,), head + classes, head)
    table.add_section()
    add("all", (), parameters, multiply_adds, "bold")
    return table


def _notes(name: str, image_size: int, cfg: dict[str, Any], cost: BackboneCost, classes: int) -> Table:
    notes = Table.grid(padding=(0, 2))
    notes.add_column(style="bold")
    notes.add_column()
    notes.add_row("head", _about_head(cost, classes))
    for position, stage in enumerate(cost.stages):
        if stage.behind_features:
            last = len(cost.stages) - position
            notes.add_row("", f"`train: head` leaves {stage.name} as it is, `train: {{last: {last}}}` trains it too")
    if sizes := sizes_by_features(name, image_size):
        few, many = f"{sizes['conv']:,}", f"{sizes['all']:,}"
        notes.add_row("features", f"`features: conv` leaves the dense layers out: {few} parameters in place of {many}, below the head")
    notes.add_row("weights", _about_weights(name, cfg))
    if cfg:
        mean, std = (" ".join(f"{value:g}" for value in cfg[key]) for key in ("mean", "std"))
        shape = "x".join(map(str, cfg["input_size"]))
        notes.add_row("input", f"{shape}, mean {mean}, std {std}, {cfg['interpolation']}, crop {cfg['crop_pct']:g}")
    return notes


def _about_head(cost: BackboneCost, classes: int) -> str:
    pooling = f" ({cost.pool} pooling)" if cost.pool else ""
    return f"`train: head` trains a new linear layer from {cost.features} features{pooling} to your classes, here {classes}"


def _about_weights(name: str, cfg: dict[str, Any]) -> str:
    tag = str(cfg.get("tag") or "")
    if not (cfg.get("hf_hub_id") or cfg.get("url")):
        return "none are published: `weights: random`"
    top1 = published("top1").get(f"{name.partition('.')[0]}.{tag}")
    here = {"cache": "on this machine", "package": "in the installed package: `weights: {package: efficientnet-lite0}`"}
    words = [
        f"{tag or 'untagged'}{'' if '.' in name else ' (the default)'}",
        f"{float(top1):.1f} % top-1 on ImageNet-1k" if top1 else "",
        f"licence {cfg['license']}" if cfg.get("license") else "",
        here.get(weights_here(name), "not on this machine"),
    ]
    return ", ".join(word for word in words if word)


def _short(count: int) -> str:
    """Format a count: `1.50 G`, `478 M`, `12.3 k`."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= factor:
            return f"{count / factor:#.3g}".rstrip(".") + f" {unit}"
    return str(count)
