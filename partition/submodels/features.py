"""The feature of a plain ViT: its normalized class token, without the work nobody reads."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from vitlet.models.deit import Block, DeiT


def feature(model: DeiT, images: Tensor) -> Tensor:
    """Return the normalized class token, (B, dim): what `model.head` reads.

    The last block's other tokens are read by nobody, so only its class token is computed; of a
    model of three blocks that saves a quarter of the work.
    """
    tokens = model._tokens(images)
    blocks = list(model.blocks)
    for block in blocks[:-1]:
        tokens = block(tokens)
    if blocks:
        last = blocks[-1]
        assert isinstance(last, Block)
        tokens = _class_token_only(last, tokens)
    out: Tensor = model.norm(tokens[:, 0])
    return out


def logits(model: DeiT, images: Tensor) -> Tensor:
    """Return what `model(images)` returns, (B, classes), by way of `feature`."""
    out: Tensor = model.head(feature(model, images))
    return out


def _class_token_only(block: Block, tokens: Tensor) -> Tensor:
    """Return `block(tokens)[:, :1]`."""
    attention, normed = block.attn, block.norm1(tokens)
    width = attention.proj.in_features
    weight, bias = attention.qkv.weight, attention.qkv.bias
    q = F.linear(normed[:, :1], weight[:width], bias[:width]) * attention.scale
    k, v = F.linear(normed, weight[width:], bias[width:]).chunk(2, dim=-1)
    b = tokens.shape[0]
    heads = attention.heads
    q, k, v = (part.reshape(b, -1, heads, width // heads).transpose(1, 2) for part in (q, k, v))
    mixed = F.softmax(q @ k.transpose(-2, -1), dim=-1) @ v
    first = tokens[:, :1] + attention.proj(mixed.transpose(1, 2).reshape(b, 1, width))
    out: Tensor = first + block.mlp(block.norm2(first))
    return out
