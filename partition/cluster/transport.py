"""What carries frames between devices: queries with any number of replies, presence, publishing.

Two carriers exist: `zenoh_transport` for networks, and `fake` for tests and simulations. Keys are
paths such as `vit/home/infer/1f2e.../0/pi-1`; a `*` in a pattern stands for one part, `**` at the
end for any number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Peer:
    """A device at the other end of a link.

    Attributes:
        id: of its process on the transport.
        address: where it is, such as "tcp/192.168.1.20:7447".
        certificate: the common name in its certificate; empty without TLS.
    """

    id: str
    address: str
    certificate: str = ""


@dataclass(frozen=True)
class LinkState:
    """What a transport can say about its connections.

    Attributes:
        peers: the devices that are connected.
        unreachable: endpoint that `connect` names -> why nothing is connected to it.
    """

    peers: tuple[Peer, ...] = ()
    unreachable: dict[str, str] = field(default_factory=dict)


class Query(Protocol):
    """A query that arrived. It is answered once or more, on any thread, then closed."""

    key: str
    payload: bytes

    def reply(self, payload: bytes) -> None:
        """Send one reply; a query that nobody waits for any more is not an error."""
        ...

    def close(self) -> None:
        """Tell the asker that no more replies come from here."""
        ...


class Handle(Protocol):
    """Something that stays until it is closed: a served key, a presence, a query under way."""

    def close(self) -> None:
        """End it; again does nothing."""
        ...


OnReply = Callable[[bytes], None]
OnDone = Callable[[], None]
OnQuery = Callable[[Query], None]
OnPresence = Callable[[str, bool], None]
OnMessage = Callable[[str, bytes], None]


class Transport(Protocol):
    """Carries bytes. Callbacks come on the transport's own threads and must return quickly.

    A callback may come while the transport holds locks of its own: it must not ask without a lane,
    nor wait for a lock under which somebody asks.
    """

    def serve(self, key: str, on_query: OnQuery) -> Handle:
        """Answer the queries on a key or pattern."""
        ...

    def query(
        self,
        key: str,
        payload: bytes,
        timeout: float,
        on_reply: OnReply,
        on_done: OnDone,
        lane: str | None = None,
    ) -> Handle:
        """Ask whoever serves a key.

        Args:
            key: of one or, with a pattern, several devices.
            payload: what to ask.
            timeout: seconds after which `on_done` comes at the latest.
            on_reply: called for each reply.
            on_done: called once, after the last reply: everybody asked has answered or is gone,
                or the time is up, or the handle was closed.
            lane: queries of one lane are sent in order by a thread of its own, so that a peer that
                takes nothing holds up only its lane. None sends in the caller's thread, which is
                quicker and waits for the peer when its buffers are full; not in a callback.
        """
        ...

    def announce(self, key: str) -> Handle:
        """Be present under a key for as long as this process lives and the handle is open."""
        ...

    def watch(self, pattern: str, on_presence: OnPresence) -> Handle:
        """Learn who is present now, and who comes and goes: key, and whether it is there."""
        ...

    def publish(self, key: str, payload: bytes) -> None:
        """Send to whoever subscribes; what a slow subscriber cannot take is dropped."""
        ...

    def subscribe(self, pattern: str, on_message: OnMessage) -> Handle:
        """Receive what is published under a pattern."""
        ...

    def links(self) -> LinkState:
        """Return what is connected, and what should be and is not."""
        ...

    def close(self) -> None:
        """Leave the network; again does nothing."""
        ...


def matches(pattern: str, key: str) -> bool:
    """Tell whether a key is one that a pattern stands for."""
    return _matches(pattern.split("/"), key.split("/"))


def _matches(pattern: Sequence[str], key: Sequence[str]) -> bool:
    for place, part in enumerate(pattern):
        if part == "**":
            return True
        if place >= len(key) or part not in ("*", key[place]):
            return False
    return len(pattern) == len(key)
