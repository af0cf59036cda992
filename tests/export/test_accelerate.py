"""Layers become kernel calls where a table of times says so; the file computes the same."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from made_table import Made
from made_up import fill
from torch import Tensor, nn

import vitlet
from vitlet.errors import UnsupportedError, UsageError, VerificationError
from vitlet.export.accelerate.table import read_table
from vitlet.export.onnx import export_onnx
from vitlet.export.trace import Graph, graphs
from vitlet.models.casvit import CASViT
from vitlet.paths import ort_library
from vitlet.runtime.ort import OrtEngine

pytestmark = pytest.mark.skipif(ort_library() is None, reason="this build has no libvitlet_ort")
LIMITS = {"fp32": 1e-4, "bf16": 3e-2, "int8": 0.15}


def run(one: Graph, path: Path, kernels: bool, batch: int = 1) -> np.ndarray:
    engine = OrtEngine(path, accelerate=kernels)
    assert engine.kernels == ("library" if kernels else "functions")
    (x,) = one.example(batch)
    (y,) = engine.run({one.inputs[0].name: x.numpy()}).values()
    return y


def truth(one: Graph, batch: int = 1) -> np.ndarray:
    (x,) = one.example(batch)
    with torch.no_grad():
        return one.module(x).numpy()


def off(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(str(path)).graph.node)


@pytest.fixture(scope="module")
def image_tower() -> Graph:
    return graphs(vitlet.reparameterize(fill(vitlet.create_model("mobileclip_s0"))))[0]


@pytest.fixture(scope="module")
def cas() -> Graph:
    model = fill(CASViT(depths=(1, 1, 1, 1), dims=(8, 12, 16, 20), num_classes=10))
    return graphs(vitlet.reparameterize(model), (3, 64, 64))[0]


@pytest.mark.parametrize("accelerate", ["fp32", "int8"])
def test_an_image_tower_keeps_its_channels_last(
    image_tower: Graph, accelerate: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    export_onnx(image_tower, path, accelerate=accelerate, accelerate_table=Made())  # type: ignore[arg-type]
    found = operators(path)
    assert found["Conv"] == 1  # the stem: 3 channels, a dense 3x3 kernel
    assert found["DepthwiseConv2d"] > 30
    assert found["Linear"] + found["Int8Linear"] == 59
    # One after the stem, the rest around the attention of the last stage.
    assert found["Transpose"] < 20
    want = truth(image_tower)
    for kernels in (True, False):
        got = run(image_tower, path, kernels)
        assert off(got, want) < LIMITS[accelerate]
        assert float((got * want).sum() / np.linalg.norm(got) / np.linalg.norm(want)) > 0.99


@pytest.mark.parametrize(
    ("name", "accelerate"),
    [("vit_fashion", "fp32"), ("vit_fashion", "bf16"), ("vit_fashion", "int8"),
     ("deit_tiny", "int8")],
)  # fmt: skip
def test_a_transformer(name: str, accelerate: str, tmp_path: Path) -> None:
    (one,) = graphs(fill(vitlet.create_model(name)))
    path = tmp_path / "m.onnx"
    artifact = export_onnx(one, path, accelerate=accelerate, accelerate_table=Made())  # type: ignore[arg-type]
    want = truth(one)
    assert off(run(one, path, True), want) < LIMITS[accelerate]
    assert off(run(one, path, False), want) < LIMITS["int8" if accelerate == "int8" else "fp32"]
    exact = [n for n in onnx.load(str(path)).graph.node if n.op_type == "Linear"]
    if accelerate == "int8":  # the last layer alone stays in float32
        assert artifact.custom_ops == ("Int8Linear", "Linear") and len(exact) == 1


@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("accelerate", ["fp32", "bf16", "int8"])
def test_mixers_and_layers_share_one_layout(
    cas: Graph, accelerate: str, opset: int, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    export_onnx(
        cas,
        path,
        accelerate=accelerate,
        accelerate_table=Made(),
        opset=opset,
        batch="dyn",  # type: ignore[arg-type]
    )
    found = operators(path)
    assert found["AdditiveTokenMixer"] == 4
    assert found["Gelu"] == found["Erf"] == 0  # every one is part of a layer
    for batch in (1, 3):
        for kernels in (True, False):
            assert off(run(cas, path, kernels, batch), truth(cas, batch)) < LIMITS[accelerate]


def test_transposes_that_cost_too_much_keep_layers_as_they_are(cas: Graph, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    table = Made(ours=99.0, turn=1e6)
    export_onnx(cas, path, accelerate="fp32", accelerate_table=table)
    found = operators(path)
    # Only layers of (B, C), which have no layout, are worth it.
    assert found["DepthwiseConv2d"] == found["Transpose"] == 0
    assert found["AdditiveTokenMixer"] == 4


class Mixed(nn.Module):
    """Every shape of a border between the two layouts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.wide = nn.Conv2d(8, 16, 3, 2, 1, groups=8)
        self.up, self.down = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1, bias=False)
        self.squeeze, self.head = nn.Conv2d(16, 16, 1), nn.Linear(32, 5)
        self.scale = nn.Parameter(torch.linspace(0.5, 2, 8).reshape(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(x).tanh() * self.scale
        x = x + self.down(torch.nn.functional.gelu(self.up(y)))
        a, b = x.chunk(2, dim=1)
        x = torch.cat([b.relu(), a * a], dim=1)
        x = self.wide(x.clamp(-3, 3) + 1.5)
        x = x * self.squeeze(x.mean((2, 3), keepdim=True)).sigmoid()
        x = torch.cat([x.amax((2, 3)), x.mean((2, 3))], dim=1)
        y = self.head(x)
        return y


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("opset", [17, 20])
def test_any_choice_computes_the_same(seed: int, opset: int, tmp_path: Path) -> None:
    class Dice(Made):
        def layer(self, key: str, ways: Iterable[str], measure: Any) -> dict[str, float]:
            return {way: float(random.integers(1, 20)) for way in ways}

    random = np.random.default_rng(seed)
    torch.manual_seed(0)
    (one,) = graphs(Mixed().eval(), (3, 10, 12))
    path = tmp_path / "m.onnx"
    artifact = export_onnx(
        one, path, accelerate="fp32", opset=opset, batch="dyn",
        accelerate_table=Dice(turn=float(seed)),
    )  # fmt: skip
    for kernels in (True, False) if artifact.custom_ops else ():
        assert off(run(one, path, kernels, 2), truth(one, 2)) < 1e-5


class Tokens(nn.Module):
    """A convolution over the map that tokens are, as in PVTv2, GELU behind it or not."""

    def __init__(self, gelu: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.fc1, self.fc2 = nn.Linear(8, 24), nn.Linear(24, 8)
        self.filters = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.gelu = gelu

    def forward(self, x: Tensor) -> Tensor:
        maps = self.stem(x)
        b, _, h, w = maps.shape
        tokens = maps.flatten(2).transpose(1, 2)
        y = self.fc1(tokens)
        y = self.filters(y.transpose(1, 2).reshape(b, 24, h, w)).flatten(2).transpose(1, 2)
        tokens = tokens + self.fc2(nn.functional.gelu(y) if self.gelu else y.tanh())
        out: Tensor = tokens.transpose(1, 2).reshape(b, 8, h, w).amax((2, 3))
        return out


@pytest.mark.parametrize(("gelu", "opset", "batch"), [(True, 20, 1), (True, 17, 1), (False, 20, 2)])
def test_tokens_reach_a_depthwise_convolution_without_a_transpose(
    gelu: bool, opset: int, batch: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    (one,) = graphs(Tokens(gelu).eval(), (3, 10, 14))
    path = tmp_path / "m.onnx"
    export_onnx(
        one, path, accelerate="fp32", opset=opset, batch=batch, accelerate_table=Made()
    )  # fmt: skip
    nodes = onnx.load(str(path)).graph.node
    (layer,) = [node for node in nodes if node.op_type == "DepthwiseConv2d"]
    activation = next(a.s for a in layer.attribute if a.name == "activation")
    assert activation == (b"gelu" if gelu and opset == 20 else b"none")
    # Behind the stem, and before the maximum: what is left is around operators of others.
    assert sum(node.op_type == "Transpose" for node in nodes) == 2
    for kernels in (True, False):
        assert off(run(one, path, kernels, batch), truth(one, batch)) < 1e-5


def test_measured_times_are_kept_and_give_the_same_bytes_again(cas: Graph, tmp_path: Path) -> None:
    first = export_onnx(cas, tmp_path / "a", accelerate="int8")
    table = first.details["accelerate_table"]
    assert {"processor", "isa", "onnxruntime", "threads", "schema"} <= set(table)
    assert all(time >= 0 for times in table["layers"].values() for time in times.values())
    (tmp_path / "table.json").write_text(json.dumps(table))
    second = export_onnx(
        cas, tmp_path / "b", accelerate="int8", accelerate_table=read_table(tmp_path / "table.json")
    )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert second.details["accelerate_table"] == table


def test_a_file_that_is_not_faster_is_written_plain(cas: Graph, tmp_path: Path) -> None:
    table = Made()
    table.files["model"] = {"plain": 10.0, "layers": 10.0}
    artifact = export_onnx(cas, tmp_path / "m", accelerate="fp32", accelerate_table=table)
    assert artifact.custom_ops == ("AdditiveTokenMixer",)
    table.files["model"] = {"plain": 10.0, "layers": 9.0}
    artifact = export_onnx(cas, tmp_path / "m", accelerate="fp32", accelerate_table=table)
    assert "Linear" in artifact.custom_ops


def test_a_model_without_such_layers_is_refused(tmp_path: Path) -> None:
    (one,) = graphs(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()).eval(), (3, 5, 5))
    with pytest.raises(UnsupportedError, match="nothing that vitlet's kernels compute"):
        export_onnx(one, tmp_path / "m.onnx", accelerate="fp32", accelerate_table=Made())


def test_a_table_of_another_model_is_refused(cas: Graph, tmp_path: Path) -> None:
    table = Made()
    export_onnx(cas, tmp_path / "m", accelerate="fp32", accelerate_table=table)
    given = read_table(table.to_json())
    with pytest.raises(UsageError, match=r"has no times of .*int8"):
        export_onnx(cas, tmp_path / "m", accelerate="int8", accelerate_table=given)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read an accelerate table"),
        ("[]", "not an accelerate table of schema 1"),
        ('{"schema": 2}', "not an accelerate table of schema 1"),
        ('{"schema": 1, "layers": {"Linear": {"plain": -1}}}', "times must be numbers"),
        ('{"schema": 1, "layers": {"Linear": 4}}', "times must be numbers"),
        ('{"artifacts": [{"details": {}}]}', "exported without accelerate"),
    ],
)
def test_a_damaged_table_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(UsageError, match=message):
        read_table(tmp_path / "t.json")


def test_a_bundle_is_proved_with_the_kernels_and_without(tmp_path: Path) -> None:
    first = vitlet.export("vit_fashion", ["onnx"], tmp_path / "a.vitlet", accelerate="int8")
    (artifact,) = first.manifest.artifacts
    assert artifact.verification["status"] == "passed"
    again = vitlet.export(
        "vit_fashion", ["onnx"], tmp_path / "b.vitlet",
        accelerate="int8", accelerate_table=first.path,
    )  # fmt: skip
    files = [bundle.file("model.onnx").read_bytes() for bundle in (first, again)]
    assert files[0] == files[1]


def test_a_planted_error_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitlet.export.accelerate import rewrite

    table = Made()
    (one,) = graphs(vitlet.create_model("vit_fashion"))
    export_onnx(one, tmp_path / "m.onnx", accelerate="int8", accelerate_table=table)

    def wrong(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        integers, scale = right(weight)
        return integers[::-1].copy(), scale

    right = rewrite.round_weight
    monkeypatch.setattr(rewrite, "round_weight", wrong)
    with pytest.raises(VerificationError, match="without vitlet's kernels"):
        vitlet.export(
            "vit_fashion", ["onnx"], tmp_path / "m.vitlet",
            accelerate="int8", accelerate_table=table.to_json(),
        )  # fmt: skip
