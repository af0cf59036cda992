"""How do vitlet's kernels stand beside the fastest of ONNX Runtime and torch, all at once?

    python benchmarks/kernels.py [--seconds 0.3] [--models] [--json FILE]

Runs kernels_linear, kernels_binary and kernels_mixer (with --models also accelerate, which exports
whole models first), each of which holds every result to double precision before it times anything,
one after the other on one core, and prints one table: what is aimed at on a processor with 8-bit
and bfloat16 products (instruction set avx512bf16), and what this one reached. On a lesser one the
aims are shown for comparison only. ratio: geometric mean (least) of times faster.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from vitlet import _C

HERE = Path(__file__).parent
FULL = "avx512bf16"  # the instruction set that the aims are set for
Row = tuple[str, float, list[float]]  # what, the aim, the ratios that it holds


def run(script: str, *options: str) -> Any:
    """Return the JSON of one benchmark; its lines go to the terminal as they come."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        command = [sys.executable, str(HERE / f"{script}.py"), *options, "--json", str(file)]
        subprocess.run(command, check=True)
        return json.loads(file.read_text(encoding="utf-8"))


def linear_rows(figures: Any) -> Iterable[Row]:
    layers = figures["layers"]

    def of(rows: Callable[[str], bool], key: str, way: str) -> list[float]:
        return [row[key][way] for row in layers if rows(row["rows"])]

    def many(case: str) -> bool:
        return not case.startswith("1 ") and case != "1"

    yield "shift_linear x best baseline, 49 to 784 rows", 1.25, of(many, "best", "shift")
    yield "shift_linear x ONNX Runtime fp32, 49 to 784 rows", 3.5, of(many, "ort fp32", "shift")
    yield "shift_linear x best baseline, one row", 2.2, of(lambda c: c == "1", "best", "shift")
    cold = of(lambda c: c == "1 cold", "best", "shift")
    yield "shift_linear x best baseline, one row, cold", 2.2, cold
    yield "linear fp32 + GELU x ONNX Runtime fp32, 49 to 784", 1.0, of(many, "gelu", "fp32")


def binary_rows(figures: Any) -> Iterable[Row]:
    rows = figures["rows"]

    def of(key: str) -> list[float]:
        return [row["times_faster"][key] for row in rows if key in row["times_faster"]]

    yield "binary_linear_attention x best linear baseline", 3.5, of("tables")
    yield "binary_linear_attention exact x best fp32", 1.5, of("exact")
    yield "binary_linear_attention x softmax, 784 tokens", 80, of("SDPA")


def mixer_rows(figures: Any) -> Iterable[Row]:
    shapes = figures["shapes"].values()
    for way, aim in (("fp32", 1.5), ("fp32 nhwc", 1.5), ("bf16", 2.7), ("bf16 nhwc", 2.7)):
        ratios = [row["x ONNX Runtime"][way] for row in shapes]
        yield f"additive_token_mixer {way} x ONNX Runtime fp32", aim, ratios


def model_rows(figures: Any) -> Iterable[Row]:
    aims = {"casvit": {"fp32": 1.4, "bf16": 1.9}, "": {"bf16": 1.6, "int8": 2.2}}
    for row in figures["results"]:
        family = "casvit" if row["model"].startswith("casvit") else ""
        if row["file"] in aims[family]:
            what = f"{row['model']} {row['file']} x plain file in ONNX Runtime"
            yield what, aims[family][row["file"]], [row["ratio"]]


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=0.3, help="for each shape")
    parser.add_argument("--models", action="store_true", help="whole models too (minutes)")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    seconds = ("--seconds", str(given.seconds))
    rows = [
        *linear_rows(run("kernels_linear", *seconds)),
        *binary_rows(run("kernels_binary", *seconds)),
        *mixer_rows(run("kernels_mixer", *seconds)),
    ]
    if given.models:
        rows += model_rows(run("accelerate"))
    isa = _C.active_isa()
    print(f"\ninstruction set {isa}; the aims are for {FULL}")
    print(f"{'what':62}{'aim':>6}{'mean':>8}{'least':>8}")
    table = []
    for what, aim, ratios in rows:
        mean = math.exp(statistics.fmean(math.log(ratio) for ratio in ratios))
        verdict = "" if isa != FULL else "reached" if mean >= aim else "missed"
        print(f"{what:62}{aim:6.2f}{mean:8.2f}{min(ratios):8.2f}  {verdict}")
        table.append({"what": what, "aim": aim, "mean": mean, "least": min(ratios)})
    if given.json:
        given.json.write_text(json.dumps({"isa": isa, "rows": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
