"""`torch.ops.vitlet.hamming_attention`: values, gradients, compile, export, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitlet import ops
from vitlet.errors import ShapeError, UsageError
from vitlet.ops.torch_ops import hamming_attention

attend = torch.ops.vitlet.hamming_attention


def make(
    tokens: int = 7, dim: int = 70, dtype: torch.dtype = torch.float32, grad: bool = True
) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(tokens)
    rows = (2, 3, tokens)
    shapes = {"q": (*rows, dim), "k": (*rows, dim), "v": (*rows, 5)}
    shapes |= {"q_threshold": (3,), "k_threshold": (3,)}
    made = {n: torch.randn(s, generator=random, dtype=dtype) for n, s in shapes.items()}
    return {n: t.requires_grad_(grad) for n, t in made.items()}


def coded(x: Tensor, threshold: Tensor, signed: bool) -> Tensor:
    above = (x > threshold.reshape(1, -1, 1, 1)).to(x.dtype)
    return 2 * above - 1 if signed else above


def by_definition(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention of codes."""
    w = torch.exp(scale * torch.einsum("bhni,bhmi->bhnm", q, k))
    return torch.einsum("bhnm,bhmd->bhnd", w / w.sum(-1, keepdim=True), v)


@pytest.mark.parametrize("signed", [False, True])
def test_float32_is_the_kernel_and_float64_its_definition(signed: bool) -> None:
    given = make(30, grad=False)
    packed = [ops.pack_bits(given[n].numpy(), given[f"{n}_threshold"].numpy()) for n in "qk"]
    got = attend(**given, scale=0.2, signed=signed)
    want = ops.hamming_attention(*packed, given["v"].numpy(), scale=0.2, signed=signed)
    assert torch.equal(got, torch.from_numpy(want))
    precise = attend(**{n: t.double() for n, t in given.items()}, scale=0.2, signed=signed)
    q, k = (coded(given[n], given[f"{n}_threshold"], signed).double() for n in "qk")
    torch.testing.assert_close(precise, by_definition(q, k, given["v"].double(), 0.2))
    torch.testing.assert_close(got.double(), precise, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("signed", "thresholds"), [(True, True), (False, False)])
def test_torch_accepts_the_registration(signed: bool, thresholds: bool) -> None:
    given = make()
    optional = [given[f"{n}_threshold"] if thresholds else None for n in "qk"]
    arguments = (given["q"], given["k"], given["v"], 0.1, *optional, signed)
    torch.library.opcheck(hamming_attention, arguments)


@pytest.mark.parametrize("signed", [False, True])
def test_values_have_exact_first_and_second_derivatives(signed: bool) -> None:
    given = make(4, 6, torch.float64)
    q, k = given["q"].detach(), given["k"].detach()

    def of_values(v: Tensor) -> Tensor:
        return attend(q, k, v, 0.3, signed=signed)

    assert torch.autograd.gradcheck(of_values, given["v"])
    assert torch.autograd.gradgradcheck(of_values, given["v"])


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codes_pass_gradients_on_near_the_threshold(dtype: torch.dtype, signed: bool) -> None:
    given = make(11, 16, dtype)
    grad = torch.randn(given["v"].shape, dtype=dtype)
    out = attend(**given, scale=0.2, signed=signed)
    got = dict(zip(given, torch.autograd.grad(out, list(given.values()), grad), strict=True))
    plain = {n: t.detach().double() for n, t in given.items()}
    leaves = {n: coded(plain[n], plain[f"{n}_threshold"], signed).requires_grad_() for n in "qk"}
    leaves["v"] = plain["v"].requires_grad_()
    by_hand = by_definition(**leaves, scale=0.2)
    want = dict(
        zip(leaves, torch.autograd.grad(by_hand, list(leaves.values()), grad.double()), strict=True)
    )
    for n in "qk":
        above = plain[n] - plain[f"{n}_threshold"].reshape(1, -1, 1, 1)
        passes = above.abs() <= 1 if signed else (above > 0) & (above < 1)
        want[n] = want[n] * passes
        want[f"{n}_threshold"] = -want[n].sum((0, 2, 3))
    for n in given:
        torch.testing.assert_close(got[n].double(), want[n], rtol=1e-4, atol=1e-5)


def test_stays_whole_under_compile_with_the_same_gradients() -> None:
    # aot_eager traces forward and backward as inductor does, and saves its C++ compiler's time.
    given = make()
    tensors = [given[n] for n in "qkv"]
    targets: list[Any] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        targets.extend(node.target for node in graph.graph.nodes)
        return graph.forward

    def run(*tensors: Tensor) -> Tensor:
        return attend(*tensors, 0.1).square().sum()

    torch.compile(run, fullgraph=True, backend=backend)(*tensors)
    assert attend in targets
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(*tensors)
    got = torch.autograd.grad(compiled, tensors)
    for one, other in zip(got, torch.autograd.grad(run(*tensors), tensors), strict=True):
        torch.testing.assert_close(one, other)


class Attention(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = attend(q, k, v, q.shape[-1] ** -0.5)
        return out


def test_stays_whole_in_an_exported_program_of_any_batch_and_length() -> None:
    given, more = make(), make(33)
    batch, tokens = torch.export.Dim("batch", min=1, max=8), torch.export.Dim("n", min=5, max=99)
    program = torch.export.export(
        Attention(),
        tuple(given[n].detach() for n in "qkv"),
        dynamic_shapes={n: {0: batch, 2: tokens} for n in "qkv"},
    )
    assert attend.default in [node.target for node in program.graph.nodes]
    arguments = [more[n].detach()[:1] for n in "qkv"]
    assert torch.equal(program.module()(*arguments), Attention()(*arguments))


def test_an_image_does_not_depend_on_its_batch() -> None:
    q, k, v = (make(70, grad=False)[n] for n in "qkv")
    assert torch.equal(attend(q, k, v, 0.1)[1:], attend(q[1:], k[1:], v[1:], 0.1))


def test_what_is_not_finite_is_above_nothing_or_stays_in_its_column() -> None:
    q, k, v = (make(9, grad=False)[n].clone() for n in "qkv")
    missing, low = q.clone(), q.clone()
    missing[0, 1, 2, 3], low[0, 1, 2, 3] = torch.nan, -1
    assert torch.equal(attend(missing, k, v, 0.1), attend(low, k, v, 0.1))
    clean = attend(q, k, v, 0.1)
    v[1, 2, 3, 4] = torch.nan
    out = attend(q, k, v, 0.1)
    assert out[1, 2, :, 4].isnan().all()
    out[1, 2, :, 4] = clean[1, 2, :, 4]
    assert torch.equal(out, clean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(0, 3, 7, 8), (1, 0, 7, 8), (1, 3, 0, 8)], ids=str)
def test_empty_tensors_and_their_gradients(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    given = [torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3)]
    out = attend(*given, 0.1)
    assert out.shape == shape
    for grad in torch.autograd.grad(out.sum(), given):
        assert grad.shape == shape


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("q", (2, 3, 7, 129), "D from 1 to 128"),
        ("k", (2, 3, 7, 69), r"expected k of shape \(2, 3, 7, 70\), got \(2, 3, 7, 69\)"),
        ("v", (2, 3, 6, 5), r"expected v of shape \(2, 3, 7, 'Dv'\), got \(2, 3, 6, 5\)"),
        ("k_threshold", (1, 3), r"expected k_threshold of shape \(3,\), got \(1, 3\)"),
        ("v", torch.float64, "expected v of torch.float32 on"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(name: str, change: Any, message: str, device: str) -> None:
    given = {n: t.to(device) for n, t in make(grad=False).items()}
    of_shape = isinstance(change, tuple)
    given[name] = torch.zeros(change, device=device) if of_shape else given[name].to(change)
    with pytest.raises(ShapeError, match=message):
        attend(**given, scale=0.1)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_not_finite_is_refused(scale: float) -> None:
    given = make(grad=False)
    with pytest.raises(UsageError, match="expected a finite scale"):
        attend(**given, scale=scale)
