"""An artifact: the folder, or .zip, that an export makes. artifact.json says how to use the network and vouches for every file.

Nothing here needs torch, and nothing in an artifact is ever run: networks are ONNX, safetensors or the like, all else is JSON and text.
"""

import json
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tlkit.data.preprocess import Preprocessing
from tlkit.errors import ArtifactError
from tlkit.files import atomic_file, sha256_of, write_json
from tlkit.models.inference.trust import Trust

MANIFEST = "artifact.json"
MEAN_IMAGE = "mean_picture.npy"
VERSION = 1
"""Version of artifact.json. A reader rejects newer ones."""
PICKLES = (".pkl", ".pickle", ".pth", ".pt", ".bin", ".ckpt", ".joblib", ".tar", ".dill")
# Of a .zip: weights hardly shrink, and JSON does so about tenfold. More is no artifact but an attempt to fill the disk.
MAX_ENTRIES = 10_000
MAX_BYTES = 16 * 2**30
MAX_RATIO = 200
_COPY_AGAIN = "  Copy the whole artifact again, or export it again."


@dataclass(frozen=True)
class Artifact:
    """A checked artifact. facts: artifact.json. folder: where its files lie, for as long as this lives."""

    folder: Path
    facts: Mapping[str, Any]
    _unpacked: TemporaryDirectory[str] | None = field(default=None, repr=False)

    @property
    def format(self) -> str:
        """Return onnx, openvino, torch or safetensors."""
        return str(self.facts["format"])

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.facts["classes"])

    @property
    def multilabel(self) -> bool:
        return bool(self.facts["task"] == "multilabel")

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Return the thresholds of a multilabel model, one per class: an image has the class if its probability is above it."""
        return tuple(self.facts["thresholds"])

    @property
    def trust(self) -> Trust:
        """Return how far the answers can be trusted. Of unknown images the network itself gives the score, as output `unknown`."""
        return Trust.from_json(self.facts)

    @property
    def preprocessing(self) -> Preprocessing:
        """Raise ArtifactError if its mean image is missing or not the one that is named."""
        values = self.facts["preprocessing"]
        if "mean_picture" not in values:
            return Preprocessing.from_json(values)
        try:
            if MEAN_IMAGE not in self.facts["sha256"]:
                raise ValueError(f"{MANIFEST} has no sha256 of it")
            return Preprocessing.from_json(values, np.load(self.folder / MEAN_IMAGE, allow_pickle=False))
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{self.folder / MEAN_IMAGE} can't be used: {error}\n{_COPY_AGAIN}") from error

    @property
    def network(self) -> Path:
        return self.folder / str(self.facts["network"])

    @property
    def raw(self) -> bool:
        """Check whether the network takes uint8 images [B, S, S, C]; otherwise normalised ones, float32 [B, C, S, S]."""
        return bool(self.facts["input"]["dtype"] == "uint8")


def is_artifact(path: Path) -> bool:
    """Check whether a path is meant as an artifact: a folder with artifact.json, or a .zip."""
    return (path / MANIFEST).is_file() or (path.suffix.lower() == ".zip" and path.is_file())


def artifact_in(folder: Path) -> str:
    """Return the question whether an artifact in the folder was meant: `tlkit export --out FOLDER` makes one for each format there."""
    found = sorted(file.parent for file in folder.glob(f"*/{MANIFEST}")) if folder.is_dir() else []
    return f" Did you mean {found[0]}?" if found else ""


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write artifact.json, with the sha256 of every other file in the folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
    sums = {file.relative_to(folder).as_posix(): sha256_of(file) for file in files}
    write_json(folder / MANIFEST, {"artifact": VERSION, **facts, "sha256": sums})


def read_artifact(path: Path) -> Artifact:
    """Read the artifact in a folder or a .zip, and compare every file with its sha256.

    Raises ArtifactError if it is none, or if anything in it is missing, changed, a pickle, or made by a newer tlkit.
    """
    refuse_pickle(path)
    if not path.exists():
        raise ArtifactError(f"{path} does not exist.\n  Expected the folder or .zip that `tlkit export` made.")
    if path.is_dir():
        return Artifact(path, _checked_facts(path))
    unpacked = TemporaryDirectory(prefix="tlkit-artifact-")
    unpack(path, Path(unpacked.name))
    return Artifact(Path(unpacked.name), _checked_facts(Path(unpacked.name)), unpacked)


def refuse_pickle(path: Path) -> None:
    if path.suffix.lower() in PICKLES:
        raise ArtifactError(
            f"{path} is a pickle by its name ({path.suffix}): to read one can run any code that somebody put into it; tlkit never does.\n"
            "  Expected an artifact that `tlkit export` made. Weights of your own: see `model.weights` in the docs."
        )


def pack(folder: Path, file: Path) -> None:
    """Pack the folder's files into one uncompressed .zip: weights hardly compress, and a server can read them in place."""
    with atomic_file(file) as writing, zipfile.ZipFile(writing, "w", zipfile.ZIP_STORED) as archive:
        for entry in sorted(folder.rglob("*")):
            if entry.is_file():
                archive.write(entry, entry.relative_to(folder).as_posix())


def is_packed(file: Path) -> bool:
    """Check whether a .zip of an artifact is there."""
    try:
        with zipfile.ZipFile(file) as archive:
            return MANIFEST in archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False


def unpack(file: Path, folder: Path) -> None:
    """Unpack a .zip, inside `folder` only. Raises ArtifactError, before anything is written, for entries that an artifact doesn't have."""
    try:
        with zipfile.ZipFile(file) as archive:
            _check_entries(file, archive.infolist())
            for entry in archive.infolist():
                _write_entry(archive, entry, folder)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, OSError) as error:
        raise ArtifactError(f"{file} can't be read as a .zip: {error}\n{_COPY_AGAIN}") from error


def _check_entries(file: Path, entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > MAX_ENTRIES or sum(entry.file_size for entry in entries) > MAX_BYTES:
        size = sum(entry.file_size for entry in entries) / 2**30
        limits = f"{MAX_ENTRIES} files and {MAX_BYTES >> 30} GB"
        raise ArtifactError(f"{file} holds {len(entries)} files of {size:.1f} GB; the limits are {limits}. This is no artifact.")
    seen: set[str] = set()
    for entry in entries:
        name = entry.filename
        mode = entry.external_attr >> 16
        if "\\" in name or ":" in name or name.startswith("/") or ".." in PurePosixPath(name).parts or "\0" in name:
            raise ArtifactError(
                f"{file}: the entry {name!r} would be written outside the artifact. It was not made by tlkit; don't use it."
            )
        if stat.S_ISLNK(mode):
            raise ArtifactError(f"{file}: the entry {name!r} is a link, which no artifact has. It was not made by tlkit; don't use it.")
        if name in seen:
            raise ArtifactError(f"{file}: two entries are named {name!r}. It was not made by tlkit; don't use it.")
        if entry.flag_bits & 1:
            raise ArtifactError(f"{file}: the entry {name!r} is encrypted, which no artifact is.\n  Pack it again without a password.")
        if entry.file_size > MAX_RATIO * max(entry.compress_size, 1024):
            raise ArtifactError(f"{file}: the entry {name!r} would grow {MAX_RATIO}-fold or more when unpacked. This is no artifact.")
        seen.add(name)


def _write_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> None:
    if entry.is_dir():
        return
    target = folder / entry.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    left = entry.file_size
    with archive.open(entry) as source, target.open("xb") as written:
        while left and (block := source.read(min(left, 2**20))):  # never more than the directory promised
            written.write(block)
            left -= len(block)
    if left:
        raise EOFError(f"{entry.filename} is cut off")


def _checked_facts(folder: Path) -> dict[str, Any]:
    facts = _read_facts(folder)
    for name, expected in facts["sha256"].items():
        file = folder / name
        if not (facts["format"] == "openvino" and name == "model.bin"):  # the weights beside model.xml, and plain numbers
            refuse_pickle(file)
        if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts or file.is_symlink():
            raise ArtifactError(f"{folder / MANIFEST} names a file outside the artifact: {name!r}. Don't use it.")
        if not file.is_file():
            raise ArtifactError(f"{file} is missing.\n{_COPY_AGAIN}")
        if sha256_of(file) != expected:
            raise ArtifactError(f"{file} is not the file that {MANIFEST} describes (its sha256 differs).\n{_COPY_AGAIN}")
    if str(facts["network"]) not in facts["sha256"]:
        raise ArtifactError(f"{folder / MANIFEST} has no sha256 of its network, {facts['network']!r}.\n{_COPY_AGAIN}")
    return facts


def _read_facts(folder: Path) -> dict[str, Any]:
    """Read an artifact.json of a kind that this tlkit can use."""
    file = folder / MANIFEST
    if not file.is_file():
        raise ArtifactError(f"{folder} holds no {MANIFEST}.\n  Expected the folder or .zip that `tlkit export` made.{artifact_in(folder)}")
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        if facts["artifact"] > VERSION:
            raise ArtifactError(f"{file} is of version {facts['artifact']}; this tlkit reads up to {VERSION}.\n  Update tlkit.")
        facts["format"], facts["network"], facts["input"]["dtype"], facts["task"], dict(facts["sha256"])
        thresholds, classes = list(facts["thresholds"]), list(facts["classes"])
        if thresholds and len(thresholds) != len(classes):
            raise ArtifactError(f"{file} has {len(thresholds)} thresholds for {len(classes)} classes.\n{_COPY_AGAIN}")
        Preprocessing.from_json(facts["preprocessing"])
        Trust.from_json(facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ArtifactError(f"{file} can't be used: {what}\n{_COPY_AGAIN}") from error
    return dict(facts)
