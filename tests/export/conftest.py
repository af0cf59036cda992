"""Small modules with the shapes of the zoo's parts, and weights that answer to their input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from vitlet.data.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocess


class Attention(nn.Module):
    """Multi-head attention as DeiT writes it: one qkv product, viewed in 5-D."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        split = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, dim))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.fc1 = nn.Linear(dim, 2 * dim)
        self.fc2 = nn.Linear(2 * dim, dim)
        self.layer_scale = nn.Parameter(torch.full((dim,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer_scale * self.attn(self.norm1(x))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class SmallVit(nn.Module):
    """A plain ViT: the patch convolution has no padding."""

    def __init__(self, size: int = 32, dim: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 8, 8)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, (size // 8) ** 2 + 1, dim))
        self.blocks = nn.Sequential(Block(dim, 2), Block(dim, 2))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class SmallConv(nn.Module):
    """A convolutional mixer: padding, a channel split, gates, and BatchNorms that stay."""

    def __init__(self, dim: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, dim, 3, 2, 1)
        self.norm = nn.BatchNorm2d(dim)
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.mix = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.gate = nn.Conv2d(dim, dim, 1, bias=False)
        self.last = nn.BatchNorm2d(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.stem(x))
        query, key, value = self.qkv(self.norm(x)).chunk(3, dim=1)
        query = query * torch.sigmoid(self.gate(query.mean((2, 3), keepdim=True)))
        x = x + self.mix(query + key) * value
        return self.head(self.last(x).mean((2, 3)))


class SmallText(nn.Module):
    def __init__(self, dim: int = 32, out: int = 10) -> None:
        super().__init__()
        self.embedding = nn.Embedding(49408, dim)
        self.block = Block(dim, 2)
        self.projection = nn.Parameter(torch.randn(dim, out) / dim**0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.block(self.embedding(tokens))
        rows = torch.arange(tokens.shape[0], device=tokens.device)
        return x[rows, tokens.argmax(dim=-1)] @ self.projection


class SmallClip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image_tower = SmallVit()
        self.text_tower = SmallText()
        self.logit_scale = nn.Parameter(torch.tensor(2.6))


def _lively(module: nn.Module, seed: int) -> nn.Module:
    """Give weights and statistics under which the output follows the input."""
    random = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point() or tensor.ndim == 0:
            continue
        noise = torch.randn(tensor.shape, generator=random)
        if name.endswith("running_var"):
            tensor.copy_(1 + 0.5 * noise.abs())
        elif tensor.ndim >= 2 and name.endswith("weight") and "embedding" not in name:
            tensor.copy_(1.2 * noise / tensor[0].numel() ** 0.5)
        elif name.endswith("weight") or name.endswith("layer_scale"):
            tensor.copy_(1 + 0.1 * noise)
        else:
            tensor.copy_(0.1 * noise)
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def small_vit() -> nn.Module:
    return _lively(SmallVit(), 0)


@pytest.fixture(scope="session")
def small_conv() -> nn.Module:
    return _lively(SmallConv(), 1)


@pytest.fixture(scope="session")
def small_clip() -> nn.Module:
    return _lively(SmallClip(), 2)


@pytest.fixture(scope="session")
def small_spec() -> Preprocess:
    return Preprocess(size=(32, 32), resize_to=36, mean=IMAGENET_MEAN, std=IMAGENET_STD)
