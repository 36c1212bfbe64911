"""Print a plan: the facts, a table per phase, its cost, and likely mistakes."""

import time

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tlkit.files import format_bytes
from tlkit.planning.plan import PhasePlan, Plan, make_plan
from tlkit.planning.remarks import remarks
from tlkit.planning.stages import StageRow
from tlkit.recipe.fields.model import CLASSICAL_HEADS
from tlkit.recipe.fields.phases import SolvedPhase
from tlkit.recipe.schema import Recipe
from tlkit.terminal import counted, output_console, print_fitting
from tlkit.training.results import split_summary
from tlkit.training.specs import phase_name

COLUMNS = ("stage", "trains", "batch\nnorm", "lr", "weight\ndecay", "parameters", "trained")
NUMBERS = COLUMNS[3:]
LEFT_OUT: tuple[tuple[str, ...], ...] = ((), ("trains",), ("trains", "batch\nnorm"))
"""Columns that are left out on narrow terminals, in this order; what `trains` says can be seen from `trained`."""
FASTEST_IMPORT_S = 3.0
"""Fewer seconds mean that the process has been forked from one that had imported everything."""
MANY_STAGES = 12
"""With more stages, neighbours that are trained alike share a row."""


def show_plan(recipe: Recipe) -> int:
    """Print the plan (`tlkit plan`)."""
    console = output_console()
    console.print()
    print_plan(make_plan(recipe, import_s=max(FASTEST_IMPORT_S, time.process_time())), console)
    return 0


def print_plan(plan: Plan, console: Console) -> None:
    console.print(_facts(plan))
    planned = {phase.number: phase for phase in plan.phases}
    for number, phase in plan.recipe.run_phases.items():
        console.print()
        if isinstance(phase, SolvedPhase):
            console.print(_solved(plan, number, phase))
        else:
            print_fitting(console, _phase_tables(plan, planned[number]))
    if plan.recipe.model.head.kind in CLASSICAL_HEADS:
        console.print(f"\n[bold]head[/bold] {plan.recipe.model.head.kind}, fitted by scikit-learn on the features")
    if plan.phases or plan.solved:
        console.print()
        console.print(_costs(plan))
    for remark in remarks(plan):
        first, *rest = (escape(line.strip()) for line in remark.text.splitlines())
        style = "yellow" if remark.kind == "warning" else "dim"
        console.print()
        console.print(_hanging(f"[{style}]{remark.kind}[/{style}]", first, *(f"[dim]{line}[/dim]" for line in rest)))


def _hanging(label: str, *lines: str) -> Table:
    """Return a table whose lines wrap beside their label, not below it."""
    table = _labelled()
    for number, line in enumerate(lines):
        table.add_row("" if number else label, line)
    return table


def _labelled() -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(min_width=len("optimizer"))
    return table


def _facts(plan: Plan) -> Table:
    recipe = plan.recipe
    model, optimizer = recipe.model, recipe.optimizer
    batch, devices = recipe.data.known_batch_size, plan.devices
    per_device = f"{devices} devices x {batch // devices}" if devices > 1 else f"1 device ({plan.device}) x {batch}"
    step = f"{counted(batch * optimizer.accumulate, 'image')}: {per_device}" + (
        f" x {optimizer.accumulate} batches" if optimizer.accumulate > 1 else ""
    )
    stand_in = " for now" if plan.no_weights else ""
    mean, std = (" ".join(f"{value:.3f}" for value in values) for values in (plan.normalize.mean, plan.normalize.std))
    of_image = " over a mean image" if plan.normalize.mean_picture is not None else ""
    rows = [
        ("recipe", f"[bold]{recipe.name}[/bold]"),
        ("images", split_summary(plan.samples) if plan.samples else "unknown"),
        *([("folds", f"{recipe.data.folds} runs of what follows, each validated on its own fold")] if recipe.data.folds else []),
        (
            "input",
            f"{recipe.data.image_size} px by {recipe.data.resize}, normalize {recipe.data.normalize} (mean {mean}{of_image}, std {std})",
        ),
        ("backbone", f"{model.backbone}, weights {plan.weights}{stand_in}, head {model.head.kind} for {plan.classes} classes"),
    ]
    if plan.phases:
        rows += [
            ("a step", f"{step}; batch_size and lr hold for any number of devices"),
            ("optimizer", f"{optimizer.name}, no decay of biases and norms; {recipe.schedule.name} schedule{_warmup(plan)}"),
        ]
    table = _labelled()
    for label, text in rows:
        table.add_row(f"[dim]{label}[/dim]", text)
    return table


def _warmup(plan: Plan) -> str:
    shares = dict.fromkeys(plan.recipe.schedule.of_phase(phase.phase.train).warmup or 0.0 for phase in plan.phases)
    if not any(shares):
        return ""
    return f" with warm-up over {max(shares):.0%} of each phase{' of more than the head' if 0.0 in shares else ''}"


def _phase_tables(plan: Plan, phase: PhasePlan) -> list[Table]:
    """Return the table of a phase with all columns, then with fewer and fewer."""
    title = f"phase {phase.number + 1}/{len(plan.recipe.phases)}: {phase_name(phase.phase.train)}, {counted(phase.phase.epochs, 'epoch')}"
    if plan.steps is not None:
        title += f" of {counted(plan.steps, 'step')}"
    if phase.seconds is not None:
        title += f", about {duration(phase.seconds)}"
    return [_stage_table(title, phase, [name for name in COLUMNS if name not in without]) for without in LEFT_OUT]


def _stage_table(title: str, phase: PhasePlan, columns: list[str]) -> Table:
    table = Table(title=f"[bold]{title}[/bold]", title_justify="left", title_style="", box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in columns:
        is_number = name in NUMBERS
        table.add_column(name, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    rows = _joined(phase.rows) if len(phase.rows) > MANY_STAGES else list(phase.rows)
    for row in rows:
        cells = _cells(row)
        table.add_row(*(cells[name] for name in columns), style="" if row.trained else "dim")
    total = {"stage": "total", "parameters": f"{sum(row.parameters for row in phase.rows):,}", "trained": f"{phase.trained:,}"}
    table.add_section()
    table.add_row(*(total.get(name, "") for name in columns), style="bold")
    return table


def _cells(row: StageRow) -> dict[str, str]:
    cells = (
        row.name,
        "all" if row.trained == row.parameters else "some" if row.trained else "frozen",
        row.batchnorm,
        f"{row.lr:.3g}" if row.lr is not None else "",
        f"{row.weight_decay:.3g}" if row.weight_decay is not None else "",
        f"{row.parameters:,}",
        f"{row.trained:,}" if row.trained else "",
    )
    return dict(zip(COLUMNS, cells, strict=True))


def _solved(plan: Plan, number: int, phase: SolvedPhase) -> str:
    decay = "weight decay chosen on validation" if phase.weight_decay is None else f"weight decay {phase.weight_decay:g}"
    what = "the backbone runs once over the images"
    takes = f", about {duration(plan.solved[number])}" if number in plan.solved else ""
    return f"[bold]phase {number + 1}/{len(plan.recipe.phases)}: head, solved by L-BFGS on the features{takes}[/bold]; {decay}; {what}"


def _joined(rows: tuple[StageRow, ...]) -> list[StageRow]:
    """Join neighbouring rows that are trained alike: `block0 .. block7`."""
    runs: list[list[StageRow]] = []
    for row in rows:
        if runs and _fate(runs[-1][-1]) == _fate(row):
            runs[-1].append(row)
        else:
            runs.append([row])
    return [
        StageRow(
            run[0].name if len(run) == 1 else f"{run[0].name} .. {run[-1].name}",
            sum(row.parameters for row in run),
            sum(row.trained for row in run),
            run[0].batchnorm,
            run[0].lr,
            run[0].weight_decay,
        )
        for run in runs
    ]


def _fate(row: StageRow) -> tuple[object, ...]:
    return row.name in ("head", "auxiliary"), row.trained == row.parameters, row.trained > 0, row.batchnorm, row.lr, row.weight_decay


def _costs(plan: Plan) -> Table:
    table = _labelled()
    if plan.largest is not None:
        memory = plan.largest.memory
        parts = [("weights", memory.weights), ("gradients", memory.gradients), (plan.recipe.optimizer.name, memory.optimizer)]
        parts += [("copies", memory.copies)] * bool(memory.copies) + [("activations", memory.activations)]
        of = f" of {format_bytes(plan.device_memory)}" if plan.device_memory else ""
        table.add_row("[dim]memory[/dim]", f"[bold]{format_bytes(memory.total)}[/bold]{of} on a device, in phase {plan.largest.number + 1}")
        table.add_row("", ", ".join(f"{name} {format_bytes(number)}" for name, number in parts))
        table.add_row("", "[dim]counted on batches of 2 and 4; what kernels and CUDA need for themselves comes on top[/dim]")
    if plan.decoded is not None:
        with_margin = bool(plan.recipe.augment) and plan.recipe.data.margin > 1
        margin = f", training images at data.margin {plan.recipe.data.margin:g}" if with_margin else ""
        budget = f"of cache.budget_gb {plan.recipe.cache.budget_gb:g}"
        table.add_row("[dim]decoded[/dim]", f"{format_bytes(sum(plan.decoded))} of images on disk {budget}{margin}")
    if plan.steps is not None and plan.phases:
        epochs = sum(phase.phase.epochs for phase in plan.phases)
        table.add_row("[dim]steps[/dim]", f"{plan.steps * epochs:,}: {plan.steps:,} in each of {counted(epochs, 'epoch')}")
    if plan.steps is not None:
        folds = plan.recipe.data.folds
        times = f", {folds} times: [bold]{duration(plan.seconds_of_folds)}[/bold]" if folds else ""
        took = f"about [bold]{duration(plan.seconds)}[/bold]{times}, by a few batches of each phase on this machine"
        table.add_row("[dim]time[/dim]", took)
    return table


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{max(1, seconds):.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
