"""What does a cluster cost, and what does it survive? Real workers on this machine, over loopback.

    python benchmarks/runner.py [--only overhead throughput kills soak] [--kills 200]
                                [--requests 10000] [--json FILE]

| part | measures | to reach |
| --- | --- | --- |
| overhead | latency of a 150 KB image over 5 workers, above computing | p50 < 1.5 ms, p99 < 10 ms |
| throughput | rate of 5 workers on one core, over that of one process on it | >= 0.85 |
| kills | kill -9 at random moments under load: wrong and late answers | 0, < 50 ms |
| | from "the worker is ready" to full answers | < 2 s |
| soak | memory, file descriptors and threads over many requests | no growth |

"Computing" is what the workers report, spread over the cores at best:
max(slowest slot, sum of slots / cores). "Transport alone" is the time of a query with the same
bytes to the same workers, who read it and do nothing. Every answer is compared bit for bit with
that of the bundles in this process. A worker's memory is given with a sub-model of 10 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from light_plan import NAMES, Shape, light_plan
from worker_processes import WorkerProcesses, free_port

from vitlet.data.preprocess import preprocess
from vitlet.errors import DeadlineError
from vitlet.partition.cluster.coordinator import Coordinator
from vitlet.partition.cluster.frame import PLAN_BYTES, Body, Frame, Kind, encode
from vitlet.partition.cluster.gather import Policy
from vitlet.partition.cluster.zenoh_transport import Network, ZenohTransport
from vitlet.partition.plan import Plan
from vitlet.runtime.ort import OrtEngine

SMALL = Shape(slots=5, side=224, mode="RGB", classes=10, hidden=16)  # 9.6 MB each
LARGE = Shape(slots=5, side=64, mode="RGB", classes=10, hidden=512, depth=8)


class OneProcess:
    """The plan's bundles in this process, one after the other: the definition of an answer."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        slots = range(len(plan.slots))
        self.slots = [OrtEngine(plan.slot_bundle(i).file("features.onnx")) for i in slots]
        self.fusion = OrtEngine(plan.fusion_bundle().file("fusion.onnx"))

    def logits(self, pixels: np.ndarray, missing: tuple[int, ...] = ()) -> np.ndarray:
        """Return logits, with some slots' features left out."""
        parts = []
        for slot in self.slots:  # each normalizes for itself, as each worker does
            image = preprocess(pixels, self.plan.preprocess)
            parts.append(slot.run({"image": image})["features"])
        for index in missing:
            parts[index] = np.zeros_like(parts[index])
        present = np.array([[i not in missing for i in range(len(parts))]] * len(pixels))
        feeds = {"features": np.concatenate(parts, 1), "present": present.astype(np.float32)}
        return self.fusion.run(feeds)["logits"]


class Cluster:
    """Five workers and a coordinator in this process."""

    def __init__(self, folder: Path, shape: Shape, **policy: Any) -> None:
        self.plan = light_plan(folder / "bench.plan", shape=shape)
        self.alone = OneProcess(self.plan)
        address = f"127.0.0.1:{free_port()}"
        self.workers = WorkerProcesses(folder, address)
        self.workers.start(*NAMES)
        transport = ZenohTransport(Network(listen=(address,)))
        self.coordinator = Coordinator(self.plan, transport, policy=Policy(**policy))
        self.coordinator.start()
        if not self.coordinator.wait_ready(120):
            raise SystemExit("the workers did not come")

    def processes(self) -> list[int]:
        """Their ids: this one, and the workers."""
        return [os.getpid(), *(process.pid for process in self.workers.running.values())]

    def cpu(self) -> float:
        """Seconds of processor time that all of them have taken."""
        ticks = 0
        for pid in self.processes():
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def images(self, rows: int) -> np.ndarray:
        """Return random pictures of the plan's size."""
        size = (rows, *self.plan.preprocess.size, 3)
        return np.random.default_rng(rows).integers(0, 256, size, dtype=np.uint8)

    def round_trip(self, image: np.ndarray) -> float:
        """Milliseconds until all workers have read an image and ended the query, unanswered.

        The frames are for another process than the workers', which they see after having read them.
        """
        plan = bytes.fromhex(self.plan.hash)[:PLAN_BYTES]
        content = encode(Frame(Kind.REQUEST, plan, 1, 1, epoch=1), Body.of(image))
        topics, transport = self.coordinator.topics, self.coordinator._transport
        left, done = [*NAMES], threading.Event()

        def ended() -> None:
            left.pop()
            if not left:
                done.set()

        begin = time.perf_counter()
        for name in NAMES:
            key = topics.infer(plan.hex(), 0, name)
            transport.query(key, content, 30.0, lambda reply: None, ended)
        done.wait(30.0)
        return (time.perf_counter() - begin) * 1e3

    def close(self) -> None:
        """End all processes."""
        self.coordinator.close()
        self.workers.close()


def overhead(folder: Path, requests: int) -> dict[str, Any]:
    cluster = Cluster(folder, SMALL, deadline=30.0, hedge=False)
    try:
        image = cluster.images(1)
        expected = cluster.alone.logits(image)
        cores = len(os.sched_getaffinity(0))
        above, total = [], []
        for number in range(requests + 50):
            answer = cluster.coordinator.infer(image)
            assert (answer.logits == expected).all() and not answer.missing
            spent = [trace.compute for trace in answer.traces]
            if number >= 50:
                above.append((answer.latency - max(*spent, sum(spent) / cores)) * 1e3)
                total.append(answer.latency * 1e3)
        bare = [cluster.round_trip(image) for _ in range(requests)]
        memory = cluster.workers.memory("beta") / 1e6  # has one slot; gamma has two
        return {
            "p50_ms": percentile(above, 50),
            "p99_ms": percentile(above, 99),
            "latency_p50_ms": percentile(total, 50),
            "transport_alone_p50_ms": percentile(bare, 50),
            "transport_alone_p99_ms": percentile(bare, 99),
            "input_bytes": image.nbytes,
            "worker_memory_mb": round(memory, 1),
            "cores": cores,
        }
    finally:
        cluster.close()


def throughput(folder: Path, rounds: int) -> dict[str, Any]:
    """Processor time of a request in one process, over that in all processes of the cluster.

    On a core that is never idle this is the ratio of the rates; unlike a clock on the wall it does
    not change with what else the machine does.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})  # one core for everybody
    cluster = Cluster(folder, LARGE, deadline=120.0, hedge=False)
    try:
        images = cluster.images(16)
        expected = cluster.alone.logits(images)
        ratios = []
        for _ in range(rounds):
            begin = cluster.cpu()
            for _ in range(8):
                cluster.alone.logits(images)
            middle = cluster.cpu()
            for answer in cluster.coordinator.stream([images] * 8, window=4):
                assert (answer.logits == expected).all() and not answer.missing
            ratios.append((middle - begin) / (cluster.cpu() - middle))
        return {"ratio": round(statistics.median(ratios), 3), "rounds": rounds}
    finally:
        cluster.close()
        os.sched_setaffinity(0, before)


def kills(folder: Path, count: int) -> dict[str, Any]:
    deadline = 0.5
    cluster = Cluster(folder, Shape(slots=5), deadline=deadline)
    coordinator, rng = cluster.coordinator, random.Random(0)
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 1), dtype=np.uint8)
    ends: Counter[str] = Counter()
    late: list[float] = []
    enough, lock = threading.Event(), threading.Lock()

    def load() -> None:
        while not enough.is_set():
            begin = time.perf_counter()
            try:
                answer = coordinator.infer(image)
                good = (answer.logits == cluster.alone.logits(image, answer.missing)).all()
                kind = "wrong" if not good else "degraded" if answer.missing else "full"
            except DeadlineError:
                kind = "none in time"
            with lock:
                ends[kind] += 1
                late.append(time.perf_counter() - begin - deadline)
            time.sleep(0.002)

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    recovery = []
    try:
        for _ in range(count):
            name = rng.choice(NAMES)
            time.sleep(rng.random() * 0.1)
            cluster.workers.kill(name)
            time.sleep(rng.random() * 0.1)
            cluster.workers.start(name)  # returns when the worker says that it is ready
            begin = time.perf_counter()
            while coordinator.infer(image).missing:
                time.sleep(0.005)
            recovery.append(time.perf_counter() - begin)
    finally:
        enough.set()
        for thread in threads:
            thread.join()
        cluster.close()
    return {
        "kills": count,
        "requests": sum(ends.values()),
        **dict(ends),
        "wrong": ends["wrong"],
        "latest_after_deadline_ms": round(max(0.0, *late) * 1e3, 1),
        "recovery_p50_s": round(statistics.median(recovery), 3),
        "recovery_max_s": round(max(recovery), 3),
    }


def soak(folder: Path, requests: int) -> dict[str, Any]:
    cluster = Cluster(folder, SMALL, deadline=30.0)
    try:
        image = cluster.images(1)
        expected = cluster.alone.logits(image)
        marks: list[dict[str, int]] = []
        steps = 10
        for _ in range(steps):
            for answer in cluster.coordinator.stream([image] * (requests // steps), window=4):
                assert (answer.logits == expected).all()
            marks.append({"kB": 0, "fds": 0, "threads": 0})
            for pid in cluster.processes():
                status = Path(f"/proc/{pid}/status").read_text()
                marks[-1]["kB"] += int(status.split("VmRSS:")[1].split()[0])
                marks[-1]["threads"] += int(status.split("Threads:")[1].split()[0])
                marks[-1]["fds"] += len(list(Path(f"/proc/{pid}/fd").iterdir()))
        return {"requests": requests, "after_2_tenths": marks[1], "at_the_end": marks[-1]}
    finally:
        cluster.close()


def percentile(values: list[float], percent: float) -> float:
    return round(sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))], 3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parts = ("overhead", "throughput", "kills", "soak")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ways = {
        "overhead": lambda folder: overhead(folder, options.repeats),
        "throughput": lambda folder: throughput(folder, options.rounds),
        "kills": lambda folder: kills(folder, options.kills),
        "soak": lambda folder: soak(folder, options.requests),
    }
    results = {}
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = ways[name](Path(folder))
        print(f"{name}: {results[name]}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
