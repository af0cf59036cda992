"""Shift layers and binary attention in torch's own operators, for targets that know no others.

The weights are the rounded ones and the tokens are rounded as the kernels round them, so the
function stays the same; nothing is gained in speed.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn import functional as F

from vitlet.layers.kernel_hash_attention import KernelHashAttention
from vitlet.layers.linear_angular_attention import LinearAngularAttention
from vitlet.layers.shift_linear import ShiftLinear
from vitlet.ops.torch_attention import attention_in_torch
from vitlet.ops.torch_linear import round_shift


class SpelledShiftLinear(nn.Module):
    """`ShiftLinear` as a linear layer of powers of two on rounded tokens: (..., K) -> (..., N)."""

    def __init__(self, layer: ShiftLinear) -> None:
        super().__init__()
        weight = round_shift(layer.weight.detach(), layer.wide)
        self.linear = nn.Linear(weight.shape[1], weight.shape[0], layer.bias is not None)
        self.linear.weight.data = weight
        if layer.bias is not None:
            self.linear.bias.data = layer.bias.detach()
        self.activation = layer.activation

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        most = x.abs().amax(-1, keepdim=True)
        step = (most + (most == 0)) / 127.0  # a row of zeros stays one
        out: Tensor = self.linear((x / step).round() * step)
        return F.gelu(out) if self.activation == "gelu" else out


class SpelledBinaryAttention(nn.Module):
    """Either kind of attention over bits, as matrix products: (B, N, dim) -> same."""

    def __init__(self, layer: LinearAngularAttention | KernelHashAttention) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens."""
        q, k, v, q_level, k_level = self.layer.operands(x)
        q, k = _bits(q, q_level), _bits(k, k_level)
        mixed = attention_in_torch(q, k, v, self.layer.taps)
        out: Tensor = self.layer.proj(mixed.transpose(1, 2).reshape(x.shape))
        return out


def _bits(x: Tensor, level: Tensor | None) -> Tensor:
    return (x > (0.0 if level is None else level[:, None, None])).to(x.dtype)


def rounds_tokens(module: nn.Module) -> bool:
    """Tell whether layers of a model round their tokens to 8 bits or to one."""
    return spell_out(module) is not module


def spell_out(module: nn.Module) -> nn.Module:
    """Return a copy in which no layer needs an operator of vitlet's.

    The copy shares every other parameter. Where there is no such layer, `module` itself is
    returned.
    """
    if isinstance(module, ShiftLinear):
        return SpelledShiftLinear(module).eval()
    binary = isinstance(module, KernelHashAttention) or (
        isinstance(module, LinearAngularAttention) and module.codes != "none"
    )
    spelled = {name: spell_out(child) for name, child in module.named_children()}
    if not binary and all(child is getattr(module, name) for name, child in spelled.items()):
        return module
    outer = copy.copy(module)
    outer._modules = {**module._modules, **spelled}
    if binary:
        return SpelledBinaryAttention(outer).eval()  # type: ignore[arg-type]
    return outer
