"""`tlkit models` gives figures that somebody published, for the very weights that it lists, and no others."""

from pathlib import Path
from runpy import run_path

import huggingface_hub.constants
import pytest
import timm
import torch
import torchvision

from tlkit.errors import BackboneError
from tlkit.models.catalog import print_models, published
from tlkit.models.weights.sources import weights_here


def row(printed: str, name: str) -> str:
    return next(line for line in printed.splitlines() if line.split()[:1] == [name])


def test_a_row_has_accuracy_parameters_input_licence_and_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_models("resnet18*") == 0
    printed = capsys.readouterr()
    assert row(printed.out, "resnet18").split() == ["resnet18", "73.2", "11.7", "3x224x224", "apache-2.0", "a1_in1k", "and", "6", "more"]
    assert "2 of 1377" in printed.err or timm.__version__ != "1.0.31"


def test_a_dotted_pattern_gives_a_row_for_each_of_a_models_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_models("resnet18.*") == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == timm.list_pretrained("resnet18.*")
    assert row("\n".join(lines), "resnet18.tv_in1k").split()[1] == "69.8"


def test_what_nobody_published_is_left_empty(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_models("lenet5") == 0
    assert row(capsys.readouterr().out, "lenet5").split() == ["lenet5", "0.1", "3x32x32", "apache-2.0", "none"]


def test_every_model_has_one_line_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_models(None) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == timm.list_models()


def test_a_pattern_without_a_match_gets_the_nearest_name() -> None:
    with pytest.raises(BackboneError, match=r"No model's name matches 'resnet81'(.|\n)*Did you mean"):
        print_models("resnet81")


def test_accuracies_are_for_weights_that_timm_has_and_agree_with_torchvisions_own() -> None:
    """timm measures torchvision's weights with other crops: regnets differ by 0.27, all others by less."""
    top1 = published("top1")
    assert len(top1) > 900
    assert timm.__version__ != "1.0.31" or set(top1) <= set(timm.list_pretrained())
    by_url = {
        weights.url: weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        for name in torchvision.models.list_models(module=torchvision.models)
        for weights in torchvision.models.get_model_weights(name)
    }
    urls = {name: timm.models.get_pretrained_cfg(name).url for name in top1}
    same = {name: (float(top1[name]), by_url[url]) for name, url in urls.items() if url in by_url}
    assert len(same) >= 35
    assert all(abs(timms - torchvisions) < 0.3 for timms, torchvisions in same.values())
    assert same["googlenet.tv_in1k"] == (69.778, 69.778)


@pytest.mark.parametrize(
    ("name", "torchvisions"),
    [("resnet50", "ResNet50_Weights"), ("vgg16_bn", "VGG16_BN_Weights"), ("efficientnet_b0", "EfficientNet_B0_Weights"),
     ("swin_tiny_patch4_window7_224", "Swin_T_Weights"), ("googlenet", "GoogLeNet_Weights")],
)  # fmt: skip
def test_parameters_are_those_that_torchvision_publishes(name: str, torchvisions: str) -> None:
    assert int(published("parameters")[name]) == torchvision.models.get_weight(f"{torchvisions}.DEFAULT").meta["num_params"]


def test_weights_in_the_hubs_cache_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert weights_here("resnet18") == ""
    repository = tmp_path / "models--timm--resnet18.a1_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("abc")
    (repository / "snapshots/abc").mkdir(parents=True)
    (repository / "snapshots/abc/model.safetensors").touch()
    assert weights_here("resnet18") == "cache"
    assert weights_here("resnet18.tv_in1k") == ""


def test_weights_in_torch_hubs_cache_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert weights_here("googlenet") == ""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/googlenet-1378be20.pth").touch()
    assert weights_here("googlenet") == "cache"


def test_the_script_that_made_the_tables_gives_the_same_rows() -> None:
    script = Path(__file__).parents[2] / "data/make_backbone_figures.py"
    made = run_path(str(script))
    # A ResNet, a transformer, a network with a head of its own, and tlkit's own; googlenet without the heads of its training.
    for name, count in made["parameters"](["resnet18", "vit_tiny_patch16_224", "tf_efficientnet_lite0", "googlenet", "lenet5"]):
        assert published("parameters")[name] == str(count)
    results = "model,top1,top1_err\nresnet18.a1_in1k,73.158,26.842\nno_such_network.in1k,99.0,1.0\n"
    rows = made["top1"](results, timm.list_pretrained())
    assert set(rows) == {"resnet18.a1_in1k", "googlenet.tv_in1k"}
    assert rows.items() <= published("top1").items()
