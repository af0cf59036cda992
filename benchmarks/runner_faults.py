"""What does a cluster survive? Real workers on this machine, and one of them in trouble.

    python benchmarks/runner_faults.py [--only FAULT ...] [--seconds 4] [--json FILE]

Requests are sent all the time, each with a deadline of half a second, while the only holder of a
slot is in trouble. The rule, for every fault: each request ends by its deadline + 50 ms, and its
answer is that of the slots that did answer, bit for bit. "back" is the time from the end of the
trouble to the first full answer. The cable and the slow link need root (network namespaces, tc);
the full disk needs root too (a small tmpfs). Loss, delay and one-way cuts are made by
`tests/tcp_proxy.py`: netem is not in every kernel.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from light_plan import Shape, light_plan
from runner import OneProcess
from tcp_proxy import TcpProxy
from worker_processes import free_port

from vitlet.errors import DeadlineError
from vitlet.partition.cluster.coordinator import Coordinator
from vitlet.partition.cluster.gather import Policy
from vitlet.partition.cluster.zenoh_transport import Network, ZenohTransport

DEADLINE = 0.5  # seconds
CHILD = str(Path(__file__).parents[1] / "tests" / "odd_worker.py")
NAMESPACE, NEAR, FAR = "vitlet-bench", "10.97.1.1", "10.97.1.2"
SLOW = "1mbit"
MEMORY = {"gamma": ("--memory", "2000000")}  # the replica of slot 0 is there


class Trial:
    """Three workers, each with room for what the plan gives it alone, and a load."""

    def __init__(self, folder: Path, *, side: int = 8, lan: bool = False) -> None:
        self.folder = folder
        self.plan = light_plan(folder / "trial.plan", shape=Shape(slots=3, side=side))
        self.alone = OneProcess(self.plan)
        self.port = free_port()
        self.host = NEAR if lan else "127.0.0.1"
        self.lan = lan
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.lines: list[str] = []
        self.ends: Counter[str] = Counter()
        self.late: list[float] = []
        size = (1, side, side, 1)
        self.image = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
        self.coordinator = self.new_coordinator()

    def new_coordinator(self) -> Coordinator:
        """Return a started one, at the trial's address."""
        network = Network(listen=(f"{self.host}:{self.port}",), insecure_lan=self.lan)
        coordinator = Coordinator(
            self.plan, ZenohTransport(network), policy=Policy(deadline=DEADLINE),
            log=self.lines.append,
        )  # fmt: skip
        coordinator.start()
        return coordinator

    def start(
        self,
        name: str,
        *options: str,
        port: int | None = None,
        before: tuple[str, ...] = (),
        cache: Path | None = None,
    ) -> None:
        """Start a worker and wait until it is ready.

        Args:
            name: of the worker.
            options: of `tests/odd_worker.py`.
            port: that it connects to, by default the coordinator's.
            before: a command that runs it.
            cache: its folder.
        """
        address, place = f"{self.host}:{port or self.port}", str(cache or self.folder / name)
        more = [*options, *MEMORY.get(name, ()), *(["--lan"] if self.lan else [])]
        command = [*before, sys.executable, CHILD, name, address, place, *more]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.processes[name] = process
        assert process.stdout is not None
        while (line := process.stdout.readline()) != "ready\n":
            assert line, f"{name} did not start"

        def read() -> None:
            for line in process.stdout or ():
                self.lines.append(f"{name}: {line.rstrip()}")

        threading.Thread(target=read, daemon=True).start()

    def kill(self, name: str) -> None:
        """End a worker as a power cut does."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def ask(self) -> str:
        """Send a request and note how it ended."""
        begin = time.perf_counter()
        try:
            answer = self.coordinator.infer(self.image)
            good = (answer.logits == self.alone.logits(self.image, answer.missing)).all()
            kind = "wrong" if not good else "degraded" if answer.missing else "full"
        except DeadlineError:
            kind = "none"
        self.late.append(time.perf_counter() - begin - DEADLINE)
        self.ends[kind] += 1
        return kind

    def run(self, seconds: float) -> None:
        """Send requests one after the other for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.ask()
            time.sleep(0.01)

    def until_full(self, patience: float = 30.0) -> float:
        """Seconds until an answer is full."""
        begin = time.monotonic()
        while self.ask() != "full":
            if time.monotonic() > begin + patience:
                return float("inf")
            time.sleep(0.01)
        return time.monotonic() - begin

    def row(self, back: float | None = None, **more: Any) -> dict[str, Any]:
        """Return how all requests ended, and whether the rule was kept."""
        late = round(max(0.0, *self.late) * 1e3, 1)
        found = {
            "requests": sum(self.ends.values()), "full": self.ends["full"],
            "degraded": self.ends["degraded"], "none": self.ends["none"],
            "wrong": self.ends["wrong"], "late_ms": late,
            "back_s": None if back is None else round(back, 2), **more,
        }  # fmt: skip
        found["held"] = not found["wrong"] and late < 50 and back != float("inf")
        return found

    def close(self) -> None:
        """End all processes."""
        self.coordinator.close()
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


def begin(trial: Trial, proxy: TcpProxy | None = None) -> None:
    for name in ("alpha", "gamma"):
        trial.start(name)
    trial.start("beta", port=proxy.port if proxy else None)
    assert trial.until_full(60) < 60
    trial.run(1.0)
    trial.ends.clear()  # what happened while they started does not count
    trial.late.clear()


def with_proxy(change: Callable[[TcpProxy], None], heal: Callable[[TcpProxy], None]) -> Any:
    def trial(folder: Path, seconds: float) -> dict[str, Any]:
        trial = Trial(folder)
        proxy = TcpProxy(trial.port)
        try:
            begin(trial, proxy)
            change(proxy)
            trial.run(seconds)
            heal(proxy)
            return trial.row(trial.until_full())
        finally:
            trial.close()
            proxy.close()

    return trial


def _loss(proxy: TcpProxy, share: float) -> None:
    proxy.forth.loss = proxy.back.loss = share


def _delay(proxy: TcpProxy, seconds: float) -> None:
    proxy.forth.delay = proxy.back.delay = seconds


def _up(proxy: TcpProxy, up: bool) -> None:
    proxy.forth.up = up


def stopped(folder: Path, seconds: float) -> dict[str, Any]:
    trial = Trial(folder)
    try:
        begin(trial)
        trial.processes["beta"].send_signal(signal.SIGSTOP)
        trial.run(seconds)
        trial.processes["beta"].send_signal(signal.SIGCONT)
        return trial.row(trial.until_full())
    finally:
        trial.close()


def half_open(folder: Path, seconds: float) -> dict[str, Any]:
    """The worker dies, and its peer's connection stays open and silent."""
    trial = Trial(folder)
    proxy = TcpProxy(trial.port, half_open=True)
    try:
        begin(trial, proxy)
        trial.kill("beta")
        trial.run(seconds)
        assert "beta" not in [member.device for member in trial.coordinator.members.all()]
        trial.start("beta", port=proxy.port)
        return trial.row(trial.until_full())
    finally:
        trial.close()
        proxy.close()


def namespace(folder: Path, seconds: float, change: list[str], heal: list[str]) -> dict[str, Any]:
    """The worker lives in a network of its own, behind a pair of virtual cables."""
    ip("netns", "add", NAMESPACE)
    trial = None
    try:
        ip("link", "add", "vitlet-a", "type", "veth", "peer", "name", "vitlet-b")
        ip("link", "set", "vitlet-b", "netns", NAMESPACE)
        ip("addr", "add", f"{NEAR}/24", "dev", "vitlet-a")
        ip("link", "set", "vitlet-a", "up")
        ip("-n", NAMESPACE, "addr", "add", f"{FAR}/24", "dev", "vitlet-b")
        ip("-n", NAMESPACE, "link", "set", "vitlet-b", "up")
        trial = Trial(folder, side=64, lan=True)  # images of 4 kB: 33 ms on the slow link
        for name in ("alpha", "gamma"):
            trial.start(name)
        trial.start("beta", before=("ip", "netns", "exec", NAMESPACE))
        assert trial.until_full(60) < 60
        trial.ends.clear()
        trial.late.clear()
        subprocess.run(change, check=True)
        trial.run(seconds)
        subprocess.run(heal, check=True)
        return trial.row(trial.until_full())
    finally:
        if trial is not None:
            trial.close()
        subprocess.run(["ip", "link", "del", "vitlet-a"], stderr=subprocess.DEVNULL)
        ip("netns", "del", NAMESPACE)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def cable(folder: Path, seconds: float) -> dict[str, Any]:
    link = ["ip", "link", "set", "vitlet-a"]
    return namespace(folder, seconds, [*link, "down"], [*link, "up"])


def slow_link(folder: Path, seconds: float) -> dict[str, Any]:
    where = ["dev", "vitlet-a", "root"]
    rate = ["tc", "qdisc", "add", *where, "tbf", "rate", SLOW, "burst", "32kbit", "latency", "1s"]
    return namespace(folder, seconds, rate, ["tc", "qdisc", "del", *where])


def clocks(folder: Path, seconds: float) -> dict[str, Any]:
    """The worker's day is 400 days ahead, and its monotonic clock a million seconds."""
    trial = Trial(folder)
    try:
        for name in ("alpha", "gamma"):
            trial.start(name)
        ahead = ("unshare", "-T", "--monotonic", "1000000") if os.geteuid() == 0 else ()
        trial.start("beta", "--wall", str(400 * 86400), before=ahead)
        back = trial.until_full()
        trial.ends.clear()
        trial.late.clear()
        trial.run(seconds)
        row = trial.row(back)
        row["held"] = row["held"] and not row["degraded"]
        return row
    finally:
        trial.close()


def full_disk(folder: Path, seconds: float) -> dict[str, Any]:
    """The push finds no room; the cluster says so and goes on without the slot, then with it."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o"]
    subprocess.run([*mount, "size=64k", "none", disk], check=True)
    trial = Trial(folder, side=64)  # a bundle of 260 kB
    try:
        for name in ("alpha", "gamma"):
            trial.start(name)
        trial.start("beta", cache=disk)
        trial.run(seconds)
        said = any("slot 1 could not be loaded on beta" in line for line in trial.lines)
        subprocess.run([*mount, "remount,size=8m", "none", disk], check=True)
        row = trial.row(trial.until_full(), said=said)
        row["held"] = row["held"] and said
        return row
    finally:
        trial.close()
        subprocess.run(["umount", disk], check=True)


def versions(folder: Path, seconds: float) -> dict[str, Any]:
    """The worker speaks version 2: it is left out with a line, and no answer is wrong."""
    trial = Trial(folder)
    try:
        for name in ("alpha", "gamma"):
            trial.start(name)
        trial.start("beta", "--wire", "2")
        trial.run(seconds)
        said = sum("beta is left out" in line for line in trial.lines)
        trial.kill("beta")
        trial.start("beta")
        row = trial.row(trial.until_full(), said=said)
        row["held"] = row["held"] and said == 1
        return row
    finally:
        trial.close()


def coordinator(folder: Path, seconds: float) -> dict[str, Any]:
    """The coordinator is closed and starts again: workers keep what they have loaded."""
    trial = Trial(folder)
    try:
        begin(trial)
        before = sum(" goes to " in line for line in trial.lines)
        trial.coordinator.close()
        started = time.monotonic()
        trial.coordinator = trial.new_coordinator()
        trial.until_full()
        back = time.monotonic() - started
        trial.run(seconds)
        pushed = sum(" goes to " in line for line in trial.lines) - before
        row = trial.row(back, pushed_again=pushed)
        row["held"] = row["held"] and back < 2 and not pushed
        return row
    finally:
        trial.close()


FAULTS: dict[str, Callable[[Path, float], dict[str, Any]]] = {
    "stopped": stopped,
    "half-open": half_open,
    "cable": cable,
    "slow-link": slow_link,
    "loss": with_proxy(lambda p: _loss(p, 0.3), lambda p: _loss(p, 0.0)),
    "delay": with_proxy(lambda p: _delay(p, 0.2), lambda p: _delay(p, 0.0)),
    "one-way": with_proxy(lambda p: _up(p, False), lambda p: _up(p, True)),
    "clocks": clocks,
    "full-disk": full_disk,
    "versions": versions,
    "coordinator": coordinator,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = {}
    for name in options.only:
        if name in ("cable", "slow-link", "full-disk") and os.geteuid() != 0:
            print(f"{name}: left out, it needs root")
            continue
        with tempfile.TemporaryDirectory() as folder:
            results[name] = FAULTS[name](Path(folder), options.seconds)
        print(f"{name}: {results[name]}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
