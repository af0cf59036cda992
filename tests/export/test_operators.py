"""Every operator of ours: its kernel and its function of standard operators agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from vitlet.export.functions import DOMAIN, OPERATORS, attach
from vitlet.paths import ort_library
from vitlet.runtime.ort import OrtEngine

pytestmark = pytest.mark.skipif(ort_library() is None, reason="this build has no libvitlet_ort")
Arrays = dict[str, np.ndarray]


def model(name: str, inputs: Arrays, attributes: dict[str, Any], opset: int, fed: int) -> Any:
    """Return a model of one node; the first `fed` inputs are the graph's, the rest constants."""
    values = []
    for index, (key, array) in enumerate(inputs.items()):
        if array is None:
            values.append(None)
            continue
        value = ir.val(key, shape=ir.Shape(array.shape), dtype=ir.DataType.from_numpy(array.dtype))
        if index >= fed:
            value.const_value = ir.tensor(array, name=key)
        values.append(value)
    node = ir.node(name, values, attributes, domain=DOMAIN)
    node.outputs[0].name, node.outputs[0].dtype = "y", ir.DataType.FLOAT
    constants = [value for value in values[fed:] if value is not None]
    graph = ir.Graph(
        values[:fed], node.outputs, nodes=[node], initializers=constants,
        opset_imports={"": opset}, name="g",
    )  # fmt: skip
    made = ir.Model(graph, ir_version=10)
    attach(made)
    return made


def both(
    folder: Path, name: str, inputs: Arrays, attributes: dict[str, Any], opset: int = 20,
    fed: int = 1, threads: int = 1,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return the kernel's answer and the function's."""
    path = folder / "m.onnx"
    made = model(name, inputs, attributes, opset, fed)
    path.write_bytes(ir.serde.serialize_model(made).SerializeToString())
    feeds = {key: array for key, array in list(inputs.items())[:fed] if array is not None}
    answers = []
    for accelerate, kernels in ((True, "library"), (False, "functions")):
        engine = OrtEngine(path, threads=threads, accelerate=accelerate)
        assert engine.kernels == kernels
        answers.append(engine.run(feeds)["y"])
    return answers[0], answers[1]


def off(got: np.ndarray, want: np.ndarray) -> float:
    assert got.shape == want.shape
    return float(np.abs(got - want).max(initial=0) / max(np.abs(want).max(initial=0), 1e-30))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def optional(n: int, shape: tuple[int, ...], there: tuple[bool, bool]) -> Arrays:
    bias, residual = normal(n, seed=5), normal(*shape, seed=6)
    parts: dict[str, Any] = {"bias": bias if there[0] else None}
    if there[1]:
        parts["residual"] = residual
    return parts


VARIANTS = [
    ((bias, residual), activation)
    for bias in (False, True)
    for residual in (False, True)
    for activation in ("none", "gelu")
]


@pytest.mark.parametrize(("there", "activation"), VARIANTS)
@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3), (2, 3, 7)])
def test_int8_linear(
    shape: tuple[int, ...], there: tuple[bool, bool], activation: str, tmp_path: Path
) -> None:
    n, k = 70, 37
    weight = np.random.default_rng(1).integers(-127, 128, (n, k)).astype(np.int8)
    scale = np.abs(normal(n, seed=2)) / 100
    inputs = {"x": normal(*shape, k), "weight": weight, "scale": scale}
    inputs |= optional(n, (*shape, n), there)
    ours, plain = both(tmp_path, "Int8Linear", inputs, {"activation": activation})
    assert off(ours, plain) < 1e-6


def codes_of(values: np.ndarray) -> np.ndarray:
    """Pack (..., K) codes two to a byte, the even one below."""
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)
    return (values[..., ::2] | values[..., 1::2] << 4).astype(np.uint8)


@pytest.mark.parametrize(("there", "activation"), VARIANTS)
@pytest.mark.parametrize("wide", [0, 1])
@pytest.mark.parametrize("k", [1, 36, 37])
def test_shift_linear(
    k: int, wide: int, there: tuple[bool, bool], activation: str, tmp_path: Path
) -> None:
    n = 41
    codes = np.random.default_rng(1).integers(0, 16, (2, n, k) if wide else (n, k))
    inputs = {"x": normal(3, k), "codes": codes_of(codes), "scale": np.abs(normal(n)) / 100}
    inputs |= optional(n, (3, n), there)
    attributes = {"activation": activation, "in_features": k, "wide": wide}
    ours, plain = both(tmp_path, "ShiftLinear", inputs, attributes)
    assert off(ours, plain) < 1e-6


def test_shift_codes_mean_signed_powers_of_two(tmp_path: Path) -> None:
    codes = np.arange(16)[:, None]
    inputs = {"x": np.full((1, 1), 127, np.float32), "codes": codes_of(codes),
              "scale": np.ones(16, np.float32)}  # fmt: skip
    attributes = {"activation": "none", "in_features": 1, "wide": 0}
    ours, _ = both(tmp_path, "ShiftLinear", inputs, attributes)
    magnitudes = [0, 1, 2, 4, 8, 16, 32, 64]
    np.testing.assert_array_equal(ours[0] / 127, [*magnitudes, *(-m for m in magnitudes)])


@pytest.mark.parametrize("there", [there for there, activation in VARIANTS if activation == "none"])
@pytest.mark.parametrize("activation", ["none", "gelu", "relu"])
@pytest.mark.parametrize(("precision", "limit"), [("fp32", 2e-6), ("bf16", 2e-2)])
@pytest.mark.parametrize("shape", [(1,), (2, 3, 7)])
def test_linear(
    shape: tuple[int, ...], precision: str, limit: float, activation: str,
    there: tuple[bool, bool], tmp_path: Path,
) -> None:  # fmt: skip
    n, k = 70, 37
    inputs = {"x": normal(*shape, k), "weight": normal(n, k), **optional(n, (*shape, n), there)}
    attributes = {"activation": activation, "precision": precision}
    ours, plain = both(tmp_path, "Linear", inputs, attributes)
    assert off(ours, plain) < limit


@pytest.mark.parametrize("there", [there for there, activation in VARIANTS if activation == "none"])
@pytest.mark.parametrize("activation", ["none", "gelu", "relu"])
@pytest.mark.parametrize(
    ("kernel", "stride", "pads", "size", "multiplier"),
    [((3, 3), 1, [1, 1, 1, 1], (9, 7), 1), ((7, 7), 2, [3, 3, 3, 3], (12, 13), 2),
     ((3, 5), 1, [0, 2, 1, 0], (8, 9), 1)],
)  # fmt: skip
def test_depthwise_conv2d(
    kernel: tuple[int, int], stride: int, pads: list[int], size: tuple[int, int], multiplier: int,
    activation: str, there: tuple[bool, bool], tmp_path: Path,
) -> None:  # fmt: skip
    c, (height, width) = 20, size
    n = c * multiplier
    out = [
        (length + pads[i] + pads[i + 2] - kernel[i]) // stride + 1
        for i, length in enumerate((height, width))
    ]
    inputs = {"x": normal(2, height, width, c), "weight": normal(n, 1, *kernel),
              **optional(n, (2, *out, n), there)}  # fmt: skip
    attributes = {"activation": activation, "channels": c, "pads": pads,
                  "strides": [stride, stride]}  # fmt: skip
    ours, plain = both(tmp_path, "DepthwiseConv2d", inputs, attributes)
    assert off(ours, plain) < 2e-6


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("exact", [0, 1])
@pytest.mark.parametrize("parts", [(), ("taps",), ("q_threshold", "k_threshold", "taps")])
def test_binary_linear_attention(
    parts: tuple[str, ...], exact: int, signed: int, tmp_path: Path
) -> None:
    heads, tokens, d, dv = 3, 67, 24, 20
    inputs: dict[str, Any] = {
        name: normal(2, heads, tokens, size, seed=i)
        for i, (name, size) in enumerate((("q", d), ("k", d), ("v", dv)))
    }
    some = {"q_threshold": normal(heads), "k_threshold": -normal(heads),
            "taps": normal(heads, 9)}  # fmt: skip
    inputs |= {name: array if name in parts else None for name, array in some.items()}
    attributes = {"exact": exact, "signed": signed, "heads": heads}
    ours, plain = both(tmp_path, "BinaryLinearAttention", inputs, attributes, fed=3)
    assert off(ours, plain) < (1e-5 if exact else 1e-2)


@pytest.mark.parametrize("opset", [17, 18, 19, 20, 21])
def test_every_opset_spells_the_same_function(opset: int, tmp_path: Path) -> None:
    x, weight = normal(4, 8), np.arange(-20, 20, dtype=np.int8).reshape(5, 8)
    inputs = {"x": x, "weight": weight, "scale": np.full(5, 0.01, np.float32)}
    ours, plain = both(tmp_path, "Int8Linear", inputs, {"activation": "gelu"}, opset=opset)
    assert off(ours, plain) < 1e-6


@pytest.mark.parametrize("threads", [1, 2])
def test_weights_that_the_graph_computes(threads: int, tmp_path: Path) -> None:
    x, weight = normal(300, 64), np.random.default_rng(0).integers(-9, 9, (80, 64)).astype(np.int8)
    inputs = {"x": x, "weight": weight, "scale": np.full(80, 0.1, np.float32)}
    attributes = {"activation": "none"}
    fed = both(tmp_path, "Int8Linear", inputs, attributes, fed=3, threads=threads)
    constant = both(tmp_path, "Int8Linear", inputs, attributes, fed=1)
    np.testing.assert_array_equal(fed[0], constant[0])


def test_a_row_without_numbers_or_with_none_is_what_the_function_says(tmp_path: Path) -> None:
    x = np.zeros((3, 4), np.float32)
    x[1, 2] = np.inf
    inputs = {"x": x, "weight": np.ones((2, 4), np.int8), "scale": np.ones(2, np.float32),
              "bias": np.array([1, 2], np.float32)}  # fmt: skip
    for answer in both(tmp_path, "Int8Linear", inputs, {"activation": "none"}):
        np.testing.assert_array_equal(answer[[0, 2]], [[1, 2], [1, 2]])
        assert np.isnan(answer[1]).all()


WRONG: list[tuple[str, Arrays, dict[str, Any], str]] = [
    ("Int8Linear", {"x": normal(2, 5), "weight": np.ones((3, 4), np.int8), "scale": normal(3)},
     {"activation": "none"}, r"x of shape \(\.\.\., 4\), got \(2, 5\)"),
    ("Int8Linear", {"x": normal(2, 4), "weight": np.ones((3, 4), np.int8), "scale": normal(2)},
     {"activation": "none"}, r"a scale for each row of \(3, 4\), got \(2\)"),
    ("Int8Linear", {"x": normal(2, 4), "weight": np.ones((3, 4), np.int8), "scale": normal(3)},
     {"activation": "tanh"}, 'activation .* got "tanh"'),
    ("Int8Linear", {"x": normal(2, 4), "weight": np.ones((3, 4), np.int8), "scale": normal(3),
                    "bias": normal(4)},
     {"activation": "none"}, r"a bias of shape \(3\), got \(4\)"),
    ("ShiftLinear", {"x": normal(2, 4), "codes": np.ones((3, 4), np.uint8), "scale": normal(3)},
     {"activation": "none", "in_features": 4, "wide": 0}, r"codes of shape \(3, 2\), got \(3, 4\)"),
    ("Linear", {"x": normal(2, 5), "weight": normal(3, 4)},
     {"activation": "none", "precision": "fp32"}, r"x of shape \(\.\.\., 4\), got \(2, 5\)"),
    ("Linear", {"x": normal(2, 4), "weight": normal(3, 4)},
     {"activation": "none", "precision": "fp64"}, 'precision "fp32" or "bf16", got "fp64"'),
    ("DepthwiseConv2d", {"x": normal(1, 4, 4, 3), "weight": normal(4, 1, 3, 3)},
     {"activation": "none", "channels": 3, "pads": [0] * 4, "strides": [1, 1]}, "a multiple of C"),
    ("DepthwiseConv2d", {"x": normal(1, 4, 4, 3), "weight": normal(3, 1, 3, 3)},
     {"activation": "none", "channels": 3, "pads": [0] * 4, "strides": [1, 2]},
     "two equal strides"),
    ("BinaryLinearAttention", {"q": normal(1, 2, 3, 4), "k": normal(1, 2, 3, 5),
                               "v": normal(1, 2, 3, 4)},
     {"exact": 0, "heads": 2, "signed": 0}, "q and k of one shape"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "inputs", "attributes", "message"), WRONG)
def test_what_does_not_fit_is_named(
    name: str, inputs: Arrays, attributes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    made = model(name, inputs, attributes, 20, 3 if name.startswith("Binary") else 1)
    (tmp_path / "m.onnx").write_bytes(ir.serde.serialize_model(made).SerializeToString())
    feeds = {key: inputs[key] for key in [value.name for value in made.graph.inputs]}
    with pytest.raises(Exception, match=message):
        OrtEngine(tmp_path / "m.onnx").run(feeds)


@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("precision", ["int8", "shift"])
def test_a_mixer_rounds_to_8_bits_in_both(
    precision: str, layout: str, opset: int, tmp_path: Path
) -> None:
    c, names = 19, OPERATORS["AdditiveTokenMixer"].inputs
    gate = ((c, 1, 3, 3), (c,), (1, c, 1, 1), (c, c, 1, 1))
    filters = ((c, 1, 3, 3), (c,))
    shapes = ((2, c, 6, 7), (3 * c, c, 1, 1), (3 * c,), *gate, *gate, *filters, *filters)
    inputs = {
        name: normal(*shape, seed=i) / max(1, np.prod(shape[1:]) ** 0.5)
        for i, (name, shape) in enumerate(zip(names, shapes, strict=True))
    }
    inputs = {name: array.astype(np.float32) for name, array in inputs.items()}
    inputs["x"] *= 30
    inputs["x"][0, :, 2, 3] = 0
    inputs["qkv_weight"][1] = 0
    inputs["qkv_weight"][2] *= np.geomspace(1, 1e-4, c, dtype=np.float32)[:, None, None]
    attributes = {"channels": c, "layout": layout}
    if layout == "nhwc":
        inputs["x"] = np.ascontiguousarray(inputs["x"].transpose(0, 2, 3, 1))
    name = "AdditiveTokenMixer"
    ours, plain = both(tmp_path, name, inputs, {**attributes, "precision": precision}, opset)
    _, exact = both(tmp_path, name, inputs, {**attributes, "precision": "fp32"}, opset)
    assert off(ours, plain) < 2e-5
    assert off(exact, plain) > 1e-3
