"""Heads: features [B, F] -> logits [B, K]."""

from torch import nn

from tlkit.recipe.schema import Head


def build_head(head: Head, features: int, classes: int) -> nn.Sequential:
    """A new head with nn.Linear's own initialisation.

    A larger one, as timm gives some families, cost a frozen probe 9 points of accuracy.
    The last module is always the nn.Linear that gives the logits.
    """
    if head.kind == "linear":
        return nn.Sequential(nn.Dropout(head.dropout), nn.Linear(features, classes))
    return nn.Sequential(nn.Linear(features, head.hidden), nn.GELU(), nn.Dropout(head.dropout), nn.Linear(head.hidden, classes))
