"""What do vitlet's kernels bring inside ONNX Runtime?

    python benchmarks/accelerate.py [--models casvit_xs,casvit_m] [--seconds 2.0] [--json FILE]

Per model with made-up weights: the plain ONNX file, and files exported with --accelerate fp32 and
bf16, in ONNX Runtime on one thread at batch 1. First every file's output is compared with torch's.
Then all run in turn in one process on one core, in milliseconds of that thread's processor time;
ratios are medians over rounds of the quotient within a round. Each accelerated file is timed with
the kernels and, in brackets, without them, from its definitions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vitlet
from vitlet.export.onnx import export_onnx
from vitlet.export.trace import graphs
from vitlet.runtime.ort import OrtEngine

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from made_up import fill

LIMITS = {"fp32": 0.99999, "bf16": 0.9995}


def engines(name: str, folder: Path) -> tuple[dict[str, OrtEngine], Any, dict[str, float]]:
    """Return the ways to run a model, an input, and each way's cosine with torch."""
    model = fill(vitlet.create_model(name))
    (graph,) = graphs(vitlet.reparameterize(model))
    (x,) = graph.example(1)
    with torch.no_grad():
        truth = model(x).numpy().ravel()
    made, cosines = {}, {}
    for accelerate in (None, "fp32", "bf16"):
        path = folder / f"{name}.{accelerate}.onnx"
        export_onnx(graph, path, accelerate=accelerate)  # type: ignore[arg-type]
        for kernels in (True, False) if accelerate else (False,):
            label = f"{accelerate or 'plain'}{'' if kernels or not accelerate else ', definitions'}"
            made[label] = engine = OrtEngine(path, accelerate=kernels)
            if kernels and engine.kernels != "library":
                raise SystemExit("the kernels cannot be used here")
            (y,) = engine.run({"image": x.numpy()}).values()
            y = y.ravel()
            cosine = float(y @ truth / np.linalg.norm(y) / np.linalg.norm(truth))
            if not cosine > LIMITS["bf16" if label == "bf16" else "fp32"]:
                raise SystemExit(f"{name} {label}: cosine {cosine}")
            cosines[label] = cosine
    return made, x.numpy(), cosines


def measure(ways: dict[str, OrtEngine], x: Any, seconds: float) -> dict[str, list[float]]:
    """Return each way's milliseconds per round."""
    times: dict[str, list[float]] = {label: [] for label in ways}
    end = time.perf_counter() + seconds * len(ways)
    while time.perf_counter() < end:
        for label, engine in ways.items():
            started = time.thread_time()
            engine.run({"image": x})
            times[label].append((time.thread_time() - started) * 1e3)
    return {label: rounds[2:] for label, rounds in times.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", default="casvit_xs,casvit_m")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    rows = []
    print(f"{'model':12}{'file':22}{'ms':>9}{'x plain':>9}{'cosine':>11}")
    for name in given.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            ways, x, cosines = engines(name, Path(folder))
            times = measure(ways, x, given.seconds)
        for label, rounds in times.items():
            pairs = zip(times["plain"], rounds, strict=True)
            ratio = statistics.median(plain / ours for plain, ours in pairs)
            ms = statistics.median(rounds)
            print(f"{name:12}{label:22}{ms:9.2f}{ratio:9.2f}{cosines[label]:11.6f}")
            row = {"model": name, "file": label, "ms": ms, "ratio": ratio}
            rows.append({**row, "cosine": cosines[label], "rounds": len(rounds)})
    if given.json:
        facts = {"machine": platform.processor() or platform.machine(), "results": rows}
        given.json.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
