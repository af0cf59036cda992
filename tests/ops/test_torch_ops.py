from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitlet.errors import ShapeError, UsageError
from vitlet.layers.additive_token_mixer import AdditiveTokenMixer
from vitlet.layers.fused_mixer import FusedMixer
from vitlet.ops.torch_ops import additive_token_mixer

mixer = torch.ops.vitlet.additive_token_mixer.default


def make(dim: int, dtype: torch.dtype = torch.float32) -> tuple[AdditiveTokenMixer, list[Tensor]]:
    torch.manual_seed(dim)
    module = AdditiveTokenMixer(dim, bias=True).eval()
    for name, value in module.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.is_floating_point():
            value.normal_(0, 0.5)
    return module, [w.detach().to(dtype) for w in FusedMixer(module).weights()]


@pytest.mark.parametrize(("dim", "side"), [(1, 1), (3, 2), (16, 7), (17, 5)])
@torch.no_grad()
def test_the_operator_is_the_layer(dim: int, side: int) -> None:
    module, weights = make(dim)
    x = torch.randn(2, dim, side, side + 1)
    torch.testing.assert_close(mixer(x, *weights), module(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(FusedMixer(module, "fp32")(x), module(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_bf16_rounds_a_little() -> None:
    module, weights = make(16)
    x = torch.randn(2, 16, 7, 7)
    difference = (mixer(x, *weights, precision="bf16") - module(x)).abs().max()
    assert 0 < difference < 0.02 * module(x).abs().max()


@pytest.mark.parametrize(("precision", "most"), [("int8", 0.1), ("shift", 0.8)])
@torch.no_grad()
def test_8_bits_round_as_the_definition_does(precision: str, most: float) -> None:
    module, weights = make(16)
    x = torch.randn(2, 16, 7, 7)
    got = mixer(x, *weights, precision=precision)
    in_double = mixer(x.double(), *[weight.double() for weight in weights], precision=precision)
    torch.testing.assert_close(got.double(), in_double, rtol=1e-4, atol=1e-5)
    difference = (got - module(x)).abs().max()
    assert 0 < difference < most * module(x).abs().max()


def test_rounding_passes_gradients_on() -> None:
    _, weights = make(4)
    given = [torch.randn(1, 4, 3, 3), *weights]
    for tensor in given:
        tensor.requires_grad_()
    exact = torch.autograd.grad(mixer(*given, precision="fp32").sum(), given)
    for precision in ("bf16", "int8", "shift"):
        found = torch.autograd.grad(mixer(*given, precision=precision).sum(), given)
        torch.testing.assert_close(found, exact)


@torch.no_grad()
def test_channels_last_and_strided_input() -> None:
    module, weights = make(5)
    x = torch.randn(2, 5, 6, 12)[..., ::2].to(memory_format=torch.channels_last)
    torch.testing.assert_close(mixer(x, *weights), module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "shift"])
def test_torch_accepts_the_registration(precision: str) -> None:
    _, weights = make(4)
    given = [torch.randn(1, 4, 3, 3), *weights]
    for tensor in given:
        tensor.requires_grad_()
    torch.library.opcheck(additive_token_mixer, (*given, precision))


def test_gradients() -> None:
    _, weights = make(2, torch.float64)
    given = [torch.randn(1, 2, 3, 2, dtype=torch.float64), *weights]
    for tensor in given:
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(lambda *a: mixer(*a, precision="fp32"), given)


def test_stays_whole_in_an_exported_program() -> None:
    module, _ = make(4)
    program = torch.export.export(FusedMixer(module, "fp32"), (torch.randn(1, 4, 5, 5),))
    assert mixer in [node.target for node in program.graph.nodes]


def test_bad_input_is_named() -> None:
    _, weights = make(4)
    with pytest.raises(ShapeError, match=r"\(B, C, H, W\), got \(4, 3, 3\)"):
        mixer(torch.zeros(4, 3, 3), *weights)
    with pytest.raises(ShapeError, match="expected weight 0 as"):
        mixer(torch.zeros(1, 5, 3, 3), *weights)
    with pytest.raises(UsageError, match="fp32 or bf16"):
        mixer(torch.zeros(1, 4, 3, 3), *weights, precision="fp8")
