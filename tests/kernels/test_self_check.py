"""The kernels by themselves, for this processor and, emulated, for 64-bit ARM."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from once import once

from vitlet import _C

HERE = Path(__file__).parent
CROSS_COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64"
ISAS = ("baseline", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "dotprod", "i8mm")
LIBRARIES = "/usr/aarch64-linux-gnu"  # where Debian and Ubuntu put the target's C library


def build(folder: Path, *options: str) -> Path:
    """Compile the kernels and their self check, with warnings as errors."""
    for step in (
        ["-S", str(HERE), "-B", str(folder), *options],
        ["--build", str(folder), "--parallel", "2"],
    ):
        result = subprocess.run(["cmake", *step], capture_output=True, text=True, timeout=1800)
        assert result.returncode == 0, result.stdout + result.stderr
    return folder / "self_check"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
def test_every_instruction_set_agrees_with_the_reference_and_stays_in_bounds(
    tmp_path: Path,
) -> None:
    # Without optimization functions of vectors are called, which warns of their calling convention.
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=all -Wno-psabi"
    program = build(
        tmp_path,
        "-DCMAKE_BUILD_TYPE=Debug",
        "-DVITLET_OPTIMIZE=-O0",  # with sanitizers, -O1 takes three times as long
        f"-DVITLET_UNSANITIZED={';'.join(set(ISAS) - set(_C.supported_isas()))}",
        f"-DCMAKE_CXX_FLAGS={flags}",
    )
    result = subprocess.run([program], capture_output=True, text=True, timeout=900)
    assert result.stdout.startswith("ok "), result.stdout + result.stderr


@pytest.fixture(scope="module")
def arm_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = (
        "-DCMAKE_BUILD_TYPE=Release",
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={CROSS_COMPILER}",
    )
    folder = once(tmp_path_factory, "aarch64", lambda folder: build(folder, *options))
    return folder / "self_check"


@pytest.mark.arm
@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which(CROSS_COMPILER) is None or shutil.which(EMULATOR) is None,
    reason=f"needs {CROSS_COMPILER} and {EMULATOR}",
)
@pytest.mark.parametrize(
    ("processor", "best"),
    [
        ("cortex-a53", "baseline"),
        ("cortex-a76", "dotprod"),
        ("max", "i8mm"),
    ],
)
def test_arm_processors_agree_with_the_reference_in_an_emulator(
    arm_program: Path, processor: str, best: str
) -> None:
    result = subprocess.run(
        [EMULATOR, "-cpu", processor, "-L", LIBRARIES, arm_program],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert result.stdout.startswith("ok "), result.stdout + result.stderr
    assert f"best instruction set {best}\n" in result.stdout
