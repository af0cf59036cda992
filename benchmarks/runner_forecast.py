"""Does `vitlet partition simulate` predict what a cluster then does? Real workers, known times.

    python benchmarks/runner_forecast.py [--requests 60] [--seconds 40] [--json FILE]

Three real workers, each slowed by a known time per request (as slower devices are) and reached
through a link with a known delay; the simulation gets these as profiles. Latency is that of single
requests, throughput that of eight at a time. For availability each worker is killed and started
again at random times; the simulation gets how long they were there and away, and both say what
share of the classes was covered. To reach: within 20 %.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from runner_faults import Trial
from tcp_proxy import TcpProxy

from vitlet.partition.cluster.gather import Policy
from vitlet.partition.cluster.simulate import Conditions, simulate
from vitlet.partition.cluster.simulated import Outages
from vitlet.partition.devices import Device
from vitlet.partition.plan import Plan

COMPUTE = {"alpha": 0.04, "beta": 0.06, "gamma": 0.05}  # seconds a request; gamma has two slots
DELAY = {"alpha": 0.005, "beta": 0.02, "gamma": 0.01}  # seconds, one way
DEADLINE = 5.0


def profiled(plan: Plan) -> Plan:
    """Return the plan with devices of the known times."""
    devices = tuple(
        Device(name, 2_000_000, 1e15, overhead=COMPUTE[name], link_latency=DELAY[name])
        for name in COMPUTE
    )
    return replace(plan, devices=devices)


def speed(folder: Path, requests: int) -> dict[str, Any]:
    trial = Trial(folder)
    with ExitStack() as stack:
        stack.callback(trial.close)
        trial.coordinator.policy = Policy(deadline=DEADLINE)
        for name, delay in DELAY.items():
            proxy = TcpProxy(trial.port)
            stack.callback(proxy.close)
            proxy.forth.delay = proxy.back.delay = delay
            trial.start(name, "--compute", str(COMPUTE[name]), port=proxy.port)
        assert trial.until_full(60) < 60
        for _ in range(30):
            trial.coordinator.infer(trial.image)
        times = []
        for _ in range(requests):
            answer = trial.coordinator.infer(trial.image)
            assert not answer.missing
            times.append(answer.latency)
        begin = time.monotonic()
        ends = list(trial.coordinator.stream([trial.image] * 2 * requests, window=8))
        rate = len(ends) / (time.monotonic() - begin)
        plan, policy = profiled(trial.plan), Policy(deadline=DEADLINE)
    one = simulate(plan, Conditions(requests=requests + 30, policy=policy))
    many = simulate(plan, Conditions(requests=2 * requests, window=8, policy=policy))
    return {
        "latency_p50_ms": compare(one.p50 * 1e3, sorted(times)[len(times) // 2] * 1e3),
        "answers_per_second": compare(many.throughput, rate),
    }


def availability(folder: Path, seconds: float) -> dict[str, Any]:
    trial = Trial(folder)
    enough, lock = threading.Event(), threading.Lock()
    there: list[float] = []
    away: list[float] = []

    def live(name: str) -> None:
        rng = random.Random(name)
        while not enough.is_set():
            came = time.monotonic()
            enough.wait(rng.expovariate(1 / 6))
            trial.kill(name)
            gone = time.monotonic()
            enough.wait(rng.expovariate(1 / 2))
            trial.start(name)  # returns when it is ready
            with lock:
                there.append(gone - came)
                away.append(time.monotonic() - gone)

    threads = [threading.Thread(target=live, args=(name,)) for name in COMPUTE]
    try:
        for name in COMPUTE:
            trial.start(name)
        assert trial.until_full(60) < 60
        for thread in threads:
            thread.start()
        covered, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                covered.append(len(trial.coordinator.infer(trial.image).covered_classes))
            except TimeoutError:
                covered.append(0)
            time.sleep(0.05)
    finally:
        enough.set()
        for thread in threads:
            thread.join()
        trial.close()
    outages = Outages(sum(there) / len(there), sum(away) / len(away))
    told = simulate(
        profiled(trial.plan), Conditions(requests=2000, outages=outages, policy=Policy(0.5))
    )
    share = sum(covered) / len(covered) / len(trial.plan.labels)
    return {"covered": compare(told.covered, share), "outages": len(away)}


def compare(predicted: float, measured: float) -> dict[str, float]:
    """Return both, and by how much they differ."""
    off = abs(predicted - measured) / measured
    return {"predicted": round(predicted, 3), "measured": round(measured, 3), "off": round(off, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = speed(Path(folder), options.requests)
    with tempfile.TemporaryDirectory() as folder:
        results |= availability(Path(folder), options.seconds)
    for name, value in results.items():
        print(f"{name}: {value}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
