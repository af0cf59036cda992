"""The demo's second act: the embedded ViT split over three workers, one of which is killed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitlet.errors import DeadlineError
from vitlet.runtime.progress import Progress

if TYPE_CHECKING:
    from vitlet.partition.cluster.answer import Answer
    from vitlet.partition.cluster.coordinator import Coordinator
    from vitlet.partition.plan import Plan

_START = "import sys; from vitlet.apps.cli import main; sys.exit(main())"
_PATIENCE = 120.0  # seconds for processes to start on a busy machine
_DEADLINE = 10.0  # seconds per image: the demo shows answers, not speed
_ROOM = "1 MB"  # of a worker: one sub-model, so that a lost one is not loaded elsewhere
VICTIM = 1  # index of the worker that is killed


@dataclass(frozen=True)
class Stage:
    """How the bundled images were answered at one time.

    Attributes:
        when: "all three workers", "hall killed" or "hall is back".
        accuracy: share of right answers, in [0, 1].
        covered_accuracy: the same over the classes whose slot answered.
        missing: slots that did not answer.
        p50_ms: median latency in milliseconds.
    """

    when: str
    accuracy: float
    covered_accuracy: float
    missing: tuple[int, ...]
    p50_ms: float


@dataclass
class ClusterAct:
    """Splits, runs, kills, recovers.

    Args:
        folder: where the plan and the workers' caches go.
        progress: told of each step.
    """

    folder: Path
    progress: Progress
    plan: Plan | None = None
    stages: list[Stage] = field(default_factory=list)
    same_as_one_process: bool = False
    recovery: float = 0.0

    def export(self) -> Plan:
        """Make the plan from the embedded sub-models; an older one from this demo is replaced."""
        from vitlet.partition.embedded import embedded_split
        from vitlet.partition.splitting import export_planned

        work = self.folder / "work"
        embedded_split(work)
        with self.progress("compile three sub-models and their fusion"):
            self.plan = export_planned(work, self.folder / "plan", force=True)
        shutil.rmtree(work)
        return self.plan

    def run(self, images: NDArray[np.uint8], truth: NDArray[np.int64]) -> None:
        """Classify images over three workers, without one of them, and with it again.

        Raises:
            DeadlineError: the workers did not start.
        """
        from vitlet.partition.cluster.coordinator import Coordinator
        from vitlet.partition.cluster.gather import Policy
        from vitlet.partition.cluster.zenoh_transport import Network, ZenohTransport

        assert self.plan is not None  # `export` comes first
        names = [device.name for device in self.plan.devices]
        address = f"127.0.0.1:{_free_port()}"
        network = ZenohTransport(Network(listen=(address,)))
        with (
            Coordinator(self.plan, network, policy=Policy(deadline=_DEADLINE)) as coordinator,
            _workers(self.folder, address) as workers,
        ):
            with self.progress(f"start {', '.join(names)}"):
                for name in names:
                    workers.start(name)
                self._wait(coordinator)
            answers = self._classify(coordinator, images, truth, "all three workers")
            self.same_as_one_process = self._compare(images, answers)
            victim = names[VICTIM]
            with self.progress(f"kill {victim}"):
                workers.kill(victim)
                self._until(lambda: coordinator.held() == len(names) - 1)
            self._classify(coordinator, images, truth, f"{victim} killed")
            with self.progress(f"start {victim} again"):
                workers.start(victim)
                began = time.perf_counter()
                self._until(lambda: not coordinator.infer(images[:1]).missing)
                self.recovery = time.perf_counter() - began
            self._classify(coordinator, images, truth, f"{victim} is back")

    def to_json(self) -> dict[str, Any]:
        """Return what happened, JSON-ready."""
        assert self.plan is not None
        return {
            "plan": self.plan.hash,
            "slots": [
                {
                    "slot": slot.index,
                    "classes": [self.plan.labels[c] for c in slot.classes],
                    "bytes": slot.bytes,
                    "device": slot.devices[0],
                }
                for slot in self.plan.slots
            ],
            "stages": [asdict(stage) for stage in self.stages],
            "same_as_one_process": self.same_as_one_process,
            "recovery_seconds": self.recovery,
        }

    def _classify(
        self,
        coordinator: Coordinator,
        images: NDArray[np.uint8],
        truth: NDArray[np.int64],
        when: str,
    ) -> list[Answer]:
        with self.progress(f"classify {len(images)} images: {when}"):
            answers = list(coordinator.stream(list(images[:, None]), window=4))
        right = np.array([a.logits.argmax() == t for a, t in zip(answers, truth, strict=True)])
        covered = np.isin(truth, answers[-1].covered_classes)
        median = sorted(answer.latency for answer in answers)[len(answers) // 2]
        self.stages.append(
            Stage(
                when,
                float(right.mean()),
                float(right[covered].mean()) if covered.any() else 0.0,
                answers[-1].missing,
                round(median * 1e3, 3),
            )
        )
        return answers

    def _compare(self, images: NDArray[np.uint8], answers: list[Answer]) -> bool:
        """Compute the same in this process; tell whether every logit is the same."""
        from vitlet.partition.cluster.answer import Fuser
        from vitlet.partition.cluster.loaded import LoadedSlot

        assert self.plan is not None
        fuser = Fuser(self.plan)
        slots = [
            LoadedSlot(self.plan, slot.index, self.plan.slot_bundle(slot.index).path)
            for slot in self.plan.slots
        ]
        for image, answer in zip(images, answers, strict=True):
            here = fuser.logits([slot.run(image[None]) for slot in slots], 1)
            if not np.array_equal(here, answer.logits):
                return False
        return True

    def _wait(self, coordinator: Coordinator) -> None:
        if not coordinator.wait_ready(_PATIENCE):
            raise DeadlineError(
                f"{coordinator.held()} of {len(coordinator.plan.slots)} workers were ready after "
                f"{_PATIENCE:g} s; see the .log files in {self.folder}"
            )

    def _until(self, condition: Any) -> None:
        end = time.monotonic() + _PATIENCE
        while not condition():
            if time.monotonic() > end:
                raise DeadlineError(f"the cluster did not recover; see the logs in {self.folder}")
            time.sleep(0.01)


class _Workers:
    """`vitlet worker`s in processes of their own."""

    def __init__(self, folder: Path, address: str) -> None:
        self._folder = folder
        self._address = address
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [
                    sys.executable, "-c", _START, "worker", "--name", name, "--connect",
                    self._address, "--cache", self._folder / name, "--memory", _ROOM,
                ],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def kill(self, name: str) -> None:
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def close(self) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()


@contextmanager
def _workers(folder: Path, address: str) -> Iterator[_Workers]:
    workers = _Workers(folder, address)
    try:
        yield workers
    finally:
        workers.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
