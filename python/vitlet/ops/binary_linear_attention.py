"""Additive attention with binary queries and keys, as in ShiftAddViT.

https://arxiv.org/abs/2306.06446
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlet.errors import ShapeError
from vitlet.ops.native import extension

__all__ = ["PackedBits", "binary_linear_attention", "pack_bits"]


@dataclass(frozen=True, eq=False)
class PackedBits:
    """Rows of bits, 64 to a word: what `pack_bits` returns.

    Attributes:
        words: uint64 (B, H, N, ceil(dim / 64)); bit i of a row is bit i % 64 of word i // 64.
            Bits from `dim` on are ignored.
        dim: bits in a row.
    """

    words: NDArray[np.uint64]
    dim: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, H, N, dim), the shape of what was packed."""
        return (*self.words.shape[:-1], self.dim)

    def unpack(self) -> NDArray[np.bool_]:
        """Return the bits as bool (B, H, N, dim)."""
        little = np.ascontiguousarray(self.words.astype("<u8", copy=False)).view(np.uint8)
        return np.unpackbits(little, axis=-1, count=self.dim, bitorder="little").astype(bool)


def pack_bits(x: NDArray[np.float32], threshold: float | Sequence[float] = 0.0) -> PackedBits:
    """Store for every number whether it is above a threshold.

    Args:
        x: float32 (B, H, N, D) with D from 1 to 128; any strides. A NaN is above nothing.
        threshold: one number, or one per head (H,).

    Returns:
        The bits ``x > threshold``: an eighth of a byte for each number.

    Raises:
        ShapeError: the shape or dtype of `x` or `threshold` does not fit.
    """
    try:
        levels = np.asarray(threshold, np.float32)
        if levels.ndim == 0 and isinstance(x, np.ndarray) and x.ndim == 4:
            levels = np.full(x.shape[1], levels, np.float32)
        words = extension.pack_bits(_contiguous(x), np.ascontiguousarray(levels))
    except (TypeError, ValueError) as error:
        raise _shape_error("pack_bits", error, "a float32 array (B, H, N, D)") from None
    return PackedBits(words, x.shape[3])


def binary_linear_attention(
    q: PackedBits,
    k: PackedBits,
    v: NDArray[np.float32],
    *,
    signed: bool = False,
    exact: bool = False,
    taps: NDArray[np.float32] | None = None,
    threads: int = 1,
) -> NDArray[np.float32]:
    """Compute ``Q (K^T V)`` per head, without a scale, in time linear in the number of tokens.

    Without `exact`, V is rounded 64 tokens of a column at a time to multiples of a power of two
    (at least 256 of them in the largest), and K^T V to 16 bits; all the rest is integer arithmetic
    and gives the same bits on every processor and for any number of threads.

    With `taps` the result is ShiftAddViT's whole output: ``r = V / 2 + Q (K^T V) / pi``, each row
    divided by its length (a row of zeros stays), plus a convolution of V along the tokens with
    zeros outside, ``sum_t taps[h, t] * V[n + t - 4]``, in float32.

    Args:
        q: packed queries (B, H, N, D).
        k: packed keys of the same shape.
        v: float32 (B, H, N, Dv); any strides. A NaN or an infinity makes the results that depend
            on it NaN or infinite; without `exact`, its whole column of its head NaN.
        signed: a bit 0 stands for -1. Otherwise it stands for 0.
        exact: sum in float32, without the roundings above.
        taps: float32 (H, 9), one filter for each head.
        threads: of this call, 1 to 1024.

    Returns:
        float32 (B, H, N, Dv).

    Raises:
        ShapeError: shapes or dtypes do not fit.
    """
    if not isinstance(q, PackedBits) or not isinstance(k, PackedBits):
        raise ShapeError(
            "[binary_linear_attention] expected q and k from pack_bits, got "
            f"{type(q).__name__} and {type(k).__name__}"
        )
    if q.dim != k.dim:
        raise ShapeError(
            f"[binary_linear_attention] expected q and k of one shape, got {q.shape} and {k.shape}"
        )
    try:
        return extension.binary_linear_attention(
            _contiguous(q.words),
            _contiguous(k.words),
            _contiguous(v),
            q.dim,
            signed=signed,
            exact=exact,
            taps=None if taps is None else _contiguous(taps),
            threads=threads,
        )
    except (TypeError, ValueError) as error:
        expected = "a float32 array v (B, H, N, Dv), taps (H, 9) or None, and a number of threads"
        raise _shape_error("binary_linear_attention", error, expected) from None


def _contiguous(array: NDArray[Any]) -> NDArray[Any]:
    # What is no array goes through as it is: the extension says what is wrong with it.
    if isinstance(array, np.ndarray) and array.ndim:
        return np.require(array, requirements=["C", "A"])
    return array


def _shape_error(op: str, error: Exception, expected: str) -> ShapeError:
    if isinstance(error, TypeError):  # pybind11's text lists C++ signatures over many lines
        return ShapeError(f"[{op}] expected {expected}")
    return ShapeError(str(error))
