"""The operators in torch, as `torch.ops.vitlet.NAME`: whole in `torch.export`, differentiable.

Importing this module registers all of them; the mixer's stands here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitlet.errors import ShapeError, UsageError
from vitlet.ops.torch_attention import binary_linear_attention, pack_bits
from vitlet.ops.torch_hamming import hamming_attention
from vitlet.ops.torch_linear import (
    int8_linear,
    round_int8,
    round_shift,
    round_tokens,
    shift_linear,
)

__all__ = [
    "additive_token_mixer",
    "binary_linear_attention",
    "hamming_attention",
    "int8_linear",
    "mixer_in_torch",
    "pack_bits",
    "shift_linear",
]

PRECISIONS = ("fp32", "bf16", "int8", "shift")
MIXER_WEIGHTS = 14


def _gated(x: Tensor, conv: Tensor, bias: Tensor, point: Tensor, pool: Tensor) -> Tensor:
    x = x * F.conv2d(F.conv2d(x, conv, bias, padding=1, groups=len(conv)).relu(), point).sigmoid()
    return x * F.conv2d(x.mean(dim=(2, 3), keepdim=True), pool).sigmoid()


def mixer_in_torch(x: Tensor, *weights: Tensor, precision: str = "fp32") -> Tensor:
    """Compute `additive_token_mixer` by torch's own operators; the weights in the same order."""
    qkv_weight, qkv_bias, *gates, dwc, dwc_bias, proj, proj_bias = weights
    if precision == "bf16":
        x, qkv_weight = x.bfloat16().to(x.dtype), qkv_weight.bfloat16().to(x.dtype)
    elif precision != "fp32":
        rounded = (round_int8 if precision == "int8" else round_shift)(qkv_weight.flatten(1))
        x, qkv_weight = round_tokens(x.movedim(1, -1)).movedim(-1, 1), rounded.view_as(qkv_weight)
    q, k, v = F.conv2d(x, qkv_weight, qkv_bias).chunk(3, dim=1)
    context = _gated(q, *gates[:4]) + _gated(k, *gates[4:])
    context = F.conv2d(context, dwc, dwc_bias, padding=1, groups=len(dwc))
    return F.conv2d(context * v, proj, proj_bias, padding=1, groups=len(proj))


@torch.library.custom_op("vitlet::additive_token_mixer", mutates_args=(), device_types="cpu")
def additive_token_mixer(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    q_conv_weight: Tensor,
    q_conv_bias: Tensor,
    q_point_weight: Tensor,
    q_pool_weight: Tensor,
    k_conv_weight: Tensor,
    k_conv_bias: Tensor,
    k_point_weight: Tensor,
    k_pool_weight: Tensor,
    dwc_weight: Tensor,
    dwc_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    precision: str = "fp32",
) -> Tensor:
    """Mix the tokens of a map as `vitlet.layers.AdditiveTokenMixer` does, batch norms folded.

    Args:
        x: (B, C, H, W) float32.
        qkv_weight: (3C, C, 1, 1).
        qkv_bias: (3C,).
        q_conv_weight: (C, 1, 3, 3), depthwise, of the query's spatial gate.
        q_conv_bias: (C,).
        q_point_weight: (1, C, 1, 1).
        q_pool_weight: (C, C, 1, 1), of the query's channel gate.
        k_conv_weight: the same four for the key.
        k_conv_bias: (C,).
        k_point_weight: (1, C, 1, 1).
        k_pool_weight: (C, C, 1, 1).
        dwc_weight: (C, 1, 3, 3).
        dwc_bias: (C,).
        proj_weight: (C, 1, 3, 3).
        proj_bias: (C,).
        precision: "fp32", or "bf16", "int8" or "shift" for the q, k, v product; see
            `vitlet.ops.additive_token_mixer`. Rounding passes gradients on as they are.

    Returns:
        (B, C, H, W) float32.
    """
    weights = (
        qkv_weight, qkv_bias,
        q_conv_weight, q_conv_bias, q_point_weight, q_pool_weight,
        k_conv_weight, k_conv_bias, k_point_weight, k_pool_weight,
        dwc_weight, dwc_bias, proj_weight, proj_bias,
    )  # fmt: skip
    _check_mixer(x, weights, precision)
    if x.dtype == torch.float32:
        return _mixer_in_kernel(x, weights, precision)
    return mixer_in_torch(x, *weights, precision=precision).contiguous()


def _mixer_in_kernel(x: Tensor, weights: tuple[Tensor, ...], precision: str) -> Tensor:
    from vitlet.ops.additive_token_mixer import MixerGate, MixerWeights
    from vitlet.ops.additive_token_mixer import additive_token_mixer as mix

    arrays = [weight.detach().reshape(_plain_shape(weight)).numpy() for weight in weights]
    q, k = (
        MixerGate(taps, bias, point[0], pool)
        for taps, bias, point, pool in (arrays[2:6], arrays[6:10])
    )
    packed = MixerWeights(arrays[0], arrays[1], q, k, *arrays[10:])
    precise: Any = precision
    threads = torch.get_num_threads()
    return torch.from_numpy(mix(x.detach().numpy(), packed, precision=precise, threads=threads))


def _plain_shape(weight: Tensor) -> tuple[int, ...]:
    """Drop the sizes of one that a convolution's weight has and an array's has not."""
    first, *rest = weight.shape
    sides = [size for size in rest[1:] if size > 1]
    if sides:  # depthwise, 3x3
        return (first, *sides)
    return (first, *rest[:1])


def _check_mixer(x: Tensor, weights: tuple[Tensor, ...], precision: str) -> None:
    if precision not in PRECISIONS:
        raise UsageError(
            f"[additive_token_mixer] expected precision {' or '.join(PRECISIONS)}, "
            f"got {precision!r}"
        )
    if x.ndim != 4:
        raise ShapeError(f"[additive_token_mixer] expected (B, C, H, W), got {tuple(x.shape)}")
    c = x.shape[1]
    gate = ((c, 1, 3, 3), (c,), (1, c, 1, 1), (c, c, 1, 1))
    filters = ((c, 1, 3, 3), (c,))
    expected = ((3 * c, c, 1, 1), (3 * c,), *gate, *gate, *filters, *filters)
    for index, (weight, shape) in enumerate(zip(weights, expected, strict=True)):
        if tuple(weight.shape) != shape or weight.dtype != x.dtype:
            raise ShapeError(
                f"[additive_token_mixer] expected weight {index} as {x.dtype} {shape}, "
                f"got {weight.dtype} {tuple(weight.shape)}"
            )


def _mixer_fake(x: Tensor, *rest: Any, precision: str = "fp32") -> Tensor:
    weights = rest[:MIXER_WEIGHTS]
    _check_mixer(x, weights, rest[-1] if len(rest) > MIXER_WEIGHTS else precision)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _mixer_keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.precision = inputs
    ctx.save_for_backward(*tensors)


def _mixer_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Compute the map again by torch's operators, and differentiate that."""
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        out = mixer_in_torch(inputs[0], *inputs[1:])
        grads = torch.autograd.grad(out, inputs, grad)
    return (*grads, None)


additive_token_mixer.register_fake(_mixer_fake)
additive_token_mixer.register_autograd(_mixer_backward, setup_context=_mixer_keep)
