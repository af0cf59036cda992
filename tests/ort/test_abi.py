"""The hand-declared ABI, through a library with one operator that is there for these tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("c++") or shutil.which("g++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

MODEL = """
<ir_version: 8, opset_import: ["": 17, "ai.vitlet": 1]>
graph (float[N, M] x, float[1] w) => (float[N, M] y)
<float[1] stored = {{3.0}}> {{ y = ai.vitlet.Sample <mode = "{mode}"> (x, {weight}) }}
<domain: "ai.vitlet", opset_import: ["": 17]>
Sample <mode> (a, b) => (c) {{ c = Mul(a, b) }}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ort") / "libsample.so"
    source = ROOT / "csrc" / "ort"
    assert COMPILER is not None
    subprocess.run(
        [COMPILER, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-O1", "-fPIC", "-shared",
         "-fvisibility=hidden", f"-I{source}", f"-I{ROOT / 'csrc' / 'kernels'}",
         source / "register.cpp", source / "custom_op.cpp", ROOT / "csrc" / "kernels" / "cpu.cpp",
         Path(__file__).with_name("sample_operator.cpp"), "-o", out],
        check=True, timeout=120,
    )  # fmt: skip
    return out


def session(library: Path | None, mode: str = "plain", weight: str = "w", threads: int = 0) -> Any:
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    if threads:
        options.add_session_config_entry("vitlet.threads", str(threads))
    if library:
        options.register_custom_ops_library(str(library))
    text = MODEL.format(mode=mode, weight=weight)
    data = onnx.parser.parse_model(text).SerializeToString()
    return runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run(made: Any, x: Any) -> Any:
    return made.run(None, {"x": x, "w": np.array([5], np.float32)})[0]


X = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_one_file_runs_with_the_library_and_without(library: Path) -> None:
    np.testing.assert_array_equal(run(session(library), X), X * 5)
    np.testing.assert_array_equal(run(session(None), X), X * 5)


def test_the_kernel_wins_over_the_function(library: Path) -> None:
    assert run(session(library, "tell"), X)[0, 0] == 10
    assert run(session(None, "tell"), X)[0, 0] == 0


def test_constants_of_the_graph_are_seen_when_the_kernel_is_made(library: Path) -> None:
    np.testing.assert_array_equal(run(session(library, "tell", "stored"), X), X * 3 + 1010)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_session_says_how_many_threads(library: Path, threads: int) -> None:
    assert run(session(library, "tell", threads=threads), X)[0, 0] == 10 * threads


def test_empty_tensors(library: Path) -> None:
    assert run(session(library), np.zeros((0, 3), np.float32)).shape == (0, 3)


def test_errors_come_back_as_onnx_runtimes(library: Path) -> None:
    with pytest.raises(Exception, match=r"\[Sample\] expected a mode that works, got broken"):
        session(library, "broken")


def test_sessions_come_and_go(library: Path) -> None:
    first = session(library)
    for _ in range(5):
        assert run(session(library), X)[0, 1] == 5
    assert run(first, X)[0, 1] == 5


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("nm"), reason="needs nm")
def test_nothing_else_is_exported(library: Path) -> None:
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True
    ).stdout
    names = {line.split()[-1] for line in listed.splitlines() if " T " in line}
    assert names == {"RegisterCustomOps"}
