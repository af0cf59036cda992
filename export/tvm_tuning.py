"""Tries other loops for the kernels of a graph, on this machine, and keeps what is faster.

TVM's MetaSchedule (Shao et al., "Tensor Program Optimization with Probabilistic Programs", NeurIPS
2022) draws schedules at random and evolves the fastest. It runs in a process of its own
(`vitlet.export.tvm_tune_worker`), since a schedule, or the tuner, may end the process: what was
measured before lies in files, and the next one goes on behind the kernel that did it. A kernel
keeps the loops of `vitlet.export.tvm_rules` unless other ones were measured to be faster beside
them.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.s_tir.meta_schedule.database import JSONDatabase
from tvm.target import Target

from vitlet.errors import StorageError, VitletError
from vitlet.export.options import Tuning
from vitlet.export.tvm_gemm import Tile
from vitlet.runtime.progress import Progress, null_progress

GAIN = 0.97  # of the time of the rules' loops: what is not clearly faster is noise
WORKLOADS, RECORDS, MEASURED = "workloads.json", "records.json", "measured.jsonl"
_WORKER = "vitlet.export.tvm_tune_worker"


@dataclass(frozen=True)
class Measurement:
    """A kernel's times, in seconds, taken in turn; `tuned` is None where no schedule worked."""

    kernel: str
    trials: int
    rules: float
    tuned: float | None


def key_of(function: Any) -> str:
    """Return a name for a kernel that does not change between runs."""
    return format(tvm_ffi.structural_hash(function) & (2**64 - 1), "016x")


def as_module(function: Any) -> Any:
    """Return a module of the function alone, in the form in which MetaSchedule keeps it."""
    function = function.with_attr("global_symbol", "main").with_attr("tirx.noalias", True)
    return tvm.IRModule({"main": function})


def tune(
    functions: Mapping[str, Any],
    machine: Mapping[str, Any],
    tile: Tile,
    tuning: Tuning,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Tune kernels and return those that became faster, scheduled.

    Args:
        functions: kernels by name, not scheduled.
        machine: this one, as `tvm.target.Target` takes it.
        tile: of the processor's registers.
        tuning: how much.
        progress: told of each kernel.
    """
    folder = tuning.records / str(machine["mcpu"])
    known = {key_of(f): (name, f) for name, f in functions.items() if _is_fixed(f)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _measure(known, machine, tile, tuning, folder, progress or null_progress)
        measured = read(folder)
    except OSError as error:
        raise StorageError(f"cannot keep records in {folder}: {error.strerror or error}") from error
    found = {}
    faster = [
        key for key, m in measured.items() if m.tuned is not None and m.tuned < GAIN * m.rules
    ]
    database = _open(folder) if any(key in known for key in faster) else None
    for key in faster:
        if key in known and database is not None:
            name, function = known[key]
            schedule = database.query_schedule(as_module(function), Target(dict(machine)), "main")
            if schedule is not None:
                found[name] = scheduled(schedule, function)
    return found


def scheduled(schedule: Any, function: Any) -> Any:
    """Return a schedule's function with the attributes of the one it was made from."""
    made = schedule.mod["main"].without_attr("global_symbol")
    symbol = (function.attrs or {}).get("global_symbol")
    if symbol is not None:
        made = made.with_attr("global_symbol", symbol)
    return made.with_attr("tirx.is_scheduled", True)


def read(folder: Path) -> dict[str, Measurement]:
    """Return the last measurement of each kernel; a line that was cut short is as if not there."""
    found = {}
    path = folder / MEASURED
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            measurement = Measurement(**json.loads(line))
        except (ValueError, TypeError):
            continue
        found[measurement.kernel] = measurement
    return found


def _open(folder: Path) -> Any:
    return JSONDatabase(str(folder / WORKLOADS), str(folder / RECORDS))


def _is_fixed(function: Any) -> bool:
    """Whether all sizes are known: only then there is something to measure."""
    buffers = list(function.params)
    known = all(isinstance(buffer, tirx.Buffer) for buffer in buffers)
    return known and all(isinstance(size, tirx.IntImm) for b in buffers for size in b.shape)


def _measure(
    known: Mapping[str, tuple[str, Any]],
    machine: Mapping[str, Any],
    tile: Tile,
    tuning: Tuning,
    folder: Path,
    progress: Progress,
) -> None:
    """Have workers measure what was not measured as often as asked, until the time is up."""
    done = {key for key, m in read(folder).items() if m.trials >= tuning.trials}
    deadline = time.monotonic() + 60 * tuning.minutes
    left = {key: entry for key, entry in known.items() if key not in done}
    while left and time.monotonic() < deadline:
        before = len(left)
        with tempfile.TemporaryDirectory(prefix="vitlet-") as room:
            module = tvm.IRModule({f"f{key}": function for key, (_, function) in left.items()})
            (Path(room) / "kernels.json").write_text(tvm.ir.save_json(module))
            job = {
                "machine": dict(machine),
                "tile": asdict(tile),
                "trials": tuning.trials,
                "records": str(folder.resolve()),
                "deadline": deadline,
            }
            (Path(room) / "job.json").write_text(json.dumps(job))
            working: str | None = None
            for message in _messages(Path(room), deadline):
                if message["event"] == "begin":
                    working = message["kernel"]
                    name, number = known[working][0], len(known) - len(left) + 1
                    with progress(f"tune {name} ({number} of {len(known)})"):
                        continue
                if message["event"] == "end":
                    left.pop(message["kernel"], None)
                    working = None
            said = (Path(room) / "log").read_text(errors="replace").strip().splitlines()
        if working is not None:  # that one ended the process: it keeps its loops
            left.pop(working, None)
        if len(left) == before and time.monotonic() < deadline:
            raise VitletError(f"TVM's tuner failed: {(said or ['no message'])[-1][:300]}")


def _messages(room: Path, deadline: float) -> Iterator[dict[str, Any]]:
    """Start a worker, yield what it says, and end it with the deadline."""
    environment = {**os.environ, "TVM_NUM_THREADS": "1", "TVM_BIND_THREADS": "0"}
    with (room / "log").open("w") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", _WORKER, str(room)],
            stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
        )  # fmt: skip
        lines: queue.Queue[str | None] = queue.Queue()

        def forward() -> None:
            assert worker.stdout is not None
            for line in worker.stdout:
                lines.put(line)
            lines.put(None)

        reader = threading.Thread(target=forward, daemon=True)
        reader.start()
        try:
            while True:
                try:
                    line = lines.get(timeout=max(deadline - time.monotonic(), 0.01))
                except queue.Empty:
                    return
                if line is None:
                    return
                if line.startswith('{"event"'):
                    yield json.loads(line)
        finally:
            worker.kill()
            worker.wait()
            reader.join()
            if worker.stdout is not None:
                worker.stdout.close()
