"""Device files are read strictly, and a device's own speed is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitlet.errors import UsageError
from vitlet.partition.devices import Device, parse_devices, read_devices, write_devices
from vitlet.partition.placing import probe
from vitlet.runtime.ort import OrtEngine

PI: dict[str, Any] = {"name": "pi", "memory": 512_000_000, "speed": 1e9}


@pytest.mark.parametrize("ending", [".json", ".toml"])
def test_devices_survive_a_file(tmp_path: Path, ending: str) -> None:
    devices = (
        Device('pi "one"', 512_000_000, 1.25e9, 2e9, "joules", 4.5, 0.002, 2.5e6, 0.001),
        Device("two", 1, 1e-3),
    )
    write_devices(devices, tmp_path / f"devices{ending}")
    assert read_devices(tmp_path / f"devices{ending}") == devices


def test_memory_takes_units(tmp_path: Path) -> None:
    for text, size in (("512 MB", 512_000_000), ("1.5GiB", 3 << 29), ("7 B", 7), ("2 kb", 2000)):
        assert parse_devices([{**PI, "memory": text}])[0].memory == size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory": "a lot"}, "512 MB"),
        ({"memory": 0}, "whole number from 1"),
        ({"memory": 1.5}, "whole number"),
        ({"memory": True}, "whole number"),
        ({"speed": 0}, "greater than 0"),
        ({"speed": float("nan")}, "must be a number"),
        ({"speed": "fast"}, "must be a number"),
        ({"speed": None}, "no 'speed'"),
        ({"budget": -1}, "greater than 0"),
        ({"budget_unit": "watts"}, '"flops" or "joules"'),
        ({"budget": 1, "budget_unit": "joules"}, "needs `watts`"),
        ({"name": ""}, "must be a text"),
        ({"spead": 1}, "unknown field 'spead': it takes name, memory"),
        ({"overhead": -0.1}, "at least 0"),
    ],
)
def test_a_device_that_makes_no_sense_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_devices([{**PI, **change}])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.json", "[]", "at least one device"),
        ("d.json", "{", "cannot be read"),
        ("d.json", '{"device": []}', "unknown field 'device'"),
        ("d.json", "7", "must be a table"),
        ("d.json", json.dumps([PI, PI]), "'pi' comes twice"),
        ("d.toml", "[[devices]", "cannot be read"),
        ("d.txt", "", "ends in .toml or .json"),
    ],
)
def test_a_file_that_is_none_is_refused(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        read_devices(tmp_path / name)
    with pytest.raises(UsageError, match="cannot read"):
        read_devices(tmp_path / "none.json")


def test_costs_and_times_add_up() -> None:
    device = Device("d", 1, 1e9, 1.0, "joules", 4.0, overhead=0.5, link_rate=100, link_latency=1)
    assert device.compute_seconds(5e8) == pytest.approx(1.0)
    assert device.cost(5e8) == pytest.approx(4.0)
    assert Device("e", 1, 1e9).cost(5e8) == 1e9  # two FLOPs for a multiply-accumulate
    assert device.transfer_seconds(150, 50) == pytest.approx(4.0)


def test_the_probe_is_a_transformer(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    content = probe.transformer(16)
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    counts = [node.op_type for node in model.graph.node]
    assert counts.count("MatMul") == 8 * probe.DEPTH and counts.count("Softmax") == probe.DEPTH
    (tmp_path / "probe.onnx").write_bytes(content)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, probe.TOKENS, 16)).astype(np.float32)
    got = OrtEngine(tmp_path / "probe.onnx").run({"x": x})["y"]
    w = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}

    def norm(t: Any) -> Any:
        return (t - t.mean(-1, keepdims=True)) / np.sqrt(t.var(-1, keepdims=True) + 1e-5)

    y = x.astype(np.float64)
    for b in map(str, range(probe.DEPTH)):
        q, k, v = (norm(y) @ w[f"w{b}{part}"] for part in "qkv")
        raised = np.exp(q @ k.transpose(0, 2, 1) / 4)
        y = y + raised / raised.sum(-1, keepdims=True) @ v @ w[f"w{b}o"]
        y = y + np.maximum(norm(y) @ w[f"w{b}1"], 0) @ w[f"w{b}2"]
    np.testing.assert_allclose(got, y, rtol=1e-3, atol=1e-3)
    matrices = sum(t.size for t in w.values() if t.ndim == 2)
    assert probe.macs(16) == probe.TOKENS * matrices + probe.DEPTH * 2 * probe.TOKENS**2 * 16


def test_a_line_is_put_through_times() -> None:
    speed, overhead = probe.fit_line([1e6, 4e6, 9e6], [0.003 + w / 2e9 for w in (1e6, 4e6, 9e6)])
    assert speed == pytest.approx(2e9) and overhead == pytest.approx(0.003)
    speed, overhead = probe.fit_line([1e6, 4e6], [0.5e-3, 2.2e-3])  # would start below zero
    assert overhead == 0.0 and 1.8e9 < speed < 2.0e9


def test_this_machine_has_a_speed() -> None:
    speed, overhead = probe.measure_speed(0.05)
    assert 1e6 < speed < 1e14 and 0 <= overhead < 10
    with pytest.raises(UsageError, match="positive time"):
        probe.measure_speed(0)
