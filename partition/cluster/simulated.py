"""Devices that exist in a simulation only: they take the time that their profile says.

The coordinator of a simulation is the real one; these answer it on a `FakeNetwork`. A device
computes one request after the other; what its answers hold means nothing.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vitlet.partition.cluster.clock import Clock
from vitlet.partition.cluster.control import Message, pack
from vitlet.partition.cluster.fake import FakeNetwork, FakeTransport
from vitlet.partition.cluster.frame import (
    PLAN_BYTES,
    VERSION,
    Body,
    Code,
    Frame,
    Kind,
    answer,
    decode,
    encode,
)
from vitlet.partition.cluster.topics import Topics
from vitlet.partition.cluster.transport import Query
from vitlet.partition.devices import Device
from vitlet.partition.plan import Plan

QUEUE = 64  # requests that wait at a device, as in `vitlet.partition.cluster.worker`


class Processor:
    """Does jobs that take a known time: `cores` at once, the others in order.

    Args:
        clock: the simulation's.
        cores: how many at once.
    """

    def __init__(self, clock: Clock, cores: int = 1) -> None:
        self._clock = clock
        self._free = cores
        self._waiting: deque[tuple[float, Callable[[], None]]] = deque()

    @property
    def waiting(self) -> int:
        """How many jobs have not begun."""
        return len(self._waiting)

    def run(self, seconds: float, done: Callable[[], None]) -> None:
        """Call `done` when a job of so many seconds is finished."""
        self._waiting.append((seconds, done))
        self._begin()

    def _begin(self) -> None:
        while self._free and self._waiting:
            seconds, done = self._waiting.popleft()
            self._free -= 1
            self._clock.call_at(self._clock.now() + seconds, lambda done=done: self._end(done))  # type: ignore[misc]

    def _end(self, done: Callable[[], None]) -> None:
        self._free += 1
        done()
        self._begin()


@dataclass(frozen=True)
class Outages:
    """How often a device is away.

    Attributes:
        between: mean seconds from coming to going; 0 for never.
        lasting: mean seconds from going to coming.
    """

    between: float = 0.0
    lasting: float = 60.0


class SimulatedDevice:
    """One device: joins the network, answers for its slots, leaves and comes back.

    Args:
        network: the simulation's.
        plan: what is run.
        hash_: of the plan, which takes long to compute for a thousand devices.
        device: its profile.
        slots: that it holds.
        topics: of the cluster.
        jitter: share by which a computing time varies at random, up and down.
        outages: how often it is away.
        seed: of everything random about it.
    """

    def __init__(
        self,
        network: FakeNetwork,
        plan: Plan,
        hash_: str,
        device: Device,
        slots: tuple[int, ...],
        topics: Topics,
        *,
        jitter: float = 0.0,
        outages: Outages | None = None,
        seed: int = 0,
    ) -> None:
        self._network = network
        self._plan = plan
        self._hash = hash_
        self._device = device
        self._slots = slots
        self._topics = topics
        self._jitter = jitter
        self._outages = outages or Outages()
        self._random = random.Random(f"{seed} {device.name}")
        self._epoch = 0
        self._transport: FakeTransport | None = None
        self._processor = Processor(network.clock)
        cycle = self._outages.between + self._outages.lasting
        if self._random.random() * cycle < self._outages.between or not self._outages.between:
            self.come()
        else:  # as at any time, some are away
            self._later(self._outages.lasting, self.come)

    def come(self) -> None:
        """Join, as a new process that has loaded its slots."""
        self._epoch += 1
        self._processor = Processor(self._network.clock)
        self._transport = transport = self._network.join(self._device.name)
        short = bytes.fromhex(self._hash)[:PLAN_BYTES].hex()
        for index in self._slots:
            transport.serve(self._topics.infer(short, index, self._device.name), self._on_request)
        transport.serve(self._topics.about(self._device.name), self._on_about)
        transport.announce(self._topics.live(self._device.name, self._epoch))
        self._later(self._outages.between, self.go)

    def go(self) -> None:
        """Leave without a word."""
        self._network.kill(self._device.name)
        self._later(self._outages.lasting, self.come)

    def _later(self, mean: float, call: Callable[[], None]) -> None:
        if self._outages.between > 0:
            wait = self._random.expovariate(1 / mean)
            self._network.clock.call_at(self._network.clock.now() + wait, call)

    def _on_about(self, query: Query) -> None:
        slots = [{"plan": self._hash, "slot": slot} for slot in self._slots]
        about = {"device": self._device.name, "epoch": self._epoch, "wire": VERSION, "slots": slots}
        query.reply(pack(Message(about, epoch=self._epoch)))
        query.close()

    def _on_request(self, query: Query) -> None:
        request, images = decode(query.payload)
        epoch, arrived = self._epoch, self._network.clock.now()
        if self._processor.waiting >= QUEUE:
            refusal = answer(request, Kind.FAILURE, device=self._device.name, code=Code.BUSY)
            query.reply(encode(refusal))
            query.close()
            return
        slot = self._plan.slots[request.slot]
        seconds = self._device.compute_seconds(slot.macs * len(images))
        seconds *= 1 + self._jitter * self._random.uniform(-1, 1)

        def done() -> None:
            if epoch == self._epoch:  # else the process that took it is gone
                self._reply(query, request, len(images), slot.features, seconds, arrived)

        self._processor.run(seconds, done)

    def _reply(
        self, query: Query, request: Frame, rows: int, width: int, seconds: float, arrived: float
    ) -> None:
        waited = self._network.clock.now() - arrived - seconds
        reply = answer(
            request, Kind.REPLY, device=self._device.name, compute=int(seconds * 1e6),
            queue=max(0, int(waited * 1e6)),
        )  # fmt: skip
        query.reply(encode(reply, Body.of(np.zeros((rows, width), np.float32))))
        query.close()
