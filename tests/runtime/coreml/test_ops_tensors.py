"""Operations that make, cut, move and pick values: against numpy, torch, and coremltools' own
evaluation of constants (`value_inference`) where it has one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vitlet.errors import CorruptInputError
from vitlet.runtime.coreml.quiet import quiet_coremltools

with quiet_coremltools():
    from coremltools.converters.mil import Builder as mb

R = np.random.default_rng(1)
X = R.standard_normal((2, 3, 4, 5)).astype(np.float32)
POS = (np.abs(X) + 0.2).astype(np.float32)
INT = R.integers(-9, 10, (3, 4)).astype(np.int32)

INFERRED: dict[str, Callable[[], Any]] = {
    "add": lambda: mb.add(x=X, y=X[:, :1]),
    "floor_div": lambda: mb.floor_div(x=INT, y=np.array([[2, -3, 4, -5]], np.int32)),
    "mod": lambda: mb.mod(x=X, y=POS),
    "pow": lambda: mb.pow(x=POS, y=X),
    "round": lambda: mb.round(x=3 * X),
    "erf": lambda: mb.erf(x=X),
    "rsqrt": lambda: mb.rsqrt(x=POS, epsilon=0.1),
    "inverse": lambda: mb.inverse(x=POS, epsilon=0.1),
    "log": lambda: mb.log(x=POS, epsilon=0.1),
    "clip": lambda: mb.clip(x=X, alpha=-0.5, beta=0.5),
    "threshold": lambda: mb.threshold(x=X, alpha=0.1),
    "elu": lambda: mb.elu(x=X, alpha=0.3),
    "leaky_relu": lambda: mb.leaky_relu(x=X, alpha=0.3),
    "clamped_relu": lambda: mb.clamped_relu(x=X, alpha=0.3, beta=0.6),
    "prelu": lambda: mb.prelu(x=X, alpha=np.array([0.1, 0.2, 0.3], np.float32)),
    "softmax": lambda: mb.softmax(x=X, axis=1),
    "softplus": lambda: mb.softplus(x=X),
    "sigmoid_hard": lambda: mb.sigmoid_hard(x=X, alpha=0.5, beta=0.4),
    "gelu": lambda: mb.gelu(x=X, mode="TANH_APPROXIMATION"),
    "cumsum": lambda: mb.cumsum(x=X, axis=2, reverse=True),
    "band_part": lambda: mb.band_part(x=X[0, 0], lower=1, upper=2),
    "fill": lambda: mb.fill(shape=[2, 3], value=1.5),
    "fill none": lambda: mb.fill(shape=[0, 3], value=1.5),
    "tile": lambda: mb.tile(x=X[0], reps=[2, 1, 3]),
    "pad constant": lambda: mb.pad(x=X, pad=[1, 0, 2, 3], constant_val=0.5),
    "pad reflect": lambda: mb.pad(x=X, pad=[1, 0, 2, 3], mode="reflect"),
    "pad replicate": lambda: mb.pad(x=X, pad=[1, 0, 2, 3], mode="replicate"),
    "range_1d": lambda: mb.range_1d(start=2.0, end=-3.0, step=-1.5),
    "argsort": lambda: mb.argsort(x=X, axis=-2, ascending=True),
    "topk": lambda: mb.topk(x=X, k=2, axis=1, ascending=True)[0],
    "topk places": lambda: mb.topk(x=X, k=2, axis=-1)[1],
    "non_zero": lambda: mb.non_zero(x=(INT > 0).astype(np.int32)),
    "concat": lambda: mb.concat(values=[X, X[:, :1]], axis=-3),
    "split": lambda: mb.split(x=X, split_sizes=[1, 3], axis=-2)[1],
    "stack": lambda: mb.stack(values=[X, 2 * X], axis=-1),
    "flatten2d": lambda: mb.flatten2d(x=X, axis=-1),
    "shape": lambda: mb.shape(x=X),
    "reshape": lambda: mb.reshape(x=X, shape=[0, -1, 2, 5]),
    "expand_dims": lambda: mb.expand_dims(x=X[0], axes=[-1, 1]),
    "squeeze": lambda: mb.squeeze(x=X[:1, :1], axes=[-4, 1]),
    "squeeze all": lambda: mb.squeeze(x=X[:1, :1]),
    "transpose": lambda: mb.transpose(x=X, perm=[-1, 0, 2, 1]),
    "reverse": lambda: mb.reverse(x=X, axes=[-1, 0]),
    "slice_by_size": lambda: mb.slice_by_size(x=X, begin=[0, 1, 2, 0], size=[1, -1, 1, 3]),
    "slice_by_index": lambda: mb.slice_by_index(
        x=X, begin=[0, -1, 0, 4], end=[2, 3, 3, 0], stride=[1, 1, 2, -2],
        begin_mask=[False, False, True, False], end_mask=[False, True, False, False],
        squeeze_mask=[False, True, False, False],
    ),
    "gather": lambda: mb.gather(x=X, indices=np.array([[2, 0], [1, 1]], np.int32), axis=-3),
    "gather one": lambda: mb.gather(x=X, indices=np.int32(1), axis=2),
    "gather_along_axis": lambda: mb.gather_along_axis(
        x=INT, indices=np.array([[2, 0, 1, 1]], np.int32), axis=0
    ),
    "reduce_argmin": lambda: mb.reduce_argmin(x=X, axis=-1),
    "matmul": lambda: mb.matmul(x=X, y=X, transpose_y=True),
    "linear": lambda: mb.linear(x=X, weight=X[0, 0], bias=X[0, 0, :, 0]),
    "select": lambda: mb.select(cond=X > 0, a=X, b=2 * X),
}  # fmt: skip


@pytest.mark.parametrize("name", INFERRED)
def test_agrees_with_coremltools_evaluation(name: str, run_mil: Any) -> None:
    wanted = []

    def build(x: Any) -> Any:
        result = INFERRED[name]()
        wanted.append(np.asarray(result.val))
        zero = mb.cast(x=x, dtype="int32") if wanted[0].dtype.kind == "i" else x
        return mb.add(x=result, y=zero)

    (actual,) = run_mil(build, np.zeros(1, np.float32), ios=16)
    assert wanted[0].dtype != object, "coremltools has no value"
    assert actual.shape == np.broadcast_shapes(wanted[0].shape, (1,))
    np.testing.assert_allclose(actual, wanted[0].reshape(actual.shape), rtol=1e-5, atol=1e-5)


def check(actual: np.ndarray, expected: Any) -> None:
    expected = np.asarray(expected)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_gathers_with_batch_axes(run_mil: Any) -> None:
    places = R.integers(0, 4, (2, 3, 6)).astype(np.int32)
    (actual,) = run_mil(lambda x, i: mb.gather(x=x, indices=i, axis=2, batch_dims=2), X, places)
    rows = [[X[a, b][places[a, b]] for b in range(3)] for a in range(2)]
    check(actual, rows)
    pairs = R.integers(0, 3, (2, 7, 2)).astype(np.int32)
    (actual,) = run_mil(lambda x, i: mb.gather_nd(x=x, indices=i, batch_dims=1), X, pairs)
    check(actual, [[X[a][tuple(pair)] for pair in pairs[a]] for a in range(2)])


def test_places_running_sums_and_values_in_turn(run_mil: Any) -> None:
    places = np.array([[1, 2], [0, -1]], np.int32)

    def build(x: Any) -> Any:
        return (
            mb.gather_nd(x=x, indices=places),
            mb.cumsum(x=x, axis=2, exclusive=True, reverse=True),
            mb.concat(values=[x, mb.mul(x=x, y=2.0)], axis=1, interleave=True),
        )

    picked, sums, dealt = run_mil(build, X, ios=16)
    check(picked, X[[1, 0], [2, -1]])
    check(sums, np.stack([X[:, :, i + 1 :].sum(2) for i in range(4)], 2))
    check(dealt, np.stack([X[:, 0], 2 * X[:, 0], X[:, 1], 2 * X[:, 1], X[:, 2], 2 * X[:, 2]], 1))


def test_a_place_outside_is_an_error(run_mil: Any) -> None:
    with pytest.raises(CorruptInputError, match=r"gather at .*places 3 to 3 of 3 values"):
        run_mil(lambda x, i: mb.gather(x=x, indices=i, axis=1), X, np.array([3], np.int32))


@pytest.mark.parametrize("mode", ["update", "add", "sub", "mul", "div", "max", "min"])
def test_scatters_work_in_repeated_places_one_after_the_other(run_mil: Any, mode: str) -> None:
    places = np.array([1, 1, 0], np.int32)
    updates = (np.abs(R.standard_normal((3, 4))) + 0.5).astype(np.float32)
    data = R.standard_normal((3, 4)).astype(np.float32)
    step = {
        "update": lambda a, b: b, "add": lambda a, b: a + b, "sub": lambda a, b: a - b,
        "mul": lambda a, b: a * b, "div": lambda a, b: a / b, "max": np.maximum, "min": np.minimum,
    }[mode]  # fmt: skip
    rows, nd, along = data.copy(), data.copy(), data.copy()
    for index, place in enumerate(places):
        rows[place] = step(rows[place], updates[index])
        for column in range(4):
            at = (index + column) % 3
            along[at, column] = step(along[at, column], updates[index, column])
        nd[place, 2] = step(nd[place, 2], updates[index, 0])
    pairs = np.stack([places, np.full(3, 2)], 1).astype(np.int32)
    grid = np.array([[(i + c) % 3 for c in range(4)] for i in range(3)], np.int32)

    def build(d: Any, u: Any, column: Any) -> Any:
        return (
            mb.scatter(data=d, indices=places, updates=u, axis=0, mode=mode),
            mb.scatter_nd(data=d, indices=pairs, updates=column, mode=mode),
            mb.scatter_along_axis(data=d, indices=grid, updates=u, axis=0, mode=mode),
        )

    first, second, third = run_mil(build, data, updates, updates[:, 0].copy())
    check(first, rows)
    check(second, nd)
    check(third, along)


def test_slice_update_replaces_a_strided_block(run_mil: Any) -> None:
    update = R.standard_normal((2, 2, 2)).astype(np.float32)

    def build(x: Any, u: Any) -> Any:
        return mb.slice_update(
            x=x,
            update=u,
            begin=[0, 1, 3, 4],
            end=[2, 0, 0, 0],
            stride=[1, 1, -2, -3],
            squeeze_mask=[False, True, False, False],
        )

    (actual,) = run_mil(build, X, update, ios=18)
    expected = X.copy()
    expected[0:2, 1, 3:0:-2, 4:0:-3] = update
    check(actual, expected)


def test_one_hot_of_any_axis_and_values(run_mil: Any) -> None:
    places = np.array([[2, 0], [1, 5]], np.int32)
    (actual,) = run_mil(
        lambda i: mb.one_hot(
            indices=i, one_hot_vector_size=4, axis=1, on_value=2.0, off_value=-1.0
        ),
        places,
    )
    check(actual, np.where(np.arange(4)[None, :, None] == places[:, None], 2.0, -1.0))


def test_blocks_of_pixels_and_channels(run_mil: Any) -> None:
    x = R.standard_normal((2, 8, 4, 6)).astype(np.float32)

    def build(x: Any) -> Any:
        return (
            mb.pixel_shuffle(x=x, upscale_factor=2),
            mb.pixel_unshuffle(x=x, downscale_factor=np.uint32(2)),
            mb.depth_to_space(x=x, block_size=2),
            mb.space_to_depth(x=mb.depth_to_space(x=x, block_size=2), block_size=2),
            mb.batch_to_space(
                x=mb.space_to_batch(x=x, block_shape=[2, 3], paddings=[[1, 1], [0, 3]]),
                block_shape=[2, 3], crops=[[1, 1], [0, 3]],
            ),
            mb.space_to_batch(x=x, block_shape=[2, 3], paddings=[[0, 0], [0, 0]]),
        )  # fmt: skip

    results = run_mil(build, x)
    check(results[0], F.pixel_shuffle(torch.from_numpy(x), 2))
    check(results[1], F.pixel_unshuffle(torch.from_numpy(x), 2))
    deep = [[x[:, 4 * i + 2 * j : 4 * i + 2 * j + 2] for j in range(2)] for i in range(2)]
    for i in range(2):
        for j in range(2):
            check(results[2][:, :, i::2, j::2], deep[i][j])
            check(results[5][2 * (3 * i + j) : 2 * (3 * i + j) + 2], x[:, :, i::2, j::3])
    check(results[3], x)
    check(results[4], x)


def test_windows_sequences_crops_and_shapes_of_others(run_mil: Any) -> None:
    def build(x: Any, y: Any) -> Any:
        return (
            mb.sliding_windows(x=x, axis=-1, size=3, stride=2),
            mb.reverse_sequence(x=x, lengths=[4, 0, 2], seq_axis=2, batch_axis=1),
            mb.crop(x=x, crop_height=[1, 2], crop_width=[0, 3]),
            mb.reshape_like(x=x, ref_tensors=(y, x), begins=(0, 2), ends=(1, 0),
                            end_masks=(False, True)),
            mb.fill_like(ref_tensor=y, value=3.0),
        )  # fmt: skip

    other = np.zeros((6, 9), np.float32)
    windows, turned, cropped, shaped, full = run_mil(build, X, other)
    check(windows, np.stack([X[..., 0:3], X[..., 2:5]], 3))
    expected = X.copy()
    expected[:, 0] = X[:, 0, ::-1]
    expected[:, 2, :2] = X[:, 2, 1::-1]
    check(turned, expected)
    check(cropped, X[:, :, 1:2, :2])
    check(shaped, X.reshape(6, 4, 5))
    check(full, np.full((6, 9), 3.0))


def test_quantizing_rounds_clips_and_goes_back(run_mil: Any) -> None:
    scale = np.array([0.02, 0.01, 0.5], np.float32)
    zero = np.array([3, -5, 0], np.int8)

    def build(x: Any) -> Any:
        q = mb.quantize(input=x, scale=scale, zero_point=zero, axis=1, output_dtype="int8")
        return mb.cast(x=q, dtype="int32"), mb.dequantize(
            input=q, scale=scale, zero_point=zero, axis=1
        )

    s, z = scale[:, None, None], zero[:, None, None].astype(np.int32)
    q, back = run_mil(build, X)
    expected = np.clip(np.round(X / s) + z, -128, 127)
    check(q, expected)
    check(back, s * (expected - z))
