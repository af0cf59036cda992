"""Is the exported ONNX file faster than what torch.onnx.export gives by itself?

Three routes per model, all float32 and batch 1 in the same ONNX Runtime: `plain` is the train-time
module through torch.onnx.export with its defaults, `merged` is the reparameterized module through
the same call, `vitlet` is `vitlet.export`. The routes are timed in turns in one process on one
core, after their outputs were compared.

    python benchmarks/export_speed.py --json export_speed.json
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

import vitlet
from vitlet.export.onnx import export_onnx
from vitlet.export.trace import Graph, graphs

MODELS = ("mobileclip_s0", "mobileclip_s2", "casvit_xs", "deit_small")
# Least speed over each route that the project promises.
PROMISED = {"mobileclip_s0": {"plain": 1.12, "merged": 1.0}}


def lively(model: nn.Module) -> nn.Module:
    """Give made-up weights under which the output follows the input."""
    random = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or tensor.ndim == 0:
            continue
        noise = torch.randn(tensor.shape, generator=random)
        if name.endswith("running_var"):
            tensor.copy_(1 + 0.1 * noise.abs())
        elif "layer_scale" in name or name.endswith("gamma"):
            tensor.copy_((0.3 + 0.075 * noise).clamp(0.2, 1))
        elif tensor.ndim >= 2 and name.endswith(("weight", "proj")):
            gain = 0.5 if tensor.ndim == 4 and tensor.shape[1] == 1 else 0.8
            tensor.copy_(gain * noise / tensor[0].numel() ** 0.5)
        elif name.endswith("weight"):
            tensor.copy_(1 + 0.1 * noise)
        else:
            tensor.copy_(0.02 * noise)
    return model.requires_grad_(False)


def first_graph(model: nn.Module) -> Graph:
    return graphs(model)[0]


def torch_route(graph: Graph, path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph.module, graph.example(1), str(path), input_names=["image"], verbose=False
        )


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def measure(name: str, runs: int, folder: Path) -> dict[str, Any]:
    source = lively(vitlet.create_model(name))
    plain, merged = first_graph(source), first_graph(vitlet.reparameterize(source))
    torch_route(plain, folder / "plain.onnx")
    torch_route(merged, folder / "merged.onnx")
    export_onnx(merged, folder / "vitlet.onnx")
    routes = {route: session(folder / f"{route}.onnx") for route in ("plain", "merged", "vitlet")}
    inputs = [plain.example(1, seed)[0].numpy() for seed in range(2)]
    worst = 0.0
    for x in inputs:
        expected = plain.module(torch.from_numpy(x)).numpy()
        for route, runner in routes.items():
            answer = runner.run(None, {"image": x})[0]
            error = float(np.abs(answer - expected).max() / np.abs(expected).max())
            worst = max(worst, error)
            if not error < 1e-3:
                raise SystemExit(f"{name}: route {route} is wrong, relative error {error:.2g}")
    times: dict[str, list[float]] = {route: [] for route in routes}
    for turn in range(runs + 3):
        order = list(routes) if turn % 2 else list(reversed(routes))
        for route in order:
            start = time.process_time()
            routes[route].run(None, {"image": inputs[0]})
            if turn >= 3:
                times[route].append(time.process_time() - start)
    medians = {route: float(np.median(values)) * 1e3 for route, values in times.items()}
    ratios = {
        route: float(np.median(np.array(times[route]) / np.array(times["vitlet"])))
        for route in ("plain", "merged")
    }
    return {"model": name, "ms": medians, "speedup": ratios, "relative_error": worst, "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--core", type=int, default=None, help="the core to run on")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[-1] if arguments.core is None else arguments.core})
    torch.set_num_threads(1)
    rows = []
    heads = ("plain ms", "merged ms", "vitlet ms", "/plain", "/merged")
    print(f"{'model':<16}" + "".join(f"{head:>11}" for head in heads))
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(name, arguments.runs, Path(folder))
        rows.append(row)
        ms, ratio = row["ms"], row["speedup"]
        print(
            f"{name:<16}{ms['plain']:>11.2f}{ms['merged']:>11.2f}{ms['vitlet']:>11.2f}"
            f"{ratio['plain']:>11.3f}{ratio['merged']:>11.3f}",
            flush=True,
        )
    if arguments.json:
        facts = {"onnxruntime": onnxruntime.__version__, "torch": torch.__version__}
        arguments.json.write_text(json.dumps({"versions": facts, "rows": rows}, indent=1) + "\n")
    missed = [
        f"{row['model']} is {row['speedup'][route]:.3f}x of {route}, promised {least}x"
        for row in rows
        for route, least in PROMISED.get(row["model"], {"merged": 1.0}).items()
        if row["speedup"][route] < least
    ]
    if missed:
        raise SystemExit("; ".join(missed))


if __name__ == "__main__":
    main()
