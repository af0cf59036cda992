"""Pre-norm transformer blocks, (B, N, dim) -> (B, N, dim), under the names of three code bases."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from vitlet.layers.attention import SelfAttention
from vitlet.layers.in_projection_attention import InProjectionAttention


class Mlp(nn.Module):
    """Linear, GELU, linear on each token.

    Args:
        dim: width of a token.
        hidden: width between the layers.
        names: attribute names of the two layers.
    """

    def __init__(self, dim: int, hidden: int, *, names: tuple[str, str] = ("fc1", "fc2")) -> None:
        super().__init__()
        self.names = names
        self.add_module(names[0], nn.Linear(dim, hidden))
        self.add_module(names[1], nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, dim)."""
        first, second = (self.get_submodule(name) for name in self.names)
        out: Tensor = second(F.gelu(first(x)))
        return out


class TimmBlock(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)), with timm's names."""

    def __init__(self, dim: int, *, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = SelfAttention(dim, heads=heads)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (B, N, dim); `mask` (N, N) is added to the scores."""
        x = x + self.attn(self.norm1(x), mask)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class OpenClipBlock(nn.Module):
    """The same with open_clip's names."""

    def __init__(self, dim: int, *, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim, eps=eps)
        self.attn = InProjectionAttention(dim, heads=heads)
        self.ln_2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, hidden, names=("c_fc", "c_proj"))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (B, N, dim); `mask` (N, N) is added to the scores."""
        x = x + self.attn(self.ln_1(x), mask)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class AppleBlock(nn.Module):
    """The same with the names of Apple's MobileCLIP."""

    def __init__(self, dim: int, *, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        attention = SelfAttention(dim, heads=heads, names=("qkv_proj", "out_proj"))
        self.pre_norm_mha = nn.Sequential(nn.LayerNorm(dim, eps=eps), attention)
        self.pre_norm_ffn = nn.Sequential(
            nn.LayerNorm(dim, eps=eps),
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Identity(),  # upstream's dropout: it keeps the number of the next layer
            nn.Linear(hidden, dim),
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (B, N, dim); `mask` (N, N) is added to the scores."""
        norm, attention = self.pre_norm_mha
        x = x + attention(norm(x), mask)
        out: Tensor = x + self.pre_norm_ffn(x)
        return out
