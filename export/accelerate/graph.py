"""Chooses the layers of an ONNX graph that kernels compute, by their times, and puts them in."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as common

from vitlet.errors import UnsupportedError
from vitlet.export.accelerate.layers import DEPTHWISE, MIXER, Layer, find_layers
from vitlet.export.accelerate.layout import Times, choose
from vitlet.export.accelerate.rewrite import Rewriter
from vitlet.export.accelerate.table import Table
from vitlet.export.accelerate.tokens import turn_tokens

# What the kernels may compute in, the fastest of which is taken.
FORMATS: Mapping[str, tuple[str, ...]] = {
    "fp32": ("fp32",),
    "bf16": ("bf16", "fp32"),
    "int8": ("int8", "fp32"),
}
MIXER_FORMATS: Mapping[str, tuple[str, ...]] = {
    "fp32": ("fp32",),
    "bf16": ("bf16", "fp32"),
    "int8": ("int8", "bf16", "fp32"),
}


def accelerate_layers(model: ir.Model, name: str, accelerate: str, table: Table) -> None:
    """Let kernels compute the layers for which that is faster, transposes included.

    Args:
        model: with standard operators and perhaps CAS-ViT's mixers; changed in place.
        name: of the graph, for messages and the table.
        accelerate: "fp32", "bf16" or "int8": the least exact format that may be used. The last
            layer of an "int8" graph stays exact.
        table: times; what it does not have is measured, if it may.

    Raises:
        UnsupportedError: the graph has no layer that the kernels could compute.
        UsageError: a given table is of another model.
    """
    common.ShapeInferencePass()(model)
    turn_tokens(model.graph)
    layers = find_layers(model.graph)
    if not layers:
        raise UnsupportedError(
            f"graph {name!r} has nothing that vitlet's kernels compute (1x1 and depthwise "
            "convolutions, linear layers, the token mixers of CAS-ViT): export it without "
            "accelerate"
        )
    opset = model.graph.opset_imports[""]
    last = next((layer for layer in reversed(layers) if layer.kind not in (DEPTHWISE, MIXER)), None)
    ways: dict[int, tuple[str, str]] = {}  # the best way where channels come first, and last
    times: dict[int, Times] = {}
    for layer in layers:
        allowed = _formats(layer, accelerate, layer is last)
        known = _times(layer, allowed, table, opset)
        if layer.kind == MIXER:
            first = min((way for way in allowed if " " not in way), key=lambda way: known[way])
            turned = min((way for way in allowed if " " in way), key=lambda way: known[way])
            ways[id(layer)] = first, turned
            plain = known[first]
        else:
            turned = min(allowed, key=lambda way: known[way])
            ways[id(layer)] = "plain", turned
            plain = known["plain"]
        times[id(layer)] = Times(_nanoseconds(plain), _nanoseconds(known[turned]))

    def turning(value: ir.Value) -> int:
        from vitlet.export.accelerate.measure import measure_transpose

        assert value.shape is not None
        shape = [size if isinstance(size, int) else 1 for size in value.shape]
        _, channels, height, width = shape
        measure = functools.partial(measure_transpose, (height, width, channels), opset)
        return _nanoseconds(shape[0] * table.transpose(f"{height}x{width}x{channels}", measure))

    ours, free = choose(model.graph, layers, times, turning)
    chosen: dict[str, dict[str, int]] = {}
    put = []
    for layer in layers:
        way = ways[id(layer)][id(layer) in ours]
        counts = chosen.setdefault(layer.key, {})
        counts[way] = counts.get(way, 0) + 1
        if way != "plain":
            put.append((layer, way))
    table.chosen[name] = chosen
    Rewriter(model.graph, put, free).run()
    common.RemoveUnusedNodesPass()(model)


def _formats(layer: Layer, accelerate: str, is_last: bool) -> tuple[str, ...]:
    if layer.kind == MIXER:
        first = MIXER_FORMATS[accelerate]
        return (*first, *(f"{way} nhwc" for way in first))
    if layer.kind == DEPTHWISE or is_last or (accelerate == "int8" and layer.activation == "relu"):
        return ("fp32",)
    return FORMATS[accelerate]


def _times(layer: Layer, ways: tuple[str, ...], table: Table, opset: int) -> dict[str, float]:
    needed = ways if layer.kind == MIXER else ("plain", *ways)

    def measure(library: Path) -> dict[str, float]:
        from vitlet.export.accelerate.measure import measure_layer

        return measure_layer(layer, ways, opset, library)

    return table.layer(layer.key, needed, measure)


def _nanoseconds(microseconds: float) -> int:
    return round(microseconds * 1000)
