"""The process in which one configuration is measured, so that load time and memory are its own.

It reads one JSON object per line on stdin and answers each with one on stdout:

    {"bundle": ..., "engine": ..., "graph": ..., "threads": 1, "batch": 1, "seed": 0}
        -> {"load_ms": ..., "first_ms": ..., "output": [...], ...}
    {"run": n, "seconds": s} -> {"ms": [...]}: n runs, or as many as fit into s seconds
    {"end": true}            -> {"peak_rss": bytes}
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

_LIMIT = 1_000_000  # runs in one answer
_OUTPUT_LIMIT = 4096  # numbers of the first output sent back for comparison


def main() -> None:
    """Serve until the parent says end or goes away."""
    out, sys.stdout = sys.stdout, sys.stderr  # nothing but answers may reach the parent
    try:
        _serve(out)
    except Exception as error:
        from vitlet.errors import VitletError

        if not isinstance(error, VitletError):
            raise
        _answer(out, {"error": str(error), "exit_code": error.exit_code})


def _serve(out: TextIO) -> None:
    job = json.loads(sys.stdin.readline())
    before = peak_rss()
    started = time.perf_counter()
    import numpy as np

    from vitlet.runtime.session import load

    imported = time.perf_counter()
    session = load(
        job["bundle"], job["engine"], threads=job["threads"], graph=job["graph"], check="used"
    )
    loaded = time.perf_counter()
    info = session.info
    feeds = {spec.name: _example(np, spec, job["batch"], job["seed"]) for spec in info.inputs}
    begin = time.perf_counter()
    outputs = session.run(feeds)
    first = time.perf_counter() - begin
    values = next(iter(outputs.values())).ravel()[:_OUTPUT_LIMIT]
    _answer(
        out,
        {
            "import_ms": 1e3 * (imported - started),
            "load_ms": 1e3 * (loaded - imported),
            "first_ms": 1e3 * first,
            "start_rss": before,
            "info": info.to_json(),
            "output": values.astype(float).tolist(),
        },
    )
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("end"):
            _answer(out, {"peak_rss": peak_rss()})
            return
        _answer(out, {"ms": _timed(session, feeds, request["run"], request["seconds"])})


def _timed(session: Any, feeds: Any, count: int | None, seconds: float | None) -> list[float]:
    times: list[float] = []
    stop = time.perf_counter() + (seconds if seconds is not None else float("inf"))
    while len(times) < (count if count is not None else _LIMIT):
        begin = time.perf_counter()
        session.run(feeds)
        end = time.perf_counter()
        times.append(1e3 * (end - begin))
        if end >= stop:
            break
    return times


def _example(np: Any, spec: Any, batch: int, seed: int) -> Any:
    """Return made-up input: normal noise, noisy pixels, or one well-formed row of tokens."""
    random = np.random.default_rng(seed)
    shape = (batch, *(size if isinstance(size, int) else 1 for size in spec.shape[1:]))
    if spec.dtype == "uint8":
        return random.integers(0, 256, shape, dtype=np.uint8)
    if spec.dtype in ("int32", "int64"):
        tokens = random.integers(1, 49406, shape, dtype=spec.dtype)
        tokens[:, 0], tokens[:, -1] = 49406, 49407  # start and end of text
        return tokens
    return random.standard_normal(shape, dtype=np.float32).astype(spec.dtype)


def peak_rss() -> int | None:
    """Return the most memory this process has had resident, in bytes."""
    # Not getrusage on Linux: its ru_maxrss outlives exec, and would report the parent's peak.
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most if sys.platform == "darwin" else most * 1024)


def _answer(out: TextIO, data: dict[str, Any]) -> None:
    out.write(json.dumps(data) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
