"""Counts of a profile against formulas; the same rules for every kind of layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import vitlet
from vitlet.compress.profile import ADD, BUFFER, DRAM, MULTIPLY, SHIFT
from vitlet.compress.shift_add import shift_add
from vitlet.errors import UsageError
from vitlet.layers import ShiftLinear


def test_a_linear_layer_costs_what_its_formula_says() -> None:
    (layer,) = vitlet.profile(nn.Sequential(nn.Linear(7, 5)), torch.randn(3, 7)).layers
    assert layer.path == "0" and layer.multiplies == layer.adds == 3 * 7 * 5
    assert layer.weight_bytes == 4 * 35 and layer.activation_bytes == 4 * (3 * 7 + 3 * 5)
    assert layer.compute_pj == pytest.approx(105 * (MULTIPLY[32] + ADD[32]))
    assert layer.memory_pj == pytest.approx(70 * DRAM + 72 * BUFFER)


def test_a_shift_layer_has_shifts_and_sums_and_half_a_byte_a_weight() -> None:
    (layer,) = vitlet.profile(ShiftLinear(7, 5), torch.randn(3, 7)).layers
    assert (layer.multiplies, layer.shifts, layer.adds) == (0, 105, 105)
    assert layer.weight_bytes == 17.5
    assert layer.compute_pj == pytest.approx(105 * (SHIFT[8] + ADD[32]))


def test_the_whole_model_has_the_macs_that_the_zoo_says() -> None:
    info = vitlet.model_info("deit_tiny")
    total = vitlet.profile(vitlet.create_model("deit_tiny"), torch.zeros(1, 3, 224, 224)).total
    assert total.multiplies / 1e6 == pytest.approx(info.macs, rel=1e-3)


def test_binary_attention_and_shift_layers_take_multiplications_and_modelled_energy_away() -> None:
    model = vitlet.create_model("vit_fashion")
    x = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    before = vitlet.profile(model, x)
    after = vitlet.profile(shift_add(model, linear="shift", layers="all")[0], x)
    assert after.total.multiplies < 0.05 * before.total.multiplies
    assert after.total.adds > after.total.shifts > 0
    assert after.modelled_mj < 0.6 * before.modelled_mj
    paths = {layer.path: layer for layer in after.layers}
    # 49 tokens and a class token, 3 heads of 32: two products of bits with V, and 9 taps.
    attention = paths["blocks.0.attn"]
    assert attention.adds == 2 * 50 * 96 * 32 + 50 * 96 * 9
    assert attention.multiplies == 50 * 96 * 9
    assert "modelled" in str(after.to_json()["energy"])


def test_a_model_that_computes_nothing_is_refused_and_training_mode_is_kept() -> None:
    with pytest.raises(UsageError, match="no product"):
        vitlet.profile(nn.ReLU(), torch.zeros(3))
    model = nn.Linear(2, 2).train()
    vitlet.profile(model, torch.zeros(1, 2))
    assert model.training
