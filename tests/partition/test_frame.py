"""Frames: what goes in comes out, and nothing else does."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from fuzz_frames import fuzz
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vitlet.errors import ShapeError, UsageError
from vitlet.partition.cluster.frame import (
    HEADER_BYTES,
    MAX_PAYLOAD,
    Body,
    Code,
    Frame,
    FrameError,
    Kind,
    decode,
    encode,
)
from vitlet.partition.cluster.replay import Seen

PLAN = bytes(range(16))
DTYPES = ("uint8", "int8", "int32", "int64", "float16", "float32", "bool")
uint32, uint64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
frames = st.builds(
    Frame, st.sampled_from(Kind), st.binary(min_size=16, max_size=16), uint64, uint64, uint64,
    uint32, uint32, uint32, st.integers(0, 65535), st.sampled_from(Code),
    st.from_regex(r"[a-z0-9-]{0,32}", fullmatch=True),
)  # fmt: skip
contents = arrays.arrays(
    st.sampled_from(DTYPES), arrays.array_shapes(min_dims=0, max_dims=6, min_side=0, max_side=3)
)


def request(**changes: object) -> Frame:
    return Frame(**{"kind": Kind.REQUEST, "plan": PLAN, "session": 1, "sequence": 2, **changes})


def sealed(data: bytearray) -> bytes:
    """`data` with the checksum that its bytes ask for."""
    crc = zlib.crc32(data[: HEADER_BYTES - 4], zlib.crc32(data[HEADER_BYTES:]))
    data[HEADER_BYTES - 4 : HEADER_BYTES] = struct.pack("<I", crc)
    return bytes(data)


@settings(max_examples=200, deadline=None)
@given(frames, contents)
def test_a_frame_comes_back_as_it_was(frame, array):
    back, content = decode(encode(frame, Body.of(array)))
    assert back == frame
    assert content.dtype == array.dtype and content.shape == array.shape
    assert content.tobytes() == array.tobytes()


def test_a_view_with_strides_is_sent_as_what_it_shows():
    view = np.arange(24, dtype=np.float32).reshape(4, 6)[::2, 1::2]
    assert (decode(encode(request(), Body.of(view)))[1] == view).all()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_bytes_that_are_no_frame_are_refused(data):
    with pytest.raises(FrameError):
        decode(data)


def test_every_changed_bit_is_noticed():
    data = encode(request(device="pi-1"), Body.of(np.arange(5, dtype=np.float32)))
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FrameError):
            decode(bytes(changed))


def test_every_cut_frame_is_refused():
    data = encode(request(), Body.of(np.arange(5, dtype=np.float32)))
    for length in range(len(data)):
        with pytest.raises(FrameError):
            decode(data[:length])


@pytest.mark.parametrize(
    ("reason", "offset", "value"),
    [
        ("magic", 0, b"HTTP"),
        ("version", 4, b"\x02"),
        ("kind", 5, b"\x09"),
        ("kind", 90, b"\xff\xff"),
        ("dtype", 6, b"\x63"),
        ("shape", 7, b"\x07"),
        ("shape", 64, b"\x06"),
        ("shape", 68, b"\x01"),
        ("length", 60, b"\x05"),
        ("large", 60, b"\xff\xff\xff\xff"),
        ("name", 92, b"\xff\xfe"),
    ],
)
def test_a_wrong_field_under_a_right_checksum_is_named(reason, offset, value):
    data = bytearray(encode(request(), Body.of(np.arange(5, dtype=np.float32))))
    data[offset : offset + len(value)] = value
    with pytest.raises(FrameError) as caught:
        decode(sealed(data))
    assert caught.value.reason == reason


def test_sizes_whose_product_overflows_64_bits_are_refused():
    data = bytearray(encode(request(), Body.of(np.zeros((0,), np.uint8))))
    data[7] = 6
    data[64:88] = struct.pack("<6I", *[2**31] * 6)  # the product is 0 modulo 2**64
    with pytest.raises(FrameError) as caught:
        decode(sealed(data))
    assert caught.value.reason == "shape"


def test_what_no_frame_carries_is_refused_by_the_sender():
    with pytest.raises(ShapeError, match="complex128"):
        Body.of(np.zeros(2, complex))
    with pytest.raises(ShapeError, match="dimensions"):
        Body.of(np.zeros((1,) * 7, np.uint8))
    with pytest.raises(ShapeError, match="bytes"):
        Body.of(np.zeros(MAX_PAYLOAD + 1, np.uint8))
    with pytest.raises(UsageError, match="name"):
        encode(request(device="x" * 33))
    with pytest.raises(UsageError, match="hash"):
        encode(request(plan=b"short"))
    with pytest.raises(UsageError, match="header"):
        encode(request(session=-1))


def test_mutated_frames_are_refused_or_read_but_never_break_the_reader():
    counts = fuzz(seconds=60.0, frames=20_000, seed=3)
    assert sum(counts.values()) == 20_000
    assert {"crc", "short", "length", "large", "version"} <= set(counts)
    assert counts.get("read", 0) > 0  # resealed mutants whose fields make sense


def definition(window: int, sequences: list[int]) -> list[bool]:
    """Fresh: never seen, and less than `window` behind the largest so far."""
    return [
        n not in sequences[:i] and n > max([*sequences[:i], n]) - window
        for i, n in enumerate(sequences)
    ]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=60), st.sampled_from([1, 2, 8, 64]))
def test_an_id_is_fresh_once_and_only_inside_the_window(sequences, window):
    seen = Seen(window)
    assert [seen.fresh(9, n) for n in sequences] == definition(window, sequences)


def test_the_least_recently_used_session_is_forgotten():
    seen = Seen(sessions=2)
    assert seen.fresh(1, 0) and seen.fresh(2, 0) and not seen.fresh(1, 0)
    assert seen.fresh(3, 0)  # 2 goes
    assert not seen.fresh(1, 0) and seen.fresh(2, 0)
