from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitlet.errors import (
    CorruptInputError,
    MissingDependencyError,
    UnsupportedError,
    UsageError,
)
from vitlet.export.trace import Graph, graphs
from vitlet.export.tvm import export_tvm
from vitlet.export.tvm_targets import find_machine
from vitlet.runtime import elf
from vitlet.runtime.manifest import Artifact, TensorSpec
from vitlet.runtime.session import load
from vitlet.runtime.tvm import TvmEngine

SHAPE = (3, 32, 32)
needs_cross = pytest.mark.skipif(not shutil.which("aarch64-linux-gnu-g++"), reason="no cross g++")


def graph_of(module: nn.Module, *shape: int) -> Graph:
    """A graph around any module that takes one float tensor of this shape, batch excluded."""
    image = TensorSpec("image", "float32", ("batch", *shape))
    return Graph("model", module.eval(), (image,), (TensorSpec("logits", "float32", ("batch",)),))


def difference(engine: TvmEngine, module: nn.Module, x: Tensor) -> float:
    """Largest difference to torch, relative to the largest value."""
    with torch.no_grad():
        expected = module(x).numpy()
    name = engine.inputs[0].name
    (actual,) = engine.run({name: x.numpy()}).values()
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module")
def exported(
    small_conv: nn.Module, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Artifact]:
    path = tmp_path_factory.mktemp("tvm") / "model.host.tvm.so"
    (graph,) = graphs(small_conv, SHAPE)
    return path, export_tvm(graph, path, batch=2)


@pytest.mark.parametrize("name", ["small_vit", "small_conv"])
@pytest.mark.parametrize("batch", [1, 2, "dyn"])
def test_computes_the_model(
    name: str, batch: int | str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)
    (graph,) = graphs(model, SHAPE)
    artifact = export_tvm(graph, tmp_path / "m.tvm.so", batch=batch)
    engine = TvmEngine(tmp_path / "m.tvm.so", artifact)
    assert engine.inputs == artifact.inputs
    for rows in [batch] if isinstance(batch, int) else [1, 2, 5]:
        (x,) = graph.example(int(rows), seed=int(rows))
        assert difference(engine, model, x) < 1e-5


class Products(nn.Module):
    """Linear layers of several widths, then x @ x^T and its product with x, as in attention."""

    widths = (1, 3, 16, 77)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, 13) for width in self.widths)

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for layer, part in zip(self.layers, x.split(self.widths, dim=2), strict=True):
            y = nn.functional.gelu(layer(part))
            scores = y @ y.transpose(1, 2)
            parts.append((scores.softmax(-1) @ part).flatten(1))
        return torch.cat(parts, dim=1)


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 49, 77, 197])
def test_every_size_of_product_is_right(rows: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Products()
    export_tvm(graph_of(module, rows, sum(Products.widths)), tmp_path / "m.tvm.so")
    engine = TvmEngine(tmp_path / "m.tvm.so")
    assert difference(engine, module, torch.randn(1, rows, sum(Products.widths))) < 1e-5


class Convolutions(nn.Module):
    """Every kind of convolution, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(5, 11, 1),
                nn.Conv2d(5, 16, 1, stride=2),
                nn.Conv2d(5, 16, 3, padding=1, bias=False),
                nn.Conv2d(5, 8, 3, stride=2, padding=1),
                nn.Conv2d(5, 8, (1, 3), padding=(0, 1)),
                nn.Conv2d(5, 8, 3, padding=2, dilation=2),
                nn.Conv2d(5, 5, 7, padding=3, groups=5),
                nn.Conv2d(5, 10, 3, stride=2, padding=1, groups=5),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([nn.functional.gelu(y(x)).flatten(1) for y in self.layers], dim=1)


@pytest.mark.parametrize("size", [1, 4, 7, 14, 28, 48])
def test_every_convolution_is_right(size: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Convolutions()
    export_tvm(graph_of(module, 5, size, size), tmp_path / "m.tvm.so", batch=2)
    engine = TvmEngine(tmp_path / "m.tvm.so")
    assert difference(engine, module, torch.randn(2, 5, size, size)) < 1e-5


@pytest.mark.parametrize("cpu", ["x86-64", "x86-64-v3"])
def test_every_register_tile_is_right(small_vit: nn.Module, cpu: str, tmp_path: Path) -> None:
    if find_machine().triple != "x86_64-linux-gnu":
        pytest.skip("these are names of x86 processors")
    (graph,) = graphs(small_vit, SHAPE)
    export_tvm(graph, tmp_path / "m.tvm.so", cpu=cpu)
    (x,) = graph.example(1)
    assert difference(TvmEngine(tmp_path / "m.tvm.so"), small_vit, x) < 1e-5


@pytest.mark.parametrize("batch", [1, "dyn"])
def test_computes_both_towers_of_a_clip_model(
    small_clip: nn.Module, batch: int | str, tmp_path: Path
) -> None:
    for graph in graphs(small_clip, SHAPE):
        export_tvm(graph, tmp_path / "m.tvm.so", batch=batch)
        for rows in (1, 3) if batch == "dyn" else (1,):
            (x,) = graph.example(rows)
            assert difference(TvmEngine(tmp_path / "m.tvm.so"), graph.module, x) < 1e-5


def test_gelu_is_exact_enough_everywhere(tmp_path: Path) -> None:
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, 1e-30, -1e30, 1e30])])
    export_tvm(graph_of(nn.GELU(), len(x)), tmp_path / "m.tvm.so")
    (y,) = TvmEngine(tmp_path / "m.tvm.so").run({"image": x[None].numpy()}).values()
    expected = nn.functional.gelu(x.double()).numpy()
    assert np.max(np.abs(y[0] - expected) / np.maximum(1, np.abs(expected))) < 1e-6


def test_a_token_out_of_range_cannot_read_elsewhere(tmp_path: Path) -> None:
    table = nn.Embedding(10, 4)
    tokens = TensorSpec("tokens", "int64", ("batch", 77))
    module = nn.Sequential(table, nn.Flatten()).eval()
    graph = Graph("text", module, (tokens,), (TensorSpec("embedding", "float32", ("batch",)),))
    artifact = export_tvm(replace_example(graph), tmp_path / "m.tvm.so")
    given = np.full((1, 77), 2**40, np.int64)
    given[0, :2] = 3, -5
    (rows,) = TvmEngine(tmp_path / "m.tvm.so", artifact).run({"tokens": given}).values()
    allowed = {tuple(row) for row in table.weight.detach().numpy()}
    assert {tuple(row) for row in rows.reshape(77, 4)} <= allowed


def replace_example(graph: Graph) -> Graph:
    class Small(Graph):
        def example(self, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
            return (torch.zeros(batch, 77, dtype=torch.int64),)

    return Small(graph.name, graph.module, graph.inputs, graph.outputs)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_session_runs_any_number_of_rows(
    exported: tuple[Path, Artifact], small_conv: nn.Module, count: int
) -> None:
    x = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(count))
    logits = load(exported[0]).run({"image": x.numpy()})["logits"]
    with torch.no_grad():
        np.testing.assert_allclose(logits, small_conv(x).numpy(), rtol=1e-4, atol=1e-5)


def test_a_second_export_to_the_same_place_is_what_runs_next(tmp_path: Path) -> None:
    for seed in range(2):
        torch.manual_seed(seed)
        module = nn.Linear(4, 3)
        export_tvm(graph_of(module, 4), tmp_path / "m.tvm.so")
        assert difference(TvmEngine(tmp_path / "m.tvm.so"), module, torch.randn(1, 4)) < 1e-5


def test_equal_exports_are_equal_bytes(
    exported: tuple[Path, Artifact], small_conv: nn.Module, tmp_path: Path
) -> None:
    (graph,) = graphs(small_conv, SHAPE)
    export_tvm(graph, tmp_path / "another-name.tvm.so", batch=2)
    assert (tmp_path / "another-name.tvm.so").read_bytes() == exported[0].read_bytes()


def test_holds_no_path_of_the_machine_that_made_it(exported: tuple[Path, Artifact]) -> None:
    content = exported[0].read_bytes()
    for text in (b"/tmp/", b"vitlet-", str(Path.cwd()).encode(), str(Path.home()).encode() + b"/"):
        assert text not in content


def test_records_what_kernels_wrote(exported: tuple[Path, Artifact], small_conv: nn.Module) -> None:
    engine = TvmEngine(*exported)
    x = torch.randn(2, *SHAPE)
    outputs, calls = engine.run_traced({"image": x.numpy()})
    assert len(calls) >= 3
    assert all(name and isinstance(array, np.ndarray) for name, array in calls)
    plain = engine.run({"image": x.numpy()})
    np.testing.assert_array_equal(outputs["logits"], plain["logits"])
    assert any(np.array_equal(array, plain["logits"]) for _, array in calls)


def test_threads_of_the_caller_get_their_own_answers(exported: tuple[Path, Artifact]) -> None:
    engine = TvmEngine(*exported, threads=2)
    given = [np.random.default_rng(i).normal(size=(2, *SHAPE)).astype("f4") for i in range(3)]
    expected = [engine.run({"image": x})["logits"] for x in given]
    wrong: list[int] = []

    def work(which: int) -> None:
        for _ in range(10):
            if not np.array_equal(engine.run({"image": given[which]})["logits"], expected[which]):
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_takes_arrays_however_they_lie_in_memory(exported: tuple[Path, Artifact]) -> None:
    engine = TvmEngine(*exported)
    x = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype("f4")
    expected = engine.run({"image": x})["logits"]
    odd = np.empty(x.nbytes + 4, np.uint8)[4:].view("f4").reshape(x.shape)
    odd[...] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    turned = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for given in (odd, frozen, turned):
        np.testing.assert_array_equal(engine.run({"image": given})["logits"], expected)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_leaves_the_process_free_to_use_every_core(exported: tuple[Path, Artifact]) -> None:
    before = os.sched_getaffinity(0)
    TvmEngine(*exported).run({"image": np.zeros((2, *SHAPE), "f4")})
    assert os.sched_getaffinity(0) == before


def test_loading_again_and_again_does_not_grow(exported: tuple[Path, Artifact]) -> None:
    def rounds(count: int) -> int:
        for _ in range(count):
            TvmEngine(*exported).run({"image": np.zeros((2, *SHAPE), "f4")})
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = rounds(20)
    assert rounds(200) - before < 40 * 1024  # KiB; a library and its weights take 0.5 MiB


def test_runs_without_torch_and_without_the_compiler(exported: tuple[Path, Artifact]) -> None:
    code = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        assert name.split(".")[0] not in ("torch", "tvm") , name + " was imported"
import vitlet, importlib.util
import numpy as np
session = vitlet.load(sys.argv[1])
session.run({"image": np.zeros((2, 3, 32, 32), "f4")})
assert not {"torch", "tvm"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported[0])], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_compiling_is_silent(tmp_path: Path) -> None:
    code = """
import sys, torch
from torch import nn
from vitlet.export.trace import graphs
from vitlet.export.tvm import export_tvm
class First(nn.Module):
    def forward(self, x): return x[:, 0]
model = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.Flatten(2), First(), nn.LayerNorm(16)).eval()
export_tvm(graphs(model, (3, 32, 32))[0], sys.argv[1])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.tvm.so")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_cross
def test_compiles_for_a_board_and_refuses_to_load_it_here(
    small_conv: nn.Module, tmp_path: Path
) -> None:
    (graph,) = graphs(small_conv, SHAPE)
    path = tmp_path / "m.aarch64.tvm.so"
    artifact = export_tvm(graph, path, triple="aarch64-linux-gnu")
    record = elf.read_record(path)
    assert (record.machine, record.triple) == ("aarch64", "aarch64-linux-gnu")
    assert artifact.details["cpu_features"] == ["asimd"]
    if find_machine().triple != "aarch64-linux-gnu":
        with pytest.raises(UnsupportedError, match=r"compiled for aarch64.*this machine is"):
            TvmEngine(path, artifact)


def test_refuses_instruction_sets_that_this_processor_lacks(
    exported: tuple[Path, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elf, "cpu_flags", lambda: frozenset({"fpu", "sse"}))
    with pytest.raises(UnsupportedError, match="which this processor does not have"):
        TvmEngine(*exported)


def test_refuses_a_library_cut_at_any_place(
    exported: tuple[Path, Artifact], tmp_path: Path
) -> None:
    good = exported[0].read_bytes()
    for keep in [0, 1, 63, 64, 1000, len(good) // 2, len(good) - 1]:
        (tmp_path / "cut.tvm.so").write_bytes(good[:keep])
        with pytest.raises(CorruptInputError, match=r"cut\.tvm\.so"):
            TvmEngine(tmp_path / "cut.tvm.so")


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF" + bytes(100)])
def test_refuses_what_is_not_a_compiled_graph(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.so").write_bytes(content)
    with pytest.raises(CorruptInputError):
        TvmEngine(tmp_path / "x.so")


def test_refuses_a_library_of_somebody_else() -> None:
    system = next(Path("/lib").glob("*/libm.so.6"), None) or Path(sys.executable)
    with pytest.raises(CorruptInputError, match=r"not made by `vitlet export`|not a shared"):
        TvmEngine(system)


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i1(torch.special.i0e(x)).flatten(1)


def test_names_every_operator_it_cannot_take_with_its_module(tmp_path: Path) -> None:
    model = nn.Sequential(nn.ReLU(), Odd())
    with pytest.raises(UnsupportedError, match=r"special_i0e.*in 1.*special_i1.*in 1"):
        export_tvm(graph_of(model, 4), tmp_path / "m.tvm.so")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"precision": "fp16"}, UnsupportedError),
        ({"batch": (1, 8)}, UnsupportedError),
        ({"batch": 0}, UsageError),
        ({"batch": "8"}, UsageError),
        ({"triple": "riscv64-linux-gnu"}, UnsupportedError),
        ({"cpu": "pentium-900"}, UnsupportedError),
    ],
)
def test_refuses_arguments_before_any_work(
    arguments: dict[str, object], error: type[Exception], tmp_path: Path
) -> None:
    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("work was started")

    with pytest.raises(error):
        export_tvm(graph_of(Never(), 4), tmp_path / "m.tvm.so", **arguments)  # type: ignore[arg-type]


def test_names_the_package_of_a_missing_cross_compiler(
    small_conv: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (graph,) = graphs(small_conv, SHAPE)
    with pytest.raises(MissingDependencyError, match=r"apt install g\+\+-aarch64-linux-gnu"):
        export_tvm(graph, tmp_path / "m.tvm.so", triple="aarch64-linux-gnu")
