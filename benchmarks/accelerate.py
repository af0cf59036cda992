"""What do vitlet's kernels bring inside ONNX Runtime?

    python benchmarks/accelerate.py [--models casvit_xs,deit_small] [--seconds 2.0] [--json FILE]

Per model (of CLIP-style models the image tower) with made-up weights: the plain ONNX file, files
exported with --accelerate fp32, bf16 and int8, and as peers ONNX Runtime's own static int8 (QDQ,
four calibration images) and OpenVINO where it is installed; on one thread at batch 1. First every
output is compared with torch's. Then all run in turn in one process on one core, in milliseconds of
that thread's processor time; ratios are medians over rounds of the quotient within a round.
"ours" counts the layers that call kernels, of those that could; see the table in the manifest.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vitlet
from vitlet.export.onnx import export_onnx
from vitlet.export.trace import Graph, graphs
from vitlet.runtime.ort import OrtEngine

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from made_up import fill

MODELS = "casvit_xs,casvit_m,mobileclip_s0,mobileclip_s2,deit_small"
LIMITS = {"fp32": 0.99999, "bf16": 0.9995, "int8": 0.99}
Run = Callable[[], Any]


def static_int8(plain: Path, graph: Graph) -> Path:
    """Return ONNX Runtime's own 8-bit file: per channel, calibrated on four made-up images."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            name = graph.inputs[0].name
            self.feeds = iter([{name: graph.example(1, seed)[0].numpy()} for seed in range(1, 5)])

        def get_next(self) -> Any:
            return next(self.feeds, None)

    logging.disable(logging.WARNING)
    ready, made = plain.with_suffix(".ready.onnx"), plain.with_suffix(".qdq.onnx")
    quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
    quantize_static(str(ready), str(made), Images(), quant_format=QuantFormat.QDQ, per_channel=True)
    return made


def openvino(plain: Path, feeds: dict[str, Any]) -> Run:
    """Return a run of the plain file in OpenVINO on one thread."""
    import openvino as ov

    settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    request = ov.Core().compile_model(str(plain), "CPU", settings).create_infer_request()
    (x,) = feeds.values()
    return lambda: request.infer([x])[0]


def ways(name: str, folder: Path) -> tuple[dict[str, Run], dict[str, float], dict[str, str]]:
    """Return the ways to run a model, each one's cosine with torch, and how much is ours."""
    model = fill(vitlet.create_model(name))
    graph = graphs(vitlet.reparameterize(model))[0]
    (x,) = graph.example(1)
    feeds = {graph.inputs[0].name: x.numpy()}
    with torch.no_grad():
        truth = graph.module(x).numpy().ravel()
    made: dict[str, Run] = {}
    shares: dict[str, str] = {}

    def add(label: str, path: Path) -> None:
        engine = OrtEngine(path)
        made[label] = lambda: next(iter(engine.run(feeds).values()))
        shares.setdefault(label, "")

    plain = folder / f"{name}.onnx"
    export_onnx(graph, plain)
    add("plain", plain)
    for accelerate in LIMITS:
        path = folder / f"{name}.{accelerate}.onnx"
        artifact = export_onnx(graph, path, accelerate=accelerate)  # type: ignore[arg-type]
        chosen = artifact.details["accelerate_table"]["chosen"][graph.name].values()
        total = sum(sum(ways.values()) for ways in chosen)
        ours = total - sum(ways.get("plain", 0) for ways in chosen)
        shares[accelerate] = f"{ours}/{total}"
        add(accelerate, path)
    add("ort int8", static_int8(plain, graph))
    if importlib.util.find_spec("openvino"):
        made["openvino"] = openvino(plain, feeds)
        shares["openvino"] = ""
    cosines = {}
    for label, run in made.items():
        y = np.asarray(run()).ravel()
        cosine = float(y @ truth / np.linalg.norm(y) / np.linalg.norm(truth))
        if not cosine > LIMITS.get(label, 0.0 if label == "ort int8" else LIMITS["fp32"]):
            raise SystemExit(f"{name} {label}: cosine {cosine}")
        cosines[label] = cosine
    return made, cosines, shares


def measure(made: dict[str, Run], seconds: float) -> dict[str, list[float]]:
    """Return each way's milliseconds per round."""
    times: dict[str, list[float]] = {label: [] for label in made}
    end = time.perf_counter() + seconds * len(made)
    while time.perf_counter() < end or len(times["plain"]) < 5:
        for label, run in made.items():
            started = time.thread_time()
            run()
            times[label].append((time.thread_time() - started) * 1e3)
    return {label: rounds[2:] for label, rounds in times.items()}


def main() -> None:
    """Measure and print."""
    from vitlet.export.accelerate.table import measuring_table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    machine = measuring_table().facts
    print(", ".join(str(fact) for fact in machine.values()))
    if not importlib.util.find_spec("openvino"):
        print("openvino is not installed: not timed")
    rows = []
    print(f"{'model':15}{'file':10}{'ours':>9}{'ms':>9}{'x plain':>9}{'cosine':>11}")
    for name in given.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            made, cosines, shares = ways(name, Path(folder))
            times = measure(made, given.seconds)
        for label, rounds in times.items():
            pairs = zip(times["plain"], rounds, strict=True)
            ratio = statistics.median(plain / ours for plain, ours in pairs)
            ms = statistics.median(rounds)
            share, cosine = shares[label], cosines[label]
            print(f"{name:15}{label:10}{share:>9}{ms:9.2f}{ratio:9.2f}{cosine:11.6f}", flush=True)
            row = {"model": name, "file": label, "ours": share, "ms": ms, "ratio": ratio}
            rows.append({**row, "cosine": cosine, "rounds": len(rounds)})
    if given.json:
        given.json.write_text(json.dumps({"machine": machine, "results": rows}, indent=1))


if __name__ == "__main__":
    main()
