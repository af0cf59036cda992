from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlet.errors import ShapeError, UsageError
from vitlet.ops.torch_depthwise import depthwise_conv2d

convolve = torch.ops.vitlet.depthwise_conv2d.default
ACTIVATIONS: dict[str, Any] = {"none": lambda x: x, "gelu": F.gelu, "relu": torch.relu}


def given(
    channels: int = 5, multiplier: int = 2, kernel: tuple[int, int] = (3, 3), dtype: Any = None
) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(channels)
    outputs = channels * multiplier
    shapes = [(2, channels, 6, 7), (outputs, 1, *kernel), (outputs,)]
    x, weight, bias = (torch.randn(shape, generator=random, dtype=dtype) for shape in shapes)
    return x, weight, bias


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_is_torchs_convolution_in_either_memory_order(
    order: Any, activation: str, stride: int
) -> None:
    for multiplier in (1, 2):
        x, weight, bias = given(5, multiplier, (7, 7))
        expected = F.conv2d(x, weight, bias, stride, 3, groups=5)
        got = convolve(x.to(memory_format=order), weight, bias, stride, [3, 3], activation)
        torch.testing.assert_close(got, ACTIVATIONS[activation](expected), rtol=1e-5, atol=1e-5)
        assert got.is_contiguous(memory_format=order)


def test_padding_of_four_sides_and_no_bias() -> None:
    x, weight, _ = given()
    expected = F.conv2d(F.pad(x, (0, 3, 1, 2)), weight, groups=5)
    torch.testing.assert_close(convolve(x, weight, None, 1, [1, 0, 2, 3]), expected)


def test_a_strided_input_is_read_right() -> None:
    x, weight, bias = given()
    strided = torch.cat([x, x], 3)[..., ::2]
    expected = F.conv2d(strided, weight, bias, groups=5)
    torch.testing.assert_close(convolve(strided, weight, bias, 1, [0, 0]), expected)


def test_torch_accepts_the_registration() -> None:
    x, weight, bias = given()
    for tensor in (x, weight, bias):
        tensor.requires_grad_()
    torch.library.opcheck(depthwise_conv2d, (x, weight, bias, 2, [1, 1], "gelu"))
    last = x.detach().to(memory_format=torch.channels_last)
    torch.library.opcheck(depthwise_conv2d, (last, weight, None, 1, [0, 1, 2, 3], "relu"))


@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("multiplier", [1, 2])
def test_gradients(multiplier: int, activation: str) -> None:
    tensors = given(2, multiplier, dtype=torch.float64)
    for tensor in tensors:
        tensor.requires_grad_()

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return convolve(x, weight, bias, 2, [1, 0, 1, 2], activation)

    assert torch.autograd.gradcheck(call, tensors)
    x, weight, _ = tensors
    assert torch.autograd.gradcheck(lambda x, w: convolve(x, w, None, 1, [1, 1]), (x, weight))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        _, weight, bias = given()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_conv2d(x, self.weight, self.bias, 1, [1, 1], "gelu") * 2


def test_stays_whole_in_an_exported_program() -> None:
    net, (x, _, _) = Net().eval(), given()
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: batch},))
    assert convolve in [node.target for node in program.graph.nodes]
    torch.testing.assert_close(program.module()(x[:1]), net(x[:1]))


def test_compiles_without_a_graph_break() -> None:
    net, (x, _, _) = Net(), given()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for order in (torch.contiguous_format, torch.channels_last):
        mapped = x.to(memory_format=order)
        torch.testing.assert_close(compiled(mapped), net(mapped))
    compiled(x).sum().backward()
    grad, net.weight.grad = net.weight.grad, None
    net(x).sum().backward()
    torch.testing.assert_close(grad, net.weight.grad)


def test_bad_input_is_named() -> None:
    x, weight, bias = given()
    with pytest.raises(ShapeError, match=r"x \(B, C, H, W\) with C >= 1, got \(5, 6, 7\)"):
        convolve(x[0], weight, None, 1, [0, 0])
    with pytest.raises(ShapeError, match=r"weight as torch\.float32 \(4 \* m, 1, kh, kw\)"):
        convolve(x[:, :4], weight, None, 1, [0, 0])
    with pytest.raises(ShapeError, match=r"weight as torch\.float64"):
        convolve(x.double(), weight, None, 1, [0, 0])
    with pytest.raises(ShapeError, match=r"bias as torch\.float32 \(10,\), got"):
        convolve(x, weight, bias[:3], 1, [0, 0])
    with pytest.raises(ShapeError, match="padded map of at least"):
        convolve(x[:, :, :1], weight, None, 1, [0, 0])
    with pytest.raises(UsageError, match="none or gelu or relu or silu, got 'tanh'"):
        convolve(x, weight, bias, 1, [0, 0], "tanh")
    for stride, padding in ((0, [0, 0]), (1, [0, 0, 0]), (1, [0, -1])):
        with pytest.raises(UsageError, match="a stride of at least 1 and padding"):
            convolve(x, weight, bias, stride, padding)
