"""Finds the first layer at which a compiled artefact leaves its source.

The source graph is run node by node in torch, the artefact with every intermediate tensor kept, and
the two are paired by content: same number of elements and close values, in any order of the axes.
Compilers fuse, rename and re-order, so names only help. A node without a partner is hidden by
fusion if something that is computed from it has one; the first bad node is the earliest that has
neither a partner nor a descendant with one, while the artefact does hold a tensor of that size that
belongs to nothing.
"""

from __future__ import annotations

import itertools
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from vitlet.data.spec import Preprocess
from vitlet.errors import UnsupportedError
from vitlet.export.cases import Case
from vitlet.export.onnx_trace import onnx_tensors
from vitlet.export.result import FirstBad
from vitlet.export.trace import Graph, trace
from vitlet.layers.fused_mixer import fuse_mixers
from vitlet.runtime.manifest import Artifact

Array = NDArray[Any]
# Largest error of a pair, relative to the tensor's largest magnitude: rounding adds up over layers.
_CLOSE = {"fp32": 1e-3, "fp16": 5e-2, "int8": 0.2}
# Rounding alone may put a tensor this far off. Above it, an error that grows by more than `_JUMP`
# from one tensor to the next did not come from rounding, however small it still is.
_FLOOR = {"fp32": 2e-6, "fp16": 5e-4, "int8": 1e-2}
_JUMP = 10.0
# After tensors without a partner less is allowed: a sigmoid, say, makes a gross error small again.
_JUMP_UNSEEN = 4.0
_MOVES = (
    "getitem view reshape permute transpose unbind split squeeze clone expand slice select flatten "
    "contiguous to_copy chunk"
).split()


@dataclass(frozen=True)
class Step:
    """One traced node with its value."""

    node: fx.Node
    module: str
    value: Array


def first_bad_layer(
    path: Path,
    artifact: Artifact,
    graph: Graph,
    case: Case,
    preprocess: Preprocess | None,
    wanted: Preprocess | None = None,
) -> FirstBad | None:
    """Return the first diverging layer of an ONNX or TVM artefact for one input; None if none is.

    Args:
        path: the artefact.
        artifact: its entry.
        graph: the deployable graph that it was compiled from.
        case: an input for which the outputs differ.
        preprocess: how the artefact's input is made.
        wanted: how the source's is made, where that is not the same.

    Raises:
        UnsupportedError: the artefact is of a kind that cannot be looked into.
    """
    if artifact.target == "tvm":  # there a mixer is one function, with nothing to see inside
        graph = replace(graph, module=fuse_mixers(graph.module, "fp32"))
    steps = run_source(trace(graph, 1), case.floats(wanted or preprocess))
    if artifact.preprocess == "in-graph":
        if not case.is_pixels or preprocess is None:
            raise UnsupportedError(f"{artifact.file} takes pixels and {case.name} has none")
        given: Array = case.pixels(preprocess)
    else:
        given = case.floats(preprocess).astype(artifact.inputs[0].dtype)
    feed = {artifact.inputs[0].name: given}
    if artifact.target == "onnx":
        (tensors,) = onnx_tensors(path, [feed])
        held = [(name, value.astype(np.float32)) for name, value in tensors.items()]
    elif artifact.target == "tvm":
        from vitlet.runtime.tvm import TvmEngine

        outputs, calls = TvmEngine(path, artifact, 1).run_traced(feed)
        held = [*calls, *outputs.items()]
    else:
        raise UnsupportedError(f"the layers of a {artifact.target} artefact cannot be traced here")
    precision = artifact.precision if artifact.precision in _CLOSE else "int8"
    return _first_bad(steps, held, _CLOSE[precision], _FLOOR[precision])


def run_source(program: torch.export.ExportedProgram, array: Array) -> list[Step]:
    """Run a traced graph in torch and keep every float tensor that depends on the input."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's notes on its own internals
        module = program.module()
    kept: list[Step] = []

    class Recorder(fx.Interpreter):
        moving: set[fx.Node] = set()  # noqa: RUF012 - one instance, below

        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n.op == "placeholder" or any(arg in self.moving for arg in n.all_input_nodes):
                self.moving.add(n)
                if n.op != "output" and isinstance(value, Tensor) and value.is_floating_point():
                    kept.append(Step(n, _module_path(n), value.detach().float().numpy().copy()))
            return value

    with torch.no_grad():
        Recorder(module).run(torch.from_numpy(array))
    return kept


def _module_path(node: fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _first_bad(
    steps: Sequence[Step], held: Sequence[tuple[str, Array]], close: float, floor: float
) -> FirstBad | None:
    by_size: dict[int, list[int]] = defaultdict(list)
    for index, (_, array) in enumerate(held):
        by_size[array.size].append(index)
    paired, sound, taken = _pair(steps, held, by_size, close, floor)
    after = ""
    for step in steps:
        if step.node in sound:
            after = (step.node in paired and step.module) or after
            continue
        if step.node.op == "placeholder":
            continue
        free = [i for i in by_size.get(step.value.size, []) if i not in taken]
        if not free and step is not steps[-1]:
            continue  # fused away: the artefact holds nothing of this size that could be it
        errors = [_distance(step.value, held[i][1]) for i in free]
        # Names survive in ONNX often enough to be believed over the nearest content.
        named = [_distance(step.value, held[i][1]) for i in free if held[i][0] == step.node.name]
        hidden = _hidden(step, steps, paired)
        guilty = step
        if _moves_only(step.node):
            # Only what computes can be wrong; what it computes is seen here for the first time.
            guilty = next((h for h in reversed(hidden) if not _moves_only(h.node)), step)
        others = sorted({h.module for h in hidden if h.node not in sound} - {guilty.module, ""})
        note = f"or {', '.join(others[:4])}, merged with it by the compiler" if others else ""
        return FirstBad(
            guilty.module,
            str(guilty.node.target),
            guilty.node.name,
            tuple(int(size) for size in guilty.value.shape),
            min(named or errors, default=None),
            after,
            note,
        )
    return None


def _pair(
    steps: Sequence[Step],
    held: Sequence[tuple[str, Array]],
    by_size: dict[int, list[int]],
    close: float,
    floor: float,
) -> tuple[set[fx.Node], set[fx.Node], set[int]]:
    """Return the nodes with a partner, those that are sound, and the partners."""
    level: dict[fx.Node, float] = {}
    paired: set[fx.Node] = set()
    taken: set[int] = set()
    values = {step.node for step in steps if step.node.op != "placeholder"}
    for step in steps:
        before = max((level.get(node, floor) for node in step.node.all_input_nodes), default=floor)
        seen = all(node in paired or node not in values for node in step.node.all_input_nodes)
        limit = min(close, (_JUMP if seen else _JUMP_UNSEEN) * max(before, floor))
        errors = [
            (_distance(step.value, held[index][1]), index)
            for index in by_size.get(step.value.size, [])
            if _same(step.value, held[index][1], limit)
        ]
        level[step.node] = min(errors)[0] if errors else before
        if errors:
            paired.add(step.node)
            taken.update(index for _, index in errors)
        for node in step.node.users:  # a node that gives several tensors has no value of its own
            level.setdefault(node, level[step.node])
    # Backwards: a node is sound if it has a partner or anything computed from it has.
    sound: set[fx.Node] = set()
    for node in reversed(list(steps[0].node.graph.nodes) if steps else []):
        if node in paired or any(user in sound for user in node.users):
            sound.add(node)
    return paired, sound, taken


def _hidden(bad: Step, steps: Sequence[Step], paired: set[fx.Node]) -> list[Step]:
    """Return the unpaired nodes between the last paired ones and the bad one, in order."""
    seen = {bad.node}
    front = list(bad.node.all_input_nodes)
    while front:
        node = front.pop()
        if node in seen or node in paired or node.op in ("placeholder", "get_attr"):
            continue
        seen.add(node)
        front += node.all_input_nodes
    return [step for step in steps if step.node in seen and step.node is not bad.node]


def _moves_only(node: fx.Node) -> bool:
    name = getattr(node.target, "__name__", str(node.target)).split(".")[0]
    return any(name.strip("_").startswith(move.strip("_")) for move in _MOVES) or (
        name == "_unsafe_view"
    )


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
    return any(float(np.abs(flat - values).max()) <= room for flat in _candidates(want, got))


def _distance(want: Array, got: Array) -> float:
    size = max(float(np.abs(want).max(initial=0.0)), 1e-12)
    values = np.where(np.isfinite(got), got, 1e30).ravel()
    found = min(float(np.abs(flat - values).max()) for flat in _candidates(want, got))
    return min(found / size, 1e9)
