"""A linear layer of power-of-two weights that trains: `torch.ops.vitlet.shift_linear`.

https://arxiv.org/abs/1905.13298 (the variant that keeps a real weight and rounds it)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import vitlet.ops.torch_linear  # noqa: F401  (registers the operator)


class ShiftLinear(nn.Module):
    """activation(x' @ weight'.T + bias): (..., K) -> (..., N).

    weight' is `weight` rounded to signed powers of two, x' each token rounded to 8 bits. Parameters
    have the names and shapes of `nn.Linear`'s, so its checkpoints load.

    Args:
        dim: K.
        out_dim: N.
        bias: add one.
        wide: 15 octaves per output channel instead of 7.
        activation: "gelu" or "none".
        device: of the parameters.
        dtype: of the parameters, float32 or float64.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        bias: bool = True,
        wide: bool = False,
        activation: str = "none",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.wide, self.activation = wide, activation
        plain = nn.Linear(dim, out_dim, bias, device=device, dtype=dtype)
        self.weight, self.bias = plain.weight, plain.bias

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, *, wide: bool = False, activation: str = "none"
    ) -> ShiftLinear:
        """Return a layer with a copy of the parameters of `linear`."""
        layer = cls(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            wide=wide,
            activation=activation,
            device=linear.weight.device,
            dtype=linear.weight.dtype,
        )
        layer.load_state_dict(linear.state_dict())
        return layer.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply (..., K)."""
        out: Tensor = torch.ops.vitlet.shift_linear(
            x, self.weight, self.bias, self.wide, self.activation
        )
        return out

    def extra_repr(self) -> str:
        """Return the sizes and options for `print`."""
        outputs, inputs = self.weight.shape
        bias = self.bias is not None
        return f"{inputs}, {outputs}, {bias=}, wide={self.wide}, activation={self.activation!r}"
