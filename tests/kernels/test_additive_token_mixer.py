"""The CAS-ViT mixer: every instruction set against the layer's own definition in torch."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vitlet import _C, reparameterize
from vitlet.errors import ShapeError
from vitlet.layers import AdditiveTokenMixer
from vitlet.ops import (
    MixerWeights,
    additive_token_mixer,
    pack_int8_weight,
    pack_shift_weight,
)

ISAS = ["reference", *_C.supported_isas()]
# (C, H, W): CAS-ViT's own, and one, lanes - 1, lanes, lanes + 1, primes, long and thin.
SHAPES = [
    (48, 56, 56),
    (56, 28, 28),
    (112, 14, 14),
    (220, 7, 7),
    (1, 1, 1),
    (3, 1, 7),
    (15, 2, 3),
    (16, 14, 15),
    (17, 13, 29),
    (31, 1, 211),
    (33, 211, 1),
    (8, 3, 70),
    (5, 64, 64),
    (48, 4, 6),
]
# Largest difference over largest value. bf16 differs from torch by its rounding of x and weights,
# but the instruction sets from each other by the order of sums only.
FP32, BF16 = 2e-5, 2e-2
PRECISIONS = ["fp32", "bf16", "int8", "shift"]
PACKERS: dict[str, Any] = {"int8": pack_int8_weight, "shift": pack_shift_weight}


def made_up_mixer(dim: int, *, bias: bool = True, seed: int = 0) -> AdditiveTokenMixer:
    """Weights under which gates open and close and every part matters."""
    rng = torch.Generator().manual_seed(seed)
    module = AdditiveTokenMixer(dim, bias=bias).eval()
    for name, value in module.state_dict().items():
        if value.ndim > 1:
            value.normal_(0, 1.2 / value[0].numel() ** 0.5, generator=rng)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2, generator=rng)
        elif value.is_floating_point():
            value.normal_(0.2, 0.3, generator=rng)
    return module


def made_up_map(*shape: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def by_torch(module: AdditiveTokenMixer, x: NDArray[np.float32]) -> NDArray[np.float64]:
    with torch.inference_mode():
        result = copy.deepcopy(module).double()(torch.from_numpy(x).double())
    return result.numpy()


def by_rounded_numbers(
    module: AdditiveTokenMixer, x: NDArray[np.float32], precision: str
) -> NDArray[np.float64]:
    """The layer of 8-bit weights, on a map of which each pixel is rounded to 8 bits."""
    most = np.abs(x).max(axis=1, keepdims=True)
    inverse = np.float32(127) / np.where(most < 2.0**-100, np.float32(np.inf), most)
    steps = np.rint(x * inverse)
    rounded = copy.deepcopy(module)
    weight = rounded.qkv.weight
    packed = PACKERS[precision](weight.detach()[:, :, 0, 0].numpy())
    weight.data = torch.from_numpy(packed.dequantize()).view_as(weight)
    return by_torch(rounded, steps * (most / np.float32(127)))


def run(x: NDArray[np.float32], w: MixerWeights, isa: str, **options: Any) -> NDArray[np.float32]:
    precision = options.get("precision", "fp32")
    return _C.additive_token_mixer(x, w.packed(precision), w.dim, isa=isa, **options)


def error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_layer_in_both_layouts(shape: tuple[int, int, int], isa: str) -> None:
    module = made_up_mixer(shape[0])
    weights = MixerWeights.from_module(module)
    x = made_up_map(2, *shape)
    expected = by_torch(module, x)
    assert np.abs(expected).max() > 0.05
    for precision, tolerance in (("fp32", FP32), ("bf16", BF16)):
        got = run(x, weights, isa, precision=precision)
        assert error(got, expected) < tolerance
        last = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
        got_last = run(last, weights, isa, precision=precision, layout="nhwc")
        np.testing.assert_array_equal(got_last.transpose(0, 3, 1, 2), got)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("precision", ["int8", "shift"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_8_bits_equal_the_layer_of_rounded_numbers(
    shape: tuple[int, int, int], precision: str, isa: str
) -> None:
    module = made_up_mixer(shape[0])
    weights = MixerWeights.from_module(module)
    x = made_up_map(2, *shape)
    x[:, :, 0] *= np.geomspace(1e-4, 1e4, shape[2], dtype=np.float32)  # pixels of any size
    got = run(x, weights, isa, precision=precision)
    assert error(got, by_rounded_numbers(module, x, precision)) < FP32
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    got_last = run(last, weights, isa, precision=precision, layout="nhwc")
    np.testing.assert_array_equal(got_last.transpose(0, 3, 1, 2), got)


@pytest.mark.parametrize("precision", ["int8", "shift"])
@pytest.mark.parametrize("dim", [1, 7, 8, 16, 17, 50])
def test_weights_are_rounded_as_the_packers_round_them(dim: int, precision: str) -> None:
    weights = MixerWeights.from_module(made_up_mixer(dim))
    weights.qkv[0] = 0
    weights.qkv[1] *= np.geomspace(1e-40, 1e30, dim, dtype=np.float32)
    weights.qkv[2] = np.float32(0.5**0.5) * 2.0 ** -np.arange(dim, dtype=np.float32)
    columns = np.zeros((3, -(-dim // 16) * 16, dim), np.float32)  # the kernels' blocks of 16
    columns[:, :dim] = weights.qkv.reshape(3, dim, dim)
    expected = PACKERS[precision](columns.reshape(-1, dim))
    got = weights.packed(precision)  # type: ignore[arg-type]
    panels, sums, scale = np.split(
        got, np.cumsum([expected.panels.size // 4, expected.sums.size, expected.scale.size])
    )[:3]
    np.testing.assert_array_equal(panels.view(np.uint8), expected.panels)
    np.testing.assert_array_equal(sums.view(np.int32), expected.sums)
    used = columns.reshape(-1, dim).any(axis=1)
    np.testing.assert_array_equal(scale[used], expected.scale[used])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("precision", ["int8", "shift"])
@pytest.mark.parametrize("scale", [0.0, 1e-44, 1e-30, 1e4])
def test_saturated_and_tiny_inputs_in_8_bits(scale: float, precision: str, isa: str) -> None:
    module = made_up_mixer(24)
    x = made_up_map(1, 24, 8, 8) * np.float32(scale)
    got = run(x, MixerWeights.from_module(module), isa, precision=precision)
    assert error(got, by_rounded_numbers(module, x, precision)) < FP32


@pytest.mark.parametrize("isa", _C.supported_isas())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bf16_rounds_as_the_reference_does(shape: tuple[int, int, int], isa: str) -> None:
    weights = MixerWeights.from_module(made_up_mixer(shape[0]))
    x = made_up_map(1, *shape)
    expected = run(x, weights, "reference", precision="bf16")
    assert error(run(x, weights, isa, precision="bf16"), expected) < FP32


@pytest.mark.parametrize("isa", _C.supported_isas())
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", [(48, 56, 56), (40, 14, 14), (17, 1, 1), (5, 300, 2)], ids=str)
def test_threads_do_not_change_a_bit(shape: tuple[int, int, int], precision: str, isa: str) -> None:
    weights = MixerWeights.from_module(made_up_mixer(shape[0]))
    x = made_up_map(3, *shape)
    expected = run(x, weights, isa, precision=precision)
    for threads in (2, 3, 5, 64, 2**31 - 1):
        got = run(x, weights, isa, precision=precision, threads=threads)
        np.testing.assert_array_equal(got, expected)
    for image in range(3):
        got = run(x[image : image + 1], weights, isa, precision=precision, threads=4)
        np.testing.assert_array_equal(got[0], expected[image])


@given(
    batch=st.integers(0, 3),
    dim=st.integers(1, 70),
    height=st.integers(0, 20),
    width=st.integers(0, 40),
    precision=st.sampled_from(PRECISIONS),
    layout=st.sampled_from(["nchw", "nhwc"]),
    threads=st.integers(1, 4),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_any_size_agrees_with_the_reference(
    batch: int,
    dim: int,
    height: int,
    width: int,
    precision: str,
    layout: str,
    threads: int,
    seed: int,
) -> None:
    weights = MixerWeights.from_module(made_up_mixer(dim, seed=seed))
    shape = (batch, dim, height, width) if layout == "nchw" else (batch, height, width, dim)
    x = made_up_map(*shape, seed=seed)
    options = {"precision": precision, "layout": layout}
    expected = run(x, weights, "reference", **options)
    assert expected.shape == shape
    for isa in _C.supported_isas():
        got = run(x, weights, isa, threads=threads, **options)
        assert got.shape == shape
        assert got.size == 0 or error(got, expected) < FP32, isa


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_reach_what_they_reach_in_torch(
    bad: float, precision: str, isa: str
) -> None:
    module = made_up_mixer(19)
    x = made_up_map(3, 19, 9, 11)
    x[1, 4, 3, 5] = bad
    expected = by_torch(module, x)
    got = run(x, MixerWeights.from_module(module), isa, precision=precision)
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(expected))
    assert np.isfinite(got[0]).all() and not np.isfinite(got[1]).any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4])
def test_saturated_and_tiny_inputs(scale: float, isa: str) -> None:
    module = made_up_mixer(24)
    x = made_up_map(1, 24, 8, 8) * np.float32(scale)
    expected = by_torch(module, x)
    assert error(run(x, MixerWeights.from_module(module), isa), expected) < FP32


@pytest.mark.parametrize("bias", [False, True])
def test_a_reparameterized_module_gives_the_same_weights(bias: bool) -> None:
    module = made_up_mixer(20, bias=bias)
    x = made_up_map(1, 20, 6, 7)
    raw = additive_token_mixer(x, MixerWeights.from_module(module))
    folded = additive_token_mixer(x, MixerWeights.from_module(reparameterize(module)))
    assert error(raw, by_torch(module, x)) < FP32
    assert error(folded, raw) < FP32


def test_strided_and_misaligned_inputs_are_read_right() -> None:
    module = made_up_mixer(12)
    weights = MixerWeights.from_module(module)
    x = made_up_map(2, 24, 9, 10)
    expected = by_torch(module, np.ascontiguousarray(x[:, ::2, ::-1]))
    assert error(additive_token_mixer(x[:, ::2, ::-1], weights), expected) < FP32
    room = np.empty(x[:, :12].nbytes + 4, np.uint8)
    moved = room[4:].view(np.float32).reshape(2, 12, 9, 10)
    moved[...] = x[:, ::2, ::-1]
    for isa in ISAS:
        assert error(run(moved, weights, isa), expected) < FP32


def test_many_python_threads_may_call_at_once() -> None:
    weights = MixerWeights.from_module(made_up_mixer(32))
    maps = [made_up_map(1, 32, 15, 16, seed=i) for i in range(16)]
    expected = [additive_token_mixer(x, weights) for x in maps]
    fresh = MixerWeights.from_module(made_up_mixer(32))
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda x: additive_token_mixer(x, fresh, threads=2), maps))
    np.testing.assert_array_equal(got, expected)


def test_weights_survive_pickling() -> None:
    weights = MixerWeights.from_module(made_up_mixer(9))
    x = made_up_map(1, 9, 4, 4)
    expected = additive_token_mixer(x, weights)
    again = pickle.loads(pickle.dumps(weights))
    np.testing.assert_array_equal(additive_token_mixer(x, again), expected)


def test_needs_no_torch() -> None:
    code = "import sys, vitlet.ops; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


WEIGHTS = MixerWeights.from_module(made_up_mixer(8))
X = made_up_map(1, 8, 5, 6)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (X[0], {}, r"x of shape \(B, 8, H, W\), got float32 \(8, 5, 6\)"),
        (X[:, :7], {}, r"x of shape \(B, 8, H, W\), got float32 \(1, 7, 5, 6\)"),
        (X, {"layout": "nhwc"}, r"x of shape \(B, H, W, 8\), got float32 \(1, 8, 5, 6\)"),
        (X.astype(np.float64), {}, "contiguous float32 .*, got float64"),
        (X.astype(">f4"), {}, "contiguous float32"),
        (X, {"precision": "fp16"}, '"int8" or "shift", got "fp16"'),
        (X, {"layout": "chwn"}, 'layout "nchw" or "nhwc", got "chwn"'),
        (X, {"threads": 0}, "threads of at least 1, got 0"),
        (X, {"threads": "two"}, "threads as an integer"),
        ("map", {}, "float32 arrays"),
    ],
)
def test_wrong_arguments_are_named(x: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        additive_token_mixer(x, WEIGHTS, **options)


def test_wrong_weights_are_named() -> None:
    with pytest.raises(ShapeError, match="AdditiveTokenMixer, got Linear"):
        MixerWeights.from_module(torch.nn.Linear(2, 2))
    fields = {name: getattr(WEIGHTS, name) for name in WEIGHTS.__dict__ if name != "_packed"}
    short = MixerWeights(**(fields | {"dwc": WEIGHTS.dwc[:7]}))
    with pytest.raises(ShapeError, match=r"dwc as contiguous float32 \(8, 3, 3\), got"):
        additive_token_mixer(X, short)
    endless = MixerWeights(**(fields | {"qkv": np.full((24, 8), np.inf, np.float32)}))
    with pytest.raises(ShapeError, match="finite qkv, to round it, got an infinity or a NaN"):
        additive_token_mixer(X, endless, precision="int8")
    with pytest.raises(ValueError, match="packed weights"):
        _C.additive_token_mixer(X, WEIGHTS.packed("shift"), 8, precision="int8")
    with pytest.raises(ValueError, match="packed weights"):
        _C.additive_token_mixer(X, WEIGHTS.packed("bf16"), 8, precision="fp32")
    with pytest.raises(ValueError, match="sse9"):
        _C.additive_token_mixer(X, WEIGHTS.packed("fp32"), 8, isa="sse9")
