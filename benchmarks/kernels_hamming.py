"""How fast is vitlet's Hamming attention beside softmax attention in ONNX Runtime and torch?

    python benchmarks/kernels_hamming.py [--seconds 1.0] [--json FILE]
    VITLET_ISA=avx2 python benchmarks/kernels_hamming.py         with a lesser instruction set

softmax(Q K^T / sqrt(D)) V for Q and K of -1 and 1, all ways timed in turn in one process on one
processor core, in microseconds of that thread's processor time:

    packed     vitlet.ops.hamming_attention from packed Q and K
    + pack     the same, with pack_bits of float32 Q and K
    ORT        ONNX Runtime: MatMul, Mul, Softmax, MatMul in float32, bound inputs and outputs
    torch      scaled_dot_product_attention in float32
    bf16       the same with Q, K and V given in bfloat16

First every result is held to the formula in double precision. Ratios are medians over rounds of the
quotient within a round, against the fastest of the others.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from _common import Ways, about, bound, fastest, in_turn, onnx_model, pin, ratio
from numpy.typing import NDArray
from torch.nn.functional import scaled_dot_product_attention

from vitlet import _C
from vitlet.ops import hamming_attention, pack_bits

SHAPES = [
    (heads, tokens, dim) for heads, dim in ((1, 64), (4, 32)) for tokens in (49, 196, 197, 784)
]
TOLERANCE = {"packed": 1e-5, "+ pack": 1e-5, "ORT": 1e-5, "torch": 1e-5, "bf16": 3e-2}
OTHERS = ["ORT", "torch", "bf16"]

Array = NDArray[np.float32]


def by_onnxruntime(q: Array, k: Array, v: Array) -> Callable[[], Any]:
    """Attention as a session with bound memory."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Transpose", ["k"], ["turned"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "turned"], ["products"]),
        helper.make_node("Mul", ["products", "scale"], ["scaled"]),
        helper.make_node("Softmax", ["scaled"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["y"]),
    ]
    scale = helper.make_tensor("scale", kind, [], [q.shape[-1] ** -0.5])
    model = onnx_model(nodes, {"q": q, "k": k, "v": v}, ("y", v), [scale])
    return bound(model, [q, k, v], v)


def ways_of(x: Array, y: Array, v: Array) -> Ways:
    """Every way to compute the attention of the signs of x and y."""
    packed, scale = (pack_bits(x), pack_bits(y)), x.shape[-1] ** -0.5
    q, k = (np.where(codes > 0, 1, -1).astype(np.float32) for codes in (x, y))
    plain = [torch.from_numpy(array) for array in (q, k, v)]
    short = [tensor.bfloat16() for tensor in plain]
    return {
        "packed": lambda: hamming_attention(*packed, v, scale=scale),
        "+ pack": lambda: hamming_attention(pack_bits(x), pack_bits(y), v, scale=scale),
        "ORT": by_onnxruntime(q, k, v),
        "torch": lambda: scaled_dot_product_attention(*plain),
        "bf16": lambda: scaled_dot_product_attention(*short),
    }


def validate(ways: Ways, x: Array, y: Array, v: Array) -> dict[str, float]:
    """Hold each way to float64; return the errors, as parts of the norm."""
    products = np.where(x > 0, 1.0, -1.0) @ np.where(y > 0, 1.0, -1.0).swapaxes(-1, -2)
    weights = np.exp(products * x.shape[-1] ** -0.5)
    want = weights @ v / weights.sum(axis=-1, keepdims=True)
    errors = {}
    for name, way in ways.items():
        got = way()
        got = got.float() if isinstance(got, torch.Tensor) else got
        got = got if isinstance(got, np.ndarray) else got.numpy()
        errors[name] = float(np.linalg.norm(got - want) / np.linalg.norm(want))
        if not errors[name] <= TOLERANCE[name]:
            raise SystemExit(f"{name} is off by {errors[name]:.1e} of the norm")
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each shape")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    pin()
    print(f"instruction set {_C.active_isa()}; microseconds; heads x tokens x dim")
    rows = []
    for heads, tokens, dim in SHAPES:
        random = np.random.default_rng(tokens)
        x, y, v = (
            random.standard_normal((1, heads, tokens, dim), dtype=np.float32) for _ in range(3)
        )
        ways = ways_of(x, y, v)
        if not rows:
            print(f"{'shape':14}{''.join(f'{name:>9}' for name in ways)}   packed, + pack x best")
        errors = validate(ways, x, y, v)
        times = in_turn(ways, args.seconds, least=15)
        middle = {name: statistics.median(values) for name, values in times.items()}
        best = fastest(times, OTHERS)
        ratios = {name: ratio(times, name, [best]) for name in ("packed", "+ pack")}
        rows.append(
            {"heads": heads, "tokens": tokens, "dim": dim, "us": middle, "times_faster": ratios}
            | {"best": best, "rounds": len(times["packed"]), "errors": errors}
        )
        print(
            f"{f'{heads} x {tokens} x {dim}':14}{''.join(f'{t:9.1f}' for t in middle.values())}   "
            f"{ratios['packed']:.2f}, {ratios['+ pack']:.2f} ({best})"
        )
    if args.json:
        args.json.write_text(json.dumps({"about": about(), "rows": rows}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
