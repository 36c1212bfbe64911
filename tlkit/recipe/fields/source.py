"""data.source: the places that images and labels come from."""

from typing import Annotated, Literal

from pydantic import Field

from tlkit.recipe.fields.strict import Strict


class FolderSource(Strict):
    folder: str = Field(
        min_length=1, title="FOLDER", examples=["photos"], description="train/val/test folders of classes, or classes to be split"
    )
    layout: Literal["auto", "split/class", "class/split", "class"] = Field(
        "auto", description="meaning of the folders, from outer to inner; auto detects it by their names"
    )


class TorchvisionSource(Strict):
    torchvision: str = Field(
        min_length=1, title="NAME", examples=["CIFAR10"], description="a torchvision data set by its class name: CIFAR10, MNIST, ..."
    )


_ROOT = "folder that the paths are relative to; by default the table's"
_SEPARATOR = "separator of several labels in a cell; by default |, and an error if another separator seems to be meant"
_PATH = "the column of paths"
_LABEL = "the column of labels, or a list of columns of 0 and 1, one for each class"
_SPLIT, _GROUP = (
    "the column of splits, if there is one",
    "the column of groups, if there is one: images of one group are never in two splits",
)
Label = Annotated[str, Field(min_length=1)] | Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False, min_length=2)]


class CsvSource(Strict):
    csv: str = Field(
        min_length=1,
        title="FILE",
        examples=["photos.csv"],
        description="a table with a row per image, separated by comma, semicolon or tab",
    )
    root: str | None = Field(None, min_length=1, title="DIR", examples=["/data/photos"], description=_ROOT)
    path: str = Field("path", min_length=1, title="COLUMN", examples=["file"], description=_PATH)
    label: Label = Field("label", title="COLUMN", examples=["breed"], description=_LABEL)
    split: str = Field("split", min_length=1, title="COLUMN", examples=["fold"], description=_SPLIT)
    group: str = Field("group", min_length=1, title="COLUMN", examples=["patient"], description=_GROUP)
    separator: str | None = Field(None, min_length=1, max_length=8, examples=[";"], description=_SEPARATOR)


class ParquetSource(Strict):
    parquet: str = Field(
        min_length=1,
        title="FILE",
        examples=["photos.parquet"],
        description="a table as for csv; a list in the column label is several labels",
    )
    root: str | None = Field(None, min_length=1, title="DIR", examples=["/data/photos"], description=_ROOT)
    path: str = Field("path", min_length=1, title="COLUMN", examples=["file"], description=_PATH)
    label: Label = Field("label", title="COLUMN", examples=["breed"], description=_LABEL)
    split: str = Field("split", min_length=1, title="COLUMN", examples=["fold"], description=_SPLIT)
    group: str = Field("group", min_length=1, title="COLUMN", examples=["patient"], description=_GROUP)
    separator: str | None = Field(None, min_length=1, max_length=8, examples=[";"], description=_SEPARATOR)


_CLASSES = "names of the labels 0, 1, 2 ..., in this order"


class IdxSource(Strict):
    idx: str = Field(
        min_length=1,
        title="DIR",
        examples=["/usr/share/datasets/fashion-mnist"],
        description="folder with MNIST's files: train-images-idx3-ubyte and so on, .gz or not",
    )
    classes: tuple[str, ...] = Field((), strict=False, examples=[["cat", "dog"]], description=_CLASSES)


class NpzSource(Strict):
    npz: str = Field(
        min_length=1,
        title="FILE",
        examples=["photos.npz"],
        description="arrays named x_train and y_train, train_images and train_labels, or images and labels",
    )
    classes: tuple[str, ...] = Field((), strict=False, examples=[["cat", "dog"]], description=_CLASSES)


class NpySource(Strict):
    npy: str = Field(min_length=1, title="FILE", examples=["images.npy"], description="images [N, H, W] or [N, H, W, C], uint8 or uint16")
    labels: str = Field(min_length=1, title="FILE", examples=["labels.npy"], description="an .npy file with a label for each image")
    classes: tuple[str, ...] = Field((), strict=False, examples=[["cat", "dog"]], description=_CLASSES)


class HuggingFaceSource(Strict):
    huggingface: str = Field(
        min_length=1, title="NAME", examples=["beans"], description="a data set of the hub, or a folder that contains one"
    )
    image: str | None = Field(
        None, min_length=1, examples=["photo"], description="the column with images; by default the only one with images"
    )
    label: str | None = Field(
        None, min_length=1, examples=["labels"], description="the column with labels; by default the only one with named classes"
    )
    config: str | None = Field(None, min_length=1, examples=["small"], description="one of the set's configurations")
    revision: str | None = Field(None, min_length=1, examples=["main"], description="branch, tag or commit on the hub")


class WebDatasetSource(Strict):
    webdataset: str = Field(
        min_length=1,
        title="SHARDS",
        examples=["shards/train-{000..009}.tar"],
        description="tar files: shards/train-{000..009}.tar, or with * and ?",
    )
    val: str | None = Field(None, min_length=1, examples=["shards/val-*.tar"], description="tar files of the validation split")
    test: str | None = Field(None, min_length=1, examples=["shards/test-*.tar"], description="tar files of the test split")
    separator: str | None = Field(None, min_length=1, max_length=8, examples=[";"], description=_SEPARATOR)
    classes: tuple[str, ...] = Field((), strict=False, examples=[["cat", "dog"]], description=_CLASSES)


class BundledSource(Strict):
    bundled: Literal["fashion_mnist_mini"] = Field(description="a small bundled data set")


Source = (
    FolderSource
    | CsvSource
    | ParquetSource
    | TorchvisionSource
    | IdxSource
    | NpzSource
    | NpySource
    | HuggingFaceSource
    | WebDatasetSource
    | BundledSource
)

ONE_LABEL = (FolderSource, TorchvisionSource, IdxSource, BundledSource)
"""Sources that give every image one label: `task: multilabel` is refused."""
