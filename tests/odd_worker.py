"""A worker's process with something odd about it, to be run by tests and benchmarks.

python odd_worker.py NAME CONNECT CACHE [--memory BYTES] [--wire N] [--wall SECONDS]
                     [--compute SECONDS] [--lan]
"""

from __future__ import annotations

import argparse
import threading
import time
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("connect")
    parser.add_argument("cache")
    parser.add_argument("--memory", type=int, default=1_000_000, help="one slot by default")
    parser.add_argument("--wire", type=int, help="version that it speaks")
    parser.add_argument("--wall", type=float, default=0.0, help="seconds its clock is ahead")
    parser.add_argument("--compute", type=float, default=0.0, help="seconds added per request")
    parser.add_argument("--lan", action="store_true", help="leave this machine unencrypted")
    options = parser.parse_args()
    import vitlet.partition.cluster.frame as frame

    if options.wire is not None:
        frame.VERSION = options.wire  # before others take it from there
    true = time.time
    time.time = lambda: true() + options.wall
    from vitlet.partition.cluster.loaded import LoadedSlot
    from vitlet.partition.cluster.worker import Worker
    from vitlet.partition.cluster.zenoh_transport import Network, ZenohTransport

    run = LoadedSlot.run

    def slowly(slot: LoadedSlot, array: Any) -> Any:
        time.sleep(options.compute)
        return run(slot, array)

    if options.compute:
        LoadedSlot.run = slowly  # type: ignore[method-assign]
    # It does not listen: the only way to it is the link that a test has its hands on.
    network = Network(connect=(options.connect,), insecure_lan=options.lan)
    worker = Worker(
        options.name, ZenohTransport(network), cache=options.cache, memory=options.memory,
        log=lambda line: print(line, flush=True),
    )  # fmt: skip
    worker.start()
    print("ready", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
