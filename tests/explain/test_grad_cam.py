from copy import deepcopy

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from tests.explain.squares import Squares, TwoLayers, trained
from tlkit.errors import BackboneError
from tlkit.explain.grad_cam import grad_cam
from tlkit.explain.sanity_check import randomised_maps
from tlkit.models.backbones import create_backbone
from tlkit.models.classifier import Classifier
from tlkit.recipe.fields.model import Head


@pytest.fixture
def two_layers() -> Classifier:
    """Filters x and -x of a grey image; logits 2a - b and 3b - a of their means after ReLU."""
    convolution = nn.Conv2d(1, 2, 1, bias=False)
    convolution.weight.data = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1)
    classifier = Classifier(TwoLayers(convolution), Head(), 2, 2)
    classifier.head[1].weight.data = torch.tensor([[2.0, -1.0], [-1.0, 3.0]])  # type: ignore[index]
    return classifier


IMAGE = torch.tensor([[[1.0, 2.0], [3.0, -4.0]]])


def test_maps_are_what_the_paper_defines(two_layers: Classifier) -> None:
    # Maps after ReLU: [[1, 2], [3, 0]] and [[0, 0], [0, 4]]. A mean over 4 places has a gradient of 1/4 at each.
    # Class 0: relu(2/4 * first - 1/4 * second) = [[0.5, 1], [1.5, 0]]; class 1: relu(-1/4 * first + 3/4 * second) = [[0, 0], [0, 3]].
    maps = grad_cam(two_layers, torch.stack([IMAGE, IMAGE]), torch.tensor([0, 1]))
    torch.testing.assert_close(maps, torch.tensor([[[1 / 3, 2 / 3], [1, 0]], [[0, 0], [0, 1]]]))


def test_relative_maps_leave_out_what_speaks_for_all_classes_alike(two_layers: Classifier) -> None:
    # Logits 2a + b and a + 3b. Class 0 alone: relu(2/4 * first + 1/4 * second) = [[0.5, 1], [1.5, 1]].
    two_layers.head[1].weight.data = torch.tensor([[2.0, 1.0], [1.0, 3.0]])  # type: ignore[index]
    images, target = torch.stack([IMAGE, IMAGE]), torch.tensor([0, 1])
    torch.testing.assert_close(grad_cam(two_layers, images, target)[0], torch.tensor([[1 / 3, 2 / 3], [1, 2 / 3]]))
    # Less their mean, (3a + 4b) / 2: class 0 is a/2 - b, and class 1 the opposite.
    maps = grad_cam(two_layers, images, target, relative=True)
    torch.testing.assert_close(maps, torch.tensor([[[1 / 3, 2 / 3], [1, 0]], [[0, 0], [0, 1]]]))


def test_a_map_is_zero_where_nothing_speaks_for_the_class(two_layers: Classifier) -> None:
    # Without a negative value the second map is zero, and the first speaks against class 1.
    assert not grad_cam(two_layers, IMAGE.abs()[None], torch.tensor([1])).any()


def test_what_is_frozen_or_without_gradients_has_the_same_map(two_layers: Classifier) -> None:
    images, target = IMAGE[None], torch.tensor([0])
    expected = grad_cam(two_layers, images, target)
    two_layers.train_only(frozenset())
    with torch.inference_mode():
        torch.testing.assert_close(grad_cam(two_layers, images.clone(), target), expected)


def test_maps_lie_on_the_square_that_decides(test_squares: Squares) -> None:
    images, labels, inside = test_squares
    classifier = trained("convolutional")
    assert (classifier(images).argmax(1) == labels).all()
    for relative in (False, True):
        maps = grad_cam(classifier, images, labels, relative=relative)
        above = (maps - maps.mean((1, 2), keepdim=True)).relu()
        assert ((above * inside).sum((1, 2)) / above.sum((1, 2))).min() >= 0.9


def test_maps_change_with_randomised_weights(test_squares: Squares) -> None:
    """Adebayo et al. 2018, "Sanity checks for saliency maps"."""
    images, labels, _ = test_squares
    expected = grad_cam(trained("convolutional"), images, labels)
    random = Classifier(TwoLayers(nn.Conv2d(3, 16, 3, padding=1)), Head(), 2, images.shape[2])
    pairs = zip(expected, grad_cam(random, images, labels), strict=True)
    correlations = torch.tensor([float(spearmanr(a.flatten(), b.flatten()).statistic) for a, b in pairs])
    assert correlations.nanmean() < 0.5


def test_maps_relative_to_all_classes_are_there_where_training_has_made_all_logits_negative(test_squares: Squares) -> None:
    images, labels, _ = test_squares
    classifier = deepcopy(trained("convolutional"))
    expected = grad_cam(classifier, images, labels, relative=True)
    assert [step.empty for step in randomised_maps(classifier, images, labels, relative=True)] == [0] * 3
    head = classifier.head[-1]  # type: ignore[index]
    answers = classifier(images).softmax(1)
    head.weight.data -= 3  # type: ignore[operator]
    torch.testing.assert_close(classifier(images).softmax(1), answers)  # the same classifier, since softmax takes differences
    assert classifier(images).max() < 0
    assert [step.empty for step in randomised_maps(classifier, images, labels, relative=True)] == [0] * 3
    assert not grad_cam(classifier, images, labels).any()
    torch.testing.assert_close(grad_cam(classifier, images, labels, relative=True), expected, rtol=1e-3, atol=1e-3)


FAMILIES: dict[str, tuple[str | None, int]] = {
    "resnet18": ("layer3", 32),  # its last map has one place
    "vgg11": ("conv5", 32),
    "vit_tiny_patch16_224": (None, 64),
    "deit_tiny_distilled_patch16_224": (None, 64),
    "swin_tiny_patch4_window7_224": ("norm", 64),
    "convnext_atto": ("stage3", 64),
    "googlenet": ("inception5b", 64),
    "mixer_s32_224": ("block7", 64),
    "tf_efficientnet_lite0": ("block6", 64),
    "densenet121": ("norm5", 64),
    "xcit_nano_12_p16_224": ("cls_attn_block0", 64),
}


@pytest.mark.usefixtures("thin")
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_maps_of_the_images_size(name: str) -> None:
    stage, size = FAMILIES[name]
    torch.manual_seed(0)
    classifier = Classifier(create_backbone(name, size), Head(), 3, size)
    images, target = torch.randn(2, 3, size, size), torch.tensor([0, 2])
    maps = grad_cam(classifier, images, target)
    assert maps.shape == (2, size, size)
    assert maps.amin() >= 0
    assert set(maps.amax((1, 2)).tolist()) <= {0.0, 1.0}
    torch.testing.assert_close(maps, grad_cam(classifier, images, target, stage=stage))


def test_a_token_map_lies_on_the_square_more_than_grad_cam_on_tokens(test_squares: Squares) -> None:
    images, labels, inside = test_squares
    classifier = trained("token")
    assert classifier.backbone.blocks[0].attn.fused_attn  # type: ignore[index, union-attr]

    def share(stage: str | None) -> float:
        maps = grad_cam(classifier, images, labels, stage=stage)
        above = (maps - maps.mean((1, 2), keepdim=True)).relu()
        return float(((above * inside).sum((1, 2)) / above.sum((1, 2)).clamp_min(1e-9)).mean())

    assert share(None) > max(0.5, share("block1"))
    assert classifier.backbone.blocks[0].attn.fused_attn  # type: ignore[index, union-attr]


def test_a_transformers_last_block_but_one_is_the_last_that_its_class_token_reads() -> None:
    torch.manual_seed(0)
    classifier = trained("token")
    maps = [grad_cam(classifier, torch.randn(1, 3, 32, 32), torch.tensor([0]), stage=stage) for stage in ("block1", "block2")]
    assert [bool(heat.any()) for heat in maps] == [True, False]


def test_a_stage_without_a_map_and_a_head_without_gradient_are_named(two_layers: Classifier) -> None:
    lenet = Classifier(create_backbone("lenet5", 28), Head(), 2, 28)
    images, target = torch.zeros(1, 3, 28, 28), torch.tensor([0])
    with pytest.raises(BackboneError, match="Stage 'dense' of Classic has no spatial map"):
        grad_cam(lenet, images, target, stage="dense")
    with pytest.raises(BackboneError, match="Did you mean 'conv2'"):
        grad_cam(lenet, images, target, stage="conv22")
    with pytest.raises(BackboneError, match="knn head has no gradient"):
        grad_cam(Classifier(create_backbone("lenet5", 28), Head(kind="knn"), 2, 28), images, target)
