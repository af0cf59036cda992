"""Pairs the tensors of a source with those of a compiled artefact, by content.

Same number of elements and close values, in any order of the axes: compilers fuse, rename and
re-order, so names only help. What a source tensor may be off by depends on what its inputs are off
by: an error that grows by a jump did not come from rounding, however small it still is.
"""

from __future__ import annotations

import itertools
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Array = NDArray[Any]
Named = tuple[str, Array]
# Largest error of a pair, relative to the tensor's largest magnitude: rounding adds up over layers.
_CLOSE = {"fp32": 1e-3, "fp16": 5e-2, "int8": 0.2}
# Rounding alone may put a tensor this far off. Above it, an error that grows by more than `_JUMP`
# from one tensor to the next did not come from rounding, however small it still is.
_FLOOR = {"fp32": 2e-6, "fp16": 5e-4, "int8": 1e-2}
_JUMP = 10.0
# After tensors without a partner less is allowed: a sigmoid, say, makes a gross error small again.
_JUMP_UNSEEN = 4.0
_TELLS = 2.0  # times the error that a pair may have: what moves less cannot tell right from wrong
_MOVES = (
    "getitem view reshape permute transpose unbind split squeeze clone expand slice select flatten "
    "contiguous to_copy chunk cast identity gather concat pad unsqueeze expand_dims"
).split()


@dataclass(frozen=True)
class Step:
    """One operation of the source with its value.

    Attributes:
        name: of the value.
        op: the operator.
        module: path of the torch module; "" where there is none.
        value: what it gave, in floating point.
        before: names of the steps whose values it takes.
        given: whether it is an input.
    """

    name: str
    op: str
    module: str
    value: Array
    before: tuple[str, ...] = ()
    given: bool = False

    @property
    def moves_only(self) -> bool:
        """Whether it computes nothing and only moves values."""
        name = self.op.removeprefix("aten.").split(".")[0].strip("_").lower()
        return name.startswith(tuple(_MOVES)) or name == "unsafe_view"


@dataclass
class Pairing:
    """Which tensors belong together.

    Attributes:
        partner: step -> number of the artefact's tensor, the nearest that is near enough.
        error: step -> largest error of that pair, relative to the largest magnitude.
        sound: steps with a partner, or from which one with a telling partner was computed.
        taken: numbers of the tensors that are near enough to some step.
        by_size: number of elements -> the artefact's tensors.
    """

    partner: dict[str, int] = field(default_factory=dict)
    error: dict[str, float] = field(default_factory=dict)
    sound: set[str] = field(default_factory=set)
    taken: set[int] = field(default_factory=set)
    by_size: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))


def pair(
    steps: Sequence[Step],
    held: Sequence[Named],
    precision: str,
    moved: Mapping[str, float] | None = None,
) -> Pairing:
    """Pair the source's steps, in order of computation, with an artefact's tensors.

    Args:
        steps: of the source, from its input on.
        held: the artefact's tensors.
        precision: of the artefact: it says how far rounding may lead.
        moved: step -> how far another input moves its value, relative to its magnitude. A value
            that hardly moves (a saturated gate, say) agrees even behind a wrong layer, so it
            vouches for nothing that it was computed from. None: every value tells.
    """
    kind = precision if precision in _CLOSE else "int8"
    close, floor = _CLOSE[kind], _FLOOR[kind]
    made = Pairing()
    for index, (_, array) in enumerate(held):
        made.by_size[array.size].append(index)
    level: dict[str, float] = {}
    given = {step.name for step in steps if step.given}
    telling: set[str] = set()
    for step in steps:
        before = max((level.get(name, floor) for name in step.before), default=floor)
        seen = all(name in made.partner or name in given for name in step.before)
        limit = min(close, (_JUMP if seen else _JUMP_UNSEEN) * max(before, floor))
        errors = [
            (distance(step.value, held[index][1]), index)
            for index in made.by_size.get(step.value.size, [])
            if _same(step.value, held[index][1], limit)
        ]
        level[step.name] = min(errors)[0] if errors else before
        if errors:
            made.error[step.name], made.partner[step.name] = min(errors)
            made.taken.update(index for _, index in errors)
            if moved is None or moved.get(step.name, 0.0) > _TELLS * limit:
                telling.add(step.name)
    vouched: set[str] = set()
    for step in reversed(steps):
        if step.name in telling or step.name in vouched:
            vouched.update(step.before)
    made.sound = vouched | set(made.partner)
    return made


def run_source(program: torch.export.ExportedProgram, array: Array) -> list[Step]:
    """Run a traced graph in torch and keep every float tensor that depends on the input."""
    import torch
    from torch import Tensor, fx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's notes on its own internals
        module = program.module()
    kept: list[Step] = []
    # node -> the kept steps whose values it holds or was computed from directly
    sources: dict[fx.Node, tuple[str, ...]] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            given = n.op == "placeholder"
            if given or any(arg in sources for arg in n.all_input_nodes):
                before = [name for arg in n.all_input_nodes for name in sources.get(arg, ())]
                sources[n] = tuple(dict.fromkeys(before))
                if n.op != "output" and isinstance(value, Tensor) and value.is_floating_point():
                    array = value.detach().float().numpy().copy()
                    target = str(n.target) if not callable(n.target) else _name(n.target)
                    kept.append(Step(n.name, target, _module(n), array, sources[n], given))
                    sources[n] = (n.name,)
            return value

    with torch.no_grad():
        Recorder(module).run(torch.from_numpy(array))
    return kept


def _name(target: Any) -> str:
    known = str(target)
    return known if known.startswith("aten.") else getattr(target, "__name__", known)


def _module(node: Any) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def movement(steps: Sequence[Step], others: Sequence[Step]) -> dict[str, float]:
    """Return how far apart the values of two runs are, relative to the first's magnitude."""
    found: dict[str, float] = {}
    values = {step.name: step.value for step in others}
    for step in steps:
        other = values.get(step.name)
        if other is not None and other.shape == step.value.shape:
            size = max(float(np.abs(step.value).max(initial=0.0)), 1e-12)
            with np.errstate(invalid="ignore"):
                apart = np.nan_to_num(np.abs(step.value - other), nan=0.0, posinf=0.0)
            found[step.name] = float(apart.max(initial=0.0)) / size
    return found


def nearest(want: Array, got: Array) -> Array:
    """Return `want` in the order of the axes in which it is nearest to `got`, flat float64."""
    values = np.where(np.isfinite(got), got, 1e30).ravel().astype(np.float64)
    flat = min(_candidates(want, got), key=lambda c: float(np.abs(c - values).max(initial=0)))
    return flat.astype(np.float64)


def distance(want: Array, got: Array) -> float:
    """Return the largest error between two tensors, relative to the first's largest magnitude."""
    size = max(float(np.abs(want).max(initial=0.0)), 1e-12)
    values = np.where(np.isfinite(got), got, 1e30).ravel()
    found = min(float(np.abs(flat - values).max(initial=0)) for flat in _candidates(want, got))
    return min(found / size, 1e9)


def _orders(shape: tuple[int, ...], wanted: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the orders of the axes longer than 1 of `shape` that give those of `wanted`."""
    if not 1 < len(shape) <= 4:
        return []
    target = tuple(size for size in wanted if size != 1)
    whole = itertools.permutations(range(len(shape)))
    # A reshape may have joined or cut the axes: then only the order in memory can be compared.
    return [o for o in whole if tuple(shape[axis] for axis in o) == target]


def _candidates(want: Array, got: Array) -> list[Array]:
    """Return `want` in the layouts that `got` may have, flat."""
    short = want.squeeze()
    flat = [want.ravel()]
    for order in _orders(short.shape, got.shape):
        if order != tuple(range(short.ndim)):
            flat.append(short.transpose(order).ravel())
    return flat


def _same(want: Array, got: Array, close: float) -> bool:
    size = float(np.abs(want).max(initial=0.0))
    values = got.ravel()
    if not np.isfinite(values).all():
        return False
    # Sums do not depend on the order of elements, and rule most pairs out.
    room = close * max(size, 1e-12)
    if abs(float(want.mean(dtype=np.float64)) - float(values.mean(dtype=np.float64))) > room:
        return False
    return any(
        float(np.abs(flat - values).max(initial=0)) <= room for flat in _candidates(want, got)
    )
