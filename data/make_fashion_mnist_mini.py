"""Writes data/fashion_mnist_mini: 200 training and 100 test images of each Fashion-MNIST class, as PNG files.

The source is the four IDX files of Fashion-MNIST; Debian's package dataset-fashion-mnist puts them where SOURCE says.
An image's name is its position in the IDX file. The same source and seed give the same files, byte for byte
(with the Pillow of constraints.txt; another zlib may pack the same pixels differently).
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SOURCE = Path("/usr/share/datasets/fashion-mnist")
TARGET = Path(__file__).parent / "fashion_mnist_mini"
# In the order of the labels 0 to 9.
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
# Split -> the start of its IDX file names, images a class.
SPLITS = {"train": ("train", 200), "test": ("t10k", 100)}


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Images [N, 28, 28] or labels [N].

    Source: the IDX format, http://yann.lecun.com/exdb/mnist: two zero bytes, the type (8: uint8), the number of
    dimensions, each dimension as a big-endian uint32, then the values.
    """
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\0\0\x08":
        raise SystemExit(f"{path}: not an IDX file of bytes.")
    dimensions = content[3]
    shape = np.frombuffer(content, dtype=">u4", count=dimensions, offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def choose(labels: NDArray[np.uint8], *, per_class: int, seed: int) -> NDArray[np.int64]:
    """Sorted positions of `per_class` images of every class, without repeats."""
    generator = np.random.default_rng(seed)
    of_class = (np.flatnonzero(labels == label) for label in range(len(CLASSES)))
    return np.sort(np.concatenate([generator.choice(positions, per_class, replace=False) for positions in of_class]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=SOURCE, help="folder of the four .gz files (default: %(default)s)")
    parser.add_argument("--target", type=Path, default=TARGET, help="folder to write to (default: beside this script)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.target.exists():
        raise SystemExit(f"{arguments.target} exists already; move it away first.")

    for split, (prefix, per_class) in SPLITS.items():
        images = read_idx(arguments.source / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(arguments.source / f"{prefix}-labels-idx1-ubyte.gz")
        for position in choose(labels, per_class=per_class, seed=arguments.seed):
            path = arguments.target / split / CLASSES[labels[position]] / f"{position:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[position]).save(path, optimize=True)


if __name__ == "__main__":
    main()
