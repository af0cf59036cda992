"""Pyramid vision transformer, version 2 (Wang et al., 2022), with ShiftAddViT's attention.

Parameter names are those of the published checkpoints (whai362/PVT, GATECH-EIC/ShiftAddViT).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from vitlet.errors import UsageError
from vitlet.models.pvt_parts import (
    AttentionName,
    attend,
    build_attention,
    check_attention,
    initialize,
    projection,
)

SMALLEST = 32  # pixels: the last of four stages sees a 32nd


class OverlapPatchEmbed(nn.Module):
    """Strided convolution and LayerNorm: (B, C, H, W) -> (B, h * w, dim) and (h, w)."""

    def __init__(self, in_chans: int, dim: int, *, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel, stride=stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the tokens, row by row, and the map's height and width."""
        maps = self.proj(x)
        tokens: Tensor = self.norm(maps.flatten(2).transpose(1, 2))
        return tokens, (maps.shape[2], maps.shape[3])


class DepthwiseConv(nn.Module):
    """Depthwise 3x3 over the map that tokens are: (B, H * W, dim) -> same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Filter the map of height and width `size`."""
        b, _, dim = x.shape
        maps: Tensor = self.dwconv(x.transpose(1, 2).reshape(b, dim, *size))
        return maps.flatten(2).transpose(1, 2)


class Mlp(nn.Module):
    """Linear, depthwise 3x3, GELU, linear: (B, H * W, dim) -> same."""

    def __init__(self, dim: int, hidden: int, *, mixture: bool) -> None:
        super().__init__()
        linear = projection(mixture)
        self.fc1, self.dwconv, self.fc2 = (
            linear(dim, hidden), DepthwiseConv(hidden), linear(hidden, dim)
        )  # fmt: skip

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Apply to a map of height and width `size`."""
        out: Tensor = self.fc2(F.gelu(self.dwconv(self.fc1(x), size)))
        return out


class Block(nn.Module):
    """Pre-norm attention and MLP, each with a residual connection."""

    def __init__(self, dim: int, hidden: int, attention: nn.Module, *, mixture: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, hidden, mixture=mixture)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return (B, H * W, dim)."""
        x = x + attend(self.attn, self.norm1(x), size)
        out: Tensor = x + self.mlp(self.norm2(x), size)
        return out


class PVTv2(nn.Module):
    """Four stages of blocks on ever smaller maps, then the mean over the tokens.

    Args:
        dims: width of a token in each stage.
        depths: blocks of each stage.
        heads: of each stage's attention.
        mlp_ratios: hidden width of the MLP over the token's, of each stage.
        reductions: of each stage's "spatial_reduction".
        attention: "spatial_reduction" is PVT's own. "softmax", and in all stages but the last
            "linear_angular", "binary" (thresholds per head), "binary_batch" and "ksh"
            (ShiftAddViT's released forms).
        moe_mlp: ShiftAddViT's released mixtures in the MLPs.
        moe_attn: in the attention's projections too; not for "softmax".
        num_classes: size of the output.
        img_size: height and width of the input, in pixels; any from 32 up.
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
        moe_mlp: bool = False,
        moe_attn: bool = False,
        num_classes: int = 1000,
        img_size: int = 224,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        check_attention(attention)
        if img_size < SMALLEST and attention == "spatial_reduction":
            raise UsageError(f"img_size must be {SMALLEST} or more, got {img_size}")
        if moe_attn and attention == "softmax":
            raise UsageError("moe_attn is for attentions other than softmax")
        for stage, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            last = stage == len(dims) - 1
            self.add_module(
                f"patch_embed{stage + 1}",
                OverlapPatchEmbed(
                    dims[stage - 1] if stage else in_chans,
                    dim,
                    kernel=3 if stage else 7,
                    stride=2 if stage else 4,
                ),
            )
            blocks = nn.ModuleList(
                Block(
                    dim,
                    dim * mlp_ratios[stage],
                    build_attention(
                        attention,
                        dim,
                        heads=heads[stage],
                        reduction=reductions[stage],
                        last=last,
                        mixture=moe_attn,
                    ),
                    mixture=moe_mlp,
                )
                for _ in range(depth)
            )
            self.add_module(f"block{stage + 1}", blocks)
            self.add_module(f"norm{stage + 1}", nn.LayerNorm(dim, eps=1e-6))
        self.stages = len(dims)
        self.head = nn.Linear(dims[-1], num_classes)
        self.apply(initialize)

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        """Return the (B, dim, h, w) map after each stage."""
        maps = []
        for stage in range(1, self.stages + 1):
            x, size = self.get_submodule(f"patch_embed{stage}")(x)
            for block in self.get_submodule(f"block{stage}").children():
                x = block(x, size)
            x = self.get_submodule(f"norm{stage}")(x)
            x = x.transpose(1, 2).reshape(x.shape[0], x.shape[2], *size)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, num_classes) logits of (B, C, H, W)."""
        logits: Tensor = self.head(self.stage_maps(x)[-1].mean(dim=(2, 3)))
        return logits


def pvt_v2(**config: object) -> PVTv2:
    """Build a PVTv2 from its configuration (see `PVTv2`)."""
    return PVTv2(**config)  # type: ignore[arg-type]
