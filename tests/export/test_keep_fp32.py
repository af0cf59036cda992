"""Holding layers of a Core ML program in float32: by name, and found by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import vitlet
from vitlet.apps.output import Output
from vitlet.apps.trade import show_trade
from vitlet.data.spec import Preprocess
from vitlet.errors import UnsupportedError, UsageError
from vitlet.export.cases import read_cases
from vitlet.export.coreml import export_coreml
from vitlet.export.coreml_program import read_program
from vitlet.export.golden import make_golden
from vitlet.export.keep_fp32 import Decision, choose_fp32
from vitlet.export.options import resolve
from vitlet.export.tolerance import tolerance_for
from vitlet.export.trace import Graph, graphs
from vitlet.runtime import CoreMLExecutor
from vitlet.runtime.manifest import Artifact

SPEC = Preprocess(size=(16, 16), resize_to=16, mean=(0.5,) * 3, std=(0.2, 0.25, 0.3))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(functional.relu(self.fc1(x)))


class Model(nn.Module):
    """Three residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.blocks = nn.Sequential(Block(), Block(), Block())
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x).mean((2, 3))))


def model(scale: float) -> nn.Module:
    """The hidden values of the middle block are `scale` times too large, the output is the same."""
    torch.manual_seed(3)
    made = Model().eval().requires_grad_(False)
    made.blocks[1].fc1.weight *= scale
    made.blocks[1].fc1.bias *= scale
    made.blocks[1].fc2.weight /= scale
    return made


def decide(scale: float, **limits: float) -> tuple[Graph, Decision]:
    module = model(scale)
    listed = graphs(module, (3, 16, 16))
    cases = read_cases(make_golden(module, listed, SPEC))["model"]
    limit = tolerance_for("coreml", "fp16", limits)
    return listed[0], choose_fp32(listed[0], cases, SPEC, limit, picture=True)


@pytest.fixture(scope="module")
def overflowing() -> tuple[Graph, Decision]:
    return decide(2e5)


def test_holds_exactly_the_layers_that_overflow(overflowing: tuple[Graph, Decision]) -> None:
    _, found = overflowing
    assert [entry.layer for entry in found.kept] == ["blocks.1.fc1", "blocks.1", "blocks.1.fc2"]
    assert [entry.type for entry in found.kept] == ["linear", "relu", "linear"]
    assert not found.before.passed and found.before.overflows > 0
    assert found.after.passed and found.after.overflows == 0
    assert found.after.cosine > 0.99999 > found.before.cosine
    assert found.kept[0].largest > 65504 and found.kept[0].elements == 32 * 16 + 32
    grown = 1e6 * (found.after.megabytes - found.before.megabytes)
    assert grown > 2 * 2 * 32 * 16  # the weights of two layers, two bytes more each


def test_no_layer_is_held_in_vain(overflowing: tuple[Graph, Decision], tmp_path: Path) -> None:
    graph, found = overflowing
    for number, name in enumerate(found.names):
        fewer = [other for other in found.names if other != name]
        path = tmp_path / f"{number}.mlpackage"
        export_coreml(graph, path, keep_fp32=fewer)
        feed = {"image": np.ones((1, 3, 16, 16), np.float32)}
        (result,) = CoreMLExecutor(path, "declared").run(feed).values()
        assert not np.isfinite(result).all()


def test_holds_nothing_where_float16_is_enough() -> None:
    _, found = decide(1.0)
    assert found.names == () and found.before == found.after and found.before.passed
    assert found.runs == 0


def test_holds_more_for_a_tighter_tolerance_and_each_of_them_is_needed() -> None:
    _, some = decide(1.0, rel=5e-4)
    assert not some.before.passed and some.after.passed
    assert 0 < len(some.names) < some.operations
    assert some.after.relative <= 5e-4 < some.before.relative


def test_a_tolerance_that_float32_misses_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="with every operation in float32 the cosine"):
        decide(1.0, rel=1e-12)


def test_named_modules_keep_their_weights_and_results_in_float32(tmp_path: Path) -> None:
    (graph,) = graphs(model(1.0), (3, 16, 16))
    export_coreml(graph, tmp_path / "m.mlpackage", keep_fp32=["blocks.1", "head"])
    program = read_program(tmp_path / "m.mlpackage")
    single = {weight.values.shape for weight in program.weights if weight.relative < 1e-4}
    assert single == {(32, 16), (32,), (16, 32), (16,), (10, 16), (10,)}
    kinds = {name: [] for name in ("fp16", "fp32")}  # type: dict[str, list[str]]
    executor = CoreMLExecutor(tmp_path / "m.mlpackage")
    feed = {"image": np.zeros((1, 3, 16, 16), np.float32)}
    executor.run(feed, watch=lambda value: kinds[value.declared].append(value.op))
    assert kinds["fp32"].count("linear") == 3 and kinds["fp16"].count("linear") == 4


def test_an_unknown_name_is_refused_with_what_is_like_it(tmp_path: Path) -> None:
    (graph,) = graphs(model(1.0), (3, 16, 16))
    with pytest.raises(UsageError, match=r"names blocks\.1\.fc3.*did you mean blocks\.1\.fc"):
        export_coreml(graph, tmp_path / "m.mlpackage", keep_fp32=["blocks.1.fc3"])


def test_options_read_names_and_refuse_what_means_nothing() -> None:
    assert resolve("coreml", keep_fp32="auto").keep_fp32 == "auto"
    assert resolve("coreml", keep_fp32="head, blocks.1").keep_fp32 == ("head", "blocks.1")
    with pytest.raises(UsageError, match="must be"):
        resolve("coreml", keep_fp32="head,,x")
    with pytest.raises(UnsupportedError, match="fp32"):
        resolve("coreml", keep_fp32="auto", precision="fp32")
    with pytest.raises(UnsupportedError, match="coreml"):
        resolve("onnx", keep_fp32="auto")


def test_the_manifest_tells_the_trade(tmp_path: Path) -> None:
    bundle = vitlet.export(
        model(2e5), ["coreml"], tmp_path / "b.vitlet", spec=SPEC, keep_fp32="auto", verify=False
    )
    facts: dict[str, Any] = bundle.manifest.artifacts[0].details["keep_fp32"]
    assert facts["asked"] == "auto" and len(facts["kept"]) == 3
    assert facts["after"]["passed"] and not facts["before"]["passed"]
    assert facts["kept"][1]["layer"] == "blocks.1"


def test_the_command_line_shows_the_trade(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"cosine": 0.5, "relative": 0.25, "overflows": 3, "megabytes": 1.5, "passed": False}
    kept = {"layer": "blocks.1", "type": "linear", "name": "linear_3", "largest": 70000.0}
    facts: dict[str, Any] = {"asked": "auto", "before": figures, "after": figures, "operations": 40}

    def shown(count: int) -> str:
        details = {"keep_fp32": {**facts, "kept": [kept] * count}}
        artifact = Artifact("coreml", "model", "m.mlpackage", "fp16", (), (), details=details)
        with Output(json=False, quiet=False, verbose=False, progress=False) as out:
            show_trade(out, artifact)
        return capsys.readouterr().out

    assert "nothing is held in float32" in shown(0)
    assert "13 of 40 operations are held in float32" in shown(13) and "and 1 more" in shown(13)
    assert all(text in shown(1) for text in ("blocks.1", "linear_3", "7e+04", "0.5000000", "1.50"))
