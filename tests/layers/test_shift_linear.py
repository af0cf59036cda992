from __future__ import annotations

import torch
from torch import nn

from vitlet.layers import ShiftLinear
from vitlet.ops import pack_shift_weight


def test_a_linear_layer_becomes_one_of_powers_of_two() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(24, 10).eval()
    layer = ShiftLinear.from_linear(linear)
    x = torch.randn(2, 5, 24)
    rounded = torch.from_numpy(pack_shift_weight(linear.weight.detach().numpy()).dequantize())
    torch.testing.assert_close(
        layer(x), nn.functional.linear(x, rounded, linear.bias), rtol=0, atol=0.03
    )
    assert not layer.training
    assert layer.weight is not linear.weight
    assert str(layer) == "ShiftLinear(24, 10, bias=True, wide=False, activation='none')"
    bare = ShiftLinear.from_linear(nn.Linear(24, 10, bias=False), wide=True, activation="gelu")
    assert bare.bias is None
    assert bare.wide


def test_it_learns_a_matrix_of_powers_of_two() -> None:
    torch.manual_seed(0)
    target = torch.exp2(torch.randint(-3, 1, (4, 8)).float()) * torch.randn(4, 8).sign()
    layer = ShiftLinear(8, 4)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    x = torch.randn(256, 8)
    for _ in range(200):
        loss = (layer(x) - x @ target.T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learnt = pack_shift_weight(layer.weight.detach().numpy()).dequantize()
    torch.testing.assert_close(torch.from_numpy(learnt), target)
