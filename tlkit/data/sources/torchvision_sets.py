"""torchvision's classification sets by name: found under data.root, or downloaded with torchvision's own checksums."""

import logging
import re
import shutil
import socket
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock
from PIL import Image
from torchvision import datasets
from torchvision.datasets import utils as torchvision_utils

from tlkit.data.samples import Sample, Samples
from tlkit.data.sources.kind import ReadOptions, SourceKind
from tlkit.errors import DataError, Fault, RecipeError, expected_one_of
from tlkit.recipe.fetched import is_offline
from tlkit.recipe.fields.source import TorchvisionSource

Arguments = Mapping[str, Any]
_TRAIN_TEST = {"train": {"train": True}, "test": {"train": False}}
_SPLITS_2 = {"train": {"split": "train"}, "test": {"split": "test"}}
_SPLITS_3 = {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}}
_TRAIN_VAL = {"train": {"split": "train"}, "val": {"split": "val"}}
_ONE: dict[str, Arguments] = {"": {}}
# Name -> our split -> the constructor's arguments. "" is a set without splits. Sets whose test labels are kept secret have none.
SETS: dict[str, Mapping[str, Arguments]] = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "QMNIST", "USPS"), _TRAIN_TEST),
    **{
        f"EMNIST/{variant}": {"train": {"split": variant, "train": True}, "test": {"split": variant, "train": False}}
        for variant in ("byclass", "bymerge", "balanced", "letters", "digits", "mnist")
    },
    **dict.fromkeys(("SVHN", "STL10", "Food101", "GTSRB", "StanfordCars"), _SPLITS_2),
    **dict.fromkeys(("Flowers102", "DTD", "FGVCAircraft", "PCAM", "RenderedSST2"), _SPLITS_3),
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "Country211": {"train": {"split": "train"}, "val": {"split": "valid"}, "test": {"split": "test"}},
    **dict.fromkeys(("Imagenette", "ImageNet"), _TRAIN_VAL),
    **dict.fromkeys(("EuroSAT", "Caltech101", "Caltech256", "SUN397", "SEMEION"), _ONE),
}
NOT_DOWNLOADABLE = ("ImageNet", "StanfordCars")
# What a user may have put under data.root instead of a download.
ARCHIVES = (".gz", ".tgz", ".tar", ".zip", ".bz2", ".xz", ".mat", ".h5")
NO_NETWORK_S = 4.0  # for name look-up and connecting, over all mirrors together
STALLED_S = 30.0  # without a byte
_FAILURES = (OSError, RuntimeError, ImportError, EOFError, ValueError, HTTPException, tarfile.TarError, zipfile.BadZipFile, zlib.error)

log = logging.getLogger("tlkit")


@dataclass(frozen=True)
class TorchvisionImage:
    """One picture of a set, decoded when called."""

    dataset: Any
    index: int

    def __call__(self) -> Image.Image:
        image: Image.Image = self.dataset[self.index][0]
        return image

    def __str__(self) -> str:
        return f"{type(self.dataset).__name__}[{self.index}]"


def read_torchvision(source: TorchvisionSource, options: ReadOptions) -> Samples:
    """The set as it lies under root; downloaded into root first where it isn't there.

    Raises RecipeError for an unknown name, and DataError, within five seconds where there is no network,
    if the set is neither there nor to be had.
    """
    name = source.torchvision
    if name not in SETS:
        variants = [known for known in SETS if known.startswith(f"{name}/")]
        fix = f"Expected one of: {', '.join(variants)}." if variants else expected_one_of(name, sorted(SETS))
        problem = "needs one of its variants." if variants else "is not a classification set of torchvision."
        raise RecipeError([Fault("data.source.torchvision", f"= '{name}' {problem}", fix)])
    root = options.root.expanduser()
    new_root = not root.exists()
    try:
        try:
            parts = _open(name, root)
        except _FAILURES as error:
            parts = _fetch(name, root, missing=error)
    finally:
        if new_root:
            _remove_if_empty(root)  # Some sets (Caltech101) make their folder before they look into it.
    return _samples(parts)


def _open(name: str, root: Path, *, download: bool = False) -> dict[str, Any]:
    """Split -> torchvision's data set."""
    make = getattr(datasets, name.partition("/")[0])
    more = {"download": True} if download else {}
    return {split: make(root=str(root), **arguments, **more) for split, arguments in SETS[name].items()}


def _samples(parts: Mapping[str, Any]) -> Samples:
    """Classes that no picture has (EMNIST/letters lists an `N/A`) are left out."""
    labels = {split: _labels(dataset) for split, dataset in parts.items()}
    numbers = sorted(set().union(*labels.values()))
    names = _class_names(next(iter(parts.values())), numbers)
    new = {number: label for label, number in enumerate(numbers)}
    return Samples(
        tuple(names[number] for number in numbers),
        tuple(
            Sample(f"{split or 'all'}/{index:06d}", TorchvisionImage(dataset, index), (new[label],), split)
            for split, dataset in parts.items()
            for index, label in enumerate(labels[split])
        ),
    )


def _labels(dataset: Any) -> list[int]:
    """Without decoding a picture, where the set keeps its labels by themselves: its classes agree on no name for them."""
    for name in ("targets", "labels", "_labels", "y"):
        values = getattr(dataset, name, None)
        if values is not None and len(values) == len(dataset):
            return [int(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]
    pairs = getattr(dataset, "_samples", None)
    if pairs is not None and len(pairs) == len(dataset):
        return [int(label) for _, label in pairs]
    log.info("%s keeps no list of labels: reading all of its %d pictures for them", type(dataset).__name__, len(dataset))
    return [int(dataset[index][1]) for index in range(len(dataset))]


def _class_names(dataset: Any, numbers: Sequence[int]) -> dict[int, str]:
    """Number -> name, unique; the number itself where torchvision has no names. ImageNet has two classes called crane."""
    known = getattr(dataset, "classes", None) or getattr(dataset, "categories", None) or ()
    plain = {n: ", ".join(known[n]) if isinstance(known[n], tuple) else str(known[n]) for n in numbers if n < len(known)}
    times = Counter(plain.values())
    return {n: str(n) if n not in plain else plain[n] if times[plain[n]] == 1 else f"{plain[n]} ({n})" for n in numbers}


def _fetch(name: str, root: Path, *, missing: Exception) -> dict[str, Any]:
    """Downloads the set beside its place and moves it there when it is whole, so that nothing half done is ever taken for the set."""
    if name in NOT_DOWNLOADABLE:
        raise DataError(
            f"data.source.torchvision: {name} is not in {root.resolve()}, and torchvision can't download it ({_one_line(missing)}).\n"
            "  Put its files there as torchvision's documentation says, set data.root to where they lie, or use data.source.folder."
        )
    attempt = _Attempt()
    unfinished, lock = (root / f".{name.replace('/', '-')}.{ending}" for ending in ("unfinished", "lock"))
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            try:
                return _open(name, root)  # Another process may have brought it meanwhile.
            except _FAILURES:
                pass
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            _lend_archives(root, unfinished)
            with attempt.watching(), _without_drive():
                _open(name, unfinished, download=True)
            _move_in(unfinished, root)
            return _open(name, root)
    except _FAILURES as error:
        lock.unlink(missing_ok=True)  # Kept after a success: another process may be waiting for it.
        raise DataError(_no_set(name, root, attempt, error, place=root / _looked_in(unfinished, root, name))) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _without_drive() -> Iterator[None]:
    """Offline: the package by which torchvision downloads from Google Drive, past urllib, can't be imported in here."""
    if not is_offline():
        yield
        return
    before = sys.modules.get("gdown")
    sys.modules["gdown"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if before is None:
            del sys.modules["gdown"]
        else:
            sys.modules["gdown"] = before


def _looked_in(unfinished: Path, root: Path, name: str) -> Path:
    """Where, below its root, torchvision wanted the archive: the deepest folder that it made (MNIST/raw; for CIFAR10 the root).

    Folders that only hold lent archives of other sets are in root too.
    """
    folders = [path.relative_to(unfinished) for path in unfinished.rglob("*") if path.is_dir()]
    own = [path for path in folders if path.parts[0] == name.partition("/")[0] or not (root / path).exists()]
    return max(own, key=lambda path: len(path.parts), default=Path())


def _remove_if_empty(folder: Path) -> None:
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        _remove_if_empty(path)
    if not any(folder.iterdir()):
        folder.rmdir()


def _no_set(name: str, root: Path, attempt: "_Attempt", error: Exception, *, place: Path) -> str:
    if not attempt.urls:
        return (
            f"data.source.torchvision: {name} is not whole in {root.resolve()} and could not be made ready there: {_one_line(error)}.\n"
            "  Mend or remove what lies there, set data.root to another folder, or use data.source.folder."
        )
    url = attempt.urls[-1]
    archive = place / Path(urlsplit(url).path).name
    if archive.is_file():
        use = f"use data.source={{idx: {place}}}, which reads it as it is" if "ubyte" in archive.name else "use data.source.folder"
        return (
            f"data.source.torchvision: {archive} is damaged, or packed by somebody else: its checksum is not torchvision's.\n"
            f"  Fetch it anew from {url}, or {use}."
        )
    return (
        f"data.source.torchvision: {name} is not in {root.resolve()}, and {urlsplit(url).hostname} did not give it ({url}): "
        f"{_one_line(attempt.failure or error)}.\n"
        f"  Put {archive.name} into {place}, set data.root to the folder that has {name}, or use data.source.folder."
    )


def _lend_archives(root: Path, unfinished: Path) -> None:
    """Links archives that the user put under root to where torchvision looks for them; it checks their checksums."""
    for depth in ("*", "*/*", "*/*/*"):
        for path in root.glob(depth):
            if path.suffix in ARCHIVES and path.is_file() and not path.relative_to(root).parts[0].startswith("."):
                link = unfinished / path.relative_to(root)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.resolve())


def _move_in(unfinished: Path, root: Path) -> None:
    """A whole folder at a time where root has none of that name."""
    for path in sorted(unfinished.iterdir()):
        place = root / path.name
        if path.is_symlink():
            continue
        if path.is_dir() and place.is_dir():
            _move_in(path, place)
        elif path.is_dir():
            _without_links(path)
            path.replace(place)
        else:
            path.replace(place)


def _without_links(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_symlink():
            path.unlink()


@dataclass
class _Attempt:
    """Watches what torchvision asks the network for: notes the addresses, and gives up soon where nobody answers."""

    urls: list[str] = field(default_factory=list)
    answered: set[tuple[str, int]] = field(default_factory=set)
    left_s: float = NO_NETWORK_S
    failure: OSError | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """torchvision calls urllib.request.urlopen without a timeout, and shows a bar in logs too: both are set here for its time."""
        opener_before, timeout_before = getattr(urllib.request, "_opener", None), socket.getdefaulttimeout()
        bar_before = getattr(torchvision_utils, "tqdm", None)
        urllib.request.install_opener(urllib.request.build_opener(_http(self), _https(self)))
        socket.setdefaulttimeout(STALLED_S)
        if bar_before is not None:
            torchvision_utils.tqdm = partial(bar_before, disable=not sys.stderr.isatty())
        try:
            yield
        finally:
            urllib.request.install_opener(opener_before)
            socket.setdefaulttimeout(timeout_before)
            if bar_before is not None:
                torchvision_utils.tqdm = bar_before

    def connect(self, request: urllib.request.Request, port: int) -> None:
        """Raises URLError unless the host, or the proxy in front of it, answers in the time that is left for all of them.

        In a thread of its own, because looking up a name has no timeout.
        """
        if request.full_url not in self.urls:
            self.urls.append(request.full_url)
            if not is_offline():
                log.info("downloading %s", request.full_url)
        if is_offline():
            self.failure = OSError("--offline asks no network")
            raise urllib.error.URLError(self.failure)
        address = urlsplit(f"//{request.host}")
        target = (address.hostname or "", address.port or port)
        if target in self.answered:
            return
        began = time.monotonic()
        outcome: Queue[OSError | None] = Queue()
        Thread(target=_try_to_connect, args=(target, outcome), daemon=True).start()
        try:
            failure = outcome.get(timeout=max(0.0, self.left_s))
        except Empty:
            failure = TimeoutError(f"no answer within {NO_NETWORK_S:.0f} seconds")
        if failure is not None:
            self.left_s -= time.monotonic() - began
            self.failure = failure
            raise urllib.error.URLError(failure)
        self.failure = None
        self.answered.add(target)


def _try_to_connect(target: tuple[str, int], outcome: "Queue[OSError | None]") -> None:
    try:
        socket.create_connection(target, timeout=NO_NETWORK_S).close()
        outcome.put(None)
    except OSError as error:
        outcome.put(error)


def _http(attempt: _Attempt) -> urllib.request.BaseHandler:
    class Watched(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> HTTPResponse:
            attempt.connect(req, 80)
            return super().http_open(req)

    return Watched()


def _https(attempt: _Attempt) -> urllib.request.BaseHandler:
    class Watched(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> HTTPResponse:
            attempt.connect(req, 443)
            return super().https_open(req)

    return Watched()


def _one_line(error: Exception) -> str:
    """MNIST's error is a list of the mirrors over several lines."""
    if str(error) == "File not found or corrupted.":  # torchvision's words for a checksum that doesn't match
        return "what came is damaged or cut off (its checksum is not the right one)"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines).strip("<>").removeprefix("urlopen error ").rstrip(".")
    return re.sub(r"^\[Errno -?\d+\] ", "", text) or type(error).__name__


KIND = SourceKind(read_torchvision, origin=lambda source: "downloaded")
