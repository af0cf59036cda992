"""Compiles a graph with TVM into one shared library per machine, weights inside.

Apache TVM (Chen et al., "TVM: An Automated End-to-End Optimizing Compiler for Deep Learning",
OSDI 2018) translates the traced program into its Relax language, fuses operators, schedules
loops (`vitlet.export.tvm_schedule`), and has LLVM write machine code. `vitlet.runtime` runs the
library without the compiler and without torch.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlet._extras import require
from vitlet._quiet import others_silenced
from vitlet.errors import StorageError, UnsupportedError, UsageError, VitletError
from vitlet.export.link import find_linker, link, make_record
from vitlet.export.tvm_targets import Machine, find_machine
from vitlet.export.tvm_translate import last_line, translate
from vitlet.layers.spelled_out import rounds_tokens
from vitlet.runtime.elf import cpu_flags
from vitlet.runtime.manifest import Artifact, TensorSpec
from vitlet.runtime.progress import Progress, null_progress

if TYPE_CHECKING:
    from vitlet.export.options import Tuning
    from vitlet.export.trace import Graph


def export_tvm(
    graph: Graph,
    path: str | os.PathLike[str],
    *,
    triple: str | None = None,
    cpu: str | None = None,
    target: str | None = None,
    batch: int | tuple[int, int] | str = 1,
    precision: str = "fp32",
    extern: bool = False,
    tuning: Tuning | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Compile a graph into one shared library.

    Args:
        graph: from `vitlet.export.trace.graphs`.
        path: the `.tvm.so` file to write.
        triple: machine to compile for, one of `TRIPLES`; this machine when None.
        cpu: LLVM's processor name, such as "x86-64-v3" or "cortex-a72". By default this very
            processor when compiling for this machine, else the oldest of the triple. A library
            for a newer processor than the one that loads it is refused by name at loading.
        target: instead of both, a name of `vitlet.export.tvm_targets.MACHINES`, or a string such
            as "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a55 -mattr=+dotprod".
        batch: a fixed batch size; a session splits and pads to it. "dyn" for any batch.
        precision: "fp32".
        extern: call vitlet's C++ kernels for its operators, instead of compiling loops for them.
            The library then runs under `vitlet.runtime` only, and not on another triple.
        tuning: try other loops on this machine, and keep what is faster; see
            `vitlet.export.tvm_tuning`.
        progress: told of each step.

    Returns:
        The manifest entry; its `file` is the file's name.

    Raises:
        UnsupportedError: an operator, precision, batch or machine that TVM cannot take here.
        MissingDependencyError: apache-tvm or the (cross) compiler is not installed.
        StorageError: the file cannot be written.
    """
    path = Path(path)
    step = progress or null_progress
    _check_arguments(batch, precision)
    require("tvm", extra="tvm", why="compile for TVM")
    from vitlet.export.tvm_weights import laid_out

    machine = find_machine(triple, cpu, target=target)
    if extern and not machine.native:
        raise UnsupportedError(
            f"extern calls kernels of this machine's vitlet: it does not go with {machine.triple}"
        )
    flags = cpu_flags()
    if tuning is not None and not (machine.native and set(machine.cpu_features) <= flags):
        raise UnsupportedError(
            f"tuning measures on this machine: it does not go with {machine.name}"
        )
    linker = find_linker(machine.triple, native=machine.native)

    with step(f"trace {graph.name} for TVM"):
        module = _translate(graph, batch, machine, extern)
    with step(f"compile {graph.name} with TVM for {machine.cpu}"), others_silenced():
        executable, weights = _compile(module, machine, tuning, step)
    fixed = batch if isinstance(batch, int) else "batch"
    inputs, outputs = _sized(graph.inputs, fixed), _sized(graph.outputs, fixed)
    record = make_record(
        triple=machine.triple,
        cpu=machine.cpu,
        cpu_features=machine.cpu_features,
        inputs=inputs,
        outputs=outputs,
    )
    with step(f"link {path.name}"), tempfile.TemporaryDirectory(prefix="vitlet-") as folder:
        _check_room(graph, folder)

        def collect(_output: str, files: list[str], **_options: Any) -> None:
            names = [Path(file).name for file in files]
            link(linker, names, Path(folder), path, record, laid_out(weights))

        try:
            executable.mod.export_library(str(path), fcompile=collect, workspace_dir=folder)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    return Artifact(
        target="tvm",
        graph=graph.name,
        file=path.name,
        precision=precision,
        inputs=inputs,
        outputs=outputs,
        toolchain={
            name: importlib.metadata.version(name)
            for name in ("apache-tvm", "apache-tvm-ffi", "torch")
        },
        details={
            "triple": machine.triple,
            "cpu": machine.cpu,
            "cpu_features": list(machine.cpu_features),
            "linker": Path(linker).name,
            **({"extern": "vitlet"} if extern else {}),
            **({"tuned_trials": tuning.trials} if tuning is not None else {}),
            **({"arithmetic": "int8"} if rounds_tokens(graph.module) else {}),
        },
    )


def _check_room(graph: Graph, folder: str) -> None:
    """Refuse a temporary folder without room: LLVM ends the whole process when a write fails."""
    weights = graph.module.state_dict().values()
    needed = 3 * sum(tensor.numel() * tensor.element_size() for tensor in weights)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"linking needs about {needed // 10**6} MB in {tempfile.gettempdir()}, "
            f"{free // 10**6} MB are free: make room, or set TMPDIR to another folder"
        )


def _check_arguments(batch: int | tuple[int, int] | str, precision: str) -> None:
    if precision != "fp32":
        raise UnsupportedError(f"tvm does not take precision {precision!r}: it takes fp32")
    if isinstance(batch, tuple):
        raise UnsupportedError(
            f'tvm does not take a batch range, got {batch}: give a number or "dyn"'
        )
    if isinstance(batch, str) and batch != "dyn":
        raise UsageError(f'batch must be a number or "dyn", got {batch!r}')
    if isinstance(batch, int) and batch < 1:
        raise UsageError(f"batch must be at least 1, got {batch}")


def _translate(graph: Graph, batch: Any, machine: Machine, extern: bool) -> Any:
    """Return the graph as a Relax module, CAS-ViT's token mixers as one operator each."""
    from vitlet.export.tvm_ops.convert import converters
    from vitlet.export.tvm_schedule import tile_for
    from vitlet.layers.fused_mixer import fuse_mixers

    tile = tile_for(machine.cpu_features)
    fused = replace(graph, module=fuse_mixers(graph.module, "fp32"))
    return translate(fused, batch, lambda program: converters(program, tile, extern=extern))


def _compile(
    module: Any, machine: Machine, tuning: Tuning | None, progress: Progress
) -> tuple[Any, list[Any]]:
    """Return TVM's executable, and the weights that it takes as arguments."""
    import tvm

    from vitlet.export import tvm_tuning
    from vitlet.export.tvm_schedule import pipeline, tile_for

    target, tile = machine.target(), tile_for(machine.cpu_features)
    weights: list[Any] = []

    def tune(functions: dict[str, Any]) -> dict[str, Any]:
        if tuning is None:
            return {}
        # A count of cores is what MetaSchedule shares loops by; times are taken on one.
        options = {"num-cores": os.cpu_count() or 1, **machine.options()}
        return tvm_tuning.tune(functions, options, tile, tuning, progress)

    try:
        with tvm.transform.PassContext(opt_level=3):
            executable = tvm.compile(
                module,
                target=target,
                relax_pipeline=pipeline(target, tile, weights, tune),
            )
    except VitletError:
        raise
    except Exception as error:
        raise VitletError(f"TVM failed to compile: {last_line(error)}") from error
    return executable, weights


def _sized(specs: tuple[TensorSpec, ...], batch: int | str) -> tuple[TensorSpec, ...]:
    return tuple(replace(spec, shape=(batch, *spec.shape[1:])) for spec in specs)
