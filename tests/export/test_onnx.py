from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from vitlet.data.spec import Preprocess
from vitlet.errors import UnsupportedError
from vitlet.export.onnx import export_onnx
from vitlet.export.trace import Graph, graphs
from vitlet.runtime.manifest import Artifact

SHAPE = (3, 32, 32)


def run(path: Path, *inputs: Tensor) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})[0]


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(str(path)).graph.node)


def worst_difference(
    path: Path, graph: Graph, batches: tuple[int, ...], reference: nn.Module
) -> float:
    worst = 0.0
    for batch in batches:
        (x,) = graph.example(batch, seed=batch)
        expected = reference(x).numpy()
        worst = max(worst, float(np.abs(run(path, x) - expected).max() / np.abs(expected).max()))
    return worst


@pytest.mark.parametrize(
    ("name", "opset"),
    [
        ("small_vit", 17),
        ("small_vit", 18),
        ("small_vit", 21),
        ("small_conv", 17),
        ("small_conv", 20),
    ],
)
def test_every_opset_computes_the_model(
    name: str, opset: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)
    (graph,) = graphs(model, SHAPE)
    artifact = export_onnx(graph, tmp_path / "m.onnx", opset=opset, batch="dyn")
    assert onnx.load(str(tmp_path / "m.onnx")).opset_import[0].version == opset
    assert artifact.details["opset"] == opset
    assert worst_difference(tmp_path / "m.onnx", graph, (1, 2, 3), model) < 1e-5


@pytest.mark.parametrize(("batch", "works"), [(2, (2,)), ((1, 8), (1, 2, 8)), ("dyn", (1, 3))])
def test_batch_is_as_asked(
    small_vit: nn.Module, batch: object, works: tuple[int, ...], tmp_path: Path
) -> None:
    (graph,) = graphs(small_vit, SHAPE)
    artifact = export_onnx(graph, tmp_path / "m.onnx", batch=batch)  # type: ignore[arg-type]
    assert artifact.inputs[0].shape[0] == (2 if batch == 2 else "batch")
    assert worst_difference(tmp_path / "m.onnx", graph, works, small_vit) < 1e-5
    dimension = onnx.load(str(tmp_path / "m.onnx")).graph.input[0].type.tensor_type.shape.dim[0]
    assert (dimension.dim_value, dimension.dim_param) == ((2, "") if batch == 2 else (0, "batch"))


def test_attention_is_left_without_slices_scales_or_5d_tensors(
    small_vit: nn.Module, tmp_path: Path
) -> None:
    (graph,) = graphs(small_vit, SHAPE)
    export_onnx(graph, tmp_path / "m.onnx", batch="dyn")
    found = operators(tmp_path / "m.onnx")
    assert not {"Slice", "Squeeze", "Split", "Mul", "Identity", "Gather_5"} & set(found)
    assert found["LayerNormalization"] == 5
    assert found["Gelu"] == 2
    assert found["Transpose"] == 1 + 2 * 4
    assert found["MatMul"] == 2 * 8


def test_batch_norm_and_split_become_convolutions_and_pooling_is_global(
    small_conv: nn.Module, tmp_path: Path
) -> None:
    (graph,) = graphs(small_conv, SHAPE)
    export_onnx(graph, tmp_path / "m.onnx", batch="dyn")
    found = operators(tmp_path / "m.onnx")
    assert not {"BatchNormalization", "Split", "ReduceMean"} & set(found)
    assert found["GlobalAveragePool"] == 2
    assert found["Conv"] == 1 + 3 + 1 + 1


class Doubling(nn.Module):
    """A reduction with two outputs per channel, a gate, and two ways to end."""

    def __init__(self, *, padded: bool) -> None:
        super().__init__()
        self.lift = nn.Conv2d(3, 8, 3, padding=1)
        self.reduce = nn.Conv2d(8, 16, 5, 2, 2, groups=8)
        self.down, self.up = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.after = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.mix = nn.Conv2d(16, 16, 1)
        self.expand = nn.Conv2d(16, 32, 3, padding=1, groups=16, bias=False)
        self.head = nn.Linear(32, 10)
        self.padded = padded

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(self.lift(x))
        gate = self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True))))
        x = nn.functional.gelu(x * torch.sigmoid(gate))
        if self.padded:  # a layer that cannot take another order of channels
            x = torch.cat([x[:, 8:], x[:, :8]], dim=1)
        return self.head(self.expand(self.mix(self.after(x))).mean((2, 3)))


class Lengths(nn.Module):
    """Rows of unit length, and a sum whose one operand is written out for the other's sake."""

    def forward(self, x: Tensor) -> Tensor:
        unit = nn.functional.normalize(x, dim=-1)
        y = unit + x.mean(1, keepdim=True).expand(-1, 3, -1, -1) * x[:, :, :1].expand_as(x)
        return y.amax((2, 3))


def test_operands_broadcast_by_themselves(tmp_path: Path) -> None:
    (graph,) = graphs(Lengths().eval(), (3, 8, 6))
    export_onnx(graph, tmp_path / "m.onnx", batch="dyn")
    # Of the product neither operand has the result's shape: one of them must stay written out.
    assert operators(tmp_path / "m.onnx")["Expand"] <= 1
    assert worst_difference(tmp_path / "m.onnx", graph, (1,), Lengths()) < 1e-6


def test_depthwise_with_two_outputs_per_channel_becomes_plain_depthwise(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for padded, convolutions in ((False, 9), (True, 8)):
        model = Doubling(padded=padded).eval().requires_grad_(False)
        (graph,) = graphs(model, SHAPE)
        export_onnx(graph, tmp_path / "m.onnx", batch="dyn")
        assert worst_difference(tmp_path / "m.onnx", graph, (1, 3), model) < 1e-5
        assert operators(tmp_path / "m.onnx")["Conv"] == convolutions


def test_half_precision_computes_inside_and_stays_float32_outside(
    small_vit: nn.Module, tmp_path: Path
) -> None:
    (graph,) = graphs(small_vit, SHAPE)
    artifact = export_onnx(graph, tmp_path / "m.onnx", batch="dyn", precision="fp16")
    model = onnx.load(str(tmp_path / "m.onnx"))
    weights = {
        t.data_type for t in model.graph.initializer if t.data_type != onnx.TensorProto.INT64
    }
    assert weights == {onnx.TensorProto.FLOAT16}
    assert {s.dtype for s in (*artifact.inputs, *artifact.outputs)} == {"float32"}
    assert operators(tmp_path / "m.onnx")["Cast"] == 2
    assert 1e-6 < worst_difference(tmp_path / "m.onnx", graph, (1, 2), small_vit) < 1e-2


def test_half_precision_refuses_weights_it_cannot_hold(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)).eval().requires_grad_(False)
    model[1].bias[0] = 1e6
    (graph,) = graphs(model, SHAPE)
    with pytest.raises(UnsupportedError, match=r"1\.bias holds 1e\+06, more than float16's 65504"):
        export_onnx(graph, tmp_path / "m.onnx", precision="fp16")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["small_vit", "small_conv"])
def test_pixels_go_in_when_the_normalization_is_in_the_graph(
    name: str,
    precision: str,
    small_spec: Preprocess,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    model = request.getfixturevalue(name)
    (graph,) = graphs(model, SHAPE)
    artifact = export_onnx(
        graph,
        tmp_path / "m.onnx",
        batch="dyn",
        preprocess=small_spec,
        precision=precision,  # type: ignore[arg-type]
    )
    assert artifact.preprocess == "in-graph"
    assert artifact.inputs[0].shape == ("batch", 32, 32, 3)
    pixels = torch.randint(0, 256, (3, 32, 32, 3), generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v)[:, None, None] for v in (small_spec.mean, small_spec.std))
    expected = model((pixels.permute(0, 3, 1, 2) / 255 - mean) / std).numpy()
    answer = run(tmp_path / "m.onnx", pixels.to(torch.uint8))
    limit = 1e-5 if precision == "fp32" else 2e-2
    assert np.abs(answer - expected).max() / np.abs(expected).max() < limit
    if precision == "fp32":
        # Folded whole into the patch convolution; where zeros are padded the shift must stay.
        elementwise = {"small_vit": 0, "small_conv": 1}[name]
        first = [n.op_type for n in onnx.load(str(tmp_path / "m.onnx")).graph.node][:4]
        before_conv = first[: first.index("Conv")] if "Conv" in first else first
        assert sum(op in ("Add", "Sub", "Mul") for op in before_conv) == elementwise


def test_both_towers_give_unit_rows(small_clip: nn.Module, tmp_path: Path) -> None:
    image, text = graphs(small_clip, SHAPE)
    assert (image.name, text.name) == ("image", "text")
    assert text.inputs[0].dtype == "int64"
    for graph in (image, text):
        path = tmp_path / f"{graph.name}.onnx"
        export_onnx(graph, path, batch="dyn")
        (x,) = graph.example(3, seed=5)
        rows = run(path, x)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(rows, graph.module(x).numpy(), atol=1e-5)
        # Rows that are alike would prove nothing.
        assert np.abs(rows[0] - rows[1]).max() > 0.05


def test_file_names_layers_and_says_nothing_of_this_machine(
    small_vit: nn.Module, tmp_path: Path
) -> None:
    (graph,) = graphs(small_vit, SHAPE)
    export_onnx(graph, tmp_path / "m.onnx")
    data = (tmp_path / "m.onnx").read_bytes()
    assert b"/home" not in data and b".py" not in data and b"pkg.torch" not in data
    model = onnx.load(str(tmp_path / "m.onnx"))
    names = {node.name for node in model.graph.node}
    assert {"patch/Conv", "blocks.1.attn/Softmax", "head/Gemm"} <= names
    assert "blocks.0.attn.proj.bias" in {t.name for t in model.graph.initializer}
    assert not model.metadata_props and not model.doc_string


def test_equal_weights_are_stored_once(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
            self.second.load_state_dict(self.first.state_dict())

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(x.mean(dim=(1, 2)).repeat(1, 2))))

    model = Twice().eval().requires_grad_(False)
    (graph,) = graphs(model, SHAPE)
    export_onnx(graph, tmp_path / "m.onnx")
    sizes = [int(np.prod(t.dims)) for t in onnx.load(str(tmp_path / "m.onnx")).graph.initializer]
    assert sizes.count(64 * 64) == 1
    assert sizes.count(64) == 1


def test_the_same_export_gives_the_same_bytes(small_vit: nn.Module, tmp_path: Path) -> None:
    (graph,) = graphs(small_vit, SHAPE)
    for name in ("one.onnx", "two.onnx"):
        export_onnx(graph, tmp_path / name, batch="dyn")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def test_every_unknown_operator_is_named_with_its_module(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.modified_bessel_k0(torch.special.airy_ai(x))

    model = nn.Sequential(nn.Flatten(), Odd(), nn.Linear(3 * 32 * 32, 4)).eval()
    (graph,) = graphs(model.requires_grad_(False), SHAPE)
    with pytest.raises(UnsupportedError) as caught:
        export_onnx(graph, tmp_path / "m.onnx")
    message = str(caught.value)
    assert "special_airy_ai.default (in 1)" in message
    assert "modified_bessel_k0.default (in 1)" in message
    assert not (tmp_path / "m.onnx").exists()


def test_large_weights_go_into_a_file_of_their_own(
    small_vit: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitlet.export.onnx.SINGLE_FILE_LIMIT", 1000)
    (graph,) = graphs(small_vit, SHAPE)
    artifact: Artifact = export_onnx(graph, tmp_path / "m.onnx", batch="dyn")
    assert artifact.file == "m.onnx"
    assert (tmp_path / "m.onnx.data").stat().st_size > (tmp_path / "m.onnx").stat().st_size
    assert worst_difference(tmp_path / "m.onnx", graph, (2,), small_vit) < 1e-5
