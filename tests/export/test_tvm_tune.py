"""Tuning TVM's kernels: measured in a process that may die, resumed, and kept only where faster."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tvm
from torch import nn
from tvm import te
from tvm_modules import graph_of

from vitlet.errors import UnsupportedError, UsageError, VitletError
from vitlet.export import tvm_gemm, tvm_tuning
from vitlet.export.options import Tuning, resolve
from vitlet.export.tvm import export_tvm
from vitlet.export.tvm_schedule import tile_for
from vitlet.export.tvm_targets import find_machine
from vitlet.export.tvm_tuning import MEASURED, key_of, read, tune

MACHINE = find_machine()
OPTIONS = {"num-cores": 1, **MACHINE.options()}
TILE = tile_for(MACHINE.cpu_features)


def product(rows: int) -> object:
    """The kernel of a (rows, 8) by (8, 16) product."""
    x, w = te.placeholder((rows, 8)), te.placeholder((1, 8, 16))
    out = tvm_gemm.product((rows,), lambda *at: x[at], w, 16)
    return te.create_prim_func([x, w, out])


def folder_of(records: Path) -> Path:
    return records / str(OPTIONS["mcpu"])


def rewrite(records: Path, **values: float) -> None:
    """Claim other times for all kernels."""
    path = folder_of(records) / MEASURED
    changed = [dataclasses.replace(m, **values) for m in read(path.parent).values()]
    path.write_text("".join(json.dumps(dataclasses.asdict(m)) + "\n" for m in changed))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Records of a kernel that was really tuned, and what was told on the way."""
    records, told = tmp_path_factory.mktemp("records"), []

    def progress(step: str) -> contextlib.AbstractContextManager[object]:
        told.append(step)
        return contextlib.nullcontext()

    tune({"first": product(5)}, OPTIONS, TILE, Tuning(2, 5.0, records), progress)
    return records, told


@pytest.mark.slow
def test_measures_the_rules_and_the_best_of_the_trials(measured) -> None:
    records, told = measured
    (found,) = read(folder_of(records)).values()
    assert (found.kernel, found.trials) == (key_of(product(5)), 2)
    assert found.rules > 0
    assert found.tuned is not None and found.tuned > 0
    assert told == ["tune first (1 of 1)"]


@pytest.mark.slow
def test_what_was_measured_is_not_measured_again_and_kept_if_faster(measured, monkeypatch) -> None:
    records, _ = measured
    monkeypatch.setattr(tvm_tuning, "_WORKER", "there.is.no.such.module")
    for tuned, kept in ((0.98e-6, {}), (0.5e-6, {"f"})):
        rewrite(records, rules=1e-6, tuned=tuned)
        found = tune({"f": product(5)}, OPTIONS, TILE, Tuning(2, 5.0, records))
        assert set(found) == set(kept)
    # It is a schedule of the same function.
    library = tvm.compile(tvm.IRModule({"main": found["f"].with_attr("global_symbol", "main")}),
                          target=MACHINE.target())  # fmt: skip
    random = np.random.default_rng(0)
    x, panel = (random.standard_normal(s).astype(np.float32) for s in ((5, 8), (1, 8, 16)))
    out = tvm.runtime.tensor(np.zeros((5, 16), np.float32))
    library.jit()["main"](tvm.runtime.tensor(x), tvm.runtime.tensor(panel), out)
    assert np.allclose(out.numpy(), x @ panel[0], atol=1e-5)
    # More trials than there were are measured; the tuner that is not there is told of.
    with pytest.raises(VitletError, match=r"TVM's tuner failed: .*No module named"):
        tune({"f": product(5)}, OPTIONS, TILE, Tuning(3, 5.0, records))


WORKER = """
import json, os, pathlib, re, sys, time
room = pathlib.Path(sys.argv[1])
job = json.loads((room / "job.json").read_text())
kernels = sorted(set(re.findall(r'"f([0-9a-f]{16})"', (room / "kernels.json").read_text())))
for kernel in kernels:
    print(json.dumps({"event": "begin", "kernel": kernel}), flush=True)
    if kernel == os.environ["KILLS"]:
        os.kill(os.getpid(), 9)
    if os.environ["KILLS"] == "none returns":
        time.sleep(60)
    line = {"kernel": kernel, "trials": job["trials"], "rules": 1.0, "tuned": None}
    with open(job["records"] + "/measured.jsonl", "a") as file:
        print(json.dumps(line), file=file)
    print(json.dumps({"event": "end", "kernel": kernel}), flush=True)
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another worker, without TVM; the environment says which kernel kills it."""
    (tmp_path / "odd_tuner.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(tvm_tuning, "_WORKER", "odd_tuner")
    return tmp_path / "records"


def test_a_kernel_that_kills_the_tuner_keeps_its_loops_and_the_others_go_on(
    worker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    functions = {f"f{rows}": product(rows) for rows in (2, 3, 4)}
    keys = sorted(key_of(f) for f in functions.values())
    monkeypatch.setenv("KILLS", keys[1])
    assert tune(functions, OPTIONS, TILE, Tuning(4, 5.0, worker)) == {}
    assert sorted(read(folder_of(worker))) == [keys[0], keys[2]]


def test_the_time_for_tuning_is_kept_to(worker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KILLS", "none returns")
    assert tune({"f": product(2)}, OPTIONS, TILE, Tuning(4, 0.02, worker)) == {}
    assert read(folder_of(worker)) == {}


def test_a_line_cut_short_is_no_measurement(tmp_path: Path) -> None:
    whole = '{"kernel": "k", "trials": 2, "rules": 1.0, "tuned": null}\n'
    (tmp_path / MEASURED).write_text(whole + '{"kernel": "l", "tri')
    assert list(read(tmp_path)) == ["k"]


def test_an_export_asks_for_its_kernels_and_says_so(tmp_path: Path, monkeypatch) -> None:
    asked: list[str] = []

    def keep(functions, machine, tile, tuning, progress):
        asked.extend(functions)
        assert (machine["mcpu"], tile, tuning.trials) == (MACHINE.cpu, TILE, 7)
        return {}

    monkeypatch.setattr(tvm_tuning, "tune", keep)
    model = nn.Linear(4, 3)
    model.shape = (4,)  # type: ignore[assignment]
    made = export_tvm(graph_of(model), tmp_path / "m.tvm.so", tuning=Tuning(7, 1.0, tmp_path))
    assert len(asked) == 1
    assert made.details["tuned_trials"] == 7


def test_wrong_wishes_are_refused_before_any_work(tmp_path: Path) -> None:
    tuning = resolve("tvm", tvm_tune=8, tvm_tune_minutes=2, tvm_records=tmp_path).tuning
    assert tuning == Tuning(8, 2, tmp_path)
    for arguments, message in (
        ({"tvm_tune": 0}, "at least 1 trial, got 0"),
        ({"tvm_tune": 8, "tvm_tune_minutes": 0}, "more than 0"),
        ({"tvm_tune_minutes": 5}, "are for tvm_tune"),
        ({"tvm_tune": 8, "tvm_target": "raspberry-pi-5"}, "tvm_tune measures on this machine"),
        ({"targets": "onnx", "tvm_tune": 8}, "tvm_tune=8 means nothing to onnx"),
    ):
        with pytest.raises((UsageError, UnsupportedError), match=message):
            resolve(**{"targets": "tvm", **arguments})  # type: ignore[arg-type]
