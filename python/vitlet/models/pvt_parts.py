"""What both versions of the pyramid vision transformer are made of: projections and attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

from torch import Tensor, nn

from vitlet.errors import UsageError
from vitlet.layers.attention import SelfAttention
from vitlet.layers.kernel_hash_attention import KernelHashAttention
from vitlet.layers.linear_angular_attention import LinearAngularAttention
from vitlet.layers.mixture_linear import MixtureLinear
from vitlet.layers.spatial_reduction_attention import SpatialReductionAttention

AttentionName = Literal[
    "softmax", "spatial_reduction", "linear_angular", "binary", "binary_batch", "ksh"
]
_CODES = {"linear_angular": "none", "binary": "calibrated", "binary_batch": "batch"}


def check_attention(name: str) -> None:
    """Refuse an attention that there is not.

    Raises:
        UsageError: naming those that there are.
    """
    if name not in get_args(AttentionName):
        raise UsageError(
            f"attention must be one of {', '.join(get_args(AttentionName))}, got {name!r}"
        )


def projection(mixture: bool) -> Callable[[int, int], nn.Module]:
    """Return what builds a linear layer: torch's, or ShiftAddViT's released mixture."""
    return partial(MixtureLinear, upstream=True) if mixture else nn.Linear


def build_attention(
    name: str, dim: int, *, heads: int, reduction: int, last: bool, mixture: bool
) -> nn.Module:
    """Build a stage's attention.

    Args:
        name: of the model's attention.
        dim: width of a token.
        heads: divides `dim`.
        reduction: of a "spatial_reduction".
        last: the last stage, which keeps softmax attention and dense projections.
        mixture: mixtures in place of the projections.
    """
    if name == "spatial_reduction":
        linear = projection(mixture)
        return SpatialReductionAttention(dim, heads=heads, reduction=reduction, linear=linear)
    if last or name == "softmax":
        return SelfAttention(dim, heads=heads)
    if name == "ksh":
        return KernelHashAttention(dim, heads=heads, linear=projection(mixture))
    return LinearAngularAttention(
        dim,
        heads=heads,
        codes=_CODES[name],  # type: ignore[arg-type]
        linear=projection(mixture),
    )


def attend(attention: nn.Module, x: Tensor, size: tuple[int, int]) -> Tensor:
    """Run an attention on the tokens of an (H, W) map."""
    if isinstance(attention, SpatialReductionAttention):
        out: Tensor = attention(x, size)
    else:
        out = attention(x)
    return out


def initialize(module: nn.Module) -> None:
    """Draw a layer's weights as PVT does."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
        nn.init.normal_(module.weight, std=(2.0 * module.groups / fan_out) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
