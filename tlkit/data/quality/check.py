"""`tlkit data check DIR|RECIPE`: every image decoded, and everything that is wrong with a source in one table."""

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from rich.table import Table
from rich.text import Text

from tlkit.data.progress import progress, progress_console
from tlkit.data.quality.decode_results import DecodeResult, decode_results
from tlkit.data.quality.on_bad import lost_classes
from tlkit.data.quality.value_range import range_warning
from tlkit.data.samples import Samples, Skipped
from tlkit.data.sources.classes import odd_class_findings
from tlkit.data.sources.kind import LEVELS, Finding, ReadOptions, SourceCheck, faults_of, warning_of
from tlkit.data.sources.read import kind_of
from tlkit.data.splits.folds import split_by_recipe
from tlkit.errors import DataError, RunError, TlkitError
from tlkit.files import write_csv
from tlkit.recipe.fields.data import Data
from tlkit.recipe.schema import Recipe, Task
from tlkit.terminal import counted, output_console, print_text, printable

LONG = 3.0
"""Sides: a crop of an image that is this many times as long as it is wide loses two thirds of it."""
TINY = 8
"""Pixels of the shorter side."""
MOST_ROWS = 200
"""Largest number of rows on the screen; --out has all."""
COLUMNS = tuple(field.name for field in fields(Finding))
STYLES = {"fault": "red", "warning": "yellow", "note": "dim"}


@dataclass(frozen=True)
class Checked:
    """images: that were decoded; bad: of them, those that can't be. findings: faults first, then by place."""

    images: int
    bad: int
    classes: int
    findings: tuple[Finding, ...]

    def count(self, level: str) -> int:
        return sum(finding.level == level for finding in self.findings)


def check_command(recipe: Recipe, name: str, *, as_json: bool, out: Path | None) -> int:
    """Print what is wrong with the recipe's images, and write it to `out` as csv. Return 2 if there are faults, else 0."""
    _check_out(out)
    checked = check_images(recipe.data, recipe.task, recipe.seed)
    if out:
        _write_csv(checked, out)
    if as_json:
        _print_json(checked, name)
    else:
        _print_table(checked, name, out)
    return 2 if checked.count("fault") else 0


def check_images(data: Data, task: Task, seed: int) -> Checked:
    """Check everything; faults that prevent a run are listed like others."""
    options = ReadOptions(Path(data.root), task, keep_missing=True)
    samples, findings = _read(data, options)
    check = _check_source(data, options, samples)
    if check.findings is not None:
        # What is wrong with the source is known more fully now; what isn't known is kept.
        known = any(finding.level == "fault" for finding in check.findings)
        findings = [*check.findings, *([] if known else (finding for finding in findings if finding.level == "fault"))]
    elif samples:
        findings += odd_class_findings(samples.classes)
    with progress(progress_console(), "images decoded", len(check.images)) as advance:
        results = dict(zip(check.images, decode_results(list(check.images.values()), data, advance), strict=True))
    bad = {id_ for id_, result in results.items() if result.problem}
    findings += _image_findings(results, data)
    if warning := range_warning(list(check.images.values()), data):
        findings.append(Finding("warning", "", warning.removesuffix(".")))
    if samples:
        findings += _split_findings(samples, bad, data, seed)
    ordered = sorted(findings, key=lambda found: (LEVELS.index(found.level), found.where))
    return Checked(len(results), len(bad), check.classes or 0, tuple(ordered))


def _read(data: Data, options: ReadOptions) -> tuple[Samples | None, list[Finding]]:
    """Return the samples, if they can be read, and what was warned of or was wrong."""
    try:
        samples = kind_of(data.source).read(data.source, options)
    except TlkitError as error:
        return None, list(faults_of(error))
    return samples, [warning_of(text) for text in samples.warnings]


def _check_source(data: Data, options: ReadOptions, samples: Samples | None) -> SourceCheck:
    """Return what the kind of source finds; where that is no more than was read, the samples that were read."""
    check = SourceCheck()
    with suppress(TlkitError):  # which reading has reported already
        check = kind_of(data.source).check(data.source, options)
    if check.findings is not None or samples is None:
        return check
    return SourceCheck({sample.id: sample.image for sample in samples.samples}, classes=len(samples.classes))


def _image_findings(results: dict[str, DecodeResult], data: Data) -> Iterator[Finding]:
    several = sorted(id_ for id_, result in results.items() if result.frames > 1 and not result.problem)
    if several:
        more = f"; so {'has' if len(several) == 2 else 'have'} {len(several) - 1} more" if len(several) > 1 else ""
        yield Finding("note", several[0], f"has {results[several[0]].frames} frames or pages, and the first is taken{more}")
    for id_, result in results.items():
        if result.problem:
            yield Finding("fault", id_, result.problem, result.fix)
            continue
        short, long = sorted((result.width, result.height))
        size = f"{result.width} x {result.height} pixels"
        if long / short > LONG:
            yield Finding("warning", id_, f"{size}: {_loss(long / short, data.resize)}", _long_fix(data.resize))
        elif short < TINY:
            yield Finding("warning", id_, f"{size}: hardly an image", "Replace or remove it.")


def _loss(sides: float, resize: str) -> str:
    if resize == "crop":
        return f"`resize: crop` cuts {_percent(1 - 1 / sides)} of it away"
    if resize == "pad":
        return f"`resize: pad` leaves {_percent(1 - 1 / sides)} of the square empty"
    return f"`resize: stretch` makes it {sides:.3g} times as wide or as high as it is"


def _percent(share: float) -> str:
    """Format a share; a share below 1 is never shown as 100 %."""
    return f"{100 * share:.0f} %" if share < 0.995 else f"{100 * min(share, 0.9999):.2f} %"


def _long_fix(resize: str) -> str:
    return "Cut it to what matters, or set data.resize=pad." if resize == "crop" else "Cut it to what matters, or remove it."


def _split_findings(samples: Samples, bad: set[str], data: Data, seed: int) -> Iterator[Finding]:
    """Yield faults if the readable images are too few to train on."""
    good = tuple(sample for sample in samples.samples if sample.id not in bad)
    left_out = tuple(Skipped(sample, "") for sample in samples.samples if sample.id in bad)
    left = replace(samples, samples=good, skipped=left_out)
    if lost := list(lost_classes(left)):
        yield from faults_of(DataError("\n".join(lost) + "\n  Fix some of its images, or remove the class."))
        return
    try:
        split_by_recipe(left, data, seed)
    except TlkitError as error:
        yield from faults_of(error)


# --- for people and scripts ---


def _print_table(checked: Checked, name: str, out: Path | None) -> None:
    counts = {level: checked.count(level) for level in LEVELS}
    classes = f" in {counted(checked.classes, 'class', 'classes')}" if checked.classes else ""
    # A contract: scripts look for "24 pictures in 2 classes" in this line, acceptance scripts too, so it doesn't say images.
    found, were = f"{counted(checked.images, 'picture')}{classes}", "was" if checked.images == 1 else "were"
    good = f"{found} {were} decoded, all of them can be read."
    bad = f"{found} {were} tried: {checked.images - checked.bad:,} can be read, {checked.bad:,} can't."
    print_text(f"{name}: {(bad if checked.bad else good) if checked.images else 'no image was found.'}")
    if checked.findings:
        table = Table(box=None, header_style="bold")
        for heading in ("", "where", "what is wrong", "what to do"):
            table.add_column(heading, overflow="fold")
        for finding in checked.findings[:MOST_ROWS]:
            cells = (Text(printable(escaped(text))) for text in (finding.where, finding.problem, finding.fix))
            table.add_row(Text(finding.level, style=STYLES[finding.level]), *cells)
        print()
        output_console().print(table)
        if len(checked.findings) > MOST_ROWS:
            print(f"... and {len(checked.findings) - MOST_ROWS} more: --out FILE.csv writes all.")
        print()
    summary = ", ".join(f"{number} {level}{'' if number == 1 else 's'}" for level, number in counts.items()) + "."
    others = ", and fixes nothing else" if counts["fault"] > checked.bad else ""
    summary += f" data.on_bad=skip trains without the images that can't be read{others}." if checked.bad else ""
    print_text(summary + (f" All rows: {out}" if out else ""))


def escaped(text: str) -> str:
    """Escape control characters, and the lone surrogates of names that aren't UTF-8."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape", "replace").decode() for sign in text)


def _print_json(checked: Checked, name: str) -> None:
    rows = [asdict(finding) for finding in checked.findings]
    counts = {f"{level}s": checked.count(level) for level in LEVELS}
    facts = {"source": name, "pictures": checked.images, "unreadable": checked.bad, "classes": checked.classes, **counts}
    print(json.dumps({**facts, "findings": rows}, indent=1))


def _check_out(out: Path | None) -> None:
    """Raise RunError if a table can't be written, or another file would be lost."""
    if out is None:
        return
    if out.is_dir():
        raise RunError(f"--out {out} is a folder.\n  Expected a file, such as {out / 'faults.csv'}.")
    if out.exists() and not out.read_bytes().startswith(",".join(COLUMNS).encode()):
        raise RunError(f"--out {out} is there already, and no table of an earlier check.\n  Choose another file.")


def _write_csv(checked: Checked, out: Path) -> None:
    write_csv(out, COLUMNS, map(asdict, checked.findings))
    print_text(f"{len(checked.findings)} {'row' if len(checked.findings) == 1 else 'rows'} written to {out}", sys.stderr)
