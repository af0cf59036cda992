"""Reads and writes of a program's state (iOS 18)."""

from __future__ import annotations

from torch import Tensor

from vitlet.runtime.coreml.call import Call
from vitlet.runtime.coreml.state import Cell
from vitlet.runtime.coreml.table import op


def _cell(call: Call, name: str) -> Cell:
    cell = call.args.get(name)
    if not isinstance(cell, Cell):
        raise call.bad(f"its argument {name!r} is no state")
    return cell


@op("read_state")
def read_state(call: Call) -> Tensor:
    """The state as it is now; later updates leave the result alone."""
    value: Tensor = _cell(call, "input").value
    return value


@op("coreml_update_state")
def coreml_update_state(call: Call) -> Tensor:
    """Replace the state; returns what it is then."""
    cell, value = _cell(call, "state"), call["value"]
    if value.shape != cell.value.shape:
        raise call.bad(f"a value of shape {tuple(value.shape)} for {tuple(cell.value.shape)}")
    cell.value = value
    return value
