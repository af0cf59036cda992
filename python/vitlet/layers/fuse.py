"""Exact merges of batch normalization and parallel branches into one convolution or linear layer.

In eval mode a BatchNorm is y = scale * x + shift per channel, so it folds into the layer before it
and, where no zero padding lies between, into the layer after it. Structural re-parameterization:
RepVGG (Ding et al., 2021), MobileOne (Vasu et al., 2023). All arithmetic is done in float64.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

Linear = TypeVar("Linear", nn.Linear, nn.Conv2d)


def batch_norm_affine(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return (scale, shift), each (C,) float64, of an eval-mode BatchNorm."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        shift = shift + norm.bias.double()
    return scale.detach(), shift.detach()


def with_parameters(layer: Linear, weight: Tensor, bias: Tensor) -> Linear:
    """Return a new layer of `layer`'s geometry that holds `weight` and `bias`."""
    dtype, device = layer.weight.dtype, layer.weight.device
    new: nn.Module
    if isinstance(layer, nn.Conv2d):
        new = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            stride=layer.stride,  # type: ignore[arg-type]
            padding=layer.padding,  # type: ignore[arg-type]
            dilation=layer.dilation,  # type: ignore[arg-type]
            groups=layer.groups,
            bias=True,
            padding_mode=layer.padding_mode,
            device="meta",
        )
    else:
        new = nn.Linear(layer.in_features, layer.out_features, bias=True, device="meta")
    new.weight = nn.Parameter(weight.detach().to(device, dtype), requires_grad=False)
    new.bias = nn.Parameter(bias.detach().to(device, dtype), requires_grad=False)
    return new.train(layer.training)


def layer_bias(layer: nn.Linear | nn.Conv2d) -> Tensor:
    """Return the layer's bias in float64, zeros where it has none."""
    if layer.bias is not None:
        return layer.bias.detach().double()
    return torch.zeros(layer.weight.shape[0], dtype=torch.float64, device=layer.weight.device)


def fuse_into_previous(layer: Linear, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> Linear:
    """Return one layer equal to ``norm(layer(x))``."""
    scale, shift = batch_norm_affine(norm)
    weight = layer.weight.detach().double()
    weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    return with_parameters(layer, weight, layer_bias(layer) * scale + shift)


def fuse_into_next(norm: nn.BatchNorm1d | nn.BatchNorm2d, layer: Linear) -> Linear:
    """Return one layer equal to ``layer(norm(x))``.

    Only for a Linear or an ungrouped convolution without padding: the shift of a normalization
    before zero padding is not constant at the border.
    """
    scale, shift = batch_norm_affine(norm)
    weight = layer.weight.detach().double()
    if isinstance(layer, nn.Conv2d):
        assert layer.groups == 1 and layer.padding in ((0, 0), "valid"), "padding or groups"
        bias = layer_bias(layer) + weight.sum(dim=(2, 3)) @ shift
        return with_parameters(layer, weight * scale.reshape(1, -1, 1, 1), bias)
    return with_parameters(layer, weight * scale, layer_bias(layer) + weight @ shift)


def scale_outputs(layer: Linear, gamma: Tensor) -> Linear:
    """Return one layer equal to ``gamma * layer(x)``, `gamma` with one value per output."""
    factor = gamma.detach().double().flatten()
    weight = layer.weight.detach().double()
    weight = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    return with_parameters(layer, weight, layer_bias(layer) * factor)


def identity_kernel(like: Tensor) -> Tensor:
    """Return the float64 kernel, shaped and placed as `like`, of the identity convolution."""
    kernel = torch.zeros(like.shape, dtype=torch.float64, device=like.device)
    channels = torch.arange(kernel.shape[0])
    kernel[channels, channels % kernel.shape[1], kernel.shape[2] // 2, kernel.shape[3] // 2] = 1.0
    return kernel


def pad_kernel(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """Return `kernel` (O, I, h, w) with zeros around it, centred in (O, I, *size); odd sizes."""
    rows, columns = (size[0] - kernel.shape[2]) // 2, (size[1] - kernel.shape[3]) // 2
    return nn.functional.pad(kernel, (columns, columns, rows, rows))
