"""Pyramid vision transformer (Wang et al., 2021), with ShiftAddViT's attention.

Parameter names are those of the published checkpoints (whai362/PVT).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitlet.errors import ShapeError, UsageError
from vitlet.layers.transformer_block import Mlp
from vitlet.models.pvt_parts import (
    AttentionName,
    attend,
    build_attention,
    check_attention,
    initialize,
)


class PatchEmbed(nn.Module):
    """Non-overlapping patches and LayerNorm: (B, C, H, W) -> (B, h * w, dim) and (h, w)."""

    def __init__(self, in_chans: int, dim: int, *, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch, stride=patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the tokens, row by row, and the map's height and width."""
        maps = self.proj(x)
        tokens: Tensor = self.norm(maps.flatten(2).transpose(1, 2))
        return tokens, (maps.shape[2], maps.shape[3])


class Block(nn.Module):
    """Pre-norm attention and MLP, each with a residual connection."""

    def __init__(self, dim: int, hidden: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return (B, N, dim)."""
        x = x + attend(self.attn, self.norm1(x), size)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PVTv1(nn.Module):
    """Four stages of blocks with learned positions; the last one has a class token.

    Args:
        dims: width of a token in each stage.
        depths: blocks of each stage.
        heads: of each stage's attention.
        mlp_ratios: hidden width of the MLP over the token's, of each stage.
        reductions: of each stage's "spatial_reduction".
        attention: as `vitlet.models.pvt_v2.PVTv2` takes it.
        num_classes: size of the output.
        img_size: height and width of the input, in pixels; a multiple of 32.
        in_chans: channels of the input.
    """

    def __init__(
        self,
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[int] = (8, 8, 4, 4),
        reductions: Sequence[int] = (8, 4, 2, 1),
        attention: AttentionName = "spatial_reduction",
        num_classes: int = 1000,
        img_size: int = 224,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        check_attention(attention)
        if img_size % 32:
            raise UsageError(f"img_size must be a multiple of 32, got {img_size}")
        self.img_size, self.stages = img_size, len(dims)
        for stage, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            last = stage == len(dims) - 1
            embed = PatchEmbed(dims[stage - 1] if stage else in_chans, dim, patch=2 if stage else 4)
            self.add_module(f"patch_embed{stage + 1}", embed)
            places = (img_size >> (stage + 2)) ** 2 + last
            positions = nn.init.trunc_normal_(torch.empty(1, places, dim), std=0.02)
            self.register_parameter(f"pos_embed{stage + 1}", nn.Parameter(positions))
            blocks = nn.ModuleList(
                Block(
                    dim,
                    dim * mlp_ratios[stage],
                    build_attention(
                        # The last stage's keys and values have a projection of their own.
                        "spatial_reduction" if last else attention,
                        dim,
                        heads=heads[stage],
                        reduction=reductions[stage],
                        last=last,
                        mixture=False,
                    ),
                )
                for _ in range(depth)
            )
            self.add_module(f"block{stage + 1}", blocks)
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        token = nn.init.trunc_normal_(torch.empty(1, 1, dims[-1]), std=0.02)
        self.cls_token = nn.Parameter(token)
        self.head = nn.Linear(dims[-1], num_classes)
        self.apply(initialize)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, num_classes) logits of (B, C, img_size, img_size)."""
        if tuple(x.shape[-2:]) != (self.img_size, self.img_size):
            raise ShapeError(
                f"expected images of {self.img_size}x{self.img_size}, got "
                f"{x.shape[-2]}x{x.shape[-1]}: build the model with img_size="
            )
        for stage in range(1, self.stages + 1):
            x, size = self.get_submodule(f"patch_embed{stage}")(x)
            if stage == self.stages:
                x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
            x = x + self.get_parameter(f"pos_embed{stage}")
            for block in self.get_submodule(f"block{stage}").children():
                x = block(x, size)
            if stage < self.stages:
                x = x.transpose(1, 2).reshape(x.shape[0], x.shape[2], *size)
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits


def pvt_v1(**config: object) -> PVTv1:
    """Build a PVTv1 from its configuration (see `PVTv1`)."""
    return PVTv1(**config)  # type: ignore[arg-type]
