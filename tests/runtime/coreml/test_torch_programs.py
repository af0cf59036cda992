"""Small torch programs through torch.export and coremltools: the executor against torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

G = torch.Generator().manual_seed(0)


def r(*shape: int) -> Tensor:
    return torch.randn(shape, generator=G)


class Program(nn.Module):
    """A function as a module; tensors that it closes over become constants."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *values: Tensor) -> Tensor:
        return self.function(*values)


def seeded(module: nn.Module) -> nn.Module:
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(r(*tensor.shape).abs() if tensor.ndim == 1 else r(*tensor.shape))
    return module.eval()


X = r(2, 4, 9, 7)
ROW = r(3, 6)
TOKENS = torch.tensor([[3, 0, 5, 1], [2, 2, 9, 0]], dtype=torch.int32)
TABLE = r(10, 6)
SIX = r(1, 6, 5, 5)
PLACES = torch.tensor([[5, 0], [1, 1], [2, 4]], dtype=torch.int32)
ATTENTION = seeded(nn.MultiheadAttention(8, 2, batch_first=True))

PROGRAMS: dict[str, tuple[Callable[..., Tensor] | nn.Module, tuple[Tensor, ...]]] = {
    "conv with stride, dilation and groups": (
        seeded(nn.Conv2d(4, 6, (3, 2), (2, 1), (2, 0), (1, 2), 2)), (X,)),
    "conv same with an even kernel": (seeded(nn.Conv2d(4, 5, (4, 3), padding="same")), (X,)),
    "depthwise conv 7x7": (seeded(nn.Conv2d(4, 4, 7, padding=3, groups=4)), (X,)),
    "conv reflect padding": (seeded(nn.Conv2d(4, 3, 3, padding=2, padding_mode="reflect")), (X,)),
    "conv 1d": (seeded(nn.Conv1d(4, 3, 5, 2, 2)), (r(2, 4, 11),)),
    "conv 3d": (seeded(nn.Conv3d(2, 3, (1, 2, 3), (1, 2, 1), (0, 1, 1))), (r(1, 2, 4, 5, 6),)),
    "transposed conv": (seeded(nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2)), (X,)),
    "transposed conv 1d": (seeded(nn.ConvTranspose1d(4, 2, 4, 3, 1)), (r(2, 4, 6),)),
    "max pool ceil": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), (X,)),
    "avg pool ceil": (nn.AvgPool2d(3, 2, 1, ceil_mode=True), (X,)),
    "avg pool without padding": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), (X,)),
    "avg pool 1d": (nn.AvgPool1d(3, 2, 1), (r(2, 4, 11),)),
    "max pool 3d": (nn.MaxPool3d(2, 2, 1), (r(1, 2, 4, 5, 6),)),
    "global pool": (nn.AdaptiveAvgPool2d(1), (X,)),
    "pad uneven": (lambda x: F.pad(x, (1, 0, 3, 2), value=0.5), (X,)),
    "pad replicate": (lambda x: F.pad(x, (1, 0, 3, 2), mode="replicate"), (X,)),
    "layer norm": (seeded(nn.LayerNorm(6)), (ROW,)),
    "layer norm over two axes": (seeded(nn.LayerNorm((9, 7))), (X,)),
    "group norm": (seeded(nn.GroupNorm(2, 6)), (SIX,)),
    "instance norm": (seeded(nn.InstanceNorm2d(6, affine=True)), (SIX,)),
    "batch norm": (seeded(nn.BatchNorm2d(6)), (SIX,)),
    "unit length": (lambda x: F.normalize(x, dim=-2), (X,)),
    "gelu exact": (nn.GELU(), (X,)),
    "hard forms": (lambda x: F.hardswish(x) + F.hardsigmoid(x) + F.hardtanh(x, -0.4, 0.6), (X,)),
    "silu, elu, softplus": (lambda x: F.silu(x) + F.elu(x, 0.5) + F.softplus(x), (X,)),
    "leaky and prelu": (seeded(nn.Sequential(nn.LeakyReLU(0.2), nn.PReLU(4))), (X,)),
    "softmax of a middle axis": (lambda x: torch.softmax(x, -3), (X,)),
    "log softmax": (lambda x: torch.log_softmax(x, 1), (ROW,)),
    "glu": (lambda x: F.glu(x, 1), (X,)),
    "broadcast arithmetic": (lambda x, y: (x - y) * (x + 2) / (y * y + 1), (r(4, 1, 6), r(3, 1))),
    "powers and roots": (lambda x: (x.abs() + 1) ** 1.5 + (x * x + 1).rsqrt() + x.exp(), (ROW,)),
    "comparisons": (
        lambda x, y: torch.where(torch.logical_and(x > y, ~(x < 0)), x, y * 2), (ROW, r(3, 6))),
    "remainder and floor": (lambda x: torch.remainder(x, 0.7) + torch.floor(x) + x.round(), (ROW,)),
    "mean and variance": (lambda x: x.mean((-1, 1)) + x.var((-1, 1), unbiased=False), (X,)),
    "min and max": (lambda x: x.amax((0, -1)) - x.amin((0, -1)), (X,)),
    "norms": (lambda x: torch.linalg.vector_norm(x, 2, -1) + x.abs().sum(-1), (X,)),
    "log sum exp": (lambda x: torch.logsumexp(x, 1), (X,)),
    "argmax": (lambda x: x.argmax(-2).to(torch.int32), (X,)),
    "cumsum": (lambda x: x.cumsum(1), (ROW,)),
    "top three": (lambda x: torch.topk(x, 3, dim=-1)[0], (ROW,)),
    "linear without bias": (seeded(nn.Linear(6, 5, bias=False)), (ROW,)),
    "bmm": (lambda x, y: torch.bmm(x, y), (r(3, 4, 5), r(3, 5, 2))),
    "matmul broadcast": (lambda x, y: x @ y, (r(2, 1, 4, 5), r(3, 5, 2))),
    "einsum": (lambda x, y: torch.einsum("bhqd,bhkd->bhqk", x, y), (r(2, 3, 4, 5), r(2, 3, 6, 5))),
    "attention": (F.scaled_dot_product_attention, (r(1, 2, 4, 8), r(1, 2, 6, 8), r(1, 2, 6, 8))),
    "masked attention": (
        lambda q, k, m: F.scaled_dot_product_attention(q, k, k, attn_mask=m),
        (r(1, 2, 4, 8), r(1, 2, 6, 8), r(4, 6))),
    "multi-head attention": (
        lambda x: ATTENTION(x, x, x)[0],
        (r(2, 5, 8),)),
    "embedding": (lambda tokens: F.embedding(tokens, TABLE), (TOKENS,)),
    "last token": (
        lambda x, t: x[torch.arange(2), t.argmax(-1)], (r(2, 4, 6), TOKENS)),
    "strided slices": (lambda x: x[:, 1::2, :-2, -3:], (X,)),
    "slice of nothing": (lambda x: torch.cat([x, x[:, :0]], 1), (X,)),
    "select and unbind": (lambda x: x.select(1, -1) + x.unbind(1)[0], (X,)),
    "reshape, permute, flatten": (
        lambda x: x.reshape(2, 2, 2, 63).permute(3, 0, 2, 1).flatten(1, -2), (X,)),
    "chunk and stack": (lambda x: torch.stack(x.chunk(2, 1), -1), (X,)),
    "uneven split": (lambda x: torch.cat(x.split([1, 3], 1)[::-1], 1), (X,)),
    "roll": (lambda x: torch.roll(x, (2, -1), (2, 3)), (X,)),
    "flip": (lambda x: x.flip((1, 3)), (X,)),
    "repeat": (lambda x: x.repeat(2, 1, 3), (r(1, 3, 6),)),
    "expand": (lambda x: x.expand(4, 3, 6) + 1, (r(1, 3, 6),)),
    "gather": (lambda x, i: x.gather(1, i.long()), (ROW, PLACES)),
    "index select": (lambda x: x.index_select(-1, torch.tensor([3, 0, 3])), (X,)),
    "scatter": (lambda x: x.scatter(1, torch.tensor([[0, 2], [1, 3], [5, 4]]), 7.0), (ROW,)),
    "lower triangle": (lambda x: x.tril(1), (ROW,)),
    "pixel shuffle": (nn.PixelShuffle(2), (X,)),
    "bilinear up": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), (X,)),
    "bilinear corners": (
        lambda x: F.interpolate(x, (13, 5), mode="bilinear", align_corners=True), (X,)),
    "nearest up": (lambda x: F.interpolate(x, scale_factor=3, mode="nearest"), (X,)),
    "clamp and sign": (lambda x: x.clamp(-0.5, 0.7) * x.sign(), (X,)),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_small_programs_compute_what_torch_does(name: str, run_torch: Any) -> None:
    made, values = PROGRAMS[name]
    module = made if isinstance(made, nn.Module) else Program(made)
    actual, expected = run_torch(module, *values)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-5)


def test_the_converter_drops_the_tanh_form_of_gelu(run_torch: Any) -> None:
    # coremltools 9.0 ignores `approximate`: docs/known-issues.md. Fails once that is mended.
    actual, expected = run_torch(nn.GELU("tanh"), X)
    np.testing.assert_allclose(actual, F.gelu(X), rtol=1e-4, atol=1e-6)
    assert np.abs(actual - expected.astype(np.float64)).max() > 1e-4


def test_there_are_enough_programs() -> None:
    assert len(PROGRAMS) >= 40
