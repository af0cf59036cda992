"""Modules of vitlet's torch operators, small enough to compile with TVM in a test."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import vitlet.ops.torch_ops  # noqa: F401  (registers the operators)
from vitlet.export.trace import Graph
from vitlet.layers import AdditiveTokenMixer
from vitlet.layers.shift_linear import ShiftLinear
from vitlet.runtime.manifest import TensorSpec


class Mixer(nn.Module):
    shape = (20, 7, 5)

    def __init__(self) -> None:
        super().__init__()
        self.mixer = AdditiveTokenMixer(20)
        for name, value in self.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif value.is_floating_point():
                value.normal_(0.1, 0.4)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x).flatten(1)


class Linears(nn.Module):
    shape = (9, 33)

    def __init__(self) -> None:
        super().__init__()
        self.first = ShiftLinear(33, 70, activation="gelu")
        self.second = ShiftLinear(70, 40, wide=True, bias=False)
        self.third = nn.Linear(40, 13)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        y: Tensor = torch.ops.vitlet.int8_linear(x, self.third.weight, self.third.bias)
        return y.flatten(1)


class Attention(nn.Module):
    shape = (2, 70, 60)

    def __init__(self) -> None:
        super().__init__()
        self.taps = nn.Parameter(torch.randn(2, 9))
        self.level = nn.Parameter(torch.randn(2) / 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = x.chunk(3, dim=-1)
        attend = torch.ops.vitlet.binary_linear_attention
        parts = [
            attend(q, k, v, None, self.level, self.taps),
            attend(k, q, v, signed=True),
            attend(k, v, q, exact=True),
        ]
        return torch.cat(parts, dim=3).flatten(1)


def graph_of(module: nn.Module) -> Graph:
    shape: Any = module.shape
    image = TensorSpec("image", "float32", ("batch", *shape))
    return Graph("model", module.eval(), (image,), (TensorSpec("logits", "float32", ("batch",)),))
