"""Turns a MIL function into steps: kernels bound to constants and to numbered places for values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitlet.errors import CorruptInputError
from vitlet.runtime.coreml.call import Context
from vitlet.runtime.coreml.table import Kernel, kernels


@dataclass(frozen=True)
class Slot:
    """A place for a value that is there only during a run."""

    number: int


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        kernel: computes it.
        type: its MIL type.
        place: block and output name, for messages.
        args: argument -> constant, Slot, or list of these.
        outputs: (slot number, name, declared element type or "", declared shape or None) each;
            a size that is free is None.
        blocks: nested blocks.
        frees: slots that nothing needs afterwards.
    """

    kernel: Kernel
    type: str
    place: str
    args: dict[str, Any]
    outputs: tuple[tuple[int, str, str, tuple[int | None, ...] | None], ...]
    blocks: tuple[Block, ...]
    frees: tuple[int, ...] = ()


@dataclass(frozen=True)
class Block:
    """Steps in order.

    Attributes:
        inputs: slots that the caller fills.
        steps: what is computed.
        outputs: constants or Slots.
    """

    inputs: tuple[int, ...]
    steps: tuple[Step, ...]
    outputs: tuple[Any, ...]

    def describe(self) -> Iterator[tuple[str, str, tuple[str, ...], int]]:
        """Give (name, type, names of the steps taken from, elements of constants) of every step."""
        names: dict[int, str] = {}
        for step in self.steps:
            constants = [v for v in _flat(step.args.values()) if isinstance(v, Tensor)]
            if step.outputs:
                yield (
                    step.outputs[0][1],
                    step.type,
                    tuple(names[n] for n in slot_numbers(step.args.values()) if n in names),
                    sum(value.numel() for value in constants if value.is_floating_point()),
                )
            names.update({output[0]: step.outputs[0][1] for output in step.outputs})


Compute = Callable[[Step, dict[str, Any]], tuple[Any, ...]]


class Planner:
    """Plans one function; decompresses its weights on the way.

    Args:
        context: modes and limits, for the weights that are decompressed.
        compute: runs one step on its arguments.
    """

    def __init__(self, context: Context, compute: Compute) -> None:
        self._context = context
        self._compute = compute
        self._kernels = kernels()
        self._known: dict[int, Any] = {}  # id of a MIL variable -> constant or Slot
        self._count = 0

    def plan(self, block: Any, name: str = "main block") -> Block:
        """Plan a function or a nested block."""
        inputs = block.inputs.values() if isinstance(block.inputs, dict) else block.inputs
        slots = [self._slot(variable) for variable in inputs]
        steps: list[Step] = []
        for operation in block.operations:
            if operation.op_type == "const":
                continue
            step = self._step(operation, name)
            if operation.op_type.startswith("constexpr_"):
                values = self._compute(step, step.args)
                for variable, value in zip(operation.outputs, values, strict=True):
                    self._known[id(variable)] = value
            else:
                steps.append(step)
        outputs = tuple(self._value(variable) for variable in block.outputs)
        return Block(tuple(slots), _with_frees(slots, steps, outputs), outputs)

    def slot_of(self, variable: Any) -> Slot:
        """Return the slot of a planned function's input."""
        found = self._known[id(variable)]
        assert isinstance(found, Slot)
        return found

    def _slot(self, variable: Any) -> int:
        number = self._count
        self._count += 1
        self._known[id(variable)] = Slot(number)
        return number

    def _step(self, operation: Any, name: str) -> Step:
        args = {
            key: [self._value(v) for v in value]
            if isinstance(value, list | tuple)
            else self._value(value)
            for key, value in operation.inputs.items()
            if value is not None
        }
        first = operation.outputs[0].name if operation.outputs else operation.name
        nested = tuple(
            self.plan(block, f"block {number} of {first}")
            for number, block in enumerate(operation.blocks)
        )
        outputs = tuple(
            (self._slot(variable), variable.name, *_declared(variable))
            for variable in operation.outputs
        )
        kernel = self._kernels[operation.op_type]
        return Step(kernel, operation.op_type, f"{first} ({name})", args, outputs, nested)

    def _value(self, variable: Any) -> Any:
        known = self._known.get(id(variable))
        if known is None:
            if variable.op is None or variable.op.op_type != "const":
                raise CorruptInputError(f"{variable.name} is used before it is computed")
            known = _constant(variable.val, variable.name)
            self._known[id(variable)] = known
        return known


def _constant(value: Any, name: str) -> Any:
    """Return a stored constant as values are inside a program; lists and strings stay."""
    if isinstance(value, str | list):
        return str(value) if isinstance(value, str) else value
    array = np.asarray(value)
    if array.dtype.kind == "f":
        return torch.from_numpy(np.array(array, np.float32))
    if array.dtype.kind == "b":
        return torch.from_numpy(np.array(array))
    if array.dtype.kind in "iu":
        if array.size and not (-(2**31) <= int(array.min()) and int(array.max()) < 2**31):
            raise CorruptInputError(f"the constant {name} holds integers outside of int32")
        return torch.from_numpy(np.array(array, np.int32))
    raise CorruptInputError(f"the constant {name} is of the unknown type {array.dtype}")


def _declared(variable: Any) -> tuple[str, tuple[int | None, ...] | None]:
    from coremltools.converters.mil.mil import types

    kind = variable.sym_type
    if not (types.is_tensor(kind) or types.is_scalar(kind)) or kind in (types.str,):
        return "", None
    sizes = tuple(int(s) if isinstance(s, int | np.integer) else None for s in variable.shape)
    return str(types.builtin_to_string(variable.dtype)), sizes


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def slot_numbers(values: Any) -> Iterator[int]:
    """Give the numbers of the slots among arguments and lists of them."""
    return (value.number for value in _flat(values) if isinstance(value, Slot))


def _used(step: Step) -> set[int]:
    used = set(slot_numbers(step.args.values()))
    for block in step.blocks:
        used |= set(slot_numbers(block.outputs))
        for inner in block.steps:
            used |= _used(inner)
    return used


def _with_frees(slots: list[int], steps: list[Step], outputs: tuple[Any, ...]) -> tuple[Step, ...]:
    """Note at each step which of this block's values it is the last to need."""
    kept = set(slot_numbers(outputs))
    own = {*slots, *(output[0] for step in steps for output in step.outputs)}
    last: dict[int, int] = {}
    for index, step in enumerate(steps):
        for number in _used(step) | {output[0] for output in step.outputs}:
            last[number] = index
    frees: dict[int, list[int]] = {}
    for number, index in last.items():
        if number in own and number not in kept:
            frees.setdefault(index, []).append(number)
    return tuple(
        Step(
            step.kernel,
            step.type,
            step.place,
            step.args,
            step.outputs,
            step.blocks,
            tuple(sorted(frees.get(index, ()))),
        )
        for index, step in enumerate(steps)
    )


def bound(value: Any, values: dict[int, Any]) -> Any:
    """Return an argument with its slots filled."""
    if isinstance(value, Slot):
        return values[value.number]
    if isinstance(value, list):
        return [bound(part, values) for part in value]
    return value


def agrees(value: Any, declared: tuple[int | None, ...] | None) -> bool:
    """Whether a result has the shape that the program declares."""
    if declared is None or not isinstance(value, Tensor):
        return True
    return len(declared) == value.ndim and all(
        want is None or want == got for want, got in zip(declared, value.shape, strict=True)
    )
