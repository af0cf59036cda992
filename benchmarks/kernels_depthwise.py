"""How fast is vitlet's depthwise convolution beside ONNX Runtime and torch?

    python benchmarks/kernels_depthwise.py [--seconds 1.0] [--threads 1] [--json FILE]
    VITLET_ISA=avx2 python benchmarks/kernels_depthwise.py     with a lesser instruction set

Every distinct depthwise convolution of MobileCLIP-S0 and -S2 (256 pixels) and CAS-ViT XS and M (224
pixels), as the reparameterized models have them, with GELU where one follows; batch 1. All ways are
timed in turn in one process on one processor core, in microseconds of that thread's processor time
(with --threads, of wall clock on so many cores):

    nhwc, nchw      vitlet.ops.depthwise_conv2d in that layout
    ONNX Runtime    the layer as vitlet's exporter writes it, with bound inputs and outputs. It
                    turns the map to blocks of channels and back ...
    of four         ... so also a quarter of the time of four such layers in one file, which turns
                    once (stride 1, as many channels out as in)
    torch           float32, in channels-last order

First every result is held to torch in double precision. Ratios are medians over rounds of the
quotient within a round, against the faster of the two ONNX Runtime files, so that a disturbance of
the machine hits both.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _common import about, bound, geometric_mean, in_turn, pin, ratio
from torch import nn

from vitlet import create_model, reparameterize
from vitlet.export.onnx import export_onnx
from vitlet.export.trace import Graph
from vitlet.ops import depthwise_conv2d, pack_depthwise_weight
from vitlet.runtime.manifest import TensorSpec

MODELS = {"mobileclip_s0": 256, "mobileclip_s2": 256, "casvit_xs": 224, "casvit_m": 224}
ORT, ORT_OF_FOUR = "ONNX Runtime", "of four"
OURS = ["nhwc", "nchw"]
TOLERANCE = 1e-5  # of the largest output


class Case(NamedTuple):
    """One kind of layer: what goes in, and the layer."""

    channels: int
    multiplier: int
    height: int
    width: int
    kernel: int
    stride: int
    gelu: bool

    def __str__(self) -> str:
        out = f"x{self.multiplier}" if self.multiplier > 1 else ""
        size = f"{self.channels}{out} @ {self.height}x{self.width}"
        return f"{size} k{self.kernel} s{self.stride}{' gelu' if self.gelu else ''}"


def cases_of(name: str) -> dict[Case, int]:
    """The depthwise convolutions of a model's image tower, and how often each occurs."""
    model = reparameterize(create_model(name).eval())
    tower = getattr(model, "image_encoder", model)
    found: dict[int, Case] = {}  # by order of call
    made: dict[int, tuple[int, torch.Tensor]] = {}  # which call made the tensor at this address

    def convolved(layer: nn.Conv2d, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        _, channels, height, width = inputs[0].shape
        multiplier = layer.out_channels // channels
        case = Case(
            channels, multiplier, height, width, layer.kernel_size[0], layer.stride[0], False
        )
        made[out.data_ptr()] = (len(found), out)
        found[len(found)] = case

    def activated(_: nn.GELU, inputs: tuple[torch.Tensor, ...]) -> None:
        order, _out = made.get(inputs[0].data_ptr(), (-1, None))
        if order >= 0:
            found[order] = found[order]._replace(gelu=True)

    for layer in tower.modules():
        if isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels:
            layer.register_forward_hook(convolved)  # type: ignore[arg-type]
        elif isinstance(layer, nn.GELU):
            layer.register_forward_pre_hook(activated)
    side = MODELS[name]
    tower(torch.zeros(1, 3, side, side))
    return {case: list(found.values()).count(case) for case in found.values()}


def make(case: Case) -> nn.Sequential:
    """The layer with made-up weights that keep the size of the numbers."""
    outputs = case.channels * case.multiplier
    torch.manual_seed(case.channels)
    conv = nn.Conv2d(
        case.channels, outputs, case.kernel, case.stride, case.kernel // 2, groups=case.channels
    )
    nn.init.normal_(conv.weight, 0, 1 / case.kernel)
    return nn.Sequential(conv, *([nn.GELU()] if case.gelu else [])).eval()


def by_onnxruntime(
    layer: nn.Module, x: np.ndarray, out: np.ndarray, threads: int
) -> Callable[[], Any]:
    """A call of the layer's file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.onnx"
        given = TensorSpec("image", "float32", ("batch", *x.shape[1:]))
        made = TensorSpec("logits", "float32", ("batch", *out.shape[1:]))
        export_onnx(Graph("model", layer, (given,), (made,)), path)
        return bound(path, [x], out, threads)


def ways(case: Case, threads: int) -> dict[str, Callable[[], Any]]:
    """Every way to compute the layer, each checked against double precision."""
    layer = make(case)
    shape = (1, case.channels, case.height, case.width)
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)

    def check(got: np.ndarray, repeat: int = 1) -> np.ndarray:
        expected = nn.Sequential(*[copy.deepcopy(layer).double()] * repeat)(
            torch.from_numpy(x).double()
        ).numpy()
        if got is not None:
            error = np.abs(got - expected).max() / np.abs(expected).max()
            assert error < TOLERANCE, (case, error)
        return expected.astype(np.float32)

    conv = layer[0]
    weight = pack_depthwise_weight(conv.weight.detach().numpy(), conv.bias.detach().numpy())
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    options: Any = {
        "stride": case.stride,
        "padding": case.kernel // 2,
        "activation": "gelu" if case.gelu else "none",
        "threads": threads,
    }
    found: dict[str, Callable[[], Any]] = {}
    found["nhwc"] = partial(depthwise_conv2d, last, weight, **options)
    expected = check(found["nhwc"]().transpose(0, 3, 1, 2))
    found["nchw"] = partial(depthwise_conv2d, x, weight, layout="nchw", **options)
    check(found["nchw"]())
    found[ORT] = by_onnxruntime(layer, x, expected, threads)
    check(found[ORT]().numpy())
    if expected.shape == x.shape:
        four = nn.Sequential(*(copy.deepcopy(layer) for _ in range(4)))
        found[ORT_OF_FOUR] = by_onnxruntime(four, x, expected, threads)
        check(found[ORT_OF_FOUR]().numpy(), repeat=4)
    given = torch.from_numpy(x).to(memory_format=torch.channels_last)
    found["torch"] = partial(layer.to(memory_format=torch.channels_last), given)
    check(found["torch"]().numpy())
    return found


def measure(
    calls: dict[str, Callable[[], Any]], seconds: float, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Time every way in turn; of the chain of four layers one is a quarter."""
    times = in_turn(calls, seconds, clock)
    if ORT_OF_FOUR in times:
        times[ORT_OF_FOUR] = [time / 4 for time in times[ORT_OF_FOUR]]
    return times


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="per shape")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    clock = pin(args.threads)
    in_models = {name: cases_of(name) for name in MODELS}
    results: dict[str, Any] = {}
    for case in dict.fromkeys(case for cases in in_models.values() for case in cases):
        times = measure(ways(case, args.threads), args.seconds, clock)
        micro = {way: statistics.median(t) for way, t in times.items()}
        peers = [peer for peer in (ORT, ORT_OF_FOUR) if peer in times]
        ratios = {way: ratio(times, way, peers) for way in OURS}
        counts = {name: cases[case] for name, cases in in_models.items() if case in cases}
        results[str(case)] = {"microseconds": micro, "x ONNX Runtime": ratios, "layers": counts}
        print(f"{case!s:26}  {'  '.join(f'{way} {t:.0f}' for way, t in micro.items())}")
        print(f"{'':26}  {'  '.join(f'{way} x{ratios[way]:.2f}' for way in OURS)}", flush=True)
    for way in OURS:
        each = {name: row["x ONNX Runtime"][way] for name, row in results.items()}
        slower = [name for name, value in each.items() if value < 1]
        print(
            f"{way}: geometric mean x{geometric_mean(list(each.values())):.2f}, least "
            f"x{min(each.values()):.2f}, slower than ONNX Runtime at {', '.join(slower) or 'none'}"
        )
    if args.json:
        figures = {"about": about(threads=args.threads), "shapes": results}
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
