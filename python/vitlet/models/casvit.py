"""CAS-ViT: convolutional additive self-attention vision transformers (Zhang et al., 2024).

Parameter names are those of the published checkpoints (Tianfang-Zhang/CAS-ViT).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vitlet.errors import UsageError
from vitlet.layers.additive_token_mixer import AdditiveTokenMixer
from vitlet.layers.fold_sequential import fold_sequential
from vitlet.layers.fuse import fuse_into_next, fuse_into_previous, with_parameters
from vitlet.layers.local_perception import LocalPerception


class ConvMlp(nn.Module):
    """Two 1x1 convolutions with a GELU between: (B, C, H, W) -> same."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Block(nn.Module):
    """Local perception, additive token mixer and MLP, each with a residual connection."""

    def __init__(self, dim: int, *, mlp_ratio: float) -> None:
        super().__init__()
        self.local_perception = LocalPerception(dim)
        self.norm1: nn.Module = nn.BatchNorm2d(dim)
        self.attn = AdditiveTokenMixer(dim)
        self.norm2: nn.Module = nn.BatchNorm2d(dim)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        x = x + self.local_perception(x)
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out

    def reparameterized(self) -> Block:
        """Fold each BatchNorm into the unpadded 1x1 convolution that follows it."""
        if isinstance(self.norm1, nn.BatchNorm2d):
            self.attn.qkv = fuse_into_next(self.norm1, self.attn.qkv)
            self.norm1 = nn.Identity()
        if isinstance(self.norm2, nn.BatchNorm2d):
            self.mlp.fc1 = fuse_into_next(self.norm2, self.mlp.fc1)
            self.norm2 = nn.Identity()
        return self


class Downsample(nn.Module):
    """Strided 3x3 convolution and BatchNorm: (B, C, H, W) -> (B, D, ceil(H/2), ceil(W/2))."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1)
        self.norm: nn.Module = nn.BatchNorm2d(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the halved map."""
        out: Tensor = self.norm(self.proj(x))
        return out

    def reparameterized(self) -> Downsample:
        """Fold the BatchNorm into the convolution."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.proj, self.norm = fuse_into_previous(self.proj, self.norm), nn.Identity()
        return self


class Stem(nn.Sequential):
    """Two strided 3x3 convolutions with BatchNorm and ReLU: (B, 3, H, W) -> (B, C, H/4, W/4)."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__(
            nn.Conv2d(in_chans, dim // 2, 3, stride=2, padding=1),
            nn.BatchNorm2d(dim // 2),
            nn.ReLU(),
            nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1),
            nn.BatchNorm2d(dim),
            nn.ReLU(),
        )

    def reparameterized(self) -> nn.Sequential:
        """Fold both BatchNorms."""
        return fold_sequential(self)


class CASViT(nn.Module):
    """Four stages of additive-mixer blocks and a linear classifier.

    Args:
        depths: blocks per stage.
        dims: channels per stage.
        mlp_ratio: hidden width of the MLP over its width.
        num_classes: size of the output.
        img_size: height and width of the input, in pixels (only recorded: any size works).
        in_chans: channels of the input.
        distillation: whether a second head is there; the output is the mean of both.
        features_only: give the four stage maps instead of logits; no final norm and heads.
    """

    def __init__(
        self,
        *,
        depths: Sequence[int],
        dims: Sequence[int],
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        img_size: int = 224,
        in_chans: int = 3,
        distillation: bool = True,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        if len(depths) != 4 or len(dims) != 4:
            raise UsageError(f"CAS-ViT has 4 stages, got depths {depths} and dims {dims}")
        self.img_size = img_size
        self.features_only = features_only
        # Checkpoint keys that this configuration has no use for.
        self.ignored_keys = ("norm.", "head.", "dist_head.") if features_only else ()
        self.patch_embed = Stem(in_chans, dims[0])
        self.network = nn.ModuleList()
        for stage, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            if stage > 0:
                self.network.append(Downsample(dims[stage - 1], dim))
            blocks = [Block(dim, mlp_ratio=mlp_ratio) for _ in range(depth)]
            self.network.append(nn.Sequential(*blocks))
        self.norm: nn.Module = nn.Identity()
        self.head: nn.Module = nn.Identity()
        self.dist_head: nn.Module | None = None
        if not features_only:
            self.norm = nn.BatchNorm2d(dims[-1])
            self.head = nn.Linear(dims[-1], num_classes)
            if distillation:
                self.dist_head = nn.Linear(dims[-1], num_classes)
        self.apply(_initialize)

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        """Return the map after each stage, strides 4, 8, 16 and 32."""
        x = self.patch_embed(x)
        maps = []
        for index, part in enumerate(self.network):
            x = part(x)
            if index % 2 == 0:
                maps.append(x)
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the normalized last map, (B, C, H/32, W/32)."""
        out: Tensor = self.norm(self.stage_maps(x)[-1])
        return out

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return (B, num_classes) logits, or four maps with `features_only`."""
        if self.features_only:
            return self.stage_maps(x)
        pooled = self.forward_features(x).mean(dim=(2, 3))
        logits: Tensor = self.head(pooled)
        if self.dist_head is not None:
            logits = (logits + self.dist_head(pooled)) / 2
        return logits

    def reparameterized(self) -> CASViT:
        """Make both heads one and fold the final BatchNorm, which commutes with the mean."""
        if isinstance(self.head, nn.Linear) and isinstance(self.dist_head, nn.Linear):
            weight = (self.head.weight.double() + self.dist_head.weight.double()) / 2
            bias = (self.head.bias.double() + self.dist_head.bias.double()) / 2
            self.head, self.dist_head = with_parameters(self.head, weight, bias), None
        if isinstance(self.norm, nn.BatchNorm2d) and isinstance(self.head, nn.Linear):
            self.head = fuse_into_next(self.norm, self.head)
            self.norm = nn.Identity()
        return self


def _initialize(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def casvit(**config: object) -> CASViT:
    """Build a CAS-ViT from its configuration (see `CASViT`)."""
    return CASViT(**config)  # type: ignore[arg-type]
