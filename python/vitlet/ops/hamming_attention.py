"""Softmax attention with binary queries and keys: its products are counts of equal bits.

The quadratic form of ShiftAddViT's attention (https://arxiv.org/abs/2306.06446), for few tokens.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitlet.errors import ShapeError
from vitlet.ops.binary_linear_attention import PackedBits
from vitlet.ops.native import extension

__all__ = ["hamming_attention"]


def hamming_attention(
    q: PackedBits,
    k: PackedBits,
    v: NDArray[np.float32],
    *,
    scale: float,
    signed: bool = True,
    threads: int = 1,
) -> NDArray[np.float32]:
    """Compute ``softmax(scale Q K^T) V`` per head, in time quadratic in the number of tokens.

    The entries of ``Q K^T`` are whole numbers from few, so their exponentials come from a table of
    D + 1 float32 numbers, relative to the largest of each row: no scale overflows.

    Args:
        q: packed queries (B, H, N, D), from `pack_bits`.
        k: packed keys of the same shape.
        v: float32 (B, H, N, Dv); any strides. A NaN or an infinity makes its whole column of its
            head NaN or infinite, and nothing else.
        scale: finite; may be negative. For codes of +-1 the usual one is ``D**-0.5``.
        signed: a bit 0 stands for -1. Otherwise it stands for 0.
        threads: of this call, 1 to 1024. The result does not depend on it.

    Returns:
        float32 (B, H, N, Dv).

    Raises:
        ShapeError: shapes or dtypes do not fit, or the scale is not finite.
    """
    if not isinstance(q, PackedBits) or not isinstance(k, PackedBits):
        raise ShapeError(
            "[hamming_attention] expected q and k from pack_bits, got "
            f"{type(q).__name__} and {type(k).__name__}"
        )
    if q.dim != k.dim:
        raise ShapeError(
            f"[hamming_attention] expected q and k of one shape, got {q.shape} and {k.shape}"
        )
    try:
        return extension.hamming_attention(
            np.require(q.words, requirements=["C", "A"]),
            np.require(k.words, requirements=["C", "A"]),
            np.require(v, requirements=["C", "A"]) if isinstance(v, np.ndarray) and v.ndim else v,
            q.dim,
            scale=scale,
            signed=signed,
            threads=threads,
        )
    except TypeError:  # pybind11's text lists C++ signatures over many lines
        raise ShapeError(
            "[hamming_attention] expected a float32 array v (B, H, N, Dv), a number scale and a "
            "number of threads"
        ) from None
    except ValueError as error:
        raise ShapeError(str(error)) from None
