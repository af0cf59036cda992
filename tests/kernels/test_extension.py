"""The extension as a whole: instruction sets, the stub, the build."""

from __future__ import annotations

import ast
import os
import platform
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from vitlet import _C

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "csrc" / "kernels"


def run_with_isa(name: str, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"VITLET_ISA": name},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_active_instruction_set_is_a_supported_one() -> None:
    assert _C.supported_isas()[0] == "baseline"
    assert _C.active_isa() in _C.supported_isas()


@pytest.mark.parametrize("isa", _C.supported_isas())
def test_the_environment_lowers_the_instruction_set(isa: str) -> None:
    result = run_with_isa(isa, "from vitlet import _C; print(_C.active_isa())")
    assert result.stdout.strip() == isa


def test_an_unknown_instruction_set_is_refused_at_once() -> None:
    result = run_with_isa("avx1024", "import vitlet.ops")
    *_, last = result.stderr.strip().splitlines()
    assert last.startswith("vitlet.errors.UsageError: environment variable VITLET_ISA")
    assert last.endswith('got "avx1024"') and "expected baseline, " in last


def test_the_stub_names_what_the_extension_has() -> None:
    stub = ast.parse((files("vitlet") / "_C.pyi").read_text(encoding="utf-8"))
    named = {node.name for node in stub.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert named == {name for name in dir(_C) if not name.startswith("_")}


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or shutil.which("cmake") is None,
    reason="needs several instruction sets in one library, and cmake",
)
def test_no_instruction_sets_code_can_replace_anothers(tmp_path: Path) -> None:
    """A weak symbol is kept once for all copies of a kernel: perhaps the AVX-512 one."""
    project = tmp_path / "CMakeLists.txt"
    project.write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(kernels CXX)\n"
        "set(CMAKE_CXX_STANDARD 17)\nset(CMAKE_CXX_EXTENSIONS OFF)\n"
        f'add_subdirectory("{KERNELS}" kernels)\n',
        encoding="utf-8",
    )
    build = tmp_path / "build"
    for step in (["-S", str(tmp_path), "-B", str(build)], ["--build", str(build)]):
        subprocess.run(["cmake", *step], check=True, capture_output=True, timeout=300)
    objects = sorted(build.rglob("*.simd.cpp.o"))
    kernels = [path.name + ".o" for path in KERNELS.glob("*.simd.cpp")]
    assert kernels
    assert all(sum(path.name == kernel for path in objects) in (3, 4, 5, 6) for kernel in kernels)
    for path in objects:
        isa = path.parent.name.removesuffix(".dir").rsplit("_", 1)[1]
        symbols = subprocess.run(
            ["nm", "-C", "--defined-only", path], check=True, capture_output=True, text=True
        ).stdout
        for line in symbols.splitlines():
            kind, name = line[17], line[19:]
            assert kind not in "WVuC", f"{path.name} for {isa} defines the weak symbol {name}"
            assert kind.islower() or name.startswith(f"vitlet::{isa}::"), line
