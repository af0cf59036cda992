"""Runs cross-compiled graphs in an emulator; scripts/tvm-aarch64 fetches what it needs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from tvm_modules import Attention, Linears, Mixer, graph_of

import vitlet
from vitlet.data.spec import Preprocess
from vitlet.export.trace import graphs
from vitlet.export.truth import golden_truth
from vitlet.export.tvm import export_tvm

GRAPH = Path(__file__).parents[2] / "apps" / "cpp"  # where graph.h is
TRIPLE = "aarch64-linux-gnu"
LIBRARIES = os.environ.get("VITLET_TVM_AARCH64", "")
pytestmark = [
    pytest.mark.arm,
    pytest.mark.skipif(
        not (Path(LIBRARIES) / "libtvm_runtime.so").is_file() or not LIBRARIES,
        reason="TVM's runtime for aarch64 is not there: scripts/tvm-aarch64 fetches it",
    ),
    pytest.mark.skipif(
        not (shutil.which("qemu-aarch64") and shutil.which(f"{TRIPLE}-g++")),
        reason="qemu-aarch64 and the aarch64 cross compiler are needed",
    ),
]


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.find_spec("tvm_ffi")
    assert spec is not None and spec.submodule_search_locations
    headers = Path(spec.submodule_search_locations[0]) / "include"
    path = tmp_path_factory.mktemp("runner") / "runner"
    source = Path(__file__).with_name("tvm_runner.cpp")
    subprocess.run(
        [f"{TRIPLE}-g++", "-std=c++17", f"-I{headers}", f"-I{GRAPH}", str(source), "-o", str(path),
         f"-L{LIBRARIES}", "-ltvm_ffi", "-ldl"],
        check=True, timeout=300,
    )  # fmt: skip
    return path


def test_a_board_computes_the_model(small_vit: nn.Module, runner: Path, tmp_path: Path) -> None:
    (graph,) = graphs(small_vit, (3, 32, 32))
    export_tvm(graph, tmp_path / "m.tvm.so", target=TRIPLE, batch=2)
    (x,) = graph.example(2)
    run(runner, x.numpy(), tmp_path / "m.tvm.so", tmp_path)
    with torch.no_grad():
        compare(small_vit(x).numpy(), tmp_path)


def test_a_board_gives_the_answers_in_its_bundle(
    small_conv: nn.Module, small_spec: Preprocess, runner: Path, tmp_path: Path
) -> None:
    bundle = vitlet.export(
        small_conv, "tvm", tmp_path / "b", spec=small_spec, tvm_target="raspberry-pi-5"
    )
    (artifact,) = bundle.manifest.artifacts
    cases = golden_truth(bundle.manifest, bundle.path).cases["model"]
    assert {case.kind for case in cases} == {"real", "random", "worst"}
    for case in cases:
        run(runner, case.floats(small_spec), bundle.path / artifact.file, tmp_path)
        compare(case.output, tmp_path)


@pytest.mark.parametrize(
    ("kind", "target"), [(Mixer, TRIPLE), (Linears, "raspberry-pi-5"), (Attention, TRIPLE)]
)
def test_a_board_computes_our_operators(
    kind: type[nn.Module], target: str, runner: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = kind()
    export_tvm(graph_of(model), tmp_path / "m.tvm.so", target=target, batch=2)
    x = torch.randn(2, *model.shape)  # type: ignore[misc]
    run(runner, x.numpy(), tmp_path / "m.tvm.so", tmp_path)
    with torch.no_grad():
        compare(model(x).numpy(), tmp_path)


def run(runner: Path, x: np.ndarray, library: Path, tmp_path: Path) -> None:
    x.tofile(tmp_path / "in")
    subprocess.run(
        ["qemu-aarch64", "-L", f"/usr/{TRIPLE}", "-E", f"LD_LIBRARY_PATH={LIBRARIES}",
         str(runner), str(library), str(tmp_path / "in"), str(tmp_path / "out"),
         *(str(size) for size in x.shape)],
        check=True, timeout=300, env={**os.environ, "TVM_NUM_THREADS": "1"},
    )  # fmt: skip


def compare(expected: np.ndarray, tmp_path: Path) -> None:
    actual = np.fromfile(tmp_path / "out", np.float32).reshape(expected.shape)
    assert np.abs(actual - expected).max() < 1e-5 * np.abs(expected).max()
