"""How fast are vitlet's linear layers beside ONNX Runtime and torch?

    python benchmarks/kernels_linear.py [--seconds 0.5] [--rows 1 49 196 784] [--json FILE]
    python benchmarks/kernels_linear.py --threads 2            what a second thread is worth
    VITLET_ISA=avx2 python benchmarks/kernels_linear.py        with a lesser instruction set

Layers with bias, all ways timed in turn in one process on one processor core, in microseconds of
that thread's processor time. One row is timed warm, and cold: after reading 64 MiB of other data.

    shift, int8     what vitlet.ops.shift_linear and int8_linear call, without their checks (some
                    10 us); "shift bf16": bfloat16 activations
    fp32, bf16      the same of vitlet.ops.linear; "+ gelu": with GELU in the same call
    ort             ONNX Runtime with bound inputs and outputs: Gemm in float32 (and MatMul, Add,
                    Gelu), DynamicQuantizeLinear with MatMulInteger, and MatMulNBits (4 bits, blocks
                    of 32, accuracy level 4)
    torch           float32, bfloat16, and dynamic int8

First every result is held to the layer in double precision. Ratios are medians over rounds of the
quotient within a round. Peaks are loops of independent instructions, compiled by the C++ compiler
if there is one.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import platform
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from _common import about, geometric_mean, ratio
from onnx import TensorProto, helper, numpy_helper

from vitlet import _C
from vitlet.ops import pack_int8_weight, pack_linear_weight, pack_shift_weight

Call = Callable[[], Any]
LAYERS = [
    *[(64, 192), (64, 128), (128, 512), (192, 768), (768, 192)],
    *[(256, 1024), (384, 1536), (512, 2048), (768, 3072)],
]
LARGE = [(784, 192, 768), (784, 768, 192), (196, 512, 2048), (784, 768, 3072)]
# Largest error allowed, over the largest output.
TOLERANCE = {"fp32": 2e-5, "bf16": 2e-2, "int8": 5e-2, "4 bits": 0.3}
ORT, ORT_GELU, TORCH = "ort fp32", "ort fp32 + gelu", "torch fp32"
BASELINES = [ORT, "ort int8", "ort 4 bits", TORCH, "torch bf16", "torch int8"]
OURS = ["shift", "shift bf16", "int8", "fp32", "bf16"]

PEAK = r"""
#define BODY(op, set) \
  for (long i = 0; i < n; ++i) __asm__ volatile( \
    op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) op(8) op(9) op(10) op(11) ::: set)
#define ALL "xmm0","xmm1","xmm2","xmm3","xmm4","xmm5","xmm6","xmm7","xmm8","xmm9","xmm10","xmm11"
#define FMA_Y(i) "vfmadd231ps %%ymm12, %%ymm13, %%ymm" #i "\n"
#define FMA_Z(i) "vfmadd231ps %%zmm12, %%zmm13, %%zmm" #i "\n"
#define DOT_Y(i) "%{vex%} vpdpbusd %%ymm12, %%ymm13, %%ymm" #i "\n"
#define DOT_Z(i) "vpdpbusd %%zmm12, %%zmm13, %%zmm" #i "\n"
static void clear(void) { __asm__ volatile("vzeroall" ::: ALL, "xmm12", "xmm13"); }
void fma_y(long n) { clear(); BODY(FMA_Y, ALL); }
void fma_z(long n) { clear(); BODY(FMA_Z, ALL); }
void dot_y(long n) { clear(); BODY(DOT_Y, ALL); }
void dot_z(long n) { clear(); BODY(DOT_Z, ALL); }
"""
# By instruction set: the loop, and operations of one of its twelve instructions.
FMA = {"avx2": ("fma_y", 16), "avxvnni": ("fma_y", 16)}
FMA |= dict.fromkeys(["avx512", "avx512vnni", "avx512bf16"], ("fma_z", 32))
DOT = {"avxvnni": ("dot_y", 64)}
DOT |= dict.fromkeys(["avx512vnni", "avx512bf16"], ("dot_z", 128))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def peaks() -> dict[str, float | None]:
    """Operations per nanosecond of the best instructions; None where that was not measured."""
    found: dict[str, float | None] = {"FMA": None, "int8": None}
    if platform.machine() not in ("x86_64", "AMD64"):
        return found
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "peak.c"), Path(folder, "peak.so")
        source.write_text(PEAK, encoding="utf-8")
        command = ["cc", "-O2", "-shared", "-fPIC", str(source), "-o", str(library)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return found
        loops = ctypes.CDLL(str(library))
    for kind, table in (("FMA", FMA), ("int8", DOT)):
        if _C.active_isa() not in table:
            continue
        name, operations = table[_C.active_isa()]
        loop, count = getattr(loops, name), 1 << 20
        best = math.inf
        for _ in range(20):
            begin = time.thread_time()
            loop(ctypes.c_long(count))
            best = min(best, time.thread_time() - begin)
        found[kind] = 12e-9 * operations * count / best
    return found


def session(nodes: list[Any], constants: dict[str, Any], x: Any, n: int, threads: int) -> Any:
    """A call of the graph with bound arrays, and its output."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "layer",
        [value("x", TensorProto.FLOAT, x.shape)],
        [value("y", TensorProto.FLOAT, [len(x), n])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    runner = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = runner.io_binding()
    given = onnxruntime.OrtValue.ortvalue_from_numpy(x)
    result = onnxruntime.OrtValue.ortvalue_from_numpy(np.empty((len(x), n), np.float32))
    binding.bind_ortvalue_input("x", given)
    binding.bind_ortvalue_output("y", result)

    def call(keep: Any = (given, result)) -> np.ndarray:
        runner.run_with_iobinding(binding)
        return keep[1].numpy()

    return call


def ort_ways(x: Any, weight: Any, bias: Any, threads: int) -> dict[str, Call]:
    node, (n, k) = helper.make_node, weight.shape
    turned = {"w": np.ascontiguousarray(weight.T), "b": bias}
    # Seven bits: sums of two products of eight overflow in ONNX Runtime where there is no VNNI.
    scale = np.abs(weight).max(axis=1) / np.float32(63)
    rounded = np.rint(weight / scale[:, None]).astype(np.int8)
    blocks = weight.reshape(n, k // 32, 32)
    step = np.abs(blocks).max(axis=2) / np.float32(7.5)
    codes = np.clip(np.rint(blocks / step[..., None]) + 8, 0, 15).astype(np.uint8)
    four = {"w": codes[..., ::2] | codes[..., 1::2] << 4, "s": step.reshape(-1), "b": bias}
    quantized = [
        node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
        node("MatMulInteger", ["q", "w", "qz"], ["i"]),
        node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        node("Mul", ["qs", "s"], ["qss"]),
        node("Mul", ["f", "qss"], ["m"]),
        node("Add", ["m", "b"], ["y"]),
    ]
    with_gelu = [
        node("MatMul", ["x", "w"], ["m"]),
        node("Add", ["m", "b"], ["a"]),
        node("Gelu", ["a"], ["y"]),
    ]
    options = {"K": k, "N": n, "bits": 4, "block_size": 32, "accuracy_level": 4}
    nbits = [
        node("MatMulNBits", ["x", "w", "s"], ["m"], domain="com.microsoft", **options),
        node("Add", ["m", "b"], ["y"]),
    ]
    whole = {"w": np.ascontiguousarray(rounded.T), "s": scale, "b": bias}
    return {
        ORT: session([node("Gemm", ["x", "w", "b"], ["y"])], turned, x, n, threads),
        ORT_GELU: session(with_gelu, turned, x, n, threads),
        "ort int8": session(quantized, whole, x, n, threads),
        "ort 4 bits": session(nbits, four, x, n, threads),
    }


def torch_ways(x: Any, weight: Any, bias: Any) -> dict[str, Call]:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data, layer.bias.data = torch.from_numpy(weight), torch.from_numpy(bias)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the successor of its quantization
        whole = torch.ao.quantization.quantize_dynamic(
            torch.nn.Sequential(layer), dtype=torch.qint8
        )
    half, given = torch.nn.Linear(weight.shape[1], weight.shape[0]), torch.from_numpy(x)
    half.load_state_dict(layer.state_dict())
    half, rounded = half.bfloat16(), given.bfloat16()
    return {
        TORCH: lambda: layer(given),
        "torch bf16": lambda: half(rounded),
        "torch int8": lambda: whole(given),
    }


def our_ways(x: Any, weight: Any, bias: Any, threads: int) -> dict[str, Call]:
    shift, whole = pack_shift_weight(weight), pack_int8_weight(weight)
    full, half = pack_linear_weight(weight), pack_linear_weight(weight, "bf16")
    options: dict[str, Any] = {"bias": bias, "threads": threads}

    def integer(w: Any, kind: str) -> Call:
        return lambda: _C.shift_linear(x, w.panels, w.sums, w.scale, format=kind, **options)

    def floating(w: Any, kind: str, **more: Any) -> Call:
        more |= options
        return lambda: _C.float_linear(x, w.panels, len(weight), format=kind, **more)

    return {
        "shift": integer(shift, "shift"),
        "shift bf16": floating(shift, "shift", scale=shift.scale),
        "int8": integer(whole, "dense"),
        "fp32": floating(full, "fp32"),
        "bf16": floating(half, "bf16"),
        "fp32 + gelu": floating(full, "fp32", activation="gelu"),
        "bf16 + gelu": floating(half, "bf16", activation="gelu"),
    }


def ways(m: int, k: int, n: int, threads: int) -> dict[str, Call]:
    """Every way to compute one layer, each checked against double precision."""
    x, bias = noise(m, k, seed=1), noise(n, seed=2)
    # Signed powers of two of seven octaves: what a shift layer has.
    weight = pack_shift_weight(noise(n, k, seed=3) / np.float32(k**0.5)).dequantize()
    calls = our_ways(x, weight, bias, threads) | ort_ways(x, weight, bias, threads)
    calls |= torch_ways(x, weight, bias)
    plain = torch.from_numpy(x.astype(np.float64) @ weight.T.astype(np.float64) + bias)
    gelu = torch.nn.functional.gelu(plain)
    for name, call in calls.items():
        kind = next((key for key in ("bf16", "fp32", "4 bits") if key in name), "int8")
        expected = gelu if "gelu" in name else plain
        got = torch.as_tensor(call()).double()
        error = ((got - expected).abs().max() / expected.abs().max()).item()
        assert error < TOLERANCE[kind], (name, m, k, n, error)
    return calls


def measure(calls: dict[str, Call], seconds: float, clock: Call, cold: bool) -> dict[str, list]:
    """Time every way in turn until `seconds` have passed, and at least nine times."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    others = np.ones(1 << 24 if cold else 0, np.float32)
    repeat = 1
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[ORT]) < 9:
        for name, call in calls.items():
            if cold:
                others.sum()
            else:
                call()  # the others' data leave the cache
            begin = clock()
            for _ in range(repeat):
                call()
            spent = clock() - begin
            times[name].append(spent / repeat)
            if not cold and spent < 2e-4 and len(times[name]) == 1:
                repeat = min(50, 1 + int(2e-4 / spent))
    return times


def second_thread(seconds: float) -> None:
    for m, k, n in LARGE:
        one, two = (our_ways(noise(m, k), noise(n, k), noise(n), t) for t in (1, 2))
        pairs = {ORT: two["fp32"]}  # the name that `measure` counts
        for name in OURS:
            pairs |= {f"{name} 1": one[name], f"{name} 2": two[name]}
        times = measure(pairs, seconds, time.perf_counter, False)
        gains = [f"{name} x{ratio(times, f'{name} 2', [f'{name} 1']):.2f}" for name in OURS]
        print(f"{m} x {k} x {n}: two threads over one: {'  '.join(gains)}", flush=True)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.5, help="per shape")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 49, 196, 784])
    parser.add_argument("--threads", type=int, choices=[1, 2], default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-args.threads :])
    torch.set_num_threads(1)
    if args.threads == 2:
        second_thread(args.seconds)
        return
    peak, results = peaks(), []
    for kind, value in peak.items():
        print(f"{kind} peak: {'not measured' if value is None else f'{value:.0f} G/s'}")
    for m in args.rows:
        for k, n in LAYERS:
            calls = ways(m, k, n, 1)
            for cold in (False, True) if m == 1 else (False,):
                times = measure(calls, args.seconds, time.thread_time, cold)
                micro = {name: 1e6 * statistics.median(t) for name, t in times.items()}
                against = {name: ratio(times, name, [ORT]) for name in OURS}
                best = {name: ratio(times, name, BASELINES) for name in OURS}
                gelu = {
                    name: ratio(times, f"{name} + gelu", [ORT_GELU]) for name in ("fp32", "bf16")
                }
                case = f"{m} cold" if cold else str(m)
                row = {"rows": case, "k": k, "n": n, "microseconds": micro}
                results.append(row | {"ort fp32": against, "best": best, "gelu": gelu})
                print(f"{case:>7} x {k} x {n}: ", "  ".join(f"{w} {micro[w]:.1f}" for w in micro))
                print(" " * 9, "  ".join(f"{w} x{against[w]:.2f}" for w in OURS), flush=True)
    for case in dict.fromkeys(row["rows"] for row in results):
        rows = [row for row in results if row["rows"] == case]
        print(f"{case} rows, geometric means (least) over ort fp32, over the best baseline:")
        for name in OURS:
            values, best = ([row[key][name] for row in rows] for key in ("ort fp32", "best"))
            text = f"x{geometric_mean(values):.2f} ({min(values):.2f}), x{geometric_mean(best):.2f}"
            top = peak["int8" if name in ("shift", "int8") else "FMA"]
            if top is not None and case != "1" and "cold" not in case:
                shares = [
                    2e-3 * int(case) * r["k"] * r["n"] / r["microseconds"][name] / top for r in rows
                ]
                text += f", {100 * geometric_mean(shares):.0f} % of the peak"
            if name in ("fp32", "bf16"):
                values = [row["gelu"][name] for row in rows]
                text += f"; with GELU x{geometric_mean(values):.2f} ({min(values):.2f})"
            print(f"    {name}: {text}")
    if args.json:
        args.json.write_text(
            json.dumps({"about": about(peaks=peak), "layers": results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
