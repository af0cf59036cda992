"""Branches and loops."""

from __future__ import annotations

from typing import Any

from vitlet.runtime.coreml.call import Call
from vitlet.runtime.coreml.table import op


@op("cond")
def cond(call: Call) -> tuple[Any, ...]:
    """One of two blocks."""
    if len(call.blocks) != 2:
        raise call.bad(f"{len(call.blocks)} branches")
    chosen = call.blocks[0 if call.flag("pred") else 1]
    return tuple(call.context.run_block(chosen, []))


@op("while_loop")
def while_loop(call: Call) -> tuple[Any, ...]:
    """A block again and again, as long as another says so."""
    if len(call.blocks) != 2:
        raise call.bad(f"{len(call.blocks)} blocks")
    values = call.args.get("loop_vars")
    values = [*values] if isinstance(values, list | tuple) else [values]
    for _ in range(call.context.loops):
        (go,) = call.context.run_block(call.blocks[0], values)
        if not bool(go):
            return tuple(values)
        values = call.context.run_block(call.blocks[1], values)
    raise call.bad(f"it has not ended after {call.context.loops:,} turns")
