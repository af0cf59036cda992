"""Linear layers on 8-bit dot products: power-of-two weights in 4-bit codes, and dense int8 ones.

A shift layer's weights are ``sign * 2^p``. Following DeepShift (https://arxiv.org/abs/1905.13298)
and ShiftAddViT (https://arxiv.org/abs/2306.06446), but with an exponent offset per output channel,
seven octaves and zero fit four bits. Activations are rounded to 8 bits token by token, so a product
is as cheap as any 8-bit one, and the weights take an eighth of float32's memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitlet.errors import ShapeError, UsageError
from vitlet.ops.linear import checked_rows, flat_rows, float_linear
from vitlet.ops.native import extension

Activation = Literal["none", "gelu"]

__all__ = [
    "Int8Weight",
    "ShiftWeight",
    "int8_linear",
    "pack_int8_weight",
    "pack_shift_weight",
    "shift_linear",
]

MAX_INPUTS = 1 << 17
_NARROW = np.array([0, 1, 2, 4, 8, 16, 32, 64, 0, -1, -2, -4, -8, -16, -32, -64], np.int32)
_ROOT_OF_HALF = np.sqrt(0.5).view(np.int64)
_WIDE = np.where(np.arange(16) == 8, -128, _NARROW)


@dataclass(frozen=True)
class Int8Weight:
    """A dense (N, K) weight, rounded to 8 bits per output channel, in the kernel's order."""

    panels: NDArray[np.uint8]
    sums: NDArray[np.int32]
    scale: NDArray[np.float32]
    inputs: int

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return len(self.scale), self.inputs

    def dequantize(self) -> NDArray[np.float32]:
        """Return the (N, K) weight that the kernel multiplies by."""
        columns = _from_panels(self.panels, len(self.sums), self.inputs)
        return _scaled(columns.view(np.int8)[: len(self.scale)], self.scale)


@dataclass(frozen=True)
class ShiftWeight:
    """An (N, K) weight of signed powers of two, in the kernel's order; see `pack_shift_weight`."""

    panels: NDArray[np.uint8]
    sums: NDArray[np.int32]
    scale: NDArray[np.float32]
    inputs: int
    wide: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return len(self.scale), self.inputs

    def dequantize(self) -> NDArray[np.float32]:
        """Return the (N, K) weight that the kernel multiplies by, exactly."""
        padded = _padded_inputs(self.inputs)
        halves = self.panels.reshape(len(self.sums) // 64, padded // 4, 2, 16, 4)
        codes = np.stack([halves & 15, halves >> 4], axis=3)  # (panel, k / 4, block, half, 16, 4)
        columns = _from_panels(codes.reshape(-1), len(self.sums), self.inputs)
        if not self.wide:
            return _scaled(_NARROW[columns[: len(self.scale)]], self.scale)
        parts = _WIDE[columns].reshape(len(self.sums) // 16, 2, 8, self.inputs)
        whole = (parts[:, 0] * 256 + parts[:, 1]).reshape(len(self.sums) // 2, self.inputs)
        return _scaled(whole[: len(self.scale)], self.scale)


def pack_shift_weight(weight: NDArray[Any], wide: bool = False) -> ShiftWeight:
    """Round a weight to signed powers of two and pack it.

    Exponents are rounded in the logarithm. Each output channel keeps its largest exponent and the
    six octaves below it (wide: fourteen, which holds every upstream shift checkpoint exactly); what
    is smaller goes to the last octave or to zero, whichever is nearer.

    Args:
        weight: (N, K) of a floating-point dtype, finite.
        wide: 15 octaves in 8 bits per weight instead of 7 in 4 bits. Twice the arithmetic.

    Returns:
        The packed weight; ``dequantize()`` gives back what was rounded to.

    Raises:
        ShapeError: the weight is not a floating-point (N, K) array with K <= 131072.
        UsageError: it holds an infinity or a NaN.
    """
    values = _checked_weight("pack_shift_weight", weight)
    octaves = 15 if wide else 7
    magnitudes = np.abs(values)
    # round(log2(|w|)): an octave of doubles is 2^52 integers, and rounds down from sqrt(1/2).
    exponent = ((magnitudes.view(np.int64) - _ROOT_OF_HALF) >> 52).astype(np.int32)
    top = exponent.max(axis=1, initial=-120)
    level = exponent - top[:, None] + octaves  # octaves for the largest, 1 for the least
    half_least = np.ldexp(np.ones(len(top)), top - octaves)[:, None]
    np.maximum(level, 1, out=level)
    level[magnitudes < half_least] = 0
    negative = values < 0
    scale = np.ldexp(np.float32(1), top - octaves + 1).astype(np.float32)
    if wide:
        codes, integers = _wide_codes(level, negative)
    else:
        codes = level + 8 * (negative & (level > 0))
        integers = _NARROW[codes]
    columns = _padded(codes.astype(np.uint8), len(integers))
    panels = _to_panels(columns)
    halves = panels.reshape(*panels.shape[:2], 2, 2, 16, 4)
    codes_of_two = halves[:, :, :, 0] | halves[:, :, :, 1] << 4
    return ShiftWeight(
        np.ascontiguousarray(codes_of_two).reshape(-1),
        _sums(integers, len(columns)),
        scale,
        values.shape[1],
        wide,
    )


def pack_int8_weight(weight: NDArray[Any]) -> Int8Weight:
    """Round a weight to 8 bits, symmetrically and per output channel, and pack it.

    Args:
        weight: (N, K) of a floating-point dtype, finite.

    Returns:
        The packed weight; ``dequantize()`` gives back what was rounded to.

    Raises:
        ShapeError: the weight is not a floating-point (N, K) array with K <= 131072.
        UsageError: it holds an infinity or a NaN.
    """
    values = _checked_weight("pack_int8_weight", weight)
    scale = (np.abs(values).max(axis=1, initial=0) / 127).astype(np.float32)
    divisor = np.where(scale > 0, scale, 1).astype(np.float64)[:, None]
    integers = np.clip(np.rint(values / divisor), -127, 127).astype(np.int32)
    columns = _padded(integers.astype(np.int8).view(np.uint8), len(integers))
    return Int8Weight(
        _to_panels(columns).reshape(-1), _sums(integers, len(columns)), scale, values.shape[1]
    )


def shift_linear(
    x: NDArray[np.float32],
    weight: ShiftWeight,
    bias: NDArray[np.float32] | None = None,
    *,
    activation: Activation = "none",
    residual: NDArray[np.float32] | None = None,
    activations: Literal["int8", "bf16"] = "int8",
    threads: int = 1,
) -> NDArray[np.float32]:
    """Multiply by power-of-two weights: ``activation(x @ weight.T + bias) + residual``.

    With activations of "int8", each row of x is rounded to 8 bits by itself (``max |x| / 127`` is
    one step), so a token's result does not depend on the others. The sums are exact integers, and
    the result has the same bits on every processor and for every number of threads.

    Args:
        x: float32 (..., K); any strides. A row that holds an infinity or a NaN gives NaN.
        weight: (N, K), from `pack_shift_weight`.
        bias: float32 (N,).
        activation: "gelu" (the one with erf, within 4e-7) or "none".
        residual: float32 (..., N), added last.
        activations: "int8", or "bf16" to round x to bfloat16 instead (8 bits of each number, not
            of the row) and sum in float32: closer, and slower.
        threads: at most so many, fewer when there is little to do.

    Returns:
        float32 (..., N).

    Raises:
        ShapeError: x, weight, bias and residual do not fit.
        UsageError: an option that is none of these.
    """
    if activations not in ("int8", "bf16"):
        raise UsageError(
            f'[shift_linear] expected activations "int8" or "bf16", got {activations!r}'
        )
    name = "wide" if isinstance(weight, ShiftWeight) and weight.wide else "shift"
    if activations == "bf16" and isinstance(weight, ShiftWeight):
        return float_linear(
            "shift_linear",
            x,
            (weight.panels, len(weight.scale), weight.inputs),
            bias,
            residual,
            scale=weight.scale,
            format=name,
            activation=activation,
            threads=threads,
        )
    return _linear(
        "shift_linear", ShiftWeight, x, weight, bias, residual, name, activation, threads
    )


def int8_linear(
    x: NDArray[np.float32],
    weight: Int8Weight,
    bias: NDArray[np.float32] | None = None,
    *,
    activation: Activation = "none",
    residual: NDArray[np.float32] | None = None,
    threads: int = 1,
) -> NDArray[np.float32]:
    """Multiply by dense 8-bit weights; see `shift_linear` for the arguments and errors."""
    return _linear(
        "int8_linear", Int8Weight, x, weight, bias, residual, "dense", activation, threads
    )


def _linear(
    op: str,
    kind: type,
    x: NDArray[np.float32],
    weight: ShiftWeight | Int8Weight,
    bias: NDArray[np.float32] | None,
    residual: NDArray[np.float32] | None,
    name: str,
    activation: str,
    threads: int,
) -> NDArray[np.float32]:
    if not isinstance(weight, kind):
        raise ShapeError(f"[{op}] expected a {kind.__name__}, got {type(weight).__name__}")
    inputs, outputs = weight.inputs, len(weight.scale)
    rows = checked_rows(op, x, inputs, outputs, bias, residual)
    try:
        out = extension.shift_linear(
            np.ascontiguousarray(x).reshape(rows, inputs),
            weight.panels,
            weight.sums,
            weight.scale,
            bias=None if bias is None else np.ascontiguousarray(bias),
            residual=flat_rows(residual, rows, outputs),
            format=name,
            activation=activation,
            threads=threads,
        )
    except TypeError:
        raise UsageError(f"[{op}] expected an activation name and a number of threads") from None
    except ValueError as error:
        raise UsageError(str(error).replace("[shift_linear]", f"[{op}]")) from None
    return out.reshape(*x.shape[:-1], outputs)


def _checked_weight(op: str, weight: NDArray[Any]) -> NDArray[np.float64]:
    if (
        not isinstance(weight, np.ndarray)
        or weight.ndim != 2
        or not np.issubdtype(weight.dtype, np.floating)
        or weight.shape[1] > MAX_INPUTS
    ):
        raise ShapeError(
            f"[{op}] expected a floating-point weight (N, K) with K <= {MAX_INPUTS}, "
            f"got {_described(weight)}"
        )
    if not np.isfinite(weight).all():
        raise UsageError(f"[{op}] expected finite weights, got an infinity or a NaN")
    return weight.astype(np.float64)


def _described(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return type(value).__name__


def _wide_codes(
    level: NDArray[Any], negative: NDArray[np.bool_]
) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Return codes and integers of ``256 * high + low``, (2 * padded outputs, K).

    Levels 1 to 7 are low 1 to 64; 9 to 15 are high 1 to 64; 128, level 8, is 256 - 128.
    """
    sign = 8 * negative
    low = np.where((level >= 1) & (level <= 7), level + sign, 0)
    low = np.where(level == 8, 8, low)
    high = np.where(level >= 9, level - 8 + sign, 0)
    high = np.where((level == 8) & ~negative, 1, high)
    outputs, inputs = level.shape
    room = np.zeros((2, -(-outputs // 32) * 32, inputs), np.int64)
    room[0, :outputs], room[1, :outputs] = high, low
    groups = room.shape[1] // 8
    codes = room.reshape(2, groups, 8, inputs).swapaxes(0, 1).reshape(16 * groups, inputs)
    return codes, _WIDE[codes]


def _padded_inputs(inputs: int) -> int:
    return -(-inputs // 8) * 8


def _padded(columns: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    room = np.zeros((-(-count // 64) * 64, _padded_inputs(columns.shape[1])), np.uint8)
    room[:count, : columns.shape[1]] = columns
    return room


def _to_panels(columns: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(columns, inputs) to (panel, inputs / 4, 64, 4)."""
    count, inputs = columns.shape
    panels = columns.reshape(count // 64, 64, inputs // 4, 4).swapaxes(1, 2)
    return np.ascontiguousarray(panels)


def _from_panels(panels: NDArray[np.uint8], count: int, inputs: int) -> NDArray[np.uint8]:
    padded = _padded_inputs(inputs)
    columns = panels.reshape(count // 64, padded // 4, 64, 4).swapaxes(1, 2).reshape(count, padded)
    return np.ascontiguousarray(columns[:, :inputs])


def _sums(integers: NDArray[np.int32], count: int) -> NDArray[np.int32]:
    room = np.zeros(count, np.int32)
    room[: len(integers)] = integers.sum(axis=1)
    return room


def _scaled(integers: NDArray[Any], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    return integers.astype(np.float32) * scale[:, None]
