"""Measures configurations of a bundle: one fresh process each, timed in turns.

Taking turns (a few runs of one, a few of the next, and round again) lets a slow spell of the
machine hit all of them alike; the ratios between them can then be trusted.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitlet.errors import UsageError, VitletError
from vitlet.runtime.batching import BatchSizes
from vitlet.runtime.bundle import open_bundle
from vitlet.runtime.manifest import Artifact
from vitlet.runtime.select import CHECKING, ENGINES, select

ROUNDS = 10
# Without the current folder on the path: a file of the user's called numpy.py must not be imported.
_START = (
    "import sys; sys.path[:] = filter(None, sys.path); "
    "from vitlet.apps.bench_child import main; main()"
)


@dataclass(frozen=True)
class Job:
    """One configuration: which graph, in which engine, with how many threads, at which batch."""

    bundle: Path
    engine: str
    graph: str
    threads: int
    batch: int
    seed: int = 0

    @property
    def name(self) -> str:
        """Short text that tells it from the others."""
        return f"{self.engine} {self.graph} t{self.threads} b{self.batch}"


@dataclass
class Measured:
    """What was measured of one configuration.

    Attributes:
        job: the configuration.
        load_ms: from nothing to a ready session in a fresh process (imports not counted).
        cold_ms: the same with the files evicted from the page cache; None if not asked for.
        import_ms: importing the runtime.
        first_ms: the first run.
        times_ms: of the runs after the warm-up.
        peak_rss: most memory resident, in bytes; `start_rss` before anything was loaded.
        info: the session's own description.
        output: first numbers of the output for the made-up input.
    """

    job: Job
    load_ms: float
    import_ms: float
    first_ms: float
    info: dict[str, Any]
    output: list[float]
    cold_ms: float | None = None
    start_rss: int | None = None
    peak_rss: int | None = None
    times_ms: list[float] = field(default_factory=list)

    def percentile(self, p: float) -> float:
        """Return the p-th percentile of the latency, in milliseconds."""
        return float(np.percentile(self.times_ms, p))

    @property
    def throughput(self) -> float:
        """Rows (images, texts) per second."""
        return self.job.batch * len(self.times_ms) / (sum(self.times_ms) / 1e3)

    def to_json(self, percentiles: Sequence[float]) -> dict[str, Any]:
        """Return a JSON-ready dictionary; latencies in ms, memory in bytes."""
        return {
            "engine": self.info["engine"],
            "engine_version": self.info["engine_version"],
            "graph": self.job.graph,
            "file": self.info["file"],
            "precision": self.info["precision"],
            "threads": self.job.threads,
            "batch": self.job.batch,
            "import_ms": self.import_ms,
            "load_ms": self.load_ms,
            "cold_load_ms": self.cold_ms,
            "first_ms": self.first_ms,
            "runs": len(self.times_ms),
            "mean_ms": float(np.mean(self.times_ms)),
            "min_ms": min(self.times_ms),
            **{f"p{p:g}_ms": self.percentile(p) for p in percentiles},
            "per_second": self.throughput,
            "start_rss": self.start_rss,
            "peak_rss": self.peak_rss,
        }


def plan(
    bundle: Path,
    engines: Sequence[str] | None,
    graph: str | None,
    threads: Sequence[int],
    batches: Sequence[int] | None,
    seed: int,
) -> list[Job]:
    """Return the configurations to measure.

    Args:
        bundle: the bundle's folder.
        engines: names; None for every engine that the bundle has an artefact for and that runs,
            but for the checking one.
        graph: None for the graph that images go through.
        threads: thread counts.
        batches: batch sizes; None for the lowest that each artefact was compiled for.
        seed: of the made-up input.

    Raises:
        VitletError: an engine that was asked for cannot run, or none can.
        UsageError: an artefact was not compiled for a batch size.
    """
    opened = open_bundle(bundle)
    graphs = {artifact.graph for artifact in opened.manifest.artifacts}
    graph = graph or ("image" if "image" in graphs else "model")
    chosen = list(engines) if engines else _runnable(opened, graph)
    sizes = {engine: _batches(select(opened, graph, engine)[1], batches) for engine in chosen}
    return [
        Job(bundle, engine, graph, count, batch, seed)
        for count, place in itertools.product(threads, range(len(batches or [1])))
        for engine in chosen
        for batch in [sizes[engine][place]]
    ]


def _batches(artifact: Artifact, wanted: Sequence[int] | None) -> list[int]:
    """Return the batch sizes to measure; a session would split or pad others, unseen."""
    taken = BatchSizes.of(artifact.inputs, artifact)
    for batch in wanted or ():
        if batch < taken.low or (taken.high is not None and batch > taken.high):
            high = "any" if taken.high is None else taken.high
            span = f"{taken.low}" if taken.low == taken.high else f"{taken.low} to {high}"
            raise UsageError(
                f"{artifact.file} was compiled for batch {span}, not {batch}: "
                "export it with another --batch"
            )
    return list(wanted) if wanted else [taken.low]


def _runnable(bundle: Any, graph: str) -> list[str]:
    found = []
    for engine in (name for name in ENGINES if name != CHECKING):
        with suppress(VitletError):
            select(bundle, graph, engine)
            found.append(engine)
    return found or [select(bundle, graph, "auto")[0]]  # which says why there is none


def measure(
    jobs: Sequence[Job],
    *,
    warmup: int,
    iters: int | None,
    seconds: float,
    cold: bool,
    advance: Callable[[], None],
) -> list[Measured]:
    """Measure configurations in turns.

    Args:
        jobs: what to measure.
        warmup: runs that are not counted.
        iters: runs that are, per configuration; None for as many as fit into `seconds`.
        seconds: time per configuration.
        cold: load once more with the files evicted from the page cache.
        advance: called once per job and round.

    Raises:
        VitletError: a process could not load or run its configuration, with its own message.
    """
    with ExitStack() as stack:
        children, results = [], []
        for job in jobs:
            cold_ms = _cold_load(job) if cold else None
            child = stack.enter_context(_child(job))
            started = child({})
            results.append(_measured(job, started, cold_ms))
            if warmup:
                child({"run": warmup, "seconds": None})
            children.append(child)
        rounds = min(ROUNDS, iters) if iters else ROUNDS
        for number in range(rounds):
            for child, result in zip(children, results, strict=True):
                count = None if iters is None else _share(iters, rounds, number)
                request = {"run": count, "seconds": None if iters else seconds / rounds}
                result.times_ms += child(request)["ms"]
                advance()
        for child, result in zip(children, results, strict=True):
            result.peak_rss = child({"end": True})["peak_rss"]
    return results


def agreement(results: Sequence[Measured]) -> list[float]:
    """Return, per result, the cosine of its output with that of the first of the same shape.

    Something that is fast and wrong must not win a benchmark.
    """
    cosines = []
    for result in results:
        first = next(
            r
            for r in results
            if (r.job.batch, r.job.graph) == (result.job.batch, result.job.graph)
            and _takes(r) == _takes(result)
        )
        a, b = np.array(first.output), np.array(result.output)
        length = float(np.linalg.norm(a) * np.linalg.norm(b))
        cosines.append(float(a @ b) / length if length else 1.0)
    return cosines


def _takes(result: Measured) -> str:
    # uint8 pixels and normalized floats are different made-up inputs: nothing to compare.
    return str(result.info["inputs"][0]["dtype"])


def _share(total: int, rounds: int, number: int) -> int:
    return total * (number + 1) // rounds - total * number // rounds


def _measured(job: Job, started: dict[str, Any], cold_ms: float | None) -> Measured:
    return Measured(job=job, cold_ms=cold_ms, **started)


def _cold_load(job: Job) -> float:
    """Return the load time after asking the system to forget the bundle's files."""
    if not hasattr(os, "posix_fadvise"):
        raise UsageError("--cold cannot empty the page cache on this system: it needs Linux")
    for file in job.bundle.rglob("*"):
        if file.is_file():
            number = os.open(file, os.O_RDONLY)
            try:
                os.fsync(number)  # a page that is not written back cannot be dropped
                os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(number)
    with _child(job) as child:
        return float(child({})["load_ms"])


@contextmanager
def _child(job: Job) -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """Start a process for a job; the function it gives asks and waits for the answer.

    The first call, with an empty request, waits for the process to have loaded and run once.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", _START],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(job.threads)},
    )
    to, back, log = process.stdin, process.stdout, process.stderr
    assert to is not None and back is not None and log is not None  # they are pipes

    def ask(request: dict[str, Any]) -> dict[str, Any]:
        try:
            if request:
                to.write(json.dumps(request) + "\n")
            to.flush()
            line = back.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            process.wait()
            last = (log.read().strip().splitlines() or ["no message"])[-1]
            raise VitletError(
                f"the process that measures {job.name} ended with code {process.returncode}: {last}"
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            error = VitletError(answer["error"])
            error.exit_code = int(answer["exit_code"])
            raise error
        return answer

    fields = {k: str(v) if isinstance(v, Path) else v for k, v in vars(job).items()}
    fields["bundle"] = str(job.bundle.resolve())
    try:
        to.write(json.dumps(fields) + "\n")
        yield ask
    finally:
        process.kill()
        process.communicate()
