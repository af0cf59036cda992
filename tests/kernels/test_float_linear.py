"""Linear layers with float activations: every instruction set against the reference and numpy."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vitlet import _C
from vitlet.errors import ShapeError, UsageError
from vitlet.ops import (
    LinearWeight,
    ShiftWeight,
    linear,
    pack_linear_weight,
    pack_shift_weight,
    shift_linear,
)

ISAS = ["reference", *_C.supported_isas()]
FORMATS = ["fp32", "bf16", "shift", "wide"]
SIZES = [0, 1, 3, 7, 8, 9, 15, 16, 17, 33, 64, 65, 130]
Packed = LinearWeight | ShiftWeight
Array = NDArray[np.float32]

# Largest difference from the reference, whose sums are in double precision, over
# sum |x| |w| + |bias| + |residual|: the error of sums in float32, and of exp and erf.
TOLERANCE = {"none": 1e-6, "relu": 1e-6, "gelu": 2e-6, "silu": 2e-6}


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def packed(weight: NDArray[Any], kind: str) -> Packed:
    if kind in ("shift", "wide"):
        return pack_shift_weight(weight, kind == "wide")
    return pack_linear_weight(weight, "bf16" if kind == "bf16" else "fp32")


def run(x: Array, weight: Packed, kind: str, **options: Any) -> Array:
    scale = weight.scale if isinstance(weight, ShiftWeight) else None
    return _C.float_linear(x, weight.panels, weight.shape[0], scale=scale, format=kind, **options)


def to_bf16(x: Array) -> Array:
    """The nearest bfloat16, ties to even."""
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32)


def definition(x: Array, weight: Packed, kind: str, bias: Array) -> NDArray[np.float64]:
    if kind != "fp32":
        x = to_bf16(x)
    return x.astype(np.float64) @ weight.dequantize().astype(np.float64).T + bias


def bound(x: Array, weight: Packed) -> Any:
    return 1 + (np.abs(x) @ np.abs(weight.dequantize()).T).max(initial=0)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_reference_is_the_product(kind: str) -> None:
    for rows, inputs, outputs in itertools.product((1, 5), (1, 16, 97), (1, 33, 70)):
        x, bias, residual = noise(rows, inputs), noise(outputs, seed=1), noise(rows, outputs)
        weight = packed(noise(outputs, inputs, seed=2), kind)
        expected = definition(x, weight, kind, bias) + residual
        got = run(x, weight, kind, bias=bias, residual=residual, isa="reference")
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("isa", _C.supported_isas())
@pytest.mark.parametrize("kind", FORMATS)
def test_every_instruction_set_agrees_with_the_reference(kind: str, isa: str) -> None:
    activations = itertools.cycle(TOLERANCE)
    for inputs, outputs in itertools.product(SIZES, SIZES):
        weight = packed(noise(outputs, inputs), kind)
        for rows in (0, 1, 2, 3, 4, 6, 7, 13):
            x = noise(rows, inputs, seed=rows)
            options: dict[str, Any] = {"activation": next(activations)}
            if rows % 2:
                options["bias"] = noise(outputs, seed=3)
            if rows % 3:
                options["residual"] = noise(rows, outputs, seed=4)
            expected = run(x, weight, kind, isa="reference", **options)
            got = run(x, weight, kind, isa=isa, **options)
            limit = TOLERANCE[options["activation"]] * bound(x, weight)
            assert np.abs(got - expected).max(initial=0) <= limit, (rows, inputs, outputs)


@pytest.mark.parametrize("isa", _C.supported_isas())
@pytest.mark.parametrize("kind", FORMATS)
def test_wide_layers_are_cut_rightly(kind: str, isa: str) -> None:
    """Several chunks of inputs, several groups of rows, and both at once."""
    for rows, inputs, outputs in ((1, 5001, 40), (300, 4700, 20), (7, 2300, 70), (5000, 63, 17)):
        x, weight = noise(rows, inputs), packed(noise(outputs, inputs, seed=1), kind)
        expected = definition(x, weight, kind, np.zeros(outputs, np.float32))
        got = run(x, weight, kind, isa=isa)
        assert np.abs(got - expected).max() <= 1e-6 * bound(x, weight)


@given(
    rows=st.integers(0, 40),
    inputs=st.integers(0, 700),
    outputs=st.integers(0, 200),
    kind=st.sampled_from(FORMATS),
    activation=st.sampled_from(list(TOLERANCE)),
    threads=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_any_shape_agrees_with_the_reference(
    rows: int, inputs: int, outputs: int, kind: str, activation: str, threads: int, seed: int
) -> None:
    x = noise(rows, inputs, seed=seed)
    weight = packed(noise(outputs, inputs, seed=seed + 1), kind)
    expected = run(x, weight, kind, activation=activation, isa="reference")
    for isa in _C.supported_isas():
        got = run(x, weight, kind, activation=activation, threads=threads, isa=isa)
        limit = TOLERANCE[activation] * bound(x, weight)
        assert np.abs(got - expected).max(initial=0) <= limit, isa


@pytest.mark.parametrize("isa", _C.supported_isas())
@pytest.mark.parametrize("kind", FORMATS)
def test_threads_change_no_bit(kind: str, isa: str) -> None:
    for rows, inputs, outputs in ((1, 2100, 1001), (3, 900, 700), (197, 590, 390), (1000, 64, 70)):
        x, weight = noise(rows, inputs), packed(noise(outputs, inputs), kind)
        residual = noise(rows, outputs)
        one = run(x, weight, kind, residual=residual, isa=isa)
        for threads in (2, 3, 7, 1000):
            got = run(x, weight, kind, residual=residual, isa=isa, threads=threads)
            np.testing.assert_array_equal(got, one)


def test_many_python_threads_may_call_at_once() -> None:
    x, weight = noise(300, 256), pack_linear_weight(noise(512, 256), "bf16")
    expected = linear(x, weight)
    with ThreadPoolExecutor(8) as callers:
        for got in callers.map(lambda n: linear(x, weight, threads=1 + n % 4), range(100)):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("isa", ISAS)
def test_activations_are_the_known_functions(isa: str) -> None:
    x = np.linspace(-12, 12, 4001, dtype=np.float32)
    wide = x.astype(np.float64)
    erf = np.array([math.erf(v) for v in wide / math.sqrt(2)])
    nothing, zero = pack_linear_weight(np.zeros((len(x), 1))), np.zeros((1, 1), np.float32)
    for activation, exact in (
        ("none", wide),
        ("relu", np.maximum(wide, 0)),
        ("gelu", 0.5 * wide * (1 + erf)),
        ("silu", wide / (1 + np.exp(-wide))),
    ):
        got = run(zero, nothing, "fp32", bias=x, activation=activation, isa=isa)[0]
        assert (np.abs(got - exact) / np.maximum(np.abs(x), 1)).max() <= 4e-7, activation


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_harms_no_other(bad: float, kind: str, isa: str) -> None:
    x = noise(9, 41)
    weight = packed(noise(70, 41), kind)
    clean = run(x, weight, kind, isa=isa)
    x[4, 40] = bad
    got = run(x, weight, kind, isa=isa)
    used = weight.dequantize()[:, 40] != 0  # infinity times 0 is NaN as well
    assert not np.isfinite(got[4]).any() and used.any()
    if np.isnan(bad):
        assert np.isnan(got[4]).all()
    else:
        np.testing.assert_array_equal(got[4, used], bad * np.sign(weight.dequantize()[used, 40]))
    np.testing.assert_array_equal(np.delete(got, 4, 0), np.delete(clean, 4, 0))


@pytest.mark.parametrize("isa", ISAS)
def test_a_nan_passes_every_activation(isa: str) -> None:
    x = np.full((1, 3), np.nan, np.float32)
    for activation in TOLERANCE:
        got = run(x, packed(noise(20, 3), "fp32"), "fp32", activation=activation, isa=isa)
        assert np.isnan(got).all(), activation


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", FORMATS)
def test_memory_need_not_be_aligned(kind: str, isa: str) -> None:
    weight = packed(noise(40, 30), kind)
    expected = run(noise(7, 30), weight, kind, isa=isa, residual=noise(7, 40))
    room, more = np.empty(7 * 30 * 4 + 4, np.uint8), np.empty(7 * 40 * 4 + 4, np.uint8)
    moved = room[1:-3].view(np.float32).reshape(7, 30)
    residual = more[3:-1].view(np.float32).reshape(7, 40)
    moved[...], residual[...] = noise(7, 30), noise(7, 40)
    panels = np.empty(len(weight.panels) + 1, np.uint8)[1:]
    panels[...] = weight.panels
    scale = weight.scale if isinstance(weight, ShiftWeight) else None
    got = _C.float_linear(moved, panels, 40, scale=scale, residual=residual, format=kind, isa=isa)
    np.testing.assert_array_equal(got, expected)


def test_a_weight_comes_back_as_it_was_rounded() -> None:
    for shape in ((1, 1), (17, 5), (0, 4), (3, 0), (40, 33)):
        weight = noise(*shape)
        assert pack_linear_weight(weight).shape == shape
        np.testing.assert_array_equal(pack_linear_weight(weight).dequantize(), weight)
        rounded = pack_linear_weight(weight.astype(np.float64), "bf16").dequantize()
        np.testing.assert_array_equal(rounded, to_bf16(weight))


def test_leading_axes_and_strides_are_kept() -> None:
    x, bias, residual = noise(2, 3, 40), noise(20), noise(2, 3, 20)
    for precision in ("fp32", "bf16"):
        weight = pack_linear_weight(noise(10, 20), "bf16" if precision == "bf16" else "fp32")
        got = linear(x[:, ::2, ::2], weight, bias[::2], residual=residual[:, ::2, ::2])
        expected = linear(x[:, ::2, ::2].copy(), weight, bias[::2].copy())
        assert got.shape == (2, 2, 10)
        np.testing.assert_array_equal(got, expected + residual[:, ::2, ::2])
        assert linear(np.zeros((0, 20), np.float32), weight).shape == (0, 10)


def test_shift_layers_take_bfloat16_activations() -> None:
    x, bias, residual = noise(6, 90), noise(40), noise(6, 40)
    for wide in (False, True):
        weight = pack_shift_weight(noise(40, 90, seed=1), wide)
        kind = "wide" if wide else "shift"
        got = shift_linear(x, weight, bias, activations="bf16", residual=residual)
        expected = definition(x, weight, kind, bias) + residual
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
        rounded = shift_linear(x, weight, bias, residual=residual)
        exact = x.astype(np.float64) @ weight.dequantize().T + bias + residual
        assert np.abs(got - exact).max() < np.abs(rounded - exact).max()


WEIGHT = pack_linear_weight(noise(6, 8))
X = noise(3, 8)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X.astype(np.float64), WEIGHT), {}, ShapeError, r"x of float32 \(..., 8\), got float64"),
        ((X[:, :7], WEIGHT), {}, ShapeError, r"got float32 \(3, 7\)"),
        ((X, X), {}, ShapeError, "expected a LinearWeight, got ndarray"),
        ((X, WEIGHT, noise(5)), {}, ShapeError, r"bias of float32 \(6,\), got float32 \(5,\)"),
        ((X, WEIGHT), {"residual": X}, ShapeError, r"residual of float32 \(3, 6\), got"),
        ((X, LinearWeight(WEIGHT.panels[1:], 6, 8)), {}, UsageError, "panels as contiguous uint8"),
        ((X, WEIGHT), {"threads": 0}, UsageError, "threads >= 1, got 0"),
        ((X, WEIGHT), {"threads": "two"}, UsageError, "a number of threads"),
        ((X, WEIGHT), {"activation": "tanh"}, UsageError, '"relu" or "silu", got "tanh"'),
    ],
)
def test_wrong_arguments_are_named(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        linear(*arguments, **options)


def test_wrong_weights_and_modes_are_named() -> None:
    with pytest.raises(ShapeError, match=r"weight \(N, K\) .*, got int64 \(2, 2\)"):
        pack_linear_weight(np.ones((2, 2), np.int64))
    with pytest.raises(UsageError, match="got 'fp16'"):
        pack_linear_weight(X, "fp16")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="got 'fp16'"):
        shift_linear(X, pack_shift_weight(X), activations="fp16")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected a scale, got none"):
        _C.float_linear(X, pack_shift_weight(X).panels, 3, format="shift")
    with pytest.raises(ValueError, match=r"residual of shape \(3, 6\)"):
        _C.float_linear(X, WEIGHT.panels, 6, residual=X)
