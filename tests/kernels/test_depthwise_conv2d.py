"""Depthwise convolution: every instruction set against torch's convolution in double precision."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vitlet import _C
from vitlet.errors import ShapeError, UsageError
from vitlet.ops import DepthwiseWeight, depthwise_conv2d, pack_depthwise_weight

Array = NDArray[np.float32]
ISAS = ["reference", *_C.supported_isas()]
TOLERANCE = 2e-6  # of max(1, the largest output): float32 sums of at most 49 products
ACTIVATIONS: dict[str, Any] = {
    "none": lambda x: x,
    "gelu": F.gelu,
    "relu": torch.relu,
    "silu": F.silu,
}
# (C, H, W, kernel, stride, multiplier): the models' kinds, and lanes - 1, lanes, lanes + 1, primes,
# maps smaller than the kernel, long and thin, kernels without a fast loop.
CASES = [
    (64, 16, 16, (3, 3), 2, 1),
    (56, 28, 28, (3, 3), 1, 1),
    (220, 7, 7, (3, 3), 1, 1),
    (48, 16, 16, (7, 7), 1, 1),
    (32, 16, 16, (7, 7), 2, 2),
    (24, 8, 8, (3, 3), 1, 2),
    (15, 5, 6, (5, 5), 1, 1),
    (16, 9, 31, (5, 5), 2, 1),
    (17, 13, 29, (7, 7), 2, 1),
    (1, 1, 1, (7, 7), 1, 1),
    (5, 2, 3, (7, 7), 1, 3),
    (3, 1, 211, (3, 3), 1, 1),
    (3, 211, 1, (3, 3), 2, 1),
    (8, 9, 10, (1, 1), 1, 1),
    (7, 11, 12, (2, 4), 3, 1),
    (19, 20, 21, (3, 7), 1, 1),
    (11, 23, 8, (11, 1), 2, 5),
]


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def by_torch(
    x: Array, weight: Array, bias: Array, stride: int, padding: tuple[int, ...], activation: str
) -> NDArray[np.float64]:
    top, left, bottom, right = padding
    padded = F.pad(torch.from_numpy(x).double(), (left, right, top, bottom))
    w, b = torch.from_numpy(weight).double(), torch.from_numpy(bias).double()
    y = F.conv2d(padded, w, b, stride=stride, groups=x.shape[1])
    return np.asarray(ACTIVATIONS[activation](y).numpy())


def run(x: Array, weight: DepthwiseWeight, isa: str = "", **options: Any) -> Array:
    """`_C.depthwise_conv2d` of (B, C, H, W) in either layout, the result as (B, C, H, W)."""
    multiplier = weight.outputs // x.shape[1] if x.shape[1] else 1
    if options.get("layout", "nhwc") == "nhwc":
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
        if "residual" in options:
            residual = options["residual"].transpose(0, 2, 3, 1)
            options["residual"] = np.ascontiguousarray(residual)
        y = _C.depthwise_conv2d(x, weight.packed, multiplier, weight.kernel, isa=isa, **options)
        return np.ascontiguousarray(y.transpose(0, 3, 1, 2))
    return _C.depthwise_conv2d(x, weight.packed, multiplier, weight.kernel, isa=isa, **options)


def assert_close(got: Array, expected: NDArray[np.float64]) -> None:
    assert got.shape == expected.shape
    limit = TOLERANCE * max(1.0, np.abs(expected).max(initial=0))
    assert np.abs(got - expected).max(initial=0) <= limit


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_torch(case: tuple[Any, ...], layout: str, isa: str) -> None:
    channels, height, width, kernel, stride, multiplier = case
    x = noise(2, channels, height, width)
    weight = noise(channels * multiplier, 1, *kernel)
    bias = noise(channels * multiplier)
    packed = pack_depthwise_weight(weight, bias)
    around = (kernel[0] // 2, kernel[1] // 2) * 2
    for padding in (around, (kernel[0], kernel[1], 0, kernel[1] + 2)):
        for activation in ACTIVATIONS:
            expected = by_torch(x, weight, bias, stride, padding, activation)
            options: dict[str, Any] = {"stride": stride, "padding": padding, "layout": layout}
            options["activation"] = activation
            assert_close(run(x, packed, isa, **options), expected)
            residual = noise(*expected.shape, seed=1)
            got = run(x, packed, isa, residual=residual, **options)
            assert_close(got, expected + residual)


@given(
    batch=st.integers(0, 3),
    channels=st.integers(0, 50),
    size=st.tuples(st.integers(0, 20), st.integers(0, 40)),
    kernel=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    stride=st.integers(1, 4),
    multiplier=st.integers(1, 3),
    padding=st.tuples(*[st.integers(0, 9)] * 4),
    activation=st.sampled_from(list(ACTIVATIONS)),
    layout=st.sampled_from(["nhwc", "nchw"]),
    threads=st.integers(1, 4),
)
@settings(max_examples=100, deadline=None)
def test_any_size_agrees_with_the_reference(
    batch: int,
    channels: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: int,
    multiplier: int,
    padding: tuple[int, int, int, int],
    activation: str,
    layout: str,
    threads: int,
) -> None:
    assume(size[0] + padding[0] + padding[2] >= kernel[0])
    assume(size[1] + padding[1] + padding[3] >= kernel[1])
    outputs = channels * multiplier
    weight = pack_depthwise_weight(noise(outputs, *kernel), noise(outputs))
    x = noise(batch, channels, *size)
    options = {"stride": stride, "padding": padding, "activation": activation, "layout": layout}
    expected = run(x, weight, "reference", **options)
    for isa in _C.supported_isas():
        assert_close(run(x, weight, isa, threads=threads, **options), expected.astype(np.float64))


@pytest.mark.parametrize("isa", _C.supported_isas())
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("shape", [(1, 64, 40, 41), (3, 20, 33, 30), (1, 16, 300, 3)], ids=str)
def test_threads_do_not_change_a_bit(shape: tuple[int, ...], layout: str, isa: str) -> None:
    weight = pack_depthwise_weight(noise(shape[1], 7, 7), noise(shape[1]))
    x = noise(*shape)
    options: dict[str, Any] = {"padding": (3, 3, 3, 3), "layout": layout, "activation": "gelu"}
    expected = run(x, weight, isa, **options)
    for threads in (2, 3, 5, 64, 2**31 - 1):
        np.testing.assert_array_equal(run(x, weight, isa, threads=threads, **options), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_nan_and_infinity_reach_the_windows_that_hold_them(
    activation: str, bad: float, layout: str, isa: str
) -> None:
    weight = noise(19, 1, 5, 5)
    x = noise(2, 19, 9, 11)
    x[1, 4, 3, 6] = bad
    expected = by_torch(x, weight, np.zeros(19, np.float32), 2, (2, 2, 2, 2), activation)
    options: dict[str, Any] = {"stride": 2, "padding": (2, 2, 2, 2), "layout": layout}
    got = run(x, pack_depthwise_weight(weight), isa, activation=activation, **options)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    np.testing.assert_array_equal(np.isposinf(got), np.isposinf(expected))
    np.testing.assert_array_equal(np.isneginf(got), np.isneginf(expected))


@pytest.mark.parametrize("isa", ISAS)
def test_gelu_far_from_zero(isa: str) -> None:
    x = np.array([-1e30, -50.0, -4.5, -0.0, 1e-30, 5.0, 1e30, np.nan], np.float32)
    one = pack_depthwise_weight(np.ones((1, 1, 1), np.float32))
    got = run(x.reshape(1, 1, 1, -1), one, isa, activation="gelu").reshape(-1)
    expected = F.gelu(torch.from_numpy(x).double()).numpy()
    np.testing.assert_array_less(
        np.abs(got - expected)[:-1], 5e-7 * np.maximum(1, np.abs(x[:-1])) + 1e-37
    )
    assert np.isnan(got[-1])


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_zero_sized_maps_give_the_bias(layout: str) -> None:
    weight = pack_depthwise_weight(noise(18, 3, 3), noise(18))
    for isa in ISAS:
        got = run(np.zeros((1, 18, 0, 4), np.float32), weight, isa, padding=(2, 1, 2, 1))
        np.testing.assert_array_equal(
            got, np.broadcast_to(noise(18)[None, :, None, None], got.shape)
        )
        assert run(noise(0, 18, 5, 6), weight, isa, layout=layout).shape == (0, 18, 3, 4)


def test_strided_and_misaligned_inputs_are_read_right() -> None:
    weight, bias = noise(12, 1, 3, 3), noise(12)
    packed = pack_depthwise_weight(weight, bias)
    x = noise(2, 24, 9, 10)[:, ::2, ::-1]
    expected = by_torch(np.ascontiguousarray(x), weight, bias, 1, (1, 1, 1, 1), "none")
    assert_close(depthwise_conv2d(x, packed, padding=1, layout="nchw"), expected)
    last = depthwise_conv2d(x.transpose(0, 2, 3, 1), packed, padding=(1, 1))
    assert_close(last.transpose(0, 3, 1, 2), expected)
    room = np.empty(x.nbytes + 4, np.uint8)
    moved = room[4:].view(np.float32).reshape(x.shape)
    moved[...] = x
    for isa in ISAS:
        assert_close(run(moved, packed, isa, padding=(1, 1, 1, 1), layout="nchw"), expected)


def test_padding_may_be_one_two_or_four_numbers() -> None:
    weight = pack_depthwise_weight(noise(3, 3, 3))
    x = noise(1, 8, 9, 3)
    shapes = {1: (1, 8, 9, 3), (0, 1): (1, 6, 9, 3), (1, 0, 3, 2): (1, 10, 9, 3)}
    for padding, shape in shapes.items():
        assert depthwise_conv2d(x, weight, padding=padding).shape == shape


def test_many_python_threads_may_call_at_once() -> None:
    weight = pack_depthwise_weight(noise(32, 3, 3), noise(32))
    maps = [noise(1, 15, 16, 32, seed=i) for i in range(16)]
    expected = [depthwise_conv2d(x, weight) for x in maps]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda x: depthwise_conv2d(x, weight, threads=2), maps))
    np.testing.assert_array_equal(got, expected)


def test_needs_no_torch() -> None:
    code = "import sys, vitlet.ops; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


WEIGHT = pack_depthwise_weight(noise(8, 3, 3))
X = noise(1, 5, 6, 8)


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (X[0], {}, ShapeError, r"x of shape \(B, H, W, C\), got float32 \(5, 6, 8\)"),
        ("map", {}, ShapeError, r"x of shape \(B, H, W, C\), got str"),
        (X[..., :3], {}, ShapeError, "channels that divides the weight's 8, got 3"),
        (X, {"layout": "nchw"}, ShapeError, "channels that divides the weight's 8, got 5"),
        (X.astype(np.float64), {}, ShapeError, "x as contiguous float32 .*, got float64"),
        (X.astype(">f4"), {}, ShapeError, "contiguous float32"),
        (X[:, :2], {}, ShapeError, r"padded map of at least \(3, 3\), got \(2, 6\)"),
        (X, {"residual": X}, ShapeError, r"residual as contiguous float32 \(1, 3, 4, 8\)"),
        (X, {"layout": "chwn"}, UsageError, 'layout "nhwc" or "nchw", got \'chwn\''),
        (X, {"activation": "tanh"}, UsageError, '"relu" or "silu", got "tanh"'),
        (X, {"stride": 0}, UsageError, "a stride of 1 to 16777216, got 0"),
        (X, {"stride": 1.5}, UsageError, "stride, padding and threads as integers"),
        (X, {"padding": (1, -1)}, UsageError, "left padding of 0 to 16777216, got -1"),
        (X, {"padding": 2**30}, UsageError, "top padding of 0 to 16777216"),
        (X, {"padding": (1, 2, 3)}, UsageError, r"padding as one integer, .* got \(1, 2, 3\)"),
        (X, {"padding": "same"}, UsageError, "padding as one integer, .* got 'same'"),
        (X, {"threads": 0}, UsageError, "threads of at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_named(
    x: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(ShapeError if error is ShapeError else UsageError, match=message) as caught:
        depthwise_conv2d(x, WEIGHT, **options)
    assert caught.type is error


@pytest.mark.parametrize(
    ("weight", "bias"),
    [
        (noise(8, 2, 3, 3), None),
        (noise(8, 3), None),
        (noise(8, 0, 3), None),
        (np.ones((8, 3, 3), np.int32), None),
        (noise(8, 3, 3), noise(7)),
        (noise(8, 3, 3), [0.0] * 8),
    ],
)
def test_wrong_weights_are_named(weight: Any, bias: Any) -> None:
    with pytest.raises(ShapeError, match=r"pack_depthwise_weight\] expected a floating-point"):
        pack_depthwise_weight(weight, bias)


def test_a_weight_of_another_kind_is_named() -> None:
    with pytest.raises(ShapeError, match="a DepthwiseWeight, got ndarray"):
        depthwise_conv2d(X, noise(8, 3, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="packed weights as contiguous float32"):
        _C.depthwise_conv2d(X, WEIGHT.packed, 1, (5, 5))
    with pytest.raises(ValueError, match="sse9"):
        _C.depthwise_conv2d(X, WEIGHT.packed, 1, (3, 3), isa="sse9")
