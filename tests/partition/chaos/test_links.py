"""Links between real sockets that go silent: nothing is said, so only deadlines and leases help."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tcp_proxy import TcpProxy
from worker_processes import free_port, until

from vitlet.partition.cluster.coordinator import Coordinator
from vitlet.partition.cluster.gather import Policy
from vitlet.partition.cluster.worker import Worker
from vitlet.partition.cluster.zenoh_transport import Network, ZenohTransport

pytestmark = pytest.mark.slow
SOON = 30.0


@pytest.fixture
def behind_a_proxy(light, tmp_path) -> Iterator[tuple[Coordinator, TcpProxy]]:
    """A cluster whose "beta" is reached through a link that tests change."""
    port = free_port()
    proxy = TcpProxy(port)
    transport = ZenohTransport(Network(listen=(f"127.0.0.1:{port}",)))
    coordinator = Coordinator(light, transport, policy=Policy(deadline=0.5))
    coordinator.start()
    workers = []
    for name, memory in (("alpha", 1_000_000), ("beta", 1_000_000), ("gamma", 2_000_000)):
        where = proxy.port if name == "beta" else port
        network = ZenohTransport(Network(connect=(f"127.0.0.1:{where}",)))
        workers.append(Worker(name, network, cache=tmp_path / name, memory=memory))
        workers[-1].start()
    assert coordinator.wait_ready(SOON)
    yield coordinator, proxy
    proxy.half_open = False
    proxy.close()
    coordinator.close()
    for worker in workers:
        worker.close()


def names(coordinator: Coordinator) -> list[str]:
    return [member.device for member in coordinator.members.all()]


@pytest.mark.parametrize("way", ["forth", "back"])
def test_a_link_that_is_silent_one_way_costs_its_slot_and_heals(
    behind_a_proxy, images, expected, way
):
    coordinator, proxy = behind_a_proxy
    getattr(proxy, way).up = False
    answers = []
    while "beta" in names(coordinator):
        answers.append(coordinator.infer(images))
    assert answers and all(answer.missing in ((), (1,)) for answer in answers)
    answers.append(coordinator.infer(images))  # it is known to be away: nobody waits for it
    assert answers[-1].missing == (1,) and answers[-1].traces[1].attempts == 0
    getattr(proxy, way).up = True
    assert until(lambda: not coordinator.infer(images).missing, SOON)
    answers.append(coordinator.infer(images))
    for answer in answers:
        assert (answer.logits == expected(images, missing=answer.missing)).all()


def test_a_link_with_losses_and_delay_still_gives_right_answers(behind_a_proxy, images, expected):
    coordinator, proxy = behind_a_proxy
    proxy.forth.delay = proxy.back.delay = 0.05
    proxy.forth.loss = proxy.back.loss = 0.3
    answers = [coordinator.infer(images, deadline=SOON) for _ in range(3)]
    assert not any(answer.missing for answer in answers)
    assert all(answer.latency >= 0.1 for answer in answers)
    assert all((answer.logits == expected(images)).all() for answer in answers)
