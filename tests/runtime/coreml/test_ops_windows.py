"""Convolutions, pooling and attention against torch, on awkward arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vitlet.runtime.coreml.quiet import quiet_coremltools

with quiet_coremltools():
    from coremltools.converters.mil import Builder as mb

R = np.random.default_rng(4)


def t(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array))


W = R.standard_normal((6, 2, 3, 2)).astype(np.float32)
IMAGE = R.standard_normal((2, 4, 9, 8)).astype(np.float32)


def test_convolution_with_uneven_pads_strides_dilations_and_groups(run_mil: Any) -> None:
    def build(x: Any) -> Any:
        return mb.conv(
            x=x,
            weight=W,
            bias=np.ones(6, np.float32),
            strides=[2, 3],
            pad_type="custom",
            pad=[2, 1, 0, 3],
            dilations=[2, 1],
            groups=2,
        )

    (actual,) = run_mil(build, IMAGE)
    padded = F.pad(t(IMAGE), (0, 3, 2, 1))
    expected = F.conv2d(padded, t(W), torch.ones(6), (2, 3), 0, (2, 1), 2)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize(("kind", "first"), [("same", False), ("same_lower", True)])
def test_same_padding_puts_the_odd_one_at_one_end(run_mil: Any, kind: str, first: bool) -> None:
    weight = R.standard_normal((2, 1, 4)).astype(np.float32)
    x = R.standard_normal((1, 1, 9)).astype(np.float32)
    (actual,) = run_mil(lambda x: mb.conv(x=x, weight=weight, pad_type=kind, strides=[2]), x)
    # 5 results of stride 2 reach over 12 values: 3 more than there are.
    expected = F.conv1d(F.pad(t(x), (2, 1) if first else (1, 2)), t(weight), None, 2)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_transposed_convolution_is_the_gradient_of_a_convolution(run_mil: Any) -> None:
    weight = R.standard_normal((4, 3, 3, 2)).astype(np.float32)

    def build(x: Any) -> Any:
        return mb.conv_transpose(
            x=x,
            weight=weight,
            strides=[2, 1],
            dilations=[1, 2],
            groups=2,
            pad_type="custom",
            pad=[1, 0, 0, 2],
        )

    (actual,) = run_mil(build, IMAGE)
    whole = F.conv_transpose2d(t(IMAGE), t(weight), None, (2, 1), 0, 0, 2, (1, 2))
    np.testing.assert_allclose(actual, whole[:, :, 1:, : whole.shape[3] - 2], atol=1e-5)


@pytest.mark.parametrize("op", ["avg_pool", "max_pool"])
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("exclude", [False, True])
def test_pooling_with_padding_is_torchs(run_mil: Any, op: str, ceil: bool, exclude: bool) -> None:
    more = {"exclude_padding_from_average": exclude} if op == "avg_pool" else {}

    def build(x: Any) -> Any:
        return getattr(mb, op)(
            x=x,
            kernel_sizes=[3, 2],
            strides=[2, 3],
            pad_type="custom",
            pad=[1, 1, 0, 0],
            ceil_mode=ceil,
            **more,
        )

    (actual,) = run_mil(build, IMAGE)
    if op == "max_pool":
        expected = F.max_pool2d(t(IMAGE), (3, 2), (2, 3), (1, 0), 1, ceil)
    else:
        expected = F.avg_pool2d(t(IMAGE), (3, 2), (2, 3), (1, 0), ceil, not exclude)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_l2_pooling_is_the_norm_of_each_window(run_mil: Any) -> None:
    (actual,) = run_mil(lambda x: mb.l2_pool(x=x, kernel_sizes=[3, 2], pad_type="valid"), IMAGE)
    expected = np.sqrt(6 * F.avg_pool2d(t(IMAGE**2), (3, 2), 1).numpy())
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_attention_with_both_kinds_of_mask(run_mil: Any) -> None:
    q, k, v = (R.standard_normal((2, 3, n, 8)).astype(np.float32) for n in (4, 6, 6))
    mask = R.standard_normal((4, 6)).astype(np.float32)

    def build(q: Any, k: Any, v: Any, m: Any) -> Any:
        added = mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=m)
        who = mb.greater(x=m, y=-0.5)
        chosen = mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=who)
        return added, chosen

    added, chosen = run_mil(build, q, k, v, mask, ios=18)
    for actual, used in ((added, t(mask)), (chosen, t(mask > -0.5))):
        expected = F.scaled_dot_product_attention(t(q), t(k), t(v), used)
        np.testing.assert_allclose(actual, expected, atol=1e-5)
