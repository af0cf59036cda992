"""The GPU kernels' own source, run on the processor: block by block, phase by phase."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake"),
]


def build(folder: Path, sanitizers: str, sources: Path = ROOT / "csrc" / "cuda") -> Path:
    """Compile the check of the kernels in `sources`, with warnings as errors."""
    flags = f"-O1 -g -fsanitize={sanitizers} -fno-sanitize-recover=all"
    options = [f"-DCMAKE_CXX_FLAGS={flags}", f"-DVITLET_CUDA_SOURCES={sources}"]
    for step in (
        ["-S", str(HERE), "-B", str(folder), *options],
        ["--build", str(folder), "-j", "2"],
    ):
        result = subprocess.run(["cmake", *step], capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stdout + result.stderr
    return folder / "check"


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=600)
    if "unexpected memory mapping" in result.stderr:
        pytest.skip("this kernel's address randomization is more than ThreadSanitizer can take")
    return result


OPS = ("linear", "attention", "mixer")


def test_kernels_agree_with_the_references_and_stay_in_bounds(tmp_path: Path) -> None:
    result = run(build(tmp_path, "address,undefined"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert [line.split()[:2] for line in result.stdout.splitlines()] == [["ok", op] for op in OPS]


def test_no_phase_reads_what_another_thread_writes_in_it(tmp_path: Path) -> None:
    """A warp is a thread here, so that a missing barrier is a data race."""
    result = run(build(tmp_path / "build", "thread"), "few")
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_missing_barrier_is_found(tmp_path: Path) -> None:
    """The same with the kernels' barriers taken away."""
    sources = tmp_path / "sources"
    sources.mkdir()
    for path in (ROOT / "csrc" / "cuda").glob("*.cuh"):
        text = path.read_text("utf-8")
        if path.name != "phases.cuh":
            text = text.replace("run.phase(", "run.warp_phase(")
        (sources / path.name).write_text(text, "utf-8")
    program = build(tmp_path / "build", "thread", sources)
    for op in OPS:
        result = run(program, "few", op)
        assert "data race" in result.stderr, (op, result.stdout, result.stderr)
