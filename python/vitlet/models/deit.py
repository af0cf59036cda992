"""Plain vision transformers in DeiT's layout.

An image is worth 16x16 words (Dosovitskiy et al., 2021); DeiT (Touvron et al., 2021). Parameter
names are those of the published DeiT checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitlet.errors import ShapeError, UsageError
from vitlet.layers.fuse import layer_bias, with_parameters


class PatchEmbed(nn.Module):
    """Non-overlapping patches: (B, C, H, W) -> (B, H/P * W/P, dim)."""

    def __init__(self, patch_size: int, in_chans: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens in row-major order."""
        tokens: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return tokens


class Attention(nn.Module):
    """Multi-head softmax self-attention: (B, N, dim) -> (B, N, dim)."""

    def __init__(self, dim: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the N tokens."""
        b, n, _ = x.shape
        # Splitting the channels first gives one Split in an exported graph, not three Slices.
        q, k, v = (
            part.reshape(b, n, self.heads, -1).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        if self.scale != 1.0:
            q = q * self.scale
        attention = F.softmax(q @ k.transpose(-2, -1), dim=-1)
        out: Tensor = self.proj((attention @ v).transpose(1, 2).reshape(b, n, -1))
        return out

    def reparameterized(self) -> Attention:
        """Fold the scale of the scores into the query weights."""
        if self.scale != 1.0:
            weight, bias = self.qkv.weight.detach().double().clone(), layer_bias(self.qkv).clone()
            third = weight.shape[0] // 3
            weight[:third] *= self.scale
            bias[:third] *= self.scale
            self.qkv, self.scale = with_parameters(self.qkv, weight, bias), 1.0
        return self


class Mlp(nn.Module):
    """Linear, GELU, linear: (B, N, dim) -> (B, N, dim)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to each token on its own."""
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Block(nn.Module):
    """Pre-norm attention and MLP, each with a residual connection."""

    def __init__(self, dim: int, *, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads=heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, dim)."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class DeiT(nn.Module):
    """A plain ViT with a class token.

    Args:
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads; divides `dim`.
        patch_size: side of a patch, in pixels; divides `img_size`.
        mlp_ratio: hidden width of the MLP over `dim`.
        num_classes: size of the output.
        img_size: height and width of the input, in pixels.
        in_chans: channels of the input.
        features_only: give four (B, dim, h, w) maps after evenly spaced blocks, not logits.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int = 12,
        heads: int = 3,
        patch_size: int = 16,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        img_size: int = 224,
        in_chans: int = 3,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise UsageError(f"heads must divide dim, got dim {dim} and {heads} heads")
        if img_size % patch_size:
            raise UsageError(
                f"img_size must be a multiple of patch_size {patch_size}, got {img_size}"
            )
        if features_only and depth < 4:
            raise UsageError(f"features_only needs 4 blocks or more, got depth {depth}")
        self.img_size, self.patch_size = img_size, patch_size
        self.features_only = features_only
        self.ignored_keys = ("norm.", "head.") if features_only else ()
        self.grid = img_size // patch_size
        self.patch_embed = PatchEmbed(patch_size, in_chans, dim)
        self.cls_token = nn.Parameter(_small(1, 1, dim))
        self.pos_embed = nn.Parameter(_small(1, self.grid**2 + 1, dim))
        self.blocks = nn.ModuleList(
            Block(dim, heads=heads, mlp_ratio=mlp_ratio) for _ in range(depth)
        )
        self.norm: nn.Module = nn.Identity()
        self.head: nn.Module = nn.Identity()
        if not features_only:
            self.norm = nn.LayerNorm(dim, eps=1e-6)
            self.head = nn.Linear(dim, num_classes)
        self.apply(_initialize)

    def _tokens(self, x: Tensor) -> Tensor:
        if tuple(x.shape[-2:]) != (self.img_size, self.img_size):
            raise ShapeError(
                f"expected images of {self.img_size}x{self.img_size}, got "
                f"{x.shape[-2]}x{x.shape[-1]}: build the model with img_size="
            )
        tokens = self.patch_embed(x)
        tokens = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), tokens), dim=1)
        return tokens + self.pos_embed

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        """Return the patch tokens as (B, dim, h, w) after each quarter of the blocks."""
        tokens, maps = self._tokens(x), []
        ends = [len(self.blocks) * quarter // 4 for quarter in (1, 2, 3, 4)]
        for index, block in enumerate(self.blocks, start=1):
            tokens = block(tokens)
            if index in ends:
                grid = tokens[:, 1:].transpose(1, 2)
                maps.append(grid.reshape(x.shape[0], -1, self.grid, self.grid))
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the normalized tokens, (B, 1 + N, dim); the class token comes first."""
        tokens = self._tokens(x)
        for block in self.blocks:
            tokens = block(tokens)
        out: Tensor = self.norm(tokens)
        return out

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return (B, num_classes) logits, or four maps with `features_only`."""
        if self.features_only:
            return self.stage_maps(x)
        tokens = self._tokens(x)
        for block in self.blocks:
            tokens = block(tokens)
        # Only the class token is read, so only it is normalized.
        logits: Tensor = self.head(self.norm(tokens[:, 0]))
        return logits


def _small(*shape: int) -> Tensor:
    return nn.init.trunc_normal_(torch.empty(*shape), std=0.02)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def deit(**config: object) -> DeiT:
    """Build a plain ViT from its configuration (see `DeiT`)."""
    return DeiT(**config)  # type: ignore[arg-type]
