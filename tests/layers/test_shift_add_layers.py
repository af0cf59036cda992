"""ShiftAddViT's layers against its published formulas, written out token by token."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitlet.errors import UsageError
from vitlet.layers import ShiftLinear
from vitlet.layers.deepshift import DeepShiftLinear, fixed_point, round_to_power
from vitlet.layers.kernel_hash_attention import KernelHashAttention
from vitlet.layers.linear_angular_attention import LinearAngularAttention
from vitlet.layers.mixture_linear import MixtureLinear, balance_loss
from vitlet.layers.spatial_reduction_attention import SpatialReductionAttention


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spread_out(module: nn.Module) -> nn.Module:
    """Weights that are not tiny, so that every term of a formula counts."""
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=seeded(number)))
    return module.eval()


def heads_of(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:2], heads, -1).permute(0, 2, 1, 3)


def additive(q: Tensor, k: Tensor, v: Tensor, taps: Tensor) -> Tensor:
    """0.5 V + Q (K^T V) / pi over its length, and a filter of 9 taps along the tokens of V."""
    row = 0.5 * v + q @ (k.transpose(-1, -2) @ v) / math.pi
    out = row / row.norm(dim=-1, keepdim=True)
    for token in range(v.shape[2]):
        for tap in range(9):
            source = token + tap - 4
            if 0 <= source < v.shape[2]:
                out[:, :, token] += taps[:, tap, None] * v[:, :, source]
    return out.permute(0, 2, 1, 3).flatten(2)


@pytest.mark.parametrize("codes", ["none", "batch", "calibrated"])
@pytest.mark.parametrize("tokens", [1, 5, 13])
def test_linear_angular_attention_is_its_formula(codes: str, tokens: int) -> None:
    layer = LinearAngularAttention(24, heads=3, codes=codes)  # type: ignore[arg-type]
    spread_out(layer)
    x = torch.randn(2, tokens, 24, generator=seeded(1))
    with torch.no_grad():
        q, k, v = (heads_of(part, 3) for part in layer.qkv(x).split(24, dim=-1))
        q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
        if codes == "batch":
            q, k = (q - q.mean() > 0).float(), (k - k.mean() > 0).float()
        elif codes == "calibrated":
            q = (q > layer.q_threshold[:, None, None]).float()
            k = (k > layer.k_threshold[:, None, None]).float()
        expected = layer.proj(additive(q, k, v, layer.dconv.weight.reshape(3, 9)))
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_calibrated_codes_do_not_depend_on_the_rest_of_the_batch_and_batch_codes_do() -> None:
    x = torch.randn(4, 7, 16, generator=seeded(2))
    with torch.no_grad():
        for codes, independent in (("calibrated", True), ("batch", False)):
            layer = spread_out(LinearAngularAttention(16, heads=2, codes=codes))  # type: ignore[arg-type]
            assert torch.equal(layer(x)[:1], layer(x[:1])) == independent


def test_thresholds_and_all_weights_get_a_gradient() -> None:
    layer = spread_out(LinearAngularAttention(16, heads=2))
    layer(torch.randn(2, 9, 16, generator=seeded(3))).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_kernel_hash_attention_is_its_formula() -> None:
    layer = spread_out(KernelHashAttention(24, heads=3))
    ksh = layer.qk_quant.ksh
    ksh.mvec.copy_(torch.rand(ksh.mvec.shape, generator=seeded(4)))
    ksh.anchor.copy_(torch.randn(ksh.anchor.shape, generator=seeded(5)))
    x = torch.randn(2, 11, 24, generator=seeded(6))
    with torch.no_grad():
        qk, v = heads_of(layer.to_qk(x), 3), heads_of(layer.to_v(x), 3)
        qk = qk / qk.norm(dim=-1, keepdim=True)
        bits = torch.empty(2, 3, 11, 16)
        for b, h in np.ndindex(2, 3):
            distance = (qk[b, h, :, None] - ksh.anchor[0, h]).square().sum(-1)
            kernels = torch.exp(-distance / (2 * distance.mean())) - ksh.mvec[0, h]
            bits[b, h] = (kernels @ ksh.A[h].T > 0).float()
        expected = layer.proj(additive(bits, bits, v, layer.dconv.weight.reshape(3, 9)))
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reduction", [1, 2])
def test_spatial_reduction_attention_is_its_formula(reduction: int) -> None:
    layer = spread_out(SpatialReductionAttention(16, heads=2, reduction=reduction))
    x = torch.randn(2, 24, 16, generator=seeded(7))
    with torch.no_grad():
        source = x
        if reduction > 1:
            maps = layer.sr(x.permute(0, 2, 1).reshape(2, 16, 4, 6))
            source = layer.norm(maps.reshape(2, 16, -1).permute(0, 2, 1))
        q = heads_of(layer.q(x), 2)
        k, v = (heads_of(part, 2) for part in layer.kv(source).split(16, dim=-1))
        mixed = (q @ k.transpose(-1, -2) / math.sqrt(8)).softmax(-1) @ v
        expected = layer.proj(mixed.permute(0, 2, 1, 3).reshape(2, 24, 16))
        torch.testing.assert_close(layer(x, (4, 6)), expected, rtol=1e-5, atol=1e-5)


def test_fixed_point_rounds_down_and_saturates_to_the_bit() -> None:
    x = torch.tensor([0.1, -0.1, 2.0**-17, -(2.0**-17), 4e4, -4e4, 1e6, 0.0, 32767.3])
    wanted = np.clip(np.floor(x.numpy() * 65536.0) / 65536.0, -32768.0, 32767.0)
    assert np.array_equal(fixed_point(x).numpy(), wanted.astype(np.float32))


def test_powers_are_nearest_in_the_exponent() -> None:
    weight = torch.tensor([0.0, 1.0, -3.0, 0.7, 0.71, -0.3, 1e-9, -(2.0**-15)])
    wanted = [0.0, 1.0, -1.0, 0.5, 1.0, -0.25, 2.0**-15, -(2.0**-15)]
    assert round_to_power(weight).tolist() == wanted


def test_deepshift_weights_have_15_octaves_and_ternary_signs() -> None:
    layer = DeepShiftLinear(4, 2)
    with torch.no_grad():
        layer.shift.copy_(torch.tensor([[-20.0, 3.0, -0.5, -1.5], [-2.4, -2.6, -14.2, 0.0]]))
        layer.sign.copy_(torch.tensor([[0.6, -0.6, 0.5, -0.9], [-0.4, 2.0, 1.0, -7.0]]))
    powers = [[2.0**-14, -1.0, 0.0, -0.25], [0.0, 2.0**-3, 2.0**-14, -1.0]]
    assert layer.powers().tolist() == powers
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert torch.equal(layer(x), x @ torch.tensor(powers).T)
    layer(x).sum().backward()
    # The sign's gradient is the input alone, that of the exponent has the power and ln 2.
    assert layer.sign.grad is not None and torch.equal(layer.sign.grad, x.expand(2, 4))
    assert layer.shift.grad is not None
    assert layer.shift.grad[1, 1].item() == pytest.approx(2.0 * 2.0**-3 * math.log(2))


def test_a_deepshift_layer_deploys_with_the_same_weights() -> None:
    dense = nn.Linear(33, 5)
    layer = DeepShiftLinear.from_linear(dense, fixed=False)
    assert torch.equal(layer.powers(), round_to_power(dense.weight.clamp(-1, 1)).where(
        dense.weight.abs() >= 2.0**-14, layer.powers()))  # fmt: skip
    deployed = layer.to_shift_linear()
    assert isinstance(deployed, ShiftLinear) and deployed.wide
    x = torch.randn(7, 33, generator=seeded(8))
    error = (deployed(x) - layer(x)).abs().max() / layer(x).abs().max()
    assert error < 0.02  # tokens are rounded to 8 bits


def both_ways(layer: MixtureLinear, x: Tensor) -> Tensor:
    logits = layer.gate(x)
    chances, second = logits.softmax(-1), logits[..., 1:] > logits[..., :1]
    outputs = [expert(x) for expert in layer.experts]
    gate = torch.where(second, chances[..., 1:], chances[..., :1])
    return torch.where(second, outputs[1], outputs[0]) * (1.0 if layer.upstream else gate)


@pytest.mark.parametrize("upstream", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, 7, 64])
def test_each_token_goes_through_its_likelier_layer(upstream: bool, tokens: int) -> None:
    layer = MixtureLinear(12, 20, upstream=upstream).eval()
    x = torch.randn(2, tokens, 12, generator=seeded(9))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), both_ways(layer, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chosen", [0, 1])
def test_all_tokens_may_go_one_way(chosen: int) -> None:
    layer = MixtureLinear(12, 20).eval()
    with torch.no_grad():
        layer.gate.gate.weight.zero_()
        layer.gate.gate.bias.copy_(torch.eye(2)[chosen])
        x = torch.randn(9, 12, generator=seeded(10))
        torch.testing.assert_close(layer(x), both_ways(layer, x))
    assert layer.shares is not None and layer.shares[chosen] == 1


def test_a_tie_goes_to_the_dense_layer_and_a_token_alone_gives_what_it_gives_in_a_batch() -> None:
    layer = MixtureLinear.from_linear(nn.Linear(12, 20)).eval()
    x = torch.randn(5, 12, generator=seeded(11))
    with torch.no_grad():
        layer.gate.gate.weight.zero_()
        layer.gate.gate.bias.zero_()
        assert torch.equal(layer(x), layer.experts[0](x) / 2)
        layer.gate.gate.weight.normal_(generator=seeded(12))
        alone = torch.cat([layer(x[i : i + 1]) for i in range(5)])
        torch.testing.assert_close(layer(x), alone, rtol=1e-6, atol=1e-6)


def test_the_router_gets_a_gradient_from_the_task_alone() -> None:
    layer = MixtureLinear(12, 20).train()
    layer(torch.randn(64, 12, generator=seeded(13))).square().sum().backward()
    weight = layer.gate.gate.weight
    assert weight.grad is not None and weight.grad.norm() > 0


def test_balance_losses_bring_the_share_to_what_the_latencies_imply() -> None:
    torch.manual_seed(0)
    layer = MixtureLinear(12, 20, latency=(3.0, 1.0)).train()
    x = torch.randn(512, 12, generator=seeded(14))
    optimizer = torch.optim.Adam(layer.gate.parameters(), 0.02)
    for _ in range(200):
        optimizer.zero_grad()
        layer(x)
        balance_loss(layer).backward()
        optimizer.step()
    layer.eval()(x)
    assert layer.wanted_shares == (0.25, 0.75)
    assert layer.shares is not None and abs(layer.shares[0].item() - 0.25) < 0.05


def test_a_trained_mixture_can_be_copied() -> None:
    layer = MixtureLinear(12, 20).train()
    layer(torch.randn(8, 12, generator=seeded(16)))
    copied = copy.deepcopy(layer.eval())
    assert torch.equal(copied.gate.gate.weight, layer.gate.gate.weight)


def test_a_mixture_exports_and_gives_what_it_gives_in_torch() -> None:
    layer = MixtureLinear(12, 20).eval().requires_grad_(False)
    x = torch.randn(2, 9, 12, generator=seeded(15))
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), layer(x), rtol=1e-6, atol=1e-6)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="two positive times"):
        MixtureLinear(2, 2, latency=(1.0, 0.0))
    with pytest.raises(UsageError, match="heads must divide"):
        LinearAngularAttention(10, heads=3)
    with pytest.raises(UsageError, match="codes must be"):
        LinearAngularAttention(9, heads=3, codes="ternary")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="has run in training mode"):
        balance_loss(nn.Linear(2, 2))
