"""From Relax operators to loops that a processor runs well.

TVM leaves a CPU's loops as they were written, one multiply-add at a time. Nearly all the time of
a vision transformer is in one kind of loop nest, ``out[.., m, .., n] += a[m, k] * b[k, .., n]``:
linear layers, attention products and, after `vitlet.export.tvm_legalize`, dense convolutions.
Here it is cut into register tiles: for each k, one row of `b` in vector registers meets a handful
of rows of `a` (Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tvm
from numpy.typing import NDArray
from tvm import relax, tirx

from vitlet.export import tvm_gemm, tvm_rules
from vitlet.export.tvm_gemm import Tile
from vitlet.export.tvm_layout import channels_last, fold_constants
from vitlet.export.tvm_legalize import LEGALIZE
from vitlet.export.tvm_products import lower_products
from vitlet.export.tvm_weights import lift_weights

Tune = Callable[[dict[str, Any]], Mapping[str, Any]]


def tile_for(cpu_features: tuple[str, ...]) -> Tile:
    """Return the tile that fills, and does not spill, the vector registers of a processor."""
    if "avx512f" in cpu_features:
        # 16 of 32 registers of 16
        return Tile(8, 32, 16, "avx512vnni" if "avx512_vnni" in cpu_features else None)
    if "avx2" in cpu_features:
        # 12 of 16 registers of 8
        return Tile(6, 16, 8, "avxvnni" if "avx_vnni" in cpu_features else "avx2")
    # NEON: 24 of 32 registers of 4
    return Tile(6, 16, 4, "dotprod" if "asimddp" in cpu_features else None)


def pipeline(target: Any, tile: Tile, weights: list[NDArray[Any]], tune: Tune | None = None) -> Any:
    """Return the passes that lower a Relax module for a CPU target.

    Args:
        target: of TVM.
        tile: the processor's registers.
        weights: receives the values of the parameters that the graph's function takes after its
            inputs.
        tune: returns better loops than the rules' for some of the kernels it is given, by name.
    """

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def lower(module: Any, _context: Any) -> Any:
        with target:
            return tvm.transform.Sequential(
                [
                    relax.transform.DecomposeOpsForInference(),
                    relax.transform.CanonicalizeBindings(),
                    channels_last(),
                    fold_constants(),
                    relax.transform.CanonicalizeBindings(),
                    lower_products(tile.columns),
                    relax.transform.DeadCodeElimination(),
                    relax.transform.LegalizeOps(LEGALIZE),
                    relax.transform.AnnotateTIROpPattern(),
                    relax.transform.FoldConstant(),
                    relax.transform.FuseOps(),
                    relax.transform.FuseTIR(),
                    relax.transform.DeadCodeElimination(),
                    schedule_module(tile, tune),
                    lift_weights(weights),
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


def schedule_module(tile: Tile, tune: Tune | None = None) -> Any:
    """Return a pass that schedules every function of a module that is not scheduled yet.

    Contractions here; everything else by `vitlet.export.tvm_rules.schedule`, which returns None for
    what it leaves as it is. Feature maps come to both in the layout of the graph: see `pipeline`.
    """

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def apply(module: Any, _context: Any) -> Any:
        plain = {
            name: function
            for name, function in module.functions.items()
            if isinstance(function, tirx.PrimFunc) and not _is_scheduled(function)
        }
        better = tune({str(v.name_hint): f for v, f in plain.items()}) if tune else {}
        for name, function in plain.items():
            if str(name.name_hint) in better:
                module[name] = better[str(name.name_hint)]
            else:
                scheduled = tvm_gemm.schedule(function, tile)
                if scheduled is None:
                    scheduled = tvm_rules.schedule(function, tile)
                if scheduled is not None:
                    module[name] = scheduled
        return module

    return apply


def _is_scheduled(function: Any) -> bool:
    return function.attrs is not None and "tirx.is_scheduled" in function.attrs
