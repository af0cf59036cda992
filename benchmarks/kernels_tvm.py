"""What do vitlet's operators cost in TVM, as compiled loops and as calls of the C++ kernels?

    python benchmarks/kernels_tvm.py [--seconds 1.0] [--json FILE]
    VITLET_ISA=avx2 python benchmarks/kernels_tvm.py         C++ kernels of a lesser instruction set

All ways timed in turn in one process on one processor core, in microseconds of that thread's
processor time, batch 1:

    TIR             the loops of vitlet.export.tvm_ops, scheduled and compiled for this processor
    extern          the function that a graph exported with --tvm-extern calls in TVM's place
    C++             the same kernel by its Python function, arrays in and out
    ORT             ONNX Runtime in float32 with bound inputs and outputs: the mixer's module, a
                    product with the rounded weight, two MatMul with Q and K as 0 and 1 given ready
                    (the others pack them from float32 within the time)

First every result is held to a computation in double precision. Ratios are medians over rounds of
the quotient within a round, so that a disturbance of the machine hits both.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ["TVM_NUM_THREADS"] = "1"
os.environ.setdefault("TVM_BIND_THREADS", "0")

import numpy as np
import onnx
import torch
import tvm
from _common import Ways, about, bound, in_turn, onnx_model, pin, ratio
from kernels_binary import by_onnxruntime
from kernels_mixer import made_up

from vitlet import _C, ops, reparameterize
from vitlet.export.onnx import export_onnx
from vitlet.export.trace import Graph
from vitlet.export.tvm_ops import additive_token_mixer as mixer
from vitlet.export.tvm_ops import binary_linear_attention as attention
from vitlet.export.tvm_ops import shift_linear as linear
from vitlet.export.tvm_schedule import tile_for
from vitlet.export.tvm_targets import find_machine
from vitlet.layers.fused_mixer import FusedMixer
from vitlet.runtime.manifest import TensorSpec
from vitlet.runtime.tvm import load_runtime

MIXERS = [(48, 56), (112, 14), (220, 7)]  # channels, side
LINEARS = [(49, 384, 1536), (196, 384, 1536)]  # rows, inputs, outputs
ATTENTIONS = [(4, 784, 32), (1, 784, 64)]  # heads, tokens, dim
TIR, EXTERN, CPP, ORT = "TIR", "extern", "C++", "ORT"

MACHINE = find_machine()
TILE = tile_for(MACHINE.cpu_features)


def compiled(function: Any, *arguments: np.ndarray, out: Any) -> Callable[[], Any]:
    """Compile a scheduled function for this processor; a call of it that writes `out`."""
    name = str(function.attrs["global_symbol"])
    target = tvm.target.Target({"kind": "llvm", "mtriple": MACHINE.triple, "mcpu": MACHINE.cpu})
    library = tvm.compile(tvm.IRModule({name: function}), target=target)
    return partial(library[name], *map(tensor, arguments), out)


def tensor(array: Any) -> Any:
    """Return an array as TVM holds it; what is one already stays."""
    return tvm.runtime.tensor(array) if isinstance(array, np.ndarray) else array


def extern(name: str, *arguments: np.ndarray, out: Any) -> Callable[[], Any]:
    """A call of a registered kernel as TVM's machine makes it."""
    function = load_runtime().get_global_func(f"vitlet.{name}")
    return partial(function, *map(tensor, arguments), out)


def room(shape: tuple[int, ...], dtype: str = "float32") -> Any:
    return tvm.runtime.tensor(np.zeros(shape, dtype))


def check(name: str, got: np.ndarray, expected: np.ndarray, limit: float) -> None:
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    if not error <= limit:
        raise SystemExit(f"{name} is off by {error:.1e} of the norm, at most {limit:g}")


def mixer_ways(dim: int, side: int, folder: Path) -> Ways:
    module = made_up(dim)
    x = np.random.default_rng(1).standard_normal((1, dim, side, side)).astype(np.float32)
    expected = copy.deepcopy(module).double()(torch.from_numpy(x).double()).numpy()
    packed = ops.MixerWeights.from_module(module)
    plain = [np.ascontiguousarray(w.detach().numpy()) for w in FusedMixer(module).weights()]
    function = mixer.define(1, dim, side, side, tile_rows=TILE.rows)
    scheduled = mixer.schedule_cpu(function, TILE, side * side)
    outs = [room(x.shape), room(x.shape)]
    ways: Ways = {
        TIR: compiled(scheduled, x, *mixer.pack_weights(plain), out=outs[0]),
        EXTERN: extern("additive_token_mixer.fp32", x, packed.packed().reshape(-1), out=outs[1]),
        CPP: partial(ops.additive_token_mixer, x, packed),
    }
    shape = ("batch", *x.shape[1:])
    specs = TensorSpec("image", "float32", shape), TensorSpec("logits", "float32", shape)
    graph = Graph("model", reparameterize(module), specs[:1], specs[1:])
    export_onnx(graph, folder / "mixer.onnx")
    ways[ORT] = bound(folder / "mixer.onnx", [x], x)
    results = run_all(ways, {TIR: outs[0], EXTERN: outs[1]})
    for name, got in results.items():
        check(f"mixer {name}", got, expected, 2e-5)
    return ways


def linear_ways(rows: int, inputs: int, outputs: int, _folder: Path) -> Ways:
    random = np.random.default_rng(rows)
    weight = random.standard_normal((outputs, inputs)).astype(np.float32)
    x = random.standard_normal((rows, inputs)).astype(np.float32)
    packed = ops.pack_shift_weight(weight)
    rounded = np.ascontiguousarray(packed.dequantize().T)
    expected = x.astype(np.float64) @ rounded.astype(np.float64)
    form = linear.for_cpu(TILE)
    function = linear.define(rows, inputs, outputs, **form)
    scheduled = linear.schedule_cpu(function, TILE, rows)
    outs = [room((rows, outputs)), room((rows, outputs))]
    parts = packed.panels, packed.sums, packed.scale
    own = [linear.words_of(packed), packed.scale, *([packed.sums] if form.get("unsigned") else [])]
    ways: Ways = {
        TIR: compiled(scheduled, x, *own, out=outs[0]),
        EXTERN: extern("shift_linear.shift.none", x, *parts, out=outs[1]),
        CPP: partial(ops.shift_linear, x, packed),
        ORT: product_by_onnxruntime(x, rounded),
    }
    results = run_all(ways, {TIR: outs[0], EXTERN: outs[1]})
    for name, got in results.items():
        check(f"shift_linear {name}", got, expected, 1e-5 if name == ORT else 2e-2)
    return ways


def product_by_onnxruntime(x: np.ndarray, weight: np.ndarray) -> Callable[[], Any]:
    y = np.empty((len(x), weight.shape[1]), np.float32)
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])]
    constants = [onnx.numpy_helper.from_array(weight, "w")]
    return bound(onnx_model(nodes, {"x": x}, ("y", y), constants), [x], y)


def attention_ways(heads: int, tokens: int, dim: int, _folder: Path) -> Ways:
    random = np.random.default_rng(tokens)
    shape = (1, heads, tokens, dim)
    x, y, v = (random.standard_normal(shape, dtype=np.float32) for _ in range(3))
    q, k = (x > 0).astype(np.float32), (y > 0).astype(np.float32)
    expected = q.astype(np.float64) @ (k.swapaxes(-1, -2).astype(np.float64) @ v)
    level, outs = np.zeros(heads, np.float32), [room(shape), room(shape)]
    words = [room((1, heads, tokens, -(-dim // 64)), "int64") for _ in range(2)]
    pack = attention.schedule_pack_cpu(attention.define_pack(1, heads, tokens, dim))
    function = attention.define(1, heads, tokens, dim, dim, tile_rows=TILE.rows)
    steps = [
        compiled(pack, x, level, out=words[0]),
        compiled(pack, y, level, out=words[1]),
        compiled(attention.schedule_cpu(function, TILE, dim), *words, v, out=outs[0]),
    ]
    kernel = extern("binary_linear_attention.plain.rounded", x, y, v, level, level, out=outs[1])
    ways: Ways = {
        TIR: lambda: [step() for step in steps],
        EXTERN: kernel,
        CPP: lambda: ops.binary_linear_attention(ops.pack_bits(x), ops.pack_bits(y), v),
        ORT: by_onnxruntime(q, k, v, turned=False),
    }
    results = run_all(ways, {TIR: outs[0], EXTERN: outs[1]})
    for name, got in results.items():
        check(f"attention {name}", got, expected, 1e-5 if name == ORT else 1e-2)
    return ways


def run_all(ways: Ways, written: dict[str, Any]) -> dict[str, np.ndarray]:
    """Run each way once and return the results, of those that write into memory from there."""
    results = {}
    for name, way in ways.items():
        given = way()
        given = written.get(name, given)
        results[name] = given if isinstance(given, np.ndarray) else given.numpy()
    return results


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each shape")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    pin()
    cases: list[tuple[str, Callable[[Path], Ways]]] = []
    cases += [(f"mixer {c} @ {s}x{s}", partial(mixer_ways, c, s)) for c, s in MIXERS]
    for kind, make, sizes in (
        ("linear", linear_ways, LINEARS),
        ("attention", attention_ways, ATTENTIONS),
    ):
        cases += [(f"{kind} {' x '.join(map(str, s))}", partial(make, *s)) for s in sizes]
    print(f"C++ kernels: {_C.active_isa()}; TVM for {MACHINE.cpu}; microseconds")
    print(f"{'':24}{TIR:>9}{EXTERN:>9}{CPP:>9}{ORT:>9}   ORT/TIR  ORT/extern  extern/C++  TIR/C++")
    rows = []
    for name, make in cases:
        with tempfile.TemporaryDirectory() as folder:
            ways = make(Path(folder))
            times = in_turn(ways, args.seconds, least=15)
        middle = {way: statistics.median(values) for way, values in times.items()}
        pairs = ((ORT, TIR), (ORT, EXTERN), (EXTERN, CPP), (TIR, CPP))
        ratios = {f"{a}/{b}": ratio(times, b, [a]) for a, b in pairs}
        rows.append({"case": name, "us": middle, "ratios": ratios, "rounds": len(times[TIR])})
        figures = zip(ratios.values(), (10, 12, 12, 9), strict=True)
        print(
            f"{name:24}{''.join(f'{middle[way]:9.0f}' for way in ways)}"
            f"{''.join(f'{value:{width}.2f}' for value, width in figures)}",
            flush=True,
        )
    if args.json:
        facts = about(tvm=tvm.__version__, cpu=MACHINE.cpu)
        args.json.write_text(json.dumps({"about": facts, "rows": rows}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
