"""Finds the weights in a library that `vitlet.export.tvm` linked, and hands them out in place.

Two symbols of the library tell of them. ``vitlet_weights`` is where the numbers begin, in data
that is mapped from the file and never copied: processes that run one library share them.
``vitlet_weights_index`` is a run of int64: how many arrays there are; then for each where it
begins, in bytes from ``vitlet_weights``, its kind (0 signed, 1 unsigned, 2 float), the bits of a
number, how many dimensions it has, and their sizes. The graph's function takes the arrays, in this
order, after its inputs.
"""

from __future__ import annotations

import ctypes
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

SYMBOL, INDEX_SYMBOL = "vitlet_weights", "vitlet_weights_index"
ALIGNMENT = 64  # bytes; a multiple of every vector register
KINDS = "iuf"  # numpy's letters, in DLPack's order


def mapped_weights(library: ctypes.CDLL) -> list[NDArray[Any]]:
    """Return the weights of a library, without a copy.

    Args:
        library: as `ctypes` opened it. The arrays last as long as something keeps it open, and
            must not be written to.
    """
    try:
        begin = ctypes.addressof(ctypes.c_char.in_dll(library, SYMBOL))
        index = ctypes.addressof(ctypes.c_int64.in_dll(library, INDEX_SYMBOL))
    except ValueError:  # a graph without weights, or of an older vitlet, which kept them inside
        return []

    def read(count: int) -> list[int]:
        nonlocal index
        numbers = list((ctypes.c_int64 * count).from_address(index))
        index += 8 * count
        return numbers

    found = []
    (count,) = read(1)
    for _ in range(count):
        offset, kind, bits, dimensions = read(4)
        shape = tuple(read(dimensions))
        size = prod(shape) * bits // 8
        room = (ctypes.c_uint8 * size).from_address(begin + offset)
        found.append(np.frombuffer(memoryview(room), f"{KINDS[kind]}{bits // 8}").reshape(shape))
    return found
