"""What `tlkit models show` says of a backbone agrees with what the papers and torchvision publish."""

import pytest
import torchvision

from tlkit import cli
from tlkit.errors import BackboneError
from tlkit.models.show import measure

# timm's name: torchvision's weights, whose meta data have the numbers of parameters and of multiply-adds (in 1e9).
PUBLISHED = {
    "googlenet": "GoogLeNet_Weights.IMAGENET1K_V1",
    "resnet18": "ResNet18_Weights.IMAGENET1K_V1",
    "resnext50_32x4d": "ResNeXt50_32X4D_Weights.IMAGENET1K_V1",
    "vgg16_bn": "VGG16_BN_Weights.IMAGENET1K_V1",
    "densenet121": "DenseNet121_Weights.IMAGENET1K_V1",
    "mobilenetv2_100": "MobileNet_V2_Weights.IMAGENET1K_V1",
    "regnetx_032": "RegNet_X_3_2GF_Weights.IMAGENET1K_V1",
    "convnext_tiny": "ConvNeXt_Tiny_Weights.IMAGENET1K_V1",
    "vit_base_patch16_224": "ViT_B_16_Weights.IMAGENET1K_V1",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_multiply_adds_are_those_that_torchvision_publishes(name: str) -> None:
    weights = torchvision.models.get_weight(PUBLISHED[name])
    crop = weights.transforms().crop_size[0]
    cost = measure(name, crop)
    head = cost.features * 1000
    assert sum(stage.parameters for stage in cost.stages) + head + 1000 == weights.meta["num_params"]
    multiply_adds = sum(stage.multiply_adds for stage in cost.stages) + cost.other_multiply_adds + head
    assert multiply_adds / 1e9 == pytest.approx(weights.meta["_ops"], rel=0.003)


def test_googlenets_outputs_are_those_of_the_paper() -> None:
    """Source: Szegedy et al. 2015, table 1."""
    outputs = {stage.name: stage.output for stage in measure("googlenet", 224).stages}
    assert outputs == {
        "stem": (192, 56, 56),
        "inception3a": (256, 28, 28),
        "inception3b": (480, 28, 28),
        "inception4a": (512, 14, 14),
        "inception4b": (512, 14, 14),
        "inception4c": (512, 14, 14),
        "inception4d": (528, 14, 14),
        "inception4e": (832, 14, 14),
        "inception5a": (832, 7, 7),
        "inception5b": (1024, 7, 7),
    }


@pytest.mark.parametrize("name", ["mvitv2_tiny", "twins_svt_small", "pit_ti_224"])
def test_families_that_hand_lists_and_pairs_around_are_measured_too(name: str) -> None:
    cost = measure(name, 224)
    assert all(stage.multiply_adds for stage in cost.stages if not stage.name.startswith("norm"))
    assert cost.other_multiply_adds <= 0.01 * sum(stage.multiply_adds for stage in cost.stages)


def test_convolutions_cost_a_quarter_at_half_the_size() -> None:
    large, small = measure("resnet18", 256), measure("resnet18", 128)
    assert [4 * stage.multiply_adds for stage in small.stages] == [stage.multiply_adds for stage in large.stages]


def test_the_dense_layers_of_vgg_are_reported_apart_from_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    assert [stage.name for stage in measure("vgg11", 32).stages if stage.behind_features] == ["dense"]
    assert cli.main(["models", "show", "vgg11", "--image-size", "32"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "`train: head` leaves dense as it is, `train: {last: 1}` trains it too" in words
    # 7 * 7 * 512 * 4096 + 4096 and 4096 * 4096 + 4096, of 132,863,336 in all.
    assert "dense 4096x1x1 119,545,856 90.0 %" in words
    assert "all 132,863,336 100.0 %" in words
    # The eight convolutions, by hand: 9 * inputs * outputs + outputs each.
    assert "features `features: conv` leaves the dense layers out: 9,220,480 parameters in place of 128,766,336, below the head" in words


def test_showing_googlenet_names_weights_input_and_licence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "show", "googlenet"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    for part in ("one image of 224 x 224 px", "tv_in1k (the default)", "69.8 % top-1", "bsd-3-clause", "mean 0.485 0.456 0.406"):
        assert part in words


def test_an_unknown_name_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "show", "googlnet"]) == 2
    assert "NAME = 'googlnet' is not a model that timm knows.\n  Did you mean 'googlenet'?" in capsys.readouterr().err


def test_a_size_that_a_backbone_can_not_take_is_named_with_that_of_its_weights() -> None:
    with pytest.raises(BackboneError, match=r"inception_v3 can't take images of 32 px\.(.|\n)*made for 299 px"):
        measure("inception_v3", 32)


@pytest.mark.parametrize(
    "words", [["show"], ["show", "resnet18", "resnet34"], ["resnet18", "resnet34"], ["resnet18", "--image-size", "64"]]
)
def test_words_that_fit_neither_form_say_what_was_expected(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", *words]) == 2
    assert "tlkit models show NAME" in capsys.readouterr().err


@pytest.mark.parametrize("columns", [60, 80])
def test_names_of_stages_stay_whole_on_a_narrow_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes any stream for a terminal then; what is no terminal has all columns
    monkeypatch.setenv("COLUMNS", str(columns))
    assert cli.main(["models", "show", "vit_tiny_patch16_224"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (patches,) = (line for line in lines if line.startswith("patch_embed "))
    assert "185,664" in patches
    assert ("share" in "".join(lines)) == (columns == 80)
