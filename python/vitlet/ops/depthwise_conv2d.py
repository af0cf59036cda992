"""Depthwise convolution with bias, activation and residual in one call.

What the mobile transformers have between their products: MobileCLIP (Vasu et al., 2024,
https://arxiv.org/abs/2311.17049) and CAS-ViT (Zhang et al., 2024, https://arxiv.org/abs/2408.03703).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitlet.errors import ShapeError, UsageError
from vitlet.ops.native import extension

Activation = Literal["none", "gelu", "relu", "silu"]
Layout = Literal["nhwc", "nchw"]
Array = NDArray[np.float32]

__all__ = ["DepthwiseWeight", "depthwise_conv2d", "pack_depthwise_weight"]


@dataclass(frozen=True, eq=False)
class DepthwiseWeight:
    """A weight and bias in the kernels' order, the same for every instruction set.

    Attributes:
        packed: float32, blocks of 16 channels.
        outputs: C * m output channels.
        kernel: its height and width.
    """

    packed: Array
    outputs: int
    kernel: tuple[int, int]


def pack_depthwise_weight(
    weight: NDArray[Any], bias: NDArray[Any] | None = None
) -> DepthwiseWeight:
    """Put a depthwise weight into the kernels' order, once for all calls.

    Args:
        weight: (C * m, 1, kh, kw), as torch has it, or (C * m, kh, kw); floating-point, finite.
        bias: (C * m,), floating-point.

    Returns:
        The packed weight.

    Raises:
        ShapeError: weight and bias have other shapes or dtypes, or the kernel has no taps.
    """
    if (
        not isinstance(weight, np.ndarray)
        or not np.issubdtype(weight.dtype, np.floating)
        or weight.ndim not in (3, 4)
        or (weight.ndim == 4 and weight.shape[1] != 1)
        or 0 in weight.shape[-2:]
    ):
        raise ShapeError(
            "[pack_depthwise_weight] expected a floating-point weight (C * m, 1, kh, kw) or "
            f"(C * m, kh, kw), got {_described(weight)}"
        )
    outputs, height, width = weight.shape[0], *weight.shape[-2:]
    if bias is not None and (
        not isinstance(bias, np.ndarray)
        or not np.issubdtype(bias.dtype, np.floating)
        or bias.shape != (outputs,)
    ):
        raise ShapeError(
            f"[pack_depthwise_weight] expected a floating-point bias ({outputs},), "
            f"got {_described(bias)}"
        )
    packed = extension.pack_depthwise(
        np.ascontiguousarray(weight, np.float32).reshape(outputs, height, width),
        None if bias is None else np.ascontiguousarray(bias, np.float32),
    )
    return DepthwiseWeight(packed, outputs, (height, width))


def depthwise_conv2d(
    x: Array,
    weight: DepthwiseWeight,
    *,
    stride: int = 1,
    padding: int | Sequence[int] = 0,
    activation: Activation = "none",
    residual: Array | None = None,
    layout: Layout = "nhwc",
    threads: int = 1,
) -> Array:
    """Convolve every channel by itself: ``activation(conv(x) + bias) + residual``.

    Args:
        x: float32 (B, H, W, C), or (B, C, H, W) with ``layout="nchw"``; any sizes, any strides (a
            strided array is copied).
        weight: of C * m channels, from `pack_depthwise_weight`; output channel o reads channel
            o // m of x.
        stride: of both directions.
        padding: zeros around x: for all sides, (vertical, horizontal), or (top, left, bottom,
            right).
        activation: "gelu" (the one with erf, within 4e-7), "relu", "silu" or "none".
        residual: float32 of the result's shape, added after the activation.
        layout: of x, residual and the result.
        threads: at most so many, fewer when there is little to do. The result does not depend on
            it.

    Returns:
        float32 (B, H', W', C * m) or (B, C * m, H', W'). A NaN or infinity of x reaches the
        outputs whose windows hold it.

    Raises:
        ShapeError: x, weight and residual do not fit, or the kernel is larger than the padded map.
        UsageError: an option is not one of the above.
    """
    if not isinstance(weight, DepthwiseWeight):
        raise ShapeError(
            f"[depthwise_conv2d] expected a DepthwiseWeight, got {type(weight).__name__}"
        )
    if layout not in ("nhwc", "nchw"):
        raise UsageError(f'[depthwise_conv2d] expected layout "nhwc" or "nchw", got {layout!r}')
    if not isinstance(x, np.ndarray) or x.ndim != 4:
        wanted = "(B, H, W, C)" if layout == "nhwc" else "(B, C, H, W)"
        raise ShapeError(f"[depthwise_conv2d] expected x of shape {wanted}, got {_described(x)}")
    channels = x.shape[3 if layout == "nhwc" else 1]
    multiplier = weight.outputs // channels if channels else 1
    if multiplier * channels != weight.outputs or multiplier == 0:
        raise ShapeError(
            f"[depthwise_conv2d] expected a number of channels that divides the weight's "
            f"{weight.outputs}, got {channels}"
        )
    sides = _sides(padding)
    try:
        return extension.depthwise_conv2d(
            np.ascontiguousarray(x),
            weight.packed,
            multiplier,
            weight.kernel,
            stride=stride,
            padding=sides,
            activation=activation,
            residual=None if residual is None else np.ascontiguousarray(residual),
            layout=layout,
            threads=threads,
        )
    except TypeError:
        raise UsageError(
            "[depthwise_conv2d] expected stride, padding and threads as integers and an activation "
            "name"
        ) from None
    except ValueError as error:
        text = str(error)
        kind = UsageError if _names_an_option(text) else ShapeError
        raise kind(text) from None


def _names_an_option(text: str) -> bool:
    options = ("activation", "a stride", "threads", "top", "left", "bottom", "right")
    return text.startswith(tuple(f"[depthwise_conv2d] expected {option}" for option in options))


def _sides(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    given = (padding,) if isinstance(padding, int | np.integer) else padding
    try:
        sides = tuple(int(side) for side in given)
    except (TypeError, ValueError):
        sides = ()
    if len(sides) == 1:
        return (*sides, *sides, *sides, *sides)
    if len(sides) == 2:
        return (*sides, *sides)
    if len(sides) == 4:
        return sides
    raise UsageError(
        "[depthwise_conv2d] expected padding as one integer, (vertical, horizontal) or (top, left, "
        f"bottom, right), got {padding!r}"
    )


def _described(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return type(value).__name__
