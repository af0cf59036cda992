"""What a program asks for, looked at before coremltools builds it.

Building already computes with constants, so a file of a few bytes that tiles a constant into a
terabyte must not get that far. Only the file's records are read here.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitlet.errors import CorruptInputError

# Number of a type in the file -> how its constants are packed: int8, int16, uint8, uint16.
_PACKED = {21: struct.Struct("<b"), 22: struct.Struct("<h"), 31: struct.Struct("<B"),
           32: struct.Struct("<H")}  # fmt: skip
_BYTES = 4  # of an element: values are float32 or int32 once they are computed


class Sizes:
    """Follows the shapes and the integer constants of one function, operation by operation.

    Args:
        path: the package, for messages.
        limit: the largest value that may be made, in bytes.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit
        self._integers: dict[str, list[int]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def look(self, operation: Any) -> None:
        """Look at one operation; in the order of the program.

        Raises:
            CorruptInputError: it makes a value above the limit.
        """
        name = operation.outputs[0].name if operation.outputs else "?"
        if operation.type == "const":
            self._integers[name] = _stored(operation.attributes["val"])
        sizes = [math.prod(shape(output.type)) for output in operation.outputs]
        sizes += [math.prod(made) for made in self._made(operation)]
        if max(sizes, default=0) * _BYTES > self._limit:
            raise CorruptInputError(
                f"{self._path}: {operation.type} makes {name} of {max(sizes):,} elements, "
                f"the limit is {self._limit:,} bytes"
            )
        for output in operation.outputs:
            self._shapes[output.name] = shape(output.type)

    def _made(self, operation: Any) -> Iterator[list[int]]:
        """Give the shapes that an operation really makes, whatever it declares."""
        kind = operation.type
        x = self._shape(operation, "x")
        if kind == "fill":
            yield self._given(operation, "shape")
        elif kind == "tile":
            reps = self._given(operation, "reps")
            yield [size * count for size, count in itertools.zip_longest(x, reps, fillvalue=1)]
        elif kind == "pad":
            pads = self._given(operation, "pad")
            sums = [max(a + b, 0) for a, b in zip(pads[::2], pads[1::2], strict=False)]
            rest = [*x][-len(sums) :] if sums else []
            grown = [n + more for n, more in itertools.zip_longest(rest, sums, fillvalue=0)]
            yield [*x[: max(len(x) - len(sums), 0)], *grown]
        elif kind == "range_1d":
            ends = [self._given(operation, end) for end in ("start", "end", "step")]
            if all(len(end) == 1 for end in ends) and ends[2][0]:
                yield [abs(ends[1][0] - ends[0][0]) // abs(ends[2][0])]
        elif kind == "one_hot":
            classes = self._given(operation, "one_hot_vector_size")
            yield [*self._shape(operation, "indices"), *classes]
        elif kind == "gather":
            axis = (self._given(operation, "axis") or [0])[0]
            rest = [n for place, n in enumerate(x) if place not in (axis, axis + len(x))]
            yield [*self._shape(operation, "indices"), *rest]
        elif kind == "linear":
            yield [*x[:-1], *self._shape(operation, "weight")[:1]]
        elif kind == "matmul":
            yield self._product(operation, x, self._shape(operation, "y"))
        else:
            named = ("cond", "a", "b") if kind == "select" else ("x", "y")
            shapes = [self._shape(operation, name)[::-1] for name in named]
            yield [max(sizes) for sizes in itertools.zip_longest(*shapes, fillvalue=1)]

    def _product(self, operation: Any, x: tuple[int, ...], y: tuple[int, ...]) -> list[int]:
        if not x or not y:
            return [1]
        rows, columns = x[-2:-1] or (1,), y[-1:]
        if any(self._given(operation, "transpose_x")):
            rows = x[-1:]
        if any(self._given(operation, "transpose_y")):
            columns = y[-2:-1] or (1,)
        batches = itertools.zip_longest(x[:-2][::-1], y[:-2][::-1], fillvalue=1)
        return [*map(max, batches), *rows, *columns]

    def _shape(self, operation: Any, name: str) -> tuple[int, ...]:
        if name not in operation.inputs:
            return ()
        for binding in operation.inputs[name].arguments:
            if binding.WhichOneof("binding") == "value":
                return shape(binding.value.type)
            return self._shapes.get(binding.name, ())
        return ()

    def _given(self, operation: Any, name: str) -> list[int]:
        """Return an argument's integers, where they are constants of the file."""
        found: list[int] = []
        if name in operation.inputs:
            for binding in operation.inputs[name].arguments:
                if binding.WhichOneof("binding") == "value":
                    found += _stored(binding.value)
                else:
                    found += self._integers.get(binding.name, [])
        return found


def shape(kind: Any) -> tuple[int, ...]:
    """Return the sizes that a type declares; a size that is free counts as 1."""
    return tuple(
        dimension.constant.size if dimension.WhichOneof("dimension") == "constant" else 1
        for dimension in kind.tensorType.dimensions
    )


def _stored(value: Any) -> list[int]:
    """Return the integers or truth values of a constant that stands in the model file."""
    tensor = value.immediateValue.tensor
    which = tensor.WhichOneof("value")
    packed = _PACKED.get(value.type.tensorType.dataType) if which == "bytes" else None
    if packed is not None:
        stored = tensor.bytes.values
        return [
            number
            for (number,) in packed.iter_unpack(stored[: -(len(stored) % packed.size) or None])
        ]
    if which not in ("ints", "longInts", "bools"):
        return []
    return [int(number) for number in getattr(tensor, which).values]
