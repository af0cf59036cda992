"""The extension as a whole: instruction sets, the stub, the build."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib.resources import files

import pytest

from vitlet import _C


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
