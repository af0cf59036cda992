"""How fast are vitlet's GPU kernels beside torch on the same GPU?

    python benchmarks/kernels_cuda.py [--seconds 0.3] [--json FILE]

Needs an NVIDIA GPU, a torch with CUDA, and vitlet built with VITLET_CUDA=ON; without them it says
which is missing and measures nothing. Every result is first held to vitlet's result on the
processor (linear layers: every bit). Then all ways of a row run in turn, each as a captured CUDA
graph of 20 calls between two CUDA events: microseconds of one call, medians over rounds.

    linear      torch's fp32 and bf16 linear layer against 4-bit (shift, wide) and dense int8
    attention   torch's Q (K^T V) in fp32 and bf16 of 0 and 1, and its softmax attention in bf16
    mixer       the CAS-ViT mixer by torch's operators in fp32, NCHW
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from vitlet import ops
from vitlet.ops import cuda
from vitlet.ops.additive_token_mixer import MixerGate, MixerWeights
from vitlet.ops.torch_ops import mixer_in_torch

LINEAR = [(m, k, n) for m in (1, 49, 196, 784) for k, n in ((192, 768), (384, 1536), (768, 3072))]
ATTENTION = [(h, n, d) for h, d in ((1, 64), (4, 32)) for n in (784, 3136, 12544)]
MIXER = [(48, 56), (56, 28), (112, 14), (220, 7), (96, 56), (192, 14), (512, 7)]
SDPA_TOKENS = 3136
CALLS = 20  # in one graph

Way = Callable[[], Any]


def unavailable() -> str:
    """Return "" or why the kernels cannot be run by torch here."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    return cuda.unavailable_reason()


def to_gpu(array: Any) -> Any:
    """Copy a numpy array; words become int64."""
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array.view(np.int64) if array.dtype == np.uint64 else array).cuda()


def linear_ways(m: int, k: int, n: int) -> tuple[dict[str, Way], dict[str, Any]]:
    """Return the ways to compute one layer, and what ours must give."""
    random = np.random.default_rng(m * k + n)
    x = random.standard_normal((m, k), dtype=np.float32)
    weight = random.standard_normal((n, k), dtype=np.float32)
    bias = random.standard_normal(n, dtype=np.float32)
    on_gpu, b = to_gpu(x), to_gpu(bias)
    packed: dict[str, Any] = {
        "shift": ops.pack_shift_weight(weight),
        "wide": ops.pack_shift_weight(weight, wide=True),
        "int8": ops.pack_int8_weight(weight),
    }
    ways: dict[str, Way] = {}
    expected: dict[str, Any] = {}
    for name, host in packed.items():
        device = cuda.DeviceLinearWeight.from_host(host, to_gpu)
        run = ops.int8_linear if name == "int8" else ops.shift_linear
        expected[name] = run(x, host, bias, activation="gelu")
        ways[name] = lambda w=device: cuda.shift_linear(on_gpu, w, b, activation="gelu")
    for name, kind in (("torch fp32", torch.float32), ("torch bf16", torch.bfloat16)):
        tx, tw, tb = (t.to(kind) for t in (on_gpu, to_gpu(weight), b))
        ways[name] = lambda x=tx, w=tw, b=tb: F.gelu(F.linear(x, w, b))
    return ways, expected


def attention_ways(h: int, n: int, d: int) -> tuple[dict[str, Way], dict[str, Any]]:
    """Return the ways to compute one attention, and what ours must be near."""
    random = np.random.default_rng(n)
    x, y, v = (random.standard_normal((1, h, n, d), dtype=np.float32) for _ in range(3))
    taps = random.standard_normal((h, 9), dtype=np.float32)
    q, k = ops.pack_bits(x), ops.pack_bits(y)
    gq, gk, gv, gt = to_gpu(q.words), to_gpu(k.words), to_gpu(v), to_gpu(taps)
    ways: dict[str, Way] = {
        "exact": lambda: cuda.binary_linear_attention(gq, gk, gv, d),
        "output": lambda: cuda.binary_linear_attention(gq, gk, gv, d, taps=gt),
    }
    expected = {
        "exact": ops.binary_linear_attention(q, k, v, exact=True),
        "output": ops.binary_linear_attention(q, k, v, exact=True, taps=taps),
    }
    for name, kind in (("torch fp32", torch.float32), ("torch bf16", torch.bfloat16)):
        tq, tk, tv = (to_gpu(a).to(kind) for a in (x > 0, y > 0, v))
        ways[name] = lambda q=tq, k=tk, v=tv: q @ (k.transpose(-1, -2) @ v)
        if n <= SDPA_TOKENS and kind == torch.bfloat16:
            ways["SDPA bf16"] = lambda q=tq, k=tk, v=tv: F.scaled_dot_product_attention(q, k, v)
    return ways, expected


def mixer_ways(c: int, side: int) -> tuple[dict[str, Way], dict[str, Any]]:
    """Return the ways to compute one mixer, and what ours must be near."""
    random = np.random.default_rng(c)

    def draw(*shape: int, scale: float = 0.5) -> Any:
        return random.standard_normal(shape, dtype=np.float32) * np.float32(scale)

    deep = 1 / np.sqrt(c)
    gates = [
        MixerGate(draw(c, 3, 3), draw(c), draw(c, scale=deep), draw(c, c, scale=deep))
        for _ in range(2)
    ]
    qkv = draw(3 * c, c, scale=deep), draw(3 * c)
    filters = draw(c, 3, 3), draw(c), draw(c, 3, 3), draw(c)
    weights = MixerWeights(*qkv, *gates, *filters)
    x = draw(1, c, side, side, scale=1)
    on_gpu, packed = to_gpu(x), to_gpu(weights.packed("fp32"))
    last = to_gpu(x.transpose(0, 2, 3, 1))
    want = ops.additive_token_mixer(x, weights)
    parts = [weights.qkv[:, :, None, None], weights.qkv_bias]
    for gate in gates:
        parts += [gate.taps[:, None], gate.bias, gate.point[None, :, None, None]]
        parts += [gate.channel[:, :, None, None]]
    parts += [weights.dwc[:, None], weights.dwc_bias, weights.proj[:, None], weights.proj_bias]
    on_torch = [to_gpu(part) for part in parts]
    ways: dict[str, Way] = {
        "nchw": lambda: cuda.additive_token_mixer(on_gpu, packed),
        "nhwc": lambda: cuda.additive_token_mixer(last, packed, layout="nhwc"),
        "torch fp32": lambda: mixer_in_torch(on_gpu, *on_torch),
    }
    return ways, {"nchw": want, "nhwc": want.transpose(0, 2, 3, 1)}


def problems() -> Iterator[tuple[str, dict[str, Way], dict[str, Any]]]:
    """Every row: its name, its ways, and what ours must give."""
    for m, k, n in LINEAR:
        yield (f"linear {m} x {k} x {n}", *linear_ways(m, k, n))
    for h, tokens, d in ATTENTION:
        yield (f"attention {h} x {tokens} x {d}", *attention_ways(h, tokens, d))
    for c, side in MIXER:
        yield (f"mixer {c} @ {side}", *mixer_ways(c, side))


def error(name: str, got: Any, want: Any) -> float:
    """The largest difference, as a part of the largest number; infinite for a wrong bit."""
    array = got.cpu().numpy()
    if name.startswith("linear"):
        return 0.0 if array.tobytes() == np.ascontiguousarray(want).tobytes() else float("inf")
    return float(np.abs(array - want).max() / np.abs(want).max())


def captured(way: Way) -> Any:
    """A graph of some calls; the first ones, outside it, load what is loaded once."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        way()
        way()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            way()
    return graph


def measure(ways: dict[str, Way], seconds: float) -> dict[str, float]:
    """Microseconds of one call of each, all in turn: medians over at least 15 rounds."""
    graphs = {name: captured(way) for name, way in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    end, rounds = time.monotonic() + seconds, 0
    while rounds < 15 or time.monotonic() < end:
        rounds += 1
        for name, graph in graphs.items():
            begin, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            stop.record()
            stop.synchronize()
            times[name].append(begin.elapsed_time(stop) * 1e3 / CALLS)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.3, help="for each row")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    if reason := unavailable():
        print(f"needs an NVIDIA GPU and vitlet's CUDA kernels: {reason}. Nothing was measured.")
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = torch.cuda.get_device_name()
    print(f"{device}; microseconds of one call")
    rows = []
    for name, ways, expected in problems():
        errors = {way: error(name, ways[way](), want) for way, want in expected.items()}
        for way, difference in errors.items():
            if not difference <= 1e-5:
                raise SystemExit(f"{name}, {way}: off by {difference:.1e} of the largest number")
        times = measure(ways, args.seconds)
        rows.append({"name": name, "us": times, "errors": errors})
        print(f"{name:24}" + "".join(f"  {way} {t:.1f}" for way, t in times.items()))
    if args.json:
        args.json.write_text(json.dumps({"device": device, "rows": rows}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
