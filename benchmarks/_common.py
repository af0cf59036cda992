"""What the kernels' benchmarks share: pinned cores, ways timed in turn, ONNX Runtime's calls."""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from vitlet import _C

Ways = dict[str, Callable[[], Any]]


def pin(threads: int = 1) -> Callable[[], float]:
    """Keep to so many cores; return the clock: of this thread, or the wall's for several."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[-threads:]))
    torch.set_num_threads(threads)
    return time.thread_time if threads == 1 else time.perf_counter


def in_turn(
    ways: Ways, seconds: float, clock: Callable[[], float] = time.thread_time, least: int = 9
) -> dict[str, list[float]]:
    """Time every way in turn for `seconds`, at least `least` rounds: microseconds of each round."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < least or time.perf_counter() < end:
        rounds += 1
        for name, way in ways.items():
            way()  # the others' data leave the cache
            begin = clock()
            way()
            way()
            times[name].append((clock() - begin) / 2 * 1e6)
    return times


def ratio(times: dict[str, list[float]], name: str, peers: list[str]) -> float:
    """How many times faster than the fastest of its peers: the median over rounds."""
    rounds = zip(times[name], *(times[peer] for peer in peers), strict=True)
    return statistics.median(min(others) / own for own, *others in rounds)


def fastest(times: dict[str, list[float]], names: list[str]) -> str:
    """Return the name with the least median."""
    return min(names, key=lambda name: statistics.median(times[name]))


def geometric_mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


def onnx_model(
    nodes: list[onnx.NodeProto], inputs: dict[str, np.ndarray], out: tuple[str, np.ndarray],
    constants: list[onnx.TensorProto] | None = None,
) -> bytes:  # fmt: skip
    """A model of float32 arrays with one output, as ONNX Runtime takes it."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    given = [helper.make_tensor_value_info(n, kind, a.shape) for n, a in inputs.items()]
    made = helper.make_tensor_value_info(out[0], kind, out[1].shape)
    graph = helper.make_graph(nodes, "graph", given, [made], initializer=constants or [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


def bound(
    model: Path | bytes, inputs: list[np.ndarray], out: np.ndarray, threads: int = 1
) -> Callable[[], Any]:
    """A call of the model with bound arrays, in the model's order; it returns its output."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    runner = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    given = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in inputs]
    result = onnxruntime.OrtValue.ortvalue_from_numpy(np.empty_like(out))
    binding = runner.io_binding()
    for entry, value in zip(runner.get_inputs(), given, strict=True):
        binding.bind_ortvalue_input(entry.name, value)
    binding.bind_ortvalue_output(runner.get_outputs()[0].name, result)

    def run(_keep: Any = given) -> Any:  # the runtime holds no reference to what is bound
        runner.run_with_iobinding(binding)
        return result

    return run


def about(**more: Any) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "isa": _C.active_isa(),
        "machine": platform.machine(),
        "onnxruntime": onnxruntime.__version__,
        "torch": torch.__version__,
        **more,
    }
