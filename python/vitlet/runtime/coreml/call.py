"""What a kernel sees of one operation: its arguments as values, and how to round.

Inside a program every floating-point value is a float32 tensor and every integer an int32 tensor,
whatever the declared type: the declared type decides only how a result is rounded (`settle`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from vitlet.errors import CorruptInputError, UnsupportedError

Mode = Literal["fp32", "declared", "stress"]
FLOATS = ("fp16", "fp32", "fp64")
# declared -> (lowest, highest); 32-bit integers wrap around by themselves
INTEGERS = {
    "int4": (-8, 7),
    "int8": (-128, 127),
    "int16": (-(2**15), 2**15 - 1),
    "uint1": (0, 1),
    "uint2": (0, 3),
    "uint3": (0, 7),
    "uint4": (0, 15),
    "uint6": (0, 63),
    "uint8": (0, 255),
    "uint16": (0, 2**16 - 1),
}
CHUNK = 32  # products that stress mode adds in float32 before it rounds the sum to float16


@dataclass(frozen=True)
class Context:
    """What all operations of one run share.

    Attributes:
        mode: how to round.
        limit: the largest value that may be made, in bytes.
        loops: how often one loop may turn.
        run_block: runs a nested block on its arguments, for control flow.
    """

    mode: Mode
    limit: int
    loops: int
    run_block: Callable[[Any, Sequence[Any]], list[Any]]


@dataclass
class Call:
    """One operation about to be computed.

    Attributes:
        type: the MIL operation type.
        place: block and output name, for messages.
        args: argument name -> Tensor, str, state or list of these; absent ones are missing.
        results: declared element type per output, such as "fp16"; "" for what is no tensor.
        context: shared by the run.
        blocks: nested blocks, for control flow.
    """

    type: str
    place: str
    args: dict[str, Any]
    results: tuple[str, ...]
    context: Context
    blocks: tuple[Any, ...] = field(default=())

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor argument.

        Raises:
            CorruptInputError: the program does not give it.
        """
        value = self.args.get(name)
        if not isinstance(value, Tensor):
            raise self.bad(f"its argument {name!r} is missing or no tensor")
        return value

    def get(self, name: str) -> Tensor | None:
        """Return a tensor argument, or None."""
        return self[name] if self.args.get(name) is not None else None

    def tensors(self, name: str) -> list[Tensor]:
        """Return an argument that is several tensors."""
        value = self.args.get(name)
        if isinstance(value, Tensor):
            return [value]
        if not isinstance(value, list | tuple) or not all(isinstance(v, Tensor) for v in value):
            raise self.bad(f"its argument {name!r} is missing or not a list of tensors")
        return [*value]

    def ints(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        """Return an integer vector."""
        if default is not None and self.args.get(name) is None:
            return [*default]
        return [int(v) for v in self[name].reshape(-1).tolist()]

    def whole(self, name: str, default: int | None = None) -> int:
        """Return an integer."""
        return self.ints(name, None if default is None else [default])[0]

    def number(self, name: str, default: float | None = None) -> float:
        """Return a number."""
        if default is not None and self.args.get(name) is None:
            return default
        return float(self[name].reshape(-1)[0])

    def flag(self, name: str, default: bool = False) -> bool:
        """Return a truth value."""
        return bool(self.whole(name, int(default)))

    def flags(self, name: str, size: int) -> list[bool]:
        """Return a vector of truth values, by default all false."""
        return [bool(v) for v in self.ints(name, [0] * size)]

    def text(self, name: str, default: str | None = None) -> str:
        """Return a string."""
        value = self.args.get(name, default)
        if not isinstance(value, str):
            raise self.bad(f"its argument {name!r} is missing or no string")
        return value

    def axis(self, name: str = "axis", default: int | None = None, rank: int | None = None) -> int:
        """Return an axis of `x` (or of something of that rank), counted from the front."""
        size = self["x"].ndim if rank is None else rank
        return self.wrap_axis(self.whole(name, default), size)

    def wrap_axis(self, axis: int, rank: int) -> int:
        """Return an axis counted from the front.

        Raises:
            CorruptInputError: there is no such axis.
        """
        if not -rank <= axis < max(rank, 1):
            raise self.bad(f"axis {axis} of a value with {rank} axes")
        return axis % max(rank, 1)

    def choice(self, name: str, default: str | None, known: Sequence[str]) -> str:
        """Return a string that must be one of those known here.

        Raises:
            UnsupportedError: it is another.
        """
        value = self.text(name, default)
        if value not in known:
            raise UnsupportedError(
                f"{self.type} at {self.place}: {name} {value!r} is not one of {', '.join(known)}"
            )
        return value

    def room(self, shape: Sequence[int]) -> None:
        """Refuse to make a value of this shape if it would take more memory than allowed.

        Raises:
            CorruptInputError: a size is negative, or the whole is too large.
        """
        size = 4
        for length in shape:
            size *= length
            if length < 0:
                raise self.bad(f"the size {length}")
        if size > self.context.limit:
            raise self.bad(
                f"a value of shape {tuple(shape)} takes {size:,} bytes, "
                f"the limit is {self.context.limit:,}"
            )

    def bad(self, what: str) -> CorruptInputError:
        """Make the error for an operation that cannot be computed as it stands."""
        return CorruptInputError(f"{self.type} at {self.place}: {what}")

    @property
    def stressed(self) -> bool:
        """Whether sums of this operation are kept in float16."""
        return self.context.mode == "stress" and self.results[0] == "fp16"


def half(value: Tensor) -> Tensor:
    """Round to float16 and back."""
    return value.half().float()


def pieces(x: Tensor, size: int, axis: int) -> list[Tensor]:
    """Cut an axis into pieces of a size; the last may be shorter. At least one."""
    axis %= x.ndim
    starts = range(0, max(x.shape[axis], 1), size)
    return [x.narrow(axis, start, min(size, x.shape[axis] - start)) for start in starts]


def add_up(parts: Sequence[Tensor]) -> Tensor:
    """Add terms in order; each term and each sum is rounded to float16."""
    total = half(parts[0])
    for part in parts[1:]:
        total = half(total + half(part))
    return total


def settle(value: Tensor, declared: str, mode: Mode) -> Tensor:
    """Bring a kernel's result into the form that values have inside a program.

    Args:
        value: of any type.
        declared: the type that the program gives the result.
        mode: "fp32" leaves floating-point results alone, the others round those declared fp16.

    Returns:
        float32, int32 or bool.
    """
    if declared in FLOATS:
        value = value.float()
        return half(value) if declared == "fp16" and mode != "fp32" else value
    if declared == "bool":
        return value.bool()
    if declared in INTEGERS:
        low, high = INTEGERS[declared]
        return ((value.long() - low) % (high - low + 1) + low).int()
    return value.int()
