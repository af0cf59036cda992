"""How fast is vitlet's CAS-ViT token mixer beside ONNX Runtime and torch?

    python benchmarks/kernels_mixer.py [--seconds 1.0] [--threads 1] [--json FILE]
    VITLET_ISA=avx2 python benchmarks/kernels_mixer.py         with a lesser instruction set

The 15 mixers of CAS-ViT XS, S, M and T at 224 pixels, batch 1, all ways timed in turn in one
process on one processor core, in microseconds of that thread's processor time (with --threads, of
wall clock on so many cores):

    fp32, bf16, int8, shift
                    vitlet.ops.additive_token_mixer, (B, C, H, W) in and out; "nhwc": (B, H, W, C)
    ONNX Runtime    the same module, reparameterized, float32, by vitlet's exporter and by plain
                    torch.onnx.export; with bound inputs and outputs
    torch           float32, reparameterized, in channels-last order; torch bf16: the same in bf16

First every result is held to the module in double precision; its q, k, v weights are signed powers
of two, which "shift" has exactly. Ratios are medians over rounds of the quotient within a round,
against the faster of the two ONNX Runtime files, so that a disturbance of the machine hits both.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import about, bound, geometric_mean, in_turn, pin, ratio

from vitlet import reparameterize
from vitlet.export.onnx import export_onnx
from vitlet.export.trace import Graph
from vitlet.layers import AdditiveTokenMixer
from vitlet.ops import MixerWeights, additive_token_mixer, pack_shift_weight
from vitlet.runtime.manifest import TensorSpec

SHAPES = [
    *[(48, 56), (56, 28), (112, 14), (220, 7), (64, 56), (64, 28), (96, 56), (96, 28)],
    *[(128, 28), (128, 14), (192, 14), (256, 14), (256, 7), (384, 7), (512, 7)],
]
ORT, ORT_PLAIN = "ONNX Runtime", "ONNX Runtime, torch.onnx"
TOLERANCE = {"fp32": 2e-5, "bf16": 2e-2, "int8": 5e-2, "shift": 5e-2}  # of the largest output
OURS = [name + layout for name in TOLERANCE for layout in ("", " nhwc")]


def made_up(dim: int) -> AdditiveTokenMixer:
    """A mixer whose gates open and close."""
    random = torch.Generator().manual_seed(dim)
    module = AdditiveTokenMixer(dim, bias=True).eval()
    for name, value in module.state_dict().items():
        if value.ndim > 1:
            value.normal_(0, 1.2 / value[0].numel() ** 0.5, generator=random)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2, generator=random)
        elif value.is_floating_point():
            value.normal_(0.2, 0.3, generator=random)
    weight = module.qkv.weight
    powers = pack_shift_weight(weight.detach()[:, :, 0, 0].numpy()).dequantize()
    weight.data = torch.from_numpy(powers).view_as(weight)
    return module


def onnx_files(module: AdditiveTokenMixer, x: np.ndarray, folder: Path) -> dict[str, Path]:
    folded = reparameterize(module)
    shape = ("batch", *x.shape[1:])
    specs = TensorSpec("image", "float32", shape), TensorSpec("logits", "float32", shape)
    files = {ORT: folder / "vitlet.onnx", ORT_PLAIN: folder / "torch.onnx"}
    export_onnx(Graph("model", folded, specs[:1], specs[1:]), files[ORT])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inputs = (torch.from_numpy(x),)
        torch.onnx.export(folded, inputs, files[ORT_PLAIN], dynamo=True, verbose=False)
    return files


def ways(dim: int, side: int, threads: int, folder: Path) -> dict[str, Callable[[], Any]]:
    """Every way to mix one map, each checked against double precision."""
    module = made_up(dim)
    x = np.random.default_rng(1).standard_normal((1, dim, side, side)).astype(np.float32)
    with torch.inference_mode():
        expected = copy.deepcopy(module).double()(torch.from_numpy(x).double()).numpy()

    def check(got: np.ndarray, precision: str) -> None:
        error = np.abs(got - expected).max() / np.abs(expected).max()
        assert error < TOLERANCE[precision], (dim, side, precision, error)

    weights = MixerWeights.from_module(module)
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    found: dict[str, Callable[[], Any]] = {}
    for name in OURS:
        precision, nhwc = name.split()[0], name.endswith("nhwc")
        options: Any = {"precision": precision, "layout": "nhwc" if nhwc else "nchw"}
        call = partial(
            additive_token_mixer, last if nhwc else x, weights, threads=threads, **options
        )
        check(call().transpose(0, 3, 1, 2) if nhwc else call(), precision)
        found[name] = call
    for name, path in onnx_files(module, x, folder).items():
        found[name] = bound(path, [x], x, threads)
        check(found[name]().numpy(), "fp32")
    folded = reparameterize(module).to(memory_format=torch.channels_last)
    given = torch.from_numpy(x).to(memory_format=torch.channels_last)
    found["torch"] = partial(folded, given)
    found["torch bf16"] = partial(copy.deepcopy(folded).bfloat16(), given.bfloat16())
    return found


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="per shape")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    clock = pin(args.threads)
    results = {}
    for dim, side in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            calls = ways(dim, side, args.threads, Path(folder))
        times = in_turn(calls, args.seconds, clock)
        name = f"{dim} @ {side}x{side}"
        micro = {way: statistics.median(t) for way, t in times.items()}
        ratios = {way: ratio(times, way, [ORT, ORT_PLAIN]) for way in OURS}
        results[name] = {"microseconds": micro, "x ONNX Runtime": ratios}
        columns = [f"{way} {micro[way]:.0f}" for way in micro]
        print(f"{name:12}  {'  '.join(columns)}")
        print(f"{'':12}  {'  '.join(f'{way} x{ratios[way]:.2f}' for way in OURS)}", flush=True)
    for way in OURS:
        each = [row["x ONNX Runtime"][way] for row in results.values()]
        print(f"{way}: geometric mean x{geometric_mean(each):.2f}, least x{min(each):.2f}")
    if args.json:
        figures = {"about": about(threads=args.threads), "shapes": results}
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
