"""The attention operators of torch: values, gradients, compile, export, bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitlet import ops
from vitlet.errors import ShapeError
from vitlet.ops.torch_ops import binary_linear_attention, pack_bits

attend = torch.ops.vitlet.binary_linear_attention
FORMS = [(signed, output) for signed in (False, True) for output in (False, True)]


def make(
    tokens: int = 7, dim: int = 70, dtype: torch.dtype = torch.float32, grad: bool = True
) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(tokens)
    shapes = {
        "q": (2, 3, tokens, dim),
        "k": (2, 3, tokens, dim),
        "v": (2, 3, tokens, 5),
        "q_threshold": (3,),
        "k_threshold": (3,),
        "taps": (3, 9),
    }
    made = {n: torch.randn(s, generator=random, dtype=dtype) for n, s in shapes.items()}
    return {n: t.requires_grad_(grad) for n, t in made.items()}


def without_taps(given: dict[str, Tensor], output: bool) -> dict[str, Any]:
    return given if output else {**given, "taps": None}


def coded(x: Tensor, threshold: Tensor, signed: bool) -> Tensor:
    above = (x > threshold.reshape(1, -1, 1, 1)).to(x.dtype)
    return 2 * above - 1 if signed else above


def by_definition(q: Tensor, k: Tensor, v: Tensor, taps: Tensor | None) -> Tensor:
    """Attention of codes, token by token."""
    y = torch.einsum("bhni,bhmi,bhmd->bhnd", q, k, v)
    if taps is None:
        return y
    rows = []
    for n in range(v.shape[2]):
        r = v[:, :, n] / 2 + y[:, :, n] / math.pi
        row = r / r.norm(dim=-1, keepdim=True)
        for t in range(9):
            if 0 <= n + t - 4 < v.shape[2]:
                row = row + taps[:, t, None] * v[:, :, n + t - 4]
        rows.append(row)
    return torch.stack(rows, dim=2)


@pytest.mark.parametrize("dim", [1, 63, 64, 65, 128])
def test_bits_are_those_of_the_kernel(dim: int) -> None:
    given = make(5, dim)
    x, threshold = given["q"], given["q_threshold"]
    got = pack_bits(x, threshold)
    want = ops.pack_bits(x.detach().numpy(), threshold.detach().tolist())
    assert torch.equal(got, torch.from_numpy(want.words.view("int64")))
    assert torch.equal(pack_bits(x.double(), threshold.double()), got)
    assert (got.dtype, got.requires_grad) == (torch.int64, False)


@pytest.mark.parametrize(("signed", "output"), FORMS)
def test_float32_is_the_kernel_and_float64_its_definition(signed: bool, output: bool) -> None:
    given = without_taps(make(130, grad=False), output)
    arrays = {n: None if t is None else t.numpy() for n, t in given.items()}
    packed = [ops.pack_bits(arrays[n], arrays[f"{n}_threshold"]) for n in "qk"]
    precise = attend(**{n: t if t is None else t.double() for n, t in given.items()}, signed=signed)
    q, k = (coded(given[n].double(), given[f"{n}_threshold"].double(), signed) for n in "qk")
    taps = given["taps"].double() if output else None
    torch.testing.assert_close(precise, by_definition(q, k, given["v"].double(), taps))
    for exact, off in ((True, 3e-6), (False, 1e-2)):
        got = attend(**given, signed=signed, exact=exact)
        want = ops.binary_linear_attention(
            *packed, arrays["v"], signed=signed, exact=exact, taps=arrays["taps"]
        )
        assert torch.equal(got, torch.from_numpy(want))
        torch.testing.assert_close(got.double(), precise, rtol=0, atol=off * precise.abs().max())


def test_thresholds_are_0_without_one() -> None:
    given = make(9)
    zero = torch.zeros(3)
    q, k, v = given["q"], given["k"], given["v"]
    assert torch.equal(attend(q, k, v), attend(q, k, v, zero, zero))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("given", [("q_threshold", "taps"), ("k_threshold",), ()], ids=str)
def test_torch_accepts_the_registration(given: tuple[str, ...], signed: bool) -> None:
    tensors = make()
    optional = [tensors[n] if n in given else None for n in ("q_threshold", "k_threshold", "taps")]
    torch.library.opcheck(
        binary_linear_attention,
        (tensors["q"], tensors["k"], tensors["v"], *optional, signed, True),
    )


def test_torch_accepts_the_registration_of_packing() -> None:
    given = make()
    torch.library.opcheck(pack_bits, (given["q"], given["q_threshold"]))


@pytest.mark.parametrize(("signed", "output"), FORMS)
def test_values_and_taps_have_exact_first_and_second_derivatives(
    signed: bool, output: bool
) -> None:
    given = make(3, 4, torch.float64)
    codes = {n: given[n].detach() for n in ("q", "k", "q_threshold", "k_threshold")}

    def of_values(v: Tensor, taps: Tensor) -> Tensor:
        return attend(**codes, v=v, taps=taps if output else None, signed=signed)

    assert torch.autograd.gradcheck(of_values, (given["v"], given["taps"]))
    assert torch.autograd.gradgradcheck(of_values, (given["v"], given["taps"]))


@pytest.mark.parametrize(("signed", "output"), FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codes_pass_gradients_on_near_the_threshold(
    dtype: torch.dtype, signed: bool, output: bool
) -> None:
    given = make(11, 16, dtype)
    chosen = without_taps(given, output)
    grad = torch.randn(given["v"].shape, dtype=dtype)
    names = [n for n, t in chosen.items() if t is not None]
    # exact: the gradient is that of the product without the rounding of V
    out = attend(**chosen, signed=signed, exact=True)
    got = dict(zip(names, torch.autograd.grad(out, [chosen[n] for n in names], grad), strict=True))

    plain = {n: t.detach().double() for n, t in given.items()}
    leaves = {
        n: coded(plain[n], plain[f"{n}_threshold"], signed).requires_grad_() for n in "qk"
    } | {n: plain[n].requires_grad_() for n in ("v", "taps") if n in names}
    by_hand = by_definition(leaves["q"], leaves["k"], leaves["v"], leaves.get("taps"))
    want = dict(
        zip(leaves, torch.autograd.grad(by_hand, list(leaves.values()), grad.double()), strict=True)
    )
    for n in "qk":
        above = plain[n] - plain[f"{n}_threshold"].reshape(1, -1, 1, 1)
        passes = above.abs() <= 1 if signed else (above > 0) & (above < 1)
        assert 0.1 < passes.double().mean() < 0.9
        want[n] = want[n] * passes
        want[f"{n}_threshold"] = -want[n].sum((0, 2, 3))
    for n in names:
        torch.testing.assert_close(got[n].double(), want[n], rtol=1e-4, atol=1e-4)


def test_a_row_of_zeros_has_no_direction_and_no_gradient_of_one() -> None:
    given = make(6, 8)
    given["v"].data.zero_()
    given["taps"].data.zero_()
    out = attend(**given)
    assert not out.any()
    for grad in torch.autograd.grad(out.sum(), list(given.values())):
        assert grad.isfinite().all()


@pytest.mark.parametrize("output", [False, True])
def test_stays_whole_under_compile_with_the_same_gradients(output: bool) -> None:
    # aot_eager traces forward and backward as inductor does, and saves its C++ compiler's time.
    given = make()
    names = [n for n in given if output or n != "taps"]
    targets: list[Any] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        targets.extend(node.target for node in graph.graph.nodes)
        return graph.forward

    def run(*tensors: Tensor) -> Tensor:
        return attend(*tensors, exact=True).square().sum()

    tensors = [given[n] for n in names]
    torch.compile(run, fullgraph=True, backend=backend)(*tensors)
    assert attend in targets
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(*tensors)
    got = torch.autograd.grad(compiled, tensors)
    for one, other in zip(got, torch.autograd.grad(run(*tensors), tensors), strict=True):
        torch.testing.assert_close(one, other)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.taps = nn.Parameter(make()["taps"].detach())

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = attend(q, k, v, None, None, self.taps)
        return out


def test_stays_whole_in_an_exported_program_of_any_batch_and_length() -> None:
    given, more = make(), make(33)
    batch, tokens = torch.export.Dim("batch", min=1, max=8), torch.export.Dim("n", min=5, max=99)
    shapes = {n: {0: batch, 2: tokens} for n in "qkv"}
    module = Attention()
    program = torch.export.export(
        module, tuple(given[n].detach() for n in "qkv"), dynamic_shapes=shapes
    )
    assert attend.default in [node.target for node in program.graph.nodes]
    arguments = [more[n].detach()[:1] for n in "qkv"]
    assert torch.equal(program.module()(*arguments), module(*arguments))


@pytest.mark.parametrize(("signed", "output"), FORMS)
def test_an_image_does_not_depend_on_its_batch(signed: bool, output: bool) -> None:
    given = without_taps(make(70, grad=False), output)
    whole = attend(**given, signed=signed)
    alone = attend(**{**given, **{n: given[n][1:] for n in "qkv"}}, signed=signed)
    assert torch.equal(whole[1:], alone)


def test_what_is_not_finite_is_above_nothing_or_stays_in_its_column() -> None:
    given = make(9, grad=False)
    q, k, v = (given[n].clone() for n in "qkv")
    missing, low = q.clone(), q.clone()
    missing[0, 1, 2, 3], low[0, 1, 2, 3] = torch.nan, -1
    assert torch.equal(attend(missing, k, v), attend(low, k, v))
    clean = attend(q, k, v)
    v[1, 2, 3, 4] = torch.inf
    out = attend(q, k, v)
    assert out[1, 2, :, 4].isnan().all()
    out[1, 2, :, 4] = clean[1, 2, :, 4]
    assert torch.equal(out, clean)


def test_strided_tensors() -> None:
    x = torch.randn(2, 9, 3, 3, 16)
    q, k, v = (x[:, :, i].transpose(1, 2) for i in range(3))
    want = attend(q.contiguous(), k.contiguous(), v.contiguous())
    assert torch.equal(attend(q, k, v), want)
    q.requires_grad_(False)
    assert attend(q.double(), k.double(), v.double()).is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(0, 3, 7, 8), (1, 0, 7, 8), (1, 3, 0, 8)], ids=str)
@pytest.mark.parametrize("output", [False, True])
def test_empty_tensors_and_their_gradients(
    output: bool, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    q, k, v = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
    taps = torch.randn(shape[1], 9, dtype=dtype, requires_grad=True) if output else None
    out = attend(q, k, v, None, None, taps)
    assert out.shape == shape
    for grad in torch.autograd.grad(out.sum(), [q, k, v]):
        assert grad.shape == shape


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": (2, 3, 7)}, r"expected q of shape \(B, H, N, D\), D from 1 to 128, got \(2, 3, 7\)"),
        ({"q": (2, 3, 7, 129)}, "D from 1 to 128"),
        ({"k": (2, 3, 7, 69)}, r"expected k of shape \(2, 3, 7, 70\), got \(2, 3, 7, 69\)"),
        ({"v": (2, 3, 6, 5)}, r"expected v of shape \(2, 3, 7, 'Dv'\), got \(2, 3, 6, 5\)"),
        ({"q_threshold": (2,)}, r"expected q_threshold of shape \(3,\), got \(2,\)"),
        ({"k_threshold": (1, 3)}, r"expected k_threshold of shape \(3,\), got \(1, 3\)"),
        ({"taps": (3, 8)}, r"expected taps of shape \(3, 9\), got \(3, 8\)"),
        ({"v": torch.float64}, "expected v of torch.float32 on"),
        ({"q": torch.bfloat16}, "expected q of float32 or float64, got torch.bfloat16"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], message: str, device: str) -> None:
    given = {n: t.to(device) for n, t in make(grad=False).items()}
    for name, change in changes.items():
        given[name] = (
            torch.zeros(change, device=device)
            if isinstance(change, tuple)
            else given[name].to(change)
        )
    with pytest.raises(ShapeError, match=message):
        attend(**given)


def test_wrong_arguments_of_packing_are_named() -> None:
    x = torch.zeros(1, 2, 3, 4)
    for given, message in (
        ((x[0], torch.zeros(2)), r"expected x of shape \(B, H, N, D\)"),
        ((x, torch.zeros(3)), r"expected threshold of shape \(2,\), got \(3,\)"),
        ((x, torch.zeros(2).double()), "expected threshold of torch.float32"),
    ):
        with pytest.raises(ShapeError, match=message):
            pack_bits(*given)
    out = pack_bits(x.to("meta"), torch.zeros(2, device="meta"))
    assert (out.shape, out.dtype, out.device.type) == ((1, 2, 3, 1), torch.int64, "meta")
