"""MobileCLIP and MobileCLIP2: an image and a text encoder with one embedding space.

MobileCLIP (Vasu et al., 2024, arXiv 2311.17049), MobileCLIP2 (Faghri et al., 2025, arXiv
2508.20691). Parameter names are those of the published checkpoints: Apple's `.pt` files for the
first, open_clip's for the second.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitlet.errors import ShapeError, UsageError
from vitlet.models.mci import SIZES, AppleMCi, TimmMCi
from vitlet.models.mobileclip_text import AppleText, OpenClipText
from vitlet.models.mobileclip_vit import AppleViT, TimmViT

_SMALLEST_IMAGE = 32


class ImageEncoder(nn.Module):
    """Holds the image network under Apple's name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Embed images (B, C, H, W) as (B, D), not normalized."""
        out: Tensor = self.model(x)
        return out


class Visual(nn.Module):
    """Holds the image network under open_clip's name."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, x: Tensor) -> Tensor:
        """Embed images (B, C, H, W) as (B, D), not normalized."""
        out: Tensor = self.trunk(x)
        return out


class MobileCLIP(nn.Module):
    """An image and a text encoder, and the temperature that goes with them.

    Attributes:
        logit_scale: natural logarithm of the factor on cosines, a scalar.
        largest_scale: upper limit of that factor.
    """

    def __init__(
        self,
        image: nn.Module,
        text: nn.Module,
        *,
        layout: Literal["apple", "open_clip"],
        in_chans: int,
    ) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.in_chans = in_chans
        apple = layout == "apple"
        # Apple's code limits the scale when it is used, open_clip's only while training.
        self.largest_scale = 100.0 if apple else math.inf
        self._image, self._text = ("image_encoder", "text_encoder") if apple else ("visual", "text")
        self.add_module(self._image, ImageEncoder(image) if apple else Visual(image))
        self.add_module(self._text, text)

    @property
    def image_tower(self) -> nn.Module:
        """Images (B, C, H, W) -> (B, D), not normalized."""
        return self.get_submodule(self._image)

    @property
    def text_tower(self) -> nn.Module:
        """Tokens (B, 77) -> (B, D), not normalized."""
        return self.get_submodule(self._text)

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Embed images.

        Args:
            image: (B, C, H, W), preprocessed.
            normalize: make each row unit length.

        Returns:
            (B, D).
        """
        if image.ndim != 4 or image.shape[1] != self.in_chans:
            raise ShapeError(
                f"expected images (batch, {self.in_chans}, height, width), got {tuple(image.shape)}"
            )
        features: Tensor = self.image_tower(image)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """Embed texts.

        Args:
            tokens: (B, 77) integers, as `vitlet.tokenize` gives them.
            normalize: make each row unit length.

        Returns:
            (B, D).
        """
        features: Tensor = self.text_tower(tokens)
        return F.normalize(features, dim=-1) if normalize else features

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return unit-length (B, D) image and (C, D) text embeddings and the factor on cosines."""
        scale = self.logit_scale.exp().clamp(max=self.largest_scale)
        return self.encode_image(image, True), self.encode_text(text, True), scale


def _image_encoder(
    name: str, layout: str, embed_dim: int, img_size: int, in_chans: int, merged: bool
) -> nn.Module:
    if name in SIZES:
        if img_size < _SMALLEST_IMAGE:
            raise UsageError(f"img_size must be {_SMALLEST_IMAGE} or more, got {img_size}")
        mci = AppleMCi if layout == "apple" else TimmMCi
        return mci(name, embed_dim=embed_dim, in_chans=in_chans, merged=merged)
    if name == "vit_b16" and layout == "apple":
        return AppleViT(embed_dim=embed_dim, img_size=img_size, in_chans=in_chans)
    large = {"dim": 1024, "depth": 24, "heads": 16, "patch": 14}
    base = {"dim": 768, "depth": 12, "heads": 12, "patch": 16}
    return TimmViT(
        **(large if name == "vit_l14" else base),
        conv_stem=name != "vit_l14",
        pre_norm=name == "vit_l14",
        eps=1e-5 if name == "vit_l14" else 1e-6,
        embed_dim=embed_dim,
        img_size=img_size,
        in_chans=in_chans,
    )


def mobileclip(
    *,
    image: Literal["mci0", "mci1", "mci2", "mci3", "mci4", "vit_b16", "vit_l14"],
    layout: Literal["apple", "open_clip"],
    embed_dim: int = 512,
    text_width: int = 512,
    text_heads: int = 8,
    text_layers: int = 12,
    text_mixers: bool = False,
    causal: bool = False,
    img_size: int = 256,
    in_chans: int = 3,
    merged: bool = False,
) -> MobileCLIP:
    """Build a MobileCLIP or MobileCLIP2 model.

    Args:
        image: the image network.
        layout: whose parameter names and details: "apple" (first version) or "open_clip" (second).
        embed_dim: width of the shared embedding.
        text_width: width of the text network.
        text_heads: attention heads of the text network.
        text_layers: transformer blocks of the text network.
        text_mixers: convolutional mixer blocks around them ("apple" only).
        causal: the text network's tokens see only what comes before them.
        img_size: height and width of the image, in pixels.
        in_chans: channels of the image.
        merged: build the form that upstream saves after merging the branches.

    Raises:
        UsageError: a size that the image network cannot take.
    """
    image_net = _image_encoder(image, layout, embed_dim, img_size, in_chans, merged)
    text = {
        "embed_dim": embed_dim,
        "width": text_width,
        "heads": text_heads,
        "layers": text_layers,
        "causal": causal,
    }
    text_net: nn.Module
    if layout == "apple":
        text_net = AppleText(**text, mixers=text_mixers, merged=merged)  # type: ignore[arg-type]
    else:
        text_net = OpenClipText(**text)  # type: ignore[arg-type]
    model = MobileCLIP(image_net, text_net, layout=layout, in_chans=in_chans)
    model.apply(_initialize)
    return model


def _initialize(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
