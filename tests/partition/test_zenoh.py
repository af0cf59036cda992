"""Workers and coordinators over real sockets on this machine, plain and encrypted."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vitlet.errors import UsageError
from vitlet.partition.cluster import certificates
from vitlet.partition.cluster.coordinator import Coordinator
from vitlet.partition.cluster.gather import Policy
from vitlet.partition.cluster.identity import load_identity
from vitlet.partition.cluster.transport import Transport
from vitlet.partition.cluster.worker import Worker
from vitlet.partition.cluster.zenoh_transport import Network, ZenohTransport

SOON = 20.0  # seconds that nothing here should take, even on a busy machine


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], object]) -> bool:
    """Wait for a condition that no event tells of."""
    end = time.monotonic() + SOON
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(condition())


@pytest.fixture
def closing() -> Iterator[Callable[[object], object]]:
    """Close what a test opened, the newest first."""
    things: list[object] = []

    def keep(thing: object) -> object:
        things.append(thing)
        return thing

    yield keep
    for thing in reversed(things):
        thing.close()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki") / "home.keys"
    certificates.init(folder)
    for name in ("alpha", "beta", "gamma", "revoked"):
        certificates.issue(folder, name)
    certificates.issue(folder, "expired", days=-0.01)
    return folder


def ask(transport: Transport, key: str, payload: bytes, timeout: float = SOON) -> list[bytes]:
    replies: list[bytes] = []
    done = threading.Event()
    transport.query(key, payload, timeout, replies.append, done.set)
    assert done.wait(timeout + SOON)
    return replies


@pytest.fixture
def pair(closing) -> tuple[ZenohTransport, ZenohTransport]:
    port = f"127.0.0.1:{free_port()}"
    first = closing(ZenohTransport(Network(listen=(port,))))
    second = closing(ZenohTransport(Network(listen=("127.0.0.1:0",), connect=(port,))))
    assert until(lambda: first.links().peers and second.links().peers)
    return first, second


def test_a_query_is_answered_and_ends(pair):
    first, second = pair

    def echo(query):
        query.reply(query.key.encode() + b" " + query.payload)
        query.close()

    second.serve("vit/home/echo/*", echo)
    assert until(lambda: ask(first, "vit/home/echo/1", b"hi") == [b"vit/home/echo/1 hi"])
    assert ask(first, "vit/home/nobody", b"hi") == []


def test_presence_comes_and_goes(pair):
    first, second = pair
    seen: list[tuple[str, bool]] = []
    handle = second.announce("vit/home/live/pi/1")
    first.watch("vit/home/live/*/*", lambda key, there: seen.append((key, there)))
    assert until(lambda: seen == [("vit/home/live/pi/1", True)])
    handle.close()
    assert until(lambda: seen[1:] == [("vit/home/live/pi/1", False)])


def test_what_is_published_arrives(pair):
    first, second = pair
    seen: list[tuple[str, bytes]] = []
    first.subscribe("vit/home/metrics/*", lambda key, payload: seen.append((key, payload)))
    assert until(lambda: second.publish("vit/home/metrics/pi", b"42") or seen)
    assert seen[0] == ("vit/home/metrics/pi", b"42")


def test_a_port_in_use_is_one_clear_line(pair):
    first, _ = pair
    with pytest.raises(UsageError, match="is in use: another worker or coordinator"):
        ZenohTransport(Network(listen=first.network.listen))


def test_an_address_where_nobody_listens_is_reported(closing):
    port = free_port()
    transport = closing(ZenohTransport(Network(connect=(f"127.0.0.1:{port}",))))
    assert transport.links().unreachable == {
        f"tcp/127.0.0.1:{port}": "connection refused: nothing listens there"
    }


def test_off_loopback_certificates_are_needed():
    for network in (Network(listen=("0.0.0.0",)), Network(connect=("192.0.2.1",))):
        with pytest.raises(UsageError, match="vitlet partition keys init"):
            ZenohTransport(network)
    assert Network(listen=("0.0.0.0",), insecure_lan=True).checked().listen == ("tcp/0.0.0.0:7446",)


def start(closing, plan, tmp_path, networks, policy=None):
    """A coordinator on the first network, and workers on the others."""
    lines: list[str] = []
    first, *others = networks
    coordinator = closing(
        Coordinator(
            plan, ZenohTransport(first), policy=policy or Policy(deadline=SOON),
            identity=first.identity, log=lines.append,
        )
    )  # fmt: skip
    coordinator.start()
    for name, network in zip(("alpha", "beta", "gamma"), others, strict=False):
        worker = closing(
            Worker(
                name, ZenohTransport(network), cache=tmp_path / name, memory=10**8,
                identity=network.identity, log=lines.append,
            )
        )  # fmt: skip
        worker.start()
    return coordinator, lines


def test_a_cluster_answers_as_one_process(closing, light, tmp_path, images, expected):
    port = f"127.0.0.1:{free_port()}"
    workers = [Network(listen=("127.0.0.1:0",), connect=(port,))] * 3
    coordinator, _ = start(closing, light, tmp_path, [Network(listen=(port,)), *workers])
    assert coordinator.wait_ready(SOON)
    answers = list(coordinator.stream([images] * 20, window=4))
    assert all((answer.logits == expected(images)).all() for answer in answers)
    assert not any(answer.missing for answer in answers)
    twin = closing(Worker("beta", ZenohTransport(workers[0]), cache=tmp_path / "twin"))
    with pytest.raises(UsageError, match="'beta' is in the cluster already"):
        assert until(lambda: twin.start())


def test_workers_wait_for_a_coordinator_that_comes_later(closing, light, tmp_path, images):
    port = f"127.0.0.1:{free_port()}"
    transport = closing(ZenohTransport(Network(listen=("127.0.0.1:0",), connect=(port,))))
    closing(Worker("alpha", transport, cache=tmp_path / "alpha", memory=10**8)).start()
    assert list(transport.links().unreachable) == [f"tcp/{port}"]
    coordinator, _ = start(closing, light, tmp_path, [Network(listen=(port,))])
    assert coordinator.wait_ready(SOON, slots=1)
    assert until(lambda: not transport.links().unreachable)


def test_a_plan_is_not_taken_up_again_when_its_signer_has_left_the_roster(
    closing, light, tmp_path, keys
):
    from vitlet.partition.cluster.cache import Cache

    Cache(tmp_path / "alpha").save_plan(light, {"certificate": "", "signature": ""})
    lines: list[str] = []
    identity = load_identity(keys / "members" / "alpha")
    transport = closing(ZenohTransport(Network(identity=identity)))
    worker = closing(
        Worker("alpha", transport, cache=tmp_path / "alpha", identity=identity, log=lines.append)
    )
    worker.start()
    assert len(lines) == 1 and "is not taken up again: the plan is not signed" in lines[0]


def test_an_encrypted_cluster_answers_and_signs_its_plan(
    closing, light, tmp_path, images, expected, keys
):
    port = f"127.0.0.1:{free_port()}"
    identity = {n: load_identity(keys / "members" / n) for n in ("desk", "alpha", "beta", "gamma")}
    networks = [Network(listen=(port,), identity=identity["desk"])]
    networks += [
        Network(listen=("127.0.0.1:0",), connect=(port,), identity=identity[name])
        for name in ("alpha", "beta", "gamma")
    ]
    coordinator, lines = start(closing, light, tmp_path, networks)
    assert coordinator.wait_ready(SOON), lines
    assert (coordinator.infer(images).logits == expected(images)).all()
    accepted = f"accepted plan {light.hash[:12]} from {identity['desk'].name}"
    assert lines.count(accepted) >= 3


def refused(closing, light, tmp_path, keys, network) -> dict[str, str]:
    """A cluster in which one worker may not take part: it must not be seen."""
    port = network.connect[0]
    desk = Network(listen=(port,), identity=load_identity(keys / "members" / "desk"))
    good = Network(connect=(port,), identity=load_identity(keys / "members" / "alpha"))
    coordinator, _ = start(closing, light, tmp_path, [desk, good])
    assert until(lambda: coordinator.members.all())
    transport = closing(ZenohTransport(network))
    transport.announce(coordinator.topics.live("beta", 7))
    time.sleep(1.0)  # nothing to wait for: it must not come
    assert [member.device for member in coordinator.members.all()] == ["alpha"]
    return transport.links().unreachable


def test_a_certificate_of_another_cluster_is_refused(closing, light, tmp_path, keys):
    certificates.init(tmp_path / "other.keys")
    certificates.issue(tmp_path / "other.keys", "beta")
    stranger = load_identity(tmp_path / "other.keys" / "members" / "beta")
    port = f"127.0.0.1:{free_port()}"
    network = Network(connect=(port,), identity=stranger)
    reasons = refused(closing, light, tmp_path, keys, network)
    assert "its certificate is not of this cluster" in reasons[f"tls/{port}"]


def test_plain_text_is_refused_by_an_encrypted_cluster(closing, light, tmp_path, keys):
    port = f"127.0.0.1:{free_port()}"
    reasons = refused(closing, light, tmp_path, keys, Network(connect=(port,)))
    assert "has not joined" in reasons[f"tcp/{port}"]


@pytest.mark.parametrize("who", ["nobody", "expired"])
def test_tls_without_a_good_certificate_gets_no_byte_of_the_cluster(closing, keys, who):
    port = free_port()
    desk = load_identity(keys / "members" / "desk")
    closing(ZenohTransport(Network(listen=(f"127.0.0.1:{port}",), identity=desk)))
    context = ssl.create_default_context(cafile=str(keys / "members" / "desk" / "ca.pem"))
    context.check_hostname = False
    if who != "nobody":
        folder = keys / "members" / who
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    with socket.create_connection(("127.0.0.1", port), SOON) as plain:
        # TLS 1.3 refuses a client's certificate after the handshake: at the first read.
        with pytest.raises((ssl.SSLError, ConnectionError)):
            with context.wrap_socket(plain) as link:
                link.sendall(b"hello")
                if link.recv(1) == b"":
                    raise ConnectionError("closed")


def test_a_revoked_certificate_is_not_heard(closing, light, tmp_path, keys):
    identity = load_identity(keys / "members" / "revoked")
    import shutil

    shutil.copytree(keys / "members" / "revoked", tmp_path / "stolen")
    certificates.revoke(keys, "revoked")
    port = f"127.0.0.1:{free_port()}"
    stolen = load_identity(tmp_path / "stolen")  # with the roster of before
    assert stolen.name == identity.name
    refused(closing, light, tmp_path, keys, Network(connect=(port,), identity=stolen))
