"""Matrix products on a CPU: what TVM is given to compute, and the loops that compute it.

``out[m, n] = f(sum_k a[m, k] * b[k, n])``, where f is whatever elementwise operators TVM fused
behind it. The second factor lies in panels of as many columns as a register tile has, so that a
step of k reads one short run of memory (Goto and van de Geijn, "Anatomy of High-Performance Matrix
Multiplication", 2008). Weights are put in panels at compile time, computed factors on entry. The
loops are written out here in full rather than cut from the definition by a schedule: a tile that
hangs over the edge is a smaller tile, not a padded or a guarded one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tvm import sym, te, tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import ScheduleError
from tvm.tirx import ForKind

from vitlet.export import tvm_balance
from vitlet.export.tvm_expressions import size, substitute, unflatten

_KINDS = {
    "serial": ForKind.SERIAL,
    "parallel": ForKind.PARALLEL,
    "vectorized": ForKind.VECTORIZED,
}
GEMM, PANELS = "gemm", "panels"  # names of blocks
_CACHE = 128 * 1024  # bytes of the first factor that are used for every panel in turn
_TILES = 4  # of rows, that a block has at least if it is made to give threads equal shares
_LIGHT = 8  # operations of an epilogue that is written out for every row of a tile

ByteDot = Literal["avx512vnni", "avxvnni", "avx2", "dotprod"]


@dataclass(frozen=True)
class Tile:
    """Register tile: `rows` x `columns` accumulators of float32, `lanes` to a vector register.

    `dot` is what a processor sums products of bytes with, if that is faster than in float32.
    """

    rows: int
    columns: int
    lanes: int
    dot: ByteDot | None = None


def product(shape: Sequence[Any], row: Callable[..., Any], panels: Any, columns: int) -> Any:
    """Define a product with a factor in panels.

    Args:
        shape: of the result but for its last dimension; rows m are its positions in order.
        row: the first factor's element for the indices of such a position and those of k.
        panels: the second factor, (panels, k, .., columns of a panel).
        columns: of the result.
    """
    axes = [te.reduce_axis((0, extent), "k") for extent in list(panels.shape)[1:-1]]
    count, width = int(panels.shape[0]), int(panels.shape[-1])
    rows: Any = 1
    for extent in shape:
        rows = rows * extent
    sums = te.compute(
        (count, rows, width),
        lambda p, m, i: te.sum(
            row(*unflatten(m, list(shape)), *axes) * panels[(p, *axes, i)], axis=axes
        ),
        GEMM,
    )

    def element(*at: Any) -> Any:
        m: Any = 0
        for index, extent in zip(at[:-1], shape, strict=True):
            m = m * extent + index
        return sums[at[-1] // width, m, at[-1] % width]

    return te.compute((*shape, columns), element, "product")


def batched(a: Any, b: Any, width: int, *, transposed: bool = False) -> Any:
    """Define products of pairs of matrices: a (.., m, k) and b (.., k, n), or (.., n, k)."""
    *outer, rows, inner = a.shape
    columns = b.shape[-2 if transposed else -1]
    count = -(-int(columns) // width)
    batch: Any = 1
    for extent in outer:
        batch = batch * extent

    def column(q: Any, p: Any, k: Any, i: Any) -> Any:
        n = p * width + i
        at = unflatten(q, outer)
        value = b[(*at, n, k)] if transposed else b[(*at, k, n)]
        if int(columns) % width == 0:
            return value
        return tirx.if_then_else(n < columns, value, tirx.const(0, "float32"))

    panels = te.compute((batch, count, inner, width), column, PANELS)
    k = te.reduce_axis((0, inner), "k")
    sums = te.compute(
        (batch, count, rows, width),
        lambda q, p, m, i: te.sum(a[(*unflatten(q, outer), m, k)] * panels[q, p, k, i], axis=k),
        GEMM,
    )

    def element(*at: Any) -> Any:
        q: Any = 0
        for index, extent in zip(at[:-2], outer, strict=True):
            q = q * extent + index
        return sums[q, at[-1] // width, at[-2], at[-1] % width]

    return te.compute((*outer, rows, columns), element, "product")


def schedule(function: Any, tile: Tile) -> Any:
    """Return a function whose definition is `product` or `batched`, as fast loops.

    None if there is none, or if what TVM fused behind it is not elementwise.
    """
    work = Schedule(function)
    names = {str(work.get(b).name_hint): b for b in work.get_child_blocks(work.get_sblock("root"))}
    if GEMM not in names:
        return None
    outputs = work.get_output_blocks(work.get_sblock("root"))
    try:
        for name, block in names.items():
            if name not in (GEMM, PANELS) and not work.get(block).same_as(work.get(outputs[0])):
                work.compute_inline(block)
    except ScheduleError:
        return None
    blocks = {str(work.get(b).name_hint): work.get(b) for b in names.values() if _lives(work, b)}
    result = work.get(outputs[0])
    if len(outputs) != 1 or result.name_hint not in blocks:
        return None
    loops = _Loops(blocks[GEMM], result, blocks.get(PANELS), tile)
    if not loops.fits():
        return None
    new = work.mod["main"].with_body(loops.write())
    return new.with_attr("tirx.is_scheduled", True)


def _lives(work: Any, block: Any) -> bool:
    try:
        work.get(block)
    except (ScheduleError, IndexError, ValueError):
        return False
    return True


class _Loops:
    """Writes the loops of one product."""

    def __init__(self, gemm: Any, result: Any, panels: Any, tile: Tile) -> None:
        self.result, self.panels, self.tile = result, panels, tile
        variables = list(gemm.iter_vars)
        self.sums = gemm.body.buffer
        self.left, self.right = gemm.body.value.b.a, gemm.body.value.b.b
        spatial = [v for v in variables if v.iter_type == tirx.IterVar.DataPar]
        self.inner = [v for v in variables if v.iter_type != tirx.IterVar.DataPar]
        self.batch = spatial[0] if len(spatial) == 4 else None
        self.panel, self.row, self.lane = spatial[-3:]
        self.sizes = [v.dom.extent for v in result.iter_vars]
        self.columns = int(self.sizes[-1])
        self.width = int(self.lane.dom.extent)

    def fits(self) -> bool:
        """Whether the result has the product's own shape."""
        rows: Any = 1
        for extent in self.sizes[:-1] if self.batch is None else self.sizes[-2:-1]:
            rows = rows * extent
        return bool(sym.Analyzer().can_prove_equal(rows, self.row.dom.extent))

    def write(self) -> Any:
        if self.batch is None:
            return tirx.stmt_seq(*self._sections(None))
        return self._loop(self.batch.dom.extent, "parallel", lambda q: self._with_panels(q))

    def _with_panels(self, q: Any) -> Any:
        """One pair of matrices: the second is put in panels, and used."""
        buffer = self.panels.body.buffer
        _, count, inner, width = buffer.shape
        room = tirx.decl_buffer((count, inner, width), "float32", "room", layout=None)
        variables = [v.var for v in self.panels.iter_vars]

        def fill(p: Any, k: Any) -> Any:
            def one(i: Any) -> Any:
                values = dict(zip(variables, (q, p, k, i), strict=True))
                return tirx.BufferStore(room, substitute(self.panels.body.value, values), [p, k, i])

            return self._loop(width, "vectorized", one)

        pack = self._loop(
            count, "serial", lambda p: self._loop(inner, "serial", lambda k: fill(p, k))
        )
        self.right = tirx.BufferLoad(room, list(self.right.indices)[1:])
        return tirx.stmt_seq(tirx.AllocBuffer(room), pack, *self._sections(q))

    def _sections(self, q: Any) -> list[Any]:
        """The loop over blocks of rows and panels; that of a batch is not parallel again."""
        full, rest = divmod(self.columns, self.width)
        count = full + (rest > 0)
        blocks, tiles = self._blocks(count)

        def item(f: Any) -> Any:
            block, p = (0, f) if blocks == 1 else (tirx.floordiv(f, count), f % count)
            whole = self._panel(q, p, tiles(block), self.width)
            if not rest:
                return whole
            edge = self._panel(q, full, tiles(block), rest)
            return tirx.IfThenElse(p < full, whole, edge) if full else edge

        return [self._loop(blocks * count, "parallel" if q is None else "serial", item)]

    def _blocks(self, count: int) -> tuple[int, Callable[[Any], list[Any]]]:
        """Return the number of blocks of rows, and of each the loops of tiles.

        A loop is (first row of a tile by its number, tiles, rows of a tile). Every block is used
        for `count` panels: what one of them computes is what a thread gets. All tiles are of one
        height, since two make LLVM keep what follows the sums out of registers: the last tile lies
        over the end of the one before and writes the same numbers again.
        """
        most, extent = self.tile.rows, self.row.dom.extent
        if not isinstance(extent, tirx.IntImm):  # a size that is not known: last rows one by one
            whole = tirx.floordiv(extent, most)
            full = (lambda t: t * most, whole, most)
            return 1, lambda _: [full, (lambda t: whole * most + t, extent - whole * most, 1)]
        rows = int(extent)
        depth = 1
        for axis in self.inner:
            depth *= int(axis.dom.extent)
        height = min(
            range(min(most, rows), max(most - 3, 0), -1), key=lambda h: -(-rows // h) * (h + 1),
            default=rows,
        )  # fmt: skip
        tiles = -(-rows // height)
        least = -(-tiles // max(_CACHE // (4 * depth) // height, 1))
        parts = tvm_balance.parts(count, least, max(tiles // _TILES, least))
        block = -(-tiles // parts)
        parts = -(-tiles // block)

        def loops_of(number: Any) -> list[Any]:
            first, here = number * block, min(block, tiles)
            if tiles % block and parts > 1:
                here = tirx.min(tiles - first, block)

            def begin(t: Any) -> Any:
                row = (first + t) * height
                return row if rows % height == 0 else tirx.min(row, rows - height)

            return [(begin, here, height)]

        return parts, loops_of

    def _panel(self, q: Any, p: Any, tiles: list[Any], width: int) -> Any:
        parts = []
        for begin, count, rows in tiles:

            def one(t: Any, begin: Any = begin, rows: int = rows) -> Any:
                return self._one_tile(q, p, begin(t), rows, width)

            parts.append(self._loop(count, "serial", one))
        return tirx.stmt_seq(*parts)

    def _one_tile(self, q: Any, p: Any, first: Any, rows: int, width: int) -> Any:
        """`rows` x `width` sums from row `first` of panel p, kept in registers; then the rest."""
        padded = -(-width // self.tile.lanes) * self.tile.lanes
        sums = tirx.decl_buffer((rows * padded,), "float32", "sums", scope="local", layout=None)
        lanes = tirx.const(padded, "int32")
        places = [tirx.Ramp(r * padded, 1, padded) for r in range(rows)]
        zero = tirx.Broadcast(tirx.const(0, "float32"), lanes)
        clear = [tirx.BufferStore(sums, zero, [place]) for place in places]

        def step(*ks: Any) -> Any:
            values = {axis.var: k for axis, k in zip(self.inner, ks, strict=True)}
            values[self.panel.var] = p
            if self.batch is not None:
                values[self.batch.var] = q
            outer = list(self.right.indices)[:-1]
            at = [substitute(index, values) for index in outer]
            run = tirx.BufferLoad(self.right.source, [*at, tirx.Ramp(0, 1, padded)])
            adds = []
            for r, place in enumerate(places):
                left = substitute(self.left, {**values, self.row.var: first + r})
                value = tirx.Broadcast(left, lanes) * run
                adds.append(tirx.BufferStore(sums, tirx.BufferLoad(sums, [place]) + value, [place]))
            return tirx.stmt_seq(*adds)

        sizes = [axis.dom.extent for axis in self.inner]
        body = self._nest(sizes, step)
        finish = self._finish(q, p, first, rows, width, sums, padded)
        return tirx.stmt_seq(tirx.AllocBuffer(sums), *clear, body, *finish)

    def _finish(
        self, q: Any, p: Any, first: Any, rows: int, width: int, sums: Any, padded: int
    ) -> list[Any]:
        """Apply what follows to a tile of sums and write it out."""
        variables = [v.var for v in self.result.iter_vars]
        body = self.result.body

        def write(source: Any, r: Any, n: Any) -> Any:
            m, outer = first + r, []
            if q is None:
                outer = unflatten(m, self.sizes[:-1])
            else:
                outer = [*unflatten(q, self.sizes[:-2]), m]
            values = dict(zip(variables, [*outer, p * self.width + n], strict=True))

            def load(buffer: Any, _indices: list[Any]) -> Any:
                if buffer.same_as(self.sums):
                    return tirx.BufferLoad(source, [r * padded + n])
                return None

            at = [substitute(index, values) for index in body.indices]
            return tirx.BufferStore(body.buffer, substitute(body.value, values, load), at)

        def row(source: Any, r: Any) -> Any:
            runs = []
            for at, part in _runs(width, self.tile.lanes):

                def one(i: Any, at: int = at) -> Any:
                    return write(source, r, at + i)

                runs.append(self._loop(part, "vectorized", one))
            return tirx.stmt_seq(*runs)

        if size(body.value) <= _LIGHT or rows == 1:
            return [row(sums, r) for r in range(rows)]
        # A loop over rows, so that a long formula is there once; the sums leave their registers.
        kept = tirx.decl_buffer((rows * padded,), "float32", "kept", scope="local", layout=None)
        places = [tirx.Ramp(r * padded, 1, padded) for r in range(rows)]
        copies = [tirx.BufferStore(kept, tirx.BufferLoad(sums, [at]), [at]) for at in places]
        return [tirx.AllocBuffer(kept), *copies, self._loop(rows, "serial", lambda r: row(kept, r))]

    def _nest(self, sizes: list[Any], body: Callable[..., Any], *outer: Any) -> Any:
        if not sizes:
            return body(*outer)
        return self._loop(sizes[0], "serial", lambda k: self._nest(sizes[1:], body, *outer, k))

    def _loop(self, extent: Any, kind: str, body: Callable[[Any], Any]) -> Any:
        """A loop from zero; without the loop when it would run once."""
        dtype = self.row.var.ty.dtype
        known = isinstance(extent, int | tirx.IntImm)
        if known and int(extent) == 1:
            return body(tirx.const(0, dtype))
        variable = tirx.Var("i", dtype)
        count = tirx.const(int(extent), dtype) if known else extent
        return tirx.For(variable, tirx.const(0, dtype), count, _KINDS[kind], body(variable))


def _runs(width: int, lanes: int) -> list[tuple[int, int]]:
    """Cut a row into vectors that are a power of two long: (first, length)."""
    found = []
    at, part = 0, max(lanes, 16)
    while at < width:
        while part > width - at:
            part //= 2
        found.append((at, part))
        at += part
    return found
