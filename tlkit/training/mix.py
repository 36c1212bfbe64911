"""Mixup and cutmix: training batches of blended pictures with soft labels."""

from collections.abc import Callable

from torch import Tensor
from torchvision.transforms import v2

from tlkit.recipe.fields.learning import Mix


def build_mix(mix: Mix, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """images [B, C, H, W], labels [B] -> images [B, C, H, W], labels [B, K] that sum to one; None where the recipe has neither.

    Sources: mixup, Zhang et al. 2018, https://arxiv.org/abs/1710.09412; cutmix, Yun et al. 2019, https://arxiv.org/abs/1905.04899
    """
    kinds = [kind(alpha=alpha, num_classes=classes) for kind, alpha in ((v2.MixUp, mix.mixup), (v2.CutMix, mix.cutmix)) if alpha > 0]
    return v2.RandomChoice(kinds) if kinds else None
