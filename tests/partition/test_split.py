"""A split is planned, trained and exported; what cannot work is refused before it is trained."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitlet
from vitlet.compress.training import Recipe
from vitlet.data.labelled import LabelledImages
from vitlet.errors import (
    BundleError,
    CheckpointError,
    MissingDependencyError,
    UnsupportedError,
    UsageError,
)
from vitlet.models.deit import DeiT
from vitlet.partition.devices import Device
from vitlet.partition.draft import DRAFT, Choices, read_draft
from vitlet.partition.evaluate import evaluate
from vitlet.partition.placing.loads import InfeasibleError
from vitlet.partition.plan import Plan, load_plan
from vitlet.partition.splitting import (
    class_means,
    export_planned,
    plan_split,
    split,
    train_planned,
)
from vitlet.partition.submodels.fusion import FusionTask
from vitlet.partition.submodels.train import Settings, train_split
from vitlet.partition.submodels.widths import Geometry, cost, keep_heads
from vitlet.partition.submodels.work import load_trained, save_full

SHORT = Settings(
    short=Recipe(epochs=1, batch=50, lr=2e-3),
    long=Recipe(epochs=3, batch=50, lr=2e-3, average=0.9),
    fusion=FusionTask(Recipe(epochs=20, batch=50, lr=3e-3, average=0.9)),
)
DEVICES = tuple(Device(name, 10_000_000, 1e9) for name in ("one", "two", "three"))


@pytest.fixture(scope="module")
def made(
    full: DeiT, data: LabelledImages, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Plan, Path]:
    folder = tmp_path_factory.mktemp("split")
    plan = split(
        full, data, DEVICES, out=folder / "plan", work=folder / "work",
        choices=Choices(keep=2, replicas=1), settings=SHORT,
    )  # fmt: skip
    return plan, folder


def test_a_split_answers_and_its_plan_says_how_it_was_made(
    made: tuple[Plan, Path], test_data: LabelledImages
) -> None:
    plan, folder = made
    assert load_plan(folder / "plan") == plan
    assert plan.labels == tuple("abcdef") and len(plan.slots) == 3
    assert plan.strategy == {
        "classes": "balanced-random", "assign": "greedy", "prune": "per-model", "seed": 0,
    }  # fmt: skip
    assert [len(slot.devices) for slot in plan.slots] == [2, 2, 2]  # one replica each
    assert len({slot.primary for slot in plan.slots}) == 3
    assert len(plan.details["explain"]) >= 4
    judgement = evaluate(plan, test_data, seconds=0.01).judgement
    assert judgement.whole.accuracy > 0.6  # by chance 0.17


def test_predicted_sizes_are_those_of_the_files(made: tuple[Plan, Path], full: DeiT) -> None:
    plan, _ = made
    small = cost(Geometry.of(full), keep_heads(Geometry.of(full), 2))
    for slot in plan.slots:
        assert (slot.params, slot.macs, slot.memory) == (small.params, small.macs, small.memory)
        assert small.bytes <= slot.bytes < small.bytes + 20_000  # the graph besides the weights


def test_what_is_finished_is_not_made_again(
    made: tuple[Plan, Path], full: DeiT, data: LabelledImages
) -> None:
    plan, folder = made
    before = {p: p.stat().st_mtime_ns for p in (folder / "work").glob("slot-*/**/*") if p.is_file()}
    epochs: list[Any] = []
    train_planned(folder / "work", data, settings=SHORT, epochs=epochs.append)
    assert not epochs
    after = {p: p.stat().st_mtime_ns for p in (folder / "work").glob("slot-*/**/*") if p.is_file()}
    assert before == after
    again = load_trained(read_draft(folder / "work"), full, folder / "work")
    assert again.temperature == plan.temperature


def test_other_devices_need_no_new_training(
    made: tuple[Plan, Path], full: DeiT, data: LabelledImages, tmp_path: Path
) -> None:
    _, folder = made
    shutil.copytree(folder / "work", tmp_path / "work")
    others = [Device(f"new-{j}", 10_000_000, 2e9) for j in range(3)]
    plan_split(full, data, others, tmp_path / "work", choices=Choices(keep=2))
    draft = read_draft(tmp_path / "work")
    assert {place.devices[0] for place in draft.placements} == {"new-0", "new-1", "new-2"}
    load_trained(draft, full, tmp_path / "work")
    shutil.rmtree(tmp_path / "work" / "trained")
    with pytest.raises(UsageError, match="planned and not trained"):
        load_trained(draft, full, tmp_path / "work")


def test_another_split_in_the_same_folder_is_refused(
    made: tuple[Plan, Path], full: DeiT, data: LabelledImages
) -> None:
    _, folder = made
    with pytest.raises(UsageError, match="holds another split"):
        plan_split(full, data, DEVICES, folder / "work", choices=Choices(keep=2, seed=1))


def test_an_untrained_plan_has_the_sizes_of_the_trained_one(
    made: tuple[Plan, Path], full: DeiT, tmp_path: Path
) -> None:
    plan, _ = made
    plan_split(full, "abcdef", DEVICES, tmp_path / "work", choices=Choices(keep=2))
    with pytest.raises(UsageError, match="planned and not trained"):
        export_planned(tmp_path / "work", tmp_path / "plan")
    tried = export_planned(tmp_path / "work", tmp_path / "plan", random=True)
    assert tried.details["trained"] is False
    keys = ("features", "params", "macs", "memory", "classes")
    for mine, its in zip(tried.slots, plan.slots, strict=True):
        assert [getattr(mine, k) for k in keys] == [getattr(its, k) for k in keys]
        assert mine.bytes == its.bytes


def test_confusable_classes_are_found_by_the_models_own_features(
    full: DeiT, data: LabelledImages, tmp_path: Path
) -> None:
    means = class_means(full, data, full.info.preprocess, seed=0)
    assert means.shape == (6, 32) and np.isfinite(means).all()
    choices = Choices(slots=2, classes="confusable-together")
    draft = plan_split(full, data, DEVICES[:2], tmp_path, choices=choices)
    assert sorted(c for part in draft.classes for c in part) == list(range(6))
    with pytest.raises(UsageError, match="needs pictures"):
        plan_split(full, "abcdef", DEVICES[:2], tmp_path / "b", choices=choices)


def test_the_draft_survives_the_disk(full: DeiT, tmp_path: Path) -> None:
    choices = Choices(assign="makespan", prune="global", total_bytes=100_000, seconds=1.0)
    draft = plan_split(full, "abcdef", DEVICES, tmp_path, choices=choices)
    assert read_draft(tmp_path) == draft
    assert draft.figures()["total"]["bytes"] <= 100_000
    text = (tmp_path / DRAFT).read_text()
    (tmp_path / DRAFT).write_text(text.replace('"dim": 32', '"dim": "wide"'))
    with pytest.raises(BundleError, match="schema"):
        read_draft(tmp_path).geometry.dim + 1
    (tmp_path / DRAFT).write_text(json.dumps({"schema": 7}))
    with pytest.raises(BundleError, match="schema 1"):
        read_draft(tmp_path)


def _without(data: LabelledImages, missing: int) -> LabelledImages:
    return data.take(np.flatnonzero(data.labels != missing))


def _another(model: DeiT, **changes: Any) -> DeiT:
    config = {**model.info.config, **changes}
    made = DeiT(**config).eval()
    made.info = replace(model.info, config=config)
    return made


def test_bad_input_is_refused_before_anything_is_trained(
    full: DeiT, data: LabelledImages, tmp_path: Path
) -> None:
    one = LabelledImages(data.images, data.labels * 0, ("all",))
    many = [Device(f"d{j}", 10_000_000, 1e9) for j in range(7)]
    tight = [replace(device, budget=10.0) for device in DEVICES]
    spec = full.info.preprocess
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (UsageError, "gives 6 classes, .* have 1", {"data": one}),
        (UsageError, "cannot be split", {"data": one, "model": _another(full, num_classes=1)}),
        (UsageError, "7 sub-models for 6 classes.*--slots 6", {"devices": many}),
        (InfeasibleError, "left of its budget.*raise the budget", {"devices": tight}),
        (UsageError, "every class, but d has fewer", {"data": _without(data, 3)}),
        (UnsupportedError, "plain ViT", {"model": torch.nn.Linear(2, 2)}),
        (UnsupportedError, "plain ViT", {"model": vitlet.create_model("casvit_fashion")}),
        (UsageError, "preprocessing gives 1 channels of", {"preprocess": replace(spec, size=(9, 9),
                                                                                 resize_to=9)}),
        (UsageError, "device name 'one' comes twice", {"devices": [DEVICES[0], DEVICES[0]]}),
        (UsageError, "unknown class strategy", {"choices": Choices(classes="best")}),
        (UsageError, "unknown assignment", {"choices": Choices(assign="best")}),
        (UsageError, "at least one device", {"devices": []}),
        (UsageError, "cannot read the device file", {"devices": str(tmp_path / "none.toml")}),
    ]  # fmt: skip
    for kind, message, change in cases:
        given = {"model": full, "data": data, "devices": DEVICES, **change}
        work, out = tmp_path / "work", tmp_path / "out"
        began = time.monotonic()
        with pytest.raises(kind, match=message):
            split(
                given.pop("model"), given.pop("data"), given.pop("devices"), work=work, out=out,
                **given,
            )  # fmt: skip
        assert not work.exists() and not out.exists(), message
        assert time.monotonic() - began < 60  # not a claim of speed: nothing was trained


def test_other_data_than_planned_are_refused(
    full: DeiT, data: LabelledImages, tmp_path: Path
) -> None:
    plan_split(full, data, DEVICES, tmp_path)
    renamed = LabelledImages(data.images, data.labels, tuple("abcdeg"))
    with pytest.raises(UsageError, match="planned for 6 classes"):
        train_planned(tmp_path, renamed)
    with pytest.raises(UsageError, match="has no draft"):
        train_planned(tmp_path / "elsewhere", data)


def test_a_changed_full_model_is_noticed(full: DeiT, data: LabelledImages, tmp_path: Path) -> None:
    plan_split(full, data, DEVICES, tmp_path)
    other = _another(full)
    save_full(other, tmp_path)
    with pytest.raises(CheckpointError, match="changed after the split was planned"):
        train_planned(tmp_path, data)


def test_a_cluster_needs_ray(
    full: DeiT, data: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    plan_split(full, data, DEVICES, tmp_path)
    with pytest.raises(MissingDependencyError, match=r'pip install "vitlet\[ray\]"'):
        train_planned(tmp_path, data, settings=SHORT, ray="local")


def test_splits_of_one_model_share_its_answers(
    full: DeiT, data: LabelledImages, tmp_path: Path
) -> None:
    none = Recipe(epochs=0)
    settings = Settings(short=none, long=none, fusion=FusionTask(none), pictures=8)
    widths, dealt = [keep_heads(Geometry.of(full), 1)] * 2, ((0, 1, 2), (3, 4, 5))
    for name in ("one", "two"):
        train_split(
            full, data, full.info.preprocess, dealt, widths, tmp_path / name, settings,
            shared=tmp_path,
        )  # fmt: skip
    assert len(list(tmp_path.glob("answers-*"))) == 1
    assert not list(tmp_path.glob("*/answers-*"))
