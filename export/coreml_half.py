"""Chooses which operations of a Core ML program compute in float16.

An operation can be held in float32 by its own name (that of the traced torch node, which Core ML
keeps), or by the path of a torch module: then everything inside of that module is.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

import torch

from vitlet.errors import UsageError

# What only moves values is as wide as what it moves: it neither gains nor loses by float32.
MOVES = frozenset(
    "concat depth_to_space expand_dims identity reshape reverse "
    "slice_by_index slice_by_size space_to_depth split squeeze stack tile transpose".split()
)


class HalfSelector:
    """Tells coremltools which operations may be float16; call it with each in order.

    Args:
        program: the traced program that is converted.
        keep: names of operations or modules to hold in float32.
        inside: path of the wrappers around the user's module, which is left out of module paths.
        output: the program's name for what it gives.
    """

    def __init__(
        self,
        program: torch.export.ExportedProgram,
        keep: Sequence[str],
        inside: str,
        output: str,
    ) -> None:
        self._modules = modules_of(program, inside, output)
        self._keep = tuple(keep)
        self._used: set[str] = set()

    def __call__(self, operation: Any) -> bool:
        """Whether a MIL operation may be float16."""
        if operation.op_type == "const":
            return True
        name = operation.outputs[0].name
        module = module_of(name, self._modules)
        named = [k for k in self._keep if k == name or f"{module}.".startswith(f"{k}.")]
        self._used.update(named)
        return not (named or self._is_held_move(operation) or _follows_norm(operation, 3))

    def check(self) -> None:
        """Refuse names that meant nothing.

        Raises:
            UsageError: names them, and what is like them.
        """
        lost = [name for name in self._keep if name not in self._used]
        if lost:
            known = [*dict.fromkeys(self._modules.values()), *self._modules]
            near = difflib.get_close_matches(lost[0], [name for name in known if name], n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "see `vitlet verify --layers`"
            raise UsageError(
                f"keep_fp32 names {', '.join(lost)}, which is no layer or operation that would "
                f"compute in float16: {hint}"
            )

    def _is_held_move(self, operation: Any) -> bool:
        """Whether an operation moves what is held; what is not held comes out of a cast."""
        if operation.op_type not in MOVES:
            return False
        given = [*operation.inputs.values()]
        flat = [
            v for entry in given for v in (entry if isinstance(entry, list | tuple) else [entry])
        ]
        makers = [v.op for v in flat if v is not None and v.op is not None]
        return any(
            self._is_held_move(maker)
            or maker.outputs[0].name in self._keep
            or self._in_kept_module(maker.outputs[0].name)
            for maker in makers
            if maker.op_type not in ("const", "cast")
        )

    def _in_kept_module(self, name: str) -> bool:
        module = module_of(name, self._modules)
        return any(f"{module}.".startswith(f"{k}.") for k in self._keep)


def modules_of(program: torch.export.ExportedProgram, inside: str, output: str) -> dict[str, str]:
    """Return node -> path of the torch module that it is in; "" for the model itself.

    coremltools calls the last one what the output is called.
    """
    found = {}
    for node in program.graph.nodes:
        if node.op == "call_function":
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            path = str(stack[-1][0]) if stack else ""
            path = path.removeprefix(inside).removeprefix(".") if inside else path
            found[node.name] = path
    last = program.graph.output_node().args[0][0]
    return {**found, output: found.get(getattr(last, "name", ""), "")}


def module_of(operation: str, modules: dict[str, str]) -> str:
    """Return the module of an operation: coremltools adds numbers to some names."""
    plain = re.sub(r"_\d+$", "", operation)
    return modules.get(operation, modules.get(plain, ""))


def _follows_norm(operation: Any, steps: int) -> bool:
    """Whether this is part of x / max(||x||, tiny).

    A sum of squares leaves float16's range quickly at either end, and the tiny is zero in it.
    """
    if operation is None or steps == 0:
        return False
    if operation.op_type == "reduce_l2_norm":
        return True
    if operation.op_type not in ("clip", "maximum", "real_div"):
        return False
    given = [operation.inputs[name] for name in ("x", "y") if name in operation.inputs]
    return any(_follows_norm(value.op, steps - 1) for value in given)
