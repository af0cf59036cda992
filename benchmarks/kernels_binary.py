"""How fast is vitlet's binary additive attention beside ONNX Runtime and torch?

    python benchmarks/kernels_binary.py [--seconds 1.0] [--json FILE]
    VITLET_ISA=avx2 python benchmarks/kernels_binary.py         with a lesser instruction set

Q (K^T V) for Q and K of 0 and 1, all ways timed in turn in one process on one processor core, in
microseconds of that thread's processor time:

    tables          vitlet.ops.binary_linear_attention from packed Q and K: integer sums
    tables + pack   the same, with pack_bits of float32 Q and K
    exact           in float32
    output          the integer sums, and ShiftAddViT's output form: length 1, convolution of V
    ORT             ONNX Runtime, two MatMul in float32, bound inputs and outputs; K turned or given
                    turned, whichever is faster
    torch, bf16     torch, in float32 and bfloat16 (all of Q, K and V given so), likewise
    SDPA            torch's softmax attention in float32 or bfloat16, whichever is faster

First every result is held to the product in double precision. Ratios are medians over rounds of the
quotient within a round, against the fastest linear one of that round (tables, + pack) or the
fastest float32 linear one (exact), so that a disturbance of the machine hits both.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from _common import Ways, about, bound, fastest, in_turn, onnx_model, pin, ratio
from numpy.typing import NDArray
from torch.nn.functional import scaled_dot_product_attention

from vitlet import _C
from vitlet.ops import binary_linear_attention, pack_bits

SHAPES = [
    (heads, tokens, dim) for heads, dim in ((1, 64), (4, 32)) for tokens in (784, 3136, 12544)
]
SDPA_TOKENS = 784  # the most tokens that softmax attention is given
TOLERANCE = {"tables": 1e-2, "exact": 1e-5, "ORT": 1e-5, "torch": 1e-5, "bf16": 2e-2}  # of the norm
LINEAR32 = ["ORT", "ORT, turned", "torch", "torch, turned"]
LINEAR = [*LINEAR32, "bf16", "bf16, turned"]

Array = NDArray[np.float32]


def by_onnxruntime(q: Array, k: Array, v: Array, *, turned: bool) -> Callable[[], Any]:
    """Two MatMul as a session with bound memory."""
    k = np.ascontiguousarray(k.swapaxes(-1, -2)) if turned else k
    helper = onnx.helper
    nodes = [] if turned else [helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2])]
    nodes.append(helper.make_node("MatMul", ["k" if turned else "kt", "v"], ["kv"]))
    nodes.append(helper.make_node("MatMul", ["q", "kv"], ["y"]))
    return bound(onnx_model(nodes, {"q": q, "k": k, "v": v}, ("y", v)), [q, k, v], v)


def ways_of(x: Array, y: Array, v: Array) -> Ways:
    """Every way to compute the attention of the signs of x and y."""
    packed = pack_bits(x), pack_bits(y)
    taps = np.random.default_rng(5).standard_normal((x.shape[1], 9), dtype=np.float32)
    q, k = (x > 0).astype(np.float32), (y > 0).astype(np.float32)
    ways: Ways = {
        "tables": lambda: binary_linear_attention(*packed, v),
        "tables + pack": lambda: binary_linear_attention(pack_bits(x), pack_bits(y), v),
        "exact": lambda: binary_linear_attention(*packed, v, exact=True),
        "output": lambda: binary_linear_attention(*packed, v, taps=taps),
        "ORT": by_onnxruntime(q, k, v, turned=False),
        "ORT, turned": by_onnxruntime(q, k, v, turned=True),
    }
    for name, kind in (("torch", torch.float32), ("bf16", torch.bfloat16)):
        tq, tk, tv = (torch.from_numpy(array).to(kind) for array in (q, k, v))
        tkt = tk.transpose(-1, -2).contiguous()
        ways[name] = lambda q=tq, k=tk, v=tv: q @ (k.transpose(-1, -2) @ v)  # type: ignore[misc]
        ways[f"{name}, turned"] = lambda q=tq, k=tkt, v=tv: q @ (k @ v)  # type: ignore[misc]
        if x.shape[2] <= SDPA_TOKENS:
            ways[f"SDPA {name}"] = partial(scaled_dot_product_attention, tq, tk, tv)
    return ways


def validate(ways: Ways, x: Array, y: Array, v: Array) -> dict[str, float]:
    """Hold each linear way to float64; return the errors, as parts of the norm."""
    q, k = (x > 0).astype(np.float64), (y > 0).astype(np.float64)
    want = q @ (k.swapaxes(-1, -2) @ v)
    errors = {}
    for name, way in ways.items():
        limit = TOLERANCE.get(name.split(" ")[0].rstrip(","))
        if limit is None:
            continue
        got = way()
        got = got.float() if isinstance(got, torch.Tensor) else got
        got = got if isinstance(got, np.ndarray) else got.numpy()
        errors[name] = float(np.linalg.norm(got - want) / np.linalg.norm(want))
        if not errors[name] <= limit:
            raise SystemExit(f"{name} is off by {errors[name]:.1e} of the norm, at most {limit:g}")
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each shape")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    pin()
    print(f"instruction set {_C.active_isa()}; microseconds; heads x tokens x dim")
    print(
        f"{'shape':14}{'tables':>8}{'+ pack':>8}{'exact':>8}{'output':>8}{'ORT':>8}{'torch':>8}"
        f"{'bf16':>8}{'SDPA':>8}   tables, + pack x best; exact x best fp32; x SDPA; error"
    )
    rows, nan = [], float("nan")
    for heads, tokens, dim in SHAPES:
        random = np.random.default_rng(tokens)
        x, y, v = (
            random.standard_normal((1, heads, tokens, dim), dtype=np.float32) for _ in range(3)
        )
        ways = ways_of(x, y, v)
        errors = validate(ways, x, y, v)
        times = in_turn(ways, args.seconds, least=15)
        middle = {name: statistics.median(values) for name, values in times.items()}
        sdpa = [name for name in ways if name.startswith("SDPA")]
        ratios = {
            "tables": ratio(times, "tables", [fastest(times, LINEAR)]),
            "tables + pack": ratio(times, "tables + pack", [fastest(times, LINEAR)]),
            "exact": ratio(times, "exact", [fastest(times, LINEAR32)]),
            "tables, fp32": ratio(times, "tables", [fastest(times, LINEAR32)]),
        }
        if sdpa:
            ratios["SDPA fp32"] = ratio(times, "tables", [fastest(times, ["SDPA torch"])])
            ratios["SDPA"] = ratio(times, "tables", [fastest(times, sdpa)])
        rows.append(
            {"heads": heads, "tokens": tokens, "dim": dim, "us": middle, "times_faster": ratios}
            | {"rounds": len(times["tables"]), "errors": errors}
        )
        least = [
            min((middle[name] for name in ways if name.startswith(kind)), default=nan)
            for kind in ("ORT", "torch", "bf16", "SDPA")
        ]
        ours = [middle[name] for name in ("tables", "tables + pack", "exact", "output")]
        print(
            f"{f'{heads} x {tokens} x {dim}':14}{''.join(f'{t:8.1f}' for t in ours + least)}   "
            f"{ratios['tables']:.2f} (fp32: {ratios['tables, fp32']:.2f}), "
            f"{ratios['tables + pack']:.2f}; {ratios['exact']:.2f}; "
            f"{ratios.get('SDPA', nan):.0f} (fp32: {ratios.get('SDPA fp32', nan):.0f}); "
            f"{errors['tables']:.1e}"
        )
    if args.json:
        args.json.write_text(json.dumps({"about": about(), "rows": rows}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
