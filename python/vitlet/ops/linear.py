"""Dense linear layers and 1x1 convolutions in float32 or bfloat16, with what follows them.

A 1x1 convolution of a channels-last map is a linear layer over its pixels. Bias, activation and a
residual connection are applied while the sums are in the processor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitlet.errors import ShapeError, UsageError
from vitlet.ops.native import extension

Activation = Literal["none", "gelu", "relu", "silu"]
Precision = Literal["fp32", "bf16"]

__all__ = ["LinearWeight", "linear", "pack_linear_weight"]

MAX_SIZE = 1 << 17
_PANEL = 16


@dataclass(frozen=True)
class LinearWeight:
    """A dense (N, K) weight in the kernel's order; see `pack_linear_weight`."""

    panels: NDArray[np.uint8]
    outputs: int
    inputs: int
    precision: Precision = "fp32"

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.outputs, self.inputs

    def dequantize(self) -> NDArray[np.float32]:
        """Return the (N, K) weight that the kernel multiplies by, exactly."""
        count, depth = -(-self.outputs // _PANEL), self.inputs
        if self.precision == "fp32":
            panels = self.panels.view(np.float32).reshape(count, depth, _PANEL)
        else:
            depth = -(-self.inputs // 2) * 2
            pairs = self.panels.view(np.uint32).reshape(count, depth // 2, 1, _PANEL)
            both = np.concatenate([pairs << 16, pairs & np.uint32(0xFFFF0000)], axis=2)
            panels = both.view(np.float32).reshape(count, depth, _PANEL)[:, : self.inputs]
        rows = panels.swapaxes(1, 2).reshape(count * _PANEL, self.inputs)
        return np.ascontiguousarray(rows[: self.outputs])


def pack_linear_weight(weight: NDArray[Any], precision: Precision = "fp32") -> LinearWeight:
    """Put a weight into the order of the kernel, rounded to bfloat16 if asked to.

    Args:
        weight: (N, K) of a floating-point dtype, as ``torch.nn.Linear`` has it.
        precision: "fp32", or "bf16" to round the weight, and later x, to bfloat16.

    Returns:
        The packed weight; ``dequantize()`` gives back what it was rounded to.

    Raises:
        ShapeError: the weight is not a floating-point (N, K) array with N, K <= 131072.
        UsageError: the precision is neither.
    """
    if (
        not isinstance(weight, np.ndarray)
        or weight.ndim != 2
        or not np.issubdtype(weight.dtype, np.floating)
        or max(weight.shape) > MAX_SIZE
    ):
        raise ShapeError(
            f"[pack_linear_weight] expected a floating-point weight (N, K) with N, K <= {MAX_SIZE},"
            f" got {_described(weight)}"
        )
    if precision not in ("fp32", "bf16"):
        raise UsageError(
            f'[pack_linear_weight] expected precision "fp32" or "bf16", got {precision!r}'
        )
    values = np.ascontiguousarray(weight, np.float32)
    panels = extension.pack_linear_weight(values, precision=precision)
    return LinearWeight(panels, weight.shape[0], weight.shape[1], precision)


def linear(
    x: NDArray[np.float32],
    weight: LinearWeight,
    bias: NDArray[np.float32] | None = None,
    *,
    activation: Activation = "none",
    residual: NDArray[np.float32] | None = None,
    threads: int = 1,
) -> NDArray[np.float32]:
    """Compute ``activation(x @ weight.T + bias) + residual``.

    Args:
        x: float32 (..., K); any strides (a strided array is copied). A channels-last map makes
            this a 1x1 convolution.
        weight: (N, K), from `pack_linear_weight`. With "bf16", x is rounded to bfloat16 too; sums
            stay float32.
        bias: float32 (N,).
        activation: "gelu" (the one with erf, within 4e-7), "relu", "silu" or "none".
        residual: float32 (..., N), added last.
        threads: at most so many, fewer when there is little to do. The result does not depend on
            it.

    Returns:
        float32 (..., N). A NaN or an infinity in x reaches its own row only.

    Raises:
        ShapeError: x, weight, bias and residual do not fit.
        UsageError: an unknown activation, or no thread.
    """
    if not isinstance(weight, LinearWeight):
        raise ShapeError(f"[linear] expected a LinearWeight, got {type(weight).__name__}")
    return float_linear(
        "linear",
        x,
        (weight.panels, weight.outputs, weight.inputs),
        bias,
        residual,
        format=weight.precision,
        activation=activation,
        threads=threads,
    )


def float_linear(
    op: str,
    x: NDArray[np.float32],
    weight: tuple[NDArray[np.uint8], int, int],
    bias: NDArray[np.float32] | None,
    residual: NDArray[np.float32] | None,
    **options: Any,
) -> NDArray[np.float32]:
    """Check the arrays of `op` and call the kernel. weight: panels, outputs, inputs."""
    panels, outputs, inputs = weight
    rows = checked_rows(op, x, inputs, outputs, bias, residual)
    try:
        out = extension.float_linear(
            np.ascontiguousarray(x).reshape(rows, inputs),
            panels,
            outputs,
            bias=None if bias is None else np.ascontiguousarray(bias),
            residual=flat_rows(residual, rows, outputs),
            **options,
        )
    except TypeError:
        raise UsageError(f"[{op}] expected an activation name and a number of threads") from None
    except ValueError as error:
        raise UsageError(str(error).replace("[linear]", f"[{op}]")) from None
    return out.reshape(*x.shape[:-1], outputs)


def checked_rows(
    op: str,
    x: NDArray[np.float32],
    inputs: int,
    outputs: int,
    bias: NDArray[np.float32] | None,
    residual: NDArray[np.float32] | None,
) -> int:
    """Return how many rows x has, once the arrays fit each other."""
    if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.shape[-1:] != (inputs,):
        raise ShapeError(f"[{op}] expected x of float32 (..., {inputs}), got {_described(x)}")
    for name, array, shape in (
        ("bias", bias, (outputs,)),
        ("residual", residual, (*x.shape[:-1], outputs)),
    ):
        if array is not None and (
            not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape != shape
        ):
            raise ShapeError(f"[{op}] expected {name} of float32 {shape}, got {_described(array)}")
    return int(np.prod(x.shape[:-1], dtype=np.int64))


def flat_rows(
    array: NDArray[np.float32] | None, rows: int, columns: int
) -> NDArray[np.float32] | None:
    """Return a contiguous (rows, columns) view or copy, or nothing of nothing."""
    return None if array is None else np.ascontiguousarray(array).reshape(rows, columns)


def _described(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return type(value).__name__
