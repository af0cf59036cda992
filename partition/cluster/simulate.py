"""What will a plan do on N devices? Latency, throughput, availability, before one is bought.

The coordinator is the real one, with its retries, hedges and deadlines; devices and links are
simulated from their profiles (`vitlet.partition.devices`) on a clock that does not wait. Of what a
device does, computing and the link count; the coordinator's own work takes no time.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from vitlet.errors import DeadlineError, UsageError
from vitlet.partition.cluster.answer import Answer
from vitlet.partition.cluster.coordinator import MAX_PENDING, Coordinator
from vitlet.partition.cluster.fake import FakeNetwork
from vitlet.partition.cluster.gather import Policy
from vitlet.partition.cluster.simulated import Outages, SimulatedDevice
from vitlet.partition.cluster.threads import DirectJobs
from vitlet.partition.cluster.topics import Topics
from vitlet.partition.devices import Device
from vitlet.partition.plan import Plan

MAX_DEVICES = 1000
DESK = "the-coordinator"
_WARMUP = 25  # requests after which the coordinator knows how long an answer usually takes
_JOIN = 2.0  # simulated seconds for everybody to be found
_EVENTS = 500  # times that some device goes while requests are sent, about


@dataclass(frozen=True)
class Conditions:
    """What is simulated.

    Attributes:
        requests: of one image each.
        window: requests under way at a time.
        loss: share of messages that are lost.
        jitter: share by which computing times vary.
        outages: how often each device is away; requests are then spread over many of them.
        policy: the coordinator's.
        seed: of everything random.
    """

    requests: int = 500
    window: int = 1
    loss: float = 0.0
    jitter: float = 0.0
    outages: Outages = field(default_factory=Outages)
    policy: Policy = field(default_factory=Policy)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.requests < 1 or not 1 <= self.window <= MAX_PENDING:
            raise UsageError(f"expected requests, and 1 to {MAX_PENDING} of them under way")
        if not (0 <= self.loss < 1 and 0 <= self.jitter < 1):
            raise UsageError("loss and jitter are shares from 0 to below 1")
        if self.outages.between < 0 or self.outages.lasting <= 0:
            raise UsageError("the times of outages must be above 0")


@dataclass(frozen=True)
class Forecast:
    """What came out.

    Attributes:
        devices: how many there were.
        p50, p99: seconds from submission to answer.
        throughput: answers per second with a full window; 0 when requests were spread.
        full, degraded, unanswered: shares of the requests.
        covered: mean share of the classes whose slot answered.
    """

    devices: int
    p50: float
    p99: float
    throughput: float
    full: float
    degraded: float
    unanswered: float
    covered: float

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def spread(plan: Plan, count: int) -> Plan:
    """Return the plan over `count` devices: slots shared, or with replicas, evenly.

    Device i has the profile of the plan's device i, and beyond those that of i modulo their number.

    Raises:
        UsageError: too many or too few devices.
    """
    if not 1 <= count <= MAX_DEVICES:
        raise UsageError(f"a simulation has 1 to {MAX_DEVICES} devices, got {count}")
    known = plan.devices
    devices = tuple(
        replace(known[i % len(known)], name=known[i].name if i < len(known) else f"more-{i}")
        for i in range(count)
    )
    slots = []
    for slot in plan.slots:
        every = range(slot.index % count, count, len(plan.slots))
        slots.append(replace(slot, devices=tuple(devices[i].name for i in every)))
    return replace(plan, devices=devices, slots=tuple(slots))


def simulate(plan: Plan, conditions: Conditions | None = None) -> Forecast:
    """Run a plan on simulated devices.

    Args:
        plan: as `load_plan` opened it, or `spread` changed it.
        conditions: what is asked of it, and what goes wrong.

    Raises:
        BundleError: the plan's fusion is damaged.
        UsageError: a slot has no device.
    """
    conditions = conditions or Conditions()
    if not all(slot.devices for slot in plan.slots):
        raise UsageError("every slot needs a device")
    network, hash_ = FakeNetwork(seed=conditions.seed), plan.hash
    topics = Topics("simulation")
    for device in plan.devices:
        _link(network, device, conditions.loss)
    for device in plan.devices:
        held = tuple(slot.index for slot in plan.slots if device.name in slot.devices)
        SimulatedDevice(
            network, plan, hash_, device, held, topics, jitter=conditions.jitter,
            outages=conditions.outages, seed=conditions.seed,
        )  # fmt: skip
    coordinator = Coordinator(
        plan, network.join(DESK), cluster=topics.cluster, policy=conditions.policy,
        clock=network.clock, fuse=DirectJobs(), control=DirectJobs(),
    )  # fmt: skip
    coordinator.start()
    try:
        network.advance(_JOIN)
        for _ in range(_WARMUP):
            coordinator.submit(_image(plan)).add_done_callback(_end)
            network.advance(conditions.policy.deadline + 1e-6)
        begin = network.clock.now()
        if conditions.outages.between:
            ends = _one_by_one(network, coordinator, conditions)
            throughput = 0.0
        else:
            ends = _windowed(network, coordinator, conditions)
            throughput = len(ends) / max(network.clock.now() - begin, 1e-9)
        return _forecast(plan, ends, throughput)
    finally:
        coordinator.close()


def _link(network: FakeNetwork, device: Device, loss: float) -> None:
    how = {"delay": device.link_latency, "rate": device.link_rate or 0.0, "loss": loss}
    network.link(DESK, device.name, **how)
    network.link(device.name, DESK, **how)


def _image(plan: Plan) -> Any:
    return np.zeros((1, *plan.preprocess.size, plan.preprocess.channels), np.uint8)


def _windowed(
    network: FakeNetwork, coordinator: Coordinator, conditions: Conditions
) -> list[Answer | None]:
    """Send requests as fast as the window lets them; return how they ended."""
    image, left, ends = _image(coordinator.plan), conditions.requests, []

    def ended(future: Future[Answer]) -> None:
        ends.append(_end(future))
        # Not from here: the coordinator is still busy with the one that ended.
        network.clock.call_at(network.clock.now(), send)

    def send() -> None:
        nonlocal left
        if left > 0:
            left -= 1
            coordinator.submit(image).add_done_callback(ended)

    for _ in range(conditions.window):
        send()
    while len(ends) < conditions.requests:
        network.clock.step()
    return ends


def _one_by_one(
    network: FakeNetwork, coordinator: Coordinator, conditions: Conditions
) -> list[Answer | None]:
    """Send requests spread over many outages; return how they ended."""
    outages, ends = conditions.outages, []
    periods = max(1.0, _EVENTS / len(coordinator.plan.devices))
    pause = periods * (outages.between + outages.lasting) / conditions.requests
    for _ in range(conditions.requests):
        future = coordinator.submit(_image(coordinator.plan))
        network.advance(max(pause, conditions.policy.deadline + 1e-6))
        ends.append(_end(future))
    return ends


def _end(future: Future[Answer]) -> Answer | None:
    try:
        return future.result(timeout=0)
    except DeadlineError:
        return None


def _forecast(plan: Plan, ends: Sequence[Answer | None], throughput: float) -> Forecast:
    answers = [answer for answer in ends if answer is not None]
    times = sorted(answer.latency for answer in answers) or [0.0]
    covered = sum(len(answer.covered_classes) for answer in answers) / len(plan.labels)
    count, degraded = len(ends), sum(answer.degraded for answer in answers)
    return Forecast(
        devices=len(plan.devices),
        p50=times[len(times) // 2],
        p99=times[min(len(times) - 1, int(len(times) * 0.99))],
        throughput=throughput,
        full=(len(answers) - degraded) / count,
        degraded=degraded / count,
        unanswered=(count - len(answers)) / count,
        covered=covered / count,
    )
