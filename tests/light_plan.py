"""A plan whose sub-models are a few ONNX nodes: made in milliseconds, without torch.

A sub-model is tanh(x W) over the flattened image, repeated `depth` times to weigh more and compute
longer; the fusion puts learned features where a slot is absent, then multiplies once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import vitlet
from vitlet.data.spec import Preprocess
from vitlet.export.bundle import write_bundle
from vitlet.partition.devices import Device
from vitlet.partition.plan import (
    FUSION,
    Fusion,
    Plan,
    Slot,
    load_plan,
    manifest_sha256,
    slot_bundle_name,
    write_plan,
)
from vitlet.runtime.bundle import open_bundle
from vitlet.runtime.manifest import Artifact, Manifest, TensorSpec

NAMES = ("alpha", "beta", "gamma", "delta", "epsilon")


@dataclass(frozen=True)
class Shape:
    """How large the plan is: slots, image side and channels, classes, hidden width and layers."""

    slots: int = 3
    side: int = 8
    mode: str = "L"
    classes: int = 7
    hidden: int = 16
    depth: int = 1

    @property
    def channels(self) -> int:
        return 1 if self.mode == "L" else 3

    @property
    def widths(self) -> list[int]:
        return [8 + 4 * index for index in range(self.slots)]


def light_plan(folder: Path, seed: int = 0, shape: Shape = Shape()) -> Plan:
    """Write a plan into `folder`: slot i on device i, and slot 0 on the third device too."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    middle = (0.5,) * shape.channels
    preprocess = Preprocess(
        (shape.side, shape.side), resize_to=shape.side, mean=middle, std=middle, mode=shape.mode
    )
    devices = tuple(Device(name, 64_000_000, 1e9) for name in NAMES[: shape.slots])
    slots = []
    for index, width in enumerate(shape.widths):
        name = slot_bundle_name(index)
        graph = _features(random, shape, width)
        size = _bundle(folder / name, "features", graph, preprocess)
        replicas = (NAMES[2],) if index == 0 and shape.slots > 2 else ()
        classes = tuple(range(index, shape.classes, shape.slots))
        sha256 = manifest_sha256(folder / name)
        slots.append(
            Slot(
                index, classes, name, sha256, width, size, 1, 1, 1_000_000, 1e-5,
                (NAMES[index], *replicas),
            )
        )  # fmt: skip
    size = _bundle(folder / FUSION, "fusion", _fusion(random, shape), preprocess)
    plan = Plan(
        vitlet=vitlet.__version__,
        model={"name": "light", "config": {}},
        preprocess=preprocess,
        labels=tuple(f"class-{n}" for n in range(shape.classes)),
        slots=tuple(slots),
        devices=devices,
        fusion=Fusion(FUSION, manifest_sha256(folder / FUSION), size, 1),
        strategy={"classes": "balanced-random", "assign": "greedy", "seed": seed},
        calibration={"temperature": 1.5},
    )
    write_plan(plan, folder)
    return load_plan(folder)


def _features(random: np.random.Generator, shape: Shape, width: int) -> onnx.GraphProto:
    sizes = [shape.channels * shape.side**2, *[shape.hidden] * shape.depth, width]
    nodes = [helper.make_node("Flatten", ["image"], ["x0"])]
    weights = []
    for layer in range(shape.depth + 1):
        rows, columns = sizes[layer : layer + 2]
        weights.append(_array(random, f"w{layer}", (rows, columns), 2 / np.sqrt(rows)))
        nodes.append(helper.make_node("MatMul", [f"x{layer}", f"w{layer}"], [f"y{layer}"]))
        last = layer == shape.depth
        nodes.append(
            helper.make_node("Tanh", [f"y{layer}"], ["features" if last else f"x{layer + 1}"])
        )
    image = ("batch", shape.channels, shape.side, shape.side)
    return _graph(nodes, weights, {"image": image}, ("features", ("batch", width)))


def _fusion(random: np.random.Generator, shape: Shape) -> onnx.GraphProto:
    total, widths = sum(shape.widths), shape.widths
    spread = np.repeat(np.eye(shape.slots), widths, axis=1).astype(np.float32)
    weights = [
        numpy_helper.from_array(spread, "spread"),
        numpy_helper.from_array(np.ones(1, np.float32), "one"),
        _array(random, "missing", (total,), 1.0),
        _array(random, "w", (total, shape.classes), 1.0),
    ]
    nodes = [
        helper.make_node("MatMul", ["present", "spread"], ["mask"]),
        helper.make_node("Mul", ["features", "mask"], ["kept"]),
        helper.make_node("Sub", ["one", "mask"], ["gap"]),
        helper.make_node("Mul", ["missing", "gap"], ["filled"]),
        helper.make_node("Add", ["kept", "filled"], ["all"]),
        helper.make_node("MatMul", ["all", "w"], ["logits"]),
    ]
    inputs = {"features": ("batch", total), "present": ("batch", shape.slots)}
    return _graph(nodes, weights, inputs, ("logits", ("batch", shape.classes)))


def _array(
    random: np.random.Generator, name: str, size: tuple[int, ...], scale: float
) -> TensorProto:
    values = random.standard_normal(size, np.float32) * np.float32(scale)
    return numpy_helper.from_array(values, name)


def _graph(nodes, weights, inputs, output) -> onnx.GraphProto:  # type: ignore[no-untyped-def]
    kind = TensorProto.FLOAT
    given = [helper.make_tensor_value_info(name, kind, size) for name, size in inputs.items()]
    made = helper.make_tensor_value_info(output[0], kind, output[1])
    return helper.make_graph(nodes, "graph", given, [made], initializer=weights)


def _bundle(out: Path, name: str, graph: onnx.GraphProto, preprocess: Preprocess) -> int:
    """Write a graph as a bundle; return the size of its file."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    specs = [
        tuple(
            TensorSpec(v.name, "float32", ("batch", *(d.dim_value for d in dims[1:])))
            for v in values
            for dims in (v.type.tensor_type.shape.dim,)
        )
        for values in (graph.input, graph.output)
    ]
    artifact = Artifact("onnx", name, f"{name}.onnx", "fp32", *specs)
    with write_bundle(out) as draft:
        (draft.folder / artifact.file).write_bytes(model.SerializeToString())
        manifest = Manifest(vitlet.__version__, {"name": name}, preprocess, (artifact,), {})
        bundle = open_bundle(draft.finish(manifest), hashes=False)
    return bundle.file(artifact.file).stat().st_size
