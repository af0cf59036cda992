"""The linear operators of torch: values, straight-through gradients, compile, export, bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from vitlet import ops
from vitlet.errors import ShapeError, UnsupportedError, UsageError
from vitlet.layers import ShiftLinear
from vitlet.ops.torch_checks import require_cpu
from vitlet.ops.torch_linear import round_int8, round_shift, round_tokens
from vitlet.ops.torch_ops import int8_linear, shift_linear

shift = torch.ops.vitlet.shift_linear
int8 = torch.ops.vitlet.int8_linear
Operator = Callable[..., Tensor]


def shift_wide(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return shift(x, weight, bias, True, activation)


def shift_narrow(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return shift(x, weight, bias, False, activation)


KINDS: dict[str, Operator] = {"shift": shift_narrow, "wide": shift_wide, "int8": int8}


def packed(weight: Tensor, kind: str) -> Any:
    array = weight.detach().numpy()
    return (
        ops.pack_int8_weight(array)
        if kind == "int8"
        else ops.pack_shift_weight(array, kind == "wide")
    )


def make(
    *rows: int, inputs: int = 37, outputs: int = 21, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(inputs)
    x = torch.randn(*rows, inputs, generator=random, dtype=dtype)
    octaves = torch.randint(-12, 3, (outputs, inputs), generator=random)
    weight = torch.randn(outputs, inputs, generator=random, dtype=dtype) * torch.exp2(octaves)
    return x, weight, torch.randn(outputs, generator=random, dtype=dtype)


def test_weights_and_tokens_are_rounded_as_the_kernels_do() -> None:
    x, weight, _ = make(5)
    weight[3], weight[4, 5], weight[6], weight[7] = 0, 0, 1e-37, 1.5e38
    for kind, rounding in (("int8", round_int8), ("shift", round_shift)):
        assert torch.equal(rounding(weight), torch.from_numpy(packed(weight, kind).dequantize()))
    wide = ops.pack_shift_weight(weight.numpy(), wide=True).dequantize()
    assert torch.equal(round_shift(weight, wide=True), torch.from_numpy(wide))
    x[1], x[2], x[3, 1], x[4, 0] = 0, 1e-35, torch.nan, torch.inf
    step = x.abs().amax(-1, keepdim=True) / 127
    torch.testing.assert_close(round_tokens(x)[:1], (x / step).round()[:1] * step[:1])
    identity = ops.pack_int8_weight(np.eye(37, dtype=np.float32))
    torch.testing.assert_close(
        round_tokens(x), torch.from_numpy(ops.int8_linear(x.numpy(), identity)), equal_nan=True
    )
    assert round_tokens(x)[1:3].abs().max() == 0
    assert round_tokens(x)[3:].isnan().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_float32_is_the_kernel_and_float64_its_definition(kind: str, activation: Any) -> None:
    x, weight, bias = make(2, 3)
    got = KINDS[kind](x, weight, bias, activation)
    multiply: Any = ops.int8_linear if kind == "int8" else ops.shift_linear
    want = multiply(x.numpy(), packed(weight, kind), bias.numpy(), activation=activation)
    assert torch.equal(got, torch.from_numpy(want))
    precise = KINDS[kind](x.double(), weight.double(), bias.double(), activation)
    assert precise.dtype == torch.float64
    torch.testing.assert_close(got.double(), precise, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("with_bias", "activation"), [(True, "gelu"), (False, "none")])
def test_torch_accepts_the_registration(with_bias: bool, activation: str) -> None:
    x, weight, bias = make(2, 3)
    for tensor in (x, weight, bias):
        tensor.requires_grad_()
    given = (x, weight, bias if with_bias else None)
    torch.library.opcheck(shift_linear, (*given, with_bias, activation))
    torch.library.opcheck(int8_linear, (*given, activation))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_the_bias_has_exact_first_and_second_derivatives(kind: str, activation: str) -> None:
    x, weight, bias = make(3, dtype=torch.float64)
    bias.requires_grad_()

    def of_bias(b: Tensor) -> Tensor:
        return KINDS[kind](x, weight, b, activation)

    assert torch.autograd.gradcheck(of_bias, bias)
    assert torch.autograd.gradgradcheck(of_bias, bias)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_passes_gradients_on(kind: str, activation: str, dtype: torch.dtype) -> None:
    x, weight, bias = make(4, dtype=dtype)
    for tensor in (x, weight, bias):
        tensor.requires_grad_()
    grad = torch.randn(4, 21, dtype=dtype)
    got = torch.autograd.grad(KINDS[kind](x, weight, bias, activation), (x, weight, bias), grad)
    w = torch.from_numpy(packed(weight, kind).dequantize()).double()
    r, g = round_tokens(x.detach().double()), grad.double()
    if activation == "gelu":
        z = r @ w.T + bias.detach().double()
        normal = torch.distributions.Normal(0.0, 1.0)
        g = g * (normal.cdf(z) + z * normal.log_prob(z).exp())
    for part, want in zip(got, (g @ w, g.T @ r, g.sum(0)), strict=True):
        torch.testing.assert_close(part.double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_stays_whole_under_compile_with_the_same_gradients(kind: str) -> None:
    # aot_eager traces forward and backward as inductor does, and saves its C++ compiler's time.
    x, weight, bias = make(2, 3)
    for tensor in (x, weight, bias):
        tensor.requires_grad_()
    targets: list[Any] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        targets.extend(node.target for node in graph.graph.nodes)
        return graph.forward

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return KINDS[kind](x, weight, bias, "gelu").square().sum()

    torch.compile(run, fullgraph=True, backend=backend)(x, weight, bias)
    assert getattr(torch.ops.vitlet, "int8_linear" if kind == "int8" else "shift_linear") in targets
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(x, weight, bias)
    want = torch.autograd.grad(run(x, weight, bias), (x, weight, bias))
    got = torch.autograd.grad(compiled, (x, weight, bias))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)


def test_stays_whole_in_an_exported_program_of_any_batch() -> None:
    layer = ShiftLinear(37, 21).eval()
    x = make(2, 3)[0]
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(layer, (x,), dynamic_shapes={"x": {0: batch}})
    assert shift.default in [node.target for node in program.graph.nodes]
    more = make(5, 3)[0]
    assert torch.equal(program.module()(more), layer(more))


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_does_not_depend_on_its_batch(kind: str) -> None:
    x, weight, bias = make(7, 5)
    x[3] *= 1000
    x[4] = torch.nan
    whole = KINDS[kind](x, weight, bias, "gelu")
    for index in (0, 3, 6):
        alone = KINDS[kind](x[index], weight, bias, "gelu")
        assert torch.equal(whole[index], alone)
    assert whole[4].isnan().all()
    assert whole[[0, 1, 2, 3, 5, 6]].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_strided_tensors_and_single_rows(kind: str) -> None:
    x, weight, bias = make(6, inputs=74)
    want = KINDS[kind](x[:, ::2].contiguous(), weight[:, 1::2].contiguous(), bias, "none")
    assert torch.equal(KINDS[kind](x[:, ::2], weight[:, 1::2], bias, "none"), want)
    assert torch.equal(KINDS[kind](x[0, ::2], weight[:, 1::2], bias, "none"), want[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(0, 3, 2), (2, 0, 2), (2, 3, 0)])
def test_empty_tensors_and_their_gradients(
    rows: int, inputs: int, outputs: int, dtype: torch.dtype, kind: str
) -> None:
    x, weight, bias = make(rows, inputs=inputs, outputs=outputs, dtype=dtype)
    given = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    out = KINDS[kind](x, weight, bias, "gelu")
    assert out.shape == (rows, outputs)
    for tensor, grad in zip(given, torch.autograd.grad(out.sum(), given), strict=True):
        assert grad.shape == tensor.shape


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fake", [False, True])
def test_what_does_not_fit_is_named(fake: bool, kind: str) -> None:
    x, weight, bias = make(2, 3)
    if fake:
        x, weight, bias = (tensor.to("meta") for tensor in (x, weight, bias))
    run = KINDS[kind]
    for given, message in (
        ((x[..., 1:], weight, bias, "none"), r"expected x of shape \(..., 37\), got \(2, 3, 36\)"),
        ((x[0, 0, 0], weight, bias, "none"), r"expected x of shape \(..., 37\), got \(\)"),
        ((x, weight[0], bias, "none"), r"expected weight of shape \(N, K\), got \(37,\)"),
        ((x, weight, bias[1:], "none"), r"expected bias of shape \(21,\), got \(20,\)"),
        ((x.half(), weight, bias, "none"), "expected x of float32 or float64, got torch.float16"),
        ((x, weight.double(), bias, "none"), "expected weight of torch.float32 on"),
        ((x, weight, bias.long(), "none"), "expected bias of torch.float32 on"),
    ):
        with pytest.raises(ShapeError, match=message):
            run(*given)
    with pytest.raises(UsageError, match="expected activation none or gelu, got 'relu'"):
        run(x, weight, bias, "relu")


@pytest.mark.parametrize("kind", KINDS)
def test_other_devices_get_a_shape_or_a_reason(kind: str) -> None:
    x, weight, bias = make(2, 3)
    out = KINDS[kind](x.to("meta"), weight.to("meta"), bias.to("meta"), "none")
    assert (out.shape, out.device.type) == ((2, 3, 21), "meta")
    with pytest.raises(ShapeError, match=r"weight of torch.float32 on cpu like x, got .* on meta"):
        KINDS[kind](x, weight.to("meta"), bias, "none")
    with FakeTensorMode():
        far = torch.empty(3, device="cuda")
    with pytest.raises(UnsupportedError, match=r"expected tensors on the cpu.*got cuda"):
        require_cpu("shift_linear", far)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite_is_refused(bad: float, dtype: torch.dtype, kind: str) -> None:
    x, weight, bias = make(2, 3, dtype=dtype)
    weight[3, 4] = bad
    with pytest.raises(UsageError, match="expected finite weights"):
        KINDS[kind](x, weight, bias, "none")
