"""PVTv2-B0 in ONNX Runtime: softmax and linear attention as they are, and converted by vitlet."""

from __future__ import annotations

import logging
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from _common import about, pin
from torch import nn

import vitlet
from vitlet.compress.profile import profile
from vitlet.compress.shift_add import shift_add
from vitlet.export.onnx import export_onnx
from vitlet.export.trace import Graph, graphs
from vitlet.runtime.ort import OrtEngine
from vitlet.runtime.rapl import measure_joules

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from made_up import fill

SIZES = (224, 448, 896)
SOFTMAX, LINEAR = "softmax attention, ONNX Runtime fp32", "linear attention, ONNX Runtime fp32"
DYNAMIC, STATIC = (
    "linear attention, ONNX Runtime int8 dynamic",
    "linear attention, ONNX Runtime int8",
)
OUR_SOFTMAX, OUR_LINEAR = "softmax attention, vitlet fp32", "linear attention, vitlet fp32"
BINARY, OURS = "binary attention, vitlet fp32", "binary attention, shift layers, vitlet"
_EXACT = 0.9999  # cosine with torch's answer
_ROUNDED = 0.9  # of what is rounded to 8 bits, with made-up weights
Row = dict[str, Any]


def _model(attention: str, size: int) -> nn.Module:
    return fill(vitlet.create_model("pvt_v2_b0", attention=attention, img_size=size))


def energy() -> Row:
    """Return modelled energy of the forms at two sizes; weights do not matter."""
    rows: Row = {}
    for size in (224, 448):
        x = torch.zeros(1, 3, size, size)
        original = _model("softmax", size)
        forms = {"softmax": original, "spatial reduction": _model("spatial_reduction", size)}
        forms["linear"] = _model("linear_angular", size)
        forms["binary"] = shift_add(original)[0]
        forms["binary, MLPs shift"] = shift_add(original, linear="shift")[0]
        forms["binary, all linear shift"] = shift_add(original, linear="shift", layers="all")[0]
        rows[str(size)] = {
            name: {"modelled_mj": found.modelled_mj, "multiplies": found.total.multiplies}
            for name, model in forms.items()
            for found in [profile(model, x)]
        }
    return rows


def sizes(model: nn.Module, path: Path) -> Row:
    """Return bytes of an exported file, and of the weights of its shift layers, scales included."""
    export_onnx(graphs(vitlet.reparameterize(model))[0], path)
    graph = onnx.load(str(path)).graph
    held = {tensor.name: len(tensor.SerializeToString()) for tensor in graph.initializer}
    shift = [node for node in graph.node if node.op_type == "ShiftLinear"]
    return {
        "bytes": path.stat().st_size,
        "shift_layers": len(shift),
        "shift_weight_bytes": sum(held[name] for node in shift for name in node.input[1:3]),
    }


def weight_bytes(work: Path) -> Row:
    """Return the sizes of the shipped ViT as ONNX, as it is and with every linear layer shift."""
    folder = work / "bytes"
    folder.mkdir(parents=True, exist_ok=True)
    original = vitlet.create_model("vit_fashion")
    made, _ = shift_add(original, linear="shift", layers="all")
    fp32 = sum(4 * p.numel() for n, p in original.named_parameters()
               if n.startswith("blocks") and n.endswith("weight") and p.ndim == 2)  # fmt: skip
    return {
        "fp32_weight_bytes": fp32,
        "original": sizes(original, folder / "original.onnx"),
        "shift": sizes(made, folder / "shift.onnx"),
    }


def _dynamic(plain: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    made = plain.with_suffix(".dynamic.onnx")
    quantize_dynamic(plain, made, per_channel=True, weight_type=QuantType.QInt8,
                     op_types_to_quantize=["MatMul", "Gemm"])  # fmt: skip
    return made


def _static(plain: Path, graph: Graph) -> Path:
    from accelerate import static_int8

    return static_int8(plain, graph)


def files(work: Path, size: int) -> dict[str, tuple[Path, np.ndarray | None]]:
    """Export what is missing; return each file and what torch answers to the first picture."""
    folder = work / "latency" / str(size)
    folder.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.WARNING)
    original = _model("softmax", size) if size < SIZES[-1] else None
    linear = _model("linear_angular", size)
    source = original or _model("softmax", size)
    wanted: dict[str, tuple[nn.Module, dict[str, Any]]] = {}
    if original is not None:
        wanted[SOFTMAX] = original, {}
        wanted[OUR_SOFTMAX] = original, {"accelerate": "fp32"}
    wanted[LINEAR] = linear, {}
    wanted[OUR_LINEAR] = linear, {"accelerate": "fp32"}
    wanted[BINARY] = shift_add(source)[0], {"accelerate": "fp32"}
    wanted[OURS] = (
        shift_add(source, linear="shift", layers="all")[0], {"accelerate": "fp32"}
    )  # fmt: skip
    made: dict[str, tuple[Path, np.ndarray | None]] = {}
    for number, (name, (model, options)) in enumerate(wanted.items()):
        graph = graphs(vitlet.reparameterize(model))[0]
        path = folder / f"{number}-{name.replace(', ', '-').replace(' ', '_')}.onnx"
        if not path.is_file():
            print(f"  export {path.stem} ...", flush=True)
            export_onnx(graph, path, **options)
        with torch.no_grad():
            truth = graph.module(graph.example(1)[0]).numpy().ravel()
        made[name] = path, truth
        if name == LINEAR:
            dynamic, static = path.with_suffix(".dynamic.onnx"), path.with_suffix(".qdq.onnx")
            made[DYNAMIC] = dynamic if dynamic.is_file() else _dynamic(path), truth
            made[STATIC] = static if static.is_file() else _static(path, graph), truth
    return made


def latencies(work: Path, results: Any, seconds: float) -> None:
    """Time each size in turn; files stay in the work folder."""
    for size in SIZES:
        results.once(f"latency-{size}", lambda s=size: _time(files(work, s), s, seconds))


def _time(made: dict[str, tuple[Path, np.ndarray | None]], size: int, seconds: float) -> Row:
    pin(1)
    feeds = {"image": np.random.default_rng(0).standard_normal((1, 3, size, size), np.float32)}
    example = _example(size)
    engines = {name: OrtEngine(path) for name, (path, _) in made.items()}
    cosines: dict[str, float] = {}
    for name, engine in engines.items():
        y, truth = next(iter(engine.run(example).values())).ravel(), made[name][1]
        assert truth is not None
        cosines[name] = float(y @ truth / np.linalg.norm(y) / np.linalg.norm(truth))
        least = _ROUNDED if "int8" in name or "shift" in name else _EXACT
        if not cosines[name] > least:
            raise SystemExit(f"{size} pixels, {name}: cosine {cosines[name]:.4f} with torch")
    times: dict[str, list[float]] = {name: [] for name in engines}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[LINEAR]) < 5:
        for name, engine in engines.items():
            begin = time.thread_time()
            engine.run(feeds)
            times[name].append((time.thread_time() - begin) * 1e3)
    linear = [min(rounds) for rounds in zip(*(times[n] for n in (LINEAR, DYNAMIC, STATIC)),
                                            strict=True)]  # fmt: skip
    forms = {}
    for name, own in times.items():
        row: Row = {
            "bytes": made[name][0].stat().st_size,
            "ms": statistics.median(own),
            "cosine": cosines[name],
        }
        row["kernels"] = engines[name].kernels
        if SOFTMAX in times:
            row["over_softmax"] = _ratio(times[SOFTMAX], own)
        row["over_linear"] = _ratio(linear, own)
        spent = measure_joules(lambda e=engines[name]: e.run(feeds), seconds=1)  # type: ignore[misc]
        if spent is not None:
            row["measured_joules"] = spent.each
        forms[name] = row
    return {"machine": about(), "rounds": len(times[LINEAR]), "forms": forms}


def _example(size: int) -> dict[str, np.ndarray]:
    graph = graphs(_model("linear_angular", size))[0]
    return {"image": graph.example(1)[0].numpy()}


def _ratio(slow: list[float], own: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(slow, own, strict=True))
