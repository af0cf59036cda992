"""Every layer's deployable form against its train-time form, with non-trivial statistics."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import fill, relative
from torch import Tensor, nn

from vitlet.compress.reparameterize import reparameterize
from vitlet.layers.attention import SelfAttention
from vitlet.layers.conv_ffn import ConvFFN
from vitlet.layers.conv_norm import ConvNorm
from vitlet.layers.fuse import fuse_into_next, fuse_into_previous
from vitlet.layers.in_projection_attention import InProjectionAttention
from vitlet.layers.large_kernel import LargeKernelConv
from vitlet.layers.mixer_blocks import AttentionBlock, RepMixerBlock
from vitlet.layers.mobileone import MobileOneBlock
from vitlet.layers.naming import APPLE, TIMM, Naming
from vitlet.layers.rep_cpe import RepCPE
from vitlet.layers.rep_mixer import RepMixer
from vitlet.layers.squeeze_excite import SqueezeExcite

MAP = torch.randn(2, 64, 9, 7, generator=torch.Generator().manual_seed(0))


def layers(naming: Naming) -> dict[str, nn.Module]:
    gate = SqueezeExcite(128, 32)
    three, one = (3, 3), (1, 1)
    return {
        "mobileone": MobileOneBlock(64, 64, kernel=three, groups=64, naming=naming),
        "mobileone dense strided": MobileOneBlock(64, 32, kernel=three, stride=2, naming=naming),
        "mobileone pointwise": MobileOneBlock(64, 64, kernel=one, scale=False, naming=naming),
        "mobileone gated": MobileOneBlock(
            64, 128, kernel=three, groups=64, gate=gate, naming=naming
        ),
        "mobileone skip only": MobileOneBlock(
            64, 64, kernel=three, groups=64, conv=False, scale=False, naming=naming
        ),
        "large kernel": LargeKernelConv(64, 128, naming=naming),
        "large kernel gated": LargeKernelConv(64, 128, gate=copy.deepcopy(gate), naming=naming),
        "repmixer": RepMixer(64, kernel=three, naming=naming),
        "repmixer 1-d": RepMixer(64, kernel=(1, 11), naming=naming),
        "repcpe": RepCPE(64, naming=naming),
        "conv norm": ConvNorm(64, 32, kernel=(2, 2), stride=2, padding=(1, 1)),
        "conv ffn": ConvFFN(64, 96, kernel=(7, 7)),
        "mixer block": RepMixerBlock(64, 96, naming=naming),
        "attention block": AttentionBlock(64, 96, naming=naming),
        "attention block, layer norm": AttentionBlock(64, 96, layer_norm=True, naming=naming),
    }


CASES = [
    pytest.param(layer, id=f"{name} {style}")
    for style, naming in (("apple", APPLE), ("timm", TIMM))
    for name, layer in layers(naming).items()
]


@pytest.mark.parametrize("layer", CASES)
@torch.no_grad()
def test_merged_layer_computes_the_same(layer: nn.Module) -> None:
    fill(layer)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    shape = repr(layer)
    merged = reparameterize(layer)
    assert relative(merged(MAP), layer(MAP)) < 1e-5
    assert not any(isinstance(part, nn.BatchNorm2d) for part in merged.modules())
    assert repr(layer) == shape
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


@pytest.mark.parametrize("layer", CASES)
@torch.no_grad()
def test_merging_twice_changes_nothing(layer: nn.Module) -> None:
    once = reparameterize(fill(layer))
    assert torch.equal(reparameterize(once)(MAP), once(MAP))


@pytest.mark.parametrize(
    "attention",
    [SelfAttention(64, heads=4), SelfAttention(64, heads=4, bias=False),
     InProjectionAttention(64, heads=4)],
)  # fmt: skip
@torch.no_grad()
def test_merged_attention_has_its_scale_in_the_queries(attention: nn.Module) -> None:
    x = torch.randn(2, 11, 64, generator=torch.Generator().manual_seed(1))
    mask = torch.full((11, 11), float("-inf")).triu(1)
    merged = reparameterize(fill(attention))
    assert isinstance(merged, SelfAttention) and merged.scale == 1.0
    for given_mask in (None, mask):
        assert relative(merged(x, given_mask), attention(x, given_mask)) < 1e-5


@torch.no_grad()
def test_attention_is_that_of_torch() -> None:
    ours = fill(InProjectionAttention(64, heads=4))
    theirs = nn.MultiheadAttention(64, 4, batch_first=True).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 11, 64, generator=torch.Generator().manual_seed(2))
    mask = torch.full((11, 11), float("-inf")).triu(1)
    for given_mask in (None, mask):
        want: Tensor = theirs(x, x, x, attn_mask=given_mask, need_weights=False)[0]
        assert relative(ours(x, given_mask), want) < 1e-5


@torch.no_grad()
def test_merging_keeps_half_precision_and_draws_no_random_numbers() -> None:
    layer = fill(RepMixerBlock(16, 24, naming=APPLE)).half()
    torch.manual_seed(0)
    want = torch.rand(1)
    torch.manual_seed(0)
    merged = reparameterize(layer)
    assert torch.equal(torch.rand(1), want)
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float16}


def _randomize(norm: nn.BatchNorm1d | nn.BatchNorm2d, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    norm.running_mean = torch.randn(norm.num_features, generator=random)
    norm.running_var = torch.rand(norm.num_features, generator=random) * 4 + 1e-3
    if norm.affine:
        norm.weight.data = torch.randn(norm.num_features, generator=random)
        norm.bias.data = torch.randn(norm.num_features, generator=random)


@settings(max_examples=40, deadline=None)
@given(
    dim=st.integers(1, 6),
    out=st.integers(1, 6),
    kernel=st.sampled_from([1, 2, 3]),
    bias=st.booleans(),
    affine=st.booleans(),
    seed=st.integers(0, 10**6),
)
@torch.no_grad()
def test_batch_norm_folds_either_way(
    dim: int, out: int, kernel: int, bias: bool, affine: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    conv = nn.Conv2d(dim, out, kernel, bias=bias)
    before = nn.BatchNorm2d(dim, affine=affine).eval()
    after = nn.BatchNorm2d(out, affine=affine).eval()
    _randomize(before, seed)
    _randomize(after, seed + 1)
    x = torch.randn(2, dim, 5, 4)
    for got, want in (
        (fuse_into_previous(conv, after)(x), after(conv(x))),
        (fuse_into_next(before, conv)(x), conv(before(x))),
    ):
        assert (got - want).abs().max() <= 1e-4 * want.abs().max().clamp(min=1.0)


@torch.no_grad()
def test_batch_norm_before_zero_padding_is_refused() -> None:
    with pytest.raises(AssertionError):
        fuse_into_next(nn.BatchNorm2d(4).eval(), nn.Conv2d(4, 4, 3, padding=1))
