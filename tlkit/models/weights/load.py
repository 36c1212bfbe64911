"""Put weights into a backbone: of a file the tensors that fit best, under timm's names, checked one by one."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from tlkit.errors import WeightsError
from tlkit.models.backbones import classifier_names, create_backbone, first_convolutions
from tlkit.models.weights.sources import Weights
from tlkit.models.weights.state_files import COUNTERS, Fit, fits, not_finite, read_state_dicts
from tlkit.recipe.fields.model import DENSE_BACKBONES, Model, PackageWeights
from tlkit.terminal import counted

LOG = logging.getLogger("tlkit")

CONVOLUTIONS = "features."
"""Where torchvision, timm and tlkit have the convolutions of VGG and AlexNet. Their dense layers have other names and shapes in each."""

CLASSIFIERS = ("classifier", "fc", "head", "heads", "last_linear", "linear", "logits", "predictor", "projector")
"""What libraries call the layers after a backbone."""


def load_backbone(
    model: Model, weights: Weights, image_size: int, *, channels: int = 3, log: Callable[[str], None] = LOG.info
) -> nn.Module:
    """Return the recipe's backbone with its weights in place: [B, channels, H, W] -> features [B, F].

    log: gets what was taken from a file, and what was converted to another number of channels or another image size.
    Raises WeightsError if the weights are another architecture's, with the first tensors that don't fit, or hold NaN or infinite values.
    """
    options: dict[str, Any] = {"drop_path": model.drop_path, "pool": model.head.pool, "features": model.features}
    if weights.file is None:
        return create_backbone(model.backbone, image_size, channels=channels, **options)
    if model.weights == "pretrained" and model.features == "all":
        # timm's own way to read its weights: some families' are converted from their authors' names, or to the size of the images.
        read = create_backbone(model.backbone, image_size, weights.file, **options)
        _check_finite(read.state_dict(), weights.file)
        if read.in_chans == channels:
            return read
        state_dicts = {"": read.state_dict()}
    else:
        state_dicts = read_state_dicts(weights.file)
    backbone = create_backbone(model.backbone, image_size, channels=channels, **options)
    fit = _best_fit(model, weights.file, state_dicts, backbone, log)
    _check_finite(fit.tensors, weights.file, f"{fit.container}: {fit.prefix}" if fit.container else fit.prefix)
    state = dict(fit.tensors)
    _convert_stem(state, backbone, log)
    _check_fits(backbone, state, weights.origin, fit, model)
    counters = {key: tensor for key, tensor in backbone.state_dict().items() if key.endswith(COUNTERS)}
    state = {**counters, **state}
    if tables := [key for key, tensor in backbone.state_dict().items() if tensor.shape != state[key].shape]:
        log(f"the position embeddings of the weights ({tables[0]} ..) were resampled to images of {image_size} px, as timm does")
        return create_backbone(model.backbone, image_size, state, channels=channels, **options)
    backbone.load_state_dict(state)
    return backbone


def _best_fit(
    model: Model, file: Path, state_dicts: Mapping[str, Mapping[str, Tensor]], backbone: nn.Module, log: Callable[[str], None]
) -> Fit:
    """Return the state dict of a file that fits best, under timm's names and without its classifier; log which it is."""
    expected = backbone.state_dict()
    if isinstance(model.weights, PackageWeights):
        state_dicts = {name: _in_timm_names(tensors, model.backbone) for name, tensors in state_dicts.items()}
    best, *others = fits(state_dicts, expected)
    if str(best) or best.left_out:
        equal = [str(other) or "the rest" for other in others if other.fitting == best.fitting]
        over = f" (averaged weights, preferred to {' and '.join(equal)})" if best.is_averaged and equal else ""
        left_out = f"; {counted(best.left_out, 'other tensor is', 'other tensors are')} left out" if best.left_out else ""
        log(f"the weights in {file} are {best}{over}, {best.fitting} of {best.expected} tensors fit{left_out}")
    if model.features == "all":
        return replace(best, tensors=_without_classifier(best.tensors, expected, classifier_names(model.backbone)))
    if unused := {key: tensor for key, tensor in best.tensors.items() if not key.startswith(CONVOLUTIONS)}:
        named = ", ".join(f"{key} {list(tensor.shape)}" for key, tensor in unused.items())
        log(f"model.features = 'conv' leaves out the dense layers, so {len(unused)} tensors of {file} are not used: {named}")
    return replace(best, tensors={key: tensor for key, tensor in best.tensors.items() if key not in unused})


def _in_timm_names(state: Mapping[str, Tensor], architecture: str) -> dict[str, Tensor]:
    """Return the package's tensors under timm's names, by position: both list the same layers in forward order; shapes are checked."""
    with torch.device("meta"):
        expected = timm.create_model(architecture).state_dict()
    if len(expected) != len(state) or any(a.shape != b.shape for a, b in zip(expected.values(), state.values(), strict=False)):
        raise WeightsError(
            f"model.weights = {{package: efficientnet-lite0}} doesn't fit model.backbone = '{architecture}'.\n"
            "  These weights are for tf_efficientnet_lite0."
        )
    return dict(zip(expected, state.values(), strict=True))


def _without_classifier(state: Mapping[str, Tensor], expected: Collection[str], classifiers: Sequence[str]) -> dict[str, Tensor]:
    """Leave out the classifier, whatever its layers are: MoCo puts `fc.0` and `fc.2` in the place of `fc`.

    Where all of the backbone is there, what other libraries call a classifier is left out too.
    """
    is_whole = all(key in state or key.endswith(COUNTERS) for key in expected)
    below = tuple(f"{classifier}." for classifier in (*classifiers, *(CLASSIFIERS if is_whole else ())))
    return {key: tensor for key, tensor in state.items() if key in expected or not key.startswith(below)}


def _convert_stem(state: dict[str, Tensor], backbone: nn.Module, log: Callable[[str], None]) -> None:
    """Convert first convolutions of another number of channels to the backbone's, by timm's rule.

    Kernels are summed for one channel, so that a grey image gives the same as three equal channels did; otherwise repeated and scaled.
    Raises WeightsError for a stem that timm has no rule for. A stem of a different shape is left for `_check_fits` to report.
    """
    channels = int(backbone.in_chans)  # type: ignore[arg-type]
    expected = backbone.state_dict()
    converted: dict[str, int] = {}
    for name in first_convolutions(backbone):
        key = f"{name}.weight"
        wanted, came = expected[key].shape, state[key].shape if key in state else expected[key].shape
        # A stem may see a channel more than once (space to depth), so its own width isn't the number of channels.
        came_channels, rest = divmod(channels * came[1], wanted[1])
        if came == wanted or rest or (came[0], *came[2:]) != (wanted[0], *wanted[2:]):
            continue
        try:
            state[key] = adapt_input_conv(channels, state[key], came_channels)
        except NotImplementedError as error:
            raise WeightsError(
                f"timm has no rule to convert {name} of these weights from {came_channels} to {channels} channels.\n"
                f"  Use data.channels={came_channels}, or model.weights=random, or another backbone."
            ) from error
        converted[name] = came_channels
    if converted:
        log(f"the first convolution ({', '.join(converted)}) was converted from {next(iter(converted.values()))} to {channels} channels")


def _check_finite(tensors: Mapping[str, Tensor], file: Path, prefix: str = "") -> None:
    if found := not_finite(tensors):
        raise WeightsError(
            f"{file}: {prefix}{found}.\n  A network with these weights answers NaN: take the file of an earlier epoch, or fetch it again."
        )


def _check_fits(backbone: nn.Module, state: Mapping[str, Tensor], origin: str, fit: Fit, model: Model) -> None:
    """Raise WeightsError unless every tensor is there, in its shape, and no other; position tables may be for another image size."""
    expected = backbone.state_dict()
    both = [(key, state[key].shape, tensor.shape) for key, tensor in expected.items() if key in state and not _is_table(key)]
    differing = [f"{key}: came {list(came)}, expected {list(wanted)}" for key, came, wanted in both if came != wanted]
    absent = [key for key in expected if key not in state and not key.endswith(COUNTERS)]
    missing = [f"{key}: missing, expected {list(expected[key].shape)}" for key in absent]
    # Convolutions first: a safetensors file has the counters of batch-norm layers there, which say little.
    others = sorted((key for key in state if key not in expected), key=lambda key: (-state[key].ndim, key))
    unknown = [f"{key}: came {list(state[key].shape)}, not in this backbone" for key in others]
    faults = differing + missing + unknown
    if faults:
        listed = "\n  ".join([*differing[:3], *missing[:3], *unknown[:3]])
        looked = (
            f"\n  Looked at {fit}: there {fit.fitting} of {fit.expected} tensors fit, more than elsewhere in the file." if str(fit) else ""
        )
        only_dense = bool(absent) and not differing and all(key.startswith("pre_logits.") for key in absent)
        fix = ""
        if only_dense and model.backbone.partition(".")[0] in DENSE_BACKBONES:
            fix = "\n  All convolutions fit. To use only them, without the dense layers: model.features=conv"
        misfits = counted(len(faults), "tensor doesn't", "tensors don't")
        raise WeightsError(f"The weights ({origin}) are not this backbone's: {misfits} fit. The first:\n  {listed}{looked}{fix}")


def _is_table(key: str) -> bool:
    """Check whether timm resamples a tensor to the image size: a transformer's position embeddings."""
    return "pos_embed" in key or "relative_position_bias_table" in key
