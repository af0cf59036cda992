"""Shift and 8-bit linear layers in torch: `torch.ops.vitlet.shift_linear` and `int8_linear`.

Importing this module registers them. Both take a plain float weight, which they round at every
call, so that it can be trained: rounding passes gradients on as they are, as in DeepShift
(https://arxiv.org/abs/1905.13298) and ShiftAddViT (https://arxiv.org/abs/2306.06446). To run a
weight that no longer changes, pack it once and call `vitlet.ops.shift_linear`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitlet import ops
from vitlet.errors import ShapeError, UsageError
from vitlet.ops.torch_checks import check_floats, check_shape, require_cpu, straight_through

__all__ = ["int8_linear", "round_int8", "round_shift", "round_tokens", "shift_linear"]

ACTIVATIONS = ("none", "gelu")


@torch.library.custom_op("vitlet::shift_linear", mutates_args=())
def shift_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    wide: bool = False,
    activation: str = "none",
) -> Tensor:
    """Multiply by a weight rounded to signed powers of two: ``activation(x @ weight.T + bias)``.

    In float32 the kernel of `vitlet.ops.shift_linear`, in float64 torch's operators over the same
    rounded numbers. Each row of x is rounded to 8 bits by itself.

    The gradients are those of ``activation(x' @ weight'.T + bias)`` at the rounded x' and weight',
    passed through both roundings unchanged: exact for the bias, straight-through for the others.

    Args:
        x: float32 or float64 (..., K).
        weight: (N, K), finite; rounded as `vitlet.ops.pack_shift_weight` does.
        bias: (N,).
        wide: 15 octaves instead of 7.
        activation: "gelu" (the one with erf) or "none".

    Returns:
        (..., N) of x's dtype. A row of x that holds an infinity or a NaN gives NaN.

    Raises:
        ShapeError: shapes, dtypes or devices do not fit.
        UsageError: the weight is not finite, or there is no such activation.
    """
    _check("shift_linear", x, weight, bias, activation)
    require_cpu("shift_linear", x)
    if x.dtype == torch.float64:
        return _in_torch(x, _checked_finite("shift_linear", weight), bias, wide, activation)
    choice: Any = activation
    out = ops.shift_linear(
        x.detach().numpy(),
        ops.pack_shift_weight(weight.detach().numpy(), wide),
        None if bias is None else bias.detach().numpy(),
        activation=choice,
        threads=torch.get_num_threads(),
    )
    return torch.from_numpy(out)


@torch.library.custom_op("vitlet::int8_linear", mutates_args=())
def int8_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """Multiply by a weight rounded to 8 bits per output channel.

    As `shift_linear`, with the rounding of `vitlet.ops.pack_int8_weight`.
    """
    _check("int8_linear", x, weight, bias, activation)
    require_cpu("int8_linear", x)
    if x.dtype == torch.float64:
        return _in_torch(x, _checked_finite("int8_linear", weight), bias, None, activation)
    choice: Any = activation
    out = ops.int8_linear(
        x.detach().numpy(),
        ops.pack_int8_weight(weight.detach().numpy()),
        None if bias is None else bias.detach().numpy(),
        activation=choice,
        threads=torch.get_num_threads(),
    )
    return torch.from_numpy(out)


def round_tokens(x: Tensor) -> Tensor:
    """Round each row of (..., K) to 8 bits as the kernels do, in steps of ``max |x| / 127``."""
    if x.shape[-1] == 0:
        return x
    most = x.abs().amax(-1, keepdim=True)
    inverse = 127.0 / torch.where(most >= 2.0**-100, most, torch.inf)
    return torch.round(x * inverse) * (most / 127.0)


def round_shift(weight: Tensor, wide: bool = False) -> Tensor:
    """Round (N, K) to signed powers of two: ``pack_shift_weight(weight, wide).dequantize()``."""
    if weight.numel() == 0:
        return weight
    octaves = 15 if wide else 7
    size = weight.double().abs()
    mantissa, exponent = torch.frexp(size)
    exponent = exponent - (mantissa < math.sqrt(0.5)).int()  # round(log2(size))
    top = torch.where(size > 0, exponent, -120).amax(1, keepdim=True).clamp(min=-120)
    power = _power_of_two(torch.maximum(exponent, top - octaves + 1))
    kept = (size > 0) & (size >= _power_of_two(top - octaves))
    return torch.where(kept, power * weight.sign(), 0).to(weight.dtype)


def round_int8(weight: Tensor) -> Tensor:
    """Round (N, K) to 8 bits for each row: ``pack_int8_weight(weight).dequantize()``."""
    if weight.numel() == 0:
        return weight
    values = weight.double()
    scale = (values.abs().amax(1, keepdim=True) / 127).float()
    divisor = torch.where(scale > 0, scale, 1).double()
    return ((values / divisor).round().clamp(-127, 127) * scale).to(weight.dtype)


def _power_of_two(exponent: Tensor) -> Tensor:
    """Return 2^exponent in float64, exactly; pow and exp2 may be off by a bit."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)


def _rounded(weight: Tensor, wide: bool | None) -> Tensor:
    return round_int8(weight) if wide is None else round_shift(weight, wide)


def _in_torch(
    x: Tensor, weight: Tensor, bias: Tensor | None, wide: bool | None, activation: str
) -> Tensor:
    out = F.linear(round_tokens(x), _rounded(weight, wide), bias)
    return F.gelu(out) if activation == "gelu" else out


def _check(op: str, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise UsageError(f"[{op}] expected activation none or gelu, got {activation!r}")
    check_floats(op, x=x, weight=weight, bias=bias)
    if weight.ndim != 2:
        raise ShapeError(f"[{op}] expected weight of shape (N, K), got {tuple(weight.shape)}")
    outputs, inputs = weight.shape
    if x.ndim == 0 or x.shape[-1] != inputs:
        raise ShapeError(f"[{op}] expected x of shape (..., {inputs}), got {tuple(x.shape)}")
    check_shape(op, "bias", bias, (outputs,))


def _checked_finite(op: str, weight: Tensor) -> Tensor:
    if not bool(weight.isfinite().all()):
        raise UsageError(f"[{op}] expected finite weights, got an infinity or a NaN")
    return weight


def _shift_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    wide: bool = False,
    activation: str = "none",
) -> Tensor:
    _check("shift_linear", x, weight, bias, activation)
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _int8_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    _check("int8_linear", x, weight, bias, activation)
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *options = inputs
    ctx.save_for_backward(x, weight, bias)
    ctx.wide = options[0] if len(options) == 2 else None
    ctx.activation = options[-1]


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    x = straight_through(x, round_tokens(x))
    weight = straight_through(weight, _rounded(weight, ctx.wide))
    if ctx.activation == "gelu":
        grad = torch.ops.aten.gelu_backward(grad, F.linear(x, weight, bias))
    rows = math.prod(x.shape[:-1])
    by_row = grad.reshape(rows, weight.shape[0])
    return (
        grad @ weight if ctx.needs_input_grad[0] else None,
        by_row.T @ x.reshape(rows, weight.shape[1]) if ctx.needs_input_grad[1] else None,
        by_row.sum(0) if bias is not None and ctx.needs_input_grad[2] else None,
    )


def _shift_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*_gradients(ctx, grad), None, None)


def _int8_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*_gradients(ctx, grad), None)


shift_linear.register_fake(_shift_fake)
shift_linear.register_autograd(_shift_backward, setup_context=_keep)
int8_linear.register_fake(_int8_fake)
int8_linear.register_autograd(_int8_backward, setup_context=_keep)
