import pytest
import torch

from tlkit.recipe.fields.learning import Mix
from tlkit.training.objective.losses import build_mix


def test_nothing_is_mixed_unless_asked() -> None:
    assert build_mix(Mix(), 3) is None


def test_mixup_blends_each_image_with_the_one_before_it_and_labels_by_the_same_share() -> None:
    """torchvision rolls the batch by one, so image i is blended with image i - 1."""
    torch.manual_seed(0)
    mix = build_mix(Mix(mixup=1.0), 3)
    assert mix is not None
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 3, 4, 4).clone()
    mixed, soft = mix(images, torch.tensor([0, 1, 2]))
    share = soft[1, 1]  # of image 1 in itself
    assert soft[1, 0] == pytest.approx(1 - share)
    assert mixed[1, 0, 0, 0] == pytest.approx(float(share) * 1 + (1 - float(share)) * 0)
    assert torch.allclose(soft.sum(1), torch.ones(3))


def test_cutmix_labels_follow_the_area_that_was_pasted() -> None:
    torch.manual_seed(1)
    mix = build_mix(Mix(cutmix=1.0), 2)
    assert mix is not None
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 16, 16).clone()
    mixed, soft = mix(images, torch.tensor([0, 1]))
    assert float(mixed[1].mean()) == pytest.approx(float(soft[1, 1]), abs=1e-6)
    assert set(mixed.unique().tolist()) <= {0.0, 1.0}
