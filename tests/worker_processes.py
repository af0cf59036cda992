"""Workers in processes of their own, to be killed, stopped and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

START = "import sys; from vitlet.apps.cli import main; sys.exit(main())"
PATIENCE = 120.0  # seconds: a process may start slowly on a busy machine


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], object], patience: float = PATIENCE) -> bool:
    """Wait for a condition that no event tells of."""
    end = time.monotonic() + patience
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(condition())


class WorkerProcesses:
    """`vitlet worker`s that join one coordinator's address; `folder` holds caches and logs."""

    def __init__(self, folder: Path, connect: str) -> None:
        self.folder = folder
        self.connect = connect
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *names: str, options: tuple[str, ...] = ()) -> None:
        """Start workers and wait until they are ready."""
        for name in names:
            with (self.folder / f"{name}.log").open("ab") as log:
                self.running[name] = subprocess.Popen(
                    [
                        sys.executable, "-c", START, "worker", "--name", name, "--connect",
                        self.connect, "--cache", self.folder / name, "--memory", "512 MB", "--json",
                        *options,
                    ],
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )  # fmt: skip
        for name in names:
            stdout = self.running[name].stdout
            assert stdout is not None and stdout.readline() == b"{\n", self.log(name)

    def kill(self, name: str) -> None:
        """End a worker as a power cut does."""
        process = self.running.pop(name)
        process.kill()
        process.communicate()

    def signal(self, name: str, number: signal.Signals) -> None:
        self.running[name].send_signal(number)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def memory(self, name: str) -> int:
        """Resident bytes."""
        status = Path(f"/proc/{self.running[name].pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) << 10

    def libraries(self, name: str) -> str:
        """What is mapped into the process."""
        return Path(f"/proc/{self.running[name].pid}/maps").read_text()

    def close(self) -> None:
        for process in self.running.values():
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self.running.values():
            try:
                process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
        self.running.clear()
