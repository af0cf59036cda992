"""A small plan, and clusters of it on a network inside the process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from light_plan import light_plan

from vitlet.partition.cluster.answer import Answer
from vitlet.partition.cluster.coordinator import Coordinator
from vitlet.partition.cluster.fake import FakeNetwork
from vitlet.partition.cluster.gather import Policy
from vitlet.partition.cluster.threads import DirectJobs
from vitlet.partition.cluster.worker import Worker
from vitlet.partition.plan import Plan


@pytest.fixture(scope="session")
def light(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Three slots: the first on alpha and gamma, the second on beta, the third on gamma."""
    return light_plan(tmp_path_factory.mktemp("light") / "light.plan")


@pytest.fixture(scope="session")
def images(light: Plan) -> np.ndarray:
    """Eight grey pictures, (8, 8, 8, 1)."""
    size = (8, *light.preprocess.size, 1)
    return np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)


class Cluster:
    """Workers and coordinators of one plan on a fake network; `caches` outlive workers."""

    def __init__(self, plan: Plan, caches: Path) -> None:
        self.plan = plan
        self.caches = caches
        self.network = FakeNetwork(seed=7)
        self.lines: list[str] = []
        self.workers: dict[str, Worker] = {}

    def worker(self, name: str, **options: object) -> Worker:
        options = {"memory": 64_000_000, "cache": self.caches / name, **options}
        worker = Worker(
            name, self.network.join(name), clock=self.network.clock, compute=DirectJobs(),
            control=DirectJobs(), log=lambda line: self.lines.append(f"{name}: {line}"), **options,
        )  # fmt: skip
        worker.start()
        self.workers[name] = worker
        return worker

    def coordinator(self, name: str = "desk", **policy: object) -> Coordinator:
        coordinator = Coordinator(
            self.plan, self.network.join(name), policy=Policy(**policy), clock=self.network.clock,
            fuse=DirectJobs(), control=DirectJobs(), log=self.lines.append,
        )  # fmt: skip
        coordinator.start()
        return coordinator

    def start(self, **policy: object) -> Coordinator:
        """The three workers that the plan names, loaded, and a coordinator."""
        for name in ("alpha", "beta", "gamma"):
            self.worker(name)
        coordinator = self.coordinator(**policy)
        self.network.advance(0.5)
        assert coordinator.held() == 3
        return coordinator

    def ask(self, coordinator: Coordinator, array: np.ndarray, deadline: float = 1.0) -> Answer:
        """The answer to one request, which must end by its deadline."""
        return self.result(coordinator.submit(array, deadline), deadline)

    def result(self, future: Future[Answer], deadline: float) -> Answer:
        self.network.advance(deadline + 0.001)
        assert future.done()
        return future.result()


@pytest.fixture
def cluster(light: Plan, tmp_path: Path) -> Cluster:
    return Cluster(light, tmp_path)


@pytest.fixture(scope="session")
def expected(light: Plan) -> Callable[..., np.ndarray]:
    """Logits of the plan in this process, by its bundles alone: the definition of an answer."""
    from vitlet.data.preprocess import preprocess
    from vitlet.runtime.ort import OrtEngine

    slots = [OrtEngine(light.slot_bundle(i).file("features.onnx")) for i in range(3)]
    fusion = OrtEngine(light.fusion_bundle().file("fusion.onnx"))

    def logits(pixels: np.ndarray, missing: tuple[int, ...] = ()) -> np.ndarray:
        image = preprocess(pixels, light.preprocess)
        parts = [slot.run({"image": image})["features"] for slot in slots]
        present = np.array([[i not in missing for i in range(3)]] * len(pixels), np.float32)
        parts = [p * present[:, i : i + 1] for i, p in enumerate(parts)]
        return fusion.run({"features": np.concatenate(parts, 1), "present": present})["logits"]

    return logits
