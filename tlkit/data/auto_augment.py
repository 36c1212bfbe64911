"""torchvision's RandAugment and TrivialAugment as one more transform for albumentations. Imported late: it imports both."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import albumentations
import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import v2

KINDS = {"randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide}


class AutoAugment(albumentations.ImageOnlyTransform):  # type: ignore[misc]
    """arguments: torchvision's own.

    Source: Cubuk et al. 2019, https://arxiv.org/abs/1909.13719; Müller and Hutter 2021, https://arxiv.org/abs/2103.10158
    """

    def __init__(self, kind: str, *, p: float = 1.0, **arguments: Any) -> None:
        super().__init__(p=p)
        self.kind, self.arguments = kind, arguments
        self.made = KINDS[kind](**arguments)

    def get_params(self) -> dict[str, Any]:
        return {"seed": int(self.random_generator.integers(2**63))}

    def apply(self, img: NDArray[np.uint8], seed: int, **_: Any) -> NDArray[np.uint8]:
        with _torch_seeded(seed):
            changed = self.made(torch.from_numpy(img).permute(2, 0, 1))
        return np.ascontiguousarray(changed.permute(1, 2, 0).numpy())

    def get_transform_init_args_names(self) -> tuple[str, ...]:
        """Return what the transform's repr shows, which is part of the key of cached activations."""
        return ("kind", "arguments")


@contextmanager
def _torch_seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator in here, and restore its state afterwards.

    `torch.manual_seed` would seed CUDA's generators too, and `fork_rng` would save those of every device, for each image.
    On one thread, as in a worker process: the mean that a change of contrast takes has other last bits on several.
    """
    generator, threads = torch.default_generator, torch.get_num_threads()
    before = generator.get_state()
    try:
        if threads > 1:
            torch.set_num_threads(1)
        generator.manual_seed(seed)
        yield
    finally:
        generator.set_state(before)
        if threads > 1:
            torch.set_num_threads(threads)
