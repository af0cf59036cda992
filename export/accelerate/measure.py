"""Times layers in ONNX Runtime: as it would run them, and in vitlet's kernels, in one session.

ONNX Runtime's profiler tells how long each node took. A node that only moves an image into or out
of the blocked order that its convolutions like is not counted: in a model these lie between many.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from vitlet._extras import require
from vitlet.export.accelerate.layers import MIXER, Layer
from vitlet.export.accelerate.rewrite import Rewriter
from vitlet.export.accelerate.tokens import TO_FIRST, TO_LAST
from vitlet.export.functions import attach
from vitlet.runtime.ort import session_options

_ROUNDS, _MILLISECONDS = (9, 60), 12.0
PLAIN = "plain"


def measure_layer(
    layer: Layer, formats: Sequence[str], opset: int, library: Path
) -> dict[str, float]:
    """Return microseconds per way: "plain", and each format of the kernel.

    Args:
        layer: of a graph that is not changed.
        formats: such as "fp32"; of a mixer, those of `mixer_formats`.
        opset: of the graph.
        library: `libvitlet_ort`.
    """
    ways: dict[str, ir.Graph] = {}
    channels = layer.attributes.get("channels", 0)
    parts = len(layer.weight) // channels if channels else 1
    if layer.kind != MIXER:
        # Several outputs a channel: ONNX Runtime gets a layer for each, see onnx_multiplier.
        ways[PLAIN] = _alone(layer, channels if parts > 1 else None)
    for way in formats:
        graph = _alone(layer)
        copies = _copy_of(layer, graph)
        Rewriter(graph, [(copies, way)], set()).run()
        if layer.image and (layer.kind != MIXER or way.endswith("nhwc")):
            _take_last(graph)
        ways[way] = graph
    times = _run(ways, opset, library)
    return {way: time * (parts if way == PLAIN else 1) for way, time in times.items()}


def measure_transpose(shape: tuple[int, int, int], opset: int, library: Path) -> float:
    """Return the microseconds of turning one (height, width, channels)."""
    height, width, channels = shape
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=ir.Shape([1, height, width, channels]))
    node = ir.node("Transpose", [x], {"perm": TO_FIRST})
    node.outputs[0].name = "y"
    node.outputs[0].shape = ir.Shape([1, channels, height, width])
    return _run({PLAIN: _graph([x], [node])}, opset, library)[PLAIN]


def _graph(inputs: list[ir.Value], nodes: list[ir.Node], constants: Any = ()) -> ir.Graph:
    (output,) = nodes[-1].outputs
    output.dtype = ir.DataType.FLOAT
    return ir.Graph(inputs, [output], nodes=nodes, initializers=list(constants), name="layer")


def _alone(layer: Layer, outputs: int | None = None) -> ir.Graph:
    """Return a graph of the layer's own nodes, perhaps of its first output channels only."""
    whole = len(layer.weight)
    values: dict[int, ir.Value] = {}
    inputs, constants = [], []
    inner = {id(node.outputs[0]) for node in layer.nodes}

    def copied(value: ir.Value | None) -> ir.Value | None:
        if value is None or id(value) in values:
            return None if value is None else values[id(value)]
        assert value.shape is not None or value.const_value is not None
        known = value.const_value.shape if value.const_value is not None else value.shape
        shape = [size if isinstance(size, int) else 1 for size in known or ()]
        array = None if value.const_value is None else value.const_value.numpy()
        if outputs is not None and array is not None and shape[:1] == [whole]:
            array, shape[0] = array[:outputs], outputs
        elif outputs is not None and array is None and value is not layer.source:
            shape[1] = outputs
        name = f"v{len(values)}"
        made = ir.val(name, dtype=value.dtype or ir.DataType.FLOAT, shape=ir.Shape(shape))
        if array is not None:
            made.const_value = ir.tensor(array, name=name)
            constants.append(made)
        else:
            assert id(value) not in inner
            inputs.append(made)
        values[id(value)] = made
        return made

    nodes: list[ir.Node] = []
    for node in layer.nodes:
        new = ir.node(
            node.op_type, [copied(value) for value in node.inputs], dict(node.attributes),
            domain=node.domain, name=f"{node.op_type}_{len(nodes)}",
        )  # fmt: skip
        output, old = new.outputs[0], node.outputs[0]
        output.dtype = ir.DataType.FLOAT
        if old.shape is not None:
            sizes = [size if isinstance(size, int) else 1 for size in old.shape]
            if outputs is not None:
                sizes[1] = outputs
            output.shape = ir.Shape(sizes)
        values[id(old)] = output
        nodes.append(new)
    return _graph(inputs, nodes, constants)


def _copy_of(layer: Layer, graph: ir.Graph) -> Layer:
    return Layer(
        layer.kind, list(graph), layer.image, layer.shape, layer.weight, layer.weight_name,
        layer.bias, layer.activation, layer.adds, layer.attributes,
    )  # fmt: skip


def _take_last(graph: ir.Graph) -> None:
    """Let a graph take and give images channels last: drop its transposes."""
    for node in list(graph):
        if node.op_type == "Transpose":
            source, result = node.inputs[0], node.outputs[0]
            assert source is not None
            if list(node.attributes.get_ints("perm", [])) == TO_LAST:
                assert source.shape is not None
                source.shape = ir.Shape([source.shape[axis] for axis in TO_LAST])
            else:
                graph.outputs[0] = source
            ir.convenience.replace_all_uses_with(result, source)
            graph.remove(node, safe=True)


def _run(ways: Mapping[str, ir.Graph], opset: int, library: Path) -> dict[str, float]:
    """Return the microseconds of each graph's nodes, of interleaved runs."""
    runtime = require("onnxruntime", extra="runtime", why="measure layers for accelerate")
    with tempfile.TemporaryDirectory() as folder:
        sessions = {}
        for way, graph in ways.items():
            graph.opset_imports[""] = opset
            model = ir.Model(graph, ir_version=10)
            attach(model)
            options = session_options(runtime, 1, library if model.functions else None)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / way.replace(" ", "_"))
            content = ir.serde.serialize_model(model).SerializeToString()
            sessions[way] = runtime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        feeds = {way: _feeds(session) for way, session in sessions.items()}
        spent = 0.0
        for count in range(_ROUNDS[1] + 2):
            started = time.perf_counter()
            for way, session in sessions.items():
                session.run(None, feeds[way])
            spent += 0.0 if count < 2 else (time.perf_counter() - started) * 1e3
            if count >= _ROUNDS[0] + 2 and spent > _MILLISECONDS * len(sessions):
                break
        return {way: _typical(Path(session.end_profiling())) for way, session in sessions.items()}


def _feeds(session: Any) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {
        spec.name: random.normal(size=spec.shape).astype(np.float32)
        for spec in session.get_inputs()
    }


def _typical(profile: Path) -> float:
    """Return the microseconds that the nodes which compute take: the lower quartile of the runs.

    On a busy machine half of the runs may be interrupted, so a median would be no better.
    """
    runs: list[float] = [0.0]
    for event in json.loads(profile.read_text(encoding="utf-8")):
        name = str(event.get("name"))
        if name == "model_run":
            runs.append(0.0)
        elif event.get("cat") == "Node" and name.endswith("_kernel_time"):
            if not str(event["args"].get("op_name")).startswith("Reorder"):
                runs[-1] += float(event["dur"])
    times = sorted(runs[2:-1])  # the first two warm up; after the last nothing ran
    return times[len(times) // 4] if times else 0.0
