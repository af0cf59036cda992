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


def build(folder: Path, sanitizers: str, include: Path | None = None) -> Path:
    """Compile the check with warnings as errors; `include` is searched before csrc/cuda."""
    flags = f"-O1 -g -fsanitize={sanitizers} -fno-sanitize-recover=all"
    if include is not None:
        flags += f" -I{include}"
    for step in (
        ["-S", str(HERE), "-B", str(folder), f"-DCMAKE_CXX_FLAGS={flags}"],
        ["--build", str(folder), "-j", "2"],
    ):
        result = subprocess.run(["cmake", *step], capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stdout + result.stderr
    return folder / "check"


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=600)


def test_kernels_agree_with_the_references_and_stay_in_bounds(tmp_path: Path) -> None:
    result = run(build(tmp_path, "address,undefined"))
    assert result.stdout.startswith("ok "), result.stdout + result.stderr


def test_no_phase_reads_what_the_same_phase_writes(tmp_path: Path) -> None:
    """A warp is a thread here, so that a missing barrier is a data race."""
    result = run(build(tmp_path / "as it is", "thread"), "few")
    assert result.stdout.startswith("ok "), result.stdout + result.stderr

    # Each op with its barriers taken away, to see that the check would find it.
    for name in ("shift_linear", "binary_linear_attention", "additive_token_mixer"):
        broken = tmp_path / name / "source"
        broken.mkdir(parents=True)
        text = (ROOT / "csrc" / "cuda" / f"{name}.cuh").read_text("utf-8")
        assert "run.phase(" in text
        text = text.replace("run.phase(", "run.warp_phase(")
        (broken / f"{name}.cuh").write_text(text, "utf-8")
        result = run(build(tmp_path / name / "build", "thread", broken), "few")
        assert result.returncode != 0, name
        assert "data race" in result.stderr or "differs" in result.stdout, result.stderr
