"""The process in which `vitlet.export.tvm_tuning` has kernels measured: it may die.

``python -m vitlet.export.tvm_tune_worker FOLDER`` reads the folder's ``job.json`` and
``kernels.json``, and says on its output, a line of JSON each, which kernel it begins and ends.
Every schedule that was measured goes into the records at once.
"""

from __future__ import annotations

import importlib
import inspect
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.analysis import estimate_tir_flops
from tvm.s_tir.meta_schedule.builder import BuilderResult, PyBuilder
from tvm.s_tir.meta_schedule.database import JSONDatabase
from tvm.s_tir.meta_schedule.runner import PyRunner
from tvm.s_tir.meta_schedule.runner.local_runner import LocalRunnerFuture
from tvm.target import Target

from vitlet.export import tvm_gemm, tvm_rules
from vitlet.export.tvm_gemm import Tile
from vitlet.export.tvm_tuning import (
    MEASURED,
    RECORDS,
    WORKLOADS,
    Measurement,
    as_module,
    scheduled,
)

_BATCH = 16  # schedules that are built before the next generation is drawn
_REPEAT_MS = 10  # a time is the mean of as many calls as take this long
_ROUNDS = 7  # of the last comparison
Library = Any


def load_intrinsics() -> None:
    """Import the instructions that MetaSchedule knows; in 4 seconds instead of 33.

    TVM looks at the stack for each of them, and Python then goes through all modules per frame.
    """
    search = inspect.getmodule
    inspect.getmodule = lambda *_: None
    try:
        importlib.import_module("tvm.s_tir.tensor_intrin")
    finally:
        inspect.getmodule = search


def say(event: str, kernel: str) -> None:
    """Tell the other process; in one write, which a kill does not cut."""
    sys.stdout.write(json.dumps({"event": event, "kernel": kernel}) + "\n")
    sys.stdout.flush()


def build(module: Any, target: Any) -> Library:
    """Compile a scheduled module into this process."""
    with tvm.transform.PassContext(opt_level=3):
        return tvm.compile(module, target=target).jit()


def arguments(function: Any) -> list[Any]:
    """Return arrays for a kernel's parameters."""
    random = np.random.default_rng(0)
    found = []
    for buffer in function.params:
        shape = [int(size) for size in buffer.shape]
        floating = str(buffer.dtype).startswith("float")
        values = random.standard_normal(shape) if floating else np.zeros(shape)
        found.append(tvm.runtime.tensor(values.astype(str(buffer.dtype))))
    return found


def seconds(library: Library, given: list[Any]) -> float:
    """Return how long one call takes, once."""
    timer = library.time_evaluator("main", tvm.cpu(), number=1, min_repeat_ms=_REPEAT_MS)
    return float(timer(*given).mean)


class Bench:
    """MetaSchedule's builder and runner, in this process: no start of another per schedule."""

    def __init__(self, given: list[Any]) -> None:
        built: dict[str, Library] = {}

        @derived_object
        class Builder(PyBuilder):  # type: ignore[misc]
            def build(self, build_inputs: list[Any]) -> list[Any]:
                built.clear()
                results = []
                for number, one in enumerate(build_inputs):
                    try:
                        built[str(number)] = build(one.mod, one.target)
                        results.append(BuilderResult(str(number), None))
                    except Exception as error:  # a schedule that cannot be built is a bad one
                        results.append(BuilderResult(None, str(error)[-200:]))
                return results

        @derived_object
        class Runner(PyRunner):  # type: ignore[misc]
            def run(self, runner_inputs: list[Any]) -> list[Any]:
                names = [str(one.artifact_path) for one in runner_inputs]
                return [LocalRunnerFuture(res=[seconds(built[name], given)]) for name in names]

        self.builder, self.runner = Builder(), Runner()


def by_rules(function: Any, tile: Tile) -> Any:
    """Return the kernel as an untuned export schedules it."""
    made = tvm_gemm.schedule(function, tile)
    return (tvm_rules.schedule(function, tile) if made is None else made) or function


def _search() -> Any:
    """A small population: with no model of costs to ask, drawing a large one takes time alone."""
    return ms.search_strategy.EvolutionarySearch(
        population_size=64, init_min_unmeasured=_BATCH, genetic_num_iters=2
    )


def measure(kernel: str, function: Any, job: dict[str, Any], database: Any, room: Path) -> Any:
    """Tune one kernel and time the best schedule and the rules' in turn."""
    target, given = Target(job["machine"]), arguments(function)
    rules = build(as_module(by_rules(function, Tile(**job["tile"]))), target)
    module, bench = as_module(function), Bench(given)
    ms.tune_tir(
        module,
        target,
        str(room),
        job["trials"],
        num_trials_per_iter=min(_BATCH, job["trials"]),
        builder=bench.builder,
        runner=bench.runner,
        database=database,
        cost_model="random",
        strategy=_search(),
        measure_callbacks=[ms.measure_callback.AddToDatabase()],
        num_tuning_cores=1,
        seed=0,
    )
    schedule = database.query_schedule(module, target, "main")
    if schedule is None:
        return Measurement(kernel, job["trials"], seconds(rules, given), None)
    tuned = build(as_module(scheduled(schedule, function)), target)
    pairs = [(seconds(rules, given), seconds(tuned, given)) for _ in range(_ROUNDS)]
    own, other = (statistics.median(times) for times in zip(*pairs, strict=True))
    return Measurement(kernel, job["trials"], own, other)


def main(room: Path) -> None:
    """Measure every kernel of a folder, those that compute most first."""
    load_intrinsics()
    job = json.loads((room / "job.json").read_text())
    module = tvm.ir.load_json((room / "kernels.json").read_text())
    records = Path(job["records"])
    database = JSONDatabase(str(records / WORKLOADS), str(records / RECORDS))
    kernels = {str(v.name_hint)[1:]: f for v, f in module.functions.items()}
    amounts = {kernel: estimate_tir_flops(as_module(f)) for kernel, f in kernels.items()}
    for kernel, function in sorted(kernels.items(), key=lambda item: -amounts[item[0]]):
        if time.monotonic() > job["deadline"]:
            return
        say("begin", kernel)
        with tempfile.TemporaryDirectory(prefix="vitlet-") as logs:
            measured = measure(kernel, function, job, database, Path(logs))
        with (records / MEASURED).open("a") as file:
            file.write(json.dumps(asdict(measured)) + "\n")
        say("end", kernel)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
