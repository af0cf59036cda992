"""Carries frames over Zenoh: peers without a broker, mutual TLS, access by certificate name.

A refused or unreachable peer raises nothing in Zenoh, which goes on trying in silence; so
`ZenohTransport.links` compares the links that exist with the endpoints that were asked for, and
tries those that are missing itself to learn the reason.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vitlet._extras import require
from vitlet.errors import UsageError
from vitlet.partition.cluster.beacon import Beacon
from vitlet.partition.cluster.endpoints import check_exposure, endpoint, resolved
from vitlet.partition.cluster.identity import CA, CERTIFICATE, KEY, Identity
from vitlet.partition.cluster.reach import why_unreachable
from vitlet.partition.cluster.topics import ROOT
from vitlet.partition.cluster.transport import (
    Handle,
    LinkState,
    OnDone,
    OnMessage,
    OnPresence,
    OnQuery,
    OnReply,
    Peer,
)

LEASE = 1.5  # seconds of silence after which a peer counts as gone: a pulled cable
RETRY = (0.1, 0.5)  # seconds between attempts to connect, at first and at most
MAX_MESSAGE = 34 << 20  # bytes, a little over the largest frame
LANE_LENGTH = 256


@dataclass(frozen=True)
class Network:
    """How a device takes part; see `ZenohTransport`.

    Attributes:
        listen: addresses to be found at.
        connect: addresses of peers to stay connected to.
        identity: certificates; None for none.
        insecure_lan: allow addresses off loopback without certificates.
        scout: network interface to look for peers on by multicast ("auto" for all of them); "" for
            none. What is found this way is an address; it is not trusted.
        beacon: cluster whose workers are called to `listen` by UDP too; "" for none.
    """

    listen: tuple[str, ...] = ()
    connect: tuple[str, ...] = ()
    identity: Identity | None = None
    insecure_lan: bool = False
    scout: str = ""
    beacon: str = ""

    def checked(self) -> Network:
        """Return it with the addresses spelled out.

        Raises:
            UsageError: a senseless address, or one off loopback without certificates.
        """
        secure = self.identity is not None
        listen = tuple(endpoint(a, secure=secure, option="--listen") for a in self.listen)
        connect = tuple(endpoint(a, secure=secure, option="--connect") for a in self.connect)
        check_exposure((*listen, *connect), secure=secure, insecure_lan=self.insecure_lan)
        if self.scout and not secure and not self.insecure_lan:
            raise UsageError("--scout looks beyond this machine: it needs --keys or --insecure-lan")
        return replace(self, listen=listen, connect=connect)


class ZenohTransport:
    """A device's end of a Zenoh network; see `vitlet.partition.cluster.transport.Transport`.

    Args:
        network: addresses and certificates.

    Raises:
        UsageError: an address that makes no sense, is in use, or may not be used.
        MissingDependencyError: eclipse-zenoh is not installed.
    """

    def __init__(self, network: Network) -> None:
        self._zenoh = require("zenoh", extra="edge", why="reach other devices")
        self.network = network.checked()
        config = self._zenoh.Config()
        for key, value in settings(self.network).items():
            config.insert_json5(key, json.dumps(value))
        try:
            self._session = self._zenoh.open(config)
        except self._zenoh.ZError as error:
            raise UsageError(_open_message(str(error), self.network)) from None
        self._beacon: Beacon | None = None
        if self.network.beacon and self.network.listen:
            port = int(self.network.listen[0].rsplit(":", 1)[1])
            secure = self.network.identity is not None
            self._beacon = Beacon(self.network.beacon, port, secure)
        self._lanes: dict[str, _Lane] = {}
        self._lock = threading.Lock()
        self._open = True

    def serve(self, key: str, on_query: OnQuery) -> Handle:
        """Answer the queries on a key or pattern."""

        def arrived(query: Any) -> None:
            on_query(_Query(query))

        return _Undeclare(self._session.declare_queryable(key, self._callback(arrived)))

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
        zenoh = self._zenoh
        token = zenoh.CancellationToken()
        once = _Once(on_done)

        def arrived(reply: Any) -> None:
            sample = reply.ok
            if sample is not None:
                on_reply(sample.payload.to_bytes())

        def send() -> None:
            try:
                self._session.get(
                    key,
                    zenoh.handlers.Callback(arrived, once, indirect=False),
                    target=zenoh.QueryTarget.ALL,
                    consolidation=zenoh.ConsolidationMode.NONE,
                    timeout=max(timeout, 0.001),
                    congestion_control=zenoh.CongestionControl.BLOCK,
                    payload=payload,
                    cancellation_token=token,
                    express=True,
                )
            except zenoh.ZError:  # the session was closed: nobody can answer
                once()

        if lane is None:
            send()
        elif not self._lane(lane).put(send):
            once()
        return _Cancel(token)

    def announce(self, key: str) -> Handle:
        """Be present under a key."""
        return _Undeclare(self._session.liveliness().declare_token(key))

    def watch(self, pattern: str, on_presence: OnPresence) -> Handle:
        """Learn who is present now, and who comes and goes."""
        put = self._zenoh.SampleKind.PUT

        def arrived(sample: Any) -> None:
            on_presence(str(sample.key_expr), sample.kind == put)

        return _Undeclare(
            self._session.liveliness().declare_subscriber(
                pattern, self._callback(arrived), history=True
            )
        )

    def publish(self, key: str, payload: bytes) -> None:
        """Send to whoever subscribes."""
        drop = self._zenoh.CongestionControl.DROP
        self._session.put(key, payload, congestion_control=drop)

    def subscribe(self, pattern: str, on_message: OnMessage) -> Handle:
        """Receive what is published under a pattern."""

        def arrived(sample: Any) -> None:
            on_message(str(sample.key_expr), sample.payload.to_bytes())

        return _Undeclare(self._session.declare_subscriber(pattern, self._callback(arrived)))

    def links(self) -> LinkState:
        """Return what is connected, and why an endpoint of `connect` is not."""
        peers = tuple(
            Peer(str(link.zid), str(link.dst), link.auth_identifier or "")
            for link in self._session.info.links()
        )
        there = {peer.address for peer in peers}
        missing = [a for a in self.network.connect if not resolved(a) & there]
        reasons = {a: why_unreachable(a, self.network.identity) for a in missing}
        return LinkState(peers, reasons)

    def close(self) -> None:
        """Leave the network."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            lanes = [*self._lanes.values()]
        if self._beacon is not None:
            self._beacon.close()
        for lane in lanes:
            lane.close()
        self._session.close()

    def _callback(self, function: Callable[[Any], None]) -> Any:
        """Return a handler that is called on Zenoh's own thread: one thread less to wake."""
        return self._zenoh.handlers.Callback(function, None, indirect=False)

    def _lane(self, name: str) -> _Lane:
        with self._lock:
            if name not in self._lanes:
                self._lanes[name] = _Lane(name)
            return self._lanes[name]


def settings(network: Network) -> dict[str, Any]:
    """Return Zenoh's configuration for a checked network: key -> value."""
    found: dict[str, Any] = {
        "mode": "peer",
        "listen/endpoints": list(network.listen),
        "connect/endpoints": list(network.connect),
        "connect/timeout_ms": -1,  # go on trying
        "connect/exit_on_failure": False,
        "connect/retry": {
            "period_init_ms": int(RETRY[0] * 1000),
            "period_max_ms": int(RETRY[1] * 1000),
            "period_increase_factor": 2,
        },
        "listen/exit_on_failure": True,
        "scouting/multicast/enabled": bool(network.scout),
        "scouting/gossip/enabled": True,
        "open/return_conditions": {"connect_scouted": False, "declares": False},
        "transport/link/tx/lease": int(LEASE * 1000),
        "transport/link/rx/max_message_size": MAX_MESSAGE,
        "transport/link/tx/queue/congestion_control/block/wait_before_close": int(LEASE * 1e6),
        "transport/shared_memory/enabled": False,
        "adminspace/enabled": False,
    }
    if network.scout:
        found["scouting/multicast/interface"] = network.scout
    if network.identity is not None:
        found["transport/link/tls"] = tls(network.identity)
        found["transport/link/protocols"] = ["tls"]
        found["access_control"] = access(network.identity)
    return found


def tls(identity: Identity) -> dict[str, Any]:
    """Return the settings of mutual TLS: each side proves its name with a certificate."""
    certificate, key = identity.file(CERTIFICATE), identity.file(KEY)
    return {
        "root_ca_certificate": identity.file(CA),
        "listen_certificate": certificate,
        "listen_private_key": key,
        "connect_certificate": certificate,
        "connect_private_key": key,
        "enable_mtls": True,
        "verify_name_on_connect": False,  # names in the roster count, not addresses
        "close_link_on_expiration": True,
    }


def access(identity: Identity) -> dict[str, Any]:
    """Return who may send what: nothing, but for what the roster's names need."""
    keys = [f"{ROOT}/{identity.roster.cluster}/**"]
    asks = ["query", "liveliness_query", "declare_liveliness_subscriber", "declare_subscriber"]
    answers = ["reply", "declare_queryable", "liveliness_token", "put"]
    # Seen from a worker: coordinators ask and it answers; workers have nothing to say to another.
    # Seen from a coordinator: workers answer; and coordinators may be asked like workers.
    rules = [
        _rule("asks-in", "ingress", asks, keys),
        _rule("answers-out", "egress", answers, keys),
        _rule("asks-out", "egress", asks, keys),
        _rule("answers-in", "ingress", answers, keys),
    ]
    roster = identity.roster
    policies = [("coordinators", ["asks-in", "answers-out"])]
    subjects = [{"id": "coordinators", "cert_common_names": list(roster.coordinators)}]
    if identity.is_coordinator:
        policies.append(("workers", ["asks-out", "answers-in"]))
        subjects.append({"id": "workers", "cert_common_names": list(roster.workers)})
    return {
        "enabled": True,
        "default_permission": "deny",
        "rules": rules,
        "subjects": [subject for subject in subjects if subject["cert_common_names"]],
        "policies": [
            {"rules": names, "subjects": [subject]}
            for subject, names in policies
            if any(s["id"] == subject and s["cert_common_names"] for s in subjects)
        ],
    }


def _rule(name: str, flow: str, messages: Sequence[str], keys: Sequence[str]) -> dict[str, Any]:
    return {
        "id": name, "permission": "allow", "flows": [flow], "messages": list(messages),
        "key_exprs": list(keys),
    }  # fmt: skip


def _open_message(error: str, network: Network) -> str:
    if "in use" in error:
        return (
            f"{', '.join(network.listen)} is in use: another worker or coordinator runs there; "
            "choose another --listen address"
        )
    return f"cannot join the network: {' '.join(error.split())[:300]}"


class _Query:
    """A query of Zenoh; it ends for the asker when it is dropped."""

    def __init__(self, query: Any) -> None:
        self._query = query
        self.key = str(query.key_expr)
        self.payload: bytes = query.payload.to_bytes() if query.payload is not None else b""

    def reply(self, payload: bytes) -> None:
        self._query.reply(self._query.key_expr, payload)

    def close(self) -> None:
        self._query.drop()


class _Lane:
    """Sends one message after the other, so that a peer that takes none holds up only its own."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(LANE_LENGTH)
        self._thread = threading.Thread(target=self._run, name=f"vitlet-lane-{name}", daemon=True)
        self._thread.start()

    def put(self, job: Callable[[], None]) -> bool:
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            return False
        return True

    def close(self) -> None:
        self.put(_nothing)
        try:
            self._jobs.put(None, timeout=1.0)
        except queue.Full:
            return  # stuck on a dead peer; the thread ends with the process
        self._thread.join(1.0)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


class _Once:
    """A call that is made the first time only."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            call, self._call = self._call, None
        if call is not None:
            call()


@dataclass(frozen=True)
class _Cancel:
    token: Any

    def close(self) -> None:
        self.token.cancel()


class _Undeclare:
    def __init__(self, thing: Any) -> None:
        self._thing = thing

    def close(self) -> None:
        thing, self._thing = self._thing, None
        if thing is not None:
            thing.undeclare()


def _nothing() -> None:
    return
