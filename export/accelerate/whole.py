"""Accelerates a graph, and takes it back if the whole is not faster for it."""

from __future__ import annotations

import functools
import statistics
import time
from pathlib import Path
from typing import Any

import onnx_ir as ir

from vitlet._extras import require
from vitlet.export.accelerate.graph import accelerate_layers
from vitlet.export.accelerate.layers import MIXER
from vitlet.export.accelerate.table import Table, measuring_table
from vitlet.export.functions import attach
from vitlet.export.functions.operator import DOMAIN
from vitlet.export.onnx_passes import finish
from vitlet.export.trace import Graph
from vitlet.runtime.ort import session_options

_ROUNDS, _SECONDS = (5, 30), 1.5
_LEAST_GAIN = 1.02  # less is within the noise of a busy machine, and the plain file is simpler


def accelerate_model(
    model: ir.Model, graph: Graph, accelerate: str, given: Table | None
) -> tuple[ir.Model, Table]:
    """Return the faster of a model with the chosen layers and without, and the table of times.

    Mixers of CAS-ViT stay our operator in both. Without a given table both are run here, on one
    thread, in turn; see `accelerate_layers` for the arguments and errors.
    """
    table = measuring_table() if given is None else given
    plain = ir.serde.deserialize_model(ir.serde.serialize_model(model))
    accelerate_layers(model, graph.name, accelerate, table)
    ours = {node.op_type for node in model.graph if node.domain == DOMAIN}
    if ours <= {MIXER}:
        return model, table
    times = table.file(graph.name, functools.partial(_compare, plain, model, graph))
    if times and times["plain"] <= times["layers"] * _LEAST_GAIN:
        for key, ways in table.chosen[graph.name].items():
            if not key.startswith(MIXER):
                table.chosen[graph.name][key] = {"plain": sum(ways.values())}
        return plain, table
    return model, table


def _compare(plain: ir.Model, layers: ir.Model, graph: Graph, library: Path) -> dict[str, float]:
    """Return each model's microseconds of processor time, medians over interleaved runs."""
    runtime = require("onnxruntime", extra="runtime", why="measure models for accelerate")
    feeds = {
        spec.name: value.numpy() for spec, value in zip(graph.inputs, graph.example(1), strict=True)
    }
    sessions: dict[str, Any] = {}
    for name, model in (("plain", plain), ("layers", layers)):
        copy = ir.serde.deserialize_model(ir.serde.serialize_model(model))
        finish(copy)
        attach(copy)
        options = session_options(runtime, 1, library if copy.functions else None)
        content = ir.serde.serialize_model(copy).SerializeToString()
        sessions[name] = runtime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )
    times: dict[str, list[float]] = {name: [] for name in sessions}
    end = time.perf_counter() + _SECONDS
    while True:
        for name, session in sessions.items():
            started = time.thread_time()
            session.run(None, feeds)
            times[name].append((time.thread_time() - started) * 1e6)
        rounds = len(times["plain"])
        if rounds >= _ROUNDS[1] or (rounds >= _ROUNDS[0] and time.perf_counter() > end):
            break
    return {name: statistics.median(rounds[1:]) for name, rounds in times.items()}
