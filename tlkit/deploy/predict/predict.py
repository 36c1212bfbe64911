"""`tlkit predict RUN|ARTIFACT PATHS...`: what a model says of image files."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from io import BufferedReader
from itertools import chain, islice
from os import PathLike
from pathlib import Path
from typing import Literal, cast

import numpy as np

from tlkit.data.progress import progress, progress_console
from tlkit.data.sources.image_files import UnusedImages
from tlkit.deploy.predict.feature_files import open_features
from tlkit.deploy.predict.inputs import STDIN, check_paths, file_names
from tlkit.deploy.predict.layouts import TABLE_ROWS, Layout, OutputOptions, layout, print_tables
from tlkit.deploy.predict.out_file import open_out
from tlkit.deploy.predict.prediction import NOT_FINITE, Prediction
from tlkit.deploy.predict.predictor import Predictor, open_predictor
from tlkit.deploy.predict.stream import batches, predictions
from tlkit.errors import DataError
from tlkit.terminal import counted, printable, takes_unicode

Format = Literal["table", "json", "csv", "jsonl"]
# Files that can't be read are named up to this many; each has a row that says why.
NAMED = 20
TOP_K = 3


@dataclass(frozen=True)
class PredictOptions:
    """paths: files, folders, globs, or - for a list on stdin, with names separated by `separator`.

    threshold: the probability below which no class is predicted; for a multilabel model, that above which each class is.
    format: None chooses by the ending of `out`, or a table without `out`. top_k: None is TOP_K.
    """

    paths: tuple[str, ...]
    separator: bytes = b"\n"
    format: Format | None = None
    top_k: int | None = None
    threshold: float | None = None
    out: Path | None = None
    resume: bool = False
    features: bool = False


def predict(
    model: str | PathLike[str], images: Sequence[str | PathLike[str]], *, device: str = "auto"
) -> tuple[tuple[str, ...], list[Prediction]]:
    """Classify image files. Needs neither training data nor a network.

    Args:
        model: A run folder, the model folder in it, or what `export` made: a folder or a .zip.
        images: The files, which are decoded a batch at a time.
        device: Where a run's model is put: cpu, cuda, cuda:1, mps, or auto for an accelerator where there is one. An artifact's runtime
            chooses for itself.

    Returns:
        The K classes of the model, and a prediction for each file in the order given: `probabilities` [K], or `error` where the file
        can't be read. `prediction.ranked(classes, 3)` gives the likeliest three with their probabilities.

    Raises:
        RunError: The run or model folder is none, or damaged.
        ArtifactError: The artifact is damaged.
        DeviceError: This machine doesn't have the device.
    """
    predictor = open_predictor(Path(model), device=device)
    names = [str(Path(image)) for image in images]
    return predictor.classes, [found for batch in predictions(predictor, names) for found in batch]


def predict_command(model: Path, options: PredictOptions) -> int:
    """Write predictions to stdout or a file; unreadable files are listed on stderr and make the exit code 2."""
    how = _format_of(options)
    for folder in check_paths(options.paths):
        print(f"{printable(folder)}: there is no image in this folder; the others are predicted.", file=sys.stderr)
    predictor = open_predictor(model)
    if options.features and options.out:
        tally = _write_features(predictor, options, options.out)
    else:
        question = OutputOptions.of(predictor, options.top_k or TOP_K, options.threshold)
        if question.multilabel and options.threshold is not None:
            predictor = replace(predictor, thresholds=(options.threshold,) * len(predictor.classes))
        out = options.out
        tally = _write_out(predictor, options, out, how, question) if out else _print_all(predictor, options, how, question)
    return tally.exit_code(options)


class Tally:
    """Counts images, and keeps the first errors."""

    def __init__(self) -> None:
        self.images = self.unreadable = self.earlier = 0
        self._first: list[str] = []
        self.unused = UnusedImages()

    def add(self, images: int, errors: Iterable[str]) -> None:
        self.images += images
        for error in errors:
            self.unreadable += 1
            if len(self._first) < NAMED:
                self._first.append(error)

    def exit_code(self, options: PredictOptions) -> int:
        """Report what couldn't be read, and return the exit code."""
        if not self.images + self.earlier:
            raise DataError("No image was named on standard input.\n  Expected a file name on each line; with -0, a NUL after each.")
        for error in self._first:
            print(printable(error), file=sys.stderr)
        if self.unreadable > len(self._first) > 0:
            print(f"... and {self.unreadable - len(self._first)} more.", file=sys.stderr)
        number = self.images + self.earlier
        if options.out:
            before = f", {self.earlier} of them from before" if self.earlier else ""
            print(f"{counted(number, 'image')} in {options.out}{before}", file=sys.stderr)
        if self.unreadable:
            others = "; the others were predicted" if self.unreadable < number else ""
            print(f"{self.unreadable} of {number} files could not be read or predicted{others}.", file=sys.stderr)
        if text := str(self.unused):
            print(printable(text), file=sys.stderr)
        return 2 if self.unreadable else 0


def _format_of(options: PredictOptions) -> Format:
    """Raise DataError if options don't fit each other."""
    if options.features:
        unused = {"--format": options.format, "--threshold": options.threshold, "--top-k": options.top_k}
        if given := [option for option, value in unused.items() if value is not None]:
            raise DataError(f"--features takes no {' and no '.join(given)}: features are written in place of answers.\n  Leave it out.")
        if options.out is None:
            raise DataError("--features needs --out.\n  Add --out FILE.npz or --out FILE.parquet.")
        return "table"
    if options.out is None:
        if options.resume:
            raise DataError("--resume resumes the file of --out, which isn't named.\n  Add --out FILE.csv or --out FILE.jsonl.")
        return options.format or "table"
    endings: dict[str, Format] = {".csv": "csv", ".jsonl": "jsonl"}
    how = options.format or endings.get(options.out.suffix.lower())
    if how not in endings.values():
        what = f"--format {options.format} can't be written a row at a time" if options.format else f"'{options.out.suffix}' says no format"
        raise DataError(f"--out {options.out}: {what}.\n  Expected FILE.csv or FILE.jsonl, or --format csv or jsonl.")
    return how  # type: ignore[return-value]  # it is one of the two


def _names(options: PredictOptions, unused: UnusedImages | None = None) -> Iterator[str]:
    stdin = cast(BufferedReader, sys.stdin.buffer)  # typeshed says less of it than it is
    return file_names(options.paths, stdin, separator=options.separator, unused=unused)


def _count(options: PredictOptions, done: int = 0) -> Callable[[], int] | None:
    """Return a function that counts the images to predict, if that is cheap. done: images that have a row already."""
    return None if STDIN in options.paths else lambda: max(0, sum(1 for _ in _names(options)) - done)


def _progress(count: Callable[[], int] | None, *, answers_on_stdout: bool = False) -> AbstractContextManager[Callable[[int], None]]:
    """Return a progress bar, except on a terminal that shows the predictions as they come."""
    live = not (answers_on_stdout and sys.stdout.isatty())
    return progress(progress_console(), "predict", count, live=live, write=partial(print, file=sys.stderr))


def _print_all(predictor: Predictor, options: PredictOptions, how: Format, question: OutputOptions) -> Tally:
    tally = Tally()
    with _progress(_count(options), answers_on_stdout=how != "table") as advance:
        found = _tallied(predictions(predictor, _names(options, tally.unused)), tally, advance)
        if how != "table":
            _print_rows(found, layout(how, question, ascii_only=not takes_unicode()))
            return tally
        rows = (prediction for batch in found for prediction in batch)
        # The bar ends before the first table is printed; of more images the tables are progress enough.
        first = list(islice(rows, TABLE_ROWS))
    print_tables(chain(first, rows), question)
    return tally


def _print_rows(found: Iterable[list[Prediction]], text: Layout) -> None:
    out = sys.stdout
    out.write(text.begin)
    for number, batch in enumerate(found):
        out.write((text.between if number else "") + text.between.join(map(text.row, batch)))
    out.write(text.end)


def _write_out(predictor: Predictor, options: PredictOptions, file: Path, how: Format, question: OutputOptions) -> Tally:
    tally = Tally()
    made_by = {
        "model": predictor.fingerprint,
        "classes": list(predictor.classes),
        "format": how,
        "top_k": question.top_k,
        "threshold": options.threshold,
        **predictor.trust.to_json(),
    }
    text = layout(how, question)
    with open_out(file, text, made_by, resume=options.resume) as (out, rows):
        tally.earlier, tally.unreadable = len(rows.names), rows.unreadable
        with _progress(_count(options, len(rows.names))) as advance:
            for batch in _tallied(predictions(predictor, rows.without(_names(options, tally.unused))), tally, advance):
                out.write("".join(map(text.row, batch)).encode(errors="surrogateescape"))
                out.flush()  # a batch in one piece: what is lost by a kill is at most what is in the network
    return tally


def _tallied(found: Iterable[list[Prediction]], tally: Tally, advance: Callable[[int], None]) -> Iterator[list[Prediction]]:
    for batch in found:
        tally.add(len(batch), (prediction.error for prediction in batch if prediction.error))
        yield batch
        advance(len(batch))


def _write_features(predictor: Predictor, options: PredictOptions, file: Path) -> Tally:
    """Raise DataError if the model gives no features."""
    if predictor.features is None:
        raise DataError("--features: this artifact gives only probabilities.\n  Export the run with --features, or name the run itself.")
    tally = Tally()
    size, channels = predictor.preprocessing.image_size, predictor.preprocessing.channels
    width = predictor.features(np.zeros((1, size, size, channels), np.uint8)).shape[1]
    made_by = {"model": predictor.fingerprint, "number of features": width}
    with open_features(file, width, made_by, resume=options.resume) as (write, rows):
        tally.earlier, tally.unreadable = len(rows.names), rows.unreadable
        with _progress(_count(options, len(rows.names))) as advance:
            for batch in batches(predictor.preprocessing, rows.without(_names(options, tally.unused))):
                features = predictor.features(batch.images) if batch.images is not None else np.empty((0, width), np.float32)
                finite = np.isfinite(features).all(1)
                names = np.array(batch.readable, object)
                write(names[finite].tolist(), features[finite], [*(batch.names[i] for i in batch.errors), *names[~finite]])
                tally.add(len(batch.names), [*batch.errors.values(), *(f"{name}: {NOT_FINITE}" for name in names[~finite])])
                advance(len(batch.names))
    return tally
