"""Does the CUDA source that TVM generates for the zoo compile, and what does it use of a GPU?

    python benchmarks/tvm_cuda_source.py [MODEL ...] [--arch sm_80 sm_90]

Needs nvcc, no GPU: nothing runs. A model is a name of the zoo, with ":text" behind it for the text
encoder. For each model and architecture: kernels, the most registers that a thread has, the most
shared memory of a block in KiB, and the bytes that all kernels' registers spill. Exit code 1 if
something does not compile.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tvm_speed import graph_of

from vitlet.export.tvm_cuda import CudaSource, cuda_source

MODELS = (
    "casvit_xs", "deit_tiny", "mobileclip_s0", "mobileclip_s0:text", "pvt_v1_tiny", "pvt_v2_b0",
)  # fmt: skip


@dataclass(frozen=True)
class Use:
    """What an architecture's kernels use, as ptxas tells it; an error in place of it."""

    kernels: int = 0
    registers: int = 0
    shared: int = 0
    spilled: int = 0
    error: str = ""


def use(source: CudaSource, arch: str, folder: Path) -> Use:
    """Compile for one architecture."""
    code = folder / "kernels.cu"
    code.write_text(source.code)
    command = ["nvcc", "-std=c++17", f"-arch={arch}", "-cubin", "-Xptxas", "-v", "-w"]
    done = subprocess.run(
        [*command, "-o", str(folder / "kernels.cubin"), str(code)], capture_output=True, text=True
    )
    said = done.stderr
    if done.returncode:
        return Use(error=(said.strip().splitlines() or ["nvcc failed"])[0])

    def numbers(pattern: str) -> list[int]:
        return [int(number) for number in re.findall(pattern, said)]

    return Use(
        len(re.findall("Compiling entry function", said)),
        max(numbers(r"Used (\d+) registers"), default=0),
        max(numbers(r"(\d+) bytes smem"), default=0),
        sum(numbers(r"(\d+) bytes spill stores")),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--arch", nargs="+", default=["sm_80", "sm_90"])
    arguments = parser.parse_args()
    if shutil.which("nvcc") is None:
        sys.exit("nvcc is not on PATH: it comes with the CUDA toolkit")
    failed = False
    print(f"{'model':<20} arch   compiles  kernels registers shared KiB  spilled  source, nvcc s")
    for name in arguments.models:
        begin = time.process_time()
        source = cuda_source(graph_of(name), arch=arguments.arch[0])
        made = time.process_time() - begin
        for arch in arguments.arch:
            begin = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                found = use(source, arch, Path(folder))
            took = time.perf_counter() - begin
            good = not found.error and found.kernels == len(source.kernels)
            failed |= not good
            print(
                f"{name:<20} {arch:<8}{'yes' if good else 'NO':>7}{found.kernels:>9}"
                f"{found.registers:>10}{found.shared / 1024:>11.1f}{found.spilled:>9}"
                f"{made:>9.0f} {took:>5.0f}  {found.error}",
                flush=True,
            )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
