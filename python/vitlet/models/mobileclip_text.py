"""The text encoders of MobileCLIP and MobileCLIP2: tokens (B, 77) -> (B, embed_dim).

CLIP (Radford et al., 2021); MobileCLIP (Vasu et al., 2024). Padding (id 0) is never masked, so
always give all 77 tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitlet.errors import ShapeError
from vitlet.layers.learned_positions import LearnedPositions
from vitlet.layers.mixer_blocks import RepMixerBlock
from vitlet.layers.naming import APPLE
from vitlet.layers.transformer_block import AppleBlock, OpenClipBlock

CONTEXT = 77
VOCABULARY = 49408


def causal_mask(tokens: int) -> Tensor:
    """Return (N, N) with -inf above the diagonal and 0 elsewhere, to be added to scores."""
    return torch.full((tokens, tokens), float("-inf")).triu(1)


def _check_tokens(tokens: Tensor) -> None:
    if tokens.ndim != 2 or tokens.shape[1] != CONTEXT or tokens.is_floating_point():
        raise ShapeError(
            f"expected integer tokens of shape (batch, {CONTEXT}), got "
            f"{str(tokens.dtype).removeprefix('torch.')} {tuple(tokens.shape)}: use vitlet.tokenize"
        )


def _at_end(x: Tensor, tokens: Tensor) -> Tensor:
    """Return each row's vector at its end token, which has the highest id: (B, dim)."""
    rows = torch.arange(x.shape[0], device=x.device)
    return x[rows, tokens.argmax(dim=-1)]


class TextMixerBlock(RepMixerBlock):
    """A RepMixer block along the tokens, (B, N, dim) -> same: its map is one row high."""

    def __init__(self, dim: int, *, merged: bool = False) -> None:
        super().__init__(
            dim, 4 * dim, mixer_kernel=(1, 11), ffn_kernel=(1, 11), naming=APPLE, merged=merged
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, dim)."""
        mixed = super().forward(x.transpose(1, 2).unsqueeze(2))
        return mixed.squeeze(2).transpose(1, 2)


class AppleText(nn.Module):
    """Text encoder with Apple's names.

    Args:
        embed_dim: width of the embedding.
        width: width of a token.
        heads: attention heads.
        layers: number of transformer blocks.
        mixers: a convolutional mixer block before and after the transformer blocks.
        causal: tokens see only what comes before them.
        merged: build the form that upstream saves after merging the branches.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        width: int,
        heads: int,
        layers: int,
        mixers: bool,
        causal: bool,
        merged: bool = False,
    ) -> None:
        super().__init__()
        self.embedding_layer = nn.Embedding(VOCABULARY, width)
        self.positional_embedding = LearnedPositions(CONTEXT, width, std=0.01)
        blocks: list[nn.Module] = [
            AppleBlock(width, heads=heads, hidden=4 * width, eps=1e-5) for _ in range(layers)
        ]
        if mixers:
            first, last = (TextMixerBlock(width, merged=merged) for _ in range(2))
            blocks = [first, *blocks, last]
        self.transformer = nn.ModuleList(blocks)
        self.final_layer_norm = nn.LayerNorm(width, eps=1e-5)
        self.projection_layer = nn.Parameter(torch.randn(width, embed_dim) * width**-0.5)
        mask = causal_mask(CONTEXT) if causal else None
        self.register_buffer("attn_mask", mask, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed the texts."""
        _check_tokens(tokens)
        x = self.positional_embedding(self.embedding_layer(tokens))
        for block in self.transformer:
            x = block(x) if isinstance(block, TextMixerBlock) else block(x, self.attn_mask)
        # Normalizing a row does not depend on the others: only the one that is read is.
        out: Tensor = self.final_layer_norm(_at_end(x, tokens)) @ self.projection_layer
        return out


class _Resblocks(nn.Module):
    """open_clip's name for the list of blocks."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return (B, N, dim)."""
        for block in self.resblocks:
            x = block(x, mask)
        return x


class OpenClipText(nn.Module):
    """Text encoder with open_clip's names; arguments as in `AppleText`."""

    def __init__(
        self, *, embed_dim: int, width: int, heads: int, layers: int, causal: bool
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(VOCABULARY, width)
        self.positional_embedding = nn.Parameter(torch.randn(CONTEXT, width) * 0.01)
        self.transformer = _Resblocks(
            [OpenClipBlock(width, heads=heads, hidden=4 * width, eps=1e-5) for _ in range(layers)]
        )
        self.ln_final = nn.LayerNorm(width, eps=1e-5)
        self.text_projection = nn.Parameter(torch.randn(width, embed_dim) * width**-0.5)
        mask = causal_mask(CONTEXT) if causal else None
        self.register_buffer("attn_mask", mask, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed the texts."""
        _check_tokens(tokens)
        x = self.token_embedding(tokens) + self.positional_embedding
        mask = self.attn_mask
        assert mask is None or isinstance(mask, Tensor)
        x = self.transformer(x, mask)
        out: Tensor = self.ln_final(_at_end(x, tokens)) @ self.text_projection
        return out
