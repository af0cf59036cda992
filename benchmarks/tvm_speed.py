"""How fast is what vitlet compiles with TVM, beside ONNX Runtime in float32?

    python benchmarks/tvm_speed.py [MODEL ...] [--seconds 3] [--threads 2] [--json FILE]
    python benchmarks/tvm_speed.py deit_tiny --profile 20    where the time goes, by kernel
    python benchmarks/tvm_speed.py casvit_xs --default       beside TVM's own compile (slow)
    python benchmarks/tvm_speed.py casvit_xs --tune 64 --minutes 8 --records FOLDER

A model is a name of the zoo, with ":text" behind it for the text encoder. Batch 1, made-up weights,
no tuning unless asked for, and then both. All run in one process in turn, on one core unless more
threads are asked for, in milliseconds of that thread's processor time (of the wall's clock for
several threads); medians. The ratio is the median over rounds of the quotient within a round, so
that a disturbance of the machine hits both; with several threads, TVM on one thread is timed as
well. First each output is held to torch's: a relative error over 1e-4 ends the run. "memory" is the
most that a process of its own has resident while it loads the library and runs it, Python included,
and how many times the weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TVM_BIND_THREADS", "0")

import numpy as np
import torch
from _common import Ways, about, bound, in_turn, pin
from export_speed import lively

import vitlet
from vitlet.export.onnx import export_onnx
from vitlet.export.options import Tuning
from vitlet.export.trace import Graph, graphs, trace
from vitlet.export.tvm import export_tvm
from vitlet.export.tvm_targets import find_machine
from vitlet.runtime.tvm import TvmEngine

MODELS = (
    "mobileclip_s0", "mobileclip_s0:text", "mobileclip_s2", "casvit_xs", "casvit_m", "deit_tiny",
    "deit_small",
)  # fmt: skip
# Time over ONNX Runtime's that the project aims at, on one thread.
GOALS = {"deit_tiny": 1.6, "deit_small": 1.6, "mobileclip_s0:text": 1.6}
GOAL = 2.0
TVM, ORT, DEFAULT, SINGLE = "TVM", "ORT", "TVM default", "TVM 1 thread"
TUNED = "TVM tuned"
RESIDENT = """
import sys, numpy
from vitlet.runtime.tvm import TvmEngine
engine = TvmEngine(sys.argv[1])
engine.run({spec.name: numpy.zeros(spec.shape, spec.dtype) for spec in engine.inputs})
print(*[line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")])
"""
TOLERANCE = 1e-4


def graph_of(name: str) -> Graph:
    """The graph of a model's name, merged, with made-up weights."""
    model, _, tower = name.partition(":")
    found = graphs(vitlet.reparameterize(lively(vitlet.create_model(model))))
    return found[-1] if tower == "text" else found[0]


def by_default(graph: Graph, feeds: dict[str, np.ndarray]) -> Callable[[], np.ndarray]:
    """The same program as TVM compiles it when nothing is asked of it."""
    import tvm
    from tvm.relax.frontend.torch import from_exported_program

    machine = find_machine()
    program = trace(graph, 1).run_decompositions()
    module = from_exported_program(
        program, keep_params_as_input=False, unwrap_unit_return_tuple=True
    )
    target = tvm.target.Target({"kind": "llvm", "mtriple": machine.triple, "mcpu": machine.cpu})
    device = tvm.cpu()
    run = tvm.relax.VirtualMachine(tvm.compile(module, target=target), device)["main"]
    given = [tvm.runtime.tensor(array) for array in feeds.values()]
    return lambda: run(*given).numpy()


def profile(engine: TvmEngine, feeds: dict[str, np.ndarray]) -> list[tuple[str, int, float]]:
    """Name, calls and milliseconds of every kernel and instruction, the dearest first."""
    totals: dict[str, list[float]] = {}
    begin = [0.0]

    def watch(_function: Any, symbol: str, before: bool, _result: Any, *_args: Any) -> int:
        if before:
            begin[0] = time.thread_time()
        else:
            entry = totals.setdefault(symbol, [0, 0.0])
            entry[0] += 1
            entry[1] += time.thread_time() - begin[0]
        return 0

    runs = 5
    engine._machine["set_instrument"](engine._ffi.convert(watch))
    for _ in range(runs):
        engine.run(feeds)
    engine._machine["set_instrument"](None)
    rows = [(name, int(n) // runs, t / runs * 1e3) for name, (n, t) in totals.items()]
    return sorted(rows, key=lambda row: -row[2])


def resident(library: Path) -> int:
    """Bytes that a process has resident at most, which loads a library and runs it once."""
    command = [sys.executable, "-c", RESIDENT, str(library)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) * 1024


def measure(name: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    graph, threads = graph_of(name), arguments.threads
    example = graph.example(1, seed=1)
    with torch.no_grad():
        expected = graph.module(*example).numpy()
    feeds = {spec.name: value.numpy() for spec, value in zip(graph.inputs, example, strict=True)}
    export_onnx(graph, folder / "model.onnx")
    begin, used = time.perf_counter(), time.process_time()
    export_tvm(graph, folder / "model.tvm.so")
    compiled, used = time.perf_counter() - begin, time.process_time() - used
    engine = TvmEngine(folder / "model.tvm.so", threads=threads)
    runner = bound(folder / "model.onnx", list(feeds.values()), expected, threads)
    answers: dict[str, Callable[[], Any]] = {
        TVM: lambda: next(iter(engine.run(feeds).values())),
        ORT: lambda: runner().numpy(),
    }
    ways: Ways = {TVM: lambda: engine.run(feeds), ORT: runner}
    if threads > 1:
        single = TvmEngine(folder / "model.tvm.so")
        answers[SINGLE] = lambda: next(iter(single.run(feeds).values()))
        ways[SINGLE] = lambda: single.run(feeds)
    if arguments.tune:
        tuning = Tuning(arguments.tune, arguments.minutes, arguments.records or folder)
        export_tvm(graph, folder / "tuned.tvm.so", tuning=tuning)
        tuned = TvmEngine(folder / "tuned.tvm.so", threads=threads)
        answers[TUNED] = lambda: next(iter(tuned.run(feeds).values()))
        ways[TUNED] = lambda: tuned.run(feeds)
    if arguments.default:
        answers[DEFAULT] = ways[DEFAULT] = by_default(graph, feeds)
    errors = {}
    for way, answer in answers.items():
        errors[way] = float(np.abs(answer() - expected).max() / np.abs(expected).max())
        if not errors[way] < TOLERANCE:
            raise SystemExit(f"{name}: {way} is wrong, relative error {errors[way]:.2g}")
    clock = time.thread_time if threads == 1 else time.perf_counter
    times = in_turn(ways, arguments.seconds, clock, least=2 if arguments.default else 7)
    measured = TUNED if arguments.tune else TVM
    quotients = [own / peer for own, peer in zip(times[measured], times[ORT], strict=True)]
    if arguments.profile:
        for kernel, calls, spent in profile(engine, feeds)[: arguments.profile]:
            print(f"    {spent:9.3f} ms {calls:4d} x {kernel}")
    return {
        "model": name,
        "threads": threads,
        "ms": {way: statistics.median(values) / 1e3 for way, values in times.items()},
        "ratio": statistics.median(quotients),
        "compile_s": compiled,
        "compile_cpu_s": used,
        "bytes": (folder / "model.tvm.so").stat().st_size,
        "error": errors[TVM],
        "resident_bytes": resident(folder / "model.tvm.so"),
        "weights_bytes": sum(w.numel() * 4 for w in graph.module.parameters()),
        "rounds": len(quotients),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing, each model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", type=int, default=0, metavar="N", help="print N kernels")
    parser.add_argument("--default", action="store_true", help="time TVM's own compile as well")
    parser.add_argument("--tune", type=int, default=0, metavar="TRIALS", help="of each kernel")
    parser.add_argument("--minutes", type=float, default=8.0, help="of tuning, each model")
    parser.add_argument("--records", type=Path, help="folder of what was measured")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    pin(arguments.threads)
    rows = []
    heads = [TVM, ORT, *([SINGLE] if arguments.threads > 1 else [])]
    heads += [TUNED] if arguments.tune else []
    heads += [DEFAULT] if arguments.default else []
    names = "".join(f"{head:>13}" for head in heads)
    print(f"{'ms':<20}{names}   TVM/ORT compile  error          memory")
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(name, arguments, Path(folder))
        rows.append(row)
        print(
            f"{name:<20}"
            + "".join(f"{row['ms'][head]:>13.2f}" for head in heads)
            + f"{row['ratio']:>10.2f}{row['compile_s']:>6.0f} s{row['error']:>8.0e}"
            + f"{row['resident_bytes'] / 1e6:>9.0f} MB"
            + f"{row['resident_bytes'] / row['weights_bytes']:>5.1f} x",
            flush=True,
        )
    if arguments.json:
        facts = about(threads=arguments.threads, cpu=find_machine().cpu)
        arguments.json.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    if arguments.threads == 1:
        missed = [r for r in rows if r["ratio"] > GOALS.get(r["model"], GOAL)]
        print("over the goal: " + (", ".join(str(r["model"]) for r in missed) or "none"))


if __name__ == "__main__":
    main()
