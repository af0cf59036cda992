"""Compressed weights: each encoding against coremltools' own decompression and against formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vitlet.errors import CorruptInputError
from vitlet.runtime.coreml.call import Call, Context
from vitlet.runtime.coreml.quiet import quiet_coremltools
from vitlet.runtime.coreml.table import kernels

with quiet_coremltools():
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

R = np.random.default_rng(3)


def narrow(values: Any, name: str) -> np.ndarray:
    """Return integers of one of coremltools' sub-byte types."""
    kind = types.nptype_from_builtin(types.string_to_builtin(name))
    return np.asarray(values).astype(kind)


def packed(values: np.ndarray, bits: int) -> np.ndarray:
    """Put numbers of `bits` bits into bytes, lowest bits first."""
    flat = (values.reshape(-1, 1) >> np.arange(bits)) & 1
    return np.packbits(flat.reshape(-1).astype(np.uint8), bitorder="little")


Q = R.integers(-128, 128, (4, 3, 5)).astype(np.int8)
S = R.uniform(0.01, 0.1, 3).astype(np.float32)


def test_affine_scales_along_an_axis(run_mil: Any) -> None:
    zero = np.array([1, -2, 3], np.int8)

    def build(x: Any) -> Any:
        w = mb.constexpr_affine_dequantize(
            quantized_data=Q, scale=S, zero_point=zero, axis=np.int32(1)
        )
        return mb.add(x=w, y=x)

    (actual,) = run_mil(build, np.zeros(1, np.float32), ios=16)
    shape = (1, 3, 1)
    expected = S.reshape(shape) * (Q.astype(np.float32) - zero.reshape(shape))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
def test_packed_palettes_of_every_width(run_mil: Any, bits: int) -> None:
    table = R.standard_normal(2**bits).astype(np.float32)
    indices = R.integers(0, 2**bits, (3, 7))

    def build(x: Any) -> Any:
        w = mb.constexpr_lut_to_dense(
            indices=packed(indices, bits), lut=table, shape=np.array([3, 7], np.uint32)
        )
        return mb.add(x=w, y=x)

    (actual,) = run_mil(build, np.zeros(1, np.float32), ios=16)
    np.testing.assert_array_equal(actual, table[indices])


def test_packed_masks(run_mil: Any) -> None:
    mask = R.integers(0, 2, (3, 7))
    values = R.standard_normal(int(mask.sum())).astype(np.float32)

    def build(x: Any) -> Any:
        w = mb.constexpr_sparse_to_dense(
            nonzero_data=values, mask=packed(mask, 1), shape=np.array([3, 7], np.uint32)
        )
        return mb.add(x=w, y=x)

    (actual,) = run_mil(build, np.zeros(1, np.float32), ios=16)
    expected = np.zeros((3, 7))
    expected[mask == 1] = values
    np.testing.assert_array_equal(actual, expected)


def test_blocks_of_four_bit_weights(run_mil: Any) -> None:
    data = R.integers(-8, 8, (4, 6))
    scale = R.uniform(0.01, 0.1, (2, 3)).astype(np.float32)
    offset = R.integers(-8, 8, (2, 3))

    def build(x: Any) -> Any:
        w = mb.constexpr_blockwise_shift_scale(
            data=narrow(data, "int4"), scale=scale, offset=narrow(offset, "int4")
        )
        return mb.add(x=w, y=x)

    (actual,) = run_mil(build, np.zeros(1, np.float32), ios=18)
    wide = [part.repeat(2, 0).repeat(2, 1) for part in (scale, offset)]
    np.testing.assert_allclose(actual, wide[0] * (data - wide[1]), rtol=1e-6)


def test_tables_per_group_and_of_vectors(run_mil: Any) -> None:
    indices = R.integers(0, 4, (6, 2))
    groups = R.standard_normal((2, 1, 4, 1)).astype(np.float32)
    vectors = R.standard_normal((1, 1, 4, 3)).astype(np.float32)

    def build(x: Any) -> Any:
        one = mb.constexpr_lut_to_dense(indices=narrow(indices, "uint2"), lut=groups)
        two = mb.constexpr_lut_to_dense(
            indices=narrow(indices, "uint2"), lut=vectors, vector_axis=np.int32(0)
        )
        return mb.add(x=one, y=x), mb.add(x=two, y=x)

    one, two = run_mil(build, np.zeros(1, np.float32), ios=18)
    np.testing.assert_array_equal(one[:3], groups[0, 0, :, 0][indices[:3]])
    np.testing.assert_array_equal(one[3:], groups[1, 0, :, 0][indices[3:]])
    for part in range(3):
        np.testing.assert_array_equal(two[part::3], vectors[0, 0, :, part][indices])


def test_sparse_tables_and_sparse_scales(run_mil: Any) -> None:
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0]])
    numbers = np.array([10, 11, 3, 4, 5, 6, 7, 8, 9], np.int8)
    scale = np.array([[0.1, 0.2, 0.3, 0.4]], np.float32)
    offset = np.array([[1, 2, 3, 4]], np.int8)
    indices = R.integers(0, 2, 9)
    table = np.array([2.0, 3.0], np.float32).reshape(1, 1, 2, 1)

    def build(x: Any) -> Any:
        bits = narrow(mask, "uint1")
        m, v = mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=bits, nonzero_data=numbers, scale=scale, offset=offset
        )
        one = mb.constexpr_sparse_to_dense(nonzero_data=v, mask=m)
        m, v = mb.constexpr_lut_to_sparse(
            indices_mask=bits, indices_nonzero_data=narrow(indices, "uint1"), lut=table
        )
        two = mb.constexpr_sparse_to_dense(nonzero_data=v, mask=m)
        return mb.add(x=one, y=x), mb.add(x=two, y=x)

    one, two = run_mil(build, np.zeros(1, np.float32), ios=18)
    # The example of coremltools' documentation.
    values = [0.9, 1.8, 0.2, 0.4, 0.6, 0.9, 1.2, 0.7, 1.4]
    np.testing.assert_allclose(one[mask == 1], values, rtol=1e-6)
    np.testing.assert_array_equal(two[mask == 1], np.array([2.0, 3.0])[indices])
    assert not one[mask == 0].any() and not two[mask == 0].any()


def call(kind: str, **args: Any) -> Any:
    """Run one kernel on plain arrays."""
    import torch

    given = {name: torch.from_numpy(np.array(value)) for name, value in args.items()}
    context = Context("fp32", 1 << 30, 10, lambda block, values: [])
    return kernels()[kind](Call(kind, "w (main block)", given, ("fp32",), context))


def test_encodings_that_contradict_themselves_are_refused() -> None:
    ones = np.ones(3, np.float32)
    with pytest.raises(CorruptInputError, match="3 values for a mask of 2"):
        call("constexpr_sparse_to_dense", nonzero_data=ones, mask=np.array([1, 1, 0], np.int32))
    with pytest.raises(CorruptInputError, match="2 blocks of 3 values"):
        call("constexpr_blockwise_shift_scale", data=ones, scale=ones[:2])
    with pytest.raises(CorruptInputError, match="an index above the table's 2 entries"):
        call("constexpr_lut_to_dense", indices=np.array([5], np.int32), lut=np.ones((1, 2, 1)))
    with pytest.raises(CorruptInputError, match="1 bytes for 9 numbers of 2 bits"):
        call("constexpr_lut_to_dense", indices=np.zeros(1, np.int32), lut=np.ones(4), shape=[9])
    with pytest.raises(CorruptInputError, match="takes 4,000,000,000,000 bytes"):
        call("constexpr_lut_to_dense", indices=np.zeros(1), lut=np.ones(4), shape=[10**6, 10**6])
