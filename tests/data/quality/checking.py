"""Folders and shards to check, and what is found in them."""

import io
import tarfile
from pathlib import Path

from tests.data.faulty_folder import encoded, make_image
from tlkit.data.quality.check import Checked, check_images
from tlkit.recipe.fields.data import Data
from tlkit.recipe.fields.source import FolderSource, WebDatasetSource


def small_folder(root: Path, *, splits: tuple[str, ...] = ("",), classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    for split in splits:
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for number in range(12):
                make_image(100 * label + number).save(root / split / name / f"{number}.png")
    return root


def data(folder: Path, **settings: object) -> Data:
    return Data(source=FolderSource(folder=str(folder)), **settings)


def checked(folder: Path, **settings: object) -> Checked:
    return check_images(data(folder, **settings), "multiclass", 0)


def rows(found: Checked, level: str) -> dict[str, str]:
    return {finding.where: finding.problem for finding in found.findings if finding.level == level}


def shard(file: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def of_shard(file: Path, **settings: object) -> Checked:
    source = WebDatasetSource(webdataset=str(file))
    return check_images(Data(source=source, root=str(file.parent / "data"), **settings), "multiclass", 0)


def good_members() -> dict[str, bytes]:
    images = {f"{number}.png": encoded(make_image(number), "PNG") for number in range(12)}
    return images | {f"{number}.cls": str(number % 2).encode() for number in range(12)}
