"""A training run: stopped at any time it ends in the same weights, bit for bit."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitlet.compress.training import (
    RECORD,
    STATE,
    WEIGHTS,
    Recipe,
    Run,
    file_journal,
    is_finished,
    seeded,
    train,
)
from vitlet.errors import CheckpointError, StorageError, TrainingError, UsageError

INPUTS, TARGETS = torch.randn(64, 3, generator=seeded("x")), torch.randn(64, 2, generator=seeded(1))


class Stopped(Exception):
    pass


def regression(seed: int = 0, epochs: int = 4, stop: int | None = None, **recipe: Any) -> Run:
    """A small run; `stop` raises in the middle of that epoch, counted from 0."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 2))
    steps = iter(range(10**6))

    def loss(indices: Tensor, rng: torch.Generator) -> Tensor:
        if stop is not None and next(steps) == 4 * stop + 2:
            raise Stopped
        noise = torch.randn(len(indices), 3, generator=rng)
        return ((model(INPUTS[indices] + 0.1 * noise) - TARGETS[indices]) ** 2).mean()

    return Run(
        "toy", model, lambda rng: torch.randperm(64, generator=rng), loss,
        Recipe(epochs=epochs, batch=16, lr=1e-2, **recipe), seed, {"data": "made up"},
    )  # fmt: skip


def weights(run: Run) -> list[Tensor]:
    return [p.detach().clone() for p in run.model.parameters()]


@pytest.fixture
def whole(tmp_path: Path) -> list[Tensor]:
    run = regression()
    train(run, tmp_path / "whole")
    return weights(run)


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_a_run_stopped_inside_an_epoch_ends_in_the_same_weights(
    epoch: int, tmp_path: Path, whole: list[Tensor]
) -> None:
    with pytest.raises(Stopped):
        train(regression(stop=epoch), tmp_path / "run")
    assert (tmp_path / "run" / STATE).is_file() == (epoch > 0)
    seen: list[dict[str, Any]] = []
    again = regression()
    train(again, tmp_path / "run", seen.append)
    assert [entry["epoch"] for entry in seen] == list(range(epoch + 1, 5))
    assert all(torch.equal(a, b) for a, b in zip(weights(again), whole, strict=True))


def test_a_killed_process_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    script = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
torch.set_num_threads(1)
from test_training import regression
from vitlet.compress.training import train
train(regression(), sys.argv[1], lambda entry: time.sleep(0.3))
"""

    def start(folder: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", script, str(tmp_path / folder)])

    victim, other = start("killed"), start("whole")
    while not (tmp_path / "killed" / STATE).exists():
        assert victim.poll() is None
        time.sleep(0.01)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    assert not (tmp_path / "killed" / WEIGHTS).exists()
    assert other.wait() == 0 and start("killed").wait() == 0
    assert (tmp_path / "killed" / WEIGHTS).read_bytes() == (
        tmp_path / "whole" / WEIGHTS
    ).read_bytes()


def test_a_finished_run_is_taken_as_it_is(tmp_path: Path, whole: list[Tensor]) -> None:
    folder, seen, run = tmp_path / "whole", [], regression()
    before = (folder / WEIGHTS).stat().st_mtime_ns
    train(run, folder, seen.append)
    assert not seen and (folder / WEIGHTS).stat().st_mtime_ns == before
    assert is_finished(folder, run.key()) and not (folder / STATE).exists()
    assert all(torch.equal(a, b) for a, b in zip(weights(run), whole, strict=True))
    assert not run.model.training


@pytest.mark.parametrize("change", [{"seed": 1}, {"epochs": 5}, {"warmup": 0.2}])
def test_other_settings_start_over(
    change: dict[str, Any], tmp_path: Path, whole: list[Tensor]
) -> None:
    seen: list[dict[str, Any]] = []
    run = regression(**change)
    assert not is_finished(tmp_path / "whole", run.key())
    train(run, tmp_path / "whole", seen.append)
    assert seen[0]["epoch"] == 1
    assert not all(torch.equal(a, b) for a, b in zip(weights(run), whole, strict=True))


def test_what_is_kept_is_the_moving_average(tmp_path: Path) -> None:
    def last(average: float) -> tuple[Run, list[list[Tensor]]]:
        run = regression(epochs=1, average=average)
        trace = [weights(run)]
        given = run.loss

        def watch(indices: Tensor, rng: torch.Generator) -> Tensor:
            trace.append(weights(run))
            return given(indices, rng)

        object.__setattr__(run, "loss", watch)
        train(run, tmp_path / str(average))
        return run, trace[2:]  # after each step but the last

    plain, trace = last(0.0)
    averaged, _ = last(0.5)
    mean = weights(regression())
    for step, now in enumerate([*trace, weights(plain)]):
        keep = min(0.5, (1 + step) / (10 + step))
        mean = [keep * m + (1 - keep) * n for m, n in zip(mean, now, strict=True)]
    for got, wanted in zip(weights(averaged), mean, strict=True):
        torch.testing.assert_close(got, wanted)


def test_the_rate_rises_then_falls_to_nothing() -> None:
    from vitlet.compress.training import _rate

    rates = [_rate(step, 100, 0.1) for step in range(100)]
    assert rates[0] == 0.1 and rates[10] == 1.0 and rates == sorted(rates[:10]) + rates[10:]
    assert rates[10:] == sorted(rates[10:], reverse=True) and 0 < rates[99] < 0.001
    assert rates[55] == pytest.approx(0.5)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_epoch(tmp_path: Path) -> None:
    run = regression()
    given, steps = run.loss, iter(range(100))

    def bad(indices: Tensor, rng: torch.Generator) -> Tensor:
        loss = given(indices, rng)
        return loss * math.nan if next(steps) == 9 else loss

    object.__setattr__(run, "loss", bad)
    with pytest.raises(TrainingError, match=r"nan in epoch 3, step 2.*epoch 2 are kept"):
        train(run, tmp_path / "run")
    kept = torch.load(tmp_path / "run" / STATE, weights_only=True)
    assert kept["epoch"] == 2 and not (tmp_path / "run" / WEIGHTS).exists()
    assert all(bool(t.isfinite().all()) for t in kept["model"].values())


def test_a_damaged_state_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(regression(stop=2), tmp_path / "run")
    path = tmp_path / "run" / STATE
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"state\.pt cannot be read.*delete it"):
        train(regression(), tmp_path / "run")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        train(regression(), tmp_path / "file" / "run")


def test_the_journal_has_a_json_line_an_epoch(tmp_path: Path) -> None:
    train(regression(), tmp_path / "run", file_journal(tmp_path / "log" / "journal.jsonl"))
    lines = [json.loads(line) for line in (tmp_path / "log/journal.jsonl").read_text().splitlines()]
    assert [(line["run"], line["epoch"], line["epochs"]) for line in lines] == [
        ("toy", epoch, 4) for epoch in (1, 2, 3, 4)
    ]
    assert lines[-1]["loss"] < lines[0]["loss"]
    record = json.loads((tmp_path / "run" / RECORD).read_text())
    assert record["recipe"]["batch"] == 16 and record["inputs"] == {"data": "made up"}


@pytest.mark.parametrize("bad", [{"epochs": -1}, {"batch": 0}, {"lr": 0.0}, {"warmup": 1.0}])
def test_senseless_recipes_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected"):
        Recipe(**{"epochs": 1, **bad})
