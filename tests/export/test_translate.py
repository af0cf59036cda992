"""Our torch operators become our ONNX operators, with weights as small as they promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from made_up import relative
from torch import Tensor, nn

import vitlet.ops.torch_ops  # noqa: F401  (registers the operators)
from vitlet.errors import UnsupportedError
from vitlet.export.functions.pack_weights import shift_codes
from vitlet.export.onnx import export_onnx
from vitlet.export.trace import Graph
from vitlet.ops import pack_shift_weight
from vitlet.runtime.manifest import TensorSpec
from vitlet.runtime.ort import OrtEngine

OPS = torch.ops.vitlet
N, K = 24, 37


class Layers(nn.Module):
    def __init__(self, op: str, **options: Any) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(N, K, generator=random), requires_grad=False)
        self.bias = nn.Parameter(torch.randn(N, generator=random), requires_grad=False)
        self.op, self.options = op, options

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = getattr(OPS, self.op)(x.flatten(1), self.weight, self.bias, **self.options)
        return y


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        levels, taps = torch.tensor([0.1, -0.2]), torch.linspace(-1, 1, 18).reshape(2, 9)
        y: Tensor = OPS.binary_linear_attention(x, 0 - x, 2 * x, levels, None, taps, exact=True)
        return y.flatten(1)


def graph(module: nn.Module, *shape: int) -> Graph:
    return Graph(
        "model", module.eval(), (TensorSpec("image", "float32", ("batch", *shape)),),
        (TensorSpec("logits", "float32", ("batch", "any")),),
    )  # fmt: skip


def check(one: Graph, path: Path, op: str, limit: float) -> onnx.ModelProto:
    artifact = export_onnx(one, path, batch=3)
    assert artifact.custom_ops == (op,)
    x = torch.randn(3, *one.inputs[0].shape[1:], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = one.module(x).numpy()
    for on in (True, False):
        assert relative(OrtEngine(path, accelerate=on).run({"image": x.numpy()})["logits"],
                        want) < limit  # fmt: skip
    return onnx.load(str(path))


@pytest.mark.parametrize(("wide", "shape"), [(False, (N, 19)), (True, (2, N, 19))])
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_shift_linear_keeps_four_bits_a_weight(
    wide: bool, shape: tuple[int, ...], activation: str, tmp_path: Path
) -> None:
    layer = Layers("shift_linear", wide=wide, activation=activation)
    model = check(graph(layer, K), tmp_path / "m.onnx", "ShiftLinear", 1e-6)
    stored = {t.name: (t.data_type, tuple(t.dims)) for t in model.graph.initializer}
    assert stored["weight"] == (onnx.TensorProto.UINT8, shape)
    assert not any(dims == (N, K) for _, dims in stored.values())


def test_int8_linear_keeps_a_byte_a_weight(tmp_path: Path) -> None:
    model = check(graph(Layers("int8_linear"), K), tmp_path / "m.onnx", "Int8Linear", 1e-6)
    stored = {t.name: (t.data_type, tuple(t.dims)) for t in model.graph.initializer}
    assert stored["weight"] == (onnx.TensorProto.INT8, (N, K))


def test_binary_linear_attention(tmp_path: Path) -> None:
    check(graph(Attention(), 2, 19, 8), tmp_path / "m.onnx", "BinaryLinearAttention", 1e-5)


def test_a_weight_that_the_model_computes_is_refused(tmp_path: Path) -> None:
    class Computed(Layers):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = OPS.shift_linear(x, self.weight * x.mean())
            return y

    with pytest.raises(UnsupportedError, match="computes the weight of a shift"):
        export_onnx(graph(Computed(""), K), tmp_path / "m.onnx")


@pytest.mark.parametrize("wide", [False, True])
def test_codes_are_the_weight_that_the_kernel_multiplies_by(wide: bool) -> None:
    octaves = 15 if wide else 7
    powers = np.ldexp(1.0, np.arange(octaves))
    weight = np.concatenate([powers, -powers, [0.0]])[None].astype(np.float32)
    codes, scale = shift_codes(weight, wide)
    halves = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:-1], -1)
    sizes = np.array([0, 1, 2, 4, 8, 16, 32, 64, -128 if wide else 0, *(-1 << np.arange(7))])
    integers = sizes[halves[..., : weight.shape[1]]]
    whole = integers[0] * 256 + integers[1] if wide else integers
    np.testing.assert_array_equal(whole * scale[:, None], weight)
    np.testing.assert_array_equal(pack_shift_weight(weight, wide).dequantize(), weight)
