"""model: the backbone, the weights that it starts from, and the head on it."""

from typing import Literal, Self

from pydantic import Field, model_validator

from tlkit.errors import expected_one_of
from tlkit.recipe.fields.strict import Strict, rule_broken


class FileWeights(Strict):
    file: str = Field(
        min_length=1,
        title="FILE",
        examples=["weights.safetensors"],
        description="a .safetensors or .pth file with the backbone's state dict",
    )


class RunWeights(Strict):
    run: str = Field(
        min_length=1, title="DIR", examples=["runs/photos/001"], description="the run folder, or the model folder, of an earlier run"
    )


class PackageWeights(Strict):
    package: Literal["efficientnet-lite0"] = Field(description="weights from an installed pip package")


PACKAGE_BACKBONES = {"efficientnet-lite0": "tf_efficientnet_lite0"}


Features = Literal["all", "conv"]

DENSE_BACKBONES = ("alexnet", *(f"vgg{layers}{norm}" for layers in (11, 13, 16, 19) for norm in ("", "_bn")))
"""Backbones with dense layers between their last map and the classifier, which `features: conv` leaves out."""

CLASSICAL_HEADS = ("svm", "logistic", "knn")
"""Heads that scikit-learn fits on the features, after the phases."""

WITHOUT_PROBABILITIES = ("svm", "knn")
"""Heads whose scores are distances or votes: they order the classes, and a softmax of them is no probability."""


class Head(Strict):
    kind: Literal["linear", "mlp", "cosine", "locally_connected", "svm", "logistic", "knn"] = Field(
        "linear", description="what computes class scores from features"
    )
    pool: Literal["avg", "max", "avgmax"] | None = Field(None, description="how feature maps are pooled; by default as the backbone does")
    dropout: float = Field(0.0, ge=0, lt=1, examples=[0.2], description="share of features zeroed in training")
    hidden: int = Field(512, ge=1, examples=[256], description="for mlp: width of the hidden layer")
    filters: int = Field(32, ge=1, examples=[16], description="for locally_connected: filters at each position of the map")
    c: float | None = Field(
        None, gt=0, examples=[1.0], description="for svm and logistic: scikit-learn's C; by default chosen on validation"
    )
    neighbours: int = Field(5, ge=1, examples=[10], description="for knn: number of training images that vote")

    @model_validator(mode="after")
    def _has_what_it_names(self) -> Self:
        for key, kinds in (("hidden", ("mlp",)), ("filters", ("locally_connected",)), ("c", ("svm", "logistic")), ("neighbours", ("knn",))):
            if key in self.model_fields_set and self.kind not in kinds and getattr(self, key) != Head.model_fields[key].default:
                problem = f"= {getattr(self, key)} does nothing: it is of {' and '.join(kinds)}, and kind is {self.kind}."
                raise rule_broken(key, "kind", problem, f"Remove it, or set kind to {' or '.join(kinds)}.")
        if self.kind == "locally_connected" and self.pool is not None:
            raise rule_broken("pool", "kind", f"= '{self.pool}', but a locally_connected head sees the map itself.", "Remove it.")
        if self.kind in CLASSICAL_HEADS and self.dropout:
            raise rule_broken("dropout", "kind", f"= {self.dropout}, but {self.kind} is fitted without.", "Remove it.")
        return self


class Model(Strict):
    backbone: str = Field(min_length=1, examples=["resnet50"], description="any timm model name")
    weights: Literal["pretrained", "random"] | FileWeights | PackageWeights | RunWeights = Field(
        "pretrained", description="initial weights of the backbone"
    )
    features: Features = Field(
        "all",
        description="input of the head: all layers before the classifier, or for VGG and AlexNet only the pooled last feature map (conv)",
    )
    head: Head = Field(default_factory=Head, description="the classifier on top of the backbone")
    drop_path: float = Field(
        0.0, ge=0, lt=1, examples=[0.1], description="share of residual branches skipped in training, if the backbone supports it"
    )
    auxiliary_loss: float = Field(
        0.3, ge=0, examples=[0.0], description="weight of the loss of each auxiliary head; only googlenet has some"
    )

    @model_validator(mode="after")
    def _package_fits_backbone(self) -> Self:
        # A tag, as in tf_efficientnet_lite0.in1k, names the same architecture.
        if isinstance(self.weights, PackageWeights) and self.backbone.partition(".")[0] != PACKAGE_BACKBONES[self.weights.package]:
            problem = f"= '{self.weights.package}' holds no weights for backbone '{self.backbone}'."
            fitting = PACKAGE_BACKBONES[self.weights.package]
            fix = f"Set model.backbone to {fitting}, or model.weights to pretrained, random or {{file: FILE}}."
            raise rule_broken("weights.package", "backbone", problem, fix)
        return self

    @model_validator(mode="after")
    def _has_dense_layers_to_leave_out(self) -> Self:
        architecture = self.backbone.partition(".")[0]
        if self.features == "conv" and architecture not in DENSE_BACKBONES:
            problem = f"= 'conv' leaves out the dense layers that VGG and AlexNet end in, and backbone is '{self.backbone}'."
            fix = f"Remove it, or set model.backbone to another. {expected_one_of(architecture, DENSE_BACKBONES)}"
            raise rule_broken("features", "backbone", problem, fix)
        return self
