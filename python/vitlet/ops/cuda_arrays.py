"""Arrays in a GPU's memory, by the ``__cuda_array_interface__`` of PyTorch, CuPy, JAX and Numba.

https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vitlet.errors import ShapeError

__all__ = ["DeviceArray", "allocated", "current_stream", "device_array"]

_BYTES = {"<f4": 4, "<i8": 8, "<u8": 8, "|u1": 1}
_NAMES = {"<f4": "float32", "<i8": "int64", "<u8": "uint64", "|u1": "uint8"}


@dataclass(frozen=True)
class DeviceArray:
    """A contiguous array in a GPU's memory: its address (0 if it is empty) and shape."""

    address: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        size = 1
        for length in self.shape:
            size *= length
        return size


def device_array(
    what: str,
    value: Any,
    types: Sequence[str],
    shape: Sequence[int | None],
    *,
    written: bool = False,
) -> DeviceArray:
    """Check an array and return where it lies.

    Args:
        what: the operator and argument, "[op] x".
        value: any object with a ``__cuda_array_interface__``.
        types: the accepted ones, as in ``"<f4"``.
        shape: the expected one; None fits any length.
        written: the array is a result.

    Raises:
        ShapeError: it is no such array, not contiguous, or of another shape or dtype.
    """
    op, _, name = what.partition(" ")
    expected = (
        f"{op} expected {name} as a contiguous {' or '.join(_NAMES[t] for t in types)} GPU array "
        f"({', '.join('any' if n is None else str(n) for n in shape)})"
    )
    try:
        about = value.__cuda_array_interface__
        address, read_only = about["data"]
        kind, found = str(about["typestr"]), tuple(int(n) for n in about["shape"])
        strides = about.get("strides")
    except (AttributeError, RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if isinstance(error, RuntimeError) else ""
        got = f"{type(value).__name__}{reason and f': {reason}'}"
        raise ShapeError(f"{expected}, got {got}") from None
    fits = len(found) == len(shape) and all(
        n is None or n == m for n, m in zip(shape, found, strict=True)
    )
    if kind not in types or not fits:
        raise ShapeError(f"{expected}, got {_NAMES.get(kind, kind)} {found}")
    if strides is not None and 0 not in found and not _contiguous(found, strides, _BYTES[kind]):
        raise ShapeError(f"{expected}, got {_NAMES[kind]} {found} with strides {tuple(strides)}")
    if written and read_only:
        raise ShapeError(f"{expected} to write to, got a read-only one")
    return DeviceArray(0 if 0 in found else int(address), found)


def allocated(
    what: str, value: Any, like: Any, shape: Sequence[int], dtype: str, stream: int | None
) -> Any:
    """Return `value`, or if it is None a new tensor on `like`'s device (float32 or uint8).

    Torch may give a tensor's memory to the next one on its current stream, so a tensor is only made
    for that.

    Raises:
        ShapeError: it is None, and `like` is not torch's or a stream was given.
    """
    if value is not None:
        return value
    if stream is not None or not _is_tensor(like):
        op, _, name = what.partition(" ")
        raise ShapeError(
            f"{op} expected {name}, a {dtype} GPU array {tuple(shape)}, got None: it is made only "
            "for torch tensors on torch's current stream"
        )
    torch = sys.modules["torch"]
    return torch.empty(tuple(shape), dtype=getattr(torch, dtype), device=like.device)


def current_stream(stream: int | None, like: Any) -> int:
    """Return `stream`, or torch's current one if `like` is a tensor, or the default stream."""
    if stream is not None:
        return int(stream)
    if _is_tensor(like):
        return int(sys.modules["torch"].cuda.current_stream(like.device).cuda_stream)
    return 0


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _contiguous(shape: tuple[int, ...], strides: Sequence[int], step: int) -> bool:
    for length, stride in zip(reversed(shape), reversed(tuple(strides)), strict=True):
        if length != 1 and stride != step:
            return False
        step *= length
    return True
