"""Tries which operations of a float32 Core ML program can compute as float16 would.

Candidates come by what float16 does to them on exact inputs: those that overflow, then those that
lose most. From the front of that order the set of operations to hold doubles until the tolerance is
met, and then every one that is not needed is given back. Without any single one of those that are
left the tolerance is missed: the smallest set of its kind, though a smaller one of other operations
may exist.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from vitlet.errors import UnsupportedError
from vitlet.export.cases import Case
from vitlet.export.compare import compare
from vitlet.export.coreml_half import MOVES
from vitlet.export.tolerance import Tolerance
from vitlet.runtime.coreml import CoreMLExecutor, Operation

Array = NDArray[Any]
Compute = Callable[[dict[str, Any]], tuple[Any, ...]]
_HALF_MAX = 65504.0
_MASK = -1e30  # what is below stands for minus infinity
_FEW = 3  # cases that are tried at first: those that are furthest off


@dataclass(frozen=True)
class Kept:
    """One operation that is held in float32.

    Attributes:
        name: in the program; what `keep_fp32` takes.
        type: such as "linear".
        layer: path of the torch module.
        largest: largest magnitude of its arguments and result.
        lost: what float16 takes of its result on exact inputs, relative to the result's length;
            1 where it overflows.
        elements: of its weights, which take 4 bytes instead of 2.
    """

    name: str
    type: str
    layer: str
    largest: float
    lost: float
    elements: int


class Trial:
    """A float32 program, some operations of which are computed as float16 would.

    Attributes:
        candidates: operations that may be float16, in order.
        runs: executions so far.
    """

    def __init__(
        self,
        exact: Path,
        half: Path,
        cases: Sequence[Case],
        feeds: Sequence[Array],
        limits: Tolerance,
    ) -> None:
        self._executor = CoreMLExecutor(exact)
        self._cases, self._feeds, self._limits = cases, feeds, limits
        self._operations = self._executor.operations
        names = _halved(self._operations, CoreMLExecutor(half).operations)
        self.candidates = tuple(o for o in self._operations if o.name in names)
        self.runs = 0
        self._facts: dict[str, _Fact] = {}
        self._order: list[str] = []

    def search(self) -> frozenset[str]:
        """Return the names of the operations to hold.

        Raises:
            UnsupportedError: all of them are not enough.
        """
        everything = frozenset(operation.name for operation in self.candidates)
        self._rank()
        chosen = self._worst(range(len(self._cases)), frozenset())[:_FEW]
        failing = self._first_failing(everything, range(len(self._cases)))
        if failing is not None:
            output, _ = self._run(failing, everything)
            found = compare(self._cases[failing].output, output)
            raise UnsupportedError(
                f"keep_fp32='auto' cannot meet the tolerance: with every operation in float32 the "
                f"cosine for {self._cases[failing].name} is {found.cosine:.7f} and the relative "
                f"error {found.relative:.1e}: loosen it (--tol), or find what is wrong with "
                "`vitlet verify --first-bad`"
            )
        keep = frozenset(name for name in self._order if self._facts[name].overflows)
        while True:
            keep = self._shrink(self._grow(keep, chosen), chosen)
            failing = self._first_failing(keep, range(len(self._cases)))
            if failing is None:
                return keep
            chosen = [failing, *chosen]

    def more(self, keep: frozenset[str]) -> frozenset[str]:
        """Return twice as many operations, by their order."""
        rest = [name for name in self._order if name not in keep]
        return keep | frozenset(rest[: max(len(keep), 1)])

    def facts(self, keep: frozenset[str]) -> list[Kept]:
        """Return what was found of operations, in the program's order."""
        return [
            Kept(
                operation.name,
                operation.type,
                "",
                self._facts[operation.name].largest,
                self._facts[operation.name].lost,
                operation.elements,
            )
            for operation in self.candidates
            if operation.name in keep
        ]

    def _rank(self) -> None:
        """Compute every candidate both ways on exact inputs, and sort."""
        facts = {operation.name: _Fact() for operation in self.candidates}

        def intercept(name: str, args: dict[str, Any], compute: Compute) -> tuple[Any, ...]:
            exact = compute(args)
            if name in facts:
                facts[name].add(args, exact, compute(_rounded(args)), counts)
            return exact

        for case, feed in zip(self._cases, self._feeds, strict=True):
            counts = possible(case)
            self._execute(feed, intercept)
        self._facts = facts
        # Later ones first among equals: what comes late has less behind it to make up for it.
        places = {operation.name: i for i, operation in enumerate(self.candidates)}
        self._order = sorted(
            facts, key=lambda n: (not facts[n].overflows, -facts[n].lost, -places[n])
        )

    def _execute(self, feed: Array, intercept: Any) -> Array:
        self.runs += 1
        (given,), (taken,) = self._executor.inputs, self._executor.outputs
        output: Array = self._executor.run({given.name: feed}, intercept=intercept)[taken.name]
        return output[:1]

    def _run(self, case: int, keep: frozenset[str]) -> tuple[Array, bool]:
        """Return the output, and whether something became infinite by rounding."""
        exact = self._exact(keep)
        over = False

        def intercept(name: str, args: dict[str, Any], compute: Compute) -> tuple[Any, ...]:
            nonlocal over
            if name in exact:
                return compute(args)
            given = _rounded(args)
            made = compute(given)
            results = tuple(_half(value) for value in made)
            over = over or _lost([*args.values()], [*given.values()]) or _lost(made, results)
            return results

        return self._execute(self._feeds[case], intercept), over

    def _exact(self, keep: frozenset[str]) -> set[str]:
        """Return what computes in float32: what is kept, what moves it, and what always does."""
        maybe = {operation.name for operation in self.candidates}
        exact: set[str] = set()
        for operation in self._operations:
            moved = operation.type in MOVES
            if operation.name in keep or (moved and any(n in exact for n in operation.inputs)):
                exact.add(operation.name)
            elif not moved and operation.name not in maybe:
                exact.add(operation.name)
        return exact

    def _passes(self, case: int, keep: frozenset[str]) -> bool:
        output, over = self._run(case, keep)
        if over and possible(self._cases[case]):
            return False
        return within(self._cases[case].output, output, self._limits)

    def _first_failing(self, keep: frozenset[str], cases: Sequence[int]) -> int | None:
        return next((case for case in cases if not self._passes(case, keep)), None)

    def _worst(self, cases: Sequence[int], keep: frozenset[str]) -> list[int]:
        """Return the cases, the one that is furthest off first."""
        errors = {}
        for case in cases:
            output, over = self._run(case, keep)
            found = compare(self._cases[case].output, output)
            errors[case] = (over and possible(self._cases[case]), found.nonfinite, found.relative)
        return sorted(errors, key=lambda case: errors[case], reverse=True)

    def _grow(self, keep: frozenset[str], cases: Sequence[int]) -> frozenset[str]:
        rest = [name for name in self._order if name not in keep]
        count = 0
        while self._first_failing(held := keep | frozenset(rest[:count]), cases) is not None:
            count = max(2 * count, 1)
        return held

    def _shrink(self, keep: frozenset[str], cases: Sequence[int]) -> frozenset[str]:
        """Give back what is not needed, the least suspicious first: many at once, then one."""
        size = max(len(keep) // 2, 1)
        while True:
            order = [name for name in reversed(self._order) if name in keep]
            for start in range(0, len(order), size):
                fewer = keep - frozenset(order[start : start + size])
                if self._first_failing(fewer, cases) is None:
                    keep = fewer
            if size == 1:
                return keep
            size //= 2


def _halved(exact: Sequence[Operation], half: Sequence[Operation]) -> set[str]:
    """Return the float32 program's names of what the other computes in float16.

    Both hold the same operations in the same order but for casts and moves. Names differ now and
    then; what became float16 ends in "_cast_fp16".
    """
    ones, others = (
        [o for o in operations if o.type not in MOVES and o.type != "cast"]
        for operations in (exact, half)
    )
    if [o.type for o in ones] != [o.type for o in others]:
        raise UnsupportedError(
            "keep_fp32='auto' cannot follow this graph: its float16 program has other operations "
            "than its float32 program; name the layers to keep"
        )
    pairs = zip(ones, others, strict=True)
    return {one.name for one, other in pairs if other.name.endswith("_cast_fp16")}


@dataclass
class _Fact:
    """What float16 does to one operation on exact inputs."""

    largest: float = 0.0
    lost: float = 0.0
    overflows: bool = False

    def add(
        self, args: Mapping[str, Any], exact: Sequence[Any], rounded: Sequence[Any], counts: bool
    ) -> None:
        """Take in one execution; `counts` is whether a device can meet it."""
        for value in [*_floats(args.values()), *_floats(exact)]:
            finite = value[value.isfinite() & (value > _MASK)]
            if finite.numel():
                self.largest = max(self.largest, float(finite.abs().max()))
        self.overflows |= counts and self.largest > _HALF_MAX
        for want, got in zip(_floats(exact), _floats(rounded), strict=True):
            want, got = (torch.nan_to_num(v.double(), 0, 0, 0) for v in (want, _half(got)))
            size = float(want.norm())
            if size:
                self.lost = max(self.lost, min(float((got - want).norm()) / size, 1.0))


def _floats(values: Any) -> list[Tensor]:
    flat = [v for entry in values for v in (entry if isinstance(entry, list | tuple) else [entry])]
    return [v for v in flat if isinstance(v, Tensor) and v.is_floating_point()]


def _half(value: Any) -> Any:
    if isinstance(value, list):
        return [_half(entry) for entry in value]
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    return value.half().float() if is_float else value


def _rounded(args: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _half(value) for name, value in args.items()}


def _lost(before: Sequence[Any], after: Sequence[Any]) -> bool:
    """Whether rounding made a finite value infinite, masks aside."""
    pairs = zip(_floats(before), _floats(after), strict=True)
    return any(bool((b.isfinite() & (b > _MASK) & ~a.isfinite()).any()) for b, a in pairs)


def all_finite(values: Sequence[Any]) -> bool:
    """Whether all values are finite, masks aside."""
    return all(bool((v.isfinite() | (v < _MASK)).all()) for v in _floats(values))


def within(expected: Array, actual: Array, limits: Tolerance) -> bool:
    """Whether every row of outputs is as close as asked for."""
    found = compare(expected, actual)
    return (
        not found.nonfinite
        and found.cosine >= limits.cosine
        and found.relative <= limits.rel
        and (limits.max is None or found.max_abs <= limits.max)
    )


def possible(case: Case) -> bool:
    """Whether a device can meet this input: only then does an overflow inside count."""
    return case.is_pixels or case.stored.dtype.kind == "i"
