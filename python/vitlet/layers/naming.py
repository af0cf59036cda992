"""The two sets of names under which MobileCLIP's published checkpoints store the same layers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Naming:
    """Attribute names, hence state-dict keys, of the convolutional blocks.

    Attributes:
        conv: list of k x k branches of a MobileOne block.
        scale: its 1x1 branch.
        skip: its BatchNorm-only branch.
        large: large-kernel branch of a large-kernel block.
        large_merged: the one convolution of an upstream-merged large-kernel block.
        ffn: feed-forward part of a block.
        position: convolution of the positional encoding.
        gate_in: first convolution of the squeeze-excite gate in the last convolution.
        gate_out: its second convolution.
        scale_module: whether a layer scale is a module holding `gamma`, or a bare parameter.
    """

    conv: str
    scale: str
    skip: str
    large: str
    large_merged: str
    ffn: str
    position: str
    gate_in: str
    gate_out: str
    scale_module: bool


APPLE = Naming(
    conv="rbr_conv",
    scale="rbr_scale",
    skip="rbr_skip",
    large="lkb_origin",
    large_merged="lkb_reparam",
    ffn="convffn",
    position="pe",
    gate_in="reduce",
    gate_out="expand",
    scale_module=False,
)
TIMM = Naming(
    conv="conv_kxk",
    scale="conv_scale",
    skip="identity",
    large="large_conv",
    large_merged="reparam_conv",
    ffn="mlp",
    position="pos_enc",
    gate_in="fc1",
    gate_out="fc2",
    scale_module=True,
)
