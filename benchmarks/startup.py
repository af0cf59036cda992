"""How long does it take to get a prompt back: `import vitlet` and the command line's first words.

    python benchmarks/startup.py [--runs 20] [--json FILE]

Each figure is the median over fresh processes, with that of a bare `python -c pass` beside it: what
vitlet adds is the difference. CPU time is given too: other work on the machine hardly changes it.
First it is checked that nothing heavy is imported.
Targets: `import vitlet` under 150 ms, `vitlet --help` under 400 ms.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

_MAIN = "import sys; from vitlet.apps.cli import main; sys.exit(main({}))"
COMMANDS = {
    "python -c pass": "pass",
    "import vitlet": "import vitlet",
    "vitlet --help": _MAIN.format(["--help"]),
    "vitlet export --help": _MAIN.format(["export", "--help"]),
    "vitlet models": _MAIN.format(["models"]),
    "vitlet doctor": _MAIN.format(["doctor"]),
}
TARGETS = {"import vitlet": 150.0, "vitlet --help": 400.0}
HEAVY = ("torch", "onnx", "onnxruntime", "coremltools", "tvm", "matplotlib", "PIL")


def heavy_modules(code: str) -> list[str]:
    """Return which heavy packages `code` imports."""
    look = f"\nimport sys; print('@', *sorted(set(sys.modules) & set({HEAVY!r})))"
    wrapped = f"try:\n    exec({code!r})\nexcept SystemExit: pass{look}"
    lines = _run(wrapped).stdout.splitlines()
    return lines[-1].split()[1:]


def milliseconds(code: str, runs: int) -> tuple[list[float], list[float]]:
    """Return the wall and CPU times of fresh processes that run `code`."""
    wall, cpu = [], []
    for _ in range(runs + 1):
        begin, used = time.perf_counter(), _children_cpu()
        _run(code)
        wall.append(1e3 * (time.perf_counter() - begin))
        cpu.append(1e3 * (_children_cpu() - used))
    return wall[1:], cpu[1:]  # the first also fills the page cache


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for name, code in COMMANDS.items():
        heavy = heavy_modules(code)
        if heavy:
            raise SystemExit(f"{name} imports {', '.join(heavy)}")
        wall, cpu = milliseconds(code, options.runs)
        row = {
            "what": name,
            "median_ms": statistics.median(wall),
            "worst_ms": max(wall),
            "cpu_ms": statistics.median(cpu),
            "target_ms": TARGETS.get(name),
        }
        rows.append(row)
        goal = f"  target {row['target_ms']:.0f}" if name in TARGETS else ""
        print(
            f"{name:<22} median {row['median_ms']:6.1f} ms  worst {row['worst_ms']:6.1f} ms  "
            f"CPU {row['cpu_ms']:6.1f} ms{goal}"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
