"""Softmax attention of packed bits, on every instruction set, against float64."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vitlet import _C
from vitlet.errors import ShapeError
from vitlet.ops import PackedBits, hamming_attention, pack_bits

ISAS = ["reference", *_C.supported_isas()]
Floats = NDArray[np.float32]

# |got - want| at most this part of the largest |want|: float32 sums of up to 1100 terms, and
# weights rounded to float32.
TOLERANCE = 3e-6


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def words(x: Floats) -> NDArray[np.uint64]:
    return pack_bits(x).words


def by_definition(q: Floats, k: Floats, v: Floats, scale: float, signed: bool) -> Any:
    low = -1.0 if signed else 0.0
    s = scale * (np.where(q > 0, 1.0, low) @ np.where(k > 0, 1.0, low).swapaxes(-1, -2))
    w = np.exp(s - s.max(axis=-1, keepdims=True))
    return w @ v.astype(np.float64) / w.sum(axis=-1, keepdims=True)


def error(got: Floats, want: Any) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("dim", [1, 16, 31, 32, 63, 64, 65, 127, 128])
def test_attention_is_near_its_definition(dim: int, signed: bool, isa: str) -> None:
    for tokens in (1, 5, 6, 7, 11, 12, 13, 25, 65):
        q, k = normal(1, 2, tokens, dim, seed=1), normal(1, 2, tokens, dim, seed=2)
        for values in (1, 7, 33, 64):
            v = normal(1, 2, tokens, values, seed=3)
            for scale in (dim**-0.5, -0.3):
                options: Any = {"scale": scale, "signed": signed}
                got = _C.hamming_attention(words(q), words(k), v, dim, **options, isa=isa)
                want = by_definition(q, k, v, scale, signed)
                assert error(got, want) < TOLERANCE, (tokens, values, scale)


@pytest.mark.parametrize("isa", _C.supported_isas())
@pytest.mark.parametrize("tokens", [511, 512, 513, 1100])
def test_more_keys_than_the_cache_is_given(tokens: int, isa: str) -> None:
    q, k, v = (normal(1, 1, tokens, 40, seed=i) for i in range(3))
    got = _C.hamming_attention(words(q), words(k), v, 40, scale=0.2, isa=isa)
    assert error(got, by_definition(q, k, v, 0.2, True)) < TOLERANCE


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 40.0, -40.0, 3e38, -3e38])
@pytest.mark.parametrize("signed", [False, True])
def test_no_scale_overflows(signed: bool, scale: float, isa: str) -> None:
    q, k, v = (normal(1, 2, 50, 128, seed=i) for i in range(3))
    k[0, 0, 7] = q[0, 0, 3]  # the only key that equals a query
    got = _C.hamming_attention(words(q), words(k), v, 128, scale=scale, signed=signed, isa=isa)
    assert error(got, by_definition(q, k, v, scale, signed)) < TOLERANCE
    if signed and scale > 1:
        np.testing.assert_array_equal(got[0, 0, 3], v[0, 0, 7])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scale", [0.1, 40.0])
def test_what_is_not_finite_stays_in_its_column_and_head(
    scale: float, bad: float, isa: str
) -> None:
    q, k, v = (normal(2, 2, 30, 32, seed=i) for i in range(3))
    clean = by_definition(q, k, v, scale, True)
    v[0, 1, 20, 5] = bad
    others = np.ones(v.shape, bool)
    others[0, 1, :, 5] = False
    got = _C.hamming_attention(words(q), words(k), v, 32, scale=scale, isa=isa)
    assert error(got[others], clean[others]) < TOLERANCE
    assert not np.isfinite(got[~others]).any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dim", [1, 30, 63, 65, 100, 127])
@pytest.mark.parametrize("signed", [False, True])
def test_bits_past_the_last_one_do_not_matter(signed: bool, dim: int, isa: str) -> None:
    q, k, v = (normal(1, 1, 20, dim, seed=i) for i in range(3))
    noise = np.random.default_rng(5).integers(0, 2**63, words(q).shape, np.uint64)
    noise[..., :-1] = 0
    noise &= np.uint64(2**64 - (1 << dim % 64))
    options: Any = {"scale": 0.2, "signed": signed, "isa": isa}
    want = _C.hamming_attention(words(q), words(k), v, dim, **options)
    for mine, theirs in ((noise, noise), (noise, 0 * noise), (0 * noise, noise)):
        got = _C.hamming_attention(words(q) | mine, words(k) | theirs, v, dim, **options)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", [(0, 2, 5, 8), (1, 0, 5, 8), (1, 2, 0, 8), (1, 2, 5, 0)], ids=str)
def test_nothing_gives_nothing(shape: tuple[int, ...], isa: str) -> None:
    rows = words(np.zeros((*shape[:3], 16), np.float32))
    got = _C.hamming_attention(rows, rows, np.zeros(shape, np.float32), 16, scale=1, isa=isa)
    assert got.shape == shape


@given(
    heads=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    tokens=st.integers(1, 120),
    dims=st.tuples(st.integers(1, 128), st.integers(1, 140)),
    signed=st.booleans(),
    scale=st.floats(-1, 1, width=32),
    threads=st.integers(2, 5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=20, deadline=None)
def test_any_shape_and_number_of_threads(
    heads: tuple[int, int],
    tokens: int,
    dims: tuple[int, int],
    signed: bool,
    scale: float,
    threads: int,
    seed: int,
) -> None:
    q, k = (normal(*heads, tokens, dims[0], seed=seed + i) for i in range(2))
    v = normal(*heads, tokens, dims[1], seed=seed + 2)
    want = by_definition(q, k, v, scale, signed)
    for isa in ISAS:
        options: Any = {"scale": scale, "signed": signed, "isa": isa}
        one, some = (
            _C.hamming_attention(words(q), words(k), v, dims[0], **options, threads=n)
            for n in (1, threads)
        )
        np.testing.assert_array_equal(one, some)
        assert np.abs(one - want).max() < TOLERANCE * np.abs(v).max()


def test_many_callers_at_once_get_what_one_gets() -> None:
    q, k, v = (normal(2, 3, 100, 64, seed=i) for i in range(3))
    want = hamming_attention(pack_bits(q), pack_bits(k), v, scale=0.1)

    def call(i: int) -> Floats:
        return hamming_attention(pack_bits(q), pack_bits(k), v, scale=0.1, threads=1 + i % 3)

    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(call, range(24)):
            np.testing.assert_array_equal(got, want)


def test_strided_and_misaligned_arrays_are_copied() -> None:
    x = normal(2, 40, 3, 4, 32)
    q, k, v = (x[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
    want = by_definition(q, k, v, 0.2, True)
    packed = pack_bits(q), pack_bits(k)
    assert error(hamming_attention(*packed, v, scale=0.2), want) < TOLERANCE
    turned = [PackedBits(np.asfortranarray(p.words), p.dim) for p in packed]
    room = np.empty(v.nbytes + 1, np.uint8)
    moved = room[1:].view(np.float32).reshape(v.shape)
    moved[...] = v
    assert error(hamming_attention(*turned, moved, scale=0.2), want) < TOLERANCE


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
        ({"v": V.astype(np.float64)}, "expected v of float32, got float64"),
        ({"v": V[0]}, r"expected v of shape \(B, H, N, D\), got \(2, 5, 8\)"),
        ({"v": "text"}, "expected a float32 array v"),
        ({"scale": np.nan}, "expected a finite float32 scale, got nan"),
        ({"scale": 1e39}, "expected a finite float32 scale, got 1e"),
        ({"scale": "much"}, "a number scale"),
        ({"threads": 0}, "expected 1 to 1024 threads, got 0"),
        ({"threads": 2**40}, "a number of threads"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"q": BITS, "k": BITS, "v": V, "scale": 0.5}
    with pytest.raises(ShapeError, match=message):
        hamming_attention(**(arguments | changes))


def test_misuse_of_the_extension_is_refused() -> None:
    with pytest.raises(ValueError, match="a C-contiguous v, got a strided one"):
        _C.hamming_attention(BITS.words, BITS.words, V[..., ::-1], 8, scale=1)
    room = np.empty(V.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(V.shape)
    with pytest.raises(ValueError, match="an aligned v, got a misaligned one"):
        _C.hamming_attention(BITS.words, BITS.words, room, 8, scale=1)
    with pytest.raises(ValueError, match='got "sse9"'):
        _C.hamming_attention(BITS.words, BITS.words, V, 8, scale=1, isa="sse9")
