"""Costs are those of the built model; the search prunes until everything fits, and no further."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import vitlet
from vitlet.errors import UnsupportedError, UsageError
from vitlet.models.deit import DeiT
from vitlet.partition.devices import Device
from vitlet.partition.placing.loads import InfeasibleError
from vitlet.partition.placing.search import Bounds, search_widths
from vitlet.partition.submodels.widths import Geometry, Widths, cost, full_cost, keep_heads

MB = 1_000_000
SMALL = Geometry(
    dim=32, heads=4, hidden=128, depth=3, patch_size=7, img_size=28, in_chans=1, classes=10
)
BASE = Geometry(768, 12, 3072, 12, 16, 224, 3, 1000)


def small_vit(**changes: int) -> DeiT:
    config = {
        "dim": 32, "heads": 4, "depth": 3, "patch_size": 7, "img_size": 28, "in_chans": 1,
        "num_classes": 10,
    }  # fmt: skip
    return DeiT(**{**config, **changes}).eval()


def macs_of(model: torch.nn.Module, image: torch.Tensor) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() / 2


def test_the_full_cost_is_that_of_the_built_model() -> None:
    model = small_vit()
    geometry, made = Geometry.of(model), full_cost(Geometry.of(model))
    assert geometry == SMALL
    assert made.params == sum(p.numel() for p in model.parameters())
    assert made.bytes == 4 * made.params
    assert made.macs == macs_of(model, torch.zeros(1, 1, 28, 28))


@pytest.mark.parametrize("name", ["deit_tiny", "deit_small", "deit_base"])
def test_the_full_cost_is_that_of_the_zoo(name: str) -> None:
    with torch.device("meta"):
        geometry = Geometry.of(vitlet.models.deit.DeiT(**vitlet.model_info(name).config))
    made, info = full_cost(geometry), vitlet.model_info(name)
    assert made.params == info.params
    assert made.macs / 1e6 == pytest.approx(info.macs, abs=0.06)


@pytest.mark.parametrize("keep", [1, 2, 3, 4])
def test_the_cost_of_a_sub_model_is_that_of_a_narrow_vit(keep: int) -> None:
    # A ViT of k of h heads and k/h of every width is itself a plain ViT.
    narrow = small_vit(dim=8 * keep, heads=keep)
    widths = keep_heads(SMALL, keep)
    assert widths.hidden == (32 * keep,) * 3 and widths.dim == 8 * keep
    made = cost(SMALL, widths, outputs=10, all_tokens=True)
    assert made.params == sum(p.numel() for p in narrow.parameters())
    assert made.macs == macs_of(narrow, torch.zeros(1, 1, 28, 28))
    headless = cost(SMALL, widths)
    assert made.params - headless.params == 10 * (8 * keep + 1)


def test_what_the_last_block_does_for_nobody_is_not_counted() -> None:
    widths = keep_heads(SMALL, 4)
    n, d = SMALL.tokens, 32
    spared = (n - 1) * (d * d + 2 * n * d + d * d + 2 * d * 128)  # queries, scores, proj, MLP
    assert cost(SMALL, widths, all_tokens=True).macs - cost(SMALL, widths).macs == spared


def test_two_of_twelve_heads_give_the_papers_headline() -> None:
    full, small = full_cost(BASE), cost(BASE, keep_heads(BASE, 2))
    assert full.bytes / small.bytes > 34 and full.macs / small.macs > 28


def test_widths_survive_json() -> None:
    widths = Widths(24, 8, (2, 3, 1), (64, 50, 7))
    assert Widths.from_json(widths.to_json()) == widths
    for change in ({"heads": []}, {"heads": [1, 2]}, {"hidden": [0, 1, 1]}, {"dim": 0}, {"x": 1}):
        with pytest.raises(UsageError):
            Widths.from_json({**widths.to_json(), **change})


@pytest.mark.parametrize(
    "model",
    [
        torch.nn.Linear(3, 3),
        small_vit(depth=4, features_only=True),
        small_vit(depth=0),
    ],
)
def test_what_is_no_plain_vit_is_refused(model: torch.nn.Module) -> None:
    with pytest.raises(UnsupportedError, match="only a plain ViT in DeiT's layout"):
        Geometry.of(model)


def equal_devices(count: int, memory: int = 512 * MB) -> list[Device]:
    return [Device(f"d{j}", memory, 1e9) for j in range(count)]


def test_deit_base_on_ten_small_devices() -> None:
    bounds = Bounds(180 * MB)
    found = search_widths(BASE, 10, equal_devices(10), mode="global", bounds=bounds)
    assert found.keep == (2,) * 10  # the paper's total for ViT-Base leads to its 2 of 12 heads
    full = full_cost(BASE)
    assert all(full.bytes / c.bytes > 34 and full.macs / c.macs > 28 for c in found.costs)
    # Each on its own, some keep one head more within the same total.
    found = search_widths(BASE, 10, equal_devices(10), bounds=bounds)
    assert set(found.keep) == {2, 3} and sum(c.bytes for c in found.costs) <= 180 * MB


def test_together_they_are_not_larger_than_the_full_model_by_default() -> None:
    found = search_widths(BASE, 10, equal_devices(10))
    total = sum(c.bytes for c in found.costs)
    assert total <= full_cost(BASE).bytes
    wider = [k + (i == int(np.argmin(found.keep))) for i, k in enumerate(found.keep)]
    assert sum(cost(BASE, keep_heads(BASE, k)).bytes for k in wider) > full_cost(BASE).bytes


def test_only_the_one_that_does_not_fit_is_pruned() -> None:
    big, small = cost(SMALL, keep_heads(SMALL, 3)), cost(SMALL, keep_heads(SMALL, 1))
    devices = [
        Device("large", big.memory, 1e9, budget=1e9),
        Device("larger", 2 * big.memory, 1e9, budget=2e9),
        Device("little", small.memory, 1e9, budget=3e9),
    ]
    bounds = Bounds(10**9)
    found = search_widths(SMALL, 3, devices, keep=3, bounds=bounds)
    assert sorted(found.keep) == [1, 3, 3]
    placed = {p.devices[0]: found.keep[p.slot] for p in found.assignment.placements}
    assert placed == {"large": 3, "larger": 3, "little": 1}
    assert len(found.steps) == 2
    together = search_widths(SMALL, 3, devices, keep=3, mode="global", bounds=bounds)
    assert together.keep == (1, 1, 1)


def test_a_deadline_prunes_what_is_late() -> None:
    devices = [Device("slow", 9 * MB, 1e8), Device("fast", 9 * MB, 1e10)]
    limit = cost(SMALL, keep_heads(SMALL, 2)).macs / 1e8 * 1.01
    found = search_widths(SMALL, 2, devices, bounds=Bounds(10**9, seconds=limit))
    placed = {p.devices[0]: found.keep[p.slot] for p in found.assignment.placements}
    assert placed == {"slow": 2, "fast": 4}
    assert found.assignment.seconds <= limit


@pytest.mark.parametrize(
    ("slots", "devices", "bounds", "message"),
    [
        (
            2,
            equal_devices(2, 1000),
            Bounds(10**9),
            r"slot 0 .* its memory, with one head left",
        ),
        (2, equal_devices(2), Bounds(10), r"10 B, with one head left to each: allow a total"),
        (
            2,
            equal_devices(2),
            Bounds(10**9, 1e-9),
            r"last feature.*is 1e-06 ms.*faster device",
        ),
        (3, equal_devices(2), Bounds(10**9), "3 sub-models for 2 devices.*makespan.*--slots 2"),
    ],
)
def test_bounds_that_nothing_keeps_are_named(
    slots: int, devices: list[Device], bounds: Bounds, message: str
) -> None:
    with pytest.raises(InfeasibleError, match=message):
        search_widths(SMALL, slots, devices, bounds=bounds)


def test_a_wrong_number_of_heads_is_refused() -> None:
    with pytest.raises(UsageError, match="keeps 1 to 4 heads, got 5"):
        search_widths(SMALL, 1, equal_devices(1), keep=5)
    with pytest.raises(UsageError, match="unknown pruning"):
        search_widths(SMALL, 1, equal_devices(1), mode="most")
