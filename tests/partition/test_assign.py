"""Placements keep every bound, are close to the best there is, and say why."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitlet.errors import UsageError
from vitlet.partition.devices import Device
from vitlet.partition.placing.assign import assign
from vitlet.partition.placing.loads import InfeasibleError, Load, cost_on, finish_times

MB = 1_000_000


def load(index: int, macs: float = 1e8, memory: int = 10 * MB) -> Load:
    return Load(index, macs, memory, sent=512)


def keeps_bounds(place: Sequence[int], loads: Sequence[Load], devices: Sequence[Device]) -> bool:
    for j, device in enumerate(devices):
        held = [one for one, at in zip(loads, place, strict=True) if at == j]
        if sum(one.memory for one in held) > device.memory:
            return False
        budget = float("inf") if device.budget is None else device.budget
        if sum(cost_on(one, device) for one in held) > budget * (1 + 1e-9):
            return False
    return True


loads_of = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 10)), min_size=1, max_size=5).map(
    lambda rows: [load(i, m * 1e7, b * MB) for i, (m, b) in enumerate(rows)]
)
devices_of = st.lists(
    st.tuples(
        st.integers(1, 25),
        st.integers(1, 8),
        st.one_of(st.none(), st.integers(1, 60)),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=4,
).map(
    lambda rows: [
        Device(
            f"d{j}",
            memory * MB,
            speed * 1e9,
            budget=None if budget is None else budget * 1e7,
            overhead=slow * 1e-3,
            link_rate=None if slow == 0 else 1e6 / slow,
            link_latency=slow * 1e-3,
        )
        for j, (memory, speed, budget, slow) in enumerate(rows)
    ]
)


@settings(max_examples=120, deadline=None)
@given(loads=loads_of, devices=devices_of)
def test_makespan_is_within_a_tenth_of_the_best_there_is(
    loads: list[Load], devices: list[Device]
) -> None:
    received = 5000
    best = min(
        (
            max(finish_times(loads, devices, place, received))
            for place in itertools.product(range(len(devices)), repeat=len(loads))
            if keeps_bounds(place, loads, devices)
        ),
        default=None,
    )
    if best is None:
        with pytest.raises(InfeasibleError):
            assign("makespan", loads, devices, received=received)
        return
    made = assign("makespan", loads, devices, received=received)
    names = [device.name for device in devices]
    place = [names.index(p.devices[0]) for p in made.placements]
    assert keeps_bounds(place, loads, devices)
    assert made.seconds == pytest.approx(max(finish_times(loads, devices, place, received)))
    assert made.seconds <= 1.1 * best


@settings(max_examples=120, deadline=None)
@given(loads=loads_of, devices=devices_of)
def test_greedy_places_one_on_each_whenever_that_is_possible(
    loads: list[Load], devices: list[Device]
) -> None:
    possible = any(
        keeps_bounds(place, loads, devices)
        for place in itertools.permutations(range(len(devices)), len(loads))
    )
    if not possible:
        with pytest.raises(InfeasibleError):
            assign("greedy", loads, devices)
        return
    made = assign("greedy", loads, devices)
    names = [device.name for device in devices]
    place = [names.index(p.devices[0]) for p in made.placements]
    assert len(set(place)) == len(loads) and keeps_bounds(place, loads, devices)


def energy(loads: Sequence[Load], devices: Sequence[Device], place: Sequence[int]) -> float:
    """What the most drained device has left."""
    return min(
        (devices[j].budget or 0) - cost_on(one, devices[j])
        for one, j in zip(loads, place, strict=True)
    )


@settings(max_examples=60, deadline=None)
@given(
    macs=st.lists(st.integers(1, 50), min_size=1, max_size=5),
    budgets=st.lists(st.integers(100, 200), min_size=5, max_size=6),
)
def test_greedy_leaves_the_most_drained_device_as_much_as_can_be(
    macs: list[int], budgets: list[int]
) -> None:
    loads = [load(i, m) for i, m in enumerate(macs)]
    devices = [Device(f"d{j}", 20 * MB, 1e9, budget=b) for j, b in enumerate(budgets)]
    made = assign("greedy", loads, devices)
    place = [int(p.devices[0][1:]) for p in made.placements]
    best = max(
        energy(loads, devices, other)
        for other in itertools.permutations(range(len(devices)), len(loads))
    )
    assert energy(loads, devices, place) == pytest.approx(best)


def test_the_one_that_costs_most_gets_the_most_energy() -> None:
    devices = [Device(f"d{j}", 20 * MB, 1e9, budget=b) for j, b in enumerate((1e9, 3e9, 2e9))]
    made = assign("greedy", [load(0, 1e8), load(1, 2e8)], devices)
    assert [p.devices for p in made.placements] == [("d2",), ("d1",)]
    lines = made.explain()
    assert "most energy left (d1 went to what costs as much or more)" in lines[0]
    assert "fits 3 of 3 devices" in lines[0] and "0.4 GFLOP of 3 GFLOP" in lines[1].replace(
        "400 MFLOP", "0.4 GFLOP"
    )


def test_joules_are_a_budget_too() -> None:
    frugal = Device("frugal", 20 * MB, 1e9, budget=0.3, budget_unit="joules", watts=2)
    made = assign("greedy", [load(0, 1e8)], [frugal])  # 0.1 s at 2 W
    assert "0.2 J of 0.3 J" in made.explain()[0]
    with pytest.raises(InfeasibleError, match=r"needs 0\.4 J, and frugal.*raise the budget"):
        assign("greedy", [load(0, 2e8)], [frugal])


def test_a_measured_time_replaces_the_predicted_one() -> None:
    devices = [Device("a", 20 * MB, 1e9), Device("b", 20 * MB, 2e9)]
    measured = replace(load(0), seconds=(("b", 5.0),))
    assert assign("makespan", [load(0)], devices).placements[0].devices == ("b",)
    assert assign("makespan", [measured], devices).placements[0].devices == ("a",)


def test_several_share_a_fast_device() -> None:
    devices = [Device("fast", 50 * MB, 10e9), Device("slow", 50 * MB, 1e9)]
    made = assign("makespan", [load(i) for i in range(3)], devices)
    assert {p.devices for p in made.placements} == {("fast",)}
    assert made.seconds == pytest.approx(0.03) and made.bottleneck == "fast"
    assert "all done after 30 ms, with it on slow after 100 ms" in made.explain()[0]


def test_replicas_go_where_there_is_room() -> None:
    devices = [Device("a", 25 * MB, 1e9), Device("b", 15 * MB, 1e9), Device("c", 10 * MB, 1e9)]
    made = assign("greedy", [load(0), load(1)], devices, replicas=1)
    for placement in made.placements:
        assert len(set(placement.devices)) == len(placement.devices) <= 2
    held = [sum(d in p.devices for p in made.placements) for d in "abc"]
    assert held == [2, 1, 1]
    assert "replica on" in " ".join(made.explain())


def test_an_image_over_a_slow_link_counts() -> None:
    devices = [
        Device("near", 50 * MB, 1e9),
        Device("far", 50 * MB, 2e9, link_rate=250_000),  # 2 Mbit/s: 0.6 s for a raw image
    ]
    assert assign("makespan", [load(0)], devices).placements[0].devices == ("far",)
    made = assign("makespan", [load(0)], devices, received=150_528)
    assert made.placements[0].devices == ("near",)


@pytest.mark.parametrize(
    ("strategy", "loads", "devices", "message"),
    [
        (
            "greedy",
            [load(0, memory=30 * MB)],
            [Device("a", 10 * MB, 1e9), Device("b", 20 * MB, 1e9)],
            "slot 0 needs 30 MB, and b, .* has 20 MB left of its memory: .* by 10 MB",
        ),
        ("greedy", [load(0), load(1)], [Device("a", 99 * MB, 1e9)], "taken.*makespan"),
        (
            "makespan",
            [load(0)],
            [Device("a", 99 * MB, 1e9, budget=1e8)],
            "needs 200 MFLOP, and a.* has 100 MFLOP left of its budget",
        ),
        (
            "makespan",
            [load(0), load(1), load(2)],
            [Device("a", 12 * MB, 1e9), Device("b", 12 * MB, 1e9)],
            "30 MB.*24 MB.*all sub-models together",
        ),
    ],
)
def test_what_cannot_be_placed_names_the_bound_and_the_cure(
    strategy: str, loads: list[Load], devices: list[Device], message: str
) -> None:
    with pytest.raises(InfeasibleError, match=message) as caught:
        assign(strategy, loads, devices)
    assert caught.value.exit_code == 2


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(UsageError, match="greedy or makespan"):
        assign("best", [load(0)], [Device("a", 99 * MB, 1e9)])
