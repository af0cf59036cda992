"""Cuts units out of a plain ViT: the tensors become smaller, and no mask stays behind.

A unit is a channel of the residual stream, which patch embedding, positions, class token, every
LayerNorm and every block share; a head of one block; or a hidden unit of one block's MLP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitlet.errors import UsageError
from vitlet.models.deit import Attention, Block, DeiT, Mlp
from vitlet.partition.submodels.widths import Widths


@dataclass(frozen=True)
class Kept:
    """Which units stay, as indices into the model that is cut; None keeps all of a kind.

    Attributes:
        channels: of the residual stream.
        heads: for each block.
        hidden: for each block.
    """

    channels: tuple[int, ...] | None = None
    heads: tuple[tuple[int, ...], ...] | None = None
    hidden: tuple[tuple[int, ...], ...] | None = None


def blocks_of(model: DeiT) -> list[Block]:
    """Return the blocks of a plain ViT.

    Raises:
        UsageError: it is not one: another class, without a classifier, or without blocks.
    """
    if not isinstance(model, DeiT) or model.features_only:
        raise UsageError(
            "only a plain ViT with a classifier (DeiT layout) can be split, got "
            f"{type(model).__name__}{' with features_only' if isinstance(model, DeiT) else ''}"
        )
    blocks = [block for block in model.blocks if isinstance(block, Block)]
    if not blocks or not isinstance(model.head, nn.Linear):
        raise UsageError("expected a plain ViT with at least one block and a linear head")
    return blocks


def widths_of(model: DeiT) -> Widths:
    """Return the sizes of a model, cut or whole.

    Raises:
        UsageError: it is not a plain ViT.
    """
    blocks = blocks_of(model)
    return Widths(
        dim=model.pos_embed.shape[-1],
        head_dim=blocks[0].attn.proj.in_features // blocks[0].attn.heads,
        heads=tuple(block.attn.heads for block in blocks),
        hidden=tuple(block.mlp.fc1.out_features for block in blocks),
    )


def build(like: DeiT, widths: Widths, outputs: int) -> DeiT:
    """Return an untrained ViT of these widths with the image, patches and depth of `like`."""
    made = DeiT(
        dim=widths.dim,
        depth=len(widths.heads),
        heads=1,
        patch_size=like.patch_size,
        num_classes=outputs,
        img_size=like.img_size,
        in_chans=like.patch_embed.proj.in_channels,
    )
    for block, heads, hidden in zip(blocks_of(made), widths.heads, widths.hidden, strict=True):
        attention = Attention(widths.dim, heads=1)
        attention.heads, attention.scale = heads, widths.head_dim**-0.5
        attention.qkv = nn.Linear(widths.dim, 3 * heads * widths.head_dim)
        attention.proj = nn.Linear(heads * widths.head_dim, widths.dim)
        block.attn, block.mlp = attention, Mlp(widths.dim, hidden)
    return made


def spread_weights(model: nn.Module) -> None:
    """Draw matrices anew by Xavier's rule: the usual deviation of 0.02 is made for wide models."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight.view(len(layer.weight), -1))


def cut(model: DeiT, kept: Kept) -> DeiT:
    """Return a smaller model with the kept units' weights; `model` stays as it is.

    Units come in the order in which `kept` names them. Where every other unit wrote nothing, the
    small model computes the same function, except that a LayerNorm's mean and variance are those
    of the kept channels.

    Raises:
        UsageError: `model` is not a plain ViT, or `kept` names a unit that is not there or twice.
    """
    blocks, widths = blocks_of(model), widths_of(model)
    depth = len(blocks)
    channels = _indices(kept.channels, widths.dim, "channels")
    heads = [
        _indices(kept.heads[i] if kept.heads else None, widths.heads[i], f"heads of block {i}")
        for i in range(depth)
    ]
    hidden = [
        _indices(kept.hidden[i] if kept.hidden else None, widths.hidden[i], f"MLP of block {i}")
        for i in range(depth)
    ]
    smaller = Widths(
        len(channels), widths.head_dim, tuple(map(len, heads)), tuple(map(len, hidden))
    )
    state = model.state_dict()
    for name in ("cls_token", "pos_embed"):
        state[name] = state[name][..., channels]
    for name in ("patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias"):
        state[name] = state[name][channels]
    state["head.weight"] = state["head.weight"][:, channels]
    for i in range(depth):
        _cut_block(state, f"blocks.{i}.", channels, heads[i], hidden[i], widths.head_dim)
    made = build(model, smaller, state["head.weight"].shape[0])
    for mine, its in zip(blocks_of(made), blocks, strict=True):
        mine.attn.scale = its.attn.scale
    made.load_state_dict(state)
    return made.train(model.training)


def _cut_block(
    state: dict[str, Tensor],
    prefix: str,
    channels: Tensor,
    heads: Tensor,
    hidden: Tensor,
    head_dim: int,
) -> None:
    """Shrink the tensors of one block, in place in `state`."""

    def take(name: str, rows: Tensor | None, columns: Tensor | None = None) -> None:
        tensor = state[prefix + name]
        tensor = tensor if rows is None else tensor[rows]
        state[prefix + name] = tensor if columns is None else tensor[:, columns]

    width = state[prefix + "attn.proj.weight"].shape[1]
    within = (heads[:, None] * head_dim + torch.arange(head_dim)).flatten()
    # qkv holds the queries of all heads, then the keys, then the values.
    triple = torch.cat([part * width + within for part in range(3)])
    for norm in ("norm1", "norm2"):
        take(f"{norm}.weight", channels)
        take(f"{norm}.bias", channels)
    take("attn.qkv.weight", triple, channels)
    take("attn.qkv.bias", triple)
    take("attn.proj.weight", channels, within)
    take("attn.proj.bias", channels)
    take("mlp.fc1.weight", hidden, channels)
    take("mlp.fc1.bias", hidden)
    take("mlp.fc2.weight", channels, hidden)
    take("mlp.fc2.bias", channels)


def _indices(chosen: Sequence[int] | None, size: int, what: str) -> Tensor:
    if chosen is None:
        return torch.arange(size)
    unique = set(chosen)
    if not unique or len(unique) != len(chosen) or min(unique) < 0 or max(unique) >= size:
        raise UsageError(
            f"{what}: expected different indices from 0 to {size - 1}, got {tuple(chosen)[:8]}"
        )
    return torch.tensor(list(chosen), dtype=torch.int64)
