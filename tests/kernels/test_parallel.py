"""The thread pool under the kernels, by itself: plainly, and watched for data races."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "csrc" / "kernels"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize(
    ("flags", "arguments"),
    # A forked child of a program with threads is more than the race detector follows.
    [(["-O2"], []), (["-O1", "-g", "-fsanitize=thread"], ["nofork"])],
    ids=["plain", "races"],
)
def test_parallel_for_does_every_index_once(
    tmp_path: Path, flags: list[str], arguments: list[str]
) -> None:
    program = tmp_path / "parallel_check"
    sources = [HERE / "parallel_check.cpp", KERNELS / "parallel.cpp"]
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-pthread", *flags, "-I", KERNELS]
    subprocess.run(["g++", *options, *sources, "-o", program], check=True, timeout=120)
    result = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.stdout == "ok\n", result.stdout + result.stderr
