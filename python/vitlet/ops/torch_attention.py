"""Attention with binary queries and keys in torch, for training and export.

`torch.ops.vitlet.pack_bits` and `binary_linear_attention`; importing this module registers them.
https://arxiv.org/abs/2306.06446
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitlet import ops
from vitlet.errors import ShapeError
from vitlet.ops.torch_checks import check_floats, check_shape, require_cpu, straight_through

__all__ = [
    "attention_in_torch",
    "binary_linear_attention",
    "check_codes",
    "codes",
    "pack_bits",
    "packed_bits",
    "soft_codes",
    "through_codes",
]

MAX_BITS = 128
TAPS = 9


@torch.library.custom_op("vitlet::pack_bits", mutates_args=())
def pack_bits(x: Tensor, threshold: Tensor) -> Tensor:
    """Store for every number whether it is above its head's threshold. Not differentiable.

    Args:
        x: float32 or float64 (B, H, N, D) with D from 1 to 128. A NaN is above nothing.
        threshold: (H,) of the same dtype.

    Returns:
        int64 (B, H, N, ceil(D / 64)): bit i of a row is bit i % 64 of its word i // 64.

    Raises:
        ShapeError: shapes, dtypes or devices do not fit.
    """
    _check_bits("pack_bits", "x", x)
    check_floats("pack_bits", x=x, threshold=threshold)
    check_shape("pack_bits", "threshold", threshold, (x.shape[1],))
    require_cpu("pack_bits", x)
    if x.dtype == torch.float64:
        x, threshold = (x > threshold[:, None, None]).float(), torch.zeros(x.shape[1])
    return torch.from_numpy(packed_bits(x, threshold).words.view("int64"))


@torch.library.custom_op("vitlet::binary_linear_attention", mutates_args=())
def binary_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_threshold: Tensor | None = None,
    k_threshold: Tensor | None = None,
    taps: Tensor | None = None,
    signed: bool = False,
    exact: bool = False,
) -> Tensor:
    """Compute ``Q (K^T V)`` for the codes Q and K of q and k, ShiftAddViT's output form with taps.

    A code is 1 where its number is above its head's threshold, and otherwise 0, or -1 if `signed`.
    In float32 the kernels of `vitlet.ops`, in float64 torch's operators.

    The gradients of v and taps are those of the product in floating point, the output form
    included (the rounding of V without `exact` passes them on). Those of q and k are
    straight-through: a code counts as ``clamp(q - threshold, 0, 1)``, ShiftAddViT's choice, so they
    pass where ``0 < q - threshold < 1``; if `signed`, as ``clamp(q - threshold, -1, 1)``, where
    ``|q - threshold| <= 1``. A threshold gets minus the sum of what passes in its head.

    Args:
        q: float32 or float64 (B, H, N, D) with D from 1 to 128.
        k: as q.
        v: (B, H, N, Dv).
        q_threshold: (H,); 0 if None.
        k_threshold: likewise.
        taps: (H, 9), see `vitlet.ops.binary_linear_attention`.
        signed: a code that is not 1 is -1.
        exact: sum in float32. Otherwise V is rounded to about 9 bits and K^T V to 16.

    Returns:
        (B, H, N, Dv).

    Raises:
        ShapeError: shapes, dtypes or devices do not fit.
    """
    _check_attention(q, k, v, q_threshold, k_threshold, taps)
    require_cpu("binary_linear_attention", q)
    if q.dtype == torch.float64:
        q, k = codes(q, q_threshold, signed), codes(k, k_threshold, signed)
        return attention_in_torch(q, k, v, taps).contiguous()
    out = ops.binary_linear_attention(
        packed_bits(q, q_threshold),
        packed_bits(k, k_threshold),
        v.detach().numpy(),
        signed=signed,
        exact=exact,
        taps=None if taps is None else taps.detach().numpy(),
        threads=torch.get_num_threads(),
    )
    return torch.from_numpy(out)


def codes(x: Tensor, threshold: Tensor | None, signed: bool) -> Tensor:
    """Return 1 where (B, H, N, D) is above the threshold (H,), and elsewhere 0 or -1."""
    above = x > (0 if threshold is None else threshold[:, None, None])
    ones = above.to(x.dtype)
    return ones * 2 - 1 if signed else ones


def through_codes(
    grad: Tensor, x: Tensor, threshold: Tensor | None, signed: bool
) -> tuple[Tensor, Tensor | None]:
    """Pass a gradient of the codes to x and the threshold: see `binary_linear_attention`."""
    above = x if threshold is None else x - threshold[:, None, None]
    passes = above.abs() <= 1 if signed else (above > 0) & (above < 1)
    grad = grad * passes.to(grad.dtype)
    return grad, None if threshold is None else -grad.sum((0, 2, 3))


def soft_codes(x: Tensor, threshold: Tensor | None, signed: bool) -> Tensor:
    """Return `codes` that can be differentiated, for second derivatives."""
    above = x if threshold is None else x - threshold[:, None, None]
    return straight_through(above.clamp(-1.0 if signed else 0.0, 1), codes(x, threshold, signed))


def packed_bits(x: Tensor, threshold: Tensor | None) -> ops.PackedBits:
    """Pack float32 (B, H, N, D)."""
    levels: Any = 0.0 if threshold is None else threshold.detach().numpy()
    return ops.pack_bits(x.detach().numpy(), levels)


def _windows(x: Tensor) -> list[Tensor]:
    """Return (B, H, N, D) moved by -4 to 4 tokens, zeros outside."""
    padded = F.pad(x, (0, 0, TAPS // 2, TAPS // 2))
    return [padded[:, :, t : t + x.shape[2]] for t in range(TAPS)]


def _convolved(x: Tensor, taps: Tensor) -> Tensor:
    return sum(taps[:, t, None, None] * moved for t, moved in enumerate(_windows(x)))  # type: ignore[return-value]


def _directions(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of V / 2 + Q (K^T V) / pi divided by their lengths, and the lengths."""
    row = v / 2 + q @ (k.transpose(-1, -2) @ v) / math.pi
    length = torch.linalg.vector_norm(row, dim=-1, keepdim=True)
    return row / (length + (length == 0)), length  # a row of zeros stays one


def attention_in_torch(q: Tensor, k: Tensor, v: Tensor, taps: Tensor | None) -> Tensor:
    """Compute `binary_linear_attention` of given codes by torch's own operators."""
    if taps is None:
        return q @ (k.transpose(-1, -2) @ v)
    return _directions(q, k, v)[0] + _convolved(v, taps)


def _check_bits(op: str, name: str, x: Tensor) -> None:
    if x.ndim != 4 or not 1 <= x.shape[3] <= MAX_BITS:
        raise ShapeError(
            f"[{op}] expected {name} of shape (B, H, N, D), D from 1 to {MAX_BITS}, "
            f"got {tuple(x.shape)}"
        )


def check_codes(
    op: str, q: Tensor, k: Tensor, v: Tensor, q_threshold: Tensor | None, k_threshold: Tensor | None
) -> None:
    """Ask for q and k of one shape, v of as many rows, and thresholds of one number per head.

    Raises:
        ShapeError: a shape does not fit.
    """
    _check_bits(op, "q", q)
    check_shape(op, "k", k, tuple(q.shape))
    if v.ndim != 4 or v.shape[:3] != q.shape[:3]:
        raise ShapeError(f"[{op}] expected v of shape {(*q.shape[:3], 'Dv')}, got {tuple(v.shape)}")
    for name, threshold in (("q_threshold", q_threshold), ("k_threshold", k_threshold)):
        check_shape(op, name, threshold, (q.shape[1],))


def _check_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_threshold: Tensor | None,
    k_threshold: Tensor | None,
    taps: Tensor | None,
) -> None:
    op = "binary_linear_attention"
    check_floats(op, q=q, k=k, v=v, q_threshold=q_threshold, k_threshold=k_threshold, taps=taps)
    check_codes(op, q, k, v, q_threshold, k_threshold)
    check_shape(op, "taps", taps, (q.shape[1], TAPS))


def _pack_fake(x: Tensor, threshold: Tensor) -> Tensor:
    _check_bits("pack_bits", "x", x)
    check_floats("pack_bits", x=x, threshold=threshold)
    check_shape("pack_bits", "threshold", threshold, (x.shape[1],))
    return x.new_empty((*x.shape[:3], (x.shape[3] + 63) // 64), dtype=torch.int64)


def _attention_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_threshold: Tensor | None = None,
    k_threshold: Tensor | None = None,
    taps: Tensor | None = None,
    signed: bool = False,
    exact: bool = False,
) -> Tensor:
    _check_attention(q, k, v, q_threshold, k_threshold, taps)
    return v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.signed, _ = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, q_threshold, k_threshold, taps = ctx.saved_tensors
    q_codes = soft_codes(q, q_threshold, ctx.signed)
    k_codes = soft_codes(k, k_threshold, ctx.signed)
    grad_taps = None
    if taps is None:
        of_product, grad_v = grad, torch.zeros_like(v)
    else:
        along, length = _directions(q_codes, k_codes, v)
        of_row = grad - along * (along * grad).sum(-1, keepdim=True)
        of_row = torch.where(length == 0, 0, of_row / torch.where(length == 0, 1, length))
        of_product, grad_v = of_row / math.pi, of_row / 2 + _convolved(grad, taps.flip(1))
        grad_taps = torch.stack([(grad * moved).sum((0, 2, 3)) for moved in _windows(v)], dim=1)
    of_sums = q_codes.transpose(-1, -2) @ of_product  # K^T V's gradient
    sums = k_codes.transpose(-1, -2) @ v
    grad_v = grad_v + k_codes @ of_sums
    grad_q, grad_q_threshold = through_codes(
        of_product @ sums.transpose(-1, -2), q, q_threshold, ctx.signed
    )
    grad_k, grad_k_threshold = through_codes(
        v @ of_sums.transpose(-1, -2), k, k_threshold, ctx.signed
    )
    return grad_q, grad_k, grad_v, grad_q_threshold, grad_k_threshold, grad_taps, None, None


pack_bits.register_fake(_pack_fake)
binary_linear_attention.register_fake(_attention_fake)
binary_linear_attention.register_autograd(_backward, setup_context=_keep)
