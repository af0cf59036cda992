"""From Relax operators to loops that a processor runs well.

TVM leaves a CPU's loops as they were written, one multiply-add at a time. Nearly all the time of
a vision transformer is in one kind of loop nest, ``out[.., m, .., n] += a[m, k] * b[k, .., n]``:
linear layers, attention products and, after `vitlet.export.tvm_legalize`, dense convolutions.
Here it is cut into register tiles: for each k, one row of `b` in vector registers meets a handful
of rows of `a` (Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008).
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import ScheduleError

from vitlet.export.tvm_legalize import LEGALIZE

RULES = "vitlet.export.tvm_rules"  # schedules of what is no contraction


@dataclass(frozen=True)
class Tile:
    """Register tile: `rows` x `columns` accumulators of float32, `lanes` to a vector register."""

    rows: int
    columns: int
    lanes: int


def tile_for(cpu_features: tuple[str, ...]) -> Tile:
    """Return the tile that fills, and does not spill, the vector registers of a processor."""
    if "avx512f" in cpu_features:
        return Tile(8, 32, 16)  # 16 of 32 registers of 16
    if "avx2" in cpu_features:
        return Tile(6, 16, 8)  # 12 of 16 registers of 8
    return Tile(6, 16, 4)  # NEON: 24 of 32 registers of 4


def pipeline(target: Any, tile: Tile) -> Any:
    """Return the passes that lower a Relax module for a CPU target."""

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def lower(module: Any, _context: Any) -> Any:
        with target:
            return tvm.transform.Sequential(
                [
                    relax.transform.DecomposeOpsForInference(),
                    relax.transform.CanonicalizeBindings(),
                    # Channels last: a 1x1 convolution is a linear layer, and the vectors of a
                    # depthwise one run over channels, however small the map is.
                    relax.transform.ConvertLayout({"relax.nn.conv2d": ["NHWC", "OHWI"]}),
                    relax.transform.CanonicalizeBindings(),
                    relax.transform.LegalizeOps(LEGALIZE),
                    relax.transform.AnnotateTIROpPattern(),
                    relax.transform.FoldConstant(),
                    relax.transform.FuseOps(),
                    relax.transform.FuseTIR(),
                    relax.transform.DeadCodeElimination(),
                    schedule_module(tile),
                    relax.transform.RewriteDataflowReshape(),
                    relax.transform.ToNonDataflow(),
                    relax.transform.RemovePurityChecking(),
                    relax.transform.CallTIRRewrite(),
                    relax.transform.StaticPlanBlockMemory(),
                    relax.transform.LowerAllocTensor(),
                    relax.transform.KillAfterLastUse(),
                    relax.transform.LowerRuntimeBuiltin(),
                    relax.transform.ComputePrimValue(),
                    relax.transform.VMShapeLower(),
                    relax.transform.AttachGlobalSymbol(),
                ]
            )(module)

    return lower


def schedule_module(tile: Tile) -> Any:
    """Return a pass that schedules every function of a module that is not scheduled yet.

    Contractions here; everything else by `vitlet.export.tvm_rules.schedule`, which returns None for
    what it leaves as it is. Feature maps come to both in the layout of the graph: see `pipeline`.
    """
    rules = importlib.import_module(RULES) if importlib.util.find_spec(RULES) else None

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def apply(module: Any, _context: Any) -> Any:
        for name, function in module.functions.items():
            if isinstance(function, tirx.PrimFunc) and not _is_scheduled(function):
                scheduled = schedule_contraction(function, tile)
                if scheduled is None and rules is not None:
                    scheduled = rules.schedule(function, tile)
                if scheduled is not None:
                    module[name] = scheduled
        return module

    return apply


def _is_scheduled(function: Any) -> bool:
    return function.attrs is not None and "tirx.is_scheduled" in function.attrs


def schedule_contraction(function: Any, tile: Tile) -> Any:
    """Return the function with its contraction in register tiles; None if it has none."""
    for share in (True, False):
        try:
            return _schedule(function, tile, share=share)
        except ScheduleError:  # the tiles of what follows are not those of the product
            continue
    return None  # a form that was not foreseen: slow, and right


def _schedule(function: Any, tile: Tile, *, share: bool) -> Any:
    """Schedule one function; with `share`, elementwise operators run inside the product's tiles."""
    schedule = Schedule(function)
    blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
    found = [(block, _roles(schedule.get(block))) for block in blocks]
    contractions = [(block, roles) for block, roles in found if roles is not None]
    if len(contractions) != 1:
        return None
    block, roles = contractions[0]
    rows, columns = _cut(roles, tile)
    padding = [1] * len(roles.sizes)
    padding[roles.m] = rows if roles.sizes[roles.m] % rows else 1
    padding[roles.n] = columns if roles.sizes[roles.n] % columns else 1
    if max(padding) > 1:
        schedule.pad_einsum(block, padding)
        share = False  # what follows runs over the true size
    output = _inline_epilogue(schedule, block)
    if output is not None and not share:
        loops = schedule.get_loops(output)
        if len(loops) > 1:
            schedule.parallel(schedule.fuse(*loops[:-1]))
    if output is None or not share:
        output = schedule.cache_write(block, 0, "global")
    _tile(schedule, block, output, roles, rows, columns)
    return schedule.mod["main"].with_attr("tirx.is_scheduled", True)


@dataclass(frozen=True)
class _Roles:
    """Which loops of a contraction are what: indices into its block's iteration variables."""

    sizes: tuple[int, ...]  # of every loop; 1 stands for a free size, which is left alone
    m: int
    n: int
    k: int
    others: tuple[int, ...]


def _roles(block: Any) -> _Roles | None:
    """Recognize ``out[.., m, .., n] += a[.., m, k] * b[.., k, .., n]``, in either order."""
    variables = list(block.iter_vars)
    reductions = [i for i, v in enumerate(variables) if v.iter_type == tirx.IterVar.CommReduce]
    if len(reductions) != 1 or block.init is None or len(block.writes) != 1:
        return None
    body = block.body
    if not isinstance(body, tirx.BufferStore) or not isinstance(body.value, tirx.Add):
        return None
    product = body.value.b
    if not isinstance(product, tirx.Mul):
        return None
    if str(body.buffer.dtype) != "float32":
        return None
    factors = (product.a, product.b)
    if not all(isinstance(factor, tvm.ir.TensorLoad) for factor in factors):
        return None
    by_variable = {v.var: i for i, v in enumerate(variables)}
    accesses = []
    for access in (*factors, body):
        plain = (tvm.ir.Var, tirx.IntImm)
        if not all(isinstance(index, plain) for index in access.indices):
            return None
        accesses.append(
            [
                by_variable.get(index, -1) if isinstance(index, tvm.ir.Var) else -1
                for index in access.indices
            ]
        )
    n = accesses[2][-1]
    if n < 0 or len(set(accesses[2]) - {-1}) != len(variables) - 1:
        return None
    rights = [side for side in accesses[:2] if n in side]
    lefts = [side for side in accesses[:2] if n not in side]
    if len(rights) != 1 or rights[0][-1] != n or reductions[0] not in lefts[0]:
        return None
    rows = [i for i in lefts[0] if i >= 0 and i not in rights[0]]
    sizes = [int(v.dom.extent) if isinstance(v.dom.extent, tirx.IntImm) else 1 for v in variables]
    rows = [i for i in rows if isinstance(variables[i].dom.extent, tirx.IntImm)]
    if not rows or not isinstance(variables[n].dom.extent, tirx.IntImm):
        return None
    m = max(rows, key=lambda i: sizes[i])
    others = tuple(i for i in range(len(variables)) if i not in (m, n, reductions[0]))
    return _Roles(tuple(sizes), m, n, reductions[0], others)


def _cut(roles: _Roles, tile: Tile) -> tuple[int, int]:
    """Return the tile's rows and columns for sizes that the ideal tile need not divide.

    Rounding a size up wastes work; a small tile wastes memory accesses; rounding up also keeps the
    elementwise operators that follow out of the tile. The cheapest compromise is taken.
    """

    def cost(size: int, part: int, reuse: float) -> float:
        padded = _round_up(size, part)
        return padded / size * (1 + reuse / part) * (1.05 if padded != size else 1.0)

    rows, columns = roles.sizes[roles.m], roles.sizes[roles.n]
    row_choices = range(1, min(tile.rows, rows) + 1)
    column_choices = [c for c in (32, 16, 8, 4, 1) if c <= tile.columns]
    best_rows = min(row_choices, key=lambda part: cost(rows, part, 1.0))
    best_columns = min(column_choices, key=lambda part: cost(columns, part, 2.0))
    return best_rows, best_columns


def _inline_epilogue(schedule: Any, block: Any) -> Any:
    """Merge the elementwise blocks after a contraction into the last of them, and return it.

    None when nothing follows, or when what follows is not elementwise in the same loops.
    """
    after = []
    frontier = [block]
    while frontier:
        consumers = schedule.get_consumers(frontier.pop())
        for consumer in consumers:
            if consumer not in after:
                after.append(consumer)
                frontier.append(consumer)
    names = {schedule.get(b).name_hint for b in after}
    if not after:
        return None
    outputs = schedule.get_output_blocks(schedule.get_sblock("root"))
    if len(outputs) != 1 or schedule.get(outputs[0]).name_hint not in names:
        return None
    for consumer in after:
        if schedule.get(consumer).name_hint != schedule.get(outputs[0]).name_hint:
            schedule.compute_inline(consumer)
    return outputs[0]


def _tile(schedule: Any, block: Any, output: Any, roles: _Roles, rows: int, columns: int) -> None:
    """Cut the output's loops into register tiles and compute the contraction inside each."""
    loops = list(schedule.get_loops(output))
    spatial = [i for i in range(len(roles.sizes)) if i != roles.k]
    if len(loops) > len(spatial):  # an image is written: its positions are one loop of the product
        loops[-2:] = [schedule.fuse(*loops[-2:])]
    where = {variable: loops[place] for place, variable in enumerate(spatial)}
    m_outer, m_inner = schedule.split(where[roles.m], [None, rows])
    n_outer, n_inner = schedule.split(where[roles.n], [None, columns])
    outer = [where[i] for i in roles.others]
    schedule.reorder(*outer, n_outer, m_outer, m_inner, n_inner)
    schedule.vectorize(n_inner)
    schedule.compute_at(block, m_outer, preserve_unit_loops=True)
    # Inside the tile: k outermost, so that the accumulators stay in registers.
    inner = list(schedule.get_loops(block))[-len(roles.sizes) :]
    m, n, k = inner[roles.m], inner[roles.n], inner[roles.k]
    schedule.reorder(k, m, n)
    schedule.unroll(m)
    schedule.vectorize(n)
    schedule.parallel(schedule.fuse(*outer, n_outer))
    schedule.decompose_reduction(block, k)


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
