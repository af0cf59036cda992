"""A graph's kernels as CUDA source, which nvcc compiles where there is no GPU.

TVM's own rules for GPUs schedule them (`tvm.s_tir.dlight`): products in tiles of shared memory,
sums of rows by the threads of a block, the rest one thread to a number. Vitlet's operators have
loops of their own, in `vitlet.export.tvm_ops`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitlet._extras import require
from vitlet._quiet import others_silenced
from vitlet.errors import UsageError, VitletError
from vitlet.export.tvm_translate import last_line, translate

if TYPE_CHECKING:
    from vitlet.export.trace import Graph

_KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\(\d+\) )?(\w+)\(')


@dataclass(frozen=True)
class CudaSource:
    """What nvcc compiles.

    Attributes:
        code: of all kernels.
        kernels: their names, in the code's order.
    """

    code: str
    kernels: tuple[str, ...]


def cuda_source(graph: Graph, *, batch: int = 1, arch: str = "sm_80") -> CudaSource:
    """Return the kernels that compute a graph, each step of it one or a few of them.

    Args:
        graph: from `vitlet.export.trace.graphs`.
        batch: a fixed batch size.
        arch: of the GPU, as nvcc writes it. Newer ones run the code too.

    Raises:
        UsageError: a batch below 1, or an architecture that is not written as nvcc does.
        UnsupportedError: an operator that TVM cannot take.
        MissingDependencyError: apache-tvm is not installed.
    """
    if batch < 1:
        raise UsageError(f"batch must be at least 1, got {batch}")
    if not re.fullmatch(r"sm_[1-9][0-9]{1,2}", arch):
        raise UsageError(f'arch must be a name such as "sm_80", got {arch!r}')
    require("tvm", extra="tvm", why="generate CUDA source with TVM")
    from vitlet.export.tvm_ops.convert import converters

    module = translate(graph, batch, lambda program: converters(program, None))
    try:
        with others_silenced():
            code = _generate(module, arch)
    except Exception as error:  # TVM's passes raise builtins of all kinds
        raise VitletError(f"TVM failed to generate CUDA source: {last_line(error)}") from error
    return CudaSource(code, tuple(dict.fromkeys(_KERNEL.findall(code))))


class _Careful:
    """A rule of TVM's that leaves to the next one what it fails on, as GEMV does on some sizes."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule

    def apply(self, function: Any, target: Any, tunable: bool) -> Any:
        try:
            return self.rule.apply(function, target, tunable)
        except (AttributeError, AssertionError, ValueError, RuntimeError):
            return None


def _generate(module: Any, arch: str) -> str:
    import tvm
    from tvm import relax, tirx
    from tvm.s_tir import dlight

    from vitlet.export.tvm_legalize import take

    target = tvm.target.Target({"kind": "cuda", "arch": arch}, host={"kind": "llvm"})
    gpu = dlight.gpu
    rules = [gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback()]
    passes = [
        relax.transform.DecomposeOpsForInference(),
        relax.transform.CanonicalizeBindings(),
        relax.transform.LegalizeOps({"relax.take": take}),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
        dlight.ApplyDefaultSchedule(*map(_Careful, rules)),
    ]
    with target:
        module = tvm.transform.Sequential(passes)(module)
    kernels = {
        name: function.with_attr("global_symbol", str(name.name_hint))
        for name, function in module.functions.items()
        if isinstance(function, tirx.PrimFunc)
    }
    compiled = tvm.compile(tvm.IRModule(kernels), target=target)
    return str(compiled.mod.imports[0].inspect_source())
