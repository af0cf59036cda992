"""Runs an ONNX file and keeps every intermediate tensor."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlet._extras import require
from vitlet.errors import CorruptInputError

Array = NDArray[Any]
_HALF_MAX = 65504.0


def onnx_tensors(path: Path, feeds: Iterable[dict[str, Array]]) -> Iterator[dict[str, Array]]:
    """Give, per feed, every float tensor of the graph by name, in the order of the nodes.

    The runtime's graph optimization is off, so that what the file says is what is computed: with
    it, float16 graphs are quietly computed in float32 between some nodes, for example.

    Raises:
        CorruptInputError: not a sound ONNX file.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    onnx: Any = require("onnx", extra="onnx", why="look into an ONNX file")
    runtime: Any = require("onnxruntime", extra="runtime", why="run an ONNX file")
    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf's own classes are not public
        raise CorruptInputError(f"{path} is not a sound ONNX model: {error}") from error
    there = {info.name for info in model.graph.output}
    for node in model.graph.node:
        for name in node.output:
            if name and name not in there:
                model.graph.output.append(onnx.ValueInfoProto(name=name))
                there.add(name)
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    with _saved(onnx, model) as file:
        session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        for feed in feeds:
            values = zip(names, session.run(names, feed), strict=True)
            yield {n: v for n, v in values if isinstance(v, np.ndarray) and v.dtype.kind == "f"}


def overflows(path: Path, feeds: Mapping[str, dict[str, Array]]) -> dict[str, str]:
    """Return the float16 tensors that hold NaN or infinity, each with the first case where it does.

    Args:
        path: the ONNX file.
        feeds: name of a case -> input name -> array.

    Runtimes on the processor compute float16 graphs in float32 where they can, so a graph that
    overflows on a phone may look sound here. Minus infinity is let through where the graph holds
    it as a constant: attention masks do.
    """
    masked = _holds_minus_infinity(path)
    found: dict[str, str] = {}
    for case, tensors in zip(feeds, onnx_tensors(path, feeds.values()), strict=True):
        for name, value in tensors.items():
            bad = ~np.isfinite(value) if not masked else np.isnan(value) | (value == np.inf)
            if value.dtype == np.float16 and bad.any():
                found.setdefault(name, case)
    return found


def _holds_minus_infinity(path: Path) -> bool:
    onnx: Any = require("onnx", extra="onnx", why="look into an ONNX file")
    model = onnx.load(str(path))
    constants = [attribute.t for node in model.graph.node for attribute in node.attribute]
    for tensor in [*model.graph.initializer, *constants]:
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
            values = onnx.numpy_helper.to_array(tensor, str(path.parent))
            if values.size and values.min() <= -_HALF_MAX:
                return True
    return False


@contextmanager
def _saved(onnx: Any, model: Any) -> Iterator[Path]:
    """Give a path that a model was saved to; removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="vitlet-") as folder:
        file = Path(folder) / "all.onnx"
        # Weights outside the file: protobuf stops at 2 GiB.
        onnx.save_model(model, str(file), save_as_external_data=True, location="weights.bin")
        yield file
