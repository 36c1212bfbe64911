"""A classifier from plain arguments, for a program that trains it itself."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tlkit.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, per_channel
from tlkit.models.backbones import check_backbone_name, pretrained_cfg
from tlkit.models.classifier import Classifier, Origin
from tlkit.models.heads import trained_head
from tlkit.models.weights.load import load_backbone
from tlkit.models.weights.sources import find_weights
from tlkit.recipe.fields.model import Model
from tlkit.recipe.validate import document_of, validated


def create_classifier(
    backbone: str,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    *,
    weights: Any = "pretrained",
    head: Any = None,
    features: str = "all",
) -> Classifier:
    """Put a new head on a backbone with its weights, as a recipe's `model` does.

    Args:
        backbone: A name from `list_models`.
        classes: The names of the K classes, in the order of the labels: `data.classes`.
        preprocessing: The image size, the channels and how images become square: `data.preprocessing`.
        weights: pretrained, random, `{"file": FILE}`, `{"package": "efficientnet-lite0"}` or `{"run": FOLDER}`.
        head: The keys of a recipe's `model.head`: `{"kind": "mlp", "dropout": 0.2}`; None is a linear one.
        features: What the head sees: all that comes before the classifier, or conv for the pooled last map of VGG and AlexNet.

    Returns:
        The classifier, nothing frozen. Its preprocessing is the one given, with the mean and std of the weights.

    Raises:
        RecipeError: A name or a value can't be used.
        WeightsError: The weights can't be found, or are another backbone's.
    """
    values = {"backbone": backbone, "weights": weights, "head": head or {}, "features": features}
    model = validated(Model, document_of(values), "model")
    check_backbone_name(model.backbone, key="backbone")
    found = find_weights(model)
    cfg = {**pretrained_cfg(model.backbone), **found.normalization}
    size, channels = preprocessing.image_size, preprocessing.channels
    mean, std = per_channel(cfg.get("mean", IMAGENET_MEAN), channels), per_channel(cfg.get("std", IMAGENET_STD), channels)
    body = load_backbone(model, found, size, channels=channels)
    head_fields = trained_head(model.head)
    origin = Origin(model.backbone, head_fields, {"origin": found.origin, "sha256": found.sha256}, model.features)
    return Classifier(body, head_fields, classes, size, replace(preprocessing, mean=mean, std=std), origin)
