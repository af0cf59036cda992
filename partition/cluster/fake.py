"""A network inside this process, driven by a clock that tests move: everything happens in order.

network = FakeNetwork(seed=1)
worker, coordinator = network.join("pi-1"), network.join("desk")
network.link("desk", "pi-1", delay=0.02, loss=0.3)     # one way
network.advance(0.1)
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from vitlet.partition.cluster.clock import FakeClock
from vitlet.partition.cluster.transport import (
    Handle,
    LinkState,
    OnDone,
    OnMessage,
    OnPresence,
    OnQuery,
    OnReply,
    Peer,
    matches,
)

_T = TypeVar("_T")


@dataclass(frozen=True)
class Link:
    """How messages go from one device to another.

    Attributes:
        delay: seconds that each takes.
        jitter: seconds added at random, up to this: messages overtake each other.
        loss: share of messages that never arrive.
        duplicate: share that arrive twice.
        rate: bytes per second; 0 for no limit. Messages on a link wait for each other.
        up: False when nothing goes through.
    """

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    rate: float = 0.0
    up: bool = True


class FakeNetwork:
    """Joins `FakeTransport`s and decides the fate of every message.

    Args:
        seed: of losses and jitter.
        lease: seconds after which a device behind a dead link counts as gone.
    """

    def __init__(self, seed: int = 0, lease: float = 1.5) -> None:
        self.clock = FakeClock()
        self.nodes: dict[str, FakeTransport] = {}
        self.lease = lease
        self.messages = 0
        self.bytes = 0
        self.served: dict[str, list[tuple[FakeTransport, str, OnQuery]]] = {}  # by exact key
        self.patterns: list[tuple[FakeTransport, str, OnQuery]] = []
        self._links: dict[tuple[str, str], Link] = {}
        self._busy: dict[tuple[str, str], float] = {}
        self._random = random.Random(seed)

    def join(self, name: str) -> FakeTransport:
        """Return the transport of a device; a device of the same name that was there is dead."""
        if name in self.nodes:
            self.kill(name)
        self.nodes[name] = FakeTransport(self, name)
        return self.nodes[name]

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.advance(seconds)

    def link(self, source: str, target: str, **how: float | bool) -> None:
        """Set how messages go from `source` to `target`; see `Link`."""
        self._links[source, target] = Link(**how)  # type: ignore[arg-type]

    def how(self, source: str, target: str) -> Link:
        """Return how messages go from `source` to `target`."""
        return Link() if source == target else self._links.get((source, target), Link())

    def cut(self, name: str) -> None:
        """Pull a device's cable: nothing arrives, and after the lease everybody knows."""
        for other in [*self.nodes]:
            for pair in ((name, other), (other, name)):
                self.link(*pair, up=False)
        self.clock.call_at(self.clock.now() + self.lease, lambda: self._lost(name))

    def kill(self, name: str) -> None:
        """End a device's process at once: its presence and its queries end."""
        node = self.nodes.pop(name, None)
        if node is not None:
            node.close()

    def targets(self, key: str) -> list[tuple[FakeTransport, str, OnQuery]]:
        """Return who answers a key or pattern: device, what it serves, and how."""
        if "*" not in key:
            near = [place for place in self.patterns if matches(place[1], key)]
            return [*self.served.get(key, ()), *near]
        every = [*self.patterns, *(p for places in self.served.values() for p in places)]
        return [p for p in every if matches(p[1], key) or matches(key, p[1])]

    def send(self, source: str, target: str, size: int, deliver: Callable[[], None]) -> None:
        """Let a message arrive, once, twice or never; one of 0 bytes, presence, is never lost."""
        self.messages += 1
        self.bytes += size
        link = self.how(source, target)
        if not link.up or (size and self._random.random() < link.loss):
            return
        start = self.clock.now()
        if link.rate:
            start = max(start, self._busy.get((source, target), 0.0)) + size / link.rate
            self._busy[source, target] = start
        copies = 2 if self._random.random() < link.duplicate else 1
        for _ in range(copies):
            arrival = start + link.delay + link.jitter * self._random.random()
            self.clock.call_at(arrival, deliver)

    def _lost(self, name: str) -> None:
        """Tell everybody that a device behind a dead link is gone, if the link is still dead."""
        lost = self.nodes.get(name)
        for node in [*self.nodes.values()]:
            if lost is not None and node is not lost and not self._links[name, node.name].up:
                for key in lost.present:
                    node.notice(key, False)


@dataclass
class _Query:
    key: str
    payload: bytes
    send: Callable[[bytes], None]
    end: Callable[[], None]

    def reply(self, payload: bytes) -> None:
        self.send(payload)

    def close(self) -> None:
        self.end()


@dataclass
class _Handle:
    end: Callable[[], None]
    is_open: bool = True

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self.end()


@dataclass
class FakeTransport:
    """One device's end of a `FakeNetwork`; see `vitlet.partition.cluster.transport.Transport`."""

    network: FakeNetwork
    name: str
    present: list[str] = field(default_factory=list)
    closed: bool = False
    _places: list[tuple[list[Any], Any]] = field(default_factory=list)
    _watched: list[tuple[str, OnPresence]] = field(default_factory=list)
    _subscribed: list[tuple[str, OnMessage]] = field(default_factory=list)

    def serve(self, key: str, on_query: OnQuery) -> Handle:
        """Answer the queries on a key or pattern."""
        places = self.network.patterns
        if "*" not in key:
            places = self.network.served.setdefault(key, [])
        place = (self, key, on_query)
        self._places.append((places, place))
        return self._keep(places, place)

    def query(
        self,
        key: str,
        payload: bytes,
        timeout: float,
        on_reply: OnReply,
        on_done: OnDone,
        lane: str | None = None,
    ) -> Handle:
        """Ask whoever serves a key."""
        network, me = self.network, self.name
        targets = network.targets(key)
        waiting = len(targets)

        def end() -> None:
            timer.cancel()
            on_done()

        handle = _Handle(end)
        timer = network.clock.call_at(network.clock.now() + timeout, handle.close)

        def one_less() -> None:
            nonlocal waiting
            waiting -= 1
            if waiting <= 0:
                handle.close()

        def ask(node: FakeTransport, pattern: str, on_query: OnQuery) -> None:
            def back(reply: bytes) -> None:
                def arrive() -> None:
                    if handle.is_open:
                        on_reply(reply)

                network.send(node.name, me, len(reply), arrive)

            def finish() -> None:
                # It may be lost, but it does not overtake the replies before it.
                def arrive() -> None:
                    late = network.how(node.name, me).jitter
                    network.clock.call_at(network.clock.now() + late, one_less)

                network.send(node.name, me, 1, arrive)

            name = key if "*" not in key else pattern
            if not node.closed:
                on_query(_Query(name, payload, back, finish))

        for node, pattern, on_query in targets:
            network.send(me, node.name, len(payload), partial(ask, node, pattern, on_query))
        if not targets:
            network.clock.call_at(network.clock.now(), handle.close)
        return handle

    def announce(self, key: str) -> Handle:
        """Be present under a key."""
        handle = self._keep(self.present, key, lambda: self._tell(key, False))
        self._tell(key, True)
        return handle

    def watch(self, pattern: str, on_presence: OnPresence) -> Handle:
        """Learn who is present now, and who comes and goes."""
        handle = self._keep(self._watched, (pattern, on_presence))
        for node in self.network.nodes.values():
            for key in [*node.present]:
                if matches(pattern, key):
                    self.network.send(node.name, self.name, 0, partial(on_presence, key, True))
        return handle

    def publish(self, key: str, payload: bytes) -> None:
        """Send to whoever subscribes."""
        for node in [*self.network.nodes.values()]:
            for pattern, on_message in [*node._subscribed]:
                if matches(pattern, key):
                    deliver = partial(on_message, key, payload)
                    self.network.send(self.name, node.name, len(payload), deliver)

    def subscribe(self, pattern: str, on_message: OnMessage) -> Handle:
        """Receive what is published under a pattern."""
        return self._keep(self._subscribed, (pattern, on_message))

    def links(self) -> LinkState:
        """Return what is connected."""
        others = [name for name in self.network.nodes if name != self.name]
        return LinkState(tuple(Peer(name, f"fake/{name}") for name in others))

    def notice(self, key: str, is_there: bool) -> None:
        """Tell this device's watchers that somebody came or went."""
        for pattern, on_presence in [*self._watched]:
            if matches(pattern, key):
                on_presence(key, is_there)

    def close(self) -> None:
        """Leave the network."""
        if self.closed:
            return
        self.closed = True
        gone, self.present = self.present, []
        for key in gone:
            self._tell(key, False)
        for places, place in self._places:
            if place in places:
                places.remove(place)
        for things in (self._places, self._watched, self._subscribed):
            things.clear()
        self.network.nodes.pop(self.name, None)

    def _tell(self, key: str, is_there: bool) -> None:
        for node in [*self.network.nodes.values()]:
            if node._watched:
                self.network.send(self.name, node.name, 0, partial(node.notice, key, is_there))

    def _keep(self, place: list[_T], thing: _T, end: Callable[[], None] | None = None) -> Handle:
        place.append(thing)

        def remove() -> None:
            if thing in place:
                place.remove(thing)
                if end is not None:
                    end()

        return _Handle(remove)
