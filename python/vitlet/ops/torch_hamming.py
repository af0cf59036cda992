"""`torch.ops.vitlet.hamming_attention`: softmax attention with binary queries and keys.

Importing this module registers it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vitlet import ops
from vitlet.errors import UsageError
from vitlet.ops.torch_attention import check_codes, codes, packed_bits, soft_codes, through_codes
from vitlet.ops.torch_checks import check_floats, require_cpu

__all__ = ["hamming_attention"]


@torch.library.custom_op("vitlet::hamming_attention", mutates_args=())
def hamming_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    q_threshold: Tensor | None = None,
    k_threshold: Tensor | None = None,
    signed: bool = True,
) -> Tensor:
    """Compute ``softmax(scale Q K^T) V`` for the codes Q and K of q and k.

    Codes, and the gradients of q, k and the thresholds, are those of
    `torch.ops.vitlet.binary_linear_attention`; the gradient of v is exact. In float32 the kernel of
    `vitlet.ops`, in float64 torch's operators.

    Args:
        q: float32 or float64 (B, H, N, D) with D from 1 to 128.
        k: as q.
        v: (B, H, N, Dv).
        scale: finite.
        q_threshold: (H,); 0 if None.
        k_threshold: likewise.
        signed: a code that is not 1 is -1, not 0.

    Returns:
        (B, H, N, Dv).

    Raises:
        ShapeError: shapes, dtypes or devices do not fit.
        UsageError: the scale is not finite.
    """
    _check(q, k, v, scale, q_threshold, k_threshold)
    require_cpu("hamming_attention", q)
    if q.dtype == torch.float64:
        weights = _weights(codes(q, q_threshold, signed), codes(k, k_threshold, signed), scale)
        return (weights @ v).contiguous()
    out = ops.hamming_attention(
        packed_bits(q, q_threshold),
        packed_bits(k, k_threshold),
        v.detach().numpy(),
        scale=scale,
        signed=signed,
        threads=torch.get_num_threads(),
    )
    return torch.from_numpy(out)


def _weights(q: Tensor, k: Tensor, scale: float) -> Tensor:
    return (scale * (q @ k.transpose(-1, -2))).softmax(-1)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    q_threshold: Tensor | None,
    k_threshold: Tensor | None,
) -> None:
    op = "hamming_attention"
    check_floats(op, q=q, k=k, v=v, q_threshold=q_threshold, k_threshold=k_threshold)
    check_codes(op, q, k, v, q_threshold, k_threshold)
    if not math.isfinite(scale):
        raise UsageError(f"[{op}] expected a finite scale, got {scale}")


def _fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    q_threshold: Tensor | None = None,
    k_threshold: Tensor | None = None,
    signed: bool = True,
) -> Tensor:
    _check(q, k, v, scale, q_threshold, k_threshold)
    return v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, v, ctx.scale, q_threshold, k_threshold, ctx.signed = inputs
    ctx.save_for_backward(q, k, v, q_threshold, k_threshold)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, q_threshold, k_threshold = ctx.saved_tensors
    q_codes = soft_codes(q, q_threshold, ctx.signed)
    k_codes = soft_codes(k, k_threshold, ctx.signed)
    weights = _weights(q_codes, k_codes, ctx.scale)
    of_weights = grad @ v.transpose(-1, -2)
    mean = (of_weights * weights).sum(-1, keepdim=True)
    of_products = ctx.scale * weights * (of_weights - mean)
    grad_q, grad_q_threshold = through_codes(of_products @ k_codes, q, q_threshold, ctx.signed)
    grad_k, grad_k_threshold = through_codes(
        of_products.transpose(-1, -2) @ q_codes, k, k_threshold, ctx.signed
    )
    grad_v = weights.transpose(-1, -2) @ grad
    return grad_q, grad_k, grad_v, None, grad_q_threshold, grad_k_threshold, None


hamming_attention.register_fake(_fake)
hamming_attention.register_autograd(_backward, setup_context=_keep)
