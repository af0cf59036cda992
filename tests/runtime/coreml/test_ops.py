"""Each operation against a formula written here, in numpy or torch, on awkward arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from vitlet.runtime.coreml.quiet import quiet_coremltools

with quiet_coremltools():
    from coremltools.converters.mil import Builder as mb

R = np.random.default_rng(0)
X = R.standard_normal((2, 3, 5, 4)).astype(np.float32)
POS = (np.abs(X) + 0.1).astype(np.float32)
UNIT = np.clip(X / 4, -0.9, 0.9).astype(np.float32)
ROW = R.standard_normal((1, 3, 1, 4)).astype(np.float32)
INT = R.integers(-9, 10, (3, 4)).astype(np.int32)
DIV = np.array([[3, -2, 4, -5]], np.int32)


def t(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


ALPHA = np.array([0.1, 0.2, -0.3], np.float32)
C = ALPHA[:, None, None]

# (name, how it is built, inputs, what it must give)
Case = tuple[str, Callable[..., Any], tuple[np.ndarray, ...], Callable[..., Any]]
CASES: list[Case] = [
    ("add", lambda x, y: mb.add(x=x, y=y), (X, ROW), lambda x, y: x + y),
    ("sub", lambda x, y: mb.sub(x=x, y=y), (X, ROW), lambda x, y: x - y),
    ("mul", lambda x, y: mb.mul(x=x, y=y), (X, ROW), lambda x, y: x * y),
    ("maximum", lambda x, y: mb.maximum(x=x, y=y), (X, ROW), np.maximum),
    ("minimum", lambda x, y: mb.minimum(x=x, y=y), (X, ROW), np.minimum),
    ("pow", lambda x, y: mb.pow(x=x, y=y), (POS, ROW), np.power),
    ("real_div", lambda x, y: mb.real_div(x=x, y=y), (X, POS), lambda x, y: x / y),
    ("real_div int", lambda x, y: mb.real_div(x=x, y=y), (INT, DIV), lambda x, y: np.trunc(x / y)),
    ("floor_div", lambda x, y: mb.floor_div(x=x, y=y), (X, POS), lambda x, y: np.floor(x / y)),
    ("floor_div int", lambda x, y: mb.floor_div(x=x, y=y), (INT, DIV), lambda x, y: x // y),
    ("mod", lambda x, y: mb.mod(x=x, y=y), (X, ROW), np.mod),
    ("mod int", lambda x, y: mb.mod(x=x, y=y), (INT, DIV), np.mod),
    *[
        (
            name,
            lambda x, y, name=name: mb.cast(x=getattr(mb, name)(x=x, y=y), dtype="int32"),
            (np.round(X), np.round(ROW)),
            function,
        )
        for name, function in {
            "equal": np.equal,
            "not_equal": np.not_equal,
            "greater": np.greater,
            "greater_equal": np.greater_equal,
            "less": np.less,
            "less_equal": np.less_equal,
        }.items()
    ],
    *[
        (
            name,
            lambda x, y, name=name: mb.cast(
                x=getattr(mb, name)(x=mb.cast(x=x, dtype="bool"), y=mb.cast(x=y, dtype="bool")),
                dtype="int32",
            ),
            (np.round(X), np.round(ROW)),
            function,
        )
        for name, function in {
            "logical_and": np.logical_and,
            "logical_or": np.logical_or,
            "logical_xor": np.logical_xor,
        }.items()
    ],
    *[
        (name, lambda x, name=name: getattr(mb, name)(x=x), (given,), function)
        for name, given, function in [
            ("abs", X, np.abs),
            ("acos", UNIT, np.arccos),
            ("asin", UNIT, np.arcsin),
            ("atan", X, np.arctan),
            ("atanh", UNIT, np.arctanh),
            ("ceil", X, np.ceil),
            ("cos", X, np.cos),
            ("cosh", X, np.cosh),
            ("erf", X, lambda x: torch.special.erf(t(x)).numpy()),
            ("exp", X, np.exp),
            ("exp2", X, np.exp2),
            ("floor", X, np.floor),
            ("identity", X, lambda x: x),
            ("round", np.array([0.5, 1.5, -2.5, 2.4], np.float32), np.round),
            ("sign", X, np.sign),
            ("sin", X, np.sin),
            ("sinh", X, np.sinh),
            ("sqrt", POS, np.sqrt),
            ("square", X, np.square),
            ("tan", UNIT, np.tan),
            ("tanh", X, np.tanh),
            ("relu", X, lambda x: np.maximum(x, 0)),
            ("relu6", 4 * X, lambda x: np.clip(x, 0, 6)),
            ("sigmoid", X, sigmoid),
            ("silu", X, lambda x: x * sigmoid(x)),
            ("softplus", 40 * X, lambda x: np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)),
            ("softsign", X, lambda x: x / (1 + np.abs(x))),
        ]
    ],
    (
        "logical_not",
        lambda x: mb.cast(x=mb.logical_not(x=mb.cast(x=x, dtype="bool")), dtype="int32"),
        (np.round(X),),
        lambda x: x == 0,
    ),
    ("inverse", lambda x: mb.inverse(x=x, epsilon=0.5), (POS,), lambda x: 1 / (x + 0.5)),
    ("log", lambda x: mb.log(x=x, epsilon=0.5), (POS,), lambda x: np.log(x + 0.5)),
    ("rsqrt", lambda x: mb.rsqrt(x=x, epsilon=0.5), (POS,), lambda x: (x + 0.5) ** -0.5),
    ("clip", lambda x: mb.clip(x=x, alpha=-0.5, beta=0.3), (X,), lambda x: np.clip(x, -0.5, 0.3)),
    ("threshold", lambda x: mb.threshold(x=x, alpha=0.2), (X,), lambda x: np.maximum(x, 0.2)),
    (
        "cast",
        lambda x: mb.cast(x=x, dtype="int32"),
        (np.array([2.9, -2.9, 0.0], np.float32),),
        lambda x: np.array([2, -2, 0]),
    ),
    (
        "select",
        lambda x, y: mb.select(cond=mb.greater(x=x, y=0.0), a=x, b=y),
        (X, np.broadcast_to(ROW, X.shape).copy()),
        lambda x, y: np.where(x > 0, x, y),
    ),
    (
        "clamped_relu",
        lambda x: mb.clamped_relu(x=x, alpha=0.3, beta=0.8),
        (X,),
        lambda x: np.minimum(np.where(x >= 0, x, 0.3 * x), 0.8),
    ),
    (
        "leaky_relu",
        lambda x: mb.leaky_relu(x=x, alpha=0.3),
        (X,),
        lambda x: np.where(x >= 0, x, 0.3 * x),
    ),
    ("prelu", lambda x: mb.prelu(x=x, alpha=ALPHA), (X,), lambda x: np.where(x >= 0, x, C * x)),
    (
        "thresholded_relu",
        lambda x: mb.thresholded_relu(x=x, alpha=0.4),
        (X,),
        lambda x: np.where(x >= np.float32(0.4), x, 0),
    ),
    (
        "elu",
        lambda x: mb.elu(x=x, alpha=0.7),
        (X,),
        lambda x: np.where(x > 0, x, 0.7 * np.expm1(x)),
    ),
    (
        "gelu",
        lambda x: mb.gelu(x=x),
        (X,),
        lambda x: x * 0.5 * (1 + torch.special.erf(t(x / 2**0.5)).numpy()),
    ),
    (
        "gelu tanh",
        lambda x: mb.gelu(x=x, mode="TANH_APPROXIMATION"),
        (X,),
        lambda x: 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
    ),
    (
        "gelu sigmoid",
        lambda x: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"),
        (X,),
        lambda x: x * sigmoid(1.702 * x),
    ),
    (
        "linear_activation",
        lambda x: mb.linear_activation(x=x, alpha=2.0, beta=-1.0),
        (X,),
        lambda x: 2 * x - 1,
    ),
    (
        "scaled_tanh",
        lambda x: mb.scaled_tanh(x=x, alpha=2.0, beta=0.5),
        (X,),
        lambda x: 2 * np.tanh(0.5 * x),
    ),
    (
        "sigmoid_hard",
        lambda x: mb.sigmoid_hard(x=x, alpha=0.4, beta=0.3),
        (X,),
        lambda x: np.clip(0.4 * x + 0.3, 0, 1),
    ),
    (
        "softplus_parametric",
        lambda x: mb.softplus_parametric(x=x, alpha=ALPHA, beta=ALPHA + 1),
        (X,),
        lambda x: C * np.log(1 + np.exp((C + 1) * x)),
    ),
    (
        "softmax",
        lambda x: mb.softmax(x=x, axis=-3),
        (X,),
        lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True),
    ),
    *[
        (name, lambda x, name=name: getattr(mb, name)(x=x, axes=[-1, 1]), (POS,), function)
        for name, function in {
            "reduce_sum": lambda x: x.sum((1, 3)),
            "reduce_mean": lambda x: x.mean((1, 3)),
            "reduce_max": lambda x: x.max((1, 3)),
            "reduce_min": lambda x: x.min((1, 3)),
            "reduce_prod": lambda x: x.prod((1, 3)),
            "reduce_l1_norm": lambda x: np.abs(x).sum((1, 3)),
            "reduce_l2_norm": lambda x: np.sqrt((x**2).sum((1, 3))),
            "reduce_sum_square": lambda x: (x**2).sum((1, 3)),
            "reduce_log_sum": lambda x: np.log(x.sum((1, 3))),
            "reduce_log_sum_exp": lambda x: np.log(np.exp(x).sum((1, 3))),
        }.items()
    ],
    (
        "reduce_sum all",
        lambda x: mb.reduce_sum(x=x, keep_dims=True),
        (X,),
        lambda x: x.sum(keepdims=True),
    ),
    ("reduce_argmax", lambda x: mb.reduce_argmax(x=x, axis=-2), (X,), lambda x: x.argmax(2)),
    (
        "reduce_argmin",
        lambda x: mb.reduce_argmin(x=x, axis=1, keep_dims=True),
        (X,),
        lambda x: x.argmin(1)[:, None],
    ),
    (
        "batch_norm",
        lambda x: mb.batch_norm(x=x, mean=ALPHA, variance=ALPHA**2, gamma=ALPHA + 1, epsilon=1e-2),
        (X,),
        lambda x: (x - C) / np.sqrt(C**2 + 1e-2) * (C + 1),
    ),
    (
        "instance_norm",
        lambda x: mb.instance_norm(x=x, gamma=ALPHA, beta=ALPHA, epsilon=1e-2),
        (X,),
        lambda x: (x - x.mean((2, 3), keepdims=True))
        / np.sqrt(x.var((2, 3), keepdims=True) + 1e-2) * C + C,
    ),
    (
        "layer_norm over channels",
        lambda x: mb.layer_norm(x=x, axes=[1], gamma=ALPHA, beta=ALPHA, epsilon=1e-2),
        (X,),
        lambda x: (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-2) * C + C,
    ),
    (
        "layer_norm over two axes",
        lambda x: mb.layer_norm(x=x, axes=[-1, -2], epsilon=1e-2),
        (X,),
        lambda x: (x - x.mean((2, 3), keepdims=True))
        / np.sqrt(x.var((2, 3), keepdims=True) + 1e-2),
    ),
    (
        "l2_norm",
        lambda x: mb.l2_norm(x=x, epsilon=0.1),
        (X,),
        lambda x: x / np.sqrt((x**2).sum((1, 2, 3), keepdims=True) + 0.1),
    ),
    (
        "local_response_norm",
        lambda x: mb.local_response_norm(x=x, size=3, alpha=0.6, beta=0.7, k=1.5),
        (X,),
        lambda x: x
        / (1.5 + 0.2 * np.stack([(x[:, max(c - 1, 0) : c + 2] ** 2).sum(1) for c in range(3)], 1))
        ** 0.7,
    ),
    (
        "matmul transposed, broadcast",
        lambda x, y: mb.matmul(x=x, y=y, transpose_x=True, transpose_y=True),
        (X, R.standard_normal((3, 6, 5)).astype(np.float32)),
        lambda x, y: np.einsum("bckm,cnk->bcmn", x, y),
    ),
    (
        "einsum",
        lambda x, y: mb.einsum(values=(x, y), equation="nchw,nwhu->nchu"),
        (X, R.standard_normal((2, 4, 5, 7)).astype(np.float32)),
        lambda x, y: np.einsum("nchw,nwhu->nchu", x, y),
    ),
    ("linear", lambda x: mb.linear(x=x, weight=X[0, :, 0], bias=ALPHA), (X,),
     lambda x: x @ X[0, :, 0].T + ALPHA),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_values_are_those_of_the_formula(case: Case, run_mil: Any) -> None:
    _, build, arrays, formula = case
    # A program's inputs are the names of its function's arguments.
    program = (lambda x: build(x)) if len(arrays) == 1 else (lambda x, y: build(x, y))
    (actual,) = run_mil(program, *arrays)
    expected = np.asarray(
        formula(*(a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays))
    )
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5)
