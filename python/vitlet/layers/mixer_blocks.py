"""The two residual blocks of MobileCLIP's convolutional encoders (FastViT, Vasu et al., 2023)."""

from __future__ import annotations

from torch import Tensor, nn

from vitlet.layers.attention import SelfAttention
from vitlet.layers.conv_ffn import ConvFFN
from vitlet.layers.fuse import fuse_into_next, scale_outputs
from vitlet.layers.layer_scale import Scale, factor, layer_scale
from vitlet.layers.naming import Naming
from vitlet.layers.rep_mixer import RepMixer


def _add_scaled(x: Tensor, branch: Tensor, scale: Scale | None) -> Tensor:
    if scale is None:  # folded into the branch's last layer
        return x + branch
    return x + factor(scale) * branch


class RepMixerBlock(nn.Module):
    """Depthwise mixer, then x + scale * ffn(x): (B, C, H, W) -> same.

    Args:
        dim: number of channels C.
        hidden: hidden channels of the feed-forward part.
        mixer_kernel: height and width of the mixer's filter.
        ffn_kernel: height and width of the feed-forward part's depthwise filter.
        naming: names of the parts.
        merged: build the form that upstream saves after merging.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        naming: Naming,
        mixer_kernel: tuple[int, int] = (3, 3),
        ffn_kernel: tuple[int, int] = (7, 7),
        merged: bool = False,
    ) -> None:
        super().__init__()
        self.ffn_name = naming.ffn
        self.token_mixer = RepMixer(dim, kernel=mixer_kernel, naming=naming, merged=merged)
        self.add_module(naming.ffn, ConvFFN(dim, hidden, kernel=ffn_kernel))
        self.layer_scale: Scale | None = layer_scale(dim, naming)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        x = self.token_mixer(x)
        return _add_scaled(x, self.get_submodule(self.ffn_name)(x), self.layer_scale)

    def reparameterized(self) -> RepMixerBlock:
        """Fold the layer scale into the feed-forward part's last convolution."""
        _fold_scale(self, "layer_scale", self.ffn_name)
        return self


class AttentionBlock(nn.Module):
    """x + scale * attention(norm(x)), then x + scale * ffn(x): (B, C, H, W) -> same.

    Args:
        dim: number of channels C.
        hidden: hidden channels of the feed-forward part.
        head_dim: channels of an attention head; divides `dim`.
        layer_norm: LayerNorm over the channels of each position, eps 1e-5, instead of BatchNorm.
        naming: names of the parts.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        naming: Naming,
        head_dim: int = 32,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.ffn_name = naming.ffn
        self.norm: nn.Module = nn.LayerNorm(dim) if layer_norm else nn.BatchNorm2d(dim)
        self.token_mixer = SelfAttention(dim, heads=dim // head_dim, bias=False)
        self.add_module(naming.ffn, ConvFFN(dim, hidden, kernel=(7, 7)))
        self.layer_scale_1: Scale | None = layer_scale(dim, naming)
        self.layer_scale_2: Scale | None = layer_scale(dim, naming)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        if isinstance(self.norm, nn.LayerNorm):
            tokens = self.norm(x.flatten(2).transpose(1, 2))
        else:
            tokens = self.norm(x).flatten(2).transpose(1, 2)
        mixed = self.token_mixer(tokens).transpose(1, 2).reshape(x.shape)
        x = _add_scaled(x, mixed, self.layer_scale_1)
        return _add_scaled(x, self.get_submodule(self.ffn_name)(x), self.layer_scale_2)

    def reparameterized(self) -> AttentionBlock:
        """Fold the BatchNorm into the joint projection and both layer scales into their branch."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.token_mixer.replace(joint=fuse_into_next(self.norm, self.token_mixer.joint))
            self.norm = nn.Identity()
        if self.layer_scale_1 is not None:
            scale = factor(self.layer_scale_1)
            self.token_mixer.replace(output=scale_outputs(self.token_mixer.output, scale))
            self.layer_scale_1 = None
        _fold_scale(self, "layer_scale_2", self.ffn_name)
        return self


def _fold_scale(block: nn.Module, scale: str, ffn: str) -> None:
    held = getattr(block, scale)
    if held is not None:
        network = block.get_submodule(ffn)
        assert isinstance(network, ConvFFN)
        network.fc2 = scale_outputs(network.fc2, factor(held))
        setattr(block, scale, None)
