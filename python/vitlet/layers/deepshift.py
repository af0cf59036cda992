"""DeepShift's linear layers in the form of its checkpoints: exponents and signs as parameters.

DeepShift (Elhoushi et al., 2021, https://arxiv.org/abs/1905.13298), as ShiftAddViT uses it: 15
octaves, ternary signs, activations and bias in 16.16 fixed point. `vitlet.layers.ShiftLinear` is
the form to train and deploy; `to_shift_linear` turns one into the other.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitlet.layers.shift_linear import ShiftLinear

LEAST_SHIFT = -14  # of the parameters; a weight rounded on the fly goes one octave lower
_STEP = 2.0**16
_LIMIT = 2.0**15


def fixed_point(x: Tensor) -> Tensor:
    """Round down to multiples of 2^-16 between -2^15 and 2^15 - 1; gradients pass as they are."""
    return _through(x, (x * _STEP).floor().div(_STEP).clamp(-_LIMIT, _LIMIT - 1))


def round_to_power(weight: Tensor) -> Tensor:
    """Return the nearest signed powers of two from 2^-15 to 1 (DeepShift-Q); zero stays zero.

    Nearest is meant in the exponent, computed in float32, halves to the even one.
    """
    size = weight.abs().clamp(2.0 ** (LEAST_SHIFT - 1), 1.0)
    exponent = torch.round(torch.log(size) / math.log(2))
    return torch.exp2(exponent) * weight.sign()


class DeepShiftLinear(nn.Module):
    """x' @ weight'.T + bias' for (..., K): weight' = 2^round(shift) * sign(round(sign)).

    Gradients: rounding, sign and clamping pass them on; that of the sign is not scaled by the
    power, as in DeepShift-PS.

    Args:
        dim: K.
        out_dim: N.
        bias: add one.
        fixed: round x and bias to 16.16 fixed point, as upstream does.
    """

    def __init__(self, dim: int, out_dim: int, bias: bool = True, *, fixed: bool = True) -> None:
        super().__init__()
        self.fixed = fixed
        self.shift = nn.Parameter(torch.empty(out_dim, dim).uniform_(LEAST_SHIFT, 0))
        self.sign = nn.Parameter(torch.empty(out_dim, dim).uniform_(-1, 1))
        self.bias = nn.Parameter(torch.zeros(out_dim)) if bias else None

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, fixed: bool = True) -> DeepShiftLinear:
        """Return a layer whose weights are those of `linear`, each rounded to a power of two."""
        bias = linear.bias is not None
        layer = cls(linear.in_features, linear.out_features, bias, fixed=fixed)
        size = linear.weight.detach().abs().clamp(2.0**LEAST_SHIFT, 1.0)
        with torch.no_grad():
            layer.shift.copy_(torch.round(torch.log2(size)))
            layer.sign.copy_(linear.weight.sign())
            if layer.bias is not None:
                layer.bias.copy_(linear.bias)
        return layer

    def powers(self) -> Tensor:
        """Return weight', (N, K)."""
        shift = _through(self.shift, self.shift.clamp(LEAST_SHIFT, 0).round())
        sign = _through(self.sign, self.sign.round().sign())
        product: Tensor = _Product.apply(torch.exp2(shift), sign)  # type: ignore[no-untyped-call]
        return product

    def forward(self, x: Tensor) -> Tensor:
        """Multiply (..., K)."""
        bias: Tensor | None = self.bias
        if self.fixed:
            x, bias = fixed_point(x), None if bias is None else fixed_point(bias)
        return F.linear(x, self.powers(), bias)

    def to_shift_linear(self) -> ShiftLinear:
        """Return the layer with 15 octaves that computes with the same weights, for deployment."""
        outputs, inputs = self.shift.shape
        layer = ShiftLinear(inputs, outputs, bias=self.bias is not None, wide=True)
        with torch.no_grad():
            layer.weight.copy_(self.powers())
            if self.bias is not None:
                layer.bias.copy_(self.bias)
        return layer


def _through(smooth: Tensor, hard: Tensor) -> Tensor:
    """Return `hard`, to the bit, with the gradient of `smooth`."""
    out: Tensor = _Through.apply(smooth, hard)  # type: ignore[no-untyped-call]
    return out


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx, smooth, hard):  # type: ignore[no-untyped-def]
        return hard.clone()

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad, None


class _Product(torch.autograd.Function):
    """power * sign, whose gradient for the sign leaves the power out."""

    @staticmethod
    def forward(ctx, power, sign):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(sign)
        return power * sign

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (sign,) = ctx.saved_tensors
        return grad * sign, grad
