"""Reading and rewriting TensorIR expressions: other values for variables and array elements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tvm import ir, tirx
from tvm.ir.prim import expr as prim

Load = Callable[[Any, list[Any]], Any]


def substitute(expression: Any, values: Mapping[Any, Any], load: Load | None = None) -> Any:
    """Return the expression with values in place of variables.

    Args:
        expression: of TensorIR.
        values: what stands for which variable.
        load: what stands for an element of a buffer at indices that were rewritten already; None
            leaves that element as it is.
    """
    done: dict[int, Any] = {}  # parts are shared: GELU's polynomial has its argument 24 times

    def walk(node: Any) -> Any:
        key = node.__chandle__()
        if key not in done:
            done[key] = rewrite(node)
        return done[key]

    def rewrite(node: Any) -> Any:
        if isinstance(node, ir.Var):
            return values.get(node, node)
        if isinstance(node, ir.TensorLoad):
            indices = [walk(index) for index in node.indices]
            found = load(node.source, indices) if load else None
            return tirx.BufferLoad(node.source, indices) if found is None else found
        if isinstance(node, ir.Call):
            return ir.Call(node.op, [walk(a) for a in node.args], node.attrs, ret_ty=node.ty)
        if isinstance(node, prim.Cast):
            return tirx.Cast(node.ty, walk(node.value))
        if isinstance(node, prim.Select):
            parts = (node.condition, node.true_value, node.false_value)
            return tirx.Select(*(walk(part) for part in parts))
        if isinstance(node, prim.Not | prim.BitwiseNot):
            return type(node)(walk(node.a))
        if isinstance(node, prim.BinaryOpExpr | prim.CmpExpr | prim.LogicalExpr):
            return type(node)(walk(node.a), walk(node.b))
        return node

    return walk(expression)


def size(expression: Any) -> int:
    """Return how many operations an expression has, each shared part once."""
    seen: set[int] = set()
    stack = [expression]
    while stack:
        node = stack.pop()
        if node.__chandle__() in seen or isinstance(node, ir.TensorLoad):
            continue
        seen.add(node.__chandle__())
        if isinstance(node, ir.Call):
            stack += list(node.args)
        elif isinstance(node, prim.Cast):
            stack.append(node.value)
        elif isinstance(node, prim.Select):
            stack += [node.condition, node.true_value, node.false_value]
        elif hasattr(node, "a") and hasattr(node, "b"):
            stack += [node.a, node.b]
    return len(seen)


def unflatten(index: Any, sizes: list[Any]) -> list[Any]:
    """Return the index of each dimension for a position in their row-major order."""
    found: list[Any] = []
    after: Any = 1
    for place in range(len(sizes) - 1, -1, -1):
        extent = sizes[place]
        if isinstance(extent, tirx.IntImm | int) and int(extent) == 1:
            found.append(index * 0)
            continue
        value = index if isinstance(after, int) and after == 1 else tirx.floordiv(index, after)
        outer = [s for s in sizes[:place] if not (isinstance(s, tirx.IntImm) and int(s) == 1)]
        found.append(tirx.floormod(value, extent) if outer else value)
        after = extent * after
    return found[::-1]
