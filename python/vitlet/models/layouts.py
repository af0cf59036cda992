"""MobileCLIP checkpoints come under two sets of names: Apple's and open_clip's (with timm's).

One table of renamings, from Apple's names, serves both directions: going back looks the names up
that a model wants. open_clip's image head also has a bias, which is zero in a converted first
version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from vitlet.errors import CheckpointError

APPLE_PREFIXES = ("image_encoder.", "text_encoder.")
OPEN_CLIP_PREFIXES = ("visual.", "text.")
HEAD_BIASES = ("visual.trunk.head.fc.bias", "visual.trunk.head.bias")

_MIXED = (  # inside the convolutional blocks of images and texts
    (r"\.rbr_conv\.", ".conv_kxk."),
    (r"\.rbr_scale\.", ".conv_scale."),
    (r"\.rbr_skip\.", ".identity."),
    (r"\.lkb_origin\.", ".large_conv."),
    (r"\.lkb_reparam\.", ".reparam_conv."),
    (r"\.convffn\.", ".mlp."),
    (r"\.(layer_scale(_\d)?)$", r".\1.gamma"),
)
_BLOCK = (  # inside the transformer blocks of ViT-B (the texts' differ, below)
    (r"\.pre_norm_mha\.0\.", ".norm1."),
    (r"\.pre_norm_mha\.1\.qkv_proj\.", ".attn.qkv."),
    (r"\.pre_norm_mha\.1\.out_proj\.", ".attn.proj."),
    (r"\.pre_norm_ffn\.0\.", ".norm2."),
    (r"\.pre_norm_ffn\.1\.", ".mlp.fc1."),
    (r"\.pre_norm_ffn\.4\.", ".mlp.fc2."),
)
_IMAGE = (
    (r"^image_encoder\.model\.", "visual.trunk."),
    # MCi: Apple's flat list 0, 2, 4, 7 holds the stages, 1, 3, 5 the reductions, 6 the positions.
    (r"\.patch_embed\.(\d)\.", r".stem.\1."),
    (r"\.network\.0\.", ".stages.0.blocks."),
    (r"\.network\.2\.", ".stages.1.blocks."),
    (r"\.network\.4\.", ".stages.2.blocks."),
    (r"\.network\.7\.", ".stages.3.blocks."),
    (r"\.network\.1\.", ".stages.1.downsample."),
    (r"\.network\.3\.", ".stages.2.downsample."),
    (r"\.network\.5\.", ".stages.3.downsample."),
    (r"\.network\.6\.pe\.", ".stages.3.pos_emb.pos_enc."),
    (r"\.network\.6\.", ".stages.3.pos_emb."),
    (r"\.conv_exp\.", ".final_conv."),
    (r"\.se\.reduce\.", ".se.fc1."),
    (r"\.se\.expand\.", ".se.fc2."),
    (r"\.head\.proj$", ".head.fc.weight"),
    # ViT-B
    (r"\.patch_emb\.(\d)\.block\.conv\.", r".patch_embed.backbone.\1.conv."),
    (r"\.patch_emb\.(\d)\.block\.norm\.", r".patch_embed.backbone.\1.bn."),
    (r"\.pos_embed\.pos_embed\.pos_embed$", ".pos_embed"),
    (r"\.transformer\.(\d+)\.", r".blocks.\1."),
    (r"\.post_transformer_norm\.", ".norm."),
    (r"\.classifier\.proj$", ".head.weight"),
    *_BLOCK,
    *_MIXED,
)
_TEXT = (
    (r"^text_encoder\.", "text."),
    (r"\.embedding_layer\.", ".token_embedding."),
    (r"\.positional_embedding\.pos_embed\.pos_embed$", ".positional_embedding"),
    (r"\.projection_layer$", ".text_projection"),
    (r"\.final_layer_norm\.", ".ln_final."),
    (r"\.transformer\.(\d+)\.", r".transformer.resblocks.\1."),
    (r"\.pre_norm_mha\.0\.", ".ln_1."),
    (r"\.pre_norm_mha\.1\.qkv_proj\.", ".attn.in_proj_"),
    (r"\.pre_norm_mha\.1\.out_proj\.", ".attn.out_proj."),
    (r"\.pre_norm_ffn\.0\.", ".ln_2."),
    (r"\.pre_norm_ffn\.1\.", ".mlp.c_fc."),
    (r"\.pre_norm_ffn\.4\.", ".mlp.c_proj."),
    *_MIXED,
)
_IMAGE_RULES, _TEXT_RULES = (
    tuple((re.compile(old), new) for old, new in rules) for rules in (_IMAGE, _TEXT)
)


@dataclass(frozen=True)
class Renamed:
    """One of Apple's tensors in open_clip's layout.

    Attributes:
        key: its name there.
        transposed: whether its two dimensions change places.
        leading: how many leading dimensions of size 1 it has there fewer.
    """

    key: str
    transposed: bool = False
    leading: int = 0

    def to_open_clip(self, tensor: Tensor) -> Tensor:
        """Convert Apple's tensor; one of an unexpected rank is left for the shape check."""
        if self.transposed and tensor.ndim == 2:
            return tensor.T
        for _ in range(self.leading):
            tensor = tensor.squeeze(0)
        return tensor

    def to_apple(self, tensor: Tensor) -> Tensor:
        """Convert open_clip's tensor."""
        if self.transposed and tensor.ndim == 2:
            return tensor.T
        for _ in range(self.leading):
            tensor = tensor.unsqueeze(0)
        return tensor


@lru_cache(maxsize=16384)
def renamed(key: str) -> Renamed:
    """Return what one of Apple's names is called in open_clip's layout."""
    image = key.startswith("image_encoder.")
    new = key
    if image or key.startswith("text_encoder."):
        for pattern, replacement in _IMAGE_RULES if image else _TEXT_RULES:
            new = pattern.sub(replacement, new)
    leading = 0
    if key.endswith(".pos_embed.pos_embed"):
        leading = 1 if image else 2
    return Renamed(
        new, transposed=key.endswith((".head.proj", ".classifier.proj")), leading=leading
    )


def translate(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` under the names that a model wants; names of neither layout stay.

    Args:
        state: a checkpoint in either layout.
        wanted: the model's state dict, which shows its layout and its names.

    Raises:
        CheckpointError: a bias for which the first version's layout has no place.
    """
    if any(key.startswith(OPEN_CLIP_PREFIXES) for key in wanted):
        return _to_open_clip(state, wanted)
    if any(key.startswith(APPLE_PREFIXES) for key in wanted):
        return _to_apple(state, wanted)
    return dict(state)


def _to_open_clip(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    result = {}
    for key, tensor in state.items():
        new = renamed(key)
        result[new.key] = new.to_open_clip(tensor)
    if any(key.startswith("image_encoder.") for key in state):
        for bias in HEAD_BIASES:
            if bias in wanted and bias not in result:
                result[bias] = torch.zeros(wanted[bias].shape)
    return result


def _to_apple(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {renamed(key).key: (key, renamed(key)) for key in wanted}
    result = {}
    for key, tensor in state.items():
        if key.startswith(OPEN_CLIP_PREFIXES) and key in names:
            old, new = names[key]
            result[old] = new.to_apple(tensor)
        elif key in HEAD_BIASES:
            if tensor.is_meta or bool(torch.any(tensor != 0)):
                raise CheckpointError(
                    f"tensor {key!r} is not zero, and the first version of MobileCLIP has no such "
                    "bias: this is a checkpoint of MobileCLIP2 (mobileclip2_...)"
                )
        else:
            result[key] = tensor
    return result
