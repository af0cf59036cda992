"""How long does the Core ML executor take beside torch?

    python benchmarks/coreml_executor.py [MODEL] [--precision fp32] [--seconds 2.0] [--threads 1]

Exports a zoo model's graphs with made-up weights, executes them in turn with torch eager (float32,
the same merged module) and prints milliseconds of processor time, the ratio of medians within a
round, and the cosine between both outputs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vitlet
from vitlet.export.coreml import export_coreml
from vitlet.export.trace import graphs
from vitlet.runtime import CoreMLExecutor

MODES = ("fp32", "declared", "stress")


def lively(model: torch.nn.Module) -> torch.nn.Module:
    """Give weights under which the output follows the input."""
    random = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or tensor.ndim == 0:
            continue
        noise = torch.randn(tensor.shape, generator=random)
        if name.endswith("running_var"):
            tensor.copy_(1 + 0.5 * noise.abs())
        elif tensor.ndim >= 2:
            tensor.copy_(noise / tensor[0].numel() ** 0.5)
        else:
            tensor.copy_(0.1 * noise + (1 if name.endswith("weight") else 0))
    return model.eval()


def measure(ways: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Time all ways in turn; milliseconds of processor time per round."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    end = time.monotonic() + seconds * len(ways)
    while time.monotonic() < end or len(next(iter(times.values()))) < 3:
        for name, way in ways.items():
            start = time.process_time()
            way()
            times[name].append(1e3 * (time.process_time() - start))
    return times


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="mobileclip_s0")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = vitlet.reparameterize(lively(vitlet.create_model(options.model)))
    for graph in graphs(model):
        (value,) = graph.example(1)
        if value.is_floating_point():
            value = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            path = Path(folder) / "m.mlpackage"
            export_coreml(graph, path, precision=options.precision, palette_mode="uniform")
            runs = {mode: CoreMLExecutor(path, mode) for mode in MODES}
            feature = runs["fp32"].inputs[0]
            feeds = {feature.name: value.numpy().astype(feature.dtype)}
            ways: dict[str, Callable[[], Any]] = {
                "torch": lambda module=graph.module, x=value: module(x)
            }
            for mode, executor in runs.items():
                ways[mode] = lambda run=executor.run, x=feeds: run(x)
            expected = graph.module(value).numpy().ravel()
            times = measure(ways, options.seconds)
            for name, spent in times.items():
                ratio = statistics.median(a / b for a, b in zip(spent, times["torch"], strict=True))
                line = f"{options.model} {graph.name:6} {options.precision:8} {name:9}"
                line += f" {statistics.median(spent):8.1f} ms  x{ratio:.2f}"
                if name != "torch":
                    actual = next(iter(runs[name].run(feeds).values())).ravel()
                    norm = np.linalg.norm(actual) * np.linalg.norm(expected)
                    line += f"  cosine {float(actual @ expected) / norm:.8f}"
                print(line)


if __name__ == "__main__":
    main()
