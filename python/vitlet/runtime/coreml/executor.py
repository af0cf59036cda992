"""Runs a Core ML program.

Modes, exactly:

- "fp32": every floating-point operation in float32 on the stored weights; nothing is rounded to
  float16, not even by a `cast` to it. What the program means.
- "declared": each operation computes in float32, and its result is rounded to the type that the
  program declares for it. What a device's processor computes, but for the order of sums.
- "stress": as "declared"; besides, operations declared float16 keep their sums in float16:
  matrix products, convolutions, einsum and attention add `call.CHUNK` products at a time in
  float32 and round each part and each running sum to float16; reductions, normalizations and
  softmax do so with their terms. What overflows here may overflow on a device.

Integers have 32 bits and wrap around to narrower declared types. No mode simulates a GPU or the
Neural Engine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from numpy.typing import NDArray

from vitlet.errors import CorruptInputError, UsageError, VitletError
from vitlet.runtime.coreml.features import Feature, check_names, from_value, read_feature, to_tensor
from vitlet.runtime.coreml.package import read_package
from vitlet.runtime.coreml.state import Cell, State

if TYPE_CHECKING:
    from vitlet.runtime.coreml.call import Mode
    from vitlet.runtime.coreml.plan import Block, Step

MEMORY_LIMIT = 4 << 30
LOOP_LIMIT = 100_000


@dataclass(frozen=True)
class Value:
    """A value inside a program, as `watch` sees it.

    Attributes:
        name: in the program.
        op: type of the operation that made it.
        declared: its element type in the program, such as "fp16".
        array: float32, int32 or bool; valid until `watch` returns.
        inputs: names of the values that the operation took, without constants.
    """

    name: str
    op: str
    declared: str
    array: NDArray[Any]
    inputs: tuple[str, ...] = ()


Watch = Callable[[Value], None]


@dataclass(frozen=True)
class Operation:
    """One operation of a program's main block.

    Attributes:
        name: of its first result.
        type: such as "conv".
        inputs: names of the operations whose results it takes.
        elements: of its floating-point constants.
    """

    name: str
    type: str
    inputs: tuple[str, ...]
    elements: int


Compute = Callable[[dict[str, Any]], tuple[Any, ...]]
# (name of the operation's first result, its arguments, what computes it) -> its results
Intercept = Callable[[str, dict[str, Any], Compute], tuple[Any, ...]]


class CoreMLExecutor:
    """A package that is ready to run, on any system. Safe to use from several threads.

    Attributes:
        name: the function that runs.
        functions: names of all functions in the package.
        specification: version of the file format.
        inputs: what `run` takes.
        outputs: what it gives.
        states: name -> shape of each state variable.
        labels: class names or numbers of a classifier, in the order of its probabilities.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        mode: str = "fp32",
        function: str | None = None,
        *,
        memory_limit: int = MEMORY_LIMIT,
    ) -> None:
        """Open a package and unpack its weights.

        Args:
            path: the `.mlpackage` folder.
            mode: "fp32", "declared" or "stress": see the module.
            function: which function of the package; by default its default one.
            memory_limit: bytes that a single value may take.

        Raises:
            UsageError: no such file, function or mode.
            CorruptInputError: the package is damaged or asks for more than the limit.
            UnsupportedError: it is no ML program, or has operations that are not known; all of
                them are named.
            MissingDependencyError: coremltools or torch is not installed.
        """
        package = read_package(Path(path), function, memory_limit)
        from vitlet.runtime.coreml.call import Mode
        from vitlet.runtime.coreml.plan import Planner

        if mode not in get_args(Mode):
            raise UsageError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
        self.mode: Mode = mode  # type: ignore[assignment]
        self.name = package.name
        self.functions = package.functions
        self.specification = package.specification
        variables = package.program.inputs
        missing = [e.name for e in package.inputs if e.name not in variables]
        if missing:
            raise CorruptInputError(f"{path}: the program has no input {', '.join(missing)}")
        self.inputs = tuple(read_feature(e, variables[e.name]) for e in package.inputs)
        self._limit = memory_limit
        planner = Planner(self._context(None), _Run(self, None, {}).compute)
        self._block: Block = planner.plan(package.program)
        self._slots = {name: planner.slot_of(value).number for name, value in variables.items()}
        self.states = {
            name: _state_shape(value)
            for name, value in variables.items()
            if name not in {feature.name for feature in self.inputs}
        }
        results = package.program.outputs
        given = {value.name: index for index, value in enumerate(results)}
        lost = [entry.name for entry in package.outputs if entry.name not in given]
        if lost:
            raise CorruptInputError(f"{path}: the program has no output {', '.join(lost)}")
        self._places = [given[entry.name] for entry in package.outputs]
        self.outputs: tuple[Feature, ...] = tuple(
            read_feature(entry, results[place])
            for entry, place in zip(package.outputs, self._places, strict=True)
        )
        self.labels = _labels(self._block)

    def make_state(self) -> State:
        """Return the state of a new conversation: zeros."""
        import torch

        return State({name: Cell(torch.zeros(shape)) for name, shape in self.states.items()})

    def run(
        self,
        feeds: dict[str, Any],
        state: State | None = None,
        *,
        watch: Watch | None = None,
        intercept: Intercept | None = None,
    ) -> dict[str, Any]:
        """Compute every output.

        Args:
            feeds: input name -> array of the input's type and shape. Pictures are uint8 (H, W, 3)
                in RGB order or (H, W), or Pillow images of the right size.
            state: what a stateful program continues with, changed in place; None starts afresh.
            watch: told of every value inside, in order.
            intercept: called in place of every operation, to try what another result would do. It
                gets torch tensors and calls what computes the operation, once or several times.

        Returns:
            output name -> array; for a classifier also the best class, and class -> probability.

        Raises:
            ShapeError: a name, type or shape is not the one asked for.
            CorruptInputError: the program cannot be computed as it stands; names the operation.
            UnsupportedError: an operation is used in a way that is not known.
        """
        import torch

        check_names(feeds, self.inputs)
        cells = (state or self.make_state()).cells
        values: dict[int, Any] = {}
        with torch.no_grad():
            for feature in self.inputs:
                value = to_tensor(feeds.get(feature.name), feature)
                values[self._slots[feature.name]] = value
            for name in self.states:
                if name not in cells:
                    raise UsageError(f"the state has no {name!r}: it belongs to another program")
                values[self._slots[name]] = cells[name]
            results = _Run(self, watch, values, intercept).block(self._block)
        return {
            feature.name: from_value(results[place], feature)
            for feature, place in zip(self.outputs, self._places, strict=True)
        }

    @property
    def operations(self) -> tuple[Operation, ...]:
        """The operations of the main block, in the order in which they run."""
        return tuple(Operation(*facts) for facts in self._block.describe())

    def _context(self, run: Any) -> Any:
        from vitlet.runtime.coreml.call import Context

        return Context(self.mode, self._limit, LOOP_LIMIT, run)


class _Run:
    """One pass over the steps; `values` holds what is alive."""

    def __init__(
        self,
        executor: CoreMLExecutor,
        watch: Watch | None,
        values: dict[int, Any],
        intercept: Intercept | None = None,
    ) -> None:
        self._context = executor._context(self.nested)
        self._watch = watch
        self._intercept = intercept
        self._values = values
        # slot -> name of the value, for `watch`
        self._names = {number: name for name, number in executor._slots.items()} if watch else {}

    def block(self, block: Block) -> list[Any]:
        """Run the steps of a block whose inputs are in place."""
        from vitlet.runtime.coreml.plan import bound

        values = self._values
        for step in block.steps:
            args = {name: bound(value, values) for name, value in step.args.items()}
            if self._intercept is None or not step.outputs:
                results = self.compute(step, args)
            else:
                results = self._intercept(step.outputs[0][1], args, partial(self.compute, step))
            for (number, name, declared, _), value in zip(step.outputs, results, strict=True):
                values[number] = value
                if self._watch is not None:
                    self._show(step, number, Value(name, step.type, declared, value))
            for number in step.frees:
                del values[number]
        return [bound(value, values) for value in block.outputs]

    def _show(self, step: Step, number: int, value: Value) -> None:
        """Give a value to `watch`, if it is a tensor."""
        from vitlet.runtime.coreml.plan import slot_numbers

        self._names[number] = value.name
        if self._watch is not None and hasattr(value.array, "numpy"):
            taken = [self._names[s] for s in slot_numbers(step.args.values()) if s in self._names]
            inputs = tuple(dict.fromkeys(taken))
            self._watch(replace(value, array=value.array.numpy(), inputs=inputs))

    def nested(self, block: Block, arguments: Sequence[Any]) -> list[Any]:
        """Run a nested block on arguments."""
        self._values.update(zip(block.inputs, arguments, strict=True))
        return self.block(block)

    def compute(self, step: Step, args: dict[str, Any]) -> tuple[Any, ...]:
        """Run one kernel; round and check what it gives."""
        import torch

        from vitlet.runtime.coreml.call import Call, settle
        from vitlet.runtime.coreml.plan import agrees

        declared = tuple(output[2] for output in step.outputs)
        call = Call(step.type, step.place, args, declared or ("",), self._context, step.blocks)
        try:
            results = step.kernel(call)
        except VitletError:
            raise
        except (RuntimeError, ValueError, IndexError, TypeError, ArithmeticError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise call.bad(first) from error
        results = results if isinstance(results, tuple) else (results,)
        if len(results) != len(step.outputs):
            raise call.bad(f"it gives {len(results)} results, {len(step.outputs)} are declared")
        settled = []
        for value, (_, name, kind, shape) in zip(results, step.outputs, strict=True):
            if isinstance(value, torch.Tensor):
                value = settle(value, kind, self._context.mode)
            if not agrees(value, shape):
                raise call.bad(f"{name} has shape {tuple(value.shape)}, {shape} is declared")
            settled.append(value)
        return tuple(settled)


def _state_shape(variable: Any) -> tuple[int, ...]:
    wrapped = variable.sym_type.wrapped_type()
    return tuple(int(size) for size in wrapped.get_shape())


def _labels(block: Block) -> tuple[str | int, ...]:
    """Return the classes of a classifier; () where the program is none."""
    for step in block.steps:
        if step.type == "classify":
            names = step.args.get("classes")
            if not isinstance(names, list) or not names:
                raise CorruptInputError(f"classify at {step.place}: a classifier without labels")
            return tuple(name if isinstance(name, str) else int(name) for name in names)
    return ()
