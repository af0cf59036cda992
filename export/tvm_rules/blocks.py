"""What schedule rules ask about the blocks of a function."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import sym, tirx

FREE = 1  # stands for a size that is known only when the graph runs


@dataclass(frozen=True)
class Axes:
    """The iteration variables of a block: which are summed over, and how long they are."""

    variables: tuple[Any, ...]
    sizes: tuple[int, ...]  # FREE for a symbolic one
    reduced: tuple[bool, ...]

    @property
    def spatial(self) -> tuple[int, ...]:
        """Indices of the variables that are not summed over."""
        return tuple(i for i, reduced in enumerate(self.reduced) if not reduced)


def axes(block: Any) -> Axes:
    """Return the iteration variables of a block."""
    variables = tuple(v.var for v in block.iter_vars)
    extents = [v.dom.extent for v in block.iter_vars]
    sizes = tuple(int(e) if isinstance(e, tirx.IntImm) else FREE for e in extents)
    reduced = tuple(v.iter_type == tirx.IterVar.CommReduce for v in block.iter_vars)
    return Axes(variables, sizes, reduced)


def is_reduction(block: Any) -> bool:
    """Tell whether a block sums, or takes a maximum, over some of its variables."""
    return any(v.iter_type == tirx.IterVar.CommReduce for v in block.iter_vars)


def is_plain(block: Any) -> bool:
    """Tell whether a block writes one element per iteration, at its own spatial variables."""
    if not isinstance(block.body, tirx.BufferStore) or len(block.writes) != 1:
        return False
    found = axes(block)
    wanted = [found.variables[i] for i in found.spatial]
    given = list(block.body.indices)
    return len(given) == len(wanted) and all(
        a.same_as(b) or (isinstance(a, tirx.IntImm) and int(a) == 0 and found.sizes[i] == 1)
        for a, b, i in zip(given, wanted, found.spatial, strict=True)
    )


def loads(value: Any) -> list[Any]:
    """Return every read of a buffer in an expression or statement."""
    found: list[Any] = []

    def visit(node: Any) -> None:
        if isinstance(node, tvm.ir.TensorLoad):
            found.append(node)

    tvm_ffi.structural_walk(value, visit)
    return found


def divisors(value: Any) -> set[int]:
    """Return the constants by which an expression divides an index, rounding down or for a rest."""
    found: set[int] = set()

    def visit(node: Any) -> None:
        if isinstance(node, tirx.FloorDiv | tirx.FloorMod) and isinstance(node.b, tirx.IntImm):
            found.add(int(node.b))

    tvm_ffi.structural_walk(value, visit)
    return found


def uses(value: Any, variable: Any) -> bool:
    """Tell whether a variable occurs in an expression."""
    seen: list[bool] = []

    def visit(node: Any) -> None:
        if isinstance(node, tvm.ir.Var) and node.same_as(variable):
            seen.append(True)

    tvm_ffi.structural_walk(value, visit)
    return bool(seen)


def step(index: Any, variable: Any) -> int | None:
    """Return by how much an index grows with a variable; None where that is not constant."""
    found = sym.detect_linear_equation(index, [variable])
    return int(found[0]) if len(found) == 2 and isinstance(found[0], tirx.IntImm) else None


def children(schedule: Any) -> list[Any]:
    """Return the blocks of a function, in the order of the program."""
    return list(schedule.get_child_blocks(schedule.get_sblock("root")))


def consumers(schedule: Any, block: Any) -> Iterator[Any]:
    """Yield what reads a block, directly or through others, nearest first."""
    frontier, seen = [block], set()
    while frontier:
        for consumer in schedule.get_consumers(frontier.pop(0)):
            name = schedule.get(consumer).name_hint
            if name not in seen:
                seen.add(name)
                frontier.append(consumer)
                yield consumer


def finish(schedule: Any) -> Any:
    """Return the scheduled function, marked so that no later pass touches its loops."""
    return schedule.mod["main"].with_attr("tirx.is_scheduled", True)
