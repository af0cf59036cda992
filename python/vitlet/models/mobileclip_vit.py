"""The plain vision transformers of MobileCLIP-B and of MobileCLIP2-B and L/14.

ViT (Dosovitskiy et al., 2021); MobileCLIP (Vasu et al., 2024); MobileCLIP2 (Faghri et al., 2025).
The two B models differ in the stem's padding and the LayerNorms' eps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitlet.errors import ShapeError, UsageError
from vitlet.layers.conv_norm import ConvNorm
from vitlet.layers.learned_positions import LearnedPositions
from vitlet.layers.projection import Projection
from vitlet.layers.transformer_block import AppleBlock, TimmBlock

_STEM = ((4, 4), (2, 2), (2, 2))  # filter sides, which are also the strides: 16 in all


def _grid(img_size: int, patch: int) -> int:
    if img_size < patch or img_size % patch:
        raise UsageError(f"img_size must be a multiple of {patch}, got {img_size}")
    return img_size // patch


def _check_image(x: Tensor, img_size: int) -> None:
    if tuple(x.shape[-2:]) != (img_size, img_size):
        raise ShapeError(
            f"expected images of {img_size}x{img_size}, got {x.shape[-2]}x{x.shape[-1]}: build "
            "the model with img_size="
        )


class _StemBlock(nn.Module):
    """Convolution, with or without BatchNorm: Apple's names."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """Return the smaller map."""
        out: Tensor = self.block(x)
        return out


class _PlainConv(nn.Module):
    """The stem's last convolution, which has a bias and no normalization."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, out_dim, _STEM[2], stride=_STEM[2])

    def forward(self, x: Tensor) -> Tensor:
        """Return the smaller map."""
        out: Tensor = self.conv(x)
        return out


def _stem(in_chans: int, dim: int, *, padding: int, norm: str) -> list[nn.Module]:
    narrow = dim // 4
    return [
        ConvNorm(
            in_chans, narrow, kernel=_STEM[0], stride=4, padding=(padding, padding), norm=norm
        ),
        ConvNorm(narrow, narrow, kernel=_STEM[1], stride=2, padding=(0, 0), norm=norm),
        _PlainConv(narrow, dim),
    ]


def _run_stem(parts: nn.Module, x: Tensor) -> Tensor:
    first, second, third = parts.children()
    x = third(F.gelu(second(F.gelu(first(x)))))
    return x.flatten(2).transpose(1, 2)


class AppleViT(nn.Module):
    """ViT-B/16 of MobileCLIP-B: (B, C, H, W) -> (B, embed_dim), not normalized.

    Args:
        embed_dim: width of the embedding.
        img_size: height and width of the input, in pixels; a multiple of 16.
        in_chans: channels of the input.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        img_size: int = 224,
        in_chans: int = 3,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
    ) -> None:
        super().__init__()
        self.img_size = img_size
        tokens = _grid(img_size, 16) ** 2
        stem = _stem(in_chans, dim, padding=1, norm="norm")
        self.patch_emb = nn.Sequential(*(_StemBlock(part) for part in stem))
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.pos_embed = LearnedPositions(tokens, dim)
        self.transformer = nn.Sequential(
            *(AppleBlock(dim, heads=heads, hidden=4 * dim, eps=1e-5) for _ in range(depth))
        )
        self.post_transformer_norm = nn.LayerNorm(dim, eps=1e-5)
        self.classifier = Projection(dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Embed the images."""
        _check_image(x, self.img_size)
        # The class token goes in front after the positions, and has none itself.
        tokens = self.pos_embed(_run_stem(self.patch_emb, x))
        tokens = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), tokens), dim=1)
        tokens = self.transformer(tokens)
        out: Tensor = self.classifier(self.post_transformer_norm(tokens[:, 0]))
        return out


class _ConvStem(nn.Module):
    """Three convolutions to patches of 16x16: timm's names."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(*_stem(in_chans, dim, padding=0, norm="bn"))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, dim)."""
        return _run_stem(self.backbone, x)


class _Patches(nn.Module):
    """Patches by one convolution without bias: (B, C, H, W) -> (B, N, dim)."""

    def __init__(self, in_chans: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch, stride=patch, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, dim)."""
        tokens: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return tokens


class TimmViT(nn.Module):
    """ViT of MobileCLIP2: (B, C, H, W) -> (B, embed_dim), not normalized.

    Args:
        embed_dim: width of the embedding.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads.
        patch: side of a patch, in pixels.
        conv_stem: three convolutions instead of one; then the class token has no position.
        pre_norm: LayerNorm before the blocks.
        eps: of the LayerNorms.
        img_size: height and width of the input, in pixels; a multiple of `patch`.
        in_chans: channels of the input.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        dim: int,
        depth: int,
        heads: int,
        patch: int,
        conv_stem: bool,
        pre_norm: bool,
        eps: float,
        img_size: int = 224,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        self.img_size, self.conv_stem = img_size, conv_stem
        tokens = _grid(img_size, patch) ** 2
        self.patch_embed: nn.Module = (
            _ConvStem(in_chans, dim) if conv_stem else _Patches(in_chans, dim, patch)
        )
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, tokens + (not conv_stem), dim) * 0.02)
        self.norm_pre = nn.LayerNorm(dim, eps=eps) if pre_norm else nn.Identity()
        self.blocks = nn.Sequential(
            *(TimmBlock(dim, heads=heads, hidden=4 * dim, eps=eps) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.head = nn.Linear(dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Embed the images."""
        _check_image(x, self.img_size)
        tokens = self.patch_embed(x)
        first = self.cls_token.expand(x.shape[0], -1, -1)
        if self.conv_stem:
            tokens = torch.cat((first, tokens + self.pos_embed), dim=1)
        else:
            tokens = torch.cat((first, tokens), dim=1) + self.pos_embed
        tokens = self.blocks(self.norm_pre(tokens))
        out: Tensor = self.head(self.norm(tokens[:, 0]))
        return out
