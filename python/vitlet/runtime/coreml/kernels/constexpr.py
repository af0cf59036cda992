"""Compressed weights, unpacked when a package is opened.

iOS 16 stores flat arrays of packed bits with a shape beside them, iOS 18 arrays of narrow integers
that have a shape themselves; both come here under the same names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitlet.runtime.coreml.call import Call
from vitlet.runtime.coreml.table import op


@op("constexpr_cast")
def constexpr_cast(call: Call) -> Tensor:
    """A constant of another floating-point type."""
    return call["source_val"].clone()


@op("constexpr_affine_dequantize")
def affine_dequantize(call: Call) -> Tensor:
    """Scale * (q - zero point), each one number or one per place of an axis."""
    data = call["quantized_data"]
    axis = call.axis("axis", 0, data.ndim)
    shape = [-1] + [1] * (data.ndim - axis - 1)
    parts = []
    for name in ("scale", "zero_point"):
        value = call[name]
        if value.numel() not in (1, data.shape[axis]):
            raise call.bad(f"{value.numel()} values of {name} for {data.shape[axis]} channels")
        parts.append(value.reshape(shape if value.numel() > 1 else []).float())
    scale, zero = parts
    return scale * (data - zero)


@op("constexpr_blockwise_shift_scale")
def blockwise_shift_scale(call: Call) -> Tensor:
    """Scale * (q - offset) with one scale and offset per block."""
    data = call["data"]
    offset = call.get("offset")
    scale = _per_block(call, call["scale"], data.shape)
    if offset is None:
        return scale * data
    return scale * (data - _per_block(call, offset, data.shape).float())


@op("constexpr_lut_to_dense")
def lut_to_dense(call: Call) -> Tensor:
    """Entries of a table, picked by indices."""
    table, indices = call["lut"], call["indices"]
    if call.args.get("shape") is None:
        return _looked_up(call, indices, table)
    shape = call.ints("shape")
    call.room(shape)
    if table.ndim != 1 or table.numel() not in (2, 4, 16, 64, 256):
        raise call.bad(f"a table of shape {tuple(table.shape)}")
    places = _unpacked(call, indices, int(math.log2(table.numel())), math.prod(shape))
    return table[places].reshape(shape)


@op("constexpr_sparse_to_dense")
def sparse_to_dense(call: Call) -> Tensor:
    """Values where a mask is set, zeros elsewhere."""
    mask = call["mask"]
    if call.args.get("shape") is not None:
        shape = call.ints("shape")
        call.room(shape)
        mask = _unpacked(call, mask, 1, math.prod(shape)).reshape(shape)
    return _spread(call, mask.bool(), call["nonzero_data"])


@op("constexpr_lut_to_sparse")
def lut_to_sparse(call: Call) -> tuple[Tensor, Tensor]:
    """Table entries for the places of a mask; returns (mask, values)."""
    mask, table = call["indices_mask"].bool(), call["lut"]
    dense = _looked_up(call, _spread(call, mask, call["indices_nonzero_data"]), table)
    if table.shape[-1] > 1:
        axis = call.axis("vector_axis", None, mask.ndim)
        mask = mask.repeat_interleave(table.shape[-1], axis)
    return mask, dense[mask]


@op("constexpr_sparse_blockwise_shift_scale")
def sparse_blockwise_shift_scale(call: Call) -> tuple[Tensor, Tensor]:
    """Scale * (q - offset) for the places of a mask; returns (mask, values)."""
    mask = call["data_mask"].bool()
    dense = _spread(call, mask, call["nonzero_data"])
    offset = call.get("offset")
    if offset is not None:
        dense = dense - _per_block(call, offset, dense.shape).float()
    return mask, (_per_block(call, call["scale"], dense.shape) * dense)[mask]


def _per_block(call: Call, value: Tensor, shape: Sequence[int]) -> Tensor:
    """Repeat each entry of `value` over its block of a tensor of `shape`."""
    if value.ndim != len(shape):
        raise call.bad(f"blocks of {tuple(value.shape)} for data of shape {tuple(shape)}")
    for axis, (blocks, size) in enumerate(zip([*value.shape], shape, strict=True)):
        if blocks == 0 or size % blocks:
            raise call.bad(f"{blocks} blocks of {size} values")
        if blocks not in (1, size):
            value = value.repeat_interleave(size // blocks, axis)
    return value


def _spread(call: Call, mask: Tensor, values: Tensor) -> Tensor:
    count = int(mask.sum())
    if count != values.numel():
        raise call.bad(f"{values.numel()} values for a mask of {count}")
    dense = torch.zeros(mask.shape, dtype=values.dtype)
    dense[mask] = values.reshape(-1)
    return dense


def _looked_up(call: Call, indices: Tensor, table: Tensor) -> Tensor:
    """Look up in tables (*groups, entries, vector length), one table per block of the indices."""
    if table.ndim != indices.ndim + 2:
        raise call.bad(f"a table of {table.ndim} axes for indices of {indices.ndim}")
    entries, length = (int(size) for size in table.shape[-2:])
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < entries:
        raise call.bad(f"an index above the table's {entries} entries")
    call.room([*indices.shape, length])
    groups = []
    for axis, (blocks, size) in enumerate(zip(table.shape[:-2], indices.shape, strict=True)):
        if blocks == 0 or size % blocks:
            raise call.bad(f"{blocks} tables along {size} values")
        place = torch.arange(size) // max(size // blocks, 1)
        groups.append(place.reshape([-1] + [1] * (indices.ndim - axis - 1)))
    picked = table[(*groups, indices.long())]
    if length == 1:
        return picked.squeeze(-1)
    axis = call.axis("vector_axis", None, indices.ndim)
    return picked.movedim(-1, axis + 1).flatten(axis, axis + 1)


def _unpacked(call: Call, packed: Tensor, bits: int, count: int) -> Tensor:
    """Take `count` numbers of `bits` bits from bytes, the lowest bits first."""
    stored: NDArray[np.uint8] = packed.reshape(-1).numpy().astype(np.uint8)
    if len(stored) * 8 < bits * count:
        raise call.bad(f"{len(stored)} bytes for {count} numbers of {bits} bits")
    if bits == 8:
        return torch.from_numpy(stored[:count].astype(np.int64))
    single = np.unpackbits(stored, count=bits * count, bitorder="little").reshape(count, bits)
    weights = (1 << np.arange(bits)).astype(np.uint8)
    return torch.from_numpy((single @ weights).astype(np.int64))
