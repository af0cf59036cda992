"""A plain ViT with a gate on every unit: 1 is the model itself, 0 the model without the unit.

A channel's gate weighs it in the mean and variance of every LayerNorm, and in what that gives. So
gates of 0 compute what `cut.cut` computes, and gates of 1 have derivatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitlet.models.deit import Block, DeiT
from vitlet.partition.submodels.cut import blocks_of


@dataclass(frozen=True)
class Gates:
    """One row for all images, (1, units), or one each, (B, units); None: no gate.

    Attributes:
        channels: of the residual stream.
        heads: of each block.
        hidden: of each block's MLP.
    """

    channels: Tensor | None = None
    heads: tuple[Tensor, ...] | None = None
    hidden: tuple[Tensor, ...] | None = None


def gated_logits(model: DeiT, images: Tensor, gates: Gates) -> Tensor:
    """Return the logits (B, classes) of a model whose units are weighed by `gates`."""
    tokens = model._tokens(images)
    for i, block in enumerate(blocks_of(model)):
        heads = gates.heads[i] if gates.heads is not None else None
        hidden = gates.hidden[i] if gates.hidden is not None else None
        tokens = _block(block, tokens, gates.channels, heads, hidden)
    assert isinstance(model.norm, nn.LayerNorm)
    out: Tensor = model.head(_norm(model.norm, tokens[:, :1], gates.channels)[:, 0])
    return out


def _block(
    block: Block, tokens: Tensor, channels: Tensor | None, heads: Tensor | None,
    hidden: Tensor | None,
) -> Tensor:  # fmt: skip
    attention, (b, n, _) = block.attn, tokens.shape
    q, k, v = (
        part.reshape(b, n, attention.heads, -1).transpose(1, 2)
        for part in attention.qkv(_norm(block.norm1, tokens, channels)).chunk(3, dim=-1)
    )
    mixed = F.softmax(q @ k.transpose(-2, -1) * attention.scale, dim=-1) @ v
    if heads is not None:
        mixed = mixed * heads[:, :, None, None]
    tokens = tokens + attention.proj(mixed.transpose(1, 2).reshape(b, n, -1))
    units = block.mlp.act(block.mlp.fc1(_norm(block.norm2, tokens, channels)))
    if hidden is not None:
        units = units * hidden[:, None, :]
    return tokens + block.mlp.fc2(units)  # type: ignore[no-any-return]


def _norm(norm: nn.LayerNorm, x: Tensor, gate: Tensor | None) -> Tensor:
    if gate is None:
        return norm(x)  # type: ignore[no-any-return]
    gate = gate[:, None, :]
    total = gate.sum(-1, keepdim=True)
    mean = (gate * x).sum(-1, keepdim=True) / total
    variance = (gate * (x - mean) ** 2).sum(-1, keepdim=True) / total
    return gate * ((x - mean) * torch.rsqrt(variance + norm.eps) * norm.weight + norm.bias)
