"""MCi: the convolution-transformer image encoders of MobileCLIP and MobileCLIP2.

MobileCLIP (Vasu et al., 2024), MobileCLIP2 (Faghri et al., 2025); built from FastViT's parts (Vasu
et al., 2023). The same network exists under two sets of names and two groupings: Apple's flat list
`network` and timm's `stages`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from vitlet.layers.large_kernel import LargeKernelConv
from vitlet.layers.mixer_blocks import AttentionBlock, RepMixerBlock
from vitlet.layers.mobileone import MobileOneBlock
from vitlet.layers.naming import APPLE, TIMM, Naming
from vitlet.layers.projection import Projection
from vitlet.layers.rep_cpe import RepCPE
from vitlet.layers.squeeze_excite import SqueezeExcite


@dataclass(frozen=True)
class MCi:
    """What tells one size from another.

    Attributes:
        depths: blocks per stage.
        dims: channels per stage.
        mlp_ratio: hidden channels of the feed-forward parts over their channels.
        mixer_stages: how many stages, from the first, mix by convolution; the others by attention.
        gated_downsample: whether the reductions into stages 2 and 3 have a squeeze-excite gate.
        stem_scale: whether the stem's blocks have a 1x1 branch.
        layer_norm: whether attention blocks normalize by LayerNorm, not BatchNorm.
    """

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    mlp_ratio: int = 3
    mixer_stages: int = 3
    gated_downsample: bool = True
    stem_scale: bool = True
    layer_norm: bool = False


SIZES = {
    "mci0": MCi((2, 6, 10, 2), (64, 128, 256, 512)),
    "mci1": MCi((4, 12, 20, 4), (64, 128, 256, 512)),
    "mci2": MCi((4, 12, 24, 4), (80, 160, 320, 640)),
    "mci3": MCi(
        (2, 12, 24, 4, 2),
        (96, 192, 384, 768, 1536),
        mlp_ratio=4,
        gated_downsample=False,
        stem_scale=False,
        layer_norm=True,
    ),
    "mci4": MCi(
        (2, 12, 24, 4, 4),
        (128, 256, 512, 1024, 2048),
        mlp_ratio=4,
        gated_downsample=False,
        stem_scale=False,
        layer_norm=True,
    ),
}


@dataclass(frozen=True)
class _Parts:
    """Makes the parts of one network under one set of names."""

    size: MCi
    naming: Naming
    merged: bool

    def stem(self, in_chans: int) -> nn.Sequential:
        dim, common = self.size.dims[0], {"naming": self.naming, "merged": self.merged}
        scale = self.size.stem_scale
        return nn.Sequential(
            MobileOneBlock(in_chans, dim, kernel=(3, 3), stride=2, scale=scale, **common),  # type: ignore[arg-type]
            MobileOneBlock(dim, dim, kernel=(3, 3), stride=2, groups=dim, scale=scale, **common),  # type: ignore[arg-type]
            MobileOneBlock(dim, dim, kernel=(1, 1), scale=False, **common),  # type: ignore[arg-type]
        )

    def downsample(self, stage: int) -> nn.Module:
        dim, out_dim = self.size.dims[stage - 1 : stage + 1]
        gate = None
        if self.size.gated_downsample and stage >= 2:
            gate = SqueezeExcite(out_dim, out_dim // 4)
        return _Downsample(
            LargeKernelConv(dim, out_dim, gate=gate, naming=self.naming, merged=self.merged),
            MobileOneBlock(
                out_dim,
                out_dim,
                kernel=(1, 1),
                scale=False,
                naming=self.naming,
                merged=self.merged,
            ),
        )

    def blocks(self, stage: int) -> nn.Sequential:
        dim, depth = self.size.dims[stage], self.size.depths[stage]
        hidden = dim * self.size.mlp_ratio
        if stage < self.size.mixer_stages:
            return nn.Sequential(
                *(
                    RepMixerBlock(dim, hidden, naming=self.naming, merged=self.merged)
                    for _ in range(depth)
                )
            )
        return nn.Sequential(
            *(
                AttentionBlock(dim, hidden, layer_norm=self.size.layer_norm, naming=self.naming)
                for _ in range(depth)
            )
        )

    def positions(self, stage: int) -> nn.Module | None:
        if stage < self.size.mixer_stages:
            return None
        return RepCPE(self.size.dims[stage], naming=self.naming, merged=self.merged)

    def last(self) -> nn.Module:
        dim = self.size.dims[-1]
        names = (self.naming.gate_in, self.naming.gate_out)
        return MobileOneBlock(
            dim,
            2 * dim,
            kernel=(3, 3),
            groups=dim,
            gate=SqueezeExcite(2 * dim, 2 * dim // 16, names=names),
            naming=self.naming,
            merged=self.merged,
        )


class _Downsample(nn.Module):
    """Large-kernel reduction, then a pointwise block: (B, C, H, W) -> (B, D, H/2, W/2)."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.proj = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        """Return the halved map."""
        out: Tensor = self.proj(x)
        return out


class AppleMCi(nn.Module):
    """MCi with Apple's names: (B, C, H, W) -> (B, embed_dim), not normalized.

    Args:
        size: a key of `SIZES`, one with four stages.
        embed_dim: width of the embedding.
        in_chans: channels of the input.
        merged: build the form that upstream saves after merging the branches.
    """

    def __init__(
        self, size: str, *, embed_dim: int, in_chans: int = 3, merged: bool = False
    ) -> None:
        super().__init__()
        make = _Parts(SIZES[size], APPLE, merged)
        self.patch_embed = make.stem(in_chans)
        self.network = nn.Sequential()
        for stage in range(len(make.size.depths)):
            if stage > 0:
                self.network.append(make.downsample(stage))
            positions = make.positions(stage)
            if positions is not None:
                self.network.append(positions)
            self.network.append(make.blocks(stage))
        self.conv_exp = make.last()
        self.head = Projection(2 * make.size.dims[-1], embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Embed the images."""
        x = self.conv_exp(self.network(self.patch_embed(x)))
        out: Tensor = self.head(x.mean(dim=(2, 3)))
        return out


class _Stage(nn.Module):
    """Reduction, positions and blocks of one stage, each only where it exists."""

    def __init__(
        self, downsample: nn.Module | None, positions: nn.Module | None, blocks: nn.Module
    ) -> None:
        super().__init__()
        self.downsample = downsample or nn.Identity()
        self.pos_emb = positions or nn.Identity()
        self.blocks = blocks

    def forward(self, x: Tensor) -> Tensor:
        """Return the stage's map."""
        out: Tensor = self.blocks(self.pos_emb(self.downsample(x)))
        return out


class _Head(nn.Module):
    """Mean over the positions, then a linear layer: (B, C, H, W) -> (B, embed_dim)."""

    def __init__(self, dim: int, embed_dim: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the embedding."""
        out: Tensor = self.fc(x.mean(dim=(2, 3)))
        return out


class TimmMCi(nn.Module):
    """MCi with timm's names: (B, C, H, W) -> (B, embed_dim), not normalized.

    Args:
        size: a key of `SIZES`.
        embed_dim: width of the embedding.
        in_chans: channels of the input.
        merged: build the form that upstream saves after merging the branches.
    """

    def __init__(
        self, size: str, *, embed_dim: int, in_chans: int = 3, merged: bool = False
    ) -> None:
        super().__init__()
        make = _Parts(SIZES[size], TIMM, merged)
        self.stem = make.stem(in_chans)
        self.stages = nn.Sequential(
            *(
                _Stage(
                    make.downsample(stage) if stage > 0 else None,
                    make.positions(stage),
                    make.blocks(stage),
                )
                for stage in range(len(make.size.depths))
            )
        )
        self.final_conv = make.last()
        self.head = _Head(2 * make.size.dims[-1], embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Embed the images."""
        out: Tensor = self.head(self.final_conv(self.stages(self.stem(x))))
        return out
