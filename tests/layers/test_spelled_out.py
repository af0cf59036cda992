"""Shift layers and binary attention in plain operators, and such models on every target."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vitlet
from vitlet.compress.reparameterize import reparameterize
from vitlet.compress.shift_add import shift_add
from vitlet.data.spec import Preprocess
from vitlet.layers import ShiftLinear
from vitlet.layers.kernel_hash_attention import KernelHashAttention
from vitlet.layers.linear_angular_attention import LinearAngularAttention
from vitlet.layers.spelled_out import rounds_tokens, spell_out
from vitlet.models.deit import DeiT

SPEC = Preprocess(size=(32, 32), resize_to=32, mean=(0.5,) * 3, std=(0.2, 0.25, 0.3))


@pytest.mark.parametrize("wide", [False, True])
def test_a_shift_layer_keeps_its_function(wide: bool) -> None:
    layer = ShiftLinear(33, 7, wide=wide, activation="gelu").eval()
    x = torch.randn(2, 5, 33, generator=torch.Generator().manual_seed(0))
    x[0, 0] = 0
    with torch.no_grad():
        torch.testing.assert_close(spell_out(layer)(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("kind", ["calibrated", "batch", "hash"])
def test_attention_over_bits_keeps_its_function(kind: str, merged: bool) -> None:
    layer: torch.nn.Module = (
        KernelHashAttention(24, heads=3)
        if kind == "hash"
        else LinearAngularAttention(24, heads=3, codes=kind)  # type: ignore[arg-type]
    ).eval()
    x = torch.randn(2, 11, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = layer(x)
        made = spell_out(reparameterize(layer) if merged else layer)
        torch.testing.assert_close(made(x), wanted, rtol=1e-5, atol=1e-5)


def test_a_model_without_such_layers_is_left_as_it_is() -> None:
    model = vitlet.create_model("vit_fashion")
    assert spell_out(model) is model and not rounds_tokens(model)
    assert rounds_tokens(shift_add(model)[0])


@pytest.mark.parametrize("linear", ["shift", "moe"])
def test_a_converted_model_is_proved_on_every_target(tmp_path: Path, linear: str) -> None:
    torch.manual_seed(0)
    plain = DeiT(dim=32, depth=1, heads=2, patch_size=8, img_size=32, num_classes=6)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    made, _ = shift_add(plain.eval(), linear=linear, calibration=images)  # type: ignore[arg-type]
    bundle = vitlet.export(
        made,
        ["onnx", "tvm", "coreml"],
        tmp_path / "made.vitlet",
        spec=SPEC,
        precision={"onnx": "fp32", "tvm": "fp32", "coreml": "fp32"},
    )
    for artifact in bundle.manifest.artifacts:
        assert artifact.verification["status"] == "passed", artifact
        assert artifact.verification["method"] == "executed"
    onnx = next(a for a in bundle.manifest.artifacts if a.target == "onnx")
    assert set(onnx.custom_ops) == {"BinaryLinearAttention", "ShiftLinear"}
