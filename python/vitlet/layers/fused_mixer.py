"""The CAS-ViT mixer as one operator, for deployment: `torch.ops.vitlet.additive_token_mixer`."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import vitlet.ops.torch_ops  # noqa: F401  (registers the operator)
from vitlet.layers.additive_token_mixer import AdditiveTokenMixer, ChannelGate, SpatialGate


class FusedMixer(nn.Module):
    """An `AdditiveTokenMixer` whose forward is one operator: (B, C, H, W) -> same.

    Args:
        mixer: in eval mode; copied, its batch norms folded.
        precision: "fp32", or "bf16", "int8" or "shift" for the q, k, v product.
    """

    def __init__(self, mixer: AdditiveTokenMixer, precision: str = "fp32") -> None:
        super().__init__()
        self.precision = precision
        mixer = copy.deepcopy(mixer)
        for gate in (mixer.oper_q[0], mixer.oper_k[0]):
            assert isinstance(gate, SpatialGate)
            gate.reparameterized()
        if mixer.qkv.bias is None:
            mixer.qkv.bias = nn.Parameter(torch.zeros(mixer.qkv.out_channels))
        self.qkv, self.dwc, self.proj = mixer.qkv, mixer.dwc, mixer.proj
        self.oper_q, self.oper_k = mixer.oper_q, mixer.oper_k
        self.requires_grad_(False)

    def weights(self) -> list[Tensor]:
        """Return the operator's weights, in its order."""
        found = [*_pair(self.qkv)]
        for oper in (self.oper_q, self.oper_k):
            spatial, channel = oper
            assert isinstance(spatial, SpatialGate) and isinstance(channel, ChannelGate)
            conv, _, point, _ = spatial.block
            pool = channel.block[1]
            assert isinstance(point, nn.Conv2d) and isinstance(pool, nn.Conv2d)
            found += [*_pair(conv), point.weight, pool.weight]
        return [*found, *_pair(self.dwc), *_pair(self.proj)]

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of (B, C, H, W)."""
        mixed: Tensor = torch.ops.vitlet.additive_token_mixer(x, *self.weights(), self.precision)
        return mixed


def _pair(conv: nn.Module) -> tuple[Tensor, Tensor]:
    assert isinstance(conv, nn.Conv2d) and conv.bias is not None
    return conv.weight, conv.bias


def fuse_mixers(module: nn.Module, precision: str) -> nn.Module:
    """Return a copy in which every `AdditiveTokenMixer` is a `FusedMixer`.

    The copy shares every other parameter. Where there is no mixer, `module` itself is returned.
    """
    if isinstance(module, AdditiveTokenMixer):
        return FusedMixer(module, precision).eval()
    fused = {name: fuse_mixers(child, precision) for name, child in module.named_children()}
    if all(child is getattr(module, name) for name, child in fused.items()):
        return module
    outer = copy.copy(module)
    outer._modules = {**module._modules, **fused}
    return outer
