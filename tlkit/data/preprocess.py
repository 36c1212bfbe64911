"""One specification of how an image becomes what the network sees: used by training, evaluation, prediction and export.

Where an exported model runs there may be neither torch nor pydantic: what is needed there needs numpy and Pillow.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from hashlib import sha256
from math import ceil, floor
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlkit.data.decode import MAX_PIXELS, WHITE, WHOLE_RANGE, Decoding, NeededSize, Pixels, as_array, decode_pixels, size_of
from tlkit.data.samples import ImageSource
from tlkit.data.statistics import PerChannel, channel_statistics, pixel_statistics

if TYPE_CHECKING:
    from torch import Tensor

    from tlkit.data.normalize import Normalize
    from tlkit.recipe.fields.data import Data

Read = Callable[[ImageSource], NDArray[np.uint8]]
ImageDataset = Callable[[Read], Iterable[NDArray[np.uint8]]]
Resize = Literal["crop", "pad", "stretch"]
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
# timm's own values where weights don't say otherwise (timm.data.config, timm.data.constants).
DEFAULT_CROP_PCT = 0.875
DEFAULT_INTERPOLATION = "bicubic"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MEAN_IMAGE_FILE = "mean_picture.safetensors"
"""File of the mean image in a model folder."""
LONGEST = 2
"""Of an image that is augmented as a whole, the long side over the short one; what a longer one has more is cut off at both ends."""
# A 1 x 100,000 image scaled to a short side of 256 would take gigabytes; the limit is that of one decoded image.
MAX_RESIZED_PIXELS = MAX_PIXELS


def larger_side(image_size: int, margin: float) -> int:
    """Return the side that `data.margin` gives a square: as many pixels more on each side, so that the centre stays the centre."""
    return image_size + 2 * ceil(round(image_size * (margin - 1) / 2, 6))


@dataclass(frozen=True)
class Preprocessing:
    """image_size in pixels. mean and std per channel, in units of 0..1; as many as they are, as many channels an image has.

    crop_pct: share of the resized image that the crop keeps, as in timm. max_pixels and the two below it are how files are decoded,
    see `decode`.
    mean_picture: [S, S, C] float32 in units of 0..1, subtracted in place of mean, with its sha256; of `normalize: pixelwise` only.
    The fill colour is mean all the same.
    """

    image_size: int
    resize: Resize
    crop_pct: float
    interpolation: str
    mean: PerChannel
    std: PerChannel
    max_pixels: int = MAX_PIXELS
    background: tuple[int, int, int] = WHITE
    range_16bit: tuple[int, int] = WHOLE_RANGE
    mean_picture_sha256: str = ""
    mean_picture: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.resize not in get_args(Resize) or self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"resize={self.resize!r} or interpolation={self.interpolation!r} is unknown")
        if not 0 < self.crop_pct <= 1 or self.image_size < 1 or min(self.std) <= 0:
            raise ValueError(f"crop_pct must be in 0..1, image_size and std above 0: {self}")
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean and std must have as many values as there are channels: {self}")
        if self.mean_picture is not None:
            if self.mean_picture.shape != (self.image_size, self.image_size, self.channels) or self.mean_picture.dtype != np.float32:
                raise ValueError(f"the mean image is {self.mean_picture.shape} {self.mean_picture.dtype}, which doesn't fit: {self}")
            if sha256(np.ascontiguousarray(self.mean_picture).tobytes()).hexdigest() != self.mean_picture_sha256:
                raise ValueError(f"the mean image doesn't match its sha256: {self}")

    @property
    def channels(self) -> int:
        return len(self.mean)

    def read(self, image: ImageSource) -> NDArray[np.uint8]:
        """Decode and fit an image to [S, S, C] uint8. Raises DataError if it can't be decoded."""
        return self.fit(self._decoded(image))

    def decode(self, image: ImageSource, needed: NeededSize | None = None) -> NDArray[np.uint8]:
        """Decode an image to [H, W, C] uint8. needed: see `tlkit.data.decode.decode`. Raises DataError with the file and the reason."""
        return as_array(self._decoded(image, needed))

    def _decoded(self, image: ImageSource, needed: NeededSize | None = None) -> Pixels:
        return decode_pixels(image, Decoding(self.channels, self.max_pixels, self.background, self.range_16bit), needed=needed)

    def read_larger(self, image: ImageSource, margin: float, *, reduced: bool = False) -> NDArray[np.uint8]:
        """Return what augmentation begins with, [H, W, C] uint8, decoded and resized by `fit_larger`. Raises DataError as `read` does.

        reduced: decode a JPEG at its own reduced scale where that is large enough.
        """
        needed = partial(self._decoded_size, margin=margin) if reduced else None
        return self.fit_larger(self._decoded(image, needed), margin)

    def fit_larger(self, image: Pixels, margin: float) -> NDArray[np.uint8]:
        """Return the image at `margin` times the size that the network sees: [H, W, C] uint8.

        By `resize: crop` whole and in its own aspect ratio, up to LONGEST; by pad and stretch as `fit` would make it, but larger.
        """
        if self.resize != "crop":
            return self._enlarged(margin).fit(image)
        short, long = sorted(size_of(image))
        if long > LONGEST * short:
            image = _middle(as_array(image), LONGEST * short)
        size = self.larger_size(*size_of(image), margin)
        return as_array(image) if size_of(image) == size else resized(image, size, Image.Resampling[self.interpolation.upper()])

    def larger_size(self, width: int, height: int, margin: float) -> tuple[int, int]:
        """Return the width and height that `fit_larger` gives an image of this size."""
        side = larger_side(self.image_size, margin)
        if self.resize != "crop":
            return side, side
        short, long = sorted((width, height))
        longer = int(side * min(LONGEST, long / short))
        return (side, longer) if width <= height else (longer, side)

    def larger_bytes(self, width: int, height: int, margin: float) -> int:
        """Return the most bytes that `read_larger` gives an image of this size; a JPEG at a reduced scale is rounded to whole pixels."""
        short, long = sorted(self.larger_size(width, height, margin)) if width and height else (0, 0)
        return short * (long if self.resize != "crop" or long == short else long + LONGEST + 1) * self.channels

    def _decoded_size(self, width: int, height: int, margin: float) -> tuple[int, int]:
        """Return the width and height that must be decoded of an image of this size."""
        return self.larger_size(width, height, margin) if self.resize == "crop" else self._enlarged(margin)._resized(width, height)

    def _enlarged(self, margin: float) -> "Preprocessing":
        return replace(self, image_size=larger_side(self.image_size, margin), crop_pct=1.0, mean_picture=None, mean_picture_sha256="")

    def fit(self, image: Pixels) -> NDArray[np.uint8]:
        """Fit an image, of Pillow or [H, W, C] uint8, to the [S, S, C] uint8 that the network sees before normalisation.

        Pixel for pixel what timm's evaluation transform gives with crop_mode center (crop), border (pad) and squash (stretch).
        Of an image so long that it would fill gigabytes on the way to its crop, only the part around the centre is resized.
        """
        size = size_of(image)
        width, height = self._resized(*size)
        if width * height > MAX_RESIZED_PIXELS:
            image = _middle(as_array(image), max(size) * self.image_size * 2 // max(width, height) + 1)
            width, height = self._resized(*size_of(image))
        if (width, height) != size_of(image):
            image = resized(image, (width, height), Image.Resampling[self.interpolation.upper()])
        return self._square(as_array(image))

    def normalize(self, images: "Tensor") -> "Tensor":
        """Return (images / 255 - mean) / std as float32, on the images' device. images: [B, C, S, S] uint8.

        For batch after batch use `normalizer`, which keeps mean and std on the device.
        """
        normalized: Tensor = self.normalizer().to(images.device)(images)
        return normalized

    def normalizer(self) -> "Normalize":
        """Return the normalisation as a module. Raises ValueError if the mean image is missing."""
        from tlkit.data.normalize import Normalize

        return Normalize(self._mean(), self.std)

    def normalize_arrays(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Normalise without torch: [B, S, S, C] uint8 -> [B, C, S, S] float32."""
        normalized = (images.astype(np.float32) / np.float32(255) - self._mean()) / np.array(self.std, np.float32)
        return np.ascontiguousarray(normalized.transpose(0, 3, 1, 2))

    def _mean(self) -> NDArray[np.float32]:
        """Return what is subtracted, [S, S, C] or [1, 1, C] float32. Raises ValueError if a mean image is missing."""
        if self.mean_picture is not None:
            return self.mean_picture
        if self.mean_picture_sha256:
            raise ValueError(f"from_json got no mean image, and nothing can be normalised without it: {self}")
        return np.array([[self.mean]], np.float32)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain values; a mean image is named by its file and the sha256 of its values."""
        values = {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(replace(self, mean_picture=None)).items()
        }
        del values["mean_picture"]
        if digest := values.pop("mean_picture_sha256"):
            values["mean_picture"] = {"file": MEAN_IMAGE_FILE, "values_sha256": digest}
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any], mean_picture: NDArray[np.float32] | None = None) -> "Preprocessing":
        """Read the settings of a model folder. Those that an older folder lacks have their defaults, which is what they were then.

        mean_picture: of a model that has one. Without it images can be fitted, but not normalised: that raises ValueError.
        """
        whole = {key: tuple(map(int, values[key])) for key in ("background", "range_16bit") if key in values}
        named = {**values, **whole, **{key: tuple(map(float, values[key])) for key in ("mean", "std")}}
        digest = named.pop("mean_picture", {}).get("values_sha256", "")
        return cls(**named, mean_picture_sha256=digest, mean_picture=mean_picture if digest else None)

    def with_mean_picture(self, image: NDArray[np.float32]) -> "Preprocessing":
        """Return the settings with a mean image, [S, S, C] in units of 0..1."""
        return replace(self, mean_picture=image, mean_picture_sha256=sha256(image.tobytes()).hexdigest())

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height after resizing and before cropping or padding, rounded as torchvision and timm round."""
        side = floor(self.image_size / self.crop_pct)
        if self.resize == "stretch":
            return side, side
        if self.resize == "pad":
            ratio = max(height / side, width / side)
            return max(1, round(width / ratio)), max(1, round(height / ratio))
        if width <= height:
            return side, int(side * height / width)
        return int(side * width / height), side

    def _square(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Cut or filled to [S, S, C] about the centre. Fill is the mean colour, so padding is zero after normalisation."""
        size = self.image_size
        height, width = image.shape[:2]
        if height < size or width < size:
            top, left = max(0, (size - height) // 2), max(0, (size - width) // 2)
            filled = np.empty((max(height, size), max(width, size), self.channels), np.uint8)
            filled[:] = [round(255 * value) for value in self.mean]
            filled[top : top + height, left : left + width] = image
            image = filled
            height, width = image.shape[:2]
        top, left = round((height - size) / 2.0), round((width - size) / 2.0)
        return np.ascontiguousarray(image[top : top + size, left : left + size])


def preprocessing_for(data: "Data", pretrained_cfg: Mapping[str, Any], images: ImageDataset | None = None) -> Preprocessing:
    """Return the recipe's preprocessing. With `normalize: weights`, mean and std are those of timm's pretrained_cfg, for the recipe's
    channels.

    images: gives the training images, read by the function that it gets; called only for `normalize: dataset` and `pixelwise`.
    """
    mean = per_channel(pretrained_cfg.get("mean", IMAGENET_MEAN), data.channels)
    std = per_channel(pretrained_cfg.get("std", IMAGENET_STD), data.channels)
    if data.normalize == "none":
        mean, std = (0.0,) * data.channels, (1.0,) * data.channels
    # `random` (some old weights) draws bilinear or bicubic in training; for a fixed transform timm's default is the sharper one.
    interpolation = pretrained_cfg.get("interpolation") or DEFAULT_INTERPOLATION
    preprocessing = Preprocessing(
        image_size=data.image_size,
        resize=data.resize,
        crop_pct=float(pretrained_cfg.get("crop_pct") or DEFAULT_CROP_PCT) if data.resize == "crop" else 1.0,
        interpolation=interpolation if interpolation in INTERPOLATIONS else DEFAULT_INTERPOLATION,
        mean=mean,
        std=std,
        max_pixels=data.max_pixels,
        background=data.background,
        range_16bit=data.range_16bit,
    )
    if data.normalize in ("weights", "none"):
        return preprocessing
    if images is None:
        raise ValueError(f"normalize: {data.normalize} needs the training images")
    if data.normalize == "dataset" or data.resize == "pad":
        # Padding takes the colour that is being measured, so it is left out: stretching keeps all of an image and adds nothing.
        measured = replace(preprocessing, resize="stretch") if data.resize == "pad" else preprocessing
        mean, std = channel_statistics(images(measured.read))
        preprocessing = replace(preprocessing, mean=mean, std=std)
    return _pixelwise(preprocessing, images) if data.normalize == "pixelwise" else preprocessing


def _pixelwise(preprocessing: Preprocessing, images: ImageDataset) -> Preprocessing:
    """Add the mean image, and one std per channel around it.

    Dividing each position by its own std would amplify positions that hardly vary, such as corners. One std per channel keeps the scale
    that
    networks and their initial weights expect.

    Source: Krizhevsky et al. 2012, section 2, subtract the mean image without dividing.
    """
    image, std = pixel_statistics(images(preprocessing.read))
    # Where images are padded, they were fitted with the mean that is there already.
    mean = preprocessing.mean if preprocessing.resize == "pad" else tuple(map(float, image.mean((0, 1), np.float64)))
    return replace(preprocessing, mean=mean, std=std).with_mean_picture(image)


def per_channel(values: Sequence[float], channels: int) -> PerChannel:
    """Convert a mean or std to another number of channels, as timm converts the first convolution: averaged for one channel, else
    repeated.
    """
    numbers = tuple(map(float, values))
    if channels == 1:
        return (sum(numbers) / len(numbers),)
    return tuple(numbers[i % len(numbers)] for i in range(channels))


def _middle(image: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    """Crop the longer side to its central `longest` pixels, or one more, so that the centre stays the centre."""
    height, width = image.shape[:2]
    top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
    return image[top : height - top, left : width - left]


def resized(image: Pixels, size: tuple[int, int], resample: Image.Resampling) -> NDArray[np.uint8]:
    """Resize an image to [height, width, C]; size: width and height."""
    if isinstance(image, Image.Image):
        return as_array(image.resize(size, resample))
    if image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize(size, resample))
    # Channel by channel: Pillow takes a fourth one for opacity and weighs the others with it.
    return np.stack([np.asarray(Image.fromarray(channel).resize(size, resample)) for channel in np.moveaxis(image, 2, 0)], axis=2)
