import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file as reference_load
from safetensors.numpy import save_file as reference_save

from vitlet.errors import CorruptInputError, StorageError, UsageError
from vitlet.runtime.safetensors import load_file, save_file

DTYPES = ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"]


def write(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 5), (2, 3, 5)])
def test_agrees_with_the_reference_in_both_directions(
    tmp_path: Path, dtype: str, shape: tuple[int, ...]
) -> None:
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    save_file({"x": array, "byte": np.ones(3, "u1")}, tmp_path / "ours")
    reference_save({"x": array, "byte": np.ones(3, "u1")}, tmp_path / "theirs")
    for loaded in (reference_load(tmp_path / "ours"), load_file(tmp_path / "theirs")):
        assert loaded["x"].dtype == array.dtype
        assert loaded["x"].shape == array.shape
        np.testing.assert_array_equal(loaded["x"], array)


def test_widens_bfloat16_exactly(tmp_path: Path) -> None:
    values = np.array([1.5, -2.0, 3e38, np.inf], ml_dtypes.bfloat16)
    header = {"x": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}
    loaded = load_file(write(tmp_path / "x", header, values.tobytes()))["x"]
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, values.astype(np.float32))


def test_writes_the_same_bytes_whatever_the_order(tmp_path: Path) -> None:
    a, b = np.ones(3, "u1"), np.ones((2, 2), "f4")
    save_file({"a": a, "b": b}, tmp_path / "1")
    save_file({"b": b.T.copy().T, "a": a}, tmp_path / "2")
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_refuses_what_the_format_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="complex128"):
        save_file({"x": np.zeros(2, complex)}, tmp_path / "x")
    with pytest.raises(UsageError, match="__metadata__"):
        save_file({"__metadata__": np.zeros(2)}, tmp_path / "x")
    with pytest.raises(StorageError):
        save_file({"x": np.zeros(2)}, tmp_path / "no" / "x")


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


@pytest.mark.parametrize(
    "header",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b" {}", b"{" * 10_000,
        {"x": 7}, {"x": {}}, {"x": entry(extra=1)}, {"x": entry(dtype="F31")},
        {"x": entry(dtype=7)}, {"x": entry(shape=[-2])}, {"x": entry(shape=[2.0])},
        {"x": entry(shape=[True, 2])}, {"x": entry(shape=7)}, {"x": entry(shape=[3])},
        {"x": entry(shape=[2**62, 2**62])}, {"x": entry(data_offsets=[8, 0])},
        {"x": entry(data_offsets=[0])}, {"x": entry(data_offsets=[4, 12])},
        {"x": entry(data_offsets=[0, 2**70], shape=[2**68])},
        {"x": entry(), "y": entry()}, {"x": entry(), "y": entry(data_offsets=[4, 12])},
        {"x": entry(shape=[1], data_offsets=[0, 4])}, {"__metadata__": {"a": 7}}, {},
        b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        b'"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    ],
)  # fmt: skip
def test_refuses_a_header_that_makes_no_sense(tmp_path: Path, header: object) -> None:
    with pytest.raises(CorruptInputError):
        load_file(write(tmp_path / "x", header, bytes(8)))


@pytest.mark.parametrize("length", [0, 1, 2**32, 2**63, 2**64 - 1])
def test_refuses_a_claimed_header_length_without_reading_it(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(CorruptInputError):
        load_file(path)


def test_refuses_a_file_cut_at_any_byte(tmp_path: Path) -> None:
    path = tmp_path / "x"
    save_file({"x": np.ones(5, "f4"), "y": np.ones(2, "u1")}, path)
    good = path.read_bytes()
    for keep in range(len(good)):
        path.write_bytes(good[:keep])
        with pytest.raises(CorruptInputError):
            load_file(path)


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.dtype(d) for d in DTYPES]), hnp.array_shapes(min_dims=0, min_side=0)
    )
)
def test_reads_back_what_it_wrote(tmp_path_factory: pytest.TempPathFactory, array: object) -> None:
    path = tmp_path_factory.mktemp("s") / "x"
    assert isinstance(array, np.ndarray)
    save_file({"x": array}, path)
    loaded = load_file(path)["x"]
    assert loaded.dtype == array.dtype
    np.testing.assert_array_equal(loaded, array)
