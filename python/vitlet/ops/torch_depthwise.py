"""`depthwise_conv2d` in torch, as `torch.ops.vitlet.depthwise_conv2d`.

Importing this module registers it. Maps are (B, C, H, W), as torch has them; one whose memory is in
channels-last order is convolved and returned in that order, without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitlet.errors import ShapeError, UsageError

__all__ = ["depthwise_conv2d", "depthwise_in_torch"]

ACTIVATIONS = ("none", "gelu", "relu", "silu")


def depthwise_in_torch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: Sequence[int],
    activation: str = "none",
) -> Tensor:
    """Compute `depthwise_conv2d` by torch's own operators."""
    top, left, bottom, right = (*padding, *padding)[:4]
    if (top, left) == (bottom, right):
        y = F.conv2d(x, weight, bias, stride, (top, left), groups=x.shape[1])
    else:
        padded = F.pad(x, (left, right, top, bottom))
        y = F.conv2d(padded, weight, bias, stride, groups=x.shape[1])
    if activation == "gelu":
        return F.gelu(y)
    if activation == "silu":
        return F.silu(y)
    return y.relu() if activation == "relu" else y


@torch.library.custom_op("vitlet::depthwise_conv2d", mutates_args=(), device_types="cpu")
def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: Sequence[int],
    activation: str = "none",
) -> Tensor:
    """Convolve every channel by itself, add a bias and apply an activation.

    Args:
        x: (B, C, H, W) float32; float64 is computed by torch's operators.
        weight: (C * m, 1, kh, kw) of x's dtype; output channel o reads channel o // m.
        bias: (C * m,).
        stride: of both directions.
        padding: zeros around x, (vertical, horizontal) or (top, left, bottom, right).
        activation: "none", "gelu" (the one with erf), "relu" or "silu".

    Returns:
        (B, C * m, H', W') of x's dtype, in x's memory order.
    """
    _check(x, weight, bias, stride, padding, activation)
    if x.dtype != torch.float32:
        y = depthwise_in_torch(x, weight, bias, stride, padding, activation)
        return y.contiguous(memory_format=_order(x))
    return _in_kernel(x, weight, bias, stride, padding, activation)


def _in_kernel(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: Sequence[int],
    activation: Any,
) -> Tensor:
    from vitlet.ops.depthwise_conv2d import depthwise_conv2d as convolve
    from vitlet.ops.depthwise_conv2d import pack_depthwise_weight

    packed = pack_depthwise_weight(
        weight.detach().numpy(), None if bias is None else bias.detach().numpy()
    )
    last = _order(x) == torch.channels_last
    y = convolve(
        (x.permute(0, 2, 3, 1) if last else x).detach().numpy(),
        packed,
        stride=stride,
        padding=tuple(padding),
        activation=activation,
        layout="nhwc" if last else "nchw",
        threads=torch.get_num_threads(),
    )
    return torch.from_numpy(y).permute(0, 3, 1, 2) if last else torch.from_numpy(y)


def _order(x: Tensor) -> torch.memory_format:
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: Sequence[int],
    activation: str,
) -> None:
    op = "[depthwise_conv2d]"
    if activation not in ACTIVATIONS:
        raise UsageError(f"{op} expected activation {' or '.join(ACTIVATIONS)}, got {activation!r}")
    if stride < 1 or len(padding) not in (2, 4) or min(padding) < 0:
        raise UsageError(
            f"{op} expected a stride of at least 1 and padding (vertical, horizontal) or (top, "
            f"left, bottom, right), got {stride} and {tuple(padding)}"
        )
    if x.ndim != 4 or x.shape[1] == 0:
        raise ShapeError(f"{op} expected x (B, C, H, W) with C >= 1, got {tuple(x.shape)}")
    if (
        weight.ndim != 4
        or weight.shape[0] == 0
        or weight.shape[0] % x.shape[1] != 0
        or weight.shape[1] != 1
        or weight.dtype != x.dtype
    ):
        raise ShapeError(
            f"{op} expected weight as {x.dtype} ({x.shape[1]} * m, 1, kh, kw), "
            f"got {weight.dtype} {tuple(weight.shape)}"
        )
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != x.dtype):
        raise ShapeError(
            f"{op} expected bias as {x.dtype} ({weight.shape[0]},), "
            f"got {bias.dtype} {tuple(bias.shape)}"
        )


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: Sequence[int],
    activation: str = "none",
) -> Tensor:
    _check(x, weight, bias, stride, padding, activation)
    top, left, bottom, right = (*padding, *padding)[:4]
    height = (x.shape[2] + top + bottom - weight.shape[2]) // stride + 1
    width = (x.shape[3] + left + right - weight.shape[3]) // stride + 1
    y = x.new_empty((x.shape[0], weight.shape[0], height, width))
    return y.to(memory_format=_order(x))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.stride, ctx.padding, ctx.activation = inputs
    ctx.save_for_backward(x, weight, bias)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate torch's own operators at the same place."""
    with torch.enable_grad():
        given = [None if t is None else t.detach().requires_grad_() for t in ctx.saved_tensors]
        x, weight, bias = given
        assert x is not None
        assert weight is not None
        y = depthwise_in_torch(x, weight, bias, ctx.stride, ctx.padding, ctx.activation)
        wanted = [t for t in given if t is not None]
        grads = list(torch.autograd.grad(y, wanted, grad))
    if bias is None:
        grads.append(None)  # type: ignore[arg-type]
    return (*grads, None, None, None)


depthwise_conv2d.register_fake(_fake)
depthwise_conv2d.register_autograd(_backward, setup_context=_keep)
