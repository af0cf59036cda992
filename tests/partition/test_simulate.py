"""The simulation against what follows from the profiles by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vitlet.errors import UsageError
from vitlet.partition.cluster.frame import HEADER_BYTES
from vitlet.partition.cluster.gather import Policy
from vitlet.partition.cluster.simulate import Conditions, simulate, spread
from vitlet.partition.cluster.simulated import Outages
from vitlet.partition.plan import Plan

COMPUTE = (0.01, 0.02, 0.04)  # seconds per slot
DELAY, RATE = 0.005, 10_000.0  # seconds one way; bytes a second
PIXELS = 8 * 8


@pytest.fixture
def plan(light: Plan) -> Plan:
    """A device per slot, with known times."""
    devices = tuple(replace(d, speed=1e6, link_latency=DELAY) for d in light.devices)
    slots = tuple(
        replace(slot, macs=int(seconds * 1e6), devices=(device.name,))
        for slot, seconds, device in zip(light.slots, COMPUTE, devices, strict=True)
    )
    return replace(light, devices=devices, slots=slots)


def test_latency_is_the_slowest_device_and_its_link(plan):
    told = simulate(plan, Conditions(requests=10))
    assert told.p50 == told.p99 == pytest.approx(max(COMPUTE) + 2 * DELAY)
    assert (told.full, told.degraded, told.unanswered, told.covered) == (1, 0, 0, 1)


def test_bytes_take_time_on_a_slow_link(plan):
    slow = replace(plan, devices=tuple(replace(d, link_rate=RATE) for d in plan.devices))
    there = (HEADER_BYTES + PIXELS) / RATE
    back = (HEADER_BYTES + 4 * plan.slots[2].features + 1) / RATE  # and the end of the query
    told = simulate(slow, Conditions(requests=5))
    assert told.p50 == pytest.approx(COMPUTE[2] + 2 * DELAY + there + back, abs=1e-3)


def test_throughput_is_that_of_the_slowest_device(plan):
    told = simulate(plan, Conditions(requests=200, window=4, policy=Policy(10.0, hedge=False)))
    assert told.throughput == pytest.approx(1 / COMPUTE[2], rel=0.03)


def test_replicas_answer_more_at_a_time_and_through_outages(plan):
    policy = Policy(10.0, hedge=False)
    busy = Conditions(requests=200, window=8, policy=policy)
    few, many = spread(plan, 3), spread(plan, 9)
    assert [len(slot.devices) for slot in many.slots] == [3, 3, 3]
    assert simulate(many, busy).throughput > 2 * simulate(few, busy).throughput
    away = Conditions(requests=400, outages=Outages(3600, 600))
    assert simulate(many, away).full > 0.97 > simulate(few, away).full


def test_availability_is_that_of_all_devices_together(plan):
    outages = Outages(3600, 400)
    told = simulate(plan, Conditions(requests=1000, outages=outages))
    up = outages.between / (outages.between + outages.lasting)
    assert told.full == pytest.approx(up**3, abs=0.04)
    assert told.covered == pytest.approx(up, abs=0.03)
    assert told.full + told.degraded + told.unanswered == pytest.approx(1)


def test_fewer_devices_than_slots_share_them(plan):
    two = spread(plan, 2)
    assert [slot.devices for slot in two.slots] == [("alpha",), ("beta",), ("alpha",)]
    told = simulate(two, Conditions(requests=5))
    assert told.p50 == pytest.approx(COMPUTE[0] + COMPUTE[2] + 2 * DELAY)


def test_a_seed_decides_everything(plan):
    conditions = Conditions(requests=50, loss=0.2, jitter=0.3, outages=Outages(100, 10), seed=3)
    assert simulate(plan, conditions) == simulate(plan, conditions)
    assert simulate(plan, conditions) != simulate(plan, replace(conditions, seed=4))


@pytest.mark.parametrize(
    "senseless",
    [
        {"requests": 0},
        {"window": 0},
        {"window": 100_000},
        {"loss": 1.0},
        {"jitter": -0.1},
        {"outages": Outages(-1, 1)},
        {"outages": Outages(1, 0)},
    ],
)
def test_senseless_conditions_are_refused(senseless):
    with pytest.raises(UsageError):
        Conditions(**senseless)


@pytest.mark.parametrize("count", [0, 1001])
def test_too_few_or_many_devices_are_refused(plan, count):
    with pytest.raises(UsageError, match="1 to 1000 devices"):
        spread(plan, count)
