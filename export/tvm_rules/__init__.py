"""Schedules for what is not a matrix product: windows, rows and elementwise loops.

Each module holds one rule. A rule recognizes a function by what its blocks read and write, not by
its name, since TVM fuses what follows an operator, and what precedes it, into the same function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import ScheduleError

from vitlet.export.tvm_rules import elementwise, rows, window

if TYPE_CHECKING:
    from vitlet.export.tvm_gemm import Tile

_RULES = (rows.schedule, window.schedule, elementwise.schedule)


def schedule(function: Any, tile: Tile) -> Any:
    """Return the function with fast loops; None for a form that no rule foresees.

    Args:
        function: a PrimFunc of TensorIR blocks, as TVM's fusion leaves it.
        tile: the processor's registers.
    """
    for rule in _RULES:
        try:
            scheduled = rule(Schedule(function), tile)
        except ScheduleError:  # the rule fits most of it: what is left runs as it was written
            continue
        if scheduled is not None:
            return scheduled
    return None
