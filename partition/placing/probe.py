"""Small transformers as ONNX files, made without torch or onnx: what a device's speed is told by.

The file format is protobuf; the few fields that are needed here are written by hand.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitlet.errors import UsageError
from vitlet.runtime.ort import OrtEngine

TOKENS, DEPTH = 65, 4
WIDTHS = (32, 64, 128, 192)  # of tokens: what sub-models of small ViTs have
_FLOAT, _INT = 1, 7  # TensorProto.FLOAT; AttributeProto.INTS
_OPSET, _IR = 17, 8


def measure_speed(seconds: float = 1.0, threads: int = 1) -> tuple[float, float]:
    """Return this machine's (multiply-accumulates a second, seconds of an empty inference).

    Transformers of several widths take turns in ONNX Runtime; a line is put through the medians of
    their times, each weighted by its own length.

    Args:
        seconds: how long, in all.
        threads: of an inference.

    Raises:
        UsageError: a time that is not positive.
        MissingDependencyError: onnxruntime is not installed.
    """
    if not seconds > 0:
        raise UsageError(f"expected a positive time, got {seconds}")
    with tempfile.TemporaryDirectory() as folder:
        engines = []
        for width in WIDTHS:
            path = Path(folder) / f"{width}.onnx"
            path.write_bytes(transformer(width))
            engines.append(OrtEngine(path, threads=threads))
        feeds = [{"x": np.ones((1, TOKENS, width), np.float32)} for width in WIDTHS]
        times: list[list[float]] = [[] for _ in WIDTHS]
        for engine, feed in zip(engines, feeds, strict=True):
            engine.run(feed)
        end = time.perf_counter() + seconds
        while len(times[0]) < 5 or time.perf_counter() < end:
            for engine, feed, taken in zip(engines, feeds, times, strict=True):
                began = time.perf_counter()
                engine.run(feed)
                taken.append(time.perf_counter() - began)
    return fit_line([macs(width) for width in WIDTHS], [statistics.median(t) for t in times])


def fit_line(work: Sequence[float], taken: Sequence[float]) -> tuple[float, float]:
    """Return (speed, overhead) of the line ``taken = overhead + work / speed`` that errs least.

    Errors count relative to the time; the overhead is not negative.
    """
    x, y = np.asarray(work, np.float64), np.asarray(taken, np.float64)
    rows = np.stack([x / y, 1 / y], axis=1)
    slope, overhead = np.linalg.lstsq(rows, np.ones(len(x)), rcond=None)[0]
    if overhead < 0 or slope <= 0:
        slope, overhead = (x / y).sum() / ((x / y) ** 2).sum(), 0.0
    return float(1 / slope), float(overhead)


def macs(width: int) -> int:
    """Return the multiply-accumulates of `transformer(width)`."""
    return DEPTH * (12 * TOKENS * width**2 + 2 * TOKENS**2 * width)


def transformer(width: int, seed: int = 0) -> bytes:
    """Return an ONNX file: x (1, TOKENS, width) through DEPTH blocks of one head, to y."""
    rng = np.random.default_rng(seed)
    weights: dict[str, NDArray[np.float32]] = {
        "scale": np.full((), width**-0.5, np.float32),
        "ones": np.ones(width, np.float32),
        "zeros": np.zeros(width, np.float32),
    }
    nodes: list[bytes] = []
    current = "x"

    def node(kind: str, inputs: Sequence[str], output: str, attribute: bytes = b"") -> str:
        fields = [_text(1, name) for name in inputs]
        nodes.append(b"".join([*fields, _text(2, output), _text(4, kind), attribute]))
        return output

    def linear(block: str, given: str, out: int, inner: int) -> str:
        weights[f"w{block}"] = (rng.standard_normal((inner, out)) / inner**0.5).astype(np.float32)
        return node("MatMul", (given, f"w{block}"), f"m{block}")

    def norm(block: str, given: str) -> str:
        return node("LayerNormalization", (given, "ones", "zeros"), f"n{block}")

    for block in map(str, range(DEPTH)):
        normed = norm(f"{block}a", current)
        q, k, v = (linear(f"{block}{part}", normed, width, width) for part in "qkv")
        turned = node("Transpose", (k,), f"t{block}", _numbers("perm", (0, 2, 1)))
        scores = node("MatMul", (node("Mul", (q, "scale"), f"s{block}"), turned), f"a{block}")
        mixed = node("MatMul", (node("Softmax", (scores,), f"p{block}"), v), f"o{block}")
        current = node("Add", (current, linear(f"{block}o", mixed, width, width)), f"r{block}")
        hidden = linear(f"{block}1", norm(f"{block}b", current), 4 * width, width)
        small = linear(f"{block}2", node("Relu", (hidden,), f"g{block}"), width, 4 * width)
        last = int(block) == DEPTH - 1
        current = node("Add", (current, small), "y" if last else f"e{block}")
    graph = [_bytes(1, one) for one in nodes] + [_text(2, "probe")]
    graph += [_bytes(5, _tensor(name, value)) for name, value in weights.items()]
    graph += [_bytes(11, _value("x", width)), _bytes(12, _value("y", width))]
    opset = _text(1, "") + _number(2, _OPSET)
    return _number(1, _IR) + _bytes(7, b"".join(graph)) + _bytes(8, opset)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _numbers(name: str, values: Sequence[int]) -> bytes:
    """AttributeProto of a node: name, a list of whole numbers, and its kind."""
    listed = b"".join(_number(8, value) for value in values)
    return _bytes(5, _text(1, name) + listed + _number(20, _INT))


def _tensor(name: str, value: NDArray[np.float32]) -> bytes:
    sizes = b"".join(_number(1, size) for size in value.shape)
    return sizes + _number(2, _FLOAT) + _text(8, name) + _bytes(9, value.astype("<f4").tobytes())


def _value(name: str, width: int) -> bytes:
    """ValueInfoProto: a float tensor (1, TOKENS, width)."""
    shape = b"".join(_bytes(1, _number(1, size)) for size in (1, TOKENS, width))
    tensor = _number(1, _FLOAT) + _bytes(2, shape)
    return _text(1, name) + _bytes(2, _bytes(1, tensor))
