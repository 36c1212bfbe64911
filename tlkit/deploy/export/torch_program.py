"""What ships: a classifier with everything around it that isn't an image file, as one program that torch can export."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tlkit.data.normalize import Normalize
from tlkit.models.classifier import Classifier
from tlkit.models.inference.trust import Trust
from tlkit.models.inference.unknown import UnknownScore

NORMALIZED = "normalized"
"""The value in a raw network between normalisation and backbone, which parity looks at."""


class Shipped(nn.Module):
    """Images -> the outputs that are named, of `probabilities` [B, K], `normalized` [B, C, S, S], `features` [B, F] and `unknown` [B, 1].

    normalize: for raw images uint8 [B, S, S, C], which this then takes; None takes normalised ones, float32 [B, C, S, S].
    """

    def __init__(
        self, classifier: Classifier, normalize: Normalize | None, outputs: Sequence[str], *, multilabel: bool, trust: Trust
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.normalize = normalize
        self.outputs = tuple(outputs)
        self.multilabel = multilabel
        self.temperature = trust.temperature
        self.unknown = UnknownScore.of(trust) if "unknown" in outputs else None

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        normalized = self.normalize(images.permute(0, 3, 1, 2)) if self.normalize else images
        features = self.classifier.features(normalized)
        logits = self.classifier.head(features)
        probabilities = logits.sigmoid() if self.multilabel else (logits / self.temperature).softmax(1)
        values = {"probabilities": probabilities, NORMALIZED: normalized, "features": features.flatten(1)}
        if self.unknown is not None:
            values["unknown"] = self.unknown(features, logits)
        return tuple(values[name] for name in self.outputs)


def exported_program(shipped: Shipped, image_size: int, channels: int) -> torch.export.ExportedProgram:
    """Trace the network with torch.export for batches of any size."""
    if shipped.normalize:
        example = torch.zeros(2, image_size, image_size, channels, dtype=torch.uint8)
    else:
        example = torch.zeros(2, channels, image_size, image_size)
    shapes = {"images": {0: torch.export.Dim("batch", min=1)}}
    with torch.no_grad():
        return torch.export.export(shipped.eval(), (example,), dynamic_shapes=shapes, strict=False)
