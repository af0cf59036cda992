"""Real workers that are killed and stopped while requests run.

The rule: every request ends, and its answer is that of the slots that did answer, bit for bit.
"""

from __future__ import annotations

import random
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import pytest
from worker_processes import PATIENCE, WorkerProcesses, free_port, until

from vitlet.errors import DeadlineError
from vitlet.partition.cluster.answer import Answer
from vitlet.partition.cluster.coordinator import Coordinator
from vitlet.partition.cluster.gather import Policy
from vitlet.partition.cluster.zenoh_transport import Network, ZenohTransport

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]
KILLS = 4  # benchmarks/runner.py does 200


@pytest.fixture(scope="module")
def workers(tmp_path_factory) -> Iterator[WorkerProcesses]:
    workers = WorkerProcesses(tmp_path_factory.mktemp("chaos"), f"127.0.0.1:{free_port()}")
    workers.start("alpha", "beta", "gamma")
    yield workers
    workers.close()


@pytest.fixture
def coordinator(workers, light) -> Iterator[Coordinator]:
    transport = ZenohTransport(Network(listen=(workers.connect,)))
    with Coordinator(light, transport, policy=Policy(deadline=PATIENCE)) as coordinator:
        assert coordinator.wait_ready(PATIENCE)
        yield coordinator


class Load(threading.Thread):
    """Sends requests one after the other until it is stopped."""

    def __init__(self, coordinator: Coordinator, images: np.ndarray, deadline: float) -> None:
        super().__init__()
        self.coordinator, self.images, self.deadline = coordinator, images, deadline
        self.futures: list[Future[Answer]] = []
        self.enough = threading.Event()

    def run(self) -> None:
        while not self.enough.wait(0.005):
            self.futures.append(self.coordinator.submit(self.images, self.deadline))

    def stop(self) -> list[Answer | DeadlineError]:
        """Every request's end; none may be lost."""
        self.enough.set()
        self.join()
        ends: list[Answer | DeadlineError] = []
        for future in self.futures:
            error = future.exception(timeout=PATIENCE)
            assert error is None or isinstance(error, DeadlineError)
            ends.append(future.result() if error is None else error)
        return ends


def test_killed_workers_lose_no_request_and_give_no_wrong_answer(
    workers, coordinator, images, expected
):
    rng = random.Random(0)
    load = Load(coordinator, images, 30.0)
    load.start()
    for _ in range(KILLS):
        assert until(lambda: coordinator.wait_ready(1.0))
        name = rng.choice(("alpha", "beta", "gamma"))
        threading.Event().wait(rng.random() * 0.05)  # anywhere in a request
        before = len(load.futures)
        workers.kill(name)
        assert until(lambda n=name: n not in [m.device for m in coordinator.members.all()])
        workers.start(name)
        assert until(lambda b=before: len(load.futures) > b + 3)
    assert until(lambda: coordinator.wait_ready(1.0))
    ends = load.stop()
    assert not [end for end in ends if isinstance(end, DeadlineError)]
    for answer in ends:
        assert (answer.logits == expected(images, missing=answer.missing)).all()
    assert any(answer.missing for answer in ends)
    last = coordinator.infer(images)
    assert not last.missing and (last.logits == expected(images)).all()


def test_a_stopped_worker_is_slow_then_gone_then_back(workers, coordinator, images, expected):
    workers.signal("beta", signal.SIGSTOP)
    try:
        slow = coordinator.infer(images, deadline=2.0)  # perhaps not known yet: ends all the same
        assert all(trace.device != "beta" for trace in slow.traces)  # missing, or from another
        assert (slow.logits == expected(images, missing=slow.missing)).all()
        names = lambda: [m.device for m in coordinator.members.all()]  # noqa: E731
        assert until(lambda: "beta" not in names())
        gone = coordinator.infer(images)
        assert (gone.logits == expected(images, missing=gone.missing)).all()
    finally:
        workers.signal("beta", signal.SIGCONT)
    assert until(lambda: "beta" in names() and coordinator.held() == 3)
    back = coordinator.infer(images)
    assert not back.missing and (back.logits == expected(images)).all()


def test_a_second_coordinator_needs_to_send_nothing(workers, coordinator, light, images, expected):
    coordinator.close()
    lines: list[str] = []
    transport = ZenohTransport(Network(listen=(workers.connect,)))
    with Coordinator(light, transport, log=lines.append) as second:
        assert second.wait_ready(PATIENCE)
        assert (second.infer(images, PATIENCE).logits == expected(images)).all()
        assert not [line for line in lines if "as planned" in line]


def test_a_worker_never_loads_torch(workers, coordinator, images):
    coordinator.infer(images)
    for name in ("alpha", "beta", "gamma"):
        libraries = workers.libraries(name)
        assert "onnxruntime" in libraries and "torch" not in libraries
