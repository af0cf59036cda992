"""Packing and binary additive attention, on every instruction set, against float64."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vitlet import _C
from vitlet.errors import ShapeError
from vitlet.ops import PackedBits, binary_linear_attention, pack_bits

ISAS = ["reference", *_C.supported_isas()]
TOKENS = [1, 3, 4, 63, 64, 65, 197]
Floats = NDArray[np.float32]

# |got - want| at most this part of the largest |want|. Exact: float32 sums of up to 331 x 128
# terms. Rounded: 1/512 for each number of v, and 16 bits for K^T V.
EXACT, ROUNDED = 3e-6, 1e-2


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def words(x: Floats, isa: str = "reference") -> NDArray[np.uint64]:
    return _C.pack_bits(x, np.zeros(x.shape[1], np.float32), isa=isa)


def by_definition(q: Floats, k: Floats, v: Floats, signed: bool, taps: Floats | None) -> Any:
    low = -1.0 if signed else 0.0
    qs, ks = np.where(q > 0, 1.0, low), np.where(k > 0, 1.0, low)
    y = qs @ (ks.swapaxes(-1, -2) @ v.astype(np.float64))
    if taps is None:
        return y
    r = v / np.float64(2) + y / np.pi
    length = np.linalg.norm(r, axis=-1, keepdims=True)
    r = np.divide(r, length, out=np.zeros_like(r), where=length > 0)
    padded = np.pad(v.astype(np.float64), ((0, 0), (0, 0), (4, 4), (0, 0)))
    for t in range(9):
        r += taps[:, t, None, None] * padded[:, :, t : t + v.shape[2]]
    return r


def error(got: Floats, want: Any) -> float:
    return float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-30))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dim", [1, 3, 4, 7, 8, 9, 15, 16, 17, 32, 61, 63, 64, 65, 97, 127, 128])
def test_bits_tell_what_is_above_the_threshold_of_its_head(dim: int, isa: str) -> None:
    x = normal(2, 3, 5, dim)
    x[0, 0, 0, 0], x[1, 2, 3, dim - 1], x[1, 1, 1, dim // 2] = np.nan, np.inf, -np.inf
    thresholds = np.array([0.0, 0.5, -1.0], np.float32)
    x[0, 1, 2, dim // 2] = 0.5  # equal: not above
    packed = PackedBits(_C.pack_bits(x, thresholds, isa=isa), dim)
    assert packed.shape == x.shape
    np.testing.assert_array_equal(packed.unpack(), x > thresholds[:, None, None])
    np.testing.assert_array_equal(packed.words, _C.pack_bits(x, thresholds, isa="reference"))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("dim", [1, 16, 31, 32, 61, 64, 65, 128])
@pytest.mark.parametrize("exact", [False, True])
def test_attention_is_near_its_definition(exact: bool, dim: int, signed: bool, isa: str) -> None:
    for tokens in TOKENS:
        q, k = normal(1, 2, tokens, dim, seed=1), normal(1, 2, tokens, dim, seed=2)
        for values in sorted({1, 33, min(dim, 64), 70}):
            v = normal(1, 2, tokens, values, seed=3)
            arguments: Any = (words(q), words(k), v, dim)
            got = _C.binary_linear_attention(*arguments, signed=signed, exact=exact, isa=isa)
            want = by_definition(q, k, v, signed, None)
            assert error(got, want) < (EXACT if exact else ROUNDED), (tokens, values)
            if not exact:
                plain = _C.binary_linear_attention(*arguments, signed=signed, isa="reference")
                np.testing.assert_array_equal(got, plain)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("values", [5, 32, 64, 100])
def test_the_output_form_divides_by_the_length_and_adds_the_convolution(
    values: int, exact: bool, isa: str
) -> None:
    for tokens in [1, 4, 5, 9, 64, 131]:
        q, k = normal(2, 3, tokens, 32, seed=1), normal(2, 3, tokens, 32, seed=2)
        v, taps = normal(2, 3, tokens, values, seed=3), normal(3, 9, seed=4)
        v[1, 2, 0], v[0, 0] = 0, 0
        got = _C.binary_linear_attention(words(q), words(k), v, 32, exact=exact, taps=taps, isa=isa)
        assert error(got, by_definition(q, k, v, False, taps)) < (EXACT if exact else ROUNDED)
        if tokens > 1:
            assert not got[0, 0].any()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("scale", [1e-42, 1e-38, 1e-20, 1e20, 1e30])
def test_small_and_large_values_keep_their_precision(scale: float, signed: bool) -> None:
    q, k, v = (normal(1, 1, 200, 32, seed=i) for i in range(3))
    v = (v * scale).astype(np.float32)
    want = by_definition(q, k, v, signed, None)
    for isa, exact in itertools.product(ISAS, (True, False)):
        if scale < 1e-30 and not exact:
            continue
        got = _C.binary_linear_attention(
            words(q), words(k), v, 32, signed=signed, exact=exact, isa=isa
        )
        assert error(got, want) < (EXACT if exact else ROUNDED) or scale < 1e-40, (isa, exact)
        assert np.isfinite(got).all()


@pytest.mark.parametrize("isa", ISAS)
def test_the_largest_sums_do_not_overflow(isa: str) -> None:
    for near in (1.0, 510.4 / 512, 511.4 / 512, 511.6 / 512, 511.99 / 512):
        v = np.full((1, 1, 128, 64), near, np.float32)
        ones = words(np.ones((1, 1, 128, 128), np.float32))
        got = _C.binary_linear_attention(ones, ones, v, 128, signed=True, isa=isa)
        np.testing.assert_allclose(got, 128 * 128 * near, rtol=3e-3)
        minus = words(np.full((1, 1, 128, 128), -1, np.float32))
        got = _C.binary_linear_attention(minus, ones, v, 128, signed=True, isa=isa)
        np.testing.assert_allclose(got, -128 * 128 * near, rtol=3e-3)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("signed", [False, True])
def test_what_is_not_finite_stays_in_its_column_and_head(
    signed: bool, bad: float, isa: str
) -> None:
    q, k, v = (normal(1, 2, 100, 32, seed=i) for i in range(3))
    clean = by_definition(q, k, v, signed, None)
    v[0, 1, 70, 5] = bad
    others = np.ones(v.shape, bool)
    others[0, 1, :, 5] = False
    for exact in (False, True):
        got = _C.binary_linear_attention(
            words(q), words(k), v, 32, signed=signed, exact=exact, isa=isa
        )
        assert error(got[others], clean[others]) < (EXACT if exact else ROUNDED)
        if not exact:
            assert np.isnan(got[0, 1, :, 5]).all()
            continue
        with np.errstate(invalid="ignore"):
            want = by_definition(q, k, v, signed, None)[0, 1, :, 5]
        if signed:
            assert not np.isfinite(got[0, 1, :, 5]).any()
        else:  # a bit 0 of q or k leaves it out
            chosen = ((q[0, 1] > 0) & (k[0, 1, 70] > 0)).any(axis=1)
            np.testing.assert_array_equal(~np.isfinite(got[0, 1, :, 5]), chosen)
        assert want.shape == got[0, 1, :, 5].shape


@pytest.mark.parametrize("isa", ISAS)
def test_bits_past_the_last_one_do_not_matter(isa: str) -> None:
    for dim in (1, 30, 33, 62, 65, 126):
        q, k, v = (normal(1, 1, 70, dim, seed=i) for i in range(3))
        noise = np.random.default_rng(5).integers(0, 2**63, words(q).shape, np.uint64)
        beyond = np.uint64(2**64 - (1 << dim % 64))
        noise[..., :-1] = 0
        for exact, signed in itertools.product((False, True), repeat=2):
            options: Any = {"exact": exact, "signed": signed, "isa": isa}
            want = _C.binary_linear_attention(words(q), words(k), v, dim, **options)
            stray = [words(x) | (noise & beyond) for x in (q, k)]
            got = _C.binary_linear_attention(*stray, v, dim, **options)
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", [(0, 2, 5, 8), (1, 0, 5, 8), (1, 2, 0, 8), (1, 2, 5, 0)], ids=str)
def test_nothing_gives_nothing(shape: tuple[int, ...], isa: str) -> None:
    rows = words(np.zeros((*shape[:3], 16), np.float32), isa)
    v = np.zeros(shape, np.float32)
    taps = np.zeros((shape[1], 9), np.float32)
    assert _C.binary_linear_attention(rows, rows, v, 16, taps=taps, isa=isa).shape == shape


@given(
    heads=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    tokens=st.integers(1, 150),
    dims=st.tuples(st.integers(1, 128), st.integers(1, 140)),
    signed=st.booleans(),
    threads=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30, deadline=None)
def test_any_shape_and_number_of_threads_gives_the_same_bits(
    heads: tuple[int, int],
    tokens: int,
    dims: tuple[int, int],
    signed: bool,
    threads: int,
    seed: int,
) -> None:
    q, k = (
        normal(*heads, tokens, dims[0], seed=seed),
        normal(*heads, tokens, dims[0], seed=seed + 1),
    )
    v = normal(*heads, tokens, dims[1], seed=seed + 2)
    results = [
        _C.binary_linear_attention(
            words(q, isa), words(k, isa), v, dims[0], signed=signed, threads=threads, isa=isa
        )
        for isa in ISAS
    ]
    for isa, got in zip(ISAS, results, strict=True):
        np.testing.assert_array_equal(got, results[0], err_msg=isa)


def test_many_callers_at_once_get_what_one_gets() -> None:
    q, k, v = (normal(2, 3, 300, 64, seed=i) for i in range(3))
    taps = normal(3, 9)

    def call(i: int) -> Floats:
        return binary_linear_attention(
            pack_bits(q), pack_bits(k), v, taps=taps, exact=i % 2 > 0, threads=1 + i % 3
        )

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(call, range(24)))
    for i, got in enumerate(results):
        np.testing.assert_allclose(got, results[i % 2], rtol=1e-5, atol=1e-5)


def test_strided_and_misaligned_arrays_are_copied() -> None:
    x = normal(2, 40, 3, 4, 32)
    q, k, v = (x[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
    want = by_definition(q, k, v, True, None)
    packed = pack_bits(q), pack_bits(k)
    assert error(binary_linear_attention(*packed, v, signed=True, exact=True), want) < EXACT
    turned = [PackedBits(np.asfortranarray(p.words), p.dim) for p in packed]
    room = np.empty(v.nbytes + 1, np.uint8)
    moved = room[1:].view(np.float32).reshape(v.shape)
    moved[...] = v
    got = binary_linear_attention(*turned, moved, signed=True, exact=True)
    assert error(got, want) < EXACT


V = normal(1, 2, 5, 8)
BITS = pack_bits(V)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": V}, "expected q and k from pack_bits, got ndarray and PackedBits"),
        ({"k": pack_bits(V[..., :4])}, r"of one shape, got \(1, 2, 5, 8\) and \(1, 2, 5, 4\)"),
        ({"k": pack_bits(V[:, :, :4])}, r"expected k of shape \(1, 2, 5, 1\), got \(1, 2, 4, 1\)"),
        ({"q": PackedBits(BITS.words.astype(np.int64), 8)}, "expected q of uint64, got int64"),
        ({"q": PackedBits(BITS.words, 0), "k": PackedBits(BITS.words, 0)}, "1 to 128 bits, got 0"),
        ({"q": PackedBits(BITS.words, 65), "k": PackedBits(BITS.words, 65)}, r"\(1, 2, 5, 2\)"),
        ({"q": PackedBits(BITS.words, 999), "k": PackedBits(BITS.words, 999)}, "got 999"),
        ({"v": V.astype(np.float64)}, "expected v of float32, got float64"),
        ({"v": V[0]}, r"expected v of shape \(B, H, N, D\), got \(2, 5, 8\)"),
        ({"v": "text"}, "expected a float32 array v"),
        ({"taps": normal(2, 8)}, r"expected taps of shape \(2, 9\), got \(2, 8\)"),
        ({"taps": np.zeros((2, 9))}, "expected taps of float32, got float64"),
        ({"threads": 0}, "expected 1 to 1024 threads, got 0"),
        ({"threads": 2**40}, "a number of threads"),
    ],
)
def test_wrong_arguments_of_attention_are_named(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"q": BITS, "k": BITS, "v": V}
    with pytest.raises(ShapeError, match=message):
        binary_linear_attention(**(arguments | changes))


@pytest.mark.parametrize(
    ("x", "threshold", "message"),
    [
        (V.astype(np.float16), 0.0, "expected x of float32, got float16"),
        (V[0], 0.0, "expected x of shape|threshold"),
        (normal(1, 1, 1, 129), 0.0, r"D from 1 to 128, got \(1, 1, 1, 129\)"),
        (V[..., :0], 0.0, r"got \(1, 2, 5, 0\)"),
        (V, [0.0] * 3, r"one threshold, or one per head, got \(3,\)"),
        (V, "much", r"could not convert|expected a float32 array \(B, H, N, D\)"),
        (None, 0.0, r"expected a float32 array \(B, H, N, D\)"),
    ],
)
def test_wrong_arguments_of_packing_are_named(x: Any, threshold: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        pack_bits(x, threshold)


def test_misuse_of_the_extension_is_refused() -> None:
    with pytest.raises(ValueError, match="a C-contiguous v, got a strided one"):
        _C.binary_linear_attention(BITS.words, BITS.words, V[..., ::-1], 8)
    room = np.empty(V.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(V.shape)
    with pytest.raises(ValueError, match="an aligned v, got a misaligned one"):
        _C.binary_linear_attention(BITS.words, BITS.words, room, 8)
    with pytest.raises(ValueError, match='got "sse9"'):
        _C.binary_linear_attention(BITS.words, BITS.words, V, 8, isa="sse9")
