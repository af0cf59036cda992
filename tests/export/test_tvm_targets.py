"""Machines for TVM by name, and what a library compiled for one of them is where it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn
from tvm_modules import graph_of

from vitlet.errors import UnsupportedError, UsageError
from vitlet.export.options import resolve
from vitlet.export.tvm import export_tvm
from vitlet.export.tvm_gemm import Tile
from vitlet.export.tvm_schedule import tile_for
from vitlet.export.tvm_targets import MACHINES, find_machine
from vitlet.runtime import elf, select
from vitlet.runtime.manifest import Artifact


@pytest.mark.parametrize(
    ("name", "triple", "cpu", "has", "lacks", "tile"),
    [
        ("raspberry-pi-5", "aarch64", "cortex-a76", "asimddp", "i8mm",
         Tile(6, 16, 4, "dotprod")),
        ("raspberry-pi-4", "aarch64", "cortex-a72", "asimd", "asimddp", Tile(6, 16, 4)),
        ("x86-64-v3", "x86_64", "x86-64-v3", "avx2", "avx512f", Tile(6, 16, 8, "avx2")),
        ("x86-64-v4", "x86_64", "x86-64-v4", "avx512f", "avx512_vnni", Tile(8, 32, 16)),
        ("llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a53 -mattr=+dotprod", "aarch64",
         "cortex-a53", "asimddp", "asimdhp", Tile(6, 16, 4, "dotprod")),
        ("llvm -mcpu=alderlake", "x86_64", "alderlake", "avx_vnni", "avx512f",
         Tile(6, 16, 8, "avxvnni")),
        ("llvm -mcpu=icelake-server", "x86_64", "icelake-server", "avx512_vnni", "avx512_bf16",
         Tile(8, 32, 16, "avx512vnni")),
    ],
)  # fmt: skip
def test_a_name_stands_for_a_processor(name, triple, cpu, has, lacks, tile) -> None:
    machine = find_machine(target=name)
    assert (machine.triple, machine.cpu) == (f"{triple}-linux-gnu", cpu)
    assert has in machine.cpu_features
    assert lacks not in machine.cpu_features
    assert tile_for(machine.cpu_features) == tile
    assert machine.name == (name if name in MACHINES else machine.triple)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raspberry-pi5", "did you mean raspberry-pi-5 or raspberry-pi-4"),
        ("toaster", "choose native, raspberry-pi-5"),
        ("llvm -mtriple", "a TVM target takes -mtriple=, -mcpu=, -mattr= and -num-cores="),
        ("llvm -num-cores=none", "-num-cores must be a number from 1"),
        ("llvm -mattr=dotprod", "-mattr takes features such as [+]dotprod"),
        ("llvm -mtriple=riscv64-linux-gnu", "tvm does not compile for 'riscv64-linux-gnu'"),
        ("llvm -mtriple=x86_64-linux-gnu -mcpu=znver33", "did you mean znver3"),
    ],
)
def test_an_unknown_machine_is_refused_with_what_is_near(name: str, message: str) -> None:
    with pytest.raises((UsageError, UnsupportedError), match=message):
        find_machine(target=name)


def test_options_take_several_machines_and_their_features() -> None:
    both = resolve("tvm", tvm_target="raspberry-pi-5, native")
    assert both.machines == ("raspberry-pi-5", None)
    written = "llvm -mcpu=znver3 -mattr=+avxvnni,-fma"
    assert resolve("tvm", tvm_target=f"{written},x86-64-v2").machines == (written, "x86-64-v2")
    with pytest.raises(UsageError, match="both name machines"):
        resolve("tvm", tvm_target="native", triple="native")
    with pytest.raises(UsageError, match="unknown TVM target"):
        resolve("tvm", tvm_target="native,toaster")
    with pytest.raises(UnsupportedError, match="does not go with"):
        resolve("tvm", tvm_target="raspberry-pi-5", tvm_extern="vitlet")


def test_of_several_libraries_the_best_that_runs_is_taken(monkeypatch) -> None:
    machine = find_machine().triple
    needs = {"old": ["pni"], "best": ["pni", "avx2"], "newer": ["pni", "avx2", "avx512f"]}
    artifacts = [
        Artifact(
            "tvm",
            "model",
            name,
            "fp32",
            (),
            (),
            details={"triple": machine, "cpu_features": features},
        )
        for name, features in needs.items()
    ]
    bundle = SimpleNamespace(path=Path("b"), manifest=SimpleNamespace(artifacts=artifacts))
    for flags, file in (
        ({"pni", "avx2"}, "best"),
        ({"pni"}, "old"),
        ({"fpu"}, "old"),  # none runs: the message of the first is what is seen
        (set(), "newer"),  # a system that does not tell
    ):
        monkeypatch.setattr(select, "cpu_flags", lambda flags=flags: frozenset(flags))
        assert select.select(bundle, "model", "tvm")[1].file == file


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with 16 MB of weights, for a processor that nobody has any less of."""
    model = nn.Sequential(nn.Linear(2048, 1024), nn.ReLU(), nn.Linear(1024, 2048))
    model.shape = (2048,)  # type: ignore[assignment]
    path = tmp_path_factory.mktemp("wide") / "m.tvm.so"
    native = find_machine().triple
    name = "x86-64-v2" if native.startswith("x86") else native
    export_tvm(graph_of(model), path, target=name, batch=64)
    return path


def test_a_library_has_the_features_of_its_target(wide: Path) -> None:
    record = elf.read_record(wide)
    if record.machine == "x86_64":
        assert record.cpu == "x86-64-v2"
        assert "sse4_2" in record.cpu_features and "avx" not in record.cpu_features


MEASURE = """
import json, sys
import numpy as np
from vitlet.runtime.tvm import TvmEngine, load_runtime

def anonymous():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines["RssAnon"].split()[0]) * 1024

load_runtime()
image = np.ones((64, 2048), np.float32)
before, used = anonymous(), []
for threads in (2, 1, 2):
    engine = TvmEngine(sys.argv[1], threads=threads)
    engine.run({"image": image})
    used.append(load_runtime().get_global_func("runtime.NumThreads")())
print(json.dumps({"grown": anonymous() - before, "used": used}))
"""


def test_weights_stay_in_the_file_and_threads_are_those_asked_for(wide: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(wide)],
        capture_output=True, text=True, check=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # nothing to TVM
    )  # fmt: skip
    found = json.loads(done.stdout)
    weights = 4 * 2 * 2048 * 1024
    # The arrays between the layers are all that a graph adds.
    assert found["grown"] < weights // 3
    assert found["used"] == [2, 1, 2]
