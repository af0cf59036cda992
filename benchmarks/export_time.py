"""How long does it take to export a model to all three targets, with verification?

Both towers of mobileclip_s0 are exported to ONNX, Core ML and TVM and checked against the source;
the project promises under three minutes on two cores. The weights are made up: the time does not
depend on them.

    python benchmarks/export_time.py --json export_time.json
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import vitlet
from vitlet.runtime.manifest import TARGETS

PROMISED_SECONDS = 180.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="mobileclip_s0")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    from export_speed import lively

    steps: list[tuple[str, float]] = []

    @contextmanager
    def progress(step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        steps.append((step, time.perf_counter() - start))
        print(f"{steps[-1][1]:8.1f} s  {step}", flush=True)

    model = lively(vitlet.create_model(arguments.model))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        bundle = vitlet.export(
            model, arguments.targets, Path(folder) / "m.vitlet", progress=progress
        )
        seconds = time.perf_counter() - start
        size = sum(entry.size for entry in bundle.manifest.files.values())
        statuses = {a.file: a.verification["status"] for a in bundle.manifest.artifacts}
    print(f"{seconds:8.1f} s  in all, {size / 1e6:.0f} MB, {os.cpu_count()} cores")
    for file, status in statuses.items():
        print(f"{status:>10}  {file}")
    if arguments.json:
        result = {"model": arguments.model, "seconds": seconds, "steps": steps, "bytes": size}
        arguments.json.write_text(json.dumps({**result, "status": statuses}, indent=1) + "\n")
    if seconds > PROMISED_SECONDS and arguments.model == "mobileclip_s0":
        raise SystemExit(f"{seconds:.0f} s, promised {PROMISED_SECONDS:.0f} s")


if __name__ == "__main__":
    main()
