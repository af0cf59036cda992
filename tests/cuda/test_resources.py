"""scripts/cuda-resources: what the kernels take of a GPU's registers and memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "cuda-resources"
CUDA = ROOT / "csrc" / "cuda"
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


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize(("arch", "product"), [("75", "m8n8k16"), ("90", "m16n8k32")])
def test_linear_rounds_every_operation_and_multiplies_on_tensor_cores(
    arch: str, product: str, tmp_path: Path
) -> None:
    """Its float operations give the processor's bits only if none is contracted."""
    build = (CUDA / "CMakeLists.txt").read_text("utf-8")
    options = re.search(r"shift_linear\.cu PROPERTIES COMPILE_OPTIONS (.*)\)", build)
    assert options is not None and f'"{options[1]}"' in SCRIPT.read_text("utf-8")
    command = ["nvcc", "-std=c++17", "-O3", options[1], f"-arch=sm_{arch}", "-ptx"]
    command += [f"-I{CUDA}", f"-I{ROOT / 'csrc' / 'kernels'}", "-o", str(tmp_path / "linear.ptx")]
    subprocess.run([*command, str(CUDA / "shift_linear.cu")], check=True, timeout=300)
    code = (tmp_path / "linear.ptx").read_text("utf-8")
    assert f"mma.sync.aligned.{product}.row.col.s32.s8.s8.s32" in code
    assert "mul.f32" in code or "mul.rn.f32" in code
    assert not re.search(r"\bfma\.", code)
