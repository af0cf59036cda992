"""Every instruction set against the reference, bit by bit, and the reference against numpy."""

from __future__ import annotations

import itertools
import math
import os
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
    Int8Weight,
    ShiftWeight,
    int8_linear,
    pack_int8_weight,
    pack_shift_weight,
    shift_linear,
)

ISAS = ["reference", *_C.supported_isas()]
FORMATS = ["shift", "wide", "dense"]
SIZES = [0, 1, 3, 8, 15, 16, 17, 64, 65, 97, 130]
Packed = ShiftWeight | Int8Weight


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def packed(weight: NDArray[Any], kind: str) -> Packed:
    return (
        pack_int8_weight(weight) if kind == "dense" else pack_shift_weight(weight, kind == "wide")
    )


def run(x: NDArray[Any], weight: Packed, kind: str, **options: Any) -> NDArray[np.float32]:
    return _C.shift_linear(x, weight.panels, weight.sums, weight.scale, format=kind, **options)


def rounded(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """The definition of the 8-bit activations."""
    most = np.abs(x).max(axis=-1, keepdims=True, initial=0)
    inverse = np.float32(127) / np.where(most > 0, most, 1)
    return np.rint(x * inverse).astype(np.float64) * (most / np.float32(127))


@pytest.mark.parametrize("kind", FORMATS)
def test_the_reference_is_the_product_of_the_rounded_numbers(kind: str) -> None:
    for rows, inputs, outputs in itertools.product((1, 5), (1, 16, 97), (1, 33, 70)):
        x, bias = noise(rows, inputs), noise(outputs, seed=1)
        weight = packed(noise(outputs, inputs, seed=2), kind)
        expected = rounded(x) @ weight.dequantize().astype(np.float64).T + bias
        got = run(x, weight, kind, bias=bias, isa="reference")
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("isa", _C.supported_isas())
@pytest.mark.parametrize("kind", FORMATS)
def test_every_instruction_set_gives_the_references_bits(kind: str, isa: str) -> None:
    for inputs, outputs in itertools.product(SIZES, SIZES):
        weight = packed(noise(outputs, inputs), kind)
        bias = noise(outputs, seed=3)
        for rows in (0, 1, 2, 3, 4, 5, 6, 7, 11, 13):
            x = noise(rows, inputs, seed=rows)
            activation = "gelu" if (rows + inputs) % 2 else "none"
            expected = run(x, weight, kind, bias=bias, activation=activation, isa="reference")
            got = run(x, weight, kind, bias=bias, activation=activation, isa=isa)
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", FORMATS)
def test_extreme_weights_and_activations_do_not_saturate(kind: str, isa: str) -> None:
    inputs = 1 << 17
    for sign in (1, -1):
        x = np.full((7, inputs), 3.0, np.float32)
        x[:, ::3] *= sign
        weight = packed(np.full((2, inputs), -sign, np.float32), kind)
        exact = rounded(x) @ weight.dequantize().astype(np.float64).T
        np.testing.assert_allclose(run(x, weight, kind, isa=isa), exact, rtol=1e-6)


@given(
    rows=st.integers(0, 40),
    inputs=st.integers(0, 300),
    outputs=st.integers(0, 200),
    kind=st.sampled_from(FORMATS),
    threads=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_any_shape_gives_the_same_bits_everywhere(
    rows: int, inputs: int, outputs: int, kind: str, threads: int, seed: int
) -> None:
    x = noise(rows, inputs, seed=seed)
    weight = packed(noise(outputs, inputs, seed=seed + 1), kind)
    expected = run(x, weight, kind, isa="reference")
    for isa in _C.supported_isas():
        got = run(x, weight, kind, threads=threads, isa=isa)
        np.testing.assert_array_equal(got, expected, err_msg=isa)


@pytest.mark.parametrize("isa", _C.supported_isas())
@pytest.mark.parametrize("kind", FORMATS)
def test_threads_change_nothing(kind: str, isa: str) -> None:
    for rows, inputs, outputs in ((1, 3000, 3001), (197, 190, 390), (1000, 64, 70)):
        x, weight = noise(rows, inputs), packed(noise(outputs, inputs), kind)
        one = run(x, weight, kind, isa=isa)
        for threads in (2, 3, 7, 1000):
            np.testing.assert_array_equal(run(x, weight, kind, isa=isa, threads=threads), one)


def test_many_python_threads_may_call_at_once() -> None:
    x, weight = noise(300, 256), pack_shift_weight(noise(512, 256))
    expected = shift_linear(x, weight)
    with ThreadPoolExecutor(8) as callers:
        for got in callers.map(lambda n: shift_linear(x, weight, threads=1 + n % 4), range(200)):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_can_go_on() -> None:
    x, weight = noise(300, 256), pack_shift_weight(noise(512, 256))
    expected = shift_linear(x, weight, threads=2)
    child = os.fork()
    if child == 0:
        same = np.array_equal(shift_linear(x, weight, threads=2), expected)
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("isa", ISAS)
def test_gelu_is_the_one_with_erf(isa: str) -> None:
    x = np.linspace(-12, 12, 4001, dtype=np.float32)
    nothing = pack_shift_weight(np.zeros((len(x), 1), np.float32))
    zero = np.zeros((1, 1), np.float32)
    got = run(zero, nothing, "shift", bias=x, activation="gelu", isa=isa)[0]
    exact = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.astype(np.float64)])
    assert (np.abs(got - exact) / np.maximum(np.abs(x), 1)).max() < 4e-7


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_gives_nan_and_harms_no_other(bad: float, isa: str) -> None:
    x = noise(9, 40)
    weight = pack_shift_weight(noise(70, 40))
    clean = run(x, weight, "shift", isa=isa)
    x[4, 39] = bad
    for activation in ("none", "gelu"):
        assert np.isnan(run(x, weight, "shift", isa=isa, activation=activation)[4]).all()
    got = run(x, weight, "shift", isa=isa)
    np.testing.assert_array_equal(np.delete(got, 4, 0), np.delete(clean, 4, 0))


@pytest.mark.parametrize("isa", ISAS)
def test_rows_of_zeros_and_tiny_or_huge_numbers(isa: str) -> None:
    x = noise(5, 40)
    x[0] = 0
    x[1] *= 1e-38
    x[2] *= np.float32(2.0**-98)
    x[3] *= np.float32(1e37)
    weight = pack_shift_weight(noise(3, 40))
    got = run(x, weight, "shift", isa=isa)
    assert (got[:2] == 0).all()
    np.testing.assert_array_equal(got, run(x, weight, "shift", isa="reference"))
    assert np.isfinite(got).all()


@pytest.mark.parametrize("wide", [False, True])
def test_powers_of_two_within_the_octaves_are_kept_exactly(wide: bool) -> None:
    octaves = 15 if wide else 7
    random = np.random.default_rng(0)
    weight = np.ldexp(
        random.choice([-1.0, 1.0], (70, 90)), random.integers(-octaves + 1, 1, (70, 90))
    )
    weight[random.random(weight.shape) < 0.2] = 0
    weight[:, 0] = 1  # the largest exponent is there
    weight *= np.ldexp(1.0, random.integers(-30, 30, (70, 1)))
    assert (pack_shift_weight(weight, wide).dequantize() == weight).all()


def test_rounding_is_in_the_logarithm_and_flushes_below_the_last_octave() -> None:
    weight = np.array([[1.0, 1.41, 1.42, -0.71, 0.7, 2**-6, 2**-7.4, 2**-5.9]])
    expected = [[1.0, 1.0, 2.0, -0.5, 0.5, 2**-5, 0.0, 2**-5]]
    weight[0, 3] = -0.70
    weight[0, 5] = 2**-5.1
    assert pack_shift_weight(weight).dequantize().tolist() == expected


def test_dense_weights_are_within_half_a_step() -> None:
    weight = noise(33, 50)
    got = pack_int8_weight(weight).dequantize()
    step = np.abs(weight).max(axis=1, keepdims=True) / 127
    assert (np.abs(got - weight) <= step * 0.5001).all()


def test_leading_axes_and_strides_are_kept() -> None:
    x, bias = noise(2, 3, 40), noise(20)
    for weight, function in (
        (pack_shift_weight(noise(10, 20)), shift_linear),
        (pack_int8_weight(noise(10, 20)), int8_linear),
    ):
        got = function(x[:, ::2, ::2], weight, bias[::2])  # type: ignore[operator]
        again = function(np.ascontiguousarray(x[:, ::2, ::2]), weight, bias[::2].copy())  # type: ignore[operator]
        assert got.shape == (2, 2, 10)
        np.testing.assert_array_equal(got, again)
        assert function(np.zeros((0, 20), np.float32), weight).shape == (0, 10)  # type: ignore[operator]


@pytest.mark.parametrize("isa", ISAS)
def test_memory_need_not_be_aligned(isa: str) -> None:
    weight = pack_shift_weight(noise(20, 30))
    expected = run(noise(5, 30), weight, "shift", isa=isa)
    room = np.empty(5 * 30 * 4 + 4, np.uint8)
    moved = room[1:-3].view(np.float32).reshape(5, 30)
    moved[...] = noise(5, 30)
    panels = np.empty(len(weight.panels) + 1, np.uint8)[1:]
    panels[...] = weight.panels
    got = _C.shift_linear(moved, panels, weight.sums, weight.scale, isa=isa)
    np.testing.assert_array_equal(got, expected)


WEIGHT = pack_shift_weight(noise(6, 8))
X = noise(3, 8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (X.astype(np.float64), WEIGHT),
            ShapeError,
            r"x of float32 \(..., 8\), got float64 \(3, 8",
        ),
        ((X[:, :7], WEIGHT), ShapeError, r"got float32 \(3, 7\)"),
        ((np.float32(1), WEIGHT), ShapeError, "got float32"),
        ((X, X), ShapeError, "expected a ShiftWeight, got ndarray"),
        ((X, pack_int8_weight(X)), ShapeError, "expected a ShiftWeight, got Int8Weight"),
        ((X, WEIGHT, noise(5)), ShapeError, r"bias of float32 \(6,\), got float32 \(5,\)"),
        ((X, ShiftWeight(WEIGHT.panels[1:], WEIGHT.sums, WEIGHT.scale, 8)), UsageError, "panels"),
        ((X, ShiftWeight(WEIGHT.panels, WEIGHT.sums[1:], WEIGHT.scale, 8)), UsageError, "sums"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        shift_linear(*arguments)


def test_wrong_options_and_weights_are_named() -> None:
    with pytest.raises(UsageError, match="threads >= 1, got 0"):
        shift_linear(X, WEIGHT, threads=0)
    with pytest.raises(UsageError, match='"none" or "gelu", got "relu"'):
        shift_linear(X, WEIGHT, activation="relu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='"wide" or "dense", got "x"'):
        run(X, WEIGHT, "x")
    with pytest.raises(ShapeError, match=r"weight \(N, K\) with K <= 131072, got int64 \(2, 2\)"):
        pack_shift_weight(np.ones((2, 2), np.int64))
    with pytest.raises(UsageError, match="expected finite weights"):
        pack_int8_weight(np.full((2, 2), np.nan))
