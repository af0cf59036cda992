"""How do all models of the zoo do, compiled by TVM with vitlet's rules?

    python benchmarks/tvm_zoo.py [--only deit_tiny,mobileclip_s1:text] [--again] [--seconds 3]

Measures as benchmarks/tvm_speed.py does, on one core, without tuning, and writes docs/tvm-zoo.md
and docs/tvm-zoo.json after every graph; those that the file has are kept. Models come smallest
first. A text encoder that several models have is measured once. Exit code 1
if an output is further than 1e-4 of its largest number from torch's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tvm_speed import ORT, TOLERANCE, TVM, measure

import vitlet

ROOT = Path(__file__).parents[1]
JSON, PAGE = ROOT / "docs" / "tvm-zoo.json", ROOT / "docs" / "tvm-zoo.md"
KEPT = ("model", "ratio", "compile_s", "compile_cpu_s", "bytes", "error", "resident_bytes")
# Text encoders that another model has too.
SAME = {
    "mobileclip_s2:text": "mobileclip_s1:text",
    "mobileclip2_s2:text": "mobileclip2_s0:text",
    "mobileclip2_b:text": "mobileclip2_s0:text",
}
HEAD = """# The zoo in TVM

Every model, compiled for one core without tuning, beside ONNX Runtime in float32: a Zen 3 with AVX2
that other work shares. `python benchmarks/tvm_zoo.py` writes this page and `tvm-zoo.json` from what
it measured last. Batch 1, made-up weights; milliseconds are of processor time, medians of calls in
turn; a name with `:text` is a model's text encoder. "Error" is the largest difference to torch over
the largest output, "compile" the seconds of processor time of the export, "MB" the library's size,
"resident" what a process has at most that loads and runs it.

| model | TVM, ms | ONNX Runtime, ms | ratio | error | compile, s | MB | resident, MB |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
"""


def names() -> list[str]:
    """Return every graph of the zoo, smallest models first."""
    found = []
    for name in sorted(vitlet.list_models(), key=lambda name: vitlet.model_info(name).params):
        towers = [name, f"{name}:text"] if name.startswith("mobileclip") else [name]
        found += [tower for tower in towers if tower not in SAME]
    return found


def line(row: dict[str, Any]) -> str:
    return (
        f"| {row['model']} | {row['ms'][TVM]:.1f} | {row['ms'][ORT]:.1f} | {row['ratio']:.2f} "
        f"| {row['error']:.0e} | {row['compile_cpu_s']:.0f} | {row['bytes'] / 1e6:.1f} "
        f"| {row['resident_bytes'] / 1e6:.0f} |\n"
    )


def write(rows: list[dict[str, Any]]) -> None:
    """Write both files."""
    JSON.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    same = ", ".join(f"`{name}` (`{other}`)" for name, other in SAME.items())
    tail = f"\nText encoders that are another model's: {same}.\n"
    missing = [name for name in names() if all(row["model"] != name for row in rows)]
    if missing:
        tail += "\nNot measured yet: " + ", ".join(f"`{name}`" for name in missing) + ".\n"
    PAGE.write_text(HEAD + "".join(map(line, rows)) + tail, "utf-8")


def alone(name: str, seconds: float) -> dict[str, Any]:
    """Measure in a process of its own, which gives all memory back."""
    code = "import sys, tvm_zoo; tvm_zoo.work(*sys.argv[1:])"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", code, name, str(seconds), folder]
        subprocess.run(command, check=True, cwd=Path(__file__).parent)
        found: dict[str, Any] = json.loads((Path(folder) / "row.json").read_text("utf-8"))
    return found


def work(name: str, seconds: str, folder: str) -> None:
    """Measure one graph, and leave what was found in a folder."""
    from _common import pin

    pin()
    options = argparse.Namespace(
        threads=1, seconds=float(seconds), default=False, profile=0, tune=0
    )
    row = measure(name, options, Path(folder))
    kept = {key: row[key] for key in KEPT}
    kept["ms"] = {way: round(row["ms"][way], 3) for way in (TVM, ORT)}
    rounded = {
        k: round(v, 3) for k, v in kept.items() if k in ("ratio", "compile_s", "compile_cpu_s")
    }
    (Path(folder) / "row.json").write_text(json.dumps({**kept, **rounded}), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="NAMES", help="graphs, with commas")
    parser.add_argument("--again", action="store_true", help="measure rows that are there too")
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing, each graph")
    options = parser.parse_args()
    rows = json.loads(JSON.read_text("utf-8")) if JSON.exists() else []
    order = names()
    wanted = options.only.split(",") if options.only else order
    for name in [name for name in order if name in wanted]:
        if not options.again and any(row["model"] == name for row in rows):
            continue
        row = alone(name, options.seconds)
        rows = [r for r in rows if r["model"] != name] + [row]
        rows.sort(key=lambda r: order.index(r["model"]))
        write(rows)
        print(line(row), end="", flush=True)
    if not all(row["error"] < TOLERANCE for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
