"""scripts/cuda-resources: what the kernels take of a GPU's registers and memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "cuda-resources"
KERNELS = {
    "AddChunks", "ApplyQueries<32>", "ApplyQueries<64>", "GateChannels", "GatePositions",
    "GatherValues<32>", "GatherValues<64>", "MeanOfChannel", "MixContext", "MultiplyFewRows",
    "MultiplyRows", "ProjectMap", "RoundRows", "WeighPositions",
}  # fmt: skip
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc on PATH")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
@needs_nvcc
def test_no_kernel_spills_on_the_oldest_and_a_newer_architecture() -> None:
    result = run("--arch", "75,90")
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert {line.split()[0] for line in lines[2:-1]} == KERNELS


@needs_nvcc
def test_local_memory_is_found(tmp_path: Path) -> None:
    source = tmp_path / "local.cu"
    source.write_text(
        "__global__ void local(const int* places, int* out, int n) {\n"
        "  int counts[64] = {};\n"
        "  for (int i = 0; i < n; ++i) ++counts[places[i] & 63];\n"
        "  for (int i = 0; i < 64; ++i) out[i] = counts[i];\n"
        "}\n",
        "utf-8",
    )
    result = run("--arch", "90", str(source))
    assert result.returncode == 1
    assert "uses local memory" in result.stderr and "on sm_90" in result.stderr


def test_without_nvcc_it_says_that_nothing_was_checked() -> None:
    result = run(CUDACXX="no-such-nvcc")
    assert result.returncode == 0
    assert result.stdout.startswith("[cuda-resources] skipped: there is no nvcc")
